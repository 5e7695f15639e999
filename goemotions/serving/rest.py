"""V1 and V2 over HTTP: health, metadata, inference and metrics. ``schema`` has the fields of a request, ``openinference`` parses V2."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import orjson
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from goemotions.errors import RequestError
from goemotions.serving import metrics, openapi, openinference, schema
from goemotions.serving.limits import Limits
from goemotions.serving.openapi import JSON
from goemotions.serving.openinference import BINARY_HEADER
from goemotions.serving.service import CLIENT_GONE, Service, handle

BINARY = "application/octet-stream"
RUN_HEADER = "model-run"
COMPRESSIONS = ("gzip", "deflate")
SMALL_BYTES = 32 * 1024
PARSER = ThreadPoolExecutor(1, "parser")
Parsed = TypeVar("Parsed")
# An inference request and its body, to the response.
Handler = Callable[[Request, bytes], Awaitable[Response]]


def create_app(service: Service, lifespan: Any = None, extra: Sequence[Route] = ()) -> Starlette:
    """The application: the routes of the protocols, and extra ones."""
    return Starlette(
        routes=[*_health(service), *_metadata(service), *_inference(service), Route("/metrics", _metrics), *extra],
        middleware=[Middleware(_Headers, service=service)],
        exception_handlers={HTTPException: _http_error},
        lifespan=lifespan,
    )


def _health(service: Service) -> list[Route]:
    async def live(request: Request) -> Response:
        is_live = service.is_live
        return _json({"live": is_live}, 200 if is_live else 503)

    async def ready(request: Request) -> Response:
        is_ready = service.is_ready
        return _json({"ready": is_ready}, 200 if is_ready else 503)

    async def model_ready(request: Request) -> Response:
        is_ready = service.is_ready
        return _json({"name": service.name, "ready": is_ready}, 200 if is_ready else 503)

    model_paths = [openapi.v1_path(service.name), *openapi.v2_paths(service.name, service.version, "/ready")]
    return [
        Route("/v2/health/live", live),
        Route("/v2/health/ready", ready),
        *(Route(path, model_ready) for path in model_paths),
    ]


def _metadata(service: Service) -> list[Route]:
    models = {"models": [service.name]}
    contents: dict[str, dict[str, Any]] = {
        "/v1/models": models,
        "/v2": {"name": service.name, "version": service.version, "extensions": ["binary_tensor_data"]},
        "/v2/models": models,
        **dict.fromkeys(openapi.v2_paths(service.name, service.version), service.metadata()),
        "/openapi.json": openapi.document(service.name, service.version),
    }

    def route(path: str, content: dict[str, Any]) -> Route:
        async def metadata(request: Request) -> Response:
            return _json(content)

        return Route(path, metadata)

    return [route(path, content) for path, content in contents.items()]


def _inference(service: Service) -> list[Route]:
    async def predict(request: Request, body: bytes) -> Response:
        parsed = await _off_the_loop(lambda: schema.parse(schema.V1Request, body, service.limits), body)
        result = await service.predict(parsed.instances, (parsed.parameters or schema.Parameters()).options())
        return _json({"predictions": result.predictions, "model_name": service.name, "model_version": service.version})

    async def infer(request: Request, body: bytes) -> Response:
        header_length = request.headers.get(BINARY_HEADER)
        parsed = await _off_the_loop(lambda: openinference.from_rest(body, header_length, service.limits), body)
        result = await service.predict(parsed.texts, parsed.options)
        content, tensors = openinference.to_rest(parsed, result, service.version, service.name)
        if not tensors:
            return _json(content)
        head = orjson.dumps(content)
        return Response(head + tensors, headers={BINARY_HEADER: str(len(head))}, media_type=BINARY)

    limiter = RequestLimiter(service.limits)

    def endpoint(protocol: str, handler: Handler) -> Any:
        async def respond(request: Request) -> Response:
            try:
                return await handle(protocol, limiter.handle(request, handler))
            except RequestError as error:
                return _error(error)

        return respond

    return [
        Route(f"{openapi.v1_path(service.name)}:predict", endpoint("v1", predict), methods=["POST"]),
        *(
            Route(path, endpoint("v2", infer), methods=["POST"])
            for path in openapi.v2_paths(service.name, service.version, "/infer")
        ),
    ]


async def _metrics(request: Request) -> Response:
    content, content_type = metrics.render(request.headers.get("accept"))
    return Response(content, headers={"content-type": content_type})


class RequestLimiter:
    """Limits the number of inference requests at once, and the size and duration of their bodies."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._requests = 0

    async def handle(self, request: Request, handler: Handler) -> Response:
        """The response of a handler.

        Raises:
            RequestError: 408, 413 or 415 for the body, 429 for too many requests, 499 if the client disconnects.
        """
        self._requests += 1
        try:
            if self._requests > self._limits.requests:
                raise RequestError("the server handles too many requests: try again later", 429, retry_after=1)
            body = await self._read(request)
            return await _while_connected(request, handler(request, body))
        finally:
            self._requests -= 1

    async def _read(self, request: Request) -> bytes:
        """The body; rejected as soon as its type is known to be wrong, or it is too large or too slow.

        The clients of Triton send no content type, or that of binary tensors before plain JSON.
        """
        content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if content_type not in ("", JSON, BINARY):
            raise RequestError(f"send Content-Type: {BINARY if BINARY_HEADER in request.headers else JSON}", 415)
        encoding = request.headers.get("content-encoding", "identity").strip().lower()
        if encoding not in ("identity", *COMPRESSIONS):
            raise RequestError(f"the body has an unknown Content-Encoding: send {' or '.join(COMPRESSIONS)}, or none", 415)
        body = await self._receive(request)
        if encoding == "identity":
            return body
        return await asyncio.get_running_loop().run_in_executor(PARSER, _decompress, body, self._limits.body_bytes)

    async def _receive(self, request: Request) -> bytes:
        too_large = RequestError(f"the body is larger than {self._limits.body_bytes:,} bytes: send fewer texts", 413)
        length = request.headers.get("content-length", "0")
        if not length.isdigit() or int(length) > self._limits.body_bytes:
            raise too_large
        body = bytearray()
        try:
            async with asyncio.timeout(self._limits.read_seconds):
                async for chunk in request.stream():
                    body += chunk
                    if len(body) > self._limits.body_bytes:
                        raise too_large
        except ClientDisconnect as error:
            raise RequestError("the client disconnected", CLIENT_GONE) from error
        except TimeoutError as error:
            raise RequestError(f"the body took longer than {self._limits.read_seconds:g} seconds", 408) from error
        return bytes(body)


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


async def _off_the_loop(parse: Callable[[], Parsed], body: bytes) -> Parsed:
    """Parses a body; a large one in a thread, one after the other, so that the event loop serves other requests meanwhile."""
    if len(body) <= SMALL_BYTES:
        return parse()
    return await asyncio.get_running_loop().run_in_executor(PARSER, parse)


async def _while_connected(request: Request, response: Awaitable[Response]) -> Response:
    """Awaits a response, and cancels it if the client disconnects, so that its queued texts are dropped."""
    handling = asyncio.current_task()
    assert handling is not None
    is_gone = False

    async def watch() -> None:
        nonlocal is_gone
        while (await request.receive())["type"] != "http.disconnect":
            pass
        is_gone = True
        handling.cancel()

    watching = asyncio.create_task(watch())
    try:
        return await response
    except asyncio.CancelledError:
        if not is_gone:
            raise
        handling.uncancel()
        raise RequestError("the client disconnected", CLIENT_GONE) from None
    finally:
        watching.cancel()


class _Headers:
    """Adds headers to every response: the run of the model, beside the version that bodies have.

    While the server drains, clients are asked to close their connections, so that none sends a request to a closed one.
    """

    def __init__(self, app: Any, service: Service) -> None:
        self._app = app
        self._service = service
        self._run = (RUN_HEADER.encode(), service.run_id.encode())

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def send_with_headers(message: Any) -> None:
            if message["type"] == "http.response.start":
                closing = ((b"connection", b"close"),) if self._service.is_draining else ()
                message["headers"] = [*message["headers"], self._run, *closing]
            await send(message)

        await self._app(scope, receive, send_with_headers)


def _json(content: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(orjson.dumps(content), status, headers, media_type=JSON)


def _error(error: RequestError) -> Response:
    headers = {"Retry-After": str(error.retry_after)} if error.retry_after else {}
    if error.status in (408, 413, 429):
        # The rest of the body is not read.
        headers["Connection"] = "close"
    return _json({"error": schema.shorten(str(error))}, error.status, headers)


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    messages = {404: "no such path or model", 405: "this path does not support that method"}
    return _json({"error": messages.get(error.status_code, error.detail)}, error.status_code, dict(error.headers or {}))
