"""Requests in this process: who is to blame if a connection ends before its response, and how fast large bodies are refused."""

import asyncio
import contextlib
import gc
import re
import socket
import tracemalloc
from collections.abc import Awaitable, Callable

import pytest
import uvicorn
import uvloop
from prometheus_client import REGISTRY
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Message
from uvicorn.server import ServerState

from goemotions.errors import RequestError
from goemotions.serving.admission import connections as connections_of
from goemotions.serving.admission import listening
from goemotions.serving.admission.shares import Requests
from goemotions.serving.admission.turns import REFUSAL_SECONDS, SMALL_BYTES
from goemotions.serving.http.bodies import RequestLimiter
from goemotions.serving.http.connection import HttpConnection, HttpConnections
from goemotions.serving.limits import Limits
from goemotions.serving.service import handle


async def end_while_scored(end: Callable[[HttpConnections, asyncio.StreamWriter], None]) -> None:
    """Ends the connection of a request whose scores never come."""
    began, ended = asyncio.Event(), asyncio.Event()
    connections, limiter = HttpConnections(Limits()), RequestLimiter(Limits(), Requests(1))

    async def score(request: Request, body: bytes) -> Response:
        began.set()
        await asyncio.Event().wait()
        raise AssertionError

    async def respond(request: Request) -> Response:
        try:
            scoring: Awaitable[Response] = handle("test", limiter.handle(request, score))
            return await scoring
        except RequestError as error:
            return Response(status_code=error.status)
        finally:
            ended.set()

    config = uvicorn.Config(Starlette(routes=[Route("/", respond, methods=["POST"])]), log_config=None, lifespan="off")
    config.load()
    loop, state = asyncio.get_running_loop(), ServerState()
    async with await loop.create_server(lambda: connections(config, state, {}, loop), "127.0.0.1", 0) as server:
        _, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        writer.write(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\n{}")
        await began.wait()
        end(connections, writer)
        await asyncio.wait_for(ended.wait(), 10)
        writer.close()


@pytest.mark.fault("server-drain", "server-blame")
@pytest.mark.parametrize(
    ("end", "outcome"),
    [
        (lambda connections, writer: connections.end_within(0), "server"),
        (lambda connections, writer: writer.close(), "client"),
    ],
    ids=["at the deadline of the drain", "by the client"],
)
def test_a_request_that_ends_without_scores_counts_against_who_ended_it(
    end: Callable[[HttpConnections, asyncio.StreamWriter], None], outcome: str
) -> None:
    labels = {"protocol": "test", "outcome": outcome}
    before = REGISTRY.get_sample_value("goemotions_requests_total", labels) or 0
    asyncio.run(end_while_scored(end))
    assert REGISTRY.get_sample_value("goemotions_requests_total", labels) == before + 1


@pytest.mark.fault("server-greedy-client")
def test_large_bodies_are_refused_one_after_the_other() -> None:
    size = SMALL_BYTES + 1

    async def refuse(request: Request, body: bytes) -> Response:
        raise RequestError("the queue is full", 429, retry_after=1)

    async def run() -> list[float]:
        limiter, loop = RequestLimiter(Limits(), Requests(5)), asyncio.get_running_loop()

        async def receive() -> Message:
            return {"type": "http.request", "body": b"a" * size}

        async def refused_after() -> float:
            scope = {"type": "http", "method": "POST", "headers": [(b"content-length", b"%d" % size)], "state": {}}
            with pytest.raises(RequestError, match="full"):
                await limiter.handle(Request(scope, receive), refuse)
            return loop.time() - started

        started = loop.time()
        return await asyncio.gather(*(refused_after() for _ in range(5)))

    for number, after in enumerate(sorted(asyncio.run(run())), 1):
        assert after >= number * REFUSAL_SECONDS


@pytest.mark.fault("server-greedy-client")
def test_large_bodies_take_no_memory_while_they_wait_for_their_refusals() -> None:
    size, count = 2**20, 20

    async def run() -> int:
        limiter = RequestLimiter(Limits(), Requests(1))

        async def refuse(request: Request, body: bytes) -> Response:
            raise RequestError("the queue is full", 429, retry_after=1)

        async def receive() -> Message:
            return {"type": "http.request", "body": bytes(size)}

        async def send() -> None:
            scope = {"type": "http", "method": "POST", "headers": [(b"content-length", b"%d" % size)], "state": {}}
            with pytest.raises(RequestError):
                await limiter.handle(Request(scope, receive), refuse)

        sent = [asyncio.create_task(send()) for _ in range(count)]
        await asyncio.sleep(REFUSAL_SECONDS / 2)
        taken, _ = tracemalloc.get_traced_memory()
        await asyncio.gather(*sent)
        return taken

    tracemalloc.start()
    try:
        assert asyncio.run(run()) < count * size / 4
    finally:
        tracemalloc.stop()


@pytest.mark.fault("server-greedy-client")
def test_an_address_whose_bodies_take_all_memory_leaves_room_for_those_of_another() -> None:
    size = SMALL_BYTES + 1

    async def run() -> tuple[int, int]:
        limiter, ended = RequestLimiter(Limits(total_bytes=4 * size), Requests(100)), asyncio.Event()

        async def respond(request: Request, body: bytes) -> Response:
            assert request.client is not None
            if request.client.host == "greedy":
                await ended.wait()
            return Response()

        async def receive() -> Message:
            return {"type": "http.request", "body": b"a" * size}

        async def send(address: str) -> int:
            headers = [(b"content-length", b"%d" % size)]
            scope = {"type": "http", "method": "POST", "headers": headers, "state": {}, "client": (address, 1)}
            try:
                return (await limiter.handle(Request(scope, receive), respond)).status_code
            except RequestError as error:
                return error.status

        greedy = [asyncio.create_task(send("greedy")) for _ in range(5)]
        refused, _ = await asyncio.wait(greedy, return_when=asyncio.FIRST_COMPLETED)
        other = await send("other")
        ended.set()
        await asyncio.gather(*greedy)
        return refused.pop().result(), other

    assert asyncio.run(run()) == (429, 200)


@pytest.mark.fault("server-greedy-client")
def test_a_body_that_still_arrives_gives_way_to_none_of_an_address_that_holds_more() -> None:
    size = SMALL_BYTES + 1

    async def run() -> list[int]:
        limiter, rest = RequestLimiter(Limits(total_bytes=6 * size), Requests(100)), asyncio.Event()

        async def respond(request: Request, body: bytes) -> Response:
            return Response()

        async def send(address: str, most: int) -> int:
            started = False

            async def receive() -> Message:
                nonlocal started
                if started:
                    await rest.wait()
                part, started = (b"a" if started else b"a" * (most - 1)), True
                return {"type": "http.request", "body": part, "more_body": len(part) > 1}

            headers = [(b"content-length", b"%d" % most)]
            scope = {"type": "http", "method": "POST", "headers": headers, "state": {}, "client": (address, 1)}
            try:
                return (await limiter.handle(Request(scope, receive), respond)).status_code
            except RequestError as error:
                return error.status

        bodies = []
        for address, most in [("other", size + 1), ("other", size + 1), ("greedy", 3 * size), ("greedy", 3 * size)]:
            bodies.append(asyncio.create_task(send(address, most)))
            await asyncio.sleep(0)
        await asyncio.sleep(0.1)
        rest.set()
        return await asyncio.gather(*bodies)

    # None was too slow: the server has no room for all.
    assert asyncio.run(run()) == [200, 200, 429, 200]


@pytest.mark.fault("server-greedy-client")
def test_a_large_body_does_not_wait_for_all_those_of_another_address_to_be_parsed() -> None:
    parsed: list[str] = []

    async def run() -> None:
        limiter = RequestLimiter(Limits(), Requests(100))

        async def parse(address: str) -> None:
            request = Request({"type": "http", "client": (address, 1)})
            await limiter.parse(request, b"a" * (SMALL_BYTES + 1), lambda body: parsed.append(address))

        await asyncio.gather(*(parse(address) for address in ["greedy"] * 50 + ["other"]))

    asyncio.run(run())
    assert len(parsed) == 51
    assert parsed.index("other") <= 2


REQUEST = b"POST / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: 200000\r\n\r\n" + b" " * 200_000


async def responses_beyond_the_limit() -> list[bytes]:
    """The first lines of the responses to one more connection than an address may have, to those that it has, to a later one, and to
    that which gave way to it."""

    async def respond(request: Request) -> Response:
        await request.body()
        return Response()

    config = uvicorn.Config(Starlette(routes=[Route("/", respond, methods=["POST"])]), log_config=None, lifespan="off")
    config.load()
    loop, state, connections = asyncio.get_running_loop(), ServerState(), HttpConnections(Limits(peer_connections=2))
    port = listening.bind("127.0.0.1", 0, "--port")
    listener = listening.Listener(port, lambda: connections(config, state, {}, loop), connections, connections.turns)

    async def opened(count: int) -> list[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        streams = [await asyncio.open_connection(*port.getsockname()) for _ in range(count)]
        await asyncio.sleep(0.1)
        return streams

    async def respond_to(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
        writer.write(REQUEST)
        response = await asyncio.wait_for(reader.read(), 10)
        writer.close()
        return response.partition(b"\r\n")[0]

    streams = await opened(2)
    beyond = await respond_to(*(await opened(1))[0])
    within = [await respond_to(*one) for one in streams]
    idle = await opened(2)
    await asyncio.sleep(2 * connections_of.GRACE_SECONDS)
    later = await respond_to(*(await opened(1))[0])
    gave_way = await respond_to(*idle[0])
    idle[1][1].close()
    listener.close()
    return [beyond, *within, later, gave_way]


@pytest.mark.fault("server-overload")
def test_a_connection_beyond_those_of_its_address_reads_why_and_replaces_none_that_may_carry_a_request(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(connections_of, "GRACE_SECONDS", 0.5)
    ok = b"HTTP/1.1 200 OK"
    too_many = b"HTTP/1.1 429 Too Many Requests"
    assert asyncio.run(responses_beyond_the_limit()) == [too_many, ok, ok, ok, too_many]


GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
POST = b"POST / HTTP/1.1\r\nContent-Length: 6\r\nHost: a\r\n%s\r\n\r\n\r\nb\r"
CHUNKS = (
    b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n4\r\n\r\n\r\n\r\n1;a=b\r\nc\r\n0\r\nTrailer: a\r\n\r\n"
)
UPGRADE = b"Connection: Upgrade\r\nUpgrade: h2c\r\n"


@pytest.mark.parametrize(("size", "following"), [(1, b""), (3, b""), (50, b""), (10_000, POST % b"")])
def test_pipelined_requests_get_their_own_responses_in_order_wherever_what_is_sent_is_cut(size: int, following: bytes) -> None:
    # The connection is closed after the request for another protocol.
    sent = GET + POST % b"" + b"\r\n" + CHUNKS + GET + CHUNKS + b"\r\n\r\n" + POST % b"" + POST % UPGRADE + following

    async def respond(request: Request) -> Response:
        return Response(b"<%b>" % await request.body())

    async def run() -> bytes:
        config = uvicorn.Config(
            Starlette(routes=[Route("/", respond, methods=["GET", "POST"])]), log_config=None, lifespan="off"
        )
        config.load()
        loop, state, connections = asyncio.get_running_loop(), ServerState(), HttpConnections(Limits())
        async with await loop.create_server(lambda: connections(config, state, {}, loop), "127.0.0.1", 0) as server:
            reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
            for start in range(0, len(sent), size):
                writer.write(sent[start : start + size])
                await asyncio.sleep(0)
            received = await asyncio.wait_for(reader.read(), 10)
            writer.close()
        return received

    posted, chunks = b"<\r\n\r\nb\r>", b"<\r\n\r\nc>"
    bodies = [b"<>", posted, chunks, b"<>", chunks, posted, posted]
    assert re.findall(rb"<[^>]*>", uvloop.run(run())) == bodies


LIVE = b"GET /v2/health/live HTTP/1.1\r\nHost: a\r\n\r\n"


async def probes_while_nobody_has_a_turn() -> list[bytes]:
    """The responses to a probe on an open connection, on a new one, and to a new one that is not ready."""

    async def never(scope: object, receive: object, send: object) -> None:
        raise AssertionError

    config = uvicorn.Config(never, log_config=None, lifespan="off")
    config.load()
    loop, state, connections = asyncio.get_running_loop(), ServerState(), HttpConnections(Limits())
    connections.health = {b"live": lambda: True, b"ready": lambda: False}
    port = listening.bind("127.0.0.1", 0, "--port")
    listener = listening.Listener(port, lambda: connections(config, state, {}, loop), connections, connections.turns)
    streams = [await asyncio.open_connection(*port.getsockname())]
    await asyncio.sleep(0.1)
    connections.turns.most = 0
    while connections.turns.has_room("other"):
        pass
    streams[0][1].write(LIVE)
    for probe in (LIVE, LIVE.replace(b"live", b"ready")):
        client = socket.create_connection(port.getsockname())
        client.sendall(probe)
        streams.append(await asyncio.open_connection(sock=client))
    responses = [await asyncio.wait_for(reader.read(), 10) for reader, _ in streams]
    for _, writer in streams:
        writer.close()
    listener.close()
    return responses


@pytest.mark.fault("server-overload")
def test_a_probe_of_the_health_does_not_wait_for_its_turn() -> None:
    responses = [response.split(b"\r\n") for response in asyncio.run(probes_while_nobody_has_a_turn())]
    assert [(lines[0], lines[-1]) for lines in responses] == [
        *[(b"HTTP/1.1 200 OK", b'{"live":true}')] * 2,
        (b"HTTP/1.1 503 Service Unavailable", b'{"ready":false}'),
    ]


async def probe_that_is_sent_late() -> tuple[bytes, bytes]:
    """The responses to a probe and to another request, whose connections are too many and which are sent a moment after those."""

    async def respond(scope: object, receive: object, send: object) -> None:
        raise AssertionError

    config = uvicorn.Config(respond, log_config=None, lifespan="off")
    config.load()
    loop, state, connections = asyncio.get_running_loop(), ServerState(), HttpConnections(Limits(peer_connections=0))
    connections.health = {b"live": lambda: True}
    port = listening.bind("127.0.0.1", 0, "--port")
    listener = listening.Listener(port, lambda: connections(config, state, {}, loop), connections, connections.turns)
    responses = []
    for sent in (LIVE, LIVE.replace(b"live", b"other")):
        reader, writer = await asyncio.open_connection(*port.getsockname())
        await asyncio.sleep(0.02)
        writer.write(sent)
        responses.append((await asyncio.wait_for(reader.read(), 10)).partition(b"\r\n")[0])
        writer.close()
    listener.close()
    return responses[0], responses[1]


@pytest.mark.fault("server-overload")
def test_a_probe_is_answered_if_its_connection_is_too_many_and_it_arrives_after_that() -> None:
    assert asyncio.run(probe_that_is_sent_late()) == (b"HTTP/1.1 200 OK", b"HTTP/1.1 429 Too Many Requests")


@pytest.mark.fault("server-overload")
@pytest.mark.parametrize("sent", [b"", b"nonsense\r\n\r\n", REQUEST, REQUEST[:200]], ids=["nothing", "nonsense", "all", "part"])
def test_a_closed_connection_leaves_nothing_for_the_garbage_collector(sent: bytes) -> None:
    """It stops all requests, for up to a tenth of a second after a flood of connections."""

    async def respond(request: Request) -> Response:
        with contextlib.suppress(ClientDisconnect):
            await request.body()
        return Response()

    async def run() -> int:
        config = uvicorn.Config(Starlette(routes=[Route("/", respond, methods=["POST"])]), log_config=None, lifespan="off")
        config.load()
        loop, state, connections = asyncio.get_running_loop(), ServerState(), HttpConnections(Limits())
        async with await loop.create_server(lambda: connections(config, state, {}, loop), "127.0.0.1", 0) as server:
            for _ in range(3):
                _, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
                writer.write(sent)
                await asyncio.sleep(0.05)
                writer.close()
            await asyncio.sleep(0.05)
        return sum(type(one) is HttpConnection for one in gc.get_objects())

    gc.collect()
    gc.disable()
    try:
        assert uvloop.run(run()) == 0
    finally:
        gc.enable()
