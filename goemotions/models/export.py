"""Export: a trained classifier as ONNX, in fp32 and static int8, with its parity to torch and its latency."""

from __future__ import annotations

import contextlib
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

import numpy as np
import torch

from goemotions.data.dataset import load_dataset
from goemotions.errors import ModelError
from goemotions.models import engines
from goemotions.models.classifier import load_classifier
from goemotions.models.engines import Engine
from goemotions.models.tokenizer import TextEncoder
from goemotions.storage import store

CALIBRATION_TEXTS = 256
PARITY_TEXTS = 128
FLOAT_TOLERANCE = 1e-4
LATENCY_RUNS = 200
LATENCY_TOKENS = 20
LATENCY_THREADS = 2
# Traced and timed with the same word everywhere: every vocabulary has this one.
WORD_ID = 5


class _Logits(torch.nn.Module):
    """The classifier with the two inputs and the one output that the exported graph has."""

    def __init__(self, classifier: Any) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.classifier(input_ids=input_ids, attention_mask=attention_mask).logits
        return logits


@store.raise_on_full_disk
def export(dataset: Path, model_folder: Path, output: Path) -> dict[str, Any]:
    """Writes an Onnx folder: ``model.onnx``, ``model.int8.onnx`` and ``export.json``.

    Args:
        dataset: a Dataset folder; some training texts set the scales of int8, some validation texts show the parity.
        model_folder: a Model folder.
        output: the Onnx folder to write.

    Returns:
        The content of ``export.json``: for each engine the largest and the mean difference in probability to torch, the size
        in bytes, and the latency in milliseconds of one text of 20 tokens. torch uses two threads for it, an ONNX engine one.

    Raises:
        ModelError: the fp32 graph answers otherwise than torch.
    """
    output.mkdir(parents=True, exist_ok=True)
    _write_float(model_folder, output / engines.FILES["onnx"])
    encoder = TextEncoder.load(model_folder)
    splits, _ = load_dataset(dataset, ("train", "validation"))
    calibration = splits["train"]["text"][:CALIBRATION_TEXTS]
    _write_int8(output / engines.FILES["onnx"], output / engines.FILES["onnx-int8"], encoder, calibration)
    texts = splits["validation"]["text"][:PARITY_TEXTS]
    torch_engine = engines.load("torch", model_folder, encoder, threads=LATENCY_THREADS)
    reference, _ = engines.score(torch_engine, texts)
    facts: dict[str, dict[str, float]] = {
        "torch": {
            "difference_max": 0.0,
            "difference_mean": 0.0,
            "bytes": (model_folder / "model.safetensors").stat().st_size,
            **latency(torch_engine),
        }
    }
    for name, file in engines.FILES.items():
        engine = engines.load(name, output, encoder, threads=LATENCY_THREADS)
        difference = np.abs(engines.score(engine, texts)[0] - reference)
        facts[name] = {
            "difference_max": float(difference.max()),
            "difference_mean": float(difference.mean()),
            "bytes": (output / file).stat().st_size,
            **latency(engine),
        }
    # A GPU computes the reference in bf16, which rounds more coarsely than the tolerance.
    if facts["onnx"]["difference_max"] > FLOAT_TOLERANCE and not torch.cuda.is_available():
        raise ModelError(
            f"the exported graph differs from the model by up to {facts['onnx']['difference_max']:.1e}: "
            "its architecture traces wrongly, check the model's class"
        )
    (output / "export.json").write_text(json.dumps(facts, indent=1), encoding="utf-8")
    return facts


def latency(engine: Engine) -> dict[str, float]:
    """Milliseconds for one text of 20 tokens, tokenization left out: median and 95th percentile."""
    ids = np.full((1, LATENCY_TOKENS), WORD_ID)
    mask = np.ones_like(ids)
    for _ in range(LATENCY_RUNS // 10):
        engine.logits(ids, mask)
    times = []
    for _ in range(LATENCY_RUNS):
        started = time.perf_counter()
        engine.logits(ids, mask)
        times.append(1000 * (time.perf_counter() - started))
    return {"latency_ms_p50": float(np.median(times)), "latency_ms_p95": float(np.percentile(times, 95))}


def _write_float(model_folder: Path, path: Path) -> None:
    classifier = load_classifier(model_folder)
    classifier.set_attn_implementation("eager")
    # The second row is padded: from a mask of ones alone the tracer would drop the mask.
    ids = torch.full((2, 8), WORD_ID)
    mask = torch.ones_like(ids)
    mask[1, 5:] = 0
    axes = {"input_ids": {0: "texts", 1: "tokens"}, "attention_mask": {0: "texts", 1: "tokens"}, "logits": {0: "texts"}}
    with warnings.catch_warnings():
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
    """Post-training static quantization: the scales of activations are fixed here, so that no text's answer depends on the
    texts beside it. Outliers move from activations into weights first (SmoothQuant, Xiao et al. 2022)."""
    # Read when NNCF is imported: without it, NNCF reports each use to its makers.
    os.environ.setdefault("NNCF_CI", "1")
    import nncf
    import onnx

    def feed(rows: list[list[int]]) -> dict[str, np.ndarray]:
        return dict(zip(("input_ids", "attention_mask"), encoder.pad(rows), strict=True))

    # Texts of one length go together, since the activations of padding would count.
    rows = sorted((item.ids for item in encoder.encode(texts)), key=len)
    batches = [list(group) for _, group in itertools.groupby(rows, key=len)]
    with _silent():
        quantized = nncf.quantize(
            onnx.load(source),
            nncf.Dataset(batches, feed),
            subset_size=len(batches),
            preset=nncf.QuantizationPreset.MIXED,
            model_type=nncf.ModelType.TRANSFORMER,
            # CPUs without VNNI add pairs of products in 16 bits and saturate: weights of 7 bits leave them room.
            advanced_parameters=nncf.AdvancedQuantizationParameters(overflow_fix=nncf.OverflowFix.ENABLE),
        )
    onnx.save(quantized, path)


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Without NNCF's progress bars and remarks."""
    # Not nncf.set_log_level, which sets the level of every handler there is.
    logging.getLogger("nncf").setLevel(logging.ERROR)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield
