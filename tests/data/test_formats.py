"""Formats that people have: each is read without a flag where it has one reading, and refused with both readings where it has two."""

import gzip
import io
import json
import logging
import os
import re
import stat
import warnings
import zipfile
from collections.abc import Callable, Iterable
from decimal import Decimal
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from goemotions.data.dataset import DatasetInfo, ingest, load_dataset
from goemotions.errors import DataError, StorageError
from goemotions.storage import store

NAMES = ("calm", "dread", "glee")
ROWS = [("a quiet lake", ["calm"]), ('a "storm", near the lake', ["calm", "dread"]), ("two red\tballoons", ["glee"])]
PLAIN = [(text.replace("\t", " "), labels) for text, labels in ROWS]
Written = dict[str, bytes]


def frame(rows: list[tuple[str, list[str]]], **columns: Any) -> pd.DataFrame:
    return pd.DataFrame({"text": [text for text, _ in rows], **columns})


def joined(rows: list[tuple[str, list[str]]], mark: str) -> list[str]:
    return [mark.join(labels) for _, labels in rows]


def numbers(rows: list[tuple[str, list[str]]]) -> list[list[int]]:
    return [[NAMES.index(label) for label in labels] for _, labels in rows]


def flags(rows: list[tuple[str, list[str]]]) -> dict[str, list[int]]:
    return {name: [int(name in labels) for _, labels in rows] for name in NAMES}


def csv_of(table: pd.DataFrame, sep: str = ",", **options: Any) -> bytes:
    text: str = table.to_csv(sep=sep, index=False, **options)
    return text.encode()


def json_lines(rows: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def zipped(files: Written) -> bytes:
    return archived(files.items())


def archived(files: Iterable[tuple[str | zipfile.ZipInfo, bytes]]) -> bytes:
    """A zip, of which names may be there twice."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive, warnings.catch_warnings(action="ignore"):
        for name, content in files:
            archive.writestr(name, content)
    return buffer.getvalue()


def link(name: str) -> zipfile.ZipInfo:
    """The entry of a symbolic link, as `zip -y` writes it."""
    entry = zipfile.ZipInfo(name)
    entry.external_attr = (stat.S_IFLNK | 0o777) << 16
    return entry


def parquet(table: pa.Table) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    return buffer.getvalue()


def arrow_file(table: pa.Table, most_rows: int | None = None, compression: str | None = None) -> bytes:
    """As `pyarrow.feather.write_feather` writes it, too."""
    buffer = io.BytesIO()
    with pa.ipc.new_file(buffer, table.schema, options=pa.ipc.IpcWriteOptions(compression=compression)) as writer:
        writer.write_table(table, most_rows)
    return buffer.getvalue()


def class_labels(rows: list[tuple[str, list[str]]], names: tuple[str, ...]) -> datasets.Dataset:
    """Rows as the datasets library has them, their label numbers in the order of these names."""
    features = datasets.Features(text=datasets.Value("string"), labels=datasets.List(datasets.ClassLabel(names=list(names))))
    columns = {"text": [text for text, _ in rows], "labels": [labels for _, labels in rows]}
    return datasets.Dataset.from_dict(columns, features=features)


def hugging_face(rows: list[tuple[str, list[str]]], names: tuple[str, ...]) -> bytes:
    buffer = io.BytesIO()
    class_labels(rows, names).to_parquet(buffer)
    return buffer.getvalue()


def class_label_flags(rows: list[tuple[str, list[str]]], names: list[str]) -> bytes:
    """One ClassLabel column per label, whose 0 and 1 have these names."""
    columns: dict[str, list[Any]] = flags(rows)
    features = datasets.Features(text=datasets.Value("string")) | {name: datasets.ClassLabel(names=names) for name in columns}
    data = datasets.Dataset.from_dict({"text": [text for text, _ in rows], **columns}, features=datasets.Features(features))
    buffer = io.BytesIO()
    data.to_parquet(buffer)
    return buffer.getvalue()


LISTED = "\n".join(NAMES).encode()
BY_NAME = csv_of(frame(ROWS, labels=joined(ROWS, ",")))
ONE_PER_LABEL = frame(ROWS, **flags(ROWS))
OBJECTS = [{"text": text, "labels": labels} for text, labels in ROWS]
RATED = {"author": ["x", "y", "z"], "subreddit": ["s"] * 3, "link_id": ["l"] * 3, "parent_id": ["p"] * 3}
RATED |= {"created_utc": [1.5e9] * 3, "example_very_unclear": [False] * 3}
UNKNOWN_NAMES = b"0\n1\n2\n"

FORMATS: dict[str, Written] = {
    "one ClassLabel column per label": {"train.parquet": class_label_flags(ROWS, ["no", "yes"])},
    "names, comma": {"train.csv": BY_NAME},
    "names, |": {"train.csv": csv_of(frame(ROWS, labels=joined(ROWS, "|")))},
    "names, ;": {"train.csv": csv_of(frame(ROWS, labels=joined(ROWS, ";")))},
    "names, separated by a comma and a space": {"train.csv": csv_of(frame(ROWS, labels=joined(ROWS, ", ")))},
    "CSV of another delimiter": {"train.csv": csv_of(frame(ROWS, labels=joined(ROWS, ",")), ";")},
    "CSV separated by tabs": {"train.csv": csv_of(frame(ROWS, labels=joined(ROWS, ",")), "\t")},
    "lists as Python writes them": {"train.csv": csv_of(frame(ROWS, labels=[labels for _, labels in ROWS]))},
    "lists as NumPy writes them": {"train.csv": csv_of(frame(ROWS, labels=[str(np.array(labels)) for _, labels in ROWS]))},
    "lists of strings of NumPy": {
        "train.csv": csv_of(
            frame(ROWS, labels=[f"[{', '.join(f'np.str_({name!r})' for name in labels)}]" for _, labels in ROWS])
        )
    },
    "lists as Python 2 writes them": {
        "train.csv": csv_of(frame(ROWS, labels=[f"[{', '.join(f'u{name!r}' for name in labels)}]" for _, labels in ROWS]))
    },
    "lists as JSON": {"train.csv": csv_of(frame(ROWS, labels=[json.dumps(labels) for _, labels in ROWS]))},
    "numbers in lists": {"train.csv": csv_of(frame(ROWS, labels=numbers(ROWS))), "emotions.txt": LISTED},
    "numbers as NumPy writes them": {
        "train.csv": csv_of(frame(ROWS, labels=["[0]", "[0 1]", "[2]"])),
        "emotions.txt": LISTED,
    },
    "CSV of Excel with a line break in the name of a column": {
        "train.csv": csv_of(pd.DataFrame({"who\r\n(name)": "ann", **frame(ROWS, labels=joined(ROWS, ","))}), ";")
    },
    "flags of float as NumPy writes them": {
        "train.csv": csv_of(frame(ROWS, labels=["[1. 0. 0.]", "[1. 1. 0.]", "[0. 0. 1.]"])),
        "emotions.txt": LISTED,
    },
    "numbers, comma": {"train.csv": csv_of(frame(ROWS, labels=["0", "0,1", "2"])), "emotions.txt": LISTED},
    "names that are listed": {"train.csv": BY_NAME, "emotions.txt": LISTED},
    "TSV of pandas with quoted cells": {"train.tsv": csv_of(frame(ROWS, labels=joined(ROWS, ",")), "\t")},
    "TSV of pandas without a header": {
        "train.tsv": csv_of(frame(ROWS, labels=["0", "0,1", "2"], id=[1, 2, 3]), "\t", header=False),
        "emotions.txt": LISTED,
    },
    "TSV of csv.QUOTE_ALL": {"train.tsv": csv_of(frame(ROWS, labels=joined(ROWS, ",")), "\t", quoting=1)},
    "columns of 0 and 1": {"train.csv": csv_of(ONE_PER_LABEL)},
    "columns of 0 and 1 in another order": {
        "train.csv": csv_of(ONE_PER_LABEL[["glee", "text", "calm", "dread"]]),
        "emotions.txt": LISTED,
    },
    "columns of true and false": {
        "train.csv": csv_of(frame(ROWS, **{k: [bool(v) for v in vs] for k, vs in flags(ROWS).items()}))
    },
    "columns of the raw GoEmotions files": {"train.csv": csv_of(frame(ROWS, id=[1, 2, 3], **RATED, **flags(ROWS)))},
    "columns in Parquet": {"train.parquet": parquet(pa.Table.from_pandas(ONE_PER_LABEL))},
    "an Arrow file": {"train.arrow": arrow_file(pa.table({"text": [t for t, _ in ROWS], "labels": [ls for _, ls in ROWS]}))},
    "an Arrow file in batches, with dictionaries": {
        "train.arrow": arrow_file(
            pa.table({"text": pa.array([t for t, _ in ROWS]).dictionary_encode(), "labels": joined(ROWS, "|")}), most_rows=2
        )
    },
    "Feather": {
        "train.feather": arrow_file(
            pa.table({"text": [t for t, _ in ROWS], "labels": [ls for _, ls in ROWS]}), compression="lz4"
        )
    },
    "columns in JSON Lines": {"train.jsonl": json_lines(ONE_PER_LABEL.to_dict("records"))},
    "JSON Lines": {"train.jsonl": json_lines(OBJECTS)},
    "JSON Lines called .json": {"train.json": json_lines(OBJECTS)},
    "JSON Lines, names separated": {
        "train.ndjson": json_lines([{**row, "labels": "|".join(row["labels"])} for row in OBJECTS])
    },
    "a list of 0 and 1": {
        "train.jsonl": json_lines([{"text": t, "labels": [int(n in ls) for n in NAMES]} for t, ls in ROWS]),
        "emotions.txt": LISTED,
    },
    "CSV, gzip": {"train.csv.gz": gzip.compress(BY_NAME)},
    "CSV, zst": {"train.csv.zst": pa.compress(BY_NAME, codec="zstd", asbytes=True)},
    "CSV, zip": {"train.csv.zip": zipped({"anything.csv": BY_NAME})},
    "JSON Lines, gzip": {"train.jsonl.gz": gzip.compress(json_lines(OBJECTS))},
    "CSV, zip of a Mac": {
        "train.csv.zip": zipped({"anything.csv": BY_NAME, "__MACOSX/._anything.csv": b"x", ".DS_Store": b"x"})
    },
    "names with spaces around": {
        "train.csv": BY_NAME.replace(b"text,labels", b" text , labels "),
        "emotions.txt": b"calm \ndread\n glee\n",
    },
    "texts as bytes": {
        "train.parquet": parquet(
            pa.table({"text": [t.encode() for t, _ in ROWS], "labels": pa.array([ls for _, ls in ROWS], pa.list_(pa.string()))})
        )
    },
    "texts and labels as bytes": {
        "train.parquet": parquet(
            pa.table({"text": [t.encode() for t, _ in ROWS], "labels": [label.encode() for label in joined(ROWS, ",")]})
        )
    },
    "columns of decimals, as Snowflake writes whole numbers": {
        "train.parquet": parquet(
            pa.table(
                {
                    "TEXT": [t for t, _ in ROWS],
                    **{name: pa.array(map(Decimal, values), pa.decimal128(38, 0)) for name, values in flags(ROWS).items()},
                }
            )
        )
    },
    "lists of decimals": {
        "train.parquet": parquet(
            pa.table(
                {
                    "text": [t for t, _ in ROWS],
                    "labels": pa.array([[*map(Decimal, row)] for row in numbers(ROWS)], pa.list_(pa.decimal128(38, 0))),
                }
            )
        ),
        "emotions.txt": LISTED,
    },
    "views and dictionaries of Arrow": {
        "train.parquet": parquet(
            pa.table(
                {
                    "text": pa.array([t for t, _ in ROWS], pa.string_view()),
                    "labels": pa.array(joined(ROWS, ","), pa.large_string()).dictionary_encode(),
                }
            )
        )
    },
    "files of the system and an index": {
        "train.csv": frame(ROWS, labels=joined(ROWS, ",")).to_csv().encode(),
        ".DS_Store": b"x",
        "._train.csv": b"x",
        "Thumbs.db": b"x",
        "README.md": b"x",
    },
    "capitals": {"TRAIN.CSV": BY_NAME.replace(b"text,labels", b"Text,Labels")},
    "names in Parquet": {"train.parquet": parquet(pa.table({"text": [t for t, _ in ROWS], "labels": [ls for _, ls in ROWS]}))},
    "Hugging Face, as it was written once": {"data/train-00000-of-00001-2a1df75c6bce91ab.parquet": hugging_face(ROWS, NAMES)},
    "Hugging Face": {"data/train-00000-of-00001.parquet": hugging_face(ROWS, NAMES)},
    "Hugging Face, other order than listed": {"train.parquet": hugging_face(ROWS, NAMES[::-1]), "emotions.txt": LISTED},
    "a folder of parts": {
        "train/part-00000-f3.csv": csv_of(frame(ROWS[:2], labels=joined(ROWS[:2], "|"))),
        "train/part-00001-f3.csv": csv_of(frame(ROWS[2:], labels=joined(ROWS[2:], "|"))),
        "train/_SUCCESS": b"",
        "train/.part-00000-f3.csv.crc": b"\0",
    },
    "Spark": {
        "train.parquet/part-00000-f3.c000.snappy.parquet": parquet(pa.table({"text": [ROWS[0][0]], "labels": [ROWS[0][1]]})),
        "train.parquet/part-00001-f3.c000.snappy.parquet": parquet(
            pa.table({"text": [text for text, _ in ROWS[1:]], "labels": [labels for _, labels in ROWS[1:]]})
        ),
        "train.parquet/_SUCCESS": b"",
    },
    "names with a prefix": {"goemotions_train.csv": BY_NAME},
    "names with an ending": {"train_data.csv": BY_NAME},
    "Excel's line with the delimiter": {
        "train.csv": b"sep=;\r\n" + frame(ROWS, labels=joined(ROWS, ",")).to_csv(sep=";").encode()
    },
    "numbered files": {f"train_{n}.jsonl": json_lines([row]) for n, row in zip((1, 2, 10), OBJECTS, strict=True)},
    "a folder per split": {"split=train/a.jsonl": json_lines(OBJECTS)},
    "a JSON array, as pandas, doccano and Label Studio write it": {"train.json": json.dumps(OBJECTS).encode()},
    "JSON-MIN of Label Studio": {
        "train.json": json.dumps([{"text": t, "labels": {"choices": ls} if len(ls) > 1 else ls[0]} for t, ls in ROWS]).encode()
    },
    "CSV of Label Studio": {
        "train.csv": csv_of(frame(ROWS, labels=[json.dumps({"choices": ls}) if len(ls) > 1 else ls[0] for _, ls in ROWS]))
    },
    "a JSON array of a line per object": {"train.json.gz": gzip.compress(json.dumps(OBJECTS, indent=1).encode())},
    "a JSON array with a byte order mark": {
        "train.json": b"\xef\xbb\xbf \n" + json.dumps(OBJECTS, indent=None).encode() + b"\n"
    },
    "below one folder": {"simplified/train.csv": BY_NAME, "simplified/validation.csv": BY_NAME, "simplified/test.csv": BY_NAME},
}


def source(folder: Path, files: Written) -> Path:
    """A source with these files; the other splits are copies of train, unless they are given."""
    for split in ("dev", "test"):
        if not any(split in name or (split == "dev" and "valid" in name) for name in files):
            files = files | {
                re.sub("(?i)train", split, name): content for name, content in files.items() if "train" in name.lower()
            }
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def ingested(tmp_path: Path, files: Written, **options: Any) -> DatasetInfo:
    return ingest(str(source(tmp_path / "source", files)), tmp_path / "dataset", **options)


def named(folder: Path, split: str = "train") -> list[tuple[str, list[str]]]:
    """The rows of a Dataset with their labels by name."""
    read = load_dataset(folder)[0][split]
    return [(row["text"], [read.features["labels"].feature.int2str(label) for label in row["labels"]]) for row in read]


@pytest.mark.parametrize("files", FORMATS.values(), ids=FORMATS)
def test_every_format_has_the_same_rows(tmp_path: Path, files: Written) -> None:
    info = ingested(tmp_path, files)
    assert named(tmp_path / "dataset") == ROWS
    assert info["labels"] == list(NAMES)


def test_one_line_says_what_was_taken(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="goemotions"):
        info = ingested(tmp_path, {"train.csv": csv_of(frame(ROWS, labels=joined(ROWS, "|")), ";")})
    assert info["form"] == (
        "train.csv, dev.csv, test.csv (CSV separated by ';'): texts from column 'text', "
        "label names in column 'labels', ids made from position and text"
    )
    assert f"{tmp_path / 'source'}: {info['form']}" in caplog.messages
    assert load_dataset(tmp_path / "dataset")[1]["form"] == info["form"]


ARCHIVES: dict[str, Written] = {
    "splits": {f"{split}.csv": BY_NAME for split in ("train", "dev", "test")},
    "splits in a folder, with files of a Mac": {
        "data/train.csv": BY_NAME,
        "data/dev.csv": BY_NAME,
        "data/test.csv": BY_NAME,
        "__MACOSX/data/._train.csv": b"x",
        "data/.DS_Store": b"x",
    },
    "label names beside": {f"{split}.csv": csv_of(frame(ROWS, labels=numbers(ROWS))) for split in ("train", "dev", "test")}
    | {"emotions.txt": LISTED},
}


@pytest.mark.parametrize("files", ARCHIVES.values(), ids=ARCHIVES)
def test_a_zip_of_several_files_is_a_source(tmp_path: Path, files: Written) -> None:
    (tmp_path / "data.zip").write_bytes(zipped(files))
    ingest(str(tmp_path / "data.zip"), tmp_path / "dataset")
    assert named(tmp_path / "dataset") == ROWS


UNPACKED: dict[str, tuple[bytes, str]] = {
    "encrypted": (
        zipped({"train.csv": BY_NAME, "dev.csv": BY_NAME}).replace(b"PK\1\2\x14\3\x14\0\0", b"PK\1\2\x14\3\x14\0\1"),
        "is encrypted",
    ),
    "a file that leaves the folder": (zipped({"../train.csv": BY_NAME}), "which would leave its folder"),
    "cut": (zipped(ARCHIVES["splits"])[:-40], "is not a complete zip file"),
    "a bomb": (zipped({"train.csv": b"a" * 2**28}), "expands to more than 200 times its size"),
    "nothing": (zipped({}), "has no train split"),
    "one name twice": (
        archived([("train.csv", BY_NAME), ("train.csv", b"text,labels\na,calm\n")]),
        r"holds 'train.csv', which cannot be unpacked \(File exists\): .*remove it if it is there twice",
    ),
    "a file that is a folder": (
        zipped({"train.csv": BY_NAME, "train.csv/a.csv": BY_NAME}),
        r"holds 'train.csv/a.csv', which cannot be",
    ),
    "a long name": (zipped({"a" * 300 + ".csv": BY_NAME}), r"holds 'a+', which cannot be unpacked \(File name too long\)"),
    "no name": (zipped({".": BY_NAME}), r"holds '.', which cannot be unpacked"),
    "a link": (archived([(link("train.csv"), b"/etc/hostname")]), r"holds a link, 'train.csv': write the file that it names"),
}


@pytest.mark.parametrize(("content", "message"), UNPACKED.values(), ids=UNPACKED)
@pytest.mark.fault("data-bomb")
def test_a_zip_that_cannot_be_unpacked_is_a_named_error(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "data.zip").write_bytes(content)
    with pytest.raises(DataError, match=rf"data.zip.*{message}"):
        ingest(str(tmp_path / "data.zip"), tmp_path / "dataset")
    assert not (tmp_path / "train.csv").exists()


def test_linked_folders_are_read_and_files_that_are_no_splits_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = source(tmp_path / "source", {"test.csv": BY_NAME, "train.csv": BY_NAME, "train (1).csv": BY_NAME})
    (folder / "dev.csv").unlink()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "a.csv").write_bytes(csv_of(frame(ROWS[:2], labels=joined(ROWS[:2], ","))))
    (folder / "validation").symlink_to(tmp_path / "elsewhere")
    (folder / "again").symlink_to(folder)
    with caplog.at_level(logging.INFO, logger="goemotions.data.layout"):
        info = ingest(str(folder), tmp_path / "dataset")
    assert info["rows"] == {"train": 3, "validation": 2, "test": 3}
    assert "not read, since their names are no splits: dev (1).csv, train (1).csv" in caplog.text


def test_an_object_of_a_bucket_is_a_source(tmp_path: Path, bucket: str) -> None:
    rows = "text,labels\n" + "".join(f"a lake {n},{n % 2}\n" for n in range(20))
    written = {"mine.csv": rows.encode(), "mine.zip": zipped(ARCHIVES["splits"]), "emotions.txt": b"calm\ndread\nglee"}
    for name, content in written.items():
        store.write_new(bucket, name, content)
    assert ingest(f"{bucket}mine.csv", tmp_path / "dataset")["rows"] == {"train": 16, "validation": 2, "test": 2}
    assert named(tmp_path / "dataset")[:2] == [("a lake 0", ["calm"]), ("a lake 1", ["dread"])]
    ingest(f"{bucket}mine.zip", tmp_path / "dataset")
    assert named(tmp_path / "dataset") == ROWS
    with pytest.raises(StorageError, match=r"other.csv holds no file"):
        ingest(f"{bucket}other.csv", tmp_path / "dataset")


def test_columns_of_other_names_are_parameters(tmp_path: Path) -> None:
    others = {f"{split}.csv": b"Comment,mood,text\nsome lake,calm,no\n" for split in ("dev", "test")}
    files = {"train.csv": csv_of(frame(ROWS, mood=joined(ROWS, "|")).rename(columns={"text": "comment"})), **others}
    ingested(tmp_path, files, text_column="comment", labels_column="mood")
    assert named(tmp_path / "dataset") == ROWS


def test_a_file_without_a_header_has_numbers_as_columns(tmp_path: Path) -> None:
    content = csv_of(frame(ROWS, labels=joined(ROWS, "|")), header=False)
    ingested(tmp_path, {"train.csv": content, "dev.csv": content, "test.csv": content}, text_column="0", labels_column="1")
    assert named(tmp_path / "dataset") == ROWS


@pytest.mark.parametrize("mark", [";", "|", "\t"])
def test_a_file_without_a_header_may_have_another_delimiter(tmp_path: Path, mark: str) -> None:
    """As Kaggle's emotions, ``text;label`` per line, some of whose texts have a comma."""
    rows = [("a quiet lake", ["calm"]), ("a storm, near the lake", ["dread"]), ("two balloons", ["glee"])]
    content = "".join(f"{text}{mark}{labels[0]}\n" for text, labels in rows).encode()
    ingested(tmp_path, {"train.csv": content, "dev.csv": content, "test.csv": content}, text_column="0", labels_column="1")
    assert named(tmp_path / "dataset") == rows


@pytest.mark.fault("data-ambiguous")
def test_two_delimiters_of_a_file_without_a_header_are_named(tmp_path: Path) -> None:
    content = b"a lake, calm at last;glee\na storm, near the lake;dread\n"
    files = {"train.csv": content, "dev.csv": content, "test.csv": content}
    with pytest.raises(DataError, match=r"train.csv can be separated by ',' or by ';': name the columns .*, or write a line"):
        ingested(tmp_path, files, text_column="0", labels_column="1")
    files = dict.fromkeys(files, b"sep=;\n" + content)
    ingested(tmp_path / "chosen", files, text_column="0", labels_column="1")
    assert named(tmp_path / "chosen" / "dataset") == [("a lake, calm at last", ["glee"]), ("a storm, near the lake", ["dread"])]


NUMBERED = [(f"the bus of {n} past ten", n % 3) for n in range(60)]


@pytest.mark.parametrize(
    ("row", "options"),
    [
        ("{text},{number}", {"text_column": "0", "labels_column": "1"}),
        ("{number},{text}", {"text_column": "1", "labels_column": "0"}),
        # As AG News and Yelp: the class, a title and a text.
        ('"{number}","a title","{text}"', {"text_column": "2", "labels_column": "0"}),
    ],
)
@pytest.mark.fault("data-ambiguous")
def test_a_label_number_in_the_first_row_is_not_the_name_of_a_column(tmp_path: Path, row: str, options: dict[str, str]) -> None:
    for first in range(3):
        rows = [(text, (number + first) % 3) for text, number in NUMBERED]
        content = "".join(row.format(text=text, number=number) + "\n" for text, number in rows).encode()
        folder = tmp_path / str(first)
        ingested(folder, {"train.csv": content, "dev.csv": content, "test.csv": content, "emotions.txt": LISTED}, **options)
        assert named(folder / "dataset") == [(text, [NAMES[number]]) for text, number in rows]


def test_a_flag_in_the_first_row_is_not_the_name_of_a_column(tmp_path: Path) -> None:
    content = "".join(f"{text},{int(n == 1)},{int(n != 1)}\n" for text, n in NUMBERED).encode()
    ingested(tmp_path, {"train.csv": content}, text_column="0", labels_column="1,2")
    assert named(tmp_path / "dataset") == [(text, ["1" if n == 1 else "2"]) for text, n in NUMBERED]


@pytest.mark.parametrize("index", [False, True])
def test_numbers_in_a_header_are_names_of_columns(tmp_path: Path, index: bool) -> None:
    content = pd.DataFrame([[text, NAMES[n]] for text, n in NUMBERED]).to_csv(index=index).encode()
    ingested(tmp_path, {"train.csv": content}, text_column="0", labels_column="1")
    assert named(tmp_path / "dataset") == [(text, [NAMES[n]]) for text, n in NUMBERED]


@pytest.mark.parametrize(("header", "rows"), [("comment,mood", 60), ("text,labels", 6), ("id,comment,mood", 60)])
@pytest.mark.fault("data-ambiguous")
def test_a_header_where_columns_are_given_by_numbers_is_not_a_row(tmp_path: Path, header: str, rows: int) -> None:
    place = header.count(",")
    body = "".join(f"{n}," * (place - 1) + f"{text},{NAMES[n % 3]}\n" for n, (text, _) in enumerate(NUMBERED[:rows]))
    options = {"text_column": str(place - 1), "labels_column": str(place)}
    content = f"{header}\n{body}".encode()
    with pytest.raises(
        DataError, match=r"(train|dev|test).csv, line 1: no other row has the label '(mood|labels)', which may be .* names"
    ):
        ingested(tmp_path, {"train.csv": content}, **options)
    # Without that line, or if the names are listed, there is no doubt.
    assert ingested(tmp_path / "body", {"train.csv": body.encode()}, **options)["labels"] == list(NAMES)
    listed = "\n".join([*NAMES, header.split(",")[-1]]).encode()
    assert ingested(tmp_path / "listed", {"train.csv": content, "emotions.txt": listed}, **options)["rows"]["train"] == rows + 1


def test_a_label_that_only_the_first_row_has_is_read_if_others_are_rare_too(tmp_path: Path) -> None:
    rows = "".join(f"{text},{NAMES[n]}\n" for text, n in NUMBERED)
    (tmp_path / "all.csv").write_text(f"a first row,solitude\na second row,pride\n{rows}", encoding="utf-8")
    ingest(str(tmp_path / "all.csv"), tmp_path / "dataset", text_column="0", labels_column="1")
    assert named(tmp_path / "dataset")[0] == ("a first row", ["solitude"])


def test_the_columns_of_the_labels_can_be_listed(tmp_path: Path) -> None:
    table = csv_of(frame(ROWS, is_reply=[0, 1, 0], **flags(ROWS)))
    files = {"train.csv": table, "dev.csv": table, "test.csv": table}
    listed = ingested(tmp_path, files, labels_column="is_reply,calm,dread,glee")
    assert listed["labels"] == ["is_reply", *NAMES]
    assert ingest(str(tmp_path / "source"), tmp_path / "dataset", labels_column="calm, dread,glee")["labels"] == list(NAMES)
    assert named(tmp_path / "dataset") == ROWS


def test_a_single_column_of_0_and_1_is_a_label_if_emotions_txt_says_so(tmp_path: Path) -> None:
    files = {"train.csv": b"text,author,toxic\na,0,1\nb,1,0\n"}
    with pytest.raises(
        DataError, match=r"list the label names there, .*\(only toxic, if 0 and 1 say whether a text has this label"
    ):
        ingested(tmp_path, files, labels_column="toxic")
    ingested(tmp_path, {**files, "emotions.txt": b"toxic\n"}, labels_column="toxic", unlabelled="keep", max_quarantined=1)
    assert named(tmp_path / "dataset") == [("a", ["toxic"]), ("b", [])]


@pytest.mark.fault("data-ambiguous")
@pytest.mark.parametrize(
    "column", ["is_train", "Is Train", "fold", "kfold2", "weight", "sample_weight", "is_duplicate", "has_url", "label_score"]
)
def test_a_column_of_0_and_1_that_may_be_no_label_is_asked_about(tmp_path: Path, column: str) -> None:
    table = csv_of(frame(ROWS, **flags(ROWS), **{column: [1, 0, 1]}))
    with pytest.raises(DataError, match=f"'{column}' may be labels, or say something else .*such as calm,dread,glee"):
        ingested(tmp_path, {"train.csv": table})
    # Listed beside the files, the labels are certain.
    assert ingested(tmp_path, {"train.csv": table, "emotions.txt": LISTED})["labels"] == list(NAMES)


@pytest.mark.fault("data-ambiguous")
@pytest.mark.parametrize("value", [1, 0.3, True])
def test_a_column_of_one_value_is_no_label(tmp_path: Path, value: Any) -> None:
    table = pd.concat([ONE_PER_LABEL.assign(version=value).astype({"version": object})] * 40)
    with pytest.raises(DataError, match=r"'version' may be labels, or say something else .*such as calm,dread,glee"):
        ingested(tmp_path, {"train.csv": csv_of(table)})


def test_a_column_that_has_another_value_in_a_late_row_is_a_label(tmp_path: Path) -> None:
    table = pd.concat([ONE_PER_LABEL.assign(version=1)] * 400)
    table.iloc[-1, -1] = 0
    assert ingested(tmp_path, {"train.csv": csv_of(table)})["labels"] == [*NAMES, "version"]


@pytest.mark.fault("data-ambiguous")
def test_a_score_beside_columns_of_0_and_1_is_no_label(tmp_path: Path) -> None:
    table = pd.concat([ONE_PER_LABEL] * 40).assign(polarity=[number % 10 / 10 for number in range(120)])
    for name, content in {"train.csv": csv_of(table), "train.parquet": parquet(pa.Table.from_pandas(table))}.items():
        with pytest.raises(DataError, match=r"'polarity' may be labels, or say something else .*such as calm,dread,glee"):
            ingested(tmp_path / name, {name: content})
    # Where all have shares, they are those of raters.
    shares = table.assign(**{name: table[name] * 0.9 for name in NAMES})
    assert ingested(tmp_path / "shares", {"train.csv": csv_of(shares)})["labels"] == [*NAMES, "polarity"]


@pytest.mark.fault("data-ambiguous")
@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_a_label_without_a_value_in_a_row_is_not_left_out(tmp_path: Path, ending: str) -> None:
    table = ONE_PER_LABEL.astype(dict.fromkeys(NAMES, "Int64"))
    table.loc[1, "glee"] = pd.NA
    written = {
        "csv": csv_of(table),
        "jsonl": table.to_json(orient="records", lines=True).encode(),
        "parquet": parquet(pa.Table.from_pandas(table)),
    }
    with pytest.raises(DataError, match=r"line [23]: column 'glee' has 0 or 1 in other rows and no value here: write 0 or 1"):
        ingested(tmp_path, {f"train.{ending}": written[ending]})


def test_a_row_without_any_value_has_no_label(tmp_path: Path) -> None:
    table = csv_of(pd.concat([ONE_PER_LABEL, pd.DataFrame({"text": ["not annotated yet"]})]))
    info = ingested(tmp_path, {"train.csv": table}, max_quarantined=0.5)
    assert info["quarantined"]["train"] == {"no label": 1}
    assert named(tmp_path / "dataset") == ROWS


@pytest.mark.parametrize("form", ["is_{}", "has_{}", "{}_score", "{}"])
def test_columns_that_are_all_called_alike_are_labels(tmp_path: Path, form: str) -> None:
    columns = {form.format(name): cells for name, cells in flags(ROWS).items()}
    info = ingested(tmp_path, {"train.csv": csv_of(frame(ROWS, **columns))})
    assert info["labels"] == list(columns)
    assert f"0 or 1 in 3 columns, {', '.join(columns)}" in info["form"]


@pytest.mark.fault("data-ambiguous")
@pytest.mark.parametrize("file", ["eval.csv", "my_evaluation.csv", "Hold-out.csv", "holdout/part-0.csv", "held_out_set.csv"])
def test_a_file_that_may_be_a_missing_split_is_asked_about(tmp_path: Path, file: str) -> None:
    files = {"train.csv": BY_NAME, "test.csv": BY_NAME, file: BY_NAME, "eval_results.csv": b"model,f1\na,0.5\n"}
    folder = source(tmp_path / "source", files)
    (folder / "dev.csv").unlink()
    with pytest.raises(DataError, match=f"{file} may be the validation or the test split: rename it to the split's name"):
        ingest(str(folder), tmp_path / "dataset")
    (folder / "dev.csv").write_bytes(BY_NAME)
    assert ingest(str(folder), tmp_path / "dataset")["rows"] == {"train": 3, "validation": 3, "test": 3}


@pytest.mark.fault("data-ambiguous")
@pytest.mark.parametrize(
    ("files", "asked"),
    [
        (
            ["2018-E-c-En-train.csv", "2018-E-c-En-dev.csv", "2018-E-c-En-test-gold.csv"],
            "2018-E-c-En-test-gold.csv may be the test",
        ),
        (["train.csv", "validation_set.csv", "test.csv"], "validation_set.csv may be the validation"),
        (["train.csv", "development.csv", "test.csv"], "development.csv may be the validation"),
        (["train.csv", "val.csv", "public_test.csv"], "public_test.csv may be the test"),
    ],
)
def test_a_file_whose_name_has_that_of_a_missing_split_is_asked_about(tmp_path: Path, files: list[str], asked: str) -> None:
    folder = tmp_path / "source"
    folder.mkdir()
    for file in [*files, "latest_news.csv", "values.csv"]:
        (folder / file).write_bytes(BY_NAME)
    with pytest.raises(DataError, match=f"{asked} split: rename it to the split's name, or leave it out"):
        ingest(str(folder), tmp_path / "dataset")


@pytest.mark.fault("data-ambiguous")
@pytest.mark.parametrize("file", ["test.xlsx", "TEST.txt", "dev.csv.bz2", "test.zip", "valid.tar.gz"])
def test_a_missing_split_in_a_format_that_is_not_read_is_named(tmp_path: Path, file: str) -> None:
    (tmp_path / "train.csv").write_bytes(BY_NAME)
    (tmp_path / "requirements-dev.txt").write_bytes(b"pytest\n")
    (tmp_path / file).write_bytes(b"text\tlabels\n")
    with pytest.raises(DataError, match=f"{file} may be the (test|validation) split, and is not of a format that is read: "):
        ingest(str(tmp_path), tmp_path / "dataset")


@pytest.mark.fault("data-ambiguous")
@pytest.mark.parametrize(
    ("column", "values"),
    [
        ("Split", "xyz"),
        ("is_train", (1, 1, 0)),
        ("usage", ("Training", "PublicTest", "PrivateTest")),
        ("set", ("train", "dev", "test")),
        ("part", ("train",) * 3),
    ],
)
def test_a_column_that_says_the_split_of_a_single_file_is_not_ignored(tmp_path: Path, column: str, values: Any) -> None:
    rows = frame(ROWS, labels=joined(ROWS, ","), **{column: [*values]})
    (tmp_path / "a.csv").write_bytes(csv_of(rows))
    with pytest.raises(
        DataError, match=f"a.csv has a column '{column}', and its rows would be split anew: write one file per split"
    ):
        ingest(str(tmp_path / "a.csv"), tmp_path / "dataset")
    # Files whose names say the split may have it.
    assert ingested(tmp_path, {"train.csv": csv_of(rows)})["rows"]["train"] == 3


@pytest.mark.fault("data-ambiguous")
@pytest.mark.parametrize(
    ("column", "values"), [("answer", ("accept", "accept", "reject")), ("Status", ("submitted", "discarded", ""))]
)
def test_rows_that_a_labelling_tool_did_not_accept_are_not_learned_from(tmp_path: Path, column: str, values: Any) -> None:
    """As Prodigy and Argilla export them."""
    table = frame(ROWS, labels=joined(ROWS, ","), **{column: values})
    with pytest.raises(
        DataError, match=f"train.csv, line [34]: '(reject|discarded)' in column '{column}', .*: leave out such rows"
    ):
        ingested(tmp_path, {"train.csv": csv_of(table)})
    table[column] = ["accept", "submitted", "open"]
    assert ingested(tmp_path / "accepted", {"train.csv": csv_of(table)})["rows"]["train"] == 3


def test_the_splits_of_the_folder_itself_are_taken_and_the_others_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="goemotions.data.layout"):
        ingested(tmp_path, FORMATS["names, |"] | {"raw/train.jsonl": b"{}"})
    assert named(tmp_path / "dataset") == ROWS
    assert "its own splits are taken, not those below it (raw)" in caplog.text


def test_one_label_per_row_is_a_label(tmp_path: Path) -> None:
    ingested(tmp_path, dict.fromkeys(("train.csv", "dev.csv", "test.csv"), b"text,label\na lake,calm\na storm,dread\n"))
    assert named(tmp_path / "dataset") == [("a lake", ["calm"]), ("a storm", ["dread"])]


def test_ids_that_restart_in_each_split_are_told_apart(tmp_path: Path) -> None:
    table = csv_of(frame(ROWS, labels=joined(ROWS, "|"), id=[0, 1, 2]))
    ingested(tmp_path, {"train.csv": table, "dev.csv": table, "test.csv": table})
    read = load_dataset(tmp_path / "dataset")[0]
    assert read["train"]["id"][:] == ["train-0", "train-1", "train-2"]
    assert read["test"]["id"][:] == ["test-0", "test-1", "test-2"]


def test_an_id_in_two_splits_is_still_refused(tmp_path: Path) -> None:
    table = csv_of(frame(ROWS, labels=joined(ROWS, "|"), id=[0, 1, 7]))
    with pytest.raises(DataError, match="is in train and in validation"):
        ingested(tmp_path, {"train.csv": table, "dev.csv": table, "test.csv": table})


def test_made_ids_are_the_same_every_time(tmp_path: Path) -> None:
    first = ingested(tmp_path, FORMATS["names, |"])
    ids = load_dataset(tmp_path / "dataset")[0]["train"]["id"][:]
    assert ids[0].startswith("train-1-")
    assert ingest(str(tmp_path / "source"), tmp_path / "again")["digest"] == first["digest"]


def saved_by_datasets(folder: Path) -> None:
    split = class_labels(ROWS, NAMES)
    datasets.DatasetDict({"train": split, "validation": split, "test": split}).save_to_disk(str(folder))


def written_by_ingest(folder: Path) -> None:
    ingest(str(source(folder.with_name("first"), FORMATS["names, |"])), folder)


def mapped_by_datasets(folder: Path) -> None:
    """`datasets` keeps what it computes from a folder in that folder, as further Arrow files."""
    saved_by_datasets(folder)
    for split in datasets.load_from_disk(str(folder)).values():
        split.map(lambda row: {"text": row["text"].upper()})
    assert list(folder.rglob("cache-*.arrow"))


@pytest.mark.parametrize("save", [saved_by_datasets, mapped_by_datasets, written_by_ingest])
def test_a_folder_that_datasets_saved_is_a_source(tmp_path: Path, save: Callable[[Path], None]) -> None:
    save(tmp_path / "saved")
    ingest(str(tmp_path / "saved"), tmp_path / "dataset")
    assert named(tmp_path / "dataset") == ROWS


def test_a_dataset_folder_becomes_the_same_dataset(tmp_path: Path) -> None:
    written_by_ingest(tmp_path / "saved")
    info = ingest(str(tmp_path / "saved"), tmp_path / "dataset")
    assert info["digest"] == load_dataset(tmp_path / "saved")[1]["digest"]


def test_splits_of_hugging_face_files_may_order_their_names_differently(tmp_path: Path) -> None:
    orders = {"train": NAMES, "validation": NAMES[::-1], "test": ("dread", "calm", "glee")}
    files = {f"data/{split}-00000-of-00001.parquet": hugging_face(ROWS, names) for split, names in orders.items()}
    ingested(tmp_path, files)
    assert [named(tmp_path / "dataset", split) for split in orders] == [ROWS] * 3


def both(files: Written, labels: str) -> Written:
    content = json_lines([{"text": f"row {n}", "labels": json.loads(labels)} for n in range(3)])
    return {f"{split}.jsonl": content for split in ("train", "dev", "test")} | files


AMBIGUOUS: dict[str, tuple[Written, str]] = {
    "ClassLabel columns whose 0 is yes": (
        {"train.parquet": class_label_flags(ROWS, ["yes", "no"])},
        "0 in column '.+' is 'yes' by its ClassLabel: write 1 in rows that have the label",
    ),
    "one-hot rows or label numbers": (
        both({"emotions.txt": b"calm\ndread"}, "[1, 0]"),
        r"train.jsonl: every row of column 'labels' can be read as label numbers or as one 0 or 1 per label: write label names",
    ),
    "numbers as names": (
        both({"emotions.txt": b"1\n2\n0"}, '["1"]'),
        r"can be read as label numbers or as label names: emotions.txt has numbers as names; give the labels other names",
    ),
    "two formats": (
        {"train.tsv": b"a\t0\tb\n", "train.parquet": b""},
        r"train.parquet and train.tsv are both the train split: remove one",
    ),
    "compressed and not": ({"train.csv": BY_NAME, "train.csv.gz": b""}, r"train.csv and train.csv.gz are both the train split"),
    "two names": (
        {"dev.csv": BY_NAME, "validation.csv": BY_NAME, "train.csv": BY_NAME},
        r"dev.csv and validation.csv are both the validation",
    ),
    "two prefixes": (
        {"a_train.csv": BY_NAME, "b_train.csv": BY_NAME},
        r"a_train.csv and b_train.csv may both be the train split",
    ),
    "two cases": ({"Train.csv": BY_NAME, "train.csv": BY_NAME}, r"Train.csv and train.csv are both the train split"),
    "a folder and a file": ({"train/a.csv": BY_NAME, "train.csv": BY_NAME}, r"a.csv and train.csv are both the train split"),
    "several configurations": (
        {"raw/train.csv": BY_NAME, "raw/test.csv": BY_NAME, "simplified/train.csv": BY_NAME, "simplified/test.csv": BY_NAME},
        r"holds several data sets \(raw, simplified\): give the folder of one, such as .*/raw",
    ),
    "a file and splits below": (
        {"comments.csv": BY_NAME, "out/train.csv": BY_NAME, "out/test.csv": BY_NAME},
        r"holds comments.csv and the splits in out/: give one of the two as the source",
    ),
    "two columns of labels": (
        {"train.csv": b"text,label,labels\na,b,c\n"},
        r"columns 'labels' and 'label': choose one \(labels_column\)",
    ),
    "two marks": (
        {"train.csv": b'text,labels\na,"calm, mild|glee"\nb,glee\n'},
        r"cells with ',' and '\|', which separate labels or belong to their names: list the names in emotions.txt",
    ),
    "a mark in the only label": (
        {"train.csv": b'text,label\na,"calm, mild"\n'},
        r"cells with ',', which separate labels or belong",
    ),
    "two names joined as doccano does": (
        {"train.csv": b"text,label\na,calm\nb,calm#glee\nc,glee\n"},
        r"train.csv: 'calm#glee' is one label, or 2 that are joined by '#': separate labels by a comma, or list the names",
    ),
    "a name joined as doccano does that is never alone": (
        {"train.csv": b"text,label\na,calm\nb,calm#glee\nc,calm\n"},
        r"train.csv: 'calm#glee' is one label, or 2 that are joined by '#'",
    ),
    "names separated by spaces": (
        {"train.jsonl": json_lines([{"text": t, "labels": " ".join(ls)} for t, ls in [*ROWS, ("a chair", ["dread"])]])},
        r"train.jsonl: 'calm dread' is one label, or 2 that are joined by ' '",
    ),
    "names of a line each": (
        {"train.csv": b'text,labels\na,calm\nb,"calm\ndread\nglee"\nc,glee\nd,dread\n'},
        r"train.csv: 'calm\\ndread\\nglee' is one label, or 3 that are joined by '\\n'",
    ),
    "names of Arabic joined by its comma": (
        {"train.csv": "text,labels\na,\u0641\u0631\u062d\nb,\u0641\u0631\u062d\u060c \u063a\u0636\u0628\n".encode()},
        r"train.csv: '.*' is one label, or 2 that are joined by '\u060c '",
    ),
    "names of Japanese joined by its comma": (
        {"train.csv": "text,labels\na,\u559c\u3073\nb,\u559c\u3073\u3001\u6012\u308a\n".encode()},
        r"is one label, or 2 that are joined by '\u3001'",
    ),
    "names joined by a word": (
        {"train.csv": b"text,labels\na,calm\nb,calm and glee\nc,glee\n"},
        r"train.csv: 'calm and glee' is one label, or 2 that are joined by ' and '",
    ),
    "names joined by an underscore": (
        {"train.csv": b"text,labels\na,calm\nb,calm_glee\nc,glee\n"},
        r"train.csv: 'calm_glee' is one label, or 2 that are joined by '_'",
    ),
    "names in quotes without a list": (
        {"train.csv": b"text,labels\na,'calm'\nb,\"'calm', 'glee'\"\n"},
        r"train.csv: label \"'calm'\" begins with a quote, which is part of the name or quotes it: remove the quotes",
    ),
    "a blank before quotes": (
        {"train.csv": b'text, labels\n"a, that is", "calm"\nb, "glee"\n'},
        r"train.csv: label '\"calm\"' begins with a quote, .*, and blanks before them",
    ),
    "a name that is two names": (
        {"train.csv": b'text,labels\na,"calm,glee"\n', "emotions.txt": b"calm\nglee\ncalm,glee"},
        r"label 'calm,glee' is one label or 2, since emotions.txt has both",
    ),
    "every text in quotes": (
        {"train.tsv": b'"a lake"\t0\ta\n"a storm"\t1\tb\n', "emotions.txt": LISTED},
        r"train.tsv: every text begins and ends with a quote, which is either part of the text or the quoting of CSV",
    ),
    "two names that look the same": (
        {"train.csv": "text,labels\na,caf\u00e9\nb,cafe\u0301\n".encode()},
        r"train.csv: labels 'cafe\\u0301' and 'caf\\xe9' differ only in case, spaces, Unicode form or what is not",
    ),
    "two names but for what is not visible": (
        {"train.csv": "text,labels\na,calm\nb,calm\u200b\n".encode()},
        r"labels 'calm' and 'calm\\u200b' differ only in",
    ),
    "two emoji but for their form": (
        {"train.jsonl": json_lines([{"text": t, "labels": [name]} for t, name in (("a", "\u2764"), ("b", "\u2764\ufe0f"))])},
        r"labels '\\u2764' and '\\u2764\\ufe0f' differ only in",
    ),
    "a missing value of MySQL as a name": (
        {"train.csv": b"text,labels\na,calm\nb,\\N\n"},
        r"train.csv: '\\\\N' is the name of a label or a missing value",
    ),
    "a set as Python shows it": ({"train.csv": b"text,labels\na,\"frozenset({'calm', 'dread'})\"\n"}, r"is not a list"),
    "an array as Spark shows it": ({"train.csv": b'text,labels\na,"WrappedArray(calm, dread)"\n'}, r"is not a list"),
    "names with a mark of their own, separated by spaces": (
        {"train.csv": b"text,labels\na,#calm\nb,#calm #glee\nc,#glee\n"},
        r"'#calm #glee' is one label, or 2 that are joined by ' '",
    ),
    "an array of PostgreSQL of one label": (
        {"train.csv": b"text,labels\na,{calm}\nb,{glee}\n"},
        r"has '\{calm\}', which is not a list",
    ),
    "two names but for case": (
        {"train.csv": b"text,labels\na,Calm\nb,calm\n"},
        r"labels 'Calm' and 'calm' differ only in case",
    ),
    "a missing value as a name": (
        {"train.csv": b"text,labels\na,calm\nb,None\n"},
        r"train.csv: 'None' is the name of a label or a missing value: leave the cell empty, or list the names in emotions.txt",
    ),
    "a column that says the split": (
        {"all.csv": b"text,labels,Split\na,calm,train\nb,dread,test\n"},
        r"all.csv has a column 'Split', and its rows would be split anew: write one file per split, such as train.csv",
    ),
    "a tuple": ({"train.csv": b"text,labels\na,\"('calm', 'dread')\"\n"}, r"has \"\('calm', 'dread'\)\", which is not a list"),
    "a set": ({"train.csv": b"text,labels\na,{'calm'}\n"}, r"has \"\{'calm'\}\", which is not a list"),
    "an object": (
        {"train.csv": b'text,labels\na,"{""calm"": 1, ""dread"": 0}"\n'},
        r"has '\{\"calm\": 1, \"dread\": 0\}', which is not a list: write \[\"a\", \"b\"\], or one column per label",
    ),
    "a list of objects": (
        {"train.csv": b'text,labels\na,"[{""label"": ""calm""}]"\n'},
        r"column 'labels' has \[\{\"label\": \"calm\"\}\], which is no list of names: write \[\"a\", \"b\"\], or one column",
    ),
    "a name without quotes in a list": (
        {"train.csv": b'text,labels\na,"[""calm"", dread]"\n', "emotions.txt": LISTED},
        r"column 'labels' has \[\"calm\", dread\], which is no list of names",
    ),
    "a missing value in a list": (
        {"train.csv": b"text,labels\na,\"['calm', None]\"\n"},
        r"column 'labels' has \['calm', None\], which is no list of names",
    ),
    "a list of lists": (
        {"train.csv": b'text,labels\na,"[[""calm""], [""dread""]]"\n'},
        r"column 'labels' has \[\[\"calm\"\], \[\"dread\"\]\], which is no list of names",
    ),
    "an array of PostgreSQL": ({"train.csv": b'text,labels\na,"{calm,dread}"\n'}, r"has '\{calm,dread\}', which is not a list"),
    "a Delta table": (
        {"part-0.parquet": parquet(pa.table({"text": ["a"]})), "_delta_log/00000000000000000000.json": b"{}\n"},
        r"source is a Delta table, whose files also hold rows that were replaced: write it as plain Parquet",
    ),
    "an Iceberg table": (
        {"data/00000-0.parquet": parquet(pa.table({"text": ["a"]})), "metadata/v1.metadata.json": b"{}"},
        r"source is an Iceberg table, whose files also hold rows",
    ),
    "a Hudi table below a folder": (
        {"train/a_0.parquet": parquet(pa.table({"text": ["a"]})), "train/.hoodie/hoodie.properties": b""},
        r"source/(dev|test|train) is a Hudi table, whose files also hold rows",
    ),
    "names that differ": (
        {"train.parquet": hugging_face(ROWS, NAMES), "emotions.txt": b"calm\ndread\njoy\n"},
        r"train.parquet and emotions.txt name different labels \('glee' is only in one\)",
    ),
}


@pytest.mark.parametrize(("files", "message"), AMBIGUOUS.values(), ids=AMBIGUOUS)
@pytest.mark.fault("data-ambiguous")
def test_two_readings_are_refused_with_both_named(tmp_path: Path, files: Written, message: str) -> None:
    with pytest.raises(DataError, match=message) as raised:
        ingested(tmp_path, files)
    assert len(str(raised.value).splitlines()) == 1


WITHOUT_DOUBT: dict[str, tuple[Written, list[list[str]]]] = {
    "one-hot rows of two labels with an empty one": (
        {
            "emotions.txt": b"calm\ndread",
            "train.jsonl": json_lines([{"text": t, "labels": ls} for t, ls in (("a", [1, 0]), ("b", [1, 1]))]),
        },
        [["calm"], ["calm", "dread"]],
    ),
    "numbers as names in their own order": (
        {"emotions.txt": b"0\n1\n2", "train.csv": b"text,labels\na,0\nb,2|1\n"},
        [["0"], ["1", "2"]],
    ),
    "numbers as names that are no index": (
        {"emotions.txt": b"10\n20\n30", "train.csv": b"text,labels\na,10\nb,30|20\n"},
        [["10"], ["20", "30"]],
    ),
    "names that are listed although they look the same": (
        {"emotions.txt": b"Calm\ncalm\nNone", "train.csv": b"text,labels\na,Calm|calm\nb,None\n"},
        [["Calm", "calm"], ["None"]],
    ),
    "names in lists with a slash": (
        {"train.jsonl": json_lines([{"text": t, "labels": ls} for t, ls in (("a", ["sea", "sky/sea"]), ("b", ["sky"]))])},
        [["sea", "sky/sea"], ["sky"]],
    ),
    "names that end like numbers of pandas": (
        {"train.csv": b'text,labels\na,401.0\nb,"401,401.9"\nc,V30.0\n'},
        [["401.0"], ["401", "401.9"], ["V30.0"]],
    ),
    "label numbers as pandas writes them if one is missing": (
        {"emotions.txt": b"1\n2\n3", "train.csv": b"text,label\na,3.0\nb,1.0\n"},
        [["3"], ["1"]],
    ),
    "names of two words": ({"train.csv": b"text,label\na,deep sea\nb,sea\n"}, [["deep sea"], ["sea"]]),
    "a listed name that is two names": (
        {"emotions.txt": b"sea\nsky\nsky/sea", "train.csv": b"text,label\na,sky/sea\nb,sea\n"},
        [["sky/sea"], ["sea"]],
    ),
    "a listed name with a comma": (
        {"emotions.txt": b"calm, mild\ndread", "train.csv": b'text,label\na,"calm, mild"\nb,dread\n'},
        [["calm, mild"], ["dread"]],
    ),
}


@pytest.mark.parametrize(("files", "labels"), WITHOUT_DOUBT.values(), ids=WITHOUT_DOUBT)
def test_what_has_one_reading_is_read(tmp_path: Path, files: Written, labels: list[list[str]]) -> None:
    train = next(name for name in files if name.startswith("train"))
    others = {train.replace("train", split): files[train] for split in ("dev", "test")}
    ingested(tmp_path, {**files, **others})
    assert [row for _, row in named(tmp_path / "dataset")] == labels


@pytest.mark.parametrize("written", [json.dumps, repr])
def test_names_in_a_list_have_no_escapes(tmp_path: Path, written: Callable[[list[str]], str]) -> None:
    rows = [("a lake", ["caf\u00e9", "it's"]), ("a storm", ['a "b"', "c\\d"]), ("a chair", ["\U0001f642", "line\nfeed"])]
    ingested(tmp_path, {"train.csv": csv_of(frame(rows, labels=[written(labels) for _, labels in rows]))})
    assert [set(labels) for _, labels in named(tmp_path / "dataset")] == [set(labels) for _, labels in rows]


@pytest.mark.parametrize("name", ["train.csv", "train.jsonl"])
def test_a_label_with_half_of_a_character_is_named(tmp_path: Path, name: str) -> None:
    files = {
        "train.csv": csv_of(frame([("a lake", []), ("a storm", [])], labels=['["\\ud83d"]', '["joy"]'])),
        "train.jsonl": b'{"text": "a lake", "labels": ["\\ud83d"]}\n{"text": "a storm", "labels": ["joy"]}\n',
    }
    with pytest.raises(DataError, match=r"label 1 of the taxonomy, '\\ud83d', has half of a character: correct it in the data"):
        ingested(tmp_path, {name: files[name]})


def test_quotes_that_belong_to_the_text_are_kept(tmp_path: Path) -> None:
    rows = b'"all of it"\t0\ta\nsaid "hi" to me\t1\tb\n"open\t2\tc\n"twice ""in"""\t2\td\n'
    other = json_lines([{"text": "a lake", "labels": [0]}])
    ingested(tmp_path, {"train.tsv": rows, "emotions.txt": LISTED, "dev.jsonl": other, "test.jsonl": other})
    assert [text for text, _ in named(tmp_path / "dataset")] == ['"all of it"', 'said "hi" to me', '"open', '"twice ""in"""']


FOUND: dict[str, tuple[Written, str]] = {
    "quotes after backslashes": (
        {"train.csv": frame(ROWS, labels=joined(ROWS, "|")).to_csv(escapechar="\\", doublequote=False).encode()},
        r"train.csv, line 3: the row there is no .csv .*: check its quotes; one within a cell is written twice, not after a back",
    ),
    "no label in most rows": (
        {"train.csv": b"text,calm,dread\na,1,0\nb,0,0\nc,0,0\nd,0,1\n"},
        r"2 of 4 rows are unusable \(line 3: no label\), .*; if such rows have none of the labels, keep them \(unlabelled=keep\)",
    ),
    "an unknown format": (
        {"train.md": b""},
        r"has no train split: add train.tsv, .*; there are dev.md, test.md, train.md",
    ),
    "a spreadsheet": ({"train.xlsx": b""}, r"has no train split, and dev.xlsx is not of a format .*: save it as CSV in UTF-8"),
    "a text file": ({"train.txt": b"a;b"}, r"dev.txt is not of a format that is read: rename it to .csv"),
    "archives": ({"train.tar.gz": b""}, r"dev.tar.gz is not of a format that is read: unpack it and give the folder"),
    "carriage returns alone": (
        {"train.csv": BY_NAME.replace(b"\n", b"\r")},
        r"train.csv, line 1: a carriage return without a line feed: save it with line feeds",
    ),
    "UTF-16 without a mark": ({"train.csv": BY_NAME.decode().encode("utf-16-le")}, r"train.csv is UTF-16, not UTF-8"),
    "labels as lists of objects": (
        {"train.jsonl": json_lines([{"text": "a", "labels": [{"name": "calm"}]}])},
        r"train.jsonl: column 'labels' holds objects, or lists of lists: write lists of label names",
    ),
    "labels as a map": (
        {
            "train.parquet": parquet(
                pa.table({"text": ["a"], "labels": pa.array([[("calm", 1)]], pa.map_(pa.string(), pa.int8()))})
            )
        },
        r"train.parquet: column 'labels' holds objects, or lists of lists: write lists of label names",
    ),
    "labels as lists of lists among listed names": (
        {"train.jsonl": json_lines([{"text": "a", "labels": [["calm"]]}]), "emotions.txt": LISTED},
        r"train.jsonl: column 'labels' holds objects, or lists of lists",
    ),
    "a Feather of version 1": (
        {"train.feather": b"FEA1" + bytes(60)},
        r"train.feather is not a complete Arrow file",
    ),
    "labels as objects": (
        {"train.jsonl": json_lines([{"text": "a", "labels": {"calm": 1}}])},
        r"train.jsonl: column 'labels' holds objects, or lists of lists: write lists of label names",
    ),
    "negative numbers as labels": ({"train.csv": b"text,label\na,-1\nb,0\n"}, r"train.csv has no emotions.txt"),
    "no rows": ({"train.csv": b"text,labels\n"}, r"train.csv has no rows with a label in column 'labels'"),
    "an encrypted zip": (
        {"train.csv.zip": zipped({"train.csv": BY_NAME}).replace(b"PK\1\2\x14\3\x14\0\0", b"PK\1\2\x14\3\x14\0\1")},
        r"train.csv.zip is encrypted: unpack it",
    ),
    "an empty folder of parts": ({"train/_SUCCESS": b""}, r"has no train split: .*; there are dev/, test/, train/"),
    "a Spark job that did not end": (
        {"train/_temporary/0/part-0.csv": b"", "train/part-0.csv": BY_NAME},
        r"was not written completely \(it has a folder _temporary\)",
    ),
    "a folder in place of a file": (
        {"train.csv/notes.txt": b""},
        r"has no train split: .*there are dev.csv/, test.csv/, train.csv/",
    ),
    "no column of texts": (
        {"train.csv": b"comment,labels\na,calm\n"},
        r"train.csv has no column 'text': .*text_column\), of comment, labels",
    ),
    "no column of labels": (
        {"train.csv": b"text,mood\na,calm\n"},
        r"train.csv has no column 'labels', and no column of 0 and 1 per label",
    ),
    "a test split without labels": (
        {"train.csv": csv_of(ONE_PER_LABEL), "test.csv": b"text,id\na,1\n"},
        r"test.csv has no column 'labels', .*, of text, id; or leave the file out if it has none, and its split is drawn from train$",
    ),
    "a test split without the column of labels": (
        {"train.csv": BY_NAME, "test.csv": b"text,id\na,1\n"},
        r"test.csv has no column 'labels': .*; or leave the file out if it has none, and its split is drawn from train$",
    ),
    "numbers beside a column of names": (
        {"train.jsonl": json_lines([{"text": "a", "label": 0, "label_text": "calm"}])},
        r"train.jsonl has no emotions.txt: list .*, or name the column with the labels .*, of text, label, label_text$",
    ),
    "columns without a name": (
        {"train.csv": b"text,labels,,\na,calm,,\n"},
        r"train.csv has two columns without a name: remove one",
    ),
    "an array of lists": (
        {"train.json": b'[["a", "calm"]]'},
        r"train.json, item 1: not an object with named values that ends within 32 MiB: fix it, or write one object per line",
    ),
    "an array that is cut": ({"train.json": json.dumps(OBJECTS).encode()[:-9]}, r"train.json, item 3: not an object"),
    "two arrays": ({"train.json": json.dumps(OBJECTS).encode() * 2}, r"train.json, item 4: not an object"),
    "an array that is not UTF-8": (
        {"train.json": b'[{"text": "caf\xe9", "labels": ["calm"]}]'},
        r"train.json: not UTF-8 \(byte 0xe9",
    ),
    "lines with commas after them": (
        {"train.jsonl": json_lines(OBJECTS).replace(b"}\n", b"},\n")},
        r"train.jsonl, line 1: not JSON: write one object per line, as `jq -c` does, or a list of them",
    ),
    "files that were joined": (
        {"train.csv": BY_NAME * 2},
        r"train.csv, line 5: names the columns again, as where files were joined: remove the line",
    ),
    "files that were joined with their byte order marks": (
        {"train.tsv": b"\xef\xbb\xbftext\tlabels\na\tcalm\n" * 2},
        r"train.tsv, line 3: names the columns again",
    ),
    "a long window of zstd, as in dumps of Reddit": (
        {"train.jsonl.zst": b"\x28\xb5\x2f\xfd\x00" + bytes([(31 - 10) << 3]) + b"\x11\x00\x00{}"},
        r"train.jsonl.zst was compressed with a window of more than 128 MiB: compress it without --long",
    ),
    "several files in a zip": (
        {"train.csv.zip": zipped({"a.csv": BY_NAME, "b.csv": BY_NAME}), "dev.csv": BY_NAME, "test.csv": BY_NAME},
        r"train.csv.zip holds 2 files, and one is read: unpack it",
    ),
    "numbers without names": (
        {"train.csv": b"text,labels\na,1\n", "dev.csv": b"text,labels\na,1\n"} | {"test.csv": b"text,labels\na,1\n"},
        r"has no emotions.txt",
    ),
    "texts as labels": (
        {"train.csv": b"text,labels\na," + b"x" * 300 + b"\n"},
        r"column 'labels' holds texts rather than labels",
    ),
    "labels in the names of folders": (
        {"train/label=calm/part-0.csv": b"text\na\n", "train/label=glee/part-0.csv": b"text\na\n"},
        r"has its label in names of folders \((train|dev)/label=calm\): write it as a column",
    ),
    "another value than 0 and 1": (
        {"train.csv": csv_of(ONE_PER_LABEL) + b"a,2,0,0\n", "emotions.txt": LISTED},
        r"train.csv, line 5: '2' is neither 0 nor 1",
    ),
}


@pytest.mark.parametrize(("files", "message"), FOUND.values(), ids=FOUND)
def test_an_error_names_what_is_there(tmp_path: Path, files: Written, message: str) -> None:
    with pytest.raises(DataError, match=message):
        ingested(tmp_path, files)


def test_a_link_to_nothing_is_not_left_out(tmp_path: Path) -> None:
    folder = source(tmp_path / "source", {"train.csv": BY_NAME})
    (folder / "dev.csv").unlink()
    (folder / "dev.csv").symlink_to("nowhere")
    with pytest.raises(DataError, match=r"dev.csv is a link to a file that is not there: copy the file"):
        ingest(str(folder), tmp_path / "dataset")


def test_a_pipe_is_named(tmp_path: Path) -> None:
    folder = source(tmp_path / "source", {"train.csv": BY_NAME})
    (folder / "dev.csv").unlink()
    os.mkfifo(folder / "dev.csv")
    with pytest.raises(DataError, match=r"dev.csv is a pipe or a device, not a file"):
        ingest(str(folder), tmp_path / "dataset")


@pytest.mark.parametrize("name", ["README.md", ".huggingface.yaml"])
def test_a_pipe_in_place_of_a_card_is_not_waited_for(tmp_path: Path, name: str) -> None:
    folder = source(tmp_path / "source", {"train.csv": BY_NAME})
    os.mkfifo(folder / name)
    ingest(str(folder), tmp_path / "dataset")


def rated(opinions: list[tuple[str, str, int, list[str]]]) -> bytes:
    """Rows as in the raw GoEmotions files: id, text, rater, labels."""
    return csv_of(
        pd.DataFrame(
            {"text": text, "id": row_id, **RATED_ROW, "rater_id": rater, **{name: int(name in labels) for name in NAMES}}
            for row_id, text, rater, labels in opinions
        )
    )


RATED_ROW = {name: values[0] for name, values in RATED.items()}
OPINIONS = [
    ("x1", "a lake", 7, ["calm"]),
    ("x2", "a storm", 7, ["dread"]),
    ("x1", "a lake", 8, ["calm", "glee"]),
    ("x3", "a chair", 8, ["calm"]),
    ("x2", "a storm", 9, ["dread"]),
    ("x1", "a lake", 9, []),
    ("x3", "a chair", 7, ["dread"]),
    ("x3", "a chair", 5, []),
]


def test_one_row_per_rater_becomes_the_labels_of_the_majority_and_soft_labels(tmp_path: Path) -> None:
    other = csv_of(frame(ROWS, id=["a", "b", "c"], rater_id=[1, 1, 1], **flags(ROWS)))
    info = ingested(
        tmp_path,
        {
            "train_1.csv": rated(OPINIONS[:5]),
            "train_2.csv": rated(OPINIONS[5:]),
            "dev.csv": other,
            "test.csv": csv_of(frame(ROWS, id=["d", "e", "f"], rater_id=[1, 1, 1], **flags(ROWS))),
        },
    )
    assert named(tmp_path / "dataset") == [("a lake", ["calm"]), ("a storm", ["dread"])]
    assert info["quarantined"]["train"] == {"no label of the majority": 1}
    train = load_dataset(tmp_path / "dataset")[0]["train"]
    assert train["id"][:] == ["x1", "x2"]
    assert np.allclose(train["soft_labels"][:], [[2 / 3, 0, 1 / 3], [0, 1, 0]])
    assert info["disagreement"] == {
        "rows": 1,
        "texts": {"calm": 1, "dread": 1, "glee": 1},
        "share": {"calm": 0.6667, "dread": 1.0, "glee": 0.3333},
    }


def test_annotators_of_prodigy_are_raters(tmp_path: Path) -> None:
    rows = [{"text": t, "accept": ls, "answer": "accept", "_annotator_id": f"ann-{n}"} for n, (t, ls) in enumerate(ROWS * 2)]
    ingested(tmp_path, {"train.jsonl": json_lines(rows)}, labels_column="accept")
    assert named(tmp_path / "dataset") == ROWS


def test_raters_that_agree_give_plain_labels(tmp_path: Path) -> None:
    agreed = [(row_id, text, rater, labels) for row_id, text, _, labels in OPINIONS[:2] for rater in (1, 2)]
    info = ingested(
        tmp_path,
        {name: rated([(name + i, t, r, ls) for i, t, r, ls in agreed]) for name in ("train.csv", "dev.csv", "test.csv")},
    )
    assert "soft_labels" not in load_dataset(tmp_path / "dataset")[0]["train"].column_names
    assert info["disagreement"] is None


def test_a_column_of_shares_per_label_is_soft_labels(tmp_path: Path) -> None:
    content = b"text,calm,dread,glee\na lake,0.9,0,.5\na storm,0,1,0.2\n"
    info = ingested(tmp_path, {f"{split}.csv": content for split in ("train", "dev", "test")})
    assert named(tmp_path / "dataset") == [("a lake", ["calm", "glee"]), ("a storm", ["dread"])]
    assert np.allclose(load_dataset(tmp_path / "dataset")[0]["train"]["soft_labels"][:], [[0.9, 0, 0.5], [0, 1, 0.2]])
    assert ingest(str(tmp_path / "dataset"), tmp_path / "again")["digest"] == info["digest"]
    changed = {f"{split}.csv": content.replace(b"0.9", b"0.8") for split in ("train", "dev", "test")}
    assert ingest(str(source(tmp_path / "changed", changed)), tmp_path / "other")["digest"] != info["digest"]


def test_a_row_of_a_rater_without_an_opinion_is_a_named_error(tmp_path: Path) -> None:
    content = rated(OPINIONS[:4]) + b"a chair,x,s,l,p,1500000000.0,False,x3,5,,,\n"
    with pytest.raises(DataError, match=r"train.csv, line 6: '.*' is neither 0 nor 1"):
        ingested(tmp_path, {"train.csv": content})


def test_an_id_with_two_texts_is_a_named_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"train.csv, line 3: id 'x1' has another text than before"):
        ingested(tmp_path, {"train.csv": rated([OPINIONS[0], ("x1", "another lake", 8, ["calm"])])})


PAGE = Path(__file__).parents[2] / "docs" / "data.md"
SECTIONS = re.split(r"^###? ", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)
EXAMPLE = re.compile(r'```[a-z]+ title="([^"]+)"\n(.*?)```', re.DOTALL)


@pytest.mark.parametrize(
    "section", [section for section in SECTIONS if EXAMPLE.search(section)], ids=lambda text: text.split("\n")[0]
)
def test_each_example_of_the_page_is_read(tmp_path: Path, section: str) -> None:
    listed: Written = {}
    examples = 0
    for number, (name, content) in enumerate(EXAMPLE.findall(section)):
        if not name.startswith("train"):
            listed = {name: content.encode()}
            continue
        examples += 1
        example = {name: content.encode(), **listed}
        if "\tx1" in content:
            example |= {f"{split}.tsv": content.replace("\tx", f"\t{split}").encode() for split in ("dev", "test")}
        if ",x1" in content:
            example |= {f"{split}.csv": content.replace(",x", f",{split}").encode() for split in ("dev", "test")}
        ingest(str(source(tmp_path / str(number), example)), tmp_path / "dataset")
        rows = named(tmp_path / "dataset")
        assert rows[0] == ("the parcel came early", ["joy"])
        assert rows[1] in [("broken again, of all days", ["anger", "sadness"]), ("broken again", ["anger"])]
    assert examples
