"""The open connections of this process, for servers whose library closes none that its clients hold open. Linux only."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import socket
from urllib.parse import unquote


def close(port: int, peer: str = "") -> int:
    """Closes the connections of a local port, or only that of one peer; returns how many.

    Args:
        port: the local port.
        peer: address and port of the other side as gRPC writes them, such as ``ipv4:127.0.0.1:5000`` or ``ipv6:%5B::1%5D:5000``.
    """
    return sum(_close(int(name), port, peer) for name in os.listdir("/proc/self/fd"))


def _close(descriptor: int, port: int, peer: str) -> bool:
    # The number may belong to another file a moment later, its duplicate not.
    try:
        duplicate = os.dup(descriptor)
    except OSError:
        return False
    try:
        connection = socket.socket(fileno=duplicate)
    except OSError:
        os.close(duplicate)
        return False
    with connection, contextlib.suppress(OSError):
        if connection.family in (socket.AF_INET, socket.AF_INET6) and connection.getsockname()[1] == port:
            address, remote = connection.getpeername()[:2]
            if not peer or (_normal(address), remote) == _parse(peer):
                connection.shutdown(socket.SHUT_RDWR)
                return True
    return False


def _parse(peer: str) -> tuple[str, int]:
    address, _, port = unquote(peer).partition(":")[2].rpartition(":")
    return _normal(address.strip("[]")), int(port)


def _normal(address: str) -> str:
    """An address in one form; a socket for both versions of IP shows those of version 4 within version 6."""
    parsed = ipaddress.ip_address(address)
    return str(getattr(parsed, "ipv4_mapped", None) or parsed)
