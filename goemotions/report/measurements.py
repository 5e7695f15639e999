"""Measurements that ship with the package: ablations, seeds, and quality against throughput, each a CSV that a benchmark writes."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from goemotions.report.document import Cell, Section, Table
from goemotions.report.published import EARLIER_DIGEST, OFFICIAL_DIGEST
from goemotions.report.result import signed, title_of

# Written by `python -m benchmarks.ablations`, the second one with `--final`.
ABLATIONS = Path(__file__).with_name("ablations.csv")
SEEDS = Path(__file__).with_name("seeds.csv")
# Written by `python -m benchmarks.frontier --record`.
FRONTIER = Path(__file__).with_name("frontier.csv")

SEED_METRICS = ("auc_micro", "auc_macro", "f1_macro", "f1_micro")
ABLATION_METRICS = ("auc_micro", "auc_macro", "f1_macro_at_0.5", "f1_macro_tuned", "f1_micro_tuned", "calibration_error")


def read(path: Path, digest: str) -> list[dict[str, str]]:
    """The rows of a CSV of measurements that were made on the data with this digest; none if there is no such file."""
    if not path.exists():
        return []
    with path.open(encoding="utf-8") as file:
        return [row for row in csv.DictReader(file) if row["digest"] == digest]


def sections(digest: str) -> list[Section]:
    """A section per kind of measurement that was made on the data with this digest; the official data had another one before."""
    builders = {SEEDS: seeds, ABLATIONS: ablations, FRONTIER: frontier}
    shown = [section for path, build in builders.items() if (rows := read(path, digest)) and (section := build(rows))]
    if digest != OFFICIAL_DIGEST:
        return shown
    titles = {section.title for section in shown}
    return [*shown, *(_of_earlier_texts(section, titles) for section in sections(EARLIER_DIGEST))]


def _of_earlier_texts(section: Section, titles: set[str]) -> Section:
    note = "Measured before quoted fields were decoded: 2.5% of the texts had quotation marks around them, and doubled ones within."
    title = f"{section.title}, earlier texts" if section.title in titles else section.title
    return replace(section, title=title, text=(*section.text, note))


def seeds(rows: list[dict[str, str]]) -> Section | None:
    """Mean and interval over the seeds of each recipe that was trained with several; None if there is none."""
    recipes: dict[str, list[dict[str, str]]] = {}
    for row in rows:
        recipes.setdefault(row["row"], []).append(row)
    table: list[list[Cell]] = [
        [
            recipe,
            ", ".join(row["seed"] for row in members),
            split,
            *(_mean(members, f"{split}/{metric}") for metric in SEED_METRICS),
        ]
        for recipe, members in recipes.items()
        if len(members) > 1
        for split in ("validation", "test")
    ]
    if not table:
        return None
    return Section(
        "Variation between seeds",
        (
            "Recipes that were trained with several seeds, each with thresholds and a calibration of its own: the mean, and its 95% "
            "interval by Student's t.",
        ),
        (Table(("over seeds", "seeds", "split", *map(title_of, SEED_METRICS)), table),),
        code=(
            "python -m benchmarks.reproduce --data DATA",
            "python -m benchmarks.ablations --dataset DATASET --row base --seed 0 --final",
        ),
    )


def _mean(rows: list[dict[str, str]], name: str) -> str:
    values = np.array([float(row[name]) for row in rows])
    mean, half = values.mean(), stats.t.ppf(0.975, len(values) - 1) * stats.sem(values)
    return f"{mean:.4f} ({mean - half:.4f} to {mean + half:.4f})"


def ablations(rows: list[dict[str, str]]) -> Section:
    """One change per row, compared with the first recipe at the same seed."""
    base = {row["seed"]: row for row in rows if row["row"] == rows[0]["row"]}
    table: list[list[Cell]] = []
    for row in rows:
        reference = base.get(row["seed"], row)
        gains = [
            "–" if reference is row else signed(float(row[name]) - float(reference[name]))
            for name in ("auc_micro", "f1_macro_tuned")
        ]
        changes = ", ".join(f"{name} {_setting(value)}" for name, value in json.loads(row["changes"]).items())
        table.append([row["row"], changes or "–", row["seed"], *(float(row[name]) for name in ABLATION_METRICS), *gains])
    titles = ["micro AUC", "macro AUC", "macro F1 at 0.5", "macro F1 tuned", "micro F1 tuned", "calibration error"]
    return Section(
        "Ablations",
        (
            "minilm on validation, one change per row, calibrated. No row was chosen on test; the seeds of the first row were scored "
            "on test afterwards. Tuned: at smoothed per-label thresholds, cross-fitted. The last columns are the difference to the "
            "first row with the same seed.",
            *_noise(list(base.values())),
        ),
        (Table(("ablation", "changed", "seed", *titles, "micro AUC gained", "macro F1 gained"), table),),
        code=("python -m benchmarks.ablations --dataset DATASET --row focal --seed 0",),
    )


def _setting(value: Any) -> str:
    return " and ".join(value) if isinstance(value, list) else str(value)


def _noise(rows: list[dict[str, str]]) -> list[str]:
    """How much metrics vary between seeds: the rows are of one recipe."""
    if len(rows) < 2:
        return []
    auc, f1 = (np.std([float(row[name]) for row in rows], ddof=1) for name in ("auc_micro", "f1_macro_tuned"))
    return [
        f"Over {len(rows)} seeds, the standard deviation of the first row is {auc:.4f} (micro AUC) and {f1:.4f} (macro F1). A "
        f"difference between two single runs exceeds that noise only above {2 * 2**0.5 * auc:.4f} and {2 * 2**0.5 * f1:.4f}."
    ]


def frontier(rows: list[dict[str, str]]) -> Section:
    """Quality and throughput of each way to predict, the best quality first."""
    table: list[list[Cell]] = [
        [row["predictor"], float(row["f1_macro"]), int(row["texts_per_second"])]
        for row in sorted(rows, key=lambda row: -float(row["f1_macro"]))
    ]
    return Section(
        "Quality and throughput",
        (
            "minilm on validation, thresholds cross-fitted; the test split was not read. Distilled models and the bag of embeddings "
            "were trained on the probabilities of openvino-int8. The cascade uses the slow stage only for texts that the fast stage is "
            f"unsure of. Measured on {rows[0]['machine']}.",
        ),
        (Table(("predictor", title_of("f1_macro"), "texts per second"), table),),
        code=("python -m benchmarks.frontier --data DATA --student-epochs 3 --record",),
    )
