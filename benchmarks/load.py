"""A load generator: HTTP/1.1 clients with persistent connections, light enough to share two cores with the measured server."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import orjson
import uvloop

HOST = "127.0.0.1"
# Instead of a status: the connection was refused; it broke after the request was sent.
REFUSED, LOST = 0, -1
V1 = "/v1/models/goemotions:predict"


@dataclass
class Outcome:
    """Seconds and status (or REFUSED, LOST) of each request, why those were lost, and the seconds of the whole run."""

    seconds: list[float] = field(default_factory=list)
    statuses: list[int] = field(default_factory=list)
    losses: Counter[str] = field(default_factory=Counter)
    duration: float = 0.0

    def lost(self) -> str:
        """The number of lost requests, with the reasons."""
        return f"{self.losses.total():,} lost" + (f" ({', '.join(self.losses)})" if self.losses else "")

    def rate(self, status: int = 200) -> float:
        """Requests per second with a status."""
        return self.statuses.count(status) / self.duration

    def percentile(self, percent: float, status: int = 200) -> float:
        """A percentile of the latency, in seconds, of the requests with a status; NaN if there are none."""
        taken = [seconds for seconds, received in zip(self.seconds, self.statuses, strict=True) if received == status]
        return float(np.percentile(taken, percent)) if taken else float("nan")


def requests(texts: Sequence[str], size: int) -> list[bytes]:
    """V1 requests with ``size`` texts each, head and body."""
    return [post(orjson.dumps({"instances": list(texts[start : start + size])})) for start in range(0, len(texts), size)]


def post(body: bytes, path: str = V1) -> bytes:
    head = f"POST {path} HTTP/1.1\r\nHost: {HOST}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


class Client(asyncio.Protocol):
    """One connection, one request at a time, from a loopback address; empty for that which the system chooses."""

    def __init__(self, address: str = "") -> None:
        self._address = address
        self._buffer = bytearray()
        self._waiting: asyncio.Future[tuple[int, bytes]]
        self._transport: Any = None

    def connection_made(self, transport: Any) -> None:
        self._transport, self._waiting = transport, asyncio.get_running_loop().create_future()

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            return
        head = bytes(self._buffer[:end]).lower()
        start = head.index(b"content-length:") + 15
        length = int(head[start : head.find(b"\r\n", start) % (len(head) + 1)])
        if len(self._buffer) < end + 4 + length:
            return
        body = bytes(self._buffer[end + 4 : end + 4 + length])
        del self._buffer[: end + 4 + length]
        if b"connection: close" in head:
            self.close()
        if not self._waiting.done():
            self._waiting.set_result((int(head[9:12]), body))

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None
        if not self._waiting.done():
            self._waiting.set_exception(error or ConnectionResetError("the server closed the connection"))

    def close(self) -> None:
        if self._transport:
            self._transport.close()
            self._transport = None

    async def send(self, request: bytes, port: int) -> tuple[int, bytes]:
        """Status and body of the response; connects if there is no connection."""
        loop = asyncio.get_running_loop()
        if self._transport and not self._transport.is_closing():
            self._waiting = loop.create_future()
        else:
            self._buffer.clear()
            await loop.create_connection(lambda: self, HOST, port, local_addr=(self._address, 0) if self._address else None)
        # A server may reject a connection before it has read a request.
        if self._transport:
            self._transport.write(request)
        return await self._waiting


async def _timed(client: Client, request: bytes, port: int, outcome: Outcome, started: float) -> None:
    try:
        status, _ = await client.send(request, port)
    except ConnectionRefusedError:
        status = REFUSED
    except OSError as error:
        status = LOST
        outcome.losses[f"{type(error).__name__}: {error}"] += 1
    outcome.seconds.append(time.perf_counter() - started)
    outcome.statuses.append(status)


def closed(
    port: int, wire: Sequence[bytes], *, clients: int, count: int = 0, seconds: float = 0.0, address: str = ""
) -> Outcome:
    """Closed loop: each client sends its next request after the response to the last; ``count`` requests, or for some seconds."""

    async def run() -> Outcome:
        outcome, started = Outcome(), time.perf_counter()
        upcoming: Iterator[bytes] = itertools.islice(itertools.cycle(wire), count) if count else itertools.cycle(wire)

        async def work() -> None:
            client = Client(address)
            for request in upcoming:
                now = time.perf_counter()
                if seconds and now - started > seconds:
                    break
                await _timed(client, request, port, outcome, now)
                if outcome.statuses[-1] == REFUSED:
                    break
            client.close()

        await asyncio.gather(*(work() for _ in range(clients)))
        outcome.duration = time.perf_counter() - started
        return outcome

    return uvloop.run(run())


def responses(port: int, wire: Sequence[bytes], *, clients: int) -> list[bytes]:
    """The body of each response, in the order of the requests."""

    async def run() -> list[bytes]:
        bodies, upcoming = [b""] * len(wire), iter(enumerate(wire))

        async def work() -> None:
            client = Client()
            for number, request in upcoming:
                status, bodies[number] = await client.send(request, port)
                if status != 200:
                    raise ValueError(f"request {number} got status {status}")
            client.close()

        await asyncio.gather(*(work() for _ in range(clients)))
        return bodies

    return uvloop.run(run())


def opened(port: int, wire: Sequence[bytes], *, rate: float, seconds: float, seed: int = 0, address: str = "") -> Outcome:
    """Open loop: requests arrive at random (Poisson), ``rate`` per second, whether or not earlier ones are complete."""

    async def run() -> Outcome:
        outcome, generator = Outcome(), np.random.default_rng(seed)
        idle: list[Client] = []
        running: set[asyncio.Task[None]] = set()

        async def one(request: bytes, due: float) -> None:
            client = idle.pop() if idle else Client(address)
            await _timed(client, request, port, outcome, due)
            idle.append(client)

        started = due = time.perf_counter()
        for request in itertools.cycle(wire):
            due += generator.exponential(1 / rate)
            if due - started > seconds:
                break
            if (pause := due - time.perf_counter()) > 0:
                await asyncio.sleep(pause)
            task = asyncio.create_task(one(request, due))
            running.add(task)
            task.add_done_callback(running.discard)
        outcome.duration = time.perf_counter() - started
        await asyncio.gather(*running)
        for client in idle:
            client.close()
        return outcome

    return uvloop.run(run())
