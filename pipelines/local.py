"""The training pipeline on one machine: the same definition under kfp.local, on the local stack."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import re
import shutil
import signal
import sys
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import psutil
from kfp import local

from goemotions import defaults
from goemotions.errors import WorkflowError
from goemotions.registry.bundle import VARIANTS, Variant
from pipelines import parameters, stack, submit
from pipelines.training import training

if TYPE_CHECKING:
    from goemotions.registry.assembly import CandidateArtifacts
    from goemotions.registry.registration import RegisteredVersion

SHOWN = re.compile(r"Executing task|finished with status|step/s|WARNING|s/step|Error")
HIDDEN = re.compile(r"UserWarning|RuntimeWarning")
# A step is a process of its own: what it raised is known from its traceback alone.
NAMED = re.compile(r"^\s*goemotions\.errors\.\w+: (.+)$", re.MULTILINE)
TAIL_CHARACTERS = 6000
STOP_SECONDS = 15
PUBLISHED = {"report.md": "model-performance.md", "dataset.md": "dataset-analysis.md"}
STORE = defaults.STORE


class RunFailed(WorkflowError):
    """A step of a local run failed; its traceback is above."""


def run(folder: Path = stack.FOLDER, **arguments: Any) -> Path:
    """Runs the pipeline with the stack's services and answers the folder with what its steps made.

    Args:
        folder: where the stack's services and the steps' outputs live.
        arguments: parameters of ``pipelines.training.training``.

    Raises:
        RunFailed: a step failed.
    """
    os.environ.update(stack.up(folder))
    root = folder.absolute() / "runs"
    root.mkdir(parents=True, exist_ok=True)
    local.init(local.SubprocessRunner(use_venv=False), pipeline_root=str(root))
    before = set(root.iterdir())
    log = root / "last.log"
    try:
        with (
            _on_one_machine(),
            _stopping_at_once(),
            Console(log) as console,
            warnings.catch_warnings(),
            contextlib.redirect_stdout(console),
        ):
            # KFP warns at every step that display names and the image do nothing here.
            warnings.filterwarnings("ignore", module=r"kfp\.local")
            training(**{"store": STORE, "commit": submit.commit(), **arguments})
    except RuntimeError as error:
        text = log.read_text(encoding="utf-8")
        if named := NAMED.findall(text):
            raise RunFailed(f"{named[-1]} (the log is {log})") from error
        print(text[-TAIL_CHARACTERS:], file=sys.stderr)
        raise RunFailed(f"a step failed, its log is above; the whole one is {log}") from error
    made = next(path for path in root.iterdir() if path.is_dir() and path not in before)
    log.rename(made / "run.log")
    return made


@contextlib.contextmanager
def _on_one_machine() -> Iterator[None]:
    """The pipeline without retries and with one model after the other, for as long as it runs here.

    A retry would only meet the same error again; two trainings at once on a few cores take longer than one after the other, and
    spoil each other's latency.
    """
    spec = training.pipeline_spec
    before = type(spec).FromString(spec.SerializeToString())
    loop = spec.root.dag.tasks["for-loop-1"]
    loop.iterator_policy.parallelism_limit = 1
    for dag in (spec.root.dag, spec.components[loop.component_ref.name].dag):
        for task in dag.tasks.values():
            task.ClearField("retry_policy")
    try:
        yield
    finally:
        spec.CopyFrom(before)


@contextlib.contextmanager
def _stopping_at_once() -> Iterator[None]:
    """Ctrl-C ends the run: KFP by itself would take the interrupted step for a failed one and go on with the next model."""

    def stop(*_: object) -> None:
        session = os.getsid(0)
        # The stack's servers have sessions of their own and stay.
        steps = [child for child in psutil.Process().children(recursive=True) if os.getsid(child.pid) == session]
        for step in steps:
            step.terminate()
        psutil.wait_procs(steps, timeout=STOP_SECONDS)
        os.write(2, b"\ninterrupted: start again at any time; the stack keeps running (`make stack-down` ends it)\n")
        os._exit(130)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


class Console(io.TextIOBase):
    """Writes everything KFP prints to a log, and shows the lines a person waits for: steps, progress, warnings."""

    def __init__(self, log: Path) -> None:
        self._file = log.open("w", encoding="utf-8")
        self._terminal = sys.stdout
        self._line = ""

    def write(self, text: str) -> int:
        self._file.write(text)
        self._file.flush()
        *lines, self._line = (self._line + text).split("\n")
        for line in lines:
            if SHOWN.search(line) and not HIDDEN.search(line):
                print(line.strip(), file=self._terminal, flush=True)
        return len(text)

    def close(self) -> None:
        self._file.close()
        super().close()


def registered(run_folder: Path) -> dict[Variant, RegisteredVersion]:
    """What the register step of a local run registered."""
    from goemotions.registry import registration

    return registration.read(run_folder / "register" / "registered")


def report_folder(run_folder: Path) -> Path:
    """The folder that the report step of a local run wrote."""
    return run_folder / "report" / "folder"


def parts(run_folder: Path) -> dict[Variant, list[CandidateArtifacts]]:
    """The folders that the steps of a local run made, for each variant those of every profile."""
    from goemotions.registry.assembly import CandidateArtifacts

    loops = sorted(run_folder.glob("for-loop-*-iteration-*"), key=lambda path: int(path.name.rpartition("-")[2]))
    # KFP numbers the tasks of one component in the order of the pipeline.
    return {
        variant: [
            CandidateArtifacts(
                loop / "train" / "model",
                loop / "export" / "onnx",
                loop / f"evaluate{number}" / "validation",
                loop / f"evaluate{number}" / "test",
                loop / f"tune-thresholds{number}" / "thresholds",
            )
            for loop in loops
        ]
        for variant, number in zip(VARIANTS, ("", "-2"), strict=True)
    }


def publish(run_folder: Path, whole: Path, output: Path, model_name: str = defaults.MODEL_NAME) -> Path:
    """Writes a run's report with the code and the measurements of today, and copies what may be published to ``output``.

    Returns:
        The page, below ``whole``.
    """
    from goemotions import report

    shutil.rmtree(whole, ignore_errors=True)
    dataset = run_folder / "ingest" / "dataset"
    report.write(dataset, parts(run_folder), whole, registered(run_folder), model_name=model_name)
    for folder in ("figures", "tables"):
        shutil.rmtree(output / folder, ignore_errors=True)
        shutil.copytree(whole / folder, output / folder)
    for name, published in PUBLISHED.items():
        shutil.copyfile(whole / name, output / published)
    return whole / "report.html"


def summary(run_folder: Path) -> str:
    """Where the results of a run are, as lines for the terminal."""
    lines = [
        f"{variant}: {found['profile']} is version {found['version']} ({found['alias']}), bundle {found['source']}"
        for variant, found in registered(run_folder).items()
    ]
    page = report_folder(run_folder) / "report.html"
    return "\n".join([*lines, f"report: {page.relative_to(Path.cwd()) if page.is_relative_to(Path.cwd()) else page}"])


@click.group()
def main() -> None:
    """The training pipeline on this machine."""


@main.command("run")
@click.option("--data", default="sample", show_default=True, help="sample, hub:..., a folder, or s3://bucket/prefix/.")
@click.option("--models", default="minilm,minilm-3l", show_default=True, help="Profiles, joined by commas.")
@click.option("--weights", multiple=True, help="profile=folder or profile=s3://bucket/prefix/; repeatable.")
@click.option("--epochs", default=0, help="0: each profile's own.")
@click.option("--seed", default=0, show_default=True)
@click.option("--model-name", default="goemotions", show_default=True, help="Name of the registered model.")
@click.option("--auto-promote/--no-auto-promote", default=False, help="Move the champion aliases where the gate passes.")
@click.option("--set", "others", multiple=True, help="Any other parameter of the pipeline, as name=value; repeatable.")
def run_command(data: str, models: str, weights: tuple[str, ...], others: tuple[str, ...], **options: Any) -> None:
    """Run the pipeline and say what it registered."""
    arguments = {**options, **parameters.parse(others)}
    folder = run(data=parameters.source(data), models=models.split(","), weights=parameters.named_weights(weights), **arguments)
    click.echo(summary(folder))
    click.echo(f"MLflow: {os.environ['MLFLOW_TRACKING_URI']}")


@main.command("report")
@click.option("--output", type=click.Path(path_type=Path), default=Path("docs"), show_default=True, help="Folder to write to.")
@click.option("--model-name", default=defaults.MODEL_NAME, show_default=True, help="Name of the registered model.")
def report_command(output: Path, model_name: str) -> None:
    """Write the report of the newest run again, and to OUTPUT what may be published of it: not the pages, which hold texts."""
    runs = sorted(path.parent for path in (stack.FOLDER / "runs").glob("*/report"))
    if not runs:
        raise RunFailed("there is no finished run to report on: `make run` makes one")
    page = publish(runs[-1], stack.FOLDER / "report", output, model_name)
    click.echo(f"{', '.join(str(output / name) for name in PUBLISHED.values())}; the page is {page}")


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        main()
    except WorkflowError as error:
        sys.exit(f"local: {error}")
