"""Expected quality without labels: it is that of labels drawn from the probabilities, and follows the texts."""

import numpy as np
import pytest
from sklearn.metrics import precision_recall_fscore_support

from goemotions.metrics.expected import expected_quality
from goemotions.metrics.thresholds import Thresholds


def drawn(rows: int, shift: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Calibrated probabilities of four labels, rare to frequent, and labels drawn from them."""
    random = np.random.default_rng(3)
    odds = random.normal([-5, -3, -2, 0], 2, size=(rows, 4)) + shift
    probabilities = (1 / (1 + np.exp(-odds))).astype(np.float32)
    return probabilities, random.random(odds.shape) < probabilities


THRESHOLDS = Thresholds("per-label", (0.2, 0.3, 0.4, 0.5))


@pytest.mark.parametrize("shift", [-1.0, 0.0, 1.0])
def test_the_expected_quality_of_calibrated_scores_is_that_of_their_labels(shift: float) -> None:
    probabilities, labels = drawn(200_000, shift)
    predicted = THRESHOLDS.apply(probabilities)
    precision, recall, f1, _ = precision_recall_fscore_support(labels, predicted)
    sums = (probabilities * predicted).sum(axis=0, dtype=float), probabilities.sum(axis=0, dtype=float)
    expected = expected_quality(predicted.sum(axis=0), *sums)
    assert expected.precision == pytest.approx(precision, abs=0.02)
    assert expected.recall == pytest.approx(recall, abs=0.02)
    assert expected.f1 == pytest.approx(f1, abs=0.02)


def test_a_label_that_is_never_predicted_and_one_without_texts_have_no_quality() -> None:
    expected = expected_quality(np.array([0, 0]), np.zeros(2), np.array([3.5, 0.0]))
    assert expected.precision.tolist() == expected.recall.tolist() == expected.f1.tolist() == [0, 0]
