"""Metrics: each has the value that scikit-learn computes, and is always finite."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn.metrics import f1_score, precision_score, recall_score, roc_auc_score
from sklearn.metrics import roc_curve as sklearn_roc_curve

from goemotions.metrics import classification

bounded = settings(max_examples=50, deadline=None)


@st.composite
def scored(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels, probabilities (coarse ones too, so that they tie) and decisions of some rows."""
    shape = draw(st.integers(1, 25)), draw(st.integers(1, 5))
    coarse = st.sampled_from([0.0, 0.25, 0.5, 1.0])
    values = draw(st.sampled_from([coarse, st.floats(0, 1, width=32)]))
    labels = draw(hnp.arrays(bool, shape))
    return labels, draw(hnp.arrays(np.float32, shape, elements=values)), draw(hnp.arrays(bool, shape))


@bounded
@given(scored())
def test_ranking_metrics_are_those_of_scikit_learn(case: tuple[np.ndarray, ...]) -> None:
    labels, probabilities, _ = case
    metrics = classification.ranking(labels, probabilities)
    if labels.min() == labels.max():
        assert metrics == {"auc_micro": 0.5, "auc_macro": 0.5}
        return
    assert metrics["auc_micro"] == pytest.approx(roc_auc_score(labels, probabilities, average="micro"))
    both = (labels.min(axis=0) != labels.max(axis=0)).nonzero()[0]
    expected = roc_auc_score(labels[:, both], probabilities[:, both], average="macro") if len(both) else 0.5
    assert metrics["auc_macro"] == pytest.approx(expected)


@bounded
@given(scored())
def test_metrics_of_decisions_are_those_of_scikit_learn(case: tuple[np.ndarray, ...]) -> None:
    labels, _, predicted = case
    metrics = classification.decisions(labels, predicted)
    for name, score in (("precision", precision_score), ("recall", recall_score), ("f1", f1_score)):
        columns = [score(labels[:, i], predicted[:, i], zero_division=0) for i in range(labels.shape[1])]
        assert metrics[f"{name}_macro"] == pytest.approx(np.mean(columns))
        assert metrics[f"{name}_micro"] == pytest.approx(score(labels.ravel(), predicted.ravel(), zero_division=0))


@bounded
@given(scored())
def test_the_table_of_labels_is_that_of_scikit_learn(case: tuple[np.ndarray, ...]) -> None:
    labels, probabilities, predicted = case
    names = [f"label {i}" for i in range(labels.shape[1])]
    rows = classification.per_label(names, labels, probabilities, predicted)
    assert [row["label"] for row in rows] == names
    for i, row in enumerate(rows):
        truth, guess = labels[:, i], predicted[:, i]
        assert (row["support"], row["predicted"]) == (truth.sum(), guess.sum())
        assert row["precision"] == pytest.approx(precision_score(truth, guess, zero_division=0))
        assert row["recall"] == pytest.approx(recall_score(truth, guess, zero_division=0))
        assert row["f1"] == pytest.approx(f1_score(truth, guess, zero_division=0))
        expected = roc_auc_score(truth, probabilities[:, i]) if 0 < truth.sum() < len(truth) else None
        assert row["auc"] == (None if expected is None else pytest.approx(expected))


@bounded
@given(scored())
def test_the_roc_curve_is_that_of_scikit_learn(case: tuple[np.ndarray, ...]) -> None:
    labels, probabilities, _ = case
    curve = classification.roc_curve(labels, probabilities)
    if labels.min() == labels.max():
        assert curve == ([0, 1], [0, 1], [1, 0])
        return
    false, true, thresholds = sklearn_roc_curve(labels.ravel(), probabilities.ravel())
    assert curve == (false.tolist(), true.tolist(), np.minimum(thresholds, 1).tolist())


def test_a_long_roc_curve_keeps_its_ends_and_evenly_spread_corners() -> None:
    random = np.random.default_rng(0)
    labels, probabilities = random.random((500, 4)) < 0.3, random.random((500, 4)).astype(np.float32)
    false, true, thresholds = (np.array(values) for values in classification.roc_curve(labels, probabilities, 50))
    assert len(false) == len(true) == len(thresholds) == 50
    assert (false[0], true[0], false[-1], true[-1]) == (0, 0, 1, 1)
    whole = set(zip(*(values.tolist() for values in sklearn_roc_curve(labels.ravel(), probabilities.ravel())[:2]), strict=True))
    assert set(zip(false.tolist(), true.tolist(), strict=True)) <= whole


@bounded
@given(scored())
def test_every_metric_is_finite(case: tuple[np.ndarray, ...]) -> None:
    labels, probabilities, predicted = case
    metrics = classification.ranking(labels, probabilities) | classification.decisions(labels, predicted)
    assert {name: value for name, value in metrics.items() if not math.isfinite(value)} == {}


@pytest.mark.fault("data-unseen-label")
@pytest.mark.parametrize("fill", [True, False], ids=["always there", "never there"])
@pytest.mark.parametrize("guess", [True, False], ids=["always predicted", "never predicted"])
def test_a_label_with_one_class_has_defined_metrics(fill: bool, guess: bool) -> None:
    labels = np.array([[True, fill], [False, fill], [True, fill]])
    predicted = np.array([[True, guess], [False, guess], [True, guess]])
    probabilities = np.array([[0.9, 0.4], [0.1, 0.6], [0.8, 0.5]], dtype=np.float32)
    row = classification.per_label(("plain", "odd"), labels, probabilities, predicted)[1]
    assert row["auc"] is None
    assert (row["precision"], row["recall"], row["f1"]) == ((1, 1, 1) if fill and guess else (0, 0, 0))
    assert classification.ranking(labels, probabilities)["auc_macro"] == 1


def test_labels_ever_predicted_and_labels_per_row_are_counted() -> None:
    predicted = np.array([[True, False, True], [True, False, False]])
    metrics = classification.decisions(np.zeros((2, 3), dtype=bool), predicted)
    assert (metrics["labels_ever_predicted"], metrics["labels_per_row"]) == (2, 1.5)
