"""Set the new versions on the InferenceServices of a namespace."""

from kfp.dsl import Artifact, Input

from components import component


@component
def deploy(registered: Input[Artifact], namespace: str, canary_percent: int, model_name: str) -> None:
    """Deploys the new champions, or the new challengers as canaries."""
    from pathlib import Path

    from goemotions.deployment import kserve
    from goemotions.registry import registered_versions

    kserve.deploy_registered(registered_versions.read(Path(registered.path)), namespace, model_name, canary_percent)
