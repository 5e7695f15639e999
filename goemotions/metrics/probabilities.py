"""Probabilities: from and to log-odds, and the order of the labels in each row. Arrays are float [n, labels]."""

from __future__ import annotations

import numpy as np

# Probabilities are kept this far from 0 and 1 before their log-odds are taken.
CLIP = 1e-7


def sigmoid(logits: np.ndarray) -> np.ndarray:
    """1 / (1 + exp(-x)) without overflow, in the precision of the logits."""
    probabilities: np.ndarray = 0.5 * (1 + np.tanh(0.5 * logits))
    return probabilities


def logit(probabilities: np.ndarray) -> np.ndarray:
    """Log-odds of probabilities, float64; finite for 0 and 1 too."""
    clipped = np.clip(probabilities.astype(float), CLIP, 1 - CLIP)
    logits: np.ndarray = np.log(clipped / (1 - clipped))
    return logits


def rank_labels(probabilities: np.ndarray) -> np.ndarray:
    """The columns of each row by falling probability, int [n, labels]; of equal ones the first column first."""
    return np.argsort(-probabilities, axis=1, kind="stable")


def top_k(probabilities: np.ndarray, k: int) -> np.ndarray:
    """The first k columns of ``rank_labels``, int [n, k], without sorting the rest."""
    k = min(k, probabilities.shape[1])
    columns = np.empty((len(probabilities), k), dtype=np.intp)
    remaining, rows = probabilities.copy(), np.arange(len(probabilities))
    for place in range(k):
        columns[:, place] = remaining.argmax(axis=1)
        remaining[rows, columns[:, place]] = -np.inf
    return columns


def is_top_k(probabilities: np.ndarray, k: int) -> np.ndarray:
    """Which labels are among the k highest of their row, bool [n, labels]."""
    mask = np.zeros(probabilities.shape, dtype=bool)
    np.put_along_axis(mask, top_k(probabilities, k), True, axis=1)
    return mask
