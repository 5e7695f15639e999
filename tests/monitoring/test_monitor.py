"""``goemotions monitor``: windows from a server, from Prometheus and from batch outputs, against the reference of a bundle."""

import dataclasses
import json
import random
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result

from goemotions.cli.main import commands
from goemotions.cli.monitoring import DRIFTED
from goemotions.errors import BadArgument, DataError, MonitoringUnavailable
from goemotions.evaluation import reference
from goemotions.evaluation.traffic import Traffic, features_of
from goemotions.models import engines
from goemotions.monitoring import drift, monitor, windows
from goemotions.monitoring.drift import DriftReport
from goemotions.monitoring.windows import Counts, Window
from goemotions.prediction import files
from goemotions.prediction.predictor import Predictor
from goemotions.registry import bundle as bundles
from goemotions.registry.bundle import Bundle
from goemotions.serving import metrics
from goemotions.serving.traffic import TrafficCounters
from goemotions.storage import manifest
from tests.conftest import CUES, FILLERS
from tests.support import prometheus


@pytest.fixture(scope="module")
def predictor(whole: Path) -> Predictor:
    return Predictor.load(whole, threads=1)


def texts_like_validation(count: int, seed: int, *, without: str = "") -> list[str]:
    """Texts as in the data of the fixtures, without the word of one label."""
    generator = random.Random(seed)
    cues = [cue for label, cue in CUES.items() if label != without]
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


def test_without_fail_drift_is_no_failure(predictor: Predictor, whole: Path) -> None:
    pages = {"/metrics": serve(predictor, TrafficCounters(predictor.bundle, "shouted"), SHOUTED)}
    with prometheus.serving({}, pages) as server:
        ended = run("--bundle", whole, "--server", server.url, "--version-number", "shouted")
    assert ended.exit_code == 0
    assert "Drift: " in ended.output


def series(traffic: Traffic, version: str) -> dict[str, Counts]:
    """The increases of a server's counters for traffic."""
    content = traffic.to_json()
    labels = content["labels"].items()
    features = content["features"].items()
    return {
        windows.ROWS: [({"version": version}, traffic.rows)],
        windows.PREDICTIONS: [({"version": version, "label": name}, row["predicted"]) for name, row in labels],
        windows.TOTAL: [({"version": version, "label": name}, row["total_sum"]) for name, row in labels],
        windows.PREDICTED: [({"version": version, "label": name}, row["predicted_sum"]) for name, row in labels],
        windows.SCORES: [
            ({"version": version, "label": name, "bin": bound}, count)
            for name, row in labels
            for bound, count in row["scores"].items()
        ],
        windows.TEXT_FEATURES: [
            ({"version": version, "feature": name, "bin": bound}, count)
            for name, counts in features
            for bound, count in counts.items()
        ],
    }


def test_a_window_of_prometheus_is_the_increase_of_all_servers_of_a_service(
    predictor: Predictor, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = counted(predictor, SHOUTED)
    both = [series(expected, "r1"), series(counted(predictor, USUAL), "r0")]
    with prometheus.serving({name: [*both[0][name], *both[1][name]] for name in windows.METRICS}) as server:
        monkeypatch.setenv("PROMETHEUS_URL", server.url)
        ended = run("--bundle", whole, "--service", "goemotions-cpu", "--window", "6h", "--output", tmp_path)
    assert ended.exit_code == 0, ended.output
    report = drift.read_report(str(tmp_path))
    assert (report.rows, report.version) == (len(SHOUTED), "r1")
    assert [row.rate for row in report.quality] == pytest.approx((expected.predicted / expected.rows).tolist())
    assert len(server.queries) == len(windows.METRICS)
    assert all(f"[{'6h'}]" in query and 'inferenceservice="goemotions-cpu"' in query for query in server.queries)


def test_batch_outputs_give_the_traffic_of_their_texts(predictor: Predictor, whole: Path, tmp_path: Path) -> None:
    texts = [*SHOUTED, None, " "]
    pq.write_table(pa.table({"said": texts}), tmp_path / "in.parquet")
    files.score_file(predictor, tmp_path / "in.parquet", tmp_path / "scored" / "out.parquet", "said")
    traffic = windows.of_scored(str(tmp_path / "scored" / "out.parquet"), predictor.bundle, "said")
    expected = counted(predictor, SHOUTED)
    assert traffic.rows == len(SHOUTED)
    assert traffic.features["tokens"].tolist() == expected.features["tokens"].tolist()
    assert traffic.total_sum == pytest.approx(expected.total_sum, rel=1e-2)
    ended = run("--bundle", whole, "--scored", tmp_path / "scored", "--text-column", "said", "--output", tmp_path, "--fail")
    assert ended.exit_code == DRIFTED, ended.output
    assert alarms(drift.read_report(str(tmp_path))) >= {"tokens"}


def test_scored_rows_without_probabilities_are_a_named_error(predictor: Predictor, tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["lake"], "labels": [["calm"]]}), tmp_path / "labels.parquet")
    with pytest.raises(DataError, match="probabilities of all labels"):
        windows.of_scored(str(tmp_path), predictor.bundle)
    (tmp_path / "labels.parquet").write_bytes(b"no parquet")
    with pytest.raises(DataError, match="not a Parquet file"):
        windows.of_scored(str(tmp_path), predictor.bundle)
    with pytest.raises(DataError, match="no scored row"):
        windows.of_scored(str(tmp_path / "empty"), predictor.bundle)


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
    assert monitor.NO_REFERENCE in "\n".join(monitor.lines(report))


def test_a_server_that_counts_other_versions_or_labels_is_a_named_error(predictor: Predictor) -> None:
    names = predictor.bundle.taxonomy.names
    counts: Counts = [(windows.ROWS, {"version": "7"}, 3.0), (windows.PREDICTIONS, {"version": "7", "label": "new"}, 1.0)]
    window = Window(counts, None, 0.0, "http://server")
    with pytest.raises(DataError, match=r"version 8 scored no text in the window \(7 did\): give --version-number"):
        window.traffic(names, "8")
    with pytest.raises(DataError, match="'new', which the bundle lacks"):
        window.traffic(names, "7")


def test_a_counter_that_starts_again_is_counted_from_zero() -> None:
    line = 'goemotions_scored_texts_total{version="7"} %d.0\n'
    window = windows.of_scrapes("http://server", windows.SCRAPED + "5\n" + line % 100, windows.SCRAPED + "9\n" + line % 30)
    assert (window.counts, window.start, window.end) == ([(windows.ROWS, {"version": "7"}, 30.0)], 5.0, 9.0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [((), "give one of --server"), (("--scored", "a", "--server", "http://127.0.0.1:1"), "give one of --server")],
)
def test_a_window_needs_one_source(arguments: tuple[str, ...], message: str) -> None:
    with pytest.raises(BadArgument, match=message):
        run(*arguments)


@pytest.mark.parametrize("duration", ["", "1", "0d", "1 d", "1y"])
def test_a_window_of_an_unknown_form_is_a_named_error(duration: str) -> None:
    with pytest.raises(BadArgument, match="is not a duration"):
        windows.seconds_of(duration)


def test_what_is_no_prometheus_is_a_named_error(whole: Path) -> None:
    with (
        prometheus.serving({}, {"/api/v1/query": "<html>"}) as server,
        pytest.raises(MonitoringUnavailable, match="unknown form"),
    ):
        windows.of_prometheus(server.url, "1d")
    with pytest.raises(MonitoringUnavailable, match="does not respond"):
        windows.of_prometheus("http://127.0.0.1:9", "1d")


def test_the_features_that_a_window_lacks_are_named(whole: Path) -> None:
    loaded: Bundle = bundles.load(whole)
    assert loaded.reference
    without = dataclasses.replace(loaded.reference.traffic, features={})
    report = monitor.report(loaded, without, model="goemotions", version="1", source="itself")
    assert len(report.missing) == 5
    assert np.isfinite([test.statistic for test in report.tests]).all()
