"""Splits that a source lacks: drawn from train, by label sets and by text, the same rows for the same seed."""

import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from goemotions.data.dataset import DatasetInfo, ingest, load_dataset
from goemotions.data.text import normalized
from goemotions.errors import DataError

NAMES = ("calm", "dread", "glee", "rare")
SPLITS = ("train", "validation", "test")


def row(text: str, labels: list[str]) -> dict[str, Any]:
    return {"text": text, "labels": labels}


def many(count: int) -> list[dict[str, Any]]:
    """Rows with label sets of very different sizes; every fifth text is repeated in another spelling."""
    generator = random.Random(3)
    sets = [["calm"]] * 12 + [["dread"]] * 5 + [["calm", "dread"]] * 2 + [["glee"]]
    rows = [row(f"text {number}", generator.choice(sets)) for number in range(count)]
    return (
        rows + [row(f"Text {number}!", rows[number]["labels"]) for number in range(0, count, 5)] + [row("only one", ["rare"])]
    )


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(item) + "\n" for item in rows))
    return path


def split(tmp_path: Path, rows: list[dict[str, Any]], **options: Any) -> tuple[DatasetInfo, dict[str, list[str]]]:
    info = ingest(str(write(tmp_path / "comments.jsonl", rows)), tmp_path / "dataset", **options)
    read = load_dataset(tmp_path / "dataset")[0]
    return info, {name: read[name]["text"][:] for name in SPLITS}


def test_one_file_is_split_and_the_split_is_recorded(tmp_path: Path) -> None:
    info, texts = split(tmp_path, many(1000))
    assert info["drawn"] == {"splits": ["validation", "test"], "share": 0.1, "seed": 0}
    assert sum(info["rows"].values()) == 1201
    assert info["rows"]["validation"] == pytest.approx(120, abs=2)
    assert info["rows"]["test"] == pytest.approx(120, abs=2)
    assert Counter(texts["train"] + texts["validation"] + texts["test"]) == Counter(item["text"] for item in many(1000))


def test_each_label_set_has_its_share_in_every_split(tmp_path: Path) -> None:
    split(tmp_path, many(2000))
    read = load_dataset(tmp_path / "dataset")[0]
    counts = {name: Counter(map(tuple, read[name]["labels"][:])) for name in SPLITS}
    for labels in ((0,), (1,), (0, 1), (2,)):
        total = sum(count[labels] for count in counts.values())
        assert counts["validation"][labels] == pytest.approx(total / 10, abs=4)
        assert counts["test"][labels] == pytest.approx(total / 10, abs=4)
    assert counts["train"][3,] == 1


def test_each_label_is_learned_from_however_small_the_share_of_train(tmp_path: Path) -> None:
    rows = [row(f"{name} {number}", [name]) for name in NAMES for number in range(2)]
    info, _ = split(tmp_path, rows, split_share=0.4)
    assert info["labels_absent_from_train"] == []


def test_no_text_is_in_two_splits(tmp_path: Path) -> None:
    info, texts = split(tmp_path, many(500))
    places = Counter(form for name in SPLITS for form in {normalized(text) for text in texts[name]})
    assert set(places.values()) == {1}
    assert info["leakage"] == {name: {"exact": 0, "normalized": 0} for name in SPLITS[1:]}


def test_the_same_seed_draws_the_same_rows_and_another_seed_others(tmp_path: Path) -> None:
    first, texts = split(tmp_path, many(300))
    assert split(tmp_path, many(300))[0]["digest"] == first["digest"]
    assert first["digest"].startswith("7644ababea21")
    other, others = split(tmp_path, many(300), split_seed=1)
    assert other["digest"] != first["digest"]
    assert set(others["test"]) != set(texts["test"])
    assert other["rows"]["test"] == pytest.approx(first["rows"]["test"], abs=2)


def test_train_and_test_alone_get_a_validation_split(tmp_path: Path) -> None:
    rows = many(300)
    write(tmp_path / "mine" / "train.jsonl", rows)
    write(tmp_path / "mine" / "test.jsonl", [row(f"other {number}", ["calm"]) for number in range(7)])
    info = ingest(str(tmp_path / "mine"), tmp_path / "dataset", split_share=0.2)
    assert info["drawn"]["splits"] == ["validation"]
    assert info["rows"]["test"] == 7
    assert info["rows"]["validation"] == pytest.approx(len(rows) / 5, abs=2)


@pytest.mark.fault("data-incomplete")
@pytest.mark.parametrize(
    ("count", "options", "message"),
    [
        (1, {}, r"comments.jsonl: 3 rows are too few to draw validation from: add rows, or a file for validation"),
        (30, {"split_share": 0.5}, r"split_share=0.5 for each of 2 splits leaves nothing for train"),
    ],
)
def test_a_split_that_cannot_be_drawn_is_a_named_error(tmp_path: Path, count: int, options: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        split(tmp_path, many(count), **options)
