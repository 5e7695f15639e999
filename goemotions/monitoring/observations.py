"""What the versions of a service do, from the counters that its servers export: read from the servers, or from Prometheus."""

from __future__ import annotations

import base64
import http.client
import logging
import math
import re
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from goemotions import strict_json
from goemotions.errors import MonitoringUnavailable

log = logging.getLogger(__name__)

T = TypeVar("T")
TIMEOUT_SECONDS = 10.0
# Of an answer.
MOST_BYTES = 2**25
ACCEPT = {"Accept": "text/plain, application/json"}
INFO = "goemotions_model_info"
METRICS = (
    INFO, "goemotions_requests_total", "goemotions_request_seconds_bucket", "goemotions_request_texts_sum",
    "goemotions_predictions_total", "goemotions_shadow_texts_total",
)  # fmt: skip
LINE = re.compile(r"(?P<name>[a-zA-Z_:][\w:]*)(?:\{(?P<labels>.*)\})? (?P<value>\S+)(?: \S+)?")
LABEL = re.compile(r'([a-zA-Z_]\w*)="((?:[^"\\]|\\.)*)"')
ESCAPED = {r"\\": "\\", r"\"": '"', r"\n": "\n"}


@dataclass(frozen=True)
class Sample:
    """The value of one series of one server; ``labels`` in the order of their names."""

    instance: str
    name: str
    labels: tuple[tuple[str, str], ...]
    value: float


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
                # All of a server's samples or none.
                samples += list(parse(address, get(f"{address}/metrics").decode(errors="replace")))
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
        self._address = address

    def read(self) -> list[Sample]:
        samples = query(self._address, self.query, lambda result: [_of_prometheus(one) for one in result])
        if not samples:
            raise MonitoringUnavailable(f"Prometheus has no series for {self.query}: check its targets")
        return _once(samples)


def query(
    address: str,
    text: str,
    read: Callable[[Any], T],
    time: float | None = None,
    warn: Callable[[str], None] = log.warning,
) -> T:
    """What ``read`` makes of the result of an instant query.

    Args:
        address: of Prometheus, or of what has its API.
        text: the query, whose result is a vector: VictoriaMetrics returns nothing else.
        read: gets the result.
        time: in seconds since the epoch, by default that of Prometheus's clock.
        warn: gets each reason for which the result may lack a part, such as a store of Thanos that does not respond.

    Raises:
        MonitoringUnavailable: Prometheus does not respond, refuses the query, or the result has another form.
    """
    parameters = {"query": text} | ({} if time is None else {"time": f"{time:.3f}"})
    try:
        url = f"{address.rstrip('/')}/api/v1/query?{urllib.parse.urlencode(parameters)}"
        answer = strict_json.parse(get(url), "the answer", MOST_BYTES)
        warnings = [*(answer.get("warnings") or ()), *(["a part of the storage is missing"] if answer.get("isPartial") else ())]
        for warning in warnings:
            warn(f"Prometheus warns: {str(warning)[:200]}")
        return read(answer["data"]["result"])
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise MonitoringUnavailable(f"Prometheus answered in an unknown form ({type(error).__name__})") from error


def server_of_version(samples: Iterable[Sample]) -> dict[str, str]:
    """One server of each version, by the version's number; of samples that ``Scrape`` read."""
    return {dict(one.labels)["version"]: one.instance for one in samples if one.name == INFO and one.value == 1}


def parse(instance: str, text: str, names: tuple[str, ...] = METRICS) -> Iterator[Sample]:
    """The samples of the metrics of these names in a server's text format.

    Raises:
        ValueError: a value is no finite number.
    """
    # Not ``splitlines``: a label may hold one of its other ends of lines.
    for line in text.split("\n"):
        if line.startswith(names) and (match := LINE.fullmatch(line)) and match["name"] in names:
            labels = sorted((name, _unescaped(value)) for name, value in LABEL.findall(match["labels"] or ""))
            yield Sample(instance, match["name"], tuple(labels), _finite(match["value"]))


def _unescaped(value: str) -> str:
    return re.sub(r"\\.", lambda one: ESCAPED.get(one[0], one[0]), value)


def _once(samples: Iterable[Sample]) -> list[Sample]:
    """Each series of a server once, although several jobs of a Prometheus may scrape it. Of a counter the larger value is the newer."""
    newest: dict[tuple[str, str, tuple[tuple[str, str], ...]], Sample] = {}
    for one in sorted(samples, key=lambda sample: sample.value):
        newest[one.instance, one.name, one.labels] = one
    return list(newest.values())


def _of_prometheus(series: Any) -> Sample:
    labels = dict(series["metric"])
    name, instance = labels.pop("__name__"), labels.get("instance", "") or labels.get("pod", "")
    own = {"protocol", "outcome", "code", "le", "label", "labels", "version"}
    kept = tuple(sorted((key, str(value)) for key, value in labels.items() if key in own))
    return Sample(str(instance), str(name), kept, _finite(series["value"][1]))


def _finite(value: str) -> float:
    """The number; evidence that is not one would never decide.

    Raises:
        ValueError: it is none, or not finite.
    """
    if not math.isfinite(number := float(value)):
        raise ValueError(f"a counter is {value}")
    return number


def get(url: str, body: bytes | None = None, headers: Mapping[str, str] = ACCEPT, seconds: float = TIMEOUT_SECONDS) -> bytes:
    """What a server answers to a GET, or with a body to a POST. User and password in the address are sent as basic authentication.

    Raises:
        MonitoringUnavailable: it does not respond, refuses, takes longer, or answers more than ``MOST_BYTES``.
    """
    parts, deadline, content = urllib.parse.urlsplit(url), time.monotonic() + seconds, bytearray()
    credentials, _, place = parts.netloc.rpartition("@")
    request = urllib.request.Request(parts._replace(netloc=place).geturl(), body, dict(headers))
    if credentials:
        encoded = base64.b64encode(urllib.parse.unquote(credentials).encode()).decode()
        # Not sent again to where a redirect leads.
        request.add_unredirected_header("Authorization", f"Basic {encoded}")
    try:
        with urllib.request.urlopen(request, timeout=seconds) as response:  # nosec B310 # the scheme is checked
            while part := response.read1(2**16):
                content += part
                if len(content) > MOST_BYTES or time.monotonic() > deadline:
                    raise MonitoringUnavailable(
                        f"{place} answers more than {MOST_BYTES >> 20} MiB, or for more than {seconds:g} s"
                    )
            # `read1` does not notice that a response is cut.
            if response.length:
                raise http.client.IncompleteRead(b"", response.length)
    except (OSError, http.client.HTTPException) as error:
        raise MonitoringUnavailable(f"{place} does not respond ({error}): check the address") from error
    return bytes(content)
