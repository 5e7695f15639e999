"""The promotion gate: whether a candidate is better than the champion on the same validation rows. Used to register and to promote."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from goemotions.errors import ModelError
from goemotions.evaluation.selection import CandidateScores
from goemotions.metrics import bootstrap
from goemotions.models.engine_names import Computation

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
    """Whether the candidate passes, the reasons if it does not, and the differences by metric.

    ``losses`` are those reasons that the intervals show: on few rows, a candidate as good as the champion does not pass, and has none.
    ``notes`` say what did not decide but should be known: an undecided latency, or scores of another engine than the one that serves.
    """

    passes: bool
    reasons: tuple[str, ...]
    differences: dict[str, Difference]
    notes: tuple[str, ...] = ()
    losses: tuple[str, ...] = ()

    def summary(self) -> str:
        """The verdict as one clause."""
        if not self.passes:
            return "; ".join(self.reasons)
        auc = self.differences["auc_micro"]
        interval = f"({auc.low:+.4f} to {auc.high:+.4f})"
        if auc.difference <= 0:
            return f"it is clearly faster, and micro AUC changed by {auc.difference:+.4f} {interval}, which is tolerated"
        return f"micro AUC rose by {auc.difference:.4f} {interval}, and nothing else fell by too much"

    def describe(self) -> dict[str, Any]:
        """The verdict as JSON types."""
        return {**asdict(self), "reasons": list(self.reasons), "notes": list(self.notes), "losses": list(self.losses)}


def compare(
    candidate: CandidateScores,
    champion: CandidateScores,
    *,
    latency_budget_ms: float | None,
    quality_tolerance: float = 0.0,
    serving: Computation | None = None,
) -> Verdict:
    """Compares two models by a paired bootstrap over the rows; macro F1 is that of ``CandidateScores.decisions``.

    The candidate passes if its micro AUC is higher, if neither micro AUC nor macro F1 may have fallen by more than 0.002 (the lower
    ends of their 95% intervals), if its calibration error has not risen by more than 0.01, and if it is not over the latency budget.
    If there is a budget, a faster substitute (``CandidateScores.is_faster_substitute``) passes the first two without being better: the
    rule by which ``selection.select_winner`` chooses.

    Args:
        candidate, champion: their scores on the same rows.
        latency_budget_ms: limit of the candidate's latency; None if latency does not count.
        quality_tolerance: what a clearly faster candidate may lose of micro AUC and of macro F1.
        serving: what will serve the candidate; a note says if other computations made the scores.

    Raises:
        ModelError: the two have other labels, or were scored on other rows.
    """
    ours, theirs = candidate.validation, champion.validation
    if ours.names != theirs.names:
        raise ModelError("candidate and champion have different labels: register under another model name")
    if list(ours.ids) != list(theirs.ids) or ours.digest != theirs.digest:
        raise ModelError("candidate and champion were scored on different rows: score the champion on this data first")
    weights = bootstrap.weights(len(ours.ids), RESAMPLES)
    differences = {
        "auc_micro": _difference(*(bootstrap.auc_micro(one.labels, one.probabilities, weights) for one in (ours, theirs))),
        "f1_macro": _difference(
            *(bootstrap.f1(one.validation.labels, one.decisions, weights)[0] for one in (candidate, champion))
        ),
        "calibration_error": _difference(
            *(bootstrap.calibration_error(one.labels, one.probabilities, weights) for one in (ours, theirs))
        ),
    }
    is_substitute = latency_budget_ms is not None and candidate.is_faster_substitute(champion, quality_tolerance)
    reasons, losses = ([], []) if is_substitute else _of_quality(differences)
    calibration = differences["calibration_error"]
    if calibration.difference > TOLERATED_CALIBRATION_LOSS:
        reasons.append(f"the calibration error rose by {calibration.difference:.4f}")
        losses += reasons[-1:] if calibration.low > TOLERATED_CALIBRATION_LOSS else []
    if candidate.is_within(latency_budget_ms) is False:
        reasons.append(f"the latency for one text, {candidate.latency}, is over the budget of {latency_budget_ms:g} ms")
        losses += reasons[-1:]
    notes = tuple(_notes(candidate, champion, latency_budget_ms, serving))
    return Verdict(not reasons, tuple(reasons), differences, notes, tuple(losses))


def _of_quality(differences: dict[str, Difference]) -> tuple[list[str], list[str]]:
    """Why the candidate is not shown to be good enough, and what is shown to be lost."""
    reasons = ["micro AUC is not higher"] if differences["auc_micro"].difference <= 0 else []
    metrics = [(name, differences[name]) for name in ("auc_micro", "f1_macro")]
    reasons += [f"{name} may have fallen by more than {TOLERATED_LOSS}" for name, one in metrics if one.low < -TOLERATED_LOSS]
    return reasons, [
        f"{name} fell by {-one.difference:.4f} ({one.low:+.4f} to {one.high:+.4f})"
        for name, one in metrics
        if one.high < -TOLERATED_LOSS
    ]


def _notes(
    candidate: CandidateScores, champion: CandidateScores, latency_budget_ms: float | None, serving: Computation | None
) -> Iterator[str]:
    if candidate.is_within(latency_budget_ms) is None:
        measured = candidate.latency or "it was not measured"
        yield f"whether the latency is within the budget of {latency_budget_ms:g} ms is undecided and did not count: {measured}"
    if candidate.latency and champion.latency:
        yield f"one text takes {candidate.latency.ms / champion.latency.ms:.2f} times as long as with the champion"
    for name, scores in (("candidate", candidate), ("champion", champion)):
        used = scores.validation.computation
        if serving and used.device and used != serving:
            yield f"the {name} was evaluated by {used}, but {serving} will serve it"


def _difference(ours: np.ndarray, theirs: np.ndarray) -> Difference:
    """From two metrics' values [resamples + 1], the first on all rows."""
    return Difference(float(ours[0] - theirs[0]), *bootstrap.interval(ours - theirs))
