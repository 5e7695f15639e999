"""Latency for one text, compared in one process rather than read off a clock: another process on the machine must not decide.

The engines take turns. Beside each, a fixed matrix product is repeated for as long as the engine takes, so that whatever slows one
slows the other, and what counts is the median of the ratios. The fastest single product stands for the speed of the machine when
nothing else runs: ratio times that is the latency in ms.

The range goes from the 10th to the 90th percentile of the ratios. A budget below the range is missed, one above it is met; one inside
it is undecided, because the measurement is too noisy to tell, and then latency decides nothing. The percentiles of
``engines.latency`` are only shown.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from goemotions.models.engines import LATENCY_TOKENS, Engine, one_text

ROUNDS = 25
# The best of so many runs counts in each round: a single run is too easily interrupted.
RUNS = 3
# The machine counts as busy if the product takes so many times its fastest time (median).
BUSY = 1.5


@dataclass(frozen=True)
class Latency:
    """How long an engine takes for one text of 20 tokens, without tokenization, in ms: the median, and the range.

    ``slowdown`` is the median time of the reference product, over its fastest.
    """

    ms: float
    low_ms: float
    high_ms: float
    slowdown: float = 1.0

    @classmethod
    def recorded(cls, ms: float) -> Latency:
        """A latency that an earlier step measured alone."""
        return cls(ms, ms, ms)

    def is_within(self, budget_ms: float) -> bool | None:
        """Whether a budget is met; None if the measurement cannot tell."""
        if self.low_ms <= budget_ms < self.high_ms:
            return None
        return self.high_ms <= budget_ms

    def __str__(self) -> str:
        busy = f", on a busy machine ({self.slowdown:.1f} times its fastest time)" if self.slowdown > BUSY else ""
        return f"{self.ms:.1f} ms ({self.low_ms:.1f} to {self.high_ms:.1f}){busy}"


def measure(engines: Sequence[Engine]) -> list[Latency]:
    """Times the engines in turns; one latency per engine, in their order."""
    product = _product()
    runs = [one_text(engine) for engine in engines]
    fastest_product = min(_seconds(product) for _ in range(10 * RUNS))
    repeats = [max(1, round(min(_seconds(run) for _ in range(2 * RUNS)) / fastest_product)) for run in runs]
    ratios: list[list[float]] = [[] for _ in engines]
    products: list[float] = []
    for _ in range(ROUNDS):
        for position, run in enumerate(runs):
            reference = min(_seconds(product, repeats[position]) for _ in range(RUNS)) / repeats[position]
            ratios[position].append(min(_seconds(run) for _ in range(RUNS)) / reference)
            products.append(_seconds(product))
    fastest_product = min(fastest_product, *products)
    slowdown = float(np.median(products)) / fastest_product
    return [_latency(np.array(values), 1000 * fastest_product, slowdown) for values in ratios]


def _latency(ratios: np.ndarray, product_ms: float, slowdown: float) -> Latency:
    low, median, high = (float(value) * product_ms for value in np.percentile(ratios, (10, 50, 90)))
    return Latency(median, low, high, slowdown)


def _product() -> Callable[[], object]:
    """The reference: a matrix product without BLAS, whose threads would depend on the machine."""
    generator = np.random.default_rng(0)
    left, right = (generator.random(shape, dtype=np.float32) for shape in ((LATENCY_TOKENS, 256), (256, 256)))
    return lambda: np.einsum("ij,jk->ik", left, right)


def _seconds(run: Callable[[], object], times: int = 1) -> float:
    started = time.perf_counter()
    for _ in range(times):
        run()
    return time.perf_counter() - started
