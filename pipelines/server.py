"""A server on this machine: a process that is ready within a block, and ends with it or with the process that started it."""

from __future__ import annotations

import contextlib
import ctypes
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from goemotions.errors import WorkflowError
from goemotions.serving.workers import PR_SET_PDEATHSIG
from pipelines import stack

# What Python runs: the predictor server.
PREDICTOR = ("-m", "goemotions.cli", "serve", "--drain-seconds=0")
READY_SECONDS = 90.0
LIBC = ctypes.CDLL(None)


class ServerFailed(WorkflowError):
    """A server did not become ready."""


class Server(NamedTuple):
    """A server that is ready, and the seconds from its start until it was."""

    port: int
    process: subprocess.Popen[bytes]
    seconds: float

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"


@contextlib.contextmanager
def serving(arguments: Sequence[str], log: Path) -> Iterator[Server]:
    """Runs Python with these arguments and ``--port`` with a free port; yields the server when it is ready.

    Raises:
        ServerFailed: it ended, or was not ready in time.
    """
    port, started = stack.free_ports(1)[0], time.monotonic()
    command = [sys.executable, *arguments, "--port", str(port)]
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, preexec_fn=end_with_parent)
    try:
        while not stack.responds(f"http://127.0.0.1:{port}/v2/health/ready"):
            if process.poll() is not None or time.monotonic() - started > READY_SECONDS:
                raise ServerFailed(f"the server did not become ready: its log is {log}")
            time.sleep(0.02)
        yield Server(port, process, time.monotonic() - started)
    finally:
        process.terminate()
        process.wait(timeout=60)


def end_with_parent() -> None:
    """Has the kernel end this process with the one that started it, also if that is killed."""
    LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
