"""ONNX files that take their weights from another file are refused before an engine opens them."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from goemotions.errors import ModelError
from goemotions.models import onnx_file

FLOATS = helper.make_tensor_value_info("x", TensorProto.FLOAT, [2])


def tensor(location: str = "") -> TensorProto:
    made = numpy_helper.from_array(np.ones(2, np.float32), "w")
    if location:
        made.ClearField("raw_data")
        made.data_location = TensorProto.EXTERNAL
        made.external_data.add(key="location", value=location)
    return made


def graph(initializers: list[TensorProto], nodes: list[onnx.NodeProto] | None = None) -> onnx.GraphProto:
    return helper.make_graph(nodes or [helper.make_node("Identity", ["x"], ["y"])], "g", [FLOATS], [FLOATS], initializers)


def sparse(values: TensorProto) -> onnx.SparseTensorProto:
    return onnx.SparseTensorProto(values=values, indices=numpy_helper.from_array(np.arange(2)), dims=[2])


def constant(value: TensorProto) -> onnx.NodeProto:
    return helper.make_node("Constant", [], ["c"], value=value)


def function(node: onnx.NodeProto) -> onnx.ModelProto:
    opset = helper.make_opsetid("", 20)
    return helper.make_model(graph([]), functions=[helper.make_function("own", "f", [], ["c"], [node], [opset])])


def tagged(model: onnx.ModelProto, tag: bytes) -> bytes:
    """A model whose graph has its tag written in another way."""
    content, inner = model.SerializeToString(), model.graph.SerializeToString()
    head = b"\x3a" + varint(len(inner))
    return content.replace(head + inner, tag + head[1:] + inner)


def varint(value: int) -> bytes:
    return bytes([value & 0x7F | 0x80]) + varint(value >> 7) if value > 0x7F else bytes([value])


WITH_OTHERS: dict[str, Callable[[TensorProto], onnx.ModelProto]] = {
    "initializer": lambda weights: helper.make_model(graph([tensor(), weights])),
    "attribute": lambda weights: helper.make_model(graph([], [constant(weights)])),
    "subgraph": lambda weights: helper.make_model(
        graph([], [helper.make_node("If", ["x"], ["y"], then_branch=graph([weights]), else_branch=graph([]))])
    ),
    "sparse": lambda weights: helper.make_model(
        graph([], [helper.make_node("Constant", [], ["c"], sparse_value=sparse(weights))])
    ),
    "function": lambda weights: function(constant(weights)),
}


@pytest.mark.fault("graph-with-other-weights")
@pytest.mark.parametrize("place", WITH_OTHERS)
@pytest.mark.parametrize("location", ["weights", "../weights", "/etc/hostname"])
def test_weights_in_another_file_are_refused(place: str, location: str, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(WITH_OTHERS[place](tensor()).SerializeToString())
    onnx_file.require_own_weights(path)
    path.write_bytes(WITH_OTHERS[place](tensor(location)).SerializeToString())
    with pytest.raises(ModelError, match=r"model\.onnx takes weights from another file: export the model again"):
        onnx_file.require_own_weights(path)


@pytest.mark.fault("graph-with-other-weights")
@pytest.mark.parametrize("tag", [b"\xba\x80\x80\x80\x00", b"\xba\x80\x80\x80\x70"], ids=["longer", "beyond-32-bits"])
def test_a_field_that_is_written_in_another_way_is_found(tag: bytes, tmp_path: Path) -> None:
    content = tagged(WITH_OTHERS["initializer"](tensor("weights")), tag)
    assert tag in content
    (tmp_path / "model.onnx").write_bytes(content)
    with pytest.raises(ModelError, match="takes weights from another file"):
        onnx_file.require_own_weights(tmp_path / "model.onnx")


@pytest.mark.fault("graph-with-other-weights")
def test_a_file_that_is_no_onnx_is_a_named_error_or_has_its_own_weights(tmp_path: Path) -> None:
    path, drawn = tmp_path / "model.onnx", random.Random(0)
    with pytest.raises(ModelError, match="missing or damaged"):
        onnx_file.require_own_weights(path)
    nested = b""
    for tag in (b"\x32", b"\x2a", b"\x0a") * 100 + (b"\x3a",):
        nested = tag + varint(len(nested)) + nested
    for content in (b"", b"\xff" * 20, b"\x3a\xff\xff\xff\xff\x0f", b"<net/>", nested):
        path.write_bytes(content)
        with pytest.raises(ModelError, match="missing or damaged"):
            onnx_file.require_own_weights(path)
    whole = WITH_OTHERS["subgraph"](tensor()).SerializeToString()
    for _ in range(200):
        changed = bytearray(whole)
        changed[drawn.randrange(len(changed))] = drawn.randrange(256)
        path.write_bytes(changed)
        with contextlib.suppress(ModelError):
            onnx_file.require_own_weights(path)
