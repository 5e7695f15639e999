"""A lock on a location of the store: one process at a time does what must not happen twice or at once.

In S3 the lock is a small object. It is written only on the condition that it has not changed since it was read. A process that is
killed does not release its lock: if the object stays unchanged for ``LEASE_SECONDS`` by the clock of a waiting process, that process
takes the lock over. In a folder the lock is a file lock of the kernel.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import random
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

from goemotions import addresses
from goemotions.errors import StorageError
from goemotions.storage.s3 import S3Backend

NAME = "lock.json"
# Work under a lock takes seconds. After this share of the lease its holder stops, before another process takes over.
LEASE_SECONDS = 120.0
MARGIN = 0.5
WAIT_SECONDS = 600.0
POLL_SECONDS = 0.2


class Lock:
    """A lock that is held. Call ``require`` before each change that is made under it."""

    def __init__(self, location: str) -> None:
        self._location = location
        self._expires = time.monotonic() + LEASE_SECONDS * MARGIN

    def require(self) -> None:
        """Raises:
        StorageError: the lock was held for so long that another process may take it over.
        """
        if time.monotonic() > self._expires:
            raise StorageError(
                f"{self._location}: the work took too long, another process may have taken over the lock: run the command again"
            )


@contextlib.contextmanager
def hold(location: str) -> Iterator[Lock]:
    """Waits for the lock of a location, local or S3, and holds it during the block.

    Raises:
        StorageError: another process still holds the lock after ``WAIT_SECONDS``, or the store fails.
    """
    if not addresses.is_s3(location):
        Path(location).mkdir(parents=True, exist_ok=True)
        with (Path(location) / NAME).open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield Lock(location)
        return
    backend = S3Backend(location)
    tag = _acquire(backend)
    try:
        yield Lock(location)
    finally:
        # If another process took the lock over meanwhile, the tag differs and its lock remains.
        backend.write_if(NAME, _content(holder=""), tag)


def _acquire(backend: S3Backend) -> str:
    """The tag of the lock that was written."""
    deadline = time.monotonic() + WAIT_SECONDS
    last_tag, unchanged_since = "", time.monotonic()
    while True:
        content, tag = backend.read_tagged(NAME) or (b"", None)
        if tag != last_tag:
            last_tag, unchanged_since = tag or "", time.monotonic()
        is_free = not content or not json.loads(content)["holder"]
        if is_free or time.monotonic() - unchanged_since > LEASE_SECONDS:
            if (own_tag := backend.write_if(NAME, _content(holder=uuid.uuid4().hex), tag)) is not None:
                return own_tag
        elif time.monotonic() > deadline:
            raise StorageError(
                f"{backend.location}: another process still holds {NAME} after {WAIT_SECONDS:g} s: check what runs, then run it again"
            )
        time.sleep(POLL_SECONDS * (0.5 + random.random()))


def _content(holder: str) -> bytes:
    # Unique for each write: tags are hashes of the content, and each write must have its own.
    return json.dumps({"holder": holder, "written": uuid.uuid4().hex}).encode()
