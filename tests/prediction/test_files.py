"""Batch scoring: every row of a file gets the prediction of the predictor, and a malformed file is a named error."""

import csv
import gzip
import itertools
import json
import os
import signal
import subprocess
import sys
import time
import uuid
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from goemotions import strict_json
from goemotions.errors import DataError, StorageError
from goemotions.prediction import files, rows
from goemotions.prediction.files import score_file
from goemotions.prediction.predictor import Options, Predictor
from tests.support.bundles import assemble_former

LABELS = ("calm", "dread", "glee", "longing", "pity", "scorn", "plain")
TEXTS = ["a lake", "storm, gravel", 'the "old"\nballoon', "", "   ", "жаль 🎈", "sparrow " * 500]
PRESENT = [text for text in TEXTS if text.strip()]


@pytest.fixture(scope="module")
def predictor(candidate: Path, tmp_path_factory: pytest.TempPathFactory) -> Predictor:
    former = assemble_former(tmp_path_factory.mktemp("former") / "bundle", candidate)
    return Predictor.load(former, engine="openvino-fp32", threads=1)


def write_csv(path: Path, texts: list[str]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("id", "text", "note"), *((f"00{i}", text, "NA") for i, text in enumerate(texts))])
    return path


def read(path: Path) -> list[dict[str, Any]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file, delimiter="\t" if path.suffix == ".tsv" else ","))


@pytest.mark.fault("message-unbounded")
@pytest.mark.parametrize("ending", [".csv", ".tsv"])
def test_a_text_that_is_a_formula_stays_unless_the_file_is_for_a_spreadsheet(
    predictor: Predictor, tmp_path: Path, ending: str
) -> None:
    texts = ["=1+1", "@lake", "-0.5", "a=b"]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps({"text": text, "=n": -1}) + "\n" for text in texts))
    dialect = {".csv": "excel", ".tsv": "excel-tab"}[ending]
    for for_spreadsheet, expected in ((False, texts), (True, ["'=1+1", "'@lake", "-0.5", "a=b"])):
        output = tmp_path / f"out{ending}"
        score_file(predictor, tmp_path / "in.jsonl", output, all_scores=False, for_spreadsheet=for_spreadsheet)
        with output.open(newline="") as file:
            header, *rows = csv.reader(file, dialect)
        assert header[1] == ("'=n" if for_spreadsheet else "=n")
        assert [row[0] for row in rows] == expected
        assert {row[1] for row in rows} == {"-1"}


def test_every_row_of_a_csv_keeps_its_cells_and_gets_a_prediction(predictor: Predictor, tmp_path: Path) -> None:
    summary = score_file(predictor, write_csv(tmp_path / "in.csv", TEXTS), tmp_path / "out.csv")
    rows = read(tmp_path / "out.csv")
    assert list(rows[0]) == ["id", "text", "note", "labels", "truncated", *(f"p/{name}" for name in LABELS)]
    assert [(row["id"], row["text"], row["note"]) for row in rows] == [(f"00{i}", text, "NA") for i, text in enumerate(TEXTS)]
    assert (summary.rows, summary.blank, summary.truncated) == (len(TEXTS), 2, 1)
    predictions = predictor.predict(PRESENT, Options(all_scores=True))
    for row, prediction in zip([row for row in rows if row["text"].strip()], predictions, strict=True):
        assert row["labels"] == "|".join(prediction["labels"])
        assert row["truncated"] == str(prediction["truncated"]).lower()
        assert {name: float(row[f"p/{name}"]) for name in LABELS} == pytest.approx(prediction["scores"], abs=1e-5)
    for row in (row for row in rows if not row["text"].strip()):
        assert {row[name] for name in ("labels", "truncated", *(f"p/{name}" for name in LABELS))} == {""}


def test_a_parquet_file_keeps_its_types_and_metadata(predictor: Predictor, tmp_path: Path) -> None:
    texts = [*TEXTS, None]
    table = pa.table(
        {
            "text": pa.array(texts).dictionary_encode(),
            "tags": pa.array([[1, 2]] * len(texts)),
            "at": pa.array([1] * len(texts), pa.timestamp("ns", "UTC")),
        }
    ).replace_schema_metadata({"source": "here"})
    pq.write_table(table, tmp_path / "in.parquet", row_group_size=3)
    summary = score_file(predictor, tmp_path / "in.parquet", tmp_path / "out.parquet")
    scored = pq.read_table(tmp_path / "out.parquet")
    assert scored.select(table.column_names).equals(table)
    assert scored.schema.metadata[b"source"] == b"here"
    assert scored.schema.field("labels").type == pa.list_(pa.string())
    assert {scored.schema.field(f"p/{name}").type for name in LABELS} == {pa.float32()}
    assert (summary.rows, summary.blank, summary.truncated) == (8, 3, 1)
    predictions = iter(predictor.predict(PRESENT))
    for text, row in zip(texts, scored.to_pylist(), strict=True):
        if text and text.strip():
            assert row["labels"] == next(predictions)["labels"]
        else:
            assert (row["labels"], row["truncated"], row["p/calm"]) == ([], None, None)


def test_the_output_for_a_hugging_face_file_can_be_loaded_by_datasets(predictor: Predictor, tmp_path: Path) -> None:
    datasets.Dataset.from_dict({"text": ["a lake", "gravel"]}).to_parquet(str(tmp_path / "in.parquet"))
    score_file(predictor, tmp_path / "in.parquet", tmp_path / "out.parquet")
    loaded = datasets.load_dataset("parquet", data_files=str(tmp_path / "out.parquet"), cache_dir=str(tmp_path / "cache"))
    assert loaded["train"].column_names[:3] == ["text", "labels", "truncated"]


@pytest.mark.parametrize(("ending", "other"), list(itertools.product(files.ENDINGS, repeat=2)))
def test_every_format_becomes_every_other(predictor: Predictor, tmp_path: Path, ending: str, other: str) -> None:
    texts = ["a lake", 'the "old', "storm"]
    first, second = tmp_path / f"in{ending}", tmp_path / f"out{other}"
    if ending == ".parquet":
        pq.write_table(pa.table({"text": texts}), first)
    else:
        contents = {".csv": 'text\na lake\n"the ""old"\nstorm\n', ".tsv": 'text\na lake\nthe "old\nstorm\n'}
        contents[".jsonl"] = "".join(json.dumps({"text": text}) + "\n" for text in texts)
        first.write_text(contents[ending])
    score_file(predictor, first, second)
    predictions = [prediction["labels"] for prediction in predictor.predict(texts)]
    if other == ".parquet":
        scored = pq.read_table(second)
        assert (scored["text"].to_pylist(), scored["labels"].to_pylist()) == (texts, predictions)
    elif other == ".jsonl":
        objects = [json.loads(line) for line in second.read_text().splitlines()]
        assert [(row["text"], row["labels"]) for row in objects] == list(zip(texts, predictions, strict=True))
    elif other == ".csv":
        assert [(row["text"], row["labels"]) for row in read(second)] == list(
            zip(texts, map("|".join, predictions), strict=True)
        )
    else:
        cells = [line.split("\t")[:2] for line in second.read_text().splitlines()[1:]]
        assert cells == [[text, "|".join(labels)] for text, labels in zip(texts, predictions, strict=True)]


CSV_ROWS = b"text,n\na lake,1\ngravel,2\n"
INPUTS = {
    "in.csv.gz": gzip.compress(CSV_ROWS),
    "in.csv.zst": pa.compress(CSV_ROWS, codec="zstd", asbytes=True),
    "semicolons.csv": CSV_ROWS.replace(b",", b";"),
    "quoted.tsv": b'"text"\t"n"\n"a lake"\t"1"\n"gravel"\t"2"\n',
    "in.jsonl": b'{"text": "a lake", "n": "1"}\n{"n": "2", "text": "gravel"}\n',
    "in.json": b'[{"text": "a lake", "n": "1"},\n {"n": "2", "text": "gravel"}]',
    "capitals.csv": CSV_ROWS.replace(b"text", b"Text"),
}


@pytest.mark.parametrize("name", INPUTS)
def test_every_format_of_a_data_set_can_be_scored(predictor: Predictor, tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(INPUTS[name])
    score_file(predictor, tmp_path / name, tmp_path / "out.csv")
    scored = read(tmp_path / "out.csv")
    assert [(row.get("text") or row["Text"], row["n"]) for row in scored] == [("a lake", "1"), ("gravel", "2")]
    assert [row["labels"] for row in scored] == ["|".join(p["labels"]) for p in predictor.predict(["a lake", "gravel"])]


def test_a_file_without_a_header_has_numbers_as_columns(predictor: Predictor, tmp_path: Path) -> None:
    (tmp_path / "in.tsv").write_text('a "lake\t0\tx\ngravel\t1\ty\n')
    score_file(predictor, tmp_path / "in.tsv", tmp_path / "out.parquet", column="0")
    scored = pq.read_table(tmp_path / "out.parquet")
    assert scored.column_names[:4] == ["0", "1", "2", "labels"]
    assert scored["0"].to_pylist() == ['a "lake', "gravel"]


def test_a_file_of_texts_alone_is_not_cut_at_marks_that_all_of_them_have(predictor: Predictor, tmp_path: Path) -> None:
    (tmp_path / "in.csv").write_text("a lake; a storm\ngravel; a lake\n")
    score_file(predictor, tmp_path / "in.csv", tmp_path / "out.parquet", column="0", all_scores=False)
    assert pq.read_table(tmp_path / "out.parquet")["0"].to_pylist() == ["a lake; a storm", "gravel; a lake"]
    # With the text in another column, there are several.
    score_file(predictor, tmp_path / "in.csv", tmp_path / "out.parquet", column="1", all_scores=False)
    assert pq.read_table(tmp_path / "out.parquet")["1"].to_pylist() == [" a storm", " a lake"]


def test_a_column_with_the_name_of_an_added_one_is_kept_under_another(predictor: Predictor, tmp_path: Path) -> None:
    (tmp_path / "in.csv").write_text("text,labels,p/calm\na lake,dread,9\n")
    score_file(predictor, tmp_path / "in.csv", tmp_path / "out.csv")
    [row] = read(tmp_path / "out.csv")
    assert (row["input/labels"], row["input/p/calm"]) == ("dread", "9")
    assert row["labels"] == "|".join(predictor.predict(["a lake"])[0]["labels"])


def test_json_lines_keep_every_value_even_of_keys_that_come_late(predictor: Predictor, tmp_path: Path) -> None:
    objects = [{"text": "a lake", "n": 1, "tags": ["x", None]}] * 1100 + [{"text": None, "n": "one", "late": {"y": 1.5}}]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in objects))
    score_file(predictor, tmp_path / "in.jsonl", tmp_path / "out.jsonl", all_scores=False)
    scored = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    added = ("labels", "truncated")
    assert [{key: v for key, v in row.items() if key not in added and v is not None} for row in scored] == [
        {key: v for key, v in row.items() if v is not None} for row in objects
    ]


def test_without_all_scores_only_labels_are_written(predictor: Predictor, tmp_path: Path) -> None:
    score_file(predictor, write_csv(tmp_path / "in.csv", TEXTS), tmp_path / "out.csv", all_scores=False)
    assert list(read(tmp_path / "out.csv")[0]) == ["id", "text", "note", "labels", "truncated"]
    (tmp_path / "in.csv").write_text("text,p/calm\na lake,0.5\n")
    score_file(predictor, tmp_path / "in.csv", tmp_path / "out.csv", all_scores=False)
    assert list(read(tmp_path / "out.csv")[0]) == ["text", "p/calm", "labels", "truncated"]


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_predictions_do_not_depend_on_the_chunk_size(
    predictor: Predictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str
) -> None:
    words = ["lake", "storm", "balloon", "harbour", "sparrow", "gravel", ""]
    texts = [" ".join([word] * times) for times in range(1, 21) for word in words]
    path = tmp_path / f"in.{ending}"
    write_csv(path, texts) if ending == "csv" else pq.write_table(pa.table({"text": texts}), path)
    expected = score_file(predictor, path, tmp_path / "once.csv")
    monkeypatch.setattr(rows, "CHUNK", 7)
    summary = score_file(predictor, path, tmp_path / "often.csv")
    assert (
        (summary.rows, summary.blank, summary.truncated) == (expected.rows, expected.blank, expected.truncated) == (140, 20, 0)
    )
    for one, other in zip(read(tmp_path / "once.csv"), read(tmp_path / "often.csv"), strict=True):
        assert (one["text"], one["labels"]) == (other["text"], other["labels"])
        assert one["p/calm"] == other["p/calm"] or float(one["p/calm"]) == pytest.approx(float(other["p/calm"]), abs=1e-5)


@pytest.mark.parametrize(
    "content",
    [
        b"\xef\xbb\xbftext,n\r\na lake,1\r\n\r\ngravel,2",
        b'"text",n\n"a lake",1\n\n"gravel",2\n',
    ],
    ids=["byte order mark, CRLF, no last newline", "quoted names, an empty line"],
)
def test_the_usual_variants_of_a_text_file_are_read(predictor: Predictor, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "in.CSV").write_bytes(content)
    score_file(predictor, tmp_path / "in.CSV", tmp_path / "out.csv")
    assert [(row["text"], row["n"]) for row in read(tmp_path / "out.csv")] == [("a lake", "1"), ("gravel", "2")]


def test_an_empty_line_in_a_file_of_one_column_is_a_row(predictor: Predictor, tmp_path: Path) -> None:
    (tmp_path / "in.tsv").write_text("text\na lake\n\ngravel\n")
    assert score_file(predictor, tmp_path / "in.tsv", tmp_path / "out.tsv").blank == 1
    assert [row["text"] for row in read(tmp_path / "out.tsv")] == ["a lake", "", "gravel"]


@pytest.mark.fault("data-huge-text")
def test_a_comment_of_ten_megabytes_is_a_row_like_others(predictor: Predictor, tmp_path: Path) -> None:
    summary = score_file(predictor, write_csv(tmp_path / "in.csv", ["lake " * 2_000_000, "gravel"]), tmp_path / "out.csv")
    assert (summary.rows, summary.truncated) == (2, 1)


# By what is wrong: the name of the file, its content, and the expected error.
BAD = {
    "ragged row": ("in.csv", b"id,text\n1,a\n2,b,c\n", r"in.csv, line 3: 3 columns where line 1 names 2"),
    "ragged row behind a cell of two lines": ("in.csv", b'id,text\n1,"a\nb"\n2\n', r"in.csv, line 4: 1 columns"),
    "not UTF-8": ("in.csv", b"text\na lake\ncaf\xe9\n", r"in.csv, line 3: not UTF-8 \(byte 0xe9\)"),
    "UTF-16": ("in.csv", "text\na lake\n".encode("utf-16"), r"in.csv is UTF-16, not UTF-8"),
    "an open quote": ("in.csv", b'id,text\n1,a\n2,"b\n3,c\n', r"in.csv, line 3: the row there is no .csv"),
    "an open quote in a file too long to hold": (
        "in.csv",
        b'id,text\n1,"b\n' + b"3,c\n" * 5_000_000,
        r"in.csv, line 2: the row there is no .csv \(field larger",
    ),
    "another column": ("in.csv", b"id,comment\n1,a\n", r"no column 'text': give the one with the texts, of id, comment"),
    "another delimiter": ("in.csv", b"id/text\n1/a\n", r"no column 'text': give the one with the texts, of id/text"),
    "two of a column": ("in.csv", b"text,n,n\na,1,2\n", r"two columns 'n'"),
    "a column that is kept twice": ("in.csv", b"text,labels,input/labels\na,1,2\n", r"has two columns 'input/labels'"),
    "a JSON column": ("in.jsonl", b'{"text": "a"}\n{"text": 1}\n', r"column 'text' has values other than strings"),
    "empty": ("in.csv", b"", r"in.csv is empty"),
    "header only": ("in.tsv", b"id\ttext\n", r"in.tsv has no rows"),
    "gzip": ("in.csv", b"\x1f\x8b\x08\x00", r"is not a text file, as its ending says"),
    "a spreadsheet": ("in.csv", b"PK\x03\x04....", r"is not a text file, as its ending says"),
    "several files in a zip": ("in.csv.zip", b"PK\x05\x06" + bytes(18), r"in.csv.zip holds 0 files, and one is read"),
    "no Parquet": ("in.parquet", b"text\na lake\n", r"in.parquet is not a complete Parquet file"),
    "an unknown ending": (
        "in.xlsx",
        b"",
        r"in.xlsx has none of the endings .csv, .tsv, .jsonl, .ndjson, .json, .parquet, .arrow",
    ),
    "a pickle": ("in.pkl", b"", r"in.pkl has none of the endings"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_file_that_does_not_match_its_ending_is_a_named_error_and_nothing_is_written(
    predictor: Predictor, tmp_path: Path, name: str
) -> None:
    file, content, expected = BAD[name]
    (tmp_path / file).write_bytes(content)
    with pytest.raises(DataError, match=expected):
        score_file(predictor, tmp_path / file, tmp_path / "out" / "labelled.csv")
    assert list((tmp_path / "out").glob("*")) == []


def test_a_truncated_parquet_file_is_a_named_error(predictor: Predictor, tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": TEXTS}), tmp_path / "whole.parquet")
    content = (tmp_path / "whole.parquet").read_bytes()
    (tmp_path / "in.parquet").write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match=r"in.parquet is not a complete Parquet file"):
        score_file(predictor, tmp_path / "in.parquet", tmp_path / "out.csv")
    (tmp_path / "in.parquet").write_bytes(content[:4] + b"\xff" * 40 + content[44:])
    with pytest.raises(DataError, match=r"in.parquet is not a complete Parquet file"):
        score_file(predictor, tmp_path / "in.parquet", tmp_path / "out.csv")


def test_a_parquet_column_of_invalid_utf8_is_a_named_error(predictor: Predictor, tmp_path: Path) -> None:
    broken = pa.Array.from_buffers(pa.string(), 1, pa.array([b"caf\xe9"]).buffers())
    pq.write_table(pa.table({"text": broken}), tmp_path / "in.parquet")
    with pytest.raises(DataError, match="rows from 1 on: not UTF-8"):
        score_file(predictor, tmp_path / "in.parquet", tmp_path / "out.csv")
    pq.write_table(pa.table({"text": [1, 2]}), tmp_path / "in.parquet")
    with pytest.raises(DataError, match="column 'text' has type int64, not text"):
        score_file(predictor, tmp_path / "in.parquet", tmp_path / "out.csv")


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary(), pa.binary(6), pa.binary_view()])
@pytest.mark.parametrize("ending", [".parquet", ".arrow"])
def test_texts_as_bytes_are_scored_as_texts(predictor: Predictor, tmp_path: Path, kind: pa.DataType, ending: str) -> None:
    """As Impala and fastparquet write them; `ingest` reads them, too."""
    for texts, error in ([b"a lake", b"gravel"], ""), ([b"caf\xe9!!"], "not UTF-8: re-encode it"):
        table = pa.table({"text": pa.array(texts, kind)})
        if ending == ".parquet":
            pq.write_table(table, tmp_path / f"in{ending}")
        else:
            with pa.ipc.new_file(str(tmp_path / f"in{ending}"), table.schema) as file:
                file.write_table(table)
        for output in ("out.jsonl", "out.parquet", "out.csv"):
            with pytest.raises(DataError, match=error) if error else nullcontext():
                score_file(predictor, tmp_path / f"in{ending}", tmp_path / output)
        if not error:
            rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
            assert (
                [row["text"] for row in rows]
                == ["a lake", "gravel"]
                == pq.read_table(tmp_path / "out.parquet")["text"].to_pylist()
            )
            assert [row["labels"] for row in rows] == [one["labels"] for one in predictor.predict(["a lake", "gravel"])]


def test_a_uuid_is_written_as_people_write_it(predictor: Predictor, tmp_path: Path) -> None:
    ids = [uuid.UUID(int=7), None]
    column = pa.array([one and one.bytes for one in ids], pa.uuid())
    pq.write_table(pa.table({"text": ["a lake", "gravel"], "key": column}), tmp_path / "in.parquet")
    score_file(predictor, tmp_path / "in.parquet", tmp_path / "out.csv")
    assert [row["key"] for row in read(tmp_path / "out.csv")] == [str(ids[0]), ""]


def test_values_that_a_text_file_cannot_hold_are_named_errors(predictor: Predictor, tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["a"], "place": [{"x": 1}]}), tmp_path / "in.parquet")
    with pytest.raises(
        DataError, match=r"column 'place' has type struct<x: int64>, which a text file cannot have: write a .parquet"
    ):
        score_file(predictor, tmp_path / "in.parquet", tmp_path / "out.csv")
    pq.write_table(pa.table({"text": ["a"], "picture": [b"\xff"]}), tmp_path / "in.parquet")
    for ending in (".csv", ".jsonl"):
        with pytest.raises(DataError, match=r"column 'picture' has type binary, which a text file cannot have"):
            score_file(predictor, tmp_path / "in.parquet", tmp_path / f"out{ending}")
    with pytest.raises(DataError, match=r"a tab or a line break, which a .tsv file cannot have"):
        score_file(predictor, write_csv(tmp_path / "in.csv", ["two\nlines"]), tmp_path / "out.tsv")
    (tmp_path / "in.csv").write_bytes(b'text,"two\nlines"\na,1\n')
    with pytest.raises(DataError, match=r"a tab or a line break, which a .tsv file cannot have"):
        score_file(predictor, tmp_path / "in.csv", tmp_path / "out.tsv")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.csv", "in.parquet"]


def test_json_has_null_for_numbers_that_it_does_not_have(predictor: Predictor, tmp_path: Path) -> None:
    nan = float("nan")
    table = pa.table({"text": ["a lake", "gravel"], "n": [nan, 1.5], "in": [{"m": [nan]}, None]})
    pq.write_table(table, tmp_path / "in.parquet")
    score_file(predictor, tmp_path / "in.parquet", tmp_path / "out.jsonl")
    rows = [strict_json.parse(line, "row") for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [(row["n"], row["in"]) for row in rows] == [(None, {"m": [None]}), (1.5, None)]


def test_columns_of_maps_and_with_dots_in_their_names_are_kept(predictor: Predictor, tmp_path: Path) -> None:
    """As Spark, and pandas with `json_normalize`, write them."""
    maps = pa.array([[("k", "x")], None], pa.map_(pa.string(), pa.string()))
    table = pa.table({"body.text": ["a lake", "gravel"], "meta.lang": ["en", "de"], "tags": maps})
    pq.write_table(table, tmp_path / "in.parquet")
    score_file(predictor, tmp_path / "in.parquet", tmp_path / "out.parquet", "body.text")
    assert pq.read_table(tmp_path / "out.parquet").select(table.column_names).equals(table)


def test_a_null_in_a_list_is_written_as_an_empty_item(predictor: Predictor, tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["a"] * 3, "tags": [["x", None, "z"], [], None]}), tmp_path / "in.parquet")
    score_file(predictor, tmp_path / "in.parquet", tmp_path / "out.csv")
    with (tmp_path / "out.csv").open(newline="") as file:
        assert [row["tags"] for row in csv.DictReader(file)] == ["x||z", "", ""]


def test_the_input_is_never_overwritten(predictor: Predictor, tmp_path: Path) -> None:
    path = write_csv(tmp_path / "in.csv", TEXTS)
    before = path.read_bytes()
    (tmp_path / "link.csv").symlink_to(path)
    for output in (path, tmp_path / "link.csv", tmp_path / "sub" / ".." / "in.csv"):
        (tmp_path / "sub").mkdir(exist_ok=True)
        with pytest.raises(DataError, match="is the input itself"):
            score_file(predictor, path, output)
    assert path.read_bytes() == before


def test_a_missing_file_and_an_unwritable_output_are_named_errors(predictor: Predictor, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone.csv cannot be read \(No such file or directory\)"):
        score_file(predictor, tmp_path / "gone.csv", tmp_path / "out.csv")
    path = write_csv(tmp_path / "in.csv", TEXTS)
    for output in (path / "out.csv", Path("/proc/out.csv")):
        with pytest.raises(StorageError, match=r"out.csv cannot be written \("):
            score_file(predictor, path, output)


@pytest.mark.parametrize("ending", files.ENDINGS)
@pytest.mark.fault("disk-full")
def test_a_full_disk_is_a_named_error_and_the_earlier_output_is_kept(predictor: Predictor, tmp_path: Path, ending: str) -> None:
    path, output = write_csv(tmp_path / "in.csv", ["a lake"] * 9), tmp_path / f"out{ending}"
    output.write_text("earlier")
    (tmp_path / f".out{ending}.partial").symlink_to("/dev/full")
    with pytest.raises(StorageError, match="No space left on device"):
        score_file(predictor, path, output)
    assert output.read_text() == "earlier"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.csv", f"out{ending}"]


def test_a_killed_run_keeps_the_earlier_output_and_can_be_repeated(predictor: Predictor, whole: Path, tmp_path: Path) -> None:
    path, output = write_csv(tmp_path / "in.csv", ["a lake"] * 20_000), tmp_path / "out.csv"
    output.write_text("earlier")
    script = "from goemotions.cli import main as cli; from goemotions.prediction import rows; rows.CHUNK = 64; cli.main()"
    arguments = ["score", "--bundle", str(whole), "--input", str(path), "--output", str(output)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    running = subprocess.Popen([sys.executable, "-c", script, *arguments], stderr=subprocess.DEVNULL, env=environment)
    partial = tmp_path / ".out.csv.partial"
    while not (partial.exists() and partial.stat().st_size) and running.poll() is None:
        time.sleep(0.01)
    running.send_signal(signal.SIGKILL)
    assert running.wait() == -signal.SIGKILL
    assert output.read_text() == "earlier"
    assert score_file(predictor, path, output).rows == 20_000
    assert not partial.exists()


@pytest.mark.slow
def test_a_string_that_many_rows_of_a_parquet_file_have_is_not_held_once_per_row(tmp_path: Path) -> None:
    """Dictionaries hold it once in the file: 400 rows of a megabyte each are half a kilobyte there."""
    text = "a" * 2**20
    strings = {
        "text": [text] * 400,
        "large": pa.array([text, None] * 200, pa.large_string()),
        "tags": [[text], [], None, ["b"]] * 100,
    }
    table = pa.table(strings | {"view": pa.array(["v"] * 400, pa.string_view()), "number": range(400)})
    pq.write_table(table, tmp_path / "a.parquet")
    source = rows.open_rows("a.parquet", lambda: (tmp_path / "a.parquet").open("rb"), "text")
    batches = []
    for batch in source.batches(0, None):
        assert batch.nbytes < 2 * rows.CHUNK_CHARACTERS
        batches.append(batch.slice(0, 4).to_pylist())
    first = table.slice(0, 4).to_pylist()
    assert batches[0] == first
    assert sum(batch.num_rows for batch in source.batches(0, None)) == 400
    assert [batch.column("number").to_pylist() for batch in source.batches(7, 2)] == [[7, 8]]
