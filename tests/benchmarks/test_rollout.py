"""The measurement of rollouts, with real servers, and its simulation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks import rollout
from goemotions.metrics.thresholds import Thresholds
from goemotions.monitoring.rollout.answers import Answers, Expected, read_texts
from goemotions.monitoring.rollout.plan import Plan


@pytest.mark.slow
@pytest.mark.fault("bad-version")
def test_a_bad_version_of_the_real_server_is_taken_back(whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")
    plan = Plan(steps="50,100", window_seconds=0.5, step_seconds=0, step_requests=100, hold_seconds=60)
    outcome = rollout.measure(whole, "slow", plan, read_texts())
    assert "it is slower" in outcome.reason
    assert 0 < outcome.requests < 500


PER_LABEL = Thresholds("per-label", (0.9, 0.8, 0.5, 0.7, 0.6))


@pytest.mark.parametrize(
    ("fault", "thresholds", "is_bad"),
    [
        ("", PER_LABEL, False),
        ("slow", PER_LABEL, True),
        ("labels", PER_LABEL, True),
        ("thresholds", PER_LABEL, True),
        ("thresholds", Thresholds("global-0.5", (0.5,) * 5), True),
        ("thresholds", Thresholds("top-k", (0.0,) * 5, 1), True),
        ("thresholds", Thresholds("top-k-floor", (0.3,) * 5, 2), True),
    ],
    ids=lambda value: getattr(value, "strategy", None),
)
def test_simulated_rollouts_end_as_they_should(fault: str, thresholds: Thresholds, is_bad: bool) -> None:
    generator = np.random.default_rng(4)
    scores = generator.uniform(0, 1, (300, 5))
    names = tuple("abcde")
    recording = rollout.Recording(generator.lognormal(-4, 0.3, 500), Answers(thresholds.apply(scores), scores))
    counts = tuple(int(count) for count in recording.answers.chosen.sum(axis=0))
    expected = Expected(names, 300, 0, counts, counts)
    plan = Plan(steps="25,50,100", window_seconds=5)
    outcomes = [rollout.Simulation(recording, thresholds, expected, plan, fault).run(generator) for _ in range(3)]
    assert all(bool(one.reason) == is_bad for one in outcomes)
