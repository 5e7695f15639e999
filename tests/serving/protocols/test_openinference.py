"""V2 messages: texts in every encoding of the protocol, and the errors of malformed messages."""

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kserve.protocol.grpc import grpc_predict_v2_pb2 as pb

from goemotions.errors import RequestError
from goemotions.prediction.predictor import Options
from goemotions.serving.protocols import openinference
from goemotions.serving.service import Result

TEXTS = st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=30), min_size=1, max_size=8)


def tensor(texts: list[str], **changes: Any) -> dict[str, Any]:
    return {"name": "text", "shape": [len(texts)], "datatype": "BYTES", "data": texts} | changes


def body(*inputs: dict[str, Any], **fields: Any) -> bytes:
    return json.dumps({"inputs": list(inputs), **fields}).encode()


def raw(texts: list[str]) -> bytes:
    return b"".join(len(text.encode()).to_bytes(4, "little") + text.encode() for text in texts)


def with_binary(texts: list[str], content: bytes | None = None, **fields: Any) -> tuple[bytes, str]:
    content = raw(texts) if content is None else content
    head = tensor(texts, parameters={"binary_data_size": len(content)})
    del head["data"]
    encoded = body(head, **fields)
    return encoded + content, str(len(encoded))


def message(texts: list[str], *, is_raw: bool = False, **changes: Any) -> Any:
    request = pb.ModelInferRequest(model_name="goemotions", id="7")
    shaped = request.inputs.add(**({"name": "text", "datatype": "BYTES", "shape": [len(texts)]} | changes))
    if is_raw:
        request.raw_input_contents.append(raw(texts))
    else:
        shaped.contents.bytes_contents.extend(text.encode() for text in texts)
    return request


@given(TEXTS)
@settings(max_examples=50, deadline=None)
def test_every_encoding_carries_the_same_texts(texts: list[str]) -> None:
    encodings = [
        openinference.from_rest(body(tensor(texts)), None),
        openinference.from_rest(body(tensor(texts, shape=[len(texts), 1])), None),
        openinference.from_rest(*with_binary(texts)),
        openinference.from_grpc(message(texts)),
        openinference.from_grpc(message(texts, is_raw=True)),
    ]
    assert [encoded.texts for encoded in encodings] == [texts] * 5


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (b"", "not valid JSON"),
        (b"[1]", "the body"),
        (b"{}", "inputs"),
        (body(), "inputs"),
        (body(tensor(["a"]), tensor(["b"])), "inputs"),
        (body(tensor(["a"], datatype="FP32")), "inputs[0].datatype"),
        (body(tensor(["a"], shape=[2])), "inputs[0].shape"),
        (body(tensor(["a"], shape=[1, 2])), "inputs[0].shape"),
        (body(tensor(["a"], shape=[])), "inputs[0].shape"),
        (body(tensor(["a"], shape=[-1])), "inputs[0].shape"),
        (body(tensor(["a"], shape=[1.5])), "inputs[0].shape"),
        (body(tensor(["a"], shape=[10**30])), "inputs[0].shape"),
        (body(tensor(["a"], data=[1])), "inputs[0].data"),
        (body(tensor(["a"], data=None)), "inputs[0].data"),
        (body(tensor([])), "inputs[0].data"),
        (body(tensor(["a"]), parameters={"top_k": 0}), "top_k"),
        (body(tensor(["a"]), parameters={"topk": 1}), "topk"),
        (body(tensor(["a"]), outputs=[{"name": "logits"}]), "outputs[0].name"),
        (body(tensor(["a"], parameters={"binary_data_size": 5})), "binary_data_size"),
    ],
)
@pytest.mark.fault("http-wrong-field", "http-invalid-tensor")
def test_the_error_of_a_wrong_request_names_the_field(content: bytes, named: str) -> None:
    with pytest.raises(RequestError) as rejected:
        openinference.from_rest(content, None)
    assert named in str(rejected.value)
    assert rejected.value.status == 400


@pytest.mark.parametrize(
    "content", [b"\x05\x00\x00\x00abc", b"\x01", b"\xff\xff\xff\xffabc", b"\x01\x00\x00\x00\xff", b""], ids=repr
)
@pytest.mark.fault("http-invalid-tensor")
def test_truncated_or_invalid_binary_data_is_rejected(content: bytes) -> None:
    with pytest.raises(RequestError):
        openinference.from_rest(*with_binary(["abc"], content))


@pytest.mark.parametrize("length", ["-1", "x", "1e3", "99999", "", "3"])
def test_a_wrong_header_length_is_rejected(length: str) -> None:
    with pytest.raises(RequestError):
        openinference.from_rest(with_binary(["abc"])[0], length)


@pytest.mark.parametrize("size", [0, 1, 6, 8, -7, "7", None, 7.5])
def test_a_wrong_binary_data_size_is_rejected(size: Any) -> None:
    head = body({"name": "text", "shape": [1], "datatype": "BYTES", "parameters": {"binary_data_size": size}})
    with pytest.raises(RequestError):
        openinference.from_rest(head + raw(["abc"]), str(len(head)))


def test_wrong_grpc_messages_are_rejected() -> None:
    both = message(["a"], is_raw=True)
    both.inputs[0].contents.bytes_contents.append(b"a")
    unknown = message(["a"])
    unknown.outputs.add(name="logits")
    wrong = [pb.ModelInferRequest(), message(["a"], datatype="FP32"), message(["a"], shape=[3])]
    for malformed in (*wrong, message([]), both, unknown):
        with pytest.raises(RequestError):
            openinference.from_grpc(malformed)


def test_parameters_become_options() -> None:
    parsed = openinference.from_rest(body(tensor(["a"]), parameters={"top_k": 2, "threshold": 0.25}), None)
    assert parsed.options == Options(2, 0.25)
    grpc = message(["a"])
    grpc.parameters["top_k"].int64_param = 2
    grpc.parameters["threshold"].string_param = "0.25"
    assert openinference.from_grpc(grpc).options == Options(2, 0.25)
    grpc.parameters["threshold"].string_param = "high"
    with pytest.raises(RequestError, match="threshold"):
        openinference.from_grpc(grpc)


LABELS = ['["glee"]', '["pity", "scorn"]']
RESULT = Result(
    np.array([[0.25, 0.5], [0.75, 1.0]], dtype=np.float32),
    [{"labels": ["glee"], "truncated": False}, {"labels": ["pity", "scorn"], "truncated": True}],
)


def test_a_response_holds_the_requested_tensors() -> None:
    parsed = openinference.from_rest(body(tensor(["a", "b"]), id="q"), None)
    content, tail = openinference.to_rest(parsed, RESULT, "3")
    assert tail == b""
    assert content == {
        "model_name": "goemotions",
        "model_version": "3",
        "id": "q",
        "parameters": {"truncated": [1]},
        "outputs": [
            {"name": "probabilities", "datatype": "FP32", "shape": [2, 2], "data": [0.25, 0.5, 0.75, 1.0]},
            {"name": "labels", "datatype": "BYTES", "shape": [2], "data": ['["glee"]', '["pity", "scorn"]']},
        ],
    }
    some = openinference.from_rest(body(tensor(["a", "b"]), outputs=[{"name": "labels"}]), None)
    assert [output["name"] for output in openinference.to_rest(some, RESULT, "3")[0]["outputs"]] == ["labels"]


def test_a_binary_response_holds_the_bytes_of_the_tensors() -> None:
    parsed = openinference.from_rest(*with_binary(["a", "b"], parameters={"binary_data_output": True}))
    content, tail = openinference.to_rest(parsed, RESULT, "3")
    first, second = (output["parameters"]["binary_data_size"] for output in content["outputs"])
    assert np.frombuffer(tail[:first], "<f4").tolist() == [0.25, 0.5, 0.75, 1.0]
    assert tail[first:] == raw(LABELS)
    assert len(tail) == first + second


@pytest.mark.parametrize("is_raw", [False, True])
def test_a_grpc_response_is_raw_if_the_request_was(is_raw: bool) -> None:
    parsed = openinference.from_grpc(message(["a", "b"], is_raw=is_raw))
    response = openinference.to_grpc(parsed, RESULT, "3")
    assert (response.model_name, response.model_version, response.id) == ("goemotions", "3", "7")
    assert [list(output.shape) for output in response.outputs] == [[2, 2], [2]]
    if is_raw:
        assert np.frombuffer(response.raw_output_contents[0], "<f4").tolist() == [0.25, 0.5, 0.75, 1.0]
        assert response.raw_output_contents[1] == raw(LABELS)
    else:
        assert list(response.outputs[0].contents.fp32_contents) == [0.25, 0.5, 0.75, 1.0]
        assert [content.decode() for content in response.outputs[1].contents.bytes_contents] == LABELS


@pytest.mark.fault("http-invalid-tensor")
@pytest.mark.parametrize("length", ["\u00b2", "\u0663", "9" * 5000, "-1", "+3", " 3", "", "0x10"])
def test_a_header_length_that_is_not_a_plain_number_is_rejected(length: str) -> None:
    with pytest.raises(RequestError, match="must be the length in bytes"):
        openinference.from_rest(b'{"inputs": []}', length)
