"""The simulation of injected shifts: a shift is detected, the earlier the larger it is, and none is not."""

import numpy as np

from benchmarks import drift
from benchmarks.drift import Pool
from goemotions.evaluation.traffic import FEATURES, SCORE_BINS


def pool(rows: int, rate: float, seed: int) -> Pool:
    """Texts with one of two labels at a rate, and otherwise alike."""
    has_label = np.random.default_rng(seed).random((rows, 2)) < [rate, 0.1]
    scores = np.zeros((rows, 2, len(SCORE_BINS)), dtype=bool)
    scores[:, :, -1], scores[:, :, 0] = has_label, ~has_label
    features = np.concatenate([np.eye(1, len(bins), dtype=bool)[0] for bins in FEATURES.values()])
    counts = np.column_stack([has_label, scores.reshape(rows, -1), np.tile(features, (rows, 1))])
    return Pool(("rare", "other"), counts.astype(np.uint8))


def test_the_larger_a_shift_the_fewer_texts_it_takes() -> None:
    usual = pool(12_000, 0.03, 0)
    needed = [np.median(drift.detection(usual, pool(5000, rate, 1), 1.0, 3)[0]) for rate in (0.2, 0.06)]
    assert needed[0] < needed[1] <= 5000
    none, old = drift.detection(usual, usual, 1.0, 3)
    assert (none, old) == ([np.inf] * 3, 0)


def test_a_table_says_what_was_not_detected() -> None:
    lines = drift.table({"typos": ([100.0, 200.0, np.inf], 1)})
    assert lines[-1] == "| typos | 200 | more than 15,000 | 1 of 3 runs |"
