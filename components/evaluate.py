"""Score validation and test once with one engine."""

from kfp.dsl import Artifact, ClassificationMetrics, Dataset, Input, Metrics, Model, Output

from components import component


@component
def evaluate(
    dataset: Input[Dataset],
    model: Input[Model],
    onnx: Input[Model],
    engine: str,
    variant: str,
    profile: str,
    pipeline_run: str,
    validation: Output[Artifact],
    test: Output[Artifact],
    metrics: Output[Metrics],
    roc: Output[ClassificationMetrics],
) -> None:
    """Writes a separate folder of Predictions per split, so that a step that selects can get validation only.

    The metrics are logged to the model's MLflow run, too.
    """
    from pathlib import Path

    from goemotions.evaluation import evaluate as evaluation
    from goemotions.evaluation.predictions import Predictions
    from goemotions.metrics import classification
    from goemotions.registry import model_run

    outputs = {"validation": Path(validation.path), "test": Path(test.path)}
    values = evaluation.evaluate(Path(dataset.path), Path(model.path), Path(onnx.path), engine, outputs)
    for name, value in values.items():
        metrics.log_metric(name, value)
    scored = Predictions.read(Path(validation.path))
    validation.metadata["evaluated"] = test.metadata["evaluated"] = str(scored.computation)
    model_run.log_evaluation(pipeline_run, profile, variant, values, str(scored.computation))
    roc.log_roc_curve(*classification.roc_curve(scored.labels, scored.probabilities))
