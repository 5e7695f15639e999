"""What is read of the servers' metrics: from them, or from Prometheus."""

from __future__ import annotations

import base64
import contextlib
import json
import math
import socket
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator
from dataclasses import replace

import promql_parser
import pytest

from goemotions.errors import BadArgument, MonitoringUnavailable
from goemotions.monitoring import http, prometheus_api
from goemotions.monitoring.counters import STARTED
from goemotions.monitoring.exposition import Sample, parse
from goemotions.monitoring.rollout.analysis import Analysis
from goemotions.monitoring.rollout.answers import Expected
from goemotions.monitoring.rollout.plan import Plan
from goemotions.monitoring.rollout.sources import INFO, METRICS, Prometheus, Scrape
from goemotions.monitoring.rollout.version_traffic import Increases, VersionTraffic
from tests.support import http_server
from tests.support.versions import Version

# One with a quote and an end of a line of Unicode.
ODD = 'quo"ted\u2028label'
LABELS = ("joy", ODD, "other")


@pytest.fixture
def server() -> Iterator[Version]:
    """A server that has answered three requests and failed one, and three copies."""
    running = Version("7", LABELS, "goemotions")
    for protocol, outcome, code in (("v1", "ok", 200), ("v1", "ok", 200), ("v2", "ok", 200), ("v1", "server", 500)):
        running.requests.labels(protocol, outcome).inc()
        running.seconds.labels(protocol, code).observe(0.003)
    for _ in range(3):
        running.requests.labels("copy", "server").inc()
        running.seconds.labels("copy", 200).observe(5)
    running.texts.observe(4)
    running.predictions.labels(ODD).inc(3)
    yield running
    running.shutdown()


def since_start(samples: list[Sample]) -> dict[str, VersionTraffic]:
    """All that was counted: the server is seen first with every counter at 0."""
    increases = Increases()
    increases.update(
        [Sample(one.instance, one.name, one.labels, float(one.name == "goemotions_model_info")) for one in samples]
    )
    return increases.update(samples)


def check(traffic: VersionTraffic) -> None:
    assert (traffic.requests, traffic.failures) == ({"v1": 3, "v2": 1}, {"v1": 1, "v2": 0})
    assert (traffic.texts, traffic.labels) == (4, {"joy": 0, ODD: 3, "other": 0})
    assert traffic.seconds["v1"][math.inf] == 2
    assert 0.002 < traffic.quantile(0.5) <= 0.005


def test_metrics_of_servers_are_read_and_copies_are_no_traffic(server: Version) -> None:
    traffic = since_start(Scrape(lambda: [server.address]).read())
    assert list(traffic) == ["7"]
    check(traffic["7"])
    assert VersionTraffic.from_json(json.loads(json.dumps(traffic["7"].to_json()))) == traffic["7"]


class Queries(http_server.Handler):
    """Prometheus's API for one query: the series whose names match, as it has them after a scrape."""

    server: PrometheusServer

    def do_GET(self) -> None:
        query = urllib.parse.parse_qs(urllib.parse.urlsplit(self.path).query)["query"][0]
        promql_parser.parse(query)
        self.server.queries.append(query)
        target = {"namespace": "models", "instance": "10.0.0.3:8080", "pod": "goemotions-cpu-x"}
        series = [
            {
                "metric": {"__name__": one.name, **dict(one.labels), **target, "job": job},
                "value": [1764000000.123, f"{one.value:g}"],
            }
            for job, samples in self.server.jobs.items()
            for one in samples
        ]
        content = json.dumps({"status": "success", "data": {"resultType": "vector", "result": series}}).encode()
        self.send(200, content)


class PrometheusServer(http_server.Server):
    """``jobs``: the samples of the job of each scrape configuration."""

    def __init__(self, jobs: dict[str, list[Sample]]) -> None:
        super().__init__(Queries)
        self.jobs, self.queries = jobs, list[str]()


def test_prometheus_shows_the_same(server: Version) -> None:
    with http_server.running(PrometheusServer({"kserve": Scrape(lambda: [server.address]).read()})) as running:
        source = Prometheus(running.url, 'namespace="models"')
        check(since_start(source.read())["7"])
        assert all(name in running.queries[0] for name in METRICS)
        # A second job scraped the same server, earlier or later than the first one.
        scraped = running.jobs["kserve"]
        earlier = [replace(one, value=max(one.value - 1, 0.0)) if one.name != INFO else one for one in scraped]
        for jobs in ({"kserve": scraped, "pods": earlier}, {"pods": earlier, "kserve": scraped}):
            running.jobs = jobs
            check(since_start(source.read())["7"])
        running.jobs = {}
        with pytest.raises(MonitoringUnavailable, match="Prometheus has no series"):
            source.read()


@pytest.mark.fault("rollout-undecided")
def test_what_does_not_respond_is_named() -> None:
    with pytest.raises(MonitoringUnavailable, match=r"127.0.0.1:9 does not respond"):
        Prometheus("http://127.0.0.1:9").read()
    with pytest.raises(MonitoringUnavailable, match=r"127.0.0.1:9 does not respond"):
        Scrape(lambda: ["http://127.0.0.1:9"]).read()
    with pytest.raises(MonitoringUnavailable, match="there is no server"):
        Scrape(list).read()


class Guarded(http_server.Handler):
    """A server that asks for a user and a password, and elsewhere has moved to another one."""

    def do_GET(self) -> None:
        given.append(self.headers.get("Authorization", ""))
        if self.path.startswith("/moved"):
            self.send(302, headers={"Location": f"http://127.0.0.1:{self.server.server_address[1]}/"})
        else:
            self.send(200 if self.path == "/" or given[-1] else 401)


given: list[str] = []


def test_a_password_in_the_address_is_sent_to_its_server_alone_and_never_shown() -> None:
    given.clear()
    with http_server.running(http_server.Server(Guarded)) as running:
        place = running.url.removeprefix("http://")
        for path in ("metrics", "moved"):
            http.get("http://me:" + f"ge%2Fheim@{place}/{path}")
    own = f"Basic {base64.b64encode(b'me:ge/heim').decode()}"
    assert given == [own, own, ""]
    for address in ("127.0.0.1:9", "127.0.0.1/x"):
        with pytest.raises(MonitoringUnavailable, match=r"^127\.0\.0\.1") as raised:
            Prometheus("http://me:" + f"geheim@{address}").read()
        assert "geheim" not in str(raised.value)


def test_headers_of_the_environment_are_sent_to_prometheus_alone_and_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    given.clear()
    monkeypatch.setenv(prometheus_api.HEADERS, "X-Scope-OrgID: goemotions\n  Authorization: Bearer geheim \n")
    with http_server.running(http_server.Server(Guarded)) as running:
        for path in ("", "moved"):
            with pytest.raises(MonitoringUnavailable):
                Prometheus(f"{running.url}/{path}").read()
    assert given == ["Bearer geheim", "Bearer geheim", ""]
    monkeypatch.setenv(prometheus_api.HEADERS, "X-Scope-OrgID: goemotions\ngeheim")
    with pytest.raises(BadArgument, match=r"^PROMETHEUS_HEADERS: line 2 is no header: write Name: value") as raised:
        Prometheus("http://127.0.0.1:9").read()
    assert "geheim" not in str(raised.value)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_counter_that_is_no_number_is_no_evidence(server: Version, value: float) -> None:
    """It would make the evidence NaN, which never decides: a step would be passed whatever the version does."""
    samples = Scrape(lambda: [server.address]).read()
    with (
        http_server.running(PrometheusServer({"kserve": [replace(one, value=value) for one in samples]})) as running,
        pytest.raises(MonitoringUnavailable, match="unknown form"),
    ):
        Prometheus(running.url).read()
    server.predictions.labels("joy").inc(value)
    with pytest.raises(MonitoringUnavailable, match="a counter is"):
        Scrape(lambda: [server.address]).read()


HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n"


def without_end(client: socket.socket) -> None:
    client.sendall(HEAD % 2**40)
    while True:
        client.sendall(b"a" * 2**20)


def drop_by_drop(client: socket.socket) -> None:
    client.sendall(HEAD % 2**40)
    while not time.sleep(0.05):
        client.sendall(b"a")


def cut(client: socket.socket) -> None:
    client.sendall(HEAD % 100 + b"goemotions_requests_total 1")


@pytest.mark.fault("stored-file-unbounded")
@pytest.mark.parametrize("answer", [without_end, drop_by_drop, cut])
def test_an_answer_without_an_end_and_one_that_is_cut_are_named_errors(answer: Callable[[socket.socket], None]) -> None:
    def serve(listening: socket.socket) -> None:
        client, _ = listening.accept()
        with client, contextlib.suppress(OSError):
            client.recv(2**16)
            answer(client)

    with socket.create_server(("127.0.0.1", 0)) as listening:
        serving = threading.Thread(target=serve, args=(listening,), daemon=True)
        serving.start()
        with pytest.raises(
            MonitoringUnavailable, match=r"127.0.0.1:\d+ (does not respond|returns more than 32 MiB, or for more)"
        ):
            http.get(f"http://127.0.0.1:{listening.getsockname()[1]}/metrics", seconds=1.0)
        serving.join()


def test_a_server_that_starts_again_counts_from_zero_and_a_new_one_from_its_first_look() -> None:
    def seen(instance: str, version: str, requests: float) -> list[Sample]:
        text = f'goemotions_model_info{{version="{version}"}} 1.0\ngoemotions_requests_total{{outcome="ok",protocol="v1"}} {requests}\n'
        return list(parse(instance, text, METRICS))

    increases = Increases()
    assert not increases.update(seen("a", "1", 100))
    assert increases.update(seen("a", "1", 130))["1"].requests["v1"] == 30
    assert increases.update(seen("a", "1", 5))["1"].requests["v1"] == 5
    # One of its counters is higher than before: it counts from zero, too.
    many = [*seen("c", "1", 100), Sample("c", "goemotions_request_texts_sum", (), 10)]
    increases.update(many)
    again = [*seen("c", "1", 7), Sample("c", "goemotions_request_texts_sum", (), 12)]
    assert increases.update(again)["1"].texts == 12
    # All of its counters are higher than before, but it names another start.
    increases.update([*seen("d", "1", 100), Sample("d", STARTED, (), 5)])
    assert increases.update([*seen("d", "1", 130), Sample("d", STARTED, (), 9)])["1"].requests["v1"] == 130
    # Another pod, and another version at the same address.
    assert not increases.update(seen("a", "1", 5))["1"].requests
    assert increases.update([*seen("a", "1", 6), *seen("b", "1", 900)])["1"].requests["v1"] == 1
    assert "2" not in increases.update(seen("a", "2", 50))
    assert increases.update(seen("a", "2", 51))["2"].requests["v1"] == 1


def test_what_a_replica_of_prometheus_has_not_scraped_yet_is_no_start_of_a_server() -> None:
    """Two replicas behind one address, of which one is behind: a counter that falls would count from 0, with all of its past."""
    increases = Increases()

    def seen(requests: float, **outcomes: float) -> VersionTraffic:
        counts = {"ok": requests, **outcomes}
        samples = [Sample("a", "goemotions_model_info", (("version", "1"),), 1), Sample("a", STARTED, (), 5)]
        for outcome, count in counts.items():
            samples.append(Sample("a", "goemotions_requests_total", (("outcome", outcome), ("protocol", "v1")), count))
        return increases.update(samples)["1"]

    seen(1000)
    assert seen(1010, server=3).requests["v1"] == 13
    assert seen(1005).requests["v1"] == 0
    again = seen(1020, server=4)
    assert (again.requests["v1"], again.failures["v1"]) == (11, 1)


@pytest.mark.fault("rollout-undecided")
def test_a_canary_whose_metrics_are_missing_during_incidents_is_not_blamed_for_them() -> None:
    """Both versions fail alike, but what the canary did meanwhile is seen only later, beside a window without an incident."""
    totals = {"1": [0, 0], "2": [0, 0]}
    analysis, increases = Analysis(Plan(step_texts=0), 5, Expected(("a",), 400, 0, (100,), (100,))), Increases()
    for window in range(40):
        is_incident, samples = window % 4 in (2, 3), []
        for version, requests in (("1", 300), ("2", 100)):
            failures = requests // 5 * is_incident
            totals[version] = [totals[version][0] + requests - failures, totals[version][1] + failures]
            if version == "1" or not is_incident:
                samples.append(Sample(version, "goemotions_model_info", (("version", version),), 1))
                for outcome, count in zip(("ok", "server"), totals[version], strict=True):
                    labels = (("outcome", outcome), ("protocol", "v1"))
                    samples.append(Sample(version, "goemotions_requests_total", labels, count))
        traffic = increases.update(samples)
        analysis.add_traffic(traffic["1"], traffic["2"], 15)
    assert (analysis.fault, analysis.windows) == ("", 10)
