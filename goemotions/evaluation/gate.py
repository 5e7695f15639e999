"""The promotion gate: whether a candidate is better than the champion on the same validation rows. Used to register and to promote."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from goemotions.errors import ModelError
from goemotions.evaluation.selection import CandidateScores
from goemotions.metrics import bootstrap, calibration

RESAMPLES = 200
TOLERATED_LOSS = 0.002
TOLERATED_CALIBRATION_LOSS = 0.01


@dataclass(frozen=True)
class Difference:
    """A metric of the candidate minus that of the champion, with its 95% interval."""

    difference: float
    low: float
    high: float


@dataclass(frozen=True)
class Verdict:
    """Whether the candidate passes, the reasons if it does not, and the differences by metric."""

    passes: bool
    reasons: tuple[str, ...]
    differences: dict[str, Difference]

    def describe(self) -> dict[str, Any]:
        """The verdict as JSON types."""
        return {**asdict(self), "reasons": list(self.reasons)}


def compare(
    candidate: CandidateScores, champion: CandidateScores, *, latency_budget_ms: float | None, seed: int = 0
) -> Verdict:
    """Compares two models by a paired bootstrap over the rows.

    The candidate passes if its AUC micro is higher, if neither AUC micro nor macro F1 may have fallen by more than 0.002 (the lower
    ends of their 95% intervals), if its calibration error has not risen by more than 0.01, and if it is within the latency budget.

    Raises:
        ModelError: the two have other labels, or were scored on other rows.
    """
    ours, theirs = candidate.validation, champion.validation
    if ours.names != theirs.names:
        raise ModelError("candidate and champion have different labels: register under another model name")
    if list(ours.ids) != list(theirs.ids) or ours.digest != theirs.digest:
        raise ModelError("candidate and champion were scored on different rows: score the champion on this data first")
    weights = bootstrap.weights(len(ours.ids), RESAMPLES, seed)
    our_error, their_error = (calibration.error(one.labels, one.probabilities) for one in (ours, theirs))
    calibration_loss = our_error - their_error
    differences = {
        "auc_micro": _difference(*(bootstrap.auc_micro(one.labels, one.probabilities, weights) for one in (ours, theirs))),
        "f1_macro": _difference(*(_f1_macro(scores, weights) for scores in (candidate, champion))),
        "calibration_error": Difference(calibration_loss, calibration_loss, calibration_loss),
    }
    reasons = []
    if differences["auc_micro"].difference <= 0:
        reasons.append("AUC micro is not higher")
    reasons += [
        f"{name} may have fallen by more than {TOLERATED_LOSS}"
        for name in ("auc_micro", "f1_macro")
        if differences[name].low < -TOLERATED_LOSS
    ]
    if calibration_loss > TOLERATED_CALIBRATION_LOSS:
        reasons.append(f"the calibration error rose by {calibration_loss:.4f}")
    if latency_budget_ms is not None and candidate.latency_ms > latency_budget_ms:
        reasons.append(f"p95 latency {candidate.latency_ms:.1f} ms is over the budget of {latency_budget_ms:g} ms")
    return Verdict(not reasons, tuple(reasons), differences)


def _difference(ours: np.ndarray, theirs: np.ndarray) -> Difference:
    """From two metrics' values [resamples + 1], the first on all rows."""
    return Difference(float(ours[0] - theirs[0]), *bootstrap.interval(ours - theirs))


def _f1_macro(scores: CandidateScores, weights: np.ndarray) -> np.ndarray:
    predicted = scores.thresholds.apply(scores.validation.probabilities)
    return bootstrap.f1(scores.validation.labels, predicted, weights)[0]
