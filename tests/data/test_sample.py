"""The shipped sample: enough rows of each label, no text twice, and no repeated phrase that a model could memorize."""

import re
from collections import Counter
from pathlib import Path

import pytest

from goemotions.data.dataset import ingest, load_dataset
from goemotions.data.sources import SPLITS
from goemotions.data.text import normalized

FEWEST = {"train": 40, "validation": 10, "test": 10}


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sample") / "dataset"
    ingest("sample", folder)
    return folder


@pytest.fixture(scope="module")
def texts(sample: Path) -> list[str]:
    return [text for split in load_dataset(sample)[0].values() for text in split["text"]]


def test_the_sample_has_28_labels_and_neutral_is_the_last(sample: Path) -> None:
    info = load_dataset(sample)[1]
    assert len(info["labels"]) == 28
    assert info["labels"] == [*sorted(info["labels"][:27]), "neutral"]


@pytest.mark.parametrize(("split", "fewest"), FEWEST.items())
def test_every_label_has_enough_rows(sample: Path, split: str, fewest: int) -> None:
    counts = load_dataset(sample)[1]["label_counts"][split]
    assert {label: count for label, count in counts.items() if count < fewest} == {}


@pytest.mark.parametrize("split", SPLITS)
def test_about_one_row_in_six_has_two_labels_or_more(sample: Path, split: str) -> None:
    labels = load_dataset(sample)[0][split]["labels"]
    assert 0.12 <= sum(len(row) > 1 for row in labels) / len(labels) <= 0.22


def test_every_row_is_usable(sample: Path) -> None:
    assert load_dataset(sample)[1]["quarantined"] == {"train": {}, "validation": {}, "test": {}}


def test_no_text_is_repeated(texts: list[str]) -> None:
    repeated = [text for text, count in Counter(map(normalized, texts)).items() if count > 1]
    assert repeated == []


def test_no_five_words_are_in_more_than_one_percent_of_the_rows(texts: list[str]) -> None:
    rows = Counter[tuple[str, ...]]()
    for text in texts:
        words = re.findall(r"\w+", text.casefold())
        rows.update({tuple(words[start : start + 5]) for start in range(len(words) - 4)})
    assert [words for words, count in rows.items() if count > 0.01 * len(texts)] == []
