"""The object store of ``manifests/components/s3`` under checkpoints: its peak memory, and how long its health check takes.

    python -m benchmarks.store --gigabytes 20

Checkpoints as large as those of RoBERTa-large are written one after the other, and each time the one before is removed. SeaweedFS
runs with the GOMEMLIMIT of the manifest; its memory without file cache must stay below the manifest's limit.
"""

from __future__ import annotations

import math
import os
import re
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import psutil
from ruamel.yaml import YAML

from benchmarks.measuring import Row, provenance, table
from goemotions import defaults
from goemotions.storage import store
from pipelines import stack

MANIFEST = Path(__file__).parents[1] / "manifests" / "components" / "s3" / "seaweedfs.yaml"
# RoBERTa-large's weights and the two moments of Adam, 4 bytes each, and the best epoch's weights.
CHECKPOINT_GB = 4.8
# The readiness probe's timeout.
SLOWEST_SECONDS = 5.0


def container() -> dict[str, Any]:
    """The container of the manifest's Deployment."""
    deployment = next(one for one in YAML(typ="safe").load_all(MANIFEST) if one["kind"] == "Deployment")
    only: dict[str, Any] = deployment["spec"]["template"]["spec"]["containers"][0]
    return only


def mebibytes(quantity: str) -> float:
    """A memory quantity of Kubernetes or of Go, such as 2Gi or 1400MiB."""
    number, unit = re.fullmatch(r"(\d+)([MG])i(?:B?)", quantity).groups()  # type: ignore[union-attr]
    return int(number) * {"M": 1, "G": 1024}[unit]


class Watch(threading.Thread):
    """Samples the anonymous memory of a process and the time of its health check, twice a second."""

    def __init__(self, process: psutil.Process, port: int) -> None:
        super().__init__(daemon=True)
        self.process, self.port = process, port
        self.peak_mib = self.slowest = 0.0
        self.unanswered = 0
        self.done = threading.Event()

    def run(self) -> None:
        while not self.done.wait(0.5):
            started = time.monotonic()
            self.unanswered += not stack.responds(f"http://127.0.0.1:{self.port}/healthz")
            self.slowest = max(self.slowest, time.monotonic() - started)
            status = Path(f"/proc/{self.process.pid}/status").read_text()
            anonymous = re.search(r"RssAnon:\s+(\d+)", status)
            self.peak_mib = max(self.peak_mib, int(anonymous[1]) / 1024 if anonymous else 0.0)


@contextmanager
def watched(folder: Path, limit: str) -> Iterator[Watch]:
    """The object store of a local stack with that GOMEMLIMIT, and what is watched of it."""
    with stack.running(folder, GOMEMLIMIT=limit):
        port = int(os.environ["AWS_ENDPOINT_URL"].rpartition(":")[2])
        server = next(each for each in psutil.process_iter(["cmdline"]) if f"-s3.port={port}" in (each.info["cmdline"] or []))
        watch = Watch(server, port)
        watch.start()
        yield watch
        watch.done.set()
        watch.join()


def measure(gigabytes: float, checkpoint_gb: float = CHECKPOINT_GB) -> list[Row]:
    """Writes and removes checkpoints until that much is written."""
    only = container()
    limit = next(each["value"] for each in only["env"] if each["name"] == "GOMEMLIMIT")
    most = mebibytes(only["resources"]["limits"]["memory"])
    count = math.ceil(gigabytes / checkpoint_gb)
    with tempfile.TemporaryDirectory(prefix="store-") as scratch, watched(Path(scratch) / "stack", limit) as watch:
        folder = Path(scratch) / "checkpoint"
        folder.mkdir()
        block = os.urandom(1 << 20)
        with (folder / "training.pt").open("wb") as file:
            for _ in range(int(checkpoint_gb * 1e9) >> 20):
                file.write(block)
        started = time.monotonic()
        for step in range(count):
            store.put(folder, f"s3://{defaults.BUCKET}/checkpoints/{step}/")
            if step:
                store.remove(f"s3://{defaults.BUCKET}/checkpoints/{step - 1}/")
        seconds = time.monotonic() - started
    written = count * checkpoint_gb
    return [
        Row(f"{count} checkpoints of {checkpoint_gb:g} GB", f"{written:.1f} GB in {seconds:.0f} s"),
        Row(
            f"peak memory without file cache, GOMEMLIMIT={limit}",
            f"{watch.peak_mib:.0f} MiB",
            f"below the limit of {most:.0f} MiB",
            watch.peak_mib < most,
        ),
        Row(
            "slowest health check", f"{watch.slowest:.2f} s", f"at most {SLOWEST_SECONDS:g} s", watch.slowest <= SLOWEST_SECONDS
        ),
        Row("health checks without response", str(watch.unanswered), "0", watch.unanswered == 0),
    ]


@click.command()
@click.option("--gigabytes", default=20.0, show_default=True, help="How much to write in all.")
def main(gigabytes: float) -> None:
    """Write and remove checkpoints in the object store."""
    click.echo(f"{table(measure(gigabytes))}\n\n{provenance()}")


if __name__ == "__main__":
    main()
