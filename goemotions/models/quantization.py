"""Quantization of an ONNX graph to int8 by NNCF, after training, with static scales of activations: a text's score does not depend on
its batch.

Outliers are moved from activations into weights first (SmoothQuant, Xiao et al. 2022). NNCF copies a graph for each change, so both
stages get one without its weights, which stay in a file.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import logging
import os
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from goemotions.models.tokenizer import TextEncoder
from goemotions.storage.temporary import temporary_folder

# Tensors of fewer bytes stay in a graph whose weights are in a file: shapes depend on them.
SMALLEST_WEIGHT = 1024


def write(source: Path, path: Path, encoder: TextEncoder, texts: Sequence[str]) -> None:
    """Quantizes the fp32 graph in the file ``source`` into the file ``path``; the texts set the scales of the activations."""
    # NNCF reads it when it is imported, and sends telemetry without it.
    os.environ.setdefault("NNCF_CI", "1")
    import nncf
    import onnx

    def feed(rows: list[list[int]]) -> dict[str, np.ndarray]:
        return dict(zip(("input_ids", "attention_mask"), encoder.pad(rows), strict=True))

    # Only texts of the same length are batched: activations of padding would affect the scales.
    rows = sorted((item.ids for item in encoder.encode(texts)), key=len)
    batches = [list(group) for _, group in itertools.groupby(rows, key=len)]

    def quantize(graph: Any, weights: Path, advanced: dict[str, Any], **options: Any) -> Any:
        return nncf.quantize(
            graph,
            nncf.Dataset(batches, feed),
            subset_size=len(batches),
            preset=nncf.QuantizationPreset.MIXED,
            model_type=nncf.ModelType.TRANSFORMER,
            advanced_parameters=nncf.AdvancedQuantizationParameters(
                backend_params={"external_data_dir": str(weights)}, **advanced
            ),
            **options,
        )

    with _silent(), _shapes_without_weights(), temporary_folder() as scratch:
        folders = [scratch / name for name in ("float", "smoothed")]
        graph = _without_weights(_without_sharing(onnx.load(source)), folders[0])
        # With every operator left out, SmoothQuant alone is applied.
        operators = nncf.IgnoredScope(types=sorted({node.op_type for node in graph.graph.node}))
        graph = quantize(graph, folders[0], {"disable_bias_correction": True}, ignored_scope=operators)
        graph = _without_weights(graph, folders[1])
        applied = nncf.AdvancedSmoothQuantParameters(convolution=-1, matmul=-1)
        # CPUs without VNNI add pairs of products in 16 bits and saturate; weights of 7 bits avoid that.
        advanced = {"smooth_quant_alphas": applied, "overflow_fix": nncf.OverflowFix.ENABLE}
        onnx.save(quantize(graph, folders[1], advanced), path)


def _without_sharing(model: Any) -> Any:
    """Gives each operator weights of its own: the exporter writes those of ALBERT's layers once, and NNCF finds no weight twice."""
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in [node for node in model.graph.node if node.op_type == "Identity" and node.input[0] in weights]:
        copied = model.graph.initializer.add()
        copied.CopyFrom(weights[node.input[0]])
        copied.name = node.output[0]
        model.graph.node.remove(node)
    return model


def _without_weights(graph: Any, folder: Path) -> Any:
    """Moves the weights of an ONNX model into a file in a folder; NNCF and ONNX Runtime read them there."""
    import onnx

    folder.mkdir()
    onnx.save(graph, folder / "graph.onnx", save_as_external_data=True, location="weights", size_threshold=SMALLEST_WEIGHT)
    return onnx.load(folder / "graph.onnx", load_external_data=False)


@contextlib.contextmanager
def _shapes_without_weights() -> Iterator[None]:
    """Lets ``onnx.shape_inference.infer_shapes`` work without the weights, which it copies three times, and in place."""
    import onnx

    infer = onnx.shape_inference.infer_shapes

    def shape_only(tensor: Any) -> Any:
        if len(tensor.raw_data) < SMALLEST_WEIGHT and not tensor.external_data:
            return tensor
        where = onnx.TensorProto.EXTERNAL
        return onnx.TensorProto(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims, data_location=where)

    def infer_in_place(model: Any) -> Any:
        graph = model.graph
        tensors = [shape_only(tensor) for tensor in graph.initializer]
        skeleton = onnx.helper.make_graph(
            graph.node, graph.name, graph.input, graph.output, tensors, value_info=graph.value_info
        )
        inferred = infer(onnx.helper.make_model(skeleton, ir_version=model.ir_version, opset_imports=model.opset_import))
        del graph.value_info[:]
        graph.value_info.extend(inferred.graph.value_info)
        return model

    with mock.patch.object(onnx.shape_inference, "infer_shapes", infer_in_place):
        yield


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Hides NNCF's progress bars and messages."""
    # Not nncf.set_log_level, which sets the level of all existing handlers.
    logging.getLogger("nncf").setLevel(logging.ERROR)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield
