"""Compare the traffic of a served version with its reference."""

from kfp.dsl import HTML, Artifact, Metrics, Output

from components import component


@component
def monitor(
    server: str,
    prometheus: str,
    service: str,
    scored: str,
    window: str,
    version: str,
    model_name: str,
    store: str,
    pipeline_run: str,
    report: Output[Artifact],
    page: Output[HTML],
    metrics: Output[Metrics],
) -> None:
    """Writes the drift report, logs it to MLflow, and keeps it in the store, where ``decide_retraining`` reads it."""
    import shutil
    from pathlib import Path

    from goemotions.monitoring.drift import monitor as monitoring
    from goemotions.monitoring.drift import scheduled
    from goemotions.report import drift

    written = scheduled.run(
        pipeline_run,
        Path(report.path),
        server=server,
        prometheus=prometheus,
        service=service,
        scored=scored,
        window=window,
        version=version,
        model_name=model_name,
        store=store,
    )
    shutil.copyfile(Path(report.path) / monitoring.PAGE, page.path)
    for name, value in scheduled.metrics(written).items():
        metrics.log_metric(name, value)
    print(f"monitoring: {drift.summary(written)}")
