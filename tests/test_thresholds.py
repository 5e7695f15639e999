"""Thresholds: each strategy against a search over everything it could have chosen."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn.metrics import f1_score

from goemotions import thresholds
from goemotions.errors import ModelError
from goemotions.thresholds import Thresholds

bounded = settings(max_examples=30, deadline=None)

# Neighbouring floats whose midpoint rounds to the lower one.
UPPER = np.nextafter(np.float32(1), np.float32(0))
LOWER = np.nextafter(UPPER, np.float32(0))


@st.composite
def scored(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """Labels and float32 probabilities; some coarse so that they tie, some so close that nothing lies between them."""
    shape = draw(st.integers(1, 25)), draw(st.integers(1, 5))
    coarse = st.sampled_from([0.0, 0.25, 0.5, 1.0])
    close = st.sampled_from([float(UPPER), float(LOWER), 1.0])
    values = draw(st.sampled_from([coarse, close, st.floats(0, 1, width=32)]))
    return draw(hnp.arrays(bool, shape)), draw(hnp.arrays(np.float32, shape, elements=values))


def f1(truth: np.ndarray, guess: np.ndarray) -> float:
    """F1 of one label from its definition; scikit-learn's takes a millisecond, too long for a search."""
    cells = int(truth.sum()) + int(guess.sum())
    return 2 * int((truth & guess).sum()) / cells if cells else 0.0


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
    assert thresholds.macro_f1(labels, predicted) == pytest.approx(np.mean(expected))
    assert [f1(labels[:, i], predicted[:, i]) for i in range(labels.shape[1])] == pytest.approx(expected)


@bounded
@given(scored())
def test_no_cut_beats_the_threshold_of_a_label(case: tuple[np.ndarray, np.ndarray]) -> None:
    labels, probabilities = case
    predicted = thresholds.per_label(labels, probabilities).apply(probabilities)
    for i in range(labels.shape[1]):
        cuts = [f1(labels[:, i], probabilities[:, i] >= cut) for cut in np.unique(probabilities[:, i])]
        assert f1(labels[:, i], predicted[:, i]) == pytest.approx(max(cuts))


def test_a_threshold_between_neighbouring_floats_still_separates_them() -> None:
    labels = np.array([[True], [False]])
    probabilities = np.array([[UPPER], [LOWER]])
    assert thresholds.per_label(labels, probabilities).apply(probabilities).tolist() == labels.tolist()


def test_rows_with_the_same_probability_are_decided_alike() -> None:
    labels = np.array([[True], [False], [False]])
    probabilities = np.array([[0.7], [0.7], [0.2]], dtype=np.float32)
    assert thresholds.per_label(labels, probabilities).apply(probabilities).ravel().tolist() == [True, True, False]


def test_a_threshold_lies_midway_to_the_next_probability() -> None:
    labels = np.array([[True], [True], [False]])
    probabilities = np.array([[0.75], [0.5], [0.25]], dtype=np.float32)
    assert thresholds.per_label(labels, probabilities).values == (0.375,)


def test_a_label_without_positives_keeps_one_half() -> None:
    """Data file row 8."""
    labels = np.array([[True, False], [False, False]])
    probabilities = np.array([[0.9, 0.9], [0.1, 0.8]], dtype=np.float32)
    assert thresholds.per_label(labels, probabilities).values[1] == 0.5


@bounded
@given(scored())
def test_no_threshold_of_the_grid_beats_the_global_one(case: tuple[np.ndarray, np.ndarray]) -> None:
    labels, probabilities = case
    fitted = thresholds.global_tuned(labels, probabilities)
    grid = [macro(labels, probabilities >= np.float32(step / 100)) for step in range(1, 100)]
    assert macro(labels, fitted.apply(probabilities)) == pytest.approx(max(grid))
    assert len(set(fitted.values)) == 1
    assert fitted.values[0] in [step / 100 for step in range(1, 100)]


@bounded
@given(scored())
def test_top_k_gives_every_row_exactly_k_labels_and_no_k_is_better(case: tuple[np.ndarray, np.ndarray]) -> None:
    labels, probabilities = case
    fitted = thresholds.top_k(labels, probabilities)
    predicted = fitted.apply(probabilities)
    assert fitted.k is not None
    assert set(predicted.sum(axis=1)) == {fitted.k}
    for k in range(1, min(thresholds.MAX_K, labels.shape[1]) + 1):
        assert macro(labels, predicted) >= macro(labels, Thresholds("top-k", fitted.values, k).apply(probabilities)) - 1e-9


@bounded
@given(scored())
def test_top_k_takes_the_highest(case: tuple[np.ndarray, np.ndarray]) -> None:
    labels, probabilities = case
    predicted = thresholds.top_k(labels, probabilities).apply(probabilities)
    for row, chosen in zip(probabilities, predicted, strict=True):
        assert row[chosen].min() >= row[~chosen].max(initial=0)


def test_the_fixed_strategy_decides_at_one_half() -> None:
    probabilities = np.array([[0.5, 0.49999997, 0.0, 1.0]], dtype=np.float32)
    fitted = thresholds.fixed(np.ones((1, 4), dtype=bool), probabilities)
    assert fitted.apply(probabilities).tolist() == [[True, False, False, True]]


@bounded
@given(scored(), st.sampled_from(sorted(thresholds.STRATEGIES)))
def test_thresholds_read_from_json_decide_as_before(
    tmp_path_factory: pytest.TempPathFactory, case: tuple[np.ndarray, np.ndarray], strategy: str
) -> None:
    labels, probabilities = case
    names = ["id", "labels", "k", 'joy|"grief"', "жаль"][: labels.shape[1]]
    fitted = thresholds.STRATEGIES[strategy](labels, probabilities)
    path = tmp_path_factory.mktemp("json") / "thresholds.json"
    thresholds.write(path, fitted, names, [], split="validation")
    found, content = thresholds.read(path)
    assert found == fitted
    assert found.apply(probabilities).tolist() == fitted.apply(probabilities).tolist()
    assert list(content["thresholds"]) == names
    assert content["split"] == "validation"


@pytest.mark.parametrize(
    "content", [None, b"", b"{", b"{}", b"[]", b"null", b"\xff", b'{"strategy": "x", "thresholds": [], "k": 1}']
)
def test_a_damaged_file_is_a_named_error(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "thresholds.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ModelError, match=r"thresholds\.json is missing or damaged: run"):
        thresholds.read(path)


@dataclass(frozen=True)
class Memorised:
    """Predicts every label of the rows it was fitted on, and nothing of any other row."""

    seen: frozenset[float]

    def apply(self, probabilities: np.ndarray) -> np.ndarray:
        return np.isin(probabilities, list(self.seen))


@pytest.mark.parametrize("rows", [2, 5, 13, 100])
def test_a_row_is_never_decided_by_what_was_fitted_on_it(monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    fits: list[frozenset[float]] = []

    def memorise(labels: np.ndarray, probabilities: np.ndarray) -> Memorised:
        fits.append(frozenset(probabilities.ravel().tolist()))
        return Memorised(fits[-1])

    monkeypatch.setitem(thresholds.STRATEGIES, "memorised", memorise)
    probabilities = np.linspace(0, 1, rows, dtype=np.float32)[:, None]
    assert thresholds.cross_fitted("memorised", np.ones((rows, 1), dtype=bool), probabilities) == 0
    left_out = [set(probabilities.ravel().tolist()) - seen for seen in fits]
    assert sorted(value for fold in left_out for value in fold) == sorted(probabilities.ravel().tolist())


def test_a_single_positive_helps_only_the_score_that_may_see_it() -> None:
    labels = np.zeros((50, 1), dtype=bool)
    labels[7] = True
    probabilities = np.where(labels, 0.3, 0.1).astype(np.float32)
    fitted = thresholds.per_label(labels, probabilities)
    assert thresholds.macro_f1(labels, fitted.apply(probabilities)) == 1
    assert thresholds.cross_fitted("per-label", labels, probabilities) == 0


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("noise", [0.5, 2.0])
def test_the_strategy_with_the_best_cross_fitted_score_is_chosen(seed: int, noise: float) -> None:
    labels, probabilities = separable(60, seed, noise)
    chosen, rows = thresholds.choose(labels, probabilities)
    scores = {name: thresholds.cross_fitted(name, labels, probabilities) for name in thresholds.STRATEGIES}
    assert {row["strategy"]: row["f1_macro_cross_fitted"] for row in rows} == scores
    assert scores[chosen.strategy] == max(scores.values())
    assert chosen == thresholds.STRATEGIES[chosen.strategy](labels, probabilities)
    for row in rows:
        fitted = Thresholds(row["strategy"], row["values"], row["k"])
        assert row["f1_macro_fitted"] == pytest.approx(macro(labels, fitted.apply(probabilities)))


def test_a_strategy_that_only_fits_its_own_rows_best_is_not_chosen() -> None:
    random = np.random.default_rng(3)
    labels = random.random((40, 3)) < 0.5
    labels[:, 2] = np.arange(40) == 7
    probabilities = np.column_stack([np.where(labels[:, :2], 0.9, 0.1), random.random(40) / 9]).astype(np.float32)
    chosen, rows = thresholds.choose(labels, probabilities)
    assert max(rows, key=lambda row: row["f1_macro_fitted"])["strategy"] == "per-label"
    assert chosen.strategy != "per-label"


def test_the_file_tells_how_the_others_did(tmp_path: Path) -> None:
    labels, probabilities = separable(60, 0, 1.0)
    chosen, rows = thresholds.choose(labels, probabilities)
    thresholds.write(tmp_path / "thresholds.json", chosen, list("abcd"), rows, engine="onnx")
    content = json.loads((tmp_path / "thresholds.json").read_text(encoding="utf-8"))
    assert [row["strategy"] for row in content["comparison"]] == list(thresholds.STRATEGIES)
    assert (content["strategy"], content["engine"]) == (chosen.strategy, "onnx")
