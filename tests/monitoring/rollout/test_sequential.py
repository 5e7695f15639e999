"""The sequential tests of a rollout: how often they are wrong, and how soon they are right."""

from __future__ import annotations

import numpy as np
import pytest

from goemotions.monitoring.rollout import sequential
from goemotions.monitoring.rollout.sequential import Evidence

RUNS, WINDOWS, RATE = 1000, 80, 0.05


def decided(champion: float, canary: float, *, share: float = 0.25, requests: int = 40) -> np.ndarray:
    """In how many windows each of many rollouts is decided, when a version fails with these probabilities; 0: it is not."""
    generator = np.random.default_rng(7)
    evidence, first = Evidence(RATE), np.zeros(RUNS, dtype=int)
    for window in range(1, WINDOWS + 1):
        ours = generator.binomial(requests, share, RUNS)
        failed, others = generator.binomial(ours, canary), generator.binomial(requests - ours, champion)
        evidence.add(sequential.events(failed, failed + others, ours / requests))
        first[(first == 0) & evidence.is_decisive] = window
    return first


@pytest.mark.parametrize(("rate", "share"), [(0.001, 0.05), (0.02, 0.25), (0.3, 0.5)])
def test_of_equal_versions_fewer_than_the_stated_share_are_ever_rejected(rate: float, share: float) -> None:
    assert (decided(rate, rate, share=share) > 0).mean() <= RATE


def test_a_canary_that_fails_more_often_is_rejected_and_one_that_fails_less_often_is_not() -> None:
    worse = decided(0.001, 0.05)
    assert (worse > 0).all()
    assert np.median(worse) <= 20
    assert not decided(0.05, 0.001).any()


def test_evidence_against_a_canary_needs_more_than_one_window() -> None:
    evidence = Evidence(RATE)
    evidence.add(sequential.events(1000, 1000, 0.05))
    assert 0 < evidence.value < evidence.limit
    assert not evidence.is_decisive
    for _ in range(3):
        evidence.add(sequential.events(2, 2, 0.05))
    assert evidence.is_decisive


@pytest.mark.parametrize("calm", [0, 30, 100])
def test_a_fault_that_begins_late_is_seen_nearly_as_soon(calm: int) -> None:
    """Thrice as many events as before: what the version did before it had the fault hides it for some windows only."""
    generator, evidence, took = np.random.default_rng(5), Evidence(RATE), np.zeros(200, dtype=int)
    share = sequential.with_odds(0.2, 1.5)
    for window in range(calm + 60):
        ours, others = generator.binomial(10, 0.2 if window < calm else 0.6, 200), generator.binomial(40, 0.2, 200)
        evidence.add(sequential.events(ours, ours + others, share))
        took += ~evidence.is_decisive & (window >= calm)
    assert evidence.is_decisive.mean() > 0.95
    assert np.median(took) <= 30


def test_fewer_events_are_evidence_where_they_are_the_fault() -> None:
    generator, evidence = np.random.default_rng(1), Evidence(RATE)
    same = Evidence(RATE)
    for _ in range(30):
        ours, others = generator.binomial(10, 0.05), generator.binomial(30, 0.4)
        evidence.add(sequential.events(ours, ours + others, 0.25, fewer=True))
        same.add(sequential.events(ours, ours + others, 0.25))
    assert evidence.is_decisive
    assert same.value < 0


def test_a_tolerance_is_no_evidence() -> None:
    share = sequential.with_odds(0.2, 2.0)
    assert share == pytest.approx(1 / 3)
    generator, evidence = np.random.default_rng(2), Evidence(RATE)
    for _ in range(WINDOWS):
        evidence.add(sequential.events(generator.binomial(np.full(RUNS, 30), share), 30, share))
    assert (evidence.value >= evidence.limit).mean() <= RATE


@pytest.mark.parametrize(("mean", "most", "least"), [(0.0, RATE, 0.0), (-0.1, RATE, 0.0), (0.2, 1.0, 0.99)])
def test_a_mean_above_zero_is_rejected_and_one_below_it_not_more_often_than_stated(
    mean: float, most: float, least: float
) -> None:
    generator, evidence, ever = np.random.default_rng(3), Evidence(RATE), np.zeros(1000, dtype=bool)
    for _ in range(40):
        evidence.add(sequential.means(mean + generator.uniform(-0.5, 0.5, (1000, 20)), 1.0))
        ever |= evidence.is_decisive
    assert least <= ever.mean() <= most


def test_evidence_that_is_stored_and_read_again_goes_on() -> None:
    evidence = Evidence(RATE)
    evidence.add(sequential.events(3, 4, 0.2))
    again = Evidence.from_json(evidence.to_json())
    for one in (evidence, again):
        one.add(sequential.events(1, 4, 0.2))
    assert again.value == pytest.approx(evidence.value, abs=1e-4)
    # A server with other bounds of its histogram, and evidence of before, which counted no windows.
    before = again.value
    again.add(np.zeros(3))
    assert again.value == pytest.approx(before)
    assert Evidence.from_json({"rate": RATE, "logs": [0.5], "value": 0.5}).windows == 1
