"""Thresholds: each strategy against an exhaustive search."""

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn.metrics import f1_score

from goemotions.errors import ModelError
from goemotions.metrics import classification, cross_fitting, sorted_scores, strategies, thresholds
from goemotions.metrics.sorted_scores import SortedScores
from goemotions.metrics.thresholds import StrategyResult, Thresholds, ThresholdsFile

bounded = settings(max_examples=30, deadline=None)

# Neighbouring floats whose midpoint rounds to the lower one.
UPPER = np.nextafter(np.float32(1), np.float32(0))
LOWER = np.nextafter(UPPER, np.float32(0))


@st.composite
def scored(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """Labels and float32 probabilities; some coarse so that they tie, some so close that no float is between them."""
    shape = draw(st.integers(1, 25)), draw(st.integers(1, 5))
    coarse = st.sampled_from([0.0, 0.25, 0.5, 1.0])
    close = st.sampled_from([float(UPPER), float(LOWER), 1.0])
    values = draw(st.sampled_from([coarse, close, st.floats(0, 1, width=32)]))
    return draw(hnp.arrays(bool, shape)), draw(hnp.arrays(np.float32, shape, elements=values))


def f1(truth: np.ndarray, guess: np.ndarray) -> float:
    """F1 of one label from its definition; scikit-learn's takes a millisecond, too long for a search."""
    total = int(truth.sum()) + int(guess.sum())
    return 2 * int((truth & guess).sum()) / total if total else 0.0


def macro(labels: np.ndarray, predicted: np.ndarray) -> float:
    return float(np.mean([f1(labels[:, i], predicted[:, i]) for i in range(labels.shape[1])]))


def separable(rows: int, seed: int, noise: float) -> tuple[np.ndarray, np.ndarray]:
    """Random labels, and probabilities that follow them up to the noise."""
    random = np.random.default_rng(seed)
    labels = random.random((rows, 4)) < 0.3
    return labels, (1 / (1 + np.exp(-(2.0 * labels - 1 + noise * random.normal(size=labels.shape))))).astype(np.float32)


@bounded
@given(scored())
def test_macro_f1_is_that_of_scikit_learn(case: tuple[np.ndarray, np.ndarray]) -> None:
    labels, probabilities = case
    predicted = probabilities >= 0.5
    expected = [f1_score(labels[:, i], predicted[:, i], zero_division=0) for i in range(labels.shape[1])]
    assert classification.macro_f1(labels, predicted) == pytest.approx(np.mean(expected))
    assert [f1(labels[:, i], predicted[:, i]) for i in range(labels.shape[1])] == pytest.approx(expected)


@bounded
@given(scored())
def test_no_cut_beats_the_threshold_of_a_label(case: tuple[np.ndarray, np.ndarray]) -> None:
    labels, probabilities = case
    predicted = strategies.per_label(SortedScores.of(labels, probabilities)).apply(probabilities)
    for i in range(labels.shape[1]):
        cuts = [f1(labels[:, i], probabilities[:, i] >= cut) for cut in np.unique(probabilities[:, i])]
        assert f1(labels[:, i], predicted[:, i]) == pytest.approx(max(cuts))


def test_a_threshold_between_neighbouring_floats_still_separates_them() -> None:
    labels = np.array([[True], [False]])
    probabilities = np.array([[UPPER], [LOWER]])
    assert strategies.per_label(SortedScores.of(labels, probabilities)).apply(probabilities).tolist() == labels.tolist()


def test_rows_with_the_same_probability_are_decided_alike() -> None:
    labels = np.array([[True], [False], [False]])
    probabilities = np.array([[0.7], [0.7], [0.2]], dtype=np.float32)
    assert strategies.per_label(SortedScores.of(labels, probabilities)).apply(probabilities).ravel().tolist() == [
        True,
        True,
        False,
    ]


def test_a_threshold_lies_midway_to_the_next_probability() -> None:
    labels = np.array([[True], [True], [False]])
    probabilities = np.array([[0.75], [0.5], [0.25]], dtype=np.float32)
    assert strategies.per_label(SortedScores.of(labels, probabilities)).values == (0.375,)


def test_of_thresholds_with_the_same_f1_the_highest_is_taken() -> None:
    labels = np.array([[True], [False], [False], [True]])
    probabilities = np.array([[1.0], [0.75], [0.5], [0.25]], dtype=np.float32)
    assert f1(labels.ravel(), probabilities.ravel() >= 1) == f1(labels.ravel(), probabilities.ravel() >= 0.25)
    assert strategies.per_label(SortedScores.of(labels, probabilities)).values == (0.875,)


@pytest.mark.parametrize("seed", range(5))
def test_a_smoothed_threshold_is_the_best_of_all_cuts_moved_to_the_common_one(seed: int) -> None:
    """Of rows with many equal probabilities, between which no threshold lies."""
    random = np.random.default_rng(seed)
    probabilities = (random.integers(1, 12, (60, 1)) / 12).astype(np.float32)
    labels = random.random((60, 1)) < probabilities
    positives = labels.sum()
    observed = positives / (positives + strategies.SMOOTHING)
    scores = {}
    for cut in np.unique(probabilities):
        reached = probabilities >= cut
        target = observed * (labels & reached).sum() + (1 - observed) * probabilities[reached].sum()
        whole = observed * positives + (1 - observed) * probabilities.sum()
        scores[float(cut)] = 2 * target / (reached.sum() + whole)
    best = max(scores, key=lambda cut: scores[cut])
    middle = (best + max((cut for cut in scores if cut < best), default=0.0)) / 2
    (common,) = strategies.global_micro(SortedScores.of(labels, probabilities)).values
    logit = np.log(middle / (1 - middle)) * (1 - strategies.PULL) + np.log(common / (1 - common)) * strategies.PULL
    assert strategies.per_label_smoothed(SortedScores.of(labels, probabilities)).values == pytest.approx(
        (1 / (1 + np.exp(-logit)),), abs=1e-4
    )


@pytest.mark.fault("data-unseen-label")
def test_a_label_without_positives_keeps_one_half() -> None:
    labels = np.array([[True, False], [False, False]])
    probabilities = np.array([[0.9, 0.9], [0.1, 0.8]], dtype=np.float32)
    assert strategies.per_label(SortedScores.of(labels, probabilities)).values[1] == 0.5


@bounded
@given(scored())
def test_no_threshold_of_the_grid_beats_the_global_one(case: tuple[np.ndarray, np.ndarray]) -> None:
    labels, probabilities = case
    fitted = strategies.global_tuned(SortedScores.of(labels, probabilities))
    grid = [macro(labels, probabilities >= np.float32(step / 100)) for step in range(1, 100)]
    assert macro(labels, fitted.apply(probabilities)) == pytest.approx(max(grid))
    assert len(set(fitted.values)) == 1
    assert fitted.values[0] in [step / 100 for step in range(1, 100)]


@bounded
@given(scored())
def test_top_k_gives_every_row_exactly_k_labels_and_no_k_is_better(case: tuple[np.ndarray, np.ndarray]) -> None:
    labels, probabilities = case
    fitted = strategies.top_k(SortedScores.of(labels, probabilities))
    predicted = fitted.apply(probabilities)
    assert fitted.k is not None
    assert set(predicted.sum(axis=1)) == {fitted.k}
    for k in range(1, min(sorted_scores.MAX_K, labels.shape[1]) + 1):
        assert macro(labels, predicted) >= macro(labels, Thresholds("top-k", fitted.values, k).apply(probabilities)) - 1e-9


@bounded
@given(scored())
def test_top_k_takes_the_highest(case: tuple[np.ndarray, np.ndarray]) -> None:
    labels, probabilities = case
    predicted = strategies.top_k(SortedScores.of(labels, probabilities)).apply(probabilities)
    for row, chosen in zip(probabilities, predicted, strict=True):
        assert row[chosen].min() >= row[~chosen].max(initial=0)


def test_the_fixed_strategy_decides_at_one_half() -> None:
    probabilities = np.array([[0.5, 0.49999997, 0.0, 1.0]], dtype=np.float32)
    fitted = strategies.fixed(SortedScores.of(np.ones((1, 4), dtype=bool), probabilities))
    assert fitted.apply(probabilities).tolist() == [[True, False, False, True]]


@bounded
@given(scored(), st.sampled_from(sorted(strategies.STRATEGIES)))
def test_thresholds_read_from_json_decide_as_before(
    tmp_path_factory: pytest.TempPathFactory, case: tuple[np.ndarray, np.ndarray], strategy: str
) -> None:
    labels, probabilities = case
    names = ["id", "labels", "k", 'joy|"grief"', "жаль"][: labels.shape[1]]
    fitted = strategies.STRATEGIES[strategy](SortedScores.of(labels, probabilities))
    path = tmp_path_factory.mktemp("json") / "thresholds.json"
    written = ThresholdsFile(fitted, tuple(names), [StrategyResult(fitted, {"f1_macro": 0.5}, 0.25)], split="validation")
    written.write(path)
    read = thresholds.read(path)
    assert read == written
    assert read.thresholds.apply(probabilities).tolist() == fitted.apply(probabilities).tolist()


def test_the_file_of_an_older_bundle_is_read(tmp_path: Path) -> None:
    path, older = (
        tmp_path / "thresholds.json",
        {"strategy": "top-k", "f1_macro_cross_fitted": 0.5, "f1_macro_fitted": 0.6, "k": 2},
    )
    path.write_text(json.dumps({"strategy": "top-k", "thresholds": {"a": 0, "b": 0}, "k": 2, "comparison": [older]}))
    content = thresholds.read(path)
    assert (content.thresholds, content.names) == (Thresholds("top-k", (0, 0), 2), ("a", "b"))
    assert (content.chosen.cross_fitted, content.chosen.f1_macro_fitted) == ({"f1_macro": 0.5}, 0.6)


OUT_OF_RANGE = ("1.5", "-0.1", "NaN", "Infinity", "-Infinity", "1e999", "true", '"0.5"')
DAMAGED = (None, b"", b"{", b"{}", b"[]", b"null", b"\xff", b'{"strategy": "x", "thresholds": [], "k": 1}')
OF_NO_LABEL = b'{"strategy": "x", "thresholds": {"a": 0.5}, "k": 0}'


@pytest.mark.parametrize(
    "content",
    [
        *DAMAGED,
        OF_NO_LABEL,
        *(f'{{"strategy": "x", "thresholds": {{"a": 0.5, "b": {one}}}, "k": null}}'.encode() for one in OUT_OF_RANGE),
    ],
)
def test_a_damaged_file_is_a_named_error(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "thresholds.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ModelError, match=r"thresholds\.json is missing or damaged: run"):
        thresholds.read(path)


@pytest.mark.parametrize("threshold", ["1.5", "-0.1", "NaN", "Infinity", "-Infinity", "1e999", "true", '"0.5"'])
def test_a_threshold_that_is_no_probability_is_a_named_error(tmp_path: Path, threshold: str) -> None:
    path = tmp_path / "thresholds.json"
    path.write_text(f'{{"strategy": "x", "thresholds": {{"a": 0.5, "b": {threshold}}}, "k": null}}')
    with pytest.raises(ModelError, match=r"thresholds\.json is missing or damaged: run"):
        thresholds.read(path)


@dataclass(frozen=True)
class Memorised:
    """Predicts every label of the rows it was fitted on, and nothing of any other row."""

    seen: frozenset[float]

    def apply(self, probabilities: np.ndarray) -> np.ndarray:
        return np.isin(probabilities, list(self.seen))


@pytest.mark.parametrize("rows", [2, 5, 13, 100])
def test_a_row_is_never_decided_by_what_was_fitted_on_it(rows: int) -> None:
    fits: list[frozenset[float]] = []

    def memorise(scores: SortedScores) -> Memorised:
        fits.append(frozenset(value for fold in scores.folds for value in fold.probabilities.ravel().tolist()))
        return Memorised(fits[-1])

    probabilities = np.linspace(0, 1, rows, dtype=np.float32)[:, None]
    assert not cross_fitting.cross_fitted(np.ones((rows, 1), dtype=bool), probabilities, memorise).any()
    left_out = [set(probabilities.ravel().tolist()) - seen for seen in fits]
    counts = Counter(value for fold in left_out for value in fold)
    assert counts == dict.fromkeys(probabilities.ravel().tolist(), cross_fitting.draws(rows))


def test_a_single_positive_helps_only_the_score_that_may_see_it() -> None:
    labels = np.zeros((50, 1), dtype=bool)
    labels[7] = True
    probabilities = np.where(labels, 0.3, 0.1).astype(np.float32)
    fitted = strategies.per_label(SortedScores.of(labels, probabilities))
    assert classification.macro_f1(labels, fitted.apply(probabilities)) == 1
    assert not cross_fitting.cross_fitted(labels, probabilities, strategies.per_label).any()
    assert cross_fitting.metrics(labels, probabilities, strategies.per_label)["f1_macro"] == 0


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("noise", [0.5, 2.0])
def test_the_smoothed_fit_is_chosen_unless_another_has_a_clearly_better_cross_fitted_score(seed: int, noise: float) -> None:
    labels, probabilities = separable(60, seed, noise)
    chosen, rows = cross_fitting.choose(labels, probabilities)
    shares = {name: cross_fitting.cross_fitted(labels, probabilities, fit) for name, fit in strategies.STRATEGIES.items()}
    scores = {
        name: float(np.mean(2 * (labels * share).sum(axis=0) / np.maximum(labels.sum(axis=0) + share.sum(axis=0), 1e-9)))
        for name, share in shares.items()
    }
    compared = {row.thresholds.strategy: row.cross_fitted["f1_macro"] for row in rows if row.thresholds.strategy in scores}
    assert compared == pytest.approx(scores)
    lead = max(scores.values()) - scores["per-label-smoothed"]
    if lead > 0.5 / len(labels) ** 0.5:
        assert scores[chosen.strategy] == pytest.approx(max(scores.values()))
    else:
        assert chosen.strategy == "per-label-smoothed"
    assert chosen == strategies.STRATEGIES[chosen.strategy](SortedScores.of(labels, probabilities))
    for row in rows:
        assert row.f1_macro_fitted == pytest.approx(macro(labels, row.thresholds.apply(probabilities)))


@pytest.mark.parametrize(("rows", "draws"), [(1, 10), (184, 10), (5_426, 5), (25_000, 1), (1_000_000, 1)])
def test_folds_of_few_rows_are_drawn_more_than_once(rows: int, draws: int) -> None:
    assert cross_fitting.draws(rows) == draws


def test_a_strategy_that_only_fits_its_own_rows_best_is_not_chosen() -> None:
    random = np.random.default_rng(3)
    labels = random.random((40, 3)) < 0.5
    labels[:, 2] = np.arange(40) == 7
    probabilities = np.column_stack([np.where(labels[:, :2], 0.9, 0.1), random.random(40) / 9]).astype(np.float32)
    chosen, rows = cross_fitting.choose(labels, probabilities)
    assert max(rows, key=lambda row: row.f1_macro_fitted).thresholds.strategy == "per-label"
    assert chosen.strategy != "per-label"


def test_the_file_has_the_comparison_with_the_other_strategies(tmp_path: Path) -> None:
    labels, probabilities = separable(60, 0, 1.0)
    chosen, rows = cross_fitting.choose(labels, probabilities)
    ThresholdsFile(chosen, tuple("abcd"), rows, engine="onnx").write(tmp_path / "thresholds.json")
    content = json.loads((tmp_path / "thresholds.json").read_text(encoding="utf-8"))
    assert [row["strategy"] for row in content["comparison"]] == [*strategies.STRATEGIES, "precision-0.7", "recall-0.8"]
    assert (content["strategy"], content["engine"]) == (chosen.strategy, "onnx")


def sparse(rows: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Twelve labels, from common to very rare, with calibrated probabilities."""
    random = np.random.default_rng(seed)
    rates = np.geomspace(0.2, 0.002, 12)
    logits = np.log(rates / (1 - rates)) + 2 * random.normal(size=(rows, 12))
    probabilities = (1 / (1 + np.exp(-logits))).astype(np.float32)
    return random.random(probabilities.shape) < probabilities, probabilities


def test_smoothed_thresholds_score_lower_in_sample_and_higher_on_new_rows() -> None:
    in_sample, on_new_rows = [], []
    for seed in range(5):
        labels, probabilities = sparse(2000, seed)
        unseen_labels, unseen = sparse(20_000, seed + 100)
        fits = [fit(SortedScores.of(labels, probabilities)) for fit in (strategies.per_label, strategies.per_label_smoothed)]
        in_sample.append([macro(labels, fitted.apply(probabilities)) for fitted in fits])
        on_new_rows.append([macro(unseen_labels, fitted.apply(unseen)) for fitted in fits])
    plain, smoothed = np.mean(on_new_rows, axis=0)
    assert smoothed > plain
    gap, smoothed_gap = np.mean(in_sample, axis=0) - [plain, smoothed]
    assert smoothed_gap < gap / 2


def test_leads_that_are_noise_do_not_choose_the_strategy() -> None:
    chosen_scores, leader_scores = [], []
    for seed in range(6):
        labels, probabilities = sparse(600, seed)
        unseen_labels, unseen = sparse(20_000, seed + 100)
        chosen, rows = cross_fitting.choose(labels, probabilities)
        compared = [row for row in rows if row.thresholds.strategy in strategies.STRATEGIES]
        leader = max(compared, key=lambda row: row.cross_fitted["f1_macro"]).thresholds
        chosen_scores.append(macro(unseen_labels, chosen.apply(unseen)))
        leader_scores.append(macro(unseen_labels, leader.apply(unseen)))
    assert chosen_scores != leader_scores
    assert np.mean(chosen_scores) > np.mean(leader_scores)


def test_another_strategy_that_is_clearly_better_is_chosen() -> None:
    """One label per text, of ten with nearly equal probabilities: only the largest says which."""
    random = np.random.default_rng(0)
    truth = random.integers(0, 10, 2000)
    probabilities = (random.uniform(0.0, 0.6, (2000, 1)) + random.uniform(0, 0.02, (2000, 10))).astype(np.float32)
    probabilities[np.arange(2000), truth] += np.float32(0.03)
    chosen, _ = cross_fitting.choose(np.eye(10, dtype=bool)[truth], probabilities)
    assert chosen.strategy in ("top-k", "top-k-floor")


def test_smoothed_thresholds_of_a_label_without_positives_are_one_half() -> None:
    labels, probabilities = sparse(50, 0)
    labels[:, 3] = False
    assert strategies.per_label_smoothed(SortedScores.of(labels, probabilities)).values[3] == 0.5


@bounded
@given(scored())
def test_no_threshold_of_the_grid_has_a_better_micro_f1(case: tuple[np.ndarray, np.ndarray]) -> None:
    labels, probabilities = case
    fitted = strategies.global_micro(SortedScores.of(labels, probabilities))
    grid = [f1(labels.ravel(), (probabilities >= np.float32(step / 100)).ravel()) for step in range(1, 100)]
    assert f1(labels.ravel(), fitted.apply(probabilities).ravel()) == pytest.approx(max(grid))


@bounded
@given(scored())
def test_top_k_with_a_floor_keeps_to_both_and_is_no_worse_than_the_lowest_floor(case: tuple[np.ndarray, np.ndarray]) -> None:
    labels, probabilities = case
    fitted = strategies.top_k_floor(SortedScores.of(labels, probabilities))
    predicted = fitted.apply(probabilities)
    assert fitted.k is not None
    assert predicted.sum(axis=1).max() <= fitted.k
    assert not predicted[probabilities < np.float32(fitted.values[0])].any()
    lowest = Thresholds("top-k-floor", (float(sorted_scores.FLOORS[0]),) * labels.shape[1], fitted.k)
    assert macro(labels, predicted) >= macro(labels, lowest.apply(probabilities)) - 1e-9


@pytest.mark.parametrize("target", [0.5, 0.8, 0.95])
def test_a_target_recall_is_met_on_rows_like_those_it_was_fitted_on(target: float) -> None:
    recalls = []
    for seed in range(60):
        labels, probabilities = sparse(200, seed)
        unseen_labels, unseen = sparse(500, seed + 1000)
        predicted = strategies.for_recall(target)(SortedScores.of(labels, probabilities)).apply(unseen)
        recall = (unseen_labels & predicted).sum(axis=1) / np.maximum(unseen_labels.sum(axis=1), 1)
        recalls.append(np.where(unseen_labels.any(axis=1), recall, 1.0).mean())
    assert target - 0.01 < np.mean(recalls) < target + 0.05


@bounded
@given(scored(), st.sampled_from([0.2, 0.8, 0.99]))
def test_no_higher_threshold_keeps_the_target_recall(case: tuple[np.ndarray, np.ndarray], target: float) -> None:
    labels, probabilities = case

    def risk(threshold: float) -> float:
        missed = (labels & (probabilities < np.float32(threshold))).sum(axis=1) / np.maximum(labels.sum(axis=1), 1)
        return float((missed.sum() + 1) / (len(labels) + 1))

    threshold = strategies.for_recall(target)(SortedScores.of(labels, probabilities)).values[0]
    assert threshold == 0 or risk(threshold) <= 1 - target + 1e-9
    higher = [float(value) for value in probabilities[labels] if value > threshold]
    assert all(risk(value) > 1 - target - 1e-9 for value in higher)


def test_a_target_precision_is_missed_about_as_seldom_as_documented() -> None:
    held = []
    for seed in range(60):
        labels, probabilities = sparse(800, seed)
        unseen_labels, unseen = sparse(4000, seed + 1000)
        predicted = strategies.for_precision(0.6)(SortedScores.of(labels, probabilities)).apply(unseen)
        held.append((unseen_labels & predicted).sum() / predicted.sum() >= 0.6)
    assert np.mean(held) >= 0.85


@pytest.mark.parametrize(("hits", "is_met"), [(66, False), (67, True)])
def test_a_precision_is_met_if_as_many_hits_would_be_rare_below_it(hits: int, is_met: bool) -> None:
    """Of 100 predictions with a precision of 0.6, at least 67 are right with a chance of 0.09, and at least 66 with 0.13."""
    labels, probabilities = (np.arange(100) < hits)[:, None], np.full((100, 1), 0.9, dtype=np.float32)
    assert strategies.for_precision(0.6)(SortedScores.of(labels, probabilities)).apply(probabilities).all() == is_met


def test_a_precision_that_cannot_be_met_predicts_nothing() -> None:
    labels, probabilities = sparse(400, 0)
    probabilities[0] = 1
    fitted = strategies.for_precision(0.7)(SortedScores.of(np.zeros_like(labels), probabilities))
    assert not fitted.apply(probabilities).any()


@pytest.mark.parametrize(
    ("requested", "expected"), [("top-k", "top-k"), ("recall", "recall-0.9"), ("precision", "precision-0.6")]
)
def test_a_strategy_can_be_requested(requested: str, expected: str) -> None:
    labels, probabilities = sparse(400, 0)
    assert (
        cross_fitting.choose(labels, probabilities, requested, target_precision=0.6, target_recall=0.9)[0].strategy == expected
    )


@pytest.mark.parametrize("wrong", [{"strategy": "luck"}, {"target_precision": 0.0}, {"target_recall": 1.0}])
def test_an_impossible_request_is_a_named_error(wrong: dict[str, object]) -> None:
    labels, probabilities = sparse(50, 0)
    with pytest.raises(ModelError):
        cross_fitting.choose(labels, probabilities, **wrong)  # type: ignore[arg-type]
