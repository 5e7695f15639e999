"""Batching across requests: texts wait in one queue, and each lane of the engine takes the batch that suits it when it is free.

Nothing waits for a batch to fill. While the lanes compute, texts gather, and the next batch holds them: batches grow with the load.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from goemotions.errors import RequestError
from goemotions.models.engines import WINDOW, Engine
from goemotions.models.tokenizer import batch_size
from goemotions.serving import metrics

logger = logging.getLogger(__name__)
# How fast the estimate of the throughput follows the last batches.
SMOOTHING = 0.2


@dataclass(eq=False)
class _Job:
    """The texts of one request."""

    texts: list[str]
    future: asyncio.Future[tuple[np.ndarray, np.ndarray]]
    loop: asyncio.AbstractEventLoop
    arrived: float = field(default_factory=time.perf_counter)
    waiting: int = 0
    missing: int = 0
    logits: np.ndarray | None = None
    truncated: np.ndarray | None = None


@dataclass(eq=False)
class _Item:
    """One tokenized text of a job."""

    job: _Job
    position: int
    ids: list[int]


class Batcher:
    """Scores texts of many requests together.

    Args:
        engine: what scores them; each of its lanes gets a thread.
        max_texts: texts that may wait.
        max_wait: seconds that a text may be expected to wait.
        max_batch: seconds after which a batch that is not done means that its lane hangs.
        across_requests: whether texts of several requests may share a batch.
    """

    def __init__(
        self, engine: Engine, *, max_texts: int, max_wait: float, max_batch: float = 30.0, across_requests: bool = True
    ) -> None:
        self._engine = engine
        self._max_texts = max_texts
        self._max_wait = max_wait
        self._max_batch = max_batch
        self._across_requests = across_requests
        self._changed = threading.Condition()
        self._arrived: deque[_Job] = deque()
        self._items: deque[_Item] = deque()
        self._waiting = 0
        self._rate = 0.0
        self._under_way: dict[int, float] = {}
        self._closed = False
        self._lanes = [
            threading.Thread(target=self._work, name=f"lane-{number}", daemon=True) for number in range(engine.lanes)
        ]
        for lane in self._lanes:
            lane.start()

    async def logits(self, texts: Sequence[str], timeout: float) -> tuple[np.ndarray, np.ndarray]:
        """Logits of n texts, float32 [n, labels], and which texts were cut, bool [n]; in the order of the texts.

        A caller that is cancelled takes its texts out of the queue.

        Raises:
            RequestError: 429 where too much waits already, 504 where the answer took longer than ``timeout`` seconds.
        """
        loop = asyncio.get_running_loop()
        job = _Job(list(texts), loop.create_future(), loop, waiting=len(texts), missing=len(texts))
        self._admit(job)
        try:
            async with asyncio.timeout(timeout):
                return await job.future
        except TimeoutError as error:
            raise RequestError(f"no answer within {timeout:g} seconds: try again, or send fewer texts", 504) from error
        finally:
            self._drop(job)

    @property
    def is_alive(self) -> bool:
        """Whether every lane runs, and none hangs."""
        oldest = min(self._under_way.copy().values(), default=float("inf"))
        return time.perf_counter() - oldest < self._max_batch and all(lane.is_alive() for lane in self._lanes)

    def close(self) -> None:
        """Ends the lanes once nothing waits."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for lane in self._lanes:
            lane.join()

    def _admit(self, job: _Job) -> None:
        with self._changed:
            wait = self._waiting / self._rate if self._rate else 0.0
            # A request that fits the limits is always taken by an empty queue.
            if self._waiting and (self._waiting + len(job.texts) > self._max_texts or wait > self._max_wait):
                raise RequestError("too many texts wait: try again later", 429, retry_after=max(1, round(wait)))
            self._waiting += len(job.texts)
            self._arrived.append(job)
            metrics.QUEUE_TEXTS.set(self._waiting)
            self._changed.notify()

    def _drop(self, job: _Job) -> None:
        """Takes what still waits of a job out of the count; the lanes skip its texts."""
        with self._changed:
            self._waiting -= job.waiting
            job.waiting = 0
            metrics.QUEUE_TEXTS.set(self._waiting)

    def _work(self) -> None:
        while True:
            with self._changed:
                while not (self._arrived or self._items or self._closed):
                    self._changed.wait()
                if self._closed and not (self._arrived or self._items):
                    return
                arrived = [self._arrived.popleft() for _ in range(len(self._arrived))]
            try:
                if arrived:
                    self._tokenize([job for job in arrived if job.waiting])
                if batch := self._take():
                    self._score(batch)
            except Exception:
                logger.exception("a batch failed")

    def _tokenize(self, jobs: list[_Job]) -> None:
        try:
            encoded = iter(self._engine.encoder.encode(list(itertools.chain.from_iterable(job.texts for job in jobs))))
        except Exception as error:
            _fail(jobs, error)
            raise
        items = []
        for job in jobs:
            mine = list(itertools.islice(encoded, len(job.texts)))
            job.truncated = np.array([item.truncated for item in mine], dtype=bool)
            items += [_Item(job, position, item.ids) for position, item in enumerate(mine)]
        with self._changed:
            self._items.extend(items)
            self._changed.notify(len(items))

    def _take(self) -> list[_Item]:
        """The oldest text and those nearest to it in length, as many as the budget of tokens holds.

        A lane leaves their share to the others: they are free now or soon, and batches get no larger than the load asks for.
        """
        with self._changed:
            while self._items and not self._items[0].job.waiting:
                self._items.popleft()
            if not self._items:
                return []
            oldest = self._items[0]
            window = [
                item
                for item in itertools.islice(self._items, WINDOW)
                if item.job.waiting and (self._across_requests or item.job is oldest.job)
            ]
            window.sort(key=lambda item: len(item.ids))
            share = sum(len(item.ids) for item in window) // len(self._lanes)
            batch = _around(window, window.index(oldest), min(self._engine.batch_tokens, share))
            taken = set(map(id, batch))
            head = [self._items.popleft() for _ in range(min(WINDOW, len(self._items)))]
            self._items.extendleft(reversed([item for item in head if id(item) not in taken and item.job.waiting]))
            now = time.perf_counter()
            for item in batch:
                item.job.waiting -= 1
            self._waiting -= len(batch)
            metrics.QUEUE_TEXTS.set(self._waiting)
        for job in {id(item.job): item.job for item in batch}.values():
            metrics.QUEUE_SECONDS.observe(now - job.arrived)
        return batch

    def _score(self, batch: list[_Item]) -> None:
        started = self._under_way[threading.get_ident()] = time.perf_counter()
        try:
            ids, mask = self._engine.encoder.pad([item.ids for item in batch])
            found = self._engine.logits(ids, mask)
        except Exception as error:
            _fail([item.job for item in batch], error)
            raise
        finally:
            del self._under_way[threading.get_ident()]
        seconds = time.perf_counter() - started
        metrics.BATCH_TEXTS.observe(len(batch))
        metrics.BATCH_TOKENS.observe(ids.size)
        metrics.ENGINE_SECONDS.observe(seconds)
        finished = []
        with self._changed:
            rate = len(batch) * len(self._lanes) / seconds
            self._rate = rate if not self._rate else (1 - SMOOTHING) * self._rate + SMOOTHING * rate
            for item, row in zip(batch, found, strict=True):
                job = item.job
                if job.logits is None:
                    job.logits = np.empty((len(job.texts), found.shape[1]), dtype=np.float32)
                job.logits[item.position] = row
                job.missing -= 1
                if not job.missing:
                    finished.append(job)
        for loop, jobs in itertools.groupby(finished, key=lambda job: job.loop):
            loop.call_soon_threadsafe(_resolve, list(jobs))


def _around(window: list[_Item], position: int, tokens: int) -> list[_Item]:
    """A batch from a window sorted by length: neighbours, one of them at ``position``, that differ least in length."""

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


def _resolve(jobs: list[_Job]) -> None:
    for job in jobs:
        if not job.future.done():
            assert job.logits is not None
            assert job.truncated is not None
            job.future.set_result((job.logits, job.truncated))


def _fail(jobs: list[_Job], error: Exception) -> None:
    def reject(job: _Job) -> None:
        if not job.future.done():
            job.future.set_exception(error)

    for job in jobs:
        job.loop.call_soon_threadsafe(reject, job)
