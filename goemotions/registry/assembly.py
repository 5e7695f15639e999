"""Assembly: a bundle from the folders that the steps wrote, and what selection and gate compare of either."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from goemotions import usage
from goemotions.data.taxonomy import Taxonomy
from goemotions.data.text import as_markdown
from goemotions.evaluation import counterfactuals, evaluate, limitations, reference, slices
from goemotions.evaluation.predictions import Predictions
from goemotions.evaluation.reference import Reference
from goemotions.evaluation.selection import CandidateScores
from goemotions.metrics import thresholds
from goemotions.metrics.classification import METRICS_FILE
from goemotions.metrics.thresholds import Thresholds, ThresholdsFile
from goemotions.models import engines
from goemotions.models.engine_names import WEIGHTS
from goemotions.models.engines import Engine
from goemotions.models.records import TrainingRecord
from goemotions.models.tokenizer import TextEncoder
from goemotions.registry import consistency, costs, mlflow_model
from goemotions.registry.bundle import (
    CARD,
    ENGINES,
    LABELS,
    PER_LABEL,
    PER_SLICE,
    PREDICTIONS,
    VARIANTS,
    Bundle,
    BundleMetadata,
    Variant,
)
from goemotions.registry.costs import Prices
from goemotions.storage import manifest, signature
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
        groups, _ = counterfactuals.measure(counterfactuals.read(self.test, predictions.names), fitted, predictions.names)
        of_slices = {
            f"test/slices/{row['kind']}/{row['slice']}/f1_micro": row["f1_micro"]
            for row in rows
            if row["texts"] >= slices.FEW_TEXTS
        }
        return of_slices | {f"test/swapped_names/{row['group']}/changed_decisions": row["decisions"] for row in groups}

    def load_engine(self, variant: Variant, threads: int | None = None) -> Engine:
        """The engine that serves the variant; on one thread to measure its latency."""
        name = ENGINES[variant]
        folder = self.onnx if name in engines.FILES else self.model
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
        for variant, number in zip(VARIANTS, ("", "-2"), strict=True)
    }


def stored_scores(bundle: Bundle) -> CandidateScores:
    """What selection and gate compare, from a bundle."""
    name = PREDICTIONS.format(split="validation")
    predictions = Predictions.read(bundle.folder / name)
    consistency.check_names(bundle.folder, name, predictions.names, bundle.taxonomy.names)
    return CandidateScores(
        bundle.metadata.profile,
        predictions,
        bundle.thresholds,
    )


def assemble(
    output: Path,
    artifacts: CandidateArtifacts,
    metadata: BundleMetadata,
    prices: Prices = Prices(),  # noqa: B008 - it is frozen
) -> dict[str, float]:
    """Writes a bundle: copies the artifacts, adds labels, metrics, model card and what MLflow needs, and at last the manifest.

    Of the weights, only those of the engine in ``metadata`` are copied. The prices are those of the costs in the model card.

    Returns:
        The metrics of both splits at the tuned thresholds, and at 0.5 under ``.../at_0.5``.

    Raises:
        ModelError: the artifacts are not of one model.
    """
    own = WEIGHTS[metadata.engine]
    others = shutil.ignore_patterns(*(name for name in WEIGHTS.values() if name != own))
    for folder in (artifacts.model, artifacts.onnx):
        shutil.copytree(folder, output, ignore=others, dirs_exist_ok=True)
    shutil.copyfile(artifacts.thresholds / thresholds.FILE, output / thresholds.FILE)
    stored = thresholds.read(output / thresholds.FILE)
    consistency.check_files(output, Taxonomy(stored.names), stored, TextEncoder.load(output))
    fitted = stored.thresholds
    metrics: dict[str, float] = {}
    for split, folder in (("validation", artifacts.validation), ("test", artifacts.test)):
        predictions = Predictions.read(folder)
        metrics |= write_split(output, split, predictions, stored)
        if split == "validation":
            features = reference.read_features(folder)
            Reference.of(predictions, fitted, features).write(output / reference.FILE)
        if of_slices := slices.read(folder):
            rows = slices.measure(predictions, fitted, of_slices)
            evaluate.write_csv(output / PER_SLICE.format(split=split), rows)
    _write_json(output / LABELS, predictions.names)
    _write_json(output / METRICS_FILE, metrics)
    used = artifacts.usage()
    usage.write(output, used)
    limits = limitations.sentences(predictions, fitted, artifacts.test)
    (output / CARD).write_text(_card(metadata, fitted, metrics, _costs(used, prices), limits), encoding="utf-8")
    mlflow_model.write(output, metadata.variant, f"{metadata.run_id}/{metadata.variant}")
    manifest.write(output, **asdict(metadata))
    for path in (path for path in output.rglob("*") if path.is_file()):
        # safetensors writes its files for their owner alone, and the server runs as another user.
        path.chmod(0o644)
    return metrics


def write_split(output: Path, split: str, predictions: Predictions, stored: ThresholdsFile) -> dict[str, float]:
    """Writes the predictions of a split and its metrics per label; returns its metrics at the thresholds and at 0.5.

    Raises:
        ModelError: the thresholds are of other labels.
    """
    consistency.check_names(output, PREDICTIONS.format(split=split), predictions.names, stored.names)
    fitted = stored.thresholds
    predictions.write(output / PREDICTIONS.format(split=split))
    evaluate.write_csv(output / PER_LABEL.format(split=split), evaluate.compute_per_label(predictions, fitted))
    return evaluate.compute_both(predictions, fitted)


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=1), encoding="utf-8")


def _signed() -> str:
    key = signature.signing_key()
    return f"signed by the key `{key}` (`{signature.NAME}`)" if key else "not signed"


def _costs(used: Mapping[str, Usage], prices: Prices) -> str:
    """What it took to make the model, as a paragraph of the card; nothing if it was not recorded."""
    if not used:
        return ""
    taken = costs.sentence(used.values(), prices)
    return f"\nTraining (with the model's own teachers), export, evaluation and thresholds took {taken}.\n"


def _card(metadata: BundleMetadata, fitted: Thresholds, metrics: dict[str, float], taken: str, limits: list[str]) -> str:
    rows = "\n".join(
        f"| {name} | {metrics[f'validation/{name}']:.4f} | {metrics[f'test/{name}']:.4f} |"
        for name in ("auc_micro", "auc_macro", "f1_macro", "f1_micro", "precision_macro", "recall_macro")
    )
    listed = "\n".join(f"- {as_markdown(limit)}" for limit in limits)
    return f"""---
pipeline_tag: text-classification
---
# {as_markdown(metadata.profile)}, variant {metadata.variant}

Multi-label classifier of short texts, one probability per label. Engine: {metadata.engine}; the scores, thresholds and metrics are
those of {metadata.evaluated or metadata.engine}. Thresholds: {as_markdown(fitted.strategy)}, fitted on validation. Trained on data
with the digest `{metadata.dataset_digest}`. When it was registered, this bundle was {_signed()}.

| metric | validation | test |
|---|---|---|
{rows}
{taken}
## Where not to use it

{listed}
"""
