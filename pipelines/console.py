"""What a run on this machine prints: all of it to a log, and to the terminal the lines that a user waits for."""

from __future__ import annotations

import contextlib
import io
import logging
import re
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

from pipelines.remaining import Remaining

SHOWN = re.compile(r"^\s*(monitoring|retraining): |Executing task|finished with status|step/s|WARNING|s/step|Error")
HIDDEN = re.compile(r"UserWarning|RuntimeWarning")


@contextlib.contextmanager
def logged_to(log: Path, remaining: Remaining | None) -> Iterator[None]:
    """Sends what KFP and the steps print to a log, and the lines of interest to the terminal, too."""
    with Console(log, remaining) as console, warnings.catch_warnings(), contextlib.redirect_stdout(console):
        # KFP warns at every step that display names and images have no effect on this machine.
        warnings.filterwarnings("ignore", module=r"kfp\.local")
        root = logging.getLogger()
        root.addFilter(_is_shown)
        try:
            yield
        finally:
            root.removeFilter(_is_shown)


def _is_shown(record: logging.LogRecord) -> bool:
    """What KFP logs of its own work is of no interest."""
    return not record.getMessage().startswith(("Cleaned up workspace", "Skipping conditional task"))


class Console(io.TextIOBase):
    """Writes everything to a log, and to the terminal the lines that a user waits for: steps, progress, warnings."""

    def __init__(self, log: Path, remaining: Remaining | None) -> None:
        self._remaining = remaining
        self._file = log.open("w", encoding="utf-8")
        self._terminal = sys.stdout
        self._line = ""

    def write(self, text: str) -> int:
        self._file.write(text)
        self._file.flush()
        *lines, self._line = (self._line + text).split("\n")
        for line in lines:
            if SHOWN.search(line) and not HIDDEN.search(line):
                print(line.strip(), file=self._terminal, flush=True)
            if self._remaining and (estimate := self._remaining.read(line)):
                print(estimate, file=self._terminal, flush=True)
        return len(text)

    def close(self) -> None:
        self._file.close()
        super().close()
