"""Files of rows, in every format that is read: CSV, TSV, JSON Lines (each plain or compressed), Parquet and Arrow.

A ``Table`` has its columns at once and reads its rows one at a time, as often as needed.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from goemotions import defaults, strict_json
from goemotions.data import delimited, memory, parquet_footer, text_files
from goemotions.errors import DataError

ENDINGS = (".csv", ".tsv", ".jsonl", ".ndjson", ".json", ".parquet", ".arrow")
JSON_LINES = (".jsonl", ".ndjson", ".json")
CHUNK = 4096
BATCH_BYTES = 2**26
# Of which a cell may take gigabytes as objects of Python.
LARGE_BATCH = 2**24
PREFIXES = "DELTA_BYTE_ARRAY"
# What a row counts at least, in the bound on what a file expands to.
ROW_BYTES = 8
# Parquet's footer takes tens of times its size in memory.
MOST_FOOTER_BYTES = 2**24

Opener = Callable[[], BinaryIO]
Record = tuple[int, Sequence[Any]]


@dataclass(frozen=True)
class Table:
    """A file of rows.

    Attributes:
        name: what messages call the file.
        form: how it is read, in words.
        columns: names of its columns.
        rows: called with columns, returns an iterator over the number of each row's line (from 1) and its cells.
        class_names: for columns of Hugging Face ClassLabel, the names that their numbers stand for.
        schema: the types of the columns, if the file has them.
        is_json: whether the file is JSON Lines, where a line may have other columns.
    """

    name: str
    form: str
    columns: tuple[str, ...]
    rows: Callable[[Sequence[str]], Iterator[Record]]
    class_names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    schema: pa.Schema | None = None
    is_json: bool = False

    def column(self, name: str) -> str:
        """The column of this name, in any case if only one matches; empty if there is none."""
        return delimited.find(self.columns, name)


def is_table(name: str) -> bool:
    """Whether a file has the name of a format that is read."""
    stem, ending, compression = text_files.split_name(name)
    return bool(stem) and ending in ENDINGS and not (compression and ending in (".parquet", ".arrow"))


def open_path(path: Path, text_column: str = defaults.TEXT_COLUMN) -> Table:
    return open_table(path.name, lambda: path.open("rb"), text_column, official=True)


def open_table(name: str, opener: Opener, text_column: str = defaults.TEXT_COLUMN, *, official: bool = False) -> Table:
    """Opens a file of rows.

    Args:
        name: its name; the ending says its format.
        opener: opens it for reading and seeking.
        text_column: the column with the texts; a number for a CSV or TSV file without a header.
        official: whether a TSV without a header has the columns of the official data.

    Raises:
        DataError: it has no known ending, cannot be read, is damaged, or has two columns of one name. Also raised while rows are read.
    """
    _, ending, _ = text_files.split_name(name)
    if not is_table(name):
        raise DataError(f"{name} has none of the endings {', '.join(ENDINGS)}: rename or convert it")
    if ending == ".parquet":
        table = _parquet(name, opener)
    elif ending == ".arrow":
        table = _arrow(name, opener)
    elif ending in JSON_LINES:
        table = _json_lines(name, opener)
    else:
        table = _delimited(name, opener, ending, text_column, official=official)
    delimited.require_few_columns(name, len(table.columns))
    if twice := sorted(column for column, count in Counter(table.columns).items() if count > 1):
        raise DataError(f"{name} has two columns {twice[0]!r}: rename one")
    return table


def open_binary(name: str, opener: Opener) -> BinaryIO:
    """Raises:
    DataError: the file cannot be opened.
    """
    try:
        return opener()
    except OSError as error:
        raise DataError(f"{name} cannot be read ({error.strerror}): check its path and permissions") from error


def _lines(name: str, opener: Opener) -> Iterator[str]:
    with open_binary(name, opener) as file:
        yield from text_files.lines(file, name)


def _delimited(name: str, opener: Opener, ending: str, text_column: str, *, official: bool) -> Table:
    dialect = delimited.detect(lambda: _lines(name, opener), name, ending, text_column, official=official)
    place = {column: position for position, column in enumerate(dialect.columns)}

    def rows(columns: Sequence[str]) -> Iterator[Record]:
        places = [place[column] for column in columns]
        for line, cells in delimited.records(_lines(name, opener), name, dialect):
            yield line, [cells[position] for position in places]

    return Table(name, _form(dialect, ending), dialect.columns, rows)


def _form(dialect: delimited.Dialect, ending: str) -> str:
    if ending == ".csv":
        usual = dialect.delimiter == delimited.DELIMITERS[ending]
        form = "CSV" if usual else f"CSV separated by {dialect.delimiter!r}"
    else:
        form = "TSV with quoted cells" if dialect.is_quoted else "TSV"
    if dialect.has_header:
        return form
    return f"{form} without a header" if dialect.columns != delimited.OFFICIAL else "TSV of the official layout"


def json_objects(name: str, opener: Opener) -> Generator[tuple[int, dict[str, Any]], None, None]:
    """The line and the object of each line of a JSON Lines file that is not blank."""
    for line, content in enumerate(_lines(name, opener), start=1):
        if content.strip():
            yield line, _json_object(name, line, content)


def _json_lines(name: str, opener: Opener) -> Table:
    with closing(json_objects(name, opener)) as read:
        # A key may be missing from a line; the first thousand name the columns.
        names: dict[str, None] = {}
        for _, row in islice(read, 1000):
            names |= dict.fromkeys(row)
            delimited.require_few_columns(name, len(names))
        columns = tuple(names)

    def rows(columns: Sequence[str]) -> Iterator[Record]:
        for line, row in json_objects(name, opener):
            yield line, [row.get(column) for column in columns]

    return Table(name, "JSON Lines", columns, rows, is_json=True)


def _json_object(name: str, line: int, content: str) -> dict[str, Any]:
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as error:
        if line == 1 and content.lstrip().startswith(("[", "{")):
            raise DataError(f"{name} is not JSON Lines: write one object per line, without a list around them") from error
        raise DataError(f"{name}, line {line}: not JSON: write one object per line") from error
    if not isinstance(value, dict):
        raise DataError(f"{name}, line {line}: not an object with named values: write one object per line")
    return value


def damaged(name: str, form: str = "Parquet") -> DataError:
    return DataError(f"{name} is not a complete {form} file: copy it again")


def open_parquet(file: BinaryIO, name: str, **options: Any) -> pq.ParquetFile:
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
        if parquet_footer.is_deep(file.read(footer)):
            raise DataError(
                f"{name} has columns of more than {parquet_footer.MOST_LEVELS} levels or with long names: write fewer"
            )
        file.seek(0)
        with memory.bounded(name):
            # Without a buffer a whole row group is read at once, and a file may have a single one. Ahead, threads of Arrow would
            # read, and one that frees a buffer of a Python file while the process ends aborts it.
            parquet = pq.ParquetFile(file, buffer_size=2**20, pre_buffer=False, **options)
    # A KeyError: the two schemas of the file name a column differently.
    except (pa.ArrowException, OSError, ValueError, KeyError) as error:
        raise damaged(name) from error
    metadata = parquet.metadata
    delimited.require_few_columns(name, metadata.num_columns)
    # Rows that are all alike take no space.
    if ROW_BYTES * metadata.num_rows > text_files.longest_content(size):
        raise text_files.expands(name)
    for group in (metadata.row_group(number) for number in range(metadata.num_row_groups)):
        for column in (group.column(number) for number in range(group.num_columns)):
            # Values that repeat are stored once, so that a column may be longer than its pages.
            size = max(column.total_uncompressed_size, 8 * column.num_values if column.num_values > 64 * group.num_rows else 0)
            if size > text_files.longest_content(column.total_compressed_size):
                raise text_files.expands(name)
    return parquet


def parquet_batches(parquet: pq.ParquetFile, name: str, size: int, **options: Any) -> Iterator[pa.RecordBatch]:
    """The rows of a Parquet file in batches that are bounded in rows and, if their texts are about equally long, in bytes.

    Args:
        parquet: the file, as ``open_parquet`` returns it.
        name: its name, for error messages.
        size: of the file, in bytes.
        options: of ``ParquetFile.iter_batches``, such as ``columns``.

    Raises:
        DataError: a batch takes too much memory.
    """
    groups = [parquet.metadata.row_group(number) for number in range(parquet.metadata.num_row_groups)]
    row_bytes = [group.total_byte_size // max(group.num_rows, 1) for group in groups]
    # With this encoding each text may hold the whole one before it.
    row_bytes += [chunk.total_uncompressed_size // 2 for chunk in _chunks(parquet) if PREFIXES in chunk.encodings]
    rows = max(1, min(CHUNK, BATCH_BYTES // max(*row_bytes, 1, 1)))
    return _bounded(parquet.iter_batches(rows, use_threads=False, **options), name, size)


def whole_batches(parquet: pq.ParquetFile, name: str, size: int, **options: Any) -> Iterator[pa.RecordBatch]:
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
    with open_binary(str(path), lambda: path.open("rb")) as file:
        parquet = open_parquet(file, str(path))
        return pa.Table.from_batches(whole_batches(parquet, str(path), file_size(file)), parquet.schema_arrow)


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


def _bounded(batches: Iterator[pa.RecordBatch], name: str, size: int) -> Iterator[pa.RecordBatch]:
    while True:
        with memory.bounded(name, size):
            batch = next(batches, None)
        if batch is None:
            return
        yield batch


def string_columns(parquet: pq.ParquetFile) -> list[str]:
    """The columns of strings, for ``read_dictionary``: a text that is stored once for many rows is then read once.

    Left out are those with an encoding that PyArrow does not read as dictionaries.
    """
    strings = [chunk for chunk in _chunks(parquet) if chunk.physical_type == "BYTE_ARRAY"]
    others = {chunk.path_in_schema for chunk in strings if PREFIXES in chunk.encodings}
    return [name for name in dict.fromkeys(chunk.path_in_schema for chunk in strings) if name not in others]


def _chunks(parquet: pq.ParquetFile) -> Iterator[pq.ColumnChunkMetaData]:
    """The columns of each row group."""
    groups = (parquet.metadata.row_group(number) for number in range(parquet.metadata.num_row_groups))
    return (group.column(number) for group in groups for number in range(group.num_columns))


def _parquet(name: str, opener: Opener) -> Table:
    with open_binary(name, opener) as file:
        parquet = open_parquet(file, name)
        schema, strings = parquet.schema_arrow, string_columns(parquet)

    def rows(columns: Sequence[str]) -> Iterator[Record]:
        with open_binary(name, opener) as file:
            parquet = open_parquet(file, name, read_dictionary=strings)
            size = file_size(file)
            yield from _cells(name, lambda: parquet_batches(parquet, name, size, columns=list(columns)), columns, size)

    return Table(name, "Parquet", tuple(schema.names), rows, _class_names(schema), schema)


def _arrow(name: str, opener: Opener) -> Table:
    """A file of ``datasets``, which is an Arrow stream; or an Arrow file."""

    def batches(file: BinaryIO) -> Iterator[pa.RecordBatch]:
        reader = _arrow_reader(file)
        if isinstance(reader, pa.ipc.RecordBatchFileReader):
            reader = (reader.get_batch(number) for number in range(reader.num_record_batches))
        for batch in reader:
            batch.validate(full=True)
            yield batch

    def rows(columns: Sequence[str]) -> Iterator[Record]:
        with open_binary(name, opener) as file:
            size = file_size(file)
            yield from _cells(name, lambda: _bounded(batches(file), name, size), columns, size, "Arrow")

    try:
        with open_binary(name, opener) as file, memory.bounded(name):
            schema = _arrow_reader(file).schema
    except (pa.ArrowException, OSError, ValueError) as error:
        raise damaged(name, "Arrow") from error
    return Table(name, "Arrow", tuple(schema.names), rows, _class_names(schema), schema)


def _arrow_reader(file: BinaryIO) -> Any:
    magic = file.read(6)
    file.seek(0)
    opened = pa.ipc.open_file if magic == b"ARROW1" else pa.ipc.open_stream
    # Threads would take memory, too, and end the process if there is none.
    return opened(file, options=pa.ipc.IpcReadOptions(use_threads=False))


def file_size(file: BinaryIO) -> int:
    """The size of a file in bytes; its position stays."""
    place = file.tell()
    size = file.seek(0, 2)
    file.seek(place)
    return size


def _cells(
    name: str, batches: Callable[[], Iterator[pa.RecordBatch]], columns: Sequence[str], size: int, form: str = "Parquet"
) -> Iterator[Record]:
    line, left = 0, text_files.longest_content(size)
    try:
        for batch in batches():
            if batch.nbytes > left:
                raise text_files.expands(name)
            for row in zip(*(batch.column(column) for column in columns), strict=True):
                line += 1
                with memory.bounded(name, size) if batch.nbytes > LARGE_BATCH else nullcontext():
                    cells = [value.as_py() for value in row]
                left -= ROW_BYTES + sum(len(cell) for cell in cells if isinstance(cell, str | bytes | list))
                if left < 0:
                    raise text_files.expands(name)
                yield line, cells
    except UnicodeDecodeError as error:
        raise DataError(f"{name}, line {line}: not UTF-8: re-encode it") from error
    except (pa.ArrowException, OSError, ValueError, OverflowError, KeyError) as error:
        if "UTF8" in str(error):
            raise DataError(f"{name}, one of the rows after {line}: not UTF-8: re-encode it") from error
        raise damaged(name, form) from error


def _class_names(schema: pa.Schema) -> dict[str, tuple[str, ...]]:
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
