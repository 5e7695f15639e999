"""Tuning: fits and chooses thresholds on a scored validation split."""

from __future__ import annotations

from pathlib import Path

from goemotions import defaults, usage
from goemotions.errors import DataError
from goemotions.evaluation.predictions import Predictions
from goemotions.metrics import cross_fitting, thresholds
from goemotions.metrics.thresholds import ThresholdsFile
from goemotions.storage import store


@store.raise_on_full_disk
def tune(
    validation: Path,
    output: Path,
    *,
    strategy: str = defaults.THRESHOLD_STRATEGY,
    target_precision: float = defaults.TARGET_PRECISION,
    target_recall: float = defaults.TARGET_RECALL,
) -> ThresholdsFile:
    """Fits every threshold strategy on a scored validation split and writes the chosen one as ``thresholds.json``.

    ``strategy``, ``target_precision`` and ``target_recall`` are those of ``cross_fitting.choose``.

    Returns:
        The content of ``thresholds.json``.

    Raises:
        DataError: the folder holds no Predictions, or those of another split.
        ModelError: there is no such strategy, or a target is not between 0 and 1.
    """
    predictions = Predictions.read(validation)
    if predictions.split != "validation":
        raise DataError(f"thresholds are fitted on validation, not on {predictions.split}: pass the validation Predictions")
    chosen, comparison = cross_fitting.choose(
        predictions.labels, predictions.probabilities, strategy, target_precision, target_recall
    )
    content = ThresholdsFile(chosen, predictions.names, comparison, predictions.split, predictions.engine, predictions.digest)
    output.mkdir(parents=True, exist_ok=True)
    content.write(output / thresholds.FILE)
    usage.end_step(output, "tune-thresholds")
    return content
