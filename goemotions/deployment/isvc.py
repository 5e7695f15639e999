"""The file of InferenceServices that users apply: it is its own template, and what it serves is set from the registry's champions.

Everything else in it, comments included, stays as whoever edited it left it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from goemotions import defaults
from goemotions.deployment.kserve import VERSION
from goemotions.errors import DeploymentError, ModelError
from goemotions.registry import promotion
from goemotions.registry.bundle import VARIANTS
from goemotions.registry.tracking import Version
from goemotions.storage import store

FILE = Path("manifests/isvc.yaml")
IMAGE = "goemotions-predictor"


def champions(model_name: str = defaults.MODEL_NAME) -> dict[str, Version]:
    """The champion of each variant that has one, by the name of its InferenceService.

    Raises:
        ModelError: no variant has one.
    """
    found = {f"{model_name}-{variant}": promotion.champion(model_name, variant) for variant in VARIANTS}
    named = {service: version for service, version in found.items() if version}
    if not named:
        raise ModelError(f"{model_name} has no champion: register a model first")
    return named


def write(
    path: Path, versions: Mapping[str, Version], *, bucket: str = "", registry: str | None = None, image_tag: str = ""
) -> list[str]:
    """Sets versions on the InferenceServices in a file, and images on the ServingRuntimes where they are told.

    Args:
        path: the file to rewrite.
        versions: the version of each InferenceService, by its name.
        bucket: name of the bucket as the cluster knows it, where that is another one than in the version's source.
        registry: prefix of the predictor's image, such as ``registry.example/team``; None leaves the images as they are.
        image_tag: their tag without the variant; empty keeps the one that is there.

    Returns:
        A line for each InferenceService that was set.

    Raises:
        DeploymentError: the file is not there, or lacks one of the InferenceServices.
    """
    lines = []
    with _documents(path) as documents:
        services = {one["metadata"]["name"]: one for one in documents if one["kind"] == "InferenceService"}
        for name, version in versions.items():
            if name not in services:
                raise DeploymentError(f"{path} has no InferenceService {name}: it has {', '.join(services) or 'none'}")
            location = store.in_bucket(version.source, bucket)
            services[name]["metadata"]["annotations"][VERSION] = version.number
            services[name]["spec"]["predictor"]["model"]["storageUri"] = location
            lines.append(f"{name}: version {version.number}, {location}")
        if registry is not None:
            for runtime in (one for one in documents if one["kind"] == "ServingRuntime"):
                _set_image(runtime["spec"]["containers"][0], registry, image_tag)
        documents[0].yaml_set_start_comment(f"Written from the registry's champions. {'; '.join(lines)}.\n")
    return lines


def read(path: Path) -> dict[str, tuple[str, str]]:
    """Version and location of each InferenceService in a file, by its name."""
    with _documents(path, rewrite=False) as documents:
        return {
            one["metadata"]["name"]: (
                str(one["metadata"]["annotations"].get(VERSION, "")),
                str(one["spec"]["predictor"]["model"]["storageUri"]),
            )
            for one in documents
            if one["kind"] == "InferenceService"
        }


def refresh(path: Path, version: Version, model_name: str = defaults.MODEL_NAME) -> list[str]:
    """Sets a version that became champion on its InferenceService, where the file has one; its bucket and its image stay."""
    service = f"{model_name}-{version.tags['variant']}"
    services = read(path)
    if service not in services:
        return [f"no InferenceService {service}, nothing is written"]
    return write(path, {service: version}, bucket=store.bucket_of(services[service][1]))


def _set_image(container: Any, registry: str, tag: str) -> None:
    # The tag ends in the variant: it is one image name with two tags.
    former, _, variant = container["image"].rpartition(":")[2].rpartition("-")
    container["image"] = "/".join(filter(None, [registry.rstrip("/"), f"{IMAGE}:{tag or former}-{variant}"]))


@contextmanager
def _documents(path: Path, *, rewrite: bool = True) -> Iterator[list[Any]]:
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    yaml = YAML()
    yaml.preserve_quotes = True
    yaml.width = 136
    yaml.indent(mapping=2, sequence=4, offset=2)
    try:
        documents = list(yaml.load_all(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise DeploymentError(f"{path} cannot be read ({error.strerror}): run this at the root of the repository") from error
    except YAMLError as error:
        raise DeploymentError(f"{path} is not YAML: restore it (`git checkout {path}`)") from error
    yield documents
    if rewrite:
        with path.open("w", encoding="utf-8") as file:
            yaml.dump_all(documents, file)
