"""Fit every threshold strategy on validation and choose one."""

from kfp.dsl import Artifact, Input, Output

from components import component


@component
def tune_thresholds(
    validation: Input[Artifact],
    strategy: str,
    target_precision: float,
    target_recall: float,
    variant: str,
    profile: str,
    pipeline_run: str,
    thresholds: Output[Artifact],
) -> None:
    """Writes a folder with ``thresholds.json``; its scores are logged to the model's MLflow run, too."""
    from pathlib import Path

    from goemotions.evaluation.tuning import tune
    from goemotions.registry import model_run

    content = tune(
        Path(validation.path),
        Path(thresholds.path),
        strategy=strategy,
        target_precision=target_precision,
        target_recall=target_recall,
    )
    chosen = content.chosen
    thresholds.metadata.update(strategy=chosen.thresholds.strategy, f1_macro_cross_fitted=chosen.cross_fitted["f1_macro"])
    model_run.log_thresholds(pipeline_run, profile, variant, content)
