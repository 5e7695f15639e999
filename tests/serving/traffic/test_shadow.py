"""Copies of requests to a challenger: compared, counted, never returned, and never in the way."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from kserve.protocol.grpc import grpc_predict_v2_pb2 as pb
from kserve.protocol.grpc import grpc_predict_v2_pb2_grpc as stubs

from goemotions import defaults
from goemotions.prediction.predictor import Options, Predictor
from goemotions.serving import metrics
from goemotions.serving.limits import ShadowSettings
from goemotions.serving.protocols import request_ids
from goemotions.serving.traffic import shadow
from goemotions.serving.traffic.shadow import Shadow
from tests.support import http_server
from tests.support.servers import Server, serving

TEXT = "a quiet lake near the old balloon"
COMPARED = 'goemotions_shadow_requests_total{outcome="compared"}'


class Challenger(http_server.Server):
    """Answers as the tests say, and keeps what it received."""

    def __init__(self, answer: Callable[[dict[str, Any]], Any]) -> None:
        super().__init__(Handler)
        self.answer = answer
        self.received: list[tuple[dict[str, str], dict[str, Any]]] = []


class Handler(http_server.Handler):
    server: Challenger

    def do_POST(self) -> None:
        body = json.loads(self.body())
        self.server.received.append(({name.lower(): value for name, value in self.headers.items()}, body))
        answer = self.server.answer(body)
        status, content = answer if isinstance(answer, tuple) else (200, answer)
        self.send(status, json.dumps(content).encode())

    def do_GET(self) -> None:
        self.send(200, json.dumps({"name": "goemotions", "versions": ["9"]}).encode())


def challenger(answer: Callable[[dict[str, Any]], Any]) -> AbstractContextManager[Challenger]:
    return http_server.running(Challenger(answer))


def opposite(predictor: Predictor) -> Callable[[dict[str, Any]], Any]:
    """A challenger that predicts exactly the labels that the model does not."""

    def answer(body: dict[str, Any]) -> Any:
        predictions = [
            {
                "labels": [label for label in predictor.bundle.taxonomy.names if label not in one["labels"]],
                "scores": {label: 1 - score for label, score in one["scores"].items()},
            }
            for one in predictor.predict(body["instances"], Options(all_scores=True))
        ]
        return {"predictions": predictions, "model_version": "9"}

    return answer


@pytest.fixture(scope="module")
def log_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("answers")


@pytest.fixture(scope="module")
def shadowed(
    bundle: Path, predictor: Predictor, tmp_path_factory: pytest.TempPathFactory, log_folder: Path
) -> Iterator[tuple[Server, Challenger]]:
    """A server that copies every request to a challenger."""
    with challenger(opposite(predictor)) as other:
        log = ("--log-share=1", f"--log-folder={log_folder}")
        options = (f"--shadow-url=http://127.0.0.1:{other.server_port}", "--shadow-percent=100", *log)
        with serving(bundle, tmp_path_factory.mktemp("log") / "serve.log", *options) as server:
            yield server, other


def infer_by_grpc(server: Server) -> None:
    contents = pb.InferTensorContents(bytes_contents=[TEXT.encode()])
    tensor = pb.ModelInferRequest.InferInputTensor(name="text", datatype="BYTES", shape=[1], contents=contents)
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        stubs.GRPCInferenceServiceStub(channel).ModelInfer(pb.ModelInferRequest(model_name="goemotions", inputs=[tensor]))


def test_requests_of_every_protocol_are_copied_and_compared(shadowed: tuple[Server, Challenger], predictor: Predictor) -> None:
    server, other = shadowed
    secret = {"Authorization": "Bearer of-a-client", "Cookie": "session=of-a-client"}
    own = server.request("POST", "/v1/models/goemotions:predict", json.dumps({"instances": [TEXT]}), **secret)
    tensor = {"name": "text", "datatype": "BYTES", "shape": [1], "data": [TEXT]}
    server.request("POST", "/v2/models/goemotions/infer", json.dumps({"inputs": [tensor]}), **secret)
    infer_by_grpc(server)
    wait_until(lambda: server.metrics().get(COMPARED) == 3)
    samples = server.metrics()
    assert samples['goemotions_shadow_texts_total{labels="different",version="9"}'] == 3
    for label in predictor.bundle.taxonomy.names:
        assert samples[f'goemotions_shadow_label_differences_total{{label="{label}",version="9"}}'] == 3
    assert samples['goemotions_shadow_score_difference_count{version="9"}'] == 3
    # Not one answer of the challenger was returned, and nothing of a client's headers was sent.
    assert json.loads(own[2])["predictions"][0]["labels"] == predictor.predict([TEXT])[0]["labels"]
    for headers, body in other.received:
        assert headers[defaults.COPY_HEADER] == "shadow"
        assert not {"authorization", "cookie"} & headers.keys()
        assert request_ids.ID.fullmatch(headers[request_ids.HEADER])
        assert body["instances"] == [TEXT]


def test_a_copy_is_not_copied_again_and_is_no_traffic(shadowed: tuple[Server, Challenger]) -> None:
    server, other = shadowed
    received, before = len(other.received), server.metrics()
    body = json.dumps({"instances": [TEXT]})
    assert server.request("POST", "/v1/models/goemotions:predict", body, goemotions_copy="shadow")[0] == 200
    assert server.request("POST", "/v1/models/goemotions:predict", body)[0] == 200
    wait_until(lambda: server.metrics().get(COMPARED, 0) > before.get(COMPARED, 0))
    after = server.metrics()
    assert len(other.received) == received + 1
    assert after['goemotions_requests_total{outcome="ok",protocol="copy"}'] == 1
    assert after["goemotions_request_texts_count"] == before.get("goemotions_request_texts_count", 0) + 1


def test_the_texts_of_a_rollout_are_in_no_log_and_no_counter_of_drift(
    shadowed: tuple[Server, Challenger], log_folder: Path
) -> None:
    def logged() -> bytes:
        return b"".join(file.read_bytes() for file in log_folder.rglob("*") if file.is_file())

    server, _ = shadowed
    path, scored = "/v1/models/goemotions:predict", "goemotions_scored_texts_total{version="
    before = server.metrics()
    probe = json.dumps({"instances": ["a storm of the rollout"]})
    assert server.request("POST", path, probe, goemotions_copy=defaults.COPY_OF_ROLLOUT)[0] == 200
    assert server.request("POST", path, json.dumps({"instances": ["a storm of a client"]}))[0] == 200
    wait_until(lambda: b"a storm of a client" in logged())
    assert b"a storm of the rollout" not in logged()
    wait_until(
        lambda: any(server.metrics().get(name, 0) > before.get(name, 0) for name in server.metrics() if name.startswith(scored))
    )
    after = server.metrics()
    assert [after[name] - before.get(name, 0) for name in after if name.startswith(scored)] == [1]
    # They are requests like others where limits are concerned.
    many = json.dumps({"instances": [TEXT] * 10_000})
    assert server.request("POST", path, many, goemotions_copy=defaults.COPY_OF_ROLLOUT)[0] == 413


def settings(port: int) -> ShadowSettings:
    return ShadowSettings(f"http://127.0.0.1:{port}", 100)


def requests(outcome: str) -> float:
    return float(metrics.SHADOW_REQUESTS.labels(outcome)._value.get())


def wait_until(is_true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not is_true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.fault("challenger-away")
def test_a_challenger_that_hangs_holds_nothing_up_and_what_does_not_fit_is_dropped(predictor: Predictor) -> None:
    labels = predictor.bundle.taxonomy.names
    predictions = predictor.predict([TEXT])
    release = threading.Event()
    dropped, failed = requests("dropped"), requests("failed")
    with challenger(lambda body: release.wait(10) and {}) as other:
        copies = Shadow(settings(other.server_port), "goemotions", labels)
        started = time.monotonic()
        for _ in range(shadow.QUEUE + shadow.THREADS + 50):
            copies.offer([TEXT], Options(), np.zeros((1, len(labels)), dtype=np.float32), predictions)
        assert time.monotonic() - started < 1
        assert requests("dropped") >= dropped + 50
        release.set()
        # Its answers are no predictions.
        wait_until(lambda: requests("failed") >= failed + shadow.QUEUE)


@pytest.mark.fault("challenger-rejects")
@pytest.mark.parametrize(("status", "is_rejected"), [(400, True), (413, True), (422, True), (429, False), (500, False)])
def test_a_copy_that_the_challenger_rejects_counts_against_its_version(
    predictor: Predictor, status: int, is_rejected: bool
) -> None:
    labels = predictor.bundle.taxonomy.names
    rejected = metrics.SHADOW_TEXTS.labels("9", "rejected")._value
    before, outcome = rejected.get(), "rejected" if is_rejected else "failed"
    counted = requests(outcome)
    with challenger(lambda body: (status, {"error": "no"})) as other:
        copies = Shadow(settings(other.server_port), "goemotions", labels)
        for count in (1, 2):
            copies.offer([TEXT] * 2, Options(), np.zeros((2, len(labels)), dtype=np.float32), predictor.predict([TEXT] * 2))
            wait_until(lambda count=count: requests(outcome) == counted + count)  # type: ignore[misc]
    assert rejected.get() - before == 4 * is_rejected


ODD: dict[str, Callable[[dict[str, Any]], Any]] = {
    "fewer": lambda answer: answer | {"predictions": answer["predictions"][1:]},
    "no scores": lambda answer: changed(answer, "scores", lambda scores: dict.fromkeys(scores)),
    "no probabilities": lambda answer: changed(answer, "scores", lambda scores: dict.fromkeys(scores, 1e300)),
    "other labels": lambda answer: changed(answer, "labels", lambda labels: ["new"]),
    "no list": lambda answer: changed(answer, "labels", lambda labels: "calm"),
    "one version too many": lambda answer: answer,
}


def changed(answer: dict[str, Any], field: str, change: Callable[[Any], Any]) -> dict[str, Any]:
    return answer | {"predictions": [one | {field: change(one[field])} for one in answer["predictions"]]}


@pytest.mark.fault("challenger-away")
@pytest.mark.parametrize("odd", ODD.values(), ids=ODD)
def test_nothing_of_an_answer_with_an_error_is_counted(
    predictor: Predictor, odd: Callable[[Any], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half an answer would be evidence in a rollout, one that is no number would stay in a sum, and each version costs memory."""
    if odd is ODD["one version too many"]:
        monkeypatch.setattr(shadow, "MOST_VERSIONS", 0)
    failed, before = requests("failed"), comparisons()
    with challenger(lambda body: odd(opposite(predictor)(body))) as other:
        copies = Shadow(settings(other.server_port), "goemotions", predictor.bundle.taxonomy.names)
        scores = np.zeros((2, len(predictor.bundle.taxonomy)), dtype=np.float32)
        copies.offer([TEXT] * 2, Options(), scores, predictor.predict([TEXT] * 2))
        wait_until(lambda: requests("failed") > failed)
    assert comparisons() == before


def comparisons() -> list[str]:
    return [
        line
        for line in metrics.render(None)[0].decode().splitlines()
        if re.match("goemotions_shadow_(texts|label|score)", line)
    ]


@pytest.mark.fault("challenger-away")
@pytest.mark.parametrize(
    "answer",
    [
        None,
        [],
        {},
        {"predictions": [], "model_version": "9"},
        {"predictions": [{"labels": [], "scores": {}}], "model_version": "9"},
    ],
)
def test_an_answer_of_another_form_or_with_other_labels_is_counted_as_failed(predictor: Predictor, answer: Any) -> None:
    labels = predictor.bundle.taxonomy.names
    failed = requests("failed")
    with challenger(lambda body: answer) as other:
        copies = Shadow(settings(other.server_port), "goemotions", labels)
        copies.offer([TEXT], Options(), np.zeros((1, len(labels)), dtype=np.float32), predictor.predict([TEXT]))
        wait_until(lambda: requests("failed") > failed)
        # The next one is tried all the same.
        copies.offer([TEXT], Options(), np.zeros((1, len(labels)), dtype=np.float32), predictor.predict([TEXT]))
        wait_until(lambda: requests("failed") > failed + 1)
