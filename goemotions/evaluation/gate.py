"""The gate: is a candidate better than the champion, on the same validation rows? One function, used to register and to promote."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from goemotions.errors import ModelError
from goemotions.evaluation.predictions import Predictions
from goemotions.evaluation.selection import CandidateScores
from goemotions.metrics import bootstrap, calibration

RESAMPLES = 200
TOLERATED_LOSS = 0.002
TOLERATED_CALIBRATION_LOSS = 0.01


@dataclass(frozen=True)
class Verdict:
    """Whether the candidate passes, why not, and the differences (candidate minus champion) with their intervals."""

    passes: bool
    reasons: tuple[str, ...]
    differences: dict[str, dict[str, float]]

    def describe(self) -> dict[str, Any]:
        return {"passes": self.passes, "reasons": list(self.reasons), "differences": self.differences}


def compare(
    candidate: CandidateScores, champion: CandidateScores, *, latency_budget_ms: float | None, seed: int = 0
) -> Verdict:
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
    drawn = bootstrap.weights(len(ours.ids), RESAMPLES, seed)
    differences = {
        "auc_micro": _difference(*(bootstrap.auc_micro(side.labels, side.probabilities, drawn) for side in (ours, theirs))),
        "f1_macro": _difference(*(_f1_macro(scores, drawn) for scores in (candidate, champion))),
    }
    loss = _calibration_error(ours) - _calibration_error(theirs)
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


def _calibration_error(predictions: Predictions) -> float:
    return calibration.error(predictions.labels, predictions.probabilities)


def _difference(ours: np.ndarray, theirs: np.ndarray) -> dict[str, float]:
    """The first entry is the figure on all rows, the rest are resamples."""
    low, high = bootstrap.interval(ours - theirs)
    return {"difference": float(ours[0] - theirs[0]), "low": low, "high": high}


def _f1_macro(scores: CandidateScores, drawn: np.ndarray) -> np.ndarray:
    predicted = scores.thresholds.apply(scores.validation.probabilities)
    return bootstrap.f1(scores.validation.labels, predicted, drawn)[0]
