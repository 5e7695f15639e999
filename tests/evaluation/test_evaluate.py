"""Evaluation: stored probabilities are exact, and the metrics beside them are computed from them."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn.metrics import f1_score, roc_auc_score

from goemotions.data.dataset import load_dataset
from goemotions.data.taxonomy import Taxonomy
from goemotions.errors import DataError, ModelError
from goemotions.evaluation import evaluate, tuning
from goemotions.evaluation.predictions import FILE, Predictions
from goemotions.metrics import cross_fitting, thresholds
from goemotions.metrics.classification import METRICS_FILE
from goemotions.models import engine_names, engines
from goemotions.models.engine_names import Computation
from goemotions.models.tokenizer import TextEncoder
from goemotions.registry.bundle import ENGINES

bounded = settings(max_examples=30, deadline=None)

SPLITS = ("validation", "test")
texts = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1).filter(str.strip)
label_names = st.one_of(texts, st.sampled_from(["id", "labels", "p/id", "p/p/", "text"]))


@st.composite
def scored(draw: st.DrawFn) -> Predictions:
    names = tuple(draw(st.lists(label_names, min_size=1, max_size=4, unique=True)))
    ids = draw(st.lists(texts, min_size=1, max_size=6, unique=True))
    shape = len(ids), len(names)
    probabilities = draw(hnp.arrays(np.float32, shape, elements=st.floats(0, 1, width=32)))
    split, engine, digest = draw(st.sampled_from(SPLITS)), draw(st.sampled_from(["torch", "openvino-int8"])), draw(texts)
    return Predictions(names, ids, draw(hnp.arrays(bool, shape)), probabilities, split, engine, digest)


def assert_same(actual: Predictions, expected: Predictions) -> None:
    assert (actual.names, list(actual.ids)) == (expected.names, list(expected.ids))
    assert (actual.split, actual.engine, actual.digest) == (expected.split, expected.engine, expected.digest)
    assert (actual.labels.dtype, actual.probabilities.dtype) == (bool, np.float32)
    np.testing.assert_array_equal(actual.labels, expected.labels)
    np.testing.assert_array_equal(actual.probabilities, expected.probabilities)


@pytest.fixture
def predictions() -> Predictions:
    random = np.random.default_rng(5)
    labels = random.random((60, 3)) < 0.4
    probabilities = (0.6 * random.random(labels.shape) + 0.4 * labels).astype(np.float32)
    return Predictions(
        ("id", "labels", "joy"), [f"r{i}" for i in range(60)], labels, probabilities, "validation", "openvino-fp32", "d1"
    )


@bounded
@given(scored())
def test_predictions_read_back_are_the_same_to_the_bit(
    tmp_path_factory: pytest.TempPathFactory, predictions: Predictions
) -> None:
    path = tmp_path_factory.mktemp("predictions") / "predictions.parquet"
    predictions.write(path)
    assert_same(Predictions.read(path), predictions)


def test_a_label_named_like_a_column_keeps_its_own_scores(tmp_path: Path, predictions: Predictions) -> None:
    predictions.write(tmp_path / "p.parquet")
    table = pq.read_table(tmp_path / "p.parquet")
    assert table["id"].to_pylist() == list(predictions.ids)
    np.testing.assert_array_equal(table["p/id"].to_numpy(), predictions.probabilities[:, 0])
    assert_same(Predictions.read(tmp_path / "p.parquet"), predictions)


def damaged(path: Path, kind: str) -> None:
    if kind == "another table":
        pq.write_table(pa.table({"text": ["a"], "score": [0.5]}), path)
    elif kind == "scores without ids":
        pq.write_table(pa.table({"p/joy": pa.array([0.5], pa.float32())}), path)
    elif kind == "no metadata":
        columns = {"id": ["a"], "labels": pa.array([[0]], pa.list_(pa.int32())), "p/joy": pa.array([0.5], pa.float32())}
        pq.write_table(pa.table(columns), path)
    elif kind == "text":
        path.write_text("id,labels\n")
    elif kind == "cut":
        Predictions(("joy",), ["a"], np.ones((1, 1), bool), np.ones((1, 1), np.float32), "test", "openvino-fp32", "d").write(
            path
        )
        path.write_bytes(path.read_bytes()[:-20])
    elif kind == "empty":
        path.touch()


@pytest.mark.fault("data-truncated-file")
@pytest.mark.parametrize("kind", ["missing", "empty", "text", "cut", "another table", "scores without ids", "no metadata"])
def test_another_file_is_a_named_error(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "predictions.parquet"
    damaged(path, kind)
    with pytest.raises(DataError, match=r"predictions\.parquet is not a Predictions file: run `goemotions evaluate` again"):
        Predictions.read(path)


def test_the_table_of_predictions_holds_what_the_parquet_holds(tmp_path: Path, predictions: Predictions) -> None:
    evaluate.write_split(tmp_path, predictions, {})
    with (tmp_path / "predictions.csv").open(newline="", encoding="utf-8") as file:
        header, *rows = list(csv.reader(file))
    assert header == ["id", "labels", "predicted", *predictions.names]
    assert [row[0] for row in rows] == list(predictions.ids)
    for row, labels, scores in zip(rows, predictions.labels, predictions.probabilities, strict=True):
        named = [
            [name for name, flag in zip(predictions.names, flags, strict=True) if flag] for flags in (labels, scores >= 0.5)
        ]
        assert row[1:3] == ["|".join(named[0]), "|".join(named[1])]
        assert [float(cell) for cell in row[3:]] == pytest.approx(scores, abs=5e-7)


def test_the_table_of_labels_holds_the_metrics_at_one_half(tmp_path: Path, predictions: Predictions) -> None:
    evaluate.write_split(tmp_path, predictions, {})
    with (tmp_path / "per_label.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["label"] for row in rows] == list(predictions.names)
    for i, row in enumerate(rows):
        truth, scores = predictions.labels[:, i], predictions.probabilities[:, i]
        assert int(row["support"]) == truth.sum()
        assert float(row["f1"]) == pytest.approx(f1_score(truth, scores >= 0.5))
        assert float(row["auc"]) == pytest.approx(roc_auc_score(truth, scores))


@pytest.mark.fault("data-unseen-label")
def test_a_label_that_never_occurs_has_an_empty_auc(tmp_path: Path, predictions: Predictions) -> None:
    labels = predictions.labels.copy()
    labels[:, 1] = False
    evaluate.write_split(tmp_path, replace(predictions, labels=labels), {})
    with (tmp_path / "per_label.csv").open(newline="", encoding="utf-8") as file:
        row = list(csv.DictReader(file))[1]
    assert (row["support"], row["f1"], row["auc"]) == ("0", "0.0", "")


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("variant", sorted(ENGINES))
def test_a_scored_split_holds_every_row_of_the_data(candidate: Path, dataset: Path, variant: str, split: str) -> None:
    splits, info = load_dataset(dataset)
    scored_split = Predictions.read(candidate / variant / split / FILE)
    assert (scored_split.split, scored_split.profile, scored_split.digest) == (split, "minilm", info["digest"])
    assert list(scored_split.names) == info["labels"]
    assert list(scored_split.ids) == splits[split]["id"][:]
    np.testing.assert_array_equal(scored_split.labels, Taxonomy(scored_split.names).multi_hot(splits[split]["labels"][:]))


@pytest.mark.parametrize("variant", sorted(ENGINES))
def test_a_scored_split_names_the_engine_that_was_used(candidate: Path, variant: str) -> None:
    on_cpu = {"gpu": Computation("openvino-fp32", "cpu", "fp32"), "cpu": Computation("openvino-int8", "cpu", "int8")}
    on_gpu = {**on_cpu, "gpu": Computation("torch", "cuda", "bf16")}
    used = Predictions.read(candidate / variant / "validation").computation
    assert used == (on_gpu if torch.cuda.is_available() else on_cpu)[variant]
    assert thresholds.read(candidate / variant / "thresholds" / thresholds.FILE).engine == used.engine


@pytest.mark.parametrize("variant", sorted(ENGINES))
def test_the_scores_are_those_of_the_engine(candidate: Path, dataset: Path, variant: str) -> None:
    engine_name = ENGINES[variant]
    folder = candidate / ("onnx" if engine_name in engine_names.FILES else "model")
    engine = engines.load(engine_name, folder, TextEncoder.load(candidate / "model"))
    expected, _ = engines.score(engine, load_dataset(dataset)[0]["test"]["text"][:])
    scored_split = Predictions.read(candidate / variant / "test" / FILE)
    np.testing.assert_allclose(scored_split.probabilities, expected, atol=1e-6)


@pytest.mark.parametrize("variant", sorted(ENGINES))
def test_the_metrics_of_a_split_are_those_of_scikit_learn(candidate: Path, variant: str) -> None:
    for split in SPLITS:
        folder = candidate / variant / split
        scored_split = Predictions.read(folder / FILE)
        values = json.loads((folder / METRICS_FILE).read_text(encoding="utf-8"))
        assert {name.partition("/")[0] for name in values} == {split}
        expected = roc_auc_score(scored_split.labels, scored_split.probabilities, average="micro")
        assert values[f"{split}/auc_micro"] == pytest.approx(expected)
        assert values[f"{split}/f1_macro"] == pytest.approx(
            f1_score(scored_split.labels, scored_split.probabilities >= 0.5, average="macro", zero_division=0)
        )
        assert values[f"{split}/truncated"] == 0


def test_an_unknown_engine_is_a_named_error(dataset: Path, candidate: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="there is no engine 'tensorrt': choose from torch, openvino-fp32, openvino-int8"):
        evaluate.evaluate(dataset, candidate / "model", candidate / "onnx", "tensorrt", {"test": tmp_path / "out"})
    assert not (tmp_path / "out").exists()


def test_thresholds_are_never_fitted_on_test(candidate: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="thresholds are fitted on validation, not on test: pass the validation Predictions"):
        tuning.tune(candidate / "cpu" / "test", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_thresholds_record_what_they_were_fitted_on(tmp_path: Path, predictions: Predictions) -> None:
    evaluate.write_split(tmp_path / "validation", predictions, {})
    content = tuning.tune(tmp_path / "validation", tmp_path / "out")
    assert thresholds.read(tmp_path / "out" / "thresholds.json") == content
    assert (content.split, content.engine, content.digest) == ("validation", "openvino-fp32", "d1")
    assert content.names == predictions.names
    assert (content.thresholds, content.comparison) == cross_fitting.choose(predictions.labels, predictions.probabilities)
    stored = json.loads((tmp_path / "out" / "thresholds.json").read_text(encoding="utf-8"))
    cross_fitted = {row["strategy"]: row["f1_macro_cross_fitted"] for row in stored["comparison"]}
    assert stored["f1_macro_cross_fitted"] == cross_fitted[stored["strategy"]]


def test_metrics_depend_on_the_thresholds(predictions: Predictions) -> None:
    never = thresholds.Thresholds("global-tuned", (1.5,) * 3)
    values = evaluate.compute_metrics(predictions, never)
    assert values["validation/labels_ever_predicted"] == values["validation/f1_macro"] == 0
    assert values["validation/auc_micro"] == pytest.approx(
        roc_auc_score(predictions.labels, predictions.probabilities, average="micro")
    )
