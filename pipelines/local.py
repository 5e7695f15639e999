"""The training pipeline on one machine: the same definition, run by kfp.local on the local stack."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import Any

from kfp import local
from kfp.dsl.base_component import BaseComponent

from goemotions import addresses, defaults
from goemotions.models import profiles, weights_folder
from goemotions.registry import mlflow_client, registration, trust
from goemotions.storage import layout, probe
from pipelines import monitoring, package, parameters, stack, training, unfinished
from pipelines.console import logged_to
from pipelines.kfp_local import adapted_to_this_machine, stop_on_interrupt
from pipelines.remaining import Remaining
from pipelines.run_folder import RunFolder
from pipelines.unfinished import RunFailed

# A step is a process of its own: its error is in its traceback only.
NAMED_ERROR = re.compile(r"^\s*goemotions(?:\.\w+)*\.[A-Z]\w+: (.+)$", re.MULTILINE)
TAIL_CHARACTERS = 6000


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
            weights_folder.require(profile, addresses.local(location))
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
    with unfinished.alone(root):
        before = set(root.iterdir())
        log = root / "last.log"
        pipeline_run, resumed = unfinished.begin(root, arguments)
        if resumed:
            print(f"resumes the run {pipeline_run}, which did not finish: its trainings continue from their checkpoints")
        # The whole run is resumed, its trainings too, so the checkpoints stay until it has finished.
        _execute(pipeline, pipeline_run, arguments | {"keep_checkpoints": True}, log, Remaining(arguments))
        finished = RunFolder(next(path for path in root.iterdir() if path.is_dir() and path not in before))
        log.rename(finished.log)
        unfinished.end(root)
        if not arguments.get("keep_checkpoints"):
            registration.remove_checkpoints(arguments["store"], pipeline_run)
        return finished


def monitor(folder: Path = stack.FOLDER, **arguments: Any) -> None:
    """Runs the monitoring pipeline with the registry and the store of ``stack.services``.

    Raises:
        BadArgument: a parameter has a value that it cannot have.
        RunFailed: the step failed, or another run is in progress.
        StackError: the stack did not start.
    """
    parameters.check(arguments, monitoring.monitoring)
    os.environ.update(stack.services(folder))
    root = _root(folder)
    with unfinished.alone(root):
        _execute(monitoring.monitoring, unfinished.new_id(), {"commit": package.commit(), **arguments}, root / "monitoring.log")


def _execute(
    pipeline: BaseComponent, pipeline_run: str, arguments: dict[str, Any], log: Path, remaining: Remaining | None = None
) -> None:
    try:
        with adapted_to_this_machine(pipeline, pipeline_run), stop_on_interrupt(), logged_to(log, remaining):
            pipeline(**arguments)
    except RuntimeError as error:
        raise failure(log) from error


def failure(log: Path) -> RunFailed:
    """The error of a run, by its log: that of the step, if it is a named one; otherwise the end of the log is shown."""
    text = log.read_text(encoding="utf-8")
    if errors := NAMED_ERROR.findall(text):
        return RunFailed(f"{errors[-1]} (the log is {log})")
    print(text[-TAIL_CHARACTERS:], file=sys.stderr)
    return RunFailed(f"a step failed; the end of its log is above, the whole log is {log}")


def _root(folder: Path) -> Path:
    """The folder of the runs, to which kfp.local writes from now on."""
    root = RunFolder.parent(folder.absolute())
    root.mkdir(parents=True, exist_ok=True)
    local.init(local.SubprocessRunner(use_venv=False), pipeline_root=str(root))
    return root
