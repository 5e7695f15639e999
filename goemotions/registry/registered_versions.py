"""``registered.json``: what a pipeline run registered, for the steps after the registration."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, NotRequired, TypedDict

from goemotions import strict_json, usage
from goemotions.evaluation.gate import Verdict
from goemotions.registry import promotion
from goemotions.registry.bundle import BundleMetadata, Variant
from goemotions.registry.model_registry import Version

REGISTERED = "registered.json"


class RegisteredVersion(TypedDict):
    """What a pipeline run registered for one variant; ``registered.json`` has one per variant.

    ``source`` is the location of the bundle, ``alias`` the one that was set, ``selection`` why this profile won, ``latency`` that of
    the variants with a budget, ``gate`` the verdict against the champion (None if there was no other champion). Files of before lack
    ``selection`` and ``latency``.
    """

    profile: str
    version: str
    run_id: str
    source: str
    metrics: dict[str, float]
    alias: str
    selection: NotRequired[str]
    latency: NotRequired[dict[str, float] | None]
    gate: dict[str, Any] | None


class StoredVerdict(TypedDict):
    """What is read of a verdict, as ``Verdict.describe`` returns it; files of before have no notes."""

    passes: bool
    reasons: list[str]
    notes: NotRequired[list[str]]


def registered_version(
    version: Version, metadata: BundleMetadata, metrics: dict[str, float], alias: str, verdict: Verdict | None
) -> RegisteredVersion:
    """The entry of a version: its bundle's metadata and metrics, the alias that was set, and the gate's verdict."""
    return {
        "profile": metadata.profile,
        "version": version.number,
        "run_id": metadata.run_id,
        "source": version.source,
        "metrics": metrics,
        "alias": alias,
        "selection": metadata.selection,
        "latency": asdict(metadata.latency) if metadata.latency else None,
        "gate": verdict.describe() if verdict else None,
    }


def write(folder: Path, registered: Mapping[Variant, RegisteredVersion]) -> None:
    """Writes the file into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / REGISTERED).write_text(json.dumps(registered, indent=1), encoding="utf-8")
    usage.end_step(folder, "register")


def read(folder: Path) -> dict[Variant, RegisteredVersion]:
    """What ``write`` wrote.

    Raises:
        BadJson: it is missing or damaged.
    """
    registered: dict[Variant, RegisteredVersion] = strict_json.read(folder / REGISTERED)
    strict_json.require(registered, dict[Variant, RegisteredVersion], str(folder / REGISTERED))
    for variant, version in registered.items():
        strict_json.require(version["gate"], StoredVerdict | None, f"{folder / REGISTERED}: {variant}: gate")
    return registered


def describe(variant: str, version: RegisteredVersion) -> str:
    """What was registered, and what the gate said of it, as lines for the terminal."""
    lines = [
        f"{variant}: {version['profile']} is version {version['version']} ({version['alias']}), bundle {version['source']}"
    ]
    if gate := version["gate"]:
        if not gate["passes"]:
            lines.append(f"the champion for {variant} remains, because {'; '.join(gate['reasons'])}")
        elif version["alias"] == promotion.champion_alias(variant):
            lines.append("the gate passed: it is the champion now")
        else:
            lines.append(f"the gate passed: `make promote VERSION={version['alias']}` makes it the champion")
        lines += [f"note: {note}" for note in gate.get("notes", ())]
    return "\n  ".join(lines)
