"""Batch scoring of a file: labels and probabilities for every row of a CSV, TSV or Parquet file, chunk by chunk.

Text files begin with a line of column names; a ``.csv`` may quote its cells, a ``.tsv`` never does, as in the official data.
"""

from __future__ import annotations

import csv
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from tqdm import tqdm

from goemotions.errors import DataError, StorageError
from goemotions.metrics.probabilities import rank_labels
from goemotions.models import engines
from goemotions.prediction.predictor import Options, Predictor
from goemotions.storage.folder import replacing

CHUNK = 4096
LONGEST_CELL = 2**24
DIALECTS: dict[str, dict[str, Any]] = {
    ".csv": {"strict": True},
    ".tsv": {"strict": True, "delimiter": "\t", "quoting": csv.QUOTE_NONE, "quotechar": None},
}
ENDINGS = (*DIALECTS, ".parquet")
BINARY_MAGIC = (b"PAR1", b"PK\x03\x04", b"\x1f\x8b")


@dataclass(frozen=True)
class ScoringSummary:
    """Counts of the rows of a file, of those without a text and of those whose text was truncated, and the seconds it took."""

    rows: int
    blank: int
    truncated: int
    seconds: float


@dataclass(frozen=True)
class Rows:
    """The rows of an open file; ``count`` is None if it is known only at the end of the file."""

    schema: pa.Schema
    count: int | None
    batches: Iterator[pa.RecordBatch]


def score_file(
    predictor: Predictor, input: Path, output: Path, column: str = "text", *, all_scores: bool = True
) -> ScoringSummary:
    """Labels the rows of a file, in constant memory.

    The output holds every column and row of the input, in order, and the columns ``labels`` (best first; joined by ``|`` in a text
    file, a list in Parquet), ``truncated`` and ``p/<label>``. A row without a text gets no labels and no probabilities.

    Args:
        predictor: a loaded predictor.
        input: a ``.csv``, ``.tsv`` or ``.parquet`` file.
        output: the file to write, in the format of its extension; it replaces a file of this name when it is complete.
        column: the column with the texts.
        all_scores: add the probability of each label.

    Raises:
        DataError: the input is missing or not in the format of its extension, or its columns do not fit.
        StorageError: the output cannot be written.
    """
    for path in (input, output):
        if path.suffix.lower() not in ENDINGS:
            raise DataError(f"{path.name} has none of the endings {', '.join(ENDINGS)}: rename or convert it")
    if output.exists() and input.exists() and output.samefile(input):
        raise DataError(f"{output} is the input itself: write to another file")
    started = time.perf_counter()
    rows = blank = truncated = 0
    with _open(input) as file:
        source = _parquet(input, file) if input.suffix.lower() == ".parquet" else _text(input, file)
        schema = output_schema(source.schema, input.name, column, predictor.bundle.taxonomy.names if all_scores else ())
        progress = tqdm(total=source.count, desc=input.name, unit=" texts", mininterval=1)
        with progress, _whole(output) as partial, _writer(partial, output.suffix.lower(), schema) as write:
            for batch in source.batches:
                labelled = label_rows(predictor, batch, column, schema)
                write(labelled)
                rows += len(batch)
                blank, truncated = blank + count_blank(labelled), truncated + count_truncated(labelled)
                progress.update(len(batch))
            if not rows:
                raise DataError(f"{input.name} has no rows: it needs at least one")
    return ScoringSummary(rows, blank, truncated, time.perf_counter() - started)


def output_schema(schema: pa.Schema, file: str, column: str, scores: Sequence[str]) -> pa.Schema:
    """The schema of a scored file: its own columns, labels, and the probabilities of the labels in ``scores``.

    Raises:
        DataError: there is no such column of texts, or the file has a column that would be added.
    """
    added = [("labels", pa.list_(pa.string())), ("truncated", pa.bool_()), *((f"p/{name}", pa.float32()) for name in scores)]
    _check_columns(file, schema, column, [name for name, _ in added])
    # `datasets` rejects a file whose metadata describes fewer columns than it has.
    metadata = {key: value for key, value in (schema.metadata or {}).items() if key != b"huggingface"}
    return pa.schema([*schema, *pa.schema(added)], metadata=metadata)


def label_rows(predictor: Predictor, rows: pa.RecordBatch, column: str, schema: pa.Schema) -> pa.RecordBatch:
    """Rows with the columns that ``output_schema`` adds; a row without a text has no labels, and nulls in the other columns."""
    texts = rows[column].to_pylist()
    blank = np.array([not (text and text.strip()) for text in texts], dtype=bool)
    names = predictor.bundle.taxonomy.names
    probabilities = np.zeros((len(texts), len(names)), dtype=np.float32)
    chosen, cut = np.zeros(probabilities.shape, dtype=bool), np.zeros(len(texts), dtype=bool)
    if present := [text for text, is_blank in zip(texts, blank, strict=True) if not is_blank]:
        probabilities[~blank], cut[~blank] = engines.score(predictor.engine, present)
        chosen[~blank] = predictor.choose(probabilities[~blank], Options())
    scores = [
        pa.array(probabilities[:, position], mask=blank) for position, name in enumerate(names) if f"p/{name}" in schema.names
    ]
    columns = [_best_first(names, probabilities, chosen), pa.array(cut, mask=blank), *scores]
    return pa.RecordBatch.from_arrays([*rows.columns, *columns], schema=schema)


def count_blank(labelled: pa.RecordBatch) -> int:
    """How many rows of ``label_rows`` have no text."""
    return int(labelled["truncated"].null_count)


def count_truncated(labelled: pa.RecordBatch) -> int:
    return int(pc.sum(labelled["truncated"]).as_py() or 0)


def _best_first(names: Sequence[str], probabilities: np.ndarray, chosen: np.ndarray) -> pa.Array:
    """The names of each row's chosen labels, best first, as lists."""
    order = rank_labels(probabilities)
    ranked = np.take_along_axis(chosen, order, axis=1)
    ends = np.concatenate([[0], np.cumsum(ranked.sum(axis=1))]).astype(np.int32)
    return pa.ListArray.from_arrays(ends, pa.array(names, pa.string()).take(pa.array(order[ranked])))


def _check_columns(file: str, schema: pa.Schema, column: str, added: list[str]) -> None:
    names = schema.names
    if column not in names:
        raise DataError(f"{file} has no column {column!r}: give the one with the texts, of {', '.join(names):.300}")
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise DataError(f"{file} has two columns {twice[0]!r}: rename one")
    if clashing := [name for name in names if name in added]:
        raise DataError(f"{file} has a column {clashing[0]!r} already, which the labels need: rename or drop it")
    kind = schema.field(column).type
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)):
        raise DataError(f"{file}: column {column!r} has type {kind}, not text: give another, or convert it to strings")


def _open(path: Path) -> BinaryIO:
    try:
        return path.open("rb")
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}): check its path") from error


def open_parquet(file: BinaryIO, name: str) -> pq.ParquetFile:
    """Opens a Parquet file.

    Raises:
        DataError: it is not a complete Parquet file.
    """
    try:
        # Without a buffer a whole row group is read at once, and a file may have a single one.
        return pq.ParquetFile(file, buffer_size=2**20)
    except (pa.ArrowException, OSError) as error:
        raise DataError(_damaged(name)) from error


def batches(parquet: pq.ParquetFile, name: str, groups: Sequence[int] | None = None) -> Iterator[pa.RecordBatch]:
    """The rows of a Parquet file, or of some of its row groups, in validated batches.

    Raises:
        DataError: the file is damaged, or has strings that are not UTF-8.
    """
    row = 1 + sum(parquet.metadata.row_group(number).num_rows for number in range(groups[0] if groups else 0))
    try:
        for batch in parquet.iter_batches(CHUNK, row_groups=groups):
            batch.validate(full=True)
            yield batch
            row += len(batch)
    except pa.ArrowInvalid as error:
        if "UTF8" in str(error):
            raise DataError(f"{name}, one of the {CHUNK} rows from {row} on: not UTF-8: re-encode it") from error
        raise DataError(_damaged(name)) from error
    except (pa.ArrowException, OSError) as error:
        raise DataError(_damaged(name)) from error


def _damaged(name: str) -> str:
    return f"{name} is not a complete Parquet file: copy it again"


def _parquet(path: Path, file: BinaryIO) -> Rows:
    opened = open_parquet(file, path.name)
    return Rows(opened.schema_arrow, opened.metadata.num_rows, batches(opened, path.name))


def _text(path: Path, file: BinaryIO) -> Rows:
    start = file.read(4)
    file.seek(0)
    if start.startswith(BINARY_MAGIC):
        raise DataError(f"{path.name} is not a text file, which its ending says: unpack, rename or convert it")
    records = _records(path, file)
    _, names = next(records, (1, []))
    if not names:
        raise DataError(f"{path.name} is empty or begins with an empty line: its first line must name the columns")
    schema = pa.schema([(name, pa.string()) for name in names])

    def rows() -> Iterator[list[str]]:
        for line, cells in records:
            # In a file with one column, an empty line is a row with an empty cell.
            cells = cells or ([""] if len(names) == 1 else [])
            if cells and len(cells) != len(names):
                raise DataError(f"{path.name}, line {line}: {len(cells)} columns where line 1 names {len(names)}: fix it")
            if cells:
                yield cells

    def batches() -> Iterator[pa.RecordBatch]:
        remaining = rows()
        while chunk := list(islice(remaining, CHUNK)):
            columns = [pa.array(cells, pa.string()) for cells in zip(*chunk, strict=True)]
            yield pa.RecordBatch.from_arrays(columns, schema=schema)

    return Rows(schema, None, batches())


def _records(path: Path, file: BinaryIO) -> Iterator[tuple[int, list[str]]]:
    """The first line and the cells of each row."""
    # Python's default limit rejects a long comment; without a limit, an open quote would read the whole file into memory.
    csv.field_size_limit(LONGEST_CELL)
    ending = path.suffix.lower()
    reader = csv.reader(_lines(path, file), **DIALECTS[ending])
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise DataError(f"{path.name}, line {line}: the row there is no {ending} ({error}): check its quotes") from error
        yield line, cells


def _lines(path: Path, file: BinaryIO) -> Iterator[str]:
    for line, content in enumerate(file, start=1):
        try:
            yield content.decode("utf-8-sig" if line == 1 else "utf-8")
        except UnicodeDecodeError as error:
            byte = error.object[error.start]
            raise DataError(f"{path.name}, line {line}: not UTF-8 (byte {byte:#04x}): re-encode it") from error


@contextmanager
def _whole(output: Path) -> Iterator[Path]:
    """``replacing``, with a named error if the file cannot be written."""
    try:
        with replacing(output) as partial:
            yield partial
    except OSError as error:
        raise StorageError(
            f"{output} cannot be written ({error.strerror or error}): free space or choose another folder"
        ) from error


@contextmanager
def _writer(path: Path, ending: str, schema: pa.Schema) -> Iterator[Callable[[pa.RecordBatch], None]]:
    if ending == ".parquet":
        with pq.ParquetWriter(path, schema) as writer:
            yield writer.write_batch
        return
    with path.open("w", newline="", encoding="utf-8") as file:
        lines = csv.writer(file, **DIALECTS[ending])

        def write(batch: pa.RecordBatch) -> None:
            columns = [_cells(name, batch[name]) for name in schema.names]
            try:
                lines.writerows(zip(*columns, strict=True))
            except csv.Error as error:
                raise DataError(
                    f"a cell has a tab or a line break, which a {ending} file cannot have: write a .csv or .parquet"
                ) from error

        lines.writerow(schema.names)
        yield write


def _cells(name: str, column: pa.Array) -> list[str]:
    """A column as text; nulls become empty cells, and empty items of a list."""
    try:
        if pa.types.is_list(column.type) and pa.types.is_string(column.type.value_type):
            return ["|".join(item or "" for item in cell or ()) for cell in column.to_pylist()]
        cells: list[str] = pc.fill_null(column.cast(pa.string()), "").to_pylist()
        return cells
    except pa.ArrowException as error:
        raise DataError(f"column {name!r} has type {column.type}, which a text file cannot have: write a .parquet") from error
