"""The bodies of inference requests over HTTP: limits while they arrive, clients that leave, and parsing off the event loop."""

from __future__ import annotations

import asyncio
import functools
import zlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from goemotions.errors import RequestError
from goemotions.serving.admission.shares import Arriving, Requests, Shares
from goemotions.serving.admission.turns import SMALL_BYTES, FairThread, Refusals
from goemotions.serving.http.openapi import JSON
from goemotions.serving.limits import Limits
from goemotions.serving.metrics import CLIENT_GONE, COUNTED
from goemotions.serving.protocols.openinference import BINARY_HEADER

BINARY = "application/octet-stream"
COMPRESSIONS = ("gzip", "deflate")
# https://www.rfc-editor.org/rfc/rfc9110#section-8.4.1.3
OTHER_GZIP = "x-gzip"
# Before the least rate applies.
GRACE_SECONDS = 2.0
# What a connection writes into the state of a request: whether the body is complete, whether the connection has ended, whether it has
# refused the rest of the request and counted that, and whether the server ended it, through no fault of the client. And what it reads
# there: the task to cancel when it ends.
HAS_BODY, HAS_ENDED, IS_REFUSED = "has-body", "has-ended", "is-refused"
CLOSED_BY_SERVER, HANDLING = "closed-by-server", "handling"
Parsed = TypeVar("Parsed")
# An inference request and its body, to the response.
Handler = Callable[[Request, bytes], Awaitable[Response]]


class RequestLimiter:
    """Limits the number of inference requests at once, and the number, size, memory and duration of their bodies.

    Bodies that still arrive take no place from requests that are scored. If there are too many of them, or they take too much memory,
    that of the address with most which has arrived for longest is rejected, as by an overload: it may come at the usual speed.
    """

    def __init__(self, limits: Limits, requests: Requests) -> None:
        self._limits = limits
        self._requests = requests
        self._bytes = Shares(limits.total_bytes)
        self._refusals = Refusals()
        self._parser = FairThread("parser")
        # The timeouts of the bodies that arrive.
        self._arriving = Arriving()

    async def handle(self, request: Request, handler: Handler) -> Response:
        """The response of a handler.

        Raises:
            RequestError: 408, 413 or 415 for the body, 429 for too many requests, 499 if the client disconnects.
        """
        if HAS_ENDED in request.scope["state"]:
            raise _ended(request)
        body = _Body(address(request))
        self._requests.check(body.peer)
        try:
            return await self._handle(request, handler, body)
        except RequestError as error:
            if error.status == 429:
                await self._refusals.wait(error, body.held)
            raise

    async def parse(self, request: Request, body: bytes, parser: Callable[[bytes], Parsed]) -> Parsed:
        """Parses a body; a large one in a thread, in turn, so that the event loop serves other requests meanwhile."""
        if len(body) <= SMALL_BYTES:
            return parser(body)
        return await self._parser.run(address(request), lambda: parser(body))

    async def _handle(self, request: Request, handler: Handler, body: _Body) -> Response:
        try:
            content = await self._read(request, body)
            with self._requests.admitted(body.peer):
                return await _while_connected(request, handler(request, content))
        finally:
            self._bytes.add(body.peer, -body.held)

    async def _read(self, request: Request, body: _Body) -> bytes:
        """The body; rejected as soon as its type is known to be wrong, or it is too large or too slow.

        The clients of Triton send no content type, or that of binary tensors before plain JSON.
        """
        content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if content_type not in ("", JSON, BINARY):
            raise RequestError(f"send Content-Type: {BINARY if BINARY_HEADER in request.headers else JSON}", 415)
        encoding = ",".join(request.headers.getlist("content-encoding")).lower() or "identity"
        if encoding not in ("identity", OTHER_GZIP, *COMPRESSIONS):
            raise RequestError(f"the body has an unknown Content-Encoding: send {' or '.join(COMPRESSIONS)}, or none", 415)
        content = await self._receive(request, body)
        if encoding == "identity":
            return content
        content = await self._parser.run(body.peer, functools.partial(_decompress, content, self._limits.body_bytes))
        self._hold(body, len(content))
        return content

    async def _receive(self, request: Request, body: _Body) -> bytes:
        limits, too_large = self._limits, f"the body is larger than {self._limits.body_bytes:,} bytes: send fewer texts"
        length = request.headers.get("content-length", "0")
        if not length.isdigit() or int(length) > limits.body_bytes:
            raise RequestError(too_large, 413)
        content, started = bytearray(), asyncio.get_running_loop().time()
        has_body = request.scope["state"].get(HAS_BODY)
        timeout = asyncio.timeout_at(None if has_body else started + min(GRACE_SECONDS, limits.read_seconds))
        if len(self._arriving) >= limits.requests:
            self._arriving.reject_oldest()
        self._arriving.add(body.peer, timeout)
        try:
            async with timeout:
                async for chunk in request.stream():
                    content += chunk
                    if len(content) > limits.body_bytes:
                        raise RequestError(too_large, 413)
                    if len(content) != int(length):
                        self._hold(body, len(content))
                        timeout.reschedule(started + min(GRACE_SECONDS + len(content) / limits.read_rate, limits.read_seconds))
        except ClientDisconnect as error:
            raise _ended(request) from error
        except TimeoutError as error:
            if timeout not in self._arriving:
                raise _too_many_bodies() from error
            raise RequestError(
                f"the body arrived too slowly: send {limits.read_rate:,} bytes per second, and all within {limits.read_seconds:g} s",
                408,
            ) from error
        finally:
            self._arriving.remove(timeout)
        self._hold(body, len(content))
        return bytes(content)

    def _hold(self, body: _Body, size: int) -> None:
        """Counts a body of so many bytes as memory until its request ends."""
        if size <= max(SMALL_BYTES, body.held):
            return
        more = size - body.held
        if not self._bytes.has_room(body.peer, more) and not self._arriving.reject_oldest(self._bytes.of):
            raise _too_many_bodies()
        self._bytes.add(body.peer, more)
        body.held = size


def address(request: Request) -> str:
    """That of the client; behind a gateway, that of the gateway."""
    return request.client.host if request.client else ""


@dataclass
class _Body:
    """A body of an address, and the bytes that count as memory: none of a small one."""

    peer: str
    held: int = 0


def _decompress(body: bytes, limit: int) -> bytes:
    """A body that was compressed by gzip or zlib ("deflate"). It never takes more memory than the limit."""
    stream = zlib.decompressobj(zlib.MAX_WBITS | 32)
    try:
        content = stream.decompress(body, limit + 1)
    except zlib.error as error:
        raise RequestError("the body is not what its Content-Encoding says") from error
    if len(content) > limit:
        raise RequestError(f"the body is larger than {limit:,} bytes after decompression: send fewer texts", 413)
    if not stream.eof or stream.unused_data:
        raise RequestError("the compressed body ends early, or more follows it")
    return content


async def _while_connected(request: Request, response: Awaitable[Response]) -> Response:
    """Awaits a response, which its connection cancels if the client disconnects, so that its queued texts are dropped."""
    state, handling = request.scope["state"], asyncio.current_task()
    assert handling is not None
    state[HANDLING] = handling
    if HAS_ENDED in state:
        handling.cancel()
    try:
        return await response
    except asyncio.CancelledError:
        if HAS_ENDED not in state:
            raise
        handling.uncancel()
        if state.get(CLOSED_BY_SERVER):
            raise RequestError("the server closed the connection before it had the scores", 503) from None
        raise _ended(request) from None
    finally:
        state.pop(HANDLING, None)


def _too_many_bodies() -> RequestError:
    return RequestError("too many bodies arrive, or are held: try again later", 429, retry_after=1)


def _ended(request: Request) -> RequestError:
    if IS_REFUSED in request.scope["state"]:
        return RequestError("the rest of the request was refused", COUNTED)
    return RequestError("the client disconnected", CLIENT_GONE)
