"""V2, the Open Inference protocol: tensors to texts and back, as JSON, as JSON with binary tensors, and as gRPC messages.

https://github.com/kserve/open-inference-protocol
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from goemotions.errors import RequestError
from goemotions.prediction.predictor import Options
from goemotions.serving.schema import Parameters, V2Request, check, parse

OUTPUTS = {"probabilities": "FP32", "labels": "BYTES"}
BINARY_HEADER = "Inference-Header-Content-Length"


@dataclass(frozen=True)
class Request:
    """A checked request. ``outputs``: the tensors wanted, each with whether it is wanted in binary."""

    texts: list[str]
    options: Options
    outputs: dict[str, bool]
    id: str | None = None


@dataclass(frozen=True)
class Answer:
    """The tensors of an answer: probabilities, float32 [n, labels], and for each text its labels, best first, as a JSON list."""

    probabilities: np.ndarray
    labels: list[str]
    truncated: list[int]

    @classmethod
    def of(cls, probabilities: np.ndarray, predictions: Sequence[dict[str, Any]]) -> Answer:
        labels = [json.dumps(prediction["labels"], ensure_ascii=False) for prediction in predictions]
        return cls(probabilities, labels, [n for n, prediction in enumerate(predictions) if prediction["truncated"]])


def from_rest(body: bytes, header_length: str | None) -> Request:
    """A REST request. With binary tensors, ``header_length`` is the length of the JSON before them.

    Raises:
        RequestError: names what is wrong.
    """
    binary = None
    if header_length is not None:
        if not re.fullmatch("[0-9]{1,9}", header_length) or int(header_length) > len(body):
            raise RequestError(f"{BINARY_HEADER} must be the length in bytes of the JSON at the start of the body")
        body, binary = body[: int(header_length)], body[int(header_length) :]
    request = parse(V2Request, body)
    tensor = request.inputs[0]
    size = tensor.parameters.get("binary_data_size")
    if size is None:
        if binary:
            raise RequestError("inputs[0].parameters.binary_data_size is missing")
        if tensor.data is None:
            raise RequestError("inputs[0].data: field required")
        texts = tensor.data
    else:
        if tensor.data is not None or binary is None or size != len(binary):
            raise RequestError(
                "inputs[0].parameters.binary_data_size must be the number of bytes after the JSON, with no data in it"
            )
        texts = _strings(binary)
    _check_shape(tensor.shape, len(texts))
    parameters = dict(request.parameters)
    all_binary = parameters.pop("binary_data_output", False) is True
    wanted: dict[str, bool] = {
        output.name: output.parameters.get("binary_data", all_binary) is True for output in request.outputs
    }
    return Request(texts, check(Parameters, parameters).options(), wanted or dict.fromkeys(OUTPUTS, all_binary), request.id)


def to_rest(request: Request, answer: Answer, name: str, version: str) -> tuple[dict[str, Any], bytes]:
    """The JSON of an answer, and the binary tensors that follow it."""
    outputs, tail = [], b""
    for output, is_binary in request.outputs.items():
        tensor: dict[str, Any] = {"name": output, "datatype": OUTPUTS[output], "shape": _shape(output, answer)}
        if is_binary:
            content = _raw(output, answer)
            tensor["parameters"] = {"binary_data_size": len(content)}
            tail += content
        else:
            tensor["data"] = answer.probabilities.ravel().tolist() if output == "probabilities" else answer.labels
        outputs.append(tensor)
    result: dict[str, Any] = {"model_name": name, "model_version": version, "outputs": outputs}
    if request.id is not None:
        result["id"] = request.id
    if answer.truncated:
        result["parameters"] = {"truncated": answer.truncated}
    return result, tail


def from_grpc(message: Any) -> Request:
    """A gRPC ``ModelInferRequest``.

    Raises:
        RequestError: names what is wrong.
    """
    if len(message.inputs) != 1 or message.inputs[0].name != "text" or message.inputs[0].datatype != "BYTES":
        raise RequestError('inputs must hold one tensor, "text", of datatype BYTES')
    tensor = message.inputs[0]
    if message.raw_input_contents:
        if len(message.raw_input_contents) != 1 or tensor.HasField("contents"):
            raise RequestError("raw_input_contents must hold the one tensor, and inputs[0] no contents")
        texts = _strings(message.raw_input_contents[0])
    else:
        texts = [_text(content) for content in tensor.contents.bytes_contents]
    _check_shape(list(tensor.shape), len(texts))
    names = [output.name for output in message.outputs]
    if unknown := sorted(set(names) - set(OUTPUTS)):
        raise RequestError(f"there is no output {unknown[0]!r}: ask for probabilities or labels")
    parameters = {name: _parameter(name, value) for name, value in message.parameters.items()}
    parameters.pop("binary_data_output", None)
    is_raw = bool(message.raw_input_contents)
    return Request(texts, check(Parameters, parameters).options(), dict.fromkeys(names or OUTPUTS, is_raw), message.id)


def fill_grpc(message: Any, request: Request, answer: Answer) -> None:
    """Writes the tensors of an answer into a gRPC ``ModelInferResponse``: raw where the request was."""
    for output, is_raw in request.outputs.items():
        tensor = message.outputs.add(name=output, datatype=OUTPUTS[output], shape=_shape(output, answer))
        if is_raw:
            message.raw_output_contents.append(_raw(output, answer))
        elif output == "probabilities":
            tensor.contents.fp32_contents.extend(answer.probabilities.ravel().tolist())
        else:
            tensor.contents.bytes_contents.extend(text.encode() for text in answer.labels)
    if answer.truncated:
        message.parameters["truncated"].string_param = json.dumps(answer.truncated)


def _shape(output: str, answer: Answer) -> list[int]:
    return list(answer.probabilities.shape[: 2 if output == "probabilities" else 1])


def _raw(output: str, answer: Answer) -> bytes:
    if output == "probabilities":
        return answer.probabilities.astype("<f4").tobytes()
    encoded = [text.encode() for text in answer.labels]
    return b"".join(len(text).to_bytes(4, "little") + text for text in encoded)


def _strings(content: bytes) -> list[str]:
    """The strings of a raw BYTES tensor: each after its length, four bytes, little-endian."""
    texts, position = [], 0
    while position < len(content):
        start = position + 4
        position = start + int.from_bytes(content[position:start], "little")
        if start > len(content) or position > len(content):
            raise RequestError("the binary data of text ends within a string")
        texts.append(_text(content[start:position]))
    return texts


def _text(content: bytes) -> str:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise RequestError("text must be UTF-8") from error


def _check_shape(shape: Sequence[int], count: int) -> None:
    if list(shape) not in ([count], [count, 1]):
        raise RequestError(f"inputs[0].shape is {list(shape)}, and the tensor holds {count} texts")
    if not count:
        raise RequestError("inputs[0].data must hold at least one text")


def _parameter(name: str, parameter: Any) -> Any:
    """A gRPC parameter. The message has no field for a fraction: ``threshold`` travels as a string."""
    value = getattr(parameter, parameter.WhichOneof("parameter_choice") or "", None)
    if name == "threshold" and isinstance(value, str) and value != "tuned":
        try:
            return float(value)
        except ValueError:
            return value
    return value
