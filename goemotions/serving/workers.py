"""Worker processes of the server: each shows life on a pipe, one that ends or hangs is replaced, and none outlives this process.

This module imports no metrics: the files that workers share theirs through must exist before.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from types import FrameType

from goemotions.errors import WorkflowError
from goemotions.serving import logs
from goemotions.storage.temporary import temporary_folder

logger = logging.getLogger(__name__)
BEAT_SECONDS = 0.5
# After so long without a beat, no worker is ready; after so long, the silent one is replaced. The first beat may take longer: the model
# is loaded before.
SILENT_SECONDS, HUNG_SECONDS, START_SECONDS = 3.0, 10.0, 300.0
METRICS_FOLDER = "PROMETHEUS_MULTIPROC_DIR"
# Each kind of metric has a file per process; one that the process would have to extend, it would do so on a full disk, too.
METRICS_KINDS = ("counter", "histogram", "summary", "gauge_livesum", "gauge_livemostrecent")
METRICS_BYTES = 1024 * 1024
PR_SET_PDEATHSIG = 1
STOPS = (signal.SIGTERM, signal.SIGINT)
# Serves in a worker process, which sends its beats to the pipe and gets whether all workers beat.
Serve = Callable[[Connection], None]


class Worker:
    """One worker process, as its supervisor sees it. The one that replaces it has its number, and continues its metrics."""

    def __init__(self, serve: Serve, number: int) -> None:
        spawn = multiprocessing.get_context("spawn")
        self._pipe, its_pipe = spawn.Pipe()
        self.process = spawn.Process(target=_work, args=(serve, its_pipe, os.getpid(), number))
        self.process.start()
        its_pipe.close()
        self._started = time.monotonic()
        self._beat: float | None = None

    @property
    def has_started(self) -> bool:
        return self._beat is not None

    def silence(self) -> float:
        """Seconds since its last beat, or since it should have started."""
        with contextlib.suppress(EOFError, OSError):
            while self._pipe.poll():
                self._pipe.recv_bytes()
                self._beat = time.monotonic()
        return max(0.0, time.monotonic() - (self._started + START_SECONDS if self._beat is None else self._beat))

    def tell(self, are_all_well: bool) -> None:
        with contextlib.suppress(OSError):
            self._pipe.send(are_all_well)

    def terminate(self) -> None:
        if self.process.is_alive():
            self.process.terminate()

    def end(self, seconds: float = 0.0) -> None:
        """Waits for its end; kills it after so many seconds."""
        self.process.join(seconds)
        if self.process.is_alive():
            logger.error("worker %d was killed: it did not end", self.process.pid)
            self.process.kill()
            self.process.join()
        self._pipe.close()


class Supervisor:
    """Keeps so many workers running until SIGTERM or SIGINT; those have ``seconds`` to end."""

    def __init__(self, count: int, serve: Serve, seconds: float) -> None:
        self._serve = serve
        self._seconds = seconds
        self._is_stopping = False
        self._have_served = False
        self._are_all_well = True
        for number in STOPS:
            signal.signal(number, self._stop)
        self._workers = [Worker(serve, number) for number in range(count)]

    def run(self) -> None:
        """Returns after the workers have ended.

        Raises:
            WorkflowError: a worker ended, or hung, before any of them was ready.
        """
        try:
            while not self._is_stopping:
                time.sleep(BEAT_SECONDS / 2)
                self._check()
        finally:
            deadline = time.monotonic() + self._seconds
            for worker in self._workers:
                worker.terminate()
            for worker in self._workers:
                worker.end(max(0.0, deadline - time.monotonic()))

    def _stop(self, number: int, frame: FrameType | None) -> None:
        self._is_stopping = True

    def _check(self) -> None:
        silences = [worker.silence() for worker in self._workers]
        self._have_served |= any(worker.has_started for worker in self._workers)
        are_all_well = max(silences) < SILENT_SECONDS
        if are_all_well != self._are_all_well:
            self._are_all_well = are_all_well
            for worker in self._workers:
                worker.tell(are_all_well)
        for position, worker in enumerate(self._workers):
            if worker.process.is_alive() and silences[position] < HUNG_SECONDS:
                continue
            if not self._have_served:
                raise WorkflowError("a worker ended, or hung, before it was ready: see its message above")
            logger.error("worker %d %s: replaced", worker.process.pid, "hangs" if worker.process.is_alive() else "ended")
            worker.end()
            _forget(position)
            self._workers[position] = Worker(self._serve, position)
            self._workers[position].tell(are_all_well)


def run(count: int, serve: Serve, seconds: float) -> None:
    """Serves with so many workers until SIGTERM or SIGINT; after that they have so many seconds to end.

    Raises:
        WorkflowError: a worker ended, or hung, before any of them was ready.
    """
    with _metrics_folder():
        Supervisor(count, serve, seconds).run()


def ignore_stops() -> None:
    """Ignores signals from now on: Python restores their defaults while it ends, so that another one would decide the exit code."""
    for number in STOPS:
        signal.signal(number, signal.SIG_IGN)


def _work(serve: Serve, pipe: Connection, supervisor: int, number: int) -> None:
    # Without this, a supervisor that is killed leaves its workers on the port.
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != supervisor:
        return
    logs.configure()
    _allocate_metrics(number)
    try:
        serve(pipe)
    except WorkflowError as error:
        logger.error("%s", error)
        sys.exit(1)


@contextlib.contextmanager
def _metrics_folder() -> Iterator[None]:
    """A folder for the metrics of the workers; without space, each has its own."""
    with contextlib.ExitStack() as stack:
        try:
            os.environ[METRICS_FOLDER] = str(stack.enter_context(temporary_folder()))
        except OSError as error:
            _warn(error)
        yield


def _allocate_metrics(number: int) -> None:
    """Reserves the space of this worker's metrics. Files without it end the process (SIGBUS) when the disk is full.

    Those of a worker before it are continued: its counters would be missing in the sums otherwise, or its files would stay for ever.
    """
    if not (folder := os.environ.get(METRICS_FOLDER)):
        return
    files = [Path(folder) / f"{kind}_{number}.db" for kind in METRICS_KINDS]
    try:
        for path in files:
            with path.open("ab") as file:
                os.posix_fallocate(file.fileno(), 0, METRICS_BYTES)
    except OSError as error:
        for path in files:
            path.unlink(missing_ok=True)
        del os.environ[METRICS_FOLDER]
        _warn(error)
        return
    from prometheus_client import values

    values.ValueClass = values.MultiProcessValue(lambda: number)  # type: ignore[no-untyped-call]


def _warn(error: OSError) -> None:
    logger.warning("no space for metrics in the folder for temporary files (%s): /metrics has those of one worker only", error)


def _forget(number: int) -> None:
    """Removes the gauges of a worker that ended."""
    if folder := os.environ.get(METRICS_FOLDER):
        for path in Path(folder).glob(f"gauge_live*_{number}.db"):
            path.unlink(missing_ok=True)
