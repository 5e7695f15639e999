"""MLflow's registry of models: versions, each with the location of its bundle, and the aliases that refer to them."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Any

from goemotions import addresses
from goemotions.errors import BadArgument, ModelError
from goemotions.registry.mlflow_client import Absent, Exists, client, connect, create_once, retrying

# Of a version: how its last rollout ended, as JSON.
ROLLOUT_TAG = "goemotions.rollout"
# Of a version whose bundle is to be removed, and of one whose bundle has been removed.
RETIRED_TAG, REMOVED_TAG = "goemotions.retired", "goemotions.removed"


@dataclass(frozen=True)
class Version:
    """A version of a registered model; ``source`` is the location of its bundle, ``created`` in seconds since the epoch."""

    number: str
    source: str
    run_id: str
    tags: dict[str, str]
    model_name: str = ""
    created: float = 0.0

    @property
    def variant(self) -> str:
        """What it is for, ``gpu`` or ``cpu``, by its tag.

        Raises:
            ModelError: it has no such tag.
        """
        if "variant" not in self.tags:
            raise ModelError(
                f"version {self.number} has no tag `variant`: set it in MLflow to cpu or gpu, or register the model again"
            )
        return self.tags["variant"]

    @property
    def is_retired(self) -> bool:
        return RETIRED_TAG in self.tags

    @property
    def is_removed(self) -> bool:
        return REMOVED_TAG in self.tags


def get_or_create_version(model: str, run_id: str, source: str, tags: dict[str, str]) -> Version:
    """The version of a registered model that has this source; created if there is none.

    Raises:
        ModelError: it is retired.
    """
    connect()
    with contextlib.suppress(Exists):
        retrying.create_registered_model(model)
    version = create_once(
        lambda: version_of_bundle(model, run_id, source),
        lambda: _version(client().create_model_version(model, source, run_id, tags=tags)),
    )
    require_bundle(version)
    return version


def version_of_bundle(model: str, run_id: str, source: str) -> Version | None:
    """The version of a registered model that has this source, the first if a process that was suspended has created another one."""
    versions = (one for one in _search(f"name='{model}' and run_id='{run_id}'") if one.source == source)
    return min(versions, key=lambda one: int(one.number), default=None)


def find_version(model: str, reference: str) -> Version | None:
    """The version of an alias or a version number, or of a URI such as models:/goemotions/3; None if there is none.

    Raises:
        BadArgument: the URI names another model.
    """
    uri = addresses.model_version(reference)
    if uri and uri[0] != model:
        raise BadArgument(
            f"{reference} is a version of {uri[0]}, not of {model}: give --model-name {uri[0]} (MODEL_NAME={uri[0]})"
        )
    reference = uri[1] if uri else reference
    connect()
    request = retrying.get_model_version if reference.isdigit() else retrying.get_model_version_by_alias
    try:
        return _version(request(model, reference))
    except Absent:
        return None


def get_version(model: str, reference: str) -> Version:
    """The version of an alias or a version number.

    Raises:
        ModelError: there is none, or it is retired.
    """
    version = find_version(model, reference)
    if version is None:
        raise ModelError(
            f"{model} has no version or alias {reference!r}: register one first (`make run`), or see `make status`"
        )
    require_bundle(version)
    return version


def require_bundle(version: Version) -> None:
    """Raises:
    ModelError: the version is retired.
    """
    if version.is_retired:
        raise ModelError(
            f"version {version.number} is retired ({version.tags[RETIRED_TAG]}), its bundle is removed: take another version"
        )


def versions(model: str) -> list[Version]:
    """All versions of a registered model.

    Raises:
        ModelError: there is no such model.
    """
    aliases(model)
    return _search(f"name='{model}'")


def versions_of_run(run_id: str) -> list[Version]:
    """The versions of all registered models whose model an MLflow run trained."""
    return _search(f"run_id='{run_id}'")


def versions_of_source(source: str) -> list[Version]:
    """The versions of all registered models with this bundle, whose location may lack its final slash there."""
    return [one for end in ("/", "") for one in _search(f"source_path='{source.rstrip('/')}{end}'")]


def aliases(model: str) -> dict[str, str]:
    """The numbers of versions by alias.

    Raises:
        ModelError: there is no such model.
    """
    return {alias: str(number) for alias, number in _registered(model).aliases.items()}


def tags(model: str) -> dict[str, str]:
    """The tags of a registered model itself.

    Raises:
        ModelError: there is no such model.
    """
    return dict(_registered(model).tags)


def _registered(model: str) -> Any:
    connect()
    try:
        return retrying.get_registered_model(model)
    except Absent as error:
        raise ModelError(f"no model {model} is registered: check its name") from error


def set_alias(model: str, alias: str, number: str) -> None:
    retrying.set_registered_model_alias(model, alias, number)


def set_tag(model: str, version: Version, name: str, value: str) -> None:
    retrying.set_model_version_tag(model, version.number, name, value)


def _search(query: str) -> list[Version]:
    page = retrying.search_model_versions(query)
    entities = list(page)
    while page.token:
        page = retrying.search_model_versions(query, page_token=page.token)
        entities += page
    return [_version(entity) for entity in entities]


def _version(entity: Any) -> Version:
    created = (entity.creation_timestamp or 0) / 1000
    return Version(str(entity.version), entity.source, entity.run_id, dict(entity.tags), entity.name, created)
