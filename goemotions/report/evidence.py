"""What stands behind the figures: ablations, robustness, mistakes, and where everything can be had."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from goemotions.evaluation import error_analysis, robustness
from goemotions.models import engines
from goemotions.models.tokenizer import TextEncoder
from goemotions.registry.bundle import Variant
from goemotions.registry.registration import RegisteredVersion
from goemotions.report.document import Cell, Section, Table
from goemotions.report.result import Result, signed

# Scoring every text once for each perturbation takes longest on a large model.
ROBUSTNESS_TEXTS = 1000
LABEL_ERRORS = 25
MEASURED = ("auc_micro", "auc_macro", "f1_macro_at_0.5", "f1_macro_tuned", "f1_micro_tuned", "calibration_error")


def measurements(path: Path, digest: str) -> list[dict[str, str]]:
    """The rows of a CSV of ``benchmarks`` that were measured on this data."""
    if not path.exists():
        return []
    with path.open(encoding="utf-8") as file:
        return [row for row in csv.DictReader(file) if row["digest"] == digest]


def ablations(rows: list[dict[str, str]]) -> Section | None:
    """One change a row, against the first row with the same seed."""
    if not rows:
        return None
    base = {row["seed"]: row for row in rows if row["row"] == rows[0]["row"]}
    table: list[list[Cell]] = []
    for row in rows:
        reference = base.get(row["seed"], row)
        gain = "–" if reference is row else signed(float(row["auc_micro"]) - float(reference["auc_micro"]))
        tuned = "–" if reference is row else signed(float(row["f1_macro_tuned"]) - float(reference["f1_macro_tuned"]))
        changes = ", ".join(f"{name} {_shown(value)}" for name, value in json.loads(row["changes"]).items())
        table.append([row["row"], changes or "–", row["seed"], *(float(row[name]) for name in MEASURED), gain, tuned])
    spread = _spread([row for row in rows if row["row"] == rows[0]["row"]])
    return Section(
        "Ablations",
        (
            "minilm on validation, one change a row, logits scaled. No row was chosen on test; the seeds of the first were scored on "
            "it afterwards. Tuned: at smoothed per-label thresholds, cross-fitted. The last columns are the difference to the first "
            "row with the same seed.",
            *spread,
        ),
        (
            Table(
                (
                    "ablation",
                    "changed",
                    "seed",
                    "AUC micro",
                    "AUC macro",
                    "F1 macro at 0.5",
                    "F1 macro tuned",
                    "F1 micro tuned",
                    "calibration error",
                    "AUC micro gained",
                    "F1 macro gained",
                ),
                table,
            ),
        ),
        code=("python -m benchmarks.ablations --dataset DATASET --row focal --seed 0",),
    )


def frontier(rows: list[dict[str, str]]) -> Section | None:
    """What each way to answer gives and costs, the best first."""
    if not rows:
        return None
    table: list[list[Cell]] = [
        [row["answered by"], float(row["f1_macro"]), int(row["texts_per_second"])]
        for row in sorted(rows, key=lambda row: -float(row["f1_macro"]))
    ]
    return Section(
        "Quality against speed",
        (
            "minilm on validation, thresholds cross-fitted; test was not opened. Taught: trained on the int8 engine's probabilities, "
            "as the bag was. The cascade asks the slow stage only about texts that the fast one is unsure of. Measured on "
            f"{rows[0]['machine']}.",
        ),
        (Table(("answered by", "F1 macro", "texts a second"), table),),
        code=("python -m benchmarks.frontier --data DATA --student-epochs 3 --record",),
    )


def _shown(value: Any) -> str:
    return " and ".join(value) if isinstance(value, list) else str(value)


def _spread(base: Sequence[dict[str, str]]) -> list[str]:
    if len(base) < 2:
        return []
    auc, f1 = (np.std([float(row[name]) for row in base], ddof=1) for name in ("auc_micro", "f1_macro_tuned"))
    return [
        f"Over {len(base)} seeds the first row varies by {auc:.4f} (AUC micro) and {f1:.4f} (macro F1), one standard deviation. Two "
        f"runs alone differ beyond that noise only by more than {2 * 2**0.5 * auc:.4f} and {2 * 2**0.5 * f1:.4f}."
    ]


def robust(result: Result, texts: Sequence[str]) -> Section:
    """Perturbed validation texts, scored again by the engine that serves."""
    encoder = TextEncoder.load(result.parts.model)
    folder = result.parts.onnx if result.engine in engines.FILES else result.parts.model
    engine = engines.load(result.engine, folder, encoder)
    labels = result.validation.labels[:ROBUSTNESS_TEXTS]
    found = robustness.measure(engine, texts[:ROBUSTNESS_TEXTS], labels, result.thresholds)
    names = {
        "perturbation": "perturbation",
        "changed": "texts changed",
        "auc_micro": "AUC micro",
        "auc_macro": "AUC macro",
        "f1_macro": "F1 macro",
        "f1_micro": "F1 micro",
        "flips": "other labels",
        "shift": "mean shift",
    }
    worst = max(found, key=lambda row: row["flips"])
    return Section(
        "Robustness",
        (
            f"{result.title} on the first {len(labels):,} validation texts. Other labels: share of the changed texts that get other "
            "ones than as written; mean shift: of a probability, on those.",
            f"Hardest: {worst['perturbation']}: {worst['flips']:.1%} of the {worst['changed']:,} texts it changes get other labels."
            if worst["flips"]
            else "No perturbation changes any label.",
        ),
        (Table(tuple(names.values()), [[row[name] for name in names] for row in found]),),
    )


def errors(result: Result, texts: dict[str, str]) -> Section:
    """Confused pairs and likely label errors on validation; the texts go to the page alone."""
    found = result.validation
    predicted = result.thresholds.apply(found.probabilities)
    confused = error_analysis.confused(found.names, found.labels, predicted)
    likely = error_analysis.likely_label_errors(
        found.names, found.ids, found.labels, found.probabilities, most=found.labels.size
    )
    kinds = {kind: [row for row in likely if row["kind"] == kind][:LABEL_ERRORS] for kind in ("missing", "superfluous")}
    shown = [row for rows in kinds.values() for row in rows]
    given = {
        row_id: ", ".join(name for name, has in zip(found.names, labels, strict=True) if has)
        for row_id, labels in zip(found.ids, found.labels, strict=True)
    }
    return Section(
        "Error analysis",
        (
            f"{result.title} on validation. Confused: the first label was given and missed, the second predicted instead; the share "
            "is of the texts with the first.",
            f"Likely label errors, by confident learning (Northcutt et al. 2021): {len(likely):,} labels of {found.labels.size:,} are "
            f"in doubt; the {LABEL_ERRORS} likeliest of each kind are listed. Texts stand in the run's own page only.",
        ),
        (
            Table(
                ("given", "predicted instead", "texts", "share"),
                [[r["label"], r["taken_for"], r["count"], f"{r['share']:.1%}"] for r in confused],
            ),
            Table(
                ("row in doubt", "label", "is", "probability", "given"),
                [[r["id"], r["label"], r["kind"], float(r["probability"]), given[r["id"]]] for r in shown],
            ),
        ),
        private=(Table(("row", "text"), [[row_id, texts[row_id]] for row_id in dict.fromkeys(r["id"] for r in shown)]),),
    )


def artifacts(registered: Mapping[Variant, RegisteredVersion], model_name: str) -> Section:
    rows = [
        [f"{model_name} {found['version']} ({variant})", found["profile"], found["run_id"], found["source"]]
        for variant, found in registered.items()
    ]
    option = "" if model_name == "goemotions" else f" MODEL_NAME={model_name}"
    return Section(
        "Artifacts",
        (
            "In the registry of this run. Each command brings checkpoint, ONNX files, thresholds, predictions and metrics, and "
            "verifies every file.",
        ),
        (Table(("version", "profile", "MLflow run", "bundle"), rows),),
        code=tuple(
            f"make download-model VERSION={found['version']}{option}   # {found['profile']}, {variant}"
            for variant, found in registered.items()
        ),
    )
