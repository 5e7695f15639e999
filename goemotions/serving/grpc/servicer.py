"""The methods of V2, the Open Inference protocol, over gRPC, and of the health that balancers ask for."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import grpc
from google.protobuf.wrappers_pb2 import Int32Value, StringValue
from kserve.protocol.grpc import grpc_predict_v2_pb2 as pb
from kserve.protocol.grpc import grpc_predict_v2_pb2_grpc as stubs

from goemotions.errors import RequestError
from goemotions.serving.admission.shares import ByAddress
from goemotions.serving.grpc.relay import Relays
from goemotions.serving.protocols import openinference, request_ids
from goemotions.serving.service import Service

# The metadata of a response with the run of the model, beside the version in its message.
RUN = "model-run"
# So many may watch the health, and the seconds between two looks at it for them.
WATCHES, WATCH_SECONDS = 128, 0.5


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
        if len(self._watches) >= WATCHES:
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
