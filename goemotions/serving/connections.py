"""The open connections of a port: how many there may be, also from one address, and which one gives way to a new one."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any, Generic, Protocol, TypeVar

from goemotions.serving import metrics
from goemotions.serving.limits import Limits

SWEEP_SECONDS = 0.25
# A connection that was opened or answered so recently may carry a request that was not read yet. And most that are kept beside the open
# ones until their clients have read that there are too many.
GRACE_SECONDS, MOST_REFUSED = 1.0, 256
# Read at once, so that a flood of one client delays the others little.
READ_BYTES = 64 * 1024


class Connection(Protocol):
    """One connection: the address of its client, and since when it has been in its state."""

    peer: str
    since: float

    @property
    def is_idle(self) -> bool:
        """Whether no request of it is in progress."""

    def check(self, now: float) -> None:
        """Closes it if it is past a deadline."""

    def abort(self, reason: str) -> None:
        """Closes it at once; the metric of closed connections has the reason."""


Kind = TypeVar("Kind", bound=Connection)


class Connections(Generic[Kind]):
    """The connections of one process over one protocol."""

    def __init__(self, limits: Limits, protocol: str) -> None:
        self.limits = limits
        self.open: set[Kind] = set()
        self._peers: Counter[str] = Counter()
        self._refused: set[Kind] = set()
        self._gauge = metrics.CONNECTIONS.labels(protocol)
        self._is_sweeping = False

    def add(self, connection: Kind) -> bool:
        """Admits a connection. If there are too many, an idle one of the peer that has most is closed for it.

        Returns:
            False if there are too many and none is idle.
        """
        if not self._has_room(connection.peer) and not self._evict(connection.peer):
            return False
        if not self._is_sweeping:
            self._sweep_later()
        self.open.add(connection)
        self._peers[connection.peer] += 1
        self._gauge.set(len(self.open))
        return True

    def refuse(self, connection: Kind) -> bool:
        """Whether a connection that was not admitted has time to read why; it is removed as those are that were."""
        if len(self._refused) < MOST_REFUSED:
            self._refused.add(connection)
        return connection in self._refused

    def remove(self, connection: Kind) -> None:
        self._refused.discard(connection)
        if connection in self.open:
            self.open.remove(connection)
            self._peers[connection.peer] -= 1
            if not self._peers[connection.peer]:
                del self._peers[connection.peer]
            self._gauge.set(len(self.open))

    def _has_room(self, peer: str) -> bool:
        return len(self.open) < self.limits.connections and self._peers[peer] < self.limits.peer_connections

    def _evict(self, peer: str) -> bool:
        is_full, since = len(self.open) >= self.limits.connections, asyncio.get_running_loop().time() - GRACE_SECONDS
        idle = [one for one in self.open if one.is_idle and (is_full or (one.peer == peer and one.since < since))]
        if not idle:
            return False
        longest = max(idle, key=lambda one: (self._peers[one.peer], -one.since))
        longest.abort("evicted")
        self.remove(longest)
        return self._has_room(peer) or self._evict(peer)

    def _sweep(self) -> None:
        now = asyncio.get_running_loop().time()
        for connection in list(self.open):
            connection.check(now)
        self._is_sweeping = False
        if self.open:
            self._sweep_later()

    def _sweep_later(self) -> None:
        self._is_sweeping = True
        asyncio.get_running_loop().call_later(SWEEP_SECONDS, self._sweep)


class Reader(asyncio.BufferedProtocol):
    """Reads into a buffer that all connections share: what ``data_received`` keeps, it copies."""

    BUFFER = memoryview(bytearray(READ_BYTES))

    def get_buffer(self, sizehint: int) -> memoryview:
        return self.BUFFER

    def buffer_updated(self, nbytes: int) -> None:
        self.data_received(self.BUFFER[:nbytes])

    def data_received(self, data: memoryview) -> None:
        raise NotImplementedError


class Unread:
    """How long a client has read nothing, or not all, of what was written to it, as seen each time that ``seconds`` is called."""

    def __init__(self) -> None:
        self._since: float | None = None

    def seconds(self, transport: Any, now: float) -> float:
        if not transport.get_write_buffer_size():
            self._since = None
        elif self._since is None:
            self._since = now
        return now - self._since if self._since is not None else 0.0
