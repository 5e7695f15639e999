"""The training pipeline on one machine: the same definition under kfp.local, on the local stack."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
from kfp import local

from goemotions.errors import WorkflowError
from pipelines import stack
from pipelines.training import training

STORE = f"s3://{stack.BUCKET}/"


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
    local.init(local.SubprocessRunner(use_venv=False), pipeline_root=str(root))
    before = set(root.glob("*"))
    try:
        training(**{"store": STORE, "commit": commit(), **arguments})
    except RuntimeError as error:
        raise RunFailed(f"the run failed, the reason is above: {error}") from error
    made = set(root.glob("*")) - before
    return max(made, key=lambda path: path.stat().st_mtime)


def registered(run_folder: Path) -> dict[str, Any]:
    """What the register step of a local run answered."""
    found: dict[str, Any] = json.loads(next(run_folder.glob("register/registered/registered.json")).read_text(encoding="utf-8"))
    return found


def commit() -> str:
    """The checked-out commit, or ``unknown`` outside a git checkout."""
    found = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    return found.stdout.strip() or "unknown"


def summary(run_folder: Path) -> str:
    """Where the results of a run are, as lines for the terminal."""
    lines = [
        f"{variant}: {found['profile']} is version {found['version']} ({found['alias']}), bundle {found['source']}"
        for variant, found in registered(run_folder).items()
    ]
    page = next(run_folder.glob("report/page"))
    return "\n".join([*lines, f"report: {page.relative_to(Path.cwd()) if page.is_relative_to(Path.cwd()) else page}"])


def named_weights(values: tuple[str, ...]) -> dict[str, str]:
    """``profile=location`` pairs as the pipeline's parameter takes them; a local path becomes absolute."""
    pairs = [value.partition("=")[::2] for value in values]
    return {profile: place if "://" in place else str(Path(place).absolute()) for profile, place in pairs}


def source(value: str) -> str:
    """A local folder becomes absolute: each step runs in a directory of its own."""
    return str(Path(value).absolute()) if Path(value).is_dir() else value


@click.command()
@click.option("--data", default="sample", show_default=True)
@click.option("--models", default="minilm,minilm-3l", show_default=True, help="Profiles, joined by commas.")
@click.option("--weights", multiple=True, help="profile=folder or profile=s3://bucket/prefix/; repeatable.")
@click.option("--epochs", default=0, help="0: each profile's own.")
@click.option("--auto-promote/--no-auto-promote", default=False)
def main(data: str, models: str, weights: tuple[str, ...], epochs: int, auto_promote: bool) -> None:
    """Run the training pipeline on this machine."""
    folder = run(
        data=source(data),
        models=models.split(","),
        weights=named_weights(weights),
        epochs=epochs,
        auto_promote=auto_promote,
    )
    click.echo(summary(folder))
    click.echo(f"MLflow: {os.environ['MLFLOW_TRACKING_URI']}")


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        main()
    except WorkflowError as error:
        sys.exit(f"run: {error}")
