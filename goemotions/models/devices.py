"""The device that computes: a GPU or the CPU, and why a GPU cannot be used.

A process that was given a GPU has the environment variable GOEMOTIONS_DEVICE=gpu: the pipeline sets it on the steps that request
one, and the manifest on the GPU predictor. Such a process never computes on the CPU instead: it ends with an error that names the
part that is missing. With ``auto``, the default, it uses a GPU if there is one; with ``cpu`` never.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import math
import os
import platform
import re
from pathlib import Path

from goemotions.errors import BadArgument, DeviceError, first_line

log = logging.getLogger(__name__)

VARIABLE = "GOEMOTIONS_DEVICE"
CHOICES = ("auto", "gpu", "cpu")
# Of the file system; tests have another one.
ROOT = Path("/")
# Where a container's quota and its period are, by version 2 of the kernel's control groups, and by version 1.
QUOTAS = (("sys/fs/cgroup", ("cpu.max",)), ("sys/fs/cgroup/cpu", ("cpu.cfs_quota_us", "cpu.cfs_period_us")))
# The oldest driver that runs programs of a version of CUDA, by major versions.
OLDEST_DRIVER = {"11": 450, "12": 525, "13": 580}
DRIVER_LIBRARY = "libcuda.so.1"
LIBRARY_FOLDERS = ("usr/lib/x86_64-linux-gnu", "usr/lib/aarch64-linux-gnu", "usr/lib64", "usr/lib")
# GKE mounts the driver's libraries here; the loader finds them by LD_LIBRARY_PATH only.
MOUNTED_LIBRARIES = "usr/local/nvidia/lib64"


def resolve(*, compute: bool = False) -> str:
    """Returns the type of the device in torch's words, ``cuda`` or ``cpu``.

    With ``compute``, it tries to compute on the GPU, too, which takes some of its memory until the process ends.

    Raises:
        BadArgument: GOEMOTIONS_DEVICE has another value.
        DeviceError: this process was given a GPU and cannot use it.
    """
    choice = os.environ.get(VARIABLE) or "auto"
    if choice not in CHOICES:
        raise BadArgument(f"{VARIABLE} is {', '.join(CHOICES[:-1])} or {CHOICES[-1]}, not {choice!r}")
    if choice == "cpu":
        return "cpu"
    reason = _why_unusable(compute)
    if not reason:
        return "cuda"
    if choice == "gpu":
        raise DeviceError(f"{reason} ({VARIABLE}=auto computes on the CPU instead)")
    if _devices():
        _warn_once(f"computing on the CPU, because the GPU cannot be used: {reason}")
    return "cpu"


def is_required() -> bool:
    """Whether this process was given a GPU, which it must use."""
    return os.environ.get(VARIABLE) == "gpu"


def name(kind: str) -> str:
    """The device's name, such as ``NVIDIA A100-SXM4-80GB``, for a type as ``resolve`` returns it."""
    if kind != "cuda":
        return cpu_name()
    import torch

    return torch.cuda.get_device_name()


def cpu_name() -> str:
    """The processor's model."""
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return platform.processor() or platform.machine()


def cpus() -> int:
    """The number of cores that this process may use, by its affinity and its container's quota."""
    available = len(os.sched_getaffinity(0))
    for folder, names in QUOTAS:
        with contextlib.suppress(OSError, ValueError):
            quota, period = (int(text) for name in names for text in (ROOT / folder / name).read_text().split())
            # In version 1, -1 is no quota; in version 2 that is a word.
            if quota > 0:
                available = min(available, math.ceil(quota / period))
    return max(available, 1)


def diagnose(cuda: str) -> str:
    """The first part between torch, built for this version of CUDA, and the GPU that is missing, with what to do; empty if none is."""
    if not cuda:
        return "torch: this build computes on the CPU only: install a build for CUDA, as the images have it"
    driver, oldest = _driver_version(), OLDEST_DRIVER.get(cuda.partition(".")[0], 0)
    assigned, devices = os.environ.get("NVIDIA_VISIBLE_DEVICES", ""), _devices()
    if not (driver or devices):
        return "driver: this node has no NVIDIA driver: use a node with a GPU, or install the driver (GPU operator, node image)"
    if driver and int(driver.partition(".")[0]) < oldest:
        return f"driver: version {driver} is too old for the CUDA {cuda} of torch: it needs {oldest} or newer"
    if not devices:
        return _why_no_device(assigned)
    if os.environ.get("CUDA_VISIBLE_DEVICES", "all") in ("", "-1", "NoDevFiles"):
        return "CUDA_VISIBLE_DEVICES hides every GPU: remove the variable"
    return _why_no_library()


def _why_unusable(compute: bool) -> str:
    try:
        import torch
    except ModuleNotFoundError:
        return "torch: it is not installed: use the predictor's image for GPUs, or install the extra [train]"
    if not torch.cuda.is_available():
        return diagnose(torch.version.cuda or "") or f"driver: {_cuda_error(torch)}"
    return _cuda_error(torch) if compute else ""


def _why_no_device(assigned: str) -> str:
    # NVIDIA's device plugin replaces the image's `all` by the ids of the assigned GPUs.
    is_pod = "KUBERNETES_SERVICE_HOST" in os.environ
    if assigned in ("", "none", "void") or (is_pod and assigned == "all"):
        return (
            f"device plugin: no GPU was assigned to this container (NVIDIA_VISIBLE_DEVICES is {assigned or 'not set'}): "
            "request nvidia.com/gpu, and check that the node's device plugin runs"
        )
    return (
        f"runtime: a GPU was assigned (NVIDIA_VISIBLE_DEVICES={assigned}), but the container has no /dev/nvidia*: "
        "start it with NVIDIA's container runtime (runtimeClassName: nvidia, or the node's default runtime)"
    )


def _why_no_library() -> str:
    searched = [part for part in os.environ.get("LD_LIBRARY_PATH", "").split(":") if part]
    folders = [ROOT / part.lstrip("/") for part in (*searched, *LIBRARY_FOLDERS)]
    if any((folder / DRIVER_LIBRARY).exists() for folder in folders):
        return ""
    if (ROOT / MOUNTED_LIBRARIES / DRIVER_LIBRARY).exists():
        return f"runtime: {DRIVER_LIBRARY} is in /{MOUNTED_LIBRARIES}: add this folder to LD_LIBRARY_PATH, as the images do"
    return (
        f"runtime: the container has the GPU's device, but not the driver's {DRIVER_LIBRARY}: "
        "NVIDIA_DRIVER_CAPABILITIES needs compute, and LD_LIBRARY_PATH the folder where the node mounts it"
    )


def _devices() -> list[Path]:
    """The device files of GPUs."""
    return [path for path in (ROOT / "dev").glob("nvidia*") if re.fullmatch(r"nvidia\d+", path.name)]


def _driver_version() -> str:
    """The version of the kernel's driver, which containers see even without a GPU; empty if there is none."""
    with contextlib.suppress(OSError):
        first = (ROOT / "proc/driver/nvidia/version").read_text(encoding="utf-8").partition("\n")[0]
        if match := re.search(r"\b\d+\.\d+(\.\d+)?\b", first):
            return match.group()
    return ""


def _cuda_error(torch: object) -> str:
    """Computes something on the GPU; returns the first line of the error, empty if there was none."""
    try:
        (torch.zeros(1, device="cuda") + 1).item()  # type: ignore[attr-defined]
    except (RuntimeError, AssertionError) as error:
        return f"CUDA reports {first_line(error)!r}: look at nvidia-smi and the node's log"
    return ""


@functools.cache
def _warn_once(message: str) -> None:
    log.warning("%s", message)
