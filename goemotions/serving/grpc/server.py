"""V2, the Open Inference protocol, over gRPC; ``openinference`` parses the messages."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import math
import os
import secrets
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

# The library writes a line for each wrong field of a client, past the limits of ``logs``. It reads this when it is imported.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

# isort: split

import grpc
from google.protobuf.message import DecodeError
from google.protobuf.wrappers_pb2 import Int32Value, StringValue
from kserve.protocol.grpc import grpc_predict_v2_pb2 as pb
from kserve.protocol.grpc import grpc_predict_v2_pb2_grpc as stubs

from goemotions.errors import RequestError
from goemotions.serving import metrics
from goemotions.serving.admission.shares import ByAddress, Requests, too_many_requests
from goemotions.serving.grpc import wire
from goemotions.serving.grpc.frames import STREAMS
from goemotions.serving.grpc.relay import Relay, Relays
from goemotions.serving.http import bodies
from goemotions.serving.limits import Limits
from goemotions.serving.metrics import CLIENT_GONE
from goemotions.serving.protocols import openinference, request_ids, schema
from goemotions.serving.service import Service, handle

logger = logging.getLogger(__name__)
# The library's own errors are of clients that left; those of handlers are logged here.
logging.getLogger("grpc._cython.cygrpc").setLevel(logging.CRITICAL)
# The metadata of a response with the run of the model, beside the version in its message.
RUN = "model-run"
METADATA_BYTES = 16 * 2**10
# So many calls may wait for their clients; after that, the oldest gives way to a new one if it had this time.
WAITING, LEAST_SECONDS = 128, 0.2
# A client opens a new connection after this time, so that new pods get their share.
AGE_SECONDS = 600
# Pings show whether a client reads its connection; clients may send them that often.
PING_SECONDS, PONG_SECONDS, LEAST_PING_SECONDS = 20, 10, 10
# While the server stops, a message must arrive within this time.
LAST_MESSAGE_SECONDS = 1.0
# Between two looks at the status for those that watch it.
WATCH_SECONDS = 0.5
# Messages up to this size are parsed without counting their fields; those of calls without texts are not larger.
SMALL_BYTES = 8 * 2**10
INFER = "/inference.GRPCInferenceService/ModelInfer"
CODES = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    404: grpc.StatusCode.NOT_FOUND,
    408: grpc.StatusCode.DEADLINE_EXCEEDED,
    413: grpc.StatusCode.INVALID_ARGUMENT,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
    431: grpc.StatusCode.RESOURCE_EXHAUSTED,
    CLIENT_GONE: grpc.StatusCode.CANCELLED,
    501: grpc.StatusCode.UNIMPLEMENTED,
    503: grpc.StatusCode.UNAVAILABLE,
    504: grpc.StatusCode.DEADLINE_EXCEEDED,
}


class Servicer(stubs.GRPCInferenceServiceServicer):
    """Health, metadata and inference. Clients cannot load or unload models."""

    def __init__(self, service: Service, relays: Relays) -> None:
        self._service = service
        self._relays = relays
        self._run = ((RUN, service.run_id),)

    async def ServerLive(self, request: Any, context: Any) -> Any:
        return pb.ServerLiveResponse(live=self._service.is_live)

    async def ServerReady(self, request: Any, context: Any) -> Any:
        return pb.ServerReadyResponse(ready=self._service.is_ready)

    async def ModelReady(self, request: Any, context: Any) -> Any:
        self._check_model(request.name, request.version)
        return pb.ModelReadyResponse(ready=self._service.is_ready)

    async def ServerMetadata(self, request: Any, context: Any) -> Any:
        return pb.ServerMetadataResponse(
            name=self._service.name, version=self._service.version, extensions=["binary_tensor_data"]
        )

    async def ModelMetadata(self, request: Any, context: Any) -> Any:
        self._check_model(request.name, request.version)
        context.set_trailing_metadata(self._run)
        return pb.ModelMetadataResponse(**self._service.metadata())

    async def ModelInfer(self, request: Any, context: Any) -> Any:
        self._check_model(request.model_name, request.model_version)
        parsed = openinference.from_grpc(request, self._service.limits)
        del request
        request_id = request_ids.answer_id(dict(context.invocation_metadata() or ()).get(request_ids.HEADER))
        peer = self._relays.address(context.peer())
        result = await self._service.predict(parsed.texts, parsed.options, request_id=request_id, peer=peer)
        context.set_trailing_metadata((*self._run, (request_ids.HEADER, request_id)))
        return openinference.to_grpc(parsed, result, self._service.version, self._service.name)

    async def RepositoryModelLoad(self, request: Any, context: Any) -> Any:
        raise RequestError("this server serves only the model that it was started with", 501)

    RepositoryModelUnload = RepositoryModelLoad

    def _check_model(self, name: str, version: str) -> None:
        if name != self._service.name or version not in ("", self._service.version):
            raise RequestError(f"no such model: this server has {self._service.name}, version {self._service.version}", 404)


class Health:
    """The health that Kubernetes and balancers ask for: https://github.com/grpc/grpc/blob/master/doc/health-checking.md

    Its messages have one field each, as those of protobuf's wrappers: the name of a service, and a status.
    """

    NAME, SERVICES = "grpc.health.v1.Health", ("", "inference.GRPCInferenceService")
    SERVING, NOT_SERVING, UNKNOWN = 1, 2, 3

    def __init__(self, service: Service, relays: Relays) -> None:
        self._service = service
        self._relays = relays
        self._watches = ByAddress[object]()

    async def check(self, request: Any, context: Any) -> Any:
        if request.value not in self.SERVICES:
            raise RequestError("no such service", 404)
        return self._status(request.value)

    async def watch(self, request: Any, context: Any) -> Any:
        """Sends the status whenever it has changed, until the client leaves or the server drains."""
        watch, address = object(), self._relays.address(context.peer())
        self._make_room(address)
        self._watches.add(address, watch)
        try:
            sent = None
            # The library does not cancel a call whose client leaves at once.
            with contextlib.suppress(grpc.aio.InternalError):
                while watch in self._watches:
                    is_last, status = self._service.is_draining, self._status(request.value)
                    if status != sent:
                        await context.write(sent := status)
                    if is_last:
                        return
                    await asyncio.sleep(WATCH_SECONDS)
                raise _too_many_watches()
        finally:
            self._watches.remove(watch)

    def _make_room(self, address: str) -> None:
        """If many watch, ends the oldest call of the address that has most, unless this one would have as many."""
        if len(self._watches) >= WAITING:
            busiest = self._watches.busiest()
            if self._watches.count(address) + 1 >= self._watches.count(busiest):
                raise _too_many_watches()
            self._watches.remove(self._watches.oldest(busiest))

    def _status(self, name: str) -> Any:
        if name not in self.SERVICES:
            return Int32Value(value=self.UNKNOWN)
        return Int32Value(value=self.SERVING if self._service.is_ready else self.NOT_SERVING)

    def handler(self) -> Any:
        """Its methods, for a server."""
        parse, serialize = StringValue.FromString, Int32Value.SerializeToString
        methods = {
            "Check": grpc.unary_unary_rpc_method_handler(self.check, parse, serialize),
            "Watch": grpc.unary_stream_rpc_method_handler(self.watch, parse, serialize),
        }
        return grpc.method_handlers_generic_handler(self.NAME, methods)


def _too_many_watches() -> RequestError:
    return RequestError("too many clients watch this server: try again later", 429, retry_after=1)


@dataclass(eq=False)
class _WaitingCall:
    """A call that waits for its client; ``end`` ends it, with whether there are too many."""

    end: Callable[[bool], None]
    since: float
    timer: asyncio.TimerHandle = field(init=False)


class _Waiting:
    """Calls that wait for their clients. Each is ended after some seconds, and one earlier if there are many and it had some time."""

    def __init__(self, limits: Limits, seconds: float) -> None:
        self._seconds = seconds
        self._many = min(WAITING, limits.requests)
        self._calls = ByAddress[_WaitingCall]()

    def add(self, address: str, end: Callable[[bool], None], most: float = math.inf) -> Callable[[], None]:
        """Adds a call of an address; returns the function that removes it. Of ``most``, one is ended even if it had no time."""
        now = time.monotonic()
        if len(self._calls) >= self._many:
            oldest = self._calls.oldest(self._calls.busiest())
            if now - oldest.since > LEAST_SECONDS or len(self._calls) >= most:
                self._end(oldest, are_many=True)
        call = _WaitingCall(end, now)
        call.timer = asyncio.get_running_loop().call_later(self._seconds, self._end, call)
        self._calls.add(address, call)
        return functools.partial(self._remove, call)

    def end_all(self) -> None:
        for call in self._calls:
            self._end(call)

    def _remove(self, call: _WaitingCall) -> None:
        call.timer.cancel()
        self._calls.remove(call)

    def _end(self, call: _WaitingCall, are_many: bool = False) -> None:
        self._remove(call)
        call.end(are_many)


class CallLimiter(grpc.aio.ServerInterceptor):
    """Limits how many inference calls there are at once, how long they wait for their clients, and names every error.

    A unary method is called only when its message is there. As the method of a stream, it is called at once, so that a call without
    a message is counted and ends.
    """

    def __init__(self, limits: Limits, requests: Requests, relays: Relays) -> None:
        self._limits = limits
        self._requests = requests
        self._relays = relays
        self._unfinished = 0
        self._without_message = _Waiting(limits, limits.read_seconds)
        self._unread = _Waiting(limits, limits.write_seconds)
        self._refusals = bodies.Refusals()
        self._is_closing = self._has_closed = False

    async def close(self, seconds: float) -> None:
        """Rejects new inference calls, and awaits the others for at most so many seconds."""
        self._is_closing = True
        asyncio.get_running_loop().call_later(LAST_MESSAGE_SECONDS, self._without_message.end_all)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while self._unfinished:
                    await asyncio.sleep(0.01)
        self._has_closed = True

    async def intercept_service(self, continuation: Any, details: Any) -> Any:
        self._relays.turns.begin()
        handler = await continuation(details)
        if handler is None or handler.request_streaming:
            metrics.count("grpc", 404)
            return None
        is_inference = details.method == INFER

        async def call(_: Any, context: Any) -> Any:
            relay = self._relays.of(context.peer())
            response = self._response(handler, context, relay, is_inference)
            try:
                if not is_inference:
                    return await response
                return await handle("grpc", response, lambda: self._status_if_ended(context, relay))
            except RequestError as error:
                if error.retry_after:
                    context.set_trailing_metadata((("retry-after", str(error.retry_after)),))
                if not is_inference:
                    metrics.count("grpc", error.status)
                code, message = CODES.get(error.status, grpc.StatusCode.INTERNAL), schema.shorten(str(error))
            except Exception:
                logger.exception("a call failed")
                code, message = grpc.StatusCode.INTERNAL, "the server failed: see its log"
            finally:
                self._expect_reader(context)
            return await context.abort(code, message)

        is_stream = handler.response_streaming
        method = grpc.stream_stream_rpc_method_handler if is_stream else grpc.stream_unary_rpc_method_handler
        return method(call, None, handler.response_serializer)

    async def _response(self, handler: Any, context: Any, relay: Relay | None, is_inference: bool) -> Any:
        if self._is_closing and is_inference:
            raise RequestError("the server is shutting down: connect again", 503)
        self._begin(context, relay)
        content = await self._message(context, relay, is_inference)
        if not is_inference:
            return await (handler.unary_unary or handler.unary_stream)(self._parse(content, handler), context)
        is_large = len(content) > bodies.SMALL_BYTES
        try:
            with self._requests.admitted(self._relays.address(context.peer())):
                response = handler.unary_unary(self._parse(content, handler), context)
                # A large message is freed once its texts are taken from it.
                del content
                return await response
        except RequestError as error:
            if error.status == 429 and is_large:
                await self._refusals.wait(error)
            raise

    def _begin(self, context: Any, relay: Relay | None) -> None:
        """Counts a call until it has ended."""

        def end(_: Any) -> None:
            self._unfinished -= 1
            if relay:
                relay.end_call()

        self._unfinished += 1
        if relay:
            relay.begin_call()
        context.add_done_callback(end)

    def _status_if_ended(self, context: Any, relay: Relay | None) -> int:
        """The status of a call that the library has ended, with an answer to its client."""
        if self._has_closed:
            return 503
        is_late = context.time_remaining() == 0
        return CLIENT_GONE if is_late or relay is None else relay.status_of_ended()

    def _parse(self, content: bytes, handler: Any) -> Any:
        if len(content) > SMALL_BYTES:
            wire.check_fields(content, pb.ModelInferRequest.DESCRIPTOR, self._limits)
        try:
            return handler.request_deserializer(content)
        except DecodeError as error:
            raise RequestError("the message is not one of the Open Inference protocol") from error

    async def _message(self, context: Any, relay: Relay | None, is_inference: bool) -> bytes:
        """The bytes of the message of a call."""
        is_rejected = False

        def end(are_many: bool) -> None:
            nonlocal is_rejected
            is_rejected = are_many
            timeout.reschedule(0)

        try:
            async with asyncio.timeout(None) as timeout:
                most = self._limits.requests if is_inference else math.inf
                remove = self._without_message.add(self._relays.address(context.peer()), end, most)
                try:
                    message = await context.read()
                finally:
                    remove()
        except TimeoutError as error:
            if is_rejected:
                raise too_many_requests() from error
            raise RequestError(f"the message took longer than {self._limits.read_seconds:g} seconds", 408) from error
        if message is grpc.aio.EOF:
            raise RequestError("the call ended without a message", self._status_if_ended(context, relay))
        if len(message) > SMALL_BYTES and not is_inference:
            raise RequestError(f"the message is larger than {SMALL_BYTES:,} bytes", 413)
        return bytes(message)

    def _expect_reader(self, context: Any) -> None:
        """Closes the connection of a client that does not read the response of a call; a call that is over names no client."""
        if not (relay := self._relays.of(context.peer())):
            return

        def end(_: bool) -> None:
            relay.abort("unread-answer")

        remove = self._unread.add(relay.peer, end)
        context.add_done_callback(lambda _: remove())


class GrpcServer:
    """The gRPC server of one process."""

    def __init__(self, service: Service, port: socket.socket) -> None:
        self._port = port
        self._relays = Relays(service.limits, f"goemotions-{secrets.token_hex(8)}")
        self._calls = CallLimiter(service.limits, service.requests, self._relays)
        self._server = grpc.aio.server(interceptors=[self._calls], options=_options(service.limits))
        stubs.add_GRPCInferenceServiceServicer_to_server(Servicer(service, self._relays), self._server)
        self._server.add_generic_rpc_handlers((Health(service, self._relays).handler(),))
        self._server.add_insecure_port(f"unix-abstract:{self._relays.name}")

    async def start(self) -> None:
        """Accepts connections on the port, which worker processes may share."""
        await self._server.start()
        self._relays.listen(self._port)

    async def stop(self, seconds: float) -> None:
        """Completes the calls that were admitted, within so many seconds; clients with others get the status to connect again.

        The library itself would cancel the calls that reach it while it stops.
        """
        await self._calls.close(seconds)
        await self._relays.close()
        await self._server.stop(None)


def _options(limits: Limits) -> list[tuple[str, int]]:
    """What the library itself limits: sizes, counts, and in milliseconds how long a client may do nothing."""
    seconds = {
        "grpc.keepalive_time_ms": PING_SECONDS,
        "grpc.keepalive_timeout_ms": PONG_SECONDS,
        "grpc.http2.min_ping_interval_without_data_ms": LEAST_PING_SECONDS,
        "grpc.max_connection_idle_ms": limits.idle_seconds,
        "grpc.max_connection_age_ms": AGE_SECONDS,
        "grpc.max_connection_age_grace_ms": limits.read_seconds + limits.answer_seconds + limits.write_seconds,
    }
    return [
        ("grpc.max_receive_message_length", limits.body_bytes),
        ("grpc.max_metadata_size", METADATA_BYTES),
        ("grpc.absolute_max_metadata_size", METADATA_BYTES),
        ("grpc.max_concurrent_streams", STREAMS),
        ("grpc.http2.max_pings_without_data", 0),
        # Calls that are over and not freed yet would count, and those of a client within the limit be refused; ``turns`` bounds both.
        ("grpc.http.overload_protection", 0),
        *((name, int(1000 * value)) for name, value in seconds.items()),
    ]
