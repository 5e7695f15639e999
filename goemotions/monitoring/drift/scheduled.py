"""What the pipeline ``monitoring`` does: a drift report of a served version, in MLflow and where ``retraining`` reads it."""

from __future__ import annotations

import re
from pathlib import Path

from goemotions import defaults
from goemotions.errors import BadArgument
from goemotions.evaluation.drift import DriftReport
from goemotions.monitoring.drift import monitor, prometheus_series, server_scrapes
from goemotions.registry import bundle, tracking
from goemotions.registry.references import as_folder
from goemotions.report import drift
from goemotions.storage import layout

# Of the MLflow run.
DRIFTED_TAG, SUMMARY_TAG, NOT_COMPARED = "monitoring.drifted", "monitoring.summary", "not compared"
# In MLflow a name has at most 250 characters, of a few kinds, and no part that a path would leave out.
NOT_IN_METRICS, LONGEST_METRIC = re.compile(r"[^\w.\- ]|^\.+$"), 200


def run(
    pipeline_run: str,
    output: Path,
    *,
    server: str = "",
    prometheus: str = "",
    service: str = "",
    scored: str = "",
    window: str = defaults.MONITORING_WINDOW,
    version: str = defaults.REFERENCE,
    model_name: str = defaults.MODEL_NAME,
    store: str = defaults.STORE,
) -> DriftReport:
    """Compares the traffic of a version with its reference, and keeps the report, if there was a text to compare.

    Args:
        pipeline_run: id of the pipeline run, whose MLflow run gets the report.
        output: the folder to write ``drift.json`` and its page to.
        server: address of a predictor server, which counts since its start.
        prometheus: address of a Prometheus, which has counted over the window.
        service: with a Prometheus the InferenceService; empty for all.
        scored: Parquet that `goemotions score` wrote.
        window: how much of the time until now, such as ``1d``.
        version: alias, version number or location of the bundle.
        model_name: name of the registered model.
        store: location that has ``monitoring/`` below it, for the newest report.

    Raises:
        BadArgument: none or several of the server, the Prometheus and the scored files are given.
        DataError, ModelError, MonitoringUnavailable, StorageError, TrackingError: the traffic, the bundle, the store or MLflow fail.
    """
    if sum(map(bool, (server, prometheus, scored))) != 1:
        raise BadArgument("give one of server, prometheus and scored: the traffic that is compared with the bundle")
    with as_folder(version, model_name) as (folder, number):
        loaded = bundle.load(folder, is_verified=True)
        if scored:
            report = monitor.of_scored(loaded, scored, model=model_name, version=number)
        else:
            counted = (
                server_scrapes.window(server, "", server_scrapes.scrape(server))
                if server
                else prometheus_series.window(prometheus, window, service)
            )
            report = monitor.of_window(loaded, counted, model=model_name, version=number)
    monitor.write(report, str(output))
    # Without a text, what was compared before stays the newest report, on which the next training is decided.
    if report.rows:
        monitor.write(report, layout.monitoring(store, model_name))
    with tracking.step(pipeline_run) as logged:
        drifted = str(report.drifted).lower() if report.rows else NOT_COMPARED
        logged.set_tags({"monitoring.version": number, DRIFTED_TAG: drifted, SUMMARY_TAG: drift.summary(report)})
        logged.log_metrics(metrics(report))
        logged.log_folder(output, "drift")
    return report


def metrics(report: DriftReport) -> dict[str, float]:
    """The figures of a report by name: texts, alarms, and per label the rate of predictions and the expected F1."""
    per_label = {
        f"drift/{kind}/{_metric_name(row.label, position)}": value
        for position, row in enumerate(report.quality)
        for kind, value in (("rate", row.rate), ("expected_f1", row.f1))
    }
    return {"drift/texts": report.rows, "drift/alarms": len(report.alarms), "drift/tests": len(report.tests), **per_label}


def _metric_name(label: str, position: int) -> str:
    """A label as MLflow accepts it in the name of a metric; one that is changed gets its position, as two may become alike."""
    name = NOT_IN_METRICS.sub("_", label)[:LONGEST_METRIC]
    return name if name == label else f"{name}_{position}"
