"""A process that was given a GPU uses it, or ends with an error that names the missing part.

The file systems are those of containers: the device plugin and the container runtime add files below /dev and libraries, and the
kernel's driver shows its version in /proc in every container of the node.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest
import torch

from goemotions.errors import BadArgument, DeviceError
from goemotions.models import devices, engines
from goemotions.models.engine_names import Computation
from goemotions.models.tokenizer import TextEncoder
from goemotions.training import hardware, launcher
from goemotions.training.options import TrainOptions

NEW, OLD = "580.65.06", "535.183.01"
LIBRARIES = "usr/lib/x86_64-linux-gnu"
GPU_ID = "GPU-5a7b4ee9-7d1b-4a4b-9d2a-0c8f2f6b8a11"
VARIABLES = ("NVIDIA_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES", "LD_LIBRARY_PATH", "KUBERNETES_SERVICE_HOST", devices.VARIABLE)


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    devices._warn_once.cache_clear()


def container(root: Path, driver: str = "", *, device: bool = False, libraries: str = "") -> Path:
    """The root of a container's file system: the node's driver, a GPU's device file, and the folder of the driver's libraries."""
    (root / "dev").mkdir()
    if driver:
        (root / "proc/driver/nvidia").mkdir(parents=True)
        first = f"NVRM version: NVIDIA UNIX x86_64 Kernel Module  {driver}  Release Build  (dvs-builder@U22)"
        (root / "proc/driver/nvidia/version").write_text(f"{first}\nGCC version:  gcc version 12.2.0\n")
    if device:
        for name in ("nvidia0", "nvidiactl", "nvidia-uvm"):
            (root / "dev" / name).touch()
    if libraries:
        (root / libraries).mkdir(parents=True)
        (root / libraries / devices.DRIVER_LIBRARY).touch()
    return root


@pytest.mark.fault("gpu-not-seen")
@pytest.mark.parametrize(
    ("node", "variables", "message"),
    [
        ({}, {}, "driver: this node has no NVIDIA driver"),
        (
            {"driver": OLD, "device": True, "libraries": LIBRARIES},
            {},
            f"driver: version {OLD} is too old for the CUDA 13.0 of torch: it needs 580 or newer",
        ),
        ({"driver": NEW}, {}, "device plugin: no GPU was assigned to this container (NVIDIA_VISIBLE_DEVICES is not set)"),
        ({"driver": NEW}, {"NVIDIA_VISIBLE_DEVICES": "void"}, "device plugin: no GPU was assigned"),
        (
            {"driver": NEW},
            {"NVIDIA_VISIBLE_DEVICES": "all", "KUBERNETES_SERVICE_HOST": "10.0.0.1"},
            "device plugin: no GPU was assigned",
        ),
        ({"driver": NEW}, {"NVIDIA_VISIBLE_DEVICES": "all"}, "runtime: a GPU was assigned (NVIDIA_VISIBLE_DEVICES=all)"),
        ({"driver": NEW}, {"NVIDIA_VISIBLE_DEVICES": GPU_ID}, "but the container has no /dev/nvidia*"),
        (
            {"driver": NEW, "device": True, "libraries": "usr/local/nvidia/lib64"},
            {},
            "runtime: libcuda.so.1 is in /usr/local/nvidia/lib64: add this folder to LD_LIBRARY_PATH",
        ),
        ({"driver": NEW, "device": True}, {"NVIDIA_VISIBLE_DEVICES": GPU_ID}, "NVIDIA_DRIVER_CAPABILITIES needs compute"),
        (
            {"driver": NEW, "device": True, "libraries": LIBRARIES},
            {"CUDA_VISIBLE_DEVICES": ""},
            "CUDA_VISIBLE_DEVICES hides every GPU",
        ),
        # Everything is in its place, and torch's own error is what remains.
        ({"driver": NEW, "device": True, "libraries": LIBRARIES}, {}, "driver: CUDA reports"),
        (
            {"driver": NEW, "device": True, "libraries": "usr/local/nvidia/lib64"},
            {"LD_LIBRARY_PATH": "/usr/local/nvidia/lib:/usr/local/nvidia/lib64"},
            "driver: CUDA reports",
        ),
    ],
)
def test_the_missing_part_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, node: dict[str, str], variables: dict[str, str], message: str
) -> None:
    for name, value in {devices.VARIABLE: "gpu", **variables}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(devices, "ROOT", container(tmp_path, **node))  # type: ignore[arg-type]
    with pytest.raises(DeviceError) as error:
        devices.resolve()
    assert message in str(error.value)
    assert "GOEMOTIONS_DEVICE=auto computes on the CPU instead" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_build_of_torch_without_cuda_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(devices.VARIABLE, "gpu")
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(devices, "ROOT", container(tmp_path, NEW, device=True, libraries=LIBRARIES))
    with pytest.raises(DeviceError, match=r"^torch: this build computes on the CPU only"):
        devices.resolve()


@pytest.mark.parametrize(("cuda", "oldest"), [("12.8", 525), ("13.0", 580)])
def test_the_oldest_driver_depends_on_the_cuda_of_torch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cuda: str, oldest: int
) -> None:
    monkeypatch.setattr(devices, "ROOT", container(tmp_path, OLD, device=True, libraries=LIBRARIES))
    assert (f"it needs {oldest}" in devices.diagnose(cuda)) == (oldest > int(OLD.split(".")[0]))


def test_without_a_requirement_the_cpu_computes_and_an_unusable_gpu_is_reported_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(devices, "ROOT", container(tmp_path))
    with caplog.at_level(logging.WARNING):
        assert devices.resolve() == "cpu"
        assert caplog.messages == []
        (tmp_path / "dev/nvidia0").touch()
        assert devices.resolve() == devices.resolve() == "cpu"
    (message,) = caplog.messages
    assert message.startswith("computing on the CPU, because the GPU cannot be used: ")


def test_cpu_ignores_a_gpu_and_other_values_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert devices.resolve() == "cuda"
    monkeypatch.setenv(devices.VARIABLE, "cpu")
    assert devices.resolve() == "cpu"
    monkeypatch.setenv(devices.VARIABLE, "cuda")
    with pytest.raises(BadArgument, match="GOEMOTIONS_DEVICE is auto, gpu or cpu, not 'cuda'"):
        devices.resolve()


@pytest.mark.parametrize(
    ("error", "reported"),
    [
        (
            RuntimeError("CUDA error: uncorrectable ECC error encountered\nCUDA kernel errors might be reported later"),
            "CUDA error: uncorrectable ECC error encountered",
        ),
        (AssertionError(), "AssertionError"),
    ],
)
def test_a_gpu_that_fails_to_compute_is_an_error(error: Exception, reported: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A build of torch without CUDA that claims a GPU fails as a broken GPU does: when it computes."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setenv(devices.VARIABLE, "gpu")

    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(torch, "zeros", fail)
    with pytest.raises(DeviceError, match=f"CUDA reports '{reported}'"):
        devices.resolve(compute=True)


@pytest.mark.fault("gpu-not-seen")
def test_no_step_that_was_given_a_gpu_computes_on_the_cpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model_folder: Path, onnx_folder: Path
) -> None:
    monkeypatch.setenv(devices.VARIABLE, "gpu")
    encoder = TextEncoder.load(model_folder)
    with pytest.raises(DeviceError):
        launcher.run(tmp_path / "dataset", tmp_path / "output", "minilm", TrainOptions())
    with pytest.raises(DeviceError):
        hardware.resolve_precision("auto")
    with pytest.raises(DeviceError):
        engines.load("torch", model_folder, encoder)
    with pytest.raises(DeviceError):
        engines.suited("torch")
    with pytest.raises(DeviceError, match="openvino-fp32 computes on the CPU, and GOEMOTIONS_DEVICE is gpu"):
        engines.load("openvino-fp32", onnx_folder, encoder)


def test_on_a_gpu_the_engine_names_the_precision_that_it_computes_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA A100-SXM4-80GB")
    assert devices.name("cuda") == "NVIDIA A100-SXM4-80GB"
    for has_bf16, precision in ((True, "bf16"), (False, "fp32")):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True, answer=has_bf16: answer)
        engine = engines.TorchEngine(None, None, torch.device("cuda"))  # type: ignore[arg-type]
        assert engine.computation == Computation("torch", "cuda", precision)


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, 8),
        ({"cpu.max": "max 100000\n"}, 8),
        ({"cpu.max": "250000 100000\n"}, 3),
        ({"cpu.max": "5000 100000\n"}, 1),
        ({"cpu.max": "3200000 100000\n"}, 8),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 8),
        ({"cpu/cpu.cfs_quota_us": "400000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 4),
    ],
)
def test_the_cpu_limit_of_a_container_is_respected(
    files: dict[str, str], expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "ROOT", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    for name, content in files.items():
        path = tmp_path / "sys/fs/cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    assert devices.cpus() == expected
