"""Each component as a function, on real artifacts."""

import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from kfp import dsl

from components.combine_teachers import combine_teachers
from components.decide_retraining import decide_retraining
from components.deploy import deploy
from components.evaluate import evaluate
from components.export import export
from components.ingest import ingest
from components.monitor import monitor
from components.register import register
from components.report import report
from components.teach import teach
from components.train import train
from components.tune_thresholds import tune_thresholds
from goemotions.evaluation.drift import DriftReport
from goemotions.registry import mlflow_client, model_registry, registration, tracking
from goemotions.storage import layout

COMPONENTS = (
    ingest,
    teach,
    combine_teachers,
    train,
    export,
    evaluate,
    tune_thresholds,
    register,
    report,
    deploy,
    decide_retraining,
    monitor,
)


@pytest.mark.parametrize("component", COMPONENTS, ids=lambda component: component.name)
def test_a_component_has_no_defaults_and_installs_nothing(component: dsl.base_component.BaseComponent) -> None:
    parameters = inspect.signature(component.python_func).parameters.values()
    assert [parameter.name for parameter in parameters if parameter.default is not parameter.empty] == []
    command = " ".join(component.component_spec.implementation.container.command)
    assert "pip install" not in command


def test_ingest_returns_the_digest_and_describes_its_dataset(source: Path, stack: Path, tmp_path: Path) -> None:
    dataset = dsl.Dataset(uri=str(tmp_path / "dataset"))
    digest = ingest.python_func(str(source), "text", "", 0.1, 0, False, "quarantine", 0.05, "component-ingest", dataset)
    assert json.loads((tmp_path / "dataset" / "dataset.json").read_text())["digest"] == digest == dataset.metadata["digest"]
    assert dataset.metadata["train"] == 240
    inputs = mlflow_client.client().get_run(tracking.get_or_create_run("component-ingest").run_id).inputs.dataset_inputs
    assert {one.tags[0].value: one.dataset.name for one in inputs} == {
        split: f"{source}/{split}" for split in ("train", "validation", "test")
    }
    assert {one.dataset.digest for one in inputs} == {digest[:36]}


def test_train_logs_its_epochs_and_leaves_checkpoints_in_s3(
    dataset: Path, stack: Path, bucket: str, weights: Callable[[str], str], tmp_path: Path
) -> None:
    model = dsl.Model(uri=str(tmp_path / "model"))
    train.python_func(
        dataset=dsl.Dataset(uri=str(dataset)),
        profile="minilm",
        weights={"minilm": weights("minilm")},
        settings={"minilm": {"learning_rate": 0.003, "teachers": 1.0}},
        epochs=2,
        seed=0,
        precision="fp32",
        store=bucket,
        checkpoint_minutes=0.0,
        pipeline_run="component-train",
        teachers=[],
        transfer_texts=0.0,
        model=model,
    )
    run = mlflow_client.client().get_run(tracking.get_or_create_run("component-train", "minilm").run_id)
    history = mlflow_client.client().get_metric_history(run.info.run_id, "validation/auc_micro")
    assert [entry.step for entry in history] == [1, 2]
    assert [one.tags[0].value for one in run.inputs.dataset_inputs] == ["train", "validation", "test"]
    assert run.data.params["learning_rate"] == "0.003"
    assert run.info.status == "FINISHED"
    checkpoints = registration.storage.children(f"{bucket}checkpoints/component-train/minilm/")
    assert checkpoints == ["step-000000016", "teacher-1"]
    assert model.metadata["profile"] == "minilm"


def test_teachers_are_kept_in_s3_and_their_scores_are_in_the_dataset_of_the_students(
    dataset: Path, stack: Path, bucket: str, weights: Callable[[str], str], tmp_path: Path
) -> None:
    folders = [dsl.Artifact(uri=str(tmp_path / name)) for name in ("one", "again")]
    for scores in folders:
        teach.python_func(
            dataset=dsl.Dataset(uri=str(dataset)),
            teacher="minilm@4",
            weights={"minilm": weights("minilm")},
            settings={"minilm": {"learning_rate": 0.003}},
            precision="fp32",
            store=bucket,
            checkpoint_minutes=10.0,
            transfer_texts=0.0,
            pipeline_run=f"teach-{scores.uri[-3:]}",
            scores=scores,
        )
    assert len(registration.storage.children(f"{bucket}teachers/")) == 1
    assert registration.storage.children(f"{bucket}checkpoints/teachers/") == []
    assert folders[0].metadata == folders[1].metadata
    assert folders[0].metadata.keys() == {"teacher", "parameters", "seconds"}
    # The scores of the second run are those of the first; both say in MLflow how the teacher was trained.
    for run in ("teach-one", "teach-ain"):
        logged_run = mlflow_client.client().get_run(tracking.get_or_create_run(run, "minilm@4").run_id).data
        assert logged_run.metrics["train_seconds"] == folders[0].metadata["seconds"]
        assert {"validation/auc_micro", "train/loss", "best_epoch"} <= logged_run.metrics.keys()
        recipe = {name: logged_run.params[name] for name in ("name", "learning_rate", "seed", "epochs")}
        assert recipe == {"name": "minilm", "learning_rate": "0.003", "seed": "4", "epochs": "1"}
    taught = dsl.Dataset(uri=str(tmp_path / "taught"))
    combine_teachers.python_func(dsl.Dataset(uri=str(dataset)), folders[:1], taught)
    assert taught.metadata["teachers"] == "minilm@4"
    assert (tmp_path / "taught" / "teachers" / "predictions.parquet").exists()


def logged(run: str) -> tuple[dict[str, float], dict[str, str]]:
    """The metrics and tags of the model of a pipeline run; each metric was logged once."""
    recorded = mlflow_client.client().get_run(tracking.get_or_create_run(run, "minilm").run_id)
    for name in recorded.data.metrics:
        assert len(mlflow_client.client().get_metric_history(recorded.info.run_id, name)) == 1, name
    return recorded.data.metrics, recorded.data.tags


def test_evaluate_and_tune_keep_the_splits_apart(
    dataset: Path, model_folder: Path, onnx_folder: Path, stack: Path, tmp_path: Path
) -> None:
    outputs = {name: dsl.Artifact(uri=str(tmp_path / name)) for name in ("validation", "test")}
    metrics, roc = dsl.Metrics(uri=str(tmp_path / "metrics")), dsl.ClassificationMetrics(uri=str(tmp_path / "roc"))
    inputs = (dsl.Dataset(uri=str(dataset)), dsl.Model(uri=str(model_folder)), dsl.Model(uri=str(onnx_folder)))
    evaluate.python_func(*inputs, "openvino-int8", "cpu", "minilm", "component-scores", **outputs, metrics=metrics, roc=roc)
    assert outputs["test"].metadata["evaluated"] == "openvino-int8 on cpu in int8"
    readings = roc.metadata["confidenceMetrics"]
    assert 2 <= len(readings) <= 200
    assert (readings[0]["falsePositiveRate"], readings[0]["confidenceThreshold"]) == (0.0, 1.0)
    assert (readings[-1]["falsePositiveRate"], readings[-1]["recall"]) == (1.0, 1.0)
    json.dumps(readings, allow_nan=False)
    assert {name.partition("/")[0] for name in metrics.metadata} == {"validation", "test"}
    for split in ("validation", "test"):
        stored = json.loads((tmp_path / split / "metrics.json").read_text())
        assert {name.partition("/")[0] for name in stored} == {split}
        assert all(metrics.metadata[name] == value for name, value in stored.items())
    thresholds = dsl.Artifact(uri=str(tmp_path / "thresholds"))
    for _ in range(2):
        # A step that is retried logs nothing twice.
        arguments = ("recall", 0.7, 0.9, "cpu", "minilm", "component-scores")
        tune_thresholds.python_func(outputs["validation"], *arguments, thresholds)
    assert thresholds.metadata["strategy"] == "recall-0.9"
    assert json.loads((tmp_path / "thresholds" / "thresholds.json").read_text())["strategy"] == thresholds.metadata["strategy"]
    values, tags = logged("component-scores")
    assert values["cpu/test/f1_macro/at_0.5"] == metrics.metadata["test/f1_macro"]
    assert values["cpu/validation/f1_macro/cross_fitted"] == thresholds.metadata["f1_macro_cross_fitted"]
    assert (tags["cpu.threshold_strategy"], tags["cpu.evaluated"]) == ("recall-0.9", "openvino-int8 on cpu in int8")


def test_export_reports_parity_and_latency(dataset: Path, model_folder: Path, stack: Path, tmp_path: Path) -> None:
    metrics = dsl.Metrics(uri=str(tmp_path / "metrics"))
    inputs = (dsl.Dataset(uri=str(dataset)), dsl.Model(uri=str(model_folder)), "minilm", "component-export")
    export.python_func(*inputs, dsl.Model(uri=str(tmp_path / "onnx")), metrics)
    values, _ = logged("component-export")
    assert values == metrics.metadata
    assert metrics.metadata["openvino-fp32/difference_max"] < 1e-4
    assert metrics.metadata["openvino-int8/bytes"] < metrics.metadata["openvino-fp32/bytes"]


def test_register_writes_versions_and_report_writes_pages(
    dataset: Path, candidate: Path, stack: Path, bucket: str, tmp_path: Path
) -> None:
    lists = {"models": [dsl.Model(uri=str(candidate / "model"))], "onnx": [dsl.Model(uri=str(candidate / "onnx"))]}
    for variant in ("gpu", "cpu"):
        for name in ("validation", "test", "thresholds"):
            lists[f"{variant}_{name}"] = [dsl.Artifact(uri=str(candidate / variant / name))]
    names = {"store": bucket, "pipeline_run": "component-register", "model_name": "component-register"}
    limits = {"latency_budget_ms": 25.0, "quality_tolerance": 0.0, "cpu_hour_price": 1.0, "gpu_hour_price": 2.0}
    shared: dict[str, Any] = {**names, **limits}
    registered = dsl.Artifact(uri=str(tmp_path / "registered"))
    register.python_func(
        dataset=dsl.Dataset(uri=str(dataset)),
        **lists,
        **shared,
        auto_promote=False,
        keep_checkpoints=False,
        commit="abc",
        image="goemotions-trainer:abc",
        registered=registered,
    )
    versions = json.loads((tmp_path / "registered" / "registered.json").read_text())
    version = model_registry.find_version("component-register", "champion-cpu")
    assert version is not None
    assert (version.number, version.source) == (versions["cpu"]["version"], versions["cpu"]["source"])
    assert version.tags["commit"] == "abc"
    DriftReport("component-register", "1", "", "", 900, False, [], []).write(layout.monitoring(bucket, "component-register"))
    page, text = dsl.HTML(uri=str(tmp_path / "page.html")), dsl.Markdown(uri=str(tmp_path / "text.md"))
    report.python_func(
        dataset=dsl.Dataset(uri=str(dataset)),
        **lists,
        **shared,
        registered=registered,
        mlflow_address="https://mlflow.example/",
        commit="c0ffee",
        folder=dsl.Artifact(uri=str(tmp_path / "folder")),
        page=page,
        text=text,
    )
    assert versions["gpu"]["source"] in (tmp_path / "text.md").read_text()
    run = tracking.get_or_create_run("component-register").run_id
    link = (tmp_path / "text.md").read_text().splitlines()[0]
    assert link.startswith("[This run in MLflow](https://mlflow.example/#/experiments/")
    assert link.endswith(f"/runs/{run})")
    assert "report/report.html" in [file.path for file in mlflow_client.client().list_artifacts(run, "report")]
    parent = mlflow_client.client().get_run(run).data
    model = mlflow_client.client().get_run(versions["cpu"]["run_id"]).data.metrics
    steps = {
        name: value for name, value in {**parent.metrics, **model}.items() if name.count("/") == 2 and name.endswith("/cost")
    }
    names = ["evaluate_cpu", "evaluate_gpu", "export", "ingest", "register", "report", "train"]
    assert sorted(steps) == [f"costs/{name}/cost" for name in [*names, "tune-thresholds_cpu", "tune-thresholds_gpu"]]
    assert parent.metrics["costs/cost"] == pytest.approx(sum(steps.values()))
    assert 0 < model["costs/cost"] < parent.metrics["costs/cost"]
    assert parent.metrics["costs/cost"] == pytest.approx(parent.metrics["costs/cpu_seconds"] / 3600)
    assert parent.tags["costs.prices"] == "1 per CPU hour and 2 per GPU hour"
    assert "## Drift since the deployment" in (tmp_path / "text.md").read_text()
    assert "## Cost and energy" in (tmp_path / "text.md").read_text()
