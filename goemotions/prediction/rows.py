"""The rows of a file that is scored, in any format that `goemotions.data.tables` reads, as Arrow batches with every column.

Columns of a text file are strings. So are those of JSON; one that has other values than strings holds each as JSON.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from goemotions.data import columnar, tables, text_files
from goemotions.data.delimited import find, require_few_columns
from goemotions.data.tables import Table
from goemotions.data.text_files import Opener, split_name
from goemotions.errors import DataError

CHUNK = 4096
CHUNK_CHARACTERS = 2**24
READ_AHEAD = 2**25
# In a field's metadata: its strings are JSON.
JSON = {b"goemotions": b"json"}


@dataclass(frozen=True)
class Rows:
    """The rows of a file.

    Attributes:
        schema: its columns.
        count: the number of rows; of a text file None until ``total`` counts them.
        batches: called with the number of the first row and of rows (None: all others), returns an iterator over them.
    """

    schema: pa.Schema
    count: int | None
    batches: Callable[[int, int | None], Iterator[pa.RecordBatch]]

    def total(self) -> int:
        """The number of rows; reads a text file."""
        return sum(map(len, self.batches(0, None))) if self.count is None else self.count


def open_rows(name: str, opener: Opener, text_column: str) -> Rows:
    """Opens a file, whose ending says its format; the text column is a number for a CSV or TSV file without a header.

    Raises:
        DataError: the file cannot be read, is damaged or has no columns. Also raised while rows are read.
    """
    if split_name(name)[1] == ".parquet":
        return _parquet(name, opener, text_column)
    table = tables.open_table(name, opener, text_column)
    if not table.columns:
        raise DataError(f"{name} is empty: its first line must name the columns")
    schema = _json_schema(name, opener, table) or pa.schema([(column, pa.string()) for column in table.columns])
    schema = _with_text(table.schema, text_column) if table.schema else schema

    def batches(first: int, count: int | None) -> Iterator[pa.RecordBatch]:
        return _window(_chunks(table, schema), first, count)

    return Rows(schema, None, batches)


def with_columns(rows: Rows, values: Mapping[str, str | None]) -> Rows:
    """The rows with columns that have one value each; a column that is there already stays as it is."""
    added = {name: value for name, value in values.items() if name not in rows.schema.names}
    schema = rows.schema
    for name in added:
        schema = schema.append(pa.field(name, pa.string()))

    def batches(first: int, count: int | None) -> Iterator[pa.RecordBatch]:
        for batch in rows.batches(first, count):
            constant = [pa.array([value] * len(batch), pa.string()) for value in added.values()]
            yield pa.RecordBatch.from_arrays([*batch.columns, *constant], schema=schema)

    return Rows(schema, rows.count, batches) if added else rows


def _window(batches: Iterator[pa.RecordBatch], first: int, count: int | None) -> Iterator[pa.RecordBatch]:
    """The rows from a number on, so many (None: all)."""
    for batch in batches:
        rows = batch.slice(min(first, len(batch)), count)
        first -= min(first, len(batch))
        count = None if count is None else count - len(rows)
        if len(rows):
            yield rows
        if count == 0:
            return


def _json_schema(name: str, opener: Opener, table: Table) -> pa.Schema | None:
    """The columns of all rows of a JSON file, in the order in which they appear; None for another format."""
    if not table.is_json:
        return None
    are_strings: dict[str, bool] = {}
    for _, row in tables.json_objects(name, opener):
        for key, value in row.items():
            are_strings[key] = are_strings.get(key, True) and isinstance(value, str | None)
        require_few_columns(name, len(are_strings))
    return pa.schema([pa.field(key, pa.string(), metadata=None if plain else JSON) for key, plain in are_strings.items()])


def _chunks(table: Table, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    """Batches that are bounded in rows and in characters."""
    holds_json = [is_json(field) for field in schema]
    chunk: list[Sequence[object]] = []
    characters = 0
    for _, cells in table.rows(schema.names):
        row = [_as_json(cell) if json_cell else cell for cell, json_cell in zip(cells, holds_json, strict=True)]
        chunk.append(row)
        characters += sum(len(cell) for cell in row if isinstance(cell, str))
        if len(chunk) == CHUNK or characters > CHUNK_CHARACTERS:
            yield _batch(chunk, schema)
            chunk, characters = [], 0
    if chunk:
        yield _batch(chunk, schema)


def is_json(field: pa.Field) -> bool:
    """Whether the strings of a column are JSON."""
    return bool(field.metadata and JSON.items() <= field.metadata.items())


def _as_json(cell: object) -> str | None:
    return None if cell is None else json.dumps(cell, ensure_ascii=False)


def _batch(chunk: Sequence[Sequence[object]], schema: pa.Schema) -> pa.RecordBatch:
    try:
        columns = [pa.array(cells, field.type) for cells, field in zip(zip(*chunk, strict=True), schema, strict=True)]
    except UnicodeEncodeError as error:
        # JSON may escape half of a surrogate pair, which no other format can hold.
        raise DataError(f"a text has a lone surrogate ({error.object[error.start : error.end]!r}): remove it") from error
    except pa.ArrowInvalid as error:
        raise DataError(f"one of {len(chunk)} texts is not UTF-8: re-encode it") from error
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def _with_text(schema: pa.Schema, text_column: str) -> pa.Schema:
    """The schema with texts as strings, which some writers of Parquet, such as Impala, store as bytes."""
    position = schema.get_field_index(find(schema.names, text_column))
    if position < 0 or pa.types.is_nested(kind := schema.types[position]) or "binary" not in str(kind):
        return schema
    return schema.set(position, schema.field(position).with_type(pa.string()))


def _parquet(name: str, opener: Opener, text_column: str) -> Rows:
    with text_files.open_binary(name, opener) as file:
        parquet = columnar.open_parquet(file, name)
        schema, groups = _with_text(parquet.schema_arrow, text_column), len(parquet.groups)
        strings = [path for path in columnar.string_columns(parquet) if _is_castable(schema, path)]
        starts = [0]
        for group in parquet.groups:
            starts.append(starts[-1] + group.rows)

    def batches(first: int, count: int | None) -> Iterator[pa.RecordBatch]:
        end = starts[-1] if count is None else first + count
        # Row groups without any of the rows are not read.
        needed = [number for number in range(groups) if starts[number] < end and starts[number + 1] > first]
        if not needed:
            return
        start = starts[needed[0]]
        with text_files.open_binary(name, opener) as file:
            parquet = columnar.open_parquet(file, name, read_dictionary=strings)
            batched = _together(_parquet_batches(parquet, schema, name, columnar.file_size(file), needed, start))
            yield from _window(batched, first - start, end - first)

    return Rows(schema, starts[-1], batches)


def _is_castable(schema: pa.Schema, path: str) -> bool:
    """Whether PyArrow casts dictionaries to the strings of a column; it does not for views."""
    # Dots separate fields within each other, and may be in the name of a column.
    return not any("_view" in str(field.type) for field in schema if f"{path}.".startswith(f"{field.name}."))


def _parquet_batches(
    parquet: columnar.Parquet, schema: pa.Schema, name: str, size: int, groups: Sequence[int], start: int
) -> Iterator[pa.RecordBatch]:
    """The rows of some row groups in validated batches."""
    row = 1 + start
    try:
        for some in _bounded(parquet, groups):
            for batch in columnar.parquet_batches(parquet, name, size, row_groups=some):
                batch.validate(full=True)
                yield from _decoded(batch, schema)
                row += len(batch)
    except (pa.ArrowException, OSError) as error:
        if "UTF8" in str(error):
            raise DataError(f"{name}, one of the {CHUNK} rows from {row} on: not UTF-8: re-encode it") from error
        raise columnar.damaged(name) from error


def _decoded(batch: pa.RecordBatch, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    """A batch in parts of few bytes: a string that many rows have is stored once in a file, but once per row in memory."""
    if len(batch) > 1 and sum(map(_string_bytes, batch.columns)) > CHUNK_CHARACTERS:
        middle = len(batch) // 2
        yield from _decoded(batch.slice(0, middle), schema)
        yield from _decoded(batch.slice(middle), schema)
    else:
        columns = [column.cast(field.type) for column, field in zip(batch.columns, schema, strict=True)]
        yield pa.RecordBatch.from_arrays(columns, schema=schema)


def _together(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Small batches that follow each other as one: where dictionaries are read, each row group ends a batch."""
    small: list[pa.RecordBatch] = []
    rows = size = 0
    for batch in batches:
        if small and (rows + len(batch) > CHUNK or size + batch.nbytes > CHUNK_CHARACTERS):
            yield pa.concat_batches(small)
            small, rows, size = [], 0, 0
        small.append(batch)
        rows, size = rows + len(batch), size + batch.nbytes
    if small:
        yield pa.concat_batches(small)


def _string_bytes(array: pa.Array) -> int:
    """The bytes of the strings of an array that was read with dictionaries, each counted as often as it occurs."""
    kind = array.type
    if pa.types.is_dictionary(kind) and (pa.types.is_string(kind.value_type) or pa.types.is_binary(kind.value_type)):
        return pc.sum(pc.binary_length(array.dictionary).take(array.indices)).as_py() or 0
    if pa.types.is_struct(kind):
        return sum(map(_string_bytes, array.flatten()))
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return _string_bytes(array.flatten())
    if pa.types.is_map(kind):
        first, last = (array.offsets[place].as_py() for place in (0, -1))
        return sum(_string_bytes(values.slice(first, last - first)) for values in (array.keys, array.items))
    return 0


def _bounded(parquet: columnar.Parquet, groups: Sequence[int]) -> Iterator[list[int]]:
    """Consecutive row groups, as few as have enough rows or bytes: PyArrow reads all that it is given ahead."""
    some: list[int] = []
    rows = size = 0
    for number in groups:
        group = parquet.groups[number]
        some, rows, size = [*some, number], rows + group.rows, size + group.bytes
        if rows >= CHUNK or size >= READ_AHEAD:
            yield some
            some, rows, size = [], 0, 0
    if some:
        yield some
