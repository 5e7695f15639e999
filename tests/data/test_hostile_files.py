"""Files that are damaged or made to fill the memory: each is a named error, no other library's exception leaves the readers."""

import gzip
import json
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from goemotions.data.sources import open_source
from goemotions.errors import WorkflowError
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


def open_quote(folder: Path) -> Path:
    path = folder / "quote.csv.gz"
    path.write_bytes(gzip.compress(b'text,labels\n"a,b\n') + gzip.compress(b"a,b\n" * MEBIBYTE) * 64)
    return path


BOMBS = {
    one_line_gzip: "line.tsv.gz, line 1: longer than 32 MiB",
    repeated_text: "text.parquet expands to more than 200 times its size and 128 MiB",
    many_values: "values.parquet expands to more than",
    long_page: "page.parquet expands to more than",
    many_lines: "lines.jsonl.zst expands to more than",
    nested: "nested.jsonl is not JSON Lines",
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
