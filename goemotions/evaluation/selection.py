"""Selection: which of several candidates wins a variant, by their scores on validation alone."""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from goemotions.evaluation.latency import Latency
from goemotions.evaluation.predictions import Predictions
from goemotions.metrics import bootstrap, classification, cross_fitting, strategies
from goemotions.metrics.thresholds import Thresholds

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CandidateScores:
    """What selection and gate compare of a model as one engine runs it; nothing of the test split is here.

    The latency is that for one text of 20 tokens; None if it was not measured.
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
        """Micro AUC, then macro F1 of the decisions that count, on validation: the higher, the better."""
        labels, probabilities = self.validation.labels, self.validation.probabilities
        return classification.ranking(labels, probabilities)["auc_micro"], self._macro_f1(self.decisions)

    @functools.cached_property
    def decisions(self) -> np.ndarray:
        """The decisions by which models are compared, [n, labels], as ``bootstrap.f1`` takes them.

        They are cross-fitted: on the rows that they were fitted on, thresholds that follow noise look best. Thresholds that are worse
        than that here, because they were fitted on other rows or were changed, count as they are.
        """
        labels, probabilities = self.validation.labels, self.validation.probabilities
        served = self.thresholds.apply(probabilities)
        fit = strategies.named(self.thresholds.strategy)
        return min([served, cross_fitting.cross_fitted(labels, probabilities, fit)], key=self._macro_f1) if fit else served

    def _macro_f1(self, decisions: np.ndarray) -> float:
        labels = self.validation.labels
        return float(bootstrap.f1(labels, decisions, np.ones((1, len(labels))))[0][0])

    def is_clearly_faster(self, other: CandidateScores) -> bool:
        """Whether both latencies were measured and their ranges do not overlap."""
        return bool(self.latency and other.latency and self.latency.high_ms < other.latency.low_ms)

    def is_faster_substitute(self, other: CandidateScores, quality_tolerance: float) -> bool:
        """Whether it is clearly faster than another model, and neither micro AUC nor macro F1 is lower by more than the tolerance."""
        losses = [theirs - ours for ours, theirs in zip(self.rank, other.rank, strict=True)]
        return self.is_clearly_faster(other) and max(losses) <= quality_tolerance


def latency_limit(variant: str, latency_budget_ms: float) -> float | None:
    """The latency budget of a variant, in ms: only the cpu variant has one."""
    return latency_budget_ms if variant == "cpu" else None


def select_winner(
    candidates: Sequence[CandidateScores], latency_budget_ms: float | None, quality_tolerance: float = 0.0
) -> int:
    """Position of the winner by quality per latency.

    1. The best is the one with the highest rank of those that are not over the latency budget. If all are over it, the fastest wins.
    2. If there is a budget, the fastest of the best one's faster substitutes within it wins in its place: they lose at most
       ``quality_tolerance`` of micro AUC and of macro F1.

    Of equal candidates the first wins. A latency that is undecided does not count: quality decides, also between those of which none
    is clearly the fastest.

    Args:
        candidates: their scores on the same rows of validation.
        latency_budget_ms: None if latency does not count at all.
        quality_tolerance: 0: the best wins unless a faster one is as good.
    """
    best = _best(candidates, latency_budget_ms)
    winner = best
    if latency_budget_ms is not None:
        substitutes = [
            i
            for i, scores in enumerate(candidates)
            if scores.is_within(latency_budget_ms) and scores.is_faster_substitute(candidates[best], quality_tolerance)
        ]
        winner = _fastest(candidates, substitutes) if substitutes else best
    if candidates[winner].is_within(latency_budget_ms) is not True:
        log.warning(
            "%s is selected: %s",
            candidates[winner].profile,
            describe_winner(candidates, winner, latency_budget_ms, quality_tolerance),
        )
    return winner


def _best(candidates: Sequence[CandidateScores], latency_budget_ms: float | None) -> int:
    possible = [i for i, scores in enumerate(candidates) if scores.is_within(latency_budget_ms) is not False]
    if possible:
        return max(possible, key=lambda i: candidates[i].rank)
    return _fastest(candidates, range(len(candidates)))


def _fastest(candidates: Sequence[CandidateScores], positions: Sequence[int]) -> int:
    """Of the fastest one, and those that it is not clearly faster than, the one with the highest rank."""
    fastest = candidates[min(positions, key=lambda i: candidates[i].latency_ms)]
    return max((i for i in positions if not fastest.is_clearly_faster(candidates[i])), key=lambda i: candidates[i].rank)


def describe_winner(
    candidates: Sequence[CandidateScores], winner: int, latency_budget_ms: float | None, quality_tolerance: float = 0.0
) -> str:
    """Why ``select_winner`` chose the candidate at this position, as a phrase."""
    if latency_budget_ms is None:
        return "the best on validation" if len(candidates) > 1 else "the only candidate"
    within = f"within the latency budget of {latency_budget_ms:g} ms"
    over = [f"{one.profile}, {one.latency}" for one in candidates if one.is_within(latency_budget_ms) is False]
    over_budget = f"; over it: {'; '.join(over)}" if over else ""
    scores, best = candidates[winner], candidates[_best(candidates, latency_budget_ms)]
    if best is not scores:
        auc, f1 = (ours - theirs for ours, theirs in zip(scores.rank, best.rank, strict=True))
        return (
            f"the fastest {within} that is at most {quality_tolerance:g} below the best that is not over it, {best.profile}: micro AUC "
            f"{auc:+.4f}, macro F1 {f1:+.4f}, {best.latency_ms / scores.latency_ms:.1f} times as fast{over_budget}"
        )
    match scores.is_within(latency_budget_ms):
        case True:
            return f"the best on validation of those {within}{over_budget}"
        case False:
            return f"the fastest, since no candidate is {within}: {scores.latency}"
        case _:
            return f"the best on validation; whether it is {within} is undecided: {scores.latency or 'not measured'}"
