"""Where an ONNX file has its weights, read from its fields alone: a server has no ONNX package.

https://protobuf.dev/programming-guides/encoding/ and https://github.com/onnx/onnx/blob/main/onnx/onnx.proto
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path

from goemotions.errors import ModelError

# The fields that lead to tensors, by message.
FIELDS = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 11: "attribute"},
    "graph": {1: "node", 5: "tensor", 15: "sparse tensor"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse tensor", 23: "sparse tensor"},
    "sparse tensor": {1: "tensor", 2: "tensor"},
    "tensor": {13: "external data"},
    "external data": {},
}
MOST_DEPTH = 50
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
Message = tuple[str, int, int, int]


def require_own_weights(path: Path) -> None:
    """Raises:
    ModelError: the file is missing or damaged, or takes weights from another file, wherever that is.
    """
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            waiting: list[Message] = [("model", 0, 0, len(content))]
            while waiting:
                for message in _messages(content, *waiting.pop()):
                    if message[0] == "external data":
                        raise ModelError(
                            f"{path} takes weights from another file: export the model again, with its weights inside"
                        )
                    waiting.append(message)
    except (OSError, ValueError, IndexError) as error:
        raise ModelError(f"{path} is missing or damaged: export the model again") from error


def _messages(content: mmap.mmap, kind: str, depth: int, position: int, end: int) -> Iterator[Message]:
    """The messages within a message, as kind, depth and the positions of their begin and end."""
    if depth > MOST_DEPTH:
        raise ValueError("nested too deeply")
    while position < end:
        tag, position = _varint(content, position)
        size = {FIXED64: 8, FIXED32: 4}.get(tag & 7, 0)
        if tag & 7 in (VARINT, BYTES):
            value, position = _varint(content, position)
            size = value if tag & 7 == BYTES else 0
        if tag & 7 not in (VARINT, FIXED64, BYTES, FIXED32) or position + size > end:
            raise ValueError("not ONNX")
        # Protobuf's parsers ignore what is beyond 32 bits.
        if tag & 7 == BYTES and (inner := FIELDS[kind].get((tag & 0xFFFFFFFF) >> 3)):
            yield inner, depth + 1, position, position + size
        position += size


def _varint(content: mmap.mmap, position: int) -> tuple[int, int]:
    """A number and the position after it."""
    value = 0
    for shift in range(10):
        byte = content[position + shift]
        value |= (byte & 0x7F) << (7 * shift)
        if byte < 0x80:
            return value, position + shift + 1
    raise ValueError("not ONNX")
