"""What the clients of KServe, Triton and MLServer send by default, against one running server."""

import asyncio
import gzip
import http.client
import json
import os
import struct
import subprocess
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import grpc
import numpy as np
import pytest
from kserve import InferenceGRPCClient, InferenceRESTClient, InferInput, InferRequest, RESTConfig
from kserve.protocol.grpc import grpc_predict_v2_pb2 as pb
from kserve.protocol.grpc import grpc_predict_v2_pb2_grpc as stubs

from goemotions.prediction.predictor import Options, Predictor
from tests.support.servers import PREDICT, Server

INFER = "/v2/models/goemotions/infer"
ROOT = Path(__file__).parents[2]
TEXTS = ["we found the lake", "a quiet balloon under the table"]


@pytest.fixture(scope="module")
def expected(predictor: Predictor) -> np.ndarray:
    """The probabilities of the texts."""
    names = predictor.bundle.taxonomy.names
    predictions = predictor.predict(TEXTS, Options(all_scores=True))
    return np.array([[prediction["scores"][name] for name in names] for prediction in predictions], dtype=np.float32)


@pytest.fixture(scope="module")
def stub(server: Server) -> Iterator[Any]:
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        yield stubs.GRPCInferenceServiceStub(channel)


def tensor(**changes: Any) -> dict[str, Any]:
    return {"name": "text", "shape": [2], "datatype": "BYTES", "data": TEXTS} | changes


def raw() -> bytes:
    return b"".join(struct.pack("<I", len(text)) + text.encode() for text in TEXTS)


def post(server: Server, body: bytes, path: str = INFER, **headers: str) -> tuple[int, http.client.HTTPMessage, bytes]:
    """A request with these headers only: ``http.client`` adds no content type, as geventhttpclient does not."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    connection.request("POST", path, body, {name.replace("_", "-"): value for name, value in headers.items()})
    response = connection.getresponse()
    return response.status, response.headers, response.read()


def probabilities(response: bytes) -> np.ndarray:
    output = json.loads(response)["outputs"][0]
    assert output["name"] == "probabilities"
    return np.array(output["data"], dtype=np.float32).reshape(output["shape"])


@pytest.mark.parametrize("is_binary", [False, True])
def test_the_rest_client_of_kserve(server: Server, expected: np.ndarray, is_binary: bool) -> None:
    async def infer() -> Any:
        client = InferenceRESTClient(RESTConfig(protocol="v2"))
        url = f"http://127.0.0.1:{server.port}"
        assert await client.is_server_ready(url)
        assert await client.is_model_ready(url, "goemotions")
        texts = InferInput("text", [2, 1], "BYTES")
        texts.set_data_from_numpy(np.array([[text] for text in TEXTS], dtype=object), binary_data=is_binary)
        response = await client.infer(url, InferRequest("goemotions", [texts], "q", parameters={}), model_name="goemotions")
        await client.close()
        return response

    response = asyncio.run(infer())
    assert response.id == "q"
    assert response.outputs[0].as_numpy() == pytest.approx(expected, abs=1e-5)


def test_the_v1_client_of_kserve(server: Server, predictor: Predictor) -> None:
    async def infer() -> Any:
        client, url = InferenceRESTClient(RESTConfig(protocol="v1")), f"http://127.0.0.1:{server.port}"
        predicted = await client.infer(url, {"instances": TEXTS}, model_name="goemotions")
        explained = await client.explain(url, "goemotions", {"instances": TEXTS})
        await client.close()
        return predicted, explained

    predicted, explained = asyncio.run(infer())
    assert predicted["predictions"] == predictor.predict(TEXTS)
    labels = [prediction["labels"] for prediction in explained["predictions"]]
    assert [list(one["contributions"]) for one in explained["explanations"]] == labels


def test_the_grpc_client_of_kserve(server: Server, expected: np.ndarray) -> None:
    async def infer() -> Any:
        client = InferenceGRPCClient(f"127.0.0.1:{server.grpc_port}")
        assert await client.is_server_live()
        texts = InferInput("text", [2], "BYTES", [text.encode() for text in TEXTS])
        response = await client.infer(InferRequest("goemotions", [texts], "q", parameters={"timeout": 5, "top_k": 2}))
        await client.close()
        return response

    assert asyncio.run(infer()).outputs[0].as_numpy() == pytest.approx(expected, abs=1e-5)


def test_the_http_client_of_triton_sends_binary_tensors_without_a_content_type(server: Server, expected: np.ndarray) -> None:
    parameters = {"sequence_id": 7, "sequence_start": True, "sequence_end": False, "priority": 1, "timeout": 500_000}
    described = tensor(parameters={"binary_data_size": len(raw())})
    del described["data"]
    head = json.dumps({"inputs": [described], "parameters": parameters | {"binary_data_output": True}}).encode()
    status, headers, body = post(server, head + raw(), Inference_Header_Content_Length=str(len(head)))
    assert status == 200, body
    tail = body[int(headers["Inference-Header-Content-Length"]) :]
    assert np.frombuffer(tail[: expected.nbytes], "<f4").reshape(expected.shape) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("compress", [gzip.compress, zlib.compress])
def test_the_http_client_of_triton_compresses(server: Server, expected: np.ndarray, compress: Any) -> None:
    encoding = {gzip.compress: "gzip", zlib.compress: "deflate"}[compress]
    outputs = [{"name": "probabilities", "parameters": {"binary_data": False}}]
    body = compress(json.dumps({"id": "q", "inputs": [tensor()], "outputs": outputs}).encode())
    status, _, response = post(server, body, Content_Encoding=encoding)
    assert status == 200, response
    assert probabilities(response) == pytest.approx(expected, abs=1e-5)


def test_the_aio_client_of_triton_sends_json_as_octets(server: Server, expected: np.ndarray) -> None:
    """aiohttp, which that client uses, names a body of bytes application/octet-stream."""

    async def infer() -> tuple[int, str, bytes]:
        url = f"http://127.0.0.1:{server.port}{INFER}"
        async with (
            aiohttp.ClientSession() as session,
            session.post(url, data=json.dumps({"inputs": [tensor()]}).encode()) as sent,
        ):
            return sent.status, sent.request_info.headers["Content-Type"], await sent.read()

    status, content_type, body = asyncio.run(infer())
    assert (status, content_type) == (200, "application/octet-stream")
    assert probabilities(body) == pytest.approx(expected, abs=1e-5)


def test_the_client_of_mlserver_sends_nulls_and_content_types(server: Server, expected: np.ndarray) -> None:
    parameters = {"content_type": "str", "headers": {"x-request-id": "1"}}
    for request in (
        {"id": None, "parameters": parameters, "inputs": [tensor(parameters={"content_type": "str"})], "outputs": None},
        {"parameters": None, "inputs": [tensor(parameters=None)], "outputs": [{"name": "probabilities", "parameters": None}]},
        {"inputs": [tensor(shape=[2, 1], data=[[text] for text in TEXTS])]},
        {"inputs": [tensor(shape=[2, 1])]},
        {"parameters": {"content_type": "str"}, "inputs": [tensor(name="input-1", parameters={"content_type": "str"})]},
    ):
        status, _, body = post(server, json.dumps(request).encode(), Content_Type="application/json")
        assert status == 200, body
        assert probabilities(body) == pytest.approx(expected, abs=1e-5)


def test_v1_without_a_content_type(server: Server, predictor: Predictor) -> None:
    body = json.dumps({"instances": TEXTS, "parameters": None}).encode()
    for headers in (
        {},
        {"Content_Type": ""},
        {"Content_Type": "application/octet-stream"},
        {"Content_Type": "Application/JSON"},
    ):
        status, _, response = post(server, body, PREDICT, **headers)
        assert (status, json.loads(response)["predictions"]) == (200, predictor.predict(TEXTS))


@pytest.mark.parametrize("is_chunked", [False, True])
def test_a_client_that_offers_http_2(server: Server, predictor: Predictor, is_chunked: bool) -> None:
    """Java's HttpClient asks with its first request for h2c, as curl does with --http2."""
    body = json.dumps({"instances": ["a quiet lake " * 200]}).encode()
    fields = {"Connection": "Upgrade, HTTP2-Settings", "Upgrade": "h2c", "HTTP2_Settings": "AAEAAEAAAAIAAAABAAMAAABk"}
    sent = iter([body[:9], body[9:]]) if is_chunked else body
    status, _, content = server.request("POST", PREDICT, sent, **fields)
    assert (status, json.loads(content)["predictions"]) == (200, predictor.predict(["a quiet lake " * 200]))


@pytest.mark.fault("http-body-limit")
def test_a_compressed_body_is_bounded_after_decompression(server: Server) -> None:
    bomb = gzip.compress(b"[" + b" " * 150_000_000)
    status, _, body = post(server, bomb, PREDICT, Content_Encoding="gzip")
    assert (status, json.loads(body)) == (
        413,
        {"error": "the body is larger than 200,000 bytes after decompression: send fewer texts"},
    )


@pytest.mark.fault("http-not-json")
@pytest.mark.parametrize(
    ("body", "encoding", "status"),
    [
        (b"plain", "gzip", 400),
        (gzip.compress(b'{"instances": ["a"]}')[:-6], "gzip", 400),
        (gzip.compress(b'{"instances": ["a"]}') + b"more", "gzip", 400),
        (b"", "gzip", 400),
        (b"a", "br", 415),
        (b"a", "gzip, gzip", 415),
    ],
    ids=["not compressed", "cut", "more after the end", "empty", "another encoding", "two encodings"],
)
def test_a_body_that_is_not_what_its_encoding_says_is_rejected(server: Server, body: bytes, encoding: str, status: int) -> None:
    assert post(server, body, PREDICT, Content_Encoding=encoding)[0] == status


@pytest.mark.fault("http-wrong-field")
@pytest.mark.parametrize(
    ("changes", "fields", "named"),
    [
        ({"parameters": {"content_type": "base64"}}, {}, "inputs[0].parameters.content_type"),
        ({"parameters": {"shared_memory_region": "r"}}, {}, "inputs[0].parameters.shared_memory_region"),
        ({}, {"outputs": [{"name": "labels", "parameters": {"classification": 3}}]}, "outputs[0].parameters.classification"),
        ({}, {"parameters": {"all_scores": True}}, "parameters.all_scores"),
        ({}, {"parameters": {"binary_data_output": "yes"}}, "parameters.binary_data_output"),
        ({"shape": [2], "data": [["a", "b"]]}, {}, "inputs[0].data"),
        ({}, {"id": "q" * 201}, "id"),
    ],
)
def test_a_parameter_without_effect_is_rejected_by_name(
    server: Server, changes: dict[str, Any], fields: dict[str, Any], named: str
) -> None:
    status, _, body = post(server, json.dumps({"inputs": [tensor(**changes)], **fields}).encode())
    assert (status, named in json.loads(body)["error"]) == (400, True), body


CLIENTS = ROOT / "tests" / "support" / "triton_clients.py"
# Triton's own extensions, which the Open Inference Protocol does not have.
EXTENSIONS = ("get_model_config", "get_inference_statistics")


@pytest.fixture(scope="module")
def calls(server: Server) -> dict[str, Any]:
    """What every call of Triton's clients returned, in the environment that has them."""
    python = ROOT / ".venv" / "triton" / "bin" / "python"
    assert python.exists(), "Triton's client is not installed: `make .venv/triton/bin/installed`"
    command = [python, CLIENTS, str(server.port), str(server.grpc_port), server.name, *TEXTS]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120, env={"PATH": os.environ["PATH"]})
    assert ended.returncode == 0, ended.stderr
    returned: dict[str, Any] = json.loads(ended.stdout)
    return returned


@pytest.mark.parametrize("protocol", ["http", "http.aio", "grpc", "grpc.aio"])
def test_the_clients_of_triton_themselves(calls: dict[str, Any], server: Server, expected: np.ndarray, protocol: str) -> None:
    own = {name.removeprefix(f"{protocol}: "): value for name, value in calls.items() if name.startswith(f"{protocol}: ")}
    inferred = {name: value for name, value in own.items() if "infer" in name and name not in EXTENSIONS}
    assert len(inferred) >= 8
    for name, value in inferred.items():
        assert np.array(value, dtype=np.float32) == pytest.approx(expected, abs=1e-5), name
    for name in ("is_server_live", "is_server_ready", "is_model_ready"):
        assert own[name] is True
    assert own["get_server_metadata"] == own["get_model_metadata"] == server.name
    is_grpc = protocol.startswith("grpc")
    unknown = "StatusCode.NOT_FOUND: no such model" if is_grpc else "404: no such path or model"
    assert own["get_model_metadata, unknown"].startswith(f"InferenceServerException {unknown}")
    assert own["is_model_ready, unknown"] is not True
    for name in EXTENSIONS:
        refused = "StatusCode.UNIMPLEMENTED" if is_grpc else "404: no such path or model"
        assert own[name].startswith(f"InferenceServerException {refused}")


def of_triton(field: bytes) -> Any:
    """A parameter of Triton's messages, which have two more types of number than KServe's."""
    return pb.InferParameter.FromString(field)


DOUBLE = b"\x21" + struct.pack("<d", 0.25)
UINT64 = b"\x28\x02"


def message(**parameters: Any) -> Any:
    request = pb.ModelInferRequest(model_name="goemotions", raw_input_contents=[raw()])
    request.inputs.add(name="input-1", datatype="BYTES", shape=[2])
    for name, parameter in parameters.items():
        request.parameters[name].CopyFrom(parameter)
    return request


def chosen(response: Any) -> list[list[str]]:
    content, labels = response.raw_output_contents[1], []
    while content:
        size = int.from_bytes(content[:4], "little")
        labels.append(json.loads(content[4 : 4 + size]))
        content = content[4 + size :]
    return labels


def test_the_grpc_client_of_triton(stub: Any, predictor: Predictor, expected: np.ndarray) -> None:
    ignored = {"priority": of_triton(UINT64), "timeout": pb.InferParameter(int64_param=9), "sequence_id": of_triton(UINT64)}
    response = stub.ModelInfer(message(**ignored))
    assert np.frombuffer(response.raw_output_contents[0], "<f4").reshape(expected.shape) == pytest.approx(expected, abs=1e-5)
    numbers = {"threshold": of_triton(DOUBLE), "top_k": of_triton(UINT64)}
    wanted = [prediction["labels"] for prediction in predictor.predict(TEXTS, Options(2, 0.25))]
    assert chosen(stub.ModelInfer(message(**numbers))) == wanted


@pytest.mark.parametrize(
    ("name", "parameter", "named"),
    [
        ("top_k", pb.InferParameter(string_param="3"), "parameters.top_k"),
        ("top_k", pb.InferParameter(), "parameters.top_k has no value"),
        ("threshold", pb.InferParameter(bool_param=True), 'parameters.threshold: must be "tuned" or a number from 0 to 1'),
        ("threshold", pb.InferParameter(int64_param=2), "parameters.threshold"),
        ("t" * 100_000, pb.InferParameter(int64_param=2), "parameters.ttt"),
    ],
    ids=["string", "empty", "bool", "too-large", "long-name"],
)
@pytest.mark.fault("http-wrong-field")
def test_a_wrong_grpc_parameter_is_named(stub: Any, name: str, parameter: Any, named: str) -> None:
    with pytest.raises(grpc.RpcError) as error:
        stub.ModelInfer(message(**{name: parameter}))
    assert error.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert named in error.value.details()
    assert len(error.value.details()) < 300
