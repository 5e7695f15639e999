"""A lock on a location of the store: one process at a time does what must not happen twice or at once.

In S3 the lock is a small object. It is written only on the condition that it has not changed since it was read. A process that is
killed does not release its lock: if the object stays unchanged for ``LEASE_SECONDS`` by the clock of a waiting process, that process
takes the lock over. The holder's clock starts before its write, the waiting process's clock after it has read the result, so that the
holder's lease ends first. No clock is compared with that of another machine. In a folder the lock is a file lock of the kernel.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import random
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from goemotions import addresses, outages, strict_json
from goemotions.errors import LockLost, StorageError
from goemotions.storage import probe
from goemotions.storage.s3 import S3Backend

log = logging.getLogger(__name__)

NAME = "lock.json"
# A write under the lock takes seconds: it begins within this share of the lease, before another process could take over.
LEASE_SECONDS = 120.0
MARGIN = 0.5
WAIT_SECONDS = 600.0
POLL_SECONDS = 0.2
# Of a condition that fails although the object has not changed, and of writes whose response takes longer than the lease.
ATTEMPTS = 10


class Lock(ABC):
    """A lock that is held. Each write that counts is made within ``writing``."""

    @abstractmethod
    def require(self) -> None:
        """Begins the lease anew.

        Raises:
            LockLost: another process has taken over the lock.
            StorageError: the store fails, refuses, or is too slow.
        """

    @abstractmethod
    def confirm(self) -> None:
        """Raises:
        LockLost: the lease has ended since ``require``.
        """

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """For one write that counts: it, and each repetition of it, begins with a new lease, or not at all.

        No write to a registry can have the lock as a condition: a process that is suspended within it writes when it goes on. Who makes
        such a write undoes it after LockLost, if another one has written meanwhile.

        Raises:
            LockLost: another process has taken over the lock, or may have while the write took too long.
            StorageError: the store fails, refuses, or is too slow.
        """
        self.require()
        with outages.guarded(self.require):
            yield
        self.confirm()


@contextlib.contextmanager
def hold(location: str, wait_seconds: float | None = None) -> Iterator[Lock]:
    """Waits for the lock of a location, local or S3, and holds it during the block.

    Args:
        location: what is locked.
        wait_seconds: longest wait, by default ``WAIT_SECONDS``; of a process that was killed the lock is free after ``LEASE_SECONDS``.

    Raises:
        StorageError: another process still holds the lock after this time, the lock is damaged, the store cannot hold a lock,
            or it fails.
    """
    if not addresses.is_s3(location):
        with _file_locked(Path(location) / NAME, wait_seconds or WAIT_SECONDS) as file:
            yield _FileLock(Path(location) / NAME, file)
        return
    probe.require(location)
    lock = _ObjectLock(S3Backend(location))
    try:
        lock.acquire(wait_seconds or WAIT_SECONDS)
        yield lock
    finally:
        lock.release()


class _ObjectLock(Lock):
    def __init__(self, backend: S3Backend) -> None:
        self._backend = backend
        self._holder = uuid.uuid4().hex
        self._tag: str | None = None
        self._began = 0.0

    def acquire(self, wait_seconds: float) -> None:
        deadline = time.monotonic() + wait_seconds + outages.seconds()
        last_tag: str | None = ""
        unchanged_since, failed = 0.0, 0
        while True:
            content, tag = self._backend.read_tagged(NAME) or (None, None)
            is_free = content is None or self._parse(content) in ("", self._holder)
            if last_tag == "" and not is_free:
                log.info(
                    "%s: another process holds %s, waiting for it at most %g s", self._backend.location, NAME, wait_seconds
                )
            if tag != last_tag:
                last_tag, unchanged_since, failed = tag, time.monotonic(), 0
            if is_free or time.monotonic() - unchanged_since > LEASE_SECONDS:
                if not self._write(tag):
                    failed += 1
                elif self._spent() < LEASE_SECONDS * MARGIN:
                    return
            if failed == ATTEMPTS:
                raise StorageError(
                    f"{self._backend.location}: the store refused to write {NAME} {failed} times although it had not changed: it "
                    "does not keep to the conditions If-Match and If-None-Match; use a store that does"
                )
            if time.monotonic() > deadline:
                raise StorageError(
                    f"{self._backend.location}: {'the store is too slow to lock' if is_free else 'another process still holds'} "
                    f"{NAME} after {wait_seconds:g} s: check what runs, then run it again"
                )
            time.sleep(POLL_SECONDS * (0.5 + random.random()))

    def require(self) -> None:
        for _ in range(ATTEMPTS):
            if self._write(self._tag):
                if self._spent() < LEASE_SECONDS * MARGIN:
                    return
            elif not self._is_own():
                raise LockLost(
                    f"{self._backend.location}: another process has taken over {NAME}, because the work took longer than "
                    f"{LEASE_SECONDS:g} s: run the command again"
                )
        raise StorageError(f"{self._backend.location}: the store is too slow to lock {NAME}: run it again later")

    def confirm(self) -> None:
        if self._spent() > LEASE_SECONDS:
            raise LockLost(
                f"{self._backend.location}: a write took longer than {LEASE_SECONDS:g} s, and another process may have written "
                "meanwhile: see `make status`, then run the command again"
            )

    def release(self) -> None:
        """If another process took the lock over meanwhile, the tag differs and its lock remains."""
        if self._tag is None:
            return
        try:
            if self._backend.write_if(NAME, _content(holder=""), self._tag) is None and self._is_own():
                self._backend.write_if(NAME, _content(holder=""), self._tag)
        except StorageError as error:
            log.warning("%s is not released, others wait for %g s: %s", NAME, LEASE_SECONDS, error)

    def _write(self, tag: str | None) -> bool:
        """Writes the lock as this process's if it still has this tag; the lease begins before the request."""
        began = time.monotonic()
        written = self._backend.write_if(NAME, _content(self._holder), tag)
        if written is None:
            return False
        self._tag, self._began = written, began
        return True

    def _is_own(self) -> bool:
        """Whether the lock has another tag only because the response to an earlier write of this process was lost."""
        content, tag = self._backend.read_tagged(NAME) or (None, None)
        if content is None or self._parse(content) != self._holder:
            return False
        self._tag = tag
        return True

    def _spent(self) -> float:
        return time.monotonic() - self._began

    def _parse(self, content: bytes) -> str:
        """The holder; empty if the lock is free."""
        try:
            value = strict_json.parse(content, NAME)
            if value.keys() == {"holder", "written"} and isinstance(value["holder"], str):
                return str(value["holder"])
        except (ValueError, AttributeError):
            pass
        raise StorageError(
            f"{self._backend.location}: {NAME} is damaged ({content[:60]!r}): if no process registers or promotes versions there, "
            "remove it and run the command again"
        )


def _content(holder: str) -> bytes:
    # Unique for each write: tags are hashes of the content, and each write must have its own.
    return json.dumps({"holder": holder, "written": uuid.uuid4().hex}).encode()


class _FileLock(Lock):
    """The kernel releases it when its process ends, so there is no lease."""

    def __init__(self, path: Path, file: IO[bytes]) -> None:
        self._path, self._file = path, file

    def require(self) -> None:
        if not _is_at(self._path, self._file):
            raise LockLost(f"{self._path} was removed, another process may hold a new one: run the command again")

    confirm = require


@contextlib.contextmanager
def _file_locked(path: Path, wait_seconds: float) -> Iterator[IO[bytes]]:
    deadline = time.monotonic() + wait_seconds
    while True:
        with contextlib.ExitStack() as opened:
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                file = opened.enter_context(path.open("ab"))
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                is_held = True
            except OSError as error:
                raise StorageError(f"{path} cannot be locked ({error.strerror}): use a folder whose files can") from error
            else:
                is_held = False
            # A lock on a file that was removed meanwhile excludes nobody.
            if not is_held and _is_at(path, file):
                yield file
                return
        if time.monotonic() > deadline:
            raise StorageError(
                f"another process still holds {path} after {wait_seconds:g} s: check what runs, then run it again"
            )
        time.sleep(POLL_SECONDS / 4 * (0.5 + random.random()))


def _is_at(path: Path, file: IO[bytes]) -> bool:
    """Whether an open file is the one that the path names now."""
    with contextlib.suppress(OSError):
        return os.path.samestat(path.stat(), os.fstat(file.fileno()))
    return False
