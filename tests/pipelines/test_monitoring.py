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
from goemotions.monitoring.drift import read_report
from goemotions.prediction import files
from goemotions.prediction.predictor import Predictor
from goemotions.registry import mlflow_client, tracking
from goemotions.storage import layout, store
from pipelines import parameters
from pipelines.package import pack_monitoring
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


def test_the_report_is_logged_to_mlflow_and_kept_where_the_decision_to_retrain_reads_it(
    whole: Path, stack: Path, bucket: str, tmp_path: Path
) -> None:
    texts = pa.table({"text": ["we saw a storm by the lake", "they left"] * 300})
    pq.write_table(texts, tmp_path / "in.parquet")
    scored = tmp_path / "out.parquet"
    files.score_file(Predictor.load(whole), tmp_path / "in.parquet", scored, all_scores=True)
    outputs: dict[str, Any] = {
        "report": dsl.Artifact(uri=str(tmp_path / "report")),
        "page": dsl.HTML(uri=str(tmp_path / "page.html")),
        "metrics": dsl.Metrics(uri=str(tmp_path / "metrics")),
    }
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
