"""Score validation and test once with one engine."""

from kfp import dsl
from kfp.dsl import Artifact, ClassificationMetrics, Dataset, Input, Metrics, Model, Output

from components import IMAGE


@dsl.component(base_image=IMAGE, packages_to_install=[], install_kfp_package=False)
def evaluate(
    dataset: Input[Dataset],
    model: Input[Model],
    onnx: Input[Model],
    engine: str,
    validation: Output[Artifact],
    test: Output[Artifact],
    metrics: Output[Metrics],
    roc: Output[ClassificationMetrics],
) -> None:
    """Writes a separate folder of Predictions per split, so that a step that selects can get validation only."""
    from pathlib import Path

    from goemotions.evaluation import evaluate as evaluation

    outputs = {"validation": Path(validation.path), "test": Path(test.path)}
    values = evaluation.evaluate(Path(dataset.path), Path(model.path), Path(onnx.path), engine, outputs)
    for name, value in values.items():
        metrics.log_metric(name, value)
    roc.log_roc_curve(*evaluation.roc(Path(validation.path)))
