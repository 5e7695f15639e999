"""The resources of each step's pod, with their defaults, and the labels of A100 node pools.

They are fixed when a pipeline is compiled: inside a loop KFP takes no parameters for them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from goemotions.errors import WorkflowError

# `<step>.<field>`: cpu and memory are requests, memory is also the limit; shared_memory is the size of /dev/shm; timeout is in seconds.
TRAINING: Mapping[str, str] = {
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
WHOLE_NUMBERS = ("gpus", "timeout")
QUANTITY = re.compile(r"[0-9]+(\.[0-9]+)?(m|[EPTGMk]i?)?")


class BadResource(WorkflowError):
    """A resource is unknown, or its value is not a number or quantity."""


@dataclass(frozen=True)
class Preset:
    """Labels and taints of a kind of A100 node pool, as Kubernetes writes them; the fields are parameters of the pipeline."""

    node_selector: dict[str, str]
    tolerations: list[dict[str, Any]] = field(
        default_factory=lambda: [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]
    )


PRESETS = {
    "gke": Preset({"cloud.google.com/gke-accelerator": "nvidia-tesla-a100"}),
    # The instance type with eight A100s; Karpenter and managed node groups both set the label.
    "eks": Preset({"node.kubernetes.io/instance-type": "p4d.24xlarge"}),
    # The label that NVIDIA's GPU feature discovery sets for the card with 40 GB.
    "generic": Preset({"nvidia.com/gpu.product": "NVIDIA-A100-SXM4-40GB"}),
}


def changed(overrides: str, defaults: Mapping[str, str]) -> dict[str, str]:
    """The resources that differ from the defaults.

    Args:
        overrides: ``step.field=value``, separated by spaces, such as ``train.gpus=4 train.memory=64Gi``.
        defaults: ``TRAINING`` or ``SCORING``.

    Raises:
        BadResource: no such step or field, or a value that is not a Kubernetes quantity.
    """
    resources = {}
    for override in overrides.split():
        name, _, value = override.partition("=")
        if name not in defaults:
            raise BadResource(f"there is no resource {name!r}: choose from {', '.join(defaults)}")
        kind = name.rpartition(".")[2]
        is_whole = kind in WHOLE_NUMBERS
        if kind != "accelerator" and not (re.fullmatch("[0-9]+", value) if is_whole else QUANTITY.fullmatch(value)):
            raise BadResource(f"{name} is a {'whole number' if is_whole else 'quantity such as 4 or 16Gi'}, not {value!r}")
        resources[name] = value
    return {name: value for name, value in resources.items() if value != defaults[name]}
