"""The predictor server as its clients see it: V1 and V2 over HTTP, and gRPC, against one running server."""

import contextlib
import gzip
import json
import re
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import numpy as np
import pytest
from kserve.protocol.grpc import grpc_predict_v2_pb2 as pb
from kserve.protocol.grpc import grpc_predict_v2_pb2_grpc as stubs

from goemotions.evaluation.traffic import SCORE_BINS, Traffic
from goemotions.models import engines
from goemotions.models.devices import cpu_name
from goemotions.prediction.predictor import Options, Predictor
from tests.support import http2
from tests.support.servers import PREDICT, Server

TEXTS = ["we found the lake", "a quiet balloon under the table", "", "storm " * 400, "\U0001f600 gravel \u202e near"]


INFER = "/v2/models/goemotions/infer"


@pytest.fixture(scope="module")
def stub(server: Server) -> Iterator[Any]:
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        yield stubs.GRPCInferenceServiceStub(channel)


def v2(texts: list[str], **fields: Any) -> bytes:
    tensor = {"name": "text", "shape": [len(texts)], "datatype": "BYTES", "data": texts}
    return json.dumps({"inputs": [tensor], **fields}).encode()


def message(texts: list[str]) -> Any:
    request = pb.ModelInferRequest(model_name="goemotions", id="q")
    tensor = request.inputs.add(name="text", datatype="BYTES", shape=[len(texts)])
    tensor.contents.bytes_contents.extend(text.encode() for text in texts)
    return request


def scores(predictor: Predictor, texts: list[str]) -> np.ndarray:
    names = predictor.bundle.taxonomy.names
    predictions = predictor.predict(texts, Options(all_scores=True))
    return np.array([[prediction["scores"][name] for name in names] for prediction in predictions], dtype=np.float32)


@pytest.mark.fault("http-long-text")
def test_v1_returns_labels_scores_and_the_version(server: Server, predictor: Predictor) -> None:
    status, response = server.predict(instances=TEXTS)
    assert status == 200
    assert response == {"predictions": predictor.predict(TEXTS), "model_name": "goemotions", "model_version": "r1"}
    assert [prediction["truncated"] for prediction in response["predictions"]] == [False, False, False, True, False]


def test_explain_returns_predictions_and_the_contribution_of_each_word(server: Server, predictor: Predictor) -> None:
    before = server.metrics()
    status, response = server.predict("explain", instances=TEXTS, parameters={"removals": 3})
    assert status == 200
    assert set(response) == {"predictions", "explanations", "model_name", "model_version"}
    expected = predictor.explain(TEXTS, removals=3)
    for one, other, prediction in zip(response["explanations"], expected, response["predictions"], strict=True):
        assert one["words"] == other["words"]
        assert list(one["contributions"]) == prediction["labels"]
        for label, values in one["contributions"].items():
            assert values == pytest.approx(other["contributions"][label], abs=2 * engines.INT8_BOUND)
    after = server.metrics()
    # What is scored to explain a text are pieces of it, which drift must not see.
    for name in ("goemotions_request_texts_count", 'goemotions_scored_texts_total{version="r1"}'):
        assert after[name] == before[name]
    assert after['request_explain_seconds_count{model_name="goemotions"}'] == 1


@pytest.mark.parametrize(
    ("fields", "status", "named"),
    [
        ({"instances": ["lake"], "parameters": {"removals": 0}}, 400, "parameters.removals"),
        ({"instances": ["lake"], "parameters": {"removals": 1000}}, 400, "parameters.removals"),
        ({"instances": "lake"}, 400, "instances"),
        ({"instances": []}, 400, "instances"),
        ({"instances": ["lake"] * 9}, 413, "send at most 8"),
        ({"instances": ["lake"], "parameters": {"method": "shap"}}, 400, "parameters.method"),
    ],
)
def test_a_bad_request_to_explain_is_rejected(server: Server, fields: dict[str, Any], status: int, named: str) -> None:
    got, response = server.predict("explain", **fields)
    assert got == status
    assert named in response["error"]


def test_options_change_the_prediction(server: Server) -> None:
    _, everything = server.predict(instances=TEXTS[:1], parameters={"threshold": 0, "all_scores": True})
    assert len(everything["predictions"][0]["labels"]) == len(everything["predictions"][0]["scores"]) == 7
    ordered = list(everything["predictions"][0]["scores"].values())
    assert ordered == sorted(ordered, reverse=True)
    _, two = server.predict(instances=TEXTS[:1], parameters={"threshold": 0, "top_k": 2})
    assert two["predictions"][0]["labels"] == everything["predictions"][0]["labels"][:2]
    _, none = server.predict(instances=TEXTS[:1], parameters={"threshold": 1.0})
    assert none["predictions"][0] == {"labels": [], "scores": {}, "truncated": False}


def test_v2_and_grpc_return_what_v1_returns(server: Server, stub: Any, predictor: Predictor) -> None:
    expected = scores(predictor, TEXTS)
    labels = [prediction["labels"] for prediction in predictor.predict(TEXTS)]
    for path in (INFER, "/v2/models/goemotions/versions/r1/infer"):
        status, _, body = server.request("POST", path, v2(TEXTS, id="q"))
        response = json.loads(body)
        assert (status, response["id"], response["model_version"], response["parameters"]) == (
            200,
            "q",
            "r1",
            {"truncated": [3]},
        )
        tensors = {output["name"]: output for output in response["outputs"]}
        assert np.array(tensors["probabilities"]["data"], dtype=np.float32).reshape(5, 7) == pytest.approx(expected, abs=1e-5)
        assert [json.loads(text) for text in tensors["labels"]["data"]] == labels
    response = stub.ModelInfer(message(TEXTS))
    assert (response.id, response.model_version) == ("q", "r1")
    assert np.array(response.outputs[0].contents.fp32_contents).reshape(5, 7) == pytest.approx(expected, abs=1e-5)
    assert [json.loads(text) for text in response.outputs[1].contents.bytes_contents] == labels


def test_v2_returns_binary_tensors(server: Server, predictor: Predictor) -> None:
    status, headers, body = server.request("POST", INFER, v2(TEXTS, parameters={"binary_data_output": True}))
    assert (status, headers["content-type"]) == (200, "application/octet-stream")
    head = json.loads(body[: int(headers["inference-header-content-length"])])
    size = head["outputs"][0]["parameters"]["binary_data_size"]
    probabilities = np.frombuffer(body[int(headers["inference-header-content-length"]) :][:size], "<f4").reshape(5, 7)
    assert probabilities == pytest.approx(scores(predictor, TEXTS), abs=1e-5)


@pytest.mark.fault("http-mixed-batch")
def test_concurrent_clients_get_their_own_results(server: Server, stub: Any, predictor: Predictor) -> None:
    texts = [" ".join(["lake", "storm", "balloon"][: 1 + n % 3] * (1 + n % 7)) for n in range(96)]
    expected = scores(predictor, texts)

    def request(n: int) -> np.ndarray:
        if n % 3 == 0:
            _, response = server.predict(instances=[texts[n]], parameters={"all_scores": True})
            all_scores = response["predictions"][0]["scores"]
            return np.array([all_scores[name] for name in predictor.bundle.taxonomy.names])
        if n % 3 == 1:
            return np.array(json.loads(server.request("POST", INFER, v2([texts[n]]))[2])["outputs"][0]["data"])
        return np.array(stub.ModelInfer(message([texts[n]])).outputs[0].contents.fp32_contents)

    with ThreadPoolExecutor(32) as pool:
        received = np.array(list(pool.map(request, range(len(texts)))))
    assert np.abs(received - expected).max() < engines.INT8_BOUND


def test_health_and_metadata(server: Server, stub: Any) -> None:
    contents = {
        "/v2/health/live": {"live": True},
        "/v2/health/ready": {"ready": True},
        "/v1/models": {"models": ["goemotions"]},
        "/v1/models/goemotions": {"name": "goemotions", "ready": True},
        "/v2/models/goemotions/ready": {"name": "goemotions", "ready": True},
        "/v2": {"name": "goemotions", "version": "r1", "extensions": ["binary_tensor_data"]},
    }
    for path, expected in contents.items():
        status, _, body = server.request("GET", path)
        assert (status, json.loads(body)) == (200, expected)
    metadata = json.loads(server.request("GET", "/v2/models/goemotions")[2])
    assert metadata["outputs"][0] == {"name": "probabilities", "datatype": "FP32", "shape": [-1, 7]}
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
        ("application/x-www-form-urlencoded", b'{"instances": ["a"]}', 415, "application/json"),
        ("application/json", b"{}", 400, "instances"),
        ("application/json", b"[1, 2]", 400, "the body"),
        ("application/json", b'{"instances": "text"}', 400, "instances"),
        ("application/json", b'{"instances": []}', 400, "instances"),
        ("application/json", b'{"instances": ["a", 5]}', 400, "instances[1]"),
        ("application/json", b'{"instances": ["a"], "parameters": {"top_k": 0}}', 400, "top_k"),
        ("application/json", b'{"instances": ' + b"[" * 50_000, 413, "more than 1,128 values"),
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
def test_a_bad_request_is_rejected(server: Server, content_type: str, body: bytes, status: int, named: str) -> None:
    received, headers, response = server.request("POST", PREDICT, body, Content_Type=content_type)
    assert (received, headers["content-type"]) == (status, "application/json")
    content = json.loads(response)
    assert content.keys() == {"error"}
    assert named in content["error"]


@pytest.mark.parametrize("text", ["", "   ", "\x00\x07", "\u202elake", "\N{FAMILY}" * 50])
@pytest.mark.fault("http-blank-text")
def test_an_unusual_text_has_a_defined_result(server: Server, text: str) -> None:
    results = [server.predict(instances=[text]) for _ in range(2)]
    assert results[0] == results[1]
    assert results[0][0] == 200


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("POST", "/v1/models/other:predict", 404),
        ("POST", "/v1/models/goemotions:generate", 404),
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
def test_an_unknown_path_or_method_is_rejected(server: Server, method: str, path: str, status: int) -> None:
    counted = 'goemotions_requests_total{outcome="client",protocol="http"}'
    before = server.metrics().get(counted, 0)
    received, headers, body = server.request(method, path, b"{}" if method == "POST" else None)
    assert received == status
    assert json.loads(body).keys() == {"error"}
    assert server.metrics()[counted] == before + 1
    assert status != 405 or headers["allow"]


@pytest.mark.parametrize(("name", "version"), [("other", ""), ("goemotions", "9"), ("", "")])
def test_an_unknown_model_is_not_found_over_grpc(stub: Any, name: str, version: str) -> None:
    expected = message(["a"])
    expected.model_name, expected.model_version = name, version
    for call in (lambda: stub.ModelInfer(expected), lambda: stub.ModelReady(pb.ModelReadyRequest(name=name, version=version))):
        with pytest.raises(grpc.RpcError) as error:
            call()
        assert error.value.code() == grpc.StatusCode.NOT_FOUND


def test_a_bad_grpc_request_is_rejected(server: Server, stub: Any) -> None:
    wrong = message(["a"])
    wrong.inputs[0].shape[0] = 7
    for request in (wrong, message([]), message(["a"] * 65)):
        with pytest.raises(grpc.RpcError) as error:
            stub.ModelInfer(request)
        assert error.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    before = server.metrics()
    with pytest.raises(grpc.RpcError) as unknown:
        stub.RepositoryModelUnload(pb.RepositoryModelUnloadRequest(model_name="goemotions"))
    assert unknown.value.code() == grpc.StatusCode.UNIMPLEMENTED
    # No failure of the server, on which alerts rest.
    assert grown(server, before, 'goemotions_requests_total{outcome="client",protocol="grpc"}')
    assert server.metrics().get('goemotions_requests_total{outcome="server",protocol="grpc"}', 0) == 0


def raw(server: Server, sent: bytes, *, more: bytes = b"", pause: float = 0.0, timeout: float = 30.0) -> bytes:
    """Everything that the server sends until it closes the connection; ``more`` is sent repeatedly meanwhile."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=timeout) as connection:
        connection.sendall(sent)
        response = b""
        connection.settimeout(pause or timeout)
        while True:
            try:
                received = connection.recv(65536)
            except TimeoutError:
                connection.sendall(more)
                continue
            except ConnectionError:
                return response
            if not received:
                return response
            response += received


BODY = b'{"instances": ["a"]}'
HEAD = f"POST {PREDICT} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n".encode()


@pytest.mark.fault("http-body-limit")
def test_a_chunked_body_over_the_limit_is_rejected_while_it_is_read(server: Server) -> None:
    chunk = b"%x\r\n%s\r\n" % (60_000, b"a" * 60_000)
    response = raw(server, HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + chunk * 4)
    assert response.startswith(b"HTTP/1.1 413 ")
    assert b"connection: close" in response.lower()


@pytest.mark.parametrize("length", [b"10000000000", b"200001"])
@pytest.mark.fault("http-body-limit")
def test_a_length_over_the_limit_is_rejected_before_the_body(server: Server, length: bytes) -> None:
    assert raw(server, HEAD + b"Content-Length: " + length + b"\r\n\r\n{").startswith(b"HTTP/1.1 413 ")


@pytest.mark.parametrize("length", [b"-5", b"abc", b"1, 2", b"99999999999999999999999"])
def test_an_invalid_length_is_rejected(server: Server, length: bytes) -> None:
    assert raw(server, HEAD + b"Content-Length: " + length + b"\r\n\r\n{}")[:12] in (b"HTTP/1.1 400", b"HTTP/1.1 413")


@pytest.mark.parametrize(
    ("field", "body"),
    [
        (b"Content-Length: 20 \t", BODY),
        (b"Content-Length: 20\r\nExpect: 100-continue ", BODY),
        (b"Content-Length: 40\r\nContent-Encoding: gzip ", gzip.compress(BODY, mtime=0)),
    ],
)
@pytest.mark.fault("http-white-space")
def test_white_space_may_follow_the_value_of_a_field(server: Server, field: bytes, body: bytes) -> None:
    response = raw(server, HEAD + b"Connection: close\r\n" + field + b"\r\n\r\n" + body)
    assert b"HTTP/1.1 200 " in response
    assert response.startswith(b"HTTP/1.1 100 ") == (b"Expect" in field)


def refusals(metrics: dict[str, float]) -> float:
    """Requests that were counted as anyone's failure."""
    return sum(
        count for name, count in metrics.items() if name.startswith("goemotions_requests_total{") and 'outcome="ok"' not in name
    )


CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
CHUNKS = b"%x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY)
LIVE = b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n"


@pytest.mark.parametrize(
    ("coding", "status"),
    [
        (b"gzip, chunked", 501),
        (b"identity, chunked", 501),
        (b"chunked, chunked", 400),
        (b"gzip\r\nTransfer-Encoding: chunked", 400),
        (b"chunked\r\nTransfer-Encoding: gzip", 400),
        (b"gzip", 400),
    ],
)
@pytest.mark.parametrize(
    "head", [HEAD, LIVE, HEAD + b"Connection: Upgrade\r\nUpgrade: h2c\r\n"], ids=["post", "get", "upgrade"]
)
@pytest.mark.fault("http-transfer-coding")
def test_a_body_in_another_coding_is_not_read_as_plain_chunks(server: Server, head: bytes, coding: bytes, status: int) -> None:
    before = server.metrics()
    response = raw(server, head + b"Transfer-Encoding: " + coding + b"\r\n\r\n" + CHUNKS + LIVE + b"\r\n")
    assert response.startswith(b"HTTP/1.1 %d " % status)
    assert response.count(b"HTTP/1.1 ") == 1
    after = server.metrics()
    name = 'goemotions_requests_total{outcome="client",protocol="http"}'
    assert after[name] - before.get(name, 0) == refusals(after) - refusals(before) == 1


@pytest.mark.parametrize(
    ("first", "later", "status"),
    [
        (CHUNKED + b"zz\r\n", b"", 400),
        (CHUNKED, b"zz\r\n", 400),
        (CHUNKED + b"5\r\nabcde\r\n", b"5;" + b"x" * 40_000, 431),
        (CHUNKED.replace(b"json", b"csv") + b"zz\r\n", b"", 400),
        (CHUNKED.replace(b"json", b"csv"), b"zz\r\n", 415),
        (CHUNKED.replace(b":predict", b":nothing") + b"zz\r\n", b"", 400),
        (CHUNKED.replace(b":predict", b":nothing"), b"zz\r\n", 404),
        (HEAD + b"Transfer-Encoding: xchunked\r\n\r\n" + CHUNKS, b"", 400),
    ],
    ids=["at-once", "later", "extension", "after-415-at-once", "after-415", "after-404-at-once", "after-404", "unknown-coding"],
)
@pytest.mark.fault("server-blame")
def test_a_request_that_is_refused_in_its_body_is_answered_and_counted_once(
    server: Server, first: bytes, later: bytes, status: int
) -> None:
    before = server.metrics()
    response = raw(server, first, more=later, pause=0.2)
    assert response.startswith(b"HTTP/1.1 %d " % status)
    assert response.count(b"HTTP/1.1 ") == 1
    time.sleep(0.1)
    assert refusals(server.metrics()) - refusals(before) == 1


@pytest.mark.fault("http-interim-response")
def test_a_client_of_http_1_0_is_not_told_to_continue(server: Server) -> None:
    head = HEAD.replace(b"HTTP/1.1", b"HTTP/1.0") + b"Expect: 100-continue\r\nContent-Length: 20\r\n\r\n"
    assert raw(server, head + BODY).startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize(
    ("named", "other", "status"), [(b":predict", b":nothing", 404), (b"application/json", b"text/csv", 415)]
)
@pytest.mark.fault("http-interim-response")
def test_a_client_that_was_not_told_to_continue_may_not_reuse_the_connection(
    server: Server, named: bytes, other: bytes, status: int
) -> None:
    # Its next request would be read as the body that it did not send.
    head = HEAD.replace(named, other) + b"Expect: 100-continue\r\nContent-Length: 20\r\n\r\n"
    response = raw(server, head)
    assert response.startswith(b"HTTP/1.1 %d " % status)
    assert response.lower().count(b"connection: close\r\n") == 1


@pytest.mark.parametrize(
    ("fields", "body", "status"),
    [
        (b"Content-Encoding: x-gzip\r\n", gzip.compress(BODY), 200),
        (b"Content-Encoding:\r\n", BODY, 200),
        (b"Content-Encoding: identity\r\nContent-Encoding: gzip\r\n", BODY, 415),
        (b"Content-Encoding: gzip\r\nContent-Encoding: gzip\r\n", gzip.compress(gzip.compress(BODY)), 415),
    ],
    ids=["x-gzip", "empty", "identity-and-gzip", "gzip-twice"],
)
@pytest.mark.fault("http-content-coding")
def test_every_content_encoding_counts(server: Server, fields: bytes, body: bytes, status: int) -> None:
    head = HEAD + b"Connection: close\r\n" + fields + b"Content-Length: %d\r\n\r\n" % len(body)
    assert raw(server, head + body).startswith(b"HTTP/1.1 %d " % status)


@pytest.mark.fault("http-body-limit")
def test_a_body_shorter_than_its_length_times_out_and_one_longer_is_cut(server: Server) -> None:
    assert raw(server, HEAD + b"Content-Length: 50\r\n\r\n" + BODY).startswith(b"HTTP/1.1 408 ")
    assert raw(server, HEAD + b"Connection: close\r\nContent-Length: 20\r\n\r\n" + BODY + b"xxxx").startswith(b"HTTP/1.1 200 ")


@pytest.mark.fault("http-slow-client")
def test_a_client_that_sends_single_bytes_times_out_and_others_are_served(server: Server) -> None:
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
    assert slow["head"].startswith(b"HTTP/1.1 408 ")


def grown(server: Server, before: dict[str, float], name: str, by: int = 1) -> bool:
    """Whether a counter has grown so much, soon."""
    for _ in range(100):
        if server.metrics().get(name, 0) - before.get(name, 0) >= by:
            return True
        time.sleep(0.05)
    return False


@pytest.mark.fault("server-blame", "client-disconnect")
def test_a_client_that_leaves_within_its_body_is_no_failure_of_the_server(server: Server) -> None:
    before = server.metrics()
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.sendall(HEAD + b"Content-Length: 500\r\n\r\n{")
        time.sleep(0.1)
    assert grown(server, before, 'goemotions_requests_total{outcome="client",protocol="v1"}')
    assert grown(server, before, 'goemotions_rejected_requests_total{reason="client-gone"}')
    assert server.metrics().get('goemotions_rejected_requests_total{reason="failed"}') == 0
    assert "Traceback" not in server.log.read_text()


@pytest.mark.fault("server-blame")
def test_what_is_not_http_is_rejected_in_json_and_counted(server: Server) -> None:
    before = server.metrics()
    response = raw(server, b"\x16\x03\x01 not HTTP\r\n\r\n")
    assert response.startswith(b"HTTP/1.1 400 ")
    assert json.loads(response.partition(b"\r\n\r\n")[2]).keys() == {"error"}
    assert grown(server, before, 'goemotions_requests_total{outcome="client",protocol="http"}')


@pytest.mark.fault("server-blame")
@pytest.mark.parametrize(
    "following",
    [
        b"garbage\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        f"POST {PREDICT} HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n".encode(),
    ],
    ids=["garbage", "a request that is refused", "a request that is refused in its body"],
)
@pytest.mark.parametrize("between", [b"", b"GET /v2/health/live HTTP/1.1\r\nHost: a\r\n\r\n"], ids=["", "after two"])
def test_complete_requests_are_answered_before_what_follows_them_is_refused(
    server: Server, following: bytes, between: bytes
) -> None:
    before, body = server.metrics(), b'{"instances": ["storm"]}'
    head = f"POST {PREDICT} HTTP/1.1\r\nHost: a\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    received = b""
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
        connection.sendall(head + body + between + following)
        while piece := connection.recv(65536):
            received += piece
    assert re.findall(rb"HTTP/1.1 (\d+)", received) == [b"200"] * (1 + bool(between)) + [b"400"]
    assert b'"predictions"' in received
    counted = server.metrics()
    for outcome in ('outcome="ok",protocol="v1"', 'outcome="client",protocol="http"'):
        name = f"goemotions_requests_total{{{outcome}}}"
        assert counted[name] == before.get(name, 0) + 1


def without_a_message(server: Server, channel: grpc.Channel, ended: threading.Event) -> Any:
    """A call of ModelInfer that sends nothing until the event."""
    call = channel.stream_unary("/inference.GRPCInferenceService/ModelInfer", pb.ModelInferRequest.SerializeToString)

    def messages() -> Iterator[Any]:
        ended.wait(30)
        yield from ()

    return call.future(messages())


@pytest.mark.fault("grpc-no-message", "server-blame")
def test_a_grpc_call_without_a_message_ends_and_counts_as_the_clients(server: Server) -> None:
    before, ended = server.metrics(), threading.Event()
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        late = without_a_message(server, channel, ended)
        assert (late.code(), late.details()) == (grpc.StatusCode.DEADLINE_EXCEEDED, "the message took longer than 1 seconds")
        left = without_a_message(server, channel, ended)
        time.sleep(0.2)
        left.cancel()
        ended.set()
        assert grown(server, before, 'goemotions_requests_total{outcome="client",protocol="grpc"}', 2)
        assert grown(server, before, 'goemotions_request_seconds_count{code="499",protocol="grpc"}')
        assert grown(server, before, 'goemotions_request_seconds_count{code="408",protocol="grpc"}')


@pytest.mark.fault("server-blame")
def test_a_grpc_message_over_the_limit_counts_as_too_large_and_not_as_a_client_that_left(server: Server, stub: Any) -> None:
    before = server.metrics()
    with pytest.raises(grpc.RpcError, match="larger than max") as refused:
        stub.ModelInfer(message(["a" * 200_000]))
    assert refused.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert grown(server, before, 'goemotions_rejected_requests_total{reason="too-large"}')
    name = 'goemotions_rejected_requests_total{reason="client-gone"}'
    assert server.metrics()[name] == before[name]


@pytest.mark.fault("server-blame", "grpc-hostile-client")
@pytest.mark.parametrize(
    ("sent", "compressed", "reason"),
    [(gzip.compress(bytes(1_000_000)), True, "too-large"), (b"lake", True, "malformed"), (b"", False, "malformed")],
    ids=["expands", "not compressed", "no message"],
)
def test_a_call_that_the_library_ends_does_not_count_as_a_client_that_left(
    server: Server, sent: bytes, compressed: bool, reason: str
) -> None:
    before, name = server.metrics(), "goemotions_rejected_requests_total"
    connection = http2.Connection(server.grpc_port)
    connection.acknowledge()
    stream = connection.call(http2.message(sent, compressed=True) if compressed else b"", end=False, grpc_encoding="gzip")
    connection.send(http2.frame(http2.DATA, http2.END_STREAM, stream))
    assert grown(server, before, f'{name}{{reason="{reason}"}}')
    assert server.metrics()[f'{name}{{reason="client-gone"}}'] == before[f'{name}{{reason="client-gone"}}']
    connection.close()


@pytest.mark.fault("server-blame", "grpc-hostile-client")
@pytest.mark.parametrize("head", [{"te": "gzip"}, {":scheme": "ftp"}, {":method": "post"}], ids=lambda head: next(iter(head)))
def test_calls_that_never_begin_for_their_heads_count_as_the_clients(server: Server, head: dict[str, str]) -> None:
    before, connection = server.metrics(), http2.Connection(server.grpc_port)
    connection.acknowledge()
    for _ in range(3):
        connection.call(http2.message(b""), **head)
    assert grown(server, before, 'goemotions_rejected_requests_total{reason="malformed"}', 3)
    assert grown(server, before, 'goemotions_requests_total{outcome="client",protocol="grpc"}', 3)
    connection.close()


@pytest.mark.fault("server-blame", "grpc-hostile-client")
@pytest.mark.parametrize("pause", [0, 0.1], ids=["at once", "later"])
def test_a_wrong_frame_counts_once_whatever_calls_are_in_progress(server: Server, pause: float) -> None:
    before, connection = server.metrics(), http2.Connection(server.grpc_port)
    connection.acknowledge()
    for _ in range(3):
        connection.call()
    time.sleep(pause)
    connection.send(http2.frame(http2.PING, payload=bytes(7)))
    assert connection.is_closed(10)
    name = 'goemotions_requests_total{outcome="client",protocol="grpc"}'
    assert grown(server, before, name)
    # Of the calls, which end a moment later.
    time.sleep(0.3)
    assert server.metrics()[name] == before.get(name, 0) + 1
    connection.close()


@pytest.mark.fault("server-blame")
def test_why_the_library_ends_a_call_does_not_depend_on_the_calls_before_it(server: Server) -> None:
    content = message(["lake"]).SerializeToString()
    connection = http2.Connection(server.grpc_port)
    connection.acknowledge()
    of_no_model = pb.ModelInferRequest(model_name="other").SerializeToString()
    compressed, rejected = (http2.message(gzip.compress(one), compressed=True) for one in (content, of_no_model))
    for sent in (compressed, rejected, http2.message(content)):
        answered = connection.call(sent, grpc_encoding="gzip")
        ended = next(stream for kind, flags, stream, _ in connection.frames(10) if kind == http2.HEADERS and flags & 1)
        assert ended == answered
        # As clients do that have the answer before they have sent all.
        connection.send(http2.frame(http2.RST_STREAM, 0, answered, (8).to_bytes(4, "big")))
    before = server.metrics()
    # Of two calls at once, the second begins before the message of the first.
    for _ in range(2):
        connection.call()
    large = server.metrics()['goemotions_rejected_requests_total{reason="too-large"}']
    connection.send(http2.frame(http2.DATA, http2.END_STREAM, connection.stream - 2))
    assert grown(server, before, 'goemotions_rejected_requests_total{reason="malformed"}')
    connection.send(http2.frame(http2.DATA, 0, connection.stream, http2.message(b"", length=10_000_000)))
    assert grown(server, before, 'goemotions_rejected_requests_total{reason="too-large"}')
    assert server.metrics()['goemotions_rejected_requests_total{reason="too-large"}'] == large + 1
    name = 'goemotions_rejected_requests_total{reason="client-gone"}'
    assert server.metrics()[name] == before[name]
    connection.close()


HEALTH = "/grpc.health.v1.Health/"


def of_service(name: str) -> bytes:
    """The request for the health of a service: its only field."""
    return b"\x0a" + bytes([len(name)]) + name.encode()


def test_the_health_service_of_grpc_answers_for_the_server_and_its_service(server: Server) -> None:
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        check, watch = channel.unary_unary(HEALTH + "Check"), channel.unary_stream(HEALTH + "Watch")
        for request in (b"", of_service("inference.GRPCInferenceService")):
            assert check(request) == b"\x08\x01"
            assert next(watch(request)) == b"\x08\x01"
        assert next(watch(of_service("another"))) == b"\x08\x03"
        with pytest.raises(grpc.RpcError) as unknown:
            check(of_service("another"))
        assert unknown.value.code() == grpc.StatusCode.NOT_FOUND


@pytest.mark.fault("grpc-no-message")
def test_calls_that_watch_the_health_are_bounded_and_end_without_a_message(server: Server) -> None:
    address = f"127.0.0.1:{server.grpc_port}"
    hostile = http2.Connection(server.grpc_port)
    hostile.acknowledge()
    hostile.call(path=HEALTH + "Watch")
    assert any(kind == http2.HEADERS for kind, *_ in hostile.frames(10))
    hostile.close()
    # Those that leave at once are no failure, which the fixture would find in the log.
    for _ in range(5):
        leaving = http2.Connection(server.grpc_port, window=0)
        leaving.acknowledge()
        for _ in range(100):
            leaving.call(http2.message(b""), path=HEALTH + "Watch")
        time.sleep(0.05)
        leaving.close()
    with contextlib.ExitStack() as stack:
        options = [("grpc.use_local_subchannel_pool", 1)]
        channels = [stack.enter_context(grpc.insecure_channel(address, options=options)) for _ in range(3)]
        calls = [channels[number % 3].unary_stream(HEALTH + "Watch")(b"", timeout=20) for number in range(200)]
        codes = set()
        for call in calls:
            try:
                next(call)
            except grpc.RpcError as error:
                codes.add(error.code())
        assert codes == {grpc.StatusCode.RESOURCE_EXHAUSTED}
        assert channels[0].unary_unary(HEALTH + "Check")(b"") == b"\x08\x01"
        # A client of another address has room.
        other = http2.Connection(server.grpc_port, "127.0.0.2")
        other.acknowledge()
        other.call(http2.message(b""), path=HEALTH + "Watch")
        assert any(payload.endswith(b"\x08\x01") for kind, *_, payload in other.frames(10) if kind == http2.DATA)
        other.close()


@pytest.mark.fault("grpc-hostile-client")
def test_large_grpc_metadata_are_refused_also_if_the_client_never_acknowledges_the_limit(server: Server, stub: Any) -> None:
    with pytest.raises(grpc.RpcError, match="metadata") as refused:
        stub.ModelInfer(message(["lake"]), metadata=(("x", "y" * 20_000),))
    assert refused.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    content = http2.message(message(["lake"]).SerializeToString())
    for size, received in ((10, b"application/grpc"), (20_000, b"received metadata size exceeds")):
        hostile = http2.Connection(server.grpc_port)
        hostile.call(content, x="y" * size)
        assert any(received in payload for *_, payload in hostile.frames(10))
        hostile.close()


def test_a_grpc_client_may_send_its_first_bytes_one_by_one(server: Server) -> None:
    class Slow(http2.Connection):
        def send(self, content: bytes) -> None:
            for byte in content:
                self.socket.sendall(bytes([byte]))

    connection = Slow(server.grpc_port)
    connection.acknowledge()
    connection.call(http2.message(message(["lake"]).SerializeToString()))
    assert any(b"application/grpc" in payload for *_, payload in connection.frames(10))
    connection.close()


@pytest.mark.fault("grpc-hostile-client")
@pytest.mark.parametrize(
    "sent",
    [
        b"GET / HTTP/1.1\r\n",
        http2.PREFACE + http2.frame(http2.SETTINGS, http2.ACK),
        http2.PREFACE + http2.frame(http2.PING, payload=bytes(8)),
        http2.PREFACE + http2.frame(http2.SETTINGS, payload=bytes(6 * 1000)),
    ],
    ids=["http-1", "acknowledgement-first", "ping-first", "long-settings"],
)
def test_what_no_grpc_client_sends_first_closes_the_connection(server: Server, sent: bytes) -> None:
    name, before = 'goemotions_closed_connections_total{reason="malformed"}', server.metrics()
    with socket.create_connection(("127.0.0.1", server.grpc_port), timeout=10) as connection:
        connection.sendall(sent)
        with contextlib.suppress(ConnectionResetError):
            while connection.recv(65536):
                pass
    assert grown(server, before, name)


@pytest.mark.fault("server-blame")
def test_a_cancelled_grpc_request_is_not_counted_as_a_200(server: Server, stub: Any) -> None:
    name, before = 'goemotions_request_seconds_count{code="%d",protocol="grpc"}', server.metrics()
    calls = [stub.ModelInfer.future(message([f"{n} " + "storm " * 400] * 64)) for n in range(8)]
    time.sleep(0.05)
    cancelled = sum(call.cancel() for call in calls)
    assert cancelled
    assert grown(server, before, name % 499)
    assert server.metrics().get(name % 200, 0) - before.get(name % 200, 0) <= 8 - 1


def test_the_traffic_is_counted_at_the_tuned_thresholds_whatever_is_requested(server: Server, predictor: Predictor) -> None:
    texts = ["lake", "storm " * 400, "table balloon"]
    scores, truncated = engines.score(predictor.engine, texts)
    expected = Traffic.of(predictor.bundle.taxonomy.names, scores, predictor.bundle.thresholds)
    before = server.metrics()
    server.predict(instances=texts, parameters={"threshold": 0, "top_k": 1})
    assert grown(server, before, 'goemotions_scored_texts_total{version="r1"}', 3)
    after = server.metrics()

    def growth(name: str, **labels: str) -> float:
        described = ",".join(f'{key}="{value}"' for key, value in sorted({**labels, "version": "r1"}.items()))
        return after.get(f"{name}{{{described}}}", 0) - before.get(f"{name}{{{described}}}", 0)

    for number, label in enumerate(expected.names):
        assert growth("goemotions_predictions_total", label=label) == expected.predicted[number]
        assert growth("goemotions_label_scores_total", label=label) == pytest.approx(expected.total_sum[number], abs=0.1)
        assert growth("goemotions_predicted_label_scores_total", label=label) == pytest.approx(
            expected.predicted_sum[number], abs=0.1
        )
        assert sum(growth("goemotions_score_bins_total", label=label, bin=name) for name in SCORE_BINS) == 3
    assert growth("goemotions_text_features_total", feature="truncated", bin="yes") == truncated.sum() == 1
    assert growth("goemotions_text_features_total", feature="script", bin="latin") == 3
    assert after['goemotions_reference_texts{version="r1"}'] == 80
    reference = predictor.bundle.reference
    assert reference is not None
    assert after['goemotions_reference_predictions{label="calm",version="r1"}'] == reference.traffic.predicted[0]


def test_no_error_contains_internals(server: Server) -> None:
    bodies = [server.request("POST", PREDICT, body)[2] for body in (b"{", b"\xff", b'{"instances": [[]]}', b"null")]
    for body in bodies:
        assert not any(word in body for word in (b"Traceback", b"pydantic", b".py", b"line ", b"column"))


@pytest.mark.parametrize(
    ("accepted", "content_type"),
    [
        ("*/*", "text/plain"),
        ("text/plain; version=x", "text/plain"),
        ("application/openmetrics-text; version=x, text/plain; version=0.0.4", "application/openmetrics-text"),
    ],
)
def test_metrics_have_a_format_that_the_scraper_accepts(server: Server, accepted: str, content_type: str) -> None:
    status, headers, body = server.request("GET", "/metrics", accept=accepted)
    assert (status, headers["content-type"].partition(";")[0]) == (200, content_type)
    assert body.endswith(b"# EOF\n") == (content_type != "text/plain")


def test_metrics_count_requests_and_predictions(server: Server) -> None:
    before = server.metrics()
    server.predict(instances=["lake", "storm " * 400], parameters={"threshold": 0})
    server.predict(instances=[])
    after = server.metrics()

    def growth(name: str) -> float:
        return after.get(name, 0) - before.get(name, 0)

    assert growth('goemotions_request_seconds_count{code="200",protocol="v1"}') == 1
    assert growth('goemotions_rejected_requests_total{reason="malformed"}') == 1
    assert growth("goemotions_truncated_texts_total") == 1
    assert growth("goemotions_request_texts_sum") == 2
    assert growth("goemotions_batch_texts_sum") == 2
    assert growth('request_predict_seconds_count{model_name="goemotions"}') == 1
    described = f'device="{cpu_name()}",engine="openvino-int8",precision="int8",profile="minilm",run="r1",version="r1"'
    assert after[f"goemotions_model_info{{{described}}}"] == 1
    _, _, metadata = server.request("GET", "/v2/models/goemotions")
    assert json.loads(metadata)["platform"] == f"openvino-int8 on {cpu_name()} in int8"
