"""``goemotions keys``: the keys by which bundles are signed."""

from __future__ import annotations

from pathlib import Path

import click

from goemotions.cli.options import FOLDER, MODEL_NAME, REFERENCE
from goemotions.errors import IntegrityError


@click.group()
def keys() -> None:
    """Create keys, of bundles and of a cluster; show by which key versions are signed, and sign them by hand."""


@keys.command()
@click.option("--output", type=FOLDER, required=True, help="Folder for the two files.")
def create(output: Path) -> None:
    """Write a pair of keys. Only the step register needs the private one; everyone who reads bundles gets the public one."""
    from goemotions.storage import signature

    key = signature.create_keys(output)
    click.echo(f"{output / signature.PRIVATE_FILE}: private, for register alone: {signature.SIGNING_KEY}")
    click.echo(f"{output / signature.PUBLIC_FILE}: the key {key}, for all who read bundles: {signature.TRUSTED_KEYS}")


@keys.command()
@click.option(
    "--output", type=FOLDER, default=Path("manifests/overlays/local/keys"), show_default=True, help="New folder for the keys."
)
def cluster(output: Path) -> None:
    """Write the keys of manifests/overlays/local: of the object store by role, of MLflow, and those of bundles.

    Each folder in it is a secret: `kubectl create secret generic NAME --from-file=FOLDER`.
    """
    from goemotions.deployment import cluster_keys

    cluster_keys.write(output)
    click.echo(f"{output}: {', '.join(sorted(path.name for path in output.iterdir()))}")


@keys.command()
@click.argument("reference", type=REFERENCE)
@MODEL_NAME
def sign(reference: str, model_name: str) -> None:
    """Sign a stored bundle: an alias, a version number or a location. Its files are verified first.

    The signature says that you trust it: look at who registered it before.
    """
    from goemotions.registry import references

    location, key = references.sign(reference, model_name)
    click.echo(f"{location}: signed by the key {key}")


@keys.command("list")
@MODEL_NAME
def show(model_name: str) -> None:
    """Show by which key each version is signed, and which ones are refused with the keys that are trusted here."""
    from goemotions.registry import model_registry, trust

    names = {number: alias for alias, number in model_registry.aliases(model_name).items()}
    versions = [version for version in model_registry.versions(model_name) if not version.is_retired]
    refused = 0
    for version in sorted(versions, key=lambda one: int(one.number)):
        try:
            said = trust.check(version)
        except IntegrityError as error:
            refused, said = refused + 1, f"refused: {error}"
        title = ", ".join(filter(None, [version.tags.get("variant"), names.get(version.number)]))
        click.echo(f"version {version.number} ({title}): {said}")
    click.echo(f"{model_name}: {refused} of {len(versions)} versions are refused here")
