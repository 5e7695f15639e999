"""Batch scoring by shards: one output row per input row, in order, with any number of processes, even if some are killed."""

import gzip
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pandas as pd
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from goemotions.errors import DataError, FileChanged, ModelError, StorageError, UntrustedBundle
from goemotions.prediction import files, plans, shards
from goemotions.prediction import rows as rows_module
from goemotions.prediction.predictor import Options, Predictor
from goemotions.storage import manifest, s3, store

WORDS = ["lake", "storm", "balloon", "harbour", "sparrow", "gravel", "table"]


@pytest.fixture(params=["folder", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A location that only this test uses, with its final slash."""
    return request.getfixturevalue("bucket") if request.param == "s3" else f"{tmp_path}/store/"


def comments(count: int, start: int = 0) -> pa.Table:
    """Distinct rows; every ninth has no text."""
    texts = [None if n % 9 == 8 else f"{WORDS[n % 7]} " * (1 + n % 11) for n in range(start, start + count)]
    return pa.table({"n": pa.array(range(start, start + count), pa.int64()), "text": pa.array(texts, pa.string())})


def write(folder: Path, *counts: int, row_group_size: int = 50) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    start = 0
    for number, count in enumerate(counts):
        pq.write_table(comments(count, start), folder / f"in-{number:03d}.parquet", row_group_size=row_group_size)
        start += count
    return folder


def scored(output: Path) -> pa.Table:
    """The output, read as a folder of Parquet files."""
    return pq.read_table(output)


def assert_correct(predictor: Predictor, table: pa.Table, count: int) -> bool:
    expected = comments(count)
    texts = [text for text in expected["text"].to_pylist() if text]
    predictions = iter(predictor.predict(texts, Options(all_scores=True)))
    rows = table.to_pylist()
    assert [row["n"] for row in rows] == list(range(count))
    assert table["text"].to_pylist() == expected["text"].to_pylist()
    for row in rows:
        prediction: dict[str, Any] = next(predictions) if row["text"] else {"labels": []}
        assert row["labels"] == prediction["labels"]
        assert row["p/calm"] == (pytest.approx(prediction["scores"]["calm"], abs=0.03) if row["text"] else None)
    return True


def run(source: Path | str, output: Path, whole: Path, predictor: Predictor | None = None, **options: Any) -> Any:
    plans.plan(str(source), str(output), str(whole), **options)
    shards.score(str(output), predictor=predictor)
    return shards.finish(str(output))


def test_every_row_of_every_file_is_scored_in_order(predictor: Predictor, whole: Path, tmp_path: Path) -> None:
    summary = run(write(tmp_path / "in", 130, 0, 71), tmp_path / "out", whole, predictor, shard_rows=60)
    assert assert_correct(predictor, scored(tmp_path / "out"), 201)
    assert (summary.rows, summary.blank) == (201, 22)
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == [".huggingface.yaml", "_plan.json", "_scored.json", *(f"part-{number:06d}.parquet" for number in range(5))]
    done = json.loads((tmp_path / "out" / "_scored.json").read_text())
    assert (done["rows"], done["shards"], done["bundle"]) == (201, 5, str(whole))


@settings(max_examples=15, deadline=None)
@given(
    counts=st.lists(st.integers(0, 40), min_size=1, max_size=4).filter(sum),
    shard_rows=st.integers(1, 50),
    row_group_size=st.integers(1, 30),
)
def test_each_row_is_in_one_shard_whatever_the_files_and_row_groups(
    predictor: Predictor,
    whole: Path,
    tmp_path_factory: pytest.TempPathFactory,
    counts: list[int],
    shard_rows: int,
    row_group_size: int,
) -> None:
    folder = tmp_path_factory.mktemp("rows")
    run(write(folder / "in", *counts, row_group_size=row_group_size), folder / "out", whole, predictor, shard_rows=shard_rows)
    assert scored(folder / "out")["n"].to_pylist() == list(range(sum(counts)))


@pytest.mark.parametrize("name", ["in-{}.csv", "in-{}.csv.gz", "in-{}.jsonl", "part-{}.tsv"])
def test_a_folder_of_text_files_is_scored_in_order(predictor: Predictor, whole: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / "in").mkdir()
    table, start = comments(201), 0
    for number, count in enumerate((130, 71)):
        rows = table.slice(start, count).to_pylist()
        start += count
        if "jsonl" in name:
            content = "".join(json.dumps(row) + "\n" for row in rows)
        else:
            mark = "\t" if "tsv" in name else ","
            content = f"n{mark}text\n" + "".join(f"{row['n']}{mark}{row['text'] or ''}\n" for row in rows)
        encoded = gzip.compress(content.encode()) if name.endswith(".gz") else content.encode()
        (tmp_path / "in" / name.format(number)).write_bytes(encoded)
    (tmp_path / "in" / "_SUCCESS").touch()
    summary = run(tmp_path / "in", tmp_path / "out", whole, predictor, shard_rows=60)
    assert (summary.rows, summary.blank) == (201, 22)
    result = scored(tmp_path / "out")
    assert list(map(int, result["n"].to_pylist())) == list(range(201))
    assert [text or None for text in result["text"].to_pylist()] == table["text"].to_pylist()
    assert len(list((tmp_path / "out").glob("part-*"))) == 5


def test_a_single_file_is_accepted_as_input(predictor: Predictor, whole: Path, tmp_path: Path) -> None:
    write(tmp_path / "in", 20, 30)
    assert run(tmp_path / "in" / "in-000.parquet", tmp_path / "out", whole, predictor).rows == 20


def test_several_processes_share_a_plan(predictor: Predictor, whole: Path, tmp_path: Path) -> None:
    source = write(tmp_path / "in", 100)
    plans.plan(str(source), str(tmp_path / "out"), str(whole), shard_rows=9)
    for number in (2, 0, 1):
        with pytest.raises(DataError, match=r"of 12 shards are missing \(part-00000\d.parquet\)"):
            shards.finish(str(tmp_path / "out"))
        shards.score(str(tmp_path / "out"), share=(number, 3), predictor=predictor)
    shards.finish(str(tmp_path / "out"))
    assert assert_correct(predictor, scored(tmp_path / "out"), 100)


def test_finished_shards_are_not_scored_again(predictor: Predictor, whole: Path, tmp_path: Path) -> None:
    source = write(tmp_path / "in", 100)
    run(source, tmp_path / "out", whole, predictor, shard_rows=30)
    (tmp_path / "out" / "part-000001.parquet").unlink()
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("part-*")}
    run(source, tmp_path / "out", whole, predictor, shard_rows=30)
    after = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("part-*")}
    assert before.items() <= after.items()
    assert assert_correct(predictor, scored(tmp_path / "out"), 100)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda source: {"column": "n"}, "another column"),
        (lambda source: {"shard_rows": 10, "all_scores": False}, "another all_scores and shard_rows"),
    ],
)
def test_an_output_of_another_input_or_other_options_is_refused(
    predictor: Predictor, whole: Path, tmp_path: Path, change: Callable[[Path], Any], reason: str
) -> None:
    source = write(tmp_path / "in", 20)
    run(source, tmp_path / "out", whole, predictor)
    with pytest.raises(DataError, match=f"has scores of {reason}: empty it, or choose another folder"):
        run(source, tmp_path / "out", whole, predictor, **(change(source) or {}))


def test_files_that_are_no_rows_of_the_folder_are_not_scored(predictor: Predictor, whole: Path, tmp_path: Path) -> None:
    """Copies of an editor, and what `datasets` computed from a folder."""
    datasets.Dataset.from_dict({"text": ["a lake", "gravel"]}).save_to_disk(str(tmp_path / "in" / "saved"))
    datasets.load_from_disk(str(tmp_path / "in" / "saved")).map(lambda row: {"text": row["text"].upper()})
    write(tmp_path / "in" / ".ipynb_checkpoints", 5)
    run(tmp_path / "in", tmp_path / "out", whole, predictor)
    assert pq.read_table(tmp_path / "out")["text"].to_pylist() == ["a lake", "gravel"]


def test_linked_files_and_folders_are_scored_once(predictor: Predictor, whole: Path, tmp_path: Path) -> None:
    write(tmp_path / "elsewhere", 7, 9)
    write(tmp_path / "in", 5)
    (tmp_path / "in" / "more").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "in" / "again").symlink_to(tmp_path / "in")
    (tmp_path / "in" / "one.parquet").symlink_to(tmp_path / "elsewhere" / "in-000.parquet")
    assert run(tmp_path / "in", tmp_path / "out", whole, predictor).rows == 5 + 7 + 9 + 7


def test_what_looks_like_a_file_of_rows_and_is_none_is_not_left_out(predictor: Predictor, whole: Path, tmp_path: Path) -> None:
    write(tmp_path / "in", 5)
    (tmp_path / "in" / "more.csv").symlink_to("nowhere")
    with pytest.raises(DataError, match=r"more.csv is a link to a file that is not there: copy the file"):
        run(tmp_path / "in", tmp_path / "out", whole, predictor)
    (tmp_path / "in" / "more.csv").unlink()
    os.mkfifo(tmp_path / "in" / "more.csv")
    with pytest.raises(DataError, match=r"more.csv is a pipe or a device, not a file: write what it holds"):
        run(tmp_path / "in", tmp_path / "out", whole, predictor)


@pytest.mark.parametrize("ending", ["parquet", "csv"])
def test_columns_in_the_names_of_folders_are_kept(
    predictor: Predictor, whole: Path, place: str, tmp_path: Path, ending: str
) -> None:
    """As Spark, Arrow and Polars write a table by the values of some columns."""
    rows = {"text": ["the lake", "a storm", "gravel"], "day": ["2026-01-02", None, "a b/c=d"], "labels": ["x", "y", "x"]}
    ds.write_dataset(
        pa.table(rows),
        tmp_path / "in",
        format=ending,
        partitioning=["day", "labels"],
        partitioning_flavor="hive",
    )
    store.put(tmp_path / "in", place)
    run(place, tmp_path / "out", whole, predictor)
    found = scored(tmp_path / "out")
    assert found.column_names[:4] == ["text", "day", "input/labels", "labels"]
    assert sorted(zip(*(found[name].to_pylist() for name in found.column_names[:3]), strict=True), key=str) == sorted(
        zip(*rows.values(), strict=True), key=str
    )


@pytest.mark.parametrize("rows", [100, 25])
def test_datasets_loads_an_output_by_its_folder(predictor: Predictor, whole: Path, tmp_path: Path, rows: int) -> None:
    run(write(tmp_path / "in", 50), tmp_path / "out", whole, predictor, shard_rows=rows)
    loaded = datasets.load_dataset(str(tmp_path / "out"), cache_dir=str(tmp_path / "cache"))["train"]
    assert loaded["n"][:] == list(range(50))
    # Other readers of the folder pass over what is no shard.
    assert len(ds.dataset(tmp_path / "out").to_table()) == len(pd.read_parquet(tmp_path / "out")) == 50


@pytest.mark.parametrize("folder", ["_temporary/0", "_delta_log", ".hoodie"])
def test_a_folder_of_which_some_files_are_not_rows_of_the_table_is_refused(whole: Path, tmp_path: Path, folder: str) -> None:
    write(tmp_path / "in", 5)
    write(tmp_path / "in" / folder, 5)
    with pytest.raises(DataError, match=r"in (is a (Delta|Hudi) table|was not written completely)"):
        run(tmp_path / "in", tmp_path / "out", whole)


def test_input_that_cannot_be_scored_is_a_named_error_and_nothing_is_written(
    predictor: Predictor, whole: Path, tmp_path: Path
) -> None:
    (tmp_path / "none").mkdir()
    with pytest.raises(DataError, match=r"has no file of rows"):
        run(tmp_path / "none", tmp_path / "out", whole)
    with pytest.raises(DataError, match="has no rows"):
        run(write(tmp_path / "empty", 0), tmp_path / "out", whole)
    with pytest.raises(DataError, match=r"in-000.parquet has no column 'body'"):
        run(write(tmp_path / "in", 5), tmp_path / "out", whole, column="body")
    pq.write_table(pa.table({"text": ["a"]}), tmp_path / "in" / "z.parquet")
    with pytest.raises(DataError, match=r"z.parquet has other columns than in-000.parquet"):
        run(tmp_path / "in", tmp_path / "out", whole)
    (tmp_path / "in" / "z.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError, match=r"z.parquet is not a complete Parquet file"):
        run(tmp_path / "in", tmp_path / "out", whole)
    (tmp_path / "in" / "z.parquet").unlink()
    for within in (tmp_path / "in", f"{tmp_path}/in/", tmp_path / "in" / "out", tmp_path / "none" / ".." / "in"):
        with pytest.raises(DataError, match="is the input itself, or within it"):
            run(tmp_path / "in", within, whole)
    with pytest.raises(DataError, match="gone does not exist"):
        run(tmp_path / "gone", tmp_path / "out", whole)
    with pytest.raises(ModelError, match="none is not a bundle"):
        run(tmp_path / "in", tmp_path / "out", tmp_path / "none")
    pq.write_table(pa.table({"text": [0.5]}), tmp_path / "none" / "in.parquet")
    with pytest.raises(DataError, match=r"in.parquet: column 'text' has type double, not text"):
        run(tmp_path / "none", tmp_path / "out", whole)
    assert not (tmp_path / "out").exists()
    with pytest.raises(DataError, match=r"has no readable _plan.json"):
        shards.score(str(tmp_path / "out"))


def test_spellings_of_the_same_location_are_equal(
    predictor: Predictor, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "in.parquet", 20)
    monkeypatch.chdir(tmp_path)
    for source in ("in.parquet", "./in.parquet/", tmp_path / "in.parquet"):
        assert run(source, "out", whole, predictor).rows == 20
    assert run("in.parquet/in-000.parquet", "in.parquet/out", whole, predictor).rows == 20


def test_two_processes_may_score_the_same_shards(predictor: Predictor, whole: Path, tmp_path: Path) -> None:
    """One finishes while the other still writes: the unfinished file is removed, and the finished shard is kept."""
    output = str(tmp_path / "out")
    run(write(tmp_path / "in", 40), output, whole, predictor, shard_rows=20)
    finished = (tmp_path / "out" / "part-000001.parquet").read_bytes()
    with store.writing(output, "part-000001.parquet") as path:
        path.write_bytes(b"half")
        shards.finish(output)
    assert (tmp_path / "out" / "part-000001.parquet").read_bytes() == finished
    with pytest.raises(FileNotFoundError), store.writing(output, "part-000002.parquet"):
        pass


def test_a_shard_that_another_process_wrote_is_not_written_again(
    predictor: Predictor, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output, label = str(tmp_path / "out"), files.label_rows
    plans.plan(str(write(tmp_path / "in", 60)), output, str(whole), shard_rows=20)
    labelled: list[int] = []

    def label_beside_another(predictor: Predictor, rows: pa.RecordBatch, *others: Any) -> pa.RecordBatch:
        labelled.append(rows["n"][0].as_py())
        if len(labelled) == 1:
            # Another process has another id, and so another temporary file.
            with monkeypatch.context() as other:
                other.setattr(os, "getpid", lambda: 2**22 + 1)
                shards.score(output, predictor=predictor)
        return label(predictor, rows, *others)

    monkeypatch.setattr(files, "label_rows", label_beside_another)
    shards.score(output, predictor=predictor)
    assert labelled == [0, 0, 20, 40]
    assert assert_correct(predictor, scored(tmp_path / "out"), 60)


@pytest.mark.fault("input-changed")
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda source: pq.write_table(comments(7), source / "in-000.parquet"), r"in-000\.parquet has changed"),
        (lambda source: os.utime(source / "in-000.parquet", (1, 1)), r"in-000\.parquet has changed"),
        (lambda source: pq.write_table(comments(7), source / "a.parquet"), r"a\.parquet is new"),
        (lambda source: (source / "in-001.parquet").unlink(), r"in-001\.parquet is missing"),
    ],
)
def test_a_changed_input_is_not_resumed(
    predictor: Predictor, whole: Path, tmp_path: Path, change: Callable[[Path], Any], reason: str
) -> None:
    source, output = write(tmp_path / "in", 20, 20), str(tmp_path / "out")
    plans.plan(str(source), output, str(whole), shard_rows=20)
    shards.score(output, share=(0, 2), predictor=predictor)
    change(source)
    with pytest.raises(FileChanged, match=rf"^{reason} since {output} was planned: restore the input as it was, or choose"):
        run(source, tmp_path / "out", whole, predictor, shard_rows=20)


@pytest.mark.fault("input-changed")
@pytest.mark.parametrize("name", ["in.parquet", "in.csv", "in.jsonl.gz"])
def test_a_file_that_is_replaced_between_two_shards_is_a_named_error(
    predictor: Predictor, whole: Path, tmp_path: Path, place: str, name: str
) -> None:
    """As many rows before and after, on disk and in S3: without the check, half of the output would be of each."""

    def put(text: str) -> None:
        rows, path = pa.table({"text": [text] * 40}), tmp_path / "from" / name
        path.parent.mkdir(exist_ok=True)
        if name.endswith(".parquet"):
            pq.write_table(rows, path)
        else:
            lines = ["text", *rows["text"].to_pylist()] if name == "in.csv" else map(json.dumps, rows.to_pylist())
            content = "\n".join(lines).encode() + b"\n"
            path.write_bytes(gzip.compress(content, mtime=0) if name.endswith(".gz") else content)
        store.put(path.parent, f"{place}in/")

    put("lake")
    plans.plan(f"{place}in/", f"{place}out/", str(whole), shard_rows=20)
    shards.score(f"{place}out/", share=(0, 2), predictor=predictor)
    put("hill")
    changed = rf"in/{name} has changed since it was listed, when it had [\d,]+ bytes: restore it as it was, or begin again"
    with pytest.raises(FileChanged, match=changed):
        shards.score(f"{place}out/", predictor=predictor)
    assert not [file for file in store.files(f"{place}out/") if file.name == "part-000001.parquet"]


def rewritten(folder: Path, name: str, change: Callable[[Any], Any]) -> None:
    """Changes a JSON file of a bundle and writes its manifest again."""
    content = json.loads((folder / name).read_text())
    (folder / name).write_text(json.dumps(change(content) or content))
    metadata = {key: value for key, value in json.loads((folder / manifest.NAME).read_text()).items() if key != "files"}
    manifest.write(folder, **metadata)


@pytest.mark.fault("input-changed")
@pytest.mark.parametrize("workers", [1, 2])
def test_another_bundle_in_the_place_of_the_planned_one_is_a_named_error(
    predictor: Predictor, whole: Path, tmp_path: Path, workers: int
) -> None:
    """Otherwise half of the output would be of each model."""
    folder, output = Path(shutil.copytree(whole, tmp_path / "bundle")), str(tmp_path / "out")
    plans.plan(str(write(tmp_path / "in", 60)), output, str(folder), shard_rows=20)
    shards.score(output, share=(0, 3), predictor=predictor)
    rewritten(folder, "thresholds.json", lambda content: content.update(thresholds=dict.fromkeys(content["thresholds"], 0.9)))
    with pytest.raises(FileChanged, match=rf"^{folder} is another bundle than {output} was planned for: restore it, or choose"):
        shards.score(output, workers=workers, threads=1)
    assert [file.name for file in store.files(output)] == ["_plan.json", "part-000000.parquet"]


@pytest.mark.fault("bundle-mixed")
def test_workers_name_what_is_wrong_with_a_bundle(whole: Path, tmp_path: Path) -> None:
    folder, output = Path(shutil.copytree(whole, tmp_path / "bundle")), str(tmp_path / "out")
    rewritten(folder, "tokenizer.json", lambda content: content["model"]["vocab"].update(lake=9999))
    plans.plan(str(write(tmp_path / "in", 60)), output, str(folder), shard_rows=20)
    with pytest.raises(ModelError, match=r"embeds 187 tokens, but the tokenizer beside it has ids up to 9999"):
        shards.score(output, workers=2, threads=1)


@pytest.mark.fault("input-changed")
@pytest.mark.parametrize("name", ["in.parquet", "in.csv"])
def test_a_file_that_is_replaced_while_a_shard_is_read_is_a_named_error(
    predictor: Predictor, whole: Path, tmp_path: Path, place: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its size and its rows stay the same; it changes after the first batch of rows was read."""
    source = tmp_path / "from"
    source.mkdir()
    rows = 3 * rows_module.CHUNK
    texts = [random.Random(number).randbytes(60).hex() for number in range(rows)]
    monkeypatch.setattr(s3, "READ_BYTES", 2**16)
    pq.write_table(pa.table({"text": texts}), source / "in.parquet", row_group_size=rows_module.CHUNK)
    (source / "in.csv").write_text("text\n" + "\n".join(texts) + "\n")
    for other in {"in.parquet", "in.csv"} - {name}:
        (source / other).unlink()
    store.put(source, f"{place}in/")
    plans.plan(f"{place}in/", f"{place}out/", str(whole))
    labelled = 0

    def label_then_replace(_: Predictor, batch: pa.RecordBatch, column: str, schema: pa.Schema) -> pa.RecordBatch:
        nonlocal labelled
        if not labelled:
            content = bytearray((source / name).read_bytes())
            content[-len(content) // 3] ^= 1
            (source / name).write_bytes(content)
            store.put(source, f"{place}in/")
        labelled += len(batch)
        columns = [pa.nulls(len(batch), field.type) for field in list(schema)[1:]]
        return pa.RecordBatch.from_arrays([batch[column], *columns], schema=schema)

    monkeypatch.setattr(files, "label_rows", label_then_replace)
    with pytest.raises(FileChanged, match=rf"in/{name} has changed since it was listed"):
        shards.score(f"{place}out/", predictor=predictor)
    assert [file.name for file in store.files(f"{place}out/")] == ["_plan.json"]


@pytest.mark.fault("input-changed")
def test_a_file_that_changes_while_it_is_scored_alone_is_a_named_error(
    predictor: Predictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, label = tmp_path / "in.csv", files.label_rows
    source.write_text("text\na\nb\n")

    def label_then_append(*arguments: Any) -> pa.RecordBatch:
        source.write_text("text\nc\nd\n")
        os.utime(source, (1, 1))
        return label(*arguments)

    monkeypatch.setattr(files, "label_rows", label_then_append)
    with pytest.raises(FileChanged, match=r"in\.csv has changed since it was listed, when it had 9 bytes"):
        files.score_file(predictor, source, tmp_path / "out.csv")
    assert not (tmp_path / "out.csv").exists()


def _older(content: dict[str, Any]) -> None:
    del content["format"], content["digest"]


def _cut(content: dict[str, Any]) -> None:
    content["shards"].pop()


@pytest.mark.fault("plan-damaged")
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda text: json.dumps(changed(json.loads(text), _older)), "_plan.json is of another version of this package"),
        (lambda text: json.dumps(changed(json.loads(text), _cut)), "has no readable _plan.json: it is missing or damaged"),
        (lambda text: text[: len(text) // 2], "has no readable _plan.json: it is missing or damaged"),
        (lambda text: "", "has no readable _plan.json: it is missing or damaged"),
        (lambda text: "[]", "has no readable _plan.json: it is missing or damaged"),
        (lambda text: "[" * 100_000, "has no readable _plan.json: it is missing or damaged"),
    ],
    ids=["older", "fewer shards", "half", "empty", "list", "nested"],
)
def test_an_older_or_damaged_plan_is_a_named_error(
    predictor: Predictor, whole: Path, tmp_path: Path, damage: Callable[[str], str], message: str
) -> None:
    source, output = write(tmp_path / "in", 40), tmp_path / "out"
    plans.plan(str(source), str(output), str(whole), shard_rows=20)
    (output / "_plan.json").write_text(damage((output / "_plan.json").read_text()))
    for step in (lambda: run(source, output, whole), lambda: shards.score(str(output)), lambda: shards.finish(str(output))):
        with pytest.raises(DataError, match=message):
            step()


def changed(content: dict[str, Any], change: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    change(content)
    return content


FORGED: dict[str, Callable[[dict[str, Any]], Any]] = {
    "shard elsewhere": lambda plan: plan["shards"][1].update(name="../part-000001.parquet"),
    "shard at a path": lambda plan: plan["shards"][1].update(name="/tmp/part-000001.parquet"),
    "shard over the plan": lambda plan: plan["shards"][1].update(name="_plan.json"),
    "shard of no file": lambda plan: plan["shards"][1].update(file="other.parquet"),
    "rows before the first": lambda plan: plan["shards"][1].update(first=-1),
    "rows without end": lambda plan: plan["shards"][1].update(rows=2**63),
    "a shard twice": lambda plan: plan["shards"].append(plan["shards"][0]),
    "no shards": lambda plan: plan["shards"].clear(),
    "a file twice": lambda plan: plan["request"]["files"].append(plan["request"]["files"][0]),
    "an unknown field of a shard": lambda plan: plan["shards"][1].update(output="/tmp"),
    "an unknown field of a file": lambda plan: plan["request"]["files"][0].update(location="/tmp"),
    "no rows": lambda plan: plan["shards"][1].update(rows=-1),
    "file elsewhere": lambda plan: [part.update({key: "../in/in-000.parquet"}) for key, part in named_files(plan)],
    "NUL in the input": lambda plan: plan["request"].update(input="a\0b"),
    "number as the input": lambda plan: plan["request"].update(input=5),
    "no request": lambda plan: plan.pop("request"),
    "no size of the shards": lambda plan: plan["request"].pop("shard_rows"),
    "no digest of the bundle": lambda plan: plan.pop("bundle_digest"),
}


def forge(output: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Changes a plan, and gives it the digest that fits: whoever can write into the output can compute it."""
    content = json.loads((output / "_plan.json").read_text())
    del content["digest"]
    change(content)
    content["digest"] = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    (output / "_plan.json").write_text(json.dumps(content))


def named_files(plan: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    return [("name", plan["request"]["files"][0]), *(("file", shard) for shard in plan["shards"])]


@pytest.mark.fault("plan-damaged")
@pytest.mark.parametrize("change", FORGED.values(), ids=FORGED.keys())
def test_a_forged_plan_with_a_digest_of_its_own_is_a_named_error(
    predictor: Predictor, whole: Path, tmp_path: Path, change: Callable[[dict[str, Any]], Any]
) -> None:
    """A shard could be written to any path of the machine that scores."""
    source, output = write(tmp_path / "in", 40), tmp_path / "out"
    plans.plan(str(source), str(output), str(whole), shard_rows=20)
    forge(output, change)
    before = sorted(tmp_path.rglob("*"))
    steps = (
        lambda: run(source, output, whole, predictor, shard_rows=20),
        lambda: shards.score(str(output), predictor=predictor),
        lambda: shards.finish(str(output)),
    )
    for step in steps:
        with pytest.raises(DataError, match=r"out has no readable _plan\.json: it is missing or damaged"):
            step()
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.fault("plan-damaged")
def test_a_plan_of_another_input_is_not_scored_by_those_who_share_the_one_that_was_made(
    predictor: Predictor, whole: Path, tmp_path: Path
) -> None:
    """Whoever can write into the output could have texts labelled and copied there that only the scoring machine can read."""
    source, secret, output = write(tmp_path / "in", 20), write(tmp_path / "secret", 20), str(tmp_path / "out")
    planned = plans.plan(str(source), output, str(whole))
    shutil.rmtree(output)
    plans.plan(str(secret), output, str(whole))
    steps = (
        lambda: shards.score(output, digest=planned.digest, predictor=predictor),
        lambda: shards.finish(output, planned.digest),
    )
    for step in steps:
        with pytest.raises(FileChanged, match=r"_plan\.json is another one than was made: find out who wrote it"):
            step()
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["_plan.json"]


@pytest.mark.fault("plan-damaged")
@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("", "is not the bundle that was asked for, .*: find out who named it"),
        ("champion-cpu", "its source '.*' is not a bundle that `register` stored"),
        ("models:/other@champion-cpu", "its source '.*' is not a bundle that `register` stored"),
    ],
)
def test_a_plan_with_a_bundle_that_the_reference_cannot_name_is_a_named_error(
    whole: Path, tmp_path: Path, reference: str, message: str
) -> None:
    source, output = write(tmp_path / "in", 20), tmp_path / "out"
    plans.plan(str(source), str(output), str(whole))
    forge(output, lambda plan: plan["request"].update(version=reference or str(whole)))
    forge(output, lambda plan: plan.update(bundle=str(tmp_path / "evil")))
    with pytest.raises(UntrustedBundle, match=message):
        plans.plan(str(source), str(output), reference or str(whole))


@pytest.mark.fault("plan-damaged")
def test_shards_of_another_plan_are_not_accepted(predictor: Predictor, whole: Path, tmp_path: Path) -> None:
    first, second = write(tmp_path / "in", 40), write(tmp_path / "other", 40)
    run(first, tmp_path / "out", whole, predictor, shard_rows=20)
    (tmp_path / "out" / "_plan.json").unlink()
    with pytest.raises(DataError, match=r"has scored shards .part-000000.parquet. and no _plan.json: empty it"):
        run(second, tmp_path / "out", whole, predictor, shard_rows=20)
    plans.plan(str(second), str(tmp_path / "new"), str(whole), shard_rows=20)
    (tmp_path / "out" / "part-000000.parquet").rename(tmp_path / "new" / "part-000000.parquet")
    shards.score(str(tmp_path / "new"), predictor=predictor)
    with pytest.raises(DataError, match=r"part-000000.parquet was scored by another plan: remove it and score it again"):
        shards.finish(str(tmp_path / "new"))


def test_a_shard_with_missing_rows_is_not_accepted(predictor: Predictor, whole: Path, tmp_path: Path) -> None:
    source = write(tmp_path / "in", 40)
    run(source, tmp_path / "out", whole, predictor, shard_rows=20)
    pq.write_table(pq.read_table(tmp_path / "out" / "part-000001.parquet").slice(1), tmp_path / "out" / "part-000001.parquet")
    with pytest.raises(DataError, match=r"part-000001.parquet has 19 rows, not 20: remove it and score it again"):
        shards.finish(str(tmp_path / "out"))


@pytest.mark.fault("stored-json-hostile")
@pytest.mark.parametrize(
    "counts", [b"{}", b"[1]", b'{"plan": "x"}', b'{"plan": 1, "blank": "", "truncated": 0, "seconds": 0}', None]
)
def test_a_shard_with_other_metadata_is_not_accepted(
    predictor: Predictor, whole: Path, tmp_path: Path, counts: bytes | None
) -> None:
    run(write(tmp_path / "in", 40), tmp_path / "out", whole, predictor, shard_rows=20)
    path = tmp_path / "out" / "part-000001.parquet"
    table = pq.read_table(path)
    metadata = {name: value for name, value in table.schema.metadata.items() if name != shards.COUNTS}
    pq.write_table(table.replace_schema_metadata(metadata | ({shards.COUNTS: counts} if counts else {})), path)
    with pytest.raises(DataError, match=r"the metadata of part-000001\.parquet"):
        shards.finish(str(tmp_path / "out"))


def command(source: Path, output: Path, whole: Path, *others: str) -> list[str]:
    program = [sys.executable, "-m", "goemotions.cli", "score", "--bundle", str(whole), "--threads", "1", "--shard-rows", "150"]
    return [*program, "--input", str(source), "--output", str(output), *others]


@pytest.mark.parametrize("workers", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_no_row_is_lost_or_doubled_if_the_command_is_killed(
    predictor: Predictor, whole: Path, tmp_path: Path, workers: int
) -> None:
    source, output = write(tmp_path / "in", 2000, 1000), tmp_path / "out"
    arguments = command(source, output, whole, "--workers", str(workers))
    generator = random.Random(workers)
    for kill in range(3):
        running = subprocess.Popen(arguments, stderr=subprocess.DEVNULL, start_new_session=True)
        shard_count = min(18, 1 + kill * 4)
        while running.poll() is None and len(list(output.glob("part-*"))) < shard_count:
            time.sleep(0.005)
        time.sleep(generator.uniform(0, 0.05))
        running.send_signal(signal.SIGKILL)
        running.wait()
        # The workers of a killed process end, too.
        deadline = time.monotonic() + 20
        while of_session(running.pid) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert of_session(running.pid) == []
    ended = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.startswith(f"{output}: 3,000 rows in ")
    assert assert_correct(predictor, scored(output), 3000)
    assert [path.name for path in output.glob(".*")] == [shards.FOR_DATASETS]


def of_session(leader: int) -> list[int]:
    pids = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if os.getsid(int(process.name)) == leader and "State:\tZ" not in (process / "status").read_text():
                pids.append(int(process.name))
        except OSError:
            continue
    return pids


def test_a_killed_worker_is_a_named_error_and_finished_shards_are_kept(whole: Path, tmp_path: Path) -> None:
    source, output = write(tmp_path / "in", 3000), tmp_path / "out"
    plans.plan(str(source), str(output), str(whole), shard_rows=150)
    arguments = command(source, output, whole, "--workers", "2")
    with subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True, start_new_session=True) as running:
        while running.poll() is None and not list(output.glob("part-*")):
            time.sleep(0.01)
        worker = next(pid for pid in of_session(running.pid) if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes())
        os.kill(worker, signal.SIGKILL)
        assert running.stderr
        errors = running.stderr.read()
    assert running.returncode == 1
    assert (
        "a worker was killed, most often for lack of memory: use fewer workers and run it again; finished shards are kept"
        in errors
    )
    assert "Traceback" not in errors


@pytest.mark.slow
def test_memory_does_not_grow_with_the_rows(whole: Path, tmp_path: Path) -> None:
    """A file of a single row group, which readers would load whole."""
    peaks = []
    for number, rows in enumerate((2_000, 60_000)):
        folder = write(tmp_path / str(number), rows, row_group_size=rows)
        script = (
            "import sys; from goemotions.cli import main as cli; from benchmarks import measuring\n"
            "try: cli.main()\n"
            "finally: print(measuring.peak_mib(), file=sys.stderr)"
        )
        arguments = command(folder, tmp_path / f"out-{number}", whole, "--shard-rows", str(rows))
        arguments[1:3] = ["-c", script]
        ended = subprocess.run(arguments, capture_output=True, text=True, check=True)
        peaks.append(float(ended.stderr.splitlines()[-1]))
    assert peaks[1] - peaks[0] < 60, f"{peaks} MiB"


def test_scoring_in_s3_gives_the_same_output(stack: Path, predictor: Predictor, whole: Path, tmp_path: Path) -> None:
    source = write(tmp_path / "in", 130, 71)
    place = "s3://goemotions/tests/scoring"
    store.put(source, f"{place}/in/")
    store.put(whole, f"{place}/bundle/")
    for _ in range(2):
        plans.plan(f"{place}/in", f"{place}/out/", f"{place}/bundle/", shard_rows=60)
        shards.score(f"{place}/out/", workers=2)
        assert shards.finish(f"{place}/out/").rows == 201
    store.fetch(f"{place}/out/", tmp_path / "out")
    assert assert_correct(predictor, scored(tmp_path / "out"), 201)
    with pytest.raises(StorageError, match="no such bucket"):
        plans.plan("s3://none/in/", f"{place}/out/", f"{place}/bundle/")
