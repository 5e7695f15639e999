"""How far the probabilities can be trusted: Brier score, calibration error and reliability, before and after calibration."""

from __future__ import annotations

import numpy as np

from goemotions.metrics import calibration
from goemotions.report import figures
from goemotions.report.document import Cell, Figure, Section, Table
from goemotions.report.result import Result, table_of


def section(results: list[Result], winner: Result) -> Section:
    rows: list[list[Cell]] = []
    for result in results:
        labels = result.test.labels
        for when, probabilities in _before_and_after(result).items():
            scores = calibration.brier(labels, probabilities), calibration.error(labels, probabilities)
            rows.append([f"{result.title}, {when}", *scores])
    points = [
        {"probability": row["predicted"], "observed": row["observed"], "count": row["count"], "series": when}
        for when, probabilities in _before_and_after(winner).items()
        for row in calibration.reliability(winner.test.labels, probabilities)
    ]
    caption = f"Reliability of {winner.title} on test, before and after calibration"
    return Section(
        "Calibration",
        (
            "The calibration is fitted on validation and folded into the last layer. "
            f"For {winner.profile} it is {winner.training.calibration.method}, which had the lowest log loss on validation, "
            "cross-fitted.",
        ),
        (
            table_of(
                winner.training.calibration.comparison,
                ("method", "log_loss", "brier", "calibration_error"),
                first="calibration, cross-fitted on validation",
            ),
            Table(("calibration on test", "Brier score", "calibration error"), rows),
        ),
        (Figure("reliability", caption, figures.reliability(points)),),
    )


def _before_and_after(result: Result) -> dict[str, np.ndarray]:
    """Probabilities on test, float [n, labels], without and with the calibration."""
    after = result.test.probabilities
    return {"before": result.training.calibration.undo(after), "after": after}
