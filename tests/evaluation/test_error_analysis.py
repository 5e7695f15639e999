"""Error analysis: counts against their definitions, and label errors against those inserted on purpose."""

from __future__ import annotations

import random
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.stats import spearmanr

from goemotions.evaluation import error_analysis
from goemotions.metrics import classification

bounded = settings(max_examples=50, deadline=None)

Case = tuple[np.ndarray, np.ndarray, np.ndarray]


@st.composite
def scored(draw: st.DrawFn) -> Case:
    """Labels, probabilities (coarse ones too, so that they tie) and decisions of some rows."""
    shape = draw(st.integers(1, 25)), draw(st.integers(1, 5))
    coarse = st.sampled_from([0.0, 0.25, 0.5, 1.0])
    values = draw(st.sampled_from([coarse, st.floats(0, 1, width=32)]))
    labels = draw(hnp.arrays(bool, shape))
    return labels, draw(hnp.arrays(np.float32, shape, elements=values)), draw(hnp.arrays(bool, shape))


def named(labels: np.ndarray) -> list[str]:
    return [f"label {i}" for i in range(labels.shape[1])]


def numbered(labels: np.ndarray) -> list[str]:
    return [f"row {i}" for i in range(len(labels))]


def separated(rows: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Random labels, probabilities that follow them, and which pairs are in doubt."""
    generator = np.random.default_rng(seed)
    labels = generator.random((rows, 4)) < [0.5, 0.4, 0.3, 0.2]
    doubtful = generator.random(labels.shape) < 0.1
    noise = generator.uniform(0, 0.02, labels.shape)
    probabilities = np.where(labels, 0.95 - noise, 0.02 + noise)
    return labels, np.where(doubtful, generator.uniform(0.3, 0.7, labels.shape), probabilities).astype(np.float32), doubtful


def test_a_missed_label_is_confused_with_each_one_predicted_in_its_place() -> None:
    labels = np.array([[True, False, False], [True, False, False], [True, False, True], [False, True, False]])
    predicted = np.array([[False, True, True], [False, True, False], [True, True, False], [False, True, False]])
    assert error_analysis.confused(("calm", "dread", "glee"), labels, predicted) == [
        {"label": "calm", "taken_for": "dread", "count": 2, "share": pytest.approx(2 / 3)},
        {"label": "glee", "taken_for": "dread", "count": 1, "share": 1},
        {"label": "calm", "taken_for": "glee", "count": 1, "share": pytest.approx(1 / 3)},
    ]
    assert len(error_analysis.confused(("calm", "dread", "glee"), labels, predicted, most=2)) == 2


@bounded
@given(scored(), st.randoms(use_true_random=False))
def test_confusions_are_bounded_by_what_was_missed_and_what_was_wrongly_predicted(case: Case, order: random.Random) -> None:
    labels, _, predicted = case
    names = named(labels)
    rows = error_analysis.confused(names, labels, predicted, most=100)
    missed, wrong = labels & ~predicted, predicted & ~labels
    assert sum(row["count"] for row in rows) == (missed.sum(axis=1) * wrong.sum(axis=1)).sum()
    for row in rows:
        a, b = names.index(row["label"]), names.index(row["taken_for"])
        assert a != b
        assert 0 < row["count"] <= min(missed[:, a].sum(), wrong[:, b].sum())
        assert row["share"] == row["count"] / labels[:, a].sum()
    assert [row["count"] for row in rows] == sorted((row["count"] for row in rows), reverse=True)
    shuffled = list(range(len(labels)))
    order.shuffle(shuffled)
    assert error_analysis.confused(names, labels[shuffled], predicted[shuffled], most=100) == rows


@pytest.mark.parametrize("seed", range(5))
def test_labels_flipped_on_purpose_come_first(seed: int) -> None:
    labels, probabilities, doubtful = separated(500, seed)
    flipped = np.random.default_rng(seed).choice(np.flatnonzero(~doubtful), 20, replace=False)
    annotated = labels.copy()
    annotated.flat[flipped] ^= True
    ids = numbered(labels)
    errors = error_analysis.likely_label_errors(named(labels), ids, annotated, probabilities)[:20]
    expected = {
        (ids[i], f"label {j}", "missing" if labels[i, j] else "superfluous")
        for i, j in zip(*np.unravel_index(flipped, labels.shape), strict=True)
    }
    assert {(row["id"], row["label"], row["kind"]) for row in errors} == expected


def test_a_label_that_the_model_cannot_predict_does_not_hide_a_clear_error() -> None:
    """Without the class means in the ranking, all rows with that label would come before the error."""
    labels, probabilities, doubtful = separated(400, 5)
    vague = np.random.default_rng(5).random(400) < 0.2
    row = np.flatnonzero(~labels[:, 0] & ~doubtful[:, 0])[7]
    annotated = np.column_stack([labels, vague])
    annotated[row, 0] = True
    probabilities = np.column_stack([probabilities, np.random.default_rng(6).uniform(0, 0.004, 400)]).astype(np.float32)
    rows = error_analysis.likely_label_errors(named(annotated), numbered(annotated), annotated, probabilities)
    assert (rows[0]["id"], rows[0]["label"], rows[0]["kind"]) == (f"row {row}", "label 0", "superfluous")
    assert rows[0]["probability"] == probabilities[row, 0]
    assert sum(row["label"] == "label 4" for row in rows) > 20


@bounded
@given(scored(), st.randoms(use_true_random=False))
def test_the_order_of_the_rows_changes_no_likely_error(case: Case, order: random.Random) -> None:
    labels, probabilities, _ = case
    names, ids = named(labels), numbered(labels)
    errors = error_analysis.likely_label_errors(names, ids, labels, probabilities)
    shuffled = list(range(len(labels)))
    order.shuffle(shuffled)
    mixed = error_analysis.likely_label_errors(names, [ids[i] for i in shuffled], labels[shuffled], probabilities[shuffled])
    assert mixed == errors


@bounded
@given(scored())
def test_a_likely_error_contradicts_its_label(case: Case) -> None:
    labels, probabilities, _ = case
    names, ids = named(labels), numbered(labels)
    errors = error_analysis.likely_label_errors(names, ids, labels, probabilities)
    assert [row["margin"] for row in errors] == sorted((row["margin"] for row in errors), reverse=True)
    for row in errors:
        i, j = ids.index(row["id"]), names.index(row["label"])
        assert labels[i, j] == (row["kind"] == "superfluous")
        has, p = labels[:, j], probabilities[:, j].astype(float)
        assert 0 < has.sum() < len(has)
        mean = p[has].mean() if row["kind"] == "missing" else p[~has].mean()
        assert (p[i] >= mean - 1e-9) if row["kind"] == "missing" else (p[i] <= mean + 1e-9)
        if p[has].mean() >= p[~has].mean():
            assert row["margin"] >= -1e-9


@bounded
@given(scored())
def test_the_buckets_of_label_counts_hold_every_row(case: Case) -> None:
    labels, probabilities, predicted = case
    rows = error_analysis.by_label_count(labels, predicted, probabilities)
    counts = labels.sum(axis=1)
    assert sum(row["rows"] for row in rows) == len(labels)
    for row in rows:
        inside = counts >= 3 if row["labels"] == "3+" else counts == int(row["labels"])
        assert row["rows"] == inside.sum() > 0
        assert row["f1_micro"] == classification.decisions(labels[inside], predicted[inside])["f1_micro"]
        assert row["exact_match"] == pytest.approx((labels[inside] == predicted[inside]).all(axis=1).mean())
        assert row["predicted"] == pytest.approx(predicted[inside].sum() / inside.sum())


def test_texts_are_bucketed_by_their_words() -> None:
    lengths = np.array([1, 5, 6, 10, 11, 20, 21, 90])
    labels = np.array([[True, False]] * 8)
    rows = error_analysis.by_length(lengths, labels, labels, labels.astype(np.float32))
    assert [(row["words"], row["rows"]) for row in rows] == [("1-5", 2), ("6-10", 2), ("11-15", 1), ("16-20", 1), ("21+", 2)]
    # The second label, which no row has, does not count.
    assert {(row["auc_micro"], row["f1_micro"], row["f1_macro"]) for row in rows} == {(1, 1, 1)}


@bounded
@given(scored(), st.data())
def test_metrics_by_length_are_finite(case: Case, draw: st.DataObject) -> None:
    labels, probabilities, predicted = case
    lengths = draw.draw(hnp.arrays(np.int64, len(labels), elements=st.integers(0, 40)))
    rows = error_analysis.by_length(lengths, labels, predicted, probabilities)
    assert sum(row["rows"] for row in rows) == len(labels)
    assert np.isfinite([[row[name] for name in ("auc_micro", "f1_micro", "f1_macro")] for row in rows]).all()


def test_support_is_correlated_with_what_is_defined() -> None:
    f1, auc, counts = [0.2, 0.5, 0.4, 0.9], [0.9, None, 0.8, 0.7], [10, 20, 30, 40]
    rows = [{"label": str(i), "f1": f1[i], "auc": auc[i]} for i in range(4)]
    rho, p = spearmanr(counts, f1)
    assert error_analysis.support_correlation(rows, counts) == {
        "f1_rho": pytest.approx(rho),
        "f1_p": pytest.approx(p),
        "auc_rho": pytest.approx(-1),
        "auc_p": pytest.approx(0),
    }


@pytest.mark.parametrize(
    ("f1", "counts"),
    [([0.5, 0.5, 0.5], [1, 2, 3]), ([0.1, 0.2, 0.3], [7, 7, 7]), ([0.1, 0.2], [1, 2]), ([0.1], [1])],
    ids=["one metric value", "one count", "two labels", "one label"],
)
def test_an_undefined_correlation_is_none_without_a_warning(f1: list[float], counts: list[int]) -> None:
    rows = [{"f1": value, "auc": None} for value in f1]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        correlation = error_analysis.support_correlation(rows, counts)
    assert set(correlation.values()) == {None}
