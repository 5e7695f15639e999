"""The resources of each step's pod: defaults, memory by the size of the models, and changes.

They are fixed when a pipeline is compiled: inside a loop KFP takes no parameters for them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence

from goemotions.errors import WorkflowError
from goemotions.models.profiles import PROFILES


def _table(steps: Mapping[str, Mapping[str, str]]) -> Mapping[str, str]:
    return {f"{step}.{field}": value for step, fields in steps.items() for field, value in fields.items()}


# `<step>.<field>`: cpu and memory are requests, memory is also the limit; shared_memory is the size of /dev/shm; timeout is in seconds.
# device, of a step with GPUs: gpu fails if the GPU cannot be used, auto falls back to the CPU.
GPU = {"accelerator": "nvidia.com/gpu", "gpus": "1", "device": "gpu"}
TRAINING = _table(
    {
        "ingest": {"cpu": "1", "memory": "4Gi", "timeout": "3600"},
        "decide_retraining": {"cpu": "100m", "memory": "1Gi", "timeout": "3600"},
        "train": {"cpu": "8", "memory": "32Gi", **GPU, "shared_memory": "8Gi", "timeout": "86400"},
        "combine_teachers": {"cpu": "1", "memory": "4Gi", "timeout": "3600"},
        "export": {"cpu": "4", "memory": "8Gi", "timeout": "7200"},
        # The engine of the GPU variant is evaluated where it serves: on a GPU.
        "evaluate_gpu": {"cpu": "4", "memory": "16Gi", **GPU, "timeout": "7200"},
        "evaluate_cpu": {"cpu": "4", "memory": "8Gi", "timeout": "7200"},
        "tune_thresholds": {"cpu": "2", "memory": "4Gi", "timeout": "3600"},
        "register": {"cpu": "2", "memory": "8Gi", "timeout": "3600"},
        "report": {"cpu": "4", "memory": "8Gi", "timeout": "7200"},
        "deploy": {"cpu": "100m", "memory": "512Mi", "timeout": "3600"},
    }
)
MONITORING = _table({"monitor": {"cpu": "1", "memory": "4Gi", "timeout": "3600"}})
SCORING = _table(
    {
        "plan": {"cpu": "500m", "memory": "2Gi", "timeout": "3600"},
        "score": {"cpu": "4", "memory": "4Gi", "timeout": "86400"},
        "finish": {"cpu": "500m", "memory": "2Gi", "timeout": "3600"},
    }
)
# Peak memory of a step in GiB by profile, as `python -m benchmarks.rehearsal` measures it (docs/benchmarks.md).
MEASURED = ("train", "export", "evaluate_gpu", "evaluate_cpu", "tune_thresholds", "register", "report")
PEAKS: Mapping[str, Mapping[str, float]] = {
    "roberta-large": dict(zip(MEASURED, (13.3, 8.2, 3.4, 1.3, 0.2, 1.2, 1.4), strict=True)),
    "distilbert": dict(zip(MEASURED, (3.3, 2.1, 0.9, 0.5, 0.2, 0.6, 0.8), strict=True)),
    "minilm": dict(zip(MEASURED, (1.8, 1.2, 0.6, 0.3, 0.2, 0.4, 0.8), strict=True)),
}
MARGIN = 4 / 3
WHOLE_NUMBERS = ("gpus", "timeout")
DEVICES = ("gpu", "auto")
QUANTITY = re.compile(r"[0-9]+(\.[0-9]+)?(m|[EPTGMk]i?)?")


class BadResource(WorkflowError):
    """A resource is unknown, or its value is not a number or quantity."""


def for_models(models: Sequence[str], peaks: Mapping[str, Mapping[str, float]] = PEAKS) -> dict[str, str]:
    """``TRAINING`` with the memory that the largest of these models needs: the peak of a step, and a third more.

    The default is the least, because the peaks are measured on few rows and without the libraries of CUDA.
    """
    resources = dict(TRAINING)
    for name in (name for name in TRAINING if name.endswith(".memory")):
        step = name.partition(".")[0]
        measured = {model: known[step] for model, known in peaks.items() if step in known}
        needed = math.ceil(MARGIN * max((_peak(model, measured) for model in models), default=0.0))
        if needed > _gib(TRAINING[name]):
            resources[name] = f"{needed}Gi"
    return resources


def _peak(model: str, measured: Mapping[str, float]) -> float:
    """That of the model; if it was not measured, of the next larger one that was, by parameters, or else the largest of all."""
    if model in measured:
        return measured[model]
    size = PROFILES[model].encoder.parameters if model in PROFILES else math.inf
    sizes = {name: PROFILES[name].encoder.parameters for name in measured if name in PROFILES}
    larger = [name for name, parameters in sizes.items() if parameters >= size]
    return measured[min(larger, key=sizes.__getitem__)] if larger else max(measured.values(), default=0.0)


def gpu_steps(resources: Mapping[str, str]) -> list[str]:
    """The steps that request GPUs."""
    return [name.partition(".")[0] for name, value in resources.items() if name.endswith(".gpus") and int(value)]


def changed(overrides: str, defaults: Mapping[str, str]) -> dict[str, str]:
    """The resources that differ from the defaults.

    Args:
        overrides: ``step.field=value``, separated by spaces, such as ``train.gpus=4 train.memory=64Gi``.
        defaults: ``TRAINING``, the result of ``for_models``, or ``SCORING``.

    Raises:
        BadResource: no such step or field, or a value that is not a Kubernetes quantity.
    """
    resources = {}
    for override in overrides.split():
        name, _, value = override.partition("=")
        # Before the steps per variant, one step evaluated on the CPU alone.
        name = re.sub(r"^evaluate\.", "evaluate_cpu.", name)
        if name not in defaults:
            raise BadResource(f"there is no resource {name!r}: choose from {', '.join(defaults)}")
        if wrong := _wrong(name.rpartition(".")[2], value):
            raise BadResource(f"{name} is {wrong}, not {value!r}")
        resources[name] = value
    return {name: value for name, value in resources.items() if value != defaults[name]}


def _gib(memory: str) -> float:
    return float(memory[:-2]) / {"Gi": 1, "Mi": 1024}[memory[-2:]]


def _wrong(kind: str, value: str) -> str:
    """What a field is, if a value cannot be it."""
    if kind in WHOLE_NUMBERS:
        return "" if re.fullmatch("[0-9]+", value) else "a whole number"
    if kind == "device":
        return "" if value in DEVICES else " or ".join(DEVICES)
    return "" if kind == "accelerator" or QUANTITY.fullmatch(value) else "a quantity such as 4 or 16Gi"
