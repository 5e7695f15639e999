"""Trained models: what the steps made of one profile, winner or not, in one immutable folder of the store, and its download.

The folder is a Model folder with ``export.json``, one subfolder per variant (thresholds, metrics, and per split the predictions and the
metrics per label), and a manifest. A bundle has what serves a variant; this has what a person wants of a model.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from goemotions.errors import ModelError
from goemotions.evaluation import evaluate, tables
from goemotions.evaluation.predictions import Predictions
from goemotions.metrics import thresholds
from goemotions.metrics.classification import METRICS_FILE
from goemotions.models.engine_names import WEIGHTS, Computation
from goemotions.models.records import EXPORT_FILE, TrainingRecord
from goemotions.registry import assembly, references, tracking, trust
from goemotions.registry.bundle import PER_LABEL, PREDICTIONS, Variant
from goemotions.registry.candidates import CandidateArtifacts, of_folder
from goemotions.storage import folder as folders
from goemotions.storage import layout, manifest, signature, store
from goemotions.storage.temporary import temporary_folder

# Tag of a model's MLflow run with the location of its folder.
LOCATION_TAG = "goemotions.trained"
Metrics = dict[str, float]


def write(output: Path, variants: Mapping[Variant, CandidateArtifacts], **metadata: str) -> str:
    """Writes the folder of a trained model; returns the name of its profile.

    Args:
        output: the folder to write.
        variants: the artifacts of one profile, by variant.
        metadata: for the manifest, such as the pipeline run.
    """
    artifacts = next(iter(variants.values()))
    folders.copy(artifacts.model, output)
    shutil.copyfile(artifacts.onnx / EXPORT_FILE, output / EXPORT_FILE)
    used = {variant: asdict(_write_variant(output / variant, one)) for variant, one in variants.items()}
    record = TrainingRecord.read(artifacts.model)
    profile = str(record.profile["name"])
    manifest.write(output, profile=profile, dataset_digest=record.dataset_digest, evaluated=used, **metadata)
    return profile


def put(location: str, variants: Mapping[Variant, CandidateArtifacts], **metadata: str) -> None:
    """Stores a trained model unless it is complete there.

    Raises:
        ModelError: another model of the same run and profile is there.
    """
    if (stored := store.read(location, manifest.NAME)) is not None:
        weights = next(iter(variants.values())).model / WEIGHTS["torch"]
        if manifest.parse(stored, location)["files"].get(weights.name, {}).get("sha256") != manifest.sha256(weights):
            raise ModelError(f"{location} has another model of the same run and profile: register under another run id")
        return
    with temporary_folder() as scratch:
        profile = write(scratch, variants, **metadata)
        signature.sign_folder(scratch, {**metadata, "profile": profile})
        store.put(scratch, location)


def download(run: str, profile: str, output: Path, *, store_location: str = "") -> list[str]:
    """Downloads a trained model and verifies it; like ``references.download`` in what it does to ``output``.

    Args:
        run: id of the pipeline run, or the folder of a local run or of a candidate.
        profile: the profile that was trained.
        output: the folder to write.
        store_location: the store to read, such as ``s3://bucket/``; empty to look the run up in MLflow.

    Returns:
        The names of the files.

    Raises:
        ModelError: there is no such run or profile.
        UntrustedBundle: as ``trust.require_trained`` and ``references.download``.
        IntegrityError, StorageError, TrackingError: the files, the store or MLflow fail.
    """
    if Path(run).is_dir():
        with temporary_folder() as scratch:
            write(scratch, _of_folder(Path(run), profile), pipeline_run=Path(run).resolve().name)
            # Nobody else has written it, so that it needs no signature.
            return references.download(str(scratch), output, copy=lambda source, folder, _: store.fetch_named(source, folder))[
                1
            ]
    if store_location:
        location = layout.trained(store_location, run, profile)
        if not store.has(location, manifest.NAME):
            trained = store.children(store.join(store_location, "trained", run))
            raise ModelError(f"{location} has no trained model: of this run the store has {', '.join(trained) or 'none'}")
    else:
        location = _of_run(run, profile)
    return references.download(location, output)[1]


def variants_by_profile(
    candidates: Mapping[Variant, list[CandidateArtifacts]],
) -> dict[str, dict[Variant, CandidateArtifacts]]:
    """Per profile its artifacts by variant."""
    profiles: dict[str, dict[Variant, CandidateArtifacts]] = {}
    for variant, listed in candidates.items():
        for artifacts in listed:
            profiles.setdefault(artifacts.profile, {})[variant] = artifacts
    return profiles


def _write_variant(folder: Path, artifacts: CandidateArtifacts) -> Computation:
    folder.mkdir()
    shutil.copyfile(artifacts.thresholds / thresholds.FILE, folder / thresholds.FILE)
    stored = thresholds.read(folder / thresholds.FILE)
    fitted = stored.thresholds
    metrics: Metrics = {}
    for split, scored in (("validation", artifacts.validation), ("test", artifacts.test)):
        predictions = Predictions.read(scored)
        metrics |= assembly.write_split(folder, split, predictions, stored)
        table = (folder / PREDICTIONS.format(split=split)).with_suffix(".csv")
        tables.write_predictions(table, predictions, fitted.apply(predictions.probabilities))
        rows = evaluate.compute_per_label(predictions, fitted)
        tables.write_markdown((folder / PER_LABEL.format(split=split)).with_suffix(".md"), rows)
    (folder / METRICS_FILE).write_text(json.dumps(metrics, indent=1), encoding="utf-8")
    return predictions.computation


def _of_folder(folder: Path, profile: str) -> dict[Variant, CandidateArtifacts]:
    profiles = variants_by_profile(of_folder(folder))
    if profile not in profiles:
        raise ModelError(f"{folder} has no model of the profile {profile!r}: it has {', '.join(profiles) or 'none'}")
    return profiles[profile]


def _of_run(run: str, profile: str) -> str:
    tags = {one.get(tracking.PROFILE_TAG, ""): one.get(LOCATION_TAG, "") for one in tracking.tags_of_runs(run).values()}
    tags.pop("-", None)
    if not tags:
        raise ModelError(
            f"MLflow has no models of the pipeline run {run!r}: its id is the tag {tracking.RUN_TAG} of an MLflow run"
        )
    if not tags.get(profile):
        stored = sorted(name for name, location in tags.items() if location)
        raise ModelError(
            f"the pipeline run {run} has no stored model of the profile {profile!r}: it has {', '.join(stored) or 'none'}; "
            "models are stored by the step register"
        )
    return trust.require_trained(tags[profile], run, profile)
