"""Train one teacher."""

from typing import Any

from kfp.dsl import Artifact, Dataset, Input, Output

from components import component


@component
def teach(
    dataset: Input[Dataset],
    teacher: str,
    weights: dict[str, str],
    settings: dict[str, dict[str, Any]],
    precision: str,
    store: str,
    checkpoint_minutes: float,
    transfer_texts: float,
    pipeline_run: str,
    scores: Output[Artifact],
) -> None:
    """Writes the teacher's scores of train and the transfer set, or copies them from the store, which keeps them for later runs."""
    from pathlib import Path

    from goemotions.models import profiles
    from goemotions.training import launcher
    from goemotions.training.options import TrainOptions

    profile = profiles.teachers([teacher])[0].profile
    options = TrainOptions(
        weights=weights.get(profile, ""),
        settings=settings.get(profile, {}),
        precision=precision,
        checkpoint_minutes=checkpoint_minutes,
        transfer_texts=transfer_texts,
        pipeline_run=pipeline_run,
    )
    record = launcher.teach(Path(dataset.path), Path(scores.path), teacher, options, store)
    scores.metadata.update(teacher=teacher, parameters=record.parameters, seconds=record.seconds)
