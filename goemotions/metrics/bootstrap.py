"""The bootstrap: how far a figure would move had other rows been drawn (Efron and Tibshirani 1993, chapter 13).

A resample is a weight a row: how often it was drawn. Weights have the shape [resamples + 1, n]; the first are all one, so that
the first entry of every result is the figure itself. Two models are compared on the same weights, so that what both find hard
cancels out.
"""

from __future__ import annotations

import numpy as np

# A 95% interval, from the percentiles of the resampled figures.
INTERVAL = (2.5, 97.5)


def weights(rows: int, resamples: int, seed: int = 0) -> np.ndarray:
    """How often each row is drawn, int [resamples + 1, rows]; the first resample holds each row once."""
    drawn = np.random.default_rng(seed).multinomial(rows, np.full(rows, 1 / rows), size=resamples)
    return np.vstack([np.ones((1, rows), dtype=drawn.dtype), drawn])


def interval(values: np.ndarray) -> tuple[float, float]:
    """The 95% interval of figures [resamples + 1]."""
    low, high = np.percentile(values[1:], INTERVAL)
    return float(low), float(high)


def auc_micro(labels: np.ndarray, probabilities: np.ndarray, drawn: np.ndarray) -> np.ndarray:
    """ROC AUC over all cells, float [resamples + 1]."""
    rows = np.repeat(np.arange(len(labels)), labels.shape[1])
    return _auc(labels.ravel(), probabilities.ravel(), rows, drawn)


def auc_macro(labels: np.ndarray, probabilities: np.ndarray, drawn: np.ndarray) -> np.ndarray:
    """Mean ROC AUC over the labels, float [resamples + 1]; in each resample over those with both classes in it."""
    rows = np.arange(len(labels))
    found = np.stack([_auc(*columns, rows, drawn, undefined=np.nan) for columns in zip(labels.T, probabilities.T, strict=True)])
    counted = ~np.isnan(found)
    total = np.where(counted, found, 0).sum(axis=0)
    return np.where(counted.any(axis=0), total / np.maximum(counted.sum(axis=0), 1), 0.5)


def f1(labels: np.ndarray, predicted: np.ndarray, drawn: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """F1 of decisions, bool [n, labels], macro and micro, each float [resamples + 1]."""
    hits = drawn @ (labels & predicted)
    cells = drawn @ (labels.astype(int) + predicted)
    macro = (2 * hits / np.maximum(cells, 1)).mean(axis=1)
    return macro, 2 * hits.sum(axis=1) / np.maximum(cells.sum(axis=1), 1)


def _auc(
    labels: np.ndarray, probabilities: np.ndarray, rows: np.ndarray, drawn: np.ndarray, undefined: float = 0.5
) -> np.ndarray:
    """AUC of flat cells, each of a row, on every resample; the cells are sorted once, a resample only changes their weights."""
    order = np.argsort(probabilities, kind="stable")
    positive = labels[order]
    # Tied cells share one step of the curve.
    group = np.concatenate([[0], np.cumsum(np.diff(probabilities[order]) > 0)])

    def auc(weight: np.ndarray) -> float:
        cells = weight[rows[order]].astype(float)
        positives = np.bincount(group, cells * positive)
        negatives = np.bincount(group, cells * ~positive)
        below = np.cumsum(negatives) - negatives
        total = positives.sum() * negatives.sum()
        return float((positives * (below + negatives / 2)).sum() / total) if total else undefined

    return np.array([auc(weight) for weight in drawn])
