"""V1 and V2 over HTTP: health, metadata, inference and metrics.

``bodies`` reads requests, ``schema`` has their fields, ``openinference`` parses V2.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import orjson
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from goemotions import defaults
from goemotions.errors import RequestError
from goemotions.serving import metrics
from goemotions.serving.http import bodies, openapi
from goemotions.serving.http.bodies import BINARY, Handler, RequestLimiter
from goemotions.serving.http.openapi import JSON
from goemotions.serving.protocols import openinference, request_ids, schema
from goemotions.serving.protocols.openinference import BINARY_HEADER
from goemotions.serving.service import Service, handle

RUN_HEADER = "model-run"
CLOSE = (b"connection", b"close")
# In the state of an inference request: its id.
ID = "id"


def create_app(service: Service, extra: Sequence[Route] = ()) -> Starlette:
    """The application: the routes of the protocols, and extra ones."""
    app = Starlette(
        # The router tries one after the other.
        routes=[*_inference(service), *_health(service), *_metadata(service), _metrics(service), *extra],
        middleware=[Middleware(_Headers, service=service)],
        exception_handlers={HTTPException: _http_error, Exception: _failed},
    )
    # The router would redirect a path with a slash too many to the host that the client names.
    app.router.redirect_slashes = False
    return app


def _health(service: Service) -> list[Route]:
    def route(path: str, field: str, is_so: Callable[[], bool], **more: str) -> Route:
        async def respond(request: Request) -> Response:
            return _json({**more, field: (now := is_so())}, 200 if now else 503)

        return Route(path, respond)

    model_paths = [openapi.v1_path(service.name), *openapi.v2_paths(service.name, service.version, "/ready")]
    return [
        route("/v2/health/live", "live", lambda: service.is_live),
        route("/v2/health/ready", "ready", lambda: service.is_ready),
        *(route(path, "ready", lambda: service.is_ready, name=service.name) for path in model_paths),
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
    limiter = RequestLimiter(service.limits, service.requests)

    async def predict(request: Request, body: bytes) -> Response:
        parsed = await limiter.parse(request, body, lambda body: schema.parse(schema.V1Request, body, service.limits))
        options = (parsed.parameters or schema.Parameters()).options()
        result = await service.predict(parsed.instances, options, **_source(request))
        return _json({"predictions": result.predictions, "model_name": service.name, "model_version": service.version})

    async def explain(request: Request, body: bytes) -> Response:
        parsed = await limiter.parse(request, body, lambda body: schema.parse(schema.V1ExplainRequest, body, service.limits))
        parameters = parsed.parameters or schema.ExplainParameters()
        predictions, explanations = await service.explain(
            parsed.instances, parameters.options(), parameters.removals, bodies.address(request)
        )
        names = {"model_name": service.name, "model_version": service.version}
        return _json({"predictions": predictions, "explanations": explanations, **names})

    async def infer(request: Request, body: bytes) -> Response:
        header_length = request.headers.get(BINARY_HEADER)
        parsed = await limiter.parse(request, body, lambda body: openinference.from_rest(body, header_length, service.limits))
        result = await service.predict(parsed.texts, parsed.options, **_source(request))
        content, tensors = openinference.to_rest(parsed, result, service.version, service.name)
        if not tensors:
            return _json(content)
        head = orjson.dumps(content)
        return Response(head + tensors, headers={BINARY_HEADER: str(len(head))}, media_type=BINARY)

    async def feedback(request: Request, body: bytes) -> Response:
        if service.log is None:
            raise RequestError("this server keeps no request log, so it takes no feedback: start it with --log-share", 404)
        parsed = await limiter.parse(request, body, lambda body: schema.parse(schema.FeedbackRequest, body, service.limits))
        is_logged = service.log.add_feedback(parsed.id, parsed.index, parsed.labels, parsed.user, bodies.address(request))
        return _json({"id": parsed.id, "index": parsed.index, "logged": is_logged})

    def endpoint(protocol: str, handler: Handler) -> _Endpoint:
        return _Endpoint(protocol, lambda request: limiter.handle(request, handler))

    return [
        Route(f"{openapi.v1_path(service.name)}:predict", endpoint("v1", predict), methods=["POST"]),
        Route(f"{openapi.v1_path(service.name)}:explain", endpoint("explain", explain), methods=["POST"]),
        *(
            Route(path, endpoint("v2", infer), methods=["POST"])
            for path in openapi.v2_paths(service.name, service.version, "/infer")
        ),
        Route(openapi.FEEDBACK_PATH, endpoint("feedback", feedback), methods=["POST"]),
    ]


class _Endpoint:
    """An inference endpoint. As it is no function, Starlette calls it without a handler of exceptions of its own around it."""

    def __init__(self, protocol: str, handler: Callable[[Request], Awaitable[Response]]) -> None:
        self._protocol = protocol
        self._handler = handler

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        request = Request(scope, receive)
        scope["state"][ID] = request_ids.answer_id(request.headers.get(request_ids.HEADER))
        try:
            response = await handle("copy" if _is_copy(request) else self._protocol, self._handler(request))
        except RequestError as error:
            response = _error(error)
        await response(scope, receive, send)


def _is_copy(request: Request) -> bool:
    return defaults.COPY_HEADER in request.headers


def _source(request: Request) -> dict[str, Any]:
    """Where a request comes from, for ``Service.predict``. The texts of a rollout, which nobody wrote, are not logged."""
    is_of_rollout = request.headers.get(defaults.COPY_HEADER) == defaults.COPY_OF_ROLLOUT
    request_id = "" if is_of_rollout else request.scope["state"][ID]
    return {"request_id": request_id, "peer": bodies.address(request), "is_copy": _is_copy(request)}


def _metrics(service: Service) -> Route:
    lock = asyncio.Lock()
    # Per format: when its newest rendering began, the content, and its content type.
    rendered: dict[str, tuple[float, bytes, str]] = {}

    def render(accepted: str) -> tuple[bytes, str]:
        service.flush_metrics()
        return metrics.render(accepted)

    async def respond(request: Request) -> Response:
        """Rendered in a thread, once for all requests that arrived before: many of them do not keep others waiting."""
        arrived = time.monotonic()
        accepted = metrics.OPENMETRICS if metrics.OPENMETRICS in request.headers.get("accept", "") else metrics.PLAIN
        async with lock:
            if accepted not in rendered or rendered[accepted][0] < arrived:
                began = time.monotonic()
                rendered[accepted] = began, *await asyncio.to_thread(render, accepted)
        _, content, content_type = rendered[accepted]
        return Response(content, headers={"content-type": content_type})

    return Route("/metrics", respond)


class _Headers:
    """Adds headers to every response: the run of the model, beside the version that bodies have, and the id of the request.

    While the server drains, responses carry `Connection: close`, so that no client sends a request to a closed connection. So do those
    before a body that the client sends only if it is asked to: it may send another request instead.
    """

    def __init__(self, app: Any, service: Service) -> None:
        self._app = app
        self._service = service
        self._run = (RUN_HEADER.encode(), service.run_id.encode())
        self._id = request_ids.HEADER.encode()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def send_with_headers(message: Any) -> None:
            if message["type"] == "http.response.start":
                headers = [*message["headers"], self._run]
                if ID in scope["state"]:
                    headers.append((self._id, scope["state"][ID].encode()))
                if (self._service.is_draining or _may_lack_body(scope)) and CLOSE not in headers:
                    headers.append(CLOSE)
                message["headers"] = headers
            await send(message)

        await self._app(scope, receive, send_with_headers)


def _may_lack_body(scope: Any) -> bool:
    return bodies.HAS_BODY not in scope["state"] and any(name == b"expect" for name, _ in scope["headers"])


def _json(content: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(orjson.dumps(content), status, headers, media_type=JSON)


def _error(error: RequestError) -> Response:
    headers = {"Retry-After": str(error.retry_after)} if error.retry_after else {}
    if error.status in (408, 413, 429):
        # The rest of the body is not read.
        headers["Connection"] = "close"
    return _json({"error": schema.shorten(str(error))}, error.status, headers)


async def _failed(request: Request, error: Exception) -> Response:
    """Starlette raises the error again, for the log."""
    return _json({"error": "the server failed: see its log"}, 500)


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if bodies.IS_REFUSED not in request.scope["state"]:
        metrics.count("http", error.status_code)
    messages = {404: "no such path or model", 405: "this path does not support that method"}
    return _json(
        {"error": messages.get(error.status_code, schema.shorten(error.detail))}, error.status_code, dict(error.headers or {})
    )
