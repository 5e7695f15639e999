"""Where the steps run: node pools with GPUs, queues, and resources by the size of the models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from goemotions import defaults, outages
from goemotions.deployment import node_pools
from goemotions.errors import BadArgument, WorkflowError
from pipelines import cli, package, placement, resources
from pipelines.kfp_local import adapted_to_this_machine
from pipelines.training import pipeline as training_pipeline
from pipelines.training import training
from tests.support.documents import yaml_documents

CLOUDS = {
    "gke": node_pools.ACCELERATOR,
    "eks": node_pools.INSTANCE_TYPE,
    "aks": node_pools.INSTANCE_TYPE,
    "generic": node_pools.PRODUCT,
}
QUEUE = {"kueue.x-k8s.io/queue-name": "team-queue", "kueue.x-k8s.io/priority-class": "high"}
GPU_STEPS = ("exec-train", "exec-evaluate")


def compile_to(path: Path, overrides: str = "", **options: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Containers and settings for Kubernetes of the compiled pipeline, by executor."""
    changed = resources.changed(overrides, resources.TRAINING)
    package.compile_pipeline(path, "image:1", "1", training_pipeline({**resources.TRAINING, **changed}, **options))
    spec, platform = yaml_documents(path.read_text())
    containers = {name: executor["container"] for name, executor in spec["deploymentSpec"]["executors"].items()}
    return containers, platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], dict[str, Any]]:
    return compile_to(tmp_path_factory.mktemp("compiled") / "training.yaml", gpu_labels=QUEUE)


def variables(container: dict[str, Any]) -> dict[str, str]:
    """Those of the container, but for the time that every step waits for a store that is away."""
    named = {pair["name"]: pair["value"] for pair in container["env"]}
    assert named.pop(outages.VARIABLE) == str(defaults.OUTAGE_SECONDS)
    return named


def test_training_and_the_evaluation_for_gpus_run_on_the_gpu_pool_and_no_other_step_does(
    compiled: tuple[dict[str, Any], dict[str, Any]],
) -> None:
    containers, platform = compiled
    assert [name for name, container in containers.items() if "accelerator" in container["resources"]] == sorted(GPU_STEPS)
    for name, container in containers.items():
        pod = platform[name]
        if name not in GPU_STEPS:
            assert not {"nodeSelector", "nodeAffinity", "tolerations", "podMetadata"} & set(pod)
            assert variables(container) == {"NVIDIA_VISIBLE_DEVICES": "void"}
            continue
        accelerator = container["resources"]["accelerator"]
        assert (accelerator["resourceType"], accelerator["resourceCount"]) == ("nvidia.com/gpu", "1")
        assert variables(container) == {"GOEMOTIONS_DEVICE": "gpu"}
        assert pod["nodeSelector"]["nodeSelectorJson"] == {"componentInputParameter": "pipelinechannel--node_selector"}
        assert pod["nodeAffinity"][0]["nodeAffinityJson"] == {"componentInputParameter": "pipelinechannel--node_affinity"}
        assert pod["tolerations"][0]["tolerationJson"] == {"componentInputParameter": "pipelinechannel--tolerations"}
        assert pod["podMetadata"]["labels"] == QUEUE
    (memory,) = platform["exec-train"]["emptyDirMounts"]
    assert (memory["mountPath"], memory["medium"], memory["sizeLimit"]) == ("/dev/shm", "Memory", "8Gi")


def test_without_gpus_the_steps_run_on_any_node(tmp_path: Path) -> None:
    containers, platform = compile_to(tmp_path / "cpu.yaml", "train.gpus=0 evaluate_gpu.gpus=0")
    for name, container in containers.items():
        assert "accelerator" not in container["resources"]
        assert not {"nodeSelector", "nodeAffinity", "tolerations"} & set(platform[name])
        assert variables(container) == {"NVIDIA_VISIBLE_DEVICES": "void"}


def test_a_step_may_fall_back_to_the_cpu_only_if_that_is_asked_for(tmp_path: Path) -> None:
    containers, _ = compile_to(tmp_path / "auto.yaml", "train.device=auto")
    assert variables(containers["exec-train"]) == {"GOEMOTIONS_DEVICE": "auto"}
    assert variables(containers["exec-evaluate"]) == {"GOEMOTIONS_DEVICE": "gpu"}
    with pytest.raises(resources.BadResource, match=r"train\.device is gpu or auto, not 'cpu'"):
        resources.changed("train.device=cpu", resources.TRAINING)


def test_on_this_machine_no_step_gets_the_variables_of_a_gpu_pod() -> None:
    """kfp.local would pass the variables on: without a GPU, every training on this machine would fail."""

    def with_variables() -> list[str]:
        executors = training.pipeline_spec.deployment_spec["executors"]
        return [name for name in executors if "env" in executors[name]["container"]]

    assert len(with_variables()) == 10
    with adapted_to_this_machine(training, "the-run"):
        assert with_variables() == []
    assert len(with_variables()) == 10


@pytest.mark.parametrize("preset", node_pools.PRESETS)
def test_a_preset_selects_nodes_by_the_label_of_its_cloud_and_tolerates_their_taints(preset: str) -> None:
    pool, cloud = node_pools.get(preset), preset.partition("-")[0]
    assert pool.label == CLOUDS[cloud]
    given = pool.placement()
    assert given["tolerations"][0] == {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}
    assert any(one["key"] == "sku" for one in given["tolerations"]) == (cloud == "aks")
    # A selector holds one value of a label, so several are an affinity; both at once would have to hold together.
    assert ("node_selector" in given) != ("node_affinity" in given)
    if "node_selector" in given:
        assert given["node_selector"] == {pool.label: pool.values[0]}
    else:
        (term,) = given["node_affinity"]["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
        assert term["matchExpressions"] == [{"key": pool.label, "operator": "In", "values": list(pool.values)}]


@pytest.mark.parametrize(
    ("preset", "value"),
    [
        ("gke-a100-40gb", "nvidia-tesla-a100"),
        ("gke-a100-80gb", "nvidia-a100-80gb"),
        ("gke-h100", "nvidia-h100-80gb"),
        ("gke-l4", "nvidia-l4"),
        ("eks-a100-40gb", "p4d.24xlarge"),
        ("eks-a100-80gb", "p4de.24xlarge"),
        ("eks-h100", "p5.48xlarge"),
        ("eks-l4", "g6.xlarge"),
        ("aks-a100-80gb", "Standard_NC24ads_A100_v4"),
        ("generic-a100-80gb", "NVIDIA-A100-SXM4-80GB"),
        ("generic-l4", "NVIDIA-L4"),
        ("gke", "nvidia-tesla-a100"),
        ("eks", "p4d.24xlarge"),
        ("generic", "NVIDIA-A100-SXM4-40GB"),
    ],
)
def test_the_label_of_a_preset_is_that_of_its_cards(preset: str, value: str) -> None:
    assert value in node_pools.get(preset).values


def test_an_unknown_preset_is_refused_with_the_list() -> None:
    with pytest.raises(BadArgument, match=r"there is no preset 'gke-a100-80': choose from gke-a100, .*, generic-l4"):
        node_pools.get("gke-a100-80")


@pytest.mark.fault("gpu-nodes-not-named")
@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ("", "^train and evaluate_gpu request GPUs, and it is not said on which nodes: give PRESET="),
        ("train.gpus=0", "^evaluate_gpu request"),
    ],
)
def test_a_gpu_without_nodes_is_an_error_before_submission(overrides: str, message: str) -> None:
    with pytest.raises(BadArgument, match=message):
        placement.require_gpu_nodes(overrides, {"models": ["roberta-large"]})


@pytest.mark.parametrize(
    ("overrides", "arguments"),
    [
        ("", node_pools.get("gke-a100-80gb").placement()),
        ("", node_pools.get("eks-l4").placement()),
        # Any node with a GPU, because it is said.
        ("", {"node_selector": {}}),
        ("train.gpus=0 evaluate_gpu.gpus=0", {}),
    ],
)
def test_named_nodes_or_no_gpus_are_accepted(overrides: str, arguments: dict[str, Any]) -> None:
    placement.require_gpu_nodes(overrides, arguments)


def shown(*arguments: str) -> dict[str, Any]:
    result = CliRunner().invoke(cli.pipeline, ["submit", "--dry-run", "--force", *arguments])
    assert result.exit_code == 0, result.output
    content: dict[str, Any] = json.loads(result.output[: result.output.rindex("}") + 1])
    return content


@pytest.fixture
def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(package, "TRAINING_FILE", tmp_path / "training.yaml")


@pytest.mark.usefixtures("written")
def test_a_dry_run_shows_gpus_nodes_tolerations_and_queue_of_each_gpu_step() -> None:
    content = shown("--preset", "gke-a100-80gb", "--queue", "team-queue", "--priority", "high")
    assert content["arguments"]["models"] == ["roberta-large", "distilbert"]
    assert content["arguments"]["data"].startswith("hub:")
    assert set(content["gpu_pods"]) == {"train", "evaluate_gpu"}
    for pod in content["gpu_pods"].values():
        assert pod["nvidia.com/gpu"] == "1"
        assert pod["node_selector"] == {"cloud.google.com/gke-accelerator": "nvidia-a100-80gb"}
        assert pod["tolerations"] == [node_pools.NVIDIA_TAINT]
        assert pod["labels"] == QUEUE


@pytest.mark.usefixtures("written")
def test_without_nodes_nothing_is_compiled_and_a_toy_is_not_trained_instead(tmp_path: Path) -> None:
    result = CliRunner().invoke(cli.pipeline, ["submit", "--dry-run", "--force"])
    assert isinstance(result.exception, WorkflowError)
    assert "give PRESET= (gke-a100, " in str(result.exception)
    assert not (tmp_path / "training.yaml").exists()


def test_one_machine_and_a_cluster_have_their_own_default_models_and_data() -> None:
    for name, models, data in (
        ("run", defaults.PROFILES, "sample"),
        ("demo", defaults.PROFILES, "sample"),
        ("submit", defaults.CLUSTER_PROFILES, defaults.CLUSTER_SOURCE),
        ("schedule", defaults.CLUSTER_PROFILES, defaults.CLUSTER_SOURCE),
    ):
        command = cli.pipeline.commands[name]
        given = {option.name: option.default for option in command.params if isinstance(option, click.Option)}
        assert (given["models"], given["data"]) == (",".join(models), data)


def test_queue_and_priority_are_labels_of_kueue() -> None:
    assert placement.queue_labels("team-queue", "high") == QUEUE
    assert placement.queue_labels("team-queue") == {"kueue.x-k8s.io/queue-name": "team-queue"}
    assert placement.queue_labels() == {}
    with pytest.raises(BadArgument, match=r"priority class high orders a queue of Kueue: name the queue too \(QUEUE=\)"):
        placement.queue_labels(priority="high")
    with pytest.raises(BadArgument, match="'team queue' is not the name of a queue"):
        placement.queue_labels("team queue")


# GiB; the default of each is 32, 8 and 8.
PEAKS = {"large": {"train": 30.2, "export": 15.0}, "small": {"train": 3.1, "export": 2.0, "report": 7.0}}


@pytest.mark.parametrize(
    ("models", "train", "export", "report"),
    [
        # A third more than the peak, in whole GiB, and at least the default.
        (["small"], "32Gi", "8Gi", "10Gi"),
        (["small", "large"], "41Gi", "20Gi", "10Gi"),
        # A model that was not measured counts as the largest that was.
        (["mine"], "41Gi", "20Gi", "10Gi"),
    ],
)
def test_memory_follows_from_the_largest_model(models: list[str], train: str, export: str, report: str) -> None:
    fitted = resources.for_models(models, PEAKS)
    expected = {"train.memory": train, "export.memory": export, "report.memory": report}
    assert fitted == {**resources.TRAINING, **expected}


def test_a_model_that_was_not_measured_needs_what_the_next_larger_one_needs() -> None:
    measured = {"minilm": {"train": 30.0}, "roberta-large": {"train": 60.0}}
    needed = {model: resources.for_models([model], measured)["train.memory"] for model in ("minilm-3l", "mpnet", "unknown")}
    assert needed == {"minilm-3l": "40Gi", "mpnet": "80Gi", "unknown": "80Gi"}


def test_the_former_name_of_the_evaluation_is_accepted() -> None:
    assert resources.changed("evaluate.memory=12Gi", resources.TRAINING) == {"evaluate_cpu.memory": "12Gi"}
