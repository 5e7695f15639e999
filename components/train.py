"""Fine-tune one model profile."""

from typing import Any

from kfp.dsl import Dataset, Input, Model, Output

from components import component


@component
def train(
    dataset: Input[Dataset],
    profile: str,
    weights: dict[str, str],
    settings: dict[str, dict[str, Any]],
    epochs: int,
    seed: int,
    precision: str,
    store: str,
    checkpoint_minutes: float,
    pipeline_run: str,
    teachers: list[str],
    transfer_texts: float,
    model: Output[Model],
) -> None:
    """Writes a Model folder; checkpoints go to the store, below the pipeline run and the profile."""
    from pathlib import Path

    from goemotions.storage import layout, probe
    from goemotions.training import launcher
    from goemotions.training.options import TrainOptions

    # A store that cannot hold the lock of `register` is refused before hours are spent.
    print(probe.run(layout.checkpoints(store, pipeline_run, profile)))
    options = TrainOptions(
        weights=weights.get(profile, ""),
        settings=settings.get(profile, {}),
        epochs=epochs,
        seed=seed,
        precision=precision,
        checkpoint_location=layout.checkpoints(store, pipeline_run, profile),
        checkpoint_minutes=checkpoint_minutes,
        pipeline_run=pipeline_run,
        teachers="+".join(teachers),
        transfer_texts=transfer_texts,
    )
    record = launcher.run(Path(dataset.path), Path(model.path), profile, options)
    model.metadata.update(profile=profile, best_epoch=record.best_epoch, dataset_digest=record.dataset_digest)
