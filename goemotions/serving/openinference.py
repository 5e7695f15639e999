"""V2, the Open Inference protocol: tensors to texts and back, as JSON, as JSON with binary tensors, and as gRPC messages.

The fields of the JSON are in ``schema`` (``V2Request``); ``rest`` and ``grpc`` call this module.

https://github.com/kserve/open-inference-protocol
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from kserve.protocol.grpc import grpc_predict_v2_pb2 as pb

from goemotions.defaults import MODEL_NAME
from goemotions.errors import RequestError
from goemotions.prediction.predictor import Options
from goemotions.serving.schema import Parameters, V2Request, parse, validate
from goemotions.serving.service import Result

OUTPUTS = {"probabilities": "FP32", "labels": "BYTES"}
BINARY_HEADER = "Inference-Header-Content-Length"


@dataclass(frozen=True)
class InferRequest:
    """A validated request. ``outputs``: each requested tensor, and whether it is requested in binary."""

    texts: list[str]
    options: Options
    outputs: dict[str, bool]
    id: str | None = None


def from_rest(body: bytes, header_length: str | None) -> InferRequest:
    """Parses a REST request. With binary tensors, ``header_length`` is the length of the JSON before them.

    Raises:
        RequestError: 400; the message names the field.
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
                "inputs[0].parameters.binary_data_size must be the number of bytes after the JSON, and inputs[0].data absent"
            )
        texts = _strings(binary)
    _check_shape(tensor.shape, len(texts))
    parameters = dict(request.parameters)
    all_binary = parameters.pop("binary_data_output", False) is True
    outputs: dict[str, bool] = {
        output.name: output.parameters.get("binary_data", all_binary) is True for output in request.outputs
    }
    options = validate(Parameters, parameters).options()
    return InferRequest(texts, options, outputs or dict.fromkeys(OUTPUTS, all_binary), request.id)


def to_rest(request: InferRequest, result: Result, version: str) -> tuple[dict[str, Any], bytes]:
    """The JSON of a response, and the binary tensors that follow it."""
    outputs, tail = [], b""
    for output, is_binary in request.outputs.items():
        tensor: dict[str, Any] = {"name": output, "datatype": OUTPUTS[output], "shape": _shape(output, result)}
        if is_binary:
            content = _binary(output, result)
            tensor["parameters"] = {"binary_data_size": len(content)}
            tail += content
        else:
            tensor["data"] = _data(output, result)
        outputs.append(tensor)
    response: dict[str, Any] = {"model_name": MODEL_NAME, "model_version": version, "outputs": outputs}
    if request.id is not None:
        response["id"] = request.id
    if truncated := _truncated(result):
        response["parameters"] = {"truncated": truncated}
    return response, tail


def from_grpc(message: Any) -> InferRequest:
    """Parses a gRPC ``ModelInferRequest``.

    Raises:
        RequestError: 400; the message names the field.
    """
    if len(message.inputs) != 1 or message.inputs[0].name != "text" or message.inputs[0].datatype != "BYTES":
        raise RequestError('inputs must hold one tensor, "text", of datatype BYTES')
    tensor = message.inputs[0]
    is_raw = bool(message.raw_input_contents)
    if is_raw:
        if len(message.raw_input_contents) != 1 or tensor.HasField("contents"):
            raise RequestError("raw_input_contents must hold the one tensor, and inputs[0] no contents")
        texts = _strings(message.raw_input_contents[0])
    else:
        texts = [_decode(content) for content in tensor.contents.bytes_contents]
    _check_shape(list(tensor.shape), len(texts))
    names = [output.name for output in message.outputs]
    if unknown := sorted(set(names) - set(OUTPUTS)):
        raise RequestError(f"there is no output {unknown[0]!r}: request probabilities or labels")
    parameters = {name: _parameter(name, value) for name, value in message.parameters.items()}
    parameters.pop("binary_data_output", None)
    return InferRequest(texts, validate(Parameters, parameters).options(), dict.fromkeys(names or OUTPUTS, is_raw), message.id)


def to_grpc(request: InferRequest, result: Result, version: str) -> Any:
    """The gRPC ``ModelInferResponse``; its tensors are raw if those of the request were."""
    response = pb.ModelInferResponse(model_name=MODEL_NAME, model_version=version, id=request.id)
    for output, is_raw in request.outputs.items():
        tensor = response.outputs.add(name=output, datatype=OUTPUTS[output], shape=_shape(output, result))
        if is_raw:
            response.raw_output_contents.append(_binary(output, result))
        elif output == "probabilities":
            tensor.contents.fp32_contents.extend(_data(output, result))
        else:
            tensor.contents.bytes_contents.extend(text.encode() for text in _data(output, result))
    if truncated := _truncated(result):
        response.parameters["truncated"].string_param = json.dumps(truncated)
    return response


def _shape(output: str, result: Result) -> list[int]:
    return list(result.probabilities.shape[: 2 if output == "probabilities" else 1])


def _data(output: str, result: Result) -> list[Any]:
    """The values of a tensor in order: probabilities, or per text a JSON list of its labels, best first."""
    if output == "probabilities":
        return result.probabilities.ravel().tolist()
    return [json.dumps(prediction["labels"], ensure_ascii=False) for prediction in result.predictions]


def _binary(output: str, result: Result) -> bytes:
    if output == "probabilities":
        return result.probabilities.astype("<f4").tobytes()
    encoded = [text.encode() for text in _data(output, result)]
    return b"".join(len(text).to_bytes(4, "little") + text for text in encoded)


def _truncated(result: Result) -> list[int]:
    """The positions of the truncated texts."""
    return [position for position, prediction in enumerate(result.predictions) if prediction["truncated"]]


def _strings(content: bytes) -> list[str]:
    """The strings of a raw BYTES tensor: each follows its length, four bytes, little-endian."""
    texts, position = [], 0
    while position < len(content):
        start = position + 4
        position = start + int.from_bytes(content[position:start], "little")
        if start > len(content) or position > len(content):
            raise RequestError("the binary data of text ends within a string")
        texts.append(_decode(content[start:position]))
    return texts


def _decode(content: bytes) -> str:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise RequestError("text must be UTF-8") from error


def _check_shape(shape: Sequence[int], count: int) -> None:
    if list(shape) not in ([count], [count, 1]):
        raise RequestError(f"inputs[0].shape is {list(shape)}, but the tensor holds {count} texts")
    if not count:
        raise RequestError("inputs[0].data must hold at least one text")


def _parameter(name: str, parameter: Any) -> Any:
    """The value of a gRPC parameter. The message has no field for fractions, so ``threshold`` may be sent as a string."""
    value = getattr(parameter, parameter.WhichOneof("parameter_choice") or "", None)
    if name == "threshold" and isinstance(value, str) and value != "tuned":
        try:
            return float(value)
        except ValueError:
            return value
    return value
