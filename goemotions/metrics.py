"""Metrics of multi-label predictions: pure functions on arrays of shape [n, labels]."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import sklearn.metrics
from sklearn.metrics import precision_recall_fscore_support, roc_auc_score

# The area under the ROC curve of a scorer that knows nothing; stands in where a label has one class only.
CHANCE = 0.5


def ranking(labels: np.ndarray, probabilities: np.ndarray) -> dict[str, float]:
    """ROC AUC, micro over all cells and macro over the labels that have both classes; always finite."""
    flat = labels.ravel()
    micro = float(roc_auc_score(flat, probabilities.ravel())) if flat.min() != flat.max() else CHANCE
    measured = [auc for auc in label_auc(labels, probabilities) if auc is not None]
    return {"auc_micro": micro, "auc_macro": float(np.mean(measured)) if measured else CHANCE}


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
    return [
        float(roc_auc_score(labels[:, column], probabilities[:, column])) if 0 < count < len(labels) else None
        for column, count in enumerate(labels.sum(axis=0))
    ]


def decisions(labels: np.ndarray, predicted: np.ndarray) -> dict[str, float]:
    """Precision, recall and F1, micro and macro, and how often a label was ever predicted. 0/0 counts as 0."""
    result: dict[str, float] = {}
    for average in ("micro", "macro"):
        precision, recall, f1, _ = _scores(labels, predicted, average)
        result |= {f"precision_{average}": float(precision), f"recall_{average}": float(recall), f"f1_{average}": float(f1)}
    return {
        **result,
        "labels_ever_predicted": float(predicted.any(axis=0).sum()),
        "labels_per_row": float(predicted.sum(axis=1).mean()),
    }


def per_label(
    names: Sequence[str], labels: np.ndarray, probabilities: np.ndarray, predicted: np.ndarray
) -> list[dict[str, Any]]:
    """A row a label: support, precision, recall, F1 and ROC AUC (None where it is not defined)."""
    precision, recall, f1, support = _scores(labels, predicted, None)
    return [
        {
            "label": name,
            "support": int(support[i]),
            "predicted": int(predicted[:, i].sum()),
            "precision": float(precision[i]),
            "recall": float(recall[i]),
            "f1": float(f1[i]),
            "auc": auc,
        }
        for i, (name, auc) in enumerate(zip(names, label_auc(labels, probabilities), strict=True))
    ]


def _scores(labels: np.ndarray, predicted: np.ndarray, average: str | None) -> Any:
    # scikit-learn takes a single column for a binary target, whose negative class it would count as a label of its own.
    classes = [True] if labels.shape[1] == 1 else None
    return precision_recall_fscore_support(labels, predicted, labels=classes, average=average, zero_division=0)
