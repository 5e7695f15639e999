"""Metrics of multi-label predictions: pure functions on arrays of shape [n, labels]."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import sklearn.metrics

from goemotions.metrics.sorted_scores import Column, Counts, columns

# The area under the ROC curve of a scorer that knows nothing; stands in where a label has one class only.
CHANCE = 0.5


def ranking(labels: np.ndarray, probabilities: np.ndarray) -> dict[str, float]:
    """ROC AUC, micro over all cells and macro over the labels that have both classes; always finite."""
    micro = Column.of(labels.ravel(), probabilities.ravel()).auc()
    measured = [auc for auc in label_auc(labels, probabilities) if auc is not None]
    return {"auc_micro": CHANCE if micro is None else micro, "auc_macro": float(np.mean(measured)) if measured else CHANCE}


def roc_curve(labels: np.ndarray, probabilities: np.ndarray, points: int = 200) -> tuple[list[float], list[float], list[float]]:
    """False positive rates, true positive rates and thresholds of the ROC curve over all cells; finite, at most ``points`` of them."""
    flat = labels.ravel()
    if flat.min() == flat.max():
        return [0.0, 1.0], [0.0, 1.0], [1.0, 0.0]
    curve = np.array(sklearn.metrics.roc_curve(flat, probabilities.ravel()))
    # The first threshold is infinite, for the point where nothing is predicted.
    curve[2] = np.minimum(curve[2], 1.0)
    shown = np.unique(np.linspace(0, curve.shape[1] - 1, points).round().astype(int))
    false, true, thresholds = curve[:, shown].tolist()
    return false, true, thresholds


def label_auc(labels: np.ndarray, probabilities: np.ndarray) -> list[float | None]:
    """ROC AUC of each label; None where the rows show one class only."""
    return [column.auc() for column in columns(labels, probabilities)]


def decisions(labels: np.ndarray, predicted: np.ndarray) -> dict[str, float]:
    """Precision, recall and F1, micro and macro, and how often a label was ever predicted. 0/0 counts as 0."""
    return counted(_counts(labels, predicted), labels.sum(axis=0), len(labels))


def counted(counts: Counts, positives: np.ndarray, rows: int) -> dict[str, float]:
    """The figures of ``decisions`` from counts and positives, each int [labels]."""
    result: dict[str, float] = {}
    for average, found in (("micro", [np.sum(numbers) for numbers in (*counts, positives)]), ("macro", [*counts, positives])):
        precision, recall, f1 = (float(np.mean(score)) for score in _scores(*found))
        result |= {f"precision_{average}": precision, f"recall_{average}": recall, f"f1_{average}": f1}
    return {
        **result,
        "labels_ever_predicted": float((counts.predicted > 0).sum()),
        "labels_per_row": float(counts.predicted.sum() / rows),
    }


def per_label(
    names: Sequence[str], labels: np.ndarray, probabilities: np.ndarray, predicted: np.ndarray
) -> list[dict[str, Any]]:
    """A row a label: support, precision, recall, F1 and ROC AUC (None where it is not defined)."""
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
            "auc": auc,
        }
        for i, (name, auc) in enumerate(zip(names, label_auc(labels, probabilities), strict=True))
    ]


def _counts(labels: np.ndarray, predicted: np.ndarray) -> Counts:
    return Counts((labels & predicted).sum(axis=0), predicted.sum(axis=0))


def _scores(hits: np.ndarray, predicted: np.ndarray, positives: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Precision, recall and F1; 0/0 counts as 0."""
    return hits / np.maximum(predicted, 1), hits / np.maximum(positives, 1), 2 * hits / np.maximum(predicted + positives, 1)
