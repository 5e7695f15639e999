"""The steps of the workflow as commands: each reads folders, writes a folder, and ends by printing what it wrote."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from goemotions import defaults
from goemotions.cli import options as shared
from goemotions.cli.parameters import checked
from goemotions.storage.temporary import temporary_folder
from goemotions.training.options import PRECISIONS, TrainOptions

# The libraries of a step take seconds to import, so each command imports its own.

DATASET = click.option("--dataset", type=shared.FOLDER, required=True, help="Dataset folder, from `goemotions ingest`.")
OUTPUT = click.option("--output", type=shared.FOLDER, required=True, help="Folder to write.")
MODEL = click.option("--model", type=shared.FOLDER, required=True, help="Model folder, from `goemotions train`.")
RUN = click.option(
    "--run", "pipeline_run", default="", help="Id of the pipeline run to log to MLflow under; empty for no logging."
)
PRICES = shared.together(
    shared.setting("--cpu-hour-price", default=defaults.CPU_HOUR_PRICE, help="Price of an hour of a core, for the costs."),
    shared.setting("--gpu-hour-price", default=defaults.GPU_HOUR_PRICE, help="Price of an hour of a GPU."),
)
CANDIDATES = click.option(
    "--candidate",
    "candidates",
    type=shared.FOLDER,
    multiple=True,
    required=True,
    help="Folder of a profile with model, onnx, and per variant (gpu, cpu) validation, test, thresholds. Repeatable.",
)


@click.command()
@click.option(
    "--source",
    type=shared.SOURCE,
    required=True,
    help="sample, hub:<dataset>[:<config>][@<revision>], a folder or file, or s3://bucket/prefix/.",
)
@OUTPUT
@shared.TEXT_COLUMN
@click.option(
    "--labels-column",
    default=defaults.LABELS_COLUMN,
    help="Column with the labels, or one per label, separated by commas; default: labels, label, or the columns of 0 and 1.",
)
@shared.setting(
    "--split-share", default=defaults.SPLIT_SHARE, help="Share of the rows of train that each split gets that the source lacks."
)
@shared.setting("--split-seed", default=defaults.SPLIT_SEED, help="Seed of the rows that are drawn for them.")
@click.option("--drop-leaked", is_flag=True, help="Remove texts from train that are also in validation or test.")
@click.option(
    "--unlabelled",
    type=click.Choice(defaults.UNLABELLED_POLICIES),
    default=defaults.UNLABELLED,
    show_default=True,
    help="What to do with rows without a label.",
)
@shared.setting(
    "--max-quarantined", default=defaults.MAX_QUARANTINED, help="Largest share of unusable rows per split; more is an error."
)
def ingest(source: str, output: Path, **options: Any) -> None:
    """Read, validate and describe a data set."""
    from goemotions.data.dataset import INFO_FILE, ingest

    info = ingest(source, output, **options)
    counts = ", ".join(f"{count:,} {split}" for split, count in info["rows"].items())
    click.echo(f"{output}: {counts} rows, {len(info['labels'])} labels, digest {info['digest'][:12]}; see {INFO_FILE} there")


@click.command()
@DATASET
@OUTPUT
@click.option("--profile", required=True, help="A model profile, such as minilm.")
@shared.options_of(TrainOptions)
def train(dataset: Path, output: Path, profile: str, **values: Any) -> None:
    """Fine-tune a model profile."""
    from goemotions.training import launcher

    # As the pipelines take it, and the steps of several profiles.
    values["weights"] = values["weights"].removeprefix(f"{profile}=")
    record = launcher.run(dataset, output, profile, TrainOptions(**values))
    best = record.history[record.best_epoch - 1]
    click.echo(
        f"{output}: {profile}, epoch {record.best_epoch} of {len(record.history)}, validation micro AUC "
        f"{best['validation/auc_micro']:.4f}, macro {best['validation/auc_macro']:.4f}, {record.seconds:.0f} s on {record.hardware}"
    )


@click.command()
@DATASET
@OUTPUT
@click.option(
    "--teachers",
    required=True,
    callback=checked,
    help="Profiles and seeds, such as mpnet:2+minilm@7, or locations of trained models.",
)
@shared.WEIGHTS
@shared.setting(
    "--transfer-texts", default=0.0, help="Texts that the teachers label, too, made of those of train; per text of train."
)
@click.option(
    "--store", type=shared.LOCATION, default="", help="Keeps scores and checkpoints, and finds them again; empty for none."
)
@click.option(
    "--precision",
    type=click.Choice(PRECISIONS),
    default=defaults.PRECISION,
    show_default=True,
    help="fp32, bf16, or auto for bf16 if the hardware computes in it.",
)
@RUN
def teach(dataset: Path, output: Path, teachers: str, weights: dict[str, str], store: str, **given: Any) -> None:
    """Train teachers, and write the dataset with the mean of their scores for students."""
    from goemotions.models import profiles
    from goemotions.training import launcher
    from goemotions.training import teachers as scores

    with temporary_folder() as scratch:
        folders: list[Path] = []
        for teacher in profiles.teachers(teachers):
            options = TrainOptions(weights=weights.get(teacher.profile, ""), **given)
            folders.append(scratch / str(len(folders)))
            launcher.teach(dataset, folders[-1], str(teacher), options, store)
        for record in scores.combine(dataset, folders, output):
            click.echo(f"{output}: {record.name}, {record.parameters:,} parameters, {record.seconds:.0f} s")


@click.command()
@DATASET
@MODEL
@OUTPUT
@RUN
def export(dataset: Path, model: Path, output: Path, pipeline_run: str) -> None:
    """Write a model as ONNX in fp32 and int8, with parity and latency."""
    from goemotions.models.export import export
    from goemotions.models.records import TrainingRecord
    from goemotions.registry import model_run

    records = export(dataset, model, output)
    model_run.log_export(pipeline_run, TrainingRecord.read(model).profile["name"], records)
    for name, record in records.items():
        latency = "latency not measured" if record.latency_ms_p95 is None else f"p95 {record.latency_ms_p95:.1f} ms"
        click.echo(
            f"{output}: {name}, {record.bytes / 2**20:.0f} MiB, largest difference {record.difference_max:.1e}, {latency}"
        )


@click.command()
@DATASET
@MODEL
@click.option("--onnx", type=shared.FOLDER, required=True, help="Onnx folder, from `goemotions export`.")
@click.option("--engine", type=shared.ENGINE, required=True, help="What computes the scores.")
@click.option("--validation", type=shared.FOLDER, required=True, help="Folder to write the scored validation split to.")
@click.option("--test", type=shared.FOLDER, required=True, help="Folder to write the scored test split to.")
@RUN
def evaluate(dataset: Path, model: Path, onnx: Path, engine: str, pipeline_run: str, **outputs: Path) -> None:
    """Score validation and test once with an engine."""
    from goemotions.evaluation.evaluate import evaluate
    from goemotions.evaluation.predictions import Predictions
    from goemotions.registry import bundle, model_run

    metrics = evaluate(dataset, model, onnx, engine, outputs)
    scored = Predictions.read(outputs["validation"])
    variant = next((name for name, served in bundle.ENGINES.items() if served == engine), engine)
    model_run.log_evaluation(pipeline_run, scored.profile, variant, metrics, str(scored.computation))
    for split, folder in outputs.items():
        click.echo(f"{folder}: micro AUC {metrics[f'{split}/auc_micro']:.4f}, macro {metrics[f'{split}/auc_macro']:.4f}")


@click.command()
@click.option("--validation", type=shared.FOLDER, required=True, help="Scored validation split, from `goemotions evaluate`.")
@OUTPUT
@shared.setting(
    "--strategy",
    default=defaults.THRESHOLD_STRATEGY,
    help="Name of a strategy; best: per-label-smoothed, unless another one is clearly better by cross-fitted macro F1.",
)
@shared.setting(
    "--precision",
    "target_precision",
    default=defaults.TARGET_PRECISION,
    help="Micro precision that the strategy precision meets.",
)
@shared.setting(
    "--recall", "target_recall", default=defaults.TARGET_RECALL, help="Share of a text's labels that the strategy recall keeps."
)
@RUN
@click.option("--variant", type=click.Choice(["gpu", "cpu"]), default="cpu", show_default=True, help="The variant, for MLflow.")
def tune_thresholds(validation: Path, output: Path, pipeline_run: str, variant: str, **options: Any) -> None:
    """Fit every threshold strategy on validation and choose one."""
    from goemotions.evaluation.predictions import Predictions
    from goemotions.evaluation.tuning import tune
    from goemotions.registry import model_run

    content = tune(validation, output, **options)
    model_run.log_thresholds(pipeline_run, Predictions.read(validation).profile, variant, content)
    for result in content.comparison:
        click.echo(
            f"{result.thresholds.strategy:>18}  macro F1 {result.f1_macro_fitted:.4f}, "
            f"cross-fitted {result.cross_fitted['f1_macro']:.4f}"
        )
    click.echo(f"{output}/thresholds.json: {content.thresholds.strategy}")


@click.command()
@DATASET
@CANDIDATES
@click.option("--store", type=shared.LOCATION, required=True, help="Where to write bundles: s3://bucket/ or a folder.")
@click.option("--run", "pipeline_run", required=True, help="Id of the pipeline run; the same id finds the same versions again.")
@shared.MODEL_NAME
@shared.LATENCY_BUDGET
@shared.QUALITY_TOLERANCE
@click.option("--auto-promote", is_flag=True, help="Move the champion alias if the gate passes.")
@click.option("--keep-checkpoints", is_flag=True, help="Keep the checkpoints of this run's trainings in the store.")
@PRICES
def register(dataset: Path, candidates: tuple[Path, ...], cpu_hour_price: float, gpu_hour_price: float, **options: Any) -> None:
    """Choose the winners and register them in MLflow, their bundles in S3."""
    from goemotions.registry import registered_versions, registration
    from goemotions.registry.costs import Prices

    prices = Prices(cpu_hour_price, gpu_hour_price)
    for variant, version in registration.register(dataset, _artifacts(candidates), prices=prices, **options).items():
        click.echo(registered_versions.describe(variant, version))


@click.command()
@DATASET
@CANDIDATES
@OUTPUT
@PRICES
@click.option(
    "--drift", type=shared.LOCATION, default="", help="Folder or s3:// prefix of `goemotions monitor`, for a section on it."
)
def report(
    dataset: Path, candidates: tuple[Path, ...], output: Path, cpu_hour_price: float, gpu_hour_price: float, drift: str
) -> None:
    """Write the performance report as Markdown and HTML."""
    from goemotions.evaluation.drift import read_report
    from goemotions.registry.costs import Prices
    from goemotions.report import performance

    prices, drift_report = Prices(cpu_hour_price, gpu_hour_price), read_report(drift) if drift else None
    folder = performance.write(dataset, _artifacts(candidates), output, prices=prices, drift_report=drift_report)
    click.echo(f"{folder}: report.html, report.md, tables/")


def _artifacts(candidates: tuple[Path, ...]) -> Any:
    from goemotions.registry.bundle import VARIANTS
    from goemotions.registry.candidates import CandidateArtifacts

    return {variant: [CandidateArtifacts.below(folder, variant) for folder in candidates] for variant in VARIANTS}


COMMANDS = (ingest, teach, train, export, evaluate, tune_thresholds, register, report)
