"""Probabilities: log-odds, and the order of the labels in each row."""

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.special import expit
from scipy.special import logit as scipy_logit

from goemotions.metrics.probabilities import CLIP, is_top_k, logit, rank_labels, sigmoid, top_k

bounded = settings(max_examples=50, deadline=None)
COARSE = st.sampled_from([0.0, 0.25, 0.5, 1.0])


@bounded
@given(st.lists(st.floats(-1e4, 1e4, width=32), min_size=1, max_size=20))
def test_a_probability_is_between_0_and_1_and_rises_with_its_logit(logits: list[float]) -> None:
    with np.errstate(all="raise", under="ignore"):
        probabilities = sigmoid(np.sort(np.array(logits, dtype=np.float32)))
    assert probabilities.dtype == np.float32
    assert ((probabilities >= 0) & (probabilities <= 1)).all()
    assert (np.diff(probabilities) >= 0).all()


def test_the_sigmoid_of_known_values() -> None:
    assert sigmoid(np.array([-1e30, -2.0, 0.0, 2.0, 1e30])) == pytest.approx([0, 0.1192029, 0.5, 0.8807970, 1])


@bounded
@given(hnp.arrays(np.float64, 12, elements=st.floats(-15, 15)))
def test_sigmoid_and_logit_are_those_of_scipy(logits: np.ndarray) -> None:
    assert sigmoid(logits) == pytest.approx(expit(logits), abs=1e-15)
    assert logit(expit(logits)) == pytest.approx(scipy_logit(np.clip(expit(logits), CLIP, 1 - CLIP)))


def test_log_odds_of_0_and_1_are_finite() -> None:
    assert np.isfinite(logit(np.array([0, 1], dtype=np.float32))).all()


@bounded
@given(hnp.arrays(np.float32, (6, 5), elements=st.one_of(COARSE, st.floats(0, 1, width=32))), st.integers(0, 7))
def test_the_top_k_are_the_first_of_the_ranked_labels(probabilities: np.ndarray, k: int) -> None:
    ranked = rank_labels(probabilities)
    assert ranked.tolist() == [sorted(range(5), key=lambda column: -row[column]) for row in probabilities]
    assert top_k(probabilities, k).tolist() == ranked[:, :k].tolist()
    chosen = [sorted(row[:k]) for row in ranked.tolist()]
    assert [np.flatnonzero(row).tolist() for row in is_top_k(probabilities, k)] == chosen


def test_metrics_are_imported_without_scipy_and_scikit_learn() -> None:
    """The server's image has neither."""
    program = (
        "import sys; sys.modules.update(dict.fromkeys(('scipy', 'sklearn', 'pandas')));"
        "from goemotions.metrics import bootstrap, calibration, classification, thresholds"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
