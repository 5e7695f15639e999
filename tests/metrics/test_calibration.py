"""Calibration: what it measures, and that a calibrator is chosen only if it helps."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.special import expit
from sklearn.metrics import brier_score_loss, log_loss

from goemotions.metrics import calibration


def drawn(rows: int, seed: int, slope: float = 1.0, shift: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Labels drawn from known log-odds, and a model's logits that are those, stretched and shifted."""
    random = np.random.default_rng(seed)
    odds = random.normal(-1, 2, size=(rows, 5))
    return random.random(odds.shape) < expit(odds), odds * slope + shift


def test_the_scores_are_those_of_scikit_learn() -> None:
    labels, logits = drawn(300, 0)
    flat = labels.ravel()
    assert calibration.brier(labels, expit(logits)) == pytest.approx(brier_score_loss(flat, expit(logits).ravel()))
    assert calibration.log_loss(labels, logits) == pytest.approx(log_loss(flat, expit(logits).ravel()))


def test_a_calibrated_model_is_hardly_off_and_an_overconfident_one_is() -> None:
    labels, logits = drawn(20_000, 1)
    assert calibration.error(labels, expit(logits)) < 0.005
    assert calibration.error(labels, expit(3 * logits)) > 0.05


def test_the_error_of_a_constant_is_its_distance_from_the_base_rate() -> None:
    labels = np.zeros((10, 2), dtype=bool)
    labels[:4] = True
    assert calibration.error(labels, np.full((10, 2), 0.9)) == pytest.approx(0.5)


@settings(max_examples=40, deadline=None)
@given(hnp.arrays(bool, (12, 3)), hnp.arrays(np.float32, (12, 3), elements=st.floats(0, 1, width=32)))
def test_the_bins_hold_every_text_label_pair_once(labels: np.ndarray, probabilities: np.ndarray) -> None:
    rows = calibration.reliability(labels, probabilities)
    assert sum(row["count"] for row in rows) == labels.size
    assert sum(row["count"] * row["observed"] for row in rows) == pytest.approx(labels.sum())
    assert 0 <= calibration.error(labels, probabilities) <= 1


def test_the_temperature_of_an_overconfident_model_is_recovered() -> None:
    labels, logits = drawn(4000, 2, slope=2.5)
    assert calibration.temperature(labels, logits).slope[0] == pytest.approx(1 / 2.5, abs=0.03)
    chosen, rows = calibration.choose(labels, logits)
    assert chosen.method == "temperature"
    scores = {row["method"]: row for row in rows}
    assert scores["temperature"]["log_loss"] < scores["none"]["log_loss"]
    assert scores["temperature"]["calibration_error"] < scores["none"]["calibration_error"] / 3


def test_labels_with_different_miscalibration_get_platt() -> None:
    labels, logits = drawn(4000, 3)
    distorted = logits * [1, 2, 0.5, 1, 3] + [0, 1, -1, 2, 0]
    chosen, _ = calibration.choose(labels, distorted)
    assert chosen.method == "platt"
    assert chosen.slope == pytest.approx([1, 0.5, 2, 1, 1 / 3], rel=0.15)


def test_a_calibrated_model_is_unchanged_or_almost_unchanged() -> None:
    labels, logits = drawn(4000, 4)
    chosen, _ = calibration.choose(labels, logits)
    assert expit(chosen.apply(logits)) == pytest.approx(expit(logits), abs=0.02)


def test_a_label_with_one_positive_keeps_a_sane_calibrator() -> None:
    labels, logits = drawn(300, 5)
    labels[:, 0] = False
    labels[7, 0] = True
    fitted = calibration.platt(labels, logits)
    assert np.isfinite(fitted.slope).all()
    assert np.isfinite(fitted.intercept).all()
    assert min(fitted.slope) > 0


def test_a_label_that_the_network_ranks_inversely_keeps_its_frequency() -> None:
    """Its slope is held above 0, and the intercept belongs to the slope that was held."""
    random = np.random.default_rng(0)
    labels = random.random((4000, 1)) < 0.03
    logits = np.where(labels, -4.0, -1.0) + random.normal(size=labels.shape)
    fitted = calibration.platt(labels, logits)
    assert fitted.slope[0] == pytest.approx(calibration.MIN_SLOPE)
    assert expit(fitted.apply(logits)).mean() == pytest.approx(labels.mean(), rel=0.2)


@pytest.mark.parametrize("method", list(calibration.METHODS))
def test_a_calibrator_can_be_undone(method: str) -> None:
    labels, logits = drawn(500, 6, slope=1.7, shift=0.3)
    fitted = calibration.METHODS[method](labels, logits)
    assert fitted.undo(expit(fitted.apply(logits))) == pytest.approx(expit(logits), abs=1e-4)
