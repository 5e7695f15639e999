"""What the report knows of one model: everything comes from the files that the steps left."""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from goemotions.evaluation import evaluate
from goemotions.evaluation.predictions import FILE, Predictions
from goemotions.evaluation.selection import CandidateScores, select_winner
from goemotions.metrics import bootstrap, classification, thresholds
from goemotions.metrics.calibration import Calibrator
from goemotions.metrics.thresholds import Thresholds
from goemotions.models.records import TrainingRecord, read_json
from goemotions.registry.assembly import CandidateArtifacts
from goemotions.registry.bundle import ENGINES, Variant

RESAMPLES = 500
HEADLINE = ("auc_micro", "auc_macro", "f1_macro", "f1_micro")


@dataclass(frozen=True)
class Result:
    """One profile as one engine runs it."""

    variant: Variant
    parts: CandidateArtifacts
    training: dict[str, Any]
    export: dict[str, Any]
    thresholds: Thresholds
    comparison: list[dict[str, Any]]
    validation: Predictions
    test: Predictions

    @classmethod
    def read(cls, variant: Variant, parts: CandidateArtifacts) -> Result:
        fitted, content = thresholds.read(parts.thresholds / thresholds.FILE)
        return cls(
            variant,
            parts,
            dataclasses.asdict(TrainingRecord.read(parts.model)),
            read_json(parts.onnx / "export.json"),
            fitted,
            content["comparison"],
            Predictions.read(parts.validation / FILE),
            Predictions.read(parts.test / FILE),
        )

    @property
    def profile(self) -> str:
        return str(self.training["profile"]["name"])

    @property
    def engine(self) -> str:
        return ENGINES[self.variant]

    @property
    def title(self) -> str:
        return f"{self.profile} ({self.engine})"

    @property
    def calibrator(self) -> Calibrator:
        found = self.training["calibration"]
        return Calibrator(found["method"], tuple(found["slope"]), tuple(found["intercept"]))

    @functools.cached_property
    def scores(self) -> CandidateScores:
        """What the selection of a winner compares."""
        latency_ms = float(self.export[self.engine]["latency_ms_p95"])
        return CandidateScores(self.profile, self.validation, self.thresholds, latency_ms)

    @functools.cached_property
    def predicted(self) -> np.ndarray:
        """Decisions on test at the fitted thresholds, bool [n, labels]."""
        return self.thresholds.apply(self.test.probabilities)

    @functools.cached_property
    def figures(self) -> dict[str, float]:
        """Every metric, named ``<split>/<metric>`` at the fitted thresholds and ``<split>/at_0.5/<metric>`` at 0.5."""
        values: dict[str, float] = {}
        for scored in (self.validation, self.test):
            half = evaluate.compute_metrics(scored, thresholds.fixed(scored.labels, scored.probabilities))
            values |= evaluate.compute_metrics(scored, self.thresholds)
            values |= {name.replace("/", "/at_0.5/"): value for name, value in half.items()}
        return values

    @functools.cached_property
    def resampled(self) -> dict[str, np.ndarray]:
        """The headline figures on test, on all rows and on each resample; all models see the same resamples."""
        test, drawn = self.test, bootstrap.weights(len(self.test.ids), RESAMPLES)
        f1_macro, f1_micro = bootstrap.f1(test.labels, self.predicted, drawn)
        auc_micro = bootstrap.auc_micro(test.labels, test.probabilities, drawn)
        auc_macro = bootstrap.auc_macro(test.labels, test.probabilities, drawn)
        return dict(zip(HEADLINE, (auc_micro, auc_macro, f1_macro, f1_micro), strict=True))

    @functools.cached_property
    def per_label(self) -> list[dict[str, Any]]:
        """A row a label on test, at the fitted thresholds."""
        rows = classification.per_label(self.test.names, self.test.labels, self.test.probabilities, self.predicted)
        return [{"model": self.profile, "engine": self.engine, **row} for row in rows]

    @property
    def strategy(self) -> dict[str, Any]:
        """The chosen strategy's row of the comparison."""
        return next(row for row in self.comparison if row["strategy"] == self.thresholds.strategy)


def best(results: list[Result], latency_budget_ms: float | None = None) -> Result:
    """The winner by ``selection.select_winner``, the rule of registration."""
    return results[select_winner([result.scores for result in results], latency_budget_ms)]


def source_name(source: str) -> str:
    """A source as others know it: of a local folder only the name."""
    return source if "://" in source or not Path(source).is_absolute() else Path(source).name


def signed(value: float) -> str:
    return f"{value:+.4f}"


def ranged(values: np.ndarray) -> str:
    """A figure with its 95% interval; values [resamples + 1], the figure first."""
    low, high = bootstrap.interval(values)
    return f"{values[0]:.4f} ({low:.4f} to {high:.4f})"
