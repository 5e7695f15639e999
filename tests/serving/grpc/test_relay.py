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

from goemotions.serving.admission import listening
from goemotions.serving.admission.turns import CALLS, FEW_CALLS
from goemotions.serving.grpc.frames import FRAMES_BESIDE_CALLS, RESET_SECONDS, RESETS
from goemotions.serving.grpc.relay import LAST_SECONDS, Relay, Relays
from goemotions.serving.limits import Limits
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
    message,
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
    """A stand-in for the library: notes connection and stream of each call that it gets, begins it if it ``begins``, and answers."""

    def __init__(self, begins: bool, answer: Callable[[int], bytes] = lambda stream: b"", limits: Limits | None = None) -> None:
        self._begins, self._answer, self._limits = begins, answer, limits or Limits()
        self._has_ended = False
        self.calls: list[tuple[int, int]] = []
        self._connections = 0

    async def run(self, test: Callable[[Callable[[], Awaitable[Any]]], Awaitable[None]]) -> None:
        """Runs a test with a function that connects a client."""
        name = f"goemotions-{secrets.token_hex(8)}"
        self.relays = Relays(self._limits, name)
        library = await asyncio.start_unix_server(self._serve, f"\0{name}")
        port = await asyncio.get_running_loop().create_server(lambda: Relay(self.relays), "127.0.0.1", 0)
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
                    writer.write(self._answer(self.calls[-1][1]))
                    if self._begins:
                        asyncio.get_running_loop().call_soon(self.relays.turns.begin)
                    if self._has_ended:
                        await asyncio.sleep(0.05)
                        break
        writer.transport.abort()

    def end(self) -> None:
        """Closes each connection after its next call, whatever it has not read."""
        self._has_ended = True

    async def has(self, count: int) -> None:
        async with asyncio.timeout(20):
            while len(self.calls) < count:
                await asyncio.sleep(0.001)


def call(stream: int) -> bytes:
    return frame(HEADERS, END_HEADERS, stream, headers())


def reset(stream: int) -> bytes:
    return frame(RST_STREAM, 0, stream, CANCEL)


@pytest.mark.fault("grpc-hostile-client")
@pytest.mark.parametrize("sent", [b"", START, START + call(1), b"nonsense" * 10], ids=["nothing", "start", "call", "nonsense"])
def test_a_closed_connection_leaves_nothing_for_the_garbage_collector(sent: bytes) -> None:
    async def test(connect: Callable[[], Awaitable[Any]]) -> None:
        for _ in range(3):
            _, writer = await connect()
            writer.write(sent)
            await asyncio.sleep(0.05)
            writer.close()
        await asyncio.sleep(3 * LAST_SECONDS)
        assert not any(type(one) is Relay for one in gc.get_objects())

    gc.collect()
    gc.disable()
    try:
        uvloop.run(Library(begins=True).run(test))
    finally:
        gc.enable()


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


def grown(name: str, before: dict[str, float] | None = None) -> dict[str, float]:
    """A metric by its reasons: its values, or those that have grown since before, and by how much."""
    samples = (
        sample for metric in REGISTRY.collect() for sample in metric.samples if sample.name == f"goemotions_{name}_total"
    )
    now = {sample.labels["reason"]: sample.value for sample in samples}
    if before is None:
        return now
    return {reason: value - before.get(reason, 0) for reason, value in now.items() if value > before.get(reason, 0)}


@pytest.mark.fault("grpc-resets")
@pytest.mark.parametrize(
    ("error", "reason"),
    [(1, ""), (2, "malformed"), (7, "flood")],
    ids=["a frame that is wrong", "no head of a call", "calls beyond the limit"],
)
def test_calls_that_a_client_makes_the_library_reset_are_counted_and_close_its_connection(error: int, reason: str) -> None:
    library = Library(True, lambda stream: frame(RST_STREAM, 0, stream, error.to_bytes(4, "big")))
    before = grown("rejected_requests")

    async def test(connect: Callable[[], Awaitable[Any]]) -> None:
        reader, writer = await connect()
        writer.write(START + b"".join(call(stream) for stream in range(1, 4 * RESETS, 2)))
        # A client that has sent more than was read may get a reset in place of the reason.
        with contextlib.suppress(ConnectionResetError):
            ((_, code, why),) = closing(await received(reader))
            assert (code, why) == (11, b"flood")

    uvloop.run(library.run(test))
    counted = grown("rejected_requests", before)
    assert counted.pop("flood") >= (RESETS if reason == "flood" else 1)
    assert not reason or reason == "flood" or counted.pop(reason) >= RESETS
    assert not counted


@pytest.mark.fault("server-blame")
@pytest.mark.parametrize("start", [b"", frame(DATA, 0, 1)], ids=["at once", "after an empty frame"])
def test_a_message_that_expands_too_far_is_counted_as_too_large_when_its_call_ends_before_the_answer_is_read(
    start: bytes,
) -> None:
    library, answer = Library(begins=True), b"\x00\x0cgrpc-message$Decompressed message larger than max"

    async def test(connect: Callable[[], Awaitable[Any]]) -> None:
        _, writer = await connect()
        writer.write(START + call(1) + start + frame(DATA, 0, 1, message(b"", length=9, compressed=True)))
        await library.has(1)
        await asyncio.sleep(0.05)
        (relay,) = library.relays.open
        asked = asyncio.create_task(relay.status_of_ended())
        await asyncio.sleep(0.01)
        relay.note_response(frame(HEADERS, END_HEADERS | 1, 1, answer))
        assert await asked == 413
        assert await relay.status_of_ended() == 400

    uvloop.run(library.run(test))


@pytest.mark.fault("grpc-resets")
def test_calls_that_are_answered_before_their_clients_have_sent_all_are_no_flood() -> None:
    library = Library(
        True, lambda stream: frame(HEADERS, END_HEADERS | 1, stream, b"\x88") + frame(RST_STREAM, 0, stream, bytes(4))
    )
    before = grown("rejected_requests")

    async def test(connect: Callable[[], Awaitable[Any]]) -> None:
        reader, writer = await connect()
        writer.write(START)
        for first in range(1, 4 * RESETS, 200):
            writer.write(b"".join(call(stream) for stream in range(first, first + 200, 2)))
            await library.has(first // 2 + 100)
            await reader.read(65536)
        writer.write(call(4 * RESETS + 1))
        await library.has(2 * RESETS + 1)

    uvloop.run(library.run(test))
    assert not grown("rejected_requests", before)


def goodbye(error: int, reason: bytes) -> bytes:
    return frame(GOAWAY, payload=bytes(4) + error.to_bytes(4, "big") + reason)


@pytest.mark.fault("server-blame", "grpc-hostile-client")
@pytest.mark.parametrize(
    ("sent", "last", "reason"),
    [
        (b"", b"", "malformed"),
        (b"", goodbye(11, b"too_many_pings"), "flood"),
        (b"", goodbye(11, b"ping_timeout"), "slow"),
        (b"", goodbye(0, b"max_age"), ""),
        (goodbye(0, b""), b"", ""),
    ],
    ids=["at once", "pings", "no pongs", "for its age", "after its client has said so"],
)
def test_a_connection_that_the_library_closes_for_what_its_client_sent_is_counted(
    sent: bytes, last: bytes, reason: str
) -> None:
    library = Library(True, lambda stream: last)
    before = grown("closed_connections"), grown("rejected_requests")

    async def test(connect: Callable[[], Awaitable[Any]]) -> None:
        reader, writer = await connect()
        writer.write(START + sent + call(1))
        library.end()
        seen = closing(await received(reader))
        assert [why for _, _, why in seen][-1:] == ([reason.encode()] if reason else [last[17:]] if last else [])

    uvloop.run(library.run(test))
    assert grown("closed_connections", before[0]) == grown("rejected_requests", before[1]) == ({reason: 1} if reason else {})


@pytest.mark.fault("grpc-hostile-client")
@pytest.mark.parametrize("last", [b"", goodbye(0, b"max_age")], ids=["at once", "with a goodbye"])
def test_no_connection_is_left_whose_client_does_not_read_when_the_library_closes_it(last: bytes) -> None:
    data = frame(DATA, 0, 1, bytes(16384)) * 1000
    library = Library(True, lambda stream: last + data, Limits(write_seconds=0.5))

    async def test(connect: Callable[[], Awaitable[Any]]) -> None:
        _, writer = await connect()
        writer.transport.pause_reading()
        library.end()
        writer.write(START + call(1))
        await library.has(1)
        (relay,) = library.relays.open
        async with asyncio.timeout(20):
            while not relay.transport.is_closing():
                writer.write(frame(PING, payload=bytes(8)))
                await asyncio.sleep(0.05)
            while library.relays.open:
                await asyncio.sleep(0.05)
        writer.transport.abort()

    uvloop.run(library.run(test))


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
