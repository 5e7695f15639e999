"""Registration: choose a winner for each variant on validation, make it a bundle, a version, and where it earns it the champion."""

from __future__ import annotations

import json
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from goemotions import defaults
from goemotions.errors import ModelError
from goemotions.evaluation import evaluate
from goemotions.evaluation.gate import Verdict
from goemotions.evaluation.predictions import FILE, Predictions
from goemotions.evaluation.selection import CandidateScores, latency_limit, select_winner
from goemotions.metrics import classification, thresholds
from goemotions.metrics.thresholds import Thresholds
from goemotions.models import engines
from goemotions.models.records import read_json
from goemotions.registry import promotion, tracking
from goemotions.registry.bundle import ENGINES, Variant
from goemotions.registry.tracking import Version
from goemotions.storage import lock, manifest
from goemotions.storage import store as storage
from goemotions.storage.lock import Lock


@dataclass(frozen=True)
class CandidateArtifacts:
    """The folders that the steps of one profile made for one variant."""

    model: Path
    onnx: Path
    validation: Path
    test: Path
    thresholds: Path

    @classmethod
    def below(cls, folder: Path, variant: Variant) -> CandidateArtifacts:
        """The layout of steps run by hand: ``model``, ``onnx``, and for each variant ``validation``, ``test``, ``thresholds``."""
        return cls(
            folder / "model", folder / "onnx", *(folder / variant / name for name in ("validation", "test", "thresholds"))
        )


def collect(
    models: list[Any], onnx: list[Any], variants: dict[Variant, tuple[list[Any], ...]]
) -> dict[Variant, list[CandidateArtifacts]]:
    """The folders of every profile from lists of artifacts that run side by side, one entry a profile.

    Args:
        models: artifacts with a ``path``, a Model folder each.
        onnx: the Onnx folders.
        variants: for each variant the lists of scored validation splits, scored test splits and thresholds.
    """
    return {
        variant: [
            CandidateArtifacts(*(Path(artifact.path) for artifact in row)) for row in zip(models, onnx, *lists, strict=True)
        ]
        for variant, lists in variants.items()
    }


def read_scores(variant: Variant, parts: CandidateArtifacts) -> CandidateScores:
    """What selection and gate compare, from the folders of one profile and variant; the test split is not read."""
    export = read_json(parts.onnx / "export.json")
    engine = ENGINES[variant]
    return CandidateScores(
        read_json(parts.model / "training.json")["profile"]["name"],
        Predictions.read(parts.validation / FILE),
        thresholds.read(parts.thresholds / thresholds.FILE)[0],
        export[engine]["latency_ms_p95"] if engine in export else 0.0,
    )


@storage.raise_on_full_disk
def register(
    dataset: Path,
    parts: dict[Variant, list[CandidateArtifacts]],
    *,
    store: str,
    pipeline_run: str,
    model_name: str = defaults.MODEL_NAME,
    latency_budget_ms: float = defaults.LATENCY_BUDGET_MS,
    auto_promote: bool = False,
    tags: dict[str, str] | None = None,
) -> dict[str, Any]:
    """Registers the winner of each variant.

    Running it again for the same pipeline run finds what is there and completes what is not.

    Args:
        dataset: the Dataset folder, to score a champion that was scored on other data.
        parts: for each variant the folders of every profile.
        store: location under which ``models/`` lies, such as ``s3://bucket/``.
        pipeline_run: id of the pipeline run.
        model_name: name of the registered model.
        latency_budget_ms: 95th percentile that the cpu winner may take for one text of 20 tokens.
        auto_promote: move the champion alias where the gate passes.
        tags: further tags of the versions, such as the git commit and the image.

    Returns:
        For each variant: profile, version, source, alias, metrics and the gate's verdict.
    """
    result: dict[str, Any] = {}
    for variant, folders in parts.items():
        _refuse_other_labels(model_name, variant, folders)
    for variant, folders in parts.items():
        candidates = [read_scores(variant, folder) for folder in folders]
        position = select_winner(candidates, latency_limit(variant, latency_budget_ms))
        winner = candidates[position]
        lock_location = promotion.lock_location(store, model_name)
        with lock.hold(lock_location):
            run = tracking.get_or_create_run(pipeline_run, winner.profile)
        location = storage.join(store, "models", model_name, run.run_id, variant)
        facts = {"profile": winner.profile, "run_id": run.run_id, "dataset_digest": winner.validation.digest}
        values = _store(location, variant, folders[position], facts)
        run.log_metrics({f"{variant}/{name}": value for name, value in values.items()})
        entry = Entry(model_name, variant, run.run_id, location, {"variant": variant, **facts, **(tags or {})}, lock_location)
        version, verdict = entry.enter(winner, dataset, latency_budget_ms, auto_promote)
        result[variant] = {
            "profile": winner.profile,
            "version": version.number,
            "run_id": run.run_id,
            "source": location,
            "metrics": values,
            "latency_ms_p95": winner.latency_ms,
            **verdict,
        }
    return result


def assemble(output: Path, variant: Variant, parts: CandidateArtifacts, facts: dict[str, Any]) -> dict[str, float]:
    """Copies the parts into a bundle, adds metrics, model card and MLmodel, and closes it with the manifest.

    Returns:
        The metrics of both splits at the tuned thresholds, and at 0.5 under ``.../at_0.5``.
    """
    shutil.copytree(parts.model, output)
    for name in (*engines.FILES.values(), "export.json"):
        shutil.copyfile(parts.onnx / name, output / name)
    shutil.copyfile(parts.thresholds / thresholds.FILE, output / thresholds.FILE)
    fitted, _ = thresholds.read(output / thresholds.FILE)
    values: dict[str, float] = {}
    for split, folder in (("validation", parts.validation), ("test", parts.test)):
        found = Predictions.read(folder / FILE)
        found.write(output / f"{split}.parquet")
        predicted = fitted.apply(found.probabilities)
        rows = classification.per_label(found.names, found.labels, found.probabilities, predicted)
        evaluate.write_csv(output / f"{split}_per_label.csv", rows)
        at_half = evaluate.compute_metrics(found, thresholds.fixed(found.labels, found.probabilities))
        values |= evaluate.compute_metrics(found, fitted) | {f"{name}/at_0.5": value for name, value in at_half.items()}
    (output / evaluate.METRICS).write_text(json.dumps(values, indent=1), encoding="utf-8")
    (output / "README.md").write_text(_card(variant, facts, fitted, values), encoding="utf-8")
    tracking.write_mlmodel(output, f"{facts['run_id']}/{variant}")
    manifest.write(output, variant=variant, engine=ENGINES[variant], **facts)
    for path in (path for path in output.rglob("*") if path.is_file()):
        # safetensors are written for their owner alone, and whoever serves them is another user.
        path.chmod(0o644)
    return values


def _store(location: str, variant: Variant, parts: CandidateArtifacts, facts: dict[str, Any]) -> dict[str, float]:
    """Makes and uploads the bundle, unless a whole one is there: bundles never change. Answers its metrics."""
    if (closed := storage.read(location, manifest.NAME)) is not None:
        _refuse_other_files(location, json.loads(closed)["files"], parts)
        found = json.loads(storage.read(location, evaluate.METRICS) or b"{}")
        return {name: float(value) for name, value in found.items()}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "bundle"
        values = assemble(folder, variant, parts, facts)
        storage.put(folder, location)
    return values


def _refuse_other_files(location: str, stored: dict[str, Any], parts: CandidateArtifacts) -> None:
    """A pipeline run registers one model a profile: another one under its name would get the old one's bytes."""
    for path in (parts.model / "model.safetensors", parts.thresholds / thresholds.FILE):
        if stored[path.name]["sha256"] != manifest.sha256(path):
            raise ModelError(f"{location} holds another model of the same run and profile: register under another run id")


def _refuse_other_labels(model_name: str, variant: Variant, folders: list[CandidateArtifacts]) -> None:
    """Before anything is stored: versions of one registered model answer with the same labels."""
    ours = {tuple(thresholds.read(folder.thresholds / thresholds.FILE)[1]["thresholds"]) for folder in folders}
    champion = promotion.champion(model_name, variant)
    if champion is None:
        return
    stored = json.loads(storage.read(champion.source, thresholds.FILE) or b'{"thresholds": {}}')
    if ours != {tuple(stored["thresholds"])}:
        raise ModelError(f"the champion of {model_name} knows other labels than this data: register under another model name")


@dataclass(frozen=True)
class Entry:
    """A bundle in the store that is to be a version of a registered model."""

    model_name: str
    variant: Variant
    run_id: str
    location: str
    tags: dict[str, str]
    lock_location: str

    def enter(
        self, candidate: CandidateScores, dataset: Path, latency_budget_ms: float, auto_promote: bool
    ) -> tuple[Version, dict[str, Any]]:
        """Makes the version and sets challenger, and champion where there is none or where that is asked for and the gate passes.

        Returns:
            The version, and what became of it: its alias and the gate's verdict.
        """
        while True:
            champion = promotion.champion(self.model_name, self.variant)
            is_champion = champion is not None and champion.source == self.location
            verdict = None if is_champion else promotion.judge(candidate, self.variant, champion, dataset, latency_budget_ms)
            with lock.hold(self.lock_location) as held:
                version = tracking.get_or_create_version(self.model_name, self.run_id, self.location, self.tags)
                now = promotion.champion(self.model_name, self.variant)
                # Comparing takes long and is done outside: whoever became champion meanwhile is compared with as well.
                if (now and now.number) == (champion and champion.number):
                    return version, self._aliased(version, now, verdict, auto_promote, held)

    def _aliased(
        self, version: Version, champion: Version | None, verdict: Verdict | None, auto_promote: bool, held: Lock
    ) -> dict[str, Any]:
        alias = promotion.alias(self.variant)
        if champion is None:
            promotion.set_champion(self.model_name, version, self.variant, "", held)
        if champion is None or verdict is None:
            return {"alias": alias, "gate": None}
        held.require()
        tracking.set_alias(self.model_name, f"challenger-{self.variant}", version.number)
        # What was taken back by hand does not come back by itself.
        promoted = auto_promote and verdict.passes and not promotion.was_taken_back(version, champion, self.variant)
        if promoted:
            promotion.set_champion(self.model_name, version, self.variant, champion.number, held)
        return {"alias": alias if promoted else f"challenger-{self.variant}", "gate": verdict.describe()}


def _card(variant: str, facts: dict[str, Any], fitted: Thresholds, values: dict[str, float]) -> str:
    rows = "\n".join(
        f"| {name} | {values[f'validation/{name}']:.4f} | {values[f'test/{name}']:.4f} |"
        for name in ("auc_micro", "auc_macro", "f1_macro", "f1_micro", "precision_macro", "recall_macro")
    )
    return f"""---
pipeline_tag: text-classification
---
# {facts["profile"]}, variant {variant}

Multi-label classifier of short texts, one probability a label. Engine: {ENGINES[variant]}. Thresholds: {fitted.strategy},
fitted on validation. Trained on data with the digest `{facts["dataset_digest"]}`.

| metric | validation | test |
|---|---|---|
{rows}

Not for decisions about a person: the labels are the impressions of raters of English comments, and carry their biases.
"""
