"""What the steps log to the MLflow run of a model: metrics as ``<variant>/<split>/<metric>``, for every model, winner or not.

A step that is retried changes nothing, or replaces what it logged before. If MLflow cannot be reached, the step goes on: the
step ``register`` logs the metrics of all models again.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import asdict

from goemotions.errors import TrackingError
from goemotions.metrics.thresholds import ThresholdsFile
from goemotions.models.records import ExportRecord
from goemotions.registry import tracking

log = logging.getLogger(__name__)


def log_export(pipeline_run: str, profile: str, records: Mapping[str, ExportRecord]) -> None:
    """Size, latency and difference from torch, by engine."""
    values = {f"{engine}/{name}": value for engine, record in records.items() for name, value in asdict(record).items()}
    _log(pipeline_run, profile, {name: value for name, value in values.items() if value is not None}, {})


def log_evaluation(pipeline_run: str, profile: str, variant: str, metrics: Mapping[str, float], evaluated: str) -> None:
    """The metrics of both splits at 0.5, and the engine, device and precision that computed the scores."""
    values = {f"{variant}/{name}/at_0.5": value for name, value in metrics.items()}
    _log(pipeline_run, profile, values, {f"{variant}.evaluated": evaluated})


def log_thresholds(pipeline_run: str, profile: str, variant: str, content: ThresholdsFile) -> None:
    """The chosen strategy, and its cross-fitted metrics on validation."""
    fitted = {f"{variant}/validation/{name}/cross_fitted": value for name, value in content.chosen.cross_fitted.items()}
    _log(pipeline_run, profile, fitted, {f"{variant}.threshold_strategy": content.thresholds.strategy})


def _log(pipeline_run: str, profile: str, metrics: Mapping[str, float], tags: Mapping[str, str]) -> None:
    if not pipeline_run:
        return
    try:
        tracking.get_or_create_run(pipeline_run, profile).log_once(metrics, tags)
    except TrackingError as error:
        log.warning("the metrics of %s are not in MLflow yet, the step register logs them: %s", profile, error)
