"""Threshold strategies, fitted on validation probabilities; ``cross_fitting`` compares them and chooses one.

Every array has the shape [n, labels]. Fitting sorts each column once (``sorted_scores``); the rest is counting.
There are two kinds: strategies that seek the best F1, among which one is chosen, and strategies that meet a target precision or
recall, used on request.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from goemotions.metrics.classification import f1_score
from goemotions.metrics.probabilities import logit, sigmoid
from goemotions.metrics.sorted_scores import FLOORS, GRID, SortedColumn, SortedScores, add
from goemotions.metrics.thresholds import NEVER, Thresholds

# Positives of a label at which its observed labels weigh as much as the probabilities of the model.
SMOOTHING = 200
# Share of the way, in log-odds, from a label's own threshold to the best common one.
PULL = 0.3
# Accepted chance that the target precision is missed; with fewer predictions than the minimum it is not tested.
RISK, MIN_PREDICTED = 0.1, 100


Fit = Callable[[SortedScores], Thresholds]


def fixed(scores: SortedScores) -> Thresholds:
    return Thresholds("global-0.5", (0.5,) * scores.width)


def global_tuned(scores: SortedScores) -> Thresholds:
    """The one threshold, in steps of 0.01, with the best macro F1."""
    hits, predicted = scores.grid_counts
    f1 = f1_score(hits, predicted, scores.positives).mean(axis=1)
    return Thresholds("global-tuned", (float(GRID[f1.argmax()]),) * scores.width)


def global_micro(scores: SortedScores) -> Thresholds:
    """The one threshold, in steps of 0.01, with the best micro F1."""
    hits, predicted = scores.grid_counts
    f1 = f1_score(hits.sum(axis=1), predicted.sum(axis=1), scores.positives.sum())
    return Thresholds("global-micro", (float(GRID[f1.argmax()]),) * scores.width)


def per_label(scores: SortedScores) -> Thresholds:
    """For each label the threshold with the best F1, midway to the next probability; 0.5 if it has no positive."""
    return Thresholds("per-label", tuple(_best_cut(columns) for columns in scores.columns))


def per_label_smoothed(scores: SortedScores) -> Thresholds:
    """Per-label thresholds that do not depend on a handful of rows.

    The fewer positives a label has, the more its F1 is computed from the model's probabilities rather than from the observed labels
    (the best threshold is then half of that F1: Lipton et al. 2014). Each threshold is then moved towards the best common one.
    """
    cuts = np.array([_best_smoothed_cut(columns) for columns in scores.columns], dtype=np.float32)
    common = np.asarray(global_micro(scores).values)
    pulled = sigmoid((1 - PULL) * logit(cuts) + PULL * logit(common))
    return Thresholds("per-label-smoothed", tuple(np.where(scores.positives > 0, pulled, 0.5).astype(np.float32).tolist()))


def top_k(scores: SortedScores) -> Thresholds:
    """The k labels with the highest probability; k with the best macro F1."""
    hits, predicted = (counts[:, 0] for counts in scores.top_k_counts)
    f1 = f1_score(hits, predicted, scores.positives).mean(axis=-1)
    return Thresholds("top-k", (0.0,) * scores.width, int(f1.argmax()) + 1)


def top_k_floor(scores: SortedScores) -> Thresholds:
    """At most k labels, each with a probability of at least a floor; both with the best macro F1."""
    hits, predicted = (counts[:, 1:] for counts in scores.top_k_counts)
    f1 = f1_score(hits, predicted, scores.positives).mean(axis=-1)
    k, floor = np.unravel_index(f1.argmax(), f1.shape)
    return Thresholds("top-k-floor", (float(FLOORS[floor]),) * scores.width, int(k) + 1)


def for_precision(target: float) -> Fit:
    """The lowest single threshold at which micro precision is at least the target, with a chance of 0.1 that it is not.

    From the strictest threshold down, each is tested until one fails (fixed-sequence testing: Angelopoulos et al. 2021, "Learn then
    Test", section 3), by a binomial test that assumes independent predictions. If none passes, nothing is predicted.
    """

    def fit(scores: SortedScores) -> Thresholds:
        from scipy.stats import binom

        hits, predicted = (counts.sum(axis=1) for counts in scores.grid_counts)
        chosen = NEVER
        for threshold, correct, total in zip(GRID[::-1], hits[::-1], predicted[::-1], strict=True):
            if total < MIN_PREDICTED:
                continue
            if binom.sf(correct - 1, total, target) > RISK:
                break
            chosen = float(threshold)
        return Thresholds(f"precision-{target:g}", (chosen,) * scores.width)

    return fit


def for_recall(target: float) -> Fit:
    """The highest single threshold at which a new row is expected to get at least the target share of its labels.

    Valid for any model and any number of rows, if new rows are drawn like these and nothing else was fitted on these
    (conformal risk control: Angelopoulos et al. 2022, theorem 1, with the share of a row's labels that is missed as the risk). A
    calibrator or an epoch chosen on the same rows makes it an approximation.
    """

    def fit(scores: SortedScores) -> Thresholds:
        probabilities, shares = scores.positive_shares
        order = np.argsort(probabilities, kind="stable")
        cuts = probabilities[order]
        missed = np.concatenate([[0], np.cumsum(shares[order])])[np.searchsorted(cuts, cuts, side="left")]
        allowed = cuts[(missed + 1) / (scores.rows + 1) <= 1 - target]
        return Thresholds(f"recall-{target:g}", (float(allowed.max(initial=0)),) * scores.width)

    return fit


STRATEGIES: dict[str, Fit] = {
    "global-0.5": fixed,
    "global-tuned": global_tuned,
    "global-micro": global_micro,
    "per-label": per_label,
    "per-label-smoothed": per_label_smoothed,
    "top-k": top_k,
    "top-k-floor": top_k_floor,
}
DEFAULT = "per-label-smoothed"


def named(name: str) -> Fit | None:
    """The strategy that thresholds of this name were fitted by; None if there is none."""
    kind, _, target = name.partition("-")
    with_target = {"precision": for_precision, "recall": for_recall}.get(kind)
    if with_target and re.fullmatch(r"0\.\d{1,9}", target):
        return with_target(float(target))
    return STRATEGIES.get(name)


def _best_cut(columns: Sequence[SortedColumn]) -> float:
    """The threshold with the best F1 for a label, its rows in several columns; 0.5 if no row has the label."""
    # A threshold between two positives, or below the last, only adds wrong predictions.
    cuts = np.unique(np.concatenate([column.positive for column in columns]))
    if not len(cuts):
        return 0.5
    hits, predicted = add([column.counts(cuts) for column in columns])
    # Of equal ones the highest.
    best = len(cuts) - 1 - (2 * hits / (predicted + hits[0]))[::-1].argmax()
    return _midway(columns, cuts[best])


def _best_smoothed_cut(columns: Sequence[SortedColumn]) -> float:
    """The threshold with the best F1 if each row counts partly by its label, partly by its probability; 0.5 if no row has the label."""
    positive, negative = (np.concatenate(values) for values in zip(*columns, strict=True))
    if not len(positive):
        return 0.5
    # A stable sort merges sorted runs in linear time.
    rising = np.sort(np.concatenate([positive, negative]), kind="stable")
    falling = rising[::-1]
    # Counted at the last of equal probabilities: no threshold lies between them.
    last = len(falling) - 1 - np.searchsorted(rising, positive)
    hits = np.cumsum(np.bincount(last, minlength=len(falling)))
    observed = len(positive) / (len(positive) + SMOOTHING)
    targets = observed * hits + (1 - observed) * np.cumsum(falling, dtype=float)
    f1 = 2 * targets / (np.arange(1, len(falling) + 1) + targets[-1])
    # Among equal probabilities it rises or falls throughout, so that the best is the last of them, or of the higher ones.
    return _midway(columns, falling[f1.argmax()])


def _midway(columns: Sequence[SortedColumn], upper: np.floating[Any]) -> float:
    """Midway between a probability and the next lower one; the probability itself if no float lies between them."""
    lower = max(column.next_below(float(upper)) for column in columns)
    middle = np.float32((float(upper) + lower) / 2)
    return float(middle) if middle > lower else float(upper)
