"""Bundles in a folder, never registered."""

from __future__ import annotations

from pathlib import Path

from goemotions.registry import assembly
from goemotions.registry.assembly import CandidateArtifacts
from goemotions.registry.bundle import ENGINES, BundleMetadata, Variant


def assemble(folder: Path, candidate: Path, variant: Variant = "cpu", run_id: str = "r1") -> dict[str, float]:
    """Writes the bundle of a candidate's folder; returns its metrics."""
    metadata = BundleMetadata(variant, ENGINES[variant], "minilm", run_id, "d1")
    return assembly.assemble(folder, CandidateArtifacts.below(candidate, variant), metadata)
