"""The run that this machine is at: one at a time, and one that was interrupted or failed is resumed under its id.

The same id finds its checkpoints and models.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import secrets
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from goemotions.errors import WorkflowError

RECORD, LOCK = "unfinished.json", "lock"


class RunFailed(WorkflowError):
    """A step of a local run failed, or another run is in progress; the message has the error or the location of the log."""


@contextlib.contextmanager
def alone(root: Path) -> Iterator[None]:
    """Holds the folder of the runs.

    Two runs at once would write the same log, and each would take the other's folder for its own.

    Raises:
        RunFailed: another run holds it.
    """
    with (root / LOCK).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunFailed(
                f"another run on this machine writes to {root}: wait until it ends, or stop it with Ctrl-C"
            ) from None
        yield


def begin(root: Path, arguments: Mapping[str, Any]) -> tuple[str, bool]:
    """The id of a run with these parameters, and whether it is that of the last one, which had the same and did not finish."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        content = json.loads((root / RECORD).read_text(encoding="utf-8"))
        if content["arguments"] == json.loads(json.dumps(arguments)):
            return str(content["pipeline_run"]), True
    pipeline_run = new_id()
    (root / RECORD).write_text(json.dumps({"pipeline_run": pipeline_run, "arguments": arguments}), encoding="utf-8")
    return pipeline_run, False


def end(root: Path) -> None:
    """Marks the run as finished."""
    (root / RECORD).unlink(missing_ok=True)


def new_id() -> str:
    return f"{datetime.now():%Y%m%d-%H%M%S}-{secrets.token_hex(3)}"
