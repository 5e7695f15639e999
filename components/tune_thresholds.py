"""Fit every threshold strategy on validation and choose one."""

from kfp import dsl
from kfp.dsl import Artifact, Input, Output

from components import IMAGE


@dsl.component(base_image=IMAGE, packages_to_install=[], install_kfp_package=False)
def tune_thresholds(
    validation: Input[Artifact], strategy: str, target_precision: float, target_recall: float, thresholds: Output[Artifact]
) -> None:
    """Writes a folder with ``thresholds.json``."""
    from pathlib import Path

    from goemotions.evaluation.tuning import tune

    content = tune(
        Path(validation.path),
        Path(thresholds.path),
        strategy=strategy,
        target_precision=target_precision,
        target_recall=target_recall,
    )
    chosen = content.chosen
    thresholds.metadata.update(strategy=chosen.thresholds.strategy, f1_macro_cross_fitted=chosen.cross_fitted["f1_macro"])
