"""What a step used: processor time, time on a GPU and memory, in ``usage.json`` beside what the step wrote.

A step is a process of its own, so what it used is what its process and the children that have ended used since the process started. If
one process runs several steps, each counts from the end of the one before. ``registry.costs`` adds the steps of a run up.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

from goemotions import strict_json

FILE = "usage.json"
CPU = "cpu"


@dataclass(frozen=True)
class Usage:
    """What a step, or several of them, used.

    Attributes:
        wall_seconds: from its start to its end.
        cpu_seconds: of processor time, summed over cores, processes and their children.
        gpu_seconds: for which GPUs were taken, summed over GPUs: of a process that computes on one, the whole step.
        memory_gb_seconds: its largest memory in GB (10^9 bytes) times its duration.
        device: name of the GPU, or ``cpu``.
    """

    wall_seconds: float = 0.0
    cpu_seconds: float = 0.0
    gpu_seconds: float = 0.0
    memory_gb_seconds: float = 0.0
    device: str = CPU

    def __add__(self, other: Usage) -> Usage:
        return self._combined(other, 1, other.device if self.device == CPU else self.device)

    def __sub__(self, other: Usage) -> Usage:
        return self._combined(other, -1, self.device)

    def _combined(self, other: Usage, sign: int, device: str) -> Usage:
        return Usage(
            self.wall_seconds + sign * other.wall_seconds,
            self.cpu_seconds + sign * other.cpu_seconds,
            self.gpu_seconds + sign * other.gpu_seconds,
            self.memory_gb_seconds + sign * other.memory_gb_seconds,
            device,
        )


# What this process used for steps before the current one, and what earlier attempts of the current one used.
_before = Usage()
_earlier = Usage()


def so_far() -> Usage:
    """What the current step used up to now, in this attempt and in those that it continues."""
    used = _of_process() - _before
    # The GPU is held for the whole step, and was not for the steps before it in the same process that did not use it.
    return replace(used, gpu_seconds=min(used.gpu_seconds, used.wall_seconds)) + _earlier


def continue_from(earlier: Usage) -> None:
    """Counts what earlier attempts of the current step had used at a checkpoint; of several checkpoints, the latest counts."""
    global _earlier
    _earlier = max(_earlier, earlier, key=lambda used: used.wall_seconds)


def end_step(folder: Path, step: str, used: Usage | None = None) -> None:
    """Adds what a step used to ``usage.json`` of the folder that it wrote. What follows belongs to the next step of the process.

    Args:
        folder: the folder.
        step: the step's name.
        used: what it used; None for ``so_far``.
    """
    global _before, _earlier
    write(folder, {step: used or so_far()})
    _before, _earlier = _of_process(), Usage()


def write(folder: Path, steps: Mapping[str, Usage]) -> None:
    """Adds steps to ``usage.json`` of a folder; a folder that is a copy of another one keeps those of that one."""
    if content := {**read(folder), **steps}:
        (folder / FILE).write_text(
            json.dumps({name: asdict(used) for name, used in content.items()}, indent=1), encoding="utf-8"
        )


def read(folder: Path) -> dict[str, Usage]:
    """What the steps used that wrote a folder, by their names; empty if nothing readable is there, as in folders of before."""
    with contextlib.suppress(ValueError, TypeError, AttributeError):
        content = strict_json.read(folder / FILE)
        return {name: parse(entry) for name, entry in content.items()}
    return {}


def parse(entry: dict[str, float | str]) -> Usage:
    """A ``Usage`` from JSON; other keys are ignored.

    Raises:
        BadJson: a value has another type.
    """
    strict_json.require(entry, Usage, FILE)
    known = {field.name for field in fields(Usage)}
    return Usage(**{name: value for name, value in entry.items() if name in known})  # type: ignore[arg-type]


def _of_process() -> Usage:
    own, children = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    wall = _seconds_since_start()
    peak = 1024 * max(own.ru_maxrss, children.ru_maxrss)
    device = _gpu()
    return Usage(
        wall_seconds=wall,
        cpu_seconds=own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime,
        gpu_seconds=wall if device else 0.0,
        memory_gb_seconds=peak / 1e9 * wall,
        device=device or CPU,
    )


def _gpu() -> str:
    """The name of the GPU that this process computes on, if it does. A training has a process per GPU."""
    torch = sys.modules.get("torch")
    return str(torch.cuda.get_device_name()) if torch and torch.cuda.is_initialized() else ""


_IMPORTED = time.monotonic()


def _seconds_since_start() -> float:
    """Since this process started; where the kernel does not say when, since this module was imported."""
    try:
        # After the name in brackets, the twentieth field is the start in clock ticks since the machine started.
        ticks = int(Path("/proc/self/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[19])
        return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, AttributeError, ValueError, IndexError):
        return time.monotonic() - _IMPORTED
