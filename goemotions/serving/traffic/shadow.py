"""A copy of a sample of the requests to another server, a challenger: its answers are compared and counted, and never returned.

A response waits for nothing here: it is queued when it is ready, and dropped if the queue is full. A copy has the texts and the
parameters of its request, of its headers the id alone, and one that says that it is a copy: a copy is not copied again.
"""

from __future__ import annotations

import http.client
import logging
import queue
import random
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import orjson

from goemotions import defaults, outages
from goemotions.prediction.predictor import Options, Prediction
from goemotions.serving import metrics
from goemotions.serving.http import openapi
from goemotions.serving.limits import ShadowSettings
from goemotions.serving.protocols import request_ids, schema

logger = logging.getLogger(__name__)
# Copies that wait, texts per copy, and copies at once.
QUEUE, TEXTS, THREADS = 64, 32, 2
TIMEOUT_SECONDS = 5.0
ANSWER_BYTES = 2 * 2**20
# Of the challenger in the life of a server: each has counters of its own.
MOST_VERSIONS = 100


class _Rejected(Exception):
    """The challenger rejected a copy of a request that this server has answered."""


@dataclass(frozen=True)
class _Copy:
    """A request and this server's answers: probabilities float32 [n, labels], and n predictions."""

    texts: Sequence[str]
    options: Options
    probabilities: np.ndarray = field(repr=False)
    predictions: Sequence[Prediction] = field(repr=False)
    request_id: str = ""


class Shadow:
    """Sends copies to a challenger and counts how its answers differ.

    Args:
        settings: where to, and how many.
        name: of the model, in the path of the challenger.
        labels: those of the model, in the order of its probabilities.
    """

    def __init__(self, settings: ShadowSettings, name: str, labels: Sequence[str]) -> None:
        self._share = settings.shadow_percent / 100
        self._address = urlsplit(settings.shadow_url)
        root = self._address.path.rstrip("/")
        self._path = f"{root}{openapi.v1_path(name)}:predict"
        self._metadata_path = root + openapi.v2_paths(name, "")[0]
        self._labels = labels
        self._versions: set[str] = set()
        self._queue: queue.Queue[_Copy] = queue.Queue(QUEUE)
        for number in range(THREADS):
            threading.Thread(target=self._work, name=f"shadow-{number}", daemon=True).start()

    def offer(
        self,
        texts: Sequence[str],
        options: Options,
        probabilities: np.ndarray,
        predictions: Sequence[Prediction],
        request_id: str = "",
    ) -> None:
        """Queues a copy of a request if it is in the sample; drops it if the queue is full. The first texts of a large one suffice."""
        if random.random() >= self._share:
            return
        try:
            self._queue.put_nowait(_Copy(texts[:TEXTS], options, probabilities[:TEXTS], predictions[:TEXTS], request_id))
        except queue.Full:
            metrics.SHADOW_REQUESTS.labels("dropped").inc()

    def _work(self) -> None:
        connection = None
        while True:
            copy = self._queue.get()
            try:
                connection = connection or self._connect()
                self._compare(copy, self._send(connection, copy))
                outcome = "compared"
            except _Rejected:
                outcome = "rejected"
            except Exception as error:
                # What a challenger answers must not end the thread, and its text is not logged.
                logger.warning("a copy was not compared: %s", type(error).__name__)
                connection, outcome = None, "failed"
            metrics.SHADOW_REQUESTS.labels(outcome).inc()

    def _connect(self) -> http.client.HTTPConnection:
        kind = http.client.HTTPSConnection if self._address.scheme == "https" else http.client.HTTPConnection
        return kind(self._address.hostname or "", self._address.port, timeout=TIMEOUT_SECONDS)

    def _send(self, connection: http.client.HTTPConnection, copy: _Copy) -> Any:
        parameters = {"threshold": copy.options.threshold, "all_scores": True}
        if copy.options.top_k is not None:
            parameters["top_k"] = copy.options.top_k
        body = orjson.dumps({"instances": copy.texts, "parameters": parameters})
        # In the request logs of both servers, the answers to a text have one id.
        given = {request_ids.HEADER: copy.request_id} if copy.request_id else {}
        connection.request("POST", self._path, body, {"Content-Type": openapi.JSON, defaults.COPY_HEADER: "shadow", **given})
        response = connection.getresponse()
        content = response.read(ANSWER_BYTES + 1)
        if outages.is_refusal(response.status):
            metrics.SHADOW_TEXTS.labels(self._bounded(self._version(connection)), "rejected").inc(len(copy.texts))
            raise _Rejected
        if response.status != 200 or len(content) > ANSWER_BYTES:
            raise ValueError(f"status {response.status}, {len(content)} bytes")
        return orjson.loads(content)

    def _version(self, connection: http.client.HTTPConnection) -> str:
        """The version of the challenger, which its errors do not name."""
        connection.request("GET", self._metadata_path)
        (version,) = orjson.loads(connection.getresponse().read(ANSWER_BYTES))["versions"]
        return str(version)

    def _bounded(self, version: str) -> str:
        """A version as counters name it.

        Raises:
            ValueError: there are more than ``MOST_VERSIONS``.
        """
        version = schema.shorten(version)
        if version not in self._versions and len(self._versions) >= MOST_VERSIONS:
            raise ValueError(f"more than {MOST_VERSIONS} versions")
        self._versions.add(version)
        return version

    def _compare(self, copy: _Copy, content: Any) -> None:
        theirs = [set(one["labels"]) for one in content["predictions"]]
        scores = np.array([[one["scores"][label] for label in self._labels] for one in content["predictions"]], dtype=float)
        # Nothing of an answer is counted unless all of it can be.
        if scores.shape != copy.probabilities.shape or not ((scores >= 0) & (scores <= 1)).all():
            raise ValueError("other scores")
        if not set().union(*theirs) <= set(self._labels):
            raise ValueError("other labels")
        version = self._bounded(content["model_version"])
        for own, other in zip(copy.predictions, theirs, strict=True):
            different = set(own["labels"]) ^ other
            metrics.SHADOW_TEXTS.labels(version, "different" if different else "same").inc()
            for label in different:
                metrics.SHADOW_LABELS.labels(version, label).inc()
        for difference in np.abs(scores - copy.probabilities).max(axis=1).tolist():
            metrics.SHADOW_SCORES.labels(version).observe(difference)
