"""Registration: per variant the winner on validation becomes a bundle and a version, and champion if it passes the gate."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

from goemotions import defaults
from goemotions.errors import ModelError
from goemotions.evaluation.gate import Verdict
from goemotions.evaluation.selection import CandidateScores, latency_limit, select_winner
from goemotions.metrics import thresholds
from goemotions.metrics.classification import METRICS_FILE
from goemotions.models.engine_names import WEIGHTS
from goemotions.registry import assembly, bundle, promotion, tracking
from goemotions.registry.assembly import CandidateArtifacts
from goemotions.registry.bundle import ENGINES, BundleLocation, BundleMetadata, Variant
from goemotions.registry.tracking import Version
from goemotions.storage import lock, manifest
from goemotions.storage import store as storage
from goemotions.storage.lock import Lock

REGISTERED = "registered.json"
CHECKPOINT = WEIGHTS["torch"]


class RegisteredVersion(TypedDict):
    """What a pipeline run registered for one variant; ``registered.json`` has one per variant.

    ``source`` is the location of the bundle, ``alias`` the one that was set, ``gate`` the verdict against the champion (None if
    there was no other champion).
    """

    profile: str
    version: str
    run_id: str
    source: str
    metrics: dict[str, float]
    latency_ms_p95: float
    alias: str
    gate: dict[str, Any] | None


def write(folder: Path, registered: Mapping[Variant, RegisteredVersion]) -> None:
    """Writes ``registered.json`` into a folder, for the steps after the registration."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / REGISTERED).write_text(json.dumps(registered, indent=1), encoding="utf-8")


def read(folder: Path) -> dict[Variant, RegisteredVersion]:
    """What ``write`` wrote."""
    registered: dict[Variant, RegisteredVersion] = json.loads((folder / REGISTERED).read_text(encoding="utf-8"))
    return registered


@storage.raise_on_full_disk
def register(
    dataset: Path,
    candidates: Mapping[Variant, list[CandidateArtifacts]],
    *,
    store: str,
    pipeline_run: str,
    model_name: str = defaults.MODEL_NAME,
    latency_budget_ms: float = defaults.LATENCY_BUDGET_MS,
    auto_promote: bool = False,
    tags: dict[str, str] | None = None,
) -> dict[Variant, RegisteredVersion]:
    """Registers the winner of each variant.

    Running it again for the same pipeline run changes nothing that is complete, and completes what is not (idempotent).

    Args:
        dataset: the Dataset folder, to score a champion that was scored on other data.
        candidates: per variant the folders of every profile.
        store: location that has ``models/`` below it, such as ``s3://bucket/``.
        pipeline_run: id of the pipeline run.
        model_name: name of the registered model.
        latency_budget_ms: limit of the cpu winner's 95th percentile for one text of 20 tokens.
        auto_promote: move the champion alias if the gate passes.
        tags: further tags of the versions, such as the git commit and the image.

    Raises:
        ModelError: the champion has other labels, or the run has registered another model of the same profile.
        DataError, IntegrityError, StorageError, TrackingError: artifacts, bundle, store or MLflow fail.
    """
    scores = {variant: [folders.validation_scores(variant) for folders in found] for variant, found in candidates.items()}
    for variant, compared in scores.items():
        _refuse_other_labels(model_name, variant, compared)
    registered: dict[Variant, RegisteredVersion] = {}
    for variant, compared in scores.items():
        position = select_winner(compared, latency_limit(variant, latency_budget_ms))
        winner = compared[position]
        with lock.hold(bundle.model_prefix(store, model_name)):
            run = tracking.get_or_create_run(pipeline_run, winner.profile)
        location = BundleLocation(store, model_name, run.run_id, variant)
        artifacts = candidates[variant][position]
        metadata = BundleMetadata(
            variant,
            ENGINES[variant],
            winner.profile,
            run.run_id,
            winner.validation.digest,
            winner.validation.computation,
            manifest.sha256(artifacts.model / CHECKPOINT),
        )
        metrics = _store_bundle(location, artifacts, metadata)
        run.log_metrics({f"{variant}/{name}": value for name, value in metrics.items()})
        registration = _Registration(location, {**_version_tags(metadata), **(tags or {})}, winner)
        version, alias, verdict = registration.complete(dataset, latency_budget_ms, auto_promote=auto_promote)
        registered[variant] = {
            "profile": winner.profile,
            "version": version.number,
            "run_id": run.run_id,
            "source": version.source,
            "metrics": metrics,
            "latency_ms_p95": winner.latency_ms,
            "alias": alias,
            "gate": verdict.describe() if verdict else None,
        }
    return registered


def _refuse_other_labels(model_name: str, variant: Variant, candidates: list[CandidateScores]) -> None:
    """Checked before anything is stored: all versions of a registered model have the same labels."""
    champion = promotion.champion(model_name, variant)
    if champion and {scores.validation.names for scores in candidates} != {bundle.taxonomy(champion.source).names}:
        raise ModelError(f"the champion of {model_name} has other labels than this data: register under another model name")


def _version_tags(metadata: BundleMetadata) -> dict[str, str]:
    tags = {name: getattr(metadata, name) for name in ("variant", "profile", "run_id", "dataset_digest")}
    return tags | {"evaluated": str(metadata.evaluated)}


def _store_bundle(location: BundleLocation, artifacts: CandidateArtifacts, metadata: BundleMetadata) -> dict[str, float]:
    """Writes and uploads the bundle unless it is complete there, since bundles never change; returns its metrics."""
    if (content := storage.read(str(location), manifest.NAME)) is not None:
        _refuse_other_files(location, json.loads(content), artifacts, metadata)
        metrics = json.loads(storage.read(str(location), METRICS_FILE) or b"{}")
        return {name: float(value) for name, value in metrics.items()}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "bundle"
        written = assembly.assemble(folder, artifacts, metadata)
        storage.put(folder, str(location))
    return written


def _refuse_other_files(
    location: BundleLocation, stored: dict[str, Any], artifacts: CandidateArtifacts, metadata: BundleMetadata
) -> None:
    """A pipeline run registers one model per profile: another one would get the version and the bytes of the first."""
    files = {name: entry["sha256"] for name, entry in stored["files"].items()}
    # Bundles of before hold the checkpoint itself.
    is_same_model = metadata.checkpoint_sha256 in (stored.get("checkpoint_sha256"), files.get(CHECKPOINT))
    if not is_same_model or files[thresholds.FILE] != manifest.sha256(artifacts.thresholds / thresholds.FILE):
        raise ModelError(f"{location} has another model of the same run and profile: register under another run id")


@dataclass(frozen=True)
class _Registration:
    """A stored bundle that becomes a version of a registered model."""

    location: BundleLocation
    tags: dict[str, str]
    scores: CandidateScores

    def complete(self, dataset: Path, latency_budget_ms: float, *, auto_promote: bool) -> tuple[Version, str, Verdict | None]:
        """Creates the version and sets the aliases; returns the version, its alias and the gate's verdict."""
        model_name, variant, source = self.location.model_name, self.location.variant, str(self.location)
        while True:
            champion = promotion.champion(model_name, variant)
            is_champion = champion is not None and champion.source == source
            verdict = None if is_champion else promotion.judge(self.scores, variant, champion, dataset, latency_budget_ms)
            with lock.hold(self.location.model_prefix) as held:
                version = tracking.get_or_create_version(model_name, self.location.run_id, source, self.tags)
                # The comparison takes long and is not locked: if the champion changed meanwhile, it is repeated with the new one.
                if promotion.is_champion(model_name, variant, champion):
                    return version, self._set_aliases(version, champion, verdict, held, auto_promote=auto_promote), verdict

    def _set_aliases(
        self, version: Version, champion: Version | None, verdict: Verdict | None, held: Lock, *, auto_promote: bool
    ) -> str:
        """Sets challenger, and champion if there is none or if a passed gate may promote; returns the highest alias set."""
        model_name, variant = self.location.model_name, self.location.variant
        if champion is None:
            promotion.set_champion(model_name, version, variant, "", held)
        if champion is None or verdict is None:
            return promotion.champion_alias(variant)
        held.require()
        tracking.set_alias(model_name, promotion.challenger_alias(variant), version.number)
        # A version that was rolled back by hand is not promoted again by a retry.
        if not (auto_promote and verdict.passes) or promotion.was_rolled_back(version, champion, variant):
            return promotion.challenger_alias(variant)
        promotion.set_champion(model_name, version, variant, champion.number, held)
        return promotion.champion_alias(variant)
