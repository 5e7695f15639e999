"""The limits of calls, and the names of their errors."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import Any

import grpc
from google.protobuf.message import DecodeError
from kserve.protocol.grpc import grpc_predict_v2_pb2 as pb

from goemotions.errors import RequestError
from goemotions.serving import metrics
from goemotions.serving.admission.shares import Arriving, Requests, too_many_requests
from goemotions.serving.admission.turns import Refusals
from goemotions.serving.grpc import wire
from goemotions.serving.grpc.relay import Relay, Relays
from goemotions.serving.limits import Limits
from goemotions.serving.metrics import CLIENT_GONE, COUNTED
from goemotions.serving.protocols import schema
from goemotions.serving.service import handle

logger = logging.getLogger(__name__)
# So many calls may wait for their messages; after that, the oldest gives way to a new one if it had this time.
WAITING, LEAST_SECONDS = 128, 0.2
# While the server stops, a message must arrive within this time.
LAST_MESSAGE_SECONDS = 1.0
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


class CallLimiter(grpc.aio.ServerInterceptor):
    """Limits how many inference calls there are at once, how long they wait for their clients, and names every error.

    A unary method is called only when its message is there. As the method of a stream, it is called at once, so that a call without
    a message is counted and ends.
    """

    def __init__(self, limits: Limits, requests: Requests, relays: Relays) -> None:
        self._limits = limits
        self._requests = requests
        self._relays = relays
        # The timeouts of the messages.
        self._arriving = Arriving()
        relays.make_room = lambda: self._arriving.reject_oldest(relays.bytes.of)
        self._refusals = Refusals()
        self._is_closing = self._has_closed = False

    async def close(self, seconds: float) -> None:
        """Rejects new inference calls, and awaits the others for at most so many seconds."""
        self._is_closing = True
        asyncio.get_running_loop().call_later(LAST_MESSAGE_SECONDS, self._arriving.end_all)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while any(relay.calls for relay in self._relays.open):
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
                if not is_inference and error.status != COUNTED:
                    metrics.count("grpc", error.status)
                code, message = CODES.get(error.status, grpc.StatusCode.INTERNAL), schema.shorten(str(error))
            except Exception:
                logger.exception("a call failed")
                code, message = grpc.StatusCode.INTERNAL, "the server failed: see its log"
            finally:
                if relay:
                    relay.note_response_of(context)
            return await context.abort(code, message)

        is_stream = handler.response_streaming
        method = grpc.stream_stream_rpc_method_handler if is_stream else grpc.stream_unary_rpc_method_handler
        return method(call, None, handler.response_serializer)

    async def _response(self, handler: Any, context: Any, relay: Relay | None, is_inference: bool) -> Any:
        if self._is_closing and is_inference:
            raise RequestError("the server is shutting down: connect again", 503)
        if relay is None or relay.is_closed:
            raise RequestError("the client disconnected", await self._status_if_ended(context, relay))
        relay.begin_call(context)
        context.add_done_callback(lambda _: relay.end_call(context))
        content = await self._message(context, relay, is_inference)
        if not is_inference:
            return await (handler.unary_unary or handler.unary_stream)(self._parse(content, handler), context)
        # A large message is freed once its texts are taken from it, or it is rejected.
        held, size = [content], len(content)
        del content
        try:
            with self._requests.admitted(relay.peer):
                return await handler.unary_unary(self._parse(held.pop(), handler), context)
        except RequestError as error:
            held.clear()
            if error.status == 429:
                await self._refusals.wait(error, size)
            raise

    async def _status_if_ended(self, context: Any, relay: Relay | None) -> int:
        """The status of a call that the library has ended, with an answer to its client."""
        if self._has_closed:
            return 503
        is_late = context.time_remaining() == 0
        return CLIENT_GONE if is_late or relay is None else await relay.status_of_ended()

    def _parse(self, content: bytes, handler: Any) -> Any:
        if len(content) > SMALL_BYTES:
            wire.check_fields(content, pb.ModelInferRequest.DESCRIPTOR, self._limits)
        try:
            return handler.request_deserializer(content)
        except DecodeError as error:
            raise RequestError("the message is not one of the Open Inference protocol") from error

    async def _message(self, context: Any, relay: Relay, is_inference: bool) -> bytes:
        """The bytes of the message of a call."""
        self._make_room(is_inference)
        try:
            async with asyncio.timeout(self._limits.read_seconds) as timeout:
                self._arriving.add(relay.peer, timeout)
                # What arrived before the call began could not end it.
                self._relays.check_room(relay.peer)
                message = await context.read()
        except TimeoutError as error:
            if timeout not in self._arriving:
                raise too_many_requests() from error
            raise RequestError(f"the message took longer than {self._limits.read_seconds:g} seconds", 408) from error
        finally:
            self._arriving.remove(timeout)
        if message is grpc.aio.EOF:
            raise RequestError("the call ended without a message", await self._status_if_ended(context, relay))
        if len(message) > SMALL_BYTES and not is_inference:
            raise RequestError(f"the message is larger than {SMALL_BYTES:,} bytes", 413)
        return bytes(message)

    def _make_room(self, is_inference: bool) -> None:
        """Rejects the call that has waited for its message for longest, if there are many and it had some time, or all that may be."""
        count, most = len(self._arriving), self._limits.requests
        if count >= min(WAITING, most):
            oldest = self._arriving.oldest(self._arriving.busiest())
            left = (oldest.when() or 0) - asyncio.get_running_loop().time()
            if left < self._limits.read_seconds - LEAST_SECONDS or (is_inference and count >= most):
                self._arriving.reject(oldest)
