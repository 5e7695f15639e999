"""Shared by the benchmarks: alternating runs, ratios, memory, and tables."""

from __future__ import annotations

import contextlib
import subprocess
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import median

import click
import psutil

from goemotions import defaults
from goemotions.cli.options import MODEL_NAME, together
from goemotions.models import devices

DATA = click.option("--data", "source", default="sample", show_default=True, help="The source of the texts.")
# A bundle, by reference and model name, and texts.
BUNDLE_AND_DATA = together(
    click.option("--bundle", "reference", default=defaults.REFERENCE, show_default=True, help="The bundle to measure."),
    MODEL_NAME,
    DATA,
)


@dataclass(frozen=True)
class Row:
    """A line of the table: what was measured, its target, and whether the target is met."""

    what: str
    measured: str
    target: str = ""
    is_met: bool | None = None

    def markdown(self) -> str:
        verdict = "" if self.is_met is None else ("yes" if self.is_met else "**no**")
        return f"| {self.what} | {self.measured} | {self.target} | {verdict} |"


def table(rows: Iterable[Row]) -> str:
    return "\n".join(["| what | measured | target | met |", "|---|---|---|---|", *(row.markdown() for row in rows)])


def by_turns(count: int, runs: dict[str, Callable[[], float]], *, warm: bool = True) -> dict[str, list[float]]:
    """The rates of each run. The runs alternate, so that a machine that slows down affects all of them."""
    for run in runs.values() if warm else ():
        run()
    return {
        name: list(rates)
        for name, rates in zip(runs, zip(*([run() for run in runs.values()] for _ in range(count)), strict=True), strict=True)
    }


def spread(values: Sequence[float], unit: str = "texts/s") -> str:
    digits = 0 if median(values) >= 100 else 1
    return f"{median(values):,.{digits}f} {unit} ({min(values):,.{digits}f} to {max(values):,.{digits}f})"


def ratio(one: Sequence[float], other: Sequence[float]) -> tuple[float, str]:
    """The median of the ratios of consecutive runs, and that with the range as text."""
    ratios = [a / b for a, b in zip(one, other, strict=True)]
    return median(ratios), f"{median(ratios):.2f} times ({min(ratios):.2f} to {max(ratios):.2f})"


def compared(
    what: str, one: Sequence[float], other: Sequence[float], *, least: float | None = None, most: float | None = None
) -> Row:
    """The row of a ratio, with the least or the most that it should be."""
    value, text = ratio(one, other)
    if least is not None:
        return Row(f"- {what}", text, f"at least {least:g}", value >= least)
    return Row(f"- {what}", text) if most is None else Row(f"- {what}", text, f"at most {most:g}", value <= most)


def timed(texts: int, score: Callable[[], object]) -> Callable[[], float]:
    """A function that scores once and returns texts per second."""

    def run() -> float:
        started = time.perf_counter()
        score()
        return texts / (time.perf_counter() - started)

    return run


def forget_peak() -> None:
    """Resets ``peak_mib`` to the current memory of this process."""
    Path("/proc/self/clear_refs").write_text("5")


def peak_mib(pid: int | str = "self") -> float:
    """Peak memory of a process, in MiB; 0 if it has ended. Not by getrusage, which includes that of the parent process."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM")), 0.0)


def machine(threads: int = 0) -> str:
    """A description of the machine with the number of cores in use; 0: all."""
    flags = ""
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        present = set(next(line for line in lines if line.startswith("flags")).split())
        flags = ", ".join(flag for flag in ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8") if flag in present)
    cores, memory = devices.cpus(), psutil.virtual_memory().total / 2**30
    return f"{threads or cores} of {cores} cores of {devices.cpu_name()} ({flags}), {memory:.0f} GiB"


def provenance(threads: int = 0) -> str:
    """Where, from which commit and when something is measured, for the pages that benchmarks write."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    return f"{machine(threads)}; commit {commit or 'unknown'}, {datetime.now(UTC):%Y-%m-%d}"
