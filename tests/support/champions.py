"""Registered versions of the tiny model: as good as it is, better and worse."""

from __future__ import annotations

import functools
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np

from goemotions.evaluation import tuning
from goemotions.evaluation.predictions import FILE, Predictions
from goemotions.registry import model_registry, promotion, registration
from goemotions.registry.bundle import BundleLocation
from goemotions.registry.candidates import CandidateArtifacts
from goemotions.storage import lock
from goemotions.storage import store as storage


def certain(candidate: Path, folder: Path, right: float) -> Path:
    """A copy of a profile's folder whose model gives each correct label this probability."""
    shutil.copytree(candidate, folder, symlinks=True)
    for split in ("validation", "test"):
        path = folder / "cpu" / split / FILE
        predictions = Predictions.read(path)
        scores = np.where(predictions.labels, right, 1 - right).astype(np.float32)
        replace(predictions, probabilities=scores).write(path)
    tuning.tune(folder / "cpu" / "validation", folder / "cpu" / "thresholds")
    return folder


def stored(name: str, folder: Path, dataset: Path) -> str:
    """The location of a bundle for cpu, registered under the name of its run."""
    store = "s3://goemotions/tests/promotion/"
    parts = {"cpu": [CandidateArtifacts.below(folder, "cpu")]}
    return str(registration.register(dataset, parts, store=store, pipeline_run=name, model_name=name)["cpu"]["source"])


def make_champion(model: str, number: str) -> None:
    """Makes a version the champion for cpu, without the gate."""
    before, version = promotion.champion(model, "cpu"), model_registry.get_version(model, number)
    with lock.hold(BundleLocation.parse(version.source).model_prefix) as held:
        promotion.set_champion(model, version, "cpu", before.number if before else "", held)


def add(model: str, location: str) -> str:
    """Registers a copy of a bundle under another model; returns the number of the version."""
    copy = replace(BundleLocation.parse(location), model_name=model)
    storage.put(downloaded(location), str(copy))
    return model_registry.get_or_create_version(model, copy.run_id, str(copy), {"variant": "cpu", "profile": "minilm"}).number


@functools.cache
def downloaded(location: str) -> Path:
    return storage.fetch(location, Path(tempfile.mkdtemp()))
