"""The whole workflow on real parts: kfp.local, SeaweedFS, MLflow and the model server, with seven labels and tiny models."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow.pyfunc
import pytest

from goemotions.models.records import TrainingRecord
from goemotions.registry import mlflow_client, model_registry, references, tracking
from goemotions.storage import manifest, store
from pipelines import demo, local
from pipelines.run_folder import RunFolder

ROOT = Path(__file__).parents[2]
TEXTS = ("we found the lake today", "a balloon under the old table", "they left")


@pytest.fixture(scope="module")
def registered(run: RunFolder) -> dict[str, Any]:
    return run.registered()


def test_each_variant_has_a_champion_with_a_complete_bundle_in_s3(registered: dict[str, Any], tmp_path: Path) -> None:
    for variant in ("gpu", "cpu"):
        version = model_registry.find_version("goemotions", f"champion-{variant}")
        assert version is not None
        assert version.source == registered[variant]["source"]
        assert version.tags["variant"] == variant
        folder = store.fetch(version.source, tmp_path / variant)
        assert manifest.verify(folder)["variant"] == variant
        assert {"README.md", "MLmodel", "thresholds.json", "metrics.json", "test.parquet"} <= {p.name for p in folder.iterdir()}


def test_there_is_one_parent_run_with_a_child_for_each_profile(registered: dict[str, Any]) -> None:
    version = model_registry.find_version("goemotions", "champion-cpu")
    assert version is not None
    child = mlflow_client.client().get_run(version.run_id)
    parent = mlflow_client.client().get_run(child.data.tags["mlflow.parentRunId"])
    assert parent.data.tags["dataset.digest"] == version.tags["dataset_digest"]
    children = mlflow_client.client().search_runs(
        [parent.info.experiment_id], f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'"
    )
    assert {run.data.tags[tracking.PROFILE_TAG] for run in children} == {"minilm"}


def test_the_report_compares_every_model_and_engine(run: RunFolder, registered: dict[str, Any]) -> None:
    text = (run.report / "report.md").read_text()
    for title in ("minilm (torch)", "minilm (openvino-int8)"):
        assert f"| {title} |" in text
    assert registered["cpu"]["source"] in text


def test_the_report_can_be_written_again(run: RunFolder, tmp_path: Path) -> None:
    page = run.publish(tmp_path / "whole", tmp_path / "docs")
    report_folder = run.report
    assert (tmp_path / "docs" / "model-performance.md").read_text() == (report_folder / "report.md").read_text()
    assert (tmp_path / "docs" / "dataset-analysis.md").read_text() == (report_folder / "dataset.md").read_text()
    assert page.read_text().startswith("<!doctype html>")
    assert not list((tmp_path / "docs").rglob("*.html"))


def test_the_report_takes_a_model_from_another_run(run: RunFolder, registered: dict[str, Any], tmp_path: Path) -> None:
    small = RunFolder(tmp_path / "small")
    shutil.copytree(run.path, small.path)
    (loop,) = (path.parent for path in small.path.glob("for-loop-*/train"))
    for record in loop.rglob("training.json"):
        record.write_text(record.read_text().replace('"name": "minilm"', '"name": "minilm-3l"'))
    listed = small.path / "register" / "registered" / "registered.json"
    other = {"profile": "minilm-3l", "version": "77", "source": "s3://goemotions/models/other/0/gpu/"}
    versions = {variant: version | other for variant, version in json.loads(listed.read_text()).items()}
    listed.write_text(json.dumps(versions))

    small.publish(tmp_path / "whole", tmp_path / "docs", large=(run, "minilm"))

    text = (tmp_path / "docs" / "model-performance.md").read_text()
    models = re.findall(r"^\| (\S+ \((?:torch|openvino-int8)\)) \|", text, re.MULTILINE)
    assert list(dict.fromkeys(models)) == [
        "minilm (torch)",
        "minilm-3l (torch)",
        "minilm (openvino-int8)",
        "minilm-3l (openvino-int8)",
    ]
    assert registered["gpu"]["source"] in text
    assert registered["cpu"]["source"] not in text


def test_the_server_and_mlflow_give_the_same_scores(registered: dict[str, Any], stack: Path) -> None:
    with demo.served(stack / "serve.log") as url:
        response = demo.predict(url, TEXTS)
    assert response["model_version"] == registered["cpu"]["version"]
    loaded = mlflow.pyfunc.load_model("models:/goemotions@champion-cpu").predict(list(TEXTS))
    for served, prediction in zip(response["predictions"], loaded, strict=True):
        assert len(served["scores"]) == 3
        assert served["labels"] == [label for label in served["scores"] if label in prediction["labels"]]
        assert {label: prediction["scores"][label] for label in served["labels"]}.items() <= served["scores"].items()


def test_a_version_can_be_downloaded_and_verified(registered: dict[str, Any], tmp_path: Path) -> None:
    version = references.fetch("champion-gpu", tmp_path)
    assert version is not None
    assert version.number == registered["gpu"]["version"]


def test_a_run_uses_the_registry_of_the_environment_and_a_failing_step_is_named(
    stack: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = model_registry.find_version("goemotions", "champion-cpu")
    with pytest.raises(local.RunFailed, match=r"there is no data folder .*missing: give `sample`"):
        local.run(tmp_path / "other", data=str(tmp_path / "missing"), models=["minilm"])
    assert model_registry.find_version("goemotions", "champion-cpu") == before
    places = f"registers at {os.environ['MLFLOW_TRACKING_URI']}, stores in s3://goemotions/ at {os.environ['AWS_ENDPOINT_URL']}"
    shown = capsys.readouterr().out
    assert shown.startswith(f"{places}\ns3://goemotions/models/goemotions/: conditional writes, reads and listings work (")
    assert not (tmp_path / "other" / "env").exists()


@pytest.mark.slow
@pytest.mark.fault("run-killed")
def test_a_run_with_teachers_of_two_kinds_that_is_killed_is_resumed(
    stack: Path, source: Path, weights: Callable[[str], str], tmp_path: Path
) -> None:
    command = [
        *(sys.executable, "-m", "goemotions.cli", "pipeline", "run", f"--data={source}", "--model-name=taught"),
        *("--models=minilm-3l,distilbert", "--teachers=distilbert+minilm@2", "--epochs=1"),
        *(f"--weights={name}={weights(name)}" for name in ("minilm", "minilm-3l", "distilbert")),
        '--set=settings={"distilbert":{"teacher_epochs":1}}',
    ]
    options: Any = {"cwd": tmp_path, "env": {**os.environ, "PYTHONPATH": str(ROOT)}, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **options, start_new_session=True) as killed:
        assert killed.stdout
        assert any("1 of 4 trainings are done in" in line for line in killed.stdout)
        os.killpg(killed.pid, signal.SIGKILL)
    resumed = subprocess.run(command, **options, check=True).stdout
    assert "resumes the run" in resumed
    assert re.search(r"1 of 4 trainings are done in \d+ min; how long the others take is known after", resumed)
    finished = RunFolder.newest(tmp_path / ".local")
    assert finished.log.read_text().count("teacher distilbert@1: its scores are found in") == 1

    records = [TrainingRecord.read(candidate.model) for candidate in finished.candidates()["cpu"]]
    assert [record.profile["name"] for record in records] == ["minilm-3l", "distilbert"]
    for record in records:
        assert [(one.profile["name"], one.seed) for one in record.teachers] == [("distilbert", 1), ("minilm", 2)]
    version = model_registry.find_version("taught", "champion-cpu")
    assert version is not None
    parent = mlflow_client.client().get_run(version.run_id).data.tags["mlflow.parentRunId"]
    experiment = mlflow_client.client().get_run(parent).info.experiment_id
    children = mlflow_client.client().search_runs([experiment], f"tags.`mlflow.parentRunId` = '{parent}'")
    assert {run.data.tags[tracking.PROFILE_TAG] for run in children} == {"minilm-3l", "distilbert", "distilbert@1", "minilm@2"}
    report = (finished.report / "report.md").read_text()
    teachers = report.split("### Teachers")[1].split("\n#")[0]
    assert "| distilbert, seed 1 |" in teachers
    assert "| minilm, seed 2 |" in teachers
    for title in ("minilm-3l (torch)", "minilm-3l (openvino-int8)", "distilbert (torch)", "distilbert (openvino-int8)"):
        assert f"| {title} |" in report


@pytest.mark.slow
@pytest.mark.fault("nothing-to-train-for")
def test_a_run_on_reason_trains_once_and_says_why_it_is_skipped_the_next_time(
    stack: Path, source: Path, weights: Callable[[str], str], capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = {"data": str(source), "models": ["minilm"], "weights": {"minilm": weights("minilm")}, "epochs": 1}
    first = local.run(stack, on_reason=True, model_name="on-reason", **arguments)
    assert "training, because on-reason has no champion" in capsys.readouterr().out
    assert first.has_trained
    assert "## Cost and energy" in (first.report / "report.md").read_text()
    assert [one.model.exists() for one in first.candidates()["cpu"]] == [True]
    version = model_registry.find_version("on-reason", "champion-cpu")
    assert version is not None
    assert json.loads(version.tags[tracking.DECISION_TAG])["reasons"][0]["kind"] == "first"
    second = local.run(stack, on_reason=True, model_name="on-reason", **arguments)
    assert not second.has_trained
    assert f"skipped: the data is unchanged since version {int(version.number) - 1}" in capsys.readouterr().out
    third = local.run(
        stack, on_reason=True, model_name="on-reason", manual_reason="it's the raters' new guidelines", **arguments
    )
    assert third.has_trained
    assert len(model_registry.versions("on-reason")) == 4
