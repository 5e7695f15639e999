"""The selection of a winner: by validation alone, within the latency budget."""

import dataclasses
from dataclasses import replace

import numpy as np
import pytest

from goemotions.evaluation.latency import Latency
from goemotions.evaluation.predictions import Predictions
from goemotions.evaluation.selection import CandidateScores, describe_winner, latency_limit, select_winner
from goemotions.metrics import cross_fitting, strategies
from goemotions.metrics.classification import macro_f1
from goemotions.metrics.sorted_scores import SortedScores
from goemotions.metrics.thresholds import Thresholds


def scores(noise: float, latency_ms: float, profile: str = "x") -> CandidateScores:
    """Scores of a model whose logits follow the same labels up to the noise."""
    random = np.random.default_rng(0)
    labels = random.random((80, 3)) < 0.4
    probabilities = 1 / (1 + np.exp(-(2.0 * labels - 1 + noise * random.normal(size=labels.shape))))
    ids = [f"r{i}" for i in range(80)]
    predictions = Predictions(
        ("a", "b", "c"), ids, labels, probabilities.astype(np.float32), "validation", "openvino-int8", "d"
    )
    return CandidateScores(profile, predictions, Thresholds("global-0.5", (0.5,) * 3), Latency.recorded(latency_ms))


@pytest.mark.parametrize(
    ("latencies", "budget", "winner"),
    [
        ((5, 5, 5), 25.0, 1),
        ((5, 25, 5), 25.0, 1),
        ((5, 25.1, 5), 25.0, 2),
        ((5, 30, 30), 25.0, 0),
        ((5, 30, 30), None, 1),
        ((40, 50, 30), 25.0, 2),
    ],
    ids=["all within", "at the budget", "best too slow", "only the worst within", "no budget", "none within"],
)
def test_the_best_within_the_budget_wins(latencies: tuple[float, ...], budget: float | None, winner: int) -> None:
    candidates = [scores(noise, latency) for noise, latency in zip((3.0, 0.5, 1.5), latencies, strict=True)]
    assert select_winner(candidates, budget) == winner


def test_a_winner_over_the_budget_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    select_winner([scores(1.0, 40, "slow"), scores(2.0, 30.5, "less-slow")], 25.0)
    reason = "the fastest, since no candidate is within the latency budget of 25 ms: 30.5 ms (30.5 to 30.5)"
    assert f"less-slow is selected: {reason}" in caplog.text


@pytest.mark.fault("machine-busy")
def test_an_undecided_latency_does_not_count_and_is_named(caplog: pytest.LogCaptureFixture) -> None:
    noisy = Latency(30.0, 18.0, 41.0, slowdown=3.1)
    candidates = [scores(3.0, 5), replace(scores(0.5, 0, "best"), latency=noisy), replace(scores(1.5, 0), latency=None)]
    assert select_winner(candidates, 25.0) == 1
    assert describe_winner(candidates, 1, 25.0) == (
        "the best on validation; whether it is within the latency budget of 25 ms is undecided: 30.0 ms (18.0 to 41.0), on a busy "
        "machine (3.1 times its fastest time)"
    )
    assert "best is selected: the best on validation; whether" in caplog.text
    assert describe_winner(candidates[2:], 0, 25.0).endswith("is undecided: not measured")
    assert describe_winner(candidates[:1], 0, 25.0) == "the best on validation of those within the latency budget of 25 ms"
    assert describe_winner(candidates, 1, None) == "the best on validation"


@pytest.mark.parametrize(
    ("tolerance", "fast", "winner"),
    [
        (0.0, Latency.recorded(5.0), 0),
        (0.05, Latency.recorded(5.0), 1),
        (0.05, Latency(9.0, 5.0, 10.5), 0),
        (0.05, Latency.recorded(11.0), 0),
    ],
    ids=["no tolerance", "clearly faster", "the ranges overlap", "slower"],
)
def test_a_clearly_faster_model_of_about_the_same_quality_wins(tolerance: float, fast: Latency, winner: int) -> None:
    candidates = [scores(1.0, 10.0, "large"), replace(scores(1.05, 0.0, "small"), latency=fast), scores(3.0, 1.0, "bad")]
    lost = [a - b for a, b in zip(candidates[0].rank, candidates[1].rank, strict=True)]
    assert 0 < max(lost) < 0.05
    assert select_winner(candidates, 25.0, tolerance) == winner
    assert select_winner(candidates, None, tolerance) == 0


def test_a_faster_model_may_lose_the_tolerance_of_neither_metric() -> None:
    """With the same scores, and thresholds that hardly any reaches."""
    silent = replace(scores(1.0, 2.0), thresholds=Thresholds("global-tuned", (0.99,) * 3))
    assert select_winner([scores(1.0, 10.0), silent], 25.0, 0.05) == 0


def test_the_reason_names_what_the_faster_model_loses() -> None:
    candidates = [scores(1.0, 10.0, "large"), scores(1.05, 5.0, "small")]
    auc, f1 = (b - a for a, b in zip(candidates[0].rank, candidates[1].rank, strict=True))
    assert describe_winner(candidates, 1, 25.0, 0.05) == (
        "the fastest within the latency budget of 25 ms that is at most 0.05 below the best that is not over it, large: "
        f"micro AUC {auc:+.4f}, macro F1 {f1:+.4f}, 2.0 times as fast"
    )


def test_the_reason_names_the_candidates_over_the_budget() -> None:
    candidates = [scores(0.5, 46.0, "mpnet"), scores(1.0, 10.0, "minilm"), scores(1.05, 5.0, "minilm-3l")]
    assert select_winner(candidates, 25.0, 0.05) == 2
    for winner, tolerance in ((2, 0.05), (1, 0.0)):
        assert describe_winner(candidates, winner, 25.0, tolerance).endswith("; over it: mpnet, 46.0 ms (46.0 to 46.0)")


def test_quality_decides_between_models_of_which_none_is_clearly_the_fastest() -> None:
    fast = [
        replace(scores(1.1, 0.0), latency=Latency(4.9, 4.4, 5.4)),
        replace(scores(1.05, 0.0), latency=Latency(5.0, 4.5, 5.5)),
    ]
    assert fast[0].rank < fast[1].rank
    assert select_winner([scores(1.0, 10.0), *fast], 25.0, 0.05) == 2
    assert select_winner([scores(1.0, 10.0), *fast], 4.0, 0.05) == 2


def test_a_faster_model_does_not_win_by_the_quality_of_one_over_the_budget() -> None:
    assert select_winner([scores(1.0, 40.0), scores(1.05, 30.0)], 25.0, 0.05) == 1
    assert select_winner([scores(1.0, 20.0), replace(scores(1.05, 0.0), latency=None)], 25.0, 0.05) == 0


def test_if_all_are_over_the_budget_none_is_a_substitute() -> None:
    """The fastest may be as slow as the best, by its range, and a third one clearly faster than the best."""
    fastest, best, third = ((26.0, 30.0, 60.0), (35.0, 40.0, 45.0), (31.0, 32.0, 33.0))
    candidates = [
        replace(scores(noise, 0.0), latency=Latency(ms, low, high))
        for noise, (low, ms, high) in ((3.0, fastest), (1.0, best), (1.05, third))
    ]
    assert candidates[2].is_faster_substitute(candidates[1], 0.05)
    assert select_winner(candidates, 25.0, 0.05) == 1


def test_a_clearly_slow_candidate_does_not_win_by_an_undecided_one() -> None:
    candidates = [scores(1.5, 5), replace(scores(0.5, 0), latency=Latency(40.0, 30.0, 60.0))]
    assert select_winner(candidates, 25.0) == 0


def test_macro_f1_decides_between_equal_auc() -> None:
    plain = scores(1.0, 5)
    silent = replace(plain, thresholds=Thresholds("global-tuned", (0.99,) * 3))
    assert select_winner([silent, plain], None) == 1
    assert select_winner([plain, silent], None) == 0


def test_selection_does_not_read_the_test_split() -> None:
    assert not [field.name for field in dataclasses.fields(CandidateScores) if "test" in field.name]


def test_only_the_cpu_variant_has_a_latency_limit() -> None:
    assert {variant: latency_limit(variant, 25.0) for variant in ("gpu", "cpu")} == {"gpu": None, "cpu": 25.0}


def test_thresholds_that_follow_noise_do_not_keep_a_faster_model_from_winning() -> None:
    """Fitted on validation itself, they look better there than on other rows."""
    large, small = (replace(scores(1.0, latency), profile=name) for name, latency in (("large", 20.0), ("small", 2.0)))
    labels, probabilities = large.validation.labels, large.validation.probabilities
    large = replace(large, thresholds=strategies.per_label(SortedScores.of(labels, probabilities)))
    on_own_rows = macro_f1(labels, large.thresholds.apply(probabilities))
    assert on_own_rows - small.rank[1] > 0.005
    assert select_winner([large, small], 25.0, 0.005) == 1


def test_models_are_ranked_by_the_score_that_their_thresholds_file_has() -> None:
    validation = scores(1.0, 5.0).validation
    _, results = cross_fitting.choose(validation.labels, validation.probabilities)
    for result in results:
        ranked = CandidateScores("x", validation, result.thresholds).rank[1]
        assert ranked == pytest.approx(min(result.cross_fitted["f1_macro"], result.f1_macro_fitted)), result.thresholds.strategy


def test_thresholds_of_other_rows_count_as_they_are() -> None:
    validation = scores(1.0, 5.0).validation
    for fitted in (Thresholds("per-label", (0.9, 0.9, 0.9)), Thresholds("by hand", (0.4, 0.5, 0.6))):
        served = fitted.apply(validation.probabilities)
        np.testing.assert_array_equal(CandidateScores("x", validation, fitted).decisions, served)
