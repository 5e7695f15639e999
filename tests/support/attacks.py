"""Clients that attack the server: each attack is called with a server and returns the statuses of the responses that it got."""

from __future__ import annotations

import contextlib
import gzip
import itertools
import json
import re
import select
import socket
import struct
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

from tests.support.servers import PREDICT, Server

Attack = Callable[[Server], set[int]]
POST = f"POST {PREDICT} HTTP/1.1\r\nHost: a\r\n".encode()
LIVE = b"GET /v2/health/live HTTP/1.1\r\nHost: a\r\n\r\n"
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"
GRPC_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00"
# Attackers come from addresses of their own; honest clients from 127.0.0.1.
ATTACKER = "127.0.0.2"
TEXTS = json.dumps({"instances": ["storm"]}).encode()


@contextlib.contextmanager
def connected(server: Server, source: str = ATTACKER, received: int = 0, port: int = 0) -> Iterator[socket.socket]:
    """A connection from an address, with a receive buffer of so many bytes; to another port than that of HTTP."""
    with socket.socket() as connection:
        connection.settimeout(10)
        connection.bind((source, 0))
        if received:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, received)
        connection.connect(("127.0.0.1", port or server.port))
        yield connection


def statuses(received: bytes) -> set[int]:
    return {int(status) for status in re.findall(rb"HTTP/1\.1 (\d{3}) ", received)} - {100}


def receive(connection: socket.socket, seconds: float = 10) -> bytes:
    """What the server sends until it closes the connection, or sends nothing for 0.2 seconds after a response."""
    received = b""
    connection.settimeout(seconds)
    with contextlib.suppress(OSError):
        while piece := connection.recv(65536):
            received += piece
            connection.settimeout(0.2 if statuses(received) else seconds)
    return received


def send(connection: socket.socket, pieces: Iterable[bytes], pause: float = 0.0) -> None:
    """Sends pieces until the server responds or closes the connection."""
    with contextlib.suppress(OSError):
        for piece in pieces:
            connection.sendall(piece)
            if select.select([connection], [], [], pause)[0]:
                return


def sends(*pieces: bytes, endless: bytes = b"", most: int = 4 * 2**20, pause: float = 0.0) -> Attack:
    """Sends pieces, then one of them again and again, ``most`` bytes of it."""

    def attack(server: Server) -> set[int]:
        times = most // len(endless) if endless else 0
        with connected(server) as connection:
            send(connection, itertools.chain(pieces[:-1], [pieces[-1]], itertools.repeat(endless, times)), pause)
            return statuses(receive(connection))

    return attack


def posts(body: bytes, *fields: bytes, clients: int = 1, path: bytes = PREDICT.encode()) -> Attack:
    """Sends a body, from several clients at once."""
    head = b"POST %s HTTP/1.1\r\nHost: a\r\n%sContent-Length: %d\r\n\r\n"
    request = head % (path, b"".join(field + b"\r\n" for field in fields), len(body)) + body
    return at_once(sends(request), clients) if clients > 1 else sends(request)


def at_once(attack: Attack, clients: int) -> Attack:
    def attack_at_once(server: Server) -> set[int]:
        with ThreadPoolExecutor(clients) as pool:
            return set().union(*pool.map(attack, [server] * clients))

    return attack_at_once


def pipelined(request: bytes, times: int) -> Attack:
    """Sends requests without an end over twenty connections, and reads no response."""

    def attack(server: Server) -> set[int]:
        with contextlib.ExitStack() as stack:
            opened = [stack.enter_context(connected(server)) for _ in range(20)]
            content = memoryview(request * times)
            for connection in opened:
                connection.setblocking(False)
            ends = time.monotonic() + 1.5
            left = dict.fromkeys(opened, content)
            while left and time.monotonic() < ends:
                for connection in select.select([], list(left), [], 0.1)[1]:
                    try:
                        left[connection] = left[connection][connection.send(left[connection]) :] or content
                    except BlockingIOError:
                        continue
                    except OSError:
                        del left[connection]
            return set()

    return attack


def repeated(request: bytes, *, clients: int, seconds: float = 1.5) -> Attack:
    """Connections that send a request, and the next one as soon as anything of the answer arrives."""

    def attack(server: Server) -> set[int]:
        received: set[int] = set()
        with contextlib.ExitStack() as stack:
            opened = {stack.enter_context(connected(server)) for _ in range(clients)}
            for connection in opened:
                connection.sendall(request)
            ends = time.monotonic() + seconds
            while opened and time.monotonic() < ends:
                for connection in select.select(opened, [], [], 0.1)[0]:
                    try:
                        received |= statuses(connection.recv(65536))
                        connection.sendall(request)
                    except OSError:
                        opened.remove(connection)
        return received

    return attack


def sent_again(body: bytes, *, clients: int = 8, addresses: int = 1, seconds: float = 1.5) -> Attack:
    """Clients of some addresses that send a body, and send it again once it was answered, whatever the answer."""
    request = POST + b"Content-Length: %d\r\n\r\n" % len(body) + body

    def attack(server: Server) -> set[int]:
        ends = time.monotonic() + seconds

        def send_again(client: int) -> set[int]:
            received: set[int] = set()
            while time.monotonic() < ends:
                with connected(server, f"127.0.0.{2 + client % addresses}") as connection:
                    send(connection, [request])
                    received |= statuses(receive(connection))
            return received

        with ThreadPoolExecutor(clients) as pool:
            return set().union(*pool.map(send_again, range(clients)))

    return attack


def held(sent: bytes, *, clients: int, seconds: float, received: int = 0) -> Attack:
    """Holds connections that sent the same and then do nothing."""

    def attack(server: Server) -> set[int]:
        with contextlib.ExitStack() as stack:
            for _ in range(clients):
                with contextlib.suppress(OSError):
                    stack.enter_context(connected(server, received=received)).sendall(sent)
            time.sleep(seconds)
        return set()

    return attack


def dribbled(request: bytes, times: int, *, clients: int, seconds: float) -> Attack:
    """Connections that send requests at once, and read a byte of the answers every tenth of a second."""

    def attack(server: Server) -> set[int]:
        with contextlib.ExitStack() as stack:
            opened = [stack.enter_context(connected(server, received=2048)) for _ in range(clients)]
            for connection in opened:
                connection.sendall(request * times)
            ends = time.monotonic() + seconds
            while time.monotonic() < ends:
                for connection in select.select(opened, [], [], 0)[0]:
                    with contextlib.suppress(OSError):
                        connection.recv(1)
                time.sleep(0.1)
        return set()

    return attack


def slow(start: bytes, piece: bytes, *, pause: float) -> Attack:
    """Sends the start at once, then a piece per pause, at most 200."""
    return sends(start, endless=piece, most=200 * len(piece), pause=pause)


def resets(sent: bytes, *, clients: int = 100) -> Attack:
    """Sends, and resets the connection at once."""

    def attack(server: Server) -> set[int]:
        for _ in range(clients):
            with connected(server) as connection:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                connection.sendall(sent)
        return set()

    return attack


def half_closed(sent: bytes) -> Attack:
    """Sends, and closes its own direction."""

    def attack(server: Server) -> set[int]:
        with connected(server) as connection:
            connection.sendall(sent)
            connection.shutdown(socket.SHUT_WR)
            return statuses(receive(connection))

    return attack


def bomb(size: int) -> bytes:
    return gzip.compress(b'{"instances": ["' + b"a" * size + b'"]}')
