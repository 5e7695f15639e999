"""Traffic and references: what is counted of texts and scores, and how it is stored."""

import json
from pathlib import Path

import numpy as np
import pytest

from goemotions.data.dataset import ingest
from goemotions.data.text import SCRIPTS, count_words, script
from goemotions.errors import DataError
from goemotions.evaluation import reference, traffic
from goemotions.evaluation.predictions import Predictions
from goemotions.evaluation.reference import Reference
from goemotions.evaluation.traffic import FEATURES, SCORE_BINS, Traffic, features_of
from goemotions.metrics import cross_fitting, strategies, thresholds
from goemotions.metrics.expected import expected_quality
from goemotions.metrics.sorted_scores import SortedScores
from goemotions.metrics.thresholds import Thresholds
from goemotions.models.tokenizer import TextEncoder
from goemotions.registry import bundle

NAMES = ("calm", "dread")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("the lake", "latin"),
        ("déjà vu ’", "latin"),
        ("ok привет как дела", "cyrillic"),
        ("你好, hi", "latin"),
        ("你好吗 hi", "cjk"),
        ("ไทย", "thai"),
        ("ⴰⵣⵓⵍ", "other"),
        ("😀 123 …", "none"),
        ("", "none"),
    ],
)
def test_the_script_of_a_text_is_that_of_most_of_its_letters(text: str, expected: str) -> None:
    assert script(text) == expected


def test_features_are_counted_once_per_text(model_folder: Path) -> None:
    encoder = TextEncoder.load(model_folder)
    texts = ["lake", "storm " * 400, "Ω lake Ж the", "a a a a a a a a a a"]
    features = features_of(encoder, texts)
    assert set(features) == set(FEATURES)
    assert {name: counts.sum() for name, counts in features.items()} == dict.fromkeys(FEATURES, len(texts))
    assert all(len(counts) == len(FEATURES[name]) for name, counts in features.items())
    assert features["truncated"].tolist() == [3, 1]
    assert features["tokens"][[0, 2]].tolist() == [1, 1]
    # Half of the tokens of one text are unknown.
    assert features["unknown_tokens"].tolist() == [3, 0, 0, 1]
    assert features["script"][SCRIPTS.index("latin")] == 4


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("we saw\u00a0a storm", 4),
        ("\u4eca\u5929\u5929\u6c14\u5f88\u597d", 6),
        ("\u0e09\u0e31\u0e19\u0e23\u0e31\u0e01", 4),
        ("\u304b\u3099\u304d\u3099 \uff76\uff9e", 3),
        ("\u0f56\u0f7c\u0f51\u0f0b\u0f66\u0f90\u0f51\u0f0b", 2),
        ("\u12a0\u12ed\u1361\u12c8\u12f5", 2),
    ],
)
def test_words_are_counted_alike_by_drift_the_dataset_and_slices(
    model_folder: Path, text: str, words: int, tmp_path: Path
) -> None:
    """Blanks would make one word of a text in Chinese, and all of its tokens tokens of that word."""
    encoder = TextEncoder.load(model_folder)
    (own,) = traffic.measure(encoder, [text], encoder.encode([text]))
    assert own[1] == count_words(text) == words
    source = tmp_path / "rows.csv"
    source.write_text("text,labels\n" + "".join(f"{text} {row},joy\n" for row in range(20)), encoding="utf-8")
    info = ingest(str(source), tmp_path / "dataset")
    assert {info["words"][split]["max"] for split in info["words"]} == {words + 1}


def test_counts_of_batches_add_up_to_those_of_all_texts() -> None:
    probabilities = np.random.default_rng(1).random((90, 2)).astype(np.float32) ** 3
    fitted = Thresholds("per-label", (0.2, 0.6))
    whole = Traffic.of(NAMES, probabilities, fitted)
    parts = [Traffic.of(NAMES, part, fitted) for part in np.split(probabilities, [1, 30])]
    added = parts[0] + parts[1] + parts[2]
    assert added.rows == whole.rows == 90
    assert added.scores.tolist() == whole.scores.tolist()
    assert whole.scores.sum(axis=1).tolist() == [90, 90]
    assert added.predicted.tolist() == fitted.apply(probabilities).sum(axis=0).tolist()
    expected = expected_quality(added.predicted, added.predicted_sum, added.total_sum).f1
    assert expected == pytest.approx(expected_quality(whole.predicted, whole.predicted_sum, whole.total_sum).f1)


def test_a_score_at_an_upper_bound_is_in_its_bin() -> None:
    scores = np.array([[0.002, 0.0], [0.7, 0.70001]], dtype=np.float32)
    counted = Traffic.of(NAMES, scores, strategies.fixed(SortedScores.of(np.zeros((2, 2), dtype=bool), scores))).scores
    bins = {name: [SCORE_BINS[number] for number in np.flatnonzero(row)] for name, row in zip(NAMES, counted, strict=True)}
    assert bins == {"calm": ["0.002", "0.7"], "dread": ["0.002", "inf"]}


def test_a_bundle_has_the_reference_of_validation_at_its_thresholds(candidate: Path, whole: Path) -> None:
    loaded = bundle.load(whole)
    assert loaded.reference is not None
    predictions = Predictions.read(whole / "validation.parquet")
    predicted = loaded.thresholds.apply(predictions.probabilities).sum(axis=0)
    assert loaded.reference.traffic.predicted.tolist() == predicted.tolist()
    assert loaded.reference.traffic.names == predictions.names
    assert loaded.reference.traffic.features["tokens"].sum() == len(predictions.ids)
    chosen = thresholds.read(whole / thresholds.FILE).chosen
    assert np.mean(loaded.reference.f1) == pytest.approx(min(chosen.cross_fitted["f1_macro"], chosen.f1_macro_fitted))
    evaluated = reference.parse((candidate / "cpu" / "validation" / reference.FILE).read_bytes())
    assert evaluated.strategy == "global-0.5"
    assert evaluated.traffic.total_sum.tolist() == loaded.reference.traffic.total_sum.tolist()


def test_counts_with_other_bins_are_left_out(tmp_path: Path) -> None:
    features = {name: np.arange(len(bins)) % 4 for name, bins in FEATURES.items()}
    content = Traffic.of(NAMES, np.full((3, 2), 0.5), Thresholds("global-0.5", (0.5, 0.5)), features).to_json()
    content["features"]["tokens"] = {"10": 3}
    content["labels"]["calm"]["scores"] = {"0.5": 3}
    read = Traffic.from_json(json.loads(json.dumps(content)))
    assert set(read.features) == set(FEATURES) - {"tokens"}
    assert read.scores.sum(axis=1).tolist() == [0, 3]
    assert read.predicted.tolist() == [3, 3]


@pytest.mark.parametrize("stored", [b"", b"[]", b'{"traffic": {"rows": 1}}', b'{"traffic": {"rows": 1, "labels": {"a": {}}}}'])
def test_a_damaged_reference_is_a_named_error(stored: bytes) -> None:
    with pytest.raises(DataError, match=r"reference\.json is damaged: register the model again"):
        reference.parse(stored)


@pytest.mark.fault("stored-json-hostile")
@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("traffic", "labels", "calm", "predicted"), {}),
        (("traffic", "features", "script", "cjk"), 1e30),
        (("traffic", "features", "script", "cjk"), -1),
        (("traffic", "labels", "calm", "predicted"), -1),
        (("traffic", "labels", "calm", "predicted"), 10**6),
        (("traffic", "labels", "calm", "predicted_sum"), "nan"),
        (("traffic", "labels", "calm", "total_sum"), 1e300),
        (("traffic", "labels", "calm", "scores", "0.002"), -1),
        (("traffic", "rows"), "50"),
        (("f1", "calm"), "nan"),
        (("f1", "calm"), 7),
        (("engine",), [1]),
    ],
    ids=str,
)
def test_a_count_that_there_cannot_be_is_a_named_error(whole: Path, path: tuple[str, ...], value: object) -> None:
    """With it, drift would not be tested, or always seen."""
    content = place = json.loads((whole / reference.FILE).read_text())
    for name in path[:-1]:
        place = place[name]
    place[path[-1]] = value
    stored = json.dumps(content).encode()
    with pytest.raises(DataError, match=r"reference\.json is damaged: register the model again"):
        reference.parse(stored)


def test_the_measured_f1_of_a_reference_is_that_of_rows_that_its_thresholds_were_not_fitted_on() -> None:
    """Scores that say nothing about the labels: thresholds of each label's own find some of the rows that they are fitted on."""
    generator = np.random.default_rng(0)
    names = tuple(f"l{number}" for number in range(20))
    labels, scores = generator.random((300, 20)) < 0.03, generator.random((300, 20)).astype(np.float32)
    validation = Predictions(names, [str(row) for row in range(300)], labels, scores, "validation", "torch", "d1")
    fitted, results = cross_fitting.choose(labels, scores, "per-label")
    (row,) = (one for one in results if one.thresholds == fitted)
    measured = np.mean(Reference.of(validation, fitted, {}).f1)
    assert measured == pytest.approx(row.cross_fitted["f1_macro"])
    assert measured < row.f1_macro_fitted - 0.03


def test_a_reference_is_read_as_it_was_written(tmp_path: Path) -> None:
    random = np.random.default_rng(2)
    predictions = Predictions(
        NAMES, list("abc"), random.random((3, 2)) > 0.5, random.random((3, 2)), "validation", "torch", "d1"
    )
    written = Reference.of(predictions, Thresholds("per-label", (0.3, 0.4)), {})
    written.write(tmp_path / reference.FILE)
    read = reference.parse((tmp_path / reference.FILE).read_bytes())
    assert read.traffic.to_json() == written.traffic.to_json()
    assert (read.f1, read.strategy, read.engine, read.digest) == (written.f1, "per-label", "torch", "d1")
