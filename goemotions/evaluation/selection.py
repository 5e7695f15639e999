"""Selection: which of several candidates wins a variant, by their scores on validation alone."""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass

from goemotions.evaluation.latency import Latency
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
        latency: for one text of 20 tokens; None if it was not measured.
    """

    profile: str
    validation: Predictions
    thresholds: Thresholds
    latency: Latency | None = None

    @property
    def latency_ms(self) -> float:
        """The latency in ms; NaN if it was not measured."""
        return self.latency.ms if self.latency else math.nan

    def is_within(self, latency_budget_ms: float | None) -> bool | None:
        """Whether the latency is within the budget; None if that is undecided."""
        if latency_budget_ms is None:
            return True
        return self.latency.is_within(latency_budget_ms) if self.latency else None

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
    """Position of the winner: the best rank of those that are not over the latency budget, or the fastest if all are over it.

    Of equal candidates the first wins. A latency that is undecided does not count: quality decides.
    """
    possible = [i for i, scores in enumerate(candidates) if scores.is_within(latency_budget_ms) is not False]
    if possible:
        winner = max(possible, key=lambda i: candidates[i].rank)
    else:
        winner = min(range(len(candidates)), key=lambda i: candidates[i].latency_ms)
    if candidates[winner].is_within(latency_budget_ms) is not True:
        log.warning("%s is selected: %s", candidates[winner].profile, describe_winner(candidates[winner], latency_budget_ms))
    return winner


def describe_winner(winner: CandidateScores, latency_budget_ms: float | None) -> str:
    """Why ``select_winner`` chose a candidate, as a phrase."""
    if latency_budget_ms is None:
        return "the best on validation"
    within = f"within the latency budget of {latency_budget_ms:g} ms"
    match winner.is_within(latency_budget_ms):
        case True:
            return f"the best on validation of those {within}"
        case False:
            return f"the fastest, since no candidate is {within}: {winner.latency}"
        case _:
            return f"the best on validation; whether it is {within} is undecided: {winner.latency or 'not measured'}"
