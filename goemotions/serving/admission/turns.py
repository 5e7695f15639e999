"""The order in which the clients of a port get their turn: one piece of work of each address, then the next one of each."""

from __future__ import annotations

import asyncio
import functools
import math
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from goemotions.errors import RequestError

# Pieces of work per turn of the event loop, each of which takes up to a millisecond, and those that wait.
WORK, WAITING = 8, 1024
# What waits longer for its turn is refused: it would be late, and to refuse it takes less time of those behind it.
TURN_SECONDS = 0.5
# Calls in the library of gRPC: so many that their texts share batches, or few, so that each connection has its turn soon, while several
# have more, and for some seconds after that.
CALLS, FEW_CALLS, FEW_SECONDS = 96, 16, 1.0
# The library has no call if none has begun at so many such times in a row: one may be over before the event loop has looked for calls.
QUIET_SECONDS, QUIET_TIMES = 0.001, 5
# After it had one all the same, it has more than it should from then on. So after this time it gets none until it has none.
DRAIN_SECONDS = 0.1
# A request up to this size is parsed and refused at once, and does not count as memory.
SMALL_BYTES = 32 * 1024
# Between two refusals of larger ones, and the longest time until one.
REFUSAL_SECONDS, MOST_REFUSAL_SECONDS = 0.04, 1.0
Work = Callable[[], None]
Result = TypeVar("Result")


class Turns:
    """What clients cause, a few pieces of work per turn of the event loop: one of each address, then the next one of each."""

    most = WORK

    def __init__(self) -> None:
        # By address: when it is too late for a piece of work, the work, and its refusal.
        self._waiting: dict[str, deque[tuple[float, Work, Work]]] = {}
        self._count, self._left = 0, self.most
        self._is_scheduled = False

    def has_room(self, address: str) -> bool:
        """Whether work for an address may be done at once; it is then expected to be done."""
        if address in self._waiting or self._room() <= 0:
            return False
        self._left -= 1
        self._schedule()
        return True

    def wait(self, address: str, work: Work, refuse: Work | None = None) -> None:
        """Does work for an address when it is its turn, or refuses it if that is too late."""
        late = time.monotonic() + (TURN_SECONDS if refuse else math.inf)
        self._waiting.setdefault(address, deque()).append((late, work, refuse or work))
        self._count += 1
        self._schedule()

    def is_full(self, address: str, most: int) -> bool:
        """Whether so much waits for an address, or too much for all and its share for this one."""
        waiting = len(self._waiting.get(address, ()))
        return waiting >= most or (self._count >= WAITING and waiting >= max(1, WAITING // max(1, len(self._waiting))))

    def _room(self) -> int:
        return self._left

    def _schedule(self) -> None:
        if not self._is_scheduled:
            self._is_scheduled = True
            asyncio.get_running_loop().call_soon(self._next)

    def _next(self) -> None:
        self._is_scheduled, self._left = False, self.most
        self._work()

    def _work(self) -> None:
        while self._waiting and self._room() > 0:
            address = next(iter(self._waiting))
            waiting = self._waiting.pop(address)
            late, work, refuse = waiting.popleft()
            if waiting:
                self._waiting[address] = waiting
            self._count -= 1
            self._left -= 1
            self._schedule()
            (work if time.monotonic() < late else refuse)()


class CallTurns(Turns):
    """Few calls are in the library and have not begun; the others wait here: one of each address, then the next one of each.

    Calls that the library rejects itself never begin. They are forgotten once no call begins any more.
    """

    most = CALLS

    def __init__(self) -> None:
        super().__init__()
        self._begun, self._few_until = 0, 0.0
        self._drains_at, self._is_draining = math.inf, False

    def _room(self) -> int:
        now = time.monotonic()
        if self._count > 1:
            self._few_until = now + FEW_SECONDS
        return self._left - (CALLS - FEW_CALLS) * (now < self._few_until)

    def begin(self) -> None:
        """Counts a call that has begun."""
        self._begun += 1
        self.release()

    def release(self) -> None:
        """Makes room for another call."""
        if not self._is_draining:
            self._left = min(self._left + 1, self.most)
            self._work()

    def _schedule(self) -> None:
        if not self._is_scheduled:
            self._is_scheduled = True
            self._look(QUIET_TIMES, self._begun)

    def _look(self, times: int, begun: int) -> None:
        """Looks again, so many times, whether a call has begun; if none has, the library has none, and gets new ones."""
        loop = asyncio.get_running_loop()
        if begun != self._begun:
            times = QUIET_TIMES
        if self._left == self.most:
            self._is_scheduled = False
        elif times:
            if loop.time() > self._drains_at:
                self._left, self._is_draining, self._drains_at = 0, True, math.inf
            loop.call_later(QUIET_SECONDS, self._look, times - 1, self._begun)
        else:
            if not self._is_draining:
                self._drains_at = min(self._drains_at, loop.time() + DRAIN_SECONDS)
            self._is_draining = False
            self._next()


class FairThread(Turns):
    """A thread for work that would hold the event loop: one piece of each address, then the next one of each."""

    most = 1

    def __init__(self, name: str) -> None:
        super().__init__()
        self._executor = ThreadPoolExecutor(1, name)

    async def run(self, address: str, work: Callable[[], Result]) -> Result:
        """Does work for an address in the thread when it is its turn, and returns its result."""
        loop = asyncio.get_running_loop()
        turn: asyncio.Future[None] = loop.create_future()
        self.wait(address, functools.partial(self._begin, turn))
        try:
            await turn
            return await loop.run_in_executor(self._executor, work)
        finally:
            if not turn.cancelled():
                self._release()

    def _begin(self, turn: asyncio.Future[None]) -> None:
        if turn.cancelled():
            asyncio.get_running_loop().call_soon(self._release)
        else:
            turn.set_result(None)

    def _release(self) -> None:
        self._left = self.most
        self._work()

    def _schedule(self) -> None:
        self._work()


class Refusals:
    """Large requests that were read in vain are refused in turn: clients that send them again at once take the time of others."""

    def __init__(self) -> None:
        self._newest = 0.0

    async def wait(self, error: RequestError, size: int) -> None:
        """Returns when it is the turn to refuse so many bytes; until then, no frame of the traceback keeps them in memory."""
        if size <= SMALL_BYTES:
            return
        error.__traceback__ = error.__cause__ = error.__context__ = None
        now = asyncio.get_running_loop().time()
        self._newest = min(max(now, self._newest) + REFUSAL_SECONDS, now + MOST_REFUSAL_SECONDS)
        await asyncio.sleep(self._newest - now)
