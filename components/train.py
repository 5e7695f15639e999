"""Fine-tune one model profile."""

from typing import Any

from kfp import dsl
from kfp.dsl import Dataset, Input, Model, Output

from components import IMAGE


@dsl.component(base_image=IMAGE, packages_to_install=[], install_kfp_package=False)
def train(
    dataset: Input[Dataset],
    profile: str,
    weights: dict[str, str],
    settings: dict[str, dict[str, Any]],
    epochs: int,
    seed: int,
    precision: str,
    store: str,
    checkpoint_steps: int,
    pipeline_run: str,
    model: Output[Model],
) -> None:
    """Writes a Model folder; checkpoints go to the store, below the pipeline run and the profile."""
    from pathlib import Path

    from goemotions import storage, tracking, training

    with tracking.step(pipeline_run, profile) as run:
        facts = training.train(
            Path(dataset.path),
            Path(model.path),
            profile,
            weights=weights.get(profile, ""),
            settings=settings.get(profile),
            epochs=epochs,
            seed=seed,
            precision=precision,
            checkpoint_location=storage.join(store, "checkpoints", pipeline_run, profile),
            checkpoint_steps=checkpoint_steps,
            on_epoch=lambda epoch, values: run.log_metrics(values, epoch),
        )
        run.log_parameters(
            {**facts["profile"], "seed": seed, "precision": facts["precision"], "dataset_digest": facts["dataset_digest"]}
        )
        run.log_metrics({"best_epoch": facts["best_epoch"], "train_seconds": facts["seconds"]})
    model.metadata.update(profile=profile, best_epoch=facts["best_epoch"], dataset_digest=facts["dataset_digest"])
