"""Start and configuration of the predictor server: options, environment variables, its port, a damaged bundle."""

import json
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import grpc
import psutil
import pytest
from kserve.protocol.grpc import grpc_predict_v2_pb2 as pb
from kserve.protocol.grpc import grpc_predict_v2_pb2_grpc as stubs

from goemotions.cli import prediction
from goemotions.errors import WorkflowError
from goemotions.serving.admission import listening
from goemotions.serving.limits import Limits
from tests.support.servers import Server, serving


@pytest.fixture(scope="module")
def server(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server of the model `mine`, that gets some of its options from the environment."""
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("GOEMOTIONS_SERVE_TEXTS", "2")
        environment.setenv("GOEMOTIONS_SERVE_PAGE", "false")
        environment.setenv("GOEMOTIONS_SERVE_REQUESTS", "4")
        environment.setenv("GOEMOTIONS_SERVE_VERSION_NUMBER", "7")
        with serving(bundle, tmp_path_factory.mktemp("log") / "serve.log", name="mine") as running:
            yield running


def run_serve(*options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "goemotions.cli", "serve", *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_the_server_listens_on_loopback_only(server: Server) -> None:
    open_sockets = psutil.Process(server.process.pid).connections()
    listening = {one.laddr.port: one.laddr.ip.removeprefix("::ffff:") for one in open_sockets if one.status == "LISTEN"}
    assert listening == {server.port: "127.0.0.1", server.grpc_port: "127.0.0.1"}


@pytest.mark.fault("model-file-damaged")
def test_a_damaged_bundle_never_becomes_ready(bundle: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "bundle"
    shutil.copytree(bundle, damaged)
    content = bytearray((damaged / "model.int8.onnx").read_bytes())
    content[len(content) // 2] ^= 1
    (damaged / "model.int8.onnx").write_bytes(content)
    for workers in ("1", "2"):
        ended = run_serve("--bundle", str(damaged), "--port", "0", "--workers", workers)
        assert ended.returncode == 1
        assert "model.int8.onnx differs from its manifest" in ended.stderr.strip().splitlines()[-1]


@pytest.mark.fault("gpu-not-seen")
def test_a_server_that_was_given_a_gpu_does_not_start_on_the_cpu(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GOEMOTIONS_DEVICE", "gpu")
    ended = run_serve("--bundle", str(bundle), "--port", "0")
    assert ended.returncode == 1
    last = ended.stderr.strip().splitlines()[-1]
    # With a GPU the bundle is the reason: its engine computes on the CPU.
    assert re.match(r"goemotions: (torch|driver|runtime|device plugin): |goemotions: openvino-int8 computes on the CPU", last)


@pytest.mark.fault("port-in-use")
def test_a_port_in_use_is_an_error(bundle: Path, server: Server) -> None:
    ended = run_serve("--bundle", str(bundle), "--port", str(server.port))
    assert ended.returncode == 1
    assert "choose another --port" in ended.stderr.strip().splitlines()[-1]


@pytest.mark.fault("port-in-use")
@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_grpc_port_in_use_is_an_error(bundle: Path, server: Server, workers: str) -> None:
    ended = run_serve("--bundle", str(bundle), "--port", "0", "--grpc-port", str(server.grpc_port), "--workers", workers)
    assert ended.returncode == 1
    assert "choose another --grpc-port" in ended.stderr.strip().splitlines()[-1]


@pytest.mark.parametrize("option", ["--port", "--grpc-port"])
def test_a_port_that_cannot_be_is_a_named_error(bundle: Path, option: str) -> None:
    ended = run_serve("--bundle", str(bundle), "--port", "0", option, "70000")
    assert ended.returncode == 1
    assert ended.stderr.strip().splitlines()[-1].endswith(f"choose another {option}")
    assert "Traceback" not in ended.stderr


@pytest.mark.fault("port-in-use")
def test_of_two_servers_that_bound_one_port_the_later_one_to_listen_ends_with_a_named_error() -> None:
    with socket.socket() as sooner, socket.socket() as later:
        # Until one listens, several may be bound.
        for one in (sooner, later):
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sooner.bind(("127.0.0.1", 0))
        later.bind(sooner.getsockname())
        sooner.listen()
        with pytest.raises(WorkflowError, match=r"cannot listen on 127\.0\.0\.1:\d+ \(.*\): choose another port"):
            listening.listen(later)


@pytest.mark.fault("grpc-no-message", "server-overload")
def test_grpc_calls_over_the_limit_are_rejected_and_counted_and_health_checks_are_not(server: Server) -> None:
    idle, ended = [], threading.Event()
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        infer = channel.stream_unary("/inference.GRPCInferenceService/ModelInfer", pb.ModelInferRequest.SerializeToString)
        idle = [infer.future(iter(lambda: ended.wait(30) and None, None)) for _ in range(5)]
        refused = next(call for call in as_finished(idle))
        assert refused.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert dict(refused.trailing_metadata())["retry-after"] == "1"
        assert stubs.GRPCInferenceServiceStub(channel).ServerLive(pb.ServerLiveRequest()).live
        assert server.metrics()['goemotions_requests_total{outcome="overload",protocol="grpc"}'] == 1
        ended.set()


def test_the_modules_of_the_server_do_not_import_what_kserve_itself_needs() -> None:
    needless = ["pandas", "fastapi", "kubernetes", "torch", "transformers", "mlflow"]
    modules = "goemotions.serving.grpc.server, goemotions.serving.http.page, goemotions.serving.http.rest"
    code = f"import sys, {modules}; loaded = set({needless}) & set(sys.modules); import kserve; print(loaded, kserve.Model.__name__)"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout.split() == ["set()", "Model"]


def as_finished(calls: list[Any]) -> Iterator[Any]:
    """The calls that have ended, as soon as there is one."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        yield from (call for call in calls if call.done())
        time.sleep(0.02)


def test_each_option_has_an_environment_variable_of_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    context = click.Context(prediction.serve, auto_envvar_prefix="GOEMOTIONS_SERVE")
    for option in prediction.serve.params:
        name = f"GOEMOTIONS_SERVE_{option.opts[0].removeprefix('--').replace('-', '_').upper()}"
        monkeypatch.setenv(name, "1")
        assert option.value_from_envvar(context), name


def test_the_documented_limits_are_the_defaults() -> None:
    page = (Path(__file__).parents[2] / "docs" / "serving.md").read_text(encoding="utf-8")
    for name, value in vars(Limits()).items():
        shown = "on" if value is True else f"{value:{',' if isinstance(value, int) else 'g'}}"
        assert f"| `--{name.replace('_', '-')}` | {shown} |" in page


def test_without_a_request_log_answers_have_ids_and_feedback_is_refused(server: Server) -> None:
    status, headers, _ = server.request("POST", "/v1/models/mine:predict", json.dumps({"instances": ["a"]}))
    assert (status, len(headers["x-request-id"])) == (200, 32)
    feedback = {"id": headers["x-request-id"], "labels": ["glee"]}
    status, _, body = server.request("POST", "/v1/feedback", json.dumps(feedback))
    assert status == 404
    assert "keeps no request log" in json.loads(body)["error"]
    assert not any("goemotions_request_log" in name and "_total" in name and value for name, value in server.metrics().items())


def test_environment_variables_set_options(server: Server) -> None:
    assert server.predict(instances=["a"] * 3)[0] == 413
    assert server.request("GET", "/")[0] == 404


def test_the_number_of_the_version_is_shown_with_its_run_beside_it(server: Server) -> None:
    _, answer = server.predict(instances=["a"])[:2]
    assert "'model_version': '7'" in str(answer)
    (info,) = (name for name in server.metrics() if name.startswith("goemotions_model_info"))
    assert 'run="r1"' in info
    assert 'version="7"' in info


def test_the_given_name_is_in_every_path_response_and_metric(server: Server) -> None:
    texts = [{"name": "text", "datatype": "BYTES", "shape": [1], "data": ["a"]}]
    for path in ("/v2/models/mine/infer", "/v2/models/mine/versions/7/infer"):
        status, headers, body = server.request("POST", path, json.dumps({"inputs": texts}))
        assert (status, json.loads(body)["model_name"], headers["model-run"]) == (200, "mine", "r1")
    status, answer = server.predict(instances=["a"])
    assert (status, answer["model_name"]) == (200, "mine")
    assert server.request("POST", "/v1/models/goemotions:predict", json.dumps({"instances": ["a"]}))[0] == 404
    shown = {
        path: json.loads(server.request("GET", path)[2]) for path in ("/v1/models", "/v2", "/v2/models/mine", "/v1/models/mine")
    }
    assert shown["/v1/models"] == {"models": ["mine"]}
    assert {shown[path]["name"] for path in ("/v2", "/v2/models/mine", "/v1/models/mine")} == {"mine"}
    paths = json.loads(server.request("GET", "/openapi.json")[2])["paths"]
    assert {path.split("/")[3].partition(":")[0] for path in paths if "/models/" in path} == {"mine"}
    assert {name for name in server.metrics() if name.startswith("request_predict_seconds_count")} == {
        'request_predict_seconds_count{model_name="mine"}'
    }


def test_the_given_name_is_that_of_grpc(server: Server) -> None:
    request = pb.ModelInferRequest(model_name="mine")
    request.inputs.add(name="text", datatype="BYTES", shape=[1]).contents.bytes_contents.append(b"a")
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        stub = stubs.GRPCInferenceServiceStub(channel)
        response, call = stub.ModelInfer.with_call(request)
        assert (response.model_name, response.model_version) == ("mine", "7")
        assert dict(call.trailing_metadata())["model-run"] == "r1"
        assert stub.ModelMetadata(pb.ModelMetadataRequest(name="mine")).name == "mine"
        assert stub.ServerMetadata(pb.ServerMetadataRequest()).name == "mine"
        with pytest.raises(grpc.RpcError, match="this server has mine, version 7"):
            stub.ModelReady(pb.ModelReadyRequest(name="goemotions"))
