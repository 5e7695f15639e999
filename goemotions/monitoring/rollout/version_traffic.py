"""What each version of a service did between two readings of its servers' counters."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, NotRequired, TypedDict

from goemotions.monitoring import counters
from goemotions.monitoring.exposition import Sample
from goemotions.monitoring.rollout.sources import INFO

# The protocol of copies and of the texts that a rollout sends itself: no traffic.
COPY = "copy"


class StoredTraffic(TypedDict):
    """What is stored of a ``VersionTraffic``; what is not required was not counted before."""

    requests: dict[str, float]
    failures: dict[str, float]
    rejections: NotRequired[dict[str, float]]
    seconds: dict[str, dict[str, float]]
    texts: float
    labels: dict[str, float]
    copies: NotRequired[dict[str, dict[str, float]]]


@dataclass
class VersionTraffic:
    """What a version did in a time.

    Attributes:
        requests, failures: by protocol; failures are those that the server is to blame for, and those that it had no room for.
        rejections: by protocol, requests that were answered with another error (4xx), or whose client left.
        seconds: of successful requests, by protocol: how many took at most as long as each upper bound, by the bound.
        texts: their number.
        labels: how many texts were predicted to have each label.
        copies: texts that were also sent to a challenger: same labels, different, or rejected (4xx), by its version.
    """

    requests: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    failures: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    rejections: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    seconds: dict[str, dict[float, float]] = field(default_factory=lambda: defaultdict(lambda: defaultdict(float)))
    texts: float = 0.0
    labels: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    copies: dict[str, dict[str, float]] = field(default_factory=lambda: defaultdict(lambda: defaultdict(float)))

    def count(self, name: str, labels: dict[str, str], value: float) -> None:
        """Adds the increase of one series."""
        protocol = labels.get("protocol", "")
        if protocol == COPY:
            return
        if name == "goemotions_requests_total":
            self.requests[protocol] += value
            self.failures[protocol] += value * (labels.get("outcome") in ("server", "overload"))
            self.rejections[protocol] += value * (labels.get("outcome") == "client")
        elif name == "goemotions_request_seconds_bucket" and labels.get("code") == "200":
            self.seconds[protocol][float(labels["le"])] += value
        elif name == "goemotions_request_texts_sum":
            self.texts += value
        elif name == "goemotions_predictions_total":
            self.labels[labels["label"]] += value
        elif name == "goemotions_shadow_texts_total":
            self.copies[labels["version"]][labels["labels"]] += value

    def add(self, more: VersionTraffic) -> None:
        """Adds other traffic."""
        for name in ("requests", "failures", "rejections", "labels"):
            for key, value in getattr(more, name).items():
                getattr(self, name)[key] += value
        for name in ("seconds", "copies"):
            for key, counts in getattr(more, name).items():
                for inner, value in counts.items():
                    getattr(self, name)[key][inner] += value
        self.texts += more.texts

    def to_json(self) -> dict[str, Any]:
        return {name: json.loads(json.dumps(value)) for name, value in vars(self).items()}

    @classmethod
    def from_json(cls, content: StoredTraffic) -> VersionTraffic:
        seconds = {
            name: {float(bound): count for bound, count in counts.items()} for name, counts in content["seconds"].items()
        }
        traffic = cls()
        values: dict[str, Any] = {**content, "seconds": seconds}
        traffic.add(cls(**values))
        return traffic

    def uncounted(self, labels: Iterable[str]) -> str:
        """The metric that is not there although there were requests; empty if durations, texts and the labels were counted."""
        counted = {
            "goemotions_request_seconds_bucket": bool(self.seconds),
            "goemotions_request_texts_sum": self.texts > 0,
            "goemotions_predictions_total": self.labels.keys() >= set(labels),
        }
        return next((name for name, is_counted in counted.items() if not is_counted), "")

    def quantile(self, share: float) -> float:
        """The duration, in seconds, that this share of the successful requests did not exceed; NaN without requests.

        Between two bounds it is interpolated, as by Prometheus's ``histogram_quantile``.
        """
        total: dict[float, float] = defaultdict(float)
        for counts in self.seconds.values():
            for bound, count in counts.items():
                total[bound] += count
        wanted, below, before = share * total.get(math.inf, 0.0), 0.0, 0.0
        for bound, count in sorted(total.items()):
            if count >= wanted > 0:
                return below if bound == math.inf else below + (bound - below) * (wanted - before) / max(count - before, 1e-9)
            below, before = bound, count
        return math.nan


class Increases:
    """Turns samples into what each version did since the last ones."""

    def __init__(self) -> None:
        self._before: list[Sample] = []
        self._versions: dict[str, str] = {}

    def update(self, samples: Iterable[Sample]) -> dict[str, VersionTraffic]:
        """The traffic of each version, by its number; of a server that was not among the last samples, from the next ones on.

        What a server did while it was missing would be compared with what another one did in this window.
        """
        samples = counters.not_older(self._before, list(samples))
        versions = {one.instance: dict(one.labels)["version"] for one in samples if one.name == INFO and one.value == 1}
        traffic: dict[str, VersionTraffic] = defaultdict(VersionTraffic)
        for one in counters.increases(self._before, samples):
            version = versions.get(one.instance)
            if version is not None and self._versions.get(one.instance) == version:
                traffic[version].count(one.name, dict(one.labels), one.value)
        self._before, self._versions = samples, versions
        return traffic
