"""V2, the Open Inference protocol: tensors to texts and back, as JSON, as JSON with binary tensors, and as gRPC messages.

The fields of the JSON are in ``schema`` (``V2Request``); ``rest`` and ``grpc`` call this module.

https://github.com/kserve/open-inference-protocol
"""

from __future__ import annotations

import contextlib
import json
import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from google.protobuf.unknown_fields import UnknownFieldSet
from kserve.protocol.grpc import grpc_predict_v2_pb2 as pb

from goemotions.defaults import MODEL_NAME
from goemotions.errors import RequestError
from goemotions.prediction.predictor import Options
from goemotions.serving.limits import Limits
from goemotions.serving.protocols.schema import (
    MAX_CHARACTERS,
    MAX_FIELDS,
    InputParameters,
    V2InputTensor,
    V2Parameters,
    V2Request,
    V2RequestedOutput,
    parse,
    shorten,
    validate,
)
from goemotions.serving.service import Result

OUTPUTS = {"probabilities": "FP32", "labels": "BYTES"}
BINARY_HEADER = "Inference-Header-Content-Length"
LIMITS = Limits()
# Field number and wire type of double_param and uint64_param.
TRITON_DOUBLE, TRITON_UINT64 = (4, 1), (5, 0)


@dataclass(frozen=True)
class InferRequest:
    """A validated request. ``outputs``: each requested tensor, and whether it is requested in binary."""

    texts: list[str]
    options: Options
    outputs: dict[str, bool]
    id: str | None = None


def from_rest(body: bytes, header_length: str | None, limits: Limits = LIMITS) -> InferRequest:
    """Parses a REST request. With binary tensors, ``header_length`` is the length of the JSON before them.

    Raises:
        RequestError: 400, and the message names the field; 413 for too many texts.
    """
    binary = None
    if header_length is not None:
        if not re.fullmatch("[0-9]{1,9}", header_length) or int(header_length) > len(body):
            raise RequestError(f"{BINARY_HEADER} must be the length in bytes of the JSON at the start of the body")
        body, binary = body[: int(header_length)], body[int(header_length) :]
    request = parse(V2Request, body, limits)
    texts = _texts(request.inputs[0], binary, limits)
    parameters = request.parameters or V2Parameters()
    outputs: dict[str, bool] = {
        output.name: _is_binary(output, parameters.binary_data_output) for output in request.outputs or []
    }
    return InferRequest(
        texts, parameters.options(), outputs or dict.fromkeys(OUTPUTS, parameters.binary_data_output), request.id
    )


def _texts(tensor: V2InputTensor, binary: bytes | None, limits: Limits) -> list[str]:
    """The texts of a tensor, which are in its JSON or in the bytes after it."""
    parameters = tensor.parameters or InputParameters()
    _check_encoding(parameters.content_type)
    if parameters.binary_data_size is None:
        if binary:
            raise RequestError("inputs[0].parameters.binary_data_size is missing")
        if tensor.data is None:
            raise RequestError("inputs[0].data: field required")
        texts = tensor.data
    else:
        if tensor.data is not None or binary is None or parameters.binary_data_size != len(binary):
            raise RequestError(
                "inputs[0].parameters.binary_data_size must be the number of bytes after the JSON, and inputs[0].data absent"
            )
        texts = _strings(binary, limits)
    _check_shape(tensor.shape, len(texts))
    return texts


def _is_binary(output: V2RequestedOutput, default: bool) -> bool:
    requested = output.parameters.binary_data if output.parameters else None
    return default if requested is None else requested


def _check_encoding(content_type: Any) -> None:
    if content_type == "base64":
        raise RequestError("inputs[0].parameters.content_type: base64 is not decoded: send the texts themselves")


def to_rest(request: InferRequest, result: Result, version: str, name: str = MODEL_NAME) -> tuple[dict[str, Any], bytes]:
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
    response: dict[str, Any] = {"model_name": name, "model_version": version, "outputs": outputs}
    if request.id is not None:
        response["id"] = request.id
    if truncated := _truncated(result):
        response["parameters"] = {"truncated": truncated}
    return response, tail


def from_grpc(message: Any, limits: Limits = LIMITS) -> InferRequest:
    """Parses a gRPC ``ModelInferRequest``.

    Raises:
        RequestError: 400, and the message names the field; 413 for too many texts.
    """
    if len(message.id) > MAX_CHARACTERS:
        raise RequestError(f"id: at most {MAX_CHARACTERS} characters")
    if max(len(message.parameters), len(message.outputs)) > MAX_FIELDS:
        raise RequestError(f"parameters and outputs must hold at most {MAX_FIELDS} each")
    if len(message.inputs) != 1 or message.inputs[0].datatype != "BYTES":
        raise RequestError("inputs must hold one tensor, of datatype BYTES")
    tensor = message.inputs[0]
    is_raw = bool(message.raw_input_contents)
    if is_raw:
        if len(message.raw_input_contents) != 1 or tensor.HasField("contents"):
            raise RequestError("raw_input_contents must hold the one tensor, and inputs[0] no contents")
        texts = _strings(message.raw_input_contents[0], limits)
    else:
        limits.check_texts(len(tensor.contents.bytes_contents))
        texts = [_decode(content) for content in tensor.contents.bytes_contents]
    _check_shape(list(tensor.shape), len(texts))
    names = [output.name for output in message.outputs]
    if unknown := sorted(set(names) - set(OUTPUTS)):
        raise RequestError(f"there is no output {shorten(unknown[0])!r}: request probabilities or labels")
    _check_encoding(tensor.parameters["content_type"].string_param if "content_type" in tensor.parameters else None)
    options = validate(V2Parameters, _parameters(message.parameters), "parameters").options()
    return InferRequest(texts, options, dict.fromkeys(names or OUTPUTS, is_raw), message.id)


def to_grpc(request: InferRequest, result: Result, version: str, name: str = MODEL_NAME) -> Any:
    """The gRPC ``ModelInferResponse``; its tensors are raw if those of the request were."""
    response = pb.ModelInferResponse(model_name=name, model_version=version, id=request.id)
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


def _strings(content: bytes, limits: Limits) -> list[str]:
    """The strings of a raw BYTES tensor: each follows its length, four bytes, little-endian."""
    texts: list[str] = []
    position = 0
    while position < len(content):
        limits.check_texts(len(texts) + 1)
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


def _parameters(message: Any) -> dict[str, Any]:
    """The parameters of a gRPC message. KServe's messages have no field for fractions, so ``threshold`` may be a string."""
    parameters = {name: _value(name, parameter) for name, parameter in message.items()}
    threshold = parameters.get("threshold")
    if isinstance(threshold, str):
        with contextlib.suppress(ValueError):
            parameters["threshold"] = float(threshold)
    return parameters


def _value(name: str, parameter: Any) -> Any:
    """The value of a parameter, also of the two types of number that Triton's messages have and KServe's have not."""
    if choice := parameter.WhichOneof("parameter_choice"):
        return getattr(parameter, choice)
    for field in UnknownFieldSet(parameter):
        if (field.field_number, field.wire_type) == TRITON_DOUBLE:
            return struct.unpack("<d", struct.pack("<Q", field.data))[0]
        if (field.field_number, field.wire_type) == TRITON_UINT64:
            return field.data
    raise RequestError(f"parameters.{shorten(name)} has no value, or one of an unknown type: send a string, a number or a bool")
