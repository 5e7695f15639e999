"""What runs on this machine need of kfp.local: a pipeline that is adapted to it, and an end of the steps on Ctrl-C."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator

import psutil
from kfp.dsl.base_component import BaseComponent
from kfp.local import subprocess_task_handler

from pipelines import placement, stack


@contextlib.contextmanager
def adapted_to_this_machine(pipeline: BaseComponent, pipeline_run: str) -> Iterator[None]:
    """Changes the pipeline for a run on this machine: no retries, one model after the other, no variables of pods, and an id that a run
    which resumes it can have, too.

    A retry would meet the same error again. Two trainings at once on a few cores take longer than one after the other, and distort
    the measured latency. The variables say which pods were given a GPU; here a GPU is used if there is one.
    """
    spec = pipeline.pipeline_spec
    before = type(spec).FromString(spec.SerializeToString())
    for dag in (spec.root.dag, *(component.dag for component in spec.components.values())):
        for task in dag.tasks.values():
            if task.WhichOneof("iterator"):
                task.iterator_policy.parallelism_limit = 1
            task.ClearField("retry_policy")
            for parameter in task.inputs.parameters.values():
                if parameter.runtime_value.constant.string_value == placement.RUN:
                    parameter.runtime_value.constant.string_value = pipeline_run
    for executor in spec.deployment_spec["executors"].values():
        executor["container"].fields.pop("env", None)
    try:
        yield
    finally:
        spec.CopyFrom(before)


@contextlib.contextmanager
def stop_on_interrupt() -> Iterator[None]:
    """Ctrl-C or SIGTERM ends the run. KFP alone would take the interrupted step for one that has ended, and start the next one."""

    def stop(number: int, _: object) -> None:
        subprocess_task_handler.run_local_subprocess = lambda **_: threading.Event().wait()
        ends, terminated = time.monotonic() + stack.STOP_SECONDS, set[psutil.Process]()
        while (steps := _steps()) and time.monotonic() < ends:
            for step in steps - terminated:
                step.terminate()
            terminated |= steps
            time.sleep(0.1)
        os.write(2, b"\ninterrupted: the same command resumes it; the stack keeps running (`make stack-down` stops it)\n")
        os._exit(128 + number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _steps() -> set[psutil.Process]:
    """The processes of steps that run; the servers of the stack have sessions of their own. None is reaped: that is up to KFP."""
    session, steps = os.getsid(0), set()
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError):
            if child.status() != psutil.STATUS_ZOMBIE and os.getsid(child.pid) == session:
                steps.add(child)
    return steps
