"""Servers of two versions behind the proxy of one machine, with a load: what a rollout sees, without a model.

A server exports the predictor's metrics by the same library, and answers V1 by a rule: a text has the label whose position its length
gives. Faults are set while it runs.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import random
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from pipelines.proxy import Proxy
from tests.support import http_server

# The bounds of ``goemotions.serving.metrics``, which registers its metrics when it is imported.
SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)


class Version(http_server.Server):
    """A server of one version; the attributes are its faults."""

    def __init__(self, number: str, labels: Sequence[str], model_name: str) -> None:
        super().__init__(Handler)
        self.number, self.labels, self.path = number, labels, f"/v1/models/{model_name}:predict"
        self.delay = self.errors = self.rejections = self.rejected_copies = 0.0
        self.is_ready, self.shift, self.lacks_scores = True, 0, False
        self.random = random.Random(number)
        registry = self.registry = CollectorRegistry()
        self.requests = Counter("goemotions_requests_total", "", ["protocol", "outcome"], registry=registry)
        self.seconds = Histogram("goemotions_request_seconds", "", ["protocol", "code"], buckets=SECONDS, registry=registry)
        self.texts = Histogram("goemotions_request_texts", "", buckets=(1, 10), registry=registry)
        self.predictions = Counter("goemotions_predictions_total", "", ["label"], registry=registry)
        for label in labels:
            self.predictions.labels(label)
        Gauge("goemotions_model_info", "", ["version", "run"], registry=registry).labels(number, "r").set(1)
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()

    address = http_server.Server.url

    def answer(self, text: str) -> dict[str, Any]:
        chosen = (len(text) + self.shift) % len(self.labels)
        scores = {label: 0.9 if position == chosen else 0.02 for position, label in enumerate(self.labels)}
        if self.lacks_scores:
            # JSON has no NaN, which overflows make.
            return {"labels": [self.labels[chosen]], "scores": dict.fromkeys(self.labels)}
        return {"labels": [self.labels[chosen]], "scores": scores}


class Handler(http_server.Handler):
    server: Version

    def do_GET(self) -> None:
        if self.path == "/metrics":
            return self.send(200, generate_latest(self.server.registry))
        return self.send(200 if self.server.is_ready else 503, b"{}")

    def do_POST(self) -> None:
        server, started = self.server, time.perf_counter()
        texts = json.loads(self.body())["instances"]
        is_copy = "goemotions-copy" in self.headers
        protocol = "copy" if is_copy else "v1"
        time.sleep(0 if is_copy else server.delay)
        fails = not is_copy and server.random.random() < server.errors
        rejects = server.random.random() < (server.rejected_copies if is_copy else server.rejections)
        outcome, status = ("server", 500) if fails else ("client", 400) if rejects else ("ok", 200)
        answers = [server.answer(text) for text in texts]
        server.requests.labels(protocol, outcome).inc()
        server.seconds.labels(protocol, status).observe(time.perf_counter() - started)
        if not is_copy:
            server.texts.observe(len(texts))
            for answer in answers:
                server.predictions.labels(answer["labels"][0]).inc()
        content = {"predictions": answers, "model_version": server.number}
        self.send(status, json.dumps(content).encode())


@dataclass
class Machine:
    """The proxy, its servers by the versions' numbers, and a load of requests through the proxy."""

    proxy: Proxy
    port: int
    versions: dict[str, Version]
    path: str
    paused: threading.Event = field(default_factory=threading.Event)
    ended: threading.Event = field(default_factory=threading.Event)

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def shares(self) -> tuple[str, str, int]:
        shares = self.proxy.shares
        return shares["stable"], shares["canary"], shares["percent"]

    def load(self) -> None:
        """Sends texts of varying length until the end."""
        connection, generator = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10), random.Random(1)
        while not self.ended.is_set():
            time.sleep(0.002)
            if self.paused.is_set():
                continue
            body = json.dumps({"instances": ["x" * generator.randrange(1, 100)]})
            connection.request("POST", self.path, body, {"Content-Type": "application/json"})
            connection.getresponse().read()


@contextmanager
def machine(champion: str, challenger: str, labels: Sequence[str], model_name: str, clients: int = 2) -> Iterator[Machine]:
    """A proxy whose traffic goes to the champion, and a load."""
    versions = {number: Version(number, labels, model_name) for number in (champion, challenger)}
    proxy = Proxy(champion, {number: version.address for number, version in versions.items()}, seed=3)
    loop = asyncio.new_event_loop()
    listening = loop.run_until_complete(proxy.serve())
    threading.Thread(target=loop.run_forever, daemon=True).start()
    running = Machine(proxy, listening.sockets[0].getsockname()[1], versions, versions[champion].path)
    threads = [threading.Thread(target=running.load, daemon=True) for _ in range(clients)]
    for thread in threads:
        thread.start()
    try:
        yield running
    finally:
        running.ended.set()
        for thread in threads:
            thread.join()
        loop.call_soon_threadsafe(lambda: [task.cancel() for task in asyncio.all_tasks(loop)])
        loop.call_soon_threadsafe(loop.call_later, 0.05, loop.stop)
        for version in versions.values():
            version.shutdown()
