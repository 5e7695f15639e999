"""The tests of a window against a reference: shifts are detected, what does not matter or is chance is not."""

import dataclasses

import numpy as np
import pytest
from scipy.stats import chi2_contingency, fisher_exact, poisson

from goemotions.evaluation.traffic import TOKEN_EDGES, Traffic
from goemotions.monitoring.drift import comparison
from goemotions.monitoring.drift.comparison import alpha_of, compare

# From a label on a third of the texts to one on two in a thousand, as in the official data.
RATES = np.array([0.33, 0.1, 0.05, 0.02, 0.01, 0.002])
NAMES = tuple(f"label-{number}" for number in range(len(RATES)))
# Of a text without the label, the share per bin of the score.
WITHOUT = np.array([0.4, 0.2, 0.12, 0.1, 0.08, 0.05, 0.03, 0.02, 0, 0])


def traffic(rows: int, seed: int, rates: np.ndarray = RATES, tokens: float = 12.0) -> Traffic:
    """Counts over texts with labels of these rates, and so many tokens on average."""
    random = np.random.default_rng(seed)
    shares = [np.append((1 - rate) * WITHOUT[:-2], [0.4 * rate, 0.6 * rate]) for rate in rates]
    scores = np.array([random.multinomial(rows, share) for share in shares])
    predicted = scores[:, -2:].sum(axis=1)
    lengths = np.diff(poisson.cdf([-np.inf, *TOKEN_EDGES, np.inf], tokens))
    features = {"tokens": random.multinomial(rows, lengths)}
    return Traffic(NAMES, rows, predicted, 0.7 * predicted, 0.9 * predicted, scores, features)


def alarms(reference: Traffic, window: Traffic) -> set[tuple[str, str]]:
    return {(test.name, test.label) for test in compare(reference, window, alpha_of()) if test.alarm}


REFERENCE = traffic(5426, 0)


@pytest.mark.parametrize("rows", [1, 30, 1000, 20_000])
def test_the_same_texts_are_no_drift(rows: int) -> None:
    assert alarms(REFERENCE, traffic(rows, 1)) == set()


def test_false_alarms_are_as_rare_as_stated() -> None:
    """At ten times the accepted chance, so that two hundred windows can show it."""
    alpha = 10 * alpha_of()
    pairs = [(traffic(2000, 2 * seed), traffic(1000, 2 * seed + 1)) for seed in range(200)]
    false = sum(any(test.alarm for test in compare(before, now, alpha)) for before, now in pairs)
    # At most 6.7 are expected; more than 15 have a chance of one in a thousand.
    assert false <= 15


@pytest.mark.parametrize("label", range(len(RATES)))
def test_a_label_that_is_gone_is_an_alarm_however_rare_it_is(label: int) -> None:
    rates = RATES.copy()
    rates[label] = 0
    assert ("predictions", NAMES[label]) in alarms(REFERENCE, traffic(20_000, 3, rates))


def test_a_rare_label_that_triples_is_an_alarm_though_it_moves_by_less_than_five_points() -> None:
    rates = RATES.copy()
    rates[4] *= 3
    assert alarms(REFERENCE, traffic(5000, 4, rates)) == {("predictions", NAMES[4])}


def test_longer_texts_are_an_alarm_of_their_length_alone() -> None:
    assert alarms(REFERENCE, traffic(2000, 5, tokens=16)) == {("tokens", "")}


def test_a_significant_move_that_is_too_small_to_matter_is_no_alarm() -> None:
    reference, window = traffic(500_000, 6), traffic(500_000, 7, RATES * 1.1, tokens=12.1)
    tests = compare(reference, window, alpha_of())
    assert not any(test.alarm for test in tests)
    assert sum(test.p_value <= test.threshold for test in tests) >= 3


def test_the_test_of_a_rate_is_fishers() -> None:
    window = traffic(700, 8, RATES * 1.3)
    by_label = {test.label: test for test in compare(REFERENCE, window, 0.05) if test.name == "predictions"}
    for number, name in enumerate(NAMES):
        now, before = int(window.predicted[number]), int(REFERENCE.predicted[number])
        table = [[now, window.rows - now], [before, REFERENCE.rows - before]]
        one_sided = min(fisher_exact(table, alternative=side).pvalue for side in ("less", "greater"))
        assert by_label[name].p_value == pytest.approx(min(1, 2 * one_sided), rel=1e-6)


def test_the_test_of_a_histogram_is_chi_square() -> None:
    window = traffic(5000, 8, RATES * 1.3)
    by_label = {test.label: test for test in compare(REFERENCE, window, 0.05) if test.name == "scores"}
    table = np.stack([REFERENCE.scores[0], window.scores[0]])
    assert table.min() >= comparison.LEAST_EXPECTED
    expected = chi2_contingency(table)
    assert (by_label[NAMES[0]].statistic, by_label[NAMES[0]].p_value) == pytest.approx((expected.statistic, expected.pvalue))


def test_thresholds_follow_holm() -> None:
    tests = compare(REFERENCE, traffic(900, 9), 0.03)
    assert [test.threshold for test in tests] == pytest.approx([0.03 / (len(tests) - rank) for rank in range(len(tests))])
    assert [test.p_value for test in tests] == sorted(test.p_value for test in tests)


def test_after_the_first_test_that_is_not_rejected_no_other_is_an_alarm() -> None:
    def of_one_label(counts: Traffic) -> Traffic:
        arrays = {name: getattr(counts, name)[:1] for name in ("names", "predicted", "predicted_sum", "total_sum", "scores")}
        return dataclasses.replace(counts, **arrays, features={})

    reference, window = of_one_label(REFERENCE), of_one_label(traffic(60, 25))
    first, second = compare(reference, window, 0.05)
    assert second.p_value < 2 * first.p_value
    # At its own p-value the second test alone would be an alarm.
    assert [test.alarm for test in compare(reference, window, second.p_value)] == [False, False]
    assert [test.alarm for test in compare(reference, window, 2 * first.p_value)] == [True, True]


def test_the_accepted_chance_follows_the_window() -> None:
    assert alpha_of(86400, 1) == pytest.approx(1 / 30)
    assert alpha_of(3600, 1) == pytest.approx(1 / 720)
    assert alpha_of(30 * 86400, 1) == comparison.LARGEST_ALPHA


def test_what_one_of_both_lacks_is_not_tested() -> None:
    window = dataclasses.replace(traffic(1000, 10), features={})
    window.scores[2] = 0
    tested = {(test.name, test.label) for test in compare(REFERENCE, window, 0.05)}
    assert tested == {("predictions", name) for name in NAMES} | {("scores", name) for name in NAMES if name != NAMES[2]}


def test_the_expected_quality_stands_beside_that_of_the_reference() -> None:
    rows = comparison.quality(REFERENCE, traffic(2000, 11, RATES / 2), (0.5,) * len(NAMES))
    assert [row.label for row in rows] == list(NAMES)
    assert rows[0].rate == pytest.approx(rows[0].reference_rate / 2, rel=0.15)
    assert all(0 <= value <= 1 for row in rows for value in (row.precision, row.recall, row.f1, row.reference_f1))
    assert rows[0].measured_f1 == 0.5
