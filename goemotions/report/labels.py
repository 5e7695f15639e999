"""Each label: where the models are good, and what that depends on."""

from __future__ import annotations

from typing import Any

import numpy as np

from goemotions.evaluation import error_analysis
from goemotions.report import figures
from goemotions.report.document import Figure, Section, Table
from goemotions.report.result import Result, best

SHOWN = 5
SIGNIFICANT = 0.05
# With fewer positives a label's figures say little.
FEW = 30
KEYS = ("label", "support", "precision", "recall", "f1", "auc")


def sections(results: list[Result], counts: dict[str, int], words: np.ndarray) -> list[Section]:
    """Per-label figures on test; ``counts`` of the labels in train, ``words`` of each test text, int [n]."""
    rows = [{**row, "model": result.title} for result in results for row in result.per_label]
    every = [Table((result.title, *KEYS[1:]), [[row[key] for key in KEYS] for row in _ranked(result)]) for result in results]
    winner = best(results)
    return [
        Section("Per label", ("Test split, thresholds fitted on validation.", *_extremes(winner)), _ends(winner)),
        Section(
            "All labels",
            ("Best F1 first.",),
            every,
            (Figure("label-f1", "F1 of each label on test", figures.per_label_f1(rows)),),
            level=3,
        ),
        _sample_size(winner, counts),
        _label_count(winner),
        _length(winner, words),
    ]


def _ranked(result: Result) -> list[dict[str, Any]]:
    return sorted(result.per_label, key=lambda row: -row["f1"])


def _extremes(result: Result) -> list[str]:
    ranked = _ranked(result)
    few = [f"{row['label']} ({row['support']})" for row in ranked if row["support"] < FEW]
    line = f"{result.title}: from {ranked[0]['label']} ({ranked[0]['f1']:.3f}) down to {ranked[-1]['label']} ({ranked[-1]['f1']:.3f})."
    return [line, *([f"Fewer than {FEW} test rows, so that their figures say little: {', '.join(few)}."] if few else [])]


def _ends(result: Result) -> list[Table]:
    ranked = _ranked(result)
    shown = min(SHOWN, len(ranked))
    return [
        Table((title, *KEYS[1:]), [[row[key] for key in KEYS] for row in rows])
        for title, rows in ((f"top {shown}", ranked[:shown]), (f"bottom {shown}", ranked[-shown:]))
    ]


def _sample_size(result: Result, counts: dict[str, int]) -> Section:
    found = error_analysis.support_correlation(result.per_label, [counts[row["label"]] for row in result.per_label])
    lines = []
    for key, name in (("f1", "F1"), ("auc", "AUC")):
        rho, p = found[f"{key}_rho"], found[f"{key}_p"]
        if rho is not None and p is not None:
            relation = "a clear relation" if p < SIGNIFICANT else "no clear relation"
            lines.append(
                f"Rank correlation of a label's count in train with its {name} on test: {rho:.2f} (p = {p:.3f}): {relation}."
            )
    rows = [{**row, "support": counts[row["label"]], "model": result.title} for row in result.per_label]
    chart = figures.f1_against_support(rows)
    return Section(
        "F1 and sample size",
        lines or ["Too few labels for a correlation."],
        figures=(Figure("f1-support", "F1 on test against the label's count in train", chart),),
        level=3,
    )


def _label_count(result: Result) -> Section:
    found = error_analysis.by_label_count(result.test.labels, result.predicted, result.test.probabilities)
    rows = [
        {"bucket": row["labels"], "metric": metric, "value": row[metric]}
        for row in found
        for metric in ("f1_micro", "exact_match")
    ]
    return Section(
        "The effect of several labels",
        (f"{result.title} on test, by the number of labels that the raters gave.",),
        (Table(tuple(found[0]), [list(row.values()) for row in found]),),
        (Figure("label-count", "Scores by the number of labels of a text", figures.label_count_effect(rows)),),
        level=3,
    )


def _length(result: Result, words: np.ndarray) -> Section:
    found = error_analysis.by_length(words, result.test.labels, result.predicted, result.test.probabilities)
    rows = [
        {"bucket": row["words"], "metric": metric, "value": row[metric]}
        for row in found
        for metric in ("f1_micro", "auc_micro")
    ]
    return Section(
        "The effect of length",
        (f"{result.title} on test, by the words of a text.",),
        (Table(tuple(found[0]), [list(row.values()) for row in found]),),
        (Figure("length-effect", "Scores by the number of words of a text", figures.length_effect(rows)),),
        level=3,
    )
