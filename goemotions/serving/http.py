"""HTTP/1.1 connections: uvicorn's protocol with limits.

The one idea: a connection is always in one state, each state has a deadline, and a sweep closes the connections that are past theirs.
What a connection may hold in memory is bounded by reading little at once, and nothing while a request of it is in progress.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from typing import Any

import httptools
import orjson
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from goemotions.serving import metrics
from goemotions.serving.limits import Limits

logger = logging.getLogger(__name__)
# Read from a connection at once, and parsed at once: so many bytes hold few requests.
READ_BYTES, PIECE_BYTES = 16 * 1024, 1024
URL_BYTES = 8 * 1024
FIELDS = 100
HEAD_SECONDS = 10.0
SWEEP_SECONDS = 0.25
# Beyond the seconds for a body and for the scores, when the request itself must have ended.
MARGIN_SECONDS = 5.0
MESSAGES = {
    400: "this is not a valid HTTP request",
    408: "the head of the request arrived too slowly",
    414: f"the URL is longer than {URL_BYTES:,} bytes",
    429: "the server has too many connections: try again later",
    431: "the head of the request, its trailers or the framing of its chunks are too large",
}
# The states of a connection. In REQUEST, a request is read, scored or answered; in REST, what is left of its body is skipped.
FIRST, IDLE, HEAD, REQUEST, REST = "first", "idle", "head", "request", "rest"


class Refused(Exception):
    """The request that is being parsed is refused with this status."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


class Connections:
    """The connections of one process; it makes the protocol of each new one, as uvicorn asks for it."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._open: set[Connection] = set()
        self._peers: Counter[str] = Counter()

    def __call__(
        self, config: Any, server_state: Any, app_state: dict[str, Any], _loop: Any = None
    ) -> asyncio.BufferedProtocol:
        return _Reader(Connection(self, config, server_state, app_state, _loop))

    def add(self, connection: Connection) -> bool:
        """Admits a connection. If there are too many, an idle one of the peer that has most is closed for it.

        Returns:
            False if there are too many and none is idle.
        """
        if not self._has_room(connection.peer) and not self._evict(connection.peer):
            return False
        if not self._open:
            asyncio.get_running_loop().call_later(SWEEP_SECONDS, self._sweep)
        self._open.add(connection)
        self._peers[connection.peer] += 1
        metrics.CONNECTIONS.set(len(self._open))
        return True

    def remove(self, connection: Connection) -> None:
        if connection in self._open:
            self._open.remove(connection)
            self._peers -= Counter([connection.peer])
            metrics.CONNECTIONS.set(len(self._open))

    def _has_room(self, peer: str) -> bool:
        return len(self._open) < self.limits.connections and self._peers[peer] < self.limits.peer_connections

    def _evict(self, peer: str) -> bool:
        is_full = len(self._open) >= self.limits.connections
        idle = [one for one in self._open if one.is_idle and (is_full or one.peer == peer)]
        if not idle:
            return False
        longest = max(idle, key=lambda one: (self._peers[one.peer], -one.since))
        longest.abort("evicted")
        self.remove(longest)
        return self._has_room(peer) or self._evict(peer)

    def _sweep(self) -> None:
        loop = asyncio.get_running_loop()
        for connection in list(self._open):
            connection.check(loop.time())
        if self._open:
            loop.call_later(SWEEP_SECONDS, self._sweep)


class _Reader(asyncio.BufferedProtocol):
    """Reads for a connection, little at once, into a buffer that all connections share."""

    BUFFER = bytearray(READ_BYTES)

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self.connection_made = connection.connection_made  # type: ignore[assignment,method-assign]
        self.connection_lost = connection.connection_lost  # type: ignore[method-assign]
        self.eof_received = connection.eof_received  # type: ignore[method-assign]
        self.pause_writing = connection.pause_writing  # type: ignore[method-assign]
        self.resume_writing = connection.resume_writing  # type: ignore[method-assign]

    def get_buffer(self, sizehint: int) -> bytearray:
        return self.BUFFER

    def buffer_updated(self, nbytes: int) -> None:
        self._connection.data_received(bytes(memoryview(self.BUFFER)[:nbytes]))


class Connection(HttpToolsProtocol):
    """One connection. ``since`` is when it entered its state."""

    def __init__(self, connections: Connections, *options: Any) -> None:
        super().__init__(*options)
        self._connections = connections
        self._limits = connections.limits
        self.peer = ""
        self.since = self.loop.time()
        self._state = FIRST
        # Received and not parsed yet, because a request is in progress.
        self._unparsed = bytearray()
        # Whether the head of the message that is being parsed is complete, and whether the message is.
        self._has_head, self._is_complete = False, True
        self._hosts = self._fields = 0
        # What is left of a body of known length; and the bytes of a message beside its body.
        self._body_left = self._overhead = 0
        self._unread_since: float | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self.peer = self.client[0] if self.client else ""
        if not self._connections.add(self):
            self._refuse(429)

    def connection_lost(self, exc: Exception | None) -> None:
        self._connections.remove(self)
        self._unparsed.clear()
        super().connection_lost(exc)

    @property
    def is_idle(self) -> bool:
        """Whether no request of it is in progress."""
        return self._state != REQUEST

    def check(self, now: float) -> None:
        """Closes the connection if it is past the deadline of its state, or its client does not read."""
        if not self.transport.get_write_buffer_size():
            self._unread_since = None
        elif self._unread_since is None:
            self._unread_since = now
        elif now - self._unread_since > self._limits.write_seconds:
            self.abort("unread-answer")
            return
        if now - self.since > self._seconds(self._state) and not self.transport.is_closing():
            if self._state == HEAD:
                self._refuse(408)
            else:
                self.abort({FIRST: "silent", IDLE: "idle", REST: "slow-body"}.get(self._state, "stuck"))

    def abort(self, reason: str) -> None:
        """Closes the connection at once; what was written and not read is dropped."""
        metrics.CLOSED.labels(reason).inc()
        self.transport.abort()

    def data_received(self, data: bytes) -> None:
        self._unparsed += data
        self._parse()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._has_head = self._is_complete = False
        self._hosts = self._fields = self._body_left = self._overhead = 0

    def on_url(self, url: bytes) -> None:
        super().on_url(url)
        if len(self.url) > URL_BYTES:
            raise Refused(414)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._fields += 1
        if self._fields > FIELDS:
            raise Refused(431)
        # Trailers are counted and skipped.
        if not self._has_head:
            super().on_header(name, value)
            self._hosts += name.lower() == b"host"

    def on_headers_complete(self) -> None:
        version = self.parser.get_http_version()
        if version not in ("1.0", "1.1") or (self._hosts != 1 and (version, self._hosts) != ("1.0", 0)):
            raise Refused(400)
        self._has_head = True
        length = dict(self.headers).get(b"content-length", b"0")
        self._body_left = int(length) if length.isdigit() else 0
        super().on_headers_complete()
        if self.parser.should_upgrade():
            # The parser does not read the body of such a request.
            self.cycle.keep_alive = False

    def on_body(self, body: bytes) -> None:
        self._body_left -= len(body)
        # Chunks may take as many bytes again as what is in them.
        self._overhead = max(self._overhead - 2 * len(body), -self._limits.head_bytes)
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._is_complete = True
        super().on_message_complete()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._enter(REQUEST if self.pipeline else self._next_state())
        if self._unparsed:
            self.loop.call_soon(self._parse)

    def send_400_response(self, msg: str) -> None:
        self._refuse(400)

    def _parse(self) -> None:
        """Parses what was received, as long as no request is in progress."""
        while self._unparsed and not self.transport.is_closing() and not self._is_busy():
            size = max(PIECE_BYTES, min(self._body_left, len(self._unparsed)))
            piece = bytes(memoryview(self._unparsed)[:size])
            del self._unparsed[:size]
            self._overhead += len(piece)
            self._feed(piece)
            if self._overhead > self._limits.head_bytes:
                self._refuse(431)
        if self.transport.is_closing():
            self._unparsed.clear()
            return
        if (state := self._next_state()) != self._state:
            self._enter(state)
        if self._unparsed:
            self.flow.pause_reading()

    def _feed(self, piece: bytes) -> None:
        self._unset_keepalive_if_required()
        try:
            self.parser.feed_data(piece)
        except httptools.HttpParserUpgrade:
            self._unparsed.clear()
        except httptools.HttpParserError as error:
            self._refuse(error.__context__.status if isinstance(error.__context__, Refused) else 400)

    def _is_answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _is_busy(self) -> bool:
        """Whether a request was received completely and its response is not complete."""
        return bool(self.pipeline) or (self._is_complete and self._is_answering())

    def _next_state(self) -> str:
        if self._is_answering():
            return REQUEST
        if not self._is_complete:
            return REST if self._has_head else HEAD
        return FIRST if self.cycle is None else IDLE

    def _enter(self, state: str) -> None:
        self._state, self.since = state, self.loop.time()

    def _seconds(self, state: str) -> float:
        """The longest time in a state."""
        limits = self._limits
        if state == REQUEST:
            return limits.read_seconds + limits.answer_seconds + MARGIN_SECONDS
        return {IDLE: limits.idle_seconds, REST: limits.read_seconds}.get(state, HEAD_SECONDS)

    def _refuse(self, status: int) -> None:
        """Rejects what was received, and closes the connection."""
        if self.transport.is_closing():
            return
        metrics.count("http", status)
        metrics.CLOSED.labels(metrics.REASONS[status]).inc()
        if self.cycle is None or not self.cycle.response_started or self.cycle.response_complete:
            body = orjson.dumps({"error": MESSAGES[status]})
            head = b"Content-Type: application/json\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(body)
            self.transport.write(STATUS_LINE[status] + head + body)
        self.transport.close()
