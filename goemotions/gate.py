"""The gate: is a candidate better than the champion, on the same validation rows? One function, used to register and to promote."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from goemotions.errors import ModelError
from goemotions.predictions import Predictions
from goemotions.thresholds import Thresholds

RESAMPLES = 200
# A 95% interval, from the percentiles of the resampled differences (Efron and Tibshirani 1993, chapter 13).
INTERVAL = (2.5, 97.5)
TOLERATED_LOSS = 0.002
TOLERATED_CALIBRATION_LOSS = 0.01


@dataclass(frozen=True)
class Contender:
    """A version as the gate sees it: validation predictions, thresholds, and the 95th percentile of its latency in ms."""

    validation: Predictions
    thresholds: Thresholds
    latency_ms: float


@dataclass(frozen=True)
class Verdict:
    """Whether the candidate passes, why not, and the differences (candidate minus champion) with their intervals."""

    passes: bool
    reasons: tuple[str, ...]
    differences: dict[str, dict[str, float]]

    def describe(self) -> dict[str, Any]:
        return {"passes": self.passes, "reasons": list(self.reasons), "differences": self.differences}


def compare(candidate: Contender, champion: Contender, *, latency_budget_ms: float | None, seed: int = 0) -> Verdict:
    """Compares two versions by a paired bootstrap over the rows.

    The candidate passes when its AUC micro is higher, when neither AUC micro nor macro F1 can have fallen by more than 0.002 (the
    lower ends of their 95% intervals), when its calibration error has not risen by more than 0.01, and when it is within the
    latency budget.

    Raises:
        ModelError: the two know other labels, or were scored on other rows.
    """
    ours, theirs = candidate.validation, champion.validation
    if ours.names != theirs.names:
        raise ModelError("the champion knows other labels than the candidate: register under another model name")
    if list(ours.ids) != list(theirs.ids) or ours.digest != theirs.digest:
        raise ModelError("champion and candidate were scored on other rows: score the champion on this data first")
    random = np.random.default_rng(seed)
    weights = random.multinomial(len(ours.ids), np.full(len(ours.ids), 1 / len(ours.ids)), size=RESAMPLES)
    differences = {
        "auc_micro": _difference(_auc(ours, weights), _auc(theirs, weights)),
        "f1_macro": _difference(_f1(candidate, weights), _f1(champion, weights)),
    }
    loss = calibration_error(ours) - calibration_error(theirs)
    differences["calibration_error"] = {"difference": loss, "low": loss, "high": loss}
    reasons = []
    if differences["auc_micro"]["difference"] <= 0:
        reasons.append("AUC micro is not higher")
    reasons += [
        f"{name} may have fallen by more than {TOLERATED_LOSS}"
        for name in ("auc_micro", "f1_macro")
        if differences[name]["low"] < -TOLERATED_LOSS
    ]
    if loss > TOLERATED_CALIBRATION_LOSS:
        reasons.append(f"the calibration error rose by {loss:.4f}")
    if latency_budget_ms is not None and candidate.latency_ms > latency_budget_ms:
        reasons.append(f"p95 latency {candidate.latency_ms:.1f} ms is over the budget of {latency_budget_ms:g} ms")
    return Verdict(not reasons, tuple(reasons), differences)


def calibration_error(predictions: Predictions, bins: int = 15) -> float:
    """Expected calibration error over all cells, in bins of equal width (Guo et al. 2017, section 2)."""
    probabilities = predictions.probabilities.ravel()
    labels = predictions.labels.ravel()
    index = np.minimum((probabilities * bins).astype(int), bins - 1)
    counts = np.bincount(index, minlength=bins)
    gaps = np.abs(np.bincount(index, probabilities, bins) - np.bincount(index, labels, bins))
    return float(gaps[counts > 0].sum() / len(labels))


def _difference(ours: np.ndarray, theirs: np.ndarray) -> dict[str, float]:
    """The first entry is the figure on all rows, the rest are resamples."""
    low, high = np.percentile(ours[1:] - theirs[1:], INTERVAL)
    return {"difference": float(ours[0] - theirs[0]), "low": float(low), "high": float(high)}


def _auc(predictions: Predictions, weights: np.ndarray) -> np.ndarray:
    """AUC micro on all rows and on each resample; the cells are sorted once, a resample only changes their weights."""
    flat = predictions.probabilities.ravel()
    order = np.argsort(flat, kind="stable")
    rows = order // predictions.probabilities.shape[1]
    positive = predictions.labels.ravel()[order]
    # Tied cells share one step of the curve.
    group = np.concatenate([[0], np.cumsum(np.diff(flat[order]) > 0)])

    def auc(weight: np.ndarray) -> float:
        cells = weight[rows].astype(float)
        positives = np.bincount(group, cells * positive)
        negatives = np.bincount(group, cells * ~positive)
        below = np.cumsum(negatives) - negatives
        total = positives.sum() * negatives.sum()
        return float((positives * (below + negatives / 2)).sum() / total) if total else 0.5

    return np.array([auc(np.ones(len(predictions.ids))), *(auc(weight) for weight in weights)])


def _f1(contender: Contender, weights: np.ndarray) -> np.ndarray:
    """Macro F1 at the contender's thresholds on all rows and on each resample."""
    predicted = contender.thresholds.apply(contender.validation.probabilities)
    labels = contender.validation.labels
    weights = np.vstack([np.ones(len(labels)), weights])
    hits = weights @ (labels & predicted)
    cells = weights @ (labels.astype(int) + predicted)
    return np.asarray((2 * hits / np.maximum(cells, 1)).mean(axis=1))
