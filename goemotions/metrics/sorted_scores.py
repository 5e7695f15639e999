"""Scored rows whose columns are sorted once: how many of them lie over a threshold is then a binary search.

Labels are bool and probabilities float, both [n, labels]. What is counted in parts of the rows adds up to the whole, so that thresholds
are fitted on all rows and on all but each fifth of them from the same sorted columns.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

GRID = np.round(np.arange(0.01, 1.0, 0.01), 2)
FLOORS = np.round(np.arange(0.05, 0.6, 0.05), 2)
MAX_K = 5


class Counts(NamedTuple):
    """Decisions, counted: the right ones and all of them, int arrays of one shape."""

    hits: np.ndarray
    predicted: np.ndarray


def added(counts: Sequence[Counts]) -> Counts:
    return Counts(*(np.sum(parts, axis=0) for parts in zip(*counts, strict=True)))


class Column(NamedTuple):
    """One label: the probabilities of the rows that have it and of those that do not, each rising."""

    there: np.ndarray
    absent: np.ndarray

    @classmethod
    def of(cls, labels: np.ndarray, probabilities: np.ndarray) -> Column:
        """Of labels, bool [n], and probabilities, float [n]."""
        column = cls(probabilities[labels], probabilities[~labels])
        for part in column:
            part.sort()
        return column

    def over(self, thresholds: np.ndarray) -> Counts:
        """Decisions at each of some thresholds: a row is predicted where its probability is at least that."""
        hits, wrong = (len(part) - np.searchsorted(part, thresholds) for part in self)
        return Counts(hits, hits + wrong)

    def below(self, threshold: float) -> float:
        """The highest probability below a threshold, 0 where there is none."""
        return max(float(part[at - 1]) if (at := np.searchsorted(part, threshold)) else 0.0 for part in self)

    def auc(self) -> float | None:
        """The area under the ROC curve: how often a row with the label outranks one without, ties half; None without such pairs."""
        pairs = len(self.there) * len(self.absent)
        outranked = sum(int(np.searchsorted(self.absent, self.there, side).sum()) for side in ("left", "right"))
        return outranked / (2 * pairs) if pairs else None


def columns(labels: np.ndarray, probabilities: np.ndarray) -> Iterator[Column]:
    """The columns of arrays [n, labels], one after the other."""
    return (Column.of(*column) for column in zip(labels.T, probabilities.T, strict=True))


def highest(probabilities: np.ndarray, k: int) -> np.ndarray:
    """The columns of each row's k highest probabilities, int [n, k], the highest first; of equal ones the first column."""
    k = min(k, probabilities.shape[1])
    found = np.empty((len(probabilities), k), dtype=np.intp)
    remaining, rows = probabilities.copy(), np.arange(len(probabilities))
    for place in range(k):
        found[:, place] = remaining.argmax(axis=1)
        remaining[rows, found[:, place]] = -np.inf
    return found


@dataclass(frozen=True, eq=False)
class Part:
    """Some scored rows; each thing is sorted or counted when it is first asked for, and kept."""

    labels: np.ndarray
    probabilities: np.ndarray

    @functools.cached_property
    def columns(self) -> list[Column]:
        return list(columns(self.labels, self.probabilities))

    @functools.cached_property
    def positives(self) -> np.ndarray:
        found: np.ndarray = self.labels.sum(axis=0)
        return found

    @functools.cached_property
    def on_grid(self) -> Counts:
        """Decisions at each threshold of the grid, [grid, labels]."""
        grid = GRID.astype(np.float32)
        return Counts(*(np.stack(found, axis=1) for found in zip(*(column.over(grid) for column in self.columns), strict=True)))

    @functools.cached_property
    def top(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of the labels that rank highest in each row: their indices, their probabilities and whether the row has them, [n, MAX_K]."""
        best = highest(self.probabilities, MAX_K)
        probabilities, labels = (np.take_along_axis(array, best, axis=1) for array in (self.probabilities, self.labels))
        return best, probabilities, labels

    @functools.cached_property
    def in_top(self) -> Counts:
        """Decisions for the k highest labels of each row over each floor, [k, floors, labels]; the first floor is 0."""
        best, probabilities, labels = self.top
        width, floors = self.labels.shape[1], len(FLOORS) + 1
        cell = np.searchsorted(FLOORS.astype(np.float32), probabilities, side="right") * width + best
        cell += np.arange(best.shape[1]) * floors * width
        shape = (best.shape[1], floors, width)

        def counted(cells: np.ndarray) -> np.ndarray:
            exact = np.bincount(cells.ravel(), minlength=shape[0] * floors * width).reshape(shape)
            over: np.ndarray = exact[:, ::-1].cumsum(axis=1)[:, ::-1].cumsum(axis=0)
            return over

        return Counts(counted(cell[labels]), counted(cell))

    @functools.cached_property
    def shares(self) -> tuple[np.ndarray, np.ndarray]:
        """Of each label that a row has: its probability, and one over the row's labels; both [positives]."""
        share = 1 / np.maximum(self.labels.sum(axis=1), 1)
        return self.probabilities[self.labels], share[np.nonzero(self.labels)[0]]


@dataclass(frozen=True)
class Sample:
    """The rows that something is fitted on, as parts that other samples may share."""

    parts: Sequence[Part]

    @classmethod
    def of(cls, labels: np.ndarray, probabilities: np.ndarray) -> Sample:
        return cls([Part(labels, probabilities)])

    @property
    def rows(self) -> int:
        return sum(len(part.labels) for part in self.parts)

    @property
    def width(self) -> int:
        """How many labels there are."""
        return int(self.parts[0].labels.shape[1])

    @property
    def positives(self) -> np.ndarray:
        """Rows that have each label, int [labels]."""
        found: np.ndarray = np.sum([part.positives for part in self.parts], axis=0)
        return found

    @property
    def columns(self) -> Iterator[tuple[Column, ...]]:
        """Of each label its column in every part."""
        return zip(*(part.columns for part in self.parts), strict=True)

    @property
    def on_grid(self) -> Counts:
        return added([part.on_grid for part in self.parts])

    @property
    def in_top(self) -> Counts:
        return added([part.in_top for part in self.parts])

    @property
    def shares(self) -> tuple[np.ndarray, np.ndarray]:
        probabilities, shares = (np.concatenate(found) for found in zip(*(part.shares for part in self.parts), strict=True))
        return probabilities, shares
