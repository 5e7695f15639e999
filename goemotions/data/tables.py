"""Files of rows, in every format that is read: CSV, TSV, JSON Lines and arrays (each plain or compressed), Parquet and Arrow.

A ``Table`` has its columns at once and reads its rows one at a time, as often as needed.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path, PurePath
from typing import Any

import pyarrow as pa

from goemotions import defaults
from goemotions.data import columnar, delimited, text_files
from goemotions.data.columnar import Record
from goemotions.data.text_files import Opener
from goemotions.errors import DataError

ARROW = (".arrow", ".feather")
ENDINGS = (".csv", ".tsv", ".jsonl", ".ndjson", ".json", ".parquet", *ARROW)
JSON = (".jsonl", ".ndjson", ".json")
# An item of a JSON array that is an object, with the mark before it.
ITEM = re.compile(r"\s*([\[,])\s*(?=\{)")
# Files that describe data and hold none.
DESCRIPTIONS = {
    "dataset.json",
    "dataset_dict.json",
    "dataset_info.json",
    "dataset_infos.json",
    "state.json",
    "quarantine.csv",
    "feedback.json",
    "conflicts.csv",
}
# What `datasets` computed from a folder, which it keeps there.
CACHED = re.compile(r"(cache-[0-9a-f]+.*|tmp\w+)\.arrow")
# Folders beside files of rows of which some are not, or no longer, rows of the table, and what to do.
PARTLY_VALID = {
    "_temporary": "was not written completely (it has a folder _temporary): write it again",
    "_delta_log": "is a Delta table, whose files also hold rows that were replaced: write it as plain Parquet",
    ".hoodie": "is a Hudi table, whose files also hold rows that were replaced: write it as plain Parquet",
}
ICEBERG = "is an Iceberg table, whose files also hold rows that were replaced: write it as plain Parquet"


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
        is_json: whether the file is JSON, where a row may have other columns.
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
    return bool(stem) and ending in ENDINGS and not (compression and ending in (".parquet", *ARROW))


def holds_rows(path: str) -> bool:
    """Whether a file below a folder, by its path there, is read: hidden ones, descriptions of data and caches are not."""
    *_, name = parts = PurePath(path).parts
    is_hidden = any(part.startswith((".", "_")) for part in parts)
    return is_table(name) and not (is_hidden or name in DESCRIPTIONS or CACHED.fullmatch(name))


def require_valid(location: str, paths: Iterable[str]) -> None:
    """Raises:
    DataError: the files and folders of these paths are those of an unfinished job, or of a table that keeps what was replaced.
    """
    for path in map(PurePath, paths):
        for place in (path, *path.parents):
            if place.name in PARTLY_VALID:
                within = f"{location.rstrip('/')}/{place.parent}" if place.parent.name else location
                raise DataError(f"{within} {PARTLY_VALID[place.name]}")
        if path.parent.name == "metadata" and path.name.endswith(".metadata.json"):
            raise DataError(f"{location} {ICEBERG}")


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
    elif ending in ARROW:
        table = _arrow(name, opener)
    elif ending in JSON:
        table = _json(name, opener)
    else:
        table = _delimited(name, opener, ending, text_column, official=official)
    delimited.require_few_columns(name, len(table.columns))
    if twice := sorted(column for column, count in Counter(table.columns).items() if count > 1):
        raise DataError(
            f"{name} has two columns {twice[0]!r}: rename one"
            if twice[0]
            else f"{name} has two columns without a name: remove one"
        )
    return table


def _lines(name: str, opener: Opener) -> Iterator[str]:
    with text_files.open_binary(name, opener) as file:
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


def _is_array(name: str, opener: Opener) -> bool:
    with text_files.open_binary(name, opener) as file:
        return text_files.begins_with(file, name, b"[")


def json_objects(name: str, opener: Opener) -> Generator[tuple[int, dict[str, Any]], None, None]:
    """The objects of a JSON array with their numbers, from 1; or of the lines of a JSON Lines file, but for blank ones."""
    if _is_array(name, opener):
        with text_files.open_binary(name, opener) as file:
            yield from enumerate(_items(name, text_files.pieces(file, name)), start=1)
        return
    for line, content in enumerate(_lines(name, opener), start=1):
        if content.strip():
            yield line, _json_object(name, line, content)


def _items(name: str, pieces: Iterable[str]) -> Iterator[dict[str, Any]]:
    """The objects of a JSON array, of which no more than one is in memory, and no more than a line may have."""
    decode = json.JSONDecoder().raw_decode
    text, place, count, enough = "", 0, 0, 0
    for piece in pieces:
        text, place = text[place:] + piece, 0
        # An object that did not end is read again when the text has doubled: with every piece it would take hours.
        if piece and len(text) < min(enough, text_files.LONGEST_LINE):
            continue
        enough = 0
        while (found := ITEM.match(text, place)) and found[1] == ("," if count else "["):
            try:
                value, place = decode(text, found.end())
            except (ValueError, RecursionError):
                # Its end may be in the next piece.
                enough = 2 * (len(text) - place)
                break
            count += 1
            yield value
        if len(text) - place > text_files.LONGEST_LINE:
            break
    if not re.compile(r"\s*\]\s*" if count else r"\s*\[\s*\]\s*").fullmatch(text, place):
        raise DataError(
            f"{name}, item {count + 1}: not an object with named values that ends within {text_files.LONGEST_LINE >> 20} MiB: fix "
            "it, or write one object per line"
        )


def _json(name: str, opener: Opener) -> Table:
    with closing(json_objects(name, opener)) as read:
        # A key may be missing from a row; the first thousand name the columns.
        names: dict[str, None] = {}
        for _, row in islice(read, 1000):
            names |= dict.fromkeys(row)
            delimited.require_few_columns(name, len(names))
        columns = tuple(names)

    def rows(columns: Sequence[str]) -> Iterator[Record]:
        for line, row in json_objects(name, opener):
            yield line, [row.get(column) for column in columns]

    return Table(name, "JSON array" if _is_array(name, opener) else "JSON Lines", columns, rows, is_json=True)


def _json_object(name: str, line: int, content: str) -> dict[str, Any]:
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{name}, line {line}: not JSON: write one object per line, as `jq -c` does, or a list of them"
        ) from error
    if not isinstance(value, dict):
        raise DataError(f"{name}, line {line}: not an object with named values: write one object per line")
    return value


def _parquet(name: str, opener: Opener) -> Table:
    with text_files.open_binary(name, opener) as file:
        parquet = columnar.open_parquet(file, name)
        schema, strings = parquet.schema_arrow, columnar.string_columns(parquet)

    def rows(columns: Sequence[str]) -> Iterator[Record]:
        with text_files.open_binary(name, opener) as file:
            parquet = columnar.open_parquet(file, name, read_dictionary=strings)
            size = columnar.file_size(file)
            batches = columnar.parquet_batches(parquet, name, size, columns=list(columns))
            yield from columnar.cells(name, batches, columns, size)

    return Table(name, "Parquet", tuple(schema.names), rows, columnar.names_in(schema), schema)


def _arrow(name: str, opener: Opener) -> Table:
    """A file of ``datasets``, which is an Arrow stream; or an Arrow file, which Feather is another name for."""
    with text_files.open_binary(name, opener) as file:
        schema = columnar.arrow_schema(file, name)

    def rows(columns: Sequence[str]) -> Iterator[Record]:
        with text_files.open_binary(name, opener) as file:
            size = columnar.file_size(file)
            yield from columnar.cells(name, columnar.arrow_batches(file, name, size), columns, size, "Arrow")

    return Table(name, "Arrow", tuple(schema.names), rows, columnar.names_in(schema), schema)
