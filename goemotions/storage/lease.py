"""A lock for work that takes longer than a lease: a thread renews it meanwhile."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from goemotions.errors import StorageError, StorageUnavailable
from goemotions.storage import lock

log = logging.getLogger(__name__)


@contextmanager
def hold(location: str) -> Iterator[Callable[[], None]]:
    """Holds the lock of a location and renews it; yields a function that raises if what it begins could end after the lease.

    Raises:
        StorageError: another process holds the lock.
    """
    lost: list[StorageError] = []
    ended, renewed = threading.Event(), [0.0]

    def renew_once(held: lock.Lock) -> None:
        began = time.monotonic()
        held.require()
        renewed[0] = began

    def renew(held: lock.Lock) -> None:
        while not lost and not ended.wait(lock.LEASE_SECONDS / 4):
            try:
                renew_once(held)
            except StorageUnavailable as error:
                log.warning("%s: the lock is not renewed: %s", location, error)
            except StorageError as error:
                lost.append(error)

    def require() -> None:
        if lost:
            raise lost[0]
        # What begins now must end before another process could take over.
        if time.monotonic() - renewed[0] > lock.LEASE_SECONDS * lock.MARGIN:
            raise StorageUnavailable(f"{location}: the lock is not renewed, as the store does not respond: run it again later")

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
