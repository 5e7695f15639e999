"""What training needs to know of the machine: its precision, its description, its memory."""

from __future__ import annotations

import ctypes
import resource
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import torch

from goemotions.errors import TrainingError
from goemotions.models import devices
from goemotions.training.options import PRECISIONS


def resolve_precision(precision: str) -> str:
    """Replaces ``auto`` by bf16 if the GPU, or the CPU's own instructions, compute in it, and by fp32 otherwise.

    Raises:
        TrainingError: there is no such precision.
    """
    if precision not in PRECISIONS:
        raise TrainingError(f"there is no precision {precision!r}: choose from {', '.join(PRECISIONS)}")
    if precision != "auto":
        return precision
    if devices.resolve() == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    return "bf16" if torch.cpu._is_avx512_bf16_supported() else "fp32"


def describe() -> str:
    """The machine in a few words, for the report."""
    kind = devices.resolve()
    if kind == "cuda":
        return f"{torch.cuda.device_count()} x {devices.name(kind)}"
    return f"{torch.get_num_threads()} threads of {devices.name(kind)} ({torch.backends.cpu.get_cpu_capability()})"


def peak_memory() -> tuple[int, int]:
    """Bytes of memory, and of GPU memory, that this process took at most."""
    peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak, torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0


def keep_freed_memory() -> None:
    """Lets glibc keep freed memory: each step allocates the same sizes again, and new pages from the kernel are zeroed first."""
    mmap_max, trim_threshold, top_pad = -4, -1, -2
    with suppress(OSError, AttributeError):
        glibc = ctypes.CDLL("libc.so.6")
        for option, value in ((mmap_max, 0), (trim_threshold, 2**31 - 1), (top_pad, 2**28)):
            glibc.mallopt(option, value)


@contextmanager
def memory_errors() -> Iterator[None]:
    """Turns torch's error of exhausted GPU memory into a named one."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise TrainingError("out of GPU memory: lower the profile's batch_size or max_length, or use a larger GPU") from error
