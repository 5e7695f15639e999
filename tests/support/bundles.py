"""Bundles in a folder, never registered."""

from __future__ import annotations

from pathlib import Path

from goemotions.registry import assembly
from goemotions.registry.assembly import CandidateArtifacts
from goemotions.registry.bundle import ENGINES, BundleMetadata, Variant


def assemble(folder: Path, candidate: Path, variant: Variant = "cpu", run_id: str = "r1", engine: str = "") -> dict[str, float]:
    """Writes the bundle of a candidate's folder, by default for the engine of the variant; returns its metrics."""
    artifacts = CandidateArtifacts.below(candidate, variant)
    evaluated = artifacts.validation_scores().validation.computation
    metadata = BundleMetadata(variant, engine or ENGINES[variant], "minilm", run_id, "d1", evaluated)
    return assembly.assemble(folder, artifacts, metadata)
