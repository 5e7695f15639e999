"""Selection: which of several candidates wins a variant, by their scores on validation alone."""

from __future__ import annotations

import functools
import logging
from collections.abc import Sequence
from dataclasses import dataclass

from goemotions.evaluation.predictions import Predictions
from goemotions.metrics import classification
from goemotions.metrics.thresholds import Thresholds

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CandidateScores:
    """What selection and gate compare of a model as one engine runs it; nothing of the test split is here.

    Attributes:
        profile: the profile that was trained.
        validation: its scored validation split.
        thresholds: its fitted thresholds.
        latency_ms: the 95th percentile of its latency for one text of 20 tokens, in ms.
    """

    profile: str
    validation: Predictions
    thresholds: Thresholds
    latency_ms: float

    @functools.cached_property
    def rank(self) -> tuple[float, float]:
        """AUC micro, then macro F1, on validation: the higher, the better."""
        labels, probabilities = self.validation.labels, self.validation.probabilities
        return (
            classification.ranking(labels, probabilities)["auc_micro"],
            classification.decisions(labels, self.thresholds.apply(probabilities))["f1_macro"],
        )


def latency_limit(variant: str, latency_budget_ms: float) -> float | None:
    """The latency budget of a variant, in ms: only the cpu variant has one."""
    return latency_budget_ms if variant == "cpu" else None


def select_winner(candidates: Sequence[CandidateScores], latency_budget_ms: float | None) -> int:
    """Position of the winner: the best rank within the latency budget, or the fastest if no candidate is within it.

    Of equal candidates the first wins.
    """
    within = [i for i, scores in enumerate(candidates) if latency_budget_ms is None or scores.latency_ms <= latency_budget_ms]
    if within:
        return max(within, key=lambda i: candidates[i].rank)
    fastest = min(range(len(candidates)), key=lambda i: candidates[i].latency_ms)
    log.warning(
        "no candidate is within the latency budget of %g ms: the fastest, %s with %.1f ms, is selected",
        latency_budget_ms,
        candidates[fastest].profile,
        candidates[fastest].latency_ms,
    )
    return fastest
