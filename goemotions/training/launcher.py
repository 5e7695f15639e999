"""The train step: starts one process per GPU and logs the training to MLflow."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch

from goemotions import addresses
from goemotions.data.dataset import load_dataset
from goemotions.errors import BadArgument
from goemotions.models import devices, profiles
from goemotions.models.records import RunRecord, TrainingRecord
from goemotions.registry import tracking
from goemotions.training import distributed, hardware, trained_teachers, trainer
from goemotions.training.options import TrainOptions

log = logging.getLogger(__name__)
Record = TypeVar("Record", bound=RunRecord)


def run(dataset: Path, output: Path, profile: str, options: TrainOptions) -> TrainingRecord:
    """Trains with ``trainer.train``, in one process per GPU, and logs to MLflow if the options name a pipeline run.

    Raises:
        BadAddress: the weights or the checkpoints have an unknown form.
        DeviceError: this process was given a GPU and cannot use it.
        ModelError, TrainingError, Interrupted: as ``trainer.train`` does; with several processes TrainingError if any of them fails.
    """
    addresses.location(options.weights, "the weights")
    addresses.location(options.checkpoint_location, "the checkpoints")
    train = functools.partial(trainer.train, dataset, output, profile, options)
    return _launch(train, profile, dataset, options)


def teach(dataset: Path, output: Path, teacher: str, options: TrainOptions, store: str = "") -> RunRecord:
    """Trains one teacher with ``trainer.teach``, in one process per GPU, and logs to MLflow if the options name a pipeline run.

    ``teacher`` is its name, such as ``mpnet@1``, or the location of a model that is trained, which only scores
    (``trained_teachers.teach``).

    Raises:
        BadArgument: the name is that of several teachers.
        BadAddress, DeviceError, ModelError, TrainingError, Interrupted: as for ``run``.
    """
    addresses.location(options.weights, "the weights")
    named = profiles.teachers([teacher])
    if len(named) != 1:
        raise BadArgument(f"{teacher} names {len(named)} teachers: a step trains one, such as {named[0]}")
    if named[0].location:
        return trained_teachers.teach(dataset, output, named[0].location, options, store)
    train = functools.partial(trainer.teach, dataset, output, named[0], options, store)
    return _launch(train, str(named[0]), dataset, options)


def _launch(train: Callable[..., Record], network: str, dataset: Path, options: TrainOptions) -> Record:
    """Trains in as many processes as the options or the GPUs say."""
    count = options.processes or (torch.cuda.device_count() if devices.resolve() == "cuda" else 1)
    log.info("training on %s", hardware.describe())
    start = functools.partial(_logged, train, network, dataset, options)
    return start() if count == 1 else distributed.launch(count, start)


def _logged(train: Callable[..., Record], network: str, dataset: Path, options: TrainOptions) -> Record:
    """Trains in this process. The first one logs recipe, metrics and duration to the run of the network, if there is a pipeline run."""
    if not (options.pipeline_run and distributed.is_first()):
        return train()
    info = load_dataset(dataset, splits=())[1]
    with tracking.step(options.pipeline_run, network) as run:
        run.log_dataset(info)
        record = train(on_epoch=lambda epoch, metrics: run.log_metrics(metrics, epoch))
        run.log_missing(record.history)
        measured = {key: getattr(record, key) for key in ("seed", "precision", "processes")}
        run.log_parameters({**record.profile, **measured, "dataset_digest": info["digest"]})
        run.log_metrics({"best_epoch": record.best_epoch, "train_seconds": record.seconds})
    return record
