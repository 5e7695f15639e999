"""The performance report: one list of sections, written as Markdown with figures, as self-contained HTML pages, and as CSV tables.

Every metric is computed from the stored Predictions, thresholds and training records.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from goemotions import defaults
from goemotions.data.dataset import load_dataset
from goemotions.data.text import count_words
from goemotions.evaluation import tables
from goemotions.evaluation.drift import DriftReport
from goemotions.registry import costs
from goemotions.registry.bundle import Variant
from goemotions.registry.candidates import CandidateArtifacts
from goemotions.registry.costs import Prices, Step
from goemotions.registry.registered_versions import RegisteredVersion
from goemotions.report import (
    calibration,
    comparison,
    cost,
    dataset,
    document,
    drift,
    error_analysis,
    labels,
    measurements,
    models,
    slices,
    thresholds,
    use_cases,
)
from goemotions.report.document import Section
from goemotions.report.result import Result, best
from goemotions.storage import store


@store.raise_on_full_disk
def write(
    dataset_folder: Path,
    candidates: dict[Variant, list[CandidateArtifacts]],
    output: Path,
    registered: Mapping[Variant, RegisteredVersion] | None = None,
    *,
    model_name: str = defaults.MODEL_NAME,
    latency_budget_ms: float = defaults.LATENCY_BUDGET_MS,
    quality_tolerance: float = defaults.QUALITY_TOLERANCE,
    used: Sequence[Step] | None = None,
    prices: Prices = Prices(),  # noqa: B008 - it is frozen
    drift_report: DriftReport | None = None,
    commit: str = "unknown",
) -> Path:
    """Writes the report into a folder, which it returns.

    The folder gets ``report.md``, ``dataset.md`` and their ``figures/``, ``report.html`` and ``dataset.html``, and in ``tables/`` every
    table without texts as CSV.

    Args:
        dataset_folder, candidates: the Dataset, and for each variant the folders of every profile.
        output: the folder to write.
        registered: what ``registration.register`` returned, for the sections on versions and artifacts.
        model_name: name of the registered model, for the commands that download it.
        latency_budget_ms, quality_tolerance: the rule of the recommendation for CPUs, as ``registration.register`` takes them.
        used, prices: what the steps of the run used (None for those that wrote the artifacts), and the prices of that.
        drift_report: of the model that is served, for a section on it.
        commit: that of the code which writes the report.
    """
    used = costs.of_run(dataset_folder, candidates) if used is None else used
    results = [Result.read(variant, folder) for variant, folders in candidates.items() for folder in folders]
    about_data, everything = sections(
        dataset_folder, results, registered or {}, model_name, latency_budget_ms, quality_tolerance
    )
    everything += drift.of_performance_report(drift_report) if drift_report else []
    everything += filter(None, [cost.section(used, prices)])
    provenance = _provenance(results, commit)
    _write_documents("Model performance", [*everything, provenance], output / "report.md")
    _write_documents("Dataset analysis", [*about_data, provenance], output / "dataset.md")
    document.write_tables(everything, output / "tables")
    _write_unrounded_metrics(results, output / "tables")
    return output


def sections(
    dataset_folder: Path,
    results: list[Result],
    registered: Mapping[Variant, RegisteredVersion],
    model_name: str = defaults.MODEL_NAME,
    latency_budget_ms: float = defaults.LATENCY_BUDGET_MS,
    quality_tolerance: float = defaults.QUALITY_TOLERANCE,
) -> tuple[list[Section], list[Section]]:
    """The sections on the data set, and those of the whole report, which include them."""
    splits, info = load_dataset(dataset_folder)
    digest, validation, winner = info["digest"], splits["validation"], best(results)
    words = {split: np.array([count_words(text) for text in rows["text"][:]]) for split, rows in splits.items()}
    texts = dict(zip(validation["id"][:], validation["text"][:], strict=True))
    about_data = dataset.sections(info, words)
    return about_data, [
        use_cases.recommendation(results, latency_budget_ms, quality_tolerance, registered),
        models.overview(info, results, winner),
        *comparison.sections(results, winner, digest),
        use_cases.section(results, winner),
        slices.limits_section(winner),
        *([models.registered_versions(registered)] if registered else []),
        *models.sections(results, digest, registered),
        *labels.sections(results, winner, info["label_counts"]["train"], words["test"]),
        *thresholds.sections(results, winner),
        calibration.section(results, winner),
        *about_data,
        *measurements.sections(digest),
        error_analysis.robustness_section(winner, list(texts.values())),
        error_analysis.error_section(winner, texts),
        *slices.sections(winner, list(texts.values())),
        *([models.artifacts(registered, model_name)] if registered else []),
    ]


def _provenance(results: Sequence[Result], commit: str) -> Section:
    machines = " and ".join(dict.fromkeys(result.training.hardware for result in results))
    return Section(
        "Provenance",
        (
            f"Written by `goemotions` alone, at commit {commit[:12]}, on {datetime.now(UTC):%Y-%m-%d}. Models trained on {machines}. A "
            "section that shows measurements of another run names its command.",
        ),
    )


def _write_documents(title: str, sections: Sequence[Section], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(document.to_markdown(title, sections), encoding="utf-8")
    path.with_suffix(".html").write_text(document.to_html(title, sections), encoding="utf-8")
    document.write_figures(sections, path.with_name("figures"))


def _write_unrounded_metrics(results: Sequence[Result], folder: Path) -> None:
    """Writes every metric, every threshold strategy and every label's metrics of all models as three CSV files."""
    rows: dict[str, list[dict[str, Any]]] = {"metrics": [], "thresholds": [], "per_label": []}
    for result in results:
        rows["metrics"] += [{**result.names, "metric": name, "value": value} for name, value in result.metrics.items()]
        rows["per_label"] += [{**result.names, **row} for row in result.per_label]
        for strategy in result.thresholds_file.comparison:
            row = {**result.names, **strategy.to_row()}
            del row["values"]
            rows["thresholds"].append(row)
    for name, table in rows.items():
        tables.write_csv(folder / f"{name}.csv", table)
