"""The traffic of the server as metrics: per version, what is predicted per label, the scores, and features of the texts.

Some hundred texts are counted together, and added to the counters of Prometheus when ``/metrics`` is read, by worker processes twice a
second: to count each text alone would cost ten times as much, one counter after the other even more.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from itertools import product

import numpy as np
from prometheus_client import Counter

from goemotions.evaluation.traffic import FEATURES, SCORE_BINS, Measured, Traffic, count_features, measure
from goemotions.metrics.probabilities import sigmoid
from goemotions.models.tokenizer import Encoding
from goemotions.registry.bundle import Bundle
from goemotions.serving import metrics

# Of a longer list of labels, only the first ones have a histogram of their scores, so that there are at most a thousand series of it.
LABELS_WITH_HISTOGRAM = 100
# Texts that are counted together.
COUNTED_TOGETHER = 512


class TrafficCounters:
    """Counts the traffic of one version; thread-safe."""

    def __init__(self, bundle: Bundle, version: str) -> None:
        self._bundle = bundle
        self._names = names = bundle.taxonomy.names
        self._lock = threading.Lock()
        self._measured: list[Measured] = []
        self._logits: list[np.ndarray] = []
        self._counted = Traffic.empty(names)
        self._rows = metrics.SCORED_TEXTS.labels(version)
        per_label = (metrics.PREDICTIONS, metrics.PREDICTED_SCORES, metrics.TOTAL_SCORES)
        self._of_labels = [metric.labels(version, name) for metric, name in product(per_label, names)]
        self._scores = [
            metrics.SCORES.labels(version, name, score) for name, score in product(names[:LABELS_WITH_HISTOGRAM], SCORE_BINS)
        ]
        self._features = {
            feature: [metrics.FEATURES.labels(version, feature, value) for value in bins] for feature, bins in FEATURES.items()
        }
        if bundle.reference:
            metrics.REFERENCE_TEXTS.labels(version).set(bundle.reference.traffic.rows)
            for name, count in zip(names, bundle.reference.traffic.predicted.tolist(), strict=True):
                metrics.REFERENCE_PREDICTIONS.labels(version, name).set(count)

    def add(self, texts: Sequence[str], encodings: Sequence[Encoding], logits: np.ndarray) -> None:
        """Counts n texts, their encodings, and their logits, float32 [n, labels]."""
        measured = measure(self._bundle.encoder, texts, encodings)
        with self._lock:
            self._measured += measured
            self._logits.append(logits)
            if len(self._measured) >= COUNTED_TOGETHER:
                self._count()

    def _count(self) -> None:
        """Counts what was measured; called with the lock."""
        if self._measured:
            probabilities = sigmoid(np.concatenate(self._logits))
            features = count_features(self._measured, self._bundle.encoder.special_tokens)
            self._counted += Traffic.of(self._names, probabilities, self._bundle.thresholds, features)
            self._measured, self._logits = [], []

    def flush(self) -> None:
        """Adds what was counted since the last time to the metrics."""
        with self._lock:
            self._count()
            counted, self._counted = self._counted, Traffic.empty(self._names)
        if not counted.rows:
            return
        self._rows.inc(counted.rows)
        _increase(self._of_labels, np.concatenate([counted.predicted, counted.predicted_sum, counted.total_sum]))
        _increase(self._scores, counted.scores[:LABELS_WITH_HISTOGRAM].ravel())
        for feature, children in self._features.items():
            _increase(children, counted.features[feature])


def _increase(children: Sequence[Counter], amounts: np.ndarray) -> None:
    for child, amount in zip(children, amounts.tolist(), strict=True):
        if amount:
            child.inc(amount)
