"""Files that are damaged or made to fill the memory: each is a named error, no other library's exception leaves the readers."""

import csv
import gzip
import json
import random
import resource
import shutil
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from goemotions.data import delimited, memory, parquet_footer, tables, text_files
from goemotions.data.dataset import load_dataset
from goemotions.data.sources import open_source
from goemotions.errors import DataError, WorkflowError
from goemotions.prediction.rows import open_rows
from tests.data.test_formats import (
    BY_NAME,
    NAMES,
    OBJECTS,
    ROWS,
    class_labels,
    csv_of,
    frame,
    hugging_face,
    joined,
    json_lines,
    zipped,
)

MEBIBYTE = 2**20
# Reads each file in one process whose memory may not grow by more than a few of the largest lines.
READ_EACH = """
import json, resource, sys
from pathlib import Path
from goemotions.data.dataset import ingest
from goemotions.errors import WorkflowError
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
limit = int(status["VmSize"].split()[0]) * 1024 + 640 * 2**20
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
for source in sys.argv[2:]:
    try:
        ingest(source, Path(sys.argv[1]))
        print(json.dumps("read"))
    except WorkflowError as error:
        print(json.dumps(str(error)))
"""


def one_line_gzip(folder: Path) -> Path:
    """4 GiB in one line."""
    path = folder / "line.tsv.gz"
    path.write_bytes(gzip.compress(b"a" * 32 * MEBIBYTE) * 128)
    return path


def repeated_text(folder: Path) -> Path:
    """4 GiB: a text of 1 MiB that is stored once, in 4096 rows."""
    texts = pa.DictionaryArray.from_arrays(np.zeros(4096, dtype=np.int32), pa.array(["a" * MEBIBYTE]))
    path = folder / "text.parquet"
    pq.write_table(pa.table({"text": texts, "labels": ["calm"] * 4096}), path, compression="zstd")
    return path


def many_values(folder: Path) -> Path:
    """A row with twenty million labels."""
    path = folder / "values.parquet"
    labels = pa.ListArray.from_arrays(np.array([0, 20_000_000], dtype=np.int32), pa.array(np.zeros(20_000_000, dtype=np.int8)))
    pq.write_table(pa.table({"text": ["a"], "labels": labels}), path, compression="zstd")
    return path


def long_page(folder: Path) -> Path:
    """A text of 150 MiB, which compresses well."""
    path = folder / "page.parquet"
    pq.write_table(
        pa.table({"text": ["a" * 150 * MEBIBYTE], "labels": ["calm"]}), path, compression="zstd", use_dictionary=False
    )
    return path


def many_lines(folder: Path) -> Path:
    """256 MiB of blank lines."""
    path = folder / "lines.jsonl.zst"
    path.write_bytes(pa.compress((b" " * 1023 + b"\n") * 256 * 1024, codec="zstd", asbytes=True))
    return path


def nested(folder: Path) -> Path:
    path = folder / "nested.jsonl"
    path.write_bytes(b'{"text": "a", "labels": ' + b"[" * MEBIBYTE + b"\n")
    return path


def nested_array(folder: Path) -> Path:
    path = folder / "nested.json"
    path.write_bytes(b'[{"text": "a", "labels": ' + b"[" * MEBIBYTE)
    return path


def object_without_end(folder: Path) -> Path:
    """An array whose second object has 60 MiB of names."""
    path = folder / "object.json.gz"
    path.write_bytes(
        gzip.compress(b'[{"text": "a", "labels": ["calm"]}, {"text": "b"') + gzip.compress(b',\n"a": 1' * MEBIBYTE) * 7
    )
    return path


def open_quote(folder: Path) -> Path:
    path = folder / "quote.csv.gz"
    path.write_bytes(gzip.compress(b'text,labels\n"a,b\n') + gzip.compress(b"a,b\n" * MEBIBYTE) * 64)
    return path


def rows_alike(folder: Path) -> Path:
    """Ten million rows in 60 kB."""
    column = pa.DictionaryArray.from_arrays(np.zeros(10_000_000, dtype=np.int32), pa.array(["calm"]))
    path = folder / "rows.parquet"
    pq.write_table(pa.table({"text": column, "labels": column}), path, compression="zstd")
    return path


def false_footer(folder: Path) -> Path:
    """A page of 600 MiB of which the footer says that it has none."""
    path = folder / "footer.parquet"
    texts = pa.table({"text": ["a" * 600 * MEBIBYTE], "labels": ["calm"]})
    pq.write_table(texts, path, compression="zstd", use_dictionary=False, write_statistics=False)
    group, content = pq.read_metadata(path).row_group(0), path.read_bytes()
    start = len(content) - 8 - int.from_bytes(content[-8:-4], "little")
    footer = content[start:]
    for size in {group.column(0).total_uncompressed_size, group.total_byte_size}:
        # As a varint of the same length.
        digits = [2 * size >> 7 * place & 127 for place in range(5)]
        true = bytes([*(digit | 128 for digit in digits[:4]), digits[4]])
        assert true in footer
        footer = footer.replace(true, b"\x88\x80\x80\x80\x00")
    path.write_bytes(content[:start] + footer)
    return path


def shared_prefix(folder: Path) -> Path:
    """4 GiB in 3 kB: each text is the whole one before it."""
    path = folder / "prefix.parquet"
    schema = pa.schema([("text", pa.string()), ("labels", pa.string())])
    options = {"use_dictionary": False, "column_encoding": {"text": "DELTA_BYTE_ARRAY"}, "data_page_size": 2**30}
    batch = pa.table({"text": ["a" * MEBIBYTE] * 256, "labels": ["calm"] * 256}, schema)
    with pq.ParquetWriter(path, schema, compression="zstd", write_statistics=False, **options) as writer:
        for _ in range(16):
            writer.write_table(batch)
    return path


def arrow_file(name: str, table: pa.Table) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        options = pa.ipc.IpcWriteOptions(compression="zstd")
        with pa.OSFile(str(folder / name), "wb") as file, pa.ipc.new_stream(file, table.schema, options=options) as writer:
            writer.write_table(table)
        return folder / name

    return write


def huge_batch(folder: Path) -> Path:
    """An Arrow batch that is compressed from 200 MiB."""
    return arrow_file("batch.arrow", pa.table({"text": ["a" * 200 * MEBIBYTE], "labels": ["calm"]}))(folder)


def record_without_end(folder: Path) -> Path:
    """A row whose quotes never end it, while each of its cells is short."""
    path = folder / "record.csv.gz"
    path.write_bytes(gzip.compress(b'text,labels\n"a') + gzip.compress(b'\n","' * MEBIBYTE) * 12)
    return path


def nested_footer(name: bytes, levels: int) -> bytes:
    """A footer of Parquet, in Thrift's compact protocol: a column of integers in so many groups of a name."""
    group = b"\x35\x02\x18" + varint(len(name)) + name + b"\x15\x02\x00"
    elements = b"\x48\x01s\x15\x02\x00" + group * levels + b"\x15\x02\x25\x02\x18\x04text\x00"
    return b"\x15\x02\x19\xfc" + varint(levels + 2) + elements + b"\x16\x00\x19\x0c\x00"


def varint(value: int) -> bytes:
    return bytes([value]) if value < 0x80 else bytes([value & 0x7F | 0x80]) + varint(value >> 7)


def deep_schema(folder: Path) -> Path:
    """100,000 levels in 800 kB, which PyArrow would read by recursion."""
    footer = nested_footer(b"a", 100_000)
    (folder / "deep.parquet").write_bytes(b"PAR1" + footer + len(footer).to_bytes(4, "little") + b"PAR1")
    return folder / "deep.parquet"


BOMBS = {
    deep_schema: "deep.parquet has columns of more than 100 levels",
    rows_alike: "rows.parquet expands to more than 200 times its size and 64 MiB",
    false_footer: "footer.parquet takes too much memory to read",
    shared_prefix: "prefix.parquet expands to more than",
    huge_batch: "batch.arrow expands to more than",
    record_without_end: "record.csv.gz, line 2: the row there has more than 32 MiB",
    one_line_gzip: "line.tsv.gz, line 1: longer than 32 MiB",
    repeated_text: "text.parquet expands to more than 200 times its size and 64 MiB",
    many_values: "values.parquet expands to more than",
    long_page: "page.parquet expands to more than",
    many_lines: "lines.jsonl.zst expands to more than",
    nested: "nested.jsonl, line 1: not JSON",
    nested_array: "nested.json, item 1: not an object",
    object_without_end: "object.json.gz, item 2: not an object with named values that ends within 32 MiB",
    open_quote: "quote.csv.gz, line 2: the row there is no .csv",
}


@pytest.mark.slow
@pytest.mark.fault("data-bomb")
def test_files_that_expand_to_gigabytes_are_named_errors_and_memory_stays_flat(tmp_path: Path) -> None:
    sources = [str(write(tmp_path)) for write in BOMBS]
    command = [sys.executable, "-c", READ_EACH, str(tmp_path / "out"), *sources]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    messages = [json.loads(line) for line in done.stdout.splitlines()]
    assert [
        message for message, expected in zip(messages, BOMBS.values(), strict=True) if not message.startswith(expected)
    ] == []


LONG_CELLS = {
    "a list of quotes without an end": ("['" + "\\'" * MEBIBYTE + "]", "is no list of names"),
    "a list of more labels than a taxonomy has": (
        "[" + "'calm'," * 20_000 + "]",
        "has 20,000 labels in a row, and at most 10,000",
    ),
    "what is like a call and has no end": ("a(," * MEBIBYTE, "holds texts rather than labels"),
}


@pytest.mark.parametrize(("cell", "message"), LONG_CELLS.values(), ids=LONG_CELLS)
@pytest.mark.fault("data-bomb")
def test_a_long_cell_of_labels_takes_no_hours(tmp_path: Path, cell: str, message: str) -> None:
    path = tmp_path / "cells.csv"
    path.write_text(f'text,labels\na,calm\nb,"{cell}"\n', encoding="utf-8")
    start = time.process_time()
    with pytest.raises(DataError, match=message):
        open_source(str(path), tmp_path)
    assert time.process_time() - start < 5


@pytest.mark.fault("data-bomb")
def test_a_long_object_of_an_array_is_not_read_anew_with_each_piece(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_files, "PIECE", 1000)
    path = tmp_path / "numbers.json"
    path.write_text(json.dumps([{"text": "a", "labels": ["calm"], "numbers": list(range(200_000))}]), encoding="utf-8")
    start = time.process_time()
    assert [row["text"] for _, row in tables.json_objects(path.name, lambda: path.open("rb"))] == ["a"]
    assert time.process_time() - start < 3


WIDE = {
    "wide.csv": b"text,labels" + b"".join(b",c%d" % number for number in range(20_000)) + b"\na,calm\n",
    "commas.csv": b"text,labels" + b"," * 100_000 + b"\na,calm\n",
    "wide.jsonl": json.dumps({"text": "a", "labels": ["calm"], **dict.fromkeys(map(str, range(20_000)))}).encode(),
}


@pytest.mark.parametrize("name", WIDE)
@pytest.mark.fault("data-bomb")
def test_a_million_columns_are_a_named_error_at_once(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(WIDE[name])
    with pytest.raises(DataError, match=rf"{name} has .* columns, and at most 10,000 are read"):
        open_source(str(path), tmp_path)
    with pytest.raises(DataError, match=rf"{name} has .* columns, and at most 10,000 are read"):
        open_rows(name, lambda: path.open("rb"), "text")


@pytest.mark.parametrize(("ending", "mark"), [(".csv", ","), (".csv", ";"), (".tsv", "\t")])
@pytest.mark.fault("data-bomb")
def test_cells_are_counted_before_they_are_split(ending: str, mark: str) -> None:
    # A list of the cells would take eight times as much.
    header = "sep=;\n" * (mark == ";"), f"text{mark}labels{mark * 16 * MEBIBYTE}\n"
    # As after the first records that were read.
    csv.field_size_limit(2 * delimited.LONGEST_CELL)
    tracemalloc.start()
    with pytest.raises(DataError, match="columns, and at most 10,000 are read"):
        delimited.detect(lambda: filter(None, header), "wide" + ending, ending, "text", official=False)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 64 * MEBIBYTE, peak


@pytest.mark.parametrize(("names", "message"), [("x\n" * 20_000, "more than 10,000 labels"), ("x" * 2000, "shorten it")])
@pytest.mark.fault("data-bomb")
def test_a_taxonomy_is_bounded(tmp_path: Path, names: str, message: str) -> None:
    (tmp_path / "train.tsv").write_text("a\t0\tr0\n")
    (tmp_path / "emotions.txt").write_text(names)
    with pytest.raises(DataError, match=message):
        open_source(str(tmp_path), tmp_path / "scratch")


@pytest.mark.fault("data-bomb")
def test_a_schema_that_is_too_deep_or_has_too_long_paths_is_noticed_before_it_is_read(tmp_path: Path) -> None:
    deep, long = nested_footer(b"a", 1500), nested_footer(b"a" * 300_000, 50)
    assert parquet_footer.is_deep(deep)
    assert parquet_footer.is_deep(long)
    # A second list of elements would replace the first.
    assert parquet_footer.is_deep(nested_footer(b"a", 1)[:-1] + b"\x09\x04" + deep[3:])
    columns = {f"column {number}": [[{"a": 1.5, "b": True}]] for number in range(500)}
    pq.write_table(pa.table({"text": ["a lake"], "labels": [["calm"]], **columns}), tmp_path / "wide.parquet")
    content = (tmp_path / "wide.parquet").read_bytes()
    footer = content[-8 - int.from_bytes(content[-8:-4], "little") : -8]
    assert len(footer) > parquet_footer.SMALL_BYTES
    assert not parquet_footer.is_deep(footer)
    assert [row.text for row in open_source(str(tmp_path / "wide.parquet"), tmp_path).splits["train"][1]] == ["a lake"]
    with pytest.raises(ValueError, match="damaged"):
        parquet_footer.is_deep(footer[:-10])


@pytest.mark.fault("data-bomb")
def test_memory_is_bounded_while_a_file_is_read_and_not_afterwards() -> None:
    before = resource.getrlimit(resource.RLIMIT_DATA)
    with pytest.raises(DataError, match=r"x.parquet takes too much memory to read"), memory.bounded("x.parquet"):
        np.empty(2**32, dtype=np.int8)
    assert resource.getrlimit(resource.RLIMIT_DATA) == before
    assert np.empty(2**32, dtype=np.int8).nbytes == 2**32


def test_texts_that_are_stored_by_their_prefixes_are_read(tmp_path: Path) -> None:
    table = pa.table({"text": ["a lake", "a lake again"] * 500, "labels": ["calm", "glee"] * 500})
    pq.write_table(table, tmp_path / "a.parquet", use_dictionary=False, column_encoding={"text": "DELTA_BYTE_ARRAY"})
    rows = open_source(str(tmp_path / "a.parquet"), tmp_path).splits["train"][1]
    assert [row.text for row in rows] == table["text"].to_pylist()
    batches = open_rows("a.parquet", lambda: (tmp_path / "a.parquet").open("rb"), "text").batches(0, None)
    assert pa.Table.from_batches(batches)["text"].to_pylist() == table["text"].to_pylist()


def arrow() -> bytes:
    table = class_labels(ROWS, NAMES).data.table
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


GOOD = {
    "train.csv": BY_NAME,
    "train.tsv": csv_of(frame(ROWS, labels=joined(ROWS, ",")), "\t"),
    "train.jsonl": json_lines(OBJECTS),
    "train.csv.gz": gzip.compress(BY_NAME),
    "train.csv.zst": pa.compress(BY_NAME, codec="zstd", asbytes=True),
    "train.csv.zip": zipped({"a.csv": BY_NAME}),
    "train.parquet": hugging_face(ROWS, NAMES),
    "train.arrow": arrow(),
}


def read(path: Path) -> None:
    """Reads every row of a source that is one file; named errors are expected."""
    try:
        source = open_source(str(path), path.parent / "scratch")
        for row in source.splits["train"][1]:
            assert isinstance(row.text, str)
    except WorkflowError as error:
        assert len(str(error).splitlines()) == 1  # noqa: PT017


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=st.sampled_from(list(GOOD)), content=st.binary(max_size=120), start=st.integers(0, 300))
@pytest.mark.fault("data-truncated-file")
def test_any_bytes_are_read_or_a_named_error(tmp_path: Path, name: str, content: bytes, start: int) -> None:
    path = tmp_path / name
    path.write_bytes(GOOD[name][:start] + content)
    read(path)


@pytest.mark.parametrize("name", GOOD)
@pytest.mark.fault("data-truncated-file")
def test_a_file_with_any_byte_changed_or_cut_is_read_or_a_named_error(tmp_path: Path, name: str) -> None:
    generator = random.Random(11)
    path, good = tmp_path / name, GOOD[name]
    for _ in range(60):
        content = bytearray(good)
        content[generator.randrange(len(good))] ^= generator.randrange(1, 256)
        path.write_bytes(content)
        read(path)
        path.write_bytes(good[: generator.randrange(len(good))])
        read(path)


@pytest.mark.parametrize("name", ["train.csv.zip", "data.zip"])
@pytest.mark.parametrize(
    ("method", "message"), [(9, "cannot be unpacked here .*unpack it"), (14, "is not a complete zip file")]
)
@pytest.mark.fault("data-truncated-file")
def test_a_zip_of_another_compression_says_so(tmp_path: Path, name: str, method: int, message: str) -> None:
    """9 is Deflate64, which Python does not read; 14 is LZMA, which these bytes are not."""
    content = bytearray(zipped({"train.csv": BY_NAME}))
    for place in (8, content.index(b"PK\x01\x02") + 10):
        content[place] = method
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        list(open_source(str(tmp_path / name), tmp_path / "scratch").splits["train"][1])


@pytest.mark.slow
@pytest.mark.fault("data-bomb")
def test_a_dataset_folder_whose_rows_are_a_bomb_is_a_named_error(dataset: Path, tmp_path: Path) -> None:
    """4 GiB, which would stay in memory."""
    folder = shutil.copytree(dataset, tmp_path / "dataset")
    assert load_dataset(folder, ("train",))[0]["train"].num_rows
    (rows,) = (folder / "train").glob("*.arrow")
    with pa.ipc.open_stream(rows.read_bytes()) as stream:
        schema = stream.schema
    values = {"id": ["a"], "text": ["a" * 64 * MEBIBYTE], "labels": [[0]]}
    with pa.ipc.new_stream(str(rows), schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
        batch = pa.Table.from_pydict(values, schema)
        for _ in range(64):
            writer.write_table(batch)
    assert rows.stat().st_size < MEBIBYTE
    with pytest.raises(DataError, match="is not a Dataset folder"):
        load_dataset(folder, ("train",))


@pytest.mark.parametrize(
    "value", [b"\x19\xf1" + b"\xff" * 8 + b"\x01", b"\x16" + b"\x80" * 2**20], ids=["long-list", "long-number"]
)
@pytest.mark.fault("data-bomb")
def test_a_footer_of_a_number_or_a_list_without_end_is_damaged(value: bytes) -> None:
    with pytest.raises(ValueError, match="the footer has a"):
        parquet_footer.is_deep(value + bytes(parquet_footer.SMALL_BYTES))
