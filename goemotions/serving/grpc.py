"""The Open Inference protocol over gRPC."""

from __future__ import annotations

import logging
import time
from typing import Any

import grpc
from kserve.protocol.grpc import grpc_predict_v2_pb2 as pb
from kserve.protocol.grpc import grpc_predict_v2_pb2_grpc as stubs

from goemotions.errors import RequestError
from goemotions.serving import metrics, openinference
from goemotions.serving.openinference import Answer
from goemotions.serving.service import NAME, Service

logger = logging.getLogger(__name__)
CODES = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    404: grpc.StatusCode.NOT_FOUND,
    413: grpc.StatusCode.INVALID_ARGUMENT,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
    500: grpc.StatusCode.INTERNAL,
    503: grpc.StatusCode.UNAVAILABLE,
    504: grpc.StatusCode.DEADLINE_EXCEEDED,
}


class Servicer(stubs.GRPCInferenceServiceServicer):
    """Health, metadata and inference; models are not loaded or unloaded by callers."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def ServerLive(self, request: Any, context: Any) -> Any:
        return pb.ServerLiveResponse(live=self._service.is_live)

    async def ServerReady(self, request: Any, context: Any) -> Any:
        return pb.ServerReadyResponse(ready=self._service.is_ready)

    async def ModelReady(self, request: Any, context: Any) -> Any:
        await self._known(request.name, request.version, context)
        return pb.ModelReadyResponse(ready=self._service.is_ready)

    async def ServerMetadata(self, request: Any, context: Any) -> Any:
        return pb.ServerMetadataResponse(name=NAME, version=self._service.version, extensions=["binary_tensor_data"])

    async def ModelMetadata(self, request: Any, context: Any) -> Any:
        await self._known(request.name, request.version, context)
        described = self._service.metadata()
        answer = pb.ModelMetadataResponse(name=NAME, versions=described["versions"], platform=described["platform"])
        for kind, tensors in (("inputs", answer.inputs), ("outputs", answer.outputs)):
            for tensor in described[kind]:
                tensors.add(**tensor)
        return answer

    async def ModelInfer(self, request: Any, context: Any) -> Any:
        started, code = time.perf_counter(), 200
        try:
            await self._known(request.model_name, request.model_version, context)
            asked = openinference.from_grpc(request)
            probabilities, chosen, truncated = await self._service.score(asked.texts, asked.options)
            predictions = self._service.predictor.predictions(probabilities, chosen, truncated, all_scores=False)
            answer = pb.ModelInferResponse(model_name=NAME, model_version=self._service.version, id=request.id)
            openinference.fill_grpc(answer, asked, Answer.of(probabilities, predictions))
            return answer
        except RequestError as error:
            code = error.status
            metrics.REJECTED.labels(metrics.REASONS.get(code, "failed")).inc()
            if error.retry_after:
                context.set_trailing_metadata((("retry-after", str(error.retry_after)),))
            await context.abort(CODES.get(code, grpc.StatusCode.INTERNAL), str(error))
        except grpc.aio.AbortError:
            code = 404
            raise
        except Exception:
            code = 500
            metrics.REJECTED.labels("failed").inc()
            logger.exception("a request failed")
            await context.abort(grpc.StatusCode.INTERNAL, "the server failed: its log says why")
        finally:
            metrics.REQUEST_SECONDS.labels("grpc", code).observe(time.perf_counter() - started)

    async def RepositoryModelLoad(self, request: Any, context: Any) -> Any:
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, "a server has the one model that it was started with")

    RepositoryModelUnload = RepositoryModelLoad

    async def _known(self, name: str, version: str, context: Any) -> None:
        if name != NAME or version not in ("", self._service.version):
            await context.abort(
                grpc.StatusCode.NOT_FOUND, f"there is no such model: this is {NAME}, version {self._service.version}"
            )


def start(service: Service, address: str) -> Any:
    """A gRPC server that listens on an address; ``await server.start()`` begins. Workers share the address."""
    server = grpc.aio.server(
        options=[("grpc.max_receive_message_length", service.limits.body_bytes), ("grpc.so_reuseport", 1)],
        maximum_concurrent_rpcs=service.limits.requests,
    )
    stubs.add_GRPCInferenceServiceServicer_to_server(Servicer(service), server)
    server.add_insecure_port(address)
    return server
