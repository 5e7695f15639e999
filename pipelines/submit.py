"""Compile the training pipeline to one file that Kubeflow runs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import click
from kfp import compiler
from kfp.dsl.base_component import BaseComponent

from goemotions.errors import WorkflowError
from pipelines.training import training

REPOSITORY = "goemotions-trainer"


def commit() -> str:
    """The checked-out commit, or ``unknown`` outside a git checkout."""
    found = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    return found.stdout.strip() or "unknown"


def compile_pipeline(path: Path, image: str, commit: str, pipeline: BaseComponent = training) -> None:
    """Writes the pipeline as YAML; the image and the commit become the defaults of their parameters."""
    path.parent.mkdir(parents=True, exist_ok=True)
    compiler.Compiler().compile(pipeline, str(path), pipeline_parameters={"image": image, "commit": commit})


@click.group()
def main() -> None:
    """The training pipeline on a cluster."""


@main.command("compile")
@click.option("--output", type=click.Path(path_type=Path), default=Path(".local/training.yaml"), show_default=True)
@click.option("--registry", default="", help="Prefix of the image, such as registry.example/team.")
def compile_command(output: Path, registry: str) -> None:
    """Write one file to upload in the Kubeflow UI."""
    revision = commit()
    image = "/".join(filter(None, [registry.rstrip("/"), f"{REPOSITORY}:{revision}"]))
    compile_pipeline(output, image, revision)
    click.echo(f"{output}: upload it in the Kubeflow UI (Pipelines, Upload pipeline); its image is {image}")


if __name__ == "__main__":
    try:
        main()
    except WorkflowError as error:
        sys.exit(f"submit: {error}")
