"""JSON that another process, server or person wrote: the only reader of it, with bounds on its size, depth and numbers."""

from __future__ import annotations

import dataclasses
import json
import math
import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any, NotRequired

from goemotions.errors import BadJson

# As objects of Python, JSON takes up to 24 times its size.
MOST_BYTES = 2**24
MOST_DEPTH = 100


def parse(content: bytes | str | None, name: str, most_bytes: int = MOST_BYTES) -> Any:
    """The value of a JSON document.

    Args:
        content: the document; None if it is missing.
        name: what the message calls it.
        most_bytes: its largest size.

    Raises:
        BadJson: it is missing, too large, not UTF-8 or not JSON, is nested too deeply, names a value twice, or has a number that is
            not finite; a whole one of more than 64 bits is a float.
    """
    if content is None:
        raise BadJson(f"{name} is missing")
    if len(content) > most_bytes:
        raise BadJson(f"{name} has more than {most_bytes >> 20} MiB, and is not read: check who wrote it")
    try:
        text = content if isinstance(content, str) else content.decode("utf-8-sig")
        value = json.loads(text, object_pairs_hook=_object, parse_constant=_finite, parse_float=_finite, parse_int=_whole)
        _require_flat(value)
        if "\\u" in text:
            # Half of a surrogate pair, which nothing can write.
            json.dumps(value, ensure_ascii=False).encode()
    except RecursionError as error:
        raise BadJson(f"{name} is nested too deeply: check who wrote it") from error
    except ValueError as error:
        raise BadJson(f"{name} is damaged, or no JSON ({error}): fetch it again, or write it again") from error
    return value


def load(file: IO[bytes], name: str, most_bytes: int = MOST_BYTES) -> Any:
    """``parse`` for an open file or a response, of which no more than is allowed is read."""
    return parse(file.read(most_bytes + 1), name, most_bytes)


def read(path: Path, most_bytes: int = MOST_BYTES) -> Any:
    """``parse`` for a file."""
    return parse(read_bytes(path, most_bytes), str(path), most_bytes)


def read_bytes(path: Path, most_bytes: int = MOST_BYTES) -> bytes:
    """The content of a file, and no more of it than one byte beyond what ``parse`` reads.

    Raises:
        BadJson: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            return file.read(most_bytes + 1)
    except OSError as error:
        raise BadJson(f"{path} cannot be read ({error.strerror}): check its path and permissions") from error


def require(value: Any, kind: Any, name: str) -> None:
    """Checks the types within a value.

    Args:
        value: as ``parse`` returns it.
        kind: a type of JSON, a list, tuple, dict, union or literal of such types, or a TypedDict or dataclass, for which the value is
            an object; keys that it has no field for are ignored.
        name: what the message calls the value.

    Raises:
        BadJson: a field is missing, or a value has another type; the message says which.
    """
    origin, inner = typing.get_origin(kind) or kind, typing.get_args(kind)
    if origin is NotRequired:
        require(value, inner[0], name)
    elif dataclasses.is_dataclass(kind) or typing.is_typeddict(kind):
        _require_fields(value, kind, name)
    elif origin in (list, tuple, Sequence, dict):
        expected = dict if origin is dict else list
        items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        _require(isinstance(value, expected), name, f"a {expected.__name__}")
        for key, item in items:
            require(item, inner[expected is dict], f"{name}: {key}")
    elif origin is typing.Literal:
        _require(value in inner, name, f"one of {', '.join(map(str, inner))}")
    elif origin in (typing.Union, types.UnionType):
        _require(any(_has_type(value, one) for one in inner), name, str(kind))
    elif kind is not Any:
        kinds = (float, int) if kind is float else (kind,)
        _require(isinstance(value, kinds) and (kind is bool or not isinstance(value, bool)), name, kind.__name__)


def _has_type(value: Any, kind: Any) -> bool:
    try:
        require(value, kind, "")
    except BadJson:
        return False
    return True


def _require_fields(value: Any, kind: Any, name: str) -> None:
    _require(isinstance(value, dict), name, "an object")
    optional = {
        field.name
        for field in (dataclasses.fields(kind) if dataclasses.is_dataclass(kind) else ())
        if not (field.default is field.default_factory is dataclasses.MISSING)
    }
    for field, inner in typing.get_type_hints(kind, include_extras=True).items():
        if field in value:
            require(value[field], inner, f"{name}: {field}")
        else:
            _require(field in optional or typing.get_origin(inner) is NotRequired, f"{name}: {field}", "given")


def _require(condition: bool, name: str, expected: str) -> None:
    if not condition:
        raise BadJson(f"{name} is not {expected}: fetch it again, or write it again")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        raise ValueError("an object names a value twice")
    return value


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:20]} is not a finite number")
    return value


def _whole(text: str) -> int | float:
    value = int(text[:21])
    # transformers writes 10**30 for no limit, digit by digit.
    return value if value.bit_length() <= 64 else _finite(text)


def _require_flat(value: Any) -> None:
    level = [value]
    for _ in range(MOST_DEPTH):
        level = [
            one
            for item in level
            if isinstance(item, dict | list)
            for one in (item.values() if isinstance(item, dict) else item)
        ]
        if not level:
            return
    raise RecursionError
