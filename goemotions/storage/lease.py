"""A lock for work that takes longer than a lease: a thread renews it meanwhile."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from goemotions.errors import LockLost, StorageError, StorageUnavailable
from goemotions.storage import lock

log = logging.getLogger(__name__)


@contextmanager
def hold(location: str) -> Iterator[Callable[[], None]]:
    """Holds the lock of a location and renews it.

    Yields:
        A function that raises LockLost if another process took the lock over, and StorageUnavailable if what it begins could end
        after the lease: then the lock may still be renewed, when the store responds again or is no longer full.

    Raises:
        StorageError: another process holds the lock.
    """
    lost: list[LockLost] = []
    ended, renewed, reason = threading.Event(), [0.0], ["the store does not respond"]

    def renew_once(held: lock.Lock) -> None:
        began = time.monotonic()
        held.require()
        renewed[0] = began

    def renew(held: lock.Lock) -> None:
        while not lost and not ended.wait(lock.LEASE_SECONDS / 4):
            try:
                renew_once(held)
            except LockLost as error:
                lost.append(error)
            except StorageError as error:
                reason[0] = str(error)
                log.warning("the lock is not renewed: %s", error)

    def require() -> None:
        if lost:
            raise lost[0]
        # What begins now must end before another process could take over.
        if time.monotonic() - renewed[0] > lock.LEASE_SECONDS * lock.MARGIN:
            raise StorageUnavailable(f"{location}: the lock is not renewed, run it again later: {reason[0]}")

    with lock.hold(location, 1.5 * lock.LEASE_SECONDS) as held:
        # The wait for the lock of a killed process may have taken longer than a lease.
        renew_once(held)
        renewing = threading.Thread(target=renew, args=(held,), daemon=True)
        renewing.start()
        try:
            yield require
        finally:
            ended.set()
            # A renewal that hangs is not waited for longer than it counts.
            renewing.join(lock.LEASE_SECONDS)
