"""The compiled pipeline: what a cluster is given."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipelines import local, parameters, placement
from pipelines.submit import compile_pipeline
from pipelines.training import pipeline as training_pipeline

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("compiled") / "training.yaml"
    compile_pipeline(path, "goemotions-trainer:abc123", "abc123")
    return path


@pytest.fixture(scope="module")
def pipeline(compiled: Path) -> dict[str, Any]:
    return next(yaml.safe_load_all(compiled.read_text()))


@pytest.fixture(scope="module")
def platform(compiled: Path) -> dict[str, Any]:
    """What Kubernetes alone knows of each step's pod."""
    document = list(yaml.safe_load_all(compiled.read_text()))[1]
    return document["platforms"]["kubernetes"]["deploymentSpec"]["executors"]


@pytest.fixture(scope="module")
def loop(pipeline: dict[str, Any]) -> dict[str, Any]:
    return pipeline["components"]["comp-for-loop-1"]["dag"]["tasks"]


def test_every_parameter_is_described_and_has_a_default(pipeline: dict[str, Any]) -> None:
    declared = pipeline["root"]["inputDefinitions"]["parameters"]
    assert [name for name, facts in declared.items() if not facts.get("description")] == []
    assert [name for name, facts in declared.items() if "defaultValue" not in facts and not facts.get("isOptional")] == []
    assert len(declared) == 26
    assert declared["data"]["defaultValue"] == "sample"
    assert declared["models"]["defaultValue"] == ["minilm", "minilm-3l"]


def test_the_image_and_the_commit_are_those_it_was_compiled_for(pipeline: dict[str, Any]) -> None:
    declared = pipeline["root"]["inputDefinitions"]["parameters"]
    assert declared["image"]["defaultValue"] == "goemotions-trainer:abc123"
    assert declared["commit"]["defaultValue"] == "abc123"
    images = {executor["container"]["image"] for executor in pipeline["deploymentSpec"]["executors"].values()}
    assert images == {"{{$.inputs.parameters['pipelinechannel--image']}}"}


def test_the_tasks_are_the_steps_in_their_order(pipeline: dict[str, Any], loop: dict[str, Any]) -> None:
    tasks = pipeline["root"]["dag"]["tasks"]
    assert set(tasks) == {"ingest", "for-loop-1", "register", "report", "condition-2"}
    assert set(loop) == {"train", "export", "evaluate", "evaluate-2", "tune-thresholds", "tune-thresholds-2"}
    assert tasks["for-loop-1"]["dependentTasks"] == ["ingest"]
    assert set(tasks["register"]["dependentTasks"]) == {"for-loop-1", "ingest"}
    assert set(loop["evaluate"]["dependentTasks"]) == {"train", "export"}
    assert [task["taskInfo"]["name"] for task in loop.values() if task["taskInfo"]["name"].startswith("evaluate")] == [
        "evaluate (gpu)",
        "evaluate (cpu)",
    ]


def test_nothing_is_deployed_unless_a_namespace_is_named(pipeline: dict[str, Any]) -> None:
    task = pipeline["root"]["dag"]["tasks"]["condition-2"]
    assert task["triggerPolicy"]["condition"] == "inputs.parameter_values['pipelinechannel--deploy_namespace'] != ''"
    assert pipeline["root"]["inputDefinitions"]["parameters"]["deploy_namespace"]["defaultValue"] == ""
    assert set(pipeline["components"]["comp-condition-2"]["dag"]["tasks"]) == {"deploy"}


def test_training_runs_on_a100_nodes_and_the_pool_is_a_parameter(pipeline: dict[str, Any], platform: dict[str, Any]) -> None:
    resources = pipeline["deploymentSpec"]["executors"]["exec-train"]["container"]["resources"]
    assert resources["accelerator"] | {"resourceType": "nvidia.com/gpu", "resourceCount": "1"} == resources["accelerator"]
    train = platform["exec-train"]
    assert train["nodeSelector"]["nodeSelectorJson"] == {"componentInputParameter": "pipelinechannel--node_selector"}
    assert train["tolerations"][0]["tolerationJson"] == {"componentInputParameter": "pipelinechannel--tolerations"}
    (memory,) = train["emptyDirMounts"]
    assert (memory["mountPath"], memory["medium"], memory["sizeLimit"]) == ("/dev/shm", "Memory", "8Gi")
    declared = pipeline["root"]["inputDefinitions"]["parameters"]
    assert "A100" in declared["node_selector"]["defaultValue"]["nvidia.com/gpu.product"]
    assert declared["tolerations"]["defaultValue"] == [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]
    assert [name for name, pod in platform.items() if "nodeSelector" in pod] == ["exec-train"]


def test_every_step_asks_for_cpu_and_memory_ends_in_time_and_is_tried_again(
    pipeline: dict[str, Any], platform: dict[str, Any], loop: dict[str, Any]
) -> None:
    for name, executor in pipeline["deploymentSpec"]["executors"].items():
        resources = executor["container"]["resources"]
        assert resources["resourceCpuRequest"]
        assert resources["resourceMemoryRequest"] == resources["resourceMemoryLimit"]
        assert int(platform[name]["activeDeadlineSeconds"]) > 0
    tasks = {**pipeline["root"]["dag"]["tasks"], **loop, **pipeline["components"]["comp-condition-2"]["dag"]["tasks"]}
    steps = {name: task for name, task in tasks.items() if name not in ("for-loop-1", "condition-2")}
    assert len(steps) == 10
    for task in steps.values():
        policy = task["retryPolicy"]
        assert (policy["maxRetryCount"], policy["backoffDuration"]) == (3, "60s")
        executor = task["componentRef"]["name"].replace("comp-", "exec-", 1)
        attempts = 4 * int(platform[executor]["activeDeadlineSeconds"])
        # Argo counts it from the first attempt's start: a shorter one ends retrying while an attempt runs.
        assert int(policy["backoffMaxDuration"].rstrip("s")) > attempts


def test_resources_are_changed_when_the_pipeline_is_compiled(tmp_path: Path) -> None:
    changed = placement.resources(["train.gpus=4", "train.memory=128Gi", "train.accelerator=amd.com/gpu", "report.cpu=500m"])
    compile_pipeline(tmp_path / "four.yaml", "image:1", "1", training_pipeline(changed))
    spec = next(yaml.safe_load_all((tmp_path / "four.yaml").read_text()))
    train = spec["deploymentSpec"]["executors"]["exec-train"]["container"]["resources"]
    assert (train["accelerator"]["resourceType"], train["accelerator"]["resourceCount"]) == ("amd.com/gpu", "4")
    assert train["resourceMemoryLimit"] == "128Gi"
    assert spec["deploymentSpec"]["executors"]["exec-report"]["container"]["resources"]["resourceCpuRequest"] == "500m"


def test_without_gpus_training_runs_on_any_node(tmp_path: Path) -> None:
    compile_pipeline(tmp_path / "cpu.yaml", "image:1", "1", training_pipeline(placement.resources(["train.gpus=0"])))
    spec, platform = yaml.safe_load_all((tmp_path / "cpu.yaml").read_text())
    assert "accelerator" not in spec["deploymentSpec"]["executors"]["exec-train"]["container"]["resources"]
    assert "nodeSelector" not in platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]["exec-train"]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.gpu=1", r"no resource 'train.gpu'.*train.gpus"),
        ("train.gpus=two", "train.gpus is a whole number, not 'two'"),
        ("train.memory=16 GB", "train.memory is a quantity such as 4 or 16Gi, not '16 GB'"),
        ("train.cpu", "train.cpu is a quantity"),
    ],
)
def test_a_resource_that_cannot_be_is_refused(override: str, message: str) -> None:
    with pytest.raises(placement.BadResource, match=message):
        placement.resources([override])


def test_the_presets_name_labels_and_taints_of_a100_pools() -> None:
    assert set(placement.PRESETS) == {"gke", "eks", "generic"}
    for preset in placement.PRESETS.values():
        assert len(preset.node_selector) == 1
        assert preset.tolerations[0]["key"] == "nvidia.com/gpu"


def test_nothing_is_installed_in_a_pod(compiled: Path) -> None:
    assert "pip install" not in compiled.read_text()


def test_thresholds_are_given_validation_alone(loop: dict[str, Any]) -> None:
    for name in ("tune-thresholds", "tune-thresholds-2"):
        inputs = loop[name]["inputs"]["artifacts"]
        assert [given["taskOutputArtifact"]["outputArtifactKey"] for given in inputs.values()] == ["validation"]


@pytest.mark.fault("data-changed")
def test_no_step_takes_its_answer_from_the_cache(pipeline: dict[str, Any], loop: dict[str, Any]) -> None:
    """Other data under the same name never brings back an old result."""
    tasks = {**pipeline["root"]["dag"]["tasks"], **loop, **pipeline["components"]["comp-condition-2"]["dag"]["tasks"]}
    del tasks["for-loop-1"], tasks["condition-2"]
    assert [name for name, task in tasks.items() if task["cachingOptions"] != {}] == []


def test_credentials_come_by_reference(platform: dict[str, Any]) -> None:
    assert len(platform) == 10
    for executor in platform.values():
        (secret,) = executor["secretAsEnv"]
        assert {pair["envVar"] for pair in secret["keyToEnv"]} >= {"MLFLOW_TRACKING_URI", "AWS_SECRET_ACCESS_KEY"}
        assert "credentials_secret" in str(secret["secretNameParameter"])


def test_the_same_source_compiles_to_the_same_bytes(compiled: Path, tmp_path: Path) -> None:
    """In other processes too: maps of protobuf have another order in each."""
    code = (
        "import sys, pathlib; from pipelines import submit; submit.compile_pipeline(pathlib.Path(sys.argv[1]), *sys.argv[2:])"
    )
    made = [tmp_path / f"{number}.yaml" for number in range(4)]
    commands = [[sys.executable, "-c", code, str(path), "goemotions-trainer:abc123", "abc123"] for path in made]
    for process in [subprocess.Popen(command, cwd=ROOT) for command in commands]:
        assert process.wait(timeout=60) == 0
    assert {path.read_bytes() for path in made} == {compiled.read_bytes()}


def test_local_paths_become_absolute_and_locations_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    assert parameters.source("mine") == str(tmp_path / "mine")
    assert parameters.source("s3://bucket/data/") == "s3://bucket/data/"
    assert parameters.named_weights(("minilm=mine", "distilbert=s3://bucket/w/")) == {
        "minilm": str(tmp_path / "mine"),
        "distilbert": "s3://bucket/w/",
    }


def test_further_parameters_are_checked_by_name() -> None:
    assert parameters.parse(("max_quarantined=0.1", "unlabelled=keep")) == {"max_quarantined": 0.1, "unlabelled": "keep"}
    former = {"stated_precision=0.6": {"target_precision": 0.6}, "stated_recall=0.9": {"target_recall": 0.9}}
    assert {given: parameters.parse((given,)) for given in former} == former
    with pytest.raises(parameters.BadArgument, match=r"no parameter 'epoch'.*epochs"):
        parameters.parse(("epoch=3",))
    with pytest.raises(parameters.BadArgument, match="not a name=value"):
        parameters.named_weights(("distilbert",))


def test_a_local_run_leaves_the_pipeline_as_it_was(compiled: Path, tmp_path: Path) -> None:
    with local._on_one_machine():
        compile_pipeline(tmp_path / "local.yaml", "goemotions-trainer:abc123", "abc123")
    compile_pipeline(tmp_path / "after.yaml", "goemotions-trainer:abc123", "abc123")
    assert (tmp_path / "after.yaml").read_bytes() == compiled.read_bytes() != (tmp_path / "local.yaml").read_bytes()
