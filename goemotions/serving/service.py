"""The service behind every protocol: request limits, the queue, metrics, and readiness."""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from kserve.metrics import EXPLAIN_HIST_TIME

from goemotions.defaults import MODEL_NAME
from goemotions.errors import RequestError
from goemotions.evaluation.occlusion import Occlusion, occlude, to_score
from goemotions.metrics.probabilities import sigmoid
from goemotions.models import devices
from goemotions.models.engines import LENGTH_STEP, Engine
from goemotions.prediction import explanation
from goemotions.prediction.explanation import Explanation
from goemotions.prediction.predictor import Options, Prediction, Predictor
from goemotions.serving import metrics
from goemotions.serving.admission.shares import Requests
from goemotions.serving.admission.turns import FairThread
from goemotions.serving.batching.batcher import LEAST_MEASURED, Batcher
from goemotions.serving.batching.queue import full
from goemotions.serving.limits import Limits
from goemotions.serving.traffic.counters import TrafficCounters

if TYPE_CHECKING:
    # The log needs pyarrow, which a server without one does not import.
    from goemotions.serving.traffic.request_log import RequestLog
    from goemotions.serving.traffic.shadow import Shadow

logger = logging.getLogger(__name__)
T = TypeVar("T")


@dataclass(frozen=True)
class Result:
    """The result for n texts: probabilities, float32 [n, labels], and predictions, n dicts as ``Predictor.predict`` returns."""

    probabilities: np.ndarray
    predictions: list[Prediction]


class Service:
    """A predictor behind a queue.

    Args:
        predictor: the bundle and its engine.
        version: the model version that responses carry.
        limits: the limits of a request and of the queue.
        name: of the model, in paths, responses and metrics.
        log: of answers and feedback; None if none is kept.
    """

    def __init__(
        self,
        predictor: Predictor,
        version: str,
        limits: Limits,
        *,
        name: str = MODEL_NAME,
        log: RequestLog | None = None,
    ) -> None:
        self.predictor = predictor
        self.name = name
        self.version = version
        self.limits = limits
        self.requests = Requests(limits.requests)
        self.log = log
        self.labels = predictor.bundle.taxonomy.names
        self.is_draining = False
        # Of several worker processes.
        self.has_hung_peer = False
        self.shadow: Shadow | None = None
        # One thread, so that texts to explain take no more than one core from the engine.
        self._explainer = FairThread("explainer")
        tokens_per_second = _warm_up(predictor.engine)
        self._traffic = TrafficCounters(predictor.bundle, version)
        self._batcher = Batcher(
            predictor.engine,
            limits,
            count=self._traffic.add,
            tokens_per_second=tokens_per_second,
        )
        self._predict_seconds = metrics.PREDICT_SECONDS.labels(name)
        used = predictor.engine.computation
        self.computation = dataclasses.replace(used, device=devices.name(used.device))
        self.run_id = predictor.bundle.metadata.run_id
        profile = predictor.bundle.metadata.profile
        metrics.MODEL.labels(version=version, run=self.run_id, profile=profile, **dataclasses.asdict(self.computation)).set(1)

    @property
    def is_live(self) -> bool:
        return self._batcher.is_alive

    @property
    def is_ready(self) -> bool:
        return self.is_live and not self.is_draining and not self.has_hung_peer

    async def predict(
        self, texts: Sequence[str], options: Options, *, request_id: str = "", peer: str = "", is_copy: bool = False
    ) -> Result:
        """Labels the texts of one request of an address, in order. Without an id they are not logged.

        A request that is a copy of another one is neither copied nor counted as traffic.

        Raises:
            RequestError: 413 for too many texts, 429 if the queue is full, 503 if the engine stopped, 504 if it took too long.
        """
        self._check_live()
        self.limits.check_texts(len(texts))
        if not is_copy:
            metrics.REQUEST_TEXTS.observe(len(texts))
        started = time.perf_counter()
        logits, truncated = await self._batcher.logits(texts, peer, is_counted=not is_copy)
        self._predict_seconds.observe(time.perf_counter() - started)
        probabilities = sigmoid(logits)
        predictions = self.predictor.predictions(probabilities, truncated, options)
        if not is_copy:
            metrics.TRUNCATED.inc(int(truncated.sum()))
            if self.shadow:
                self.shadow.offer(texts, options, probabilities, predictions, request_id)
        result = Result(probabilities, predictions)
        if self.log and request_id:
            self.log.add_answers(request_id, texts, result)
        return result

    async def explain(
        self, texts: Sequence[str], options: Options, removals: int, peer: str = ""
    ) -> tuple[list[Prediction], list[Explanation]]:
        """Labels and explains the texts of one request, in order. Explained texts are no traffic, and are not counted as such.

        Raises:
            RequestError: as ``predict``; each removal counts as a text. 413 also for too many words, 429 if the texts of others take
                too long.
        """
        self._check_live()
        self.limits.check_explained(len(texts), removals)
        with EXPLAIN_HIST_TIME.labels(self.name).time():
            occlusions = await self._occlude(texts, removals, peer)
            logits, truncated = await self._batcher.logits(to_score(texts, occlusions), peer, is_counted=False)
        describe = functools.partial(explanation.describe, self.predictor, occlusions, sigmoid(logits), truncated, options)
        return await self._explainer.run(peer, describe)

    async def _occlude(self, texts: Sequence[str], removals: int, peer: str) -> list[Occlusion]:
        """One text after the other, so that requests have their turn; in half of the time for an answer, since they are scored then."""
        encoder = self.predictor.engine.encoder
        occlusions: list[Occlusion] = []
        try:
            async with asyncio.timeout(self.limits.answer_seconds / 2):
                for text in texts:
                    occlusions.append(await self._explainer.run(peer, functools.partial(occlude, encoder, text, removals)))
                    self.limits.check_words(sum(len(one.words) for one in occlusions))
        except TimeoutError as error:
            raise full() from error
        return occlusions

    def metadata(self) -> dict[str, Any]:
        """The model's metadata in Open Inference's form."""
        return {
            "name": self.name,
            "versions": [self.version],
            "platform": str(self.computation),
            "inputs": [{"name": "text", "datatype": "BYTES", "shape": [-1]}],
            "outputs": [
                {"name": "probabilities", "datatype": "FP32", "shape": [-1, len(self.labels)]},
                {"name": "labels", "datatype": "BYTES", "shape": [-1]},
            ],
        }

    def _check_live(self) -> None:
        if not self.is_live:
            raise RequestError("the engine stopped and the server will be restarted: try again later", 503)

    def flush_metrics(self) -> None:
        """Adds what the workers counted of the traffic to the metrics."""
        self._traffic.flush()

    def close(self) -> None:
        """Ends the workers once the queue is empty, and the log."""
        self._batcher.close()
        self.flush_metrics()
        if self.log:
            self.log.close()


async def handle(protocol: str, handler: Awaitable[T], cancelled: Callable[[], Awaitable[int]] | None = None) -> T:
    """Awaits the handler of one inference request, and records its duration, its status and why it was rejected.

    ``cancelled``: the status of a handler that is cancelled; by default, its client has left.

    Raises:
        RequestError: the handler's own; 500 for any other exception, which is logged.
    """
    started, status = time.perf_counter(), 200
    try:
        return await handler
    except RequestError as error:
        status = error.status
        raise
    except asyncio.CancelledError:
        status = metrics.CLIENT_GONE
        if cancelled:
            status = await cancelled()
        raise
    except Exception as error:
        status = 500
        logger.exception("a request failed")
        raise RequestError("the server failed: see its log", status) from error
    finally:
        if status != metrics.COUNTED:
            metrics.count(protocol, status)
            metrics.series_of_request_seconds(protocol, status).observe(time.perf_counter() - started)


def _warm_up(engine: Engine) -> float:
    """Has each worker score single texts of every usual length, so that no request waits for kernels to be prepared.

    Returns:
        The throughput of all workers in tokens per second, of a batch of the least size that says something about it.
    """
    longest = min(64, engine.encoder.max_length)
    texts = max(1, int(LEAST_MEASURED * engine.batch_tokens) // longest)

    def score(count: int, length: int) -> float:
        ids = np.ones((count, length), dtype=np.int64)
        started = time.perf_counter()
        engine.logits(ids, ids)
        return time.perf_counter() - started

    def warm(_: int) -> float:
        for length in range(LENGTH_STEP, longest + 1, LENGTH_STEP):
            score(1, length)
        return min(score(texts, longest) for _ in range(2))

    with ThreadPoolExecutor(engine.workers) as workers:
        return texts * longest * engine.workers / max(workers.map(warm, range(engine.workers)))
