"""Threshold strategies: fitted on validation probabilities, applied to any.

Every array has the shape [n, labels]. Fitting sorts each column once, in ``ranked``; the rest is counting.
Two kinds: those that seek the best F1, among which one is chosen, and those that keep a stated precision or recall, for whoever asks.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from goemotions import defaults
from goemotions.errors import ModelError
from goemotions.metrics.sorted_scores import FLOORS, GRID, Column, Counts, Part, Sample, added, highest

FILE = "thresholds.json"
FOLDS = 5
# Folds are drawn until so many rows were decided: how few rows fall into folds moves a score by more than strategies differ.
DECIDED_ROWS, MOST_DRAWS = 25_000, 10
# Positives at which what was observed of a label weighs as much as what the model expects of it.
SMOOTHING = 200
# Share of the way, in log-odds, from a label's own threshold to the one that is best for all.
PULL = 0.3
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
        np.put_along_axis(among_best, highest(probabilities, self.k), True, axis=1)
        return over & among_best


@dataclass(frozen=True)
class Fit:
    """A way to fit thresholds: called with labels and probabilities; ``to`` takes rows that may have been sorted before."""

    to: Callable[[Sample], Thresholds]

    def __call__(self, labels: np.ndarray, probabilities: np.ndarray) -> Thresholds:
        return self.to(Sample.of(labels, probabilities))


@Fit
def fixed(sample: Sample) -> Thresholds:
    return Thresholds("global-0.5", (0.5,) * sample.width)


@Fit
def global_tuned(sample: Sample) -> Thresholds:
    """The one threshold, in steps of 0.01, with the best macro F1."""
    hits, predicted = sample.on_grid
    scores = _f1(hits, predicted, sample.positives).mean(axis=1)
    return Thresholds("global-tuned", (float(GRID[scores.argmax()]),) * sample.width)


@Fit
def global_micro(sample: Sample) -> Thresholds:
    """The one threshold, in steps of 0.01, with the best micro F1."""
    hits, predicted = sample.on_grid
    scores = _f1(hits.sum(axis=1), predicted.sum(axis=1), sample.positives.sum())
    return Thresholds("global-micro", (float(GRID[scores.argmax()]),) * sample.width)


@Fit
def per_label(sample: Sample) -> Thresholds:
    """For each label the threshold with the best F1, midway to the next probability; 0.5 where it has no positive."""
    return Thresholds("per-label", tuple(_best_cut(columns) for columns in sample.columns))


@Fit
def per_label_smoothed(sample: Sample) -> Thresholds:
    """Per-label thresholds that a handful of rows cannot drag about.

    The fewer positives a label has, the more its F1 is what the model's own probabilities expect rather than what was observed
    (the best threshold is then half of that F1: Lipton et al. 2014), and each threshold is pulled towards the best one for all.
    """
    cuts = np.array([_best_smoothed_cut(columns) for columns in sample.columns], dtype=np.float32)
    common = np.asarray(global_micro.to(sample).values)
    pulled = _sigmoid((1 - PULL) * _logit(cuts) + PULL * _logit(common))
    return Thresholds("per-label-smoothed", tuple(np.where(sample.positives > 0, pulled, 0.5).astype(np.float32).tolist()))


@Fit
def top_k(sample: Sample) -> Thresholds:
    """The k labels with the highest probability; k with the best macro F1."""
    hits, predicted = (counts[:, 0] for counts in sample.in_top)
    scores = _f1(hits, predicted, sample.positives).mean(axis=-1)
    return Thresholds("top-k", (0.0,) * sample.width, int(scores.argmax()) + 1)


@Fit
def top_k_floor(sample: Sample) -> Thresholds:
    """At most k labels, each with a probability of at least a floor; both with the best macro F1."""
    hits, predicted = (counts[:, 1:] for counts in sample.in_top)
    scores = _f1(hits, predicted, sample.positives).mean(axis=-1)
    k, floor = np.unravel_index(scores.argmax(), scores.shape)
    return Thresholds("top-k-floor", (float(FLOORS[floor]),) * sample.width, int(k) + 1)


def stated_precision(target: float) -> Fit:
    """The lowest single threshold at which precision, micro, is at least the target, with a chance of 0.1 that it is not.

    From the strictest threshold down, each is tested until one fails (fixed-sequence testing: Angelopoulos et al. 2021, "Learn then
    Test", section 3), by a binomial test that takes the predictions for independent. Where none passes nothing is predicted.
    """

    @Fit
    def fit(sample: Sample) -> Thresholds:
        from scipy.stats import binom

        hits, predicted = (counts.sum(axis=1) for counts in sample.on_grid)
        chosen = NEVER
        for threshold, right, given in zip(GRID[::-1], hits[::-1], predicted[::-1], strict=True):
            if given < LEAST_PREDICTED:
                continue
            if binom.sf(right - 1, given, target) > RISK:
                break
            chosen = float(threshold)
        return Thresholds(f"precision-{target:g}", (chosen,) * sample.width)

    return fit


def stated_recall(target: float) -> Fit:
    """The highest single threshold at which a new row is expected to keep at least that share of its labels.

    Holds for any model and any number of rows, as long as new rows are drawn like these and nothing else was fitted on them
    (conformal risk control: Angelopoulos et al. 2022, theorem 1, with the share of a row's labels that is missed as the risk). A
    scaling or an epoch chosen on the same rows makes it an approximation.
    """

    @Fit
    def fit(sample: Sample) -> Thresholds:
        probabilities, shares = sample.shares
        order = np.argsort(probabilities, kind="stable")
        cuts = probabilities[order]
        missed = np.concatenate([[0], np.cumsum(shares[order])])[np.searchsorted(cuts, cuts, side="left")]
        allowed = cuts[(missed + 1) / (sample.rows + 1) <= 1 - target]
        return Thresholds(f"recall-{target:g}", (float(allowed.max(initial=0)),) * sample.width)

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


def _f1(hits: np.ndarray, predicted: np.ndarray, positives: np.ndarray) -> np.ndarray:
    """F1 from counts, 0 where a label is neither there nor predicted."""
    scores: np.ndarray = 2 * hits / np.maximum(predicted + positives, 1)
    return scores


def _best_cut(columns: Sequence[Column]) -> float:
    """The cut with the best F1 for a label, its rows in several columns; 0.5 where none has it."""
    # Between two rows that have the label, or below the last, a cut only adds wrong predictions.
    cuts = np.unique(np.concatenate([column.there for column in columns]))
    if not len(cuts):
        return 0.5
    hits, predicted = added([column.over(cuts) for column in columns])
    # The highest of the best.
    best = len(cuts) - 1 - (2 * hits / (predicted + hits[0]))[::-1].argmax()
    return _midway(columns, cuts[best])


def _best_smoothed_cut(columns: Sequence[Column]) -> float:
    """The cut with the best F1 where each row counts partly as observed, partly as probable; 0.5 where none has the label."""
    there, absent = (np.concatenate(found) for found in zip(*columns, strict=True))
    if not len(there):
        return 0.5
    # A stable sort merges what is sorted in parts.
    rising = np.sort(np.concatenate([there, absent]), kind="stable")
    falling = rising[::-1]
    # Counted at the last of equal probabilities: a cut between them cannot be made.
    last = len(falling) - 1 - np.searchsorted(rising, there)
    hits = np.cumsum(np.bincount(last, minlength=len(falling)))
    observed = len(there) / (len(there) + SMOOTHING)
    targets = observed * hits + (1 - observed) * np.cumsum(falling, dtype=float)
    f1 = 2 * targets / (np.arange(1, len(falling) + 1) + targets[-1])
    f1[:-1][falling[:-1] == falling[1:]] = -1
    return _midway(columns, falling[f1.argmax()])


def _midway(columns: Sequence[Column], upper: np.floating[Any]) -> float:
    """Midway between a probability and the next lower one; itself where they are neighbouring floats, whose middle rounds to one."""
    lower = max(column.below(float(upper)) for column in columns)
    middle = np.float32((float(upper) + lower) / 2)
    return float(middle) if middle > lower else float(upper)


def _logit(probability: np.ndarray) -> np.ndarray:
    clipped = np.clip(probability, 1e-6, 1 - 1e-6)
    result: np.ndarray = np.log(clipped / (1 - clipped))
    return result


def _sigmoid(logit: np.ndarray) -> np.ndarray:
    result: np.ndarray = 1 / (1 + np.exp(-logit))
    return result


def macro_f1(labels: np.ndarray, predicted: np.ndarray) -> float:
    """Mean over the labels of F1, 0 where a label is neither there nor predicted."""
    return float(np.mean(_f1((labels & predicted).sum(axis=0), predicted.sum(axis=0), labels.sum(axis=0))))


def cross_fitted(
    fit: Callable[[np.ndarray, np.ndarray], Thresholds], labels: np.ndarray, probabilities: np.ndarray, seed: int = 0
) -> np.ndarray:
    """Decisions, bool [n, labels], each made with thresholds fitted on the other folds: what to expect on unseen rows."""
    fold = _folds(len(labels), seed)
    predicted = np.zeros(labels.shape, dtype=bool)
    for number in range(FOLDS):
        held_out = fold == number
        if held_out.any() and not held_out.all():
            predicted[held_out] = fit(labels[~held_out], probabilities[~held_out]).apply(probabilities[held_out])
    return predicted


def draws(rows: int) -> int:
    """How often ``choose`` draws the folds of so many rows."""
    return min(-(-DECIDED_ROWS // rows), MOST_DRAWS)


def _folds(rows: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).permutation(rows) % FOLDS


def choose(
    labels: np.ndarray,
    probabilities: np.ndarray,
    strategy: str = defaults.THRESHOLD_STRATEGY,
    precision: float = defaults.TARGET_PRECISION,
    recall: float = defaults.TARGET_RECALL,
) -> tuple[Thresholds, list[dict[str, Any]]]:
    """Fits every strategy and picks the one asked for: by name, or ``best`` for the best cross-fitted macro F1.

    Cross-fitted figures are of the decisions of all draws of the folds together, as ``cross_fitted`` makes them with each seed.

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
    folds = [_folds(len(labels), seed) for seed in range(draws(len(labels)))]
    drawn = [[Part(labels[fold == number], probabilities[fold == number]) for number in np.unique(fold)] for fold in folds]
    rows = {name: _row(fit, drawn) for name, fit in fits.items()}
    if strategy == "best":
        strategy = max(STRATEGIES, key=lambda name: rows[name]["f1_macro_cross_fitted"])
    chosen = rows[strategy]
    return Thresholds(chosen["strategy"], chosen["values"], chosen["k"]), list(rows.values())


def _row(fit: Fit, drawn: Sequence[Sequence[Part]]) -> dict[str, Any]:
    from goemotions.metrics import classification  # The server applies thresholds without scikit-learn.

    whole = Sample(drawn[0])
    fitted = fit.to(whole)
    unseen = added([_decided(_without(parts, part, fit), part) for parts in drawn for part in parts])
    figures = classification.counted(unseen, len(drawn) * whole.positives, len(drawn) * whole.rows)
    return {
        **{f"{name}_cross_fitted": value for name, value in figures.items()},
        "f1_macro_fitted": float(_f1(*added([_decided(fitted, part) for part in drawn[0]]), whole.positives).mean()),
        **asdict(fitted),
    }


def _without(parts: Sequence[Part], left_out: Part, fit: Fit) -> Thresholds:
    """Fitted on the other parts; where there is none, nothing is predicted."""
    others = [part for part in parts if part is not left_out]
    return fit.to(Sample(others)) if others else Thresholds("none", (NEVER,) * left_out.labels.shape[1])


def _decided(fitted: Thresholds, part: Part) -> Counts:
    """What ``fitted.apply`` predicts for a part, counted, [labels]."""
    values = np.asarray(fitted.values, dtype=np.float32)
    if fitted.k is None:
        found = [column.over(value) for column, value in zip(part.columns, values, strict=True)]
        return Counts(*(np.array(counts) for counts in zip(*found, strict=True)))
    best, probabilities, labels = (array[:, : fitted.k] for array in part.top)
    over = probabilities >= values[best]
    return Counts(*(np.bincount(best[cells], minlength=len(values)) for cells in (over & labels, over)))


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
    """Reads ``thresholds.json``: the thresholds, and the whole content.

    Raises:
        ModelError: it is missing or damaged.
    """
    content = b""
    with suppress(OSError):
        content = path.read_bytes()
    return parse(content, str(path))


def parse(content: bytes, name: str) -> tuple[Thresholds, dict[str, Any]]:
    """``read`` for bytes that were read already, of a file of this name."""
    try:
        found: dict[str, Any] = json.loads(content)
        return Thresholds(found["strategy"], tuple(found["thresholds"].values()), found["k"]), found
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{name} is missing or damaged: run `goemotions tune-thresholds` again") from error
