"""A stand-in for the HTTP API of Prometheus: instant queries of increases, and any other page, such as /metrics of a server."""

from __future__ import annotations

import contextlib
import json
import math
import re
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from urllib.parse import parse_qs, urlsplit

import promql_parser

from goemotions.evaluation.traffic import Traffic
from goemotions.monitoring.drift import window
from goemotions.monitoring.drift.prometheus_series import MODEL, SERVICE
from goemotions.monitoring.drift.window import Counts, seconds_of
from tests.support import http_server

INCREASE = re.compile(
    r"sum by \((?P<sum>[\w, ]+)\) \(max by \((?P<max>[\w, ]+)\) \(increase\((?P<name>\w+)(?P<selector>\{.*\})?\[(?P<window>\w+)\]\)\)\)"
)
KNOWN = re.compile(rf'count by \({SERVICE}\) \(last_over_time\({MODEL}(\{{namespace="[^"]+"\}})?\[\w+\]\)\)')
SCRAPED = re.compile(rf'max\(max_over_time\(up\{{(namespace="[^"]+",)?{SERVICE}(?:="(?P<service>[^"]+)"|!="")\}}\[\w+\]\)\)')
SCORED = re.compile(rf"count by \(namespace\) \(increase\({window.ROWS}(?P<selector>\{{.*\}})\[(?P<window>\w+)\]\) > 0\)")
# The increases of one metric: the labels of each series, and how much it grew.
Increases = Mapping[str, Sequence[tuple[Mapping[str, str], float]]]


def of_traffic(traffic: Traffic, version: str) -> dict[str, Counts]:
    """The increases of a server's counters for traffic."""
    content = traffic.to_json()
    labels = content["labels"].items()
    features = content["features"].items()
    return {
        window.ROWS: [({"version": version}, traffic.rows)],
        window.PREDICTIONS: [({"version": version, "label": name}, row["predicted"]) for name, row in labels],
        window.TOTAL: [({"version": version, "label": name}, row["total_sum"]) for name, row in labels],
        window.PREDICTED: [({"version": version, "label": name}, row["predicted_sum"]) for name, row in labels],
        window.SCORES: [
            ({"version": version, "label": name, "bin": bound}, count)
            for name, row in labels
            for bound, count in row["scores"].items()
        ],
        window.TEXT_FEATURES: [
            ({"version": version, "feature": name, "bin": bound}, count)
            for name, counts in features
            for bound, count in counts.items()
        ],
    }


class Prometheus(http_server.Server):
    """Serves on a free port of this machine; ``pages`` by path, ``queries`` that it was sent, what is ``beside`` a result, and how far
    its clock is ``behind``, in seconds. Its series have no samples after its present time. ``services`` are those that it has seen,
    with the largest value of ``up`` in the window, if they had targets then."""

    def __init__(self, increases: Increases, pages: Mapping[str, str] | None = None) -> None:
        super().__init__(Handler)
        self.increases = increases
        self.pages = dict(pages or {})
        self.queries: list[str] = []
        self.beside: dict[str, Any] = {}
        self.behind = 0.0
        self.services: dict[str, float | None] = {}


class Handler(http_server.Handler):
    """As the documentation has it: https://prometheus.io/docs/prometheus/latest/querying/api/#instant-queries"""

    server: Prometheus

    def do_GET(self) -> None:
        split = urlsplit(self.path)
        if split.path in self.server.pages:
            self._send(200, self.server.pages[split.path], "text/plain; version=0.0.4; charset=utf-8")
        elif split.path == "/api/v1/query":
            self._query(parse_qs(split.query))
        else:
            self._send(404, "404 page not found\n", "text/plain; charset=utf-8")

    def _query(self, parameters: dict[str, list[str]]) -> None:
        query, now = parameters["query"][0], time.time() - self.server.behind
        if query == "vector(time())":
            self._succeed([{"metric": {}, "value": [now, f"{now:.3f}"]}])
            return
        at = float(parameters["time"][0])
        self.server.queries.append(query)
        try:
            promql_parser.parse(query)
        except ValueError as error:
            content = {"status": "error", "errorType": "bad_data", "error": f'invalid parameter "query": {error}'}
            self._send(400, json.dumps(content), "application/json")
            return
        if KNOWN.fullmatch(query):
            seen = [{SERVICE: service} if service else {} for service in self.server.services]
            self._succeed([{"metric": labels, "value": [at, "1"]} for labels in seen])
            return
        if scraped := SCRAPED.fullmatch(query):
            wanted = [scraped["service"]] if scraped["service"] else filter(None, self.server.services)
            values = [value for value in map(self.server.services.get, wanted) if value is not None]
            self._succeed([{"metric": {}, "value": [at, repr(max(values))]}] if values else [])
            return
        if match := SCORED.fullmatch(query):
            rows = [one for one in self._increases(window.ROWS, match, at) if one[1] > 0]
            self._succeed([{"metric": labels, "value": [at, "1"]} for labels, _ in _grouped(rows, "namespace", len)])
            return
        match = INCREASE.fullmatch(query)
        assert match, query
        series = self._increases(match["name"], match, at)
        each = _grouped(series, match["max"], max)
        result = [{"metric": labels, "value": [at, repr(value)]} for labels, value in _grouped(each, match["sum"], math.fsum)]
        self._succeed(result)

    def _increases(self, name: str, match: re.Match[str], at: float) -> list[tuple[Mapping[str, str], float]]:
        """The increases of a counter in the services that a query selects; a series without a namespace is of any."""
        is_past = at - seconds_of(match["window"]) < time.time() - self.server.behind
        wanted = re.search(r'namespace="([^"]+)"', match["selector"] or "")
        series = self.server.increases.get(name, ()) if is_past else ()
        return [one for one in series if not wanted or one[0].get("namespace", wanted[1]) == wanted[1]]

    def _succeed(self, result: list[dict[str, Any]]) -> None:
        content = {"status": "success", **self.server.beside, "data": {"resultType": "vector", "result": result}}
        self._send(200, json.dumps(content), "application/json")

    def _send(self, status: int, content: str, content_type: str) -> None:
        self.send(status, content.encode(), {"Content-Type": content_type})


def _grouped(
    series: Sequence[tuple[Mapping[str, str], float]], by: str, operator: Callable[[list[float]], float]
) -> list[tuple[dict[str, str], float]]:
    groups: dict[tuple[tuple[str, str], ...], list[float]] = {}
    for labels, value in series:
        groups.setdefault(tuple((name, labels[name]) for name in by.split(", ") if name in labels), []).append(value)
    return [(dict(key), operator(values)) for key, values in groups.items()]


def serving(increases: Increases, pages: Mapping[str, str] | None = None) -> contextlib.AbstractContextManager[Prometheus]:
    return http_server.running(Prometheus(increases, pages))
