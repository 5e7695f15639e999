"""The progress of a run on Kubeflow Pipelines: one line per step and model, the log of a step that fails, and a closing table.

The API lists the nodes of Argo's workflow. Besides the steps these are drivers, executors, the attempts of a node (``train(1)`` below
``train``), and an ``iteration-item`` for each model.
"""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import kfp_server_api

from goemotions.errors import WorkflowError
from pipelines.client import ServerError, ServerUnavailable, translate_errors
from pipelines.submit import Run

# Drivers, the pods of executors, and groups of nodes.
NOT_STEPS = re.compile(r"^(root|executor|for-loop-\d+|condition-.*|iteration-.*)$|driver$")
ATTEMPT = re.compile(r"^(.*)\((\d+)\)$")
ITERATION = re.compile(r"^iteration-item(?:\(|-)(\d+)(?!.*driver)")
FINAL = ("SUCCEEDED", "FAILED", "CANCELED", "SKIPPED")
POLL_SECONDS = 5.0
# A restart of the API server takes less.
UNAVAILABLE_SECONDS = 300.0
# The states of the steps reach the API after that of the run.
SETTLE_SECONDS = 60.0
TRAINING_SECONDS = 60.0
LOG_LINES = 15
TRAINING_LINE = re.compile(r"step/s|s/step|epoch \d")


class RunNotSuccessful(WorkflowError):
    """A run that was waited for did not succeed, or is no longer waited for."""


@dataclass(frozen=True)
class Step:
    """A step of a run, of one model, or one turn, if it is in a loop.

    Attributes:
        name, model: of the step; the model is empty outside a loop, and a number in a loop over something else.
        state: PENDING, RUNNING, SUCCEEDED, FAILED, SKIPPED or CANCELED.
        reason: why the last attempt but one ended, if there was one; otherwise the error of the step.
        seconds: from the start to the end, or None before the end.
        pods: names of its pods, the newest last.
    """

    name: str
    model: str
    state: str
    attempts: int
    reason: str
    seconds: float | None
    pods: tuple[str, ...]

    @property
    def title(self) -> str:
        return f"{self.name} {self.model}".rstrip()


def steps(details: Sequence[Any], models: Sequence[str]) -> list[Step]:
    """The steps among the nodes of a run (``run.run_details.task_details``), in order of their start."""
    parents = {child.pod_name: node for node in details for child in node.child_tasks or []}
    groups: dict[tuple[str, str], list[Any]] = {}
    for node in details:
        name = _base(node)
        if name and not NOT_STEPS.search(name):
            groups.setdefault((name, _model(node, parents, models)), []).append(node)
    never = datetime.max.replace(tzinfo=UTC)
    starts = {key: min((node.start_time for node in nodes if node.start_time), default=never) for key, nodes in groups.items()}
    return [_step(*key, groups[key], details) for key in sorted(groups, key=starts.__getitem__)]


def _step(name: str, model: str, nodes: list[Any], details: Sequence[Any]) -> Step:
    attempts = sorted(
        (node for node in nodes if ATTEMPT.match(node.display_name)),
        key=lambda node: int(ATTEMPT.sub(r"\2", node.display_name)),
    )
    whole = next((node for node in nodes if node not in attempts), attempts[-1] if attempts else nodes[0])
    failed = [node for node in attempts if node.state == "FAILED"] or [whole]
    ended = whole.end_time if whole.state in FINAL else None
    pods = [pod for node in (attempts or [whole]) for pod in _pods(node, {each.pod_name: each for each in details})]
    return Step(
        name,
        model,
        str(whole.state or "PENDING"),
        max(1, sum(node.state != "PENDING" for node in attempts)),
        _error(failed[-1]),
        (ended - whole.start_time).total_seconds() if ended and whole.start_time else None,
        tuple(pods),
    )


def _base(node: Any) -> str:
    """The name of a node without the number of the attempt."""
    return ATTEMPT.sub(r"\1", node.display_name or "")


def _model(node: Any, parents: dict[str, Any], models: Sequence[str]) -> str:
    """The model of the iteration that a node is in."""
    seen: set[str] = set()
    while node is not None and node.pod_name not in seen:
        seen.add(node.pod_name)
        match = ITERATION.match(node.display_name or "")
        if match:
            number = int(match[1])
            return models[number] if number < len(models) else str(number + 1)
        node = parents.get(node.pod_name)
    return ""


def _pods(node: Any, by_pod: dict[str, Any]) -> list[str]:
    """The pods of the executors below a node, or the node's own."""
    children = [by_pod[child.pod_name] for child in node.child_tasks or [] if child.pod_name in by_pod]
    executors = [child.pod_name for child in children if _base(child) == "executor"]
    below = [pod for child in children for pod in _pods(child, by_pod) if child.child_tasks]
    return executors or below or ([node.pod_name] if node.pod_name else [])


def _error(node: Any) -> str:
    errors = [node.error, *(status.error for status in node.state_history or [])]
    return next((str(error.message) for error in reversed(errors) if error and error.message), "")


def wait_for(run: Run, show: Callable[[str], None], models: Sequence[str] = ()) -> None:
    """Shows the progress of a run until it ends, then a table of its steps. Without models, the turns of their loop are numbered.

    Raises:
        RunNotSuccessful: it did not succeed, the wait was interrupted, or the server cannot be reached; the message says which.
    """
    progress = Progress(run, show, models)
    try:
        state = progress.follow()
    except KeyboardInterrupt:
        raise RunNotSuccessful(f"stopped waiting: run {run.run_id} continues") from None
    except ServerError as error:
        raise RunNotSuccessful(f"stopped waiting, run {run.run_id} continues: {error}") from error
    show(progress.table())
    if state != "SUCCEEDED":
        raise RunNotSuccessful(f"run {run.run_id} ended as {state}: {progress.failure()}")


class Progress:
    """What was shown of a run, and what is to be shown next."""

    def __init__(self, run: Run, show: Callable[[str], None], models: Sequence[str] = ()) -> None:
        self.run, self.show, self.models = run, show, models
        self.steps: list[Step] = []
        self._shown: dict[str, Step] = {}
        self._logs_due = time.monotonic() + TRAINING_SECONDS

    def follow(self) -> str:
        """Waits for the end of the run and shows each change of a step. Returns the final state of the run.

        Raises:
            ServerError: the server refuses, or cannot be reached for longer than a restart takes.
        """
        reached, ended = time.monotonic(), 0.0
        while True:
            try:
                with translate_errors(self.run.connection):
                    current = self.run.client.get_run(self.run.run_id)
                reached = time.monotonic()
            except ServerUnavailable:
                if time.monotonic() - reached > UNAVAILABLE_SECONDS:
                    raise
            else:
                self._update(current)
                if current.state in FINAL:
                    ended = ended or time.monotonic()
                    if self._is_settled(str(current.state)) or time.monotonic() - ended > SETTLE_SECONDS:
                        return str(current.state)
            time.sleep(POLL_SECONDS)

    def _is_settled(self, state: str) -> bool:
        states = [step.state for step in self.steps]
        agree = all(each in ("SUCCEEDED", "SKIPPED") for each in states) if state == "SUCCEEDED" else "FAILED" in states
        return bool(states) and (agree or state not in ("SUCCEEDED", "FAILED")) and not {"RUNNING", "PENDING"} & set(states)

    def _update(self, current: Any) -> None:
        details = (current.run_details and current.run_details.task_details) or []
        self.steps = steps(details, self.models)
        for step in self.steps:
            before = self._shown.get(step.title)
            if before and step.attempts > before.attempts:
                self._line("RETRIED", step, f"attempt {step.attempts}" + (f": {step.reason}" if step.reason else ""))
            if step.state != "PENDING" and (before is None or before.state != step.state):
                self._line(step.state, step, "" if step.seconds is None else duration(step.seconds))
                if step.state == "FAILED":
                    self._show_log(step)
            if step.state != "PENDING":
                self._shown[step.title] = step
        if time.monotonic() >= self._logs_due:
            self._logs_due = time.monotonic() + TRAINING_SECONDS
            self._show_training()

    def _line(self, state: str, step: Step, more: str) -> None:
        self.show(f"  {time.strftime('%H:%M:%S')}  {state:<10} {step.title:<32} {more}".rstrip())

    def _show_training(self) -> None:
        for step in self.steps:
            if step.name == "train" and step.state == "RUNNING":
                lines = [line for line in self._log(step) if TRAINING_LINE.search(line)]
                if lines:
                    self._line("", step, lines[-1].strip())

    def _show_log(self, step: Step) -> None:
        lines = self._log(step)
        if lines:
            self.show("\n".join(f"    | {line}" for line in lines[-LOG_LINES:]))
        elif step.reason:
            self.show(f"    | {step.reason}")

    def _log(self, step: Step) -> list[str]:
        """The log of a step's newest pod; empty if the server has none: pods end an hour after the run."""
        if not step.pods:
            return []
        path = f"/apis/v1alpha1/runs/{self.run.run_id}/nodes/{step.pods[-1]}/log"
        with contextlib.suppress(kfp_server_api.ApiException, ServerError):
            api = self.run.client._run_api.api_client
            options = {"auth_settings": ["Bearer"], "_return_http_data_only": True, "_preload_content": False}
            with translate_errors(self.run.connection):
                text = api.call_api(path, "GET", response_type="str", **options)
            return [line for line in text.data.decode(errors="replace").splitlines() if line.strip()]
        return []

    def table(self) -> str:
        """Step, model, state and duration of each step."""
        rows = [("step", "model", "state", "duration")]
        rows += [(one.name, one.model, one.state, "" if one.seconds is None else duration(one.seconds)) for one in self.steps]
        widths = [max(len(row[column]) for row in rows) for column in range(4)]
        return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows)

    def failure(self) -> str:
        """Which steps failed, and where their logs are."""
        failed = ", ".join(step.title for step in self.steps if step.state == "FAILED")
        where = "the log of a step is in the Kubeflow UI for an hour, then as executor-logs beside its artifacts"
        return f"{failed or 'no step'} failed; {where}: {self.run.link}"


def duration(seconds: float) -> str:
    """Such as 1h02m, 3m07s or 12s."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02d}m" if hours else f"{minutes}m{rest:02d}s" if minutes else f"{rest}s"
