"""The cells that hold the labels of a row: their parsing into numbers and names, and the ways to read these."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from goemotions import defaults
from goemotions.data.taxonomy import MOST_LABELS
from goemotions.errors import DataError

MARKS = ",;|"
# A string within a list. Both patterns never go back, which takes hours in a long cell of quotes without an end.
QUOTED = re.compile(r"""'(?:[^'\\]|\\.)*+'|"(?:[^"\\]|\\.)*+\"""")
# Strings, and what is between them in lists of Python 2, of NumPy and of others.
STRINGS = re.compile(rf"(?:[\s,)u]|np\.str_\(|{QUOTED.pattern})*+")
CHOICES = re.compile(r'\{"choices": ?(\[.*\])\}', re.DOTALL)
FLAGS = {"0": 0.0, "1": 1.0, "false": 0.0, "true": 1.0, "0.0": 0.0, "1.0": 1.0}

# The labels of a row as indices (or as what validation rejects), and per label the share of raters who gave it, if that is known.
Decoded = tuple[list[Any], list[float] | None]
# Raises ValueError with what is wrong with a row's cells.
Decode = Callable[[Sequence[Any]], Decoded]


def is_list(cell: str) -> bool:
    return cell.strip().startswith("[") and cell.strip().endswith("]")


def is_missing(cell: Any) -> bool:
    """Whether a cell of a column of 0 and 1 says nothing: empty, null or NaN."""
    return cell is None or cell != cell or (isinstance(cell, str) and not cell.strip())


def flag(cell: Any) -> float | None:
    """0, 1 or a share between them; None for anything else."""
    if isinstance(cell, str):
        value = FLAGS.get(cell.strip().lower())
        if value is None and re.fullmatch(r"0?\.\d{1,20}", cell.strip()):
            value = float(cell)
        return value
    return float(cell) if isinstance(cell, bool | int | float | Decimal) and 0 <= cell <= 1 else None


def flags_if_any(cells: Sequence[Any]) -> Decoded:
    """``flags_of``; no label if no cell says anything, as in a row that nobody has labelled."""
    return ([], None) if all(map(is_missing, cells)) else flags_of(cells)


def flags_of(cells: Sequence[Any]) -> Decoded:
    shares = [flag(cell) for cell in cells]
    if None in shares:
        raise ValueError(f"{cells[shares.index(None)]!r:.80} is neither 0 nor 1, nor a share between them")
    return majority([share for share in shares if share is not None])


def majority(shares: list[float]) -> Decoded:
    """The labels that at least half of the raters gave; the shares are returned if they say more than that."""
    labels = [position for position, share in enumerate(shares) if share >= defaults.MAJORITY]
    return labels, None if all(share in (0, 1) for share in shares) else shares


class Parser:
    """Splits a cell into numbers (whole ones, or as strings of digits) and names.

    Args:
        names: the label names, if they are known; one may contain a mark.
        marks: characters that separate labels.

    Called with a cell, it raises ValueError if that holds something else.
    """

    def __init__(self, names: Sequence[str], marks: str) -> None:
        self.index = {name: position for position, name in enumerate(names)}
        usable = "".join(mark for mark in marks if not any(mark in name for name in names))
        self._every = re.compile(f"[{re.escape(marks)}]") if marks else None
        self._marks = re.compile(f"[{re.escape(usable)}]") if usable else None

    def __call__(self, cell: Any) -> list[Any]:
        if is_missing(cell):
            return []
        cell = plain(cell)
        if not isinstance(cell, str):
            items = list(map(plain, _bounded(cell))) if isinstance(cell, list | tuple) else [cell]
            if any(isinstance(item, dict | list | tuple) for item in items):
                raise ValueError("holds objects, or lists of lists: write lists of label names, or one column per label")
            return items
        items = _items(cell.strip()[1:-1]) if is_list(cell) else self._separated(cell)
        # pandas writes label numbers as 1.0 if one is missing, NumPy as 1.; ICD-9 has both 401 and 401.0.
        return [self._whole(item) for item in items]

    def _whole(self, item: str) -> str:
        number = re.fullmatch(r"(\d{1,9})\.0?", item) if self.index and item not in self.index else None
        return number[1] if number else item

    def _separated(self, cell: str) -> list[str]:
        whole = cell.strip()
        if whole in self.index:
            parts = _stripped(self._every.split(whole)) if self._every else [whole]
            if len(parts) > 1 and all(part in self.index for part in parts):
                raise DataError(
                    f"label {whole!r} is one label or {len(parts)}, since emotions.txt has both: rename the one label"
                )
            return [whole]
        return _stripped(self._marks.split(whole) if self._marks else [whole])


def plain(item: Any) -> Any:
    """What a writer stored as another type: Snowflake's whole numbers are decimals, Impala's texts bytes, and several choices of Label
    Studio are an object, in CSV its JSON.

    Raises:
        ValueError: the bytes are not UTF-8.
    """
    if isinstance(item, dict) and [*item] == ["choices"]:
        return item["choices"]
    if isinstance(item, str) and (choices := CHOICES.fullmatch(item)):
        return choices[1]
    if isinstance(item, bytes):
        return item.decode()
    return float(item) if isinstance(item, Decimal) else item


def _bounded(items: Sequence[Any]) -> Sequence[Any]:
    if len(items) > MOST_LABELS:
        raise ValueError(f"has {len(items):,} labels in a row, and at most {MOST_LABELS:,} are read")
    return items


def _stripped(parts: Iterable[str]) -> list[str]:
    return [stripped for part in parts if (stripped := part.strip())]


def _items(inner: str) -> list[str]:
    """The items of a list that Python, NumPy or JSON wrote."""
    if "'" in inner or '"' in inner:
        if not STRINGS.fullmatch(inner):
            raise ValueError(f'has [{inner:.80}], which is no list of names: write ["a", "b"], or one column per label')
        return [_unescaped(quoted) for quoted in _bounded(QUOTED.findall(inner))]
    parts = inner.split(",") if "," in inner else inner.split() if re.fullmatch(r"[\d.\s]*", inner) else [inner]
    return _stripped(parts)


def _unescaped(quoted: str) -> str:
    """A string as JSON or Python writes it, without its quotes and escapes."""
    try:
        return str(json.loads(quoted) if quoted.startswith('"') else ast.literal_eval(quoted))
    except (ValueError, SyntaxError):
        return quoted[1:-1]


@dataclass(frozen=True)
class Reading:
    """One way to read the labels of a row.

    Attributes:
        form: in words.
        fits: whether items of the parser can be read so.
        decode: reads items; as a ``Decode`` does, it raises ValueError.
    """

    form: str
    fits: Callable[[list[Any], Parser], bool]
    decode: Callable[[list[Any], Parser], Decoded]


def _fit_numbers(items: list[Any], parse: Parser) -> bool:
    if not all(map(_is_whole, items)):
        return False
    values = [float(item) if len(str(item)) < 30 else -1.0 for item in items]
    return len(set(values)) == len(values) and all(value in range(len(parse.index)) for value in values)


def _is_whole(item: Any) -> bool:
    return (isinstance(item, str) and item.isdecimal()) or (isinstance(item, int | float) and not isinstance(item, bool))


def _decode_numbers(items: list[Any], parse: Parser) -> Decoded:
    return [parse.index.get(item, item) if isinstance(item, str) and not item.isdecimal() else item for item in items], None


def _fit_names(items: list[Any], parse: Parser) -> bool:
    return all(isinstance(item, str) and item in parse.index for item in items)


def _decode_names(items: list[Any], parse: Parser) -> Decoded:
    if unknown := [item for item in items if item not in parse.index]:
        raise ValueError(f"label {unknown[0]!r:.80} is not one of the label names")
    return [parse.index[item] for item in items], None


def _fit_flags(items: list[Any], parse: Parser) -> bool:
    return len(items) == len(parse.index) and all(flag(item) is not None for item in items)


def _decode_flags(items: list[Any], parse: Parser) -> Decoded:
    if len(items) != len(parse.index):
        raise ValueError(f"{len(items)} values where one per label is needed, {len(parse.index)}")
    return flags_of(items)


NUMBERS = Reading("label numbers", _fit_numbers, _decode_numbers)
BY_NAME = Reading("label names", _fit_names, _decode_names)
ONE_HOT = Reading("one 0 or 1 per label", _fit_flags, _decode_flags)


def by_own_names(own: Sequence[str]) -> Reading:
    """The reading of numbers whose names a file has itself, maybe in another order than the taxonomy; and of names."""
    names_are_numbers = any(name.isdecimal() for name in own)

    def label(item: Any, parse: Parser) -> Any:
        if isinstance(item, str) and item.isdecimal() and len(item) < 10:
            if names_are_numbers and list(own) != [str(number) for number in range(len(own))]:
                raise ValueError(f"{item!r} is the number of a label or a name: write names that are no numbers")
            item = int(item)
        is_number = isinstance(item, int) and not isinstance(item, bool) and 0 <= item < len(own)
        return parse.index[own[item]] if is_number else parse.index.get(item, item) if isinstance(item, str) else item

    return Reading("ClassLabel numbers", _fit_numbers, lambda items, parse: ([label(item, parse) for item in items], None))
