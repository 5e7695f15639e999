"""The predictor server under load: overload, SIGTERM, disconnecting clients and several workers."""

import collections
import contextlib
import itertools
import signal
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import numpy as np
import pytest
from kserve.protocol.grpc import grpc_predict_v2_pb2 as pb
from kserve.protocol.grpc import grpc_predict_v2_pb2_grpc as stubs

from benchmarks import load
from tests.support import http2
from tests.support.attacks import ATTACKER, connected
from tests.support.servers import PREDICT, Server, serving


@pytest.mark.fault("server-sigterm")
def test_admitted_requests_get_their_responses_after_sigterm(bundle: Path, tmp_path: Path) -> None:
    options = ("--drain-seconds", "1", "--queue-seconds", "300", "--queue-tokens", "1000000", "--threads", "1")
    with serving(bundle, tmp_path / "serve.log", *options) as running, ThreadPoolExecutor() as pool:
        heavy = load.requests(["storm " * 100] * 2048, 512)
        loaded = pool.submit(load.closed, running.port, heavy, clients=4, count=4)
        while not running.metrics()["goemotions_queue_texts"]:
            assert not loaded.done()
        running.process.send_signal(signal.SIGTERM)
        assert running.process.wait(timeout=60) == 0
        assert loaded.result().statuses == [200] * 4


@pytest.mark.slow
@pytest.mark.fault("server-sigterm")
def test_sigterm_under_load_loses_nothing(bundle: Path, tmp_path: Path) -> None:
    """The server first becomes unready; it completes all requests that arrive before the port closes."""
    options = ("--drain-seconds", "6", "--queue-seconds", "300", "--queue-tokens", "1000000", "--threads", "1")
    with serving(bundle, tmp_path / "serve.log", *options) as running:
        wire = load.requests(["lake", "storm", "a quiet balloon"] * 32, 3)
        heavy = load.requests(["storm " * 100] * 512, 512)
        with ThreadPoolExecutor() as pool:
            loaded = pool.submit(load.closed, running.port, wire, clients=16, seconds=2)
            time.sleep(0.5)
            running.process.send_signal(signal.SIGTERM)
            signalled = time.monotonic()
            time.sleep(0.5)
            status, headers, _ = running.request("GET", "/v2/health/ready")
            assert (status, headers["connection"]) == (503, "close")
            assert running.request("GET", "/v2/health/live")[0] == 200
            # Before the port closes, with time for a busy machine to connect.
            time.sleep(max(0.0, signalled + 3 - time.monotonic()))
            late = pool.submit(load.closed, running.port, heavy, clients=8, count=8)
            assert running.process.wait(timeout=30) == 0
        assert set(loaded.result().statuses) == {200}
        assert late.result().statuses == [200] * 8
        assert max(late.result().seconds) > 0.3
        with pytest.raises(ConnectionRefusedError):
            running.request("GET", "/v2/health/ready")


@pytest.mark.slow
@pytest.mark.fault("server-sigterm", "server-drain")
def test_sigterm_under_load_of_grpc_loses_nothing(bundle: Path, tmp_path: Path) -> None:
    """Calls end that were sent before the port closes; later ones get the status with which clients send again elsewhere."""
    statuses: list[grpc.StatusCode] = []
    options = ("--drain-seconds", "0.5", "--queue-seconds", "300", "--queue-tokens", "1000000", "--threads", "1")
    with serving(bundle, tmp_path / "serve.log", *options) as running:
        heavy = pb.ModelInferRequest(model_name="goemotions")
        texts = [b"storm " * 100] * 64
        heavy.inputs.add(name="text", datatype="BYTES", shape=[64]).contents.bytes_contents.extend(texts)
        light = pb.ModelInferRequest(model_name="goemotions")
        light.inputs.add(name="text", datatype="BYTES", shape=[1]).contents.bytes_contents.append(b"lake")

        def call(number: int) -> None:
            with grpc.insecure_channel(f"127.0.0.1:{running.grpc_port}", [("grpc.use_local_subchannel_pool", 1)]) as channel:
                stub, own = stubs.GRPCInferenceServiceStub(channel), [grpc.StatusCode.OK]
                while own[-1] == grpc.StatusCode.OK:
                    try:
                        stub.ModelInfer(heavy if number == 0 else light, timeout=60)
                        own.append(grpc.StatusCode.OK)
                    except grpc.RpcError as error:
                        own.append(error.code())
                statuses.extend(own)

        with ThreadPoolExecutor(8) as pool:
            pool.map(call, range(8))
            time.sleep(0.5)
            running.process.send_signal(signal.SIGTERM)
            assert running.process.wait(timeout=30) == 0
    assert collections.Counter(statuses)[grpc.StatusCode.UNAVAILABLE] == 8
    assert set(statuses) == {grpc.StatusCode.OK, grpc.StatusCode.UNAVAILABLE}


@pytest.mark.slow
@pytest.mark.fault("server-overload")
def test_excess_load_is_rejected_and_the_rest_served(bundle: Path, tmp_path: Path) -> None:
    with serving(bundle, tmp_path / "serve.log", "--threads", "1", "--queue-seconds", "0.2") as running:
        wire = load.requests(["storm " * 100] * 64, 64)
        alone = load.closed(running.port, wire, clients=1, count=5).percentile(50)
        overload = load.closed(running.port, wire, clients=64, seconds=4)
        assert set(overload.statuses) == {200, 429}
        assert overload.percentile(99) < 0.2 + 64 * alone
        _, headers, _ = _first_rejected(running, wire[0])
        assert int(headers["retry-after"]) >= 1
        after = load.closed(running.port, wire, clients=1, count=5)
        assert set(after.statuses) == {200}
        assert after.percentile(50) < 5 * alone
        assert running.metrics()['goemotions_rejected_requests_total{reason="overloaded"}'] > 0


@pytest.mark.slow
@pytest.mark.fault("server-overload")
@pytest.mark.parametrize("address", [ATTACKER, "127.0.0.1"], ids=["another address", "that of the probe"])
def test_the_server_says_at_once_that_it_is_live_under_ten_times_the_load(bundle: Path, tmp_path: Path, address: str) -> None:
    with serving(bundle, tmp_path / "serve.log") as running, ThreadPoolExecutor() as pool:
        wire = load.requests(["storm " * 100] * 256, 64)
        most = load.closed(running.port, wire, clients=8, seconds=2).rate()
        loaded = pool.submit(load.opened, running.port, wire, rate=10 * most, seconds=5, address=address)
        time.sleep(1)
        seconds: list[float] = []
        while not loaded.done():
            started = time.perf_counter()
            assert running.request("GET", "/v2/health/live")[0] == 200
            seconds.append(time.perf_counter() - started)
            time.sleep(0.02)
        assert loaded.result().statuses.count(429) > 0.5 * len(loaded.result().statuses)
    assert np.percentile(seconds, 90) < 0.1
    # Those that other processes of the machine delay.
    assert max(seconds) < 1


@pytest.mark.slow
@pytest.mark.fault("server-overload")
def test_a_client_with_too_many_connections_reads_why_each_of_them_is_rejected(bundle: Path, tmp_path: Path) -> None:
    with serving(bundle, tmp_path / "serve.log", "--peer-connections", "8") as running:
        # Of 2,000 requests at once, most find no connection.
        flood = load.opened(running.port, load.requests(["storm"] * 64, 1), rate=10_000, seconds=0.2)
        assert set(flood.statuses) == {200, 429}
        assert flood.statuses.count(429) > 100
        counted = running.metrics()
        assert counted['goemotions_closed_connections_total{reason="overloaded"}'] > 100
        assert counted.get('goemotions_requests_total{outcome="server",protocol="http"}', 0) == 0


@pytest.mark.slow
@pytest.mark.fault("server-greedy-client")
def test_others_are_served_beside_a_greedy_client(bundle: Path, tmp_path: Path) -> None:
    with serving(bundle, tmp_path / "serve.log") as running:
        ones, heavy = load.requests(["lake", "storm on the lake"], 1), load.requests(["storm " * 130] * 512, 512)
        load.closed(running.port, ones, clients=4, seconds=1)
        quiet = load.opened(running.port, ones, rate=20, seconds=5)
        with ThreadPoolExecutor() as pool:
            greedy = pool.submit(load.closed, running.port, heavy, clients=4, seconds=6)
            time.sleep(0.5)
            disturbed = load.opened(running.port, ones, rate=20, seconds=5)
        assert set(quiet.statuses) == set(disturbed.statuses) == {200}
        assert 200 in greedy.result().statuses
        # They do not wait for requests of the other client, only for batches.
        assert disturbed.percentile(95) < 0.5 * greedy.result().percentile(50)


@pytest.mark.fault("server-greedy-client")
@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_an_address_with_all_requests_keeps_no_other_out(bundle: Path, tmp_path: Path, protocol: str) -> None:
    with serving(bundle, tmp_path / "serve.log", "--requests", "8", "--queue-seconds", "60") as running:
        fill = {"http": _fill_over_http, "grpc": _fill_over_grpc}[protocol]
        with ThreadPoolExecutor() as pool, grpc.insecure_channel(f"127.0.0.1:{running.grpc_port}") as channel:
            stub = stubs.GRPCInferenceServiceStub(channel)
            call = pb.ModelInferRequest(model_name="goemotions")
            call.inputs.add(name="text", datatype="BYTES", shape=[1]).contents.bytes_contents.append(b"lake")
            ended = threading.Event()
            greedy = pool.submit(fill, running, ended)
            try:
                while not running.metrics()['goemotions_rejected_requests_total{reason="overloaded"}']:
                    assert not greedy.done()
                for _ in range(10):
                    assert running.predict(instances=["lake"])[0] == 200
                    assert stub.ModelInfer(call).model_name == "goemotions"
            finally:
                ended.set()
        assert greedy.result() > 0


def _fill_over_http(running: Server, ended: threading.Event) -> int:
    """Requests of an address whose responses are as many as may be handled at once, and more; how many are served."""
    wire = load.requests(["storm on the lake"] * 32, 32)
    served = 0
    while not ended.is_set():
        served += load.closed(running.port, wire, clients=24, seconds=1, address=ATTACKER).statuses.count(200)
    return served


def _fill_over_grpc(running: Server, ended: threading.Event) -> int:
    """As over HTTP; how many calls get a response."""
    call = pb.ModelInferRequest(model_name="goemotions")
    call.inputs.add(name="text", datatype="BYTES", shape=[32]).contents.bytes_contents.extend([b"storm on the lake"] * 32)
    content, served = http2.message(call.SerializeToString()), 0
    with contextlib.closing(http2.Connection(running.grpc_port, ATTACKER)) as connection:
        connection.acknowledge()
        for _ in range(24):
            connection.call(content)
        for kind, flags, _, payload in itertools.takewhile(lambda _: not ended.is_set(), connection.frames(60)):
            served += kind == http2.HEADERS and not flags & http2.END_STREAM
            if kind == http2.HEADERS and flags & http2.END_STREAM:
                connection.call(content)
            elif payload and kind == http2.DATA:
                connection.send(http2.frame(http2.WINDOW_UPDATE, payload=len(payload).to_bytes(4, "big")))
    return served


@pytest.mark.fault("server-greedy-client")
def test_a_request_that_still_arrives_does_not_give_way_to_those_of_an_address_that_has_most(
    bundle: Path, tmp_path: Path
) -> None:
    call = pb.ModelInferRequest(model_name="goemotions")
    call.inputs.add(name="text", datatype="BYTES", shape=[1]).contents.bytes_contents.append(b"lake")
    content, (sent,) = http2.message(call.SerializeToString()), load.requests(["lake"], 1)
    with serving(bundle, tmp_path / "serve.log", "--requests", "8") as running, contextlib.ExitStack() as stack:
        over_grpc = stack.enter_context(contextlib.closing(http2.Connection(running.grpc_port)))
        over_grpc.acknowledge()
        stream = over_grpc.call(content[:10], end=False)
        over_http = stack.enter_context(socket.create_connection(("127.0.0.1", running.port), timeout=10))
        over_http.sendall(sent[:-1])
        time.sleep(0.3)
        for _ in range(12):
            greedy = stack.enter_context(contextlib.closing(http2.Connection(running.grpc_port, ATTACKER)))
            greedy.acknowledge()
            greedy.call()
            stack.enter_context(connected(running)).sendall(sent[:-1])
        while running.metrics()['goemotions_rejected_requests_total{reason="overloaded"}'] < 8:
            pass
        over_http.sendall(sent[-1:])
        assert over_http.recv(100).startswith(b"HTTP/1.1 200 ")
        over_grpc.send(http2.frame(http2.DATA, http2.END_STREAM, stream, content[10:]))
        ends = (payload for kind, flags, _, payload in over_grpc.frames(10) if kind == http2.HEADERS and flags & 1)
        assert b"grpc-status\x010" in next(ends)


def _first_rejected(running: Server, request: bytes) -> tuple[int, dict[str, str], bytes]:
    body = request.partition(b"\r\n\r\n")[2]
    with ThreadPoolExecutor(64) as pool:
        return next(
            response
            for response in pool.map(lambda _: running.request("POST", PREDICT, body), range(256))
            if response[0] == 429
        )


@pytest.mark.fault("client-disconnect")
def test_the_queued_texts_of_a_disconnected_client_are_dropped(bundle: Path, tmp_path: Path) -> None:
    with serving(bundle, tmp_path / "serve.log", "--threads", "1") as running:
        (sent,) = load.requests(["storm " * 100] * 512, 512)
        for _ in range(6):
            with contextlib.closing(socket.create_connection(("127.0.0.1", running.port))) as connection:
                connection.sendall(sent)
                time.sleep(0.02)
        deadline = time.monotonic() + 30
        while running.metrics()["goemotions_queue_texts"]:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        metrics = running.metrics()
    assert metrics['goemotions_rejected_requests_total{reason="client-gone"}'] >= 3
    assert metrics["goemotions_batch_texts_sum"] < 6 * 512


def test_workers_share_a_port_and_their_metrics_add_up(bundle: Path, tmp_path: Path) -> None:
    with serving(bundle, tmp_path / "serve.log", "--workers", "2", "--threads", "1") as running:
        wire = load.requests(["lake", "storm"] * 20, 2)
        outcome = load.closed(running.port, wire, clients=8, count=200)
        assert set(outcome.statuses) == {200}
        counts = {running.metrics()['goemotions_request_seconds_count{code="200",protocol="v1"}'] for _ in range(5)}
        assert counts == {200}
        texts = 'goemotions_scored_texts_total{version="r1"}'
        # A worker adds what it counted twice a second.
        for _ in range(50):
            if (scored := running.metrics().get(texts)) == running.metrics()["goemotions_request_texts_sum"]:
                break
            time.sleep(0.1)
        assert scored == running.metrics()["goemotions_request_texts_sum"]
        running.process.send_signal(signal.SIGTERM)
        assert running.process.wait(timeout=30) == 0
