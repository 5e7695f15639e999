"""The predictor server as its callers see it: a real process, V1 and V2 over HTTP and gRPC."""

import contextlib
import json
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import click
import grpc
import numpy as np
import psutil
import pytest
from kserve.protocol.grpc import grpc_predict_v2_pb2 as pb
from kserve.protocol.grpc import grpc_predict_v2_pb2_grpc as stubs

from benchmarks import load
from goemotions.cli import main as cli
from goemotions.models import engines
from goemotions.prediction.predictor import Options, Predictor
from goemotions.registry import registration
from goemotions.registry.registration import CandidateArtifacts
from goemotions.serving.limits import Limits
from tests.support.servers import PREDICT, Server, serving

TEXTS = ["we found the lake", "a quiet balloon under the table", "", "storm " * 400, "\U0001f600 gravel \u202e near"]
INFER = "/v2/models/goemotions/infer"


@pytest.fixture(scope="module")
def bundle(candidate: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("served") / "bundle"
    registration.assemble(
        folder, "cpu", CandidateArtifacts.below(candidate, "cpu"), {"profile": "minilm", "run_id": "r1", "dataset_digest": "d"}
    )
    return folder


@pytest.fixture(scope="module")
def predictor(bundle: Path) -> Predictor:
    return Predictor.load(bundle, threads=1)


@pytest.fixture(scope="module")
def server(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    log = tmp_path_factory.mktemp("log") / "serve.log"
    with serving(bundle, log, "--body-bytes", "200000", "--texts", "64", "--read-seconds", "1") as running:
        yield running
    assert running.process.returncode == 0
    assert "Traceback" not in log.read_text(), log.read_text()


@pytest.fixture(scope="module")
def stub(server: Server) -> Iterator[Any]:
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        yield stubs.GRPCInferenceServiceStub(channel)


def v2(texts: list[str], **fields: Any) -> bytes:
    tensor = {"name": "text", "shape": [len(texts)], "datatype": "BYTES", "data": texts}
    return json.dumps({"inputs": [tensor], **fields}).encode()


def message(texts: list[str]) -> Any:
    made = pb.ModelInferRequest(model_name="goemotions", id="q")
    tensor = made.inputs.add(name="text", datatype="BYTES", shape=[len(texts)])
    tensor.contents.bytes_contents.extend(text.encode() for text in texts)
    return made


def scores(predictor: Predictor, texts: list[str]) -> np.ndarray:
    names = predictor.bundle.taxonomy.names
    answers = predictor.predict(texts, Options(all_scores=True))
    return np.array([[answer["scores"][name] for name in names] for answer in answers], dtype=np.float32)


@pytest.mark.fault("http-long-text")
def test_v1_answers_with_labels_scores_and_the_version(server: Server, predictor: Predictor) -> None:
    status, answer = server.predict(instances=TEXTS)
    assert status == 200
    assert answer == {"predictions": predictor.predict(TEXTS), "model_name": "goemotions", "model_version": "r1"}
    assert [prediction["truncated"] for prediction in answer["predictions"]] == [False, False, False, True, False]


def test_options_change_the_answer(server: Server) -> None:
    _, everything = server.predict(instances=TEXTS[:1], parameters={"threshold": 0, "all_scores": True})
    assert len(everything["predictions"][0]["labels"]) == len(everything["predictions"][0]["scores"]) == 7
    found = list(everything["predictions"][0]["scores"].values())
    assert found == sorted(found, reverse=True)
    _, two = server.predict(instances=TEXTS[:1], parameters={"threshold": 0, "top_k": 2})
    assert two["predictions"][0]["labels"] == everything["predictions"][0]["labels"][:2]
    _, none = server.predict(instances=TEXTS[:1], parameters={"threshold": 1.0})
    assert none["predictions"][0] == {"labels": [], "scores": {}, "truncated": False}


def test_v2_and_grpc_answer_as_v1_does(server: Server, stub: Any, predictor: Predictor) -> None:
    expected = scores(predictor, TEXTS)
    labels = [prediction["labels"] for prediction in predictor.predict(TEXTS)]
    for path in (INFER, "/v2/models/goemotions/versions/r1/infer"):
        status, _, body = server.ask("POST", path, v2(TEXTS, id="q"))
        answer = json.loads(body)
        assert (status, answer["id"], answer["model_version"], answer["parameters"]) == (200, "q", "r1", {"truncated": [3]})
        tensors = {output["name"]: output for output in answer["outputs"]}
        assert np.array(tensors["probabilities"]["data"], dtype=np.float32).reshape(5, 7) == pytest.approx(expected, abs=1e-5)
        assert [json.loads(text) for text in tensors["labels"]["data"]] == labels
    told = stub.ModelInfer(message(TEXTS))
    assert (told.id, told.model_version) == ("q", "r1")
    assert np.array(told.outputs[0].contents.fp32_contents).reshape(5, 7) == pytest.approx(expected, abs=1e-5)
    assert [json.loads(text) for text in told.outputs[1].contents.bytes_contents] == labels


def test_v2_answers_in_binary(server: Server, predictor: Predictor) -> None:
    status, headers, body = server.ask("POST", INFER, v2(TEXTS, parameters={"binary_data_output": True}))
    assert (status, headers["content-type"]) == (200, "application/octet-stream")
    head = json.loads(body[: int(headers["inference-header-content-length"])])
    size = head["outputs"][0]["parameters"]["binary_data_size"]
    found = np.frombuffer(body[int(headers["inference-header-content-length"]) :][:size], "<f4").reshape(5, 7)
    assert found == pytest.approx(scores(predictor, TEXTS), abs=1e-5)


@pytest.mark.fault("http-mixed-batch")
def test_many_clients_at_once_get_their_own_answers(server: Server, stub: Any, predictor: Predictor) -> None:
    texts = [" ".join(["lake", "storm", "balloon"][: 1 + n % 3] * (1 + n % 7)) for n in range(96)]
    expected = scores(predictor, texts)

    def ask(n: int) -> np.ndarray:
        if n % 3 == 0:
            _, answer = server.predict(instances=[texts[n]], parameters={"all_scores": True})
            found = answer["predictions"][0]["scores"]
            return np.array([found[name] for name in predictor.bundle.taxonomy.names])
        if n % 3 == 1:
            return np.array(json.loads(server.ask("POST", INFER, v2([texts[n]]))[2])["outputs"][0]["data"])
        return np.array(stub.ModelInfer(message([texts[n]])).outputs[0].contents.fp32_contents)

    with ThreadPoolExecutor(32) as pool:
        found = np.array(list(pool.map(ask, range(len(texts)))))
    assert np.abs(found - expected).max() < engines.INT8_BOUND


def test_health_and_metadata(server: Server, stub: Any) -> None:
    shown = {
        "/v2/health/live": {"live": True},
        "/v2/health/ready": {"ready": True},
        "/v1/models": {"models": ["goemotions"]},
        "/v1/models/goemotions": {"name": "goemotions", "ready": True},
        "/v2/models/goemotions/ready": {"name": "goemotions", "ready": True},
        "/v2": {"name": "goemotions", "version": "r1", "extensions": ["binary_tensor_data"]},
    }
    for path, expected in shown.items():
        status, _, body = server.ask("GET", path)
        assert (status, json.loads(body)) == (200, expected)
    described = json.loads(server.ask("GET", "/v2/models/goemotions")[2])
    assert described["outputs"][0] == {"name": "probabilities", "datatype": "FP32", "shape": [-1, 7]}
    assert stub.ServerLive(pb.ServerLiveRequest()).live
    assert stub.ServerReady(pb.ServerReadyRequest()).ready
    assert stub.ModelReady(pb.ModelReadyRequest(name="goemotions")).ready
    assert list(stub.ModelMetadata(pb.ModelMetadataRequest(name="goemotions")).outputs[0].shape) == [-1, 7]
    assert stub.ServerMetadata(pb.ServerMetadataRequest()).version == "r1"


@pytest.mark.parametrize(
    ("content_type", "body", "status", "named"),
    [
        ("application/json", b"not json", 400, "not valid JSON"),
        ("application/json", b"", 400, "not valid JSON"),
        ("text/plain", b'{"instances": ["a"]}', 415, "application/json"),
        ("", b'{"instances": ["a"]}', 415, "application/json"),
        ("application/json", b"{}", 400, "instances"),
        ("application/json", b"[1, 2]", 400, "the body"),
        ("application/json", b'{"instances": "text"}', 400, "instances"),
        ("application/json", b'{"instances": []}', 400, "instances"),
        ("application/json", b'{"instances": ["a", 5]}', 400, "instances[1]"),
        ("application/json", b'{"instances": ["a"], "parameters": {"top_k": 0}}', 400, "top_k"),
        ("application/json", b'{"instances": ' + b"[" * 50_000, 400, "not valid JSON"),
        ("application/json", b'{"instances": [1e999, NaN]}', 400, ""),
        ("application/json", json.dumps({"instances": ["a"] * 65}).encode(), 413, "at most 64"),
        ("application/json", json.dumps({"instances": ["a" * 200_000]}).encode(), 413, "200,000 bytes"),
    ],
)
@pytest.mark.fault(
    "http-not-json",
    "http-wrong-field",
    "http-no-instances",
    "http-not-a-string",
    "http-body-limit",
    "http-text-limit",
    "http-hostile-json",
)
def test_a_bad_request_is_refused(server: Server, content_type: str, body: bytes, status: int, named: str) -> None:
    found, headers, answer = server.ask("POST", PREDICT, body, Content_Type=content_type)
    assert (found, headers["content-type"]) == (status, "application/json")
    content = json.loads(answer)
    assert content.keys() == {"error"}
    assert named in content["error"]


@pytest.mark.parametrize("text", ["", "   ", "\x00\x07", "\u202elake", "\N{FAMILY}" * 50])
@pytest.mark.fault("http-blank-text")
def test_a_strange_text_has_a_defined_answer(server: Server, text: str) -> None:
    answers = [server.predict(instances=[text]) for _ in range(2)]
    assert answers[0] == answers[1]
    assert answers[0][0] == 200


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("POST", "/v1/models/other:predict", 404),
        ("POST", "/v1/models/goemotions:explain", 404),
        ("POST", "/v2/models/other/infer", 404),
        ("POST", "/v2/models/goemotions/versions/9/infer", 404),
        ("POST", "/v2/repository/models/goemotions/unload", 404),
        ("GET", "/nothing", 404),
        ("GET", "/../../etc/passwd", 404),
        ("GET", PREDICT, 405),
        ("PUT", INFER, 405),
        ("DELETE", "/v1/models/goemotions", 405),
    ],
)
@pytest.mark.fault("http-unknown-path")
def test_an_unknown_path_or_method_is_refused(server: Server, method: str, path: str, status: int) -> None:
    found, headers, body = server.ask(method, path, b"{}" if method == "POST" else None)
    assert found == status
    assert json.loads(body).keys() == {"error"}
    assert status != 405 or headers["allow"]


@pytest.mark.parametrize(("name", "version"), [("other", ""), ("goemotions", "9"), ("", "")])
def test_an_unknown_model_is_not_found_over_grpc(stub: Any, name: str, version: str) -> None:
    wanted = message(["a"])
    wanted.model_name, wanted.model_version = name, version
    for call in (lambda: stub.ModelInfer(wanted), lambda: stub.ModelReady(pb.ModelReadyRequest(name=name, version=version))):
        with pytest.raises(grpc.RpcError) as refused:
            call()
        assert refused.value.code() == grpc.StatusCode.NOT_FOUND


def test_a_bad_grpc_request_is_refused(stub: Any) -> None:
    wrong = message(["a"])
    wrong.inputs[0].shape[0] = 7
    for asked in (wrong, message([]), message(["a"] * 65)):
        with pytest.raises(grpc.RpcError) as refused:
            stub.ModelInfer(asked)
        assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    with pytest.raises(grpc.RpcError) as unknown:
        stub.RepositoryModelUnload(pb.RepositoryModelUnloadRequest(model_name="goemotions"))
    assert unknown.value.code() == grpc.StatusCode.UNIMPLEMENTED


def raw(server: Server, sent: bytes, *, more: bytes = b"", pause: float = 0.0, timeout: float = 30.0) -> bytes:
    """What comes back until the server closes the connection; ``more`` is sent again and again meanwhile."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=timeout) as connection:
        connection.sendall(sent)
        answer = b""
        connection.settimeout(pause or timeout)
        while True:
            try:
                received = connection.recv(65536)
            except TimeoutError:
                connection.sendall(more)
                continue
            except ConnectionError:
                return answer
            if not received:
                return answer
            answer += received


HEAD = f"POST {PREDICT} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n".encode()


@pytest.mark.fault("http-body-limit")
def test_a_chunked_body_over_the_limit_is_refused_while_it_is_read(server: Server) -> None:
    chunk = b"%x\r\n%s\r\n" % (60_000, b"a" * 60_000)
    answer = raw(server, HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + chunk * 4)
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"connection: close" in answer.lower()


@pytest.mark.parametrize("length", [b"10000000000", b"200001"])
@pytest.mark.fault("http-body-limit")
def test_a_length_over_the_limit_is_refused_before_the_body(server: Server, length: bytes) -> None:
    assert raw(server, HEAD + b"Content-Length: " + length + b"\r\n\r\n{").startswith(b"HTTP/1.1 413 ")


@pytest.mark.parametrize("length", [b"-5", b"abc", b"1, 2", b"99999999999999999999999"])
def test_a_length_that_is_no_length_is_refused(server: Server, length: bytes) -> None:
    assert raw(server, HEAD + b"Content-Length: " + length + b"\r\n\r\n{}")[:12] in (b"HTTP/1.1 400", b"HTTP/1.1 413")


@pytest.mark.fault("http-body-limit")
def test_a_body_shorter_than_its_length_times_out_and_one_longer_is_cut(server: Server) -> None:
    body = b'{"instances": ["a"]}'
    assert raw(server, HEAD + b"Content-Length: 50\r\n\r\n" + body).startswith(b"HTTP/1.1 408 ")
    assert raw(server, HEAD + b"Connection: close\r\nContent-Length: 20\r\n\r\n" + body + b"xxxx").startswith(b"HTTP/1.1 200 ")


@pytest.mark.fault("http-slow-client")
def test_a_client_that_sends_a_byte_at_a_time_times_out_and_others_are_served(server: Server) -> None:
    slow: dict[str, bytes] = {}
    sent = {"body": HEAD + b"Content-Length: 500\r\n\r\n", "head": HEAD}
    threads = [
        threading.Thread(target=lambda kind=kind: slow.update({kind: raw(server, sent[kind], more=b"a", pause=0.2)}))
        for kind in sent
    ]
    for thread in threads:
        thread.start()
    started = time.monotonic()
    while any(thread.is_alive() for thread in threads):
        assert server.predict(instances=["a"])[0] == 200
        assert time.monotonic() - started < 30
        time.sleep(0.1)
    assert slow["body"].startswith(b"HTTP/1.1 408 ")
    assert slow["head"] == b""


def test_no_answer_says_what_failed_inside(server: Server) -> None:
    bodies = [server.ask("POST", PREDICT, body)[2] for body in (b"{", b"\xff", b'{"instances": [[]]}', b"null")]
    for body in bodies:
        assert not any(word in body for word in (b"Traceback", b"pydantic", b".py", b"line ", b"column"))


def test_metrics_count_what_happened(server: Server) -> None:
    before = server.metrics()
    server.predict(instances=["lake", "storm " * 400], parameters={"threshold": 0})
    server.predict(instances=[])
    after = server.metrics()

    def grew(name: str) -> float:
        return after.get(name, 0) - before.get(name, 0)

    assert grew('goemotions_request_seconds_count{code="200",protocol="v1"}') == 1
    assert grew('goemotions_rejected_requests_total{reason="malformed"}') == 1
    assert grew('goemotions_predictions_total{label="calm"}') == 2
    assert grew("goemotions_truncated_texts_total") == 1
    assert grew("goemotions_request_texts_sum") == 2
    assert grew("goemotions_batch_texts_sum") == 2
    assert grew('request_predict_seconds_count{model_name="goemotions"}') == 1
    assert after['goemotions_model_info{engine="onnx-int8",profile="minilm",version="r1"}'] == 1


def test_the_server_listens_on_loopback_alone(server: Server) -> None:
    open_sockets = psutil.Process(server.process.pid).connections()
    listening = {found.laddr.port: found.laddr.ip.removeprefix("::ffff:") for found in open_sockets if found.status == "LISTEN"}
    assert listening == {server.port: "127.0.0.1", server.grpc_port: "127.0.0.1"}


@pytest.mark.fault("model-file-damaged")
def test_a_damaged_bundle_never_becomes_ready(bundle: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "bundle"
    shutil.copytree(bundle, damaged)
    content = bytearray((damaged / "model.int8.onnx").read_bytes())
    content[len(content) // 2] ^= 1
    (damaged / "model.int8.onnx").write_bytes(content)
    for workers in ("1", "2"):
        command = [
            sys.executable,
            "-m",
            "goemotions.cli",
            "serve",
            "--bundle",
            str(damaged),
            "--port",
            "0",
            "--workers",
            workers,
        ]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert ended.returncode == 1
        assert "model.int8.onnx differs from its manifest" in ended.stderr.strip().splitlines()[-1]


def test_a_port_in_use_is_named(bundle: Path, server: Server) -> None:
    command = [sys.executable, "-m", "goemotions.cli", "serve", "--bundle", str(bundle), "--port", str(server.port)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 1
    assert "choose another --port" in ended.stderr.strip().splitlines()[-1]


@pytest.mark.fault("server-sigterm")
def test_sigterm_under_load_loses_nothing(bundle: Path, tmp_path: Path) -> None:
    """Readiness goes first, requests are answered until the port closes and those under way after it."""
    with serving(bundle, tmp_path / "serve.log", "--drain-seconds", "2", "--threads", "1") as running:
        wire = load.requests(["lake", "storm", "a quiet balloon"] * 32, 3)
        heavy = load.requests(["storm " * 100] * 512, 512)
        with ThreadPoolExecutor() as pool:
            loaded = pool.submit(load.closed, running.port, wire, clients=16, seconds=2)
            time.sleep(0.5)
            running.process.send_signal(signal.SIGTERM)
            time.sleep(0.5)
            status, headers, _ = running.ask("GET", "/v2/health/ready")
            assert (status, headers["connection"]) == (503, "close")
            assert running.ask("GET", "/v2/health/live")[0] == 200
            time.sleep(1.2)
            late = pool.submit(load.closed, running.port, heavy, clients=8, count=8)
            assert running.process.wait(timeout=30) == 0
        assert set(loaded.result().statuses) == {200}
        assert late.result().statuses == [200] * 8
        assert max(late.result().seconds) > 0.3
        with pytest.raises(ConnectionRefusedError):
            running.ask("GET", "/v2/health/ready")


@pytest.mark.fault("server-overload")
def test_more_load_than_the_server_takes_is_refused_and_the_rest_answered(bundle: Path, tmp_path: Path) -> None:
    with serving(bundle, tmp_path / "serve.log", "--threads", "1", "--queue-seconds", "0.2") as running:
        wire = load.requests(["storm " * 100] * 64, 64)
        alone = load.closed(running.port, wire, clients=1, count=5).percentile(50)
        overload = load.closed(running.port, wire, clients=64, seconds=4)
        assert set(overload.statuses) == {200, 429}
        assert overload.percentile(99) < 0.2 + 64 * alone
        _, headers, _ = _first_refused(running, wire[0])
        assert int(headers["retry-after"]) >= 1
        after = load.closed(running.port, wire, clients=1, count=5)
        assert set(after.statuses) == {200}
        assert after.percentile(50) < 5 * alone
        assert running.metrics()['goemotions_rejected_requests_total{reason="overloaded"}'] > 0


def _first_refused(running: Server, request: bytes) -> tuple[int, dict[str, str], bytes]:
    body = request.partition(b"\r\n\r\n")[2]
    with ThreadPoolExecutor(64) as pool:
        return next(answer for answer in pool.map(lambda _: running.ask("POST", PREDICT, body), range(256)) if answer[0] == 429)


@pytest.mark.fault("client-disconnect")
def test_a_client_that_leaves_is_counted_and_its_texts_are_dropped(bundle: Path, tmp_path: Path) -> None:
    with serving(bundle, tmp_path / "serve.log", "--threads", "1") as running:
        body = json.dumps({"instances": ["storm " * 100] * 512}).encode()
        sent = HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body
        for _ in range(6):
            with contextlib.closing(socket.create_connection(("127.0.0.1", running.port))) as connection:
                connection.sendall(sent)
                time.sleep(0.02)
        deadline = time.monotonic() + 30
        while running.metrics()["goemotions_queue_texts"]:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        found = running.metrics()
    assert found['goemotions_rejected_requests_total{reason="client-gone"}'] >= 3
    assert found["goemotions_batch_texts_sum"] < 6 * 512


def test_workers_share_a_port_and_their_metrics_add_up(bundle: Path, tmp_path: Path) -> None:
    with serving(bundle, tmp_path / "serve.log", "--workers", "2", "--threads", "1") as running:
        wire = load.requests(["lake", "storm"] * 20, 2)
        outcome = load.closed(running.port, wire, clients=8, count=200)
        assert set(outcome.statuses) == {200}
        found = {running.metrics()['goemotions_request_seconds_count{code="200",protocol="v1"}'] for _ in range(5)}
        assert found == {200}
        running.process.send_signal(signal.SIGTERM)
        assert running.process.wait(timeout=30) == 0


def test_each_option_has_an_environment_variable_of_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    context = click.Context(cli.serve, auto_envvar_prefix="GOEMOTIONS_SERVE")
    for option in cli.serve.params:
        name = f"GOEMOTIONS_SERVE_{option.opts[0].removeprefix('--').replace('-', '_').upper()}"
        monkeypatch.setenv(name, "1")
        assert option.value_from_envvar(context), name


def test_the_limits_on_the_page_are_those_that_hold() -> None:
    page = (Path(__file__).parents[2] / "docs" / "serving.md").read_text(encoding="utf-8")
    for name, value in vars(Limits()).items():
        assert f"| `--{name.replace('_', '-')}` | {value:{',' if isinstance(value, int) else 'g'}} |" in page


def test_every_option_is_an_environment_variable(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GOEMOTIONS_SERVE_TEXTS", "2")
    monkeypatch.setenv("GOEMOTIONS_SERVE_PAGE", "false")
    with serving(bundle, tmp_path / "serve.log") as running:
        assert running.predict(instances=["a"] * 3)[0] == 413
        assert running.ask("GET", "/")[0] == 404
