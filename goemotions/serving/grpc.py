"""V2, the Open Inference protocol, over gRPC; ``openinference`` parses the messages."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import grpc
from kserve.protocol.grpc import grpc_predict_v2_pb2 as pb
from kserve.protocol.grpc import grpc_predict_v2_pb2_grpc as stubs

from goemotions.errors import RequestError, WorkflowError
from goemotions.serving import openinference, schema
from goemotions.serving.limits import Limits
from goemotions.serving.service import CLIENT_GONE, Service, handle

logger = logging.getLogger(__name__)
# Calls at once on one connection; the client keeps more to itself until one ends.
STREAMS = 128
# The metadata of a response with the run of the model, beside the version in its message.
RUN = "model-run"
INFER = "/inference.GRPCInferenceService/ModelInfer"
CODES = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    404: grpc.StatusCode.NOT_FOUND,
    408: grpc.StatusCode.DEADLINE_EXCEEDED,
    413: grpc.StatusCode.INVALID_ARGUMENT,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
    CLIENT_GONE: grpc.StatusCode.CANCELLED,
    501: grpc.StatusCode.UNIMPLEMENTED,
    503: grpc.StatusCode.UNAVAILABLE,
    504: grpc.StatusCode.DEADLINE_EXCEEDED,
}


class Servicer(stubs.GRPCInferenceServiceServicer):
    """Health, metadata and inference. Clients cannot load or unload models."""

    def __init__(self, service: Service) -> None:
        self._service = service
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
        result = await self._service.predict(parsed.texts, parsed.options)
        context.set_trailing_metadata(self._run)
        return openinference.to_grpc(parsed, result, self._service.version, self._service.name)

    async def RepositoryModelLoad(self, request: Any, context: Any) -> Any:
        raise RequestError("this server serves only the model that it was started with", 501)

    RepositoryModelUnload = RepositoryModelLoad

    def _check_model(self, name: str, version: str) -> None:
        if name != self._service.name or version not in ("", self._service.version):
            raise RequestError(f"no such model: this server has {self._service.name}, version {self._service.version}", 404)


class _Calls(grpc.aio.ServerInterceptor):
    """Limits how many inference calls there are at once and how long each may take to send its message, and names every error.

    A unary method is called only when its message is there. As the method of a stream, it is called at once, so that a call without
    a message is counted and ends.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._inferences = 0

    async def intercept_service(self, continuation: Any, details: Any) -> Any:
        handler = await continuation(details)
        if handler is None or handler.unary_unary is None:
            return handler
        is_inference = details.method == INFER

        async def call(messages: Any, context: Any) -> Any:
            received = self._received(handler.unary_unary, messages, context)
            try:
                return await (handle("grpc", self._admitted(received)) if is_inference else received)
            except RequestError as error:
                if error.retry_after:
                    context.set_trailing_metadata((("retry-after", str(error.retry_after)),))
                code, message = CODES.get(error.status, grpc.StatusCode.INTERNAL), schema.shorten(str(error))
            except Exception:
                logger.exception("a call failed")
                code, message = grpc.StatusCode.INTERNAL, "the server failed: see its log"
            return await context.abort(code, message)

        return grpc.stream_unary_rpc_method_handler(call, handler.request_deserializer, handler.response_serializer)

    async def _admitted(self, response: Any) -> Any:
        self._inferences += 1
        try:
            if self._inferences > self._limits.requests:
                response.close()
                raise RequestError("the server handles too many requests: try again later", 429, retry_after=1)
            return await response
        finally:
            self._inferences -= 1

    async def _received(self, method: Any, messages: Any, context: Any) -> Any:
        """The response of a method to the first message of a call."""
        try:
            async with asyncio.timeout(self._limits.read_seconds):
                message = await anext(aiter(messages))
        except StopAsyncIteration as error:
            raise RequestError("the call ended without a message", CLIENT_GONE) from error
        except TimeoutError as error:
            raise RequestError(f"the message took longer than {self._limits.read_seconds:g} seconds", 408) from error
        return await method(message, context)


def create_server(service: Service, address: str, *, is_shared: bool = False) -> Any:
    """A gRPC server on an address, which worker processes may share; ``await server.start()`` starts it.

    Raises:
        WorkflowError: the port is in use.
    """
    limits = service.limits
    server = grpc.aio.server(
        interceptors=[_Calls(limits)],
        options=[
            ("grpc.max_receive_message_length", limits.body_bytes),
            ("grpc.so_reuseport", int(is_shared)),
            ("grpc.max_concurrent_streams", STREAMS),
        ],
        # A fence behind the limit of _Calls, which counts what it refuses; health checks need room beside inference.
        maximum_concurrent_rpcs=2 * limits.requests,
    )
    stubs.add_GRPCInferenceServiceServicer_to_server(Servicer(service), server)
    try:
        server.add_insecure_port(address)
    except RuntimeError as error:
        raise WorkflowError(f"cannot listen on {address} for gRPC: choose another --grpc-port") from error
    return server
