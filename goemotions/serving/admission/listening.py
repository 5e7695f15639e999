"""The port of the server: accepting its connections, or refusing them.

This module imports the metrics late: the files that workers share theirs through must exist before.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import functools
import logging
import resource
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from goemotions.errors import WorkflowError
from goemotions.serving.admission.turns import Turns

if TYPE_CHECKING:
    from goemotions.serving.admission.connections import Connections

logger = logging.getLogger(__name__)
# Connections that the system keeps until they are accepted; and files beside those of connections.
BACKLOG, OTHER_FILES = 1024, 256
# Most that are accepted per turn of the event loop.
ACCEPTED = 64
# So many more connections that waited have one more accepted per turn.
GROWTH = 16
# Between two attempts, while the system has no file for a connection.
RETRY_SECONDS = 0.1
# Connections that are kept, once they are refused or gave way to others, until their clients have read why, and for how long: a client
# that still sends would lose the answer if its connection were closed at once.
REFUSED, REFUSED_SECONDS = 512, 1.0
# Before they are refused, as many may wait so long for what their clients send, which may be a probe of the health.
SILENT_SECONDS = 0.1
# Read at once, so that a flood of one client delays the others little; and the longest probe of the health.
READ_BYTES, PROBE_BYTES = 64 * 1024, 1024
ATTACHING: set[asyncio.Task[object]] = set()


class Listener:
    """Accepts the connections of a port, and makes a protocol for each when it is the turn of its address.

    Connections beyond those that may wait or be open get an answer, and no protocol: that costs a tenth.

    The servers of the event loop accept one connection per turn, so that those of all clients wait behind a flood of one, and they
    close connections that the system has no file for without a trace.
    """

    def __init__(
        self,
        listening: socket.socket,
        protocol: Callable[[], asyncio.BaseProtocol],
        connections: Connections[Any],
        turns: Turns,
    ) -> None:
        self._listening = listening
        self._protocol = protocol
        self._connections = connections
        self._turns = turns
        self._most_waiting = connections.limits.peer_connections
        self._loop = asyncio.get_running_loop()
        # Connections whose clients have not sent anything before they are refused, each with its timer.
        self._silent: dict[socket.socket, asyncio.TimerHandle] = {}
        # Since none waited.
        self._accepted = 0
        listen(listening)
        listening.setblocking(False)
        self._loop.add_reader(listening, self._accept)

    def close(self) -> None:
        self._loop.remove_reader(self._listening)
        self._listening.close()

    async def wait_closed(self) -> None:
        """Returns at once; uvicorn awaits it."""

    def _accept(self) -> None:
        # One at first, so that worker processes share them.
        for _ in range(min(1 + self._accepted // GROWTH, ACCEPTED)):
            try:
                connection, (address, *_) = self._listening.accept()
            except (BlockingIOError, ConnectionAbortedError):
                self._accepted = 0
                return
            except OSError as error:
                self._retry(error)
                return
            self._accepted += 1
            connection.setblocking(False)
            if self._turns.has_room(address):
                self._connect(connection, address)
            elif self._turns.is_full(address, self._most_waiting) or self._is_answered_at_once(connection):
                self._refuse(connection, address)
            else:
                self._turns.wait(
                    address,
                    functools.partial(self._connect, connection, address),
                    functools.partial(self._refuse, connection, address),
                )

    def _connect(self, connection: socket.socket, address: str) -> None:
        if self._listening.fileno() < 0 or not self._connections.has_room(address):
            self._refuse(connection, address)
            return
        try:
            connection.getpeername()
        except OSError:
            # The client has reset it.
            connection.close()
            return
        attach(connection, self._protocol)

    def _is_answered_at_once(self, connection: socket.socket) -> bool:
        with contextlib.suppress(OSError):
            return bool(self._connections.answer_at_once(connection.recv(PROBE_BYTES, socket.MSG_PEEK)))
        return False

    def _refuse(self, connection: socket.socket, address: str, may_wait: bool = True) -> None:
        """Answers that there are too many connections, unless what is sent can be answered at once; it may be on its way."""
        sent = b""
        with contextlib.suppress(OSError):
            # Bytes that are not read make its end a reset, which may overtake the answer.
            try:
                sent = connection.recv(READ_BYTES)
            except BlockingIOError:
                if may_wait and len(self._silent) < REFUSED:
                    self._wait_for_probe(connection, address)
                    return
            answer = self._connections.answer_at_once(sent)
            if not answer:
                self._connections.count_refused(address)
            connection.send(answer or self._connections.refusal)
            connection.shutdown(socket.SHUT_WR)
        self._connections.close_later(connection.close)

    def _wait_for_probe(self, connection: socket.socket, address: str) -> None:
        """Refuses a connection when its client has sent something, or not soon."""

        def refuse() -> None:
            self._loop.remove_reader(connection)
            self._silent.pop(connection).cancel()
            self._refuse(connection, address, may_wait=False)

        self._loop.add_reader(connection, refuse)
        self._silent[connection] = self._loop.call_later(SILENT_SECONDS, refuse)

    def _retry(self, error: OSError) -> None:
        """Accepts again later: the connection still waits, and the event loop would do nothing else."""
        from goemotions.serving import metrics

        metrics.ACCEPT_ERRORS.labels(errno.errorcode.get(error.errno or 0, "unknown")).inc()
        logger.error("a connection cannot be accepted: %s", error.strerror)
        self._loop.remove_reader(self._listening)
        self._loop.call_later(RETRY_SECONDS, self._resume)

    def _resume(self) -> None:
        if self._listening.fileno() >= 0:
            self._loop.add_reader(self._listening, self._accept)


def attach(connection: socket.socket, protocol: Callable[[], asyncio.BaseProtocol]) -> None:
    """Gives a connection that is open to the event loop."""
    loop = asyncio.get_running_loop()
    attaching = loop.create_task(loop.connect_accepted_socket(protocol, connection))
    # The event loop would not keep it.
    ATTACHING.add(attaching)
    attaching.add_done_callback(ATTACHING.discard)


def bind(host: str, port: int, option: str) -> socket.socket:
    """A socket with an address, which worker processes may share.

    Raises:
        WorkflowError: the port is in use or not permitted; ``option`` sets another one.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise WorkflowError(f"cannot listen on {host}:{port} ({reason}): choose another {option}") from error
    listening.set_inheritable(True)
    return listening


def listen(port: socket.socket) -> None:
    """Has the system keep the connections to a port; again changes nothing.

    Raises:
        WorkflowError: another server that was bound to it at the same time was sooner.
    """
    try:
        port.listen(BACKLOG)
    except OSError as error:
        host, number, *_ = port.getsockname()
        raise WorkflowError(f"cannot listen on {host}:{number} ({error.strerror}): choose another port") from error


def allow_files(connections: int, files_each: int = 1) -> None:
    """Lets this process open as many files as it may need for so many connections with so many files each.

    Raises:
        WorkflowError: it may not.
    """
    needed = connections * files_each + BACKLOG + 4 * REFUSED + OTHER_FILES
    now, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if needed > most != resource.RLIM_INFINITY:
        raise WorkflowError(
            f"--connections {connections} needs {needed:,} open files and this process may have {most:,}: "
            "raise the limit (ulimit -n) or lower --connections"
        )
    if now < needed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, most))
