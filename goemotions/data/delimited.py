"""CSV and TSV: the delimiter, whether cells are quoted, whether the first line names the columns, and the records themselves."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import dropwhile, islice

from goemotions.data.text_files import LONGEST_LINE
from goemotions.errors import DataError

DELIMITERS = {".csv": ",", ".tsv": "\t"}
LONGEST_CELL = 2**24
MOST_COLUMNS = 10_000
# Rows by which a delimiter is chosen.
LOOKED_AT = 1000
LONGEST_HEADER = 2**20
OFFICIAL = ("text", "labels", "id")
# The line with which Excel's CSV files name their delimiter.
SEPARATOR_LINE = re.compile(r'"?sep=([,;|\t])"?', re.IGNORECASE)
QUOTED = re.compile(r'"(?:[^"]|"")*"')

Lines = Callable[[], Iterator[str]]


@dataclass(frozen=True)
class Dialect:
    """How a file is written.

    Attributes:
        delimiter: between two cells.
        is_quoted: whether a cell may be quoted, as in CSV; otherwise a quote is a character like any other, as in the official TSV.
        has_header: whether the first line names the columns.
        columns: their names; without a header their numbers, or those of the official layout.
        skipped_lines: how many lines precede the header or the first row.
    """

    delimiter: str
    is_quoted: bool
    has_header: bool
    columns: tuple[str, ...]
    skipped_lines: int = 0


def find(columns: Sequence[str], name: str) -> str:
    """The column of this name, in any case if only one matches; empty if there is none."""
    same = [column for column in columns if column.strip().lower() == name.lower()]
    return name if name in columns else same[0] if len(same) == 1 else ""


def require_few_columns(name: str, count: int) -> None:
    """Raises:
    DataError: a file has more columns than are read.
    """
    if count > MOST_COLUMNS:
        raise DataError(
            f"{name} has {count:,} columns, and at most {MOST_COLUMNS:,} are read: leave out those that are not needed"
        )


def detect(lines: Lines, name: str, ending: str, text_column: str, *, official: bool) -> Dialect:
    """The dialect of a file.

    Args:
        lines: returns its lines from the start, each time it is called.
        name: its name, for error messages.
        ending: ``.csv`` or ``.tsv``.
        text_column: the column with the texts; a number for a file without a header.
        official: whether it is one of a data set, so that a TSV without a header has the columns of the official data.

    Raises:
        DataError: the file is empty or blank, has too many columns, or its quotes have two readings.
    """
    separator = SEPARATOR_LINE.fullmatch(next(lines(), "").rstrip("\r\n"))
    skipped = 1 if separator else 0

    def content() -> Iterator[str]:
        return islice(lines(), skipped, None)

    first = _first_lines(content())
    if not first:
        return Dialect(DELIMITERS[ending], ending == ".csv", False, ())
    delimiter = separator[1] if separator else _delimiter(content, first, name, ending, text_column, is_alone=not official)
    # Before they are split, which takes seconds if there are millions.
    require_few_columns(name, 1 + _most(first, delimiter))
    cells = [cell.strip() for cell in _cells(first, delimiter)]
    if _names_texts(cells, text_column) and not _is_official_row(cells, ending):
        columns, has_header = tuple(cells), True
    elif text_column.isdecimal():
        columns, has_header = tuple(map(str, range(len(cells)))), False
    elif ending == ".tsv" and official:
        columns, has_header = OFFICIAL, False
    else:
        columns, has_header = tuple(cells), True
    position = columns.index(chosen) if (chosen := find(columns, text_column)) else 0
    is_quoted = ending == ".csv" or _is_quoted(content, name, delimiter, position)
    return Dialect(delimiter, is_quoted, has_header, columns, skipped)


def _first_lines(lines: Iterator[str]) -> list[str]:
    """The first line that is not blank, with the next ones if a quoted name of a column has line breaks."""
    first, quotes, size = [], 0, 0
    for line in dropwhile(lambda line: not line.strip(), lines):
        first.append(line)
        quotes, size = quotes + line.count('"'), size + len(line)
        if quotes % 2 == 0 or size > LONGEST_HEADER:
            break
    return first


def _most(lines: Sequence[str], mark: str) -> int:
    """How often a line has a mark at most."""
    return max(line.count(mark) for line in lines)


def _delimiter(lines: Lines, first: Sequence[str], name: str, ending: str, text_column: str, *, is_alone: bool) -> str:
    """What separates cells; ``is_alone``: whether the file may have no other column than that of the texts."""
    usual = DELIMITERS[ending]
    if ending == ".tsv":
        return usual
    marks = [mark for mark in ",;\t|" if 0 < _most(first, mark) < MOST_COLUMNS]
    counts = {mark: len(cells) for mark in marks if _names_texts(cells := _cells(first, mark), text_column)}
    if counts or not text_column.isdecimal() or (is_alone and not int(text_column)):
        return max(counts, key=lambda mark: (counts[mark], mark == usual), default=usual)
    # Without a header, it is the mark by which the first rows have equally many cells.
    fitting = [mark for mark in marks if _has_equal_rows(lines, name, mark, LOOKED_AT)]
    if len(fitting) > 1:
        raise DataError(
            f"{name} can be separated by {' or by '.join(map(repr, fitting))}: name the columns in a first line, or write a line "
            "such as sep=; before the first"
        )
    return fitting[0] if fitting else usual


def _has_equal_rows(lines: Lines, name: str, delimiter: str, most: int | None = None) -> bool:
    """Whether all rows, or the first ``most``, have equally many cells."""
    try:
        return len({len(cells) for _, cells in islice(_quoted(lines(), name, delimiter), most) if cells}) == 1
    except DataError:
        return False


def _cells(lines: Sequence[str], delimiter: str) -> list[str]:
    """The cells of the first record of some lines."""
    cells = lines[0].rstrip("\r\n").split(delimiter)
    if delimiter == "\t" and not all(map(QUOTED.fullmatch, cells)):
        return cells
    try:
        return next(csv.reader(lines, delimiter=delimiter), [])
    except csv.Error:
        return cells


def _names_texts(cells: Sequence[str], text_column: str) -> bool:
    """Whether a line names the column of the texts.

    A number is a name only in its place, as pandas counts columns, maybe after its index; elsewhere it is a value, such as a label.
    """
    if not text_column.isdecimal():
        return bool(find(cells, text_column))
    columns = [cell.strip() for cell in cells]
    return text_column in columns and columns.index(text_column) == int(text_column) + (columns[0] == "")


def _is_official_row(cells: Sequence[str], ending: str) -> bool:
    """Whether a line with a cell ``text`` is a row of the official layout whose text is that word."""
    return ending == ".tsv" and len(cells) == 3 and bool(re.fullmatch(r"[\d, ]+", cells[1]))


def _is_quoted(lines: Lines, name: str, delimiter: str, text: int) -> bool:
    """Whether a TSV file has quoted cells, as pandas writes them, or quotes that belong to the texts, as in the official data.

    pandas quotes each cell that has a quote, a tab or a line break, and doubles the quotes in it.
    """
    widths: set[int] = set()
    doubled = unquoted = 0
    whole: set[int] | None = None
    for line in lines():
        widths.add(1 + line.count(delimiter))
        if len(widths) > 1:
            return _reads_quoted(lines, name, delimiter)
        cells = line.rstrip("\r\n").split(delimiter)
        quoted = {position for position, cell in enumerate(cells) if cell.startswith('"') and QUOTED.fullmatch(cell)}
        whole = quoted if whole is None else whole & quoted
        if '"' in line:
            doubled += sum('""' in cells[position][1:-1] for position in quoted)
            unquoted += sum('"' in cell for position, cell in enumerate(cells) if position not in quoted)
    if unquoted or not (doubled or whole):
        return False
    if not doubled and whole == {text} and widths != {1}:
        raise DataError(
            f"{name}: every text begins and ends with a quote, which is either part of the text or the quoting of CSV: "
            "write the file as .csv if it is the quoting, or as .jsonl or .parquet if it is part of the text"
        )
    return True


def _reads_quoted(lines: Lines, name: str, delimiter: str) -> bool:
    """Whether lines with different numbers of cells are records of equal length once quotes are read."""
    return any('"' in line for line in lines()) and _has_equal_rows(lines, name, delimiter)


def records(lines: Iterator[str], name: str, dialect: Dialect) -> Iterator[tuple[int, list[str]]]:
    """The first line and the cells of each record, without the header.

    Raises:
        DataError: the quotes of a record do not match, it has another number of cells than the file has columns, or is their names
            again.
    """
    skipped = dialect.skipped_lines
    lines = islice(lines, skipped, None)
    read = (
        _quoted(lines, name, dialect.delimiter, skipped) if dialect.is_quoted else _unquoted(lines, dialect.delimiter, skipped)
    )
    width = len(dialect.columns)
    only_blank, blank_line = not dialect.has_header, 0
    is_header, header = dialect.has_header, [""]
    for line, cells in read:
        is_blank = not any(cell.strip() for cell in cells) and len(cells) <= 1
        # A file of only blank lines has no rows; a blank line before a row is an error like any other.
        if only_blank and is_blank:
            blank_line = blank_line or line
            continue
        if only_blank and blank_line:
            raise _wrong_width(name, blank_line, 1, dialect)
        only_blank = False
        if is_header and not is_blank:
            is_header, header = False, cells
        elif not is_header and not (is_blank and dialect.has_header and width > 1):
            # In a file with one column, an empty line is a row with an empty cell.
            cells = cells or [""]
            if len(cells) != width:
                raise _wrong_width(name, line, len(cells), dialect)
            if width > 1 and cells[1:] == header[1:] and cells[0].lstrip("\ufeff") == header[0]:
                raise DataError(f"{name}, line {line}: names the columns again, as where files were joined: remove the line")
            yield line, cells


def _wrong_width(name: str, line: int, count: int, dialect: Dialect) -> DataError:
    if dialect.columns == OFFICIAL and not dialect.has_header:
        return DataError(
            f"{name}, line {line}: {count} columns where 3 are needed (text, label indices, id), tab-separated; "
            "other columns must be named in a first line"
        )
    named = "line 1 names" if dialect.has_header else "line 1 has"
    return DataError(f"{name}, line {line}: {count} columns where {named} {len(dialect.columns)}: fix it")


def _unquoted(lines: Iterator[str], delimiter: str, skipped: int = 0) -> Iterator[tuple[int, list[str]]]:
    for line, record in enumerate(lines, start=skipped + 1):
        yield line, record.removesuffix("\n").removesuffix("\r").split(delimiter)


def _quoted(lines: Iterator[str], name: str, delimiter: str, skipped: int = 0) -> Iterator[tuple[int, list[str]]]:
    # Python's default limit rejects a long comment; without a limit, an open quote would read the whole file into memory.
    csv.field_size_limit(LONGEST_CELL)
    left = LONGEST_LINE

    def bounded() -> Iterator[str]:
        nonlocal left
        for content in lines:
            left -= len(content)
            if left < 0:
                raise DataError(f"{name}, line {line}: the row there has more than {LONGEST_LINE >> 20} MiB: check its quotes")
            yield content

    reader = csv.reader(bounded(), delimiter=delimiter, strict=True)
    while True:
        line, left = skipped + reader.line_num + 1, LONGEST_LINE
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            if "new-line character" in str(error):
                raise DataError(
                    f"{name}, line {line}: a carriage return without a line feed: save it with line feeds"
                ) from error
            ending = ".tsv" if delimiter == "\t" else ".csv"
            raise DataError(
                f"{name}, line {line}: the row there is no {ending} ({error}): check its quotes; one within a cell is written twice, "
                "not after a backslash as Spark and MySQL write it"
            ) from error
        yield line, cells
