"""V1 and V2 over HTTP: health, metadata, inference, metrics, and what every answer has in common."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any

import orjson
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from goemotions.errors import RequestError
from goemotions.serving import metrics, openapi, openinference, schema
from goemotions.serving.openinference import BINARY_HEADER, Answer
from goemotions.serving.service import NAME, Service

logger = logging.getLogger(__name__)
JSON = "application/json"
BINARY = "application/octet-stream"
CLIENT_GONE = 499
Infer = Callable[[Request, bytes], Awaitable[Response]]


def create(service: Service, lifespan: Any = None, page: Route | None = None) -> Starlette:
    """The application: every path that the server answers."""
    return Starlette(
        routes=[
            *_health(service),
            *_metadata(service),
            *_inference(service),
            Route("/metrics", _metrics),
            *([page] if page else []),
        ],
        middleware=[Middleware(_ClosesWhenDraining, service=service)],
        exception_handlers={HTTPException: _refused},
        lifespan=lifespan,
    )


def _health(service: Service) -> list[Route]:
    def tells(path: str, answer: Callable[[bool], dict[str, Any]], state: Callable[[], bool]) -> Route:
        async def told(request: Request) -> Response:
            return _json(answer(state()), 200 if state() else 503)

        return Route(path, told)

    return [
        tells("/v2/health/live", lambda so: {"live": so}, lambda: service.is_live),
        tells("/v2/health/ready", lambda so: {"ready": so}, lambda: service.is_ready),
        *(
            tells(path, lambda so: {"name": NAME, "ready": so}, lambda: service.is_ready)
            for path in openapi.ready(service.version)
        ),
    ]


def _metadata(service: Service) -> list[Route]:
    contents: dict[str, dict[str, Any]] = {
        "/v1/models": {"models": [NAME]},
        "/v2": {"name": NAME, "version": service.version, "extensions": ["binary_tensor_data"]},
        "/v2/models": {"models": [NAME]},
        **dict.fromkeys(openapi.metadata(service.version), service.metadata()),
        "/openapi.json": openapi.document(service.version),
    }

    def shows(path: str, content: dict[str, Any]) -> Route:
        async def shown(request: Request) -> Response:
            return _json(content)

        return Route(path, shown)

    return [shows(path, content) for path, content in contents.items()]


def _inference(service: Service) -> list[Route]:
    async def v1(request: Request, body: bytes) -> Response:
        asked = schema.parse(schema.V1Request, body)
        options = (asked.parameters or schema.Parameters()).options()
        scored = await service.score(asked.instances, options)
        predictions = service.predictor.predictions(*scored, all_scores=options.all_scores)
        return _json({"predictions": predictions, "model_name": NAME, "model_version": service.version})

    async def v2(request: Request, body: bytes) -> Response:
        asked = openinference.from_rest(body, request.headers.get(BINARY_HEADER))
        scored = await service.score(asked.texts, asked.options)
        answer = Answer.of(scored[0], service.predictor.predictions(*scored, all_scores=False))
        content, tail = openinference.to_rest(asked, answer, NAME, service.version)
        if not tail:
            return _json(content)
        head = orjson.dumps(content)
        return Response(head + tail, headers={BINARY_HEADER: str(len(head))}, media_type=BINARY)

    door = _Door(service)
    return [
        Route(openapi.V1_PREDICT, door.endpoint(v1, "v1"), methods=["POST"]),
        *(Route(path, door.endpoint(v2, "v2"), methods=["POST"]) for path in openapi.infer(service.version)),
    ]


async def _metrics(request: Request) -> Response:
    content, content_type = metrics.exposed(request.headers.get("accept"))
    return Response(content, headers={"content-type": content_type})


class _Door:
    """Lets inference requests in: bounded in number, in bytes and in time, and counted."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._limits = service.limits
        self._inside = 0

    def endpoint(self, infer: Infer, protocol: str) -> Any:
        async def admitted(request: Request) -> Response:
            started = time.perf_counter()
            self._inside += 1
            try:
                response = await self._answer(request, infer)
            finally:
                self._inside -= 1
            if reason := metrics.REASONS.get(response.status_code):
                metrics.REJECTED.labels(reason).inc()
            metrics.REQUEST_SECONDS.labels(protocol, response.status_code).observe(time.perf_counter() - started)
            return response

        return admitted

    async def _answer(self, request: Request, infer: Infer) -> Response:
        try:
            if self._inside > self._limits.requests:
                raise RequestError("too many requests wait: try again later", 429, retry_after=1)
            body = await self._read(request)
            return await _unless_gone(request, infer(request, body))
        except RequestError as error:
            return _failure(error)
        except Exception:
            logger.exception("a request failed")
            return _failure(RequestError("the server failed: its log says why", 500))

    async def _read(self, request: Request) -> bytes:
        """The body, refused as soon as it is known to be of the wrong kind, too large or too slow."""
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        wanted = (BINARY, JSON) if BINARY_HEADER in request.headers else (JSON,)
        if kind not in wanted or request.headers.get("content-encoding", "identity") != "identity":
            raise RequestError(f"send Content-Type: {wanted[0]}, not compressed", 415)
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
        except TimeoutError as error:
            raise RequestError(f"the body took longer than {self._limits.read_seconds:g} seconds", 408) from error
        return bytes(body)


async def _unless_gone(request: Request, answer: Awaitable[Response]) -> Response:
    """The answer, given up when the client leaves: its texts go from the queue."""
    answering = asyncio.current_task()
    assert answering is not None
    is_gone = False

    async def watch() -> None:
        nonlocal is_gone
        while (await request.receive())["type"] != "http.disconnect":
            pass
        is_gone = True
        answering.cancel()

    watching = asyncio.create_task(watch())
    try:
        return await answer
    except asyncio.CancelledError:
        if not is_gone:
            raise
        answering.uncancel()
        raise RequestError("the client left", CLIENT_GONE) from None
    finally:
        watching.cancel()


class _ClosesWhenDraining:
    """Asks clients to leave their connections once the server drains, so that none of them meets a closed one later."""

    def __init__(self, app: Any, service: Service) -> None:
        self._app = app
        self._service = service

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def marked(message: Any) -> None:
            if message["type"] == "http.response.start" and self._service.is_draining:
                message["headers"] = [*message["headers"], (b"connection", b"close")]
            await send(message)

        await self._app(scope, receive, marked)


def _json(content: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(orjson.dumps(content), status, headers, media_type=JSON)


def _failure(error: RequestError) -> Response:
    headers = {"Retry-After": str(error.retry_after)} if error.retry_after else {}
    if error.status in (408, 413, 429):
        # What is left of the body is not read.
        headers["Connection"] = "close"
    return _json({"error": str(error)}, error.status, headers)


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    messages = {404: "there is no such path or model", 405: "this path takes another method"}
    return _json({"error": messages.get(error.status_code, error.detail)}, error.status_code, dict(error.headers or {}))
