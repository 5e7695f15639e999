"""Write a model as ONNX, in fp32 and int8."""

from kfp.dsl import Dataset, Input, Metrics, Model, Output

from components import component


@component
def export(
    dataset: Input[Dataset], model: Input[Model], profile: str, pipeline_run: str, onnx: Output[Model], metrics: Output[Metrics]
) -> None:
    """Writes an Onnx folder with parity and latency, which are logged to the model's MLflow run, too."""
    from dataclasses import asdict
    from pathlib import Path

    from goemotions.models.export import export as write
    from goemotions.registry import model_run

    records = write(Path(dataset.path), Path(model.path), Path(onnx.path))
    for engine, record in records.items():
        for name, value in asdict(record).items():
            if value is not None:
                metrics.log_metric(f"{engine}/{name}", value)
    model_run.log_export(pipeline_run, profile, records)
