"""Subcommands that act on what is registered and served: status, promote, rollback, isvc, deploy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

MODEL_NAME = click.option("--model-name", default="goemotions", show_default=True, help="Name of the registered model.")
NAMESPACE = click.option("--namespace", default="", help="Namespace of the InferenceServices; default: the current context's.")
FILE = click.option(
    "--file", type=click.Path(path_type=Path), default=Path("manifests/isvc.yaml"), show_default=True, help="The manifest."
)
VARIANT = click.option("--variant", type=click.Choice(["gpu", "cpu"]), default="cpu", show_default=True)


@click.command()
@click.argument("reference")
@MODEL_NAME
@click.option(
    "--dataset",
    type=click.Path(path_type=Path, file_okay=False),
    help="The version's Dataset folder, needed where the champion was scored on other rows.",
)
@click.option("--latency-budget-ms", default=25.0, show_default=True, help="p95 for one text that a cpu version may take.")
@FILE
def promote(reference: str, model_name: str, file: Path, **options: Any) -> None:
    """Make a version the champion if it passes the gate. REFERENCE: an alias such as challenger-cpu, or a version number."""
    from goemotions.registry import promotion

    _moved(promotion.promote(reference, model_name=model_name, **options), model_name, file)


@click.command()
@VARIANT
@MODEL_NAME
@click.option("--to", default="", help="Number of an earlier champion; default: the last one.")
@FILE
def rollback(variant: Any, model_name: str, to: str, file: Path) -> None:
    """Give the champion's place back to the version before."""
    from goemotions.registry import promotion

    _moved(promotion.rollback(variant, model_name=model_name, to=to), model_name, file)


def _moved(move: Any, model_name: str, file: Path) -> None:
    from goemotions.deployment import isvc
    from goemotions.registry import tracking

    if move.before == move.after:
        click.echo(f"version {move.after} is {move.alias} already: nothing moved")
    else:
        click.echo(f"{move.alias}: version {move.after}, before it {move.before or 'none'}")
    for name, value in (move.verdict.differences if move.verdict else {}).items():
        click.echo(f"  {name:<18}{value['difference']:+.4f} ({value['low']:+.4f} to {value['high']:+.4f})")
    for line in isvc.refresh(file, tracking.get_version(model_name, move.after), model_name) if file.exists() else ():
        click.echo(f"{file}: {line}")


@click.command()
@MODEL_NAME
@click.option("--bucket", default="", help="The bucket as the cluster knows it; default: the one it was registered in.")
@click.option("--registry", help="Prefix of the predictor's image, such as registry.example/team; default: the images stay.")
@click.option("--image-tag", default="", help="Its tag without the variant; default: the one in the file.")
@FILE
def isvc(model_name: str, file: Path, **options: Any) -> None:
    """Set the champions on the InferenceServices in the manifest."""
    from goemotions.deployment import isvc as manifest

    for line in manifest.write(file, manifest.champions(model_name), **options):
        click.echo(line)
    click.echo(f"{file}: kubectl apply -f {file}")


@click.command()
@click.argument("reference")
@MODEL_NAME
@NAMESPACE
@click.option("--service", default="", help="The InferenceService; default: <model name>-<variant of the version>.")
@click.option("--canary-percent", type=click.IntRange(0, 99), default=0, help="Its share of the traffic; 0: all of it.")
@click.option("--wait-seconds", default=900.0, show_default=True, help="Longest time until it is ready; 0: do not wait.")
def deploy(reference: str, service: str, namespace: str, **options: Any) -> None:
    """Set a version on an InferenceService and wait until it is served. REFERENCE: an alias or a version number."""
    from goemotions.deployment import kserve

    found = kserve.deploy(reference, service, namespace, **options)
    state = "ready" if found.is_ready else "not ready yet"
    canary = f", canary version {found.canary_version} with {found.canary_percent}%" if found.canary_percent else ""
    click.echo(f"{found.service}: version {found.version}{canary}, {state}")


@click.command()
@MODEL_NAME
@NAMESPACE
@click.option("--cluster/--no-cluster", default=True, show_default=True, help="Ask Kubernetes what is served.")
@FILE
def status(model_name: str, namespace: str, cluster: bool, file: Path) -> None:
    """Show what is registered, aliased, in the manifest and served, and where they disagree."""
    from goemotions.deployment import status

    found = status.collect(model_name, namespace, file, ask_cluster=cluster)
    click.echo(found.table())
    for line in found.disagreements():
        click.echo(f"disagree: {line}")


COMMANDS = (status, promote, rollback, isvc, deploy)
