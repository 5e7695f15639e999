"""The tests of a window against a reference, and their false alarms.

Three kinds of tests, all of two samples: the rate of predictions per label (Fisher's exact test, conditional on the sum of both
counts), and the histograms of a label's scores and of a feature of the texts (chi-square on binned counts). The p-values of one window
are corrected for their number by the method of Holm (1979), so that the chance of any alarm without drift is at most ``alpha``, however
many labels there are. An alarm needs an effect that matters, too: with a million texts every small move is significant. Effects are the
ratio of two rates and the Jensen-Shannon distance of two histograms, with NannyML's default threshold for the latter.

``alpha`` follows from the false alarms that are accepted per month and from the length of the window.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from operator import attrgetter

import numpy as np

from goemotions import defaults
from goemotions.evaluation.drift import LEAST_DISTANCE, LEAST_RATIO, DriftTest, LabelQuality
from goemotions.evaluation.traffic import FEATURES, Traffic
from goemotions.metrics.expected import expected_quality

MONTH_SECONDS = 30 * 86400.0
WINDOW_SECONDS = 86400.0
# The chance of a false alarm of one window is at most this, even if the window is a month.
LARGEST_ALPHA = 0.05
# Bins with fewer expected texts are merged: below this, chi-square is a poor approximation.
LEAST_EXPECTED = 10


def alpha_of(window_seconds: float = WINDOW_SECONDS, false_alarms_per_month: float = defaults.FALSE_ALARMS_PER_MONTH) -> float:
    """The accepted chance of a false alarm of one window, if windows of this length follow each other."""
    return min(false_alarms_per_month * window_seconds / MONTH_SECONDS, LARGEST_ALPHA)


def compare(reference: Traffic, window: Traffic, alpha: float) -> list[DriftTest]:
    """Every test that both have the counts for, those with the smallest p-values first; none for a window without texts.

    Args:
        reference, window: of the same labels.
        alpha: the accepted chance of any false alarm.
    """
    if not window.rows:
        return []
    each = (*_rates(reference, window), *_scores(reference, window), *_features(reference, window))
    tests, is_rejected = sorted(each, key=attrgetter("p_value")), True
    for rank, test in enumerate(tests):
        threshold = alpha / (len(tests) - rank)
        is_rejected = is_rejected and test.p_value <= threshold
        tests[rank] = replace(test, threshold=threshold, alarm=is_rejected and test.alarm)
    return tests


def quality(reference: Traffic, window: Traffic, measured_f1: tuple[float, ...] | None) -> list[LabelQuality]:
    """The expected quality of each label in the window, beside that of the reference; none for a window without texts."""
    if not window.rows:
        return []
    now, before = (expected_quality(one.predicted, one.predicted_sum, one.total_sum) for one in (window, reference))
    return [
        LabelQuality(
            name,
            float(window.predicted[i] / window.rows),
            float(reference.predicted[i] / reference.rows),
            float(now.precision[i]),
            float(now.recall[i]),
            float(now.f1[i]),
            float(before.f1[i]),
            measured_f1[i] if measured_f1 else None,
        )
        for i, name in enumerate(window.names)
    ]


def _rates(reference: Traffic, window: Traffic) -> Iterator[DriftTest]:
    """Before the correction, as those below: an alarm is an effect that matters."""
    from scipy.stats import hypergeom

    both = window.predicted + reference.predicted
    rows = window.rows + reference.rows
    # How many of the texts with the label are of the window, if it makes no difference whether a text is.
    tails = (
        hypergeom.cdf(window.predicted, rows, both, window.rows),
        hypergeom.sf(window.predicted - 1, rows, both, window.rows),
    )
    p_values = np.minimum(1, 2 * np.minimum(*tails))
    # Half a text more, so that the ratio of a label that is never predicted is finite.
    ratios = ((window.predicted + 0.5) / (window.rows + 1)) / ((reference.predicted + 0.5) / (reference.rows + 1))
    share = both / rows
    spread = np.sqrt(np.maximum(share * (1 - share), 1e-12) * (1 / window.rows + 1 / reference.rows))
    statistics = (window.predicted / window.rows - reference.predicted / reference.rows) / spread
    for name, statistic, p_value, ratio in zip(window.names, statistics, p_values, ratios, strict=True):
        matters = bool(max(ratio, 1 / ratio) >= LEAST_RATIO)
        yield DriftTest("predictions", name, float(statistic), float(p_value), 1.0, float(ratio), matters)


def _scores(reference: Traffic, window: Traffic) -> Iterator[DriftTest]:
    for name, before, now in zip(window.names, reference.scores, window.scores, strict=True):
        if before.sum() and now.sum():
            yield _histograms("scores", name, before, now)


def _features(reference: Traffic, window: Traffic) -> Iterator[DriftTest]:
    for name in FEATURES:
        before, now = reference.features.get(name), window.features.get(name)
        if before is not None and now is not None and before.sum() and now.sum():
            yield _histograms(name, "", before, now)


def _histograms(name: str, label: str, before: np.ndarray, now: np.ndarray) -> DriftTest:
    from scipy.spatial.distance import jensenshannon
    from scipy.special import chdtrc

    effect = float(jensenshannon(before, now, base=2))
    table = _merged(np.stack([before, now]))
    if table.shape[1] == 1:
        return DriftTest(name, label, 0.0, 1.0, 1.0, effect, False)
    expected = np.outer(table.sum(axis=1), table.sum(axis=0)) / table.sum()
    statistic = float(((table - expected) ** 2 / expected).sum())
    p_value = float(chdtrc(table.shape[1] - 1, statistic))
    return DriftTest(name, label, statistic, p_value, 1.0, effect, effect >= LEAST_DISTANCE)


def _merged(table: np.ndarray) -> np.ndarray:
    """The table, int [2, bins], with the bins of few expected texts merged into one, and that one into the next larger if needed."""
    table = table[:, np.argsort(table.sum(axis=0), kind="stable")]
    expected = np.cumsum(table.sum(axis=0)) * table.sum(axis=1).min() / table.sum()
    single = table.sum(axis=0) * table.sum(axis=1).min() / table.sum()
    few = max(int((single < LEAST_EXPECTED).sum()), 1)
    # The first bins together have enough.
    first = max(few, int(np.searchsorted(expected, LEAST_EXPECTED)) + 1)
    return np.column_stack([table[:, :first].sum(axis=1), table[:, first:]])
