"""The connections of the gRPC port. The library has an address of its own, to which each of them is relayed.

The library limits the metadata of a client only once that client has acknowledged its settings: until then, it reads 16 MB per call.
Here the settings are acknowledged in the place of every client, before anything of a call. The library also closes no connection
that its client holds open, and does not limit those of one address.

Frames: https://www.rfc-editor.org/rfc/rfc9113#section-4.1
"""

from __future__ import annotations

import asyncio
import errno
import socket
from typing import Any

from goemotions.serving import connections, listening, metrics
from goemotions.serving.connections import Reader, Unread
from goemotions.serving.limits import Limits

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
# The bytes before the payload of a frame, the type and the flag of an acknowledgement, and the whole of it.
HEAD_BYTES, SETTINGS, IS_ACK = 9, 4, 1
ACK = bytes([0, 0, 0, SETTINGS, IS_ACK, 0, 0, 0, 0])
# The longest first settings of a client, and the most frames before it acknowledges the server's: it does so as soon as it has them.
SETTINGS_BYTES, FRAMES = 1024, 1000
# What the library has sent is at its client after this time, unless that does not read.
LAST_SECONDS = 0.1


class Relays(connections.Connections["Relay"]):
    """The connections of one process to its gRPC server, which listens on an abstract address of this name.

    https://manpages.debian.org/stable/manpages/unix.7.en.html
    """

    def __init__(self, limits: Limits, name: str) -> None:
        super().__init__(limits, "grpc")
        self.name = name
        self._names: dict[str, Relay] = {}
        self._listener: listening.Listener | None = None

    def listen(self, port: socket.socket) -> None:
        turns = listening.Turns()
        self._listener = listening.Listener(port, lambda: Relay(self), turns, self.limits.peer_connections)

    async def close(self) -> None:
        """Closes the port, relays nothing more of any client, and closes the connections once their clients have the responses."""
        if self._listener:
            self._listener.close()
        for relay in self.open:
            relay.read(False)
        await asyncio.sleep(LAST_SECONDS)
        for relay in self.open:
            relay.abort("shutdown")

    def of(self, peer: str) -> Relay | None:
        """The connection of a call, by the peer that the library names; None if it is closed."""
        return self._names.get(peer)

    def add(self, connection: Relay) -> bool:
        is_added = super().add(connection)
        if is_added:
            self._names[connection.name] = connection
        return is_added

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
        self._unread = Unread()
        self._connecting: asyncio.Task[object] | None = None
        # Until the client acknowledges the settings: what is held back, where the next frame begins in it, and how many came before.
        self._held, self._next, self._frames = b"", len(PREFACE), 0
        self.has_acknowledged = False

    @property
    def is_idle(self) -> bool:
        return not self.calls

    def begin_call(self) -> None:
        self.calls += 1

    def end_call(self) -> None:
        self.calls -= 1
        self.since = self._loop.time()

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
        if not self._relays.add(self):
            own.close()
            self.abort(metrics.REASONS[429])
            return
        # uvloop's create_unix_connection attaches the socket after the connection may have been closed: its file would be closed twice.
        self._connecting = self._loop.create_task(self._loop.connect_accepted_socket(lambda: self._library, own))

    def connection_lost(self, exc: Exception | None) -> None:
        self._relays.remove(self)
        self._library.abort()

    def data_received(self, data: memoryview) -> None:
        if self.has_acknowledged:
            self._library.write(bytes(data))
        else:
            self._acknowledge(self._held + data)

    def pause_writing(self) -> None:
        self._library.read(False)

    def resume_writing(self) -> None:
        self._library.read(True)

    def read(self, may_read: bool) -> None:
        """Reads from the client, or not while the library does not read."""
        _read(self.client, may_read)

    def start(self) -> None:
        """Relays, once the library has sent its settings."""
        self.read(True)
        self._acknowledge(self._held)

    def check(self, now: float) -> None:
        limits = self._relays.limits
        if self._unread.seconds(self.client, now) > limits.write_seconds:
            self.abort("unread-answer")
        elif not self.has_acknowledged and now - self.since > limits.read_seconds:
            self.abort("silent")

    def abort(self, reason: str) -> None:
        metrics.CLOSED.labels(reason).inc()
        self.client.abort()

    def _acknowledge(self, data: bytes) -> None:
        """Relays what a client sends before its acknowledgement, with that of this server after its settings; drops its own."""
        if not self._library.has_settings:
            self._held = data
            self.read(False)
            return
        if not self._frames and not data.startswith(PREFACE[: len(data)]):
            self.abort(metrics.REASONS[400])
            return
        start, position, write = 0, self._next, self._library.write
        while len(data) >= position + HEAD_BYTES:
            size, is_settings = int.from_bytes(data[position : position + 3], "big"), data[position + 3] == SETTINGS
            is_ack = is_settings and data[position + 4] & IS_ACK
            end = position + HEAD_BYTES + size
            if not self._frames:
                if is_ack or not is_settings or size > SETTINGS_BYTES:
                    self.abort(metrics.REASONS[400])
                    return
                if len(data) < end:
                    break
                write(data[:end] + ACK)
                start = end
            elif is_ack:
                self.has_acknowledged, self._held = True, b""
                write(data[start:position] + data[end:])
                return
            position, self._frames = end, self._frames + 1
            if self._frames > FRAMES:
                self.abort(metrics.REASONS[400])
                return
        passed = min(position, len(data)) if self._frames else 0
        write(data[start:passed])
        self._held, self._next = data[passed:], position - passed


class _Library(Reader):
    """The side of the library."""

    def __init__(self, relay: Relay) -> None:
        self._relay = relay
        self.transport: Any = None
        self.has_settings = False

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        if self._relay.client.is_closing():
            transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._relay.client.close()

    def data_received(self, data: memoryview) -> None:
        client = self._relay.client
        if not client.is_closing():
            client.write(bytes(data))
            if not self.has_settings:
                self.has_settings = True
                self._relay.start()

    def pause_writing(self) -> None:
        self._relay.read(False)

    def resume_writing(self) -> None:
        self._relay.read(True)

    def write(self, data: bytes) -> None:
        if not self.transport.is_closing():
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
