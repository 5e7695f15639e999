"""Training: fine-tunes a profile on a Dataset and writes a Model folder. ``launcher`` calls it, ``loop`` has the steps and epochs."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import transformers

from goemotions import usage
from goemotions.data.dataset import load_dataset, taxonomy_of
from goemotions.data.labels import SOFT_LABELS
from goemotions.data.taxonomy import Taxonomy
from goemotions.metrics import calibration
from goemotions.models import classifier, encoder_files, engines, profiles
from goemotions.models.encoder_files import EncoderFiles
from goemotions.models.profiles import Profile, Teacher
from goemotions.models.records import CalibrationRecord, RunRecord, TrainingRecord, all_runs
from goemotions.models.tokenizer import TextEncoder
from goemotions.storage import layout, store
from goemotions.training import distillation, distributed, hardware, losses, teachers, transfer
from goemotions.training.batches import TokenizedSplit
from goemotions.training.loop import CheckpointPlan, OnEpoch, TrainingLoop, ignore_epoch
from goemotions.training.options import TrainOptions

log = logging.getLogger(__name__)

CHECKPOINT_FORMAT = 3


@dataclasses.dataclass(frozen=True)
class Material:
    """What a training starts from: the encoder's files, its tokenizer, the texts of train, and the tokenized splits."""

    files: EncoderFiles
    taxonomy: Taxonomy
    digest: str
    tokenizer: transformers.PreTrainedTokenizerBase
    encoder: TextEncoder
    texts: list[str]
    train: TokenizedSplit
    validation: TokenizedSplit

    def targets(self, profile: Profile) -> TokenizedSplit:
        """The rows of train with their labels, smoothed as the profile says."""
        return TokenizedSplit(self.train.rows, losses.smooth(self.train.labels, profile.hyperparameters.label_smoothing))

    def transfer(self, count: int) -> list[list[int]]:
        """Token ids of so many texts of the transfer set."""
        return [item.ids for item in self.encoder.encode(transfer.texts(self.texts, count))] if count else []


@store.raise_on_full_disk
def train(
    dataset: Path,
    output: Path,
    profile_name: str,
    options: TrainOptions = TrainOptions(),  # noqa: B008 - it is frozen
    on_epoch: OnEpoch = ignore_epoch,
) -> TrainingRecord:
    """Fine-tunes a profile in this process (or each of several) and writes a Model folder; see ``launcher.run`` for the whole step.

    The test split of the Dataset is not opened. ``on_epoch`` is called with the epoch (from 1) and its metrics.

    Raises:
        ModelError: there is no such profile or hyperparameter, or the weights do not fit.
        TrainingError: the loss is not finite, or memory runs out.
        Interrupted: SIGTERM or SIGINT; a checkpoint is written first.
    """
    profile = profiles.get(profile_name, options.hyperparameters())
    options = dataclasses.replace(options, precision=hardware.resolve_precision(options.precision))
    with load(dataset, profile, options.weights) as material, hardware.memory_errors(), stop_signal() as stopped:
        targets = material.targets(profile)
        fit_network = functools.partial(fit, material, options, stopped)
        # Those of a taught Dataset; without them, the profile trains its own teachers, if it has any.
        scores, records = teachers.scores_of(dataset, options.teachers) or (None, [])
        rows = len(material.texts)
        if scores is not None:
            transfer_rows = material.transfer(len(scores) - rows)
            taught_by = hashlib.sha256(scores.tobytes()).hexdigest()
        else:
            transfer_rows = material.transfer(round(options.transfer_texts * rows) if profile.hyperparameters.teachers else 0)
            taught_by = ""
            scores, records = distillation.train_teachers(
                fit_network, profile, targets, transfer_rows, options.seed, options.checkpoint_location
            )
        if scores is not None:
            targets = distillation.blend(profile, targets, transfer_rows, scores)
        loop = fit_network(profile, options.seed, targets, options.checkpoint_location, on_epoch, taught_by)
        run = loop.record()
        record = TrainingRecord(
            **vars(run)
            | {"teachers": records, "seconds": run.seconds + sum(run.seconds for run in all_runs(records).values())},
            weights=options.weights or f"{profile.encoder.base}@{profile.encoder.revision}",
            dataset_digest=material.digest,
            max_length=material.encoder.max_length,
            transfer_texts=len(transfer_rows),
            calibration=_calibrate(loop, material.validation),
        )
        if distributed.is_first():
            classifier.save_classifier(output, loop.classifier, material.tokenizer, dataclasses.asdict(record))
    _write_usage(output, "train")
    return record


@store.raise_on_full_disk
def teach(
    dataset: Path,
    output: Path,
    teacher: Teacher,
    options: TrainOptions,
    store_location: str = "",
    on_epoch: OnEpoch = ignore_epoch,
) -> RunRecord:
    """Trains one teacher and writes the folder of its scores of train and the transfer set, or copies it from the store.

    The store, if one is given, keeps scores and checkpoints by what determines them.

    Raises:
        ModelError, TrainingError, Interrupted: as ``train`` does.
    """
    profile = profiles.get(teacher.profile, options.settings).as_teacher()
    options = dataclasses.replace(options, precision=hardware.resolve_precision(options.precision))
    with load(dataset, profile, options.weights) as material, hardware.memory_errors(), stop_signal() as stopped:
        count = round(options.transfer_texts * len(material.texts))
        key = teachers.key(material.digest, material.files, profile, teacher.seed, options.precision, count)
        if copied := distributed.on_first(lambda: teachers.from_store(store_location, key, dataset, output)):
            _write_usage(output, f"teach {teacher}")
            return copied
        train = material.targets(profile)
        checkpoints = store_location and layout.checkpoints(store_location, "teachers", key)
        loop = fit(material, options, stopped, profile, teacher.seed, train, checkpoints, on_epoch)
        scores, record = distillation.score(loop, [*train.rows, *material.transfer(count)]), loop.record()
        if distributed.is_first():
            teachers.write(output, dataset, str(teacher), scores, [record])
            teachers.to_store(output, store_location, key)
            if checkpoints:
                store.remove(checkpoints)
    _write_usage(output, f"teach {teacher}")
    return record


def _write_usage(output: Path, step: str) -> None:
    """Writes what all processes of the step used."""
    used = distributed.total_usage(usage.so_far())
    if distributed.is_first():
        usage.end_step(output, step, used)


@contextmanager
def load(dataset: Path, profile: Profile, weights: str = "") -> Iterator[Material]:
    """Reads and tokenizes the train and validation splits; the encoder's files are there for as long as the block lasts."""
    splits, info = load_dataset(dataset, ("train", "validation"))
    taxonomy = taxonomy_of(info)
    with encoder_files.resolve(profile, weights) as files:
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
        yield Material(files, taxonomy, info["digest"], tokenizer, encoder, splits["train"]["text"][:], train, validation)


def fit(
    material: Material,
    options: TrainOptions,
    stopped: threading.Event,
    profile: Profile,
    seed: int,
    targets: TokenizedSplit,
    location: str,
    on_epoch: OnEpoch = ignore_epoch,
    taught_by: str = "",
) -> TrainingLoop:
    """Builds one network, student or teacher, and trains it; a digest of the scores that teach it distinguishes its checkpoints."""
    network = classifier.build_classifier(profile, material.taxonomy, weights=material.files, seed=seed)
    if profile.hyperparameters.init_bias_from_frequency:
        classifier.init_bias_from_frequency(network, material.train.labels)
    fingerprint = fingerprint_of(material.digest, options, profile, seed, taught_by)
    plan = CheckpointPlan(location, options.checkpoint_minutes, fingerprint)
    loop = TrainingLoop(profile, network, material.encoder, seed, options.precision, plan)
    loop.fit(targets, material.validation, on_epoch, stopped)
    return loop


def fingerprint_of(digest: str, options: TrainOptions, profile: Profile, seed: int, taught_by: str = "") -> dict[str, Any]:
    """Returns what distinguishes the checkpoints of a training from those of others; those of older versions may have more entries."""
    described = profile.describe()
    # Patience decides when a training ends, not how it goes on; the revision determines the number of parameters.
    unused = ["patience", "parameters"]
    if taught_by:
        described["teachers"] = 0
    elif not profile.hyperparameters.teachers:
        unused += ["distillation_weight", "teacher_epochs"]
    elif options.transfer_texts:
        described["transfer_texts"] = options.transfer_texts
    for name in unused:
        del described[name]
    return described | {
        "digest": digest,
        "weights": options.weights,
        "seed": seed,
        "precision": options.precision,
        "format": CHECKPOINT_FORMAT,
        "taught_by": taught_by or None,
    }


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
