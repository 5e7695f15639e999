"""Parquet and Arrow files: opened and read in batches, with bounds on what they expand to.

Every reader of such files in this package uses this module, those of files that the package wrote included.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from goemotions import strict_json
from goemotions.data import delimited, memory, parquet_footer, text_files
from goemotions.data.parquet_footer import BYTE_ARRAY, DELTA_BYTE_ARRAY
from goemotions.errors import DataError

CHUNK = 4096
FEATHER_1 = b"FEA1"
BATCH_BYTES = 2**26
# Of which a cell may take gigabytes as objects of Python.
LARGE_BATCH = 2**24
# What a row counts at least, in the bound on what a file expands to.
ROW_BYTES = 8
# Parquet's footer takes tens of times its size in memory.
MOST_FOOTER_BYTES = 2**24

# The number of a row or of its line, from 1, and its cells.
Record = tuple[int, Sequence[Any]]


def damaged(name: str, form: str = "Parquet") -> DataError:
    return DataError(f"{name} is not a complete {form} file: copy it again")


class Parquet(pq.ParquetFile):
    """A Parquet file, with its row groups; ``metadata.row_group`` may end the process if the file is damaged."""

    groups: list[parquet_footer.RowGroup]


def open_parquet(file: BinaryIO, name: str, **options: Any) -> Parquet:
    """Opens a Parquet file.

    Raises:
        DataError: it is not a complete Parquet file, has too many columns or row groups, or rows or a column that expand to too much.
    """
    try:
        size = file.seek(-8, 2) + 8
        if MOST_FOOTER_BYTES < (footer := int.from_bytes(file.read(4), "little")) < size:
            raise DataError(
                f"{name} has a footer of {footer >> 20} MiB, and at most {MOST_FOOTER_BYTES >> 20} are read: write fewer row groups "
                "and columns"
            )
        file.seek(-8 - footer, 2)
        content = file.read(footer)
        if parquet_footer.is_deep(content):
            raise DataError(
                f"{name} has columns of more than {parquet_footer.MOST_LEVELS} levels or with long names: write fewer"
            )
        file.seek(0)
        with memory.bounded(name):
            # Without a buffer a whole row group is read at once, and a file may have a single one. Ahead, threads of Arrow would
            # read, and one that frees a buffer of a Python file while the process ends aborts it.
            parquet = Parquet(file, buffer_size=2**20, pre_buffer=False, **options)
        parquet.groups = parquet_footer.row_groups(content)
    # A KeyError: the two schemas of the file name a column differently.
    except (pa.ArrowException, OSError, ValueError, KeyError) as error:
        raise damaged(name) from error
    metadata = parquet.metadata
    delimited.require_few_columns(name, metadata.num_columns)
    # Rows that are all alike take no space.
    if ROW_BYTES * metadata.num_rows > text_files.longest_content(size):
        raise text_files.expands(name)
    for group in parquet.groups:
        for column in group.columns:
            # Values that repeat are stored once, so that a column may be longer than its pages.
            size = max(column.uncompressed, 8 * column.values if column.values > 64 * group.rows else 0)
            if size > text_files.longest_content(column.compressed):
                raise text_files.expands(name)
    return parquet


def parquet_batches(parquet: Parquet, name: str, size: int, **options: Any) -> Iterator[pa.RecordBatch]:
    """The rows of a Parquet file in batches that are bounded in rows and, if their texts are about equally long, in bytes.

    Args:
        parquet: the file, as ``open_parquet`` returns it.
        name: its name, for error messages.
        size: of the file, in bytes.
        options: of ``ParquetFile.iter_batches``, such as ``columns``.

    Raises:
        DataError: a batch takes too much memory.
    """
    row_bytes = [group.bytes // max(group.rows, 1) for group in parquet.groups]
    # With this encoding each text may hold the whole one before it.
    row_bytes += [column.uncompressed // 2 for column in _columns(parquet) if DELTA_BYTE_ARRAY in column.encodings]
    rows = max(1, min(CHUNK, BATCH_BYTES // max(*row_bytes, 1, 1)))
    yield from _bounded(parquet.iter_batches(rows, use_threads=False, **options), name, size)


def whole_batches(parquet: Parquet, name: str, size: int, **options: Any) -> Iterator[pa.RecordBatch]:
    """``parquet_batches``, which end with an error if the file is damaged or expands to too much."""
    left = text_files.longest_content(size)
    try:
        for batch in parquet_batches(parquet, name, size, **options):
            batch.validate(full=True)
            left -= batch.nbytes + ROW_BYTES * batch.num_rows
            if left < 0:
                raise text_files.expands(name)
            yield batch
    except (pa.ArrowException, OSError, ValueError, KeyError) as error:
        raise damaged(name) from error


def read_parquet(path: Path) -> pa.Table:
    """A whole Parquet file.

    Raises:
        DataError: it cannot be read, is damaged, or expands to too much.
    """
    with text_files.open_binary(str(path), lambda: path.open("rb")) as file:
        parquet = open_parquet(file, str(path))
        return pa.Table.from_batches(whole_batches(parquet, str(path), file_size(file)), parquet.schema_arrow)


def string_columns(parquet: Parquet) -> list[str]:
    """The columns of strings, for ``read_dictionary``: a text that is stored once for many rows is then read once.

    Left out are those with an encoding that PyArrow does not read as dictionaries.
    """
    strings = [column for column in _columns(parquet) if column.type == BYTE_ARRAY]
    others = {column.path for column in strings if DELTA_BYTE_ARRAY in column.encodings}
    return [path for path in dict.fromkeys(column.path for column in strings) if path not in others]


def _columns(parquet: Parquet) -> Iterator[parquet_footer.Column]:
    """The columns of each row group."""
    return (column for group in parquet.groups for column in group.columns)


def arrow_schema(file: BinaryIO, name: str) -> pa.Schema:
    """The schema of an Arrow file or stream.

    Raises:
        DataError: it is damaged.
    """
    try:
        with memory.bounded(name):
            return _arrow_reader(file).schema
    except (pa.ArrowException, OSError, ValueError) as error:
        raise damaged(name, "Arrow") from error


def arrow_batches(file: BinaryIO, name: str, size: int) -> Iterator[pa.RecordBatch]:
    """The batches of an Arrow file or stream.

    Raises:
        DataError: a batch takes too much memory.
    """

    def batches() -> Iterator[pa.RecordBatch]:
        reader = _arrow_reader(file)
        is_file = isinstance(reader, pa.ipc.RecordBatchFileReader)
        for batch in map(reader.get_batch, range(reader.num_record_batches)) if is_file else reader:
            batch.validate(full=True)
            yield batch

    return _bounded(batches(), name, size)


def _arrow_reader(file: BinaryIO) -> Any:
    magic = file.read(6)
    file.seek(0)
    if magic.startswith(FEATHER_1):
        raise ValueError("Feather of version 1")
    opened = pa.ipc.open_file if magic == b"ARROW1" else pa.ipc.open_stream
    # Threads would take memory, too, and end the process if there is none.
    return opened(file, options=pa.ipc.IpcReadOptions(use_threads=False))


def _bounded(batches: Iterator[pa.RecordBatch], name: str, size: int) -> Iterator[pa.RecordBatch]:
    while True:
        with memory.bounded(name, size):
            batch = next(batches, None)
        if batch is None:
            return
        yield batch


def cells(
    name: str, batches: Iterator[pa.RecordBatch], columns: Sequence[str], size: int, form: str = "Parquet"
) -> Iterator[Record]:
    """The rows of batches, each with its number and its cells.

    Args:
        name: of the file, for error messages.
        batches: those of ``parquet_batches`` or ``arrow_batches``, which are opened here.
        columns: the columns to read.
        size: of the file, in bytes.
        form: of the file, for error messages.

    Raises:
        DataError: the file is damaged, holds text that is not UTF-8, or expands to too much.
    """
    line, left = 0, text_files.longest_content(size)
    try:
        for batch in batches:
            if batch.nbytes > left:
                raise text_files.expands(name)
            for row in zip(*(batch.column(column) for column in columns), strict=True):
                line += 1
                with memory.bounded(name, size) if batch.nbytes > LARGE_BATCH else nullcontext():
                    values = [value.as_py() for value in row]
                left -= ROW_BYTES + sum(len(cell) for cell in values if isinstance(cell, str | bytes | list))
                if left < 0:
                    raise text_files.expands(name)
                yield line, values
    except UnicodeDecodeError as error:
        raise DataError(f"{name}, line {line}: not UTF-8: re-encode it") from error
    except (pa.ArrowException, OSError, ValueError, OverflowError, KeyError) as error:
        if "UTF8" in str(error):
            raise DataError(f"{name}, one of the rows after {line}: not UTF-8: re-encode it") from error
        raise damaged(name, form) from error


def file_size(file: BinaryIO) -> int:
    """The size of a file in bytes; its position stays."""
    place = file.tell()
    size = file.seek(0, 2)
    file.seek(place)
    return size


def names_in(schema: pa.Schema) -> dict[str, tuple[str, ...]]:
    """The names of ClassLabel columns, alone or in a list, from the metadata that ``datasets`` writes."""
    try:
        features = strict_json.parse((schema.metadata or {}).get(b"huggingface", b"{}"), "the metadata")["info"]["features"]
    except (KeyError, TypeError, ValueError):
        return {}
    return class_names(features)


def class_names(features: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    """The names of ClassLabel columns, alone or in a list, from features as ``datasets`` writes them."""
    label_names = {}
    for column, feature in features.items():
        if isinstance(feature, list):
            feature = feature[0] if feature else None
        inner = feature.get("feature", feature) if isinstance(feature, dict) else None
        if isinstance(inner, dict) and isinstance(names := inner.get("names"), list) and names:
            label_names[column] = tuple(map(str, names))
    return label_names


def probabilities(table: pa.Table, columns: Sequence[str], name: str) -> np.ndarray:
    """Columns of probabilities, float [n, columns].

    Raises:
        DataError: a column is missing, or has something else.
    """
    try:
        values: np.ndarray = np.column_stack([table[column].to_numpy() for column in columns])
        if values.dtype.kind == "f" and ((values >= 0) & (values <= 1)).all():
            return values
    except (KeyError, ValueError, TypeError, pa.ArrowException):
        pass
    raise DataError(f"{name} has columns of labels that are no probabilities, or lacks them: score it again")
