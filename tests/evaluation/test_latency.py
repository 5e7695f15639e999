"""Latency: compared in turns, so that another process on the machine does not decide."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import numpy as np
import pytest

from goemotions.evaluation import latency
from goemotions.evaluation.latency import Latency
from goemotions.models import engines
from goemotions.models.devices import cpus
from goemotions.models.engine_names import Computation
from goemotions.models.tokenizer import TextEncoder

# Between one product and forty: far from both, on any machine.
MIDDLE = 6
LOOP = "while True: pass"


class Products:
    """An engine that computes a number of matrix products."""

    name, workers, batch_tokens = "products", 1, 1
    computation = Computation("products", "cpu", "fp32")
    encoder: TextEncoder

    def __init__(self, count: int) -> None:
        self.count = count
        self.left, self.right = np.ones((engines.LATENCY_TOKENS, 256), np.float32), np.ones((256, 256), np.float32)

    def logits(self, ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
        assert ids.shape == mask.shape == (1, engines.LATENCY_TOKENS)
        for _ in range(self.count):
            np.einsum("ij,jk->ik", self.left, self.right)
        return np.zeros((1, 3), np.float32)


@pytest.fixture(params=[False, True], ids=["alone", "beside busy processes"])
def busy(request: pytest.FixtureRequest) -> Iterator[bool]:
    """Two processes per core that never pause."""
    loops = [subprocess.Popen([sys.executable, "-c", LOOP]) for _ in range(2 * cpus() if request.param else 0)]
    yield request.param
    for loop in loops:
        loop.kill()
        loop.wait()


@pytest.mark.fault("machine-busy")
def test_busy_processes_do_not_change_the_decision(busy: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latency, "ROUNDS", 10)
    fast, slow, reference = latency.measure([Products(1), Products(40), Products(1)])
    budget = MIDDLE * reference.ms
    assert (fast.is_within(budget), slow.is_within(budget)) == (True, False)
    assert slow.ms > fast.ms


@pytest.mark.parametrize(
    ("low", "high", "decision"), [(10, 20, True), (10, 25, True), (10, 26, None), (25, 40, None), (26, 40, False)]
)
def test_a_budget_within_the_range_is_undecided(low: float, high: float, decision: bool | None) -> None:
    assert Latency((low + high) / 2, low, high).is_within(25.0) is decision


def test_a_recorded_latency_always_decides() -> None:
    assert [Latency.recorded(ms).is_within(25.0) for ms in (24.9, 25.0, 25.1)] == [True, True, False]


def test_a_busy_machine_is_named() -> None:
    assert str(Latency(12.34, 10, 15)) == "12.3 ms (10.0 to 15.0)"
    assert str(Latency(12.34, 10, 15, slowdown=2.0)) == "12.3 ms (10.0 to 15.0), on a busy machine (2.0 times its fastest time)"
