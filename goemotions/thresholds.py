"""Threshold strategies: fitted on validation probabilities, applied to any.

Every array has the shape [n, labels]. Fitting sorts each column once; the rest is cumulative sums.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from goemotions.errors import ModelError

GRID = np.round(np.arange(0.01, 1.0, 0.01), 2)
MAX_K = 5
FOLDS = 5


@dataclass(frozen=True)
class Thresholds:
    """A fitted strategy: one threshold a label, or for top-k the number of labels each text gets."""

    strategy: str
    values: tuple[float, ...]
    k: int | None = None

    def apply(self, probabilities: np.ndarray) -> np.ndarray:
        """Which labels are predicted, bool [n, labels]."""
        if self.k is None:
            return probabilities >= np.asarray(self.values, dtype=np.float32)
        predicted = np.zeros(probabilities.shape, dtype=bool)
        best = np.argsort(-probabilities, axis=1, kind="stable")[:, : self.k]
        np.put_along_axis(predicted, best, True, axis=1)
        return predicted


@dataclass(frozen=True)
class Ranked:
    """The columns of a split sorted by falling probability, and the positives among the first 1..n."""

    probabilities: np.ndarray
    hits: np.ndarray
    positives: np.ndarray

    @classmethod
    def of(cls, labels: np.ndarray, probabilities: np.ndarray) -> Ranked:
        order = np.argsort(-probabilities, axis=0, kind="stable")
        hits = np.cumsum(np.take_along_axis(labels, order, axis=0), axis=0, dtype=np.int64)
        return cls(np.take_along_axis(probabilities, order, axis=0), hits, labels.sum(axis=0))


def fixed(labels: np.ndarray, probabilities: np.ndarray) -> Thresholds:
    return Thresholds("global-0.5", (0.5,) * labels.shape[1])


def global_tuned(labels: np.ndarray, probabilities: np.ndarray) -> Thresholds:
    """The one threshold, in steps of 0.01, with the best macro F1."""
    ranked = Ranked.of(labels, probabilities)
    scores = np.zeros(len(GRID))
    for column, positives in enumerate(ranked.positives):
        if not positives:
            continue
        predicted = np.searchsorted(-ranked.probabilities[:, column], -GRID.astype(np.float32), side="right")
        hits = np.concatenate([[0], ranked.hits[:, column]])[predicted]
        scores += 2 * hits / (predicted + positives)
    return Thresholds("global-tuned", (float(GRID[scores.argmax()]),) * labels.shape[1])


def per_label(labels: np.ndarray, probabilities: np.ndarray) -> Thresholds:
    """For each label the threshold with the best F1, midway to the next probability; 0.5 where it has no positive."""
    ranked = Ranked.of(labels, probabilities)
    rows = len(labels)
    f1 = 2 * ranked.hits / (np.arange(1, rows + 1)[:, None] + ranked.positives)
    below = np.vstack([ranked.probabilities[1:], np.zeros((1, labels.shape[1]), dtype=probabilities.dtype)])
    # A cut between two equal probabilities cannot be made.
    f1[:-1][ranked.probabilities[:-1] == below[:-1]] = -1
    best = f1.argmax(axis=0)
    columns = np.arange(labels.shape[1])
    upper, lower = ranked.probabilities[best, columns], below[best, columns]
    middle = ((upper.astype(float) + lower) / 2).astype(np.float32)
    # Midway between neighbouring floats rounds to one of them.
    cut = np.where(middle > lower, middle, upper)
    return Thresholds("per-label", tuple(np.where(ranked.positives > 0, cut, 0.5).tolist()))


def top_k(labels: np.ndarray, probabilities: np.ndarray) -> Thresholds:
    """The k labels with the highest probability; k with the best macro F1."""
    candidates = [Thresholds("top-k", (0.0,) * labels.shape[1], k) for k in range(1, min(MAX_K, labels.shape[1]) + 1)]
    return max(candidates, key=lambda candidate: macro_f1(labels, candidate.apply(probabilities)))


STRATEGIES: dict[str, Callable[[np.ndarray, np.ndarray], Thresholds]] = {
    "global-0.5": fixed,
    "global-tuned": global_tuned,
    "per-label": per_label,
    "top-k": top_k,
}


def macro_f1(labels: np.ndarray, predicted: np.ndarray) -> float:
    """Mean over the labels of F1, 0 where a label is neither there nor predicted."""
    hits = (labels & predicted).sum(axis=0)
    cells = labels.sum(axis=0) + predicted.sum(axis=0)
    return float(np.mean(2 * hits / np.maximum(cells, 1)))


def cross_fitted(strategy: str, labels: np.ndarray, probabilities: np.ndarray, seed: int = 0) -> float:
    """Macro F1 of decisions each made with thresholds fitted on the other folds: what to expect on unseen rows."""
    fold = np.random.default_rng(seed).permutation(len(labels)) % FOLDS
    predicted = np.zeros(labels.shape, dtype=bool)
    for number in range(FOLDS):
        held_out = fold == number
        if held_out.any() and not held_out.all():
            fitted = STRATEGIES[strategy](labels[~held_out], probabilities[~held_out])
            predicted[held_out] = fitted.apply(probabilities[held_out])
    return macro_f1(labels, predicted)


def choose(labels: np.ndarray, probabilities: np.ndarray) -> tuple[Thresholds, list[dict[str, Any]]]:
    """Fits every strategy and picks the one with the best cross-fitted macro F1.

    Returns:
        The fitted winner, and a row a strategy: its cross-fitted and its own macro F1, and what was fitted.
    """
    rows = []
    for strategy, fit in STRATEGIES.items():
        fitted = fit(labels, probabilities)
        rows.append(
            {
                "strategy": strategy,
                "f1_macro_cross_fitted": cross_fitted(strategy, labels, probabilities),
                "f1_macro_fitted": macro_f1(labels, fitted.apply(probabilities)),
                **asdict(fitted),
            }
        )
    best = max(rows, key=lambda row: row["f1_macro_cross_fitted"])
    return Thresholds(best["strategy"], best["values"], best["k"]), rows


def write(
    path: Path, fitted: Thresholds, names: Sequence[str], comparison: Sequence[dict[str, Any]], **provenance: Any
) -> None:
    """Writes ``thresholds.json``: the chosen strategy, what it was fitted on, and how the others did."""
    content = {
        "strategy": fitted.strategy,
        "thresholds": dict(zip(names, fitted.values, strict=True)),
        "k": fitted.k,
        **provenance,
        "comparison": [{key: value for key, value in row.items() if key != "values"} for row in comparison],
    }
    path.write_text(json.dumps(content, indent=1), encoding="utf-8")


def read(path: Path) -> tuple[Thresholds, dict[str, Any]]:
    """Reads ``thresholds.json``: the thresholds, and the whole content."""
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return Thresholds(content["strategy"], tuple(content["thresholds"].values()), content["k"]), content
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{path} is missing or damaged: run `goemotions tune-thresholds` again") from error
