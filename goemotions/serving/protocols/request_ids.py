"""The id of a request, in a header of its response: by it the log, the feedback and the logs of gateways refer to the same answers."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator

HEADER = "x-request-id"
# Of clients and gateways, such as a UUID: bounded, and nothing that a file or a log could misread.
ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{7,63}")


def _random() -> Iterator[str]:
    """Random ids of 128 bits, 256 of them per system call: in each such call, another thread may take the interpreter."""
    while True:
        block = os.urandom(4096)
        yield from (block[start : start + 16].hex() for start in range(0, len(block), 16))


_NEW = _random()


def answer_id(given: str | None) -> str:
    """The id of a request: that of the client or gateway if it has the form of one, otherwise a new one."""
    return given if given and ID.fullmatch(given) else next(_NEW)
