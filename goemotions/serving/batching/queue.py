"""The queue of the predictor server: the texts of all requests wait here until a worker takes them into a batch.

Requests share the workers by tokens (weighted fair queueing): the next batch is made around a text of the request that would be
complete first if all that wait had equal shares. Large requests count as if a portion of them were the rest. So a request of one text
waits for batches that have begun and for other small requests, however many large ones there are; small requests of one size and client
are complete in the order in which they came, and later ones do not delay them. Addresses have their turn by tokens, too, among small
requests and among large ones, so that one with many does not delay another's; a gateway is one address.

https://en.wikipedia.org/wiki/Fair_queuing
"""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np

from goemotions.errors import RequestError
from goemotions.serving import metrics
from goemotions.serving.admission.shares import Shares
from goemotions.serving.limits import Limits

# Weight of the newest batch in the throughput: of some twenty batches, so that a slow one neither hides nor decides.
SMOOTHING = 0.05
# What a worker tokenizes at once, so that no text waits long for the tokenization of others.
CHUNK_CHARACTERS = 16 * 2**10
# Tokenized texts among which a batch is chosen.
WINDOW = 512
# So many texts of a request are tokenized even if there are enough of others.
LEAST_TEXTS = 8
# Before its tokens are known, a text counts as one per so many characters, and as at least one per this larger number.
CHARACTERS_PER_TOKEN, MEMORY_PER_TOKEN = 4, 64
# Requests of at most this share of the texts and tokens of a full queue are small; for them there is so much more room.
SMALL_SHARE, SMALL_ROOM = 0.01, 1.1


@dataclass(eq=False)
class QueuedRequest:
    """The texts of one request of an address: ``waiting`` of them are in the queue, ``missing`` of them have no logits yet.

    ``is_counted`` says whether they are traffic; copies for a challenger are none.
    """

    texts: list[str]
    future: asyncio.Future[tuple[np.ndarray, np.ndarray]]
    max_length: int = 512
    is_counted: bool = True
    peer: str = ""
    arrived: float = field(default_factory=time.perf_counter)
    waiting: int = field(init=False)
    missing: int = field(init=False)
    # Of its waiting texts: the tokens to compute, and those that the limit of the queue counts.
    tokens: int = field(init=False)
    size: int = field(init=False)
    # The time of the queue at which it would be complete, or another portion of it; and the time when it is too late.
    due: float = 0.0
    late: float = math.inf
    tokenized: int = 0
    is_small: bool = True
    ready: list[QueuedText] = field(default_factory=list)
    logits: np.ndarray | None = None
    truncated: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        self.waiting = self.missing = len(self.texts)
        self.tokens, self.size = sum(map(self.weight, self.texts)), sum(map(self.size_of, self.texts))
        self.truncated = np.zeros(len(self.texts), dtype=bool)

    @property
    def share(self) -> tuple[str, bool]:
        """The requests among which it has its turn: those of its address that are small, or large, as it is."""
        return self.peer, self.is_small

    def weight(self, text: str) -> int:
        """An estimate of the tokens of a text that the model reads."""
        return min(2 + len(text) // CHARACTERS_PER_TOKEN, self.max_length)

    def size_of(self, text: str) -> int:
        """As ``weight``, unless the text is so long that its memory counts."""
        return max(self.weight(text), len(text) // MEMORY_PER_TOKEN)


@dataclass(eq=False)
class QueuedText:
    """One text of a request, and its tokens once a worker has tokenized it."""

    request: QueuedRequest
    position: int
    ids: list[int] = field(default_factory=list)

    @property
    def text(self) -> str:
        return self.request.texts[self.position]


class TextQueue:
    """Admits requests within the limits, gives out their texts in turn, and drops those of requests that ended early. Thread-safe.

    ``tokens_per_second`` is the measured throughput of all workers, 0 before the first measurement; tokens are estimated, as those
    that wait.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._changed = threading.Condition()
        self._requests: dict[QueuedRequest, None] = {}
        # Those of them that have texts without tokens.
        self._untokenized: dict[QueuedRequest, None] = {}
        self._texts, self._tokens = Shares(limits.queue_texts), Shares(limits.queue_tokens)
        self._ready = 0
        # Of small requests, and of large ones: what each address has had that waits, and where a new one begins.
        self._served: dict[tuple[str, bool], int] = {}
        self._begin = {True: 0, False: 0}
        # The tokens that each request has had that waited all the time.
        self._clock = 0.0
        self._scored = self._seconds = 0.0
        self._is_closed = False

    def put(self, request: QueuedRequest) -> None:
        """Admits a request; an empty queue admits every request.

        Raises:
            RequestError: 429 if too many texts or tokens wait, or if this request is expected to wait too long.
        """
        limits, portion = self._limits, SMALL_SHARE * self._limits.queue_tokens
        request.is_small = request.size <= portion and request.waiting <= SMALL_SHARE * limits.queue_texts
        with self._changed:
            request.due = self._clock + (request.tokens if request.is_small else portion)
            if speed := self.tokens_per_second:
                wait = self._tokens_before(request) / speed
                request.late = request.arrived + limits.queue_seconds + request.tokens / speed
            else:
                wait = 0.0
            if self._requests and (self._is_full(request) or wait > limits.queue_seconds):
                raise full(wait)
            self._requests[request] = self._untokenized[request] = None
            self._served[request.share] = max(self._served.get(request.share, 0), self._begin[request.is_small])
            self._count(request, request.waiting, request.size)
            self._show_size()
            self._changed.notify()

    def drop(self, request: QueuedRequest) -> None:
        """Drops the texts of a request that still wait."""
        with self._changed:
            self._drop(request)

    def get(self) -> list[QueuedText] | None:
        """Blocks until something waits; returns texts to tokenize, if any. None if the queue is closed and empty."""
        with self._changed:
            self._changed.wait_for(lambda: self._ready or self._untokenized or (self._is_closed and not self._requests))
            return list(self._to_tokenize()) if self._requests else None

    def put_tokenized(self, texts: Iterable[QueuedText]) -> None:
        """Adds the texts that ``get`` returned, when they have their tokens."""
        with self._changed:
            for text in texts:
                if text.request in self._requests:
                    text.request.ready.append(text)
                    self._ready += 1
            # The caller takes the first batch.
            self._changed.notify(max(0, self._ready + len(self._untokenized) - 1))

    def take(self, choose: Callable[[list[QueuedText]], list[QueuedText]]) -> list[QueuedText]:
        """Removes and returns the texts that ``choose`` selects.

        The first that it may choose from is the oldest text of the request whose turn it is; the next ones are of the requests
        whose turn comes next.
        """
        with self._changed:
            requests = self._in_turn(request for request in self._requests if request.ready)
            if not requests:
                return []
            batch = choose([text for request in requests for text in request.ready][:WINDOW])
            self._remove(batch)
            now = time.perf_counter()
        for request in {text.request: None for text in batch}:
            metrics.QUEUE_SECONDS.observe(now - request.arrived)
        return batch

    def take_late(self) -> list[QueuedRequest]:
        """Removes and returns the requests that are too late; large ones only if none of their texts had its turn."""
        with self._changed:
            now = time.perf_counter()
            late = [
                request
                for request in self._requests
                if request.late < now and (request.is_small or request.waiting == len(request.texts))
            ]
            for request in late:
                self._drop(request)
            return late

    @property
    def tokens_per_second(self) -> float:
        return self._scored / self._seconds if self._seconds else 0.0

    def update_throughput(self, tokens: float, seconds: float = 1.0) -> None:
        """Updates the throughput, from which the expected wait follows: all workers would have scored so many tokens in this time."""
        with self._changed:
            self._scored += SMOOTHING * (tokens - self._scored)
            self._seconds += SMOOTHING * (seconds - self._seconds)

    def close(self) -> None:
        """Makes ``get`` return None once nothing waits."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()

    def _tokens_before(self, request: QueuedRequest) -> int:
        """The tokens of small requests that are due before this one, and of large ones as many as it has itself.

        Of each, those of another address are no more than those of its own.
        """
        small, large = Counter[str](), Counter[str]()
        for other in self._requests:
            if not other.is_small:
                large[other.peer] += min(other.tokens, request.tokens)
            elif other.due <= request.due:
                small[other.peer] += other.tokens
        before = 0
        for tokens in (small, large):
            own = tokens.pop(request.peer, 0)
            before += own + sum(min(others, own + request.tokens) for others in tokens.values())
        return before

    def _in_turn(self, requests: Iterable[QueuedRequest]) -> list[QueuedRequest]:
        """By the time at which they are due; the places of small ones, and those of large ones, by what their addresses have had."""
        due = sorted(requests, key=lambda request: request.due)
        if len(self._served) < 2:
            return due
        shares = sorted(due, key=lambda request: self._served[request.share])
        upcoming = {is_small: iter([one for one in shares if one.is_small == is_small]) for is_small in (True, False)}
        return [next(upcoming[request.is_small]) for request in due]

    def _drop(self, request: QueuedRequest) -> None:
        self._untokenized.pop(request, None)
        if self._requests.pop(request, request) is None:
            self._ready -= len(request.ready)
            self._count(request, -request.waiting, -request.size)
            self._show_size()
            request.waiting = request.tokens = request.size = 0

    def _is_full(self, request: QueuedRequest) -> bool:
        room, peer = SMALL_ROOM if request.is_small else 1.0, request.peer
        return not (self._texts.has_room(peer, request.waiting, room) and self._tokens.has_room(peer, request.size, room))

    def _to_tokenize(self) -> Iterable[QueuedText]:
        characters, room = CHUNK_CHARACTERS, WINDOW - self._ready
        for request in self._in_turn(self._untokenized):
            end = min(len(request.texts), request.tokenized + max(room, 0 if request.ready else LEAST_TEXTS))
            while request.tokenized < end and characters > 0:
                text = QueuedText(request, request.tokenized)
                # Longer texts are cut before they are tokenized.
                characters -= min(len(text.text), MEMORY_PER_TOKEN * request.max_length)
                request.tokenized, room = request.tokenized + 1, room - 1
                yield text
            if request.tokenized == len(request.texts):
                del self._untokenized[request]

    def _remove(self, batch: list[QueuedText]) -> None:
        chosen, tokens, sizes = set(map(id, batch)), Counter[QueuedRequest](), Counter[QueuedRequest]()
        for queued in batch:
            request, text = queued.request, queued.text
            tokens[request] += request.weight(text)
            sizes[request] += request.size_of(text)
        for is_small, begin in self._begin.items():
            served = (self._served[one.share] for one in tokens if one.is_small == is_small)
            self._begin[is_small] = max(begin, min(served, default=0))
        for request, weight in tokens.items():
            self._served[request.share] += weight
            left = [text for text in request.ready if id(text) not in chosen]
            count, request.ready = len(request.ready) - len(left), left
            if not request.is_small:
                request.due += weight
            request.waiting -= count
            request.tokens -= weight
            request.size -= sizes[request]
            self._count(request, -count, -sizes[request])
        self._clock += tokens.total() / len(self._requests)
        for request in tokens:
            if not request.waiting:
                del self._requests[request]
        self._ready -= len(batch)
        self._show_size()

    def _count(self, request: QueuedRequest, texts: int, tokens: int) -> None:
        self._texts.add(request.peer, texts)
        self._tokens.add(request.peer, tokens)
        if not self._texts.of(request.peer):
            for is_small in (True, False):
                self._served.pop((request.peer, is_small), None)

    def _show_size(self) -> None:
        if not self._texts.total:
            self._changed.notify_all()
        metrics.QUEUE_TEXTS.set(self._texts.total)
        metrics.QUEUE_TOKENS.set(self._tokens.total)


def full(wait: float = 1.0) -> RequestError:
    return RequestError("the queue is full: try again later", 429, retry_after=max(1, round(wait)))
