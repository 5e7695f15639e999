"""The open connections of this process, for servers whose library closes none that its clients hold open. Linux only."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import socket
from collections.abc import Collection, Iterator
from urllib.parse import unquote

Peer = tuple[str, int]


def peers(port: int) -> set[Peer]:
    """Address and port of the other side of each connection of a local port."""
    return {peer for _, peer in _connected(port)}


def close(port: int, closed: Collection[Peer] | None = None) -> None:
    """Closes the connections of a local port, all or only those with some peers."""
    for connection, peer in _connected(port):
        if closed is None or peer in closed:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)


def parse(peer: str) -> Peer:
    """A peer as gRPC writes it: ``ipv4:127.0.0.1:5000`` or ``ipv6:%5B::1%5D:5000``."""
    address, _, port = unquote(peer).partition(":")[2].rpartition(":")
    return _normal(address.strip("[]")), int(port)


def _connected(port: int) -> Iterator[tuple[socket.socket, Peer]]:
    for name in os.listdir("/proc/self/fd"):
        # The number may belong to another file a moment later, its duplicate not.
        with contextlib.suppress(OSError), _duplicate(int(name)) as connection:
            if connection.family in (socket.AF_INET, socket.AF_INET6) and connection.getsockname()[1] == port:
                address, remote = connection.getpeername()[:2]
                yield connection, (_normal(address), remote)


def _duplicate(descriptor: int) -> socket.socket:
    duplicate = os.dup(descriptor)
    try:
        return socket.socket(fileno=duplicate)
    except OSError:
        os.close(duplicate)
        raise


def _normal(address: str) -> str:
    """An address in one form; a socket for both versions of IP shows those of version 4 within version 6."""
    parsed = ipaddress.ip_address(address)
    return str(getattr(parsed, "ipv4_mapped", None) or parsed)
