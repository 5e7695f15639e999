"""Engines compute probabilities from token ids: torch, or OpenVINO for ONNX files.

Evaluation, batch scoring, the server and the MLflow model all call ``score``, so that a text has the same probability everywhere.
"""

from __future__ import annotations

import queue
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from goemotions.errors import DeviceError, ModelError
from goemotions.metrics.probabilities import sigmoid
from goemotions.models import devices, onnx_file
from goemotions.models.engine_names import FILES, NAMES, Computation, canonical_name
from goemotions.models.tokenizer import TextEncoder, by_length

if TYPE_CHECKING:
    import openvino
    import torch
    import transformers

Progress = Callable[[int], object] | None
# Largest change of an int8 probability with the batch of a text: sums in another order may round an activation to the next byte.
INT8_BOUND = 0.03
# OpenVINO gets lengths that are multiples of it.
LENGTH_STEP = 4
# Latency is that of a text of so many tokens, of one which every vocabulary has.
LATENCY_TOKENS, WORD_ID = 20, 5
LATENCY_RUNS = 200
# Texts that are tokenized at once and then batched by length: the more, the less padding, and the rarer a change of shape.
WINDOW = 2048


class Engine(Protocol):
    """Scores padded batches of token ids; ``logits`` may be called from ``workers`` threads at once."""

    name: str
    encoder: TextEncoder
    workers: int
    batch_tokens: int

    @property
    def computation(self) -> Computation:
        """The engine, device and precision that compute the logits."""
        ...

    def logits(self, ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """Computes logits, float32 [n, labels], from token ids and attention mask, int64 [n, tokens]."""
        ...


class TorchEngine:
    """A torch classifier; without a given precision in bf16 on a GPU that computes in it, and in fp32 elsewhere."""

    name = "torch"
    workers = 1

    def __init__(
        self, model: transformers.PreTrainedModel, encoder: TextEncoder, device: torch.device, precision: str = ""
    ) -> None:
        self.encoder = encoder
        self._model = model
        self._device = device
        self.batch_tokens = 16384 if device.type == "cuda" else 1024
        self._precision = precision or ("bf16" if device.type == "cuda" and _computes_in_bf16() else "fp32")

    @property
    def computation(self) -> Computation:
        return Computation(self.name, self._device.type, self._precision)

    def logits(self, ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
        import torch

        autocast = torch.autocast(self._device.type, dtype=torch.bfloat16, enabled=self._precision == "bf16")
        with torch.inference_mode(), autocast:
            inputs = [torch.from_numpy(array).to(self._device) for array in (ids, mask)]
            result: np.ndarray = self._model(input_ids=inputs[0], attention_mask=inputs[1]).logits.float().cpu().numpy()
        return result


class OpenVinoEngine:
    """An ONNX model on the CPU, run by OpenVINO; each worker is one thread, since small batches in parallel are fastest."""

    batch_tokens = 512

    def __init__(self, path: Path, encoder: TextEncoder, name: str, threads: int | None = None) -> None:
        import openvino

        self.name = name
        self.encoder = encoder
        self.workers = threads or devices.cpus()
        # By default, OpenVINO computes in bf16 on CPUs that support it.
        options = {"NUM_STREAMS": self.workers, "INFERENCE_NUM_THREADS": self.workers, "INFERENCE_PRECISION_HINT": "f32"}
        # OpenVINO pins threads to the first cores in every process, so two engines with fewer threads than cores would share cores.
        options["ENABLE_CPU_PINNING"] = self.workers == devices.cpus()
        onnx_file.require_own_weights(path)
        try:
            core = openvino.Core()
            graph = core.read_model(str(path))
            # It takes ids and positions without an embedding for zeros.
            _require_embeddings(path, encoder, _embedded_ids(graph))
            compiled = core.compile_model(graph, "CPU", options)
        except ModelError:
            raise
        except Exception as error:
            raise ModelError(f"{path} is missing or damaged: export the model again") from error
        self._idle: queue.SimpleQueue[Any] = queue.SimpleQueue()
        for _ in range(self.workers):
            self._idle.put(compiled.create_infer_request())
        # OpenVINO's binding initialises NumPy on the first array, and deadlocks if two threads pass the first arrays at once.
        self.logits(np.ones((1, LENGTH_STEP), dtype=np.int64), np.ones((1, LENGTH_STEP), dtype=np.int64))

    @property
    def computation(self) -> Computation:
        return Computation(self.name, "cpu", self.name.rpartition("-")[2])

    def logits(self, ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
        # OpenVINO compiles and keeps kernels for every new shape, tens of milliseconds and some MB each.
        if missing := -ids.shape[1] % LENGTH_STEP:
            padding = np.zeros((len(ids), missing), dtype=np.int64)
            ids, mask = np.hstack([ids, padding]), np.hstack([mask, padding])
        request = self._idle.get()
        try:
            result: np.ndarray = request.infer({"input_ids": ids, "attention_mask": mask})["logits"].copy()
            return result
        finally:
            self._idle.put(request)


def _embedded_ids(graph: openvino.Model) -> int | None:
    """The rows of the table from which the input ids of a graph take their embeddings."""
    for user in graph.input("input_ids").get_target_inputs():
        table = user.get_node().input(0).get_partial_shape()
        if user.get_node().get_type_name() == "Gather" and user.get_index() == 1 and table.is_static:
            return int(table.to_shape()[0])
    return None


def _require_embeddings(path: Path, encoder: TextEncoder, rows: int | None) -> None:
    if rows is not None and encoder.largest_id >= rows:
        raise ModelError(
            f"{path} embeds {rows} tokens, but the tokenizer beside it has ids up to {encoder.largest_id}: they are not of one "
            "model, train or register it again"
        )


def suited(name: str) -> str:
    """Returns the engine's name, or for torch without a GPU that of the float engine for CPUs, whose probabilities are the same.

    Raises:
        DeviceError: this process was given a GPU and cannot use it.
    """
    name = canonical_name(name)
    return name if name != "torch" or devices.resolve() == "cuda" else "openvino-fp32"


def _computes_in_bf16() -> bool:
    import torch

    return bool(torch.cuda.is_bf16_supported(including_emulation=False))


def set_torch_threads(threads: int | None = None) -> None:
    """Has torch compute on so many threads; by default on no more than ``devices.cpus``.

    It counts the cores of a node. In a pod with a limit of fewer, all threads wait for those that the kernel stops.
    """
    import torch

    torch.set_num_threads(threads or min(torch.get_num_threads(), devices.cpus()))


def load(name: str, folder: Path, encoder: TextEncoder, *, threads: int | None = None, precision: str = "") -> Engine:
    """Loads an engine.

    Args:
        name: a name of ``engine_names.NAMES``, or a former one.
        folder: a Model folder for torch, an Onnx folder for the others, or a bundle.
        encoder: of the model.
        threads: CPU threads; by default one per core.
        precision: of torch; by default as ``TorchEngine`` has it.

    Raises:
        ModelError: there is no such engine, it is not installed, its file is damaged, or the tokenizer is that of another model.
        DeviceError: this process was given a GPU, and cannot use it or the engine computes on the CPU.
    """
    name = canonical_name(name)
    if name in FILES:
        if devices.is_required():
            raise DeviceError(f"{name} computes on the CPU, and {devices.VARIABLE} is gpu: choose a bundle for GPUs, or torch")
        return OpenVinoEngine(folder / FILES[name], encoder, name, threads)
    if name != "torch":
        raise ModelError(f"there is no engine {name!r}: choose from {', '.join(NAMES)}")
    try:
        import torch

        from goemotions.models import classifier
    except ModuleNotFoundError as error:
        raise ModelError(f"the engine torch needs {error.name}: install the extra [train], or choose openvino-int8") from error
    set_torch_threads(threads)
    device = torch.device(devices.resolve(compute=True))
    model = classifier.load_classifier(folder)
    _require_embeddings(folder, encoder, model.get_input_embeddings().num_embeddings)
    return TorchEngine(model.to(device), encoder, device, precision)


def score(engine: Engine, texts: Sequence[str], progress: Progress = None) -> tuple[np.ndarray, np.ndarray]:
    """Scores n texts; ``progress`` is called with the number of texts of each finished batch.

    Returns:
        Probabilities, float32 [n, labels], and whether each text was truncated, bool [n], in the order of the texts.

    Raises:
        ModelError: there is no text.
    """
    truncated = np.zeros(len(texts), dtype=bool)

    def windows() -> Iterator[list[list[int]]]:
        for start in range(0, len(texts), WINDOW):
            encoded = engine.encoder.encode(texts[start : start + WINDOW])
            truncated[start : start + WINDOW] = [item.truncated for item in encoded]
            yield [item.ids for item in encoded]

    return sigmoid(_logits(engine, len(texts), windows(), progress)), truncated


def one_text(engine: Engine) -> Callable[[], object]:
    """Returns a function that scores one text of 20 tokens, without tokenization."""
    ids = np.full((1, LATENCY_TOKENS), WORD_ID, dtype=np.int64)
    mask = np.ones_like(ids)
    return lambda: engine.logits(ids, mask)


def latency(engine: Engine) -> tuple[float, float]:
    """Measures the latency of one text of 20 tokens, without tokenization, in ms: its median and 95th percentile."""
    run = one_text(engine)
    for _ in range(LATENCY_RUNS // 10):
        run()
    times = []
    for _ in range(LATENCY_RUNS):
        started = time.perf_counter()
        run()
        times.append(1000 * (time.perf_counter() - started))
    return float(np.median(times)), float(np.percentile(times, 95))


def score_ids(engine: Engine, rows: Sequence[Sequence[int]]) -> np.ndarray:
    """Returns the probabilities of n tokenized texts, float32 [n, labels], in their order."""
    return sigmoid(logits(engine, rows))


def logits(engine: Engine, rows: Sequence[Sequence[int]]) -> np.ndarray:
    """Returns the logits of n tokenized texts, float32 [n, labels], in their order."""
    return _logits(engine, len(rows), (rows[start : start + WINDOW] for start in range(0, len(rows), WINDOW)), None)


def _logits(engine: Engine, count: int, windows: Iterable[Sequence[Sequence[int]]], progress: Progress) -> np.ndarray:
    if not count:
        raise ModelError("there is no text to score: give at least one")
    done: list[tuple[list[int], Future[np.ndarray]]] = []
    start = 0
    # The workers compute the first batches while later windows are tokenized.
    with ThreadPoolExecutor(engine.workers) as workers:
        for rows in windows:
            for batch in by_length([len(row) for row in rows], engine.batch_tokens):
                padded = engine.encoder.pad([rows[position] for position in batch])
                done.append(([start + position for position in batch], workers.submit(engine.logits, *padded)))
            start += len(rows)
        result: np.ndarray | None = None
        for positions, future in done:
            batch_logits = future.result()
            result = np.empty((count, batch_logits.shape[1]), dtype=np.float32) if result is None else result
            result[positions] = batch_logits
            if progress:
                progress(len(positions))
    assert result is not None
    return result
