"""The gRPC server in this process: calls that its drain cuts, and many calls of one client."""

import asyncio
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, TypeVar, cast

import grpc
import numpy as np
import pytest
import uvloop
from kserve.protocol.grpc import grpc_predict_v2_pb2 as pb
from kserve.protocol.grpc import grpc_predict_v2_pb2_grpc as stubs
from prometheus_client import REGISTRY

from goemotions.serving.admission import listening
from goemotions.serving.admission.shares import Requests
from goemotions.serving.grpc.frames import STREAMS
from goemotions.serving.grpc.server import GrpcServer
from goemotions.serving.limits import Limits
from goemotions.serving.service import Result, Service
from pipelines import stack
from tests.support import http2

Found = TypeVar("Found")


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
        server = GrpcServer(cast(Service, service), listening.bind("127.0.0.1", port, ""))
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


def test_a_client_with_as_many_calls_as_it_may_have_gets_an_answer_to_each() -> None:
    """Calls of a connection that end together make room for as many, although the library has not freed them."""
    result = Result(np.zeros((1, 1), dtype=np.float32), [{"labels": [], "scores": {}, "truncated": False}])
    waiting: list[asyncio.Future[None]] = []

    async def predict(*_: Any, **__: Any) -> Result:
        waiting.append(asyncio.get_running_loop().create_future())
        own = waiting[-1]
        if len(waiting) == STREAMS:
            for one in waiting:
                one.set_result(None)
            waiting.clear()
        await own
        return result

    def call(port: int) -> set[str]:
        request = pb.ModelInferRequest(model_name="goemotions")
        request.inputs.add(name="text", datatype="BYTES", shape=[1]).contents.bytes_contents.append(b"lake")
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            stub = stubs.GRPCInferenceServiceStub(channel)
            calls = [stub.ModelInfer.future(request, timeout=30) for _ in range(3 * STREAMS)]
            return {f"{one.code()} {one.details()}" for one in calls}

    assert uvloop.run(served(Limits(), predict, call)) == {f"{grpc.StatusCode.OK} "}


async def served(limits: Limits, predict: Any, test: Callable[[int], Found]) -> Found:
    """What a test returns that is run in a thread, with the port of a server."""
    (port,) = stack.free_ports(1)
    service = SimpleNamespace(
        limits=limits, requests=Requests(limits.requests), name="goemotions", version="1", run_id="r1", predict=predict
    )
    server = GrpcServer(cast(Service, service), listening.bind("127.0.0.1", port, ""))
    await server.start()
    try:
        return await asyncio.to_thread(test, port)
    finally:
        await server.stop(0.1)


@pytest.mark.fault("grpc-hostile-client")
def test_messages_that_arrive_take_no_more_memory_than_all_bodies_may() -> None:
    result = Result(np.zeros((1, 1), dtype=np.float32), [{"labels": [], "scores": {}, "truncated": False}])

    async def predict(*_: Any, **__: Any) -> Result:
        return result

    def statuses(port: int) -> tuple[int, bytes, bytes]:
        request = pb.ModelInferRequest(model_name="goemotions")
        request.inputs.add(name="text", datatype="BYTES", shape=[1]).contents.bytes_contents.append(b"lake" * 10_000)
        content = http2.message(request.SerializeToString())
        greedy = http2.Connection(port, "127.0.0.2")
        greedy.acknowledge()
        for _ in range(100):
            greedy.call(content[:-1], end=False)
        answers = [payload for kind, _, _, payload in greedy.frames(1) if kind == http2.HEADERS]
        other = http2.Connection(port)
        other.acknowledge()
        other.call(content)
        (answer,) = [payload for kind, flags, _, payload in other.frames(1) if kind == http2.HEADERS and flags & 1]
        greedy.close()
        other.close()
        # The next ones refer to the fields of the first.
        return len(answers), answers[0], answer

    # 25 messages fit.
    rejected, first, of_other = uvloop.run(served(Limits(total_bytes=1_000_000), predict, statuses))
    assert 75 <= rejected < 100
    assert b"grpc-status\x018" in first
    assert b"grpc-status\x010" in of_other
