"""The connections of the gRPC port. The library has an address of its own, to which each of them is relayed.

The library limits the metadata of a client only once that client has acknowledged its settings: until then, it reads 16 MB per call.
Here the settings are acknowledged in the place of every client, before anything of a call. The library also closes no connection
that its client holds open, and does not limit those of one address. It hands over calls in the order in which they arrive, even if they
are reset at once: here they wait, so that each connection has its turn.

Frames: https://www.rfc-editor.org/rfc/rfc9113#section-4.1
"""

from __future__ import annotations

import asyncio
import errno
import math
import socket
from collections.abc import Callable
from typing import Any

from goemotions.serving import metrics
from goemotions.serving.admission import connections, listening
from goemotions.serving.admission.connections import Reader
from goemotions.serving.admission.shares import Shares
from goemotions.serving.admission.turns import CallTurns, Turns
from goemotions.serving.grpc.frames import (
    CALM,
    GOAWAY,
    HEAD_BYTES,
    HEADERS,
    IS_ACK,
    NO_ERROR,
    PREFIX_BYTES,
    PROTOCOL_ERROR,
    RST_STREAM,
    SETTINGS,
    Frames,
    goaway,
    is_ack,
    length_of,
)
from goemotions.serving.limits import Limits
from goemotions.serving.metrics import CLIENT_GONE, COUNTED

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
ACK, FIRST_SETTINGS = (bytes([0, 0, 0, SETTINGS, flags, 0, 0, 0, 0]) for flags in (IS_ACK, 0))
ERRORS = {metrics.REASONS[400]: PROTOCOL_ERROR, metrics.REASONS[metrics.FLOOD]: CALM, metrics.REASONS[429]: CALM}
# The longest first settings of a client.
SETTINGS_BYTES = 1024
# Frames per turn, besides one that begins a call.
TURN_FRAMES = 64
# What the library has sent is at its client after this time, unless that does not read.
LAST_SECONDS = 0.1


class Relays(connections.Connections["Relay"]):
    """The connections of one process to its gRPC server, which listens on an abstract address of this name.

    https://manpages.debian.org/stable/manpages/unix.7.en.html
    """

    def __init__(self, limits: Limits, name: str) -> None:
        super().__init__(limits, "grpc", FIRST_SETTINGS + goaway(CALM, "the server has too many connections"))
        self.name = name
        self.turns = CallTurns()
        # Of calls without an answer, as they were sent; and what is done if an address has no room for more.
        self.bytes = Shares(limits.total_bytes)
        self.make_room: Callable[[], object] = lambda: None
        self._names: dict[str, Relay] = {}
        self._listener: listening.Listener | None = None

    def listen(self, port: socket.socket) -> None:
        self._listener = listening.Listener(port, lambda: Relay(self), self, Turns())

    def check_room(self, peer: str) -> None:
        """Makes room if the calls of an address have too many bytes."""
        if not self.bytes.has_room(peer, 0):
            self.make_room()

    async def close(self) -> None:
        """Closes the port, relays nothing more of any client, and closes the connections once their clients have the responses."""
        if self._listener:
            self._listener.close()
        for relay in self.open:
            relay.stop()
        await asyncio.sleep(LAST_SECONDS)
        for relay in self.open:
            relay.abort("shutdown")

    def of(self, peer: str) -> Relay | None:
        """The connection of a call, by the peer that the library names; None if it was closed a while ago."""
        return self._names.get(peer)

    def address(self, peer: str) -> str:
        """The address of the client of a call; empty if its connection is closed."""
        relay = self.of(peer)
        return relay.peer if relay else ""

    def add(self, connection: Relay) -> None:
        super().add(connection)
        self._names[connection.name] = connection

    def remove(self, connection: Relay) -> None:
        super().remove(connection)

        def forget() -> None:
            if self._names.get(connection.name) is connection:
                del self._names[connection.name]

        # Calls of it that the library had already may begin after it.
        asyncio.get_running_loop().call_later(LAST_SECONDS, forget)


class Relay(Reader):
    """One connection, with the side of the client, whose ``transport`` it has."""

    def __init__(self, relays: Relays) -> None:
        self._relays = relays
        self._loop = asyncio.get_running_loop()
        self.transport: Any = None
        self._library = _Library(self)
        self.peer = self.name = ""
        self.since, self.unread_since = self._loop.time(), math.inf
        # In progress, each with the time since when the library has its response.
        self.calls: dict[object, float] = {}
        self.frames = Frames(relays.limits.body_bytes, self.since)
        self._counted_bytes = 0
        # Received and not passed on, and where the next frame begins in it.
        self._held, self._next = b"", len(PREFACE)
        # Whether the client has sent its settings, and acknowledged those of the server.
        self._has_settings = self._has_acknowledged = False
        # Whether the library has sent its settings and reads.
        self._may_write = False
        # Whether it was closed for what its client sent, and that was counted.
        self._is_refused = False
        # Whether a frame waits for its turn, or has it; the frames that are left of the last one; whether nothing more is passed on.
        self._is_waiting, self._has_turn, self._left, self._is_stopped = False, False, TURN_FRAMES, False

    @property
    def is_idle(self) -> bool:
        return not self.calls and not self._is_waiting

    @property
    def is_closed(self) -> bool:
        return bool(self.transport.is_closing())

    def begin_call(self, call: object) -> None:
        self.calls[call] = math.inf

    def note_response_of(self, call: object) -> None:
        if call in self.calls:
            self.calls[call] = self._loop.time()

    def end_call(self, call: object) -> None:
        del self.calls[call]
        self.since = self._loop.time()

    async def status_of_ended(self) -> int:
        """The status of a call that the library has ended."""
        if not (self.is_closed or self.frames.has_reason):
            # The call may end before the frames with the reason are read: of its answer, or of the end of the connection.
            await asyncio.sleep(LAST_SECONDS)
        if self._is_refused:
            return COUNTED
        return CLIENT_GONE if self.is_closed else self.frames.status_of_ended()

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.peer = transport.get_extra_info("peername")[0]
        try:
            own = _connect(self._relays.name)
        except OSError as error:
            metrics.ACCEPT_ERRORS.labels(errno.errorcode.get(error.errno or 0, "unknown")).inc()
            transport.abort()
            return
        self.name = "unix-abstract:" + own.getsockname()[1:].decode()
        self._relays.add(self)
        # uvloop's create_unix_connection attaches the socket after the connection may have been closed: its file would be closed twice.
        listening.attach(own, lambda: self._library)

    def connection_lost(self, exc: Exception | None) -> None:
        self._relays.remove(self)
        self._count_bytes(0)
        self._library.abort()

    def data_received(self, data: memoryview) -> None:
        self._held += data
        self._relay()

    def pause_writing(self) -> None:
        self._library.read(False)

    def resume_writing(self) -> None:
        self._library.read(True)

    def write(self, may_write: bool) -> None:
        """Passes on what the client sends, or not while the library does not read."""
        self._may_write = may_write
        self._relay()

    def stop(self) -> None:
        """Passes on nothing more of the client."""
        self._is_stopped = True
        self._relay()

    def check(self, now: float) -> None:
        if not self._has_acknowledged and now - self.since > self._relays.limits.read_seconds:
            self.abort("silent")
        # The library holds the response of a client that reads the connection and not the call.
        if now - min(self.calls.values(), default=now) > self._relays.limits.write_seconds:
            self.abort("unread-answer")

    def abort(self, reason: str) -> None:
        """Closes the connection; a client that reads is told why, and that it may send again what was not passed on."""
        if not self.transport.is_closing():
            metrics.CLOSED.labels(reason).inc()
            if self._library.is_between_frames and not self.transport.get_write_buffer_size():
                settings = b"" if self._library.has_settings else FIRST_SETTINGS
                self.transport.write(settings + goaway(ERRORS.get(reason, NO_ERROR), reason, self.frames.last))
                self.transport.close()
                # Its client may not read that either.
                self._relays.close_later(self.transport.abort)
                return
        self.transport.abort()

    def give_way(self) -> None:
        self.abort("evicted")

    @property
    def _may_relay(self) -> bool:
        return self._may_write and not self._is_waiting and not self._is_stopped and not self.transport.is_closing()

    def _relay(self) -> None:
        """Passes on what was received; reads more if it may be passed on, too."""
        if self._may_relay:
            self._pass_on()
        _read(self.transport, self._may_relay)

    def _pass_on(self) -> None:
        """Passes on frames until one has to wait for its turn; of the acknowledgements, that of this server for the client's first."""
        data, start, position, write = self._held, 0, self._next, self._library.write
        if not self._has_settings and not data.startswith(PREFACE[: len(data)]):
            self._refuse(400)
            return
        while len(data) >= position + HEAD_BYTES:
            head = data[position : position + HEAD_BYTES]
            end = position + HEAD_BYTES + length_of(head)
            if (head[3] == HEADERS or not self._left) and not self._takes_turn(head[3] == HEADERS):
                break
            if status := self._refused(data[position : position + HEAD_BYTES + PREFIX_BYTES]):
                self._refuse(status)
                return
            if not self._has_settings:
                if len(data) < end:
                    break
                write(data[:end] + ACK)
                start, self._has_settings = end, True
            elif not self._has_acknowledged and is_ack(head):
                self._has_acknowledged = True
                write(data[start:position])
                start = end
            position, self._left = end, self._left - 1
        passed = min(position, len(data)) if self._has_settings else 0
        write(data[start:passed])
        self._held, self._next = data[passed:], position - passed
        self._count_bytes(self.frames.held)

    def note_response(self, frame: bytes) -> None:
        """Notes a frame of the library that begins an answer, or ends a call or the connection."""
        status, is_flood = 0, False
        if frame[3] == HEADERS:
            status = self.frames.note_answer(frame)
        elif frame[3] == GOAWAY:
            self.frames.note_goodbye(frame)
        else:
            status, is_flood = self.frames.note_reset(frame, self._loop.time())
        self._count_bytes(self.frames.held)
        if status:
            metrics.count("grpc", status)
        if is_flood:
            self._refuse(metrics.FLOOD)

    def _count_bytes(self, held: int) -> None:
        more, self._counted_bytes = held - self._counted_bytes, held
        self._relays.bytes.add(self.peer, more)
        if more > 0:
            self._relays.check_room(self.peer)

    def end(self) -> None:
        """Closes the connection, as the library has; if it has not said so, its client has sent what it does not accept."""
        if status := self.frames.closing_status:
            self._refuse(status)
        self.transport.close()

    def _refused(self, frame: bytes) -> int:
        """The status with which this connection is closed for a frame; 0 if it may be passed on."""
        is_settings = frame[3] == SETTINGS and not is_ack(frame) and length_of(frame) <= SETTINGS_BYTES
        if not (self._has_settings or is_settings):
            return 400
        return metrics.FLOOD if self.frames.is_flood(frame, self._loop.time()) else 0

    def _refuse(self, status: int) -> None:
        if not self.transport.is_closing():
            metrics.count("grpc", status)
            self._is_refused = True
            self.abort(metrics.REASONS[status])

    def _takes_turn(self, is_call: bool) -> bool:
        """Whether it is the turn of this connection, to pass on a call or other frames; it waits otherwise."""
        turns = self._relays.turns
        if not self._has_turn and not turns.has_room(self.peer):
            self._is_waiting = True
            turns.wait(self.peer, self._resume)
            return False
        self._has_turn, self._left = False, TURN_FRAMES
        if not is_call:
            self._loop.call_soon(turns.release)
        return True

    def _resume(self) -> None:
        self._is_waiting, self._has_turn = False, True
        if self.transport.is_closing():
            self._loop.call_soon(self._relays.turns.release)
        else:
            self._relay()


class _Library(Reader):
    """The side of the library."""

    def __init__(self, relay: Relay) -> None:
        self._relay: Any = relay
        self.transport: Any = None
        self.has_settings = False
        # The start of a frame to the client whose kind is not known yet, and what is left of the last frame.
        self._part, self._left = b"", 0

    @property
    def is_between_frames(self) -> bool:
        """Whether the client has complete frames, so that another one may follow."""
        return not self._part and not self._left

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        if self._relay.transport.is_closing():
            transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._relay.end()
        # They refer to each other, and only the garbage collector would free them.
        self._relay = None

    def data_received(self, data: memoryview) -> None:
        client = self._relay.transport
        if not client.is_closing():
            content = bytes(data)
            client.write(content)
            self._relay.frames.count_bytes(len(content))
            for frame in self._follow(content):
                self._relay.note_response(frame)
            if not self.has_settings:
                self.has_settings = True
                self._relay.write(True)

    def _follow(self, content: bytes) -> list[bytes]:
        """Follows the frames to the client; returns those that begin an answer, or end a call or the connection."""
        content, position, frames = self._part + content, self._left, list[bytes]()
        while position + HEAD_BYTES <= len(content):
            head = content[position : position + HEAD_BYTES]
            end = position + HEAD_BYTES + length_of(head)
            if head[3] in (HEADERS, RST_STREAM, GOAWAY):
                if end > len(content):
                    break
                frames.append(content[position:end])
            position = end
        self._part, self._left = content[position:], max(0, position - len(content))
        return frames

    def pause_writing(self) -> None:
        self._relay.write(False)

    def resume_writing(self) -> None:
        self._relay.write(True)

    def write(self, data: bytes) -> None:
        if data and not self.transport.is_closing():
            self.transport.write(data)

    def read(self, may_read: bool) -> None:
        """Reads from the library, or not while the client does not read."""
        _read(self.transport, may_read)

    def abort(self) -> None:
        if self.transport:
            self.transport.abort()


def _read(transport: Any, may_read: bool) -> None:
    if not transport.is_closing():
        (transport.resume_reading if may_read else transport.pause_reading)()


def _connect(name: str) -> socket.socket:
    """A connection to an abstract address, from one that the system chooses."""
    own = socket.socket(socket.AF_UNIX)
    try:
        own.setblocking(False)
        own.bind("")
        own.connect(f"\0{name}")
    except OSError:
        own.close()
        raise
    return own
