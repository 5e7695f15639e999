"""A taxonomy: the names of the labels in their order, which data and models carry along."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from goemotions.errors import DataError

MOST_LABELS, LONGEST_NAME = 10_000, 1_000
SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True)
class Taxonomy:
    """Label names in index order.

    Raises:
        DataError: no name, too many, one that is empty, too long or no Unicode, or a repeated name.
    """

    names: tuple[str, ...]

    def __post_init__(self) -> None:
        if not self.names:
            raise DataError("the taxonomy has no label: list one name per line in emotions.txt")
        if len(self.names) > MOST_LABELS:
            raise DataError(f"the taxonomy has more than {MOST_LABELS:,} labels: merge or remove some")
        for position, name in enumerate(self.names):
            if len(name) > LONGEST_NAME:
                raise DataError(f"label {position} of the taxonomy has more than {LONGEST_NAME:,} characters: shorten it")
            if not name.strip():
                raise DataError(f"label {position} of the taxonomy has no name: remove the empty line or name it")
            # JSON can escape half of a surrogate pair, which no file in UTF-8 can have.
            if SURROGATE.search(name):
                raise DataError(f"label {position} of the taxonomy, {name!a}, has half of a character: correct it in the data")
        repeated = sorted(name for name, count in Counter(self.names).items() if count > 1)
        if repeated:
            raise DataError(f"label {repeated[0]!r} is twice in the taxonomy: give each label a unique name")

    def __len__(self) -> int:
        return len(self.names)

    def multi_hot(self, rows: Sequence[Iterable[int]]) -> np.ndarray:
        """Label indices of n rows as a bool array [n, labels]."""
        matrix = np.zeros((len(rows), len(self)), dtype=bool)
        for position, row in enumerate(rows):
            indices = list(row)
            if min(indices, default=0) < 0:
                raise IndexError(f"row {position} has a label below 0")
            matrix[position, indices] = True
        return matrix
