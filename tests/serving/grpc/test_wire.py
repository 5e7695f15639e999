"""The fields of gRPC messages are counted before they are parsed."""

import pytest
from kserve.protocol.grpc import grpc_predict_v2_pb2 as pb

from goemotions.errors import RequestError
from goemotions.serving.grpc import wire
from goemotions.serving.limits import Limits
from goemotions.serving.protocols import schema


def check(content: bytes) -> None:
    wire.check_fields(content, pb.ModelInferRequest.DESCRIPTOR, Limits())


def field(number: int, content: bytes) -> bytes:
    """A field of bytes, such as a message within a message."""
    length, encoded = len(content), bytearray()
    while length >= 0x80:
        encoded.append(length & 0x7F | 0x80)
        length >>= 7
    return bytes([number << 3 | 2, *encoded, length]) + content


def test_the_largest_request_passes() -> None:
    texts = [b"a"] * 511 + ["storm \N{SNOWMAN}".encode() * 100_000]
    message = pb.ModelInferRequest(model_name="goemotions", id="i" * 200)
    tensor = message.inputs.add(name="text", datatype="BYTES", shape=[512, 1])
    tensor.contents.bytes_contents.extend(texts)
    for number in range(schema.MAX_FIELDS):
        message.outputs.add(name="labels").parameters["a"].bool_param = True
        for parameters in (message.parameters, tensor.parameters):
            parameters[str(number)].string_param = "1"
    check(message.SerializeToString())
    check(pb.ModelInferRequest(raw_input_contents=[b"\xff" * 1_000_000]).SerializeToString())


TEXT, INPUT, PARAMETER, GROUP = field(5, field(5, field(8, b"") * 9000)), field(5, b""), field(4, b""), b"\x7b\x7c"


@pytest.mark.fault("http-work-before-limits")
@pytest.mark.parametrize(
    ("content", "status"),
    [
        *((part * 9000, 413) for part in (INPUT, PARAMETER, field(6, b""), field(7, b""), b"\x78\x01")),
        *((field(5, part), 413) for part in (PARAMETER * 9000, field(3, b"\1" * 9000), field(5, field(1, b"\1" * 9000)))),
        (TEXT, 413),
        (field(4, field(2, b"\x08\x01" * 9000)), 413),
        *((part, 400) for part in (GROUP, b"\x7b" * 9000, TEXT[:-1], b"\x0a", b"\x0a\xff\xff", b"\xff" * 9000, b"\x09\x01")),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_too_many_fields_or_another_message_are_rejected(content: bytes, status: int) -> None:
    with pytest.raises(RequestError) as rejected:
        check(content)
    assert rejected.value.status == status
