"""The bootstrap: every resample against scikit-learn on rows that are actually repeated."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn.metrics import f1_score, roc_auc_score

from goemotions.metrics import bootstrap

bounded = settings(max_examples=25, deadline=None)

Case = tuple[np.ndarray, np.ndarray, np.ndarray]


@st.composite
def resampled(draw: st.DrawFn) -> Case:
    """Labels, probabilities (some tied) and resamples, the first of them whole."""
    shape = draw(st.integers(2, 12)), draw(st.integers(1, 4))
    values = draw(st.sampled_from([st.sampled_from([0.0, 0.5, 1.0]), st.floats(0, 1, width=32)]))
    drawn = draw(hnp.arrays(np.int64, (3, shape[0]), elements=st.integers(0, 3)))
    whole = np.ones((1, shape[0]), dtype=np.int64)
    return (draw(hnp.arrays(bool, shape)), draw(hnp.arrays(np.float32, shape, elements=values)), np.vstack([whole, drawn]))


def repeated(case: Case) -> list[tuple[np.ndarray, np.ndarray]]:
    labels, probabilities, drawn = case
    return [(labels.repeat(weight, axis=0), probabilities.repeat(weight, axis=0)) for weight in drawn]


def both_classes(labels: np.ndarray) -> bool:
    return len(set(labels.ravel().tolist())) == 2


@bounded
@given(resampled())
def test_auc_of_a_resample_is_that_of_the_repeated_rows(case: Case) -> None:
    expected = [
        roc_auc_score(labels.ravel(), scores.ravel()) if both_classes(labels) else 0.5 for labels, scores in repeated(case)
    ]
    assert bootstrap.auc_micro(*case).tolist() == pytest.approx(expected)


@bounded
@given(resampled())
def test_macro_auc_of_a_resample_leaves_out_labels_with_one_class(case: Case) -> None:
    expected = []
    for labels, scores in repeated(case):
        aucs = [roc_auc_score(*columns) for columns in zip(labels.T, scores.T, strict=True) if both_classes(columns[0])]
        expected.append(np.mean(aucs) if aucs else 0.5)
    assert bootstrap.auc_macro(*case).tolist() == pytest.approx(expected)


@bounded
@given(resampled())
def test_f1_of_a_resample_is_that_of_the_repeated_rows(case: Case) -> None:
    labels, probabilities, drawn = case
    macro, micro = bootstrap.f1(labels, probabilities >= 0.5, drawn)
    expected_macro, expected_micro = [], []
    for truth, scores in repeated(case):
        predicted = scores >= 0.5
        columns = [f1_score(truth[:, i], predicted[:, i], zero_division=0) if len(truth) else 0 for i in range(labels.shape[1])]
        expected_macro.append(np.mean(columns))
        expected_micro.append(f1_score(truth.ravel(), predicted.ravel(), zero_division=0) if len(truth) else 0)
    assert macro.tolist() == pytest.approx(expected_macro)
    assert micro.tolist() == pytest.approx(expected_micro)


def test_every_resample_has_the_same_number_of_rows() -> None:
    drawn = bootstrap.weights(30, 50)
    assert drawn[0].tolist() == [1] * 30
    assert set(drawn.sum(axis=1)) == {30}
    assert (drawn == bootstrap.weights(30, 50)).all()
    assert (drawn != bootstrap.weights(30, 50, seed=1)).any()


def test_the_interval_is_that_of_the_resamples_alone() -> None:
    whole, resamples = [9000.0], np.arange(1001.0)
    assert bootstrap.interval(np.concatenate([whole, resamples])) == (25.0, 975.0)
    assert bootstrap.interval(np.array([*whole, 1.0, 1.0])) == (1.0, 1.0)


def test_the_interval_covers_the_truth_in_about_95_of_100_cases() -> None:
    covered = []
    for seed in range(80):
        random = np.random.default_rng(seed)
        labels = random.random((200, 1)) < 0.5
        predicted = labels ^ (random.random((200, 1)) < 0.2)
        _, micro = bootstrap.f1(labels, predicted, bootstrap.weights(200, 200, seed))
        low, high = bootstrap.interval(micro)
        covered.append(low <= 0.8 <= high)
    assert 0.85 <= np.mean(covered) <= 1
