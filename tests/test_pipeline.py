"""The compiled pipeline: what a cluster is given."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from pipelines import local
from pipelines.submit import compile_pipeline


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("compiled") / "training.yaml"
    compile_pipeline(path, "goemotions-trainer:abc123", "abc123")
    return path


@pytest.fixture(scope="module")
def pipeline(compiled: Path) -> dict[str, Any]:
    return next(yaml.safe_load_all(compiled.read_text()))


@pytest.fixture(scope="module")
def loop(pipeline: dict[str, Any]) -> dict[str, Any]:
    return pipeline["components"]["comp-for-loop-1"]["dag"]["tasks"]


def test_every_parameter_is_described_and_has_a_default(pipeline: dict[str, Any]) -> None:
    parameters = pipeline["root"]["inputDefinitions"]["parameters"]
    assert [name for name, facts in parameters.items() if not facts.get("description")] == []
    assert [name for name, facts in parameters.items() if "defaultValue" not in facts and not facts.get("isOptional")] == []
    assert parameters["data"]["defaultValue"] == "sample"
    assert parameters["models"]["defaultValue"] == ["minilm", "minilm-3l"]


def test_the_image_and_the_commit_are_those_it_was_compiled_for(pipeline: dict[str, Any]) -> None:
    parameters = pipeline["root"]["inputDefinitions"]["parameters"]
    assert parameters["image"]["defaultValue"] == "goemotions-trainer:abc123"
    assert parameters["commit"]["defaultValue"] == "abc123"
    images = {executor["container"]["image"] for executor in pipeline["deploymentSpec"]["executors"].values()}
    assert images == {"{{$.inputs.parameters['pipelinechannel--image']}}"}


def test_the_tasks_are_the_steps_in_their_order(pipeline: dict[str, Any], loop: dict[str, Any]) -> None:
    tasks = pipeline["root"]["dag"]["tasks"]
    assert set(tasks) == {"ingest", "for-loop-1", "register", "report"}
    assert set(loop) == {"train", "export", "evaluate", "evaluate-2", "tune-thresholds", "tune-thresholds-2"}
    assert tasks["for-loop-1"]["dependentTasks"] == ["ingest"]
    assert set(tasks["register"]["dependentTasks"]) == {"for-loop-1", "ingest"}
    assert set(loop["evaluate"]["dependentTasks"]) == {"train", "export"}
    assert {task["retryPolicy"]["maxRetryCount"] for task in loop.values()} == {2}


def test_nothing_is_installed_in_a_pod(compiled: Path) -> None:
    assert "pip install" not in compiled.read_text()


def test_thresholds_are_given_validation_alone(loop: dict[str, Any]) -> None:
    for name in ("tune-thresholds", "tune-thresholds-2"):
        inputs = loop[name]["inputs"]["artifacts"]
        assert [given["taskOutputArtifact"]["outputArtifactKey"] for given in inputs.values()] == ["validation"]


def test_no_step_takes_its_answer_from_the_cache(pipeline: dict[str, Any], loop: dict[str, Any]) -> None:
    """Fault row 22: other data under the same name never brings back an old result."""
    tasks = {**pipeline["root"]["dag"]["tasks"], **loop}
    del tasks["for-loop-1"]
    assert [name for name, task in tasks.items() if task["cachingOptions"] != {}] == []


def test_credentials_come_by_reference(compiled: Path) -> None:
    platform = list(yaml.safe_load_all(compiled.read_text()))[1]
    executors = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    assert len(executors) == 9
    for executor in executors.values():
        (secret,) = executor["secretAsEnv"]
        assert {pair["envVar"] for pair in secret["keyToEnv"]} >= {"MLFLOW_TRACKING_URI", "AWS_SECRET_ACCESS_KEY"}
        assert "credentials_secret" in str(secret["secretNameParameter"])


def test_the_same_source_compiles_to_the_same_bytes(compiled: Path, tmp_path: Path) -> None:
    compile_pipeline(tmp_path / "again.yaml", "goemotions-trainer:abc123", "abc123")
    assert (tmp_path / "again.yaml").read_bytes() == compiled.read_bytes()


def test_local_paths_become_absolute_and_locations_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    assert local.source("mine") == str(tmp_path / "mine")
    assert local.source("s3://bucket/data/") == "s3://bucket/data/"
    assert local.named_weights(("minilm=mine", "distilbert=s3://bucket/w/")) == {
        "minilm": str(tmp_path / "mine"),
        "distilbert": "s3://bucket/w/",
    }


def test_further_parameters_are_checked_by_name() -> None:
    assert local.parameters(("max_quarantined=0.1", "unlabelled=keep")) == {"max_quarantined": 0.1, "unlabelled": "keep"}
    with pytest.raises(local.BadArgument, match=r"no parameter 'epoch'.*epochs"):
        local.parameters(("epoch=3",))
    with pytest.raises(local.BadArgument, match="no name=value"):
        local.named_weights(("distilbert",))


def test_a_local_run_leaves_the_pipeline_as_it_was(compiled: Path, tmp_path: Path) -> None:
    with local._on_one_machine():
        compile_pipeline(tmp_path / "local.yaml", "goemotions-trainer:abc123", "abc123")
    compile_pipeline(tmp_path / "after.yaml", "goemotions-trainer:abc123", "abc123")
    assert (tmp_path / "after.yaml").read_bytes() == compiled.read_bytes() != (tmp_path / "local.yaml").read_bytes()
