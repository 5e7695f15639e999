"""Choose the winners and register them."""

from kfp.dsl import Artifact, Dataset, Input, Model, Output

from components import component


@component
def register(
    dataset: Input[Dataset],
    models: Input[list[Model]],
    onnx: Input[list[Model]],
    gpu_validation: Input[list[Artifact]],
    gpu_test: Input[list[Artifact]],
    gpu_thresholds: Input[list[Artifact]],
    cpu_validation: Input[list[Artifact]],
    cpu_test: Input[list[Artifact]],
    cpu_thresholds: Input[list[Artifact]],
    store: str,
    pipeline_run: str,
    model_name: str,
    latency_budget_ms: float,
    quality_tolerance: float,
    auto_promote: bool,
    keep_checkpoints: bool,
    cpu_hour_price: float,
    gpu_hour_price: float,
    commit: str,
    image: str,
    registered: Output[Artifact],
) -> None:
    """Writes ``registered.json``: per variant the profile, version, bundle, alias, and the gate's verdict."""
    from pathlib import Path

    from goemotions.registry import registered_versions, registration
    from goemotions.registry.candidates import collect
    from goemotions.registry.costs import Prices

    candidates = collect(
        models, onnx, {"gpu": (gpu_validation, gpu_test, gpu_thresholds), "cpu": (cpu_validation, cpu_test, cpu_thresholds)}
    )
    versions = registration.register(
        Path(dataset.path),
        candidates,
        store=store,
        pipeline_run=pipeline_run,
        model_name=model_name,
        latency_budget_ms=latency_budget_ms,
        quality_tolerance=quality_tolerance,
        auto_promote=auto_promote,
        keep_checkpoints=keep_checkpoints,
        prices=Prices(cpu_hour_price, gpu_hour_price),
        tags={"commit": commit, "image": image},
    )
    registered_versions.write(Path(registered.path), versions)
    registered.metadata.update({name: f"{version['profile']} v{version['version']}" for name, version in versions.items()})
