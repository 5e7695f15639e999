"""Temporary folders, each locked by its process, so that those of processes that were killed are known and removed."""

from __future__ import annotations

import contextlib
import fcntl
import functools
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

PREFIX, LOCK = "goemotions-", ".lock"


@contextlib.contextmanager
def temporary_folder() -> Iterator[Path]:
    """An empty folder, which is removed when the block ends. The first one of a process removes what killed processes left."""
    _sweep_once(tempfile.gettempdir())
    with tempfile.TemporaryDirectory(prefix=PREFIX) as name, (Path(name) / LOCK).open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        files = Path(name) / "files"
        # Between the two lines above, another process may have taken the folder for one that was left.
        files.mkdir(parents=True, exist_ok=True)
        yield files


@functools.cache
def _sweep_once(parent: str) -> None:
    sweep(Path(parent))


def sweep(parent: Path) -> None:
    """Removes the temporary folders in a folder whose process has ended."""
    for folder in parent.glob(f"{PREFIX}*"):
        # Of a folder that another process removes at the same time, nothing is left to do.
        with contextlib.suppress(OSError):
            status = folder.lstat()
            if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid():
                continue
            # Without `a`, a folder that has no lock yet would get one here.
            with (folder / LOCK).open("rb") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
