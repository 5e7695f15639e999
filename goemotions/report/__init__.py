"""The performance report: one list of sections, written as Markdown with figures, as a self-contained page, and as CSV.

Every figure is computed here from the stored Predictions, thresholds and training records; nothing is typed in.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from goemotions import defaults
from goemotions.data.dataset import load_dataset
from goemotions.evaluation import evaluate
from goemotions.registry.assembly import CandidateArtifacts
from goemotions.registry.bundle import Variant
from goemotions.registry.registration import RegisteredVersion
from goemotions.report import dataset, decisions, document, evidence, labels, models
from goemotions.report.document import Section
from goemotions.report.result import Result, best
from goemotions.storage import store

# Measured by `benchmarks/ablations`: why the profiles are what they are.
ABLATIONS = Path(__file__).with_name("ablations.csv")
SEEDS = Path(__file__).with_name("seeds.csv")
# Measured by `benchmarks/frontier`.
FRONTIER = Path(__file__).with_name("frontier.csv")


@store.raise_on_full_disk
def write(
    dataset_folder: Path,
    parts: dict[Variant, list[CandidateArtifacts]],
    output: Path,
    registered: Mapping[Variant, RegisteredVersion] | None = None,
    *,
    model_name: str = defaults.MODEL_NAME,
    latency_budget_ms: float = defaults.LATENCY_BUDGET_MS,
) -> Path:
    """Writes the report into a folder, which it returns.

    ``report.md`` and ``dataset.md`` with their ``figures/``, ``report.html``, and as CSV in ``tables/`` every table without texts.

    Args:
        dataset_folder: the Dataset folder.
        parts: for each variant the folders of every profile.
        output: the folder to write.
        registered: what ``registration.register`` answered, for the sections on versions and artifacts.
        model_name: name of the registered model, for the commands that download it.
        latency_budget_ms: what the recommendation for CPU keeps to.
    """
    splits, info = load_dataset(dataset_folder)
    results = [Result.read(variant, folder) for variant, folders in parts.items() for folder in folders]
    words = {split: np.array([len(text.split()) for text in rows["text"][:]]) for split, rows in splits.items()}
    about_data = dataset.sections(info, words)
    validation = splits["validation"]
    sections = [
        models.overview(info, results),
        *([models.versions(registered)] if registered else []),
        *models.each(results, info["digest"], registered),
        models.compared(results, info["digest"], latency_budget_ms),
        *labels.sections(results, info["label_counts"]["train"], words["test"]),
        *decisions.thresholds(results),
        decisions.calibrated(results),
        *about_data,
        models.seeds(evidence.measurements(SEEDS, info["digest"])),
        evidence.ablations(evidence.measurements(ABLATIONS, info["digest"])),
        evidence.frontier(evidence.measurements(FRONTIER, info["digest"])),
        evidence.robust(best(results), validation["text"][:]),
        evidence.errors(best(results), dict(zip(validation["id"][:], validation["text"][:], strict=True))),
        *([evidence.artifacts(registered, model_name)] if registered else []),
    ]
    whole = [section for section in sections if section]
    _write("Model performance", whole, output / "report.md")
    _write("Dataset analysis", about_data, output / "dataset.md")
    document.write_tables(whole, output / "tables")
    _write_figures_of(results, output / "tables")
    return output


def _write(title: str, sections: Sequence[Section], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(document.to_markdown(title, sections), encoding="utf-8")
    document.write_figures(sections, path.with_name("figures"))
    path.with_suffix(".html").write_text(document.to_html(title, sections), encoding="utf-8")


def _write_figures_of(results: Sequence[Result], folder: Path) -> None:
    """Beside the tables of the report, every figure of every model in three long ones, unrounded."""
    figures = [
        {"model": result.profile, "engine": result.engine, "metric": name, "value": value}
        for result in results
        for name, value in result.figures.items()
    ]
    strategies = [
        {"model": result.profile, "engine": result.engine, **{key: value for key, value in row.items() if key != "values"}}
        for result in results
        for row in result.comparison
    ]
    evaluate.write_csv(folder / "metrics.csv", figures)
    evaluate.write_csv(folder / "thresholds.csv", strategies)
    evaluate.write_csv(folder / "per_label.csv", [row for result in results for row in result.per_label])
