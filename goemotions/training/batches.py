"""Tokenized splits, and their batches."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

# Batches of this many are drawn at random, then sorted by length inside: little padding, and still a new order each epoch.
CHUNK_BATCHES = 50


@dataclass(frozen=True)
class TokenizedSplit:
    """A tokenized split: token ids per row, and targets in [0, 1], float32 [n, labels]: labels, or soft targets."""

    rows: list[list[int]]
    labels: np.ndarray


def draw(rows: list[list[int]], size: int, seed: int, epoch: int) -> list[list[int]]:
    """Returns the positions of all rows, each once, in batches of rows of similar length; the same for the same seed and epoch."""
    random = np.random.default_rng([seed, epoch])
    order = random.permutation(len(rows))
    lengths = np.array([len(row) for row in rows])
    chunk = size * CHUNK_BATCHES
    chunks = [order[start : start + chunk] for start in range(0, len(order), chunk)]
    # The short batch of a chunk comes last in it, so that there are exactly ceil(rows / size) batches.
    drawn = [
        part[np.argsort(lengths[part], kind="stable")][start : start + size].tolist()
        for part in chunks
        for start in range(0, len(part), size)
    ]
    return [drawn[position] for position in random.permutation(len(drawn))]
