"""Calibration: does a probability of 0.3 mean three in ten? Measured, and scaled on validation where scaling helps.

Every array has the shape [n, labels].
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit, logit

BINS = 15
FOLDS = 5
# Labels with few positives would fit their scaling to chance: slopes and intercepts are held near 1 and 0 by this many log-loss units.
RIDGE = 2.0
LEAST_SLOPE = 0.1
CLIP = 1e-7


@dataclass(frozen=True)
class Scaling:
    """Logits times a slope plus an intercept, one of each a label; ``none`` leaves them as they are."""

    method: str
    slope: tuple[float, ...]
    intercept: tuple[float, ...]

    def apply(self, logits: np.ndarray) -> np.ndarray:
        scaled: np.ndarray = logits * np.asarray(self.slope) + np.asarray(self.intercept)
        return scaled

    def undo(self, probabilities: np.ndarray) -> np.ndarray:
        """The probabilities before the scaling, from those after it."""
        scaled = logit(np.clip(probabilities.astype(float), CLIP, 1 - CLIP))
        before: np.ndarray = expit((scaled - np.asarray(self.intercept)) / np.asarray(self.slope))
        return before


def none(labels: np.ndarray, logits: np.ndarray) -> Scaling:
    return Scaling("none", (1.0,) * labels.shape[1], (0.0,) * labels.shape[1])


def temperature(labels: np.ndarray, logits: np.ndarray) -> Scaling:
    """One slope for all labels, with the least log loss (Guo et al. 2017, section 4.2)."""
    found = minimize(lambda log_slope: log_loss(labels, logits * np.exp(log_slope[0])), [0.0], method="BFGS")
    return Scaling("temperature", (float(np.exp(found.x[0])),) * labels.shape[1], (0.0,) * labels.shape[1])


def platt(labels: np.ndarray, logits: np.ndarray) -> Scaling:
    """A slope and an intercept for each label, with the least log loss (Platt 1999)."""
    width = labels.shape[1]

    def cost(flat: np.ndarray) -> tuple[float, np.ndarray]:
        slope, intercept = flat.reshape(2, width)
        scaled = logits * slope + intercept
        error = expit(scaled) - labels
        off = np.stack([slope - 1, intercept])
        loss = (np.logaddexp(0, scaled) - labels * scaled).sum() + RIDGE * (off**2).sum()
        return loss, (np.stack([(error * logits).sum(axis=0), error.sum(axis=0)]) + 2 * RIDGE * off).ravel()

    # A slope of 0 or less would turn a label's ranking around.
    bounds = [(LEAST_SLOPE, None)] * width + [(None, None)] * width
    found = minimize(cost, np.concatenate([np.ones(width), np.zeros(width)]), jac=True, method="L-BFGS-B", bounds=bounds)
    slope, intercept = found.x.reshape(2, width)
    return Scaling("platt", tuple(slope.tolist()), tuple(intercept.tolist()))


METHODS = {"none": none, "temperature": temperature, "platt": platt}


def choose(labels: np.ndarray, logits: np.ndarray, seed: int = 0) -> tuple[Scaling, list[dict[str, Any]]]:
    """The scaling with the least log loss on rows it has not seen, fitted on all of them.

    Args:
        labels: bool [n, labels], of validation.
        logits: float [n, labels], of the same rows.
        seed: of the folds.

    Returns:
        The scaling, and a row a method: log loss, Brier score and calibration error, all cross-fitted.
    """
    logits = logits.astype(float)
    fold = np.random.default_rng(seed).permutation(len(labels)) % FOLDS
    rows: list[dict[str, Any]] = []
    for method, fit in METHODS.items():
        unseen = np.empty(logits.shape)
        for number in range(FOLDS):
            held_out = fold == number
            unseen[held_out] = fit(labels[~held_out], logits[~held_out]).apply(logits[held_out])
        scores = {
            "log_loss": log_loss(labels, unseen),
            "brier": brier(labels, expit(unseen)),
            "calibration_error": error(labels, expit(unseen)),
        }
        rows.append({"method": method, **scores})
    best = min(rows, key=lambda row: float(row["log_loss"]))
    return METHODS[best["method"]](labels, logits), rows


def log_loss(labels: np.ndarray, logits: np.ndarray) -> float:
    """Mean binary cross-entropy over all cells."""
    return float((np.logaddexp(0, logits) - labels * logits).mean())


def brier(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """Mean squared difference between probability and label over all cells (Brier 1950)."""
    return float(((probabilities.astype(float) - labels) ** 2).mean())


def error(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """Expected calibration error over all cells, in bins of equal width (Guo et al. 2017, section 2)."""
    rows = reliability(labels, probabilities)
    return float(sum(row["count"] * abs(row["predicted"] - row["observed"]) for row in rows) / labels.size)


def reliability(labels: np.ndarray, probabilities: np.ndarray) -> list[dict[str, Any]]:
    """A row a bin that has cells: their count, mean probability and share of positives."""
    flat = probabilities.ravel().astype(float)
    index = np.minimum((flat * BINS).astype(int), BINS - 1)
    counts = np.bincount(index, minlength=BINS)
    predicted, observed = (np.bincount(index, values, BINS) for values in (flat, labels.ravel()))
    return [
        {"count": int(counts[i]), "predicted": float(predicted[i] / counts[i]), "observed": float(observed[i] / counts[i])}
        for i in np.flatnonzero(counts)
    ]
