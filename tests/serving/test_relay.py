"""The connections of gRPC, between the client and the library."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import secrets
import socket
import warnings
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import uvloop
from prometheus_client import REGISTRY

from goemotions.serving import listening
from goemotions.serving.limits import Limits
from goemotions.serving.relay import CALLS, FEW_CALLS, FRAMES_BESIDE_CALLS, RESET_SECONDS, RESETS, Relay, Relays
from tests.support.http2 import (
    ACK,
    DATA,
    END_HEADERS,
    GOAWAY,
    HEADERS,
    PING,
    PREFACE,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    frame,
    headers,
    settings,
)


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

    # Those of other tests.
    gc.collect()
    before = len(os.listdir("/proc/self/fd"))
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        uvloop.run(run())
        gc.collect()
    assert [str(warning.message) for warning in seen if "socket" in str(warning.message)] == []
    # Event loops keep a few.
    assert len(os.listdir("/proc/self/fd")) < before + 10


START = PREFACE + settings() + frame(SETTINGS, ACK)
CANCEL = (8).to_bytes(4, "big")


class Library:
    """A stand-in for the library: notes the connection and stream of each call that it gets, and begins the call if it ``begins``."""

    def __init__(self, begins: bool) -> None:
        self._begins = begins
        self.calls: list[tuple[int, int]] = []
        self._connections = 0

    async def run(self, test: Callable[[Callable[[], Awaitable[Any]]], Awaitable[None]]) -> None:
        """Runs a test with a function that connects a client."""
        name = f"goemotions-{secrets.token_hex(8)}"
        self._relays = Relays(Limits(), name)
        library = await asyncio.start_unix_server(self._serve, f"\0{name}")
        port = await asyncio.get_running_loop().create_server(lambda: Relay(self._relays), "127.0.0.1", 0)
        async with library, port:
            await test(lambda: asyncio.open_connection(*port.sockets[0].getsockname()))

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        number = self._connections
        self._connections += 1
        writer.write(settings())
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            await reader.readexactly(len(PREFACE))
            while True:
                head = await reader.readexactly(9)
                await reader.readexactly(int.from_bytes(head[:3], "big"))
                if head[3] == HEADERS:
                    self.calls.append((number, int.from_bytes(head[5:], "big")))
                    if self._begins:
                        asyncio.get_running_loop().call_soon(self._relays.turns.begin)
        writer.close()

    async def has(self, count: int) -> None:
        async with asyncio.timeout(20):
            while len(self.calls) < count:
                await asyncio.sleep(0.001)


def call(stream: int) -> bytes:
    return frame(HEADERS, END_HEADERS, stream, headers())


def reset(stream: int) -> bytes:
    return frame(RST_STREAM, 0, stream, CANCEL)


@pytest.mark.fault("grpc-resets")
def test_a_call_waits_for_few_of_the_calls_that_others_sent_before() -> None:
    library, floods, each = Library(begins=True), 4, 500

    async def test(connect: Callable[[], Awaitable[Any]]) -> None:
        for _ in range(floods):
            _, writer = await connect()
            writer.write(START + b"".join(call(stream) + reset(stream) for stream in range(1, 2 * each, 2)))
        await library.has(floods * FEW_CALLS)
        _, writer = await connect()
        writer.write(START)
        before = len(library.calls)
        writer.write(call(1))
        async with asyncio.timeout(20):
            while (floods, 1) not in library.calls:
                await asyncio.sleep(0.001)
        assert library.calls.index((floods, 1)) - before < floods * each / 4
        await library.has(floods * each + 1)

    uvloop.run(library.run(test))


@pytest.mark.fault("grpc-resets")
def test_calls_that_the_library_rejects_itself_hold_up_the_others_for_a_moment() -> None:
    library, count = Library(begins=False), 2 * CALLS

    async def test(connect: Callable[[], Awaitable[Any]]) -> None:
        _, writer = await connect()
        writer.write(START + b"".join(call(stream) for stream in range(1, 2 * count, 2)))
        await library.has(1)
        assert len(library.calls) <= CALLS
        await library.has(count)

    uvloop.run(library.run(test))


@pytest.mark.fault("grpc-resets")
@pytest.mark.parametrize("at_once", [True, False])
def test_a_client_is_closed_if_it_resets_many_calls_at_once_but_not_if_it_cancels_as_many_later(at_once: bool) -> None:
    library, batch, names = Library(begins=True), 100, ("goemotions_rejected_requests_total", {"reason": "flood"})
    before = REGISTRY.get_sample_value(*names) or 0

    async def test(connect: Callable[[], Awaitable[Any]]) -> None:
        reader, writer = await connect()
        writer.write(START)
        for first in range(1, 2 * 2 * RESETS, 2 * batch):
            streams = range(first, first + 2 * batch, 2)
            if at_once:
                writer.write(b"".join(call(stream) + reset(stream) for stream in streams))
                continue
            writer.write(b"".join(map(call, streams)))
            await library.has(streams[-1] // 2 + 1)
            await asyncio.sleep(2 * RESET_SECONDS)
            writer.write(b"".join(map(reset, streams)))
        if at_once:
            with contextlib.suppress(ConnectionError):
                while await asyncio.wait_for(reader.read(65536), 10):
                    pass
            assert len(library.calls) >= RESETS
            return
        writer.write(call(2 * 2 * RESETS + 1))
        await library.has(2 * RESETS + 1)

    uvloop.run(library.run(test))
    assert REGISTRY.get_sample_value(*names) == before + at_once


@pytest.mark.fault("grpc-resets")
@pytest.mark.parametrize(
    "part",
    [
        frame(DATA, 0, 1, b"a") + frame(PING, payload=bytes(8)) * 50,
        frame(DATA, 0, 1, b"a") + frame(WINDOW_UPDATE, payload=(1).to_bytes(4, "big")) * 50,
        frame(DATA, 0, 1, b"a") * 50,
    ],
    ids=["pings", "window updates", "data of one byte"],
)
def test_a_flood_of_frames_is_one_also_with_some_data_between_them(part: bytes) -> None:
    names = ("goemotions_rejected_requests_total", {"reason": "flood"})
    before = REGISTRY.get_sample_value(*names) or 0

    async def test(connect: Callable[[], Awaitable[Any]]) -> None:
        reader, writer = await connect()
        writer.write(START + call(1) + part * (2 * FRAMES_BESIDE_CALLS // 50))
        with contextlib.suppress(ConnectionError):
            await received(reader)

    uvloop.run(Library(begins=True).run(test))
    assert REGISTRY.get_sample_value(*names) == before + 1


def closing(received: bytes) -> list[tuple[int, int, bytes]]:
    """The last stream, the error and the reason of each GOAWAY in what a client received, which is complete frames."""
    seen, position = list[tuple[int, int, bytes]](), 0
    while position < len(received):
        end = position + 9 + int.from_bytes(received[position : position + 3], "big")
        payload = received[position + 9 : end]
        if received[position + 3] == GOAWAY:
            seen.append((int.from_bytes(payload[:4], "big"), int.from_bytes(payload[4:8], "big"), payload[8:]))
        position = end
    assert position == len(received)
    return seen


async def received(reader: asyncio.StreamReader) -> bytes:
    return await asyncio.wait_for(reader.read(), 20)


@pytest.mark.fault("grpc-hostile-client")
@pytest.mark.parametrize(
    ("sent", "last", "error", "reason"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", 0, 1, b"malformed"),
        (PREFACE + frame(DATA, 0, 1), 0, 1, b"malformed"),
        (START + call(1) + b"".join(frame(SETTINGS, ACK) for _ in range(5000)), 1, 11, b"flood"),
    ],
    ids=["another protocol", "no settings", "a flood after a call"],
)
def test_a_client_reads_why_its_connection_is_closed(sent: bytes, last: int, error: int, reason: bytes) -> None:
    async def test(connect: Callable[[], Awaitable[Any]]) -> None:
        reader, writer = await connect()
        writer.write(sent)
        assert closing(await received(reader)) == [(last, error, reason)]

    uvloop.run(Library(begins=True).run(test))


@pytest.mark.fault("server-overload")
def test_a_connection_too_many_is_told_so_and_none_is_closed_within_a_frame() -> None:
    async def run() -> None:
        relays = Relays(Limits(peer_connections=1), f"goemotions-{secrets.token_hex(8)}")
        port = listening.bind("127.0.0.1", 0, "")
        library = await asyncio.start_unix_server(half_a_frame, f"\0{relays.name}")
        async with library:
            relays.listen(port)
            first, _ = await asyncio.open_connection(*port.getsockname())
            await asyncio.sleep(0.1)
            second, _ = await asyncio.open_connection(*port.getsockname())
            assert closing(await received(second)) == [(0, 11, b"the server has too many connections")]
            await relays.close()
            with contextlib.suppress(ConnectionError):
                assert await received(first) == settings() + frame(DATA, 0, 1, bytes(100))[:50]

    uvloop.run(run())


async def half_a_frame(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(settings() + frame(DATA, 0, 1, bytes(100))[:50])
    await reader.read()
    writer.close()
