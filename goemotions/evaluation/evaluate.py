"""Evaluation: score a split once with an engine, keep the probabilities, and derive every figure from them."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from goemotions.data.dataset import load_dataset, taxonomy_of
from goemotions.data.taxonomy import Taxonomy
from goemotions.evaluation.predictions import FILE, Predictions
from goemotions.metrics import classification, thresholds
from goemotions.metrics.thresholds import Thresholds
from goemotions.models import engines
from goemotions.models.engine_names import canonical_name
from goemotions.models.tokenizer import TextEncoder
from goemotions.storage import store

METRICS = "metrics.json"


@store.raise_on_full_disk
def evaluate(
    dataset: Path, model_folder: Path, onnx_folder: Path, engine_name: str, outputs: dict[str, Path]
) -> dict[str, float]:
    """Scores splits with one engine and writes a folder for each: Predictions, metrics at 0.5, and both as CSV.

    Args:
        dataset: a Dataset folder.
        model_folder: a Model folder: the tokenizer, and the weights of the engine ``torch``.
        onnx_folder: an Onnx folder, for the engines ``openvino-fp32`` and ``openvino-int8``.
        engine_name: ``torch``, ``openvino-fp32`` or ``openvino-int8``.
        outputs: where each split's folder is written, by the split's name.

    Returns:
        The metrics of all splits, named ``<split>/<metric>``.
    """
    splits, info = load_dataset(dataset)
    names = taxonomy_of(info).names
    # Where torch finds no GPU, the float engine for CPUs gives its answers, as the export step has checked, in half the time.
    engine_name = canonical_name(engine_name)
    used = engines.suited(engine_name)
    engine = engines.load(used, onnx_folder if used in engines.FILES else model_folder, TextEncoder.load(model_folder))
    result: dict[str, float] = {}
    for split, output in outputs.items():
        rows = splits[split]
        with tqdm(total=len(rows), desc=f"{engine_name} {split}", unit="text", mininterval=10) as bar:
            probabilities, truncated = engines.score(engine, rows["text"][:], bar.update)
        labels = Taxonomy(names).multi_hot(rows["labels"][:])
        found = Predictions(names, rows["id"][:], labels, probabilities, split, engine_name, info["digest"])
        values = compute_metrics(found, thresholds.fixed(labels, probabilities)) | {
            f"{split}/truncated": float(truncated.sum())
        }
        write_folder(output, found, values)
        result |= values
    return result


def roc(folder: Path) -> tuple[list[float], list[float], list[float]]:
    """The ROC curve over all cells of a scored split, as ``metrics.roc_curve`` answers it."""
    scored = Predictions.read(folder / FILE)
    return classification.roc_curve(scored.labels, scored.probabilities)


def compute_metrics(predictions: Predictions, fitted: Thresholds) -> dict[str, float]:
    """Every metric of a scored split under thresholds, named ``<split>/<metric>``."""
    predicted = fitted.apply(predictions.probabilities)
    values = classification.ranking(predictions.labels, predictions.probabilities) | classification.decisions(
        predictions.labels, predicted
    )
    return {f"{predictions.split}/{name}": value for name, value in values.items()}


def write_folder(output: Path, predictions: Predictions, values: dict[str, float]) -> None:
    output.mkdir(parents=True, exist_ok=True)
    predictions.write(output / FILE)
    (output / METRICS).write_text(json.dumps(values, indent=1), encoding="utf-8")
    fixed = thresholds.fixed(predictions.labels, predictions.probabilities)
    predicted = fixed.apply(predictions.probabilities)
    rows = classification.per_label(predictions.names, predictions.labels, predictions.probabilities, predicted)
    write_csv(output / "per_label.csv", rows)
    _write_predictions_csv(output / "predictions.csv", predictions, predicted)


def write_csv(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def _write_predictions_csv(path: Path, predictions: Predictions, predicted: np.ndarray) -> None:
    names = np.array(predictions.names, dtype=object)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "labels", "predicted", *predictions.names])
        for row_id, labels, guess, scores in zip(
            predictions.ids, predictions.labels, predicted, predictions.probabilities, strict=True
        ):
            writer.writerow([row_id, "|".join(names[labels]), "|".join(names[guess]), *(f"{score:.6f}" for score in scores)])
