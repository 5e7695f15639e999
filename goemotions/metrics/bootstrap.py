"""The bootstrap: how far a metric would vary if other rows had been drawn (Efron and Tibshirani 1993, chapter 13).

A resample is one weight per row: how often the row was drawn. Weights have the shape [resamples + 1, n]. The first are all one, so that
the first value of every result is the metric on all rows. Two models are compared on the same weights: the variation that both share
cancels out.
"""

from __future__ import annotations

import numpy as np

from goemotions.metrics import calibration
from goemotions.metrics.classification import CHANCE, f1_score
from goemotions.metrics.sorted_scores import SortedColumn

# A 95% interval, from the percentiles of the resampled values.
INTERVAL = (2.5, 97.5)


def weights(rows: int, resamples: int, seed: int = 0) -> np.ndarray:
    """How often each row is drawn, int [resamples + 1, rows]; the first resample contains each row once."""
    drawn = np.random.default_rng(seed).multinomial(rows, np.full(rows, 1 / rows), size=resamples)
    return np.vstack([np.ones((1, rows), dtype=drawn.dtype), drawn])


def interval(values: np.ndarray) -> tuple[float, float]:
    """The 95% interval of a metric's values [resamples + 1]."""
    low, high = np.percentile(values[1:], INTERVAL)
    return float(low), float(high)


def auc_micro(labels: np.ndarray, probabilities: np.ndarray, drawn: np.ndarray) -> np.ndarray:
    """ROC AUC over all text-label pairs, float [resamples + 1]."""
    rows = np.repeat(np.arange(len(labels)), labels.shape[1])
    return _auc(labels.ravel(), probabilities.ravel(), rows, drawn, undefined=CHANCE)


def auc_macro(labels: np.ndarray, probabilities: np.ndarray, drawn: np.ndarray) -> np.ndarray:
    """Mean ROC AUC over the labels, float [resamples + 1]; in each resample over the labels that have both classes there."""
    rows = np.arange(len(labels))
    aucs = np.stack([_auc(*column, rows, drawn, undefined=np.nan) for column in zip(labels.T, probabilities.T, strict=True)])
    defined = ~np.isnan(aucs)
    total = np.where(defined, aucs, 0).sum(axis=0)
    return np.where(defined.any(axis=0), total / np.maximum(defined.sum(axis=0), 1), CHANCE)


def f1(labels: np.ndarray, predicted: np.ndarray, drawn: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Macro and micro F1, each float [resamples + 1], of decisions [n, labels]: bool, or how often of 1 each was taken."""
    counts = [drawn @ array.astype(float) for array in (labels * predicted, predicted, labels)]
    return f1_score(*counts).mean(axis=1), f1_score(*(array.sum(axis=1) for array in counts))


def calibration_error(labels: np.ndarray, probabilities: np.ndarray, drawn: np.ndarray) -> np.ndarray:
    """The error of ``calibration.error``, float [resamples + 1]."""
    rows, excess = np.indices(labels.shape)[0], np.zeros((len(labels), calibration.BINS))
    np.add.at(excess, (rows, calibration.bins(probabilities)), probabilities.astype(float) - labels)
    errors: np.ndarray = np.abs(drawn @ excess).sum(axis=1) / labels.size
    return errors


def _auc(labels: np.ndarray, probabilities: np.ndarray, rows: np.ndarray, drawn: np.ndarray, undefined: float) -> np.ndarray:
    """AUC of flat arrays [m], whose values belong to these rows, on every resample. They are sorted once."""
    order = np.argsort(probabilities)
    classes = [order[labels[order]], order[~labels[order]]]
    column = SortedColumn(*(probabilities[indices] for indices in classes))
    aucs = (column.auc([weight[rows[indices]] for indices in classes]) for weight in drawn)
    return np.array([undefined if auc is None else auc for auc in aucs])
