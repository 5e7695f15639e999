"""Training: fine-tunes a profile on a Dataset and writes a Model folder. ``launcher`` calls it, ``loop`` has the steps and epochs."""

from __future__ import annotations

import dataclasses
import functools
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import transformers

from goemotions.data.dataset import load_dataset, taxonomy_of
from goemotions.data.labels import SOFT_LABELS
from goemotions.data.taxonomy import Taxonomy
from goemotions.metrics import calibration
from goemotions.models import classifier, engines, profiles
from goemotions.models.classifier import EncoderFiles
from goemotions.models.profiles import Profile
from goemotions.models.records import CalibrationRecord, TrainingRecord
from goemotions.models.tokenizer import TextEncoder
from goemotions.storage import store
from goemotions.training import distillation, distributed, hardware, losses
from goemotions.training.batches import TokenizedSplit
from goemotions.training.loop import CheckpointPlan, OnEpoch, TrainingLoop, ignore_epoch
from goemotions.training.options import TrainOptions

CHECKPOINT_FORMAT = 3


@dataclasses.dataclass(frozen=True)
class Material:
    """What a training starts from: the encoder's files, its tokenizer, and the tokenized splits."""

    files: EncoderFiles
    taxonomy: Taxonomy
    digest: str
    tokenizer: transformers.PreTrainedTokenizerBase
    encoder: TextEncoder
    train: TokenizedSplit
    validation: TokenizedSplit


@store.raise_on_full_disk
def train(
    dataset: Path,
    output: Path,
    profile_name: str,
    options: TrainOptions = TrainOptions(),  # noqa: B008 - it is frozen
    on_epoch: OnEpoch = ignore_epoch,
) -> TrainingRecord:
    """Fine-tunes a profile in this process (or each of several) and writes a Model folder; see ``launcher.run`` for the whole step.

    Args:
        dataset: a Dataset folder; its test split is not opened.
        output: the Model folder to write.
        profile_name: a name of ``profiles.PROFILES``.
        options: how it is trained.
        on_epoch: called with the epoch (from 1) and its metrics.

    Returns:
        The content of ``training.json``.

    Raises:
        ModelError: there is no such profile or hyperparameter, or the weights do not fit.
        TrainingError: the loss is not finite, or memory runs out.
        Interrupted: SIGTERM or SIGINT; a checkpoint is written first.
    """
    profile = profiles.get(profile_name, options.hyperparameters())
    options = dataclasses.replace(options, precision=hardware.resolve_precision(options.precision))
    with load(dataset, profile, options.weights) as material, hardware.memory_errors(), stop_signal() as stopped:
        fit = functools.partial(_fit, material, options, stopped)
        smoothed = losses.smooth(material.train.labels, profile.hyperparameters.label_smoothing)
        targets, teachers = distillation.teach(
            fit, profile, TokenizedSplit(material.train.rows, smoothed), options.seed, options.checkpoint_location
        )
        loop = fit(profile, options.seed, targets, options.checkpoint_location, on_epoch)
        run = loop.record()
        record = TrainingRecord(
            **vars(run) | {"seconds": run.seconds + sum(teacher.seconds for teacher in teachers)},
            weights=options.weights or f"{profile.encoder.base}@{profile.encoder.revision}",
            dataset_digest=material.digest,
            max_length=material.encoder.max_length,
            teachers=teachers,
            calibration=_calibrate(loop, material.validation),
        )
        if distributed.is_first():
            classifier.save_classifier(output, loop.classifier, material.tokenizer, dataclasses.asdict(record))
    return record


@contextmanager
def load(dataset: Path, profile: Profile, weights: str = "") -> Iterator[Material]:
    """Reads and tokenizes the train and validation splits; the encoder's files are there for as long as the block lasts."""
    splits, info = load_dataset(dataset, ("train", "validation"))
    taxonomy = taxonomy_of(info)
    with classifier.encoder_files(profile, weights) as files:
        tokenizer = classifier.load_tokenizer(profile, files)
        encoder = TextEncoder(tokenizer.backend_tokenizer, profile.hyperparameters.max_length, tokenizer.pad_token_id)
        train, validation = (
            TokenizedSplit(
                [item.ids for item in encoder.encode(splits[name]["text"][:])],
                # Metrics need labels; training learns from the shares of raters where the data has them.
                np.asarray(splits[name][SOFT_LABELS][:], dtype=np.float32)
                if name == "train" and SOFT_LABELS in splits[name].column_names
                else taxonomy.multi_hot(splits[name]["labels"][:]).astype(np.float32),
            )
            for name in ("train", "validation")
        )
        yield Material(files, taxonomy, info["digest"], tokenizer, encoder, train, validation)


def _fit(
    material: Material,
    options: TrainOptions,
    stopped: threading.Event,
    profile: Profile,
    seed: int,
    targets: TokenizedSplit,
    location: str,
    on_epoch: OnEpoch = ignore_epoch,
) -> TrainingLoop:
    """Builds one network, student or teacher, and trains it."""
    network = classifier.build_classifier(profile, material.taxonomy, weights=material.files, seed=seed)
    if profile.hyperparameters.init_bias_from_frequency:
        classifier.init_bias_from_frequency(network, material.train.labels)
    fingerprint = {
        "digest": material.digest,
        "weights": options.weights,
        "seed": seed,
        "precision": options.precision,
        "format": CHECKPOINT_FORMAT,
        **profile.describe(),
    }
    # Patience decides when a training ends, not how it goes on; older checkpoints lack it.
    del fingerprint["patience"]
    plan = CheckpointPlan(location, options.checkpoint_minutes, fingerprint)
    loop = TrainingLoop(profile, network, material.encoder, seed, options.precision, plan)
    loop.fit(targets, material.validation, on_epoch, stopped)
    return loop


def _calibrate(loop: TrainingLoop, validation: TokenizedSplit) -> CalibrationRecord:
    """Chooses a calibration on validation and folds it into the last layer."""
    calibrator, comparison = distributed.on_first(
        lambda: calibration.choose(validation.labels > 0, engines.logits(loop.engine(), validation.rows))
    )
    classifier.fold_calibration(loop.classifier, calibrator)
    return CalibrationRecord(**dataclasses.asdict(calibrator), comparison=comparison)


@contextmanager
def stop_signal() -> Iterator[threading.Event]:
    """An event that SIGTERM or SIGINT sets, so that training stops between two steps; a preempted pod gets SIGTERM."""
    stopped = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stopped
        return
    before = {number: signal.signal(number, lambda *_: stopped.set()) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stopped
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
