"""The open connections of a port: how many there may be, also from one address, and which one gives way to a new one."""

from __future__ import annotations

import asyncio
import logging
import math
import select
from collections import Counter, deque
from collections.abc import Callable, Iterable
from typing import Any, Generic, Protocol, TypeVar

from goemotions.serving import metrics
from goemotions.serving.admission.listening import READ_BYTES, REFUSED, REFUSED_SECONDS
from goemotions.serving.limits import Limits

logger = logging.getLogger(__name__)
SWEEP_SECONDS = 0.25
# A connection that was opened or answered so recently may carry a request that was not read yet.
GRACE_SECONDS = 1.0


class Connection(Protocol):
    """One connection: the address of its client, and since when it has been in its state, and its client has read too little."""

    transport: Any
    peer: str
    since: float
    unread_since: float

    @property
    def is_idle(self) -> bool:
        """Whether no request of it is in progress."""

    def check(self, now: float) -> None:
        """Closes it if it is past a deadline."""

    def abort(self, reason: str) -> None:
        """Closes it at once; the metric of closed connections has the reason."""

    def give_way(self) -> None:
        """Closes it while it is idle; a request may be on its way, so that its client is told."""


Kind = TypeVar("Kind", bound=Connection)


class Connections(Generic[Kind]):
    """The connections of one process over one protocol; ``refusal`` is the answer to one too many, complete."""

    def __init__(self, limits: Limits, protocol: str, refusal: bytes) -> None:
        self.limits = limits
        self.refusal = refusal
        self.open: set[Kind] = set()
        self._protocol = protocol
        self._peers: Counter[str] = Counter()
        # Those whose connections, or all, were seen to be in use since the last sweep: to look through them costs more than a refusal.
        self._busy_peers: set[str] = set()
        self._gauge = metrics.CONNECTIONS.labels(protocol)
        self._is_sweeping = False
        # Until when each is kept, and what closes it.
        self._refused: deque[tuple[float, Callable[[], object]]] = deque()

    def has_room(self, peer: str) -> bool:
        """Whether another connection of an address may be opened; for it, an idle one of the peer that has most may be closed.

        Some more may be open than there should: a connection counts from a turn of the event loop after this.
        """
        is_below = len(self.open) < self.limits.connections and self._peers[peer] < self.limits.peer_connections
        return is_below or self._evict(peer)

    def answer_at_once(self, sent: bytes | memoryview) -> bytes:
        """The answer to what was sent first on a connection, if it waits for nothing; the connection is closed then."""
        return b""

    def count_refused(self, peer: str) -> None:
        """Counts a connection for which there was no room."""
        logger.warning("a connection of %s was rejected: none of its own, or of all that are open, is idle", peer)
        metrics.count(self._protocol, 429)
        metrics.CLOSED.labels(metrics.REASONS[429]).inc()

    def close_later(self, close: Callable[[], object]) -> None:
        """Closes a connection once its client has had time to read why, or sooner if there are many."""
        self._refused.append((asyncio.get_running_loop().time() + REFUSED_SECONDS, close))
        if len(self._refused) > REFUSED:
            self._close_oldest()
        self._sweep_later()

    def add(self, connection: Kind) -> None:
        self._sweep_later()
        self.open.add(connection)
        self._peers[connection.peer] += 1
        self._gauge.set(len(self.open))

    def remove(self, connection: Kind) -> None:
        if connection in self.open:
            self.open.remove(connection)
            self._peers[connection.peer] -= 1
            if not self._peers[connection.peer]:
                del self._peers[connection.peer]
            self._gauge.set(len(self.open))

    def _close_oldest(self) -> None:
        _, close = self._refused.popleft()
        close()

    def _evict(self, peer: str) -> bool:
        if peer in self._busy_peers:
            return False
        is_full, since = len(self.open) >= self.limits.connections, asyncio.get_running_loop().time() - GRACE_SECONDS
        idle = [one for one in self.open if one.is_idle and (is_full or (one.peer == peer and one.since < since))]
        longest = min(_without_unread(idle), key=lambda one: (-self._peers[one.peer], one.since), default=None)
        if longest is None:
            self._busy_peers.add(peer)
            return False
        longest.give_way()
        self.remove(longest)
        return self.has_room(peer)

    def _sweep(self) -> None:
        self._busy_peers.clear()
        now = asyncio.get_running_loop().time()
        for connection in list(self.open):
            is_unread = bool(connection.transport.get_write_buffer_size())
            connection.unread_since = min(connection.unread_since, now) if is_unread else math.inf
            if now - connection.unread_since > self.limits.write_seconds:
                connection.abort("unread-answer")
            else:
                connection.check(now)
        while self._refused and self._refused[0][0] <= now:
            self._close_oldest()
        self._is_sweeping = False
        if self.open or self._refused:
            self._sweep_later()

    def _sweep_later(self) -> None:
        if not self._is_sweeping:
            self._is_sweeping = True
            asyncio.get_running_loop().call_later(SWEEP_SECONDS, self._sweep)


def _without_unread(connections: Iterable[Kind]) -> list[Kind]:
    """Those of which nothing was received that the event loop has not read yet.

    One system call for all of them: in each, another thread may take the interpreter for as long as it needs.
    """
    poll = select.poll()
    files = {one.transport.get_extra_info("socket").fileno(): one for one in connections}
    for file in files:
        poll.register(file, select.POLLIN)
    for file, _ in poll.poll(0):
        del files[file]
    return list(files.values())


class Reader(asyncio.BufferedProtocol):
    """Reads into a buffer that all connections share: what ``data_received`` keeps, it copies."""

    BUFFER = memoryview(bytearray(READ_BYTES))

    def get_buffer(self, sizehint: int) -> memoryview:
        return self.BUFFER

    def buffer_updated(self, nbytes: int) -> None:
        self.data_received(self.BUFFER[:nbytes])

    def data_received(self, data: memoryview) -> None:
        raise NotImplementedError
