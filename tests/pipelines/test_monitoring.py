"""The monitoring pipeline: its compiled form, and its step on real parts: a scored file, MLflow and S3."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from kfp import dsl

from components.monitor import monitor
from goemotions.errors import BadArgument
from goemotions.evaluation.drift import DriftReport, LabelQuality, read_report
from goemotions.evaluation.traffic import FEATURES, Traffic, features_of
from goemotions.metrics.probabilities import sigmoid
from goemotions.models import engines
from goemotions.monitoring.drift import scheduled
from goemotions.prediction import files
from goemotions.prediction.predictor import Predictor
from goemotions.registry import mlflow_client, tracking
from goemotions.serving import metrics
from goemotions.serving.traffic.counters import TrafficCounters
from goemotions.storage import layout, store
from pipelines import parameters, training, unfinished
from pipelines.package import pack_monitoring
from pipelines.unfinished import RunFailed
from tests.support import prometheus
from tests.support.documents import yaml_documents

NOTHING: dict[str, Any] = {"server": "", "prometheus": "", "service": "", "scored": ""}


def test_the_pipeline_is_one_step_with_described_parameters(tmp_path: Path) -> None:
    packed = pack_monitoring("registry.example/team", "monitor.memory=8Gi", {"prometheus": "http://p:9090"}, force=True)
    assert packed.name == "goemotions-monitoring"
    spec, _ = yaml_documents(packed.path.read_text())
    declared = spec["root"]["inputDefinitions"]["parameters"]
    assert [name for name, field in declared.items() if not field.get("description")] == []
    assert set(spec["root"]["dag"]["tasks"]) == {"monitor"}
    container = spec["deploymentSpec"]["executors"]["exec-monitor"]["container"]
    assert container["resources"]["resourceMemoryLimit"] == "8Gi"


def test_the_traffic_comes_from_one_place_that_a_pod_can_reach() -> None:
    given = parameters.monitoring_arguments("", "http://prometheus:9090", "", {"service": "goemotions-cpu", "window": "6h"})
    assert given == {"prometheus": "http://prometheus:9090", "service": "goemotions-cpu", "window": "6h"}
    for server, scored, others in (("", "", {}), ("http://s:1", "s3://b/o/", {}), ("http://s:1", "", {"window": "a day"})):
        with pytest.raises(BadArgument):
            parameters.monitoring_arguments(server, "", scored, others)
    with pytest.raises(BadArgument, match="a pod cannot reach scored/"):
        parameters.monitoring_arguments("", "", "scored/", {})
    assert parameters.monitoring_arguments("", "", ".", {}, is_local=True) == {"scored": str(Path.cwd())}


def artifacts(folder: Path) -> dict[str, Any]:
    return {
        "report": dsl.Artifact(uri=str(folder / "report")),
        "page": dsl.HTML(uri=str(folder / "page.html")),
        "metrics": dsl.Metrics(uri=str(folder / "metrics")),
    }


def test_the_report_is_logged_to_mlflow_and_kept_where_the_decision_to_retrain_reads_it(
    whole: Path, stack: Path, bucket: str, tmp_path: Path
) -> None:
    texts = pa.table({"text": ["we saw a storm by the lake", "they left"] * 300})
    pq.write_table(texts, tmp_path / "in.parquet")
    scored = tmp_path / "out.parquet"
    files.score_file(Predictor.load(whole), tmp_path / "in.parquet", scored, all_scores=True)
    outputs = artifacts(tmp_path)
    shared = {"window": "1d", "version": str(whole), "model_name": "watched", "store": bucket, "pipeline_run": "watched-run"}
    monitor.python_func(**{**NOTHING, "scored": str(scored)}, **shared, **outputs)
    kept = read_report(layout.monitoring(bucket, "watched"))
    assert kept == read_report(str(tmp_path / "report"))
    assert kept.drifted
    assert kept.rows == 600
    assert "<html" in (tmp_path / "page.html").read_text()
    assert store.has(layout.monitoring(bucket, "watched"), "drift.html")
    run = mlflow_client.client().get_run(tracking.get_or_create_run("watched-run").run_id)
    assert run.info.status == "FINISHED"
    assert run.data.tags["monitoring.drifted"] == "true"
    assert run.data.metrics["drift/texts"] == outputs["metrics"].metadata["drift/texts"] == 600
    assert run.data.metrics["drift/alarms"] == len(kept.alarms)
    logged = {file.path for file in mlflow_client.client().list_artifacts(run.info.run_id, "drift")}
    assert logged == {"drift/drift.json", "drift/drift.html"}


@pytest.mark.fault("no-traffic")
@pytest.mark.parametrize("kind", ["server", "prometheus", "no series", "scored"])
def test_without_a_text_the_step_succeeds_says_so_and_keeps_the_earlier_report(
    kind: str, whole: Path, stack: Path, bucket: str, tmp_path: Path
) -> None:
    place = layout.monitoring(bucket, "idle")
    DriftReport("idle", "r1", "", "2026-01-02T00:00:00+00:00", 900, True, [], []).write(place)
    earlier = read_report(place)
    loaded = Predictor.load(whole)
    pq.write_table(pa.table({"text": ["lake"]}), tmp_path / "in.parquet")
    files.score_file(loaded, tmp_path / "in.parquet", tmp_path / "out.parquet", all_scores=True)
    pq.write_table(pq.read_table(tmp_path / "out.parquet").slice(0, 0), tmp_path / "out.parquet")
    increases = prometheus.of_traffic(Traffic.empty(loaded.bundle.taxonomy.names), "r1") if kind == "prometheus" else {}
    with prometheus.serving(increases, {"/metrics": "goemotions_start_time_seconds 1.7e+09"}) as served:
        served.services = {"goemotions-cpu": None}
        places = {"server": {"server": served.url}, "scored": {"scored": str(tmp_path / "out.parquet")}}
        given = places.get(kind, {"prometheus": served.url, "service": "goemotions-cpu"})
        shared = {"window": "6h", "version": str(whole), "model_name": "idle", "store": bucket, "pipeline_run": f"idle-{kind}"}
        outputs = artifacts(tmp_path)
        monitor.python_func(**{**NOTHING, **given}, **shared, **outputs)
    assert read_report(place) == earlier
    assert read_report(str(tmp_path / "report")).rows == outputs["metrics"].metadata["drift/texts"] == 0
    assert "Nothing to compare: no text of idle version r1" in (tmp_path / "page.html").read_text()
    run = mlflow_client.client().get_run(tracking.get_or_create_run(f"idle-{kind}").run_id)
    assert (run.info.status, run.data.tags["monitoring.drifted"]) == ("FINISHED", "not compared")
    assert run.data.tags["monitoring.summary"].startswith("Nothing to compare: ")
    assert run.data.metrics["drift/texts"] == 0


def test_metrics_of_labels_with_any_name_are_accepted_by_mlflow(stack: Path) -> None:
    labels = ["joy", "c++", "c##", "..", "a//b", "x" * 900, "v1.2", "\u0641\u0631\u062d"]
    quality = [LabelQuality(label, 0.5, 0.5, 0.5, 0.5, 0.25, 0.5) for label in labels]
    values = scheduled.metrics(DriftReport("m", "1", "", "", 9, False, [], quality))
    with tracking.step("watched-labels") as logged:
        logged.log_metrics(values)
    stored = mlflow_client.client().get_run(logged.run_id).data.metrics
    assert stored == values
    assert len(stored) == 3 + 2 * len(labels)
    assert {"drift/rate/joy", "drift/expected_f1/c___1", "drift/rate/v1.2"} <= set(stored)


@pytest.mark.parametrize("kind", ["server", "prometheus"])
def test_the_traffic_of_a_server_and_of_prometheus_is_compared(
    kind: str, whole: Path, stack: Path, bucket: str, tmp_path: Path
) -> None:
    predictor = Predictor.load(whole, threads=1)
    texts = ["we saw a storm by the lake", "they left"] * 200
    counters = TrafficCounters(predictor.bundle, predictor.bundle.metadata.run_id)
    encodings = predictor.bundle.encoder.encode(texts)
    logits = engines.logits(predictor.engine, [encoding.ids for encoding in encodings])
    counters.add(texts, encodings, logits)
    counters.flush()
    traffic = Traffic.of(
        predictor.bundle.taxonomy.names,
        sigmoid(logits),
        predictor.bundle.thresholds,
        features_of(predictor.bundle.encoder, texts),
    )
    increases = prometheus.of_traffic(traffic, predictor.bundle.metadata.run_id)
    with prometheus.serving(increases, {"/metrics": metrics.render(None)[0].decode()}) as served:
        given = {**NOTHING, kind: served.url, "service": "goemotions-cpu" if kind == "prometheus" else "", "window": "6h"}
        shared = {"version": str(whole), "model_name": kind, "store": bucket, "pipeline_run": f"watched-{kind}"}
        monitor.python_func(**given, **shared, **artifacts(tmp_path))
    kept = read_report(layout.monitoring(bucket, kind))
    assert kept.drifted
    assert kept.end
    assert bool(kept.start) is (kind == "prometheus")
    assert kept.rows == 400 or (kind == "server" and kept.rows > 400)
    assert {test.name for test in kept.tests} == {"predictions", "scores", *FEATURES}
    run = mlflow_client.client().get_run(tracking.get_or_create_run(f"watched-{kind}").run_id)
    assert run.data.metrics["drift/texts"] == kept.rows
    assert bool(served.queries) is (kind == "prometheus")
    assert all("6h" in query for query in served.queries)


def test_a_whole_number_is_accepted_for_a_parameter_with_decimals() -> None:
    given = parameters.typed(
        {"drift_cooldown_days": "0", "max_age_days": "365"}, training.for_run(has_teachers=False, on_reason=True)
    )
    assert [(name, type(value), value) for name, value in given.items()] == [
        ("drift_cooldown_days", float, 0.0),
        ("max_age_days", float, 365.0),
    ]


def test_two_runs_at_once_on_one_machine_are_refused(tmp_path: Path) -> None:
    with unfinished.alone(tmp_path), pytest.raises(RunFailed, match="another run on this machine"), unfinished.alone(tmp_path):
        pass
    with unfinished.alone(tmp_path):
        pass
