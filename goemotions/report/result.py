"""What the report reads of one model: the files that the pipeline's steps wrote, and the metrics that follow from them."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from goemotions import strict_json
from goemotions.evaluation import evaluate
from goemotions.evaluation.latency import Latency
from goemotions.evaluation.predictions import FILE, Predictions
from goemotions.evaluation.selection import CandidateScores, select_winner
from goemotions.metrics import bootstrap, thresholds
from goemotions.metrics.classification import METRICS_FILE, LabelMetrics
from goemotions.metrics.thresholds import Thresholds, ThresholdsFile
from goemotions.models.records import ExportRecord, RunRecord, TrainingRecord, all_runs, read_exports
from goemotions.registry.bundle import ENGINES, SERVING, Variant
from goemotions.registry.candidates import CandidateArtifacts
from goemotions.report.document import Table

RESAMPLES = 500
HEADLINE = ("auc_micro", "auc_macro", "f1_macro", "f1_micro")
# Counts among the metrics: tables show them without decimals.
COUNTS = ("labels_ever_predicted",)
# What tables and charts call metrics and other keys of rows; a key that ends with an average is called by metric and average.
TITLES = {
    "auc": "AUC",
    "brier": "Brier score",
    "f1": "F1",
    "changed": "texts changed",
    "flips": "other labels",
    "shift": "mean shift",
    "labels_per_row": "labels per text",
    "predicted": "labels predicted per text",
}


@dataclass(frozen=True)
class Result:
    """One profile, run by the engine of one variant."""

    variant: Variant
    artifacts: CandidateArtifacts
    training: TrainingRecord
    export: ExportRecord
    thresholds_file: ThresholdsFile
    validation: Predictions
    test: Predictions

    @classmethod
    def read(cls, variant: Variant, artifacts: CandidateArtifacts) -> Result:
        return cls(
            variant,
            artifacts,
            TrainingRecord.read(artifacts.model),
            read_exports(artifacts.onnx)[ENGINES[variant]],
            thresholds.read(artifacts.thresholds / thresholds.FILE),
            Predictions.read(artifacts.validation / FILE),
            Predictions.read(artifacts.test / FILE),
        )

    @functools.cached_property
    def latency_ms(self) -> tuple[float, float] | None:
        """Median and 95th percentile for one text, by the export step or, on a GPU, by evaluate; None if it was not measured."""
        if self.export.latency_ms_p50 is not None and self.export.latency_ms_p95 is not None:
            return self.export.latency_ms_p50, self.export.latency_ms_p95
        p50, p95 = (self._measured.get(name) for name in evaluate.LATENCY)
        return (p50, p95) if p50 and p95 else None

    @property
    def texts_per_second(self) -> float | None:
        """How fast evaluate scored the validation split, if it did so with what serves the variant."""
        return self._measured.get(evaluate.THROUGHPUT) if self.validation.computation == SERVING[self.variant] else None

    @functools.cached_property
    def _measured(self) -> dict[str, float]:
        path = self.artifacts.validation / METRICS_FILE
        stored: dict[str, float] = strict_json.read(path) if path.is_file() else {}
        strict_json.require(stored, dict[str, float], str(path))
        return stored

    @property
    def teachers_seconds(self) -> float:
        """Duration of the trainings of the teachers, in s."""
        return sum(run.seconds for run in all_runs(self.training.teachers).values())

    @property
    def profile(self) -> str:
        return str(self.training.profile["name"])

    @property
    def engine(self) -> str:
        return ENGINES[self.variant]

    @property
    def names(self) -> dict[str, str]:
        """Model and engine, as the rows of charts and of CSV files have them."""
        return {"model": self.profile, "engine": self.engine}

    @property
    def title(self) -> str:
        return f"{self.profile} ({self.engine})"

    @property
    def thresholds(self) -> Thresholds:
        return self.thresholds_file.thresholds

    @functools.cached_property
    def scores(self) -> CandidateScores:
        """What the selection of a winner compares."""
        latency = Latency.recorded(self.latency_ms[1]) if self.latency_ms else None
        return CandidateScores(self.profile, self.validation, self.thresholds, latency)

    @functools.cached_property
    def predicted(self) -> np.ndarray:
        """Predicted labels on test at the fitted thresholds, bool [n, labels]."""
        return self.thresholds.apply(self.test.probabilities)

    @functools.cached_property
    def metrics(self) -> dict[str, float]:
        """Every metric: ``<split>/<metric>`` at the fitted thresholds and ``<split>/<metric>/at_0.5`` at 0.5."""
        validation, test = (evaluate.compute_both(one, self.thresholds) for one in (self.validation, self.test))
        return validation | test

    @functools.cached_property
    def bootstrapped(self) -> dict[str, np.ndarray]:
        """The headline metrics on test, float [RESAMPLES + 1]: on all rows, then on each resample. All models share the resamples."""
        test, weights = self.test, bootstrap.weights(len(self.test.ids), RESAMPLES)
        f1_macro, f1_micro = bootstrap.f1(test.labels, self.predicted, weights)
        return {
            "auc_micro": bootstrap.auc_micro(test.labels, test.probabilities, weights),
            "auc_macro": bootstrap.auc_macro(test.labels, test.probabilities, weights),
            "f1_macro": f1_macro,
            "f1_micro": f1_micro,
        }

    @functools.cached_property
    def per_label(self) -> list[LabelMetrics]:
        """The metrics of each label on test at the fitted thresholds."""
        return evaluate.compute_per_label(self.test, self.thresholds)


def best(results: list[Result], latency_budget_ms: float | None = None, quality_tolerance: float = 0.0) -> Result:
    """The winner by ``selection.select_winner``, the rule of registration."""
    return results[select_winner([result.scores for result in results], latency_budget_ms, quality_tolerance)]


def teacher_title(run: RunRecord) -> str:
    """A teacher as people read it; one that was taught itself is of a later generation."""
    return f"{run.profile['name']}, seed {run.seed}" + ", taught" * bool(run.teachers)


def title_of(key: str) -> str:
    """What tables and charts call a metric or another key of a row, such as macro F1 for ``f1_macro``."""
    metric, _, average = key.rpartition("_")
    if average in ("macro", "micro"):
        return f"{average} {title_of(metric)}"
    return TITLES.get(key, key.replace("_", " "))


def table_of(rows: Iterable[Mapping[str, Any]], keys: Iterable[str], first: str = "") -> Table:
    """A table of the rows' values under some keys; ``first`` replaces the title of the first column."""
    keys = list(keys)
    titles = [title_of(key) for key in keys]
    cells = [[int(row[key]) if key in COUNTS else row[key] for key in keys] for row in rows]
    return Table([first or titles[0], *titles[1:]], cells)


def source_name(source: str) -> str:
    """A source without the folders of this machine: of a local folder only the name."""
    return source if "://" in source or not Path(source).is_absolute() else Path(source).name


def milliseconds(value: float) -> str:
    """A latency with one decimal, or two below 1 ms."""
    return f"{value:,.1f}" if value >= 1 else f"{value:.2f}"


def duration(seconds: float) -> str:
    """A duration in the unit that people would say it in."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def signed(value: float) -> str:
    return f"{value:+.4f}"


def judged(low: float, high: float) -> str:
    """What the 95% interval of a difference says."""
    return "worse" if high < 0 else "better" if low > 0 else "no clear difference"


def with_interval(values: np.ndarray) -> str:
    """A metric with its 95% interval; ``values`` are float [resamples + 1], the metric on all rows first."""
    low, high = bootstrap.interval(values)
    return f"{values[0]:.4f} ({low:.4f} to {high:.4f})"
