"""What the clients of a server have of what is limited, by their addresses: none keeps another one out."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from goemotions.errors import RequestError

# So many times a limit may be taken, if what is beyond it is for addresses with less than an equal share.
ROOM_FOR_OTHERS = 1.25
Item = TypeVar("Item")


class Shares:
    """How much each address takes of something that is limited: one may take all of it, and others still find room."""

    def __init__(self, most: float) -> None:
        self._most = most
        self._taken = Counter[str]()
        self.total = 0

    def has_room(self, peer: str, amount: int = 1, room: float = 1.0) -> bool:
        """Whether an address may take so much more; ``room``: of so many times the limit."""
        total, peers = self.total + amount, len(self._taken) + (peer not in self._taken)
        is_below_share = self._taken[peer] + amount <= self._most / peers
        return total <= room * self._most or (is_below_share and total <= ROOM_FOR_OTHERS * self._most)

    def add(self, peer: str, amount: int = 1) -> None:
        """Counts what an address takes, or gives back."""
        self.total += amount
        self._taken[peer] += amount
        if not self._taken[peer]:
            del self._taken[peer]

    def of(self, peer: str) -> int:
        """How much an address has taken."""
        return self._taken[peer]


class Requests(Shares):
    """The inference requests in progress, over all protocols of a process."""

    def check(self, peer: str) -> None:
        """Rejects a request of an address if there are too many.

        Raises:
            RequestError: 429.
        """
        if not self.has_room(peer):
            raise too_many_requests()

    @contextlib.contextmanager
    def admitted(self, peer: str) -> Iterator[None]:
        """Counts a request of an address while it is in progress; raises as ``check``."""
        self.check(peer)
        self.add(peer)
        try:
            yield
        finally:
            self.add(peer, -1)


def too_many_requests() -> RequestError:
    return RequestError("the server handles too many requests: try again later", 429, retry_after=1)


class ByAddress(Generic[Item]):
    """What waits for its client. If there is too much, the oldest one of the address that has most gives way."""

    def __init__(self) -> None:
        # Oldest first, each with its address; and those of each address.
        self._items: dict[Item, str] = {}
        self._of_addresses: dict[str, dict[Item, None]] = {}

    def __len__(self) -> int:
        return len(self._items)

    def __iter__(self) -> Iterator[Item]:
        return iter(list(self._items))

    def __contains__(self, item: Item) -> bool:
        return item in self._items

    def count(self, address: str) -> int:
        """How many are of an address."""
        return len(self._of_addresses.get(address, ()))

    def add(self, address: str, item: Item) -> None:
        self._items[item] = address
        self._of_addresses.setdefault(address, {})[item] = None

    def remove(self, item: Item) -> None:
        """Removes one, if it is there."""
        if (address := self._items.pop(item, None)) is not None:
            del self._of_addresses[address][item]
            if not self._of_addresses[address]:
                del self._of_addresses[address]

    def busiest(self, amount: Callable[[str], int] | None = None) -> str:
        """The address that has most of them, or of an amount; there must be some."""
        return max(self._of_addresses, key=amount or self.count)

    def oldest(self, address: str) -> Item:
        """The oldest one of an address that has some."""
        return next(iter(self._of_addresses[address]))


class Arriving(ByAddress[asyncio.Timeout]):
    """What still arrives from clients: the timeout of each."""

    def reject(self, timeout: asyncio.Timeout) -> bool:
        """Removes one, and ends it now; returns whether it had not ended."""
        self.remove(timeout)
        if has_time := not timeout.expired():
            timeout.reschedule(0)
        return has_time

    def reject_oldest(self, amount: Callable[[str], int] | None = None) -> bool:
        """Rejects the oldest one of the address that has most of them, or of an amount; returns whether there was one."""
        while self:
            if self.reject(self.oldest(self.busiest(amount))):
                return True
        return False

    def end_all(self) -> None:
        """Ends all, as if their time were over."""
        for timeout in self:
            if not timeout.expired():
                timeout.reschedule(0)
