"""Tuning: fits and chooses thresholds on a scored validation split."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from goemotions import defaults
from goemotions.errors import DataError
from goemotions.evaluation.predictions import Predictions
from goemotions.metrics import thresholds
from goemotions.storage import store


@store.raise_on_full_disk
def tune(
    validation: Path,
    output: Path,
    *,
    strategy: str = defaults.THRESHOLD_STRATEGY,
    target_precision: float = defaults.TARGET_PRECISION,
    target_recall: float = defaults.TARGET_RECALL,
) -> dict[str, Any]:
    """Fits every threshold strategy on a scored validation split and writes the chosen one as ``thresholds.json``.

    ``strategy``, ``target_precision`` and ``target_recall`` are those of ``thresholds.choose``.

    Returns:
        The content of ``thresholds.json``.

    Raises:
        DataError: the folder holds no Predictions, or those of another split.
        ModelError: there is no such strategy, or a target is not between 0 and 1.
    """
    predictions = Predictions.read(validation)
    if predictions.split != "validation":
        raise DataError(f"thresholds are fitted on validation, not on {predictions.split}: pass the validation Predictions")
    chosen, comparison = thresholds.choose(
        predictions.labels, predictions.probabilities, strategy, target_precision, target_recall
    )
    score = next(row["f1_macro_cross_fitted"] for row in comparison if row["strategy"] == chosen.strategy)
    output.mkdir(parents=True, exist_ok=True)
    thresholds.write(
        output / thresholds.FILE,
        chosen,
        predictions.names,
        comparison,
        split=predictions.split,
        engine=predictions.engine,
        digest=predictions.digest,
        f1_macro_cross_fitted=score,
    )
    return thresholds.read(output / thresholds.FILE)[1]
