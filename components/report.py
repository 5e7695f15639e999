"""Write the performance report."""

from kfp.dsl import HTML, Artifact, Dataset, Input, Markdown, Model, Output

from components import component


@component
def report(
    dataset: Input[Dataset],
    models: Input[list[Model]],
    onnx: Input[list[Model]],
    gpu_validation: Input[list[Artifact]],
    gpu_test: Input[list[Artifact]],
    gpu_thresholds: Input[list[Artifact]],
    cpu_validation: Input[list[Artifact]],
    cpu_test: Input[list[Artifact]],
    cpu_thresholds: Input[list[Artifact]],
    registered: Input[Artifact],
    pipeline_run: str,
    model_name: str,
    store: str,
    latency_budget_ms: float,
    quality_tolerance: float,
    cpu_hour_price: float,
    gpu_hour_price: float,
    mlflow_address: str,
    commit: str,
    folder: Output[Artifact],
    page: Output[HTML],
    text: Output[Markdown],
) -> None:
    """Writes the report as a folder, its page and text as artifacts for the UI, and logs all of it to MLflow."""
    import shutil
    from pathlib import Path

    from goemotions import usage
    from goemotions.evaluation import drift
    from goemotions.registry import costs, registered_versions, tracking
    from goemotions.registry.candidates import collect
    from goemotions.report import performance
    from goemotions.storage import layout

    candidates = collect(
        models, onnx, {"gpu": (gpu_validation, gpu_test, gpu_thresholds), "cpu": (cpu_validation, cpu_test, cpu_thresholds)}
    )
    versions = registered_versions.read(Path(registered.path))
    used = costs.of_run(Path(dataset.path), candidates, Path(registered.path))
    prices = costs.Prices(cpu_hour_price, gpu_hour_price)
    written = performance.write(
        Path(dataset.path),
        candidates,
        Path(folder.path),
        versions,
        model_name=model_name,
        latency_budget_ms=latency_budget_ms,
        quality_tolerance=quality_tolerance,
        used=used,
        prices=prices,
        drift_report=drift.find_report(layout.monitoring(store, model_name)),
        commit=commit,
    )
    shutil.copyfile(written / "report.html", page.path)
    with tracking.step(pipeline_run) as run:
        run.log_folder(written, "report")
        link = run.link(mlflow_address)
        costs.log_costs(pipeline_run, [*used, costs.Step("report", "", usage.so_far())], prices)
    Path(text.path).write_text(f"[This run in MLflow]({link})\n\n{(written / 'report.md').read_text()}")
    folder.metadata["mlflow"] = link
