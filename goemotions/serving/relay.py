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
import time
from typing import Any

from goemotions.serving import connections, listening, metrics
from goemotions.serving.connections import Reader, Unread
from goemotions.serving.limits import Limits
from goemotions.serving.metrics import CLIENT_GONE

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
# The bytes before the payload of a frame, types of frames, and the flag of an acknowledgement and the whole of it.
HEAD_BYTES, DATA, HEADERS, RST_STREAM, SETTINGS, GOAWAY, IS_ACK = 9, 0, 1, 3, 4, 7, 1
# Of a message in its first data: whether it is compressed, and its size.
PREFIX_BYTES = 5
ACK, FIRST_SETTINGS = (bytes([0, 0, 0, SETTINGS, flags, 0, 0, 0, 0]) for flags in (IS_ACK, 0))
# Errors of a connection: https://www.rfc-editor.org/rfc/rfc9113#section-7
NO_ERROR, PROTOCOL_ERROR, CALM = 0, 1, 11
ERRORS = {metrics.REASONS[400]: PROTOCOL_ERROR, metrics.REASONS[metrics.FLOOD]: CALM, metrics.REASONS[429]: CALM}
# The longest first settings of a client.
SETTINGS_BYTES = 1024
# Calls at once on one connection; the client keeps more to itself until one ends.
STREAMS = 128
# Calls in the library: so many that their texts share batches, or few, so that each connection has its turn soon, while several have
# more, and for some seconds after that.
CALLS, FEW_CALLS, FEW_SECONDS = 96, 16, 1.0
# Frames per turn, besides one that begins a call.
TURN_FRAMES = 64
# The library has no call if none has begun at so many such times in a row: one may be over before the event loop has looked for calls.
QUIET_SECONDS, QUIET_TIMES = 0.001, 5
# After it had one all the same, it has more than it should from then on. So after this time it gets none until it has none.
DRAIN_SECONDS = 0.1
# A connection is closed beyond so many, and so many per second, of calls that its client resets at once, or of frames that begin no
# call: https://www.cve.org/CVERecord?id=CVE-2023-44487 and https://www.cve.org/CVERecord?id=CVE-2019-9512
RESETS, FRAMES_BESIDE_CALLS, PER_SECOND = 1000, 4000, 200
# So many more of those frames for each call, and one for so many bytes: large messages have many, and a client with a small window
# sends many updates of it for a large response.
FRAMES_PER_CALL, BYTES_PER_FRAME = 10, 256
# A call that is reset later is one of a deadline, or of hedging.
RESET_SECONDS = 0.002
# What the library has sent is at its client after this time, unless that does not read.
LAST_SECONDS = 0.1


class CallTurns(listening.Turns):
    """Few calls are in the library and have not begun; the others wait here: one of each address, then the next one of each.

    Calls that the library rejects itself never begin. They are forgotten once no call begins any more.
    """

    most = CALLS

    def __init__(self) -> None:
        super().__init__()
        self._begun, self._few_until = 0, 0.0
        self._drains_at, self._is_draining = math.inf, False

    def _room(self) -> int:
        now = time.monotonic()
        if self._count > 1:
            self._few_until = now + FEW_SECONDS
        return self._left - (CALLS - FEW_CALLS) * (now < self._few_until)

    def begin(self) -> None:
        """Counts a call that has begun."""
        self._begun += 1
        self.release()

    def release(self) -> None:
        """Makes room for another call."""
        if not self._is_draining:
            self._left = min(self._left + 1, self.most)
            self._work()

    def _schedule(self) -> None:
        if not self._is_scheduled:
            self._is_scheduled = True
            self._look(QUIET_TIMES, self._begun)

    def _look(self, times: int, begun: int) -> None:
        """Looks again, so many times, whether a call has begun; if none has, the library has none, and gets new ones."""
        loop = asyncio.get_running_loop()
        if begun != self._begun:
            times = QUIET_TIMES
        if self._left == self.most:
            self._is_scheduled = False
        elif times:
            if loop.time() > self._drains_at:
                self._left, self._is_draining, self._drains_at = 0, True, math.inf
            loop.call_later(QUIET_SECONDS, self._look, times - 1, self._begun)
        else:
            if not self._is_draining:
                self._drains_at = min(self._drains_at, loop.time() + DRAIN_SECONDS)
            self._is_draining = False
            self._next()


class _Allowance:
    """So many, and so many per second more."""

    def __init__(self, most: int, now: float) -> None:
        self._most = self._left = float(most)
        self._since = now

    def give(self, count: float) -> None:
        self._left = min(self._most, self._left + count)

    def take(self, now: float) -> bool:
        """Whether it was left."""
        self.give(PER_SECOND * (now - self._since))
        self._since = now
        self._left -= 1
        return self._left >= 0


class _Flood:
    """Whether a connection sends too many frames that cost the server more than the client."""

    def __init__(self, now: float) -> None:
        self._resets, self._frames = _Allowance(RESETS, now), _Allowance(FRAMES_BESIDE_CALLS, now)
        # When each of the newest calls began, by its stream.
        self._calls: dict[bytes, float] = {}

    def is_one_too_many(self, head: bytes, now: float) -> bool:
        kind, stream = head[3], head[5:]
        if kind == HEADERS:
            self._calls[stream] = now
            if len(self._calls) > STREAMS:
                del self._calls[next(iter(self._calls))]
            self._frames.give(FRAMES_PER_CALL)
            return False
        if kind == DATA:
            self.count_bytes(int.from_bytes(head[:3], "big"))
        if kind == RST_STREAM and now - self._calls.pop(stream, -math.inf) < RESET_SECONDS and not self._resets.take(now):
            return True
        return not self._frames.take(now)

    def count_bytes(self, count: int) -> None:
        """Counts bytes of messages, of either side."""
        self._frames.give(count / BYTES_PER_FRAME)


class Relays(connections.Connections["Relay"]):
    """The connections of one process to its gRPC server, which listens on an abstract address of this name.

    https://manpages.debian.org/stable/manpages/unix.7.en.html
    """

    def __init__(self, limits: Limits, name: str) -> None:
        super().__init__(limits, "grpc", FIRST_SETTINGS + _goaway(CALM, "the server has too many connections"))
        self.name = name
        self.turns = CallTurns()
        self._names: dict[str, Relay] = {}
        self._listener: listening.Listener | None = None

    def listen(self, port: socket.socket) -> None:
        self._listener = listening.Listener(port, lambda: Relay(self), self, listening.Turns())

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
        """The connection of a call, by the peer that the library names; None if it is closed."""
        return self._names.get(peer)

    def add(self, connection: Relay) -> None:
        super().add(connection)
        self._names[connection.name] = connection

    def remove(self, connection: Relay) -> None:
        super().remove(connection)
        self._names.pop(connection.name, None)


class Relay(Reader):
    """One connection, with the side of the client. ``calls`` of it are in progress."""

    def __init__(self, relays: Relays) -> None:
        self._relays = relays
        self._loop = asyncio.get_running_loop()
        self.client: Any = None
        self._library = _Library(self)
        self.peer = self.name = ""
        self.since = self._loop.time()
        self.calls = 0
        self.flood = _Flood(self.since)
        self._unread = Unread()
        self._connecting: asyncio.Task[object] | None = None
        # Received and not passed on, and where the next frame begins in it.
        self._held, self._next = b"", len(PREFACE)
        # Whether the client has sent its settings, and acknowledged those of the server.
        self._has_settings = self._has_acknowledged = False
        # The stream of the last call that was passed on, and whether the next data is the start of its message. How many messages are
        # too large for the library, or compressed so that they may be, and how many calls the client reset: it ends all in one way.
        self._last, self._expects_message, self._too_large, self._resets = 0, False, 0, 0
        # Whether the library has sent its settings and reads.
        self._may_write = False
        # Whether a frame waits for its turn, or has it; the frames that are left of the last one; whether nothing more is passed on.
        self._is_waiting, self._has_turn, self._left, self._is_stopped = False, False, TURN_FRAMES, False

    @property
    def socket_transport(self) -> Any:
        return self.client

    @property
    def is_idle(self) -> bool:
        return not self.calls and not self._is_waiting

    def begin_call(self) -> None:
        self.calls += 1

    def end_call(self) -> None:
        self.calls -= 1
        self.since = self._loop.time()

    def status_of_ended(self) -> int:
        """The status of a call that the library has ended: the client left, or what it sent was too large or no message."""
        if self.client.is_closing() or self._resets:
            self._resets = max(0, self._resets - 1)
            return CLIENT_GONE
        if self._too_large:
            self._too_large -= 1
            return 413
        return 400

    def connection_made(self, transport: Any) -> None:
        self.client = transport
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
        self._connecting = self._loop.create_task(self._loop.connect_accepted_socket(lambda: self._library, own))

    def connection_lost(self, exc: Exception | None) -> None:
        self._relays.remove(self)
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
        limits = self._relays.limits
        if self._unread.seconds(self.client, now) > limits.write_seconds:
            self.abort("unread-answer")
        elif not self._has_acknowledged and now - self.since > limits.read_seconds:
            self.abort("silent")

    def abort(self, reason: str) -> None:
        """Closes the connection; a client that reads is told why, and that it may send again what was not passed on."""
        if self.client.is_closing():
            return
        metrics.CLOSED.labels(reason).inc()
        if self._library.is_between_frames and not self.client.get_write_buffer_size():
            settings = b"" if self._library.has_settings else FIRST_SETTINGS
            self.client.write(settings + _goaway(ERRORS.get(reason, NO_ERROR), reason, self._last))
            self.client.close()
        else:
            self.client.abort()

    def give_way(self) -> None:
        self.abort("evicted")

    @property
    def _may_relay(self) -> bool:
        return self._may_write and not self._is_waiting and not self._is_stopped and not self.client.is_closing()

    def _relay(self) -> None:
        """Passes on what was received; reads more if it may be passed on, too."""
        if self._may_relay:
            self._pass_on()
        _read(self.client, self._may_relay)

    def _pass_on(self) -> None:
        """Passes on frames until one has to wait for its turn; of the acknowledgements, that of this server for the client's first."""
        data, start, position, write = self._held, 0, self._next, self._library.write
        if not self._has_settings and not data.startswith(PREFACE[: len(data)]):
            self._refuse(400)
            return
        while len(data) >= position + HEAD_BYTES:
            head = data[position : position + HEAD_BYTES]
            end = position + HEAD_BYTES + int.from_bytes(head[:3], "big")
            if (head[3] == HEADERS or not self._left) and not self._takes_turn(head[3] == HEADERS):
                break
            if status := self._refused(head):
                self._refuse(status)
                return
            if not self._has_settings:
                if len(data) < end:
                    break
                write(data[:end] + ACK)
                start, self._has_settings = end, True
            elif not self._has_acknowledged and _is_ack(head):
                self._has_acknowledged = True
                write(data[start:position])
                start = end
            self._note(data[position : position + HEAD_BYTES + PREFIX_BYTES])
            position, self._left = end, self._left - 1
        passed = min(position, len(data)) if self._has_settings else 0
        write(data[start:passed])
        self._held, self._next = data[passed:], position - passed

    def _note(self, frame: bytes) -> None:
        """Notes the start of a call or of its message, or that the client resets it."""
        kind = frame[3]
        if kind == HEADERS:
            self._last, self._expects_message = int.from_bytes(frame[5:HEAD_BYTES], "big"), True
        elif kind == DATA and self._expects_message:
            # https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md
            self._expects_message = False
            is_compressed, size = frame[HEAD_BYTES : HEAD_BYTES + 1] == b"\1", int.from_bytes(frame[HEAD_BYTES + 1 :], "big")
            self._too_large += is_compressed or size > self._relays.limits.body_bytes
        elif kind == RST_STREAM:
            self._resets += 1

    def _refused(self, head: bytes) -> int:
        """The status with which this connection is closed for a frame; 0 if the frame may be passed on."""
        is_settings = head[3] == SETTINGS and not _is_ack(head) and int.from_bytes(head[:3], "big") <= SETTINGS_BYTES
        if not (self._has_settings or is_settings):
            return 400
        return metrics.FLOOD if self.flood.is_one_too_many(head, self._loop.time()) else 0

    def _refuse(self, status: int) -> None:
        metrics.count("grpc", status)
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
        if self.client.is_closing():
            self._loop.call_soon(self._relays.turns.release)
        else:
            self._relay()


class _Library(Reader):
    """The side of the library."""

    def __init__(self, relay: Relay) -> None:
        self._relay = relay
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
        if self._relay.client.is_closing():
            transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._relay.client.close()

    def data_received(self, data: memoryview) -> None:
        client = self._relay.client
        if not client.is_closing():
            content = bytes(data)
            client.write(content)
            self._relay.flood.count_bytes(len(content))
            self._follow(content)
            if not self.has_settings:
                self.has_settings = True
                self._relay.write(True)

    def _follow(self, content: bytes) -> None:
        """Follows the frames to the client."""
        content, position = self._part + content, self._left
        while position + HEAD_BYTES <= len(content):
            position += HEAD_BYTES + int.from_bytes(content[position : position + 3], "big")
        self._part, self._left = content[position:], max(0, position - len(content))

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


def _goaway(error: int, reason: str, last: int = 0) -> bytes:
    """The last frame to a client; calls after the stream ``last`` were not handed over, and clients may send them again."""
    payload = last.to_bytes(4, "big") + error.to_bytes(4, "big") + reason.encode()
    return len(payload).to_bytes(3, "big") + bytes([GOAWAY, 0, 0, 0, 0, 0]) + payload


def _is_ack(head: bytes) -> bool:
    return head[3] == SETTINGS and bool(head[4] & IS_ACK)


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
