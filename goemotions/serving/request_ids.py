"""The id of a request, in a header of its response: by it the log, the feedback and the logs of gateways refer to the same answers."""

from __future__ import annotations

import re
import uuid

HEADER = "x-request-id"
# Of clients and gateways, such as a UUID: bounded, and nothing that a file or a log could misread.
ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{7,63}")


def answer_id(given: str | None) -> str:
    """The id of a request: that of the client or gateway if it has the form of one, otherwise a new one."""
    return given if given and ID.fullmatch(given) else uuid.uuid4().hex
