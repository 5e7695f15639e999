"""Candidates: the folders that the steps wrote per profile and variant, and what selection and gate compare of these or of a bundle."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from goemotions import usage
from goemotions.evaluation import counterfactuals, slices
from goemotions.evaluation.predictions import Predictions
from goemotions.evaluation.selection import CandidateScores
from goemotions.metrics import thresholds
from goemotions.models import engines
from goemotions.models.engine_names import FILES
from goemotions.models.engines import Engine
from goemotions.models.records import TrainingRecord
from goemotions.models.tokenizer import TextEncoder
from goemotions.registry import consistency
from goemotions.registry.bundle import ENGINES, PREDICTIONS, VARIANTS, Bundle, Variant
from goemotions.usage import Usage


@dataclass(frozen=True)
class CandidateArtifacts:
    """The folders that the steps of one profile wrote for one variant."""

    model: Path
    onnx: Path
    validation: Path
    test: Path
    thresholds: Path

    @classmethod
    def below(cls, folder: Path, variant: Variant) -> CandidateArtifacts:
        """The layout of steps run by hand: ``model``, ``onnx``, and per variant ``validation``, ``test``, ``thresholds``."""
        return cls(
            folder / "model", folder / "onnx", *(folder / variant / name for name in ("validation", "test", "thresholds"))
        )

    @property
    def profile(self) -> str:
        """The name of the profile that was trained."""
        return str(TrainingRecord.read(self.model).profile["name"])

    def validation_scores(self) -> CandidateScores:
        """What selection and gate compare; the test split is not read."""
        fitted = thresholds.read(self.thresholds / thresholds.FILE)
        return CandidateScores(self.profile, Predictions.read(self.validation), fitted.thresholds)

    def usage(self) -> dict[str, Usage]:
        """What the steps used that made the model and this variant of it; empty for artifacts of before."""
        folders = (self.model, self.onnx, self.validation, self.thresholds)
        return {name: used for folder in folders for name, used in usage.read(folder).items()}

    def slice_metrics(self) -> dict[str, float]:
        """Of the test split, micro F1 of each slice with enough texts, and per group the share of texts whose labels a swap changes."""
        predictions = Predictions.read(self.test)
        fitted = thresholds.read(self.thresholds / thresholds.FILE).thresholds
        rows = slices.measure(predictions, fitted, slices.read(self.test))[1:]
        groups = counterfactuals.measure(counterfactuals.read(self.test, predictions.names), fitted, predictions.names)
        of_slices = {
            f"test/slices/{row['kind']}/{row['slice']}/f1_micro": row["f1_micro"]
            for row in rows
            if row["texts"] >= slices.FEW_TEXTS
        }
        return of_slices | {f"test/swapped_names/{one.group}/changed_decisions": one.decisions.value for one in groups}

    def load_engine(self, variant: Variant, threads: int | None = None) -> Engine:
        """The engine that serves the variant; on one thread to measure its latency."""
        name = ENGINES[variant]
        folder = self.onnx if name in FILES else self.model
        return engines.load(name, folder, TextEncoder.load(self.model), threads=threads)


def collect(
    models: list[Any], onnx: list[Any], variants: dict[Variant, tuple[list[Any], ...]]
) -> dict[Variant, list[CandidateArtifacts]]:
    """The folders of every profile, from parallel lists of pipeline artifacts with one entry per profile.

    Args:
        models: artifacts with a ``path``, a Model folder each.
        onnx: the Onnx folders.
        variants: per variant the lists of scored validation splits, scored test splits and thresholds.
    """
    return {
        variant: [
            CandidateArtifacts(*(Path(artifact.path) for artifact in row)) for row in zip(models, onnx, *lists, strict=True)
        ]
        for variant, lists in variants.items()
    }


def of_folder(folder: Path) -> dict[Variant, list[CandidateArtifacts]]:
    """The artifacts in the folder of a local run, as kfp.local lays it out, or of a profile whose steps were run by hand.

    In a local run, an output is in ``<step>/<output>``, and inside a loop in ``for-loop-<n>-iteration-<i>/<step>/<output>``.
    """
    if (folder / "model").is_dir():
        return {variant: [CandidateArtifacts.below(folder, variant)] for variant in VARIANTS if (folder / variant).is_dir()}
    # The loop of the teachers has no such step.
    models = [path.parent for path in folder.glob("for-loop-*-iteration-*/train")]
    loops = sorted(models, key=lambda path: int(path.name.rpartition("-")[2]))
    # KFP numbers the tasks of one component in the order of the pipeline.
    return {
        variant: [
            CandidateArtifacts(
                loop / "train" / "model",
                loop / "export" / "onnx",
                loop / f"evaluate{number}" / "validation",
                loop / f"evaluate{number}" / "test",
                loop / f"tune-thresholds{number}" / "thresholds",
            )
            for loop in loops
        ]
        for variant, number in zip(VARIANTS, ("", *(f"-{number}" for number in range(2, len(VARIANTS) + 1))), strict=True)
    }


def stored_scores(bundle: Bundle) -> CandidateScores:
    """What selection and gate compare, from a bundle.

    Raises:
        DataError, ModelError: its predictions are damaged, or of other labels.
    """
    name = PREDICTIONS.format(split="validation")
    predictions = Predictions.read(bundle.folder / name)
    consistency.check_names(bundle.folder, name, predictions.names, bundle.taxonomy.names)
    return CandidateScores(bundle.metadata.profile, predictions, bundle.thresholds)
