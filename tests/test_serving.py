"""The model server as a caller sees it: a real process, V1 over HTTP."""

import http.client
import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from goemotions import registration
from goemotions.predictor import Options, Predictor
from goemotions.registration import Parts
from pipelines import demo, stack

TEXTS = ["we found the lake", "a quiet balloon under the table", "", "storm " * 400, "\U0001f600 gravel \u202e near"]


@pytest.fixture(scope="module")
def bundle(candidate: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("served") / "bundle"
    registration.assemble(
        folder, "cpu", Parts.below(candidate, "cpu"), {"profile": "minilm", "run_id": "r1", "dataset_digest": "d"}
    )
    return folder


@pytest.fixture(scope="module")
def port(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    number = stack.free_ports(1)[0]
    log = tmp_path_factory.mktemp("log") / "serve.log"
    command = [sys.executable, "-m", "goemotions.cli", "serve", "--bundle", str(bundle), "--port", str(number)]
    with log.open("wb") as output, subprocess.Popen(command, stdout=output, stderr=output) as process:
        try:
            demo._wait(f"http://127.0.0.1:{number}/v1/models/goemotions", process, log)
            yield number
        finally:
            process.send_signal(signal.SIGTERM)
            assert process.wait(timeout=30) == 0


def post(port: int, body: bytes, path: str = "/v1/models/goemotions:predict") -> tuple[int, Any]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request("POST", path, body, {"Content-Type": "application/json"})
    response = connection.getresponse()
    return response.status, json.loads(response.read())


def predict(port: int, **fields: Any) -> tuple[int, Any]:
    return post(port, json.dumps(fields).encode())


def test_an_answer_has_labels_scores_and_the_version(port: int, bundle: Path) -> None:
    status, answer = predict(port, instances=TEXTS)
    assert status == 200
    assert answer == {
        "predictions": Predictor.load(bundle).predict(TEXTS),
        "model_name": "goemotions",
        "model_version": "r1",
    }
    assert [prediction["truncated"] for prediction in answer["predictions"]] == [False, False, False, True, False]


def test_options_change_the_answer(port: int) -> None:
    _, everything = predict(port, instances=TEXTS[:1], parameters={"threshold": 0, "all_scores": True})
    assert len(everything["predictions"][0]["labels"]) == len(everything["predictions"][0]["scores"]) == 7
    scores = list(everything["predictions"][0]["scores"].values())
    assert scores == sorted(scores, reverse=True)
    _, two = predict(port, instances=TEXTS[:1], parameters={"threshold": 0, "top_k": 2})
    assert two["predictions"][0]["labels"] == everything["predictions"][0]["labels"][:2]
    _, none = predict(port, instances=TEXTS[:1], parameters={"threshold": 1.0})
    assert none["predictions"][0] == {"labels": [], "scores": {}, "truncated": False}


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({}, "instances"),
        ({"instances": "text"}, "instances"),
        ({"instances": []}, "instances"),
        ({"instances": ["a", 5]}, "[1]"),
        ({"instances": ["a"], "parameters": []}, "parameters"),
        ({"instances": ["a"], "parameters": {"topk": 3}}, "topk"),
        ({"instances": ["a"], "parameters": {"top_k": 0}}, "top_k"),
        ({"instances": ["a"], "parameters": {"top_k": True}}, "top_k"),
        ({"instances": ["a"], "parameters": {"threshold": "high"}}, "threshold"),
        ({"instances": ["a"], "parameters": {"threshold": 1.5}}, "threshold"),
        ({"instances": ["a"], "parameters": {"all_scores": 1}}, "all_scores"),
    ],
    ids=str,
)
def test_a_wrong_field_is_named(port: int, fields: dict[str, Any], named: str) -> None:
    status, answer = predict(port, **fields)
    assert status == 400
    assert named in answer["error"]


@pytest.mark.parametrize("body", [b"not json", b"[1, 2]", b'"text"', b""], ids=repr)
def test_a_body_that_is_no_object_is_refused(port: int, body: bytes) -> None:
    assert post(port, body)[0] == 400


def test_an_unknown_model_is_not_found(port: int) -> None:
    assert post(port, b'{"instances": ["a"]}', "/v1/models/other:predict")[0] == 404


def test_the_server_listens_on_loopback_alone(port: int) -> None:
    with open("/proc/net/tcp") as table:
        listening = [line.split()[1] for line in table if line.split()[3] == "0A"]
    assert f"0100007F:{port:04X}" in listening
    assert f"00000000:{port:04X}" not in listening


def test_a_damaged_bundle_never_becomes_ready(bundle: Path, tmp_path: Path) -> None:
    """Fault row 18."""
    damaged = tmp_path / "bundle"
    shutil.copytree(bundle, damaged)
    content = bytearray((damaged / "model.int8.onnx").read_bytes())
    content[len(content) // 2] ^= 1
    (damaged / "model.int8.onnx").write_bytes(content)
    command = [sys.executable, "-m", "goemotions.cli", "serve", "--bundle", str(damaged)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 1
    assert "model.int8.onnx differs from its manifest" in ended.stderr.strip().splitlines()[-1]


def test_options_left_out_are_the_defaults() -> None:
    assert Options.of(None) == Options.of({}) == Options(top_k=None, threshold="tuned", all_scores=False)
