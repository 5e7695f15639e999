"""A small proxy that splits the requests of one machine between the servers of two versions, as a gateway does in a cluster.

``GET /-/shares`` returns the versions' servers and shares as JSON, ``PUT`` changes shares. Everything else is passed to a server,
chosen at random by the share of its version. For tests, demonstrations and measurements: no TLS, and bodies of known length only.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import re
import sys
from typing import Any
from urllib.parse import urlsplit

HEAD_BYTES = 64 * 1024
LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
Stream = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Proxy:
    """The proxy of servers, by the numbers of their versions; the stable one gets the traffic until shares are changed."""

    def __init__(self, stable: str, servers: dict[str, str], seed: int | None = None) -> None:
        self.shares: dict[str, Any] = {"stable": stable, "canary": "", "percent": 0, "servers": servers}
        self._random = random.Random(seed)  # nosec B311 # no secret
        self._idle: dict[str, list[Stream]] = {}

    async def serve(self, port: int = 0) -> asyncio.Server:
        """Listens on loopback."""
        return await asyncio.start_server(self._client, "127.0.0.1", port, limit=HEAD_BYTES)

    async def _client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            while True:
                head, body = await _message(reader)
                if head.split(b" ", 2)[1] == b"/-/shares":
                    if head.startswith(b"PUT"):
                        self.shares |= json.loads(body)
                    writer.write(_response(b"200 OK", self.shares))
                else:
                    writer.write(await self._pass_on(head + body))
                await writer.drain()
        writer.close()

    async def _pass_on(self, request: bytes) -> bytes:
        is_canary = self._random.random() * 100 < self.shares["percent"]
        version = self.shares["canary" if is_canary else "stable"]
        idle = self._idle.setdefault(version, [])
        # The server may have closed a connection that was idle: then a new one is opened.
        while idle:
            with contextlib.suppress(OSError, asyncio.IncompleteReadError):
                return await self._exchange(idle, idle.pop(), request)
        try:
            address = urlsplit(self.shares["servers"][version])
            stream = await asyncio.open_connection(address.hostname, address.port, limit=HEAD_BYTES)
            return await self._exchange(idle, stream, request)
        except (OSError, KeyError, asyncio.IncompleteReadError) as error:
            return _response(b"502 Bad Gateway", {"error": f"version {version}: {error}"})

    async def _exchange(self, idle: list[Stream], stream: Stream, request: bytes) -> bytes:
        stream[1].write(request)
        response = await _message(stream[0])
        idle.append(stream)
        return b"".join(response)


async def _message(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    """The head and the body of a request or response."""
    head = await reader.readuntil(b"\r\n\r\n")
    length = LENGTH.search(head)
    return head, await reader.readexactly(int(length[1])) if length else b""


def _response(status: bytes, content: Any) -> bytes:
    body = json.dumps(content).encode()
    return b"HTTP/1.1 %b\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (status, len(body), body)


async def _run(stable: str, servers: dict[str, str]) -> None:
    server = await Proxy(stable, servers).serve()
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    # The stable version, and number=address of each; prints its port.
    asyncio.run(_run(sys.argv[1], dict(argument.split("=", 1) for argument in sys.argv[2:])))  # type: ignore[arg-type]
