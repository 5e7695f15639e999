"""What all protocols share: limits, the queue, counting, and whether the server is ready."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from goemotions import defaults
from goemotions.errors import RequestError
from goemotions.models import engines
from goemotions.models.engines import LENGTH_STEP, Engine
from goemotions.prediction.predictor import Options, Predictor
from goemotions.serving import metrics
from goemotions.serving.batching import Batcher
from goemotions.serving.limits import Limits

NAME = defaults.MODEL_NAME


class Service:
    """A predictor behind a queue.

    Args:
        predictor: what answers.
        version: the model version that answers carry.
        limits: what is refused.
        across_requests: whether texts of several requests may share a batch.
    """

    def __init__(self, predictor: Predictor, version: str, limits: Limits, *, across_requests: bool = True) -> None:
        self.predictor = predictor
        self.version = version
        self.limits = limits
        self.labels = predictor.bundle.taxonomy.names
        self._engine = predictor.engine
        self.is_draining = False
        _warm_up(predictor.engine)
        self._batcher = Batcher(
            predictor.engine,
            max_texts=limits.queue_texts,
            max_wait=limits.queue_seconds,
            max_batch=limits.answer_seconds,
            across_requests=across_requests,
        )
        self._predictions = [metrics.PREDICTIONS.labels(name) for name in self.labels]
        metrics.MODEL.labels(version, predictor.engine.name, predictor.bundle.facts.get("profile", "")).set(1)

    @property
    def is_live(self) -> bool:
        return self._batcher.is_alive

    @property
    def is_ready(self) -> bool:
        return self.is_live and not self.is_draining

    async def score(self, texts: Sequence[str], options: Options) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Probabilities, float32 [n, labels], which labels are chosen, bool [n, labels], and which texts were cut, bool [n].

        Raises:
            RequestError: 413 for too many texts, 429 where too much waits, 503 without an engine, 504 where it took too long.
        """
        if not self.is_live:
            raise RequestError("the engine stopped: the server is about to be replaced", 503)
        if len(texts) > self.limits.texts:
            raise RequestError(f"{len(texts)} texts in one request: send at most {self.limits.texts}", 413)
        metrics.REQUEST_TEXTS.observe(len(texts))
        started = time.perf_counter()
        logits, truncated = await self._batcher.logits(texts, self.limits.answer_seconds)
        metrics.PREDICT_SECONDS.labels(NAME).observe(time.perf_counter() - started)
        probabilities = engines.sigmoid(logits)
        chosen = self.predictor.choose(probabilities, options)
        for counter, count in zip(self._predictions, chosen.sum(axis=0).tolist(), strict=True):
            if count:
                counter.inc(count)
        if cut := int(truncated.sum()):
            metrics.TRUNCATED.inc(cut)
        return probabilities, chosen, truncated

    def metadata(self) -> dict[str, Any]:
        """The model as Open Inference describes it."""
        tensors = (("probabilities", "FP32", [-1, len(self.labels)]), ("labels", "BYTES", [-1]))
        return {
            "name": NAME,
            "versions": [self.version],
            "platform": self._engine.name,
            "inputs": [{"name": "text", "datatype": "BYTES", "shape": [-1]}],
            "outputs": [{"name": name, "datatype": kind, "shape": shape} for name, kind, shape in tensors],
        }

    def close(self) -> None:
        self._batcher.close()


def _warm_up(engine: Engine) -> None:
    """Prepares the engine for single texts of every usual length, on each lane: the first callers do not wait for kernels."""

    def warm(lane: int) -> None:
        for length in range(LENGTH_STEP, min(64, engine.encoder.max_length) + 1, LENGTH_STEP):
            engine.logits(np.ones((1, length), dtype=np.int64), np.ones((1, length), dtype=np.int64))

    with ThreadPoolExecutor(engine.lanes) as lanes:
        list(lanes.map(warm, range(engine.lanes)))
