"""Scored rows with sorted columns: how many of them reach a threshold is then a binary search.

Labels are bool and probabilities float, both [n, labels]. Counts of folds add up to those of all rows, so that thresholds are fitted
on all rows, and on all folds but one, from the same sorted columns.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from goemotions.metrics.probabilities import top_k

GRID = np.round(np.arange(0.01, 1.0, 0.01), 2)
FLOORS = np.round(np.arange(0.05, 0.6, 0.05), 2)
MAX_K = 5


class Counts(NamedTuple):
    """Numbers of correct positive decisions and of all positive decisions, int arrays of one shape."""

    hits: np.ndarray
    predicted: np.ndarray


def add(counts: Sequence[Counts]) -> Counts:
    return Counts(*(np.sum(arrays, axis=0) for arrays in zip(*counts, strict=True)))


class SortedColumn(NamedTuple):
    """The probabilities of one label in rising order: of the rows that have the label, and of those that do not."""

    positive: np.ndarray
    negative: np.ndarray

    @classmethod
    def of(cls, labels: np.ndarray, probabilities: np.ndarray) -> SortedColumn:
        """From labels, bool [n], and probabilities, float [n]."""
        column = cls(probabilities[labels], probabilities[~labels])
        for values in column:
            values.sort()
        return column

    def counts(self, thresholds: np.ndarray) -> Counts:
        """Decisions at each threshold: a row is predicted if its probability is at least the threshold."""
        hits, wrong = (len(values) - np.searchsorted(values, thresholds) for values in self)
        return Counts(hits, hits + wrong)

    def next_below(self, threshold: float) -> float:
        """The highest probability below a threshold, or 0."""
        return max(float(values[at - 1]) if (at := np.searchsorted(values, threshold)) else 0.0 for values in self)

    def auc(self, weights: Sequence[np.ndarray] | None = None) -> float | None:
        """The area under the ROC curve: how often a positive outranks a negative; ties count half.

        Args:
            weights: how often each positive and each negative counts, two int arrays in sorted order; once by default.

        Returns:
            None if there is no positive or no negative.
        """
        positive_weights, negative_weights = weights or [np.ones(len(values), dtype=int) for values in self]
        cumulative = np.concatenate([[0], np.cumsum(negative_weights)])
        pairs = int(positive_weights.sum()) * int(cumulative[-1])
        below, below_or_tied = (cumulative[np.searchsorted(self.negative, self.positive, side)] for side in ("left", "right"))
        return int((positive_weights * (below + below_or_tied)).sum()) / (2 * pairs) if pairs else None


def sorted_columns(labels: np.ndarray, probabilities: np.ndarray) -> Iterator[SortedColumn]:
    """The sorted column of each label."""
    return (SortedColumn.of(*column) for column in zip(labels.T, probabilities.T, strict=True))


@dataclass(frozen=True, eq=False)
class Fold:
    """Some scored rows. Everything is sorted or counted at its first use, and kept."""

    labels: np.ndarray
    probabilities: np.ndarray

    @functools.cached_property
    def columns(self) -> list[SortedColumn]:
        return list(sorted_columns(self.labels, self.probabilities))

    @functools.cached_property
    def positives(self) -> np.ndarray:
        """Rows that have each label, int [labels]."""
        return np.asarray(self.labels.sum(axis=0))

    @functools.cached_property
    def grid_counts(self) -> Counts:
        """Decisions at each threshold of the grid, [grid, labels]."""
        counts = [column.counts(GRID.astype(np.float32)) for column in self.columns]
        return Counts(*(np.stack(arrays, axis=1) for arrays in zip(*counts, strict=True)))

    @functools.cached_property
    def top(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The MAX_K highest labels of each row: their columns, their probabilities and whether the row has them, [n, MAX_K]."""
        columns = top_k(self.probabilities, MAX_K)
        probabilities, labels = (np.take_along_axis(array, columns, axis=1) for array in (self.probabilities, self.labels))
        return columns, probabilities, labels

    @functools.cached_property
    def top_k_counts(self) -> Counts:
        """Decisions for the k highest labels of each row that reach each floor, [k, floors, labels]; the first floor is 0."""
        columns, probabilities, labels = self.top
        width, floors = self.labels.shape[1], len(FLOORS) + 1
        shape = (columns.shape[1], floors, width)
        bins = np.searchsorted(FLOORS.astype(np.float32), probabilities, side="right") * width + columns
        bins += np.arange(columns.shape[1]) * floors * width

        def count(chosen: np.ndarray) -> np.ndarray:
            per_bin = np.bincount(chosen.ravel(), minlength=np.prod(shape)).reshape(shape)
            reached: np.ndarray = per_bin[:, ::-1].cumsum(axis=1)[:, ::-1].cumsum(axis=0)
            return reached

        return Counts(count(bins[labels]), count(bins))

    @functools.cached_property
    def positive_shares(self) -> tuple[np.ndarray, np.ndarray]:
        """For each positive text-label pair its probability, and its share of the text's labels; both [positive pairs]."""
        shares = 1 / np.maximum(self.labels.sum(axis=1), 1)
        return self.probabilities[self.labels], shares[np.nonzero(self.labels)[0]]


@dataclass(frozen=True)
class SortedScores:
    """The rows that thresholds are fitted on, as folds that other sets of rows may share."""

    folds: Sequence[Fold]

    @classmethod
    def of(cls, labels: np.ndarray, probabilities: np.ndarray) -> SortedScores:
        return cls([Fold(labels, probabilities)])

    @property
    def rows(self) -> int:
        return sum(len(fold.labels) for fold in self.folds)

    @property
    def width(self) -> int:
        """The number of labels."""
        return int(self.folds[0].labels.shape[1])

    @property
    def positives(self) -> np.ndarray:
        """Rows that have each label, int [labels]."""
        return np.asarray(np.sum([fold.positives for fold in self.folds], axis=0))

    @property
    def columns(self) -> Iterator[tuple[SortedColumn, ...]]:
        """For each label its sorted column of every fold."""
        return zip(*(fold.columns for fold in self.folds), strict=True)

    @property
    def grid_counts(self) -> Counts:
        return add([fold.grid_counts for fold in self.folds])

    @property
    def top_k_counts(self) -> Counts:
        return add([fold.top_k_counts for fold in self.folds])

    @property
    def positive_shares(self) -> tuple[np.ndarray, np.ndarray]:
        probabilities, shares = zip(*(fold.positive_shares for fold in self.folds), strict=True)
        return np.concatenate(probabilities), np.concatenate(shares)
