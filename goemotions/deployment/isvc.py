"""The manifest that users apply: this module sets the versions and images in it, from the champions in the registry.

Everything else in the file, comments included, is kept.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from goemotions import defaults
from goemotions.deployment import node_pools
from goemotions.deployment.inference_service import VERSION, set_version
from goemotions.deployment.kserve import service_name
from goemotions.deployment.manifest_files import dump, load, of_kind
from goemotions.errors import DeploymentError, ModelError
from goemotions.registry import promotion, trust
from goemotions.registry.bundle import VARIANTS
from goemotions.registry.model_registry import Version
from goemotions.storage import store

IMAGE = "goemotions-predictor"


def champions(model_name: str = defaults.MODEL_NAME) -> dict[str, Version]:
    """The champion of each variant that has one, by the name of its InferenceService.

    Raises:
        ModelError: no variant has one.
        UntrustedBundle: its bundle is not one that `register` stored (``trust``).
    """
    versions = {service_name(model_name, variant): promotion.champion(model_name, variant) for variant in VARIANTS}
    champions = {service: version for service, version in versions.items() if version}
    if not champions:
        raise ModelError(f"{model_name} has no champion: register a model first")
    for version in champions.values():
        trust.check(version)
    return champions


def write(
    path: Path,
    versions: Mapping[str, Version],
    *,
    bucket: str = "",
    registry: str | None = None,
    image_tag: str = "",
    preset: str = "",
) -> list[str]:
    """Sets versions on the InferenceServices in a file, images on the ServingRuntimes, and the node pool of those with GPUs.

    Args:
        path: the file to rewrite.
        versions: the version of each InferenceService, by its name.
        bucket: name of the bucket in the cluster, if it differs from the one in the version's source.
        registry: prefix of the predictor's image, such as ``registry.example/team``; None leaves the images as they are.
        image_tag: tag of the images without the variant; empty keeps the present one.
        preset: the node pool of the services that request GPUs, a name of ``node_pools.PRESETS``; empty keeps the present one.

    Returns:
        One line per InferenceService that was set.

    Raises:
        BadArgument: there is no such preset.
        DeploymentError: the file cannot be read, or lacks one of the InferenceServices.
    """
    lines = []
    pool = node_pools.get(preset) if preset else None
    documents = load(path)
    services = of_kind(documents, "InferenceService")
    for name, version in versions.items():
        if name not in services:
            raise DeploymentError(f"{path} has no InferenceService {name}: it has {', '.join(services) or 'none'}")
        trust.check(version)
        location = store.in_bucket(version.source, bucket)
        services[name]["metadata"]["annotations"][VERSION] = version.number
        set_version(services[name]["spec"]["predictor"]["model"], location, version.number)
        lines.append(f"{name}: version {version.number}, {location}")
    if registry is not None:
        for runtime in of_kind(documents, "ServingRuntime").values():
            _set_image(runtime["spec"]["containers"][0], registry, image_tag)
    documents[0].yaml_set_start_comment(f"Written from the registry's champions. {'; '.join(lines)}.\n")
    for name in _with_gpus(documents):
        predictor = services[name]["spec"]["predictor"]
        if pool:
            node_pools.place(predictor, pool)
            lines.append(f"{name}: nodes of {preset}")
        elif name in versions and not {"nodeSelector", "affinity"} & set(predictor):
            lines.append(f"{name}: any node with a GPU; --preset (PRESET=gke-l4) writes the selector of a node pool")
    dump(path, documents)
    return lines


def read(path: Path) -> dict[str, tuple[str, str]]:
    """Version and location of each InferenceService in a file, by its name."""
    return {
        name: (
            str(service["metadata"]["annotations"].get(VERSION, "")),
            str(service["spec"]["predictor"]["model"]["storageUri"]),
        )
        for name, service in of_kind(load(path), "InferenceService").items()
    }


def refresh(path: Path, version: Version, model_name: str = defaults.MODEL_NAME) -> list[str]:
    """Sets a new champion on its InferenceService if the file has one; bucket and image are kept."""
    service = service_name(model_name, version.variant)
    services = read(path)
    if service not in services:
        return [f"no InferenceService {service}, nothing is written"]
    return write(path, {service: version}, bucket=store.bucket_of(services[service][1]))


def _with_gpus(documents: list[Any]) -> set[str]:
    """The InferenceServices whose runtime requests GPUs."""
    runtimes = of_kind(documents, "ServingRuntime")
    return {
        name
        for name, service in of_kind(documents, "InferenceService").items()
        if (runtime := runtimes.get(service["spec"]["predictor"]["model"].get("runtime")))
        and any(node_pools.GPU in container["resources"].get("limits", {}) for container in runtime["spec"]["containers"])
    }


def _set_image(container: Any, registry: str, tag: str) -> None:
    # The variant is the end of the tag: both variants have the same image name.
    former, _, variant = container["image"].rpartition(":")[2].rpartition("-")
    container["image"] = "/".join(filter(None, [registry.rstrip("/"), f"{IMAGE}:{tag or former}-{variant}"]))
