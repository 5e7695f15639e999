"""The training pipeline on one machine: the same definition, run by kfp.local on the local stack."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import secrets
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import psutil
from kfp import local
from kfp.dsl.base_component import BaseComponent
from kfp.local import subprocess_task_handler

from goemotions import addresses, defaults
from goemotions.errors import WorkflowError
from goemotions.models import profiles, weights_folder
from goemotions.registry import mlflow_client, registration, trust
from goemotions.storage import layout, probe
from pipelines import monitoring, package, parameters, placement, stack, training
from pipelines.console import logged_to
from pipelines.remaining import Remaining
from pipelines.run_folder import RunFolder

# A step is a process of its own: its error is in its traceback only.
NAMED_ERROR = re.compile(r"^\s*goemotions\.errors\.\w+: (.+)$", re.MULTILINE)
TAIL_CHARACTERS = 6000
UNFINISHED, LOCK = "unfinished.json", "lock"


class RunFailed(WorkflowError):
    """A step of a local run failed; the message has its error or the location of the log."""


def run(folder: Path = stack.FOLDER, *, on_reason: bool = False, **arguments: Any) -> RunFolder:
    """Runs the pipeline with the registry and the store of ``stack.services``, and shows which they are.

    Args:
        folder: folder of the local stack; the outputs of the steps are written below it.
        on_reason: train only if there is a reason to (``monitoring.retraining``).
        arguments: parameters of ``pipelines.training.training``.

    Raises:
        BadArgument, ModelError: a parameter has a value that it cannot have, or weights cannot be used.
        RunFailed: a step failed, or another run is in progress.
        StackError: the stack did not start.
        StorageError: the store cannot hold a lock, or cannot be used.
        TrackingError: the registry of the environment does not respond.
    """
    pipeline = training.for_run(has_teachers=bool(arguments.get("teachers")), on_reason=on_reason)
    parameters.check(arguments, pipeline)
    weights = [(profiles.get(name), location) for name, location in arguments.get("weights", {}).items()]
    # Before hours are spent on other models and teachers; `train` does the same.
    for profile, location in weights:
        if not addresses.is_s3(location):
            weights_folder.require(profile, Path(location).expanduser())
    addresses.endpoints(os.environ)
    addresses.tracking(os.environ.get("MLFLOW_TRACKING_URI", ""))
    os.environ.update(stack.services(folder))
    arguments = {"store": defaults.STORE, "commit": package.commit(), **arguments}
    if os.environ.get(trust.STORE):
        os.environ[trust.STORE] += f" {arguments['store']}"
    # S3 without an endpoint is that of AWS.
    print(
        f"registers at {mlflow_client.connect()}, stores in {arguments['store']} at {os.environ.get('AWS_ENDPOINT_URL', 'AWS')}"
    )
    for profile, location in weights:
        if addresses.is_s3(location):
            weights_folder.require_stored(profile, location)
    # Before hours are spent; `register` does the same.
    print(probe.run(layout.models(arguments["store"], arguments.get("model_name", defaults.MODEL_NAME))))
    root = _root(folder)
    with _alone(root):
        before = set(root.iterdir())
        log = root / "last.log"
        pipeline_run, resumed = _begin(root / UNFINISHED, arguments)
        if resumed:
            print(f"resumes the run {pipeline_run}, which did not finish: its trainings continue from their checkpoints")
        try:
            with _adapted_to_this_machine(pipeline, pipeline_run), stop_on_interrupt(), logged_to(log, Remaining(arguments)):
                # The whole run is resumed, its trainings too, so the checkpoints stay until it has finished.
                pipeline(**arguments | {"keep_checkpoints": True})
        except RuntimeError as error:
            raise _failure(log) from error
        finished = RunFolder(next(path for path in root.iterdir() if path.is_dir() and path not in before))
        log.rename(finished.log)
        (root / UNFINISHED).unlink(missing_ok=True)
        if not arguments.get("keep_checkpoints"):
            registration.remove_checkpoints(arguments["store"], pipeline_run)
        return finished


def monitor(folder: Path = stack.FOLDER, **arguments: Any) -> None:
    """Runs the monitoring pipeline with the registry and the store of ``stack.services``.

    Args:
        folder: folder of the local stack.
        arguments: parameters of ``pipelines.monitoring.monitoring``.

    Raises:
        BadArgument: a parameter has a value that it cannot have.
        RunFailed: the step failed, or another run is in progress.
        StackError: the stack did not start.
    """
    parameters.check(arguments, monitoring.monitoring)
    os.environ.update(stack.services(folder))
    root = _root(folder)
    log = root / "monitoring.log"
    try:
        with _alone(root), _adapted_to_this_machine(monitoring.monitoring, _run_id()), stop_on_interrupt(), logged_to(log):
            monitoring.monitoring(**{"commit": package.commit(), **arguments})
    except RuntimeError as error:
        raise _failure(log) from error


def _root(folder: Path) -> Path:
    """The folder of the runs, to which kfp.local writes from now on."""
    root = RunFolder.parent(folder.absolute())
    root.mkdir(parents=True, exist_ok=True)
    local.init(local.SubprocessRunner(use_venv=False), pipeline_root=str(root))
    return root


@contextlib.contextmanager
def _alone(root: Path) -> Iterator[None]:
    """Refuses a second run at once: both would write the same log, and each would take the other's folder for its own."""
    with (root / LOCK).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunFailed(
                f"another run on this machine writes to {root}: wait until it ends, or stop it with Ctrl-C"
            ) from None
        yield


def _run_id() -> str:
    return f"{datetime.now():%Y%m%d-%H%M%S}-{secrets.token_hex(3)}"


def _begin(path: Path, arguments: Mapping[str, Any]) -> tuple[str, bool]:
    """The id of a run, and whether it is that of one that was interrupted or failed: the same id finds its checkpoints and models.

    Args:
        path: the record of the last run until it has finished.
        arguments: the parameters of this one; only a run with the same ones is resumed.
    """
    process = [os.getpid(), psutil.Process().create_time()]
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        content = json.loads(path.read_text(encoding="utf-8"))
        number, started = content["process"]
        if content["arguments"] == json.loads(json.dumps(arguments)) and not stack.Server(number, started, 0).is_alive():
            path.write_text(json.dumps({**content, "process": process}), encoding="utf-8")
            return content["pipeline_run"], True
    pipeline_run = _run_id()
    content = {"pipeline_run": pipeline_run, "arguments": arguments, "process": process}
    path.write_text(json.dumps(content), encoding="utf-8")
    return pipeline_run, False


def _failure(log: Path) -> RunFailed:
    text = log.read_text(encoding="utf-8")
    if errors := NAMED_ERROR.findall(text):
        return RunFailed(f"{errors[-1]} (the log is {log})")
    print(text[-TAIL_CHARACTERS:], file=sys.stderr)
    return RunFailed(f"a step failed; the end of its log is above, the whole log is {log}")


@contextlib.contextmanager
def _adapted_to_this_machine(pipeline: BaseComponent = training.training, pipeline_run: str = placement.RUN) -> Iterator[None]:
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
