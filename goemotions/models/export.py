"""Export: a trained classifier as ONNX, in fp32 and static int8, with its parity to torch and its latency."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import itertools
import json
import logging
import os
import time
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch.onnx._internal.torchscript_exporter import onnx_proto_utils

from goemotions import usage
from goemotions.data.dataset import load_dataset
from goemotions.errors import ModelError
from goemotions.models import architectures, devices, engines
from goemotions.models.classifier import load_classifier
from goemotions.models.engines import Engine
from goemotions.models.records import EXPORT_FILE, ExportRecord
from goemotions.models.tokenizer import TextEncoder
from goemotions.storage import store
from goemotions.storage.temporary import temporary_folder

QUANTIZATION_TEXTS = 256
PARITY_TEXTS = 128
FLOAT_TOLERANCE = 1e-4
LATENCY_RUNS = 200
LATENCY_THREADS = 2
# Tensors of fewer bytes stay in a graph whose weights are in a file: shapes depend on them.
SMALLEST_WEIGHT = 1024


class _Logits(torch.nn.Module):
    """A classifier with the two inputs and the one output of the exported graph."""

    def __init__(self, classifier: Any) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.classifier(input_ids=input_ids, attention_mask=attention_mask).logits
        return logits


@store.raise_on_full_disk
def export(dataset: Path, model_folder: Path, output: Path) -> dict[str, ExportRecord]:
    """Writes an Onnx folder: ``model.onnx``, ``model.int8.onnx`` and ``export.json``.

    Args:
        dataset: a Dataset folder; training texts set the scales of int8, validation texts are scored to compare the engines.
        model_folder: a Model folder.
        output: the Onnx folder to write.

    Returns:
        The content of ``export.json``, by engine. Latencies are those of an ONNX engine on one thread, and of
        torch on a GPU if there is one.

    Raises:
        ModelError: the fp32 graph returns other probabilities than torch.
    """
    output.mkdir(parents=True, exist_ok=True)
    float_path, int8_path = (output / file for file in engines.FILES.values())
    encoder = TextEncoder.load(model_folder)
    splits, _ = load_dataset(dataset, ("train", "validation"))
    write_float(model_folder, float_path)
    _write_int8(float_path, int8_path, encoder, splits["train"]["text"][:QUANTIZATION_TEXTS])

    texts = splits["validation"]["text"][:PARITY_TEXTS]
    records: dict[str, ExportRecord] = {}
    reference: np.ndarray | None = None
    for name, path in (
        ("torch", model_folder / "model.safetensors"),
        *((name, output / file) for name, file in engines.FILES.items()),
    ):
        engine = engines.load(name, path.parent, encoder, threads=LATENCY_THREADS)
        probabilities, _ = engines.score(engine, texts)
        reference = probabilities if reference is None else reference
        difference = np.abs(probabilities - reference)
        p50, p95 = latency(engine) if name != "torch" or engine.computation.device == "cuda" else (None, None)
        # Before the next engine is loaded: each holds a copy of the weights.
        del engine
        records[name] = ExportRecord(float(difference.max()), float(difference.mean()), path.stat().st_size, p50, p95)
    # A GPU computes the reference in bf16, which rounds more coarsely than the tolerance.
    if (largest := records["openvino-fp32"].difference_max) > FLOAT_TOLERANCE and devices.resolve() == "cpu":
        raise ModelError(
            f"the exported graph differs from the model by up to {largest:.1e}: "
            "tracing records one branch only, check the model's class"
        )
    content = {name: dataclasses.asdict(record) for name, record in records.items()}
    (output / EXPORT_FILE).write_text(json.dumps(content, indent=1), encoding="utf-8")
    usage.end_step(output, "export")
    return records


def latency(engine: Engine) -> tuple[float, float]:
    """Measures milliseconds for one text of 20 tokens, without tokenization: median and 95th percentile."""
    run = engines.one_text(engine)
    for _ in range(LATENCY_RUNS // 10):
        run()
    times = []
    for _ in range(LATENCY_RUNS):
        started = time.perf_counter()
        run()
        times.append(1000 * (time.perf_counter() - started))
    return float(np.median(times)), float(np.percentile(times, 95))


def write_float(model_folder: Path, path: Path) -> None:
    """Writes the fp32 graph of a Model folder."""
    classifier = load_classifier(model_folder)
    architectures.set_attention(classifier, "eager")
    # The second row is padded: if all of the mask were ones, the tracer would drop it.
    ids = torch.full((2, 8), engines.WORD_ID)
    mask = torch.ones_like(ids)
    mask[1, 5:] = 0
    axes = {"input_ids": {0: "texts", 1: "tokens"}, "attention_mask": {0: "texts", 1: "tokens"}, "logits": {0: "texts"}}
    # The exporter parses the finished graph again, to look for functions of onnxscript, which these models do not have.
    keep_bytes = mock.patch.object(onnx_proto_utils, "_add_onnxscript_fn", lambda graph, _: graph)
    with keep_bytes, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            _Logits(classifier).eval(),
            (ids, mask),
            str(path),
            input_names=["input_ids", "attention_mask"],
            output_names=["logits"],
            dynamic_axes=axes,
            opset_version=17,
            dynamo=False,
        )


def _write_int8(source: Path, path: Path, encoder: TextEncoder, texts: Sequence[str]) -> None:
    """Quantizes a graph after training with static scales of activations, so that a text's score does not depend on its batch.

    Outliers are moved from activations into weights first (SmoothQuant, Xiao et al. 2022). NNCF copies a graph for each change, so
    both stages get one without its weights, which stay in a file.
    """
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
