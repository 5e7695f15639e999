"""Options of a training: each with its default, and the help text that the command line and the pipeline show."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from goemotions import defaults

PRECISIONS = ("auto", "fp32", "bf16")


def _option(default: Any, help: str, **metadata: Any) -> Any:
    return field(default=default, metadata={"help": help, **metadata})


@dataclass(frozen=True)
class TrainOptions:
    """How a profile is trained, where its checkpoints go, and by how many processes."""

    weights: str = _option("", "The encoder's files: a folder or s3://; empty for the profile's own.", type="location")
    settings: Mapping[str, Any] = field(
        default_factory=dict,
        metadata={
            "help": "A hyperparameter of the profile to change, such as learning_rate=1e-4. Repeatable.",
            "flag": "--set",
        },
    )
    epochs: int = _option(defaults.EPOCHS, "Number of epochs; 0 for the profile's own.")
    seed: int = _option(defaults.SEED, "Seed of the head's initial weights, the order of the rows and the dropout.")
    precision: str = _option(
        defaults.PRECISION, "fp32, bf16, or auto for bf16 if the hardware computes in it.", choices=PRECISIONS
    )
    checkpoint_location: str = _option(
        "",
        "Folder or s3:// for checkpoints; a run resumes from its newest one. Empty for none.",
        flag="--checkpoints",
        type="location",
    )
    checkpoint_minutes: float = _option(
        defaults.CHECKPOINT_MINUTES,
        "Minutes between two checkpoints; each epoch ends with one, too. 0 for one after each step.",
    )
    teachers: str = _option(
        "", "Teachers whose scores the dataset must hold, such as mpnet:2+minilm:3; empty: those that it holds, if any."
    )
    transfer_texts: float = _option(
        0.0, "Texts that teachers label for their students, made of those of train; per text of train. 0 for none."
    )
    pipeline_run: str = _option("", "Id of the pipeline run to log to MLflow under; empty for no logging.", flag="--run")
    processes: int = _option(0, "Processes that train together; 0 for one per GPU, or one without a GPU.")

    def hyperparameters(self) -> dict[str, Any]:
        """The settings, and the number of epochs if it is given."""
        return {**self.settings, **({"epochs": self.epochs} if self.epochs else {})}
