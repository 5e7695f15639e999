"""Export: a trained classifier as ONNX, in fp32 and static int8 (``quantization``), with its parity to torch and its latency."""

from __future__ import annotations

import dataclasses
import json
import warnings
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch.onnx._internal.torchscript_exporter import onnx_proto_utils

from goemotions import usage
from goemotions.data.dataset import load_dataset
from goemotions.errors import ModelError
from goemotions.models import architectures, devices, engines, quantization
from goemotions.models.classifier import load_classifier
from goemotions.models.engine_names import FILES
from goemotions.models.records import EXPORT_FILE, ExportRecord
from goemotions.models.tokenizer import TextEncoder
from goemotions.storage import store

QUANTIZATION_TEXTS = 256
PARITY_TEXTS = 128
FLOAT_TOLERANCE = 1e-4
LATENCY_THREADS = 2


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

    Texts of train set the scales of int8; texts of validation are scored to compare the engines.

    Returns:
        The content of ``export.json``, by engine. Torch has a latency on a GPU only.

    Raises:
        ModelError: the fp32 graph returns other probabilities than torch.
    """
    output.mkdir(parents=True, exist_ok=True)
    float_path, int8_path = (output / file for file in FILES.values())
    # Otherwise a process that is killed would leave a graph of this model beside one of another that was exported before.
    for path in (output / EXPORT_FILE, float_path, int8_path):
        path.unlink(missing_ok=True)
    encoder = TextEncoder.load(model_folder)
    splits, _ = load_dataset(dataset, ("train", "validation"))
    write_float(model_folder, float_path)
    quantization.write(float_path, int8_path, encoder, splits["train"]["text"][:QUANTIZATION_TEXTS])

    texts = splits["validation"]["text"][:PARITY_TEXTS]
    records: dict[str, ExportRecord] = {}
    reference: np.ndarray | None = None
    for name, path in (
        ("torch", model_folder / "model.safetensors"),
        *((name, output / file) for name, file in FILES.items()),
    ):
        engine = engines.load(name, path.parent, encoder, threads=LATENCY_THREADS)
        probabilities, _ = engines.score(engine, texts)
        reference = probabilities if reference is None else reference
        difference = np.abs(probabilities - reference)
        p50, p95 = engines.latency(engine) if name != "torch" or engine.computation.device == "cuda" else (None, None)
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
