"""Where a rollout reads the counters of a service: from its servers, or from Prometheus."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Protocol

from goemotions.errors import MonitoringUnavailable
from goemotions.monitoring import counters, http, prometheus_api
from goemotions.monitoring.counters import STARTED
from goemotions.monitoring.exposition import Sample, finite, parse

INFO = "goemotions_model_info"
METRICS = (
    INFO, STARTED, "goemotions_requests_total", "goemotions_request_seconds_bucket", "goemotions_request_texts_sum",
    "goemotions_predictions_total", "goemotions_shadow_texts_total",
)  # fmt: skip


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
                samples += list(parse(address, http.get(f"{address}/metrics").decode(errors="replace"), METRICS))
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
        samples = prometheus_api.query(self._address, self.query, lambda result: [_of_prometheus(one) for one in result])
        if not samples:
            raise MonitoringUnavailable(f"Prometheus has no series for {self.query}: check its targets")
        # Several jobs may scrape the same server.
        return counters.newest(samples)


def server_of_version(samples: Iterable[Sample]) -> dict[str, str]:
    """One server of each version, by the version's number; of samples that ``Scrape`` read."""
    return {dict(one.labels)["version"]: one.instance for one in samples if one.name == INFO and one.value == 1}


def _of_prometheus(series: Any) -> Sample:
    labels = dict(series["metric"])
    name, instance = labels.pop("__name__"), labels.get("instance", "") or labels.get("pod", "")
    own = {"protocol", "outcome", "code", "le", "label", "labels", "version"}
    kept = tuple(sorted((key, str(value)) for key, value in labels.items() if key in own))
    return Sample(str(instance), str(name), kept, finite(series["value"][1]))
