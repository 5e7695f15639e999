"""A taxonomy: the names of the labels in their order, which data and models carry along."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from goemotions.errors import DataError


@dataclass(frozen=True)
class Taxonomy:
    """Label names in index order.

    Raises:
        DataError: no name, an empty name, or a repeated name.
    """

    names: tuple[str, ...]

    def __post_init__(self) -> None:
        if not self.names:
            raise DataError("the taxonomy has no label: list one name per line in emotions.txt")
        for position, name in enumerate(self.names):
            if not name.strip():
                raise DataError(f"label {position} of the taxonomy has no name: remove the empty line or name it")
        repeated = sorted({name for name in self.names if self.names.count(name) > 1})
        if repeated:
            raise DataError(f"label {repeated[0]!r} is twice in the taxonomy: give each label a unique name")

    def __len__(self) -> int:
        return len(self.names)

    def multi_hot(self, rows: Sequence[Iterable[int]]) -> np.ndarray:
        """Label indices of n rows as a bool array [n, labels]."""
        matrix = np.zeros((len(rows), len(self)), dtype=bool)
        for position, row in enumerate(rows):
            matrix[position, list(row)] = True
        return matrix
