"""Metrics of multi-label predictions: pure functions on arrays of shape [n, labels]."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict

import numpy as np

from goemotions.metrics.sorted_scores import Counts, SortedColumn, sorted_columns

# The file of metrics, in the folder of a scored split and in a bundle.
METRICS_FILE = "metrics.json"
# The ROC AUC of random scores; used if a label has one class only.
CHANCE = 0.5


class LabelMetrics(TypedDict):
    """The metrics of one label; ``auc`` is None if the label has one class only."""

    label: str
    support: int
    predicted: int
    precision: float
    recall: float
    f1: float
    auc: float | None


def ranking(labels: np.ndarray, probabilities: np.ndarray) -> dict[str, float]:
    """ROC AUC, micro over all text-label pairs and macro over the labels that have both classes; always finite."""
    micro = SortedColumn.of(labels.ravel(), probabilities.ravel()).auc()
    per_label = (column.auc() for column in sorted_columns(labels, probabilities))
    defined = [auc for auc in per_label if auc is not None]
    return {"auc_micro": CHANCE if micro is None else micro, "auc_macro": float(np.mean(defined)) if defined else CHANCE}


def decisions(labels: np.ndarray, predicted: np.ndarray) -> dict[str, float]:
    """Precision, recall and F1, micro and macro; the number of labels ever predicted, and of labels per row. 0/0 counts as 0."""
    return decisions_from_counts(_counts(labels, predicted), labels.sum(axis=0), len(labels))


def decisions_from_counts(counts: Counts, positives: np.ndarray, rows: int) -> dict[str, float]:
    """The metrics of ``decisions`` from counts and positives, each int [labels]."""
    metrics: dict[str, float] = {}
    per_label = (*counts, positives)
    for average, numbers in (("micro", [np.sum(values) for values in per_label]), ("macro", per_label)):
        precision, recall, f1 = (float(np.mean(scores)) for scores in _scores(*numbers))
        metrics |= {f"precision_{average}": precision, f"recall_{average}": recall, f"f1_{average}": f1}
    return {
        **metrics,
        "labels_ever_predicted": float((counts.predicted > 0).sum()),
        "labels_per_row": float(counts.predicted.sum() / rows),
    }


def macro_f1(labels: np.ndarray, predicted: np.ndarray) -> float:
    """The mean F1 of the labels."""
    return float(np.mean(f1_score(*_counts(labels, predicted), labels.sum(axis=0))))


def per_label(names: Sequence[str], labels: np.ndarray, probabilities: np.ndarray, predicted: np.ndarray) -> list[LabelMetrics]:
    """One row per label."""
    counts, support = _counts(labels, predicted), labels.sum(axis=0)
    precision, recall, f1 = _scores(*counts, support)
    return [
        {
            "label": name,
            "support": int(support[i]),
            "predicted": int(counts.predicted[i]),
            "precision": float(precision[i]),
            "recall": float(recall[i]),
            "f1": float(f1[i]),
            "auc": column.auc(),
        }
        for i, (name, column) in enumerate(zip(names, sorted_columns(labels, probabilities), strict=True))
    ]


def roc_curve(labels: np.ndarray, probabilities: np.ndarray, points: int = 200) -> tuple[list[float], list[float], list[float]]:
    """False positive rates, true positive rates and thresholds of the ROC curve over all text-label pairs.

    All are finite; of the corners of the curve at most ``points``, evenly spread, are returned.
    """
    thresholds, hits, predicted = counts_by_threshold(labels.ravel(), probabilities.ravel())
    wrong = predicted - hits
    if not (hits[-1] and wrong[-1]):
        return [0.0, 1.0], [0.0, 1.0], [1.0, 0.0]
    is_corner = np.ones(len(hits), dtype=bool)
    is_corner[1:-1] = (np.diff(hits, 2) != 0) | (np.diff(wrong, 2) != 0)
    # The curve starts where nothing is predicted.
    curve = [
        np.concatenate([[start], values[is_corner]])
        for start, values in ((0, wrong / wrong[-1]), (0, hits / hits[-1]), (1, thresholds))
    ]
    chosen = np.unique(np.linspace(0, is_corner.sum(), points).round().astype(int))
    false, true, cuts = (values[chosen].tolist() for values in curve)
    return false, true, cuts


def counts_by_threshold(labels: np.ndarray, probabilities: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Each distinct probability as a threshold, falling, with the hits and the predictions at it; arrays [n] in, [distinct] out."""
    order = np.argsort(-probabilities, kind="stable")
    falling = probabilities[order]
    # Equal probabilities are predicted together.
    last = np.flatnonzero(np.append(falling[1:] != falling[:-1], True))
    return falling[last], np.cumsum(labels[order])[last], last + 1


def f1_score(hits: np.ndarray, predicted: np.ndarray, positives: np.ndarray) -> np.ndarray:
    """F1 from counts; 0 for a label that is neither present nor predicted."""
    return np.asarray(2 * hits / np.maximum(predicted + positives, 1))


def _counts(labels: np.ndarray, predicted: np.ndarray) -> Counts:
    return Counts((labels & predicted).sum(axis=0), predicted.sum(axis=0))


def _scores(hits: np.ndarray, predicted: np.ndarray, positives: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Precision, recall and F1; 0/0 counts as 0."""
    return hits / np.maximum(predicted, 1), hits / np.maximum(positives, 1), f1_score(hits, predicted, positives)
