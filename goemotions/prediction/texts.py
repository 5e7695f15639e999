"""What people pass to a model in Python, as a list of texts: strings, lists, dicts, NumPy arrays, and pandas series and frames."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from goemotions.errors import DataError

COLUMN = "text"
FORMS = (
    "pass a string, or a list, series or array of strings; or a frame, a dict of lists or a list of dicts "
    f"with {COLUMN!r} or a single column"
)


def as_texts(given: Any) -> list[str]:
    """The texts, in order. A string is one text; of several columns, the one that is called ``text`` is taken.

    Raises:
        DataError: the input is of another type or shape, or an item is not a string; texts are never made from other values.
    """
    texts = [_text(value, position) for position, value in enumerate(_values(given))]
    if not texts:
        raise DataError("there is no text to label: give at least one")
    return texts


def _values(given: Any) -> Sequence[Any]:
    if isinstance(given, str):
        return [given]
    if isinstance(given, Mapping) or hasattr(given, "columns"):
        column = given[_column(list(given))]
        return [column] if isinstance(column, str) else _values_of_column(column)
    return _values_of_column(given)


def _values_of_column(given: Any) -> Sequence[Any]:
    if hasattr(given, "ndim") and hasattr(given, "tolist"):
        if given.ndim > 1 and given.shape[1:] != (1,):
            raise DataError(f"an input of shape {tuple(given.shape)} is no list of texts: {FORMS}")
        given = given.tolist() if given.ndim else [given.tolist()]
    if not isinstance(given, list | tuple):
        raise DataError(f"an input of type {type(given).__name__} is no list of texts: {FORMS}")
    if not given or not all(isinstance(item, Mapping) for item in given):
        return given
    columns = {_column(list(item)) for item in given}
    if len(columns) > 1:
        raise DataError(f"the dicts have their texts in different columns, {_names(columns)}: {FORMS}")
    (column,) = columns
    return [item[column] for item in given]


def _column(names: list[Any]) -> Any:
    if COLUMN in names and names.count(COLUMN) == 1:
        return COLUMN
    if len(names) == 1:
        return names[0]
    raise DataError(f"which of the columns {_names(names) or '(none)'} has the texts? {FORMS}")


def _names(names: Any) -> str:
    return ", ".join(sorted(map(str, names))[:10])


def _text(value: Any, position: int) -> str:
    if isinstance(value, list | tuple) and len(value) == 1:
        (value,) = value
    if not isinstance(value, str):
        raise DataError(f"item {position} is no text but {_description(value)}: leave it out, or make it a string")
    return str(value)


def _description(value: Any) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "missing (None or NaN)"
    return f"of type {type(value).__name__}"
