"""Evaluation: scores a split once with an engine, keeps the probabilities, and computes every metric from them."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from tqdm import tqdm

from goemotions import usage
from goemotions.data.dataset import load_dataset, taxonomy_of
from goemotions.data.taxonomy import Taxonomy
from goemotions.evaluation import counterfactuals, reference, slices, tables
from goemotions.evaluation.predictions import FILE, Predictions
from goemotions.evaluation.reference import Reference
from goemotions.evaluation.traffic import features_of
from goemotions.metrics import classification, strategies
from goemotions.metrics.classification import METRICS_FILE, LabelMetrics
from goemotions.metrics.sorted_scores import SortedScores
from goemotions.metrics.thresholds import Thresholds
from goemotions.models import engine_names, engines
from goemotions.models.engines import Engine
from goemotions.models.records import TrainingRecord
from goemotions.models.tokenizer import TextEncoder
from goemotions.storage import store

# Metrics of an engine on a GPU: median and 95th percentile for one text of 20 tokens.
LATENCY = ("validation/latency_ms_p50", "validation/latency_ms_p95")
# How fast the engine scored the validation split, tokenization included.
THROUGHPUT = "validation/texts_per_second"
# Beside Predictions and metrics in the folder of a scored split.
PER_LABEL = "per_label.csv"
PREDICTIONS_CSV = "predictions.csv"


@store.raise_on_full_disk
def evaluate(
    dataset: Path, model_folder: Path, onnx_folder: Path, engine_name: str, outputs: dict[str, Path]
) -> dict[str, float]:
    """Scores splits with one engine and writes a folder for each: Predictions, metrics at 0.5 (``write_split``), and more.

    That is what needs the texts: the slice of each row, the metrics per slice, and the scores of counterfactuals; of validation also
    ``reference.json``, with which the texts that a server scores are compared.

    Args:
        dataset, model_folder, onnx_folder: what ``ingest``, ``train`` and ``export`` wrote.
        engine_name: of ``engine_names.NAMES``. Without a GPU, ``torch`` is replaced (``engines.suited``); the Predictions say so.
        outputs: the folder to write, by split.

    Returns:
        The metrics of all splits, named ``<split>/<metric>``.

    Raises:
        DataError, ModelError: a folder is not what its step wrote.
        DeviceError: this process was given a GPU and cannot use it.
    """
    splits, info = load_dataset(dataset)
    names, profile = taxonomy_of(info).names, TrainingRecord.read(model_folder).profile["name"]
    # Without a GPU, the float engine for CPUs returns the probabilities of torch, as the export step has checked, in half the time.
    used = engines.suited(engine_name)
    engine = engines.load(used, onnx_folder if used in engine_names.FILES else model_folder, TextEncoder.load(model_folder))
    metrics: dict[str, float] = {}
    for split, output in outputs.items():
        rows = splits[split]
        started = time.perf_counter()
        with tqdm(total=len(rows), desc=f"{used} {split}", unit="text", mininterval=10) as bar:
            probabilities, truncated = engines.score(engine, rows["text"][:], bar.update)
        seconds = time.perf_counter() - started
        labels = Taxonomy(names).multi_hot(rows["labels"][:])
        predictions = Predictions(
            names,
            rows["id"][:],
            labels,
            probabilities,
            split,
            digest=info["digest"],
            profile=profile,
            **asdict(engine.computation),
        )
        of_split = {**compute_metrics(predictions, at_half(predictions)), f"{split}/truncated": float(truncated.sum())}
        if split == "validation":
            of_split[THROUGHPUT] = len(rows) / seconds
            if predictions.device == "cuda":
                # The export step, on CPU nodes, cannot measure it.
                of_split |= dict(zip(LATENCY, engines.latency(engine), strict=True))
        write_split(output, predictions, of_split)
        _write_slices(output, engine, predictions, rows["text"][:])
        if split == "validation":
            features = features_of(engine.encoder, rows["text"][:])
            Reference.of(predictions, at_half(predictions), features).write(output / reference.FILE)
        metrics |= of_split
    usage.end_step(next(iter(outputs.values())), "evaluate")
    return metrics


def _write_slices(folder: Path, engine: Engine, predictions: Predictions, texts: Sequence[str]) -> None:
    slices.write(folder / slices.FILE, predictions.ids, texts)
    tables.write_csv(folder / slices.PER_SLICE, slices.measure(predictions, at_half(predictions), slices.read(folder)))
    counterfactuals.write(folder / counterfactuals.FILE, engine, texts, predictions.probabilities, predictions.names)


def at_half(predictions: Predictions) -> Thresholds:
    """A threshold of 0.5 for every label."""
    return strategies.fixed(SortedScores.of(predictions.labels, predictions.probabilities))


def compute_metrics(predictions: Predictions, fitted: Thresholds) -> dict[str, float]:
    """Every metric of a scored split under thresholds, named ``<split>/<metric>``."""
    metrics = {
        **classification.ranking(predictions.labels, predictions.probabilities),
        **classification.decisions(predictions.labels, fitted.apply(predictions.probabilities)),
    }
    return {f"{predictions.split}/{name}": value for name, value in metrics.items()}


def compute_both(predictions: Predictions, fitted: Thresholds) -> dict[str, float]:
    """The metrics of ``compute_metrics`` under thresholds and at 0.5, the latter as ``<split>/<metric>/at_0.5``."""
    half = compute_metrics(predictions, at_half(predictions))
    return compute_metrics(predictions, fitted) | {f"{name}/at_0.5": value for name, value in half.items()}


def compute_per_label(predictions: Predictions, fitted: Thresholds) -> list[LabelMetrics]:
    """The metrics of each label of a scored split under thresholds."""
    labels, probabilities = predictions.labels, predictions.probabilities
    return classification.per_label(predictions.names, labels, probabilities, fitted.apply(probabilities))


def write_split(folder: Path, predictions: Predictions, metrics: dict[str, float]) -> None:
    """Writes the folder of a scored split: Predictions and metrics, and as CSV the metrics per label and the decisions at 0.5."""
    folder.mkdir(parents=True, exist_ok=True)
    predictions.write(folder / FILE)
    (folder / METRICS_FILE).write_text(json.dumps(metrics, indent=1), encoding="utf-8")
    fitted = at_half(predictions)
    tables.write_csv(folder / PER_LABEL, compute_per_label(predictions, fitted))
    tables.write_predictions(folder / PREDICTIONS_CSV, predictions, fitted.apply(predictions.probabilities))
