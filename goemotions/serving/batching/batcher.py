"""Batching across requests: each worker thread of the engine, once it is free, takes the batch that suits it from the queue.

No worker waits for a batch to fill. New texts queue up while the workers compute, so batches grow with the load.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import threading
import time
from collections.abc import Callable, Sequence

import numpy as np

from goemotions.errors import RequestError
from goemotions.models.engines import LENGTH_STEP, Engine
from goemotions.models.tokenizer import Encoding, batch_size
from goemotions.serving import metrics
from goemotions.serving.batching.queue import QueuedRequest, QueuedText, TextQueue, full
from goemotions.serving.limits import Limits

logger = logging.getLogger(__name__)
# Called by a worker after a batch with its texts, their encodings and their logits, float32 [n, labels].
Count = Callable[[Sequence[str], Sequence[Encoding], np.ndarray], object]
# No text of a batch has more than so many times the tokens of that whose turn it is.
LENGTH_RATIO = 4
# For so long after a small request arrived, large ones get batches of about this duration, or single texts: the next small one waits
# for one of them.
SMALL_SECONDS, SHORT_SECONDS = 1.0, 0.02
# Of the tokens that fit. Smaller batches take longer per token, and say nothing about those of a queue that is full.
LEAST_MEASURED = 0.25


class Batcher:
    """Scores the texts of many requests together.

    Args:
        engine: the engine that scores them; it gets as many worker threads as it can use.
        limits: those of the queue, and the seconds for a request; a worker that needs longer for one batch counts as hanging.
        count: counts the traffic.
        tokens_per_second: the throughput before any batch is measured; 0: not known, and every request is admitted.
    """

    def __init__(
        self,
        engine: Engine,
        limits: Limits,
        *,
        count: Count | None = None,
        tokens_per_second: float = 0.0,
    ) -> None:
        self._engine = engine
        self._timeout = limits.answer_seconds
        self._across_requests = limits.batching
        self._count = count
        self._queue = TextQueue(limits)
        self._queue.update_throughput(tokens_per_second)
        self._small_arrived = 0.0
        self._results = threading.Lock()
        self._batch_started: dict[int, float] = {}
        self._workers = [
            threading.Thread(target=self._work, name=f"worker-{number}", daemon=True) for number in range(engine.workers)
        ]
        for worker in self._workers:
            worker.start()

    async def logits(self, texts: Sequence[str], peer: str = "", *, is_counted: bool = True) -> tuple[np.ndarray, np.ndarray]:
        """Logits of n texts of an address, float32 [n, labels], and whether each was truncated, bool [n]; in their order.

        If the caller is cancelled, its queued texts are dropped. ``is_counted``: whether they are traffic.

        Raises:
            RequestError: 429 if the queue is full, 504 if scoring takes too long.
        """
        future = asyncio.get_running_loop().create_future()
        request = QueuedRequest(list(texts), future, self._engine.encoder.max_length, is_counted, peer)
        self._queue.put(request)
        if request.is_small:
            self._small_arrived = request.arrived
        try:
            async with asyncio.timeout(self._timeout):
                return await request.future
        except TimeoutError as error:
            raise RequestError(f"not scored within {self._timeout:g} seconds: try again, or send fewer texts", 504) from error
        finally:
            self._queue.drop(request)

    @property
    def is_alive(self) -> bool:
        """Whether every worker runs and none hangs."""
        oldest = min(self._batch_started.copy().values(), default=float("inf"))
        return time.perf_counter() - oldest < self._timeout and all(worker.is_alive() for worker in self._workers)

    def close(self) -> None:
        """Ends the workers once the queue is empty."""
        self._queue.close()
        for worker in self._workers:
            worker.join()

    def _work(self) -> None:
        while (texts := self._queue.get()) is not None:
            started = time.perf_counter()
            try:
                _fail(self._queue.take_late(), full())
                if texts:
                    self._tokenize(texts)
                if batch := self._queue.take(self._choose):
                    self._score(batch)
                    self._measure(batch, time.perf_counter() - started)
            except Exception:
                logger.exception("a batch failed")

    def _tokenize(self, texts: list[QueuedText]) -> None:
        try:
            encoded = self._engine.encoder.encode([text.text for text in texts])
        except Exception as error:
            _fail([text.request for text in texts], error)
            raise
        for text, encoding in zip(texts, encoded, strict=True):
            text.ids = encoding.ids
            text.request.truncated[text.position] = encoding.truncated
        self._queue.put_tokenized(texts)

    def _choose(self, texts: list[QueuedText]) -> list[QueuedText]:
        """The text whose turn it is and those nearest to it in length, as many as the budget of tokens allows.

        None is much longer, so that a short text does not take the time of long ones. A worker takes its share only: the others are
        free now or soon, and small batches suffice under a light load.
        """
        first = texts[0]
        longest = LENGTH_RATIO * max(len(first.ids), LENGTH_STEP)
        window = sorted((text for text in texts if len(text.ids) <= longest), key=lambda text: len(text.ids))
        if not self._across_requests:
            window = [text for text in window if text.request is first.request]
        share = sum(len(text.ids) for text in window) // len(self._workers)
        return _around(window, window.index(first), min(self._budget(first.request), share))

    def _budget(self, request: QueuedRequest) -> int:
        """The tokens of a batch for a request; fewer if it is large while others are small, which wait for a batch to end."""
        tokens = self._engine.batch_tokens
        if request.is_small or time.perf_counter() - self._small_arrived >= SMALL_SECONDS:
            return tokens
        return min(tokens // 2, int(SHORT_SECONDS * self._queue.tokens_per_second / len(self._workers)))

    def _score(self, batch: list[QueuedText]) -> None:
        thread = threading.get_ident()
        started = self._batch_started[thread] = time.perf_counter()
        try:
            ids, mask = self._engine.encoder.pad([text.ids for text in batch])
            logits = self._engine.logits(ids, mask)
        except Exception as error:
            _fail([text.request for text in batch], error)
            raise
        finally:
            del self._batch_started[thread]
        seconds = time.perf_counter() - started
        metrics.BATCH_TEXTS.observe(len(batch))
        metrics.BATCH_TOKENS.observe(ids.size)
        metrics.ENGINE_SECONDS.observe(seconds)
        self._deliver(batch, logits)
        # No request waits for it.
        if self._count and (counted := [number for number, text in enumerate(batch) if text.request.is_counted]):
            texts = [batch[number] for number in counted]
            encodings = [Encoding(text.ids, bool(text.request.truncated[text.position])) for text in texts]
            self._count([text.text for text in texts], encodings, logits[counted])

    def _measure(self, batch: list[QueuedText], seconds: float) -> None:
        """Updates the throughput by all that a worker did for a batch: under load, the engine takes a part of the time only."""
        if sum(len(text.ids) for text in batch) >= LEAST_MEASURED * self._engine.batch_tokens:
            tokens = sum(text.request.weight(text.text) for text in batch)
            self._queue.update_throughput(tokens * len(self._workers), seconds)

    def _deliver(self, batch: list[QueuedText], logits: np.ndarray) -> None:
        """Stores each row of logits with its request, and resolves the requests that are complete."""
        complete = []
        with self._results:
            for text, row in zip(batch, logits, strict=True):
                request = text.request
                if request.logits is None:
                    request.logits = np.empty((len(request.texts), logits.shape[1]), dtype=np.float32)
                request.logits[text.position] = row
                request.missing -= 1
                if not request.missing:
                    complete.append(request)
        for loop, requests in itertools.groupby(complete, key=lambda request: request.future.get_loop()):
            loop.call_soon_threadsafe(_resolve, list(requests))


def _around(window: list[QueuedText], position: int, tokens: int) -> list[QueuedText]:
    """A batch of at most ``tokens`` tokens from a window sorted by length: the text at ``position`` and its neighbours.

    Among the batches of the largest size that fits, the one whose texts differ least in length.
    """

    def longest(end: int) -> int:
        return len(window[end - 1].ids)

    size = batch_size(len(window), longest(position + 1), tokens)
    while size > 1:
        ends = range(max(position + 1, size), min(position + size, len(window)) + 1)
        fitting = [end for end in ends if size * longest(end) <= tokens]
        if fitting:
            best = min(fitting, key=lambda end: longest(end) - longest(end - size + 1))
            return window[best - size : best]
        size //= 2
    return [window[position]]


def _resolve(requests: list[QueuedRequest]) -> None:
    for request in requests:
        if not request.future.done():
            assert request.logits is not None
            request.future.set_result((request.logits, request.truncated))


def _fail(requests: list[QueuedRequest], error: Exception) -> None:
    def reject(request: QueuedRequest) -> None:
        if not request.future.done():
            request.future.set_exception(error)

    for request in requests:
        request.future.get_loop().call_soon_threadsafe(reject, request)
