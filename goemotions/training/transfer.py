"""The transfer set: texts without labels, on which students learn from their teachers alone (Hinton et al. 2015, arXiv 1503.02531).

They are made of the texts of train: the first words of one and the last words of another (instance crossover, Luque 2019, arXiv
1909.11241).
"""

from __future__ import annotations

import random
from collections.abc import Sequence


def texts(train: Sequence[str], count: int) -> list[str]:
    """Makes so many texts, the same ones for the same texts of train: scores that are kept belong to them."""
    if not train:
        return []
    generator, last = random.Random(0), len(train) - 1
    return [_crossover(generator, train[generator.randint(0, last)], train[generator.randint(0, last)]) for _ in range(count)]


def _crossover(generator: random.Random, one: str, other: str) -> str:
    first, second = one.split(), other.split()
    start = first[: generator.randint(0, len(first))]
    return " ".join(start + second[generator.randint(0, len(second)) :]) or one
