"""HTTP/1.1 connections: uvicorn's protocol with limits.

The one idea: a connection is always in one state, each state has a deadline, and a sweep closes the connections that are past theirs.
What a connection may hold in memory is bounded by reading little at once. A request is parsed when the one before it has its response:
what is received before waits, and nothing more is read meanwhile.
"""

from __future__ import annotations

import asyncio
import functools
import math
import re
from collections.abc import Callable
from typing import Any

import httptools
import orjson
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from goemotions.serving import metrics
from goemotions.serving.admission import connections
from goemotions.serving.admission.connections import Reader
from goemotions.serving.admission.turns import Turns
from goemotions.serving.http.bodies import CLOSED_BY_SERVER, HANDLING, HAS_BODY, HAS_ENDED, IS_REFUSED
from goemotions.serving.limits import Limits

# Read at once of what may hold many requests or chunks.
SHORT_READ_BYTES = 4 * 1024
URL_BYTES = 8 * 1024
# How a probe of the health begins, and its head ends.
PROBE, HEAD_END = b"GET /v2/health/", b"\r\n\r\n"
# Where a head or a chunked body may end, and its last bytes if the first ones were received before.
END, LAST_OF_END = re.compile(re.escape(HEAD_END)), re.compile(rb"(?:\r?\n)+")
FIELDS = 100
# What a client still sends is skipped for so long before its connection is closed; it would lose the response otherwise.
LINGER_SECONDS = 2.0
# Beyond the seconds for a body and for the scores, when the request itself must have ended.
MARGIN_SECONDS = 5.0
MESSAGES = {
    400: "this is not a valid HTTP request",
    408: "the head of the request arrived too slowly",
    414: f"the URL is longer than {URL_BYTES:,} bytes",
    429: "the server has too many requests or connections: try again later",
    431: "the head of the request, its trailers or the framing of its chunks are too large",
    501: "this server knows no Transfer-Encoding but chunked",
}
# The states of a connection: before its first request, between two, in a head, in a request until it is answered, in the rest of a body
# after the answer, and after the last answer. The metric of closed connections has those at their deadline under these names.
FIRST, IDLE, HEAD, REQUEST, REST, LINGER = "silent", "idle", "slow-head", "stuck", "slow-body", "lingering"
SHUTDOWN = "shutdown"


class Refused(Exception):
    """The request that is being parsed is refused with this status."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


class HttpConnections(connections.Connections["HttpConnection"]):
    """The connections of one process; it makes the protocol of each new one, as uvicorn asks for it."""

    def __init__(self, limits: Limits) -> None:
        super().__init__(limits, "http", _response(429))
        self.turns = Turns()
        request = limits.read_seconds + limits.answer_seconds + MARGIN_SECONDS
        self.longest = dict.fromkeys((FIRST, HEAD, REST), limits.read_seconds)
        self.longest |= {IDLE: limits.idle_seconds, REQUEST: request, LINGER: LINGER_SECONDS}
        # Whether the server is live, and ready, by the last part of the path that asks for it.
        self.health: dict[bytes, Callable[[], bool]] = {}

    def answer_at_once(self, sent: bytes | memoryview) -> bytes:
        """That to a probe of the health: under overload, it would be late, and the server be restarted for that."""
        if sent[: len(PROBE)] != PROBE:
            return b""
        head, _, following = bytes(sent).partition(HEAD_END)
        name = head[len(PROBE) :].partition(b" ")[0]
        if following or len(head) == len(sent) or name not in self.health:
            return b""
        is_so = self.health[name]()
        return _response(200 if is_so else 503, {name.decode(): is_so})

    def __call__(self, *options: Any) -> asyncio.BufferedProtocol:
        return _Reader(HttpConnection(self, *options))

    def end_within(self, seconds: float) -> None:
        """Closes those connections that are left after so many seconds, whatever their state."""

        def end() -> None:
            for connection in self.open:
                connection.abort(SHUTDOWN)

        asyncio.get_running_loop().call_later(seconds, end)


class _Reader(Reader):
    """Reads for a connection, little at once of what may hold many requests or chunks."""

    SHORT_BUFFER = Reader.BUFFER[:SHORT_READ_BYTES]

    def __init__(self, connection: HttpConnection) -> None:
        self._connection = connection
        for name in ("data_received", "connection_made", "connection_lost", "eof_received", "pause_writing", "resume_writing"):
            setattr(self, name, getattr(connection, name))

    def get_buffer(self, sizehint: int) -> memoryview:
        return self.BUFFER if self._connection.expects_bulk else self.SHORT_BUFFER


class _BodyEvents:
    """What a parser calls for the body of a request that asks for another protocol, such as h2c: the parser of its head skips it."""

    def __init__(self, connection: HttpConnection) -> None:
        self.on_header = connection.on_header
        self.on_body = connection.on_body
        self.on_message_complete = connection.on_message_complete


class HttpConnection(HttpToolsProtocol):
    """One connection, and the transport of its responses. ``since`` is when it entered its state."""

    def __init__(self, connections: HttpConnections, *options: Any) -> None:
        super().__init__(*options)
        self._connections = connections
        self._limits = connections.limits
        self.peer = ""
        self.since, self.unread_since = self.loop.time(), math.inf
        self._state = FIRST
        # Received and not parsed yet: a request is in progress, or it is the turn of others.
        self._unparsed = b""
        # Of the response in progress: head and body are written at once, so that the client wakes up once.
        self._response: list[bytes] = []
        # Whether the head of the message that is being parsed is complete, and whether the message is.
        self._has_head, self._is_complete = False, True
        self._fields = 0
        # What is left of a body of known length; and the bytes of a message beside its body.
        self._body_left = self._overhead = 0

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self.peer = self.client[0] if self.client else ""
        self._connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._connections.remove(self)
        self._unparsed = b""
        self._disconnect()
        super().connection_lost(exc)
        # What refers to itself is freed by the garbage collector only, and that stops all requests for the longer, the more there is.
        self.cycle = None  # type: ignore[assignment]

    @property
    def is_idle(self) -> bool:
        """Whether no request of it is in progress, or waits for its turn."""
        return self._state != REQUEST and not self._unparsed

    @property
    def expects_bulk(self) -> bool:
        """Whether what comes next is a body of known length, or is skipped."""
        return (self._has_head and self._body_left > 0) or self._state == LINGER

    @property
    def _has_request(self) -> bool:
        """Whether a request of it is in progress."""
        return self.cycle is not None and not self.cycle.response_complete

    @property
    def _is_busy(self) -> bool:
        """Whether a request of it was received completely, and is in progress."""
        return self._is_complete and self.cycle is not None and not self.cycle.response_complete

    def is_closing(self) -> bool:
        """Whether nothing more is read or written."""
        return self._state == LINGER or self.transport.is_closing()

    def check(self, now: float) -> None:
        """Closes the connection if it is past the deadline of its state."""
        if now - self.since > self._connections.longest[self._state] and not self.transport.is_closing():
            if self._state == HEAD:
                self._refuse(408)
            else:
                self.abort(self._state)

    def abort(self, reason: str) -> None:
        """Closes the connection at once; what was written and not read is dropped."""
        metrics.CLOSED.labels(reason).inc()
        if self.cycle:
            self.cycle.scope["state"][CLOSED_BY_SERVER] = reason in (SHUTDOWN, REQUEST)
        self.transport.abort()

    def give_way(self) -> None:
        """Closes the connection while it is idle; a request may be on its way, so that its client reads why."""
        metrics.CLOSED.labels("evicted").inc()
        if self._state != REST and not self.is_closing():
            self.transport.write(self._connections.refusal)
        self._is_complete = False
        self.linger()
        self._connections.close_later(self.transport.abort)

    def linger(self) -> None:
        """Closes the connection; if the client still sends, only once it has had time to read the response."""
        if (self._is_complete and not self._unparsed) or self.transport.is_closing():
            self.transport.close()
            return
        self._enter(LINGER)
        self._unparsed = b""
        self.transport.write_eof()
        self.transport.resume_reading()

    def write(self, data: bytes) -> None:
        """Writes a part of a response when it is complete, and at once what tells the client to send the body (100)."""
        self._response.append(data)
        if not self.cycle.response_started:
            self._flush()

    def close(self) -> None:
        """Closes the connection when the client has read the response."""
        self._flush()
        self.linger()

    def _flush(self) -> None:
        if self._response and not self.is_closing():
            self.transport.writelines(self._response)
        self._response.clear()

    def data_received(self, data: bytes | memoryview) -> None:
        if self._state == LINGER:
            return
        if self._unparsed or self._is_busy:
            self._unparsed += data
            self.transport.pause_reading()
        elif self._connections.turns.has_room(self.peer):
            self._parse(data)
        elif self._state in (FIRST, IDLE) and (answer := self._connections.answer_at_once(data)):
            self.transport.write(answer)
            self.linger()
        else:
            self._unparsed = bytes(data)
            self._wait()

    def _wait(self) -> None:
        """Parses what was received when it is the turn of this client, or refuses it."""
        self._connections.turns.wait(self.peer, self._resume, functools.partial(self._refuse, 429))

    def _resume(self) -> None:
        if not self.is_closing():
            self._parse(self._unparsed)
            if not self._unparsed and not self.is_closing():
                self.transport.resume_reading()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._has_head = self._is_complete = False
        self._fields = self._body_left = 0

    def on_url(self, url: bytes) -> None:
        super().on_url(url)
        if len(self.url) > URL_BYTES:
            raise Refused(414)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._fields += 1
        if self._fields > FIELDS:
            raise Refused(431)
        if self._has_head:
            # Trailers are counted and skipped.
            return
        # The parser leaves the white space that may follow a value: https://www.rfc-editor.org/rfc/rfc9110#section-5.5
        name, value = name.lower(), value.rstrip(b" \t")
        if name == b"content-length" and value.isdigit():
            self._body_left = int(value)
        elif name == b"transfer-encoding":
            _check_codings(value)
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        version, hosts = self.parser.get_http_version(), [name for name, _ in self.headers].count(b"host")
        if version not in ("1.0", "1.1") or (hosts != 1 and (version, hosts) != ("1.0", 0)):
            raise Refused(400)
        # https://www.rfc-editor.org/rfc/rfc9110#section-15.2
        self.expect_100_continue &= version != "1.0"
        super().on_headers_complete()
        self.cycle.transport = self  # type: ignore[assignment]
        self._has_head = True
        if self.parser.should_upgrade():
            # Its connection needs another parser.
            self.cycle.keep_alive = False

    def on_body(self, body: bytes) -> None:
        self._body_left -= len(body)
        # Chunks may take as many bytes again as what is in them.
        self._overhead = max(self._overhead - 2 * len(body), -self._limits.head_bytes)
        super().on_body(body)

    def on_message_complete(self) -> None:
        if self.parser.should_upgrade():
            return
        self._is_complete, self._overhead = True, 0
        self.cycle.scope["state"][HAS_BODY] = True
        super().on_message_complete()
        # uvicorn stops reading in a large body; only a connection that is read shows its end.
        self.flow.resume_reading()

    def on_response_complete(self) -> None:
        """As uvicorn's, without its timer for idle connections, and a count of requests."""
        self._flush()
        if self.is_closing():
            return
        self.flow.resume_reading()
        self._enter(self._next_state())
        if self._unparsed and self._is_complete:
            self._wait()

    def _parse(self, data: bytes | memoryview) -> None:
        """Parses what was received until a request is complete, and keeps the rest."""
        position, size = 0, len(data)
        while position < size and not self._is_busy:
            end = size
            if self._has_head and self._body_left > 0:
                end = min(position + self._body_left, size)
            elif found := (None if position else LAST_OF_END.match(data)) or END.search(data, position):
                end = found.end()
            self._overhead += end - position
            self._feed(data[position:end])
            position = end
            if self._overhead > self._limits.head_bytes:
                self._refuse(431)
            if self._state == LINGER:
                return
        self._unparsed = bytes(data[position:])
        if self._unparsed:
            self.transport.pause_reading()
        if (state := self._next_state()) != self._state:
            self._enter(state)

    def _feed(self, piece: bytes | memoryview) -> None:
        try:
            self.parser.feed_data(piece)
        except httptools.HttpParserUpgrade as upgrade:
            self.parser = httptools.HttpRequestParser(_BodyEvents(self))
            framing = [b"%b: %b\r\n" % field for field in self.headers if field[0] in (b"content-length", b"transfer-encoding")]
            self.parser.feed_data(b"POST / HTTP/1.1\r\n" + b"".join(framing) + b"\r\n")
            self._feed(piece[upgrade.args[0] :])
        except httptools.HttpParserError as error:
            self._refuse(error.__context__.status if isinstance(error.__context__, Refused) else 400)

    def _disconnect(self) -> None:
        """Ends the request in progress, whose client is gone."""
        if self._has_request:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
            state = self.cycle.scope["state"]
            state[HAS_ENDED] = True
            if handling := state.pop(HANDLING, None):
                handling.cancel()

    def _next_state(self) -> str:
        if self._has_request:
            return REQUEST
        if not self._is_complete:
            return REST if self._has_head else HEAD
        return FIRST if self.cycle is None else IDLE

    def _enter(self, state: str) -> None:
        self._state, self.since = state, self.loop.time()

    def _refuse(self, status: int) -> None:
        """Rejects what was received, and closes the connection."""
        if self.is_closing():
            return
        is_in_body = self._has_head and not self._is_complete
        is_answered = is_in_body and not self._has_request
        if not is_answered:
            metrics.count("http", status)
        metrics.CLOSED.labels(metrics.REASONS[status]).inc()
        if self._has_request:
            self.cycle.scope["state"][IS_REFUSED] = True
        if not is_answered and not (self._has_request and self.cycle.response_started):
            self.transport.write(_response(status))
        self._disconnect()
        self._is_complete = False
        self.linger()


def _response(status: int, content: Any = None) -> bytes:
    """The response of a connection that is closed then; without a content, it has the error of its status."""
    body = orjson.dumps(content or {"error": MESSAGES[status]})
    retry = b"Retry-After: 1\r\n" if status == 429 else b""
    head = b"Content-Type: application/json\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(body)
    return STATUS_LINE[status] + retry + head + body


def _check_codings(value: bytes) -> None:
    """Refuses any other Transfer-Encoding than chunked: https://www.rfc-editor.org/rfc/rfc9112#section-6.1"""
    codings = [coding.strip() for coding in value.lower().split(b",")]
    if codings != [b"chunked"]:
        raise Refused(501 if codings[-1] == b"chunked" else 400)
