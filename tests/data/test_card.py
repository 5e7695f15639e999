"""Folders as the hub has them, with a card that says which files are which split: cloned, in a bucket, or read from a hub."""

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pytest

from goemotions.data import card
from goemotions.data.dataset import ingest, load_dataset
from goemotions.errors import DataError
from goemotions.storage import store
from tests.data.test_formats import csv_of, frame, hugging_face, joined, parquet

NAMES = ("calm", "dread", "glee")
SPLITS = {
    split: [(f"{split}, text {number}", [NAMES[number % 3]]) for number in range(rows)]
    for split, rows in (("train", 12), ("validation", 3), ("test", 4))
}
CONFIGS = """
configs:
- config_name: raw
  data_files:
  - split: train
    path: raw/train-*
- config_name: simplified
  default: true
  data_files:
  - split: train
    path: simplified/train-*
  - split: validation
    path: [simplified/test-*]
  - split: test
    path: simplified/validation-*
"""


def repository(folder: Path, head: str, **files: str) -> Path:
    """A folder with a card of this head, and for splits of ``SPLITS`` files, given by the beginnings of their names."""
    folder.mkdir()
    (folder / "README.md").write_text(f"---\nlicense: mit\n{head}\n---\n\n# A data set\n", encoding="utf-8")
    for split, name in files.items():
        path = folder / f"{name}-00000-of-00001.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(hugging_face(SPLITS[split], NAMES))
    return folder


def texts(folder: Path) -> dict[str, list[str]]:
    return {split: rows["text"][:] for split, rows in load_dataset(folder)[0].items()}


def of(*splits: str) -> dict[str, list[str]]:
    return {name: [text for text, _ in SPLITS[split]] for name, split in zip(SPLITS, splits, strict=True)}


@pytest.fixture
def cloned(tmp_path: Path) -> Path:
    """Two configurations; of the default one, the files of validation and test have each other's names."""
    folder = repository(
        tmp_path / "cloned",
        CONFIGS,
        train="simplified/train",
        validation="simplified/test",
        test="simplified/validation",
    )
    (folder / "raw").mkdir()
    (folder / "raw" / "train-00000-of-00001.parquet").write_bytes(hugging_face([("raw", ["calm"])], NAMES))
    return folder


@pytest.mark.fault("data-card")
def test_the_splits_are_those_of_the_card_and_as_the_library_of_the_hub_reads_them(cloned: Path, tmp_path: Path) -> None:
    ingest(str(cloned), tmp_path / "dataset")
    assert texts(tmp_path / "dataset") == of(*SPLITS)
    theirs = datasets.load_dataset(str(cloned), cache_dir=str(tmp_path / "cache"))
    assert {split: rows["text"][:] for split, rows in theirs.items()} == texts(tmp_path / "dataset")


@pytest.mark.fault("data-card")
def test_a_card_in_a_bucket_counts_too(cloned: Path, bucket: str, tmp_path: Path) -> None:
    store.put(cloned, f"{bucket}cloned/")
    ingest(f"{bucket}cloned/", tmp_path / "dataset")
    assert texts(tmp_path / "dataset") == of(*SPLITS)


@pytest.mark.fault("data-card")
def test_a_card_in_a_zip_of_a_repository_counts_too(cloned: Path, tmp_path: Path) -> None:
    (tmp_path / "zipped").mkdir()
    cloned.rename(tmp_path / "zipped" / "repository-main")
    zipped = shutil.make_archive(str(tmp_path / "repository"), "zip", tmp_path / "zipped")
    ingest(zipped, tmp_path / "dataset")
    assert texts(tmp_path / "dataset") == of(*SPLITS)


@pytest.mark.fault("data-card")
def test_the_card_in_a_cache_of_the_hub_counts_too(cloned: Path, tmp_path: Path) -> None:
    """As the hub's library lays a data set out below ``~/.cache/huggingface/hub``."""
    cache = tmp_path / "datasets--a--b"
    (cache / "refs").mkdir(parents=True)
    (cache / "refs" / "main").write_text("0123abcd")
    for number, path in enumerate(path for path in cloned.rglob("*") if path.is_file()):
        blob, link = cache / "blobs" / str(number), cache / "snapshots" / "0123abcd" / path.relative_to(cloned)
        blob.parent.mkdir(exist_ok=True)
        link.parent.mkdir(parents=True, exist_ok=True)
        path.rename(blob)
        link.symlink_to(blob)
    ingest(str(cache), tmp_path / "dataset")
    assert texts(tmp_path / "dataset") == of(*SPLITS)


@pytest.mark.fault("data-card")
@pytest.mark.parametrize("default", ["True", "yes", "'true'"])
def test_a_default_configuration_may_be_written_as_yaml_allows(cloned: Path, tmp_path: Path, default: str) -> None:
    readme = cloned / "README.md"
    readme.write_text(readme.read_text().replace("default: true", f"default: {default}"))
    ingest(str(cloned), tmp_path / "dataset")
    assert texts(tmp_path / "dataset") == of(*SPLITS)


@pytest.mark.fault("data-card")
def test_a_file_in_place_of_the_head_of_the_card_counts(cloned: Path, tmp_path: Path) -> None:
    (cloned / "README.md").write_text("# A data set\n")
    (cloned / ".huggingface.yaml").write_text(CONFIGS)
    ingest(str(cloned), tmp_path / "dataset")
    assert texts(tmp_path / "dataset") == of(*SPLITS)


def test_a_configuration_of_the_hub_is_chosen_by_its_name(cloned: Path) -> None:
    chosen = card.read(cloned, "hub:a/b:raw", "raw").layout
    assert chosen is not None
    assert {split: [str(path.relative_to(cloned)) for path in paths] for split, paths in chosen.files.items()} == {
        "train": ["raw/train-00000-of-00001.parquet"]
    }


LABEL_NAMES = """
dataset_info:
  features:
  - name: text
    dtype: string
  - name: labels
    sequence:
      class_label:
        names:
          '0': zeal
          '1': calm
"""
LINES = "".join(json.dumps({"text": f"text {number}", "labels": [number % 2]}) + "\n" for number in range(4))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("train.csv", "text,labels\ntext 0,0\ntext 1,1\ntext 2,zeal\ntext 3,[1]\n"),
        ("train.jsonl", LINES),
        ("train.tsv", "text\tlabels\ntext 0\t0\ntext 1\t1\ntext 2\t0\ntext 3\t1\n"),
    ],
)
def test_names_of_labels_in_the_card_are_those_of_text_files_too(tmp_path: Path, name: str, content: str) -> None:
    folder = repository(tmp_path / "source", LABEL_NAMES)
    for split in SPLITS:
        (folder / name.replace("train", split)).write_text(content)
    assert ingest(str(folder), tmp_path / "dataset")["labels"] == ["zeal", "calm"]
    assert load_dataset(tmp_path / "dataset")[0]["train"]["labels"][:] == [[0], [1], [0], [1]]
    # Names that are listed beside the files say what their numbers mean.
    (folder / "emotions.txt").write_text("calm\nzeal\n")
    assert ingest(str(folder), tmp_path / "dataset")["labels"] == ["calm", "zeal"]


def test_a_number_that_may_be_a_name_of_the_card_is_a_named_error(tmp_path: Path) -> None:
    folder = repository(tmp_path / "source", LABEL_NAMES.replace("zeal", "1").replace("calm", "2"))
    (folder / "train.csv").write_text("text,labels\ntext 0,1\n")
    with pytest.raises(
        DataError, match=r"train.csv, line 2: '1' is the number of a label or a name: write names that are no n"
    ):
        ingest(str(folder), tmp_path / "dataset")


def test_names_of_labels_are_read_from_the_card_if_the_files_have_none(tmp_path: Path) -> None:
    folder = repository(tmp_path / "source", LABEL_NAMES)
    for split in SPLITS:
        rows = pa.table({"text": [f"{split} {number}" for number in range(4)], "labels": [[0], [1], [0, 1], [1]]})
        (folder / f"{split}.parquet").write_bytes(parquet(rows))
    assert ingest(str(folder), tmp_path / "dataset")["labels"] == ["zeal", "calm"]


@pytest.mark.parametrize(
    "head",
    [
        "",
        "configs: none",
        "configs:\n- config_name: default",
        "configs:\n- config_name: default\n  data_dir: .",
        "configs:\n- config_name: default\n  data_files: 'data/*'" + "\n  - [",
        "a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]\nwhen: 2020-01-01\n",
    ],
    ids=["none", "no list", "no files", "a folder", "no YAML", "aliases"],
)
def test_a_card_that_names_no_files_leaves_the_splits_to_their_names(tmp_path: Path, head: str) -> None:
    folder = repository(tmp_path / "source", head, **{split: f"data/{split}" for split in SPLITS})
    ingest(str(folder), tmp_path / "dataset")
    assert texts(tmp_path / "dataset") == of(*SPLITS)


def test_a_configuration_in_a_folder_is_read_by_names_there(tmp_path: Path) -> None:
    head = "configs:\n- config_name: a\n  default: true\n  data_dir: first\n- config_name: b\n  data_dir: second"
    folder = repository(tmp_path / "source", head, **{split: f"first/{split}" for split in SPLITS})
    (folder / "second").mkdir()
    (folder / "second" / "train.csv").write_bytes(csv_of(frame(SPLITS["train"], labels=joined(SPLITS["train"], ","))))
    ingest(str(folder), tmp_path / "dataset")
    assert texts(tmp_path / "dataset") == of(*SPLITS)


def files(*pairs: tuple[str, str]) -> str:
    listed = "".join(f"\n  - split: {split}\n    path: '{path}'" for split, path in pairs)
    return f"configs:\n- config_name: default\n  data_files:{listed}"


BOMB = "x: &x [a, a, a, a, a, a, a, a]\n" + "".join(
    f"x{n}: &x{n} [{', '.join([f'*x{n - 1}' if n else '*x'] * 8)}]\n" for n in range(12)
)
REFUSED: dict[str, tuple[str, str]] = {
    "several configurations": (
        "configs:\n- config_name: a\n  data_files: 'a/*'\n- config_name: b\n  data_files: 'b/*'",
        r"has the configurations a, b by its README\.md: name one",
    ),
    "a parent": (files(("train", "../other/*.parquet")), r"README\.md names files elsewhere"),
    "an absolute path": (files(("train", "/etc/*")), r"README\.md names files elsewhere"),
    "a network": (files(("train", "https://127.0.0.1/train.csv")), r"README\.md names files elsewhere"),
    "a folder elsewhere": ("configs:\n- config_name: a\n  data_dir: ../other", r"README\.md names files elsewhere"),
    "no such file": (files(("train", "no/train-*")), r"'no/train-\*' is train, and no file of rows is there"),
    "no pattern": (files(("train", "**.parquet")), r"'\*\*\.parquet' is train, and no file of rows is there"),
    "an empty pattern": (files(("train", "")), "'' is train, and no file of rows is there"),
    "no path": ("configs:\n- config_name: a\n  data_files:\n  - split: train", "are no paths by split"),
    "a path for two splits": (files(("train", "data/*"), ("test", "data/test-*")), r"test-.* is in two splits"),
    "a split of two names": (files(("train", "data/train-*"), ("dev", "data/v*"), ("val", "data/v*")), "dev and val are both"),
    "no train split": (files(("test", "data/test-*")), "has no train split, but test"),
    "a split that may be another one": (
        files(("train", "data/train-*"), ("eval", "data/v*")),
        "eval may be the validation or the test split",
    ),
    "billions of words": (BOMB + "configs:\n- config_name: a\n  data_dir: *x11", r"README\.md names files elsewhere"),
}


@pytest.mark.fault("data-card")
@pytest.mark.parametrize(("head", "message"), REFUSED.values(), ids=REFUSED)
def test_a_card_that_cannot_be_followed_is_a_named_error(tmp_path: Path, head: str, message: str) -> None:
    folder = repository(tmp_path / "source", head, **{split: f"data/{split}" for split in SPLITS})
    with pytest.raises(DataError, match=message) as raised:
        ingest(str(folder), tmp_path / "dataset")
    assert len(str(raised.value)) < 1000


def test_splits_of_the_card_that_are_not_read_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    listed: Any = [(split, f"data/{split}-*") for split in SPLITS]
    folder = repository(tmp_path / "source", files(*listed, ("unlabelled", "more/*")), **{s: f"data/{s}" for s in SPLITS})
    (folder / "more").mkdir()
    (folder / "more" / "a.csv").write_bytes(b"text\na\n")
    with caplog.at_level(logging.INFO, logger="goemotions.data.layout"):
        ingest(str(folder), tmp_path / "dataset")
    assert "not read, since their names are no splits: unlabelled" in caplog.text
