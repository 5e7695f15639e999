"""The effect of each training option: one change per row, measured on validation.

    python -m benchmarks.ablations --dataset FOLDER --row focal --row batch-16 --seed 0

adds rows to ``goemotions/report/ablations.csv``, which the report shows for the data they were measured on. The test split is not
read, except with ``--final``, which adds the metrics of a finished recipe to ``goemotions/report/seeds.csv``.
"""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import click

from goemotions.data.dataset import load_dataset, taxonomy_of
from goemotions.evaluation import tables
from goemotions.evaluation.predictions import FILE, Predictions
from goemotions.metrics import calibration, classification, cross_fitting, strategies
from goemotions.models import engines
from goemotions.models.tokenizer import TextEncoder
from goemotions.report.measurements import ABLATIONS, SEEDS
from goemotions.training.options import TrainOptions
from goemotions.training.trainer import train

PROFILE = "minilm"
# Every row is these settings with its changes, independent of the profile.
BASE: dict[str, Any] = {
    "epochs": 1,
    "learning_rate": 2e-4,
    "head_lr_multiplier": 10.0,
    "batch_size": 32,
    "dropout": 0.1,
    "pooling": "mean",
    "init_bias_from_frequency": True,
    "layer_decay": 1.0,
    "loss": "bce",
    "label_smoothing": 0.0,
    "teachers": 0,
    "distillation_weight": 0.5,
    "teacher_epochs": 1,
}
ROWS: dict[str, dict[str, Any]] = {
    "base": {},
    "two-epochs": {"epochs": 2},
    "three-epochs": {"epochs": 3},
    "plain-head": {"head_lr_multiplier": 1.0, "init_bias_from_frequency": False},
    "head-at-encoder-rate": {"head_lr_multiplier": 1.0},
    "head-not-at-prior": {"init_bias_from_frequency": False},
    "rate-1e-4": {"learning_rate": 1e-4},
    "rate-3e-4": {"learning_rate": 3e-4},
    "batch-16": {"batch_size": 16},
    "batch-64": {"batch_size": 64},
    "dropout-0.3": {"dropout": 0.3},
    "first-token": {"pooling": "first"},
    "layer-decay-0.8": {"layer_decay": 0.8},
    "focal": {"loss": "focal"},
    "asymmetric": {"loss": "asymmetric"},
    "class-balanced": {"loss": "class-balanced"},
    "smoothing-0.1": {"label_smoothing": 0.1},
    "taught-by-two": {"teachers": 2, "epochs": 2},
    "taught-by-three": {"teachers": 3, "distillation_weight": 0.7, "epochs": 3},
    "taught-by-four": {"teachers": 4, "distillation_weight": 0.7, "epochs": 3},
    "taught-by-four-alone": {"teachers": 4, "distillation_weight": 1.0, "epochs": 3},
}


@click.command()
@click.option("--dataset", type=click.Path(path_type=Path), required=True, help="Dataset folder, from `goemotions ingest`.")
@click.option("--row", "rows", type=click.Choice(list(ROWS)), multiple=True, default=list(ROWS), help="Default: all rows.")
@click.option(
    "--seed",
    "seeds",
    type=int,
    multiple=True,
    default=(0,),
    show_default=True,
    help="Teachers use the seeds that follow, so leave gaps larger than their number.",
)
@click.option("--final", is_flag=True, help="Score the test split, too: only for a finished recipe.")
@click.option("--threads", type=int, help="Default: all cores.")
@click.option("--work", type=click.Path(path_type=Path), default=Path(".local/ablations"), show_default=True)
def main(dataset: Path, rows: tuple[str, ...], seeds: tuple[int, ...], final: bool, threads: int | None, work: Path) -> None:
    """Measure rows of the ablation table."""
    if threads:
        import torch

        torch.set_num_threads(threads)
    for row in rows:
        for seed in seeds:
            folder = work / f"{row}-{seed}"
            options = TrainOptions(settings=BASE | ROWS[row], seed=seed, checkpoint_location=str(folder / "checkpoints"))
            train(dataset, folder / "model", PROFILE, options)
            measured = {"row": row, "changes": json.dumps(ROWS[row]), "seed": seed, **measure(dataset, folder)}
            record(ABLATIONS, measured)
            click.echo(json.dumps(measured))
            # A later run of the same row must train again, with the code of that time.
            shutil.rmtree(folder / "checkpoints", ignore_errors=True)
            if final:
                record(SEEDS, {"row": row, "seed": seed, **final_metrics(dataset, folder / "model")})


def measure(dataset: Path, folder: Path) -> dict[str, Any]:
    """Metrics of a trained model on validation; writes its Predictions into the folder."""
    splits, info = load_dataset(dataset, ("validation",))
    taxonomy = taxonomy_of(info)
    labels = taxonomy.multi_hot(splits["validation"]["labels"][:])
    engine = engines.load("torch", folder / "model", TextEncoder.load(folder / "model"))
    scores, _ = engines.score(engine, splits["validation"]["text"][:])
    predictions = Predictions(
        taxonomy.names, splits["validation"]["id"][:], labels, scores, "validation", "torch", info["digest"]
    )
    predictions.write(folder / FILE)
    at_half = classification.decisions(labels, scores >= 0.5)
    tuned = cross_fitting.metrics(labels, scores, strategies.per_label_smoothed)
    return {
        **classification.ranking(labels, scores),
        "f1_macro_at_0.5": at_half["f1_macro"],
        **{f"{name}_tuned": tuned[name] for name in ("f1_macro", "f1_micro")},
        "calibration_error": calibration.error(labels, scores),
        "digest": info["digest"],
    }


def final_metrics(dataset: Path, model: Path) -> dict[str, Any]:
    """Metrics on validation and test, with thresholds fitted on validation."""
    splits, info = load_dataset(dataset)
    taxonomy = taxonomy_of(info)
    engine = engines.load("torch", model, TextEncoder.load(model))
    labels, scores = {}, {}
    for split in ("validation", "test"):
        labels[split] = taxonomy.multi_hot(splits[split]["labels"][:])
        scores[split], _ = engines.score(engine, splits[split]["text"][:])
    fitted, _ = cross_fitting.choose(labels["validation"], scores["validation"])
    metrics: dict[str, Any] = {}
    for split in labels:
        decided = classification.decisions(labels[split], fitted.apply(scores[split]))
        values = classification.ranking(labels[split], scores[split]) | {
            name: decided[name] for name in ("f1_macro", "f1_micro")
        }
        metrics |= {f"{split}/{name}": value for name, value in values.items()}
    return {**metrics, "digest": info["digest"]}


def record(path: Path, measured: dict[str, Any]) -> None:
    """Adds a row after those of the same name, or replaces the one with the same name, seed and data."""
    written: list[dict[str, Any]] = list(csv.DictReader(path.open(encoding="utf-8"))) if path.exists() else []
    rows = {(row["row"], int(row["seed"]), row["digest"]): row for row in written}
    rows[measured["row"], measured["seed"], measured["digest"]] = {
        k: f"{v:.5f}" if isinstance(v, float) else v for k, v in measured.items()
    }
    names = list(dict.fromkeys(name for name, *_ in rows))
    tables.write_csv(path, [rows[key] for key in sorted(rows, key=lambda key: (names.index(key[0]), *key[1:]))])


if __name__ == "__main__":
    main()
