"""Registration: per variant the winner on validation becomes a bundle and a version, and champion if it passes the gate."""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from goemotions import addresses, defaults, strict_json
from goemotions.errors import ModelError, StorageError
from goemotions.evaluation import latency
from goemotions.evaluation.gate import Verdict
from goemotions.evaluation.selection import CandidateScores, describe_winner, latency_limit, select_winner
from goemotions.metrics import thresholds
from goemotions.metrics.classification import METRICS_FILE
from goemotions.models.engine_names import WEIGHTS
from goemotions.registry import assembly, bundle, costs, model_registry, promotion, tracking, trained, trust
from goemotions.registry import challenger as challengers
from goemotions.registry.bundle import ENGINES, BundleLocation, BundleMetadata, Variant
from goemotions.registry.candidates import CandidateArtifacts
from goemotions.registry.challenger import Challenger, GateOptions
from goemotions.registry.costs import Prices
from goemotions.registry.model_registry import Version
from goemotions.registry.registered_versions import RegisteredVersion, registered_version
from goemotions.registry.tracking import Run
from goemotions.storage import layout, lock, manifest, probe, signature
from goemotions.storage import store as storage
from goemotions.storage.lock import Lock
from goemotions.storage.temporary import temporary_folder

log = logging.getLogger(__name__)

CHECKPOINT = WEIGHTS["torch"]


@storage.raise_on_full_disk
def register(
    dataset: Path,
    candidates: Mapping[Variant, list[CandidateArtifacts]],
    *,
    store: str,
    pipeline_run: str,
    model_name: str = defaults.MODEL_NAME,
    latency_budget_ms: float = defaults.LATENCY_BUDGET_MS,
    quality_tolerance: float = defaults.QUALITY_TOLERANCE,
    auto_promote: bool = False,
    keep_checkpoints: bool = False,
    prices: Prices = Prices(),  # noqa: B008 - it is frozen
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
        latency_budget_ms: limit of the cpu winner's latency for one text of 20 tokens (``evaluation.latency``).
        quality_tolerance: what a faster model for cpu may lose and still win (``selection.select_winner``).
        auto_promote: move the champion alias if the gate passes.
        keep_checkpoints: keep the checkpoints of the pipeline run's trainings, which nothing needs any more.
        prices: those of the costs in the model cards and in MLflow.
        tags: further tags of the versions, such as the git commit and the image.

    Raises:
        BadAddress: the store has an unknown form.
        ModelError: the champion has other labels, or the run has registered another model of the same profile.
        DataError, IntegrityError, StorageError, TrackingError: artifacts, bundle, store or MLflow fail.
    """
    models = layout.models(addresses.location(store, "the store"), model_name)
    log.info(probe.run(models))
    for prefix in (models, storage.join(store, "trained")):
        storage.sweep(prefix)
    scores = {variant: [folders.validation_scores() for folders in listed] for variant, listed in candidates.items()}
    for variant, compared in scores.items():
        _refuse_other_labels(model_name, variant, compared)
    runs = _store_models(candidates, store, pipeline_run, model_name)
    tags = {**(tags or {}), **_decision(pipeline_run)}
    costs.log_costs(pipeline_run, costs.of_run(dataset, candidates), prices)
    options = GateOptions(str(dataset), latency_budget_ms, quality_tolerance)
    registered: dict[Variant, RegisteredVersion] = {}
    for variant, compared in scores.items():
        locations = [BundleLocation(store, model_name, runs[one.profile].run_id, variant) for one in compared]
        position, metadata = _choose(locations, candidates[variant], compared, options)
        metrics = _store_bundle(locations[position], candidates[variant][position], metadata, prices)
        load_engine = functools.partial(candidates[variant][position].load_engine, variant, threads=1)
        challenger = Challenger(compared[position], load_engine, metadata.run_id)
        registration = _Registration(locations[position], {**_version_tags(metadata), **tags}, challenger)
        version, alias, verdict = registration.complete(options, auto_promote=auto_promote)
        registered[variant] = registered_version(version, metadata, metrics, alias, verdict)
    if not keep_checkpoints:
        remove_checkpoints(store, pipeline_run)
    return registered


def remove_checkpoints(store: str, pipeline_run: str) -> None:
    """Removes the checkpoints of a run that has succeeded; what cannot be removed is left, with a warning."""
    if Path(pipeline_run).name != pipeline_run:
        return
    try:
        storage.remove(layout.checkpoints(store, pipeline_run))
    except StorageError as error:
        log.warning("the checkpoints of the run are kept: %s", error)


def _store_models(
    candidates: Mapping[Variant, list[CandidateArtifacts]], store: str, pipeline_run: str, model_name: str
) -> dict[str, Run]:
    """Stores every trained model and logs its metrics to its MLflow run, whether it wins or not; returns the runs by profile."""
    runs = {}
    for profile, variants in trained.variants_by_profile(candidates).items():
        with lock.hold(layout.models(store, model_name)) as held, held.writing():
            run = runs[profile] = tracking.get_or_create_run(pipeline_run, profile)
        location = layout.trained(store, pipeline_run, profile)
        trained.put(location, variants, pipeline_run=pipeline_run, run_id=run.run_id)
        stored = {variant: _metrics(location, f"{variant}/{METRICS_FILE}") for variant in variants}
        of_slices = {variant: artifacts.slice_metrics() for variant, artifacts in variants.items()}
        metrics = {
            f"{variant}/{name}": value
            for measured in (stored, of_slices)
            for variant, values in measured.items()
            for name, value in values.items()
        }
        run.log_once(metrics, {trained.LOCATION_TAG: location})
    return runs


def _choose(
    locations: list[BundleLocation],
    candidates: list[CandidateArtifacts],
    scores: list[CandidateScores],
    options: GateOptions,
) -> tuple[int, BundleMetadata]:
    """Position and metadata of the winner of a variant: that of an earlier attempt of the step if it stored a bundle."""
    for position, location in enumerate(locations):
        if stored := trust.stored(str(location)):
            earlier = BundleMetadata.parse(stored[0])
            return position, replace(earlier, checkpoint_sha256=manifest.sha256(candidates[position].model / CHECKPOINT))
    variant = locations[0].variant
    limit = latency_limit(variant, options.latency_budget_ms)
    if limit is not None:
        times = latency.measure([artifacts.load_engine(variant, threads=1) for artifacts in candidates])
        scores = [replace(one, latency=time) for one, time in zip(scores, times, strict=True)]
    position = select_winner(scores, limit, options.quality_tolerance)
    winner = scores[position]
    return position, BundleMetadata(
        variant,
        ENGINES[variant],
        winner.profile,
        locations[position].run_id,
        winner.validation.digest,
        winner.validation.computation,
        manifest.sha256(candidates[position].model / CHECKPOINT),
        describe_winner(scores, position, limit, options.quality_tolerance),
        winner.latency,
    )


def _refuse_other_labels(model_name: str, variant: Variant, candidates: list[CandidateScores]) -> None:
    """Checked before anything is stored: all versions of a registered model have the same labels."""
    champion = promotion.champion(model_name, variant)
    if champion is None:
        return
    content = trust.require_stored(str(trust.require_source(champion, variant)))[0]
    if {scores.validation.names for scores in candidates} != {bundle.taxonomy(champion.source, content).names}:
        raise ModelError(f"the champion of {model_name} has other labels than this data: register under another model name")


def create_version(model_name: str, run_id: str, source: str, tags: dict[str, str], held: Lock) -> Version:
    """The version of a stored bundle, whose number is signed; created if there is none."""
    with held.writing():
        version = model_registry.get_or_create_version(model_name, run_id, source, tags)
    # In a write of its own: a process that was suspended while it created a version may have created a second one.
    with held.writing():
        trust.sign_number(version)
    return version


def _version_tags(metadata: BundleMetadata) -> dict[str, str]:
    tags = {name: getattr(metadata, name) for name in ("variant", "profile", "run_id", "dataset_digest")}
    return tags | {"evaluated": str(metadata.evaluated or metadata.engine)}


def _decision(pipeline_run: str) -> dict[str, str]:
    """Why the pipeline run trains, as a tag, if it was decided on."""
    logged = tracking.run_tags(tracking.get_or_create_run(pipeline_run).run_id)
    return {name: logged[name] for name in (tracking.DECISION_TAG,) if name in logged}


def _metrics(location: str, name: str) -> dict[str, float]:
    """The metrics in a stored file, which must be that of the manifest; none if the folder has no such file."""
    content = trust.require_stored(location)[0]
    if name not in content["files"]:
        return {}
    checked = manifest.check(content, location, name, storage.read(location, name))
    stored: dict[str, float] = strict_json.parse(checked, f"{location}{name}")
    strict_json.require(stored, dict[str, float], f"{location}{name}")
    return stored


def _store_bundle(
    location: BundleLocation, artifacts: CandidateArtifacts, metadata: BundleMetadata, prices: Prices
) -> dict[str, float]:
    """Writes and uploads the bundle unless it is complete there, since bundles never change; returns its metrics."""
    if stored := trust.stored(str(location)):
        _refuse_other_files(location, stored[0], artifacts, metadata)
        return _metrics(str(location), METRICS_FILE)
    # The bundle of a version that is retired is not stored again.
    if version := model_registry.version_of_bundle(location.model_name, location.run_id, str(location)):
        model_registry.require_bundle(version)
    with temporary_folder() as scratch:
        folder = scratch / "bundle"
        written = assembly.assemble(folder, artifacts, metadata, prices)
        signature.sign_folder(folder, trust.identity(location))
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
    challenger: Challenger

    def complete(self, options: GateOptions, *, auto_promote: bool) -> tuple[Version, str, Verdict | None]:
        """Creates the version and sets the aliases; returns the version, its alias and the gate's verdict."""
        model_name, variant, source = self.location.model_name, self.location.variant, str(self.location)
        while True:
            champion = promotion.champion(model_name, variant)
            is_champion = champion is not None and champion.source == source
            compared = None if is_champion else challengers.compare(self.challenger, variant, champion, options)
            verdict = compared.verdict if compared else None
            with lock.hold(self.location.model_prefix) as held:
                if not storage.has(source, manifest.NAME):
                    raise ModelError(f"{source} was removed while it was registered: register it again")
                version = create_version(model_name, self.location.run_id, source, self.tags, held)
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
        with held.writing():
            model_registry.set_alias(model_name, promotion.challenger_alias(variant), version.number)
        # A version that was rolled back by hand is not promoted again by a retry.
        if not (auto_promote and verdict.passes) or promotion.was_rolled_back(version, champion, variant):
            return promotion.challenger_alias(variant)
        promotion.set_champion(model_name, version, variant, champion.number, held)
        return promotion.champion_alias(variant)
