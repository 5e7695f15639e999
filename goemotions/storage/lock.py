"""A claim on a place in the store: whoever holds it does alone what must not be done twice or at once.

In S3 it is a small object, written on the condition that it is still the one that was read. Holders die without a word: a claim that
stays the same for a while, by the clock of who waits for it, is taken over. In a folder it is a lock of the kernel's.
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

from goemotions.errors import StorageError
from goemotions.storage import store

NAME = "claim.json"
# What is done under a claim takes seconds; a holder that is this late does no more.
LEASE_SECONDS = 120.0
MARGIN = 0.5
WAIT_SECONDS = 600.0
POLL_SECONDS = 0.2


class Lock:
    """A claim that is held. ``require`` before each thing that is done under it."""

    def __init__(self, location: str) -> None:
        self._location = location
        self._ends = time.monotonic() + LEASE_SECONDS * MARGIN

    def require(self) -> None:
        """Raises:
        StorageError: it was held for so long that another may take it over.
        """
        if time.monotonic() > self._ends:
            raise StorageError(f"{self._location}: registering took too long to be sure that nobody else does it: run it again")


@contextlib.contextmanager
def hold(location: str) -> Iterator[Lock]:
    """Holds the claim of a location, local or S3, once whoever holds it is done or gone.

    Raises:
        StorageError: it could not be had in ten minutes, or the store fails.
    """
    if not store.is_s3(location):
        Path(location).mkdir(parents=True, exist_ok=True)
        with (Path(location) / NAME).open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield Lock(location)
        return
    etag = _acquire(location)
    try:
        yield Lock(location)
    finally:
        # Where it was taken over meanwhile, the condition does not hold and the other's claim stays.
        store.write_if(location, NAME, _content(""), etag)


def _acquire(location: str) -> str:
    """The tag of the claim that was written."""
    deadline = time.monotonic() + WAIT_SECONDS
    seen, since = "", time.monotonic()
    while True:
        found = store.read_tagged(location, NAME)
        content, tag = found or (b"", None)
        if tag != seen:
            seen, since = tag or "", time.monotonic()
        is_free = not content or not json.loads(content)["holder"]
        if is_free or time.monotonic() - since > LEASE_SECONDS:
            # A content of its own each time: two that wrote the same would both find the tag that they expect.
            if (mine := store.write_if(location, NAME, _content(uuid.uuid4().hex), tag)) is not None:
                return mine
        elif time.monotonic() > deadline:
            raise StorageError(
                f"{location}: {NAME} is held by someone else for {WAIT_SECONDS:g} s: see what runs, and run it again"
            )
        time.sleep(POLL_SECONDS * (0.5 + random.random()))


def _content(holder: str) -> bytes:
    return json.dumps({"holder": holder, "written": uuid.uuid4().hex}).encode()
