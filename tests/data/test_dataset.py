"""Sources, checks and the Dataset folder: every kind of bad file, and the dataset of a good source."""

import contextlib
import gzip
import io
import json
import logging
import os
import pickle
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from goemotions.cli import main as cli
from goemotions.data import archives
from goemotions.data import dataset as dataset_module
from goemotions.data.dataset import Row, digest, ingest, load_dataset, taxonomy_of
from goemotions.data.taxonomy import Taxonomy
from goemotions.errors import BadAddress, DataError, FileChanged, SourceUnreachable, StorageError
from goemotions.metrics import classification
from goemotions.storage import store
from tests.support import hub as stand_in

NAMES = ("calm", "dread", "glee")
TRAIN = [("a quiet lake", [0], "t1"), ("a storm near the lake", [1, 0], "t2"), ("two red balloons", [2], "t3")]
DEV = [("the lake again", [0], "d1"), ("storm tonight", [1], "d2")]
TEST = [("one balloon left", [2], "e1"), ("a storm at the harbour", [1], "e2")]
MEGABYTES_10 = 10 * 2**20


def tsv(rows: list[tuple[str, list[int], str]], end: str = "\n") -> bytes:
    return "".join(f"{text}\t{','.join(map(str, labels))}\t{row_id}{end}" for text, labels, row_id in rows).encode()


def parquet(rows: list[tuple[Any, Any, Any]], **columns: pa.DataType) -> bytes:
    """Rows as a Parquet file; a column's type may be given."""
    texts, labels, ids = zip(*rows, strict=True)
    table = {"text": texts, "labels": labels, "id": ids}
    return written(pa.table({name: pa.array(values, type=columns.get(name)) for name, values in table.items()}))


def written(table: pa.Table) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    return buffer.getvalue()


def hugging_face(rows: list[tuple[str, list[int], str]], path: Path) -> None:
    """Rows as a Parquet file that carries the label names, as the datasets library writes it."""
    texts, labels, ids = zip(*rows, strict=True)
    features = datasets.Features(
        text=datasets.Value("string"),
        labels=datasets.List(datasets.ClassLabel(names=list(NAMES))),
        id=datasets.Value("string"),
    )
    columns = {"text": list(texts), "labels": list(labels), "id": list(ids)}
    datasets.Dataset.from_dict(columns, features=features).to_parquet(str(path))


def folder_of(path: Path, changes: dict[str, bytes | None] | None = None) -> Path:
    """A small good source with some files replaced, added, or (None) left out; a new train replaces train.tsv."""
    files: dict[str, bytes | None] = {
        "emotions.txt": "\n".join(NAMES).encode() + b"\n",
        "train.tsv": tsv(TRAIN),
        "dev.tsv": tsv(DEV),
        "test.tsv": tsv(TEST),
    }
    for name, content in (changes or {}).items():
        if name.startswith("train") and content is not None:
            files["train.tsv"] = None
        files[name] = content
    path.mkdir()
    for name, content in files.items():
        if content is not None:
            (path / name).write_bytes(content)
    return path


def ingested(tmp_path: Path, changes: dict[str, bytes | None] | None = None, **options: Any) -> dict[str, Any]:
    folder_of(tmp_path / "source", changes)
    return ingest(str(tmp_path / "source"), tmp_path / "dataset", **options)


def rows_of(folder: Path, split: str = "train") -> list[tuple[str, list[int], str]]:
    return [(row["text"], row["labels"], row["id"]) for row in load_dataset(folder)[0][split]]


def in_order(rows: list[tuple[str, list[int], str]]) -> list[tuple[str, list[int], str]]:
    return [(text, sorted(labels), row_id) for text, labels, row_id in rows]


def not_utf8() -> pa.Array:
    """A text column whose second value is invalid UTF-8; Arrow does not check it on writing."""
    ends = np.array([0, 1, 2], dtype=np.int32)
    return pa.Array.from_buffers(pa.string(), 2, [None, pa.py_buffer(ends.tobytes()), pa.py_buffer(b"a\xff")])


GOOD = parquet(TRAIN)
GZIPPED = gzip.compress(tsv(TRAIN))
EMPTY_PARQUET = written(
    pa.table({"text": pa.array([], pa.string()), "labels": pa.array([], pa.list_(pa.int64())), "id": pa.array([], pa.string())})
)


def case(name: str, *values: object) -> Any:
    """The parameters of one case. A name such as ``data-code: pickle`` also marks the case with that fault."""
    fault = name.partition(":")[0]
    return pytest.param(*values, id=name, marks=[pytest.mark.fault(fault)] if fault.startswith("data-") else [])


BAD_SOURCES: dict[str, tuple[dict[str, bytes | None], str]] = {
    "data-incomplete: empty file": ({"train.tsv": b""}, r"^train\.tsv has no rows"),
    "data-incomplete: blank file": ({"test.tsv": b"\n"}, r"^test\.tsv has no rows"),
    "data-incomplete: empty gz": ({"train.tsv.gz": gzip.compress(b"")}, r"^train\.tsv\.gz has no rows"),
    "data-incomplete: header only": ({"train.tsv": b"text\tlabels\tid\n"}, r"^train\.tsv has no rows"),
    "data-incomplete: header only, parquet": ({"train.parquet": EMPTY_PARQUET}, r"^train\.parquet has no rows"),
    "data-incomplete: empty parquet": ({"train.parquet": b""}, r"^train\.parquet is not a complete Parquet file"),
    "data-incomplete: missing train": ({"train.tsv": None}, r"has no train split: add train\.tsv"),
    "data-incomplete: missing dev": ({"dev.tsv": None}, r"^train\.tsv: 3 rows are too few to draw validation from"),
    "data-incomplete: missing test": ({"test.tsv": None}, r"^train\.tsv: 3 rows are too few to draw test from"),
    "data-incomplete: missing part of a split": (
        {"train-00000-of-00002.parquet": GOOD},
        r"train-00000-of-00002\.parquet is one of 2 files, but there are 1",
    ),
    "data-incomplete: missing names": ({"emotions.txt": None}, r"has no emotions\.txt: list the label names"),
    "data-incomplete: empty names": ({"emotions.txt": b"\n"}, r"taxonomy has no label"),
    "data-incomplete: names with a gap": ({"emotions.txt": b"calm\n\nglee\n"}, r"label 1 of the taxonomy has no name"),
    "data-incomplete: a name twice": ({"emotions.txt": b"calm\nglee\ncalm\n"}, r"label 'calm' is twice"),
    "data-incomplete: parquet without names": (
        {"emotions.txt": None, "train.parquet": GOOD, "dev.tsv": None, "dev.parquet": GOOD, "test.tsv": None}
        | {"test.parquet": GOOD},
        r"^train\.parquet has no emotions\.txt: list the label names there",
    ),
    "data-columns: two columns": ({"train.tsv": b"lake\t0\tt1\nlake\t0\n"}, r"^train\.tsv, line 2: 2 columns where 3"),
    "data-columns: four columns": ({"train.tsv": b"lake\t0\tt1\t\n"}, r"^train\.tsv, line 1: 4 columns where 3"),
    "data-columns: blank line": ({"train.tsv": b"lake\t0\tt1\n\nstorm\t1\tt2\n"}, r"^train\.tsv, line 2: 1 columns"),
    "data-columns: commas": ({"train.tsv": b"text,labels,id\n"}, r"^train\.tsv, line 1: 1 columns .* tab-separated"),
    "data-columns: gz": ({"train.tsv.gz": gzip.compress(b"lake\t0\n")}, r"^train\.tsv\.gz, line 1: 2 columns"),
    "data-columns: missing column, parquet": (
        {"train.parquet": written(pa.table({"id": ["t1"], "text": ["lake"]}))},
        r"^train\.parquet has no column 'labels'",
    ),
    "data-columns: labels are one string": (
        {"train.parquet": parquet([("lake", "12", "t1")])},
        r"^train\.parquet, line 1: label '12' is not an index from 0 to 2",
    ),
    "data-columns: text is a number": (
        {"train.parquet": parquet([(12, [0], "t1")])},
        r"^train\.parquet, line 1: column 'text' has 12, and a text must be a string: convert it, or name the column",
    ),
    "data-columns: no id": ({"train.tsv": b"lake\t0\tt1\nlake\t0\t\n"}, r"^train\.tsv, line 2: id '' is empty"),
    "data-columns: no id, parquet": (
        {"train.parquet": parquet([("lake", [0], "t1"), ("lake", [0], None)])},
        r"^train\.parquet, line 2: id '' is empty",
    ),
    "data-not-utf8": ({"train.tsv": b"lake\t0\tt1\nst\xf6rm\t1\tt2\n"}, r"^train\.tsv, line 2: not UTF-8 \(byte 0xf6\)"),
    "data-not-utf8: behind a BOM": (
        {"train.tsv": b"\xef\xbb\xbflake\t0\tt1\n\xf6\t1\tt2\n"},
        r"^train\.tsv, line 2: not UTF-8 \(byte 0xf6\)",
    ),
    "data-not-utf8: encoded surrogate": ({"train.tsv": b"\xed\xa0\x80\t0\tt1\n"}, r"^train\.tsv, line 1: not UTF-8"),
    "data-not-utf8: UTF-16": ({"train.tsv": tsv(TRAIN).decode().encode("utf-16")}, r"^train\.tsv is UTF-16, not UTF-8"),
    "data-not-utf8: gz": (
        {"train.tsv.gz": gzip.compress(b"lake\t0\tt1\n\xf6\t1\tt2\n")},
        r"^train\.tsv\.gz, line 2: not UTF-8",
    ),
    "data-not-utf8: names": ({"emotions.txt": b"calm\ndr\xe9ad\nglee\n"}, r"^emotions\.txt, line 2: not UTF-8"),
    "data-not-utf8: parquet": (
        {"train.parquet": written(pa.table({"text": not_utf8(), "labels": [[0], [1]], "id": ["t1", "t2"]}))},
        r"^train\.parquet, line 2: not UTF-8",
    ),
    "data-blank-text": (
        {"train.tsv": b"lake\t0\tt1\n \t1\tt2\n"},
        r"^train\.tsv: 1 of 2 rows are unusable \(line 2: blank text\), more than the allowed 5%",
    ),
    "data-blank-text: parquet": (
        {"train.parquet": parquet([(None, [0], "t1"), ("lake", [0], "t2")])},
        r"^train\.parquet: 1 of 2 rows are unusable \(line 1: blank text\)",
    ),
    "data-invalid-label: too high": (
        {"train.tsv": b"lake\t0\tt1\nlake\t1,3\tt2\n"},
        r"^train\.tsv, line 2: label '3' is not an index from 0 to 2",
    ),
    "data-invalid-label: negative": ({"train.tsv": b"lake\t-1\tt1\n"}, r"^train\.tsv, line 1: label '-1' is not an index"),
    "data-invalid-label: a word": ({"train.tsv": b"lake\tjoy\tt1\n"}, r"^train\.tsv, line 1: label 'joy' is not an index"),
    "data-invalid-label: a fraction": ({"train.tsv": b"lake\t1.5\tt1\n"}, r"^train\.tsv, line 1: label '1\.5' is not an index"),
    "data-invalid-label: underscore": ({"train.tsv": b"lake\t0_1\tt1\n"}, r"^train\.tsv, line 1: label '0_1' is not an index"),
    "data-invalid-label: huge": (
        {"train.tsv": b"lake\t" + b"9" * 5000 + b"\tt1\n"},
        r"^train\.tsv, line 1: label '9{70,80} is not an index",
    ),
    "data-invalid-label: twice": ({"train.tsv": b"lake\t1,0,1\tt1\n"}, r"^train\.tsv, line 1: label 1 is twice in the row"),
    "data-invalid-label: gz": (
        {"train.tsv.gz": gzip.compress(b"lake\t7\tt1\n")},
        r"^train\.tsv\.gz, line 1: label '7' is not an index",
    ),
    "data-invalid-label: parquet, too high": (
        {"train.parquet": parquet([("lake", [0], "t1"), ("lake", [3], "t2")])},
        r"^train\.parquet, line 2: label 3 is not an index",
    ),
    "data-invalid-label: parquet, negative": (
        {"train.parquet": parquet([("lake", [-1], "t1")])},
        r"^train\.parquet, line 1: label -1 is",
    ),
    "data-invalid-label: parquet, a fraction": (
        {"train.parquet": parquet([("lake", [1.5], "t1")])},
        r"^train\.parquet, line 1: label 1\.5 is",
    ),
    "data-invalid-label: parquet, infinity": (
        {"train.parquet": parquet([("lake", [float("inf")], "t1")])},
        r"^train\.parquet, line 1: label inf is",
    ),
    "data-invalid-label: parquet, not a number": (
        {"train.parquet": parquet([("lake", [float("nan")], "t1")])},
        r"^train\.parquet, line 1: label nan is",
    ),
    "data-invalid-label: parquet, truth values": (
        {"train.parquet": parquet([("lake", [True, False], "t1")])},
        r"^train\.parquet, line 1: label True is",
    ),
    "data-invalid-label: parquet, null": (
        {"train.parquet": parquet([("lake", [0, None], "t1")])},
        r"^train\.parquet, line 1: label None is",
    ),
    "data-invalid-label: parquet, unknown name": (
        {"train.parquet": parquet([("lake", ["joy"], "t1")])},
        r"^train\.parquet, line 1: label 'joy' is",
    ),
    "data-invalid-label: parquet, twice": (
        {"train.parquet": parquet([("lake", [2, 2], "t1")])},
        r"^train\.parquet, line 1: label 2 is twice",
    ),
    "data-invalid-label: parquet, second part": (
        {"train-00000-of-00002.parquet": GOOD, "train-00001-of-00002.parquet": parquet([("lake", [9], "t9")])},
        r"^train-00001-of-00002\.parquet, line 1: label 9 is not an index",
    ),
    "data-duplicate-id": ({"test.tsv": b"harbour\t1\tt2\n"}, r"^id t2 is in train and in test"),
    "data-duplicate-id: dev and test": ({"test.tsv": b"harbour\t1\td1\n"}, r"^id d1 is in validation and in test"),
    "data-duplicate-id: parquet": ({"train.parquet": parquet([("lake", [0], "e1")])}, r"^id e1 is in train and in test"),
    "data-duplicate-id: within a split": (
        {"train.tsv": b"lake\t0\tt1\nstorm\t1\tt1\n"},
        r"^train\.tsv, line 2: id 't1' is empty or repeated",
    ),
    "data-truncated-file: cut gz": ({"train.tsv.gz": GZIPPED[:-9]}, r"^train\.tsv\.gz is not a complete gzip file"),
    "data-truncated-file: gz without its end": ({"train.tsv.gz": GZIPPED[:-1]}, r"^train\.tsv\.gz is not a complete gzip file"),
    "data-truncated-file: damaged gz": (
        {"train.tsv.gz": GZIPPED[:-6] + b"\0\0" + GZIPPED[-4:]},
        r"^train\.tsv\.gz is not a complete gzip file",
    ),
    "data-truncated-file: cut parquet": ({"train.parquet": GOOD[:-20]}, r"^train\.parquet is not a complete Parquet file"),
    "data-truncated-file: half a parquet": (
        {"train.parquet": GOOD[: len(GOOD) // 2]},
        r"^train\.parquet is not a complete Parquet file",
    ),
    "data-truncated-file: damaged parquet": (
        {"train.parquet": GOOD[:4] + b"\xff" * 40 + GOOD[44:]},
        r"^train\.parquet is not a complete Parquet file",
    ),
    "data-truncated-file: cut parquet names the labels": (
        {"emotions.txt": None, "train.parquet": GOOD[:-20], "dev.tsv": None, "dev.parquet": GOOD, "test.tsv": None}
        | {"test.parquet": GOOD},
        r"^train\.parquet is not a complete Parquet file",
    ),
    "data-truncated-file: parquet called tsv": ({"train.tsv": GOOD}, r"^train\.tsv is not a text file, as its ending says"),
    "data-truncated-file: gz called tsv": ({"train.tsv": GZIPPED}, r"^train\.tsv is not a text file, as its ending says"),
    "data-truncated-file: tsv called parquet": (
        {"train.parquet": tsv(TRAIN)},
        r"^train\.parquet is not a complete Parquet file",
    ),
    "data-truncated-file: tsv called gz": ({"train.tsv.gz": tsv(TRAIN)}, r"^train\.tsv\.gz is not a complete gzip file"),
    "data-truncated-file: parquet called gz": ({"train.tsv.gz": GOOD}, r"^train\.tsv\.gz is not a complete gzip file"),
    "data-truncated-file: gz called parquet": ({"train.parquet": GZIPPED}, r"^train\.parquet is not a complete Parquet file"),
    "data-code: pickle": ({"train.tsv": None, "train.pkl": pickle.dumps(TRAIN)}, r"train\.pkl is refused, .* convert it"),
    "data-code: torch file": ({"train.tsv": None, "train.pt": pickle.dumps(TRAIN)}, r"train\.pt is refused, .* convert it"),
    "data-code: loading script": (
        {"train.tsv": None, "source.py": b"raise SystemExit(9)"},
        r"source\.py is refused, .* convert it",
    ),
    "data-code: pickle called tsv": ({"train.tsv": pickle.dumps(TRAIN)}, r"^train\.tsv, line 1: not UTF-8"),
    "data-code: pickle called parquet": (
        {"train.parquet": pickle.dumps(TRAIN)},
        r"^train\.parquet is not a complete Parquet file",
    ),
}


@pytest.mark.parametrize(("changes", "message"), [case(name, *values) for name, values in BAD_SOURCES.items()])
def test_a_bad_source_is_a_named_error(tmp_path: Path, changes: dict[str, bytes | None], message: str) -> None:
    with pytest.raises(DataError, match=message) as raised:
        ingested(tmp_path, changes)
    assert len(str(raised.value).splitlines()) == 1
    assert len(str(raised.value)) < 500
    assert not (tmp_path / "dataset").exists()


def test_the_command_ends_with_one_line_and_exit_code_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source = folder_of(tmp_path / "source", {"train.tsv": b"lake\t7\tt1\n"})
    monkeypatch.setattr(sys, "argv", ["goemotions", "ingest", "--source", str(source), "--output", str(tmp_path / "dataset")])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 1
    message = "goemotions: train.tsv, line 1: label '7' is not an index from 0 to 2: fix the row or emotions.txt"
    assert capsys.readouterr().err.splitlines() == [message]
    assert not (tmp_path / "dataset").exists()


def test_a_bad_source_does_not_change_the_existing_dataset(tmp_path: Path) -> None:
    ingested(tmp_path)
    before = {path: path.read_bytes() for path in (tmp_path / "dataset").rglob("*") if path.is_file()}
    (tmp_path / "source" / "train.tsv").write_bytes(b"")
    with pytest.raises(DataError):
        ingest(str(tmp_path / "source"), tmp_path / "dataset")
    assert before == {path: path.read_bytes() for path in (tmp_path / "dataset").rglob("*") if path.is_file()}


ACCEPTED: dict[str, dict[str, bytes | None]] = {
    "data-line-endings: BOM": {"train.tsv": b"\xef\xbb\xbf" + tsv(TRAIN)},
    "data-line-endings: BOM in the names": {"emotions.txt": b"\xef\xbb\xbfcalm\ndread\nglee"},
    "data-line-endings: CRLF": {"train.tsv": tsv(TRAIN, end="\r\n"), "emotions.txt": b"calm\r\ndread\r\nglee\r\n"},
    "data-line-endings: no newline at the end": {"train.tsv": tsv(TRAIN).rstrip(), "emotions.txt": b"calm\ndread\nglee"},
    "data-line-endings: all three": {"train.tsv": b"\xef\xbb\xbf" + tsv(TRAIN, end="\r\n").rstrip()},
    "data-line-endings: gz": {"train.tsv.gz": gzip.compress(b"\xef\xbb\xbf" + tsv(TRAIN, end="\r\n"))},
    "header": {"train.tsv": b"text\tlabels\tid\n" + tsv(TRAIN)},
    "gz": {"train.tsv.gz": GZIPPED},
    "spaces between labels": {"train.tsv": tsv(TRAIN).replace(b"1,0", b" 0, 1 ")},
    "validation.tsv": {"dev.tsv": None, "validation.tsv": tsv(DEV)},
    "val.tsv": {"dev.tsv": None, "val.tsv": tsv(DEV)},
    "parquet": {"train.parquet": GOOD},
    "parquet in two parts": {
        "train-00000-of-00002.parquet": parquet(TRAIN[:1]),
        "train-00001-of-00002.parquet": parquet(TRAIN[1:]),
    },
    "parquet with names": {"train.parquet": parquet([(t, [NAMES[label] for label in ls], i) for t, ls, i in TRAIN])},
    "parquet with one number per row": {
        "train-00000-of-00002.parquet": parquet([("a quiet lake", 0, "t1")]),
        "train-00001-of-00002.parquet": parquet([("a storm near the lake", [1, 0], "t2"), ("two red balloons", [2], "t3")]),
    },
    "parquet of other types": {"train.parquet": parquet(TRAIN, text=pa.large_string(), labels=pa.large_list(pa.int8()))},
    "parquet with floats": {"train.parquet": parquet(TRAIN, labels=pa.list_(pa.float64()))},
    "parquet with more columns": {
        "train.parquet": written(pq.read_table(io.BytesIO(GOOD)).append_column("rater", pa.array([1, 2, 3])))
    },
}


@pytest.mark.parametrize("changes", [case(name, changes) for name, changes in ACCEPTED.items()])
def test_every_spelling_of_the_same_rows_is_the_same_dataset(tmp_path: Path, changes: dict[str, bytes | None]) -> None:
    info = ingested(tmp_path, changes)
    assert rows_of(tmp_path / "dataset") == in_order(TRAIN)
    assert rows_of(tmp_path / "dataset", "validation") == DEV
    assert info["digest"] == digest(*canonical(TRAIN))


def canonical(train: list[tuple[str, list[int], str]]) -> tuple[Taxonomy, dict[str, list[Row]]]:
    splits = {"train": train, "validation": DEV, "test": TEST}
    return Taxonomy(NAMES), {
        split: [(row_id, text, sorted(labels)) for text, labels, row_id in rows] for split, rows in splits.items()
    }


def test_parquet_with_class_labels_has_its_own_names(tmp_path: Path) -> None:
    folder = tmp_path / "source"
    folder.mkdir()
    for name, rows in (("train", TRAIN), ("validation", DEV), ("test", TEST)):
        hugging_face(rows, folder / f"{name}-00000-of-00001.parquet")
    info = ingest(str(folder), tmp_path / "dataset")
    assert info["labels"] == list(NAMES)
    assert info["digest"] == digest(*canonical(TRAIN))


def test_other_names_beside_a_parquet_file_than_its_own_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "source"
    folder.mkdir()
    for name, rows in (("train", TRAIN), ("validation", DEV), ("test", TEST)):
        hugging_face(rows, folder / f"{name}.parquet")
    (folder / "emotions.txt").write_text("one\ntwo\nthree\n")
    with pytest.raises(DataError, match=r"train.parquet and emotions.txt name different labels .* number 0 is 'calm' or 'one'"):
        ingest(str(folder), tmp_path / "dataset")


def many(rows: int) -> list[tuple[str, list[int], str]]:
    return [(f"lake number {row}", [row % 3], f"t{row}") for row in range(rows)]


@pytest.mark.parametrize("blank", ["", " ", "\u00a0\u2003", "\x0b\x0c\r"], ids=repr)
@pytest.mark.fault("data-blank-text")
def test_a_blank_text_is_left_out_and_counted(tmp_path: Path, blank: str, caplog: pytest.LogCaptureFixture) -> None:
    rows = many(19)
    rows.insert(7, (blank, [1], "blank one"))
    info = ingested(tmp_path, {"train.tsv": tsv(rows)})
    assert "rows of train that are left out: 1 blank text; quarantine.csv lists them" in caplog.messages
    assert info["rows"]["train"] == 19
    assert info["quarantined"] == {"train": {"blank text": 1}, "validation": {}, "test": {}}
    assert rows_of(tmp_path / "dataset") == many(19)
    table = (tmp_path / "dataset" / "quarantine.csv").read_text()
    assert table.splitlines() == ["split,line,id,reason", "train,8,blank one,blank text"]


@pytest.mark.fault("data-blank-text")
def test_the_share_of_unusable_rows_is_an_option(tmp_path: Path) -> None:
    rows = [*many(18), ("", [0], "b1"), ("", [0], "b2")]
    with pytest.raises(DataError, match=r"2 of 20 rows are unusable .* raise max_quarantined"):
        ingested(tmp_path, {"train.tsv": tsv(rows)})
    info = ingest(str(tmp_path / "source"), tmp_path / "dataset", max_quarantined=0.1)
    assert info["quarantined"]["train"] == {"blank text": 2}


@pytest.mark.fault("data-duplicate-id")
def test_the_id_of_a_quarantined_row_is_still_in_use(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="id d1 is in train and in validation"):
        ingested(tmp_path, {"train.tsv": tsv([*many(19), ("", [0], "d1")])})


UNLABELLED: dict[str, dict[str, bytes | None]] = {
    "tsv": {"train.tsv": tsv([*many(19), ("no label here", [], "u1")])},
    "parquet": {"train.parquet": parquet([*many(19), ("no label here", [], "u1")])},
    "parquet, null": {"train.parquet": parquet([*many(19), ("no label here", None, "u1")])},
}


@pytest.mark.parametrize("changes", UNLABELLED.values(), ids=UNLABELLED.keys())
@pytest.mark.fault("data-no-label")
def test_a_row_without_a_label_is_left_out_and_counted(tmp_path: Path, changes: dict[str, bytes | None]) -> None:
    info = ingested(tmp_path, changes)
    assert info["unlabelled"] == "quarantine"
    assert info["quarantined"]["train"] == {"no label": 1}
    assert rows_of(tmp_path / "dataset") == many(19)


@pytest.mark.parametrize("changes", UNLABELLED.values(), ids=UNLABELLED.keys())
@pytest.mark.fault("data-no-label")
def test_a_row_without_a_label_is_kept_with_the_option(tmp_path: Path, changes: dict[str, bytes | None]) -> None:
    info = ingested(tmp_path, changes, unlabelled="keep")
    assert info["unlabelled"] == "keep"
    assert info["quarantined"]["train"] == {}
    assert rows_of(tmp_path / "dataset")[-1] == ("no label here", [], "u1")
    assert info["labels_per_row"]["train"] == [1, 19]
    assert sum(info["label_counts"]["train"].values()) == 19


@pytest.mark.fault("data-no-label")
def test_an_unknown_policy_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"'ignore' .* quarantine or keep"):
        ingested(tmp_path, unlabelled="ignore")


def test_a_split_without_usable_rows_is_a_named_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no row of test is left"):
        ingested(tmp_path, {"test.tsv": b" \t1\te1\n"}, max_quarantined=1.0)


@pytest.mark.fault("data-unseen-label")
def test_a_label_absent_from_train_is_a_warning_and_has_finite_metrics(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, logger="goemotions.data.dataset"):
        info = ingested(tmp_path, {"train.tsv": tsv(TRAIN[:2])})
    assert info["labels_absent_from_train"] == ["glee"]
    assert [record.getMessage() for record in caplog.records if "glee" in record.getMessage()]
    labels = taxonomy_of(info).multi_hot([labels for _, labels, _ in rows_of(tmp_path / "dataset")])
    probabilities = np.random.default_rng(1).random(labels.shape)
    values = classification.ranking(labels, probabilities) | classification.decisions(labels, probabilities > 0.5)
    assert all(np.isfinite(value) for value in values.values())


def test_no_warning_if_train_has_every_label(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert ingested(tmp_path)["labels_absent_from_train"] == []
    assert not caplog.records


def test_texts_with_one_of_their_labels_per_row_are_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = [(text, [label], f"{row_id}-{label}") for text, labels, row_id in TRAIN for label in labels]
    ingested(tmp_path, {"train.tsv": tsv(rows)})
    assert caplog.messages == [
        "texts of train that are in several rows with other labels: 1; if each row has one label of its text, write one row per text "
        "with all of them"
    ]


def test_as_many_labels_as_are_accepted_are_a_dataset_that_can_be_read(tmp_path: Path) -> None:
    rows = [(f"row {number}", [number, (number + 1) % 2000], str(number)) for number in range(2000)]
    names = [f"label {number}" for number in range(2000)]
    ingested(tmp_path, {"train.tsv": tsv(rows), "emotions.txt": "\n".join(names).encode()})
    _, info = load_dataset(tmp_path / "dataset")
    assert info["labels"] == names
    assert set(info["label_counts"]["train"].values()) == {2}


LEAKED = [("storm tonight", [1], "t4"), ("One balloon... LEFT!", [2], "t5"), ("a storm by the harbour", [1], "t6")]


@pytest.mark.fault("data-leakage")
def test_texts_of_train_in_validation_and_test_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    info = ingested(tmp_path, {"train.tsv": tsv(TRAIN + LEAKED)})
    assert "texts of validation that are also in train: 1; drop_leaked leaves them out of train" in caplog.messages
    assert info["leakage"] == {"validation": {"exact": 1, "normalized": 1}, "test": {"exact": 0, "normalized": 1}}
    assert info["leaked_rows_dropped"] is False
    assert info["rows"]["train"] == 6


@pytest.mark.fault("data-leakage")
def test_leaked_texts_are_dropped_from_train_with_the_option(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    info = ingested(tmp_path, {"train.tsv": tsv(LEAKED + TRAIN)}, drop_leaked=True)
    assert not any("also in train" in message for message in caplog.messages)
    assert info["leaked_rows_dropped"] is True
    assert info["leakage"]["validation"] == {"exact": 1, "normalized": 1}
    assert info["rows"] == {"train": 4, "validation": 2, "test": 2}
    assert rows_of(tmp_path / "dataset") == in_order(LEAKED[2:] + TRAIN)
    assert info["digest"] == digest(*canonical(LEAKED[2:] + TRAIN))


@pytest.mark.fault("data-leakage")
def test_a_completely_leaked_train_is_a_named_error(tmp_path: Path) -> None:
    leaked = [(text, labels, f"t{row_id}") for text, labels, row_id in DEV]
    with pytest.raises(DataError, match="no row of train is left"):
        ingested(tmp_path, {"train.tsv": tsv(leaked)}, drop_leaked=True)
    assert not (tmp_path / "dataset").exists()


@pytest.mark.fault("data-huge-text")
def test_a_comment_of_10_megabytes_is_kept_whole(tmp_path: Path) -> None:
    """The encoder cuts it: tests/models/test_tokenizer.py."""
    info = ingested(tmp_path, {"train.tsv": tsv([*TRAIN, ("lake " * (MEGABYTES_10 // 5), [0], "t4")])})
    assert info["characters"]["train"]["max"] == MEGABYTES_10
    assert len(rows_of(tmp_path / "dataset")[3][0]) == MEGABYTES_10


STRANGE = {
    "control characters": ("bell \x07 escape \x1b[31m", "bell \x07 escape \x1b[31m"),
    "NUL": ("before\x00after", "before\ufffdafter"),
    "line separators": ("one\u2028two\x85three\x0bfour", "one\u2028two\x85three\x0bfour"),
    "right to left": ("\u202eabc\u202c \u05e9\u05dc\u05d5\u05dd", "\u202eabc\u202c \u05e9\u05dc\u05d5\u05dd"),
    "emoji": (
        "\U0001f468\u200d\U0001f469\u200d\U0001f467 \U0001f44d\U0001f3fd",
        "\U0001f468\u200d\U0001f469\u200d\U0001f467 \U0001f44d\U0001f3fd",
    ),
    "noncharacter": ("a\uffffb\U0010ffff", "a\uffffb\U0010ffff"),
    "BOM inside": ("a\ufeffb", "a\ufeffb"),
    "quotes": ('"she said ""hi""', '"she said ""hi""'),
    "starts like a parquet file": ("PAR1 is a golf course", "PAR1 is a golf course"),
}


@pytest.mark.parametrize(("text", "stored"), STRANGE.values(), ids=STRANGE.keys())
@pytest.mark.fault("data-odd-characters")
def test_a_strange_text_is_stored_the_same_every_time(tmp_path: Path, text: str, stored: str) -> None:
    rows = [(text, [0], "t1"), ("lake", [1], "t2")]
    first = ingested(tmp_path, {"train.tsv": tsv(rows)})
    folder_of(tmp_path / "again", {"train.parquet": parquet(rows)})
    second = ingest(str(tmp_path / "again"), tmp_path / "dataset again")
    assert rows_of(tmp_path / "dataset")[0] == (stored, [0], "t1")
    assert rows_of(tmp_path / "dataset again")[0] == (stored, [0], "t1")
    assert first["digest"] == second["digest"]


@pytest.mark.fault("data-code")
def test_a_pickle_beside_good_files_is_not_read(tmp_path: Path) -> None:
    info = ingested(tmp_path, {"cache.pkl": b"no pickle at all", "load.py": b"raise SystemExit(9)"})
    assert info["rows"]["train"] == 3


def test_the_dataset_has_the_documented_form(tmp_path: Path) -> None:
    ingested(tmp_path)
    splits = datasets.load_from_disk(str(tmp_path / "dataset"))
    assert list(splits) == ["train", "validation", "test"]
    for split in splits.values():
        assert split.features == datasets.Features(
            id=datasets.Value("string"),
            text=datasets.Value("string"),
            labels=datasets.List(datasets.ClassLabel(names=list(NAMES))),
        )
    assert splits["train"].features["labels"].feature.int2str(2) == "glee"


def test_the_report_describes_the_data(tmp_path: Path) -> None:
    train = [
        ("the lake", [0], "t1"),
        ("the lake", [1], "t2"),
        ("a storm over the lake", [0, 1], "t3"),
        ("a storm over the lake", [1, 0], "t4"),
        ("two red balloons", [0, 1, 2], "t5"),
    ]
    info = ingested(tmp_path, {"train.tsv": tsv(train)})
    assert info == json.loads((tmp_path / "dataset" / "dataset.json").read_text())
    assert info["source"] == str(tmp_path / "source")
    assert info["revision"] == "local"
    assert info["labels"] == list(NAMES)
    assert info["rows"] == {"train": 5, "validation": 2, "test": 2}
    assert info["label_counts"]["train"] == {"calm": 4, "dread": 4, "glee": 1}
    assert info["label_counts"]["test"] == {"calm": 0, "dread": 1, "glee": 1}
    assert info["labels_per_row"] == {"train": [0, 2, 2, 1], "validation": [0, 2], "test": [0, 2]}
    assert info["cooccurrence"] == [[4, 3, 1], [3, 4, 1], [1, 1, 1]]
    assert info["duplicates"] == {"texts": 2, "rows": 4, "texts_with_other_labels": 1}
    assert info["words"]["train"] == {"mean": 3.4, "min": 2, "p50": 3, "p95": 5, "p99": 5, "max": 5}
    assert info["characters"]["validation"] == pytest.approx(
        {"mean": 13.5, "min": 13, "p50": 13.5, "p95": 13.95, "p99": 13.99, "max": 14}
    )


def test_the_digest_of_known_rows_never_changes() -> None:
    assert digest(*canonical(TRAIN)) == "0b7fe57db938c75fc2399d427eeea25a36044007d839515455cb578d45f8c210"


def test_quoted_fields_of_the_official_layout_are_decoded_and_their_digest_never_changes(tmp_path: Path) -> None:
    """Whoever changes how texts are read computes ``report.published.OFFICIAL_DIGEST`` again: the report compares by it."""
    quoted = b'"a ""quiet"" lake"\t0\tt1\nsnow on stone\t1\tt2\n"a storm, ""so"" they say"\t1,2\tt3\n'
    info = ingested(tmp_path, {"train.tsv": quoted})
    assert [text for text, *_ in rows_of(tmp_path / "dataset")] == ['a "quiet" lake', "snow on stone", 'a storm, "so" they say']
    assert info["digest"] == "7e754068e859de00035755c0509a946bdc997c962ca050f1e414349c10e52848"


def changed(position: int, column: int, value: Any) -> bytes:
    rows: list[Any] = [list(row) for row in TRAIN]
    rows[position][column] = value
    return tsv(rows)


DIFFERENT: dict[str, dict[str, bytes | None]] = {
    "a text": {"train.tsv": changed(0, 0, "a quiet Lake")},
    "a label": {"train.tsv": changed(0, 1, [1])},
    "one label more": {"train.tsv": changed(0, 1, [0, 1])},
    "an id": {"train.tsv": changed(2, 2, "t9")},
    "one row less": {"train.tsv": tsv(TRAIN[:2])},
    "the order": {"train.tsv": tsv(TRAIN[::-1])},
    "a row of test": {"test.tsv": tsv(TEST[:1])},
    "a row in another split": {"train.tsv": tsv([*TRAIN, DEV[0]]), "dev.tsv": tsv(DEV[1:])},
    "a label's name": {"emotions.txt": b"calm\ndread\njoy\n"},
    "the labels' order": {"emotions.txt": b"dread\ncalm\nglee\n"},
    "one more label": {"emotions.txt": b"calm\ndread\nglee\njoy\n"},
}


@pytest.mark.parametrize("changes", DIFFERENT.values(), ids=DIFFERENT.keys())
@pytest.mark.fault("data-changed")
def test_the_digest_changes_with(tmp_path: Path, changes: dict[str, bytes | None]) -> None:
    """Cached steps are keyed by the digest."""
    assert ingested(tmp_path, changes)["digest"] != digest(*canonical(TRAIN))


def replace_all(folder: Path) -> None:
    for name, rows in (("train.tsv", TRAIN), ("dev.tsv", DEV), ("test.tsv", TEST)):
        (folder / name).write_bytes(tsv([(f"new {row_id}", labels, row_id) for _, labels, row_id in rows]))


# While a source is read, after its train split.
CHANGES: dict[str, Callable[[Path], None]] = {
    "all replaced": replace_all,
    "labels replaced": lambda folder: (folder / "emotions.txt").write_text("dread\ncalm\nglee\n") and None,
    "test removed": lambda folder: (folder / "test.tsv").unlink(),
    "test cut within a row": lambda folder: os.truncate(folder / "test.tsv", 25),
    "test cut after a row": lambda folder: (folder / "test.tsv").write_bytes(tsv(TEST[:1])) and None,
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
@pytest.mark.fault("input-changed")
def test_a_source_that_changes_while_it_is_read_is_a_named_error(
    tmp_path: Path, change: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    source, read_split = folder_of(tmp_path / "source"), dataset_module.validate

    def read_then_change(name: str, *arguments: Any, **options: Any) -> Any:
        split = read_split(name, *arguments, **options)
        if name == "train.tsv":
            change(source)
        return split

    monkeypatch.setattr(dataset_module, "validate", read_then_change)
    with pytest.raises(FileChanged, match=r"(train|test|emotions)\.(tsv|txt) has changed since it was listed, when it had \d+"):
        ingest(str(source), tmp_path / "dataset")
    assert not (tmp_path / "dataset").exists()


@pytest.mark.fault("input-changed")
def test_an_archive_that_is_replaced_while_it_is_read_is_a_named_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive, unpack = tmp_path / "data.zip", archives.unpack

    def unpack_then_replace(*arguments: Any) -> Path:
        folder = unpack(*arguments)
        os.utime(archive, (1, 1))
        return folder

    shutil.make_archive(str(archive.with_suffix("")), "zip", folder_of(tmp_path / "source"))
    monkeypatch.setattr(archives, "unpack", unpack_then_replace)
    with pytest.raises(FileChanged, match=r"data\.zip has changed"):
        ingest(str(archive), tmp_path / "dataset")


@pytest.mark.fault("input-changed")
def test_an_object_whose_label_names_are_replaced_while_it_is_fetched_is_a_named_error(
    tmp_path: Path, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def copy_then_replace(content: Any, file: Any) -> None:
        file.write(content.read())
        store.write(bucket, "emotions.txt", b"dread\ncalm\nglee")

    store.write(bucket, "mine.csv", b"text,labels\n" + b"a lake,0\na storm,1\n" * 10)
    store.write(bucket, "emotions.txt", b"calm\ndread\nglee")
    monkeypatch.setattr(archives.shutil, "copyfileobj", copy_then_replace)
    with pytest.raises(FileChanged, match=rf"^{bucket}emotions\.txt has changed"):
        ingest(f"{bucket}mine.csv", tmp_path / "dataset")


def test_the_sample_is_a_source(tmp_path: Path) -> None:
    info = ingest("sample", tmp_path / "first")
    assert (info["source"], info["revision"]) == ("sample", "shipped")
    assert info["digest"] == ingest("sample", tmp_path / "second")["digest"]
    assert set(info["quarantined"]["train"]) == set()
    assert len(load_dataset(tmp_path / "first")[0]["train"]) == info["rows"]["train"] > 1000


def test_a_tilde_is_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    folder_of(tmp_path / "comments")
    assert ingest("~/comments", tmp_path / "dataset")["rows"]["train"] == 3


@pytest.mark.parametrize("source", ["no/such/folder", "smaple"])
def test_a_missing_source_is_a_named_error(tmp_path: Path, source: str) -> None:
    with pytest.raises(DataError, match=f"no data folder {source}: give `sample`"):
        ingest(source, tmp_path / "dataset")


def test_a_source_in_s3_becomes_the_same_dataset(source: Path, dataset: Path, bucket: str, tmp_path: Path) -> None:
    store.put(source, bucket)
    info = ingest(bucket, tmp_path / "dataset")
    assert (info["source"], info["revision"]) == (bucket, "s3")
    assert info["digest"] == load_dataset(dataset)[1]["digest"]


def test_a_bad_source_in_s3_is_named_by_its_address(bucket: str, tmp_path: Path) -> None:
    store.put(folder_of(tmp_path / "source", {"train.tsv": None}), bucket)
    with pytest.raises(DataError, match=f"^{bucket} has no train split.*; there are dev.tsv, emotions.txt, test.tsv"):
        ingest(bucket, tmp_path / "dataset")


def test_an_empty_prefix_in_s3_is_a_named_error(bucket: str, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=f"^{bucket} holds no file"):
        ingest(bucket, tmp_path / "dataset")


@pytest.mark.parametrize("missing", ["dataset.json", "train/state.json", "test/dataset_info.json"])
def test_a_folder_with_a_missing_file_is_not_a_dataset(tmp_path: Path, missing: str) -> None:
    ingested(tmp_path)
    (tmp_path / "dataset" / missing).unlink()
    with pytest.raises(DataError, match="is not a Dataset folder: make one with `goemotions ingest`"):
        load_dataset(tmp_path / "dataset")


def test_a_folder_with_a_damaged_description_is_not_a_dataset(tmp_path: Path) -> None:
    ingested(tmp_path)
    path = tmp_path / "dataset" / "dataset.json"
    path.write_text(path.read_text()[:-20])
    with pytest.raises(DataError, match="is not a Dataset folder"):
        load_dataset(tmp_path / "dataset")


# Any characters except separators of columns and rows, and surrogates, which UTF-8 cannot encode.
CHARACTERS = st.characters(codec="utf-8", exclude_characters="\t\n")
TEXTS = st.text(CHARACTERS, min_size=1, max_size=40).filter(lambda text: text.strip())
IDS = st.text(st.characters(codec="utf-8", exclude_characters="\t\n\r"), min_size=1, max_size=8).map("t".__add__)
LABELS = st.lists(st.integers(0, len(NAMES) - 1), min_size=1, unique=True)
ROWS = st.lists(st.tuples(TEXTS, LABELS, IDS), min_size=1, max_size=8, unique_by=lambda row: row[2])


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=ROWS, end=st.sampled_from(["\n", "\r\n"]), bom=st.booleans(), last_newline=st.booleans(), zipped=st.booleans())
def test_any_valid_rows_are_stored_unchanged(
    tmp_path: Path, rows: list[tuple[str, list[int], str]], end: str, bom: bool, last_newline: bool, zipped: bool
) -> None:
    content = b"\xef\xbb\xbf" * bom + tsv(rows, end)
    assume(bom or not rows[0][0].startswith("\ufeff"))
    content = content if last_newline else content.removesuffix(end.encode())
    shutil.rmtree(tmp_path)
    tmp_path.mkdir()
    ingested(tmp_path, {"train.tsv.gz": gzip.compress(content)} if zipped else {"train.tsv": content})
    expected = [(text.replace("\x00", "\ufffd"), sorted(labels), row_id) for text, labels, row_id in rows]
    assert rows_of(tmp_path / "dataset") == expected


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=200), name=st.sampled_from(["train.tsv", "train.tsv.gz", "train.parquet", "emotions.txt"]))
def test_any_bytes_become_a_dataset_or_a_named_error(tmp_path: Path, content: bytes, name: str) -> None:
    shutil.rmtree(tmp_path)
    tmp_path.mkdir()
    try:
        ingested(tmp_path, {name: content})
    except DataError:
        assert not (tmp_path / "dataset").exists()
    else:
        assert load_dataset(tmp_path / "dataset")[1]["rows"]["train"] > 0


@pytest.mark.fault("data-truncated-file")
def test_a_parquet_file_with_any_byte_changed_is_read_or_a_named_error(tmp_path: Path) -> None:
    source = folder_of(tmp_path / "source", {"train.parquet": GOOD})
    generator = random.Random(7)
    messages = []
    for _ in range(60):
        content = bytearray(GOOD)
        content[generator.randrange(len(content))] ^= generator.randrange(1, 256)
        (source / "train.parquet").write_bytes(content)
        with contextlib.suppress(DataError):
            ingest(str(source), tmp_path / "dataset")
            continue
        with pytest.raises(DataError) as raised:
            ingest(str(source), tmp_path / "dataset")
        messages.append(str(raised.value))
    assert messages
    assert [message for message in messages if not message.startswith("train.parquet")] == []


COMMIT = "0123456789abcdef0123456789abcdef01234567"


INGEST_EACH = """
import json, sys, time
from pathlib import Path
from goemotions.data.dataset import ingest
from goemotions.errors import WorkflowError
for number, source in enumerate(sys.argv[2:]):
    began = time.monotonic()
    try:
        outcome = {**ingest(source, folder := Path(sys.argv[1], str(number))), "folder": str(folder)}
    except WorkflowError as error:
        outcome = {"error": type(error).__name__, "message": str(error)}
    print(json.dumps({**outcome, "source": source, "seconds": time.monotonic() - began}))
"""

HUB_SOURCES = (
    "hub:tests/good",
    f"hub:tests/good@{COMMIT}",
    "hub:tests/good@nowhere",
    "hub:tests/good:other",
    "hub:tests/scripted",
    "hub:tests/text:stars",
    "hub:tests/text",
    "hub:tests/lines",
    "hub:tests/partly",
    "hub:tests/absent",
    "hub:tests/too/many/parts",
    "hub:tests/failing",
    "hub:tests/silent",
)


# The files of validation and test have each other's names.
CARD = """---
configs:
- config_name: stars
  data_files: stars.parquet
- config_name: comments
  default: true
  data_files:
  - {split: train, path: "data/train*"}
  - {split: validation, path: "**/test*.tsv"}
  - {split: test, path: "data/validation*"}
dataset_info:
- config_name: comments
  features:
  - {name: labels, sequence: {class_label: {names: {"0": calm, "1": dread, "2": glee}}}}
---
"""


@dataclass(frozen=True)
class HubRun:
    """The outcome of each source, the paths requested from the hub, and the folder of the cache."""

    outcomes: dict[str, dict[str, Any]]
    requested: list[str]
    folder: Path


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> HubRun:
    folder = tmp_path_factory.mktemp("hub")
    script = {"README.md": b"---\nlicense: mit\n---\n", "load.py": b"raise SystemExit(9)", "train.pkl": b"no pickle"}
    for name in ("good", "scripted", "text", "lines", "partly"):
        (folder / name / "data").mkdir(parents=True)
        for file, content in script.items():
            (folder / name / file).write_bytes(content)
    for split, rows in (("train", TRAIN), ("validation", DEV), ("test", TEST)):
        hugging_face(rows, folder / "good" / "data" / f"{split}-00000-of-00001.parquet")
        # Text beside it may hold the same rows.
        (folder / "good" / "data" / f"{split}.tsv").write_bytes(tsv(rows))
        (folder / "text" / "data" / f"{split} of [all].tsv").write_bytes(b"text\tlabels\tid\n" + tsv(rows))
        (folder / "lines" / f"{split}.jsonl").write_bytes(
            b"".join(
                json.dumps({"text": text, "labels": [NAMES[n] for n in labels], "id": i}).encode() + b"\n"
                for text, labels, i in rows
            )
        )
    (folder / "text" / "stars.parquet").write_bytes(EMPTY_PARQUET)
    (folder / "text" / "README.md").write_text(CARD, encoding="utf-8")
    shutil.copytree(folder / "lines", folder / "partly", dirs_exist_ok=True)
    (folder / "partly" / "refused").mkdir()
    (folder / "partly" / "test.jsonl").rename(folder / "partly" / "refused" / "test.jsonl")
    repositories = {f"tests/{name}": folder / name for name in ("good", "scripted", "text", "lines", "partly")}
    with stand_in.serve(repositories, COMMIT) as (address, requested):
        return HubRun(ingest_each(HUB_SOURCES, address, folder), requested, folder)


def ingest_each(sources: Sequence[str], endpoint: str, folder: Path) -> dict[str, dict[str, Any]]:
    """The outcome of each source in a process whose hub is ``endpoint``."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_") and "proxy" not in name.lower()}
    done = subprocess.run(
        [sys.executable, "-c", INGEST_EACH, str(folder / "out"), *sources],
        env={**kept, "HF_ENDPOINT": endpoint, "HF_HOME": str(folder / "home")},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return {outcome["source"]: outcome for outcome in map(json.loads, done.stdout.splitlines())}


@pytest.mark.parametrize("source", HUB_SOURCES[:2])
def test_a_source_on_the_hub_becomes_the_same_dataset(hub: HubRun, source: str) -> None:
    assert hub.outcomes[source].get("message") is None
    assert hub.outcomes[source]["revision"] == COMMIT
    assert hub.outcomes[source]["digest"] == digest(*canonical(TRAIN))


def fetched(hub: HubRun, name: str) -> set[str]:
    """What was downloaded of a data set."""
    paths = (path.partition(f"/{name}/resolve/")[2] for path in hub.requested)
    return {path.partition("/")[2] for path in paths if path}


@pytest.mark.fault("data-code")
def test_scripts_and_pickles_on_the_hub_are_not_downloaded(hub: HubRun) -> None:
    rows = {f"data/{split}-00000-of-00001.parquet" for split in ("train", "validation", "test")}
    assert fetched(hub, "tests/good") - {"README.md"} == rows
    assert fetched(hub, "tests/scripted") - {"README.md"} == set()


def test_text_files_on_the_hub_are_read_by_what_its_card_says(hub: HubRun) -> None:
    outcome = hub.outcomes["hub:tests/text"]
    assert outcome.get("message") is None
    assert outcome["labels"] == list(NAMES)
    read = load_dataset(Path(outcome["folder"]))[0]
    assert {split: rows["text"][:] for split, rows in read.items()} == {
        split: [text for text, *_ in rows] for split, rows in (("train", TRAIN), ("validation", TEST), ("test", DEV))
    }
    assert [row["labels"] for row in read["train"]] == [sorted(labels) for _, labels, _ in TRAIN]
    rows = {f"data/{split} of [all].tsv" for split in ("train", "validation", "test")}
    assert fetched(hub, "tests/text") - {"README.md"} == rows | {"stars.parquet"}
    assert (
        hub.outcomes["hub:tests/text:stars"]["message"]
        == "stars.parquet has no rows: it needs at least one row of text, labels and id"
    )


def test_text_files_on_the_hub_are_read_by_their_names(hub: HubRun) -> None:
    assert hub.outcomes["hub:tests/lines"].get("message") is None
    assert hub.outcomes["hub:tests/lines"]["digest"] == digest(*canonical(TRAIN))


@pytest.mark.fault("data-incomplete", "data-code")
@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("hub:tests/good@nowhere", "the hub has no data set tests/good at revision nowhere: check both names"),
        ("hub:tests/absent", "the hub has no data set tests/absent at revision main: check both names"),
        ("hub:tests/too/many/parts", "'hub:tests/too/many/parts' names no data set of the hub: write hub:"),
        ("hub:tests/good:other", "hub:tests/good:other has the configurations none by its README.md: name one of them"),
        (
            "hub:tests/scripted",
            "hub:tests/scripted has no file of rows that is read, and pickles and loading scripts are refused",
        ),
    ],
    ids=["revision", "name", "no name", "configuration", "script and pickle"],
)
def test_a_data_set_that_is_not_on_the_hub_is_a_named_error(hub: HubRun, source: str, message: str) -> None:
    assert hub.outcomes[source]["error"] == (BadAddress if "/many/" in source else DataError).__name__
    assert hub.outcomes[source]["message"].startswith(message)


@pytest.mark.parametrize("source", ["hub:tests/failing", "hub:tests/silent"])
@pytest.mark.fault("hub-unreachable")
def test_a_hub_that_cannot_be_reached_is_a_named_error_within_seconds(hub: HubRun, source: str) -> None:
    outcome = hub.outcomes[source]
    assert outcome["error"] == SourceUnreachable.__name__
    assert "sample" in outcome["message"]
    assert "local folder" in outcome["message"]
    assert "s3://bucket/prefix/" in outcome["message"]
    assert outcome["seconds"] < 10


@pytest.mark.fault("hub-unreachable")
def test_a_split_that_cannot_be_downloaded_is_not_drawn_from_train(hub: HubRun) -> None:
    assert hub.outcomes["hub:tests/partly"]["error"] == SourceUnreachable.__name__


@pytest.mark.fault("hub-unreachable")
def test_without_a_network_the_cache_is_used_or_the_error_names_other_sources(hub: HubRun) -> None:
    outcomes = ingest_each(["hub:tests/good", "hub:tests/absent"], "http://127.0.0.1:9", hub.folder)
    assert outcomes["hub:tests/good"]["digest"] == hub.outcomes["hub:tests/good"]["digest"]
    assert outcomes["hub:tests/absent"]["error"] == SourceUnreachable.__name__
    assert (
        "DATA=sample, a local folder (DATA=path/to/folder) or DATA=s3://bucket/prefix/"
        in outcomes["hub:tests/absent"]["message"]
    )
    assert outcomes["hub:tests/absent"]["seconds"] < 10


@pytest.mark.slow
def test_memory_grows_little_with_the_rows(tmp_path: Path) -> None:
    """Texts are not kept in memory, only about fifty bytes per row, and a few times that while they are sorted."""
    script = (
        "import sys; from pathlib import Path; from benchmarks import measuring; from goemotions.data.dataset import ingest\n"
        "ingest(sys.argv[1], Path(sys.argv[2])); print(measuring.peak_mib())"
    )
    peaks, counts = [], (10_000, 70_000)
    for rows in counts:
        source = tmp_path / str(rows)
        source.mkdir()
        (source / "emotions.txt").write_text("\n".join(NAMES))
        for name, count in (("train", rows), ("dev", 10), ("test", 10)):
            lines = [
                f"{name} row {number} {'of some length ' * (number % 9)}\t{number % 2}\t{name}{number}"
                for number in range(count)
            ]
            (source / f"{name}.tsv").write_text("\n".join(lines))
        command = [sys.executable, "-c", script, str(source), str(tmp_path / f"out-{rows}")]
        peaks.append(float(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1]) * 2**20)
    assert (peaks[1] - peaks[0]) / (counts[1] - counts[0]) < 400
