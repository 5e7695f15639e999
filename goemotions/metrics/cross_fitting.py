"""Cross-fitting: threshold strategies are compared on rows that they were not fitted on, and one is chosen by that.

Every array has the shape [n, labels].
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from goemotions import defaults
from goemotions.errors import ModelError
from goemotions.metrics import classification
from goemotions.metrics.classification import f1_score
from goemotions.metrics.sorted_scores import Counts, Fold, SortedScores, add
from goemotions.metrics.strategies import DEFAULT, STRATEGIES, Fit, for_precision, for_recall
from goemotions.metrics.thresholds import NEVER, StrategyResult, Thresholds

FOLDS = 5
# Folds are drawn until this many rows were decided: with few rows, the draw changes a score by more than strategies differ.
DECIDED_ROWS, MAX_DRAWS = 25_000, 10
# By how much another strategy must beat the smoothed fit, times the root of the number of rows: about the standard error of a macro F1.
# Of smaller leads most are noise: on further rows the smoothed fit is better.
MARGIN = 0.5


def draws(rows: int) -> int:
    """How often ``choose`` draws the folds of this many rows."""
    return min(-(-DECIDED_ROWS // rows), MAX_DRAWS)


def cross_fitted(labels: np.ndarray, probabilities: np.ndarray, fit: Fit) -> np.ndarray:
    """For each text and label the share of the draws in which it is predicted, by thresholds that were fitted on the other folds.

    Its macro F1 is that of ``StrategyResult.cross_fitted``.
    """
    predicted = np.zeros(labels.shape)
    for fold, folds in _draw(labels, probabilities):
        for number, held_out in enumerate(folds):
            predicted[fold == number] += _fit_without(held_out, folds, fit).apply(held_out.probabilities)
    return predicted / draws(len(labels))


def metrics(labels: np.ndarray, probabilities: np.ndarray, fit: Fit) -> dict[str, float]:
    """The metrics of one strategy, as ``StrategyResult.cross_fitted``."""
    return _result(fit, [folds for _, folds in _draw(labels, probabilities)]).cross_fitted


def choose(
    labels: np.ndarray,
    probabilities: np.ndarray,
    strategy: str = defaults.THRESHOLD_STRATEGY,
    target_precision: float = defaults.TARGET_PRECISION,
    target_recall: float = defaults.TARGET_RECALL,
) -> tuple[Thresholds, list[StrategyResult]]:
    """Fits every strategy and chooses one: by name, or ``best`` for the smoothed fit unless another has a clearly better macro F1.

    Cross-fitted metrics are those of the decisions of all draws of the folds together.

    Args:
        labels, probabilities: bool and float32.
        strategy: ``best``, a name of ``STRATEGIES``, ``precision`` or ``recall``.
        target_precision, target_recall: of the last two.

    Returns:
        The chosen thresholds, and the result of every strategy.

    Raises:
        ModelError: there is no such strategy, or a target is not between 0 and 1.
    """
    if not (0 < target_precision < 1 and 0 < target_recall < 1):
        raise ModelError(
            f"target precision {target_precision} and target recall {target_recall} must be between 0 and 1: change the one that is not"
        )
    fits = {**STRATEGIES, "precision": for_precision(target_precision), "recall": for_recall(target_recall)}
    if strategy not in ("best", *fits):
        raise ModelError(f"there is no threshold strategy {strategy!r}: choose best, {', '.join(fits)}")
    drawn = [folds for _, folds in _draw(labels, probabilities)]
    results = {name: _result(fit, drawn) for name, fit in fits.items()}
    if strategy == "best":
        strategy = _best({name: results[name].cross_fitted["f1_macro"] for name in STRATEGIES}, len(labels))
    return results[strategy].thresholds, list(results.values())


def _best(scores: Mapping[str, float], rows: int) -> str:
    best = max(scores, key=lambda name: scores[name])
    return best if scores[best] - scores[DEFAULT] > MARGIN / math.sqrt(rows) else DEFAULT


def _draw(labels: np.ndarray, probabilities: np.ndarray) -> Iterator[tuple[np.ndarray, list[Fold]]]:
    """Each draw: the fold of each row, int [n], and the folds."""
    for seed in range(draws(len(labels))):
        fold = np.random.default_rng(seed).permutation(len(labels)) % FOLDS
        yield fold, [Fold(labels[fold == number], probabilities[fold == number]) for number in np.unique(fold)]


def _result(fit: Fit, drawn: Sequence[Sequence[Fold]]) -> StrategyResult:
    whole = SortedScores(drawn[0])
    fitted = fit(whole)
    held_out = add([_decision_counts(_fit_without(fold, folds, fit), fold) for folds in drawn for fold in folds])
    decided = classification.decisions_from_counts(held_out, len(drawn) * whole.positives, len(drawn) * whole.rows)
    on_all = add([_decision_counts(fitted, fold) for fold in drawn[0]])
    return StrategyResult(fitted, decided, float(f1_score(*on_all, whole.positives).mean()))


def _fit_without(held_out: Fold, folds: Sequence[Fold], fit: Fit) -> Thresholds:
    """Fitted on the other folds; if there is none, nothing is predicted."""
    others = [fold for fold in folds if fold is not held_out]
    return fit(SortedScores(others)) if others else Thresholds("none", (NEVER,) * held_out.labels.shape[1])


def _decision_counts(fitted: Thresholds, fold: Fold) -> Counts:
    """The decisions of ``fitted.apply`` on a fold, counted, [labels]."""
    values = np.asarray(fitted.values, dtype=np.float32)
    if fitted.k is None:
        counts = [column.counts(value) for column, value in zip(fold.columns, values, strict=True)]
        return Counts(*(np.array(numbers) for numbers in zip(*counts, strict=True)))
    columns, probabilities, labels = (array[:, : fitted.k] for array in fold.top)
    reached = probabilities >= values[columns]
    return Counts(*(np.bincount(columns[mask], minlength=len(values)) for mask in (reached & labels, reached)))
