"""Threshold strategies: fitted on validation probabilities, applied to any.

Every array has the shape [n, labels]. Fitting sorts each column once; the rest is cumulative sums.
Two kinds: those that seek the best F1, among which one is chosen, and those that keep a stated precision or recall, for whoever asks.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from goemotions.errors import ModelError

Fit = Callable[[np.ndarray, np.ndarray], "Thresholds"]

GRID = np.round(np.arange(0.01, 1.0, 0.01), 2)
FLOORS = np.round(np.arange(0.05, 0.6, 0.05), 2)
MAX_K = 5
FOLDS = 5
# Positives at which what was observed of a label weighs as much as what the model expects of it.
SMOOTHING = 200
# Share of the way, in log-odds, from a label's own threshold to the one that is best for all.
PULL = 0.3
PRECISION, RECALL = 0.7, 0.8
# The least float32 above 1: a probability may round to 1.
NEVER = float(np.nextafter(np.float32(1), np.float32(2)))
# Chance that a stated precision does not hold; and with fewer predictions than this nothing can be said of it.
RISK, LEAST_PREDICTED = 0.1, 100


@dataclass(frozen=True)
class Thresholds:
    """A fitted strategy: one threshold a label, and for top-k the most labels that a text gets."""

    strategy: str
    values: tuple[float, ...]
    k: int | None = None

    def apply(self, probabilities: np.ndarray) -> np.ndarray:
        """Which labels are predicted, bool [n, labels]."""
        over: np.ndarray = probabilities >= np.asarray(self.values, dtype=np.float32)
        if self.k is None:
            return over
        among_best = np.zeros(probabilities.shape, dtype=bool)
        best = np.argsort(-probabilities, axis=1, kind="stable")[:, : self.k]
        np.put_along_axis(among_best, best, True, axis=1)
        return over & among_best


@dataclass(frozen=True)
class Ranked:
    """The columns of a split sorted by falling probability, and the positives (or the sum of soft targets) among the first 1..n."""

    probabilities: np.ndarray
    hits: np.ndarray
    positives: np.ndarray

    @classmethod
    def of(cls, labels: np.ndarray, probabilities: np.ndarray) -> Ranked:
        order = np.argsort(-probabilities, axis=0, kind="stable")
        exact = np.int64 if labels.dtype == bool else np.float64
        hits = np.cumsum(np.take_along_axis(labels, order, axis=0), axis=0, dtype=exact)
        return cls(np.take_along_axis(probabilities, order, axis=0), hits, labels.sum(axis=0))


def fixed(labels: np.ndarray, probabilities: np.ndarray) -> Thresholds:
    return Thresholds("global-0.5", (0.5,) * labels.shape[1])


def global_tuned(labels: np.ndarray, probabilities: np.ndarray) -> Thresholds:
    """The one threshold, in steps of 0.01, with the best macro F1."""
    hits, predicted, positives = _on_grid(labels, probabilities)
    scores = (2 * hits / np.maximum(predicted + positives, 1)).mean(axis=1)
    return Thresholds("global-tuned", (float(GRID[scores.argmax()]),) * labels.shape[1])


def global_micro(labels: np.ndarray, probabilities: np.ndarray) -> Thresholds:
    """The one threshold, in steps of 0.01, with the best micro F1."""
    hits, predicted, positives = _on_grid(labels, probabilities)
    scores = 2 * hits.sum(axis=1) / np.maximum((predicted + positives).sum(axis=1), 1)
    return Thresholds("global-micro", (float(GRID[scores.argmax()]),) * labels.shape[1])


def per_label(labels: np.ndarray, probabilities: np.ndarray) -> Thresholds:
    """For each label the threshold with the best F1, midway to the next probability; 0.5 where it has no positive."""
    return Thresholds("per-label", tuple(_best_cuts(labels, probabilities).tolist()))


def per_label_smoothed(labels: np.ndarray, probabilities: np.ndarray) -> Thresholds:
    """Per-label thresholds that a handful of rows cannot drag about.

    The fewer positives a label has, the more its F1 is what the model's own probabilities expect rather than what was observed
    (the best threshold is then half of that F1: Lipton et al. 2014), and each threshold is pulled towards the best one for all.
    """
    positives = labels.sum(axis=0)
    observed = positives / (positives + SMOOTHING)
    cuts = _best_cuts((observed * labels + (1 - observed) * probabilities).astype(np.float32), probabilities)
    common = np.asarray(global_micro(labels, probabilities).values)
    pulled = _sigmoid((1 - PULL) * _logit(cuts) + PULL * _logit(common))
    return Thresholds("per-label-smoothed", tuple(np.where(positives > 0, pulled, 0.5).astype(np.float32).tolist()))


def top_k(labels: np.ndarray, probabilities: np.ndarray) -> Thresholds:
    """The k labels with the highest probability; k with the best macro F1."""
    return _best_of(labels, probabilities, "top-k", (0.0,))


def top_k_floor(labels: np.ndarray, probabilities: np.ndarray) -> Thresholds:
    """At most k labels, each with a probability of at least a floor; both with the best macro F1."""
    return _best_of(labels, probabilities, "top-k-floor", FLOORS.tolist())


def stated_precision(target: float) -> Fit:
    """The lowest single threshold at which precision, micro, is at least the target, with a chance of 0.1 that it is not.

    From the strictest threshold down, each is tested until one fails (fixed-sequence testing: Angelopoulos et al. 2021, "Learn then
    Test", section 3), by a binomial test that takes the predictions for independent. Where none passes nothing is predicted.
    """

    def fit(labels: np.ndarray, probabilities: np.ndarray) -> Thresholds:
        from scipy.stats import binom

        hits, predicted, _ = (counts.sum(axis=1) if counts.ndim > 1 else counts for counts in _on_grid(labels, probabilities))
        chosen = NEVER
        for threshold, right, given in zip(GRID[::-1], hits[::-1], predicted[::-1], strict=True):
            if given < LEAST_PREDICTED:
                continue
            if binom.sf(right - 1, given, target) > RISK:
                break
            chosen = float(threshold)
        return Thresholds(f"precision-{target:g}", (chosen,) * labels.shape[1])

    return fit


def stated_recall(target: float) -> Fit:
    """The highest single threshold at which a new row is expected to keep at least that share of its labels.

    Holds for any model and any number of rows, as long as new rows are drawn like these and nothing else was fitted on them
    (conformal risk control: Angelopoulos et al. 2022, theorem 1, with the share of a row's labels that is missed as the risk). A
    scaling or an epoch chosen on the same rows makes it an approximation.
    """

    def fit(labels: np.ndarray, probabilities: np.ndarray) -> Thresholds:
        rows, _ = np.nonzero(labels)
        share = 1 / np.maximum(labels.sum(axis=1), 1)
        order = np.argsort(probabilities[labels], kind="stable")
        cuts = probabilities[labels][order]
        missed = np.concatenate([[0], np.cumsum(share[rows][order])])[np.searchsorted(cuts, cuts, side="left")]
        allowed = cuts[(missed + 1) / (len(labels) + 1) <= 1 - target]
        return Thresholds(f"recall-{target:g}", (float(allowed.max(initial=0)),) * labels.shape[1])

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


def _best_cuts(targets: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """For each label the cut with the best F1 against targets in [0, 1]; 0.5 where they are all 0."""
    ranked = Ranked.of(targets, probabilities)
    f1 = 2 * ranked.hits / (np.arange(1, len(targets) + 1)[:, None] + ranked.positives)
    below = np.vstack([ranked.probabilities[1:], np.zeros((1, targets.shape[1]), dtype=probabilities.dtype)])
    # A cut between two equal probabilities cannot be made.
    f1[:-1][ranked.probabilities[:-1] == below[:-1]] = -1
    best = f1.argmax(axis=0)
    columns = np.arange(targets.shape[1])
    upper, lower = ranked.probabilities[best, columns], below[best, columns]
    middle = ((upper.astype(float) + lower) / 2).astype(np.float32)
    # Midway between neighbouring floats rounds to one of them.
    cut = np.where(middle > lower, middle, upper)
    return np.where(ranked.positives > 0, cut, 0.5)


def _best_of(labels: np.ndarray, probabilities: np.ndarray, strategy: str, floors: Sequence[float]) -> Thresholds:
    candidates = [
        Thresholds(strategy, (floor,) * labels.shape[1], k)
        for k in range(1, min(MAX_K, labels.shape[1]) + 1)
        for floor in floors
    ]
    return max(candidates, key=lambda candidate: macro_f1(labels, candidate.apply(probabilities)))


def _on_grid(labels: np.ndarray, probabilities: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Hits and predictions at each threshold of the grid, int [grid, labels], and positives, int [labels]."""
    ranked = Ranked.of(labels, probabilities)
    hits = np.vstack([np.zeros((1, labels.shape[1]), dtype=np.int64), ranked.hits])
    grid = -GRID.astype(np.float32)
    predicted = np.column_stack([np.searchsorted(-column, grid, side="right") for column in ranked.probabilities.T])
    return np.take_along_axis(hits, predicted, axis=0), predicted, ranked.positives


def _logit(probability: np.ndarray) -> np.ndarray:
    clipped = np.clip(probability, 1e-6, 1 - 1e-6)
    result: np.ndarray = np.log(clipped / (1 - clipped))
    return result


def _sigmoid(logit: np.ndarray) -> np.ndarray:
    result: np.ndarray = 1 / (1 + np.exp(-logit))
    return result


def macro_f1(labels: np.ndarray, predicted: np.ndarray) -> float:
    """Mean over the labels of F1, 0 where a label is neither there nor predicted."""
    hits = (labels & predicted).sum(axis=0)
    cells = labels.sum(axis=0) + predicted.sum(axis=0)
    return float(np.mean(2 * hits / np.maximum(cells, 1)))


def cross_fitted(fit: Fit, labels: np.ndarray, probabilities: np.ndarray, seed: int = 0) -> np.ndarray:
    """Decisions, bool [n, labels], each made with thresholds fitted on the other folds: what to expect on unseen rows."""
    fold = np.random.default_rng(seed).permutation(len(labels)) % FOLDS
    predicted = np.zeros(labels.shape, dtype=bool)
    for number in range(FOLDS):
        held_out = fold == number
        if held_out.any() and not held_out.all():
            predicted[held_out] = fit(labels[~held_out], probabilities[~held_out]).apply(probabilities[held_out])
    return predicted


def choose(
    labels: np.ndarray,
    probabilities: np.ndarray,
    strategy: str = "best",
    precision: float = PRECISION,
    recall: float = RECALL,
) -> tuple[Thresholds, list[dict[str, Any]]]:
    """Fits every strategy and picks the one asked for: by name, or ``best`` for the best cross-fitted macro F1.

    Args:
        labels: bool [n, labels].
        probabilities: float32 [n, labels].
        strategy: ``best``, a name of ``STRATEGIES``, ``precision`` or ``recall``.
        precision: what the strategy ``precision`` keeps.
        recall: what the strategy ``recall`` keeps.

    Returns:
        The fitted winner, and a row a strategy: its metrics cross-fitted and fitted, and what was fitted.

    Raises:
        ModelError: there is no such strategy, or a stated share is not between 0 and 1.
    """
    if not (0 < precision < 1 and 0 < recall < 1):
        raise ModelError(f"a stated precision or recall lies between 0 and 1, not at {precision} and {recall}")
    fits = {**STRATEGIES, "precision": stated_precision(precision), "recall": stated_recall(recall)}
    if strategy not in ("best", *fits):
        raise ModelError(f"there is no threshold strategy {strategy!r}: choose best, {', '.join(fits)}")
    rows = {name: _row(fit, labels, probabilities) for name, fit in fits.items()}
    if strategy == "best":
        strategy = max(STRATEGIES, key=lambda name: rows[name]["f1_macro_cross_fitted"])
    chosen = rows[strategy]
    return Thresholds(chosen["strategy"], chosen["values"], chosen["k"]), list(rows.values())


def _row(fit: Fit, labels: np.ndarray, probabilities: np.ndarray) -> dict[str, Any]:
    from goemotions import metrics  # The server applies thresholds without scikit-learn.

    fitted = fit(labels, probabilities)
    unseen = metrics.decisions(labels, cross_fitted(fit, labels, probabilities))
    return {
        **{f"{name}_cross_fitted": value for name, value in unseen.items()},
        "f1_macro_fitted": macro_f1(labels, fitted.apply(probabilities)),
        **asdict(fitted),
    }


def write(
    path: Path, fitted: Thresholds, names: Sequence[str], comparison: Sequence[dict[str, Any]], **provenance: Any
) -> None:
    """Writes ``thresholds.json``: the chosen strategy, what it was fitted on, and how the others did."""
    content = {
        "strategy": fitted.strategy,
        "thresholds": dict(zip(names, fitted.values, strict=True)),
        "k": fitted.k,
        **provenance,
        "comparison": list(comparison),
    }
    path.write_text(json.dumps(content, indent=1), encoding="utf-8")


def read(path: Path) -> tuple[Thresholds, dict[str, Any]]:
    """Reads ``thresholds.json``: the thresholds, and the whole content."""
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return Thresholds(content["strategy"], tuple(content["thresholds"].values()), content["k"]), content
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{path} is missing or damaged: run `goemotions tune-thresholds` again") from error
