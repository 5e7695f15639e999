"""Connections in this process: who is to blame if one ends before its response."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest
import uvicorn
from prometheus_client import REGISTRY
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from uvicorn.server import ServerState

from goemotions.errors import RequestError
from goemotions.serving.bodies import RequestLimiter
from goemotions.serving.http import Connections
from goemotions.serving.limits import Limits
from goemotions.serving.service import handle


async def end_while_scored(end: Callable[[Connections, asyncio.StreamWriter], None]) -> None:
    """Ends the connection of a request whose scores never come."""
    began, ended = asyncio.Event(), asyncio.Event()
    connections, limiter = Connections(Limits()), RequestLimiter(Limits())

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
    end: Callable[[Connections, asyncio.StreamWriter], None], outcome: str
) -> None:
    labels = {"protocol": "test", "outcome": outcome}
    before = REGISTRY.get_sample_value("goemotions_requests_total", labels) or 0
    asyncio.run(end_while_scored(end))
    assert REGISTRY.get_sample_value("goemotions_requests_total", labels) == before + 1
