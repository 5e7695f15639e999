"""Slices, counterfactuals, words and limits: measured from the scored splits that evaluate writes."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from sklearn.metrics import f1_score

from goemotions.data.dataset import load_dataset
from goemotions.evaluation import counterfactuals, limitations, slices, words
from goemotions.evaluation.predictions import Predictions
from goemotions.metrics import strategies, thresholds
from goemotions.metrics.sorted_scores import SortedScores
from goemotions.metrics.thresholds import Thresholds
from goemotions.models import engines
from goemotions.models.tokenizer import TextEncoder
from tests.support.bundles import assemble


@pytest.fixture(scope="module")
def folder(candidate: Path) -> Path:
    return candidate / "cpu" / "test"


@pytest.fixture(scope="module")
def predictions(folder: Path) -> Predictions:
    return Predictions.read(folder)


@pytest.fixture(scope="module")
def fitted(candidate: Path) -> Thresholds:
    return thresholds.read(candidate / "cpu" / "thresholds" / thresholds.FILE).thresholds


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "we saw [NAME] there?",
            {"words": "1 to 5", "script": "latin", "emoji": "no", "masked names": "yes", "question marks": "yes"},
        ),
        ("\u043c\u044b \u0442\u0430\u043c", {"words": "1 to 5", "script": "cyrillic", "emoji": "no"}),
        ("\u4eca\u5929\u5929\u6c14\u5f88\u597d\u5417\uff1f", {"words": "6 to 10", "script": "cjk", "question marks": "yes"}),
        ("\u0e09\u0e31\u0e19\u0e23\u0e31\u0e01\u0e04\u0e38\u0e13\u0e21\u0e32\u0e01", {"words": "6 to 10", "script": "thai"}),
        (
            "\u0647\u0644 \u0623\u0646\u062a \u0647\u0646\u0627\u061f",
            {"words": "1 to 5", "script": "arabic", "question marks": "yes"},
        ),
        ("\N{GRINNING FACE} " * 30, {"words": "21 or more", "script": "none", "emoji": "yes", "question marks": "no"}),
    ],
)
def test_a_text_is_in_one_slice_of_each_kind(text: str, expected: dict[str, str]) -> None:
    matching = {kind: find(text) for kind, find in slices.SLICES.items()}
    assert matching | expected == matching


def test_evaluate_stores_the_slice_of_each_row_without_its_text(folder: Path, predictions: Predictions, dataset: Path) -> None:
    texts = load_dataset(dataset, ["test"])[0]["test"]["text"][:]
    assert slices.read(folder)["words"] == [slices.SLICES["words"](text) for text in texts]
    stored = (folder / slices.FILE).read_text() + (folder / slices.PER_SLICE).read_text()
    stored += str(pq.read_table(folder / counterfactuals.FILE).to_pylist())
    assert not any(text in stored for text in texts if len(text.split()) > 2)


def test_the_metrics_of_a_slice_are_those_of_scikit_learn(folder: Path, predictions: Predictions, fitted: Thresholds) -> None:
    of_slices = slices.read(folder)
    rows = slices.measure(predictions, fitted, of_slices)
    assert rows[0]["slice"] == "all texts"
    assert {row["kind"] for row in rows} == {"all", "words"}
    assert sum(row["texts"] for row in rows if row["kind"] == "words") == rows[0]["texts"] == len(predictions.ids)
    for row in rows[1:]:
        inside = np.array([value == row["slice"] for value in of_slices["words"]])
        predicted = fitted.apply(predictions.probabilities)[inside]
        expected = f1_score(predictions.labels[inside], predicted, average="micro", zero_division=0)
        assert row["f1_micro"] == pytest.approx(expected)
        assert row["f1_low"] <= row["f1_micro"] <= row["f1_high"]
        assert row["difference_low"] <= row["f1_micro"] - rows[0]["f1_micro"] <= row["difference_high"]


@pytest.mark.parametrize(
    ("group", "text", "swapped"),
    [
        ("gender", "He saw his mother, she saw him.", "She saw her father, he saw her."),
        ("gender", "I met her and her brother", "I met him and his sister"),
        ("gender", "the theme of HIS song", "the theme of HER song"),
        ("religion", "a Muslim and a hindu", "a Jewish and a buddhist"),
        ("orientation", "the bisexual author", "the gay author"),
        ("age", "no term here", "no term here"),
        ("nationality", "an American or a Brazilian", "a Mexican or an American"),
    ],
)
def test_terms_of_a_group_are_swapped(group: str, text: str, swapped: str) -> None:
    assert counterfactuals.swap(text, counterfactuals.TERMS[group], pronouns=group == "gender") == swapped


def test_each_group_is_measured_in_neutral_sentences_and_in_texts() -> None:
    swapped = list(counterfactuals.pairs(["he left", "nothing", "an old table"]))
    assert {pair.group for pair in swapped if pair.row < 0} == set(counterfactuals.TERMS)
    assert [(pair.group, pair.row, pair.after) for pair in swapped if pair.row >= 0] == [
        ("gender", 0, "she left"),
        ("age", 2, "a young table"),
    ]
    assert any(pair.before == "I met two American people on the train today." for pair in swapped)
    assert all(pair.before != pair.after for pair in swapped)
    assert len({frozenset((pair.before, pair.after)) for pair in swapped}) == len(swapped)


def test_a_model_that_ignores_the_terms_is_unchanged_and_one_that_reads_them_is_not() -> None:
    names = tuple(f"label {number}" for number in range(2))
    before = np.tile(np.array([[0.9, 0.1]], dtype=np.float32), (40, 1))
    after = before.copy()
    after[:10, 1] = 0.6
    at_half = strategies.fixed(SortedScores.of(before > 0.5, before))
    scored = {"age": (before, before), "gender": (before, after)}
    same, other = counterfactuals.measure(scored, at_half, names)
    assert (same.decisions.value, same.difference) == (0, (0, 0, 0))
    # None of 40 changed: up to a twelfth may do so (Wilson).
    assert same.decisions[1:] == pytest.approx((0, 0.0876), abs=1e-4)
    assert other.decisions.value == pytest.approx(0.25)
    assert other.decisions.low < 0.25 < other.decisions.high
    assert other.most == "label 1"
    assert other.by_label["label 1"].value == pytest.approx(0.125)
    assert [list(change.flips.values()) for change in (same, other)] == [[0, 0], [0, 10]]


def test_the_word_that_determines_a_label_speaks_for_it(dataset: Path, candidate: Path, fitted: Thresholds) -> None:
    scored = Predictions.read(candidate / "cpu" / "validation")
    texts = load_dataset(dataset, ["validation"])[0]["validation"]["text"][:]
    engine = engines.load("openvino-int8", candidate / "onnx", TextEncoder.load(candidate / "model"), threads=1)
    measured = words.measure(engine, texts, scored.labels, scored.labels, scored.names)
    assert measured
    assert measured.fall > measured.random_fall
    assert measured.explained <= len(texts)
    cues = {"calm": "lake", "dread": "storm", "glee": "balloon", "longing": "harbour", "pity": "sparrow", "scorn": "gravel"}
    assert len({(row["label"], row["word"]) for row in measured.rows} & set(cues.items())) >= 4
    assert all(row["texts"] >= words.LEAST_TEXTS for row in measured.rows)
    assert words.measure(engine, texts, scored.labels, ~scored.labels, scored.names) is None


def test_limits_name_weak_labels_and_weak_slices(folder: Path, predictions: Predictions, fitted: Thresholds) -> None:
    sentences = limitations.sentences(predictions, fitted, folder)
    assert sentences[0] == limitations.ALWAYS
    assert not set(limitations.ABOUT_GOEMOTIONS) & set(sentences)
    few = [name for name, count in zip(predictions.names, predictions.labels.sum(axis=0), strict=True) if count < 30]
    assert any("Fewer than 30 test rows" in line and all(name in line for name in few) for line in sentences)
    assert any("names changes its labels" in line for line in sentences)
    named = Predictions(
        tuple(sorted(limitations.GOEMOTIONS)),
        predictions.ids,
        np.hstack([predictions.labels, predictions.labels[:, :1]]),
        np.hstack([predictions.probabilities, predictions.probabilities[:, :1]]),
        *("test", "openvino-int8", "d"),
    )
    about = limitations.sentences(named, strategies.fixed(SortedScores.of(named.labels, named.probabilities)), Path("none"))
    assert set(limitations.ABOUT_GOEMOTIONS) <= set(about)


@pytest.mark.parametrize(
    ("text", "script"),
    [
        ("\u4eca\u5929\u5929\u6c14\u5f88\u597d", "that of Chinese"),
        ("man kann das nicht so sagen", "Latin"),
        ("C'est son temple, il est mexican", "Latin"),
        ("He dicho que no, y he visto al king", "Latin"),
    ],
)
def test_english_terms_are_not_swapped_in_texts_of_another_language(
    candidate: Path, folder: Path, predictions: Predictions, fitted: Thresholds, tmp_path: Path, text: str, script: str
) -> None:
    """What neutral English sentences show says nothing about a model of other texts, and their own words are no terms."""
    engine = engines.load("openvino-int8", candidate / "onnx", TextEncoder.load(candidate / "model"), threads=1)
    texts = [text] * len(predictions.ids)
    path = tmp_path / counterfactuals.FILE
    counterfactuals.write(path, engine, texts, predictions.probabilities, predictions.names)
    slices.write(tmp_path / slices.FILE, predictions.ids, texts)
    assert not path.exists()
    listed = limitations.sentences(predictions, fitted, tmp_path)
    assert any(one.startswith(f"Not for other scripts than {script}: 0 of 80 test texts have one.") for one in listed)
    assert any("the group of people that a text names was not measured" in one for one in listed)
    assert not any("was not measured" in one for one in limitations.sentences(predictions, fitted, folder))


def test_a_limit_of_many_labels_names_the_worst_of_them(folder: Path) -> None:
    scored = Predictions.read(folder)
    names = tuple(f"a long label about subject {number:02}" for number in range(60))
    labels, probabilities = (np.tile(array[:, :1], 60) for array in (scored.labels, scored.probabilities))
    labels[:, 7] = labels[:, 41] = False
    labels[:2, 41] = True
    many = Predictions(names, scored.ids, labels, probabilities, "test", "openvino-int8", "d")
    sentences = limitations.sentences(many, strategies.fixed(SortedScores.of(labels, probabilities)), Path("none"))
    rare = next(line for line in sentences if "Fewer than 30" in line)
    assert "subject 07 (0), a long label about subject 41 (2), " in rare
    assert "and 50 more" in rare
    assert max(map(len, sentences)) < 600


def test_a_bundle_has_metrics_per_slice_and_limits_and_one_of_former_splits_has_not(
    whole: Path, candidate: Path, tmp_path: Path
) -> None:
    with (whole / "test_per_slice.csv").open() as file:
        assert next(csv.DictReader(file))["slice"] == "all texts"
    assert f"- {limitations.ALWAYS}" in (whole / "README.md").read_text()
    former = tmp_path / "former"
    shutil.copytree(candidate, former)
    for path in former.rglob("*"):
        if path.name in (slices.FILE, slices.PER_SLICE, counterfactuals.FILE):
            path.unlink()
    assemble(tmp_path / "bundle", former)
    assert not list((tmp_path / "bundle").glob("*per_slice.csv"))
    assert limitations.ALWAYS in (tmp_path / "bundle" / "README.md").read_text()
