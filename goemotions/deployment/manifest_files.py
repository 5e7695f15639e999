"""Manifests as files: read and written with the comments and quotes that they have."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from goemotions.errors import DeploymentError


def load(path: Path) -> list[Any]:
    """The documents of a file.

    Raises:
        DeploymentError: it cannot be read, or is not YAML.
    """
    from ruamel.yaml.error import YAMLError

    try:
        return list(_yaml().load_all(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise DeploymentError(f"{path} cannot be read ({error.strerror}): run this at the root of the repository") from error
    except YAMLError as error:
        raise DeploymentError(f"{path} is not YAML: restore it (`git checkout {path}`)") from error


def dump(path: Path, documents: Iterable[Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        _yaml().dump_all(documents, file)


def of_kind(documents: Iterable[Any], kind: str) -> dict[str, Any]:
    """The documents of a kind, by name."""
    return {document["metadata"]["name"]: document for document in documents if document["kind"] == kind}


def _yaml() -> Any:
    from ruamel.yaml import YAML

    yaml = YAML()
    yaml.preserve_quotes = True
    yaml.width = 136
    yaml.indent(mapping=2, sequence=4, offset=2)
    return yaml
