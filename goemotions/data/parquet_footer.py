"""The footer of a Parquet file: the depth of its schema, and its row groups.

PyArrow reads schemas by recursion, and one that is too deep ends the process, as some damages of a column's metadata do if Python asks
for them.

A footer is a ``FileMetaData`` in Thrift's compact protocol.

https://github.com/apache/parquet-format/blob/master/src/main/thrift/parquet.thrift
https://github.com/apache/thrift/blob/master/doc/specs/thrift-compact-protocol.md
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

BOOLEANS, BYTE, INTEGERS, DOUBLE, BINARY, LISTS, STRUCT = (1, 2), 3, (4, 5, 6), 7, 8, (9, 10), 12
# The fields ``schema`` and ``row_groups`` of FileMetaData, and ``name`` and ``num_children`` of SchemaElement.
SCHEMA, ROW_GROUPS, NAME, CHILDREN = 2, 4, 4, 5
# The fields of RowGroup, ``meta_data`` of ColumnChunk, and those of ColumnMetaData.
COLUMNS, TOTAL_BYTES, ROWS, META_DATA = 1, 2, 3, 3
TYPE, ENCODINGS, PATH, VALUES, UNCOMPRESSED, COMPRESSED = 1, 2, 3, 5, 6, 7
# The physical type of texts, and the encoding in which each may hold the one before it.
BYTE_ARRAY, DELTA_BYTE_ARRAY = 6, 7
LONGEST_BITS = 64
# PyArrow keeps the path of each element, which has the names of all above it. Footers of less bytes have no schema beyond these.
MOST_LEVELS, MOST_PATH_BYTES, SMALL_BYTES = 100, 2**24, 2**13


@dataclass(frozen=True)
class Column:
    """A column of a row group: its path in the schema, number of values, and bytes without and with compression."""

    path: str
    type: int
    encodings: tuple[int, ...]
    values: int
    uncompressed: int
    compressed: int


@dataclass(frozen=True)
class RowGroup:
    """A row group: its rows, their bytes without compression, and its columns."""

    rows: int
    bytes: int
    columns: tuple[Column, ...]


def row_groups(footer: bytes) -> list[RowGroup]:
    """The row groups that a footer describes.

    Raises:
        ValueError: the footer is damaged.
    """
    reader = _Reader(footer)
    groups: list[RowGroup] = []
    try:
        for number, kind in reader.fields():
            if number == ROW_GROUPS:
                groups = [reader.row_group() for _ in reader.items(STRUCT)]
            else:
                reader.skip(kind)
    except (IndexError, RecursionError) as error:
        raise ValueError("the footer is damaged") from error
    return groups


def is_deep(footer: bytes) -> bool:
    """Whether a schema in a footer has more levels than are read, or paths of too many bytes.

    Raises:
        ValueError: the footer is damaged.
    """
    if len(footer) < SMALL_BYTES:
        return False
    reader = _Reader(footer)
    try:
        for number, kind in reader.fields():
            if number != SCHEMA:
                reader.skip(kind)
            elif reader.is_deep():
                return True
        return False
    except (IndexError, RecursionError) as error:
        raise ValueError("the footer is damaged") from error


class _Reader:
    def __init__(self, content: bytes) -> None:
        self._content = content
        self._position = 0

    def fields(self) -> Iterator[tuple[int, int]]:
        """The number and the type of each field of a struct; the caller reads or skips its value."""
        number = 0
        while head := self._unsigned_byte():
            number = number + (head >> 4) if head >> 4 else self._signed()
            yield number, head & 15

    def is_deep(self) -> bool:
        """Whether a list of schema elements, each followed by its children, is."""
        # Of the elements above the next one: the children that are still to come, and the bytes of their paths.
        above: list[list[int]] = []
        total = 0
        for _ in range(self._list_head()[0]):
            children, path = 0, above[-1][1] if above else 0
            for number, kind in self.fields():
                if number == CHILDREN:
                    children = self._signed()
                else:
                    before = self._position
                    self.skip(kind)
                    path += self._position - before if number == NAME else 0
            total += path
            if above:
                above[-1][0] -= 1
            above.append([children, path])
            while above and above[-1][0] <= 0:
                above.pop()
            if len(above) > MOST_LEVELS or total > MOST_PATH_BYTES:
                return True
        return False

    def row_group(self) -> RowGroup:
        columns: tuple[Column, ...] = ()
        numbers = {TOTAL_BYTES: 0, ROWS: 0}
        for number, kind in self.fields():
            if number == COLUMNS and kind in LISTS:
                columns = tuple(self._chunk() for _ in self.items(STRUCT))
            elif number in numbers and kind in INTEGERS:
                numbers[number] = self._signed()
            else:
                self.skip(kind)
        return RowGroup(numbers[ROWS], numbers[TOTAL_BYTES], columns)

    def _chunk(self) -> Column:
        column = None
        for number, kind in self.fields():
            if number == META_DATA and kind == STRUCT:
                column = self._column()
            else:
                self.skip(kind)
        if column is None:
            raise ValueError("the footer has a column without metadata")
        return column

    def _column(self) -> Column:
        numbers = {TYPE: -1, VALUES: 0, UNCOMPRESSED: 0, COMPRESSED: 0}
        encodings: tuple[int, ...] = ()
        path: tuple[str, ...] = ()
        for number, kind in self.fields():
            if number in numbers and kind in INTEGERS:
                numbers[number] = self._signed()
            elif number == ENCODINGS and kind in LISTS:
                encodings = tuple(self._signed() for _ in self.items(*INTEGERS))
            elif number == PATH and kind in LISTS:
                path = tuple(self._text() for _ in self.items(BINARY))
            else:
                self.skip(kind)
        return Column(".".join(path), numbers[TYPE], encodings, numbers[VALUES], numbers[UNCOMPRESSED], numbers[COMPRESSED])

    def items(self, *kinds: int) -> range:
        """The positions of the items of a list of one of these types, which follow."""
        count, kind = self._list_head()
        if kind not in kinds:
            raise ValueError("the footer has a list of another type")
        return range(count)

    def skip(self, kind: int, *, is_item: bool = False) -> None:
        """Skips a value. A boolean takes a byte as an item only: that of a field is its type."""
        if kind in INTEGERS:
            self._unsigned()
        elif kind == BINARY:
            size = self._unsigned()
            self._position += size
        elif kind == STRUCT:
            for _, inner in self.fields():
                self.skip(inner)
        elif kind in LISTS:
            count, inner = self._list_head()
            for _ in range(count):
                self.skip(inner, is_item=True)
        elif kind in BOOLEANS or kind == BYTE:
            self._position += is_item or kind == BYTE
        elif kind == DOUBLE:
            self._position += 8
        else:
            raise ValueError("the footer has a value of another type")

    def _list_head(self) -> tuple[int, int]:
        head = self._unsigned_byte()
        count = self._unsigned() if head >> 4 == 15 else head >> 4
        # Each item takes at least a byte.
        if count > len(self._content) - self._position:
            raise ValueError("the footer has a list that is longer than itself")
        return count, head & 15

    def _text(self) -> str:
        size = self._unsigned()
        self._position += size
        return self._content[self._position - size : self._position].decode(errors="replace")

    def _signed(self) -> int:
        value = self._unsigned()
        return (value >> 1) ^ -(value & 1)

    def _unsigned(self) -> int:
        value = shift = 0
        while (byte := self._unsigned_byte()) >= 0x80:
            value |= (byte & 0x7F) << shift
            shift += 7
            if shift > LONGEST_BITS:
                raise ValueError("the footer has a number of more than 64 bits")
        return value | byte << shift

    def _unsigned_byte(self) -> int:
        byte = self._content[self._position]
        self._position += 1
        return byte
