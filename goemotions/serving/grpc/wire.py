"""The fields of a protobuf message are counted before it is parsed, which holds the event loop: two bytes may be a field.

https://protobuf.dev/programming-guides/encoding/
"""

from __future__ import annotations

from typing import Any

from google.protobuf.descriptor import FieldDescriptor

from goemotions.errors import RequestError
from goemotions.serving.limits import Limits

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
SINGLE = (FieldDescriptor.TYPE_STRING, FieldDescriptor.TYPE_BYTES)


def check_fields(content: bytes, descriptor: Any, limits: Limits) -> None:
    """Counts the fields of a message of a type, those of the messages within it, and packed bytes.

    Raises:
        RequestError: 413 if there are too many; 400 if it is no such message.
    """
    if _walk(content, 0, len(content), descriptor, limits.values) < 0:
        raise RequestError(f"the message has more than {limits.values:,} values: send at most {limits.texts} texts", 413)


def _walk(content: bytes, position: int, end: int, descriptor: Any, left: int) -> int:
    """How many fields are left after those between two positions; it stops as soon as there are too many."""
    while position < end and left >= 0:
        left -= 1
        tag, position = _varint(content, position)
        kind = tag & 7
        size = {FIXED64: 8, FIXED32: 4}.get(kind, 0)
        if kind in (VARINT, BYTES):
            value, position = _varint(content, position)
            size = value if kind == BYTES else 0
        if kind not in (VARINT, FIXED64, BYTES, FIXED32) or position + size > end:
            raise RequestError("the message is not one of the Open Inference protocol")
        field = descriptor.fields_by_number.get(tag >> 3)
        if kind == BYTES and field is not None and field.type not in SINGLE:
            inner = field.message_type
            left = _walk(content, position, position + size, inner, left) if inner else left - size
        position += size
    return left


def _varint(content: bytes, position: int) -> tuple[int, int]:
    """A number and the position after it."""
    value = 0
    for shift, byte in enumerate(content[position : position + 10]):
        value |= (byte & 0x7F) << (7 * shift)
        if byte < 0x80:
            return value, position + shift + 1
    raise RequestError("the message is not one of the Open Inference protocol")
