"""Engines: token ids in, probabilities out. One protocol for torch and ONNX Runtime.

Evaluation, batch scoring, the server and the MLflow model all score through ``score``, so that a text has one probability everywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np

from goemotions.errors import ModelError
from goemotions.tokenization import TextEncoder, by_length

if TYPE_CHECKING:
    import torch
    import transformers

EngineName = Literal["torch", "onnx", "onnx-int8"]
FILES: dict[str, str] = {"onnx": "model.onnx", "onnx-int8": "model.int8.onnx"}
BATCH_SIZE = 32


class Engine(Protocol):
    """Scores padded batches of token ids."""

    name: str
    encoder: TextEncoder

    def logits(self, ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """Token ids and attention mask, int64 [n, tokens], to logits, float32 [n, labels]."""
        ...


class TorchEngine:
    """A torch classifier, in bf16 on a GPU and in fp32 on a CPU unless told otherwise."""

    name = "torch"

    def __init__(
        self, model: transformers.PreTrainedModel, encoder: TextEncoder, device: torch.device, precision: str = ""
    ) -> None:
        self.encoder = encoder
        self._model = model
        self._device = device
        self._precision = precision or ("bf16" if device.type == "cuda" else "fp32")

    def logits(self, ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
        import torch

        autocast = torch.autocast(self._device.type, dtype=torch.bfloat16, enabled=self._precision == "bf16")
        with torch.inference_mode(), autocast:
            inputs = [torch.from_numpy(array).to(self._device) for array in (ids, mask)]
            result: np.ndarray = self._model(input_ids=inputs[0], attention_mask=inputs[1]).logits.float().cpu().numpy()
        return result


class OnnxEngine:
    """An ONNX model on the CPU."""

    def __init__(self, path: Path, encoder: TextEncoder, name: str, threads: int | None = None) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or 0
        options.inter_op_num_threads = 1
        self.name = name
        self.encoder = encoder
        try:
            self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:
            raise ModelError(f"{path} is missing or damaged: export the model again") from error

    def logits(self, ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
        result: np.ndarray = self._session.run(None, {"input_ids": ids, "attention_mask": mask})[0]
        return result


def load(name: str, folder: Path, encoder: TextEncoder, *, threads: int | None = None) -> Engine:
    """The engine of that name over the files of a folder. ``threads``: of the CPU; default: every core."""
    if name in FILES:
        return OnnxEngine(folder / FILES[name], encoder, name, threads)
    if name != "torch":
        raise ModelError(f"there is no engine {name!r}: choose torch, onnx or onnx-int8")
    try:
        import torch

        from goemotions import model
    except ModuleNotFoundError as error:
        raise ModelError(f"the engine torch needs {error.name}: install the extra [train], or choose onnx-int8") from error
    if threads:
        torch.set_num_threads(threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return TorchEngine(model.load(folder).to(device), encoder, device)


def score(engine: Engine, texts: Sequence[str], progress: Any = None) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities of n texts, float32 [n, labels], and which texts were cut, bool [n]; in the order of the texts."""
    encoded = engine.encoder.encode(texts)
    return score_ids(engine, [item.ids for item in encoded], progress), np.array([e.truncated for e in encoded], dtype=bool)


def score_ids(engine: Engine, rows: Sequence[Sequence[int]], progress: Any = None) -> np.ndarray:
    """Probabilities of n tokenized texts, float32 [n, labels], in their order. ``progress`` wraps the list of batches."""
    return sigmoid(logits(engine, rows, progress))


def logits(engine: Engine, rows: Sequence[Sequence[int]], progress: Any = None) -> np.ndarray:
    """Logits of n tokenized texts, float32 [n, labels], in their order."""
    batches = by_length([len(row) for row in rows], BATCH_SIZE)
    result: np.ndarray | None = None
    for batch in progress(batches) if progress else batches:
        found = engine.logits(*engine.encoder.pad([rows[position] for position in batch]))
        if result is None:
            result = np.empty((len(rows), found.shape[1]), dtype=np.float32)
        result[batch] = found
    if result is None:
        raise ModelError("there is no text to score: give at least one")
    return result


def sigmoid(logits: np.ndarray) -> np.ndarray:
    """1 / (1 + exp(-x)) without overflow."""
    return (0.5 * (1 + np.tanh(0.5 * logits))).astype(np.float32)
