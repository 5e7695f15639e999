"""The limits of one server process: each with its default, and the help text of its option of ``goemotions serve``."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from goemotions.errors import RequestError


def _limit(default: float, help: str) -> Any:
    return field(default=default, metadata={"help": help})


@dataclass(frozen=True)
class Limits:
    """Counts, bytes and seconds; docs/serving.md lists them."""

    body_bytes: int = _limit(2 * 2**20, "Largest body of a request.")
    texts: int = _limit(512, "Most texts per request.")
    requests: int = _limit(512, "Most concurrent requests.")
    queue_texts: int = _limit(4096, "Most texts in the queue.")
    queue_seconds: float = _limit(
        1.0, "Longest expected wait of a text in the queue; a request that would wait longer is rejected."
    )
    read_seconds: float = _limit(10.0, "Longest time for a body to arrive.")
    answer_seconds: float = _limit(30.0, "Longest time to score the texts of a request.")
    drain_seconds: float = _limit(
        5.0, "Time between SIGTERM and the closing of the port, in which requests are still accepted."
    )

    def check_texts(self, count: int) -> None:
        """Rejects a request with too many texts.

        Raises:
            RequestError: 413.
        """
        if count > self.texts:
            raise RequestError(f"{count} texts in one request: send at most {self.texts}", 413)
