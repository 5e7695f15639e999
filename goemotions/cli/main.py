"""``goemotions``: one subcommand a step. Each ends by saying what it made and where."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from typing import Any

import click

from goemotions.cli import registry
from goemotions.cli.record_options import options_of
from goemotions.errors import DataError, WorkflowError
from goemotions.serving.limits import Limits
from goemotions.training.options import TrainOptions

# A step's libraries take seconds to import, so each subcommand imports its own.

Folder = click.Path(path_type=Path, file_okay=False)
DATASET = click.option("--dataset", type=Folder, required=True, help="Dataset folder, from `goemotions ingest`.")
OUTPUT = click.option("--output", type=Folder, required=True, help="Folder to write.")
MODEL = click.option("--model", type=Folder, required=True, help="Model folder, from `goemotions train`.")
MODEL_NAME = click.option("--model-name", default="goemotions", show_default=True, help="Name of the registered model.")
CANDIDATES = click.option(
    "--candidate",
    "candidates",
    type=Folder,
    multiple=True,
    required=True,
    help="A profile's folder with model, onnx, and for each of gpu and cpu: validation, test, thresholds. Repeatable.",
)


@click.group()
@click.version_option(package_name="goemotions")
def commands() -> None:
    """From a multi-label text data set to served, versioned classifiers."""


@commands.command()
@click.option(
    "--source", required=True, help="sample, hub:<dataset>[:<config>][@<revision>], a folder, or s3://bucket/prefix/."
)
@OUTPUT
@click.option("--drop-leaked", is_flag=True, help="Leave out of train what also stands in validation or test.")
@click.option("--unlabelled", type=click.Choice(["quarantine", "keep"]), default="quarantine", show_default=True)
@click.option("--max-quarantined", default=0.05, show_default=True, help="Share of rows that may be unusable.")
def ingest(source: str, output: Path, **options: Any) -> None:
    """Read, validate and describe a data set."""
    from goemotions.data.dataset import INFO_FILE, ingest

    info = ingest(source, output, **options)
    counts = ", ".join(f"{count:,} {split}" for split, count in info["rows"].items())
    click.echo(f"{output}: {counts} rows, {len(info['labels'])} labels, digest {info['digest'][:12]}; see {INFO_FILE} there")


@commands.command()
@DATASET
@OUTPUT
@click.option("--profile", required=True, help="A model profile, such as minilm.")
@options_of(TrainOptions)
def train(dataset: Path, output: Path, profile: str, **values: Any) -> None:
    """Fine-tune a model profile."""
    from goemotions.training import launcher

    record = launcher.run(dataset, output, profile, TrainOptions(**values))
    best = record.history[record.best_epoch - 1]
    click.echo(
        f"{output}: {profile}, epoch {record.best_epoch} of {len(record.history)}, validation AUC micro "
        f"{best['validation/auc_micro']:.4f}, macro {best['validation/auc_macro']:.4f}, {record.seconds:.0f} s on {record.hardware}"
    )


@commands.command()
@DATASET
@MODEL
@OUTPUT
def export(dataset: Path, model: Path, output: Path) -> None:
    """Write ONNX files in fp32 and int8, with parity and latency."""
    from goemotions.models.export import export as run

    for name, record in run(dataset, model, output).items():
        click.echo(
            f"{output}: {name}, {record.bytes / 2**20:.0f} MiB, differs by at most {record.difference_max:.1e}, "
            f"p95 {record.latency_ms_p95:.1f} ms"
        )


@commands.command()
@DATASET
@MODEL
@click.option("--onnx", type=Folder, required=True, help="Onnx folder, from `goemotions export`.")
@click.option("--engine", type=click.Choice(["torch", "onnx", "onnx-int8"]), required=True)
@click.option("--validation", type=Folder, required=True, help="Folder to write the scored validation split to.")
@click.option("--test", type=Folder, required=True, help="Folder to write the scored test split to.")
def evaluate(dataset: Path, model: Path, onnx: Path, engine: str, **outputs: Path) -> None:
    """Score validation and test once with an engine."""
    from goemotions.evaluation import evaluate as evaluation

    values = evaluation.evaluate(dataset, model, onnx, engine, outputs)
    for split, folder in outputs.items():
        click.echo(f"{folder}: AUC micro {values[f'{split}/auc_micro']:.4f}, macro {values[f'{split}/auc_macro']:.4f}")


@commands.command("tune-thresholds")
@click.option("--validation", type=Folder, required=True, help="Scored validation split, from `goemotions evaluate`.")
@OUTPUT
@click.option("--strategy", default="best", show_default=True, help="A strategy's name, or the best cross-fitted macro F1.")
@click.option("--precision", "target_precision", default=0.7, show_default=True, help="What the strategy precision keeps.")
@click.option("--recall", "target_recall", default=0.8, show_default=True, help="What the strategy recall keeps.")
def tune_thresholds(validation: Path, output: Path, **options: Any) -> None:
    """Fit every threshold strategy on validation and choose one."""
    from goemotions.evaluation.tuning import tune

    content = tune(validation, output, **options)
    for row in content["comparison"]:
        click.echo(
            f"{row['strategy']:>18}  macro F1 {row['f1_macro_fitted']:.4f}, cross-fitted {row['f1_macro_cross_fitted']:.4f}"
        )
    click.echo(f"{output}/thresholds.json: {content['strategy']}")


@commands.command()
@DATASET
@CANDIDATES
@click.option("--store", required=True, help="Where bundles go: s3://bucket/ or a folder.")
@click.option("--run", "pipeline_run", required=True, help="Id of the pipeline run: the same id finds the same versions.")
@MODEL_NAME
@click.option("--latency-budget-ms", default=25.0, show_default=True, help="p95 for one text that the cpu winner may take.")
@click.option("--auto-promote", is_flag=True, help="Move the champion alias where the gate passes.")
def register(dataset: Path, candidates: tuple[Path, ...], **options: Any) -> None:
    """Choose the winners and register them in MLflow, their bundles in S3."""
    from goemotions.registry import registration

    for variant, found in registration.register(dataset, _parts(candidates), **options).items():
        click.echo(f"{variant}: {found['profile']} is version {found['version']} ({found['alias']}), bundle {found['source']}")


@commands.command()
@DATASET
@CANDIDATES
@OUTPUT
def report(dataset: Path, candidates: tuple[Path, ...], output: Path) -> None:
    """Write the performance report as Markdown and HTML."""
    from goemotions import report as reporting

    click.echo(f"{reporting.write(dataset, _parts(candidates), output)}: report.md, report.html, per_label.csv")


@commands.command()
@click.argument("reference")
@OUTPUT
@MODEL_NAME
def download(reference: str, output: Path, model_name: str) -> None:
    """Bring a version's files, verified, in place of another version's. REFERENCE: an alias, a version number, or a location."""
    from goemotions.registry import bundle, references

    version, names = references.download(reference, output, model_name)
    click.echo(f"{output}: {reference}{f' (version {version.number})' if version else ''}, every file matches its manifest")
    for kind, files in bundle.by_kind(names).items():
        size = sum((output / name).stat().st_size for name in files)
        click.echo(f"  {kind:<12}{size / 1000:>11,.0f} kB  {', '.join(files)}")


@commands.command()
@click.argument("text", nargs=-1, required=True)
@click.option("--bundle", "reference", default="champion-cpu", show_default=True, help="An alias, a version, or a location.")
@MODEL_NAME
def predict(text: tuple[str, ...], reference: str, model_name: str) -> None:
    """Label texts, a JSON line for each, with a registered model. Files: `goemotions score`."""
    from goemotions.prediction.predictor import Predictor
    from goemotions.registry import references

    with references.as_folder(reference, model_name) as (folder, _):
        for answer in Predictor.load(folder).predict(text):
            click.echo(json.dumps(answer, ensure_ascii=False))


@commands.command()
@click.option(
    "--input", "source", required=True, help="A .csv, .tsv or .parquet file, or a folder or s3:// prefix of .parquet."
)
@click.option("--output", required=True, help="The file to write, in the format of its ending, or a folder or s3:// prefix.")
@click.option("--bundle", "reference", default="champion-cpu", show_default=True, help="An alias, a version, or a location.")
@MODEL_NAME
@click.option("--column", default="text", show_default=True, help="The column with the texts.")
@click.option("--all-scores/--labels-only", default=True, show_default=True, help="Add each label's probability.")
@click.option("--shard-rows", type=click.IntRange(min=1), default=100_000, show_default=True, help="Most rows of a shard.")
@click.option("--workers", type=click.IntRange(min=1), default=1, show_default=True, help="Processes, for a folder's shards.")
@click.option("--threads", type=click.IntRange(min=1), help="Of each; default: the cores, divided among them.")
def score(
    source: str,
    output: str,
    reference: str,
    model_name: str,
    shard_rows: int,
    workers: int,
    threads: int | None,
    **options: Any,
) -> None:
    """Label the rows of a file, or of a folder of Parquet files shard by shard: started again, it goes on where it ended."""
    from goemotions.prediction import files as scoring
    from goemotions.prediction import shards
    from goemotions.registry import references
    from goemotions.storage import store

    if Path(output).suffix.lower() in scoring.ENDINGS:
        from goemotions.prediction.predictor import Predictor

        if in_store := [place for place in (source, output) if store.is_s3(place)]:
            raise DataError(
                f"{in_store[0]}: a single file is labelled on this machine alone: name an s3:// prefix as the output"
            )
        with references.as_folder(reference, model_name) as (folder, _):
            made = scoring.score_file(Predictor.load(folder, threads=threads), Path(source), Path(output), **options)
        spent, rate = "s", "a second"
    else:
        shards.plan(source, output, reference, model_name=model_name, shard_rows=shard_rows, **options)
        shards.score(output, workers=workers, threads=threads)
        made = shards.finish(output)
        # Shards may have come from several workers at a time, and from several runs.
        spent, rate = "s of work", "a second and worker"
    click.echo(
        f"{output}: {made.rows:,} rows in {made.seconds:,.1f} {spent}, {made.rows / made.seconds:,.0f} {rate}; "
        f"{made.blank:,} without text, {made.truncated:,} truncated"
    )


def _limits(command: Any) -> Any:
    """An option for each limit of the server."""
    for name, text in reversed(LIMITS.items()):
        default = getattr(Limits, name)
        kind = click.IntRange(min=0) if isinstance(default, int) else click.FloatRange(min=0)
        option = click.option(f"--{name.replace('_', '-')}", name, type=kind, default=default, show_default=True, help=text)
        command = option(command)
    return command


LIMITS = {
    "body_bytes": "Largest body of a request.",
    "texts": "Most texts of a request.",
    "requests": "Most requests at once.",
    "queue_texts": "Most texts that wait.",
    "queue_seconds": "Longest wait that is expected of a text before it is refused.",
    "read_seconds": "Longest time for a body to arrive.",
    "answer_seconds": "Longest time for an answer.",
    "drain_seconds": "Time to answer on, after SIGTERM, before the port closes.",
}


@commands.command()
@click.option(
    "--bundle",
    "reference",
    envvar="GOEMOTIONS_SERVE_BUNDLE",
    default="champion-cpu",
    show_default=True,
    help="An alias, a version, or a location.",
)
@MODEL_NAME
@click.option(
    "--engine", type=click.Choice(["torch", "onnx", "onnx-int8"]), help="Instead of the one that suits bundle and hardware."
)
@click.option("--threads", type=click.IntRange(min=1), help="Threads of the engine; default: every core.")
@click.option("--workers", type=click.IntRange(min=1), default=1, show_default=True, help="Processes.")
@click.option("--host", default="127.0.0.1", show_default=True, help="0.0.0.0 in a container.")
@click.option("--port", default=8080, show_default=True)
@click.option("--grpc-port", default=0, show_default=True, help="Open Inference over gRPC; 0: none.")
@click.option("--page/--no-page", default=True, show_default=True, help="A page to try the model, at /.")
@click.option(
    "--batching/--no-batching",
    "across_requests",
    envvar="GOEMOTIONS_SERVE_BATCHING",
    default=True,
    show_default=True,
    help="Across requests.",
)
@_limits
def serve(reference: str, model_name: str, engine: str | None, **options: Any) -> None:
    """Serve a bundle by KServe's protocols; each option is an environment variable too, such as GOEMOTIONS_SERVE_PORT."""
    from goemotions.registry import references
    from goemotions.serving import server

    limits = Limits(**{name: options.pop(name) for name in LIMITS})
    with references.as_folder(reference, model_name) as (folder, version):
        server.serve(server.Settings(folder, version, engine or "", limits=limits, **options))


for command in registry.COMMANDS:
    commands.add_command(command)


def _parts(candidates: tuple[Path, ...]) -> Any:
    from goemotions.registry.assembly import CandidateArtifacts
    from goemotions.registry.bundle import VARIANTS

    return {variant: [CandidateArtifacts.below(folder, variant) for folder in candidates] for variant in VARIANTS}


def main() -> None:
    """Runs a subcommand; a named error becomes one line and exit code 1."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    for noisy in ("httpx", "botocore", "urllib3"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    try:
        commands(prog_name="goemotions", auto_envvar_prefix="GOEMOTIONS")
    except WorkflowError as error:
        click.echo(f"goemotions: {error}", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
