"""Calibration: whether a probability of 0.3 means three in ten. Measured, and improved by a calibrator fitted on validation.

Every array has the shape [n, labels].
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypedDict

import numpy as np

from goemotions.metrics.probabilities import logit, sigmoid

BINS = 15
FOLDS = 5
# A penalty, in units of log loss, keeps slopes near 1 and intercepts near 0 for labels with few positives.
RIDGE = 2.0
MIN_SLOPE = 0.1


@dataclass(frozen=True)
class Calibrator:
    """Multiplies the logits by a slope and adds an intercept, one of each per label; the method ``none`` changes nothing."""

    method: str
    slope: tuple[float, ...]
    intercept: tuple[float, ...]

    def apply(self, logits: np.ndarray) -> np.ndarray:
        calibrated: np.ndarray = logits * np.asarray(self.slope) + np.asarray(self.intercept)
        return calibrated

    def undo(self, probabilities: np.ndarray) -> np.ndarray:
        """The probabilities before calibration, from those after it."""
        return sigmoid((logit(probabilities) - np.asarray(self.intercept)) / np.asarray(self.slope))


class MethodScores(TypedDict):
    """The scores of a calibration method, cross-fitted."""

    method: str
    log_loss: float
    brier: float
    calibration_error: float


class ReliabilityBin(TypedDict):
    """Text-label pairs of similar probability: how many, their mean probability and the share of positives."""

    count: int
    predicted: float
    observed: float


def none(labels: np.ndarray, logits: np.ndarray) -> Calibrator:
    return Calibrator("none", (1.0,) * labels.shape[1], (0.0,) * labels.shape[1])


def temperature(labels: np.ndarray, logits: np.ndarray) -> Calibrator:
    """One slope for all labels, with the lowest log loss (Guo et al. 2017, section 4.2)."""
    from scipy.optimize import minimize

    fitted = minimize(lambda log_slope: log_loss(labels, logits * np.exp(log_slope[0])), [0.0], method="BFGS")
    return Calibrator("temperature", (float(np.exp(fitted.x[0])),) * labels.shape[1], (0.0,) * labels.shape[1])


def platt(labels: np.ndarray, logits: np.ndarray) -> Calibrator:
    """A slope and an intercept per label, with the lowest log loss (Platt 1999)."""
    from scipy.optimize import minimize

    width = labels.shape[1]

    def cost(flat: np.ndarray) -> tuple[float, np.ndarray]:
        slope, intercept = flat.reshape(2, width)
        calibrated = logits * slope + intercept
        error = sigmoid(calibrated) - labels
        offset = np.stack([slope - 1, intercept])
        loss = (np.logaddexp(0, calibrated) - labels * calibrated).sum() + RIDGE * (offset**2).sum()
        return loss, (np.stack([(error * logits).sum(axis=0), error.sum(axis=0)]) + 2 * RIDGE * offset).ravel()

    # A slope of 0 or less would reverse a label's ranking.
    bounds = [(MIN_SLOPE, None)] * width + [(None, None)] * width
    fitted = minimize(cost, np.concatenate([np.ones(width), np.zeros(width)]), jac=True, method="L-BFGS-B", bounds=bounds)
    slope, intercept = fitted.x.reshape(2, width)
    return Calibrator("platt", tuple(slope.tolist()), tuple(intercept.tolist()))


METHODS = {"none": none, "temperature": temperature, "platt": platt}


def choose(labels: np.ndarray, logits: np.ndarray) -> tuple[Calibrator, list[MethodScores]]:
    """The method with the lowest log loss on held-out rows, fitted on all rows of validation; and the scores of every method."""
    logits = logits.astype(float)
    fold = np.random.default_rng(0).permutation(len(labels)) % FOLDS
    rows: list[MethodScores] = []
    for method, fit in METHODS.items():
        held_out_logits = np.empty(logits.shape)
        for number in range(FOLDS):
            held_out = fold == number
            held_out_logits[held_out] = fit(labels[~held_out], logits[~held_out]).apply(logits[held_out])
        probabilities = sigmoid(held_out_logits)
        rows.append(
            {
                "method": method,
                "log_loss": log_loss(labels, held_out_logits),
                "brier": brier(labels, probabilities),
                "calibration_error": error(labels, probabilities),
            }
        )
    best = min(rows, key=lambda row: row["log_loss"])
    return METHODS[best["method"]](labels, logits), rows


def log_loss(labels: np.ndarray, logits: np.ndarray) -> float:
    """Mean binary cross-entropy over all text-label pairs."""
    return float((np.logaddexp(0, logits) - labels * logits).mean())


def brier(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """Mean squared difference between probability and label over all text-label pairs (Brier 1950)."""
    return float(((probabilities.astype(float) - labels) ** 2).mean())


def error(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """Expected calibration error over all text-label pairs, in bins of equal width (Guo et al. 2017, section 2)."""
    rows = reliability(labels, probabilities)
    return float(sum(row["count"] * abs(row["predicted"] - row["observed"]) for row in rows) / labels.size)


def bins(probabilities: np.ndarray) -> np.ndarray:
    """The position of each probability's bin, int, of the same shape."""
    index: np.ndarray = np.minimum((probabilities.astype(float) * BINS).astype(int), BINS - 1)
    return index


def reliability(labels: np.ndarray, probabilities: np.ndarray) -> list[ReliabilityBin]:
    """The bins that are not empty, by rising probability."""
    flat = probabilities.ravel().astype(float)
    index = bins(flat)
    counts = np.bincount(index, minlength=BINS)
    predicted, observed = (np.bincount(index, values, BINS) for values in (flat, labels.ravel()))
    return [
        {"count": int(counts[i]), "predicted": float(predicted[i] / counts[i]), "observed": float(observed[i] / counts[i])}
        for i in np.flatnonzero(counts)
    ]
