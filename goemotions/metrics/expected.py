"""The quality of predictions that nobody has labelled, expected from calibrated probabilities.

Confidence-based performance estimation (Białek et al. 2024, "Estimating Model Performance Under Covariate Shift Without Labels",
arXiv:2401.08348; the method CBPE of NannyML), for each label of a multi-label classifier: a prediction with the probability p is
correct with the chance p. It is as true as the probabilities are calibrated on the texts that are scored: it follows a change of
what people write, and does not notice if the same words come to mean something else.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class ExpectedQuality:
    """Expected precision, recall and F1 per label, float [labels] each; 0/0 counts as 0."""

    precision: np.ndarray
    recall: np.ndarray
    f1: np.ndarray


def expected_quality(predicted: np.ndarray, predicted_sum: np.ndarray, total_sum: np.ndarray) -> ExpectedQuality:
    """The expected quality per label, from sums over the texts; each argument has the shape [labels].

    Args:
        predicted: the number of texts for which the label is predicted.
        predicted_sum: the sum of the label's probabilities over these texts: the correct predictions that are expected.
        total_sum: the sum of the label's probabilities over all texts: the texts with the label that are expected.
    """

    def ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
        return np.asarray(np.divide(numerator, denominator, out=np.zeros(len(denominator)), where=denominator > 0))

    hits = np.asarray(predicted_sum, dtype=float)
    predictions, positives = np.asarray(predicted, dtype=float), np.asarray(total_sum, dtype=float)
    return ExpectedQuality(ratio(hits, predictions), ratio(hits, positives), ratio(2 * hits, predictions + positives))
