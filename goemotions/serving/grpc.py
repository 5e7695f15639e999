"""V2, the Open Inference protocol, over gRPC; ``openinference`` parses the messages."""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
from kserve.protocol.grpc import grpc_predict_v2_pb2 as pb
from kserve.protocol.grpc import grpc_predict_v2_pb2_grpc as stubs

from goemotions.defaults import MODEL_NAME
from goemotions.errors import RequestError
from goemotions.serving import openinference
from goemotions.serving.service import Service, handle

CODES = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    404: grpc.StatusCode.NOT_FOUND,
    413: grpc.StatusCode.INVALID_ARGUMENT,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
    500: grpc.StatusCode.INTERNAL,
    503: grpc.StatusCode.UNAVAILABLE,
    504: grpc.StatusCode.DEADLINE_EXCEEDED,
}
Method = Callable[[Any, Any, Any], Awaitable[Any]]


def _with_status(method: Method) -> Method:
    """Turns a RequestError of a method into the gRPC status of the call."""

    @functools.wraps(method)
    async def call(self: Any, request: Any, context: Any) -> Any:
        try:
            return await method(self, request, context)
        except RequestError as error:
            if error.retry_after:
                context.set_trailing_metadata((("retry-after", str(error.retry_after)),))
            await context.abort(CODES[error.status], str(error))

    return call


class Servicer(stubs.GRPCInferenceServiceServicer):
    """Health, metadata and inference. Clients cannot load or unload models."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def ServerLive(self, request: Any, context: Any) -> Any:
        return pb.ServerLiveResponse(live=self._service.is_live)

    async def ServerReady(self, request: Any, context: Any) -> Any:
        return pb.ServerReadyResponse(ready=self._service.is_ready)

    @_with_status
    async def ModelReady(self, request: Any, context: Any) -> Any:
        self._check_model(request.name, request.version)
        return pb.ModelReadyResponse(ready=self._service.is_ready)

    async def ServerMetadata(self, request: Any, context: Any) -> Any:
        return pb.ServerMetadataResponse(name=MODEL_NAME, version=self._service.version, extensions=["binary_tensor_data"])

    @_with_status
    async def ModelMetadata(self, request: Any, context: Any) -> Any:
        self._check_model(request.name, request.version)
        return pb.ModelMetadataResponse(**self._service.metadata())

    @_with_status
    async def ModelInfer(self, request: Any, context: Any) -> Any:
        return await handle("grpc", self._infer(request))

    async def RepositoryModelLoad(self, request: Any, context: Any) -> Any:
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, "this server serves only the model that it was started with")

    RepositoryModelUnload = RepositoryModelLoad

    async def _infer(self, message: Any) -> Any:
        self._check_model(message.model_name, message.model_version)
        request = openinference.from_grpc(message, self._service.limits)
        result = await self._service.predict(request.texts, request.options)
        return openinference.to_grpc(request, result, self._service.version)

    def _check_model(self, name: str, version: str) -> None:
        if name != MODEL_NAME or version not in ("", self._service.version):
            raise RequestError(f"no such model: this server has {MODEL_NAME}, version {self._service.version}", 404)


def create_server(service: Service, address: str) -> Any:
    """A gRPC server on an address; ``await server.start()`` starts it. Worker processes share the address."""
    server = grpc.aio.server(
        options=[("grpc.max_receive_message_length", service.limits.body_bytes), ("grpc.so_reuseport", 1)],
        maximum_concurrent_rpcs=service.limits.requests,
    )
    stubs.add_GRPCInferenceServiceServicer_to_server(Servicer(service), server)
    server.add_insecure_port(address)
    return server
