"""Bundles in a folder, never registered."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from goemotions.models.engine_names import WEIGHTS
from goemotions.registry import assembly
from goemotions.registry.bundle import ENGINES, BundleMetadata, Variant
from goemotions.registry.candidates import CandidateArtifacts
from goemotions.storage import manifest


def assemble(folder: Path, candidate: Path, variant: Variant = "cpu", run_id: str = "r1") -> dict[str, float]:
    """Writes the bundle of a candidate's folder; returns its metrics."""
    artifacts = CandidateArtifacts.below(candidate, variant)
    evaluated = artifacts.validation_scores().validation.computation
    metadata = BundleMetadata(variant, ENGINES[variant], "minilm", run_id, "d1", evaluated)
    return assembly.assemble(folder, artifacts, metadata)


def assemble_former(folder: Path, candidate: Path, variant: Variant = "cpu") -> Path:
    """Writes a bundle as it was before it held the weights of one engine only; returns its folder."""
    assemble(folder, candidate, variant)
    for name in WEIGHTS.values():
        step = "model" if name == WEIGHTS["torch"] else "onnx"
        shutil.copyfile(candidate / step / name, folder / name)
    former = ("variant", "engine", "profile", "run_id", "dataset_digest")
    content = json.loads((folder / manifest.NAME).read_text())
    manifest.write(folder, **{name: content[name] for name in former})
    return folder
