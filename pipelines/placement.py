"""How the steps run in a cluster: image, keys, CPU, memory, accelerators and time of each, and the labels of A100 node pools.

Node selector and tolerations are parameters of the pipeline. The rest is fixed when it is compiled: inside a loop KFP takes no
parameters for it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from kfp import dsl, kubernetes

from goemotions.errors import WorkflowError

# CPU and memory are requests, memory is the limit too; `shared_memory` is the size of /dev/shm; `timeout` is in seconds.
DEFAULTS: Mapping[str, str] = {
    "ingest.cpu": "1",
    "ingest.memory": "4Gi",
    "ingest.timeout": "3600",
    "train.cpu": "8",
    "train.memory": "32Gi",
    "train.accelerator": "nvidia.com/gpu",
    "train.gpus": "1",
    "train.shared_memory": "8Gi",
    "train.timeout": "86400",
    "export.cpu": "4",
    "export.memory": "16Gi",
    "export.timeout": "7200",
    "evaluate.cpu": "4",
    "evaluate.memory": "8Gi",
    "evaluate.timeout": "7200",
    "tune_thresholds.cpu": "2",
    "tune_thresholds.memory": "4Gi",
    "tune_thresholds.timeout": "3600",
    "register.cpu": "2",
    "register.memory": "8Gi",
    "register.timeout": "3600",
    "report.cpu": "4",
    "report.memory": "8Gi",
    "report.timeout": "7200",
    "deploy.cpu": "100m",
    "deploy.memory": "512Mi",
    "deploy.timeout": "3600",
}
SCORING: Mapping[str, str] = {
    "plan.cpu": "500m",
    "plan.memory": "2Gi",
    "plan.timeout": "3600",
    "score.cpu": "4",
    "score.memory": "4Gi",
    "score.timeout": "86400",
    "finish.cpu": "500m",
    "finish.memory": "2Gi",
    "finish.timeout": "3600",
}
# What the steps read from the secret; a key that it lacks is left unset.
CREDENTIALS = (
    "MLFLOW_TRACKING_URI",
    "MLFLOW_TRACKING_USERNAME",
    "MLFLOW_TRACKING_PASSWORD",
    "MLFLOW_TRACKING_TOKEN",
    "AWS_ENDPOINT_URL",
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_REGION",
    "HF_TOKEN",
)
NUMBERS = ("gpus", "timeout")
QUANTITY = re.compile(r"[0-9]+(\.[0-9]+)?(m|[EPTGMk]i?)?")
# A preempted node takes minutes to come back; each attempt goes on from the last checkpoint.
RETRIES, BACKOFF_SECONDS = 3, 60


class BadResource(WorkflowError):
    """A resource is unknown or its value cannot be understood."""


@dataclass(frozen=True)
class Preset:
    """Labels and taints of a kind of A100 node pool, as Kubernetes writes them."""

    node_selector: dict[str, str]
    tolerations: list[dict[str, Any]] = field(
        default_factory=lambda: [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]
    )


PRESETS = {
    "gke": Preset({"cloud.google.com/gke-accelerator": "nvidia-tesla-a100"}),
    # The eight A100s of a node have one instance type; Karpenter and managed node groups both set the label.
    "eks": Preset({"node.kubernetes.io/instance-type": "p4d.24xlarge"}),
    # As NVIDIA's GPU feature discovery names the card with 40 GB.
    "generic": Preset({"nvidia.com/gpu.product": "NVIDIA-A100-SXM4-40GB"}),
}


def resources(overrides: Iterable[str] = (), defaults: Mapping[str, str] = DEFAULTS) -> dict[str, str]:
    """The defaults of a pipeline with some changed.

    Args:
        overrides: ``step.field=value``, such as ``train.gpus=4`` or ``train.memory=64Gi``.
        defaults: ``DEFAULTS``, or those of another pipeline.

    Raises:
        BadResource: no such step or field, or a value that is no Kubernetes quantity.
    """
    found = dict(defaults)
    for override in overrides:
        name, _, value = override.partition("=")
        if name not in defaults:
            raise BadResource(f"there is no resource {name!r}: choose from {', '.join(defaults)}")
        kind = name.rpartition(".")[2]
        if not (kind == "accelerator" or (re.fullmatch("[0-9]+", value) if kind in NUMBERS else QUANTITY.fullmatch(value))):
            raise BadResource(
                f"{name} is a {'whole number' if kind in NUMBERS else 'quantity such as 4 or 16Gi'}, not {value!r}"
            )
        found[name] = value
    return found


def place(
    task: dsl.PipelineTask,
    step: str,
    resources: Mapping[str, str],
    *,
    image: Any,
    secret: Any,
    node_selector: Any = None,
    tolerations: Any = None,
    name: str = "",
) -> dsl.PipelineTask:
    """Gives a task its image and keys, what its step asks for, and the node pool with the accelerators where it asks for some.

    Args:
        task: the task.
        step: its name in ``resources``.
        resources: as ``resources()`` answers them.
        image, secret: of every step, values or pipeline parameters.
        node_selector, tolerations: of the node pool, values or pipeline parameters.
        name: what the UI calls it; the step's where there is none.
    """
    task.set_display_name(name or step).set_container_image(image)
    # The cache knows names, not contents: other data or another model under the same name would get the old output.
    task.set_caching_options(False)
    kubernetes.use_secret_as_env(task, secret, {key: key for key in CREDENTIALS}, optional=True)
    asked = {name.partition(".")[2]: value for name, value in resources.items() if name.partition(".")[0] == step}
    task.set_cpu_request(asked["cpu"]).set_memory_request(asked["memory"]).set_memory_limit(asked["memory"])
    timeout = int(asked["timeout"])
    # To Argo the longest backoff is the time from the first start to the last attempt's end, not a wait between two.
    whole = (RETRIES + 1) * timeout + 3600
    task.set_retry(RETRIES, backoff_duration=f"{BACKOFF_SECONDS}s", backoff_factor=2.0, backoff_max_duration=f"{whole}s")
    kubernetes.set_timeout(task, timeout)
    if int(asked.get("gpus", 0)):
        task.set_accelerator_type(asked["accelerator"]).set_accelerator_limit(int(asked["gpus"]))
        kubernetes.add_node_selector_json(task, node_selector)
        kubernetes.add_toleration_json(task, tolerations)
        # Processes that share a batch of work do so through /dev/shm; a container's own has 64 MB.
        kubernetes.empty_dir_mount(task, "shared-memory", "/dev/shm", medium="Memory", size_limit=asked["shared_memory"])  # nosec B108 # a mount
    return task
