"""The queue of the predictor server: the texts of all requests wait here until a worker takes them into a batch."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from goemotions.errors import RequestError
from goemotions.models.engines import WINDOW
from goemotions.serving import metrics
from goemotions.serving.limits import Limits

# Weight of the newest batch in the moving average of the throughput.
SMOOTHING = 0.2


@dataclass(eq=False)
class QueuedRequest:
    """The texts of one request: ``waiting`` of them are in the queue, ``missing`` of them have no logits yet."""

    texts: list[str]
    future: asyncio.Future[tuple[np.ndarray, np.ndarray]]
    arrived: float = field(default_factory=time.perf_counter)
    waiting: int = field(init=False)
    missing: int = field(init=False)
    logits: np.ndarray | None = None
    truncated: np.ndarray | None = None

    def __post_init__(self) -> None:
        self.waiting = self.missing = len(self.texts)


@dataclass(eq=False)
class QueuedText:
    """One tokenized text of a request."""

    request: QueuedRequest
    position: int
    ids: list[int]


class TextQueue:
    """Admits requests within the limits, gives out their texts, and drops those of requests that ended early. Thread-safe."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._changed = threading.Condition()
        self._requests: deque[QueuedRequest] = deque()
        self._texts: deque[QueuedText] = deque()
        self._waiting = 0
        self._texts_per_second = 0.0
        self._is_closed = False

    def put(self, request: QueuedRequest) -> None:
        """Admits a request; an empty queue admits every request.

        Raises:
            RequestError: 429 if too many texts wait, or if they are expected to wait too long.
        """
        with self._changed:
            wait = self._waiting / self._texts_per_second if self._texts_per_second else 0.0
            is_full = self._waiting + len(request.texts) > self._limits.queue_texts or wait > self._limits.queue_seconds
            if self._waiting and is_full:
                raise RequestError("the queue is full: try again later", 429, retry_after=max(1, round(wait)))
            self._requests.append(request)
            self._add_waiting(len(request.texts))
            self._changed.notify()

    def drop(self, request: QueuedRequest) -> None:
        """Drops the texts of a request that still wait."""
        with self._changed:
            self._add_waiting(-request.waiting)
            request.waiting = 0

    def get(self) -> list[QueuedRequest] | None:
        """Blocks until something waits; returns the requests to tokenize, if any. None if the queue is closed and empty."""
        with self._changed:
            self._changed.wait_for(lambda: self._requests or self._texts or self._is_closed)
            if not (self._requests or self._texts):
                return None
            requests = [request for request in self._requests if request.waiting]
            self._requests.clear()
            return requests

    def put_tokenized(self, texts: list[QueuedText]) -> None:
        """Adds the tokenized texts of requests that ``get`` returned."""
        with self._changed:
            self._texts.extend(texts)
            self._changed.notify(len(texts))

    def take(self, choose: Callable[[list[QueuedText]], list[QueuedText]]) -> list[QueuedText]:
        """Removes and returns the texts that ``choose`` selects among those that have waited longest (oldest first)."""
        with self._changed:
            while self._texts and not self._texts[0].request.waiting:
                self._texts.popleft()
            if not self._texts:
                return []
            head = [self._texts.popleft() for _ in range(min(WINDOW, len(self._texts)))]
            window = [text for text in head if text.request.waiting]
            batch = choose(window)
            taken = set(map(id, batch))
            self._texts.extendleft(text for text in reversed(window) if id(text) not in taken)
            for text in batch:
                text.request.waiting -= 1
            self._add_waiting(-len(batch))
            now = time.perf_counter()
        for request in {id(text.request): text.request for text in batch}.values():
            metrics.QUEUE_SECONDS.observe(now - request.arrived)
        return batch

    def update_throughput(self, texts_per_second: float) -> None:
        """Updates the estimate of the throughput, from which the expected wait follows, with that of the newest batch."""
        with self._changed:
            before = self._texts_per_second or texts_per_second
            self._texts_per_second = (1 - SMOOTHING) * before + SMOOTHING * texts_per_second

    def close(self) -> None:
        """Makes ``get`` return None once nothing waits."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()

    def _add_waiting(self, texts: int) -> None:
        self._waiting += texts
        metrics.QUEUE_TEXTS.set(self._waiting)
