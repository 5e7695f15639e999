"""The connections of gRPC, between the client and the library."""

from __future__ import annotations

import asyncio
import gc
import os
import secrets
import socket
import warnings
from typing import Any

import pytest
import uvloop

from goemotions.serving.limits import Limits
from goemotions.serving.relay import Relay, Relays


class _Leaving(Relay):
    """Its client leaves before the library has the connection."""

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        transport.abort()


@pytest.mark.fault("grpc-hostile-client")
def test_the_file_of_a_client_that_leaves_at_once_is_closed_once() -> None:
    # Closed a second time, it may be that of another connection: its client would lose it, and the event loop abort the process.
    async def run() -> None:
        name = f"goemotions-{secrets.token_hex(8)}"
        with socket.socket(socket.AF_UNIX) as library:
            library.bind(f"\0{name}")
            library.listen()
            relays = Relays(Limits(), name)
            server = await asyncio.get_running_loop().create_server(lambda: _Leaving(relays), "127.0.0.1", 0)
            for _ in range(20):
                reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
                assert await reader.read() == b""
                writer.close()
            await asyncio.sleep(0.05)
            server.close()

    before = len(os.listdir("/proc/self/fd"))
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        uvloop.run(run())
        gc.collect()
    assert [str(warning.message) for warning in seen if "socket" in str(warning.message)] == []
    # Event loops keep a few.
    assert len(os.listdir("/proc/self/fd")) < before + 10
