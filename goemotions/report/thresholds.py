"""From probabilities to labels: the threshold strategies compared, and the effect of the chosen ones."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from goemotions.metrics import classification
from goemotions.metrics.thresholds import StrategyResult, Thresholds
from goemotions.report import figures
from goemotions.report.document import Cell, Figure, Section, Table
from goemotions.report.result import Result, table_of, title_of

TABLE_STEPS = np.round(np.arange(0.1, 0.95, 0.1), 1)
CURVE_STEPS = np.round(np.arange(0.02, 1.0, 0.02), 2)
SCORES = ("f1_macro", "f1_micro", "precision_macro", "recall_macro")
COMPARED = (*SCORES, "precision_micro", "recall_micro", "labels_ever_predicted", "labels_per_row")
# A larger loss of macro F1 from the rows that thresholds were fitted on to unseen rows is mentioned.
NOTABLE_LOSS = 0.01


def sections(results: list[Result], winner: Result) -> list[Section]:
    return [
        _selection(results),
        _global_threshold(winner),
        _strategies(winner),
        _chosen_thresholds(results),
        _precision_recall(winner),
    ]


def _selection(results: list[Result]) -> Section:
    rows: list[list[Cell]] = []
    for result in results:
        for row in result.thresholds_file.comparison:
            chosen = " (chosen)" if row.thresholds == result.thresholds else ""
            title = f"{result.title}: {row.thresholds.strategy}{chosen}"
            rows.append([title, row.cross_fitted["f1_macro"], row.f1_macro_fitted])
    return Section(
        "Threshold selection",
        (
            "Macro F1 on validation. Cross-fitted: the labels of each fold are predicted with thresholds from the other four folds, "
            "over several draws of the folds if there are few rows. "
            "By this column per-label-smoothed is chosen, unless another strategy leads by more than about the standard error of a "
            "macro F1: half of one divided by the root of the number of rows.",
            "The strategies with a target precision or recall are used only if they are requested; they are not chosen by F1.",
        ),
        (Table(("strategy", "cross-fitted", "fitted on all"), rows),),
    )


def _global_threshold(result: Result) -> Section:
    labels, probabilities = result.validation.labels, result.validation.probabilities
    rows = [
        {"threshold": f"{threshold:g}", **classification.decisions(labels, probabilities >= threshold)}
        for threshold in TABLE_STEPS
    ]
    points = [
        {"threshold": threshold, "value": value, "metric": title_of(name[:-6]), "average": name[-5:]}
        for threshold in CURVE_STEPS
        for name, value in classification.decisions(labels, probabilities >= threshold).items()
        if name.endswith(("_macro", "_micro"))
    ]
    caption = "Metrics on validation by one threshold for all labels"
    return Section(
        "Global threshold",
        (f"{result.title} on validation, with one threshold for all labels.",),
        (table_of(rows, ("threshold", *COMPARED)),),
        (Figure("threshold-curves", caption, figures.threshold_curves(points)),),
        level=3,
    )


def _strategies(result: Result) -> Section:
    results = result.thresholds_file.comparison
    rows = [{"strategy": row.thresholds.strategy, **row.cross_fitted} for row in results]
    chart = figures.label_coverage(rows, len(result.validation.names))
    return Section(
        "Threshold strategies",
        (f"{result.title} on validation; the labels of each row are predicted by thresholds that were fitted on other rows.",),
        (
            table_of(rows, ("strategy", *COMPARED), first="strategy on unseen rows"),
            Table(("trade-offs", "advantages", "disadvantages"), _trade_offs(results, len(result.validation.names))),
        ),
        (Figure("label-coverage", "Labels that a strategy ever predicts, validation", chart),),
        level=3,
    )


def _trade_offs(results: Sequence[StrategyResult], labels: int) -> list[list[str]]:
    """What follows from the metrics of each strategy, as rows of strategy, advantages and disadvantages."""
    highest, lowest = ({name: pick(row.cross_fitted[name] for row in results) for name in SCORES} for pick in (max, min))
    table = []
    for result in results:
        fitted, row = result.thresholds, result.cross_fitted
        pros = [f"best {title_of(name)} ({row[name]:.4f})" for name in SCORES if row[name] == highest[name]]
        cons = [f"lowest {title_of(name)} ({row[name]:.4f})" for name in SCORES if row[name] == lowest[name]]
        if never := labels - int(row["labels_ever_predicted"]):
            cons.append(f"never predicts {never} of {labels} labels")
        lost, is_global = result.f1_macro_fitted - row["f1_macro"], len(set(fitted.values)) == 1
        if lost > NOTABLE_LOSS:
            cons.append(f"loses {lost:.4f} macro F1 on unseen rows")
        elif not is_global:
            pros.append(f"generalises to unseen rows (loses {max(lost, 0):.4f})")
        if fitted.strategy == "global-0.5":
            pros.append("needs no fitting")
        if fitted.k:
            pros.append(f"at most {fitted.k} labels per text")
        elif is_global:
            pros.append("a single number")
        if (behind := highest["f1_macro"] - row["f1_macro"]) > 0:
            cons.append(f"{behind:.4f} macro F1 below the best")
        table.append([fitted.strategy, "; ".join(pros) or "–", "; ".join(cons) or "–"])
    return table


def _chosen_thresholds(results: list[Result]) -> Section:
    lines, per_label, on_test = [], [], []
    for result in results:
        metrics, expected = result.metrics, result.thresholds_file.chosen.cross_fitted
        lines.append(
            f"{result.title}: {result.thresholds.strategy}. On test, macro F1 is {metrics['test/f1_macro/at_0.5']:.4f} at 0.5 and "
            f"{metrics['test/f1_macro']:.4f} at the chosen thresholds ({expected['f1_macro']:.4f} on validation, "
            f"cross-fitted); micro F1 is {metrics['test/f1_micro/at_0.5']:.4f} and {metrics['test/f1_micro']:.4f} "
            f"({expected['f1_micro']:.4f})."
        )
        per_label += [
            {"label": name, "threshold": value, **result.names}
            for name, value in zip(result.test.names, result.thresholds.values, strict=True)
        ]
        on_test += [
            {"model": result.title, "strategy": row.thresholds.strategy, **_test_metrics(result, row.thresholds)}
            for row in result.thresholds_file.comparison
        ]
    columns = ("model", "strategy", *SCORES, "recall_per_text", "labels_ever_predicted")
    return Section(
        "Chosen thresholds",
        lines,
        (table_of(on_test, columns, first="model on test"),),
        (Figure("label-thresholds", "Chosen threshold per label", figures.label_thresholds(per_label)),),
        level=3,
    )


def _test_metrics(result: Result, fitted: Thresholds) -> dict[str, Cell]:
    """The metrics of thresholds on test. ``recall_per_text``, the mean recall over the texts, is what a target recall bounds."""
    labels = result.test.labels
    predicted = fitted.apply(result.test.probabilities)
    labelled = labels.any(axis=1)
    recalls = (labels & predicted)[labelled].sum(axis=1) / labels[labelled].sum(axis=1)
    metrics = classification.decisions(labels, predicted)
    return {**metrics, "recall_per_text": float(recalls.mean()) if len(recalls) else 1.0}


def _precision_recall(result: Result) -> Section:
    test = result.test
    chart = figures.precision_recall(test.names, test.labels, test.probabilities)
    return Section(
        "Precision-recall curves",
        (f"{result.title} on test. On the HTML page, choose a label to highlight its curve.",),
        figures=(Figure("precision-recall", "Precision by recall on test, for all labels together and per label", chart),),
        level=3,
    )
