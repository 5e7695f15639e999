"""The log: no client can fill it, forge a record, or control a terminal."""

from __future__ import annotations

import logging
import time

from goemotions.errors import printable

RECORDS, SECONDS = 10, 60.0


FORMAT = "%(levelname)s %(name)s: %(message)s"


class Formatter(logging.Formatter):
    """Leaves out control characters, and indents the further lines of a message: it may hold a text of a client or of a file."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        return super().formatMessage(record).replace("\n", "\n    ")

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


def configure() -> None:
    """Writes the log of this process to the standard error."""
    handler = logging.StreamHandler()
    handler.setFormatter(Formatter(FORMAT))
    logging.basicConfig(level=logging.INFO, handlers=[handler])


class RateLimit(logging.Filter):
    """Lets through so many records per statement of the code and period; the next one says how many were left out."""

    def __init__(self, records: int = RECORDS, seconds: float = SECONDS) -> None:
        super().__init__()
        self._records, self._seconds = records, seconds
        # Per statement: the start of its period, and its records since then.
        self._counts: dict[tuple[str, int], tuple[float, int]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        statement, now = (record.pathname, record.lineno), time.monotonic()
        started, count = self._counts.get(statement, (now, 0))
        if now - started >= self._seconds:
            if (left_out := count - self._records) > 0:
                record.msg, record.args = f"{record.getMessage()} ({left_out} more of these were left out before)", None
            started, count = now, 0
        self._counts[statement] = started, count + 1
        return count < self._records


def limit_rate() -> None:
    """Limits what this process logs from now on."""
    limit = RateLimit()
    for handler in (*logging.getLogger().handlers, logging.lastResort):
        if handler is not None:
            handler.addFilter(limit)
