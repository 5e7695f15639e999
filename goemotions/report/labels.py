"""Metrics per label, and what metrics depend on: training examples, number of labels, text length."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from goemotions.evaluation import error_analysis
from goemotions.evaluation.limitations import FEW_POSITIVES, rare
from goemotions.metrics.classification import LabelMetrics
from goemotions.report import figures
from goemotions.report.document import Figure, Section
from goemotions.report.result import Result, table_of, title_of

EXTREMES = 5
SIGNIFICANCE = 0.05
COLUMNS = ("label", "support", "precision", "recall", "f1", "auc")


def sections(results: list[Result], winner: Result, train_counts: dict[str, int], words: np.ndarray) -> list[Section]:
    """Metrics on test; ``train_counts`` are the rows of each label in train, ``words`` those of each test text, int [n]."""
    labels, predicted, probabilities = winner.test.labels, winner.predicted, winner.test.probabilities
    by_count = error_analysis.by_label_count(labels, predicted, probabilities)
    by_length = error_analysis.by_length(words, labels, predicted, probabilities)
    return [
        _summary(winner),
        _all_labels(results),
        _training_examples(winner, train_counts),
        _breakdown(winner, by_count, ("f1_micro", "exact_match"), "number of labels", "label-count", "labels of the text"),
        _breakdown(winner, by_length, ("f1_micro", "auc_micro"), "text length", "length-effect", "words in the text"),
    ]


def _best_first(result: Result) -> list[LabelMetrics]:
    return sorted(result.per_label, key=lambda row: -row["f1"])


def _summary(result: Result) -> Section:
    rows = _best_first(result)
    # No label is among the best and the worst; the next section lists all.
    shown, best, worst = min(EXTREMES, len(rows) // 2), rows[0], rows[-1]
    few = rare(rows)
    extremes = {"best": rows[:shown], "worst": rows[-shown:]}
    return Section(
        "Metrics per label",
        (
            "Test split, thresholds fitted on validation.",
            f"{result.title}: F1 from {best['label']} ({best['f1']:.3f}) to {worst['label']} ({worst['f1']:.3f}).",
            *([f"Labels with fewer than {FEW_POSITIVES} test rows, whose metrics say little: {few}."] if few else []),
        ),
        [table_of(ends, COLUMNS, first=f"{kind} {shown}") for kind, ends in extremes.items() if shown],
    )


def _all_labels(results: list[Result]) -> Section:
    rows = [{**row, **result.names} for result in results for row in result.per_label]
    return Section(
        "All labels",
        ("Best F1 first.",),
        [table_of(_best_first(result), COLUMNS, first=result.title) for result in results],
        (Figure("label-f1", "F1 per label on test", figures.per_label_f1(rows)),),
        level=3,
    )


def _training_examples(result: Result, counts: dict[str, int]) -> Section:
    correlation = error_analysis.support_correlation(result.per_label, [counts[row["label"]] for row in result.per_label])
    lines = []
    for key in ("f1", "auc"):
        rho, p = correlation[f"{key}_rho"], correlation[f"{key}_p"]
        if rho is not None and p is not None:
            verdict = "significant" if p < SIGNIFICANCE else "not significant"
            lines.append(
                f"Rank correlation of a label's rows in train with its {title_of(key)} on test: {rho:.2f} (p = {p:.3f}, {verdict})."
            )
    rows = [{**row, "support": counts[row["label"]], **result.names} for row in result.per_label]
    return Section(
        "F1 and training examples",
        lines or ["There are too few labels for a correlation."],
        figures=(Figure("f1-support", "F1 on test by the label's rows in train", figures.f1_against_support(rows)),),
        level=3,
    )


def _breakdown(
    result: Result, rows: Sequence[Mapping[str, Any]], charted: Sequence[str], what: str, figure: str, axis: str
) -> Section:
    """Metrics per bucket of texts: each row holds the bucket first, then the number of texts and the metrics."""
    bucket, *_ = rows[0]
    points = [{"bucket": row[bucket], "metric": title_of(key), "value": row[key]} for row in rows for key in charted]
    return Section(
        f"Metrics by {what}",
        (f"{result.title} on test.",),
        (table_of(rows, rows[0], first=axis),),
        (Figure(figure, f"Metrics on test by {what}", figures.metrics_by_bucket(points, axis)),),
        level=3,
    )
