"""From probabilities to labels: the threshold strategies and what each brings, and how far a probability can be trusted."""

from __future__ import annotations

from typing import Any

import numpy as np

from goemotions.metrics import calibration, classification
from goemotions.metrics.thresholds import Thresholds
from goemotions.report import figures
from goemotions.report.document import Cell, Figure, Section, Table
from goemotions.report.result import Result, best

SWEEP = np.round(np.arange(0.1, 0.95, 0.1), 1)
CURVE = np.round(np.arange(0.02, 1.0, 0.02), 2)
COMPARED = {
    "f1_macro": "F1 macro",
    "f1_micro": "F1 micro",
    "precision_macro": "precision macro",
    "recall_macro": "recall macro",
    "precision_micro": "precision micro",
    "recall_micro": "recall micro",
    "labels_ever_predicted": "labels ever predicted",
    "labels_per_row": "labels a text",
}
# A fall of macro F1 from the rows that were fitted to unseen ones that is worth a word.
OPTIMISM = 0.01


def thresholds(results: list[Result]) -> list[Section]:
    winner = best(results)
    return [_selection(results), _sweep(winner), _strategies(winner), _choice(results), _precision_recall(winner)]


def _selection(results: list[Result]) -> Section:
    rows = []
    for result in results:
        for row in result.comparison:
            chosen = " (chosen)" if row["strategy"] == result.thresholds.strategy else ""
            rows.append([f"{result.title}: {row['strategy']}{chosen}", row["f1_macro_cross_fitted"], row["f1_macro_fitted"]])
    return Section(
        "Threshold selection",
        (
            "Macro F1 on validation. Cross-fitted: each fold decided with thresholds from the other four, over several draws of "
            "the folds where there are few rows; the strategy is chosen by this column.",
            "The strategies that meet a target precision or recall are used on request, and are not chosen by F1.",
        ),
        (Table(("strategy", "cross-fitted", "fitted on all"), rows),),
    )


def _sweep(result: Result) -> Section:
    found = result.validation
    rows = [[f"{threshold:g}", *_decided(found.labels, found.probabilities >= threshold).values()] for threshold in SWEEP]
    points = [
        {"threshold": threshold, "value": value, "metric": name.rpartition("_")[0], "average": name.rpartition("_")[2]}
        for threshold in CURVE
        for name, value in classification.decisions(found.labels, found.probabilities >= threshold).items()
        if name.endswith(("_macro", "_micro"))
    ]
    return Section(
        "One threshold for all",
        (f"{result.title} on validation.",),
        (Table(("threshold", *COMPARED.values()), rows),),
        (Figure("threshold-curves", "Scores over one threshold for all labels, validation", figures.threshold_curves(points)),),
        level=3,
    )


def _decided(labels: np.ndarray, predicted: np.ndarray) -> dict[str, Any]:
    found = classification.decisions(labels, predicted)
    return {name: int(found[name]) if name == "labels_ever_predicted" else found[name] for name in COMPARED}


def _strategies(result: Result) -> Section:
    unseen = [[row["strategy"], *(row[f"{name}_cross_fitted"] for name in COMPARED)] for row in result.comparison]
    for row in unseen:
        row[1 + list(COMPARED).index("labels_ever_predicted")] = int(row[1 + list(COMPARED).index("labels_ever_predicted")])
    coverage = [
        {
            "strategy": row["strategy"],
            **{name: row[f"{name}_cross_fitted"] for name in ("labels_ever_predicted", "labels_per_row")},
        }
        for row in result.comparison
    ]
    chart = figures.label_coverage(coverage, len(result.validation.names))
    return Section(
        "Strategies",
        (f"{result.title} on validation, each row decided by thresholds that have not seen it.",),
        (
            Table(("strategy on unseen rows", *COMPARED.values()), unseen),
            Table(("what speaks", "for it", "against it"), [_verdict(row, result) for row in result.comparison]),
        ),
        (Figure("label-coverage", "Labels that a strategy ever predicts, validation", chart),),
        level=3,
    )


def _verdict(row: dict[str, Any], result: Result) -> list[str]:
    """What follows from the numbers: where it is the best or the worst, what it never predicts, what it loses on unseen rows."""
    scores = {name: [other[f"{name}_cross_fitted"] for other in result.comparison] for name in list(COMPARED)[:4]}
    mine = {name: row[f"{name}_cross_fitted"] for name in scores}
    pros = [f"best {COMPARED[name]} ({mine[name]:.4f})" for name in scores if mine[name] == max(scores[name])]
    cons = [f"lowest {COMPARED[name]} ({mine[name]:.4f})" for name in scores if mine[name] == min(scores[name])]
    never = len(result.validation.names) - int(row["labels_ever_predicted_cross_fitted"])
    cons += [f"never predicts {never} of {len(result.validation.names)} labels"] if never else []
    lost = row["f1_macro_fitted"] - row["f1_macro_cross_fitted"]
    cons += [f"loses {lost:.4f} macro F1 on unseen rows"] if lost > OPTIMISM else []
    pros += [f"holds on unseen rows (loses {max(lost, 0):.4f})"] if lost <= OPTIMISM and len(set(row["values"])) > 1 else []
    pros += ["nothing to fit"] if row["strategy"] == "global-0.5" else []
    pros += (
        [f"at most {row['k']} labels a text"] if row["k"] else ["one number to explain"] if len(set(row["values"])) == 1 else []
    )
    behind = max(scores["f1_macro"]) - mine["f1_macro"]
    cons += [f"{behind:.4f} macro F1 below the best"] if behind > 0 else []
    return [row["strategy"], "; ".join(pros) or "–", "; ".join(cons) or "–"]


def _choice(results: list[Result]) -> Section:
    lines, rows = [], []
    for result in results:
        values, promised = result.figures, result.strategy
        lines.append(
            f"{result.title}: {result.thresholds.strategy}. On test it brings macro F1 from {values['test/at_0.5/f1_macro']:.4f} at "
            f"0.5 to {values['test/f1_macro']:.4f}, micro F1 from {values['test/at_0.5/f1_micro']:.4f} to "
            f"{values['test/f1_micro']:.4f}; cross-fitted validation promised {promised['f1_macro_cross_fitted']:.4f} and "
            f"{promised['f1_micro_cross_fitted']:.4f}."
        )
        rows += [
            {"label": name, "threshold": value, "model": result.title}
            for name, value in zip(result.test.names, result.thresholds.values, strict=True)
        ]
    tests = [[result.title, row["strategy"], *_on_test(result, row)] for result in results for row in result.comparison]
    return Section(
        "The choice and its effect",
        lines,
        (
            Table(
                (
                    "model on test",
                    "strategy",
                    *list(COMPARED.values())[:4],
                    "share of a text's labels kept",
                    "labels ever predicted",
                ),
                tests,
            ),
        ),
        (Figure("label-thresholds", "The threshold of each label", figures.label_thresholds(rows)),),
        level=3,
    )


def _on_test(result: Result, row: dict[str, Any]) -> list[float | int]:
    fitted = Thresholds(row["strategy"], tuple(row["values"]), row["k"])
    labels, predicted = result.test.labels, fitted.apply(result.test.probabilities)
    found = classification.decisions(labels, predicted)
    some = labels.any(axis=1)
    # What a target recall bounds: the mean over the texts of the share of their labels that is found.
    kept = float(((labels & predicted)[some].sum(axis=1) / labels[some].sum(axis=1)).mean()) if some.any() else 1.0
    return [*(found[name] for name in list(COMPARED)[:4]), kept, int(found["labels_ever_predicted"])]


def _precision_recall(result: Result) -> Section:
    test = result.test
    chart = figures.precision_recall(test.names, test.labels, test.probabilities)
    return Section(
        "Precision and recall",
        (f"{result.title} on test. On the page, choose a label to see its curve.",),
        figures=(Figure("precision-recall", "Precision over recall on test, all labels together and each", chart),),
        level=3,
    )


def calibrated(results: list[Result]) -> Section:
    """Brier score, calibration error and reliability before and after the scaling, on the test split."""
    winner = best(results)
    rows: list[list[Cell]] = []
    points: list[dict[str, Any]] = []
    for result in results:
        test = result.test
        for when, probabilities in (("before", result.calibrator.undo(test.probabilities)), ("after", test.probabilities)):
            rows.append(
                [
                    f"{result.title}, {when}",
                    calibration.brier(test.labels, probabilities),
                    calibration.error(test.labels, probabilities),
                ]
            )
            if result is winner:
                points += [
                    {"probability": row["predicted"], "observed": row["observed"], "count": row["count"], "series": when}
                    for row in calibration.reliability(test.labels, probabilities)
                ]
    compared: list[list[Cell]] = [
        [row["method"], row["log_loss"], row["brier"], row["calibration_error"]] for row in _scalings(winner)
    ]
    return Section(
        "Calibration",
        (
            "A scaling of the logits is fitted on validation and folded into the last layer: for "
            f"{winner.profile} {winner.calibrator.method}, which had the least log loss on validation rows that it had not seen.",
        ),
        (
            Table(("scaling, cross-fitted on validation", "log loss", "Brier score", "calibration error"), compared),
            Table(("calibration on test", "Brier score", "calibration error"), rows),
        ),
        (
            Figure(
                "reliability", f"Reliability of {winner.title} on test, before and after scaling", figures.reliability(points)
            ),
        ),
    )


def _scalings(result: Result) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = result.training["calibration"]["comparison"]
    return rows
