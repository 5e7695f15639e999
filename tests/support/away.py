"""A port in front of a server, which drops connections for a while, as a server does that is restarted."""

from __future__ import annotations

import contextlib
import socket
import socketserver
import threading
from urllib.parse import urlsplit

from tests.support.http_server import running


class Port(socketserver.ThreadingTCPServer):
    """Forwards connections, after it has dropped the next ``away`` ones; ``dropped`` counts them."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, address: str) -> None:
        super().__init__(("127.0.0.1", 0), _Forwarding)
        parts = urlsplit(address)
        self.upstream = (str(parts.hostname), int(parts.port or 80))
        self.away = self.dropped = 0
        self.connected: set[socket.socket] = set()

    def drop(self, connections: int) -> None:
        """Ends the connections that there are, and drops the next ones."""
        self.away = connections
        for connection in list(self.connected):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Forwarding(socketserver.BaseRequestHandler):
    server: Port

    def handle(self) -> None:
        if self.server.away:
            self.server.away -= 1
            self.server.dropped += 1
            return
        self.server.connected.add(self.request)
        with socket.create_connection(self.server.upstream) as upstream:
            back = threading.Thread(target=_copy, args=(upstream, self.request), daemon=True)
            back.start()
            _copy(self.request, upstream)
            back.join()
        self.server.connected.discard(self.request)


def _copy(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
    with contextlib.suppress(OSError):
        target.shutdown(socket.SHUT_WR)


def in_front_of(address: str) -> contextlib.AbstractContextManager[Port]:
    return running(Port(address))
