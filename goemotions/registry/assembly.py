"""Assembly: a bundle from the folders that the steps wrote."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from goemotions import usage
from goemotions.data.taxonomy import Taxonomy
from goemotions.data.text import as_markdown
from goemotions.evaluation import evaluate, limitations, reference, slices, tables
from goemotions.evaluation.predictions import Predictions
from goemotions.evaluation.reference import Reference
from goemotions.metrics import thresholds
from goemotions.metrics.classification import METRICS_FILE
from goemotions.metrics.thresholds import Thresholds, ThresholdsFile
from goemotions.models.engine_names import WEIGHTS
from goemotions.models.tokenizer import TextEncoder
from goemotions.registry import consistency, costs, mlflow_model
from goemotions.registry.bundle import (
    CARD,
    LABELS,
    PER_LABEL,
    PER_SLICE,
    PREDICTIONS,
    BundleMetadata,
)
from goemotions.registry.candidates import CandidateArtifacts
from goemotions.registry.costs import Prices
from goemotions.storage import folder as folders
from goemotions.storage import manifest, signature
from goemotions.usage import Usage


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
        folders.copy(folder, output, others)
    shutil.copyfile(artifacts.thresholds / thresholds.FILE, output / thresholds.FILE)
    stored = thresholds.read(output / thresholds.FILE)
    consistency.check_files(output, Taxonomy(stored.names), stored, TextEncoder.load(output))
    fitted = stored.thresholds
    metrics: dict[str, float] = {}
    scored = {"validation": Predictions.read(artifacts.validation), "test": Predictions.read(artifacts.test)}
    for split, folder in (("validation", artifacts.validation), ("test", artifacts.test)):
        metrics |= write_split(output, split, scored[split], stored)
        if of_slices := slices.read(folder):
            rows = slices.measure(scored[split], fitted, of_slices)
            tables.write_csv(output / PER_SLICE.format(split=split), rows)
    features = reference.read_features(artifacts.validation)
    Reference.of(scored["validation"], fitted, features).write(output / reference.FILE)
    _write_json(output / LABELS, stored.names)
    _write_json(output / METRICS_FILE, metrics)
    used = artifacts.usage()
    usage.write(output, used)
    limits = limitations.sentences(scored["test"], fitted, artifacts.test)
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
    tables.write_csv(output / PER_LABEL.format(split=split), evaluate.compute_per_label(predictions, fitted))
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
