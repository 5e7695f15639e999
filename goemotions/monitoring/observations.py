"""What the versions of a service do, from the counters that its servers export: read from the servers, or from Prometheus."""

from __future__ import annotations

import http.client
import json
import math
import re
import time
import urllib.error
import urllib.parse
import urllib.request
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from goemotions import strict_json
from goemotions.errors import MonitoringUnavailable

TIMEOUT_SECONDS = 10.0
# Of an answer.
MOST_BYTES = 2**25
ACCEPT = {"Accept": "text/plain, application/json"}
INFO = "goemotions_model_info"
METRICS = (
    INFO, "goemotions_requests_total", "goemotions_request_seconds_bucket", "goemotions_request_texts_sum",
    "goemotions_predictions_total", "goemotions_shadow_texts_total",
)  # fmt: skip
# The protocol of copies and of the texts that a rollout sends itself: no traffic.
COPY = "copy"
LINE = re.compile(r"(?P<name>[a-zA-Z_:][\w:]*)(?:\{(?P<labels>.*)\})? (?P<value>\S+)(?: \S+)?")
LABEL = re.compile(r'([a-zA-Z_]\w*)="((?:[^"\\]|\\.)*)"')
Key = tuple[str, str, tuple[tuple[str, str], ...]]
ESCAPED = {r"\\": "\\", r"\"": '"', r"\n": "\n"}


@dataclass(frozen=True)
class Sample:
    """The value of one series of one server; ``labels`` in the order of their names."""

    instance: str
    name: str
    labels: tuple[tuple[str, str], ...]
    value: float


@dataclass
class Traffic:
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

    def add(self, more: Traffic) -> None:
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
    def from_json(cls, content: dict[str, Any]) -> Traffic:
        seconds = {
            name: {float(bound): count for bound, count in counts.items()} for name, counts in content["seconds"].items()
        }
        traffic = cls()
        traffic.add(cls(**content | {"seconds": seconds}))
        return traffic

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


class Source(Protocol):
    """Where counters are read."""

    def read(self) -> list[Sample]:
        """The present samples of ``METRICS`` of every server.

        Raises:
            MonitoringUnavailable: there are none now; there may be later.
        """


class Scrape:
    """The servers themselves.

    Args:
        targets: returns their addresses, such as http://10.0.0.3:8080.
    """

    def __init__(self, targets: Callable[[], list[str]]) -> None:
        self._targets = targets

    def read(self) -> list[Sample]:
        samples: list[Sample] = []
        reasons: list[str] = []
        for address in self._targets():
            try:
                samples += parse(address, get(f"{address}/metrics").decode(errors="replace"))
            except (MonitoringUnavailable, ValueError) as error:
                reasons.append(str(error))
        if not samples:
            raise MonitoringUnavailable("; ".join(reasons) or "there is no server to read metrics from")
        return samples


class Prometheus:
    """A Prometheus server.

    Args:
        address: such as http://prometheus:9090.
        selector: label matchers of the servers, as ``ServiceMonitor`` and relabelling name them.
    """

    def __init__(self, address: str, selector: str = "") -> None:
        matchers = [f'__name__=~"{"|".join(METRICS)}"', *filter(None, [selector])]
        self.query = f"{{{','.join(matchers)}}}"
        self._url = f"{address.rstrip('/')}/api/v1/query?{urllib.parse.urlencode({'query': self.query})}"

    def read(self) -> list[Sample]:
        try:
            content = strict_json.parse(get(self._url), "the answer", MOST_BYTES)
            samples = [_of_prometheus(one) for one in content["data"]["result"]]
        except (ValueError, KeyError, TypeError, IndexError) as error:
            raise MonitoringUnavailable(f"Prometheus answered in an unknown form ({type(error).__name__})") from error
        if not samples:
            raise MonitoringUnavailable(f"Prometheus has no series for {self.query}: check its targets")
        return samples


class Increases:
    """Turns samples into what each version did since the last ones. If one counter of a server fell, it has started again, and all of
    its counters are counted from 0."""

    def __init__(self) -> None:
        self._before: dict[Key, float] = {}
        self._known: set[tuple[str, str]] = set()

    def update(self, samples: Iterable[Sample]) -> dict[str, Traffic]:
        """The traffic of each version, by its number; of a server that is new, from the next samples on."""
        samples = list(samples)
        versions = {one.instance: dict(one.labels)["version"] for one in samples if one.name == INFO and one.value == 1}
        restarted = {one.instance for one in samples if one.value < self._before.get(_key(one), 0.0)}
        traffic: dict[str, Traffic] = defaultdict(Traffic)
        for one in samples:
            if one.instance not in versions or one.name == INFO:
                continue
            version = versions[one.instance]
            if (one.instance, version) in self._known:
                before = 0.0 if one.instance in restarted else self._before.get(_key(one), 0.0)
                traffic[version].count(one.name, dict(one.labels), one.value - before)
            self._before[_key(one)] = one.value
        self._known |= set(versions.items())
        return traffic


def _key(sample: Sample) -> Key:
    return sample.instance, sample.name, sample.labels


def addresses(samples: Iterable[Sample]) -> dict[str, str]:
    """One server of each version, by the version's number; of samples that ``Scrape`` read."""
    return {dict(one.labels)["version"]: one.instance for one in samples if one.name == INFO and one.value == 1}


def parse(instance: str, text: str, names: tuple[str, ...] = METRICS) -> Iterator[Sample]:
    """The samples of the metrics of these names in a server's text format."""
    for line in text.splitlines():
        if line.startswith(names) and (match := LINE.fullmatch(line)) and match["name"] in names:
            labels = sorted((name, _unescaped(value)) for name, value in LABEL.findall(match["labels"] or ""))
            yield Sample(instance, match["name"], tuple(labels), float(match["value"]))


def _unescaped(value: str) -> str:
    return re.sub(r"\\.", lambda one: ESCAPED.get(one[0], one[0]), value)


def _of_prometheus(series: Any) -> Sample:
    labels = dict(series["metric"])
    name, instance = labels.pop("__name__"), labels.get("instance", "") or labels.get("pod", "")
    own = {"protocol", "outcome", "code", "le", "label", "labels", "version"}
    kept = tuple(sorted((key, str(value)) for key, value in labels.items() if key in own))
    return Sample(str(instance), str(name), kept, float(series["value"][1]))


def get(url: str, body: bytes | None = None, headers: Mapping[str, str] = ACCEPT, seconds: float = TIMEOUT_SECONDS) -> bytes:
    """What a server answers to a GET, or with a body to a POST.

    Raises:
        MonitoringUnavailable: it does not respond, refuses, takes longer, or answers more than ``MOST_BYTES``.
    """
    request = urllib.request.Request(url, body, dict(headers))
    place, deadline, content = urllib.parse.urlsplit(url), time.monotonic() + seconds, bytearray()
    try:
        with urllib.request.urlopen(request, timeout=seconds) as response:  # nosec B310 # the scheme is checked
            while part := response.read1(2**16):
                content += part
                if len(content) > MOST_BYTES or time.monotonic() > deadline:
                    raise MonitoringUnavailable(
                        f"{place.hostname}:{place.port} answers more than {MOST_BYTES >> 20} MiB, or for more than {seconds:g} s"
                    )
            # `read1` does not notice that a response is cut.
            if response.length:
                raise http.client.IncompleteRead(b"", response.length)
    except (OSError, http.client.HTTPException) as error:
        raise MonitoringUnavailable(f"{place.hostname}:{place.port} does not respond ({error}): check the address") from error
    return bytes(content)
