"""Where a model stands: what the registry, the manifest and the cluster say of each variant, and where they disagree."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from pathlib import Path

from goemotions.deployment import isvc, kserve
from goemotions.deployment.kserve import ServiceStatus
from goemotions.errors import DeploymentError
from goemotions.registry import promotion, tracking
from goemotions.registry.bundle import VARIANTS
from goemotions.registry.tracking import Version


@dataclass(frozen=True)
class ModelStatus:
    """Of each variant: champion and challenger, the version in the manifest, what is served; None where there is none."""

    model_name: str
    champions: dict[str, Version | None]
    challengers: dict[str, Version | None]
    manifest: dict[str, tuple[str, str]]
    served: dict[str, ServiceStatus]
    notes: list[str] = field(default_factory=list)

    def table(self) -> str:
        """A row for each variant, then what could not be asked."""
        rows = [("service", "champion", "challenger", "manifest", "served", "canary")]
        for variant in VARIANTS:
            service = f"{self.model_name}-{variant}"
            live = self.served.get(service)
            rows.append(
                (
                    service,
                    _title(self.champions[variant]),
                    _title(self.challengers[variant]),
                    self.manifest.get(service, ("", ""))[0] or "-",
                    f"{live.version or '?'}{'' if live.is_ready else ' (not ready)'}" if live else "-",
                    f"{live.canary_version} ({live.canary_percent}%)" if live and live.canary_percent else "-",
                )
            )
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        return "\n".join([*lines, *self.notes])

    def disagreements(self) -> list[str]:
        found = []
        for variant in VARIANTS:
            service = f"{self.model_name}-{variant}"
            champion, live = self.champions[variant], self.served.get(service)
            if champion is None:
                continue
            _, source = self.manifest.get(service, ("", champion.source))
            if not _same_prefix(source, champion.source):
                found.append(f"the manifest has {source} on {service}, the champion's is {champion.source}: `make isvc`")
            if live and live.source and not _same_prefix(live.source, champion.source):
                found.append(
                    f"{service} serves {live.source}, the champion's is {champion.source}: "
                    f"`make deploy VERSION={promotion.champion_alias(variant)}`"
                )
            if live and not live.is_ready:
                found.append(f"{service} is not ready: `kubectl describe inferenceservice {service}`")
        return found


def collect(model_name: str, namespace: str, file: Path, *, ask_cluster: bool = True) -> ModelStatus:
    """What each place says. A place that does not answer is named in the notes, and the others are shown.

    Args:
        model_name: name of the registered model.
        namespace: of the InferenceServices; empty for that of the current context.
        file: the manifest.
        ask_cluster: whether Kubernetes is asked.
    """
    notes, served = [], {}
    if ask_cluster:
        try:
            found = kserve.list_services([f"{model_name}-{variant}" for variant in VARIANTS], namespace)
            served = {one.service: one for one in found}
        except DeploymentError as error:
            notes.append(f"served: {error}")
    manifest: dict[str, tuple[str, str]] = {}
    with contextlib.suppress(DeploymentError):
        manifest = isvc.read(file)
    return ModelStatus(
        model_name,
        {variant: promotion.champion(model_name, variant) for variant in VARIANTS},
        {variant: tracking.find_version(model_name, promotion.challenger_alias(variant)) for variant in VARIANTS},
        manifest,
        served,
        notes,
    )


def _title(version: Version | None) -> str:
    return f"{version.number} ({version.tags.get('profile', '?')})" if version else "-"


def _same_prefix(one: str, other: str) -> bool:
    """The same bundle, whatever the bucket is called: its prefix holds the run's id."""
    return one.removeprefix("s3://").partition("/")[2] == other.removeprefix("s3://").partition("/")[2]
