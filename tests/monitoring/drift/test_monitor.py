"""``goemotions monitor``: windows from a server, from Prometheus and from batch outputs, against the reference of a bundle."""

import dataclasses
import json
import random
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result

from goemotions.cli.main import commands
from goemotions.cli.monitoring import DRIFTED
from goemotions.errors import BadArgument, DataError, MonitoringUnavailable, WorkflowError
from goemotions.evaluation import drift, reference
from goemotions.evaluation.drift import DriftReport
from goemotions.evaluation.traffic import Traffic, features_of
from goemotions.models import engines
from goemotions.monitoring.counters import STARTED
from goemotions.monitoring.drift import monitor, prometheus_series, scored, server_scrapes
from goemotions.monitoring.drift.window import (
    METRICS,
    PREDICTED,
    PREDICTIONS,
    ROWS,
    SCORES,
    TEXT_FEATURES,
    TOTAL,
    Counts,
    Window,
)
from goemotions.prediction import files, plans, shards
from goemotions.prediction.predictor import Predictor
from goemotions.registry import bundle as bundles
from goemotions.registry.bundle import Bundle
from goemotions.report import drift as pages
from goemotions.serving import metrics
from goemotions.serving.traffic.counters import TrafficCounters
from goemotions.storage import manifest
from tests.conftest import CUES, FILLERS
from tests.support import prometheus


@pytest.fixture(autouse=True)
def no_traffic() -> None:
    """Other tests of the process count texts of a bundle with the same run id."""
    start_again()


def start_again() -> None:
    """The server of this process begins again, with all of its counters."""
    metrics.STARTED.set(metrics.STARTED._value.get() + 1)
    scores = (metrics.PREDICTIONS, metrics.PREDICTED_SCORES, metrics.TOTAL_SCORES, metrics.SCORES)
    for metric in (metrics.SCORED_TEXTS, metrics.FEATURES, *scores):
        metric.clear()


def texts_like_validation(count: int, seed: int) -> list[str]:
    """Texts as in the data of the fixtures."""
    generator = random.Random(seed)
    cues = list(CUES.values())
    texts = []
    for row in range(count):
        words = [*generator.sample(cues, 2 if row % 4 == 0 else 1), *generator.choices(FILLERS, k=generator.randrange(2, 9))]
        generator.shuffle(words)
        texts.append(" ".join(words))
    return texts


USUAL, SHOUTED = texts_like_validation(400, 5), [f"{text} {text} {text}?!" for text in texts_like_validation(400, 6)]


def counted(predictor: Predictor, texts: list[str]) -> Traffic:
    scores, _ = engines.score(predictor.engine, texts)
    return Traffic.of(
        predictor.bundle.taxonomy.names, scores, predictor.bundle.thresholds, features_of(predictor.bundle.encoder, texts)
    )


def serve(predictor: Predictor, counters: TrafficCounters, texts: list[str]) -> str:
    """What /metrics of a server returns that has scored these texts, too."""
    encodings = predictor.bundle.encoder.encode(texts)
    counters.add(texts, encodings, engines.logits(predictor.engine, [encoding.ids for encoding in encodings]))
    counters.flush()
    return metrics.render(None)[0].decode()


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(commands, ["monitor", *map(str, arguments)], catch_exceptions=False)


def alarms(report: DriftReport) -> set[str]:
    return {test.name for test in report.alarms}


def test_a_window_of_a_server_is_what_it_scored_between_two_scrapes(predictor: Predictor, whole: Path, tmp_path: Path) -> None:
    counters = TrafficCounters(predictor.bundle, "r1")
    first = serve(predictor, counters, USUAL)
    with prometheus.serving({}, {"/metrics": first}) as server:
        ended = run("--bundle", whole, "--server", server.url, "--output", tmp_path, "--fail")
        assert ended.exit_code == 0, ended.output
        assert "No drift." in ended.output
        assert drift.read_report(str(tmp_path)).rows >= len(USUAL)
        server.pages["/metrics"] = serve(predictor, counters, SHOUTED)
        since = tmp_path / "metrics.txt"
        ended = run("--bundle", whole, "--server", server.url, "--since", since, "--output", tmp_path / "next", "--fail")
    assert ended.exit_code == DRIFTED
    report = drift.read_report(str(tmp_path / "next"))
    assert report.drifted
    assert report.rows == len(SHOUTED)
    assert "tokens" in alarms(report)
    assert report.start <= report.end
    page = (tmp_path / "next" / monitor.PAGE).read_text()
    assert "Drift: " in page
    assert "calm" in page
    assert "tokens per word" in page
    assert f"from {report.start[:10]} {report.start[11:16]} UTC to " in page
    assert not re.search(r"tokens_per_word|\+00:00", page)
    assert re.search(r"<td>\d+\.\d\d times</td>", page)


def test_without_fail_drift_is_no_failure(predictor: Predictor, whole: Path) -> None:
    pages = {"/metrics": serve(predictor, TrafficCounters(predictor.bundle, "shouted"), SHOUTED)}
    with prometheus.serving({}, pages) as server:
        ended = run("--bundle", whole, "--server", server.url, "--version-number", "shouted")
    assert ended.exit_code == 0
    assert "Drift: " in ended.output


def test_a_window_of_prometheus_is_the_increase_of_all_servers_of_a_service(
    predictor: Predictor, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = counted(predictor, SHOUTED)
    both = [prometheus.of_traffic(expected, "r1"), prometheus.of_traffic(counted(predictor, USUAL), "r0")]
    with prometheus.serving({name: [*both[0][name], *both[1][name]] for name in METRICS}) as server:
        # This machine's clock is ahead of Prometheus's.
        server.behind = 7 * 3600.0
        monkeypatch.setenv("PROMETHEUS_URL", server.url)
        ended = run("--bundle", whole, "--service", "goemotions-cpu", "--window", "6h", "--output", tmp_path)
    assert ended.exit_code == 0, ended.output
    report = drift.read_report(str(tmp_path))
    assert (report.rows, report.version) == (len(SHOUTED), "r1")
    assert [row.rate for row in report.quality] == pytest.approx((expected.predicted / expected.rows).tolist())
    assert len(server.queries) == len(METRICS) + 1
    assert all(f"[{'6h'}]" in query and 'inferenceservice="goemotions-cpu"' in query for query in server.queries)


@pytest.mark.parametrize(
    ("beside", "reason"),
    [
        (
            {"warnings": ["No StoreAPIs matched for this query"], "infos": ["of no matter"]},
            "No StoreAPIs matched for this query",
        ),
        ({"isPartial": True}, "a part of the storage is missing"),
    ],
    ids=["Thanos", "VictoriaMetrics"],
)
def test_a_result_that_may_lack_a_part_is_named(predictor: Predictor, beside: dict[str, Any], reason: str) -> None:
    with prometheus.serving(prometheus.of_traffic(counted(predictor, USUAL), "r1")) as server:
        server.beside = beside
        window = prometheus_series.window(server.url, "1d")
    report = monitor.of_window(predictor.bundle, window, model="goemotions", version="r1")
    assert report.missing == [f"texts that the metrics may lack: Prometheus warns: {reason}"]
    assert pages.lines(report)[1] == f"not compared: {report.missing[0]}"


def test_a_server_that_two_jobs_of_prometheus_scrape_counts_once(predictor: Predictor) -> None:
    """A ServiceMonitor and discovery by annotations, side by side: each has its own job, of the same instance."""
    expected = counted(predictor, USUAL)
    targets = [("kserve", "10.0.0.3:8080"), ("kubernetes-pods", "10.0.0.3:8080"), ("kserve", "10.0.0.4:8080")]
    increases = {
        name: [({**labels, "job": job, "instance": instance}, value) for labels, value in counts for job, instance in targets]
        for name, counts in prometheus.of_traffic(expected, "r1").items()
    }
    with prometheus.serving(increases) as server:
        traffic = prometheus_series.window(server.url, "1d").traffic(predictor.bundle.taxonomy.names, "r1")
    assert traffic.rows == 2 * expected.rows
    assert traffic.predicted.tolist() == (2 * expected.predicted).tolist()
    assert traffic.total_sum.tolist() == pytest.approx((2 * expected.total_sum).tolist())


def test_services_of_one_name_in_several_namespaces_are_not_mixed(predictor: Predictor) -> None:
    """Production and a namespace for tests, in one cluster with one Prometheus."""
    tried, served = counted(predictor, SHOUTED), counted(predictor, USUAL)
    places = {
        "staging": ("10.0.0.9:8080", prometheus.of_traffic(tried, "7")),
        "serving": ("10.0.0.3:8080", prometheus.of_traffic(served, "7")),
    }
    increases = {
        name: [
            ({**labels, "namespace": namespace, "instance": instance}, value)
            for namespace, (instance, counters) in places.items()
            for labels, value in counters[name]
        ]
        for name in METRICS
    }
    names = predictor.bundle.taxonomy.names
    with prometheus.serving(increases) as server:
        with pytest.raises(
            DataError, match=r"several namespaces scored texts \(serving, staging\): .*such as serving/goemotions-cpu"
        ):
            prometheus_series.window(server.url, "1d", "goemotions-cpu")
        window = prometheus_series.window(server.url, "1d", "serving/goemotions-cpu")
        assert window.traffic(names, "7").predicted.tolist() == served.predicted.tolist()
        # All that are scraped.
        assert prometheus_series.window(server.url, "1d").traffic(names, "7").rows == tried.rows + served.rows


def test_batch_outputs_give_the_traffic_of_their_texts(predictor: Predictor, whole: Path, tmp_path: Path) -> None:
    texts = [*SHOUTED, None, " "]
    pq.write_table(pa.table({"said": texts}), tmp_path / "in.parquet")
    files.score_file(predictor, tmp_path / "in.parquet", tmp_path / "scored" / "out.parquet", "said")
    traffic, unnamed = scored.traffic_of(str(tmp_path / "scored" / "out.parquet"), predictor.bundle, "said")
    assert unnamed == []
    expected = counted(predictor, SHOUTED)
    assert traffic.rows == len(SHOUTED)
    assert traffic.features["tokens"].tolist() == expected.features["tokens"].tolist()
    assert traffic.total_sum == pytest.approx(expected.total_sum, rel=1e-2)
    ended = run("--bundle", whole, "--scored", tmp_path / "scored", "--text-column", "said", "--output", tmp_path, "--fail")
    assert ended.exit_code == DRIFTED, ended.output
    assert alarms(drift.read_report(str(tmp_path))) >= {"tokens"}


def test_the_bundle_that_scored_a_file_is_the_one_that_it_is_compared_with(
    predictor: Predictor, whole: Path, tmp_path: Path
) -> None:
    pq.write_table(pa.table({"text": SHOUTED}), tmp_path / "in.parquet")
    scored = tmp_path / "scored"
    plans.plan(str(tmp_path / "in.parquet"), str(scored), str(whole))
    shards.score(str(scored), predictor=predictor)
    retrained = tmp_path / "retrained"
    shutil.copytree(whole, retrained)
    content = json.loads((retrained / manifest.NAME).read_text()) | {"run_id": "r9"}
    manifest.write(retrained, **{name: value for name, value in content.items() if name != "files"})
    with pytest.raises(DataError, match=r'part-000000\.parquet was scored by another bundle, \{"run": "r1".*--bundle'):
        run("--bundle", retrained, "--scored", scored)
    assert "do not name it" not in run("--bundle", whole, "--scored", scored).output
    # What earlier versions wrote, and what another program wrote again.
    table = pq.read_table(scored / "part-000000.parquet").replace_schema_metadata(None)
    pq.write_table(table, scored / "part-000000.parquet")
    ended = run("--bundle", retrained, "--scored", scored)
    assert "not compared: which bundle scored the files: 1 of them do not name it, such as part-000000.parquet" in ended.output


def test_scored_rows_without_probabilities_are_a_named_error(predictor: Predictor, tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["lake"], "labels": [["calm"]]}), tmp_path / "labels.parquet")
    with pytest.raises(DataError, match="probabilities of all labels"):
        scored.traffic_of(str(tmp_path), predictor.bundle)
    (tmp_path / "labels.parquet").write_bytes(b"no parquet")
    with pytest.raises(DataError, match="not a complete Parquet file"):
        scored.traffic_of(str(tmp_path), predictor.bundle)
    with pytest.raises(DataError, match=r"has no \.parquet"):
        scored.traffic_of(str(tmp_path / "empty"), predictor.bundle)
    columns = {f"p/{name}": [float("nan")] for name in predictor.bundle.taxonomy.names}
    pq.write_table(pa.table({"text": ["lake"], **columns}), tmp_path / "labels.parquet")
    with pytest.raises(DataError, match="no probabilities"):
        scored.traffic_of(str(tmp_path), predictor.bundle)


def test_a_bundle_without_a_reference_is_compared_by_its_stored_predictions(whole: Path, tmp_path: Path) -> None:
    former = tmp_path / "former"
    shutil.copytree(whole, former)
    (former / reference.FILE).unlink()
    content = json.loads((former / manifest.NAME).read_text())
    manifest.write(former, **{name: value for name, value in content.items() if name != "files"})
    loaded = bundles.load(former)
    assert loaded.reference is None
    complete = bundles.load(whole).reference
    assert complete is not None
    report = monitor.report(loaded, complete.traffic, model="goemotions", version="1", source="itself")
    assert not report.drifted
    assert report.missing == [monitor.NO_REFERENCE]
    assert {test.name for test in report.tests} == {"predictions", "scores"}
    assert monitor.NO_REFERENCE in "\n".join(pages.lines(report))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda traffic: traffic["labels"].popitem(), r"reference.json has \d+ labels, but there are \d+"),
        (
            lambda traffic: traffic.update(labels=dict(reversed(traffic["labels"].items()))),
            "reference.json calls label 0 .*, but it is .*Register the model again",
        ),
        (lambda traffic: traffic.update(rows=0), "reference.json is damaged: register the model again"),
    ],
    ids=["a label less", "another order", "no texts"],
)
def test_a_reference_that_is_not_of_the_model_is_a_named_error(
    whole: Path, tmp_path: Path, change: Callable[[dict[str, Any]], None], message: str
) -> None:
    """As another program may have written it, with a manifest that fits."""
    shutil.copytree(whole, tmp_path / "changed")
    path = tmp_path / "changed" / reference.FILE
    content = json.loads(path.read_text())
    change(content["traffic"])
    path.write_text(json.dumps(content))
    fixed = json.loads((tmp_path / "changed" / manifest.NAME).read_text())
    manifest.write(tmp_path / "changed", **{name: value for name, value in fixed.items() if name != "files"})
    with pytest.raises(WorkflowError, match=message):
        bundles.load(tmp_path / "changed")


def test_a_server_that_counts_other_versions_or_labels_is_a_named_error(predictor: Predictor) -> None:
    names = predictor.bundle.taxonomy.names
    counts: Counts = [(ROWS, {"version": "7"}, 3.0), (PREDICTIONS, {"version": "7", "label": "new"}, 1.0)]
    window = Window(counts, None, 0.0, "http://server")
    with pytest.raises(
        DataError, match=r"version 8 scored no text in the window \(7 did\): compare with the bundle of that version"
    ):
        window.traffic(names, "8")
    with pytest.raises(DataError, match="'new', which the bundle lacks"):
        window.traffic(names, "7")


@pytest.mark.parametrize("rows", [0.0, 0.3])
def test_a_window_without_a_text_is_nothing_to_compare(predictor: Predictor, rows: float) -> None:
    window = Window([(ROWS, {"version": "7"}, rows)], None, 0.0, "http://server")
    for version in ("7", "8"):
        report = monitor.of_window(predictor.bundle, window, model="goemotions", version=version)
        assert (report.rows, report.drifted, report.tests, report.quality) == (0, False, [], [])
        assert pages.summary(report).startswith(f"Nothing to compare: no text of goemotions version {version} ")
        assert [section.title for section in pages.sections(report)] == ["Summary"]
    # Another version scored texts, but the server knows this one.
    served = Window([*window.counts, (ROWS, {"version": "6"}, 50.0)], None, 0.0, "http://server")
    assert served.traffic(predictor.bundle.taxonomy.names, "7").rows == 0


def test_without_a_text_the_earlier_report_stays(predictor: Predictor, whole: Path, tmp_path: Path) -> None:
    pages = {"/metrics": serve(predictor, TrafficCounters(predictor.bundle, "shouted"), SHOUTED)}
    arguments = ("--bundle", whole, "--version-number", "shouted", "--output", tmp_path, "--fail", "--server")
    with prometheus.serving({}, pages) as server:
        assert run(*arguments, server.url).exit_code == DRIFTED
        ended = run(*arguments, server.url, "--since", tmp_path / "metrics.txt")
    assert ended.exit_code == 0
    assert re.match(r"Nothing to compare: no text of goemotions version shouted from .* UTC to .* UTC \(http", ended.output)
    assert drift.read_report(str(tmp_path)).rows == len(SHOUTED)
    assert f"{tmp_path}: " not in ended.output


def of_counters(counters: dict[str, Counts]) -> Window:
    return Window([(name, *one) for name, listed in counters.items() for one in listed], None, 0.0, "a server")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -3.0, 1e12])
@pytest.mark.parametrize("metric", [ROWS, TOTAL, SCORES])
def test_what_no_counter_can_be_is_a_named_error_and_no_drift(predictor: Predictor, metric: str, value: float) -> None:
    counters = prometheus.of_traffic(counted(predictor, USUAL), "7")
    counters[metric] = [(counters[metric][0][0], value), *counters[metric][1:]]
    with (
        prometheus.serving(counters) as server,
        pytest.raises(DataError, match=f"{metric} grew by .*, which no counter does: look"),
    ):
        prometheus_series.window(server.url, "1d")


def test_labels_without_a_counter_are_a_named_error_and_no_drift(predictor: Predictor) -> None:
    counters = prometheus.of_traffic(counted(predictor, USUAL), "7")
    counters[PREDICTIONS] = counters[PREDICTIONS][1:]
    with pytest.raises(DataError, match=f"has no {PREDICTIONS} of the label"):
        of_counters(counters).traffic(predictor.bundle.taxonomy.names, "7")


def test_histograms_of_a_server_with_other_bins_are_not_compared(predictor: Predictor) -> None:
    counters = prometheus.of_traffic(counted(predictor, USUAL), "7")
    for metric in (SCORES, TEXT_FEATURES):
        counters[metric] = [({**labels, "bin": f"{labels['bin']}5"}, value) for labels, value in counters[metric]]
    traffic = of_counters(counters).traffic(predictor.bundle.taxonomy.names, "7")
    report = monitor.report(predictor.bundle, traffic, model="goemotions", version="7", source="a server")
    assert {test.name for test in report.tests} == {"predictions"}
    assert len(report.missing) == 6
    assert report.missing[0].startswith(f"the histograms of the scores of {len(CUES)} labels, such as {next(iter(CUES))}: ")


def test_labels_whose_scores_a_server_does_not_count_are_named(predictor: Predictor) -> None:
    """Of a long list, a server counts the scores of the first labels only."""
    counters = prometheus.of_traffic(counted(predictor, USUAL), "7")
    last = list(CUES)[-1]
    counters[SCORES] = [one for one in counters[SCORES] if one[0]["label"] != last]
    traffic = of_counters(counters).traffic(predictor.bundle.taxonomy.names, "7")
    report = monitor.report(predictor.bundle, traffic, model="goemotions", version="7", source="a server")
    assert [one for one in report.missing if "scores" in one] == [monitor.NO_SCORES.format(1, last)]


def test_rates_that_prometheus_extrapolates_stay_possible(predictor: Predictor) -> None:
    """Each series is extrapolated for itself, so that a label can have more predictions than there were texts."""
    counters = prometheus.of_traffic(counted(predictor, USUAL), "7")
    for metric in (PREDICTIONS, PREDICTED, TOTAL):
        counters[metric] = [(labels, 3.3 * len(USUAL)) for labels, _ in counters[metric]]
    traffic = of_counters(counters).traffic(predictor.bundle.taxonomy.names, "7")
    report = monitor.report(predictor.bundle, traffic, model="goemotions", version="7", source="a server")
    assert all(0 <= value <= 1 for row in report.quality for value in (row.rate, row.precision, row.recall, row.f1))


def test_a_long_label_stands_apart_in_the_terminal(predictor: Predictor) -> None:
    report = monitor.report(predictor.bundle, counted(predictor, SHOUTED), model="goemotions", version="7", source="a server")
    alarm = dataclasses.replace(report.alarms[0], name="predictions", label="the customer is angry", alarm=True)
    assert "predictions     the customer is angry effect " in pages.lines(dataclasses.replace(report, tests=[alarm]))[-1]


def test_no_drift_of_few_texts_says_so(predictor: Predictor) -> None:
    report = monitor.report(predictor.bundle, counted(predictor, USUAL[:5]), model="goemotions", version="7", source="a server")
    assert pages.summary(report).startswith("No drift (of 5 texts, only the largest shifts are detected).")


def scraped(second: int, texts: int, calm: int, started: str = "1.7957971742437086e+09") -> str:
    lines = (f'{ROWS}{{version="7"}} {texts}.0', f"{STARTED} {started}", f'{PREDICTIONS}{{label="calm",version="7"}} {calm}.0')
    return f"{server_scrapes.SCRAPED}{second}\n" + "\n".join(lines)


@pytest.mark.parametrize(("texts", "calm", "counts"), [(30, 2, (30, 2)), (150, 3, (150, 3)), (150, 9, (50, 4))])
def test_if_one_counter_starts_again_all_do(texts: int, calm: int, counts: tuple[int, int]) -> None:
    """A server that was started again may have scored more texts than before, but less of a label."""
    window = server_scrapes.window("http://server", scraped(5, 100, 5), scraped(9, texts, calm))
    assert (tuple(value for _, _, value in window.counts), window.start, window.end) == (counts, 5.0, 9.0)


def test_a_server_that_was_started_again_and_has_counted_more_than_before_counts_from_its_start(predictor: Predictor) -> None:
    counters = TrafficCounters(predictor.bundle, "r1")
    before = f"{server_scrapes.SCRAPED}5\n{serve(predictor, counters, USUAL[:50])}"
    start_again()
    now = f"{server_scrapes.SCRAPED}9\n{serve(predictor, TrafficCounters(predictor.bundle, 'r1'), USUAL)}"
    assert server_scrapes.window("http://server", before, now).traffic(predictor.bundle.taxonomy.names, "r1").rows == len(USUAL)


def test_the_window_of_a_server_that_was_started_again_begins_with_its_start() -> None:
    window = server_scrapes.window("http://me:geheim@server", scraped(1000, 100, 5, "10"), scraped(5000, 150, 9, "3000"))
    assert (window.start, window.end, window.counts[0][2]) == (3000, 5000, 150)
    assert window.source == "http://***@server"


def test_another_server_behind_the_same_address_is_a_named_error() -> None:
    """A Service with two pods: what the other one has scored since its start would be the traffic of the window."""
    with pytest.raises(DataError, match="of another server behind the same address"):
        server_scrapes.window("http://service", scraped(1000, 100, 5, "10"), scraped(5000, 150, 9, "20"))


@pytest.mark.parametrize("before", ["9", "10"])
def test_an_earlier_scrape_that_is_the_later_one_by_the_clocks_is_a_named_error(before: str) -> None:
    """A window of negative length would make every test pass."""
    earlier = scraped(5, 100, 5).replace("5", before, 1)
    with pytest.raises(DataError, match="check the clocks"):
        server_scrapes.window("http://server", earlier, scraped(9, 150, 9))


@pytest.mark.fault("stored-json-hostile")
@pytest.mark.parametrize("before", ["-1e300", "1e18", "nan", "inf", "x", ""])
def test_an_earlier_scrape_of_a_time_that_no_calendar_has_is_a_named_error(before: str) -> None:
    earlier = scraped(5, 100, 5).replace("5", before, 1)
    with pytest.raises(DataError, match=r"an earlier scrape starts with '# scraped ' and a time: give the"):
        server_scrapes.window("http://server", earlier, scraped(9, 150, 9))


def test_what_is_no_earlier_scrape_or_no_predictor_is_a_named_error(whole: Path, tmp_path: Path) -> None:
    with prometheus.serving({}, {"/metrics": f"{ROWS} many"}) as server:
        with pytest.raises(DataError, match="give the address of a predictor server"):
            run("--bundle", whole, "--server", server.url)
        server.pages["/metrics"] = "up 1\n"
        with pytest.raises(DataError, match="no metrics of a predictor: give the address of a predictor server"):
            run("--bundle", whole, "--server", server.url)
        for content in (b"{}", b"\xff\xfe\x00"):
            (tmp_path / "drift.json").write_bytes(content)
            with pytest.raises(DataError, match=r"give the metrics\.txt of an earlier report"):
                run("--bundle", whole, "--server", server.url, "--since", tmp_path / "drift.json")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [((), "give one of --server"), (("--scored", "a", "--server", "http://127.0.0.1:1"), "give one of --server")],
)
def test_a_window_needs_one_source(arguments: tuple[str, ...], message: str) -> None:
    with pytest.raises(BadArgument, match=message):
        run(*arguments)


@pytest.mark.parametrize("duration", ["", "1", "0d", "1 d", "1y", "999999999999w"])
def test_a_window_of_an_unknown_form_is_a_named_error_before_anything_is_asked(duration: str) -> None:
    with pytest.raises(BadArgument, match=r"is not a duration|is longer than ten years"):
        prometheus_series.window("http://127.0.0.1:9", duration)


def test_a_service_that_no_cluster_can_have_is_a_named_error() -> None:
    with pytest.raises(BadArgument, match="is no name of an InferenceService"):
        prometheus_series.window("http://127.0.0.1:9", "1d", 'goemotions"} or up{job="')


def test_a_server_that_refuses_is_not_said_to_be_away() -> None:
    with (
        prometheus.serving({}) as server,
        pytest.raises(MonitoringUnavailable, match=r"does not accept the request \(HTTP Error 404"),
    ):
        server_scrapes.scrape(server.url)


def test_what_is_no_prometheus_is_a_named_error(whole: Path) -> None:
    with (
        prometheus.serving({}, {"/api/v1/query": "<html>"}) as server,
        pytest.raises(MonitoringUnavailable, match="unknown form"),
    ):
        prometheus_series.window(server.url, "1d")
    with pytest.raises(MonitoringUnavailable, match="does not respond"):
        prometheus_series.window("http://127.0.0.1:9", "1d")


@pytest.mark.parametrize(
    ("services", "service", "beside", "message"),
    [
        (
            {"goemotions-gpu": 1.0, "goemotions-cpu": None},
            "goemotions-cqu",
            {},
            "it has goemotions-cpu, goemotions-gpu: check the name",
        ),
        ({}, "goemotions-cpu", {}, "it has none at all: check the name of the service, the address"),
        ({"": 1.0}, "goemotions-cpu", {}, "it has some without the label serving_kserve_io_inferenceservice: check the name"),
        ({}, "serving/goemotions-cpu", {}, "the namespace serving has none at all: check the name of the service"),
        ({}, "", {}, "all services in Prometheus: no metrics of such a predictor in 30d, it has none at all"),
        ({"goemotions-cpu": 0.0}, "goemotions-cpu", {}, "did not respond to Prometheus in the window.*: look at the targets"),
        ({"goemotions-cpu": 0.0}, "", {}, "did not respond to Prometheus"),
        ({"goemotions-cpu": None}, "goemotions-cpu", {"isPartial": True}, "a part of the storage is missing: try again later"),
    ],
    ids=[
        "wrong name",
        "no service",
        "no label",
        "not in the namespace",
        "no predictor",
        "not scraped",
        "none scraped",
        "partial",
    ],
)
def test_a_window_without_series_of_a_service_that_may_have_texts_is_a_named_error(
    services: dict[str, float | None], service: str, beside: dict[str, Any], message: str
) -> None:
    with prometheus.serving({}) as server:
        server.services, server.beside = services, beside
        with pytest.raises(MonitoringUnavailable, match=message):
            prometheus_series.window(server.url, "1d", service)


@pytest.mark.parametrize(
    "services", [{"goemotions-cpu": None}, {"goemotions-cpu": 1.0}, {"": None}], ids=["no pods", "new pods", "no KServe"]
)
def test_a_service_that_scored_nothing_is_nothing_to_compare(predictor: Predictor, services: dict[str, float | None]) -> None:
    """As one that is scaled to zero, or whose pods are so new that Prometheus has one sample of them."""
    with prometheus.serving({}) as server:
        server.services = services
        window = prometheus_series.window(server.url, "1d", next(iter(services)))
    assert monitor.of_window(predictor.bundle, window, model="goemotions", version="7").rows == 0


def test_the_features_that_a_window_lacks_are_named(whole: Path) -> None:
    loaded: Bundle = bundles.load(whole)
    assert loaded.reference
    without = dataclasses.replace(loaded.reference.traffic, features={})
    report = monitor.report(loaded, without, model="goemotions", version="1", source="itself")
    assert len(report.missing) == 5
    assert np.isfinite([test.statistic for test in report.tests]).all()
