"""Compile the training pipeline to one file that Kubeflow runs."""

from __future__ import annotations

import sys
from pathlib import Path

import click
from kfp import compiler

from goemotions.errors import WorkflowError
from pipelines import local
from pipelines.training import training

REPOSITORY = "goemotions-trainer"


def compile_pipeline(path: Path, image: str, commit: str) -> None:
    """Writes the pipeline as YAML; the image and the commit become the defaults of their parameters."""
    path.parent.mkdir(parents=True, exist_ok=True)
    compiler.Compiler().compile(training, str(path), pipeline_parameters={"image": image, "commit": commit})


@click.group()
def main() -> None:
    """The training pipeline on a cluster."""


@main.command("compile")
@click.option("--output", type=click.Path(path_type=Path), default=Path(".local/training.yaml"), show_default=True)
@click.option("--registry", default="", help="Prefix of the image, such as registry.example/team.")
def compile_command(output: Path, registry: str) -> None:
    """Write one file to upload in the Kubeflow UI."""
    commit = local.commit()
    image = "/".join(filter(None, [registry.rstrip("/"), f"{REPOSITORY}:{commit}"]))
    compile_pipeline(output, image, commit)
    click.echo(f"{output}: upload it in the Kubeflow UI (Pipelines, Upload pipeline); its image is {image}")


if __name__ == "__main__":
    try:
        main()
    except WorkflowError as error:
        sys.exit(f"submit: {error}")
