"""The gRPC server in this process: calls that its drain cuts."""

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import grpc
import pytest
from kserve.protocol.grpc import grpc_predict_v2_pb2 as pb
from kserve.protocol.grpc import grpc_predict_v2_pb2_grpc as stubs
from prometheus_client import REGISTRY

from goemotions.serving import listening
from goemotions.serving.grpc import Server
from goemotions.serving.limits import Limits, Requests
from goemotions.serving.service import Service
from pipelines import stack


@pytest.mark.fault("server-drain", "server-blame")
def test_a_call_that_is_cut_at_the_deadline_of_the_drain_counts_against_the_server() -> None:
    async def run() -> grpc.StatusCode:
        began = asyncio.Event()

        async def predict(*_: Any, **__: Any) -> None:
            began.set()
            await asyncio.Event().wait()

        (port,) = stack.free_ports(1)
        service = SimpleNamespace(
            limits=Limits(), requests=Requests(1), name="goemotions", version="1", run_id="r1", predict=predict
        )
        server = Server(cast(Service, service), listening.bind("127.0.0.1", port, ""))
        await server.start()
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            request = pb.ModelInferRequest(model_name="goemotions")
            request.inputs.add(name="text", datatype="BYTES", shape=[1]).contents.bytes_contents.append(b"lake")
            call = stubs.GRPCInferenceServiceStub(channel).ModelInfer(request)
            await asyncio.wait_for(began.wait(), 10)
            await server.stop(0.1)
            return cast(grpc.StatusCode, await call.code())

    def count(outcome: str) -> float:
        return REGISTRY.get_sample_value("goemotions_requests_total", {"protocol": "grpc", "outcome": outcome}) or 0

    before = count("server"), count("client")
    assert asyncio.run(run()) == grpc.StatusCode.UNAVAILABLE
    assert (count("server"), count("client")) == (before[0] + 1, before[1])
