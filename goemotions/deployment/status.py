"""The status of a model: each variant's versions in the registry, the manifest and the cluster, and where these differ."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from goemotions.deployment import isvc, kserve
from goemotions.deployment.cluster import Cluster
from goemotions.deployment.inference_service import ServiceStatus
from goemotions.errors import DeploymentError, NoCluster, WorkflowError
from goemotions.registry import model_registry, promotion, trust
from goemotions.registry.bundle import VARIANTS, Variant
from goemotions.registry.model_registry import Version
from goemotions.storage import store


@dataclass(frozen=True)
class ModelStatus:
    """Per variant champion and challenger (None if there is none); per InferenceService its manifest entry and its status.

    ``unrecorded_moves`` has what the history does not explain (``promotion.unrecorded_move``).
    """

    model_name: str
    champions: Mapping[Variant, Version | None]
    challengers: Mapping[Variant, Version | None]
    manifest: dict[str, tuple[str, str]]
    served: dict[str, ServiceStatus]
    notes: list[str] = field(default_factory=list)
    unrecorded_moves: list[str] = field(default_factory=list)

    def table(self) -> str:
        """A row per variant, then the notes on what could not be read."""
        rows = [("service", "champion", "challenger", "manifest", "served", "canary")]
        for variant in VARIANTS:
            service = kserve.service_name(self.model_name, variant)
            live = self.served.get(service)
            rows.append(
                (
                    service,
                    _title(self.champions[variant]),
                    _title(self.challengers[variant]),
                    self.manifest.get(service, ("", ""))[0] or "-",
                    f"{live.version or '?'}{'' if live.is_ready else ' (not ready)'}" if live else "-",
                    _canary(live) if live else "-",
                )
            )
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        return "\n".join([*lines, *self.notes])

    def disagreements(self) -> list[str]:
        """One line per difference to the champions, and to their history, with the command that removes it."""
        lines = [*self.unrecorded_moves]
        for variant in VARIANTS:
            service = kserve.service_name(self.model_name, variant)
            champion, live = self.champions[variant], self.served.get(service)
            if champion is None:
                continue
            _, source = self.manifest.get(service, ("", champion.source))
            if not _same_prefix(source, champion.source):
                lines.append(f"the manifest has {source} on {service}, the champion's is {champion.source}: `make isvc`")
            if live and live.source and not _same_prefix(live.source, champion.source):
                lines.append(
                    f"{service} serves {live.source}, the champion's is {champion.source}: "
                    f"`make deploy VERSION={promotion.champion_alias(variant)}`"
                )
            if live and not live.is_ready:
                lines.append(f"{service} is not ready: `kubectl describe inferenceservice {service}`")
            if live and live.canary_problem:
                lines.append(
                    f"the canary of {service} does not serve its share ({live.canary_problem}): "
                    f"`make deploy VERSION={live.version}` removes it"
                )
            elif live and live.canary_version and not live.canary_percent:
                lines.append(f"the removal of the canary of {service} was interrupted: `make deploy VERSION={live.version}`")
        return lines


def collect(model_name: str, namespace: str, file: Path, *, ask_cluster: bool = True) -> ModelStatus:
    """Reads registry, manifest and cluster. If the cluster or the manifest cannot be read, the others are still shown.

    Args:
        model_name: name of the registered model.
        namespace: of the InferenceServices; empty for that of the current context.
        file: the manifest.
        ask_cluster: whether the cluster is read.
    """
    notes, served = [], {}
    if ask_cluster:
        try:
            services = kserve.list_services([kserve.service_name(model_name, variant) for variant in VARIANTS], namespace)
            served = {status.service: status for status in services}
        except DeploymentError as error:
            notes.append(f"served: {error}")
    champions = {variant: promotion.champion(model_name, variant) for variant in VARIANTS}
    challengers = {
        variant: model_registry.find_version(model_name, promotion.challenger_alias(variant)) for variant in VARIANTS
    }
    notes += dict.fromkeys(_trust(champions) + _trust(challengers))
    moves = [promotion.unrecorded_move(model_name, variant, version) for variant, version in champions.items() if version]
    manifest: dict[str, tuple[str, str]] = {}
    with contextlib.suppress(DeploymentError):
        manifest = isvc.read(file)
    return ModelStatus(model_name, champions, challengers, manifest, served, notes, list(filter(None, moves)))


def _trust(versions: Mapping[Variant, Version | None]) -> list[str]:
    """A line per version with what its signature is, or why it is not used."""
    lines = []
    for variant, version in versions.items():
        if version:
            try:
                lines.append(f"version {version.number}: {trust.check(version, variant)}")
            except WorkflowError as error:
                lines.append(f"version {version.number}: {error}")
    return lines


def served_sources(namespace: str, file: Path, *, ask_cluster: bool = True) -> set[str]:
    """The locations that the InferenceServices of a namespace and of the manifest name.

    Raises:
        DeploymentError: the cluster is configured and does not respond.
    """
    served: set[str] = set()
    if ask_cluster:
        with contextlib.suppress(NoCluster):
            served |= set(_storage_uris(Cluster(namespace).services()))
    with contextlib.suppress(DeploymentError):
        served |= {source for _, source in isvc.read(file).values()}
    return served


def _storage_uris(content: Any) -> Iterator[str]:
    if isinstance(content, dict):
        if isinstance(uri := content.get("storageUri"), str):
            yield uri
        content = list(content.values())
    if isinstance(content, list):
        for item in content:
            yield from _storage_uris(item)


def _title(version: Version | None) -> str:
    return f"{version.number} ({version.tags.get('profile', '?')})" if version else "-"


def _canary(live: ServiceStatus) -> str:
    if not live.canary_version:
        return "-"
    return f"{live.canary_version} ({live.canary_percent}%{', not serving' if live.canary_problem else ''})"


def _same_prefix(one: str, other: str) -> bool:
    """Whether two locations are of the same bundle; the bucket may have another name in the cluster."""
    return store.in_bucket(one, store.bucket_of(other)) == other
