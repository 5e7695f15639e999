"""Training: fine-tune a profile on a Dataset, keep the best epoch by validation AUC, checkpoint and resume."""

from __future__ import annotations

import ctypes
import dataclasses
import functools
import logging
import math
import platform
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.optim.swa_utils import AveragedModel
from tqdm import tqdm

from goemotions import defaults
from goemotions.data.dataset import load_dataset, taxonomy_of
from goemotions.errors import Interrupted, TrainingError
from goemotions.metrics import calibration, classification
from goemotions.models import engines, profiles
from goemotions.models.classifier import (
    build_classifier,
    describe_profile,
    fold_calibration,
    init_bias_from_frequency,
    save_classifier,
)
from goemotions.models.profiles import Profile
from goemotions.models.tokenizer import TextEncoder
from goemotions.registry import tracking
from goemotions.storage import store
from goemotions.training import checkpoints, distributed, dropout, losses
from goemotions.training.checkpoints import Checkpoint
from goemotions.training.dropout import Masks
from goemotions.training.optimizers import Optimizer

log = logging.getLogger(__name__)

# Batches of this many are drawn at random, then sorted by length inside: little padding, and still a fresh order each epoch.
CHUNK_BATCHES = 50
FINITE_EVERY = 20
CHECKPOINT_FORMAT = 2
# Averaging the weights reads and writes all of them, so it is not done at every step.
AVERAGE_EVERY = 10
# Far enough apart that no two processes, and no two runs with neighbouring seeds, draw the same dropout.
DROPOUT_SEED = 1_000_003
PRECISIONS = ("auto", "fp32", "bf16")


def run(
    dataset: Path, output: Path, profile: str, *, pipeline_run: str = "", processes: int = 0, **options: Any
) -> dict[str, Any]:
    """Trains by ``train``, with one process a GPU, and logs to MLflow where a pipeline run is named.

    Args:
        dataset, output, profile: as ``train`` takes them.
        pipeline_run: id of the pipeline run to log under; empty for none.
        processes: 0 for one a GPU, or one where there is none.
        options: of ``train``.

    Returns:
        The content of ``training.json``.

    Raises:
        TrainingError, Interrupted: as ``train`` does; with several processes, where one of them does.
    """
    count = processes or max(1, torch.cuda.device_count())
    if count == 1:
        return _logged(dataset, output, profile, pipeline_run, options)
    return distributed.launch(count, _logged, dataset, output, profile, pipeline_run, options)


def _logged(dataset: Path, output: Path, profile: str, pipeline_run: str, options: dict[str, Any]) -> dict[str, Any]:
    if not (pipeline_run and distributed.is_first()):
        return train(dataset, output, profile, **options)
    with tracking.step(pipeline_run, profile) as mlflow_run:
        facts = train(dataset, output, profile, on_epoch=lambda epoch, values: mlflow_run.log_metrics(values, epoch), **options)
        named = {name: facts[name] for name in ("seed", "precision", "dataset_digest", "processes")}
        mlflow_run.log_missing(facts["history"])
        mlflow_run.log_parameters({**facts["profile"], **named})
        mlflow_run.log_metrics({"best_epoch": facts["best_epoch"], "train_seconds": facts["seconds"]})
    return facts


@dataclasses.dataclass(frozen=True)
class Split:
    """A tokenized split: ids of each row, and its labels, float32 [n, labels]: multi-hot, or soft where a train split is taught so."""

    rows: list[list[int]]
    labels: np.ndarray


@store.raise_on_full_disk
def train(
    dataset: Path,
    output: Path,
    profile_name: str,
    *,
    weights: str = "",
    epochs: int = 0,
    settings: Mapping[str, Any] | None = None,
    seed: int = 0,
    precision: str = defaults.PRECISION,
    checkpoint_location: str = "",
    checkpoint_steps: int = defaults.CHECKPOINT_STEPS,
    on_epoch: Callable[[int, dict[str, float]], None] = lambda epoch, values: None,
) -> dict[str, Any]:
    """Fine-tunes a profile and writes a Model folder.

    Args:
        dataset: a Dataset folder; its test split is not opened.
        output: the Model folder to write.
        profile_name: a name of ``profiles.PROFILES``.
        weights: the encoder's files, as ``model.build`` takes them.
        epochs: 0 for the profile's own.
        settings: fields of the profile to change for this run, such as ``{"learning_rate": 1e-4}``.
        seed: of the head, the order of the rows and the dropout.
        precision: ``fp32``, ``bf16``, or ``auto`` for bf16 where the hardware computes in it.
        checkpoint_location: folder or S3 prefix for checkpoints, resumed from if it holds one of the same run; empty for none.
        checkpoint_steps: optimizer steps between two checkpoints; one more is written after each epoch.
        on_epoch: called with the epoch (from 1) and its metrics.

    Returns:
        The content of ``training.json``.

    Raises:
        TrainingError: the loss is not finite, or memory runs out.
        Interrupted: SIGTERM or SIGINT; a checkpoint is written first.
    """
    profile = profiles.get(profile_name, {**(settings or {}), **({"epochs": epochs} if epochs else {})})
    precision = resolve_precision(precision)
    splits, info = load_dataset(dataset, ("train", "validation"))
    taxonomy = taxonomy_of(info)
    _, tokenizer = build_classifier(profile, taxonomy, weights=weights)
    encoder = TextEncoder(tokenizer.backend_tokenizer, profile.max_length, tokenizer.pad_token_id)
    tokenized = {
        split: Split(
            [item.ids for item in encoder.encode(splits[split]["text"][:])],
            taxonomy.multi_hot(splits[split]["labels"][:]).astype(np.float32),
        )
        for split in ("train", "validation")
    }
    rows, labels, validation = tokenized["train"].rows, tokenized["train"].labels, tokenized["validation"]

    def fitted(profile: Profile, seed: int, targets: np.ndarray, location: str, report: Callable[..., None]) -> Run:
        classifier, _ = build_classifier(profile, taxonomy, weights=weights, seed=seed)
        if profile.prior:
            init_bias_from_frequency(classifier, labels)
        run = Run(profile, classifier, encoder, seed, precision, digest=info["digest"], weights=weights)
        run.fit(Split(rows, targets), validation, location, checkpoint_steps, report, stopped)
        return run

    def taught_by(number: int, targets: np.ndarray) -> tuple[np.ndarray, dict[str, Any]]:
        alone = dataclasses.replace(profile, teachers=0, epochs=profile.teacher_epochs)
        location = checkpoint_location and store.join(checkpoint_location, f"teacher-{number}")
        teacher = fitted(alone, seed + number, targets, location, lambda epoch, values: None)
        scores = distributed.on_first(functools.partial(engines.score_ids, teacher.engine(precision), rows))
        return scores, teacher.summary()

    frequency = labels.mean(axis=0, keepdims=True)
    targets = (1 - profile.label_smoothing) * labels + profile.label_smoothing * frequency
    with _memory_errors_named(), stop_signal() as stopped:
        taught = [taught_by(number, targets) for number in range(1, profile.teachers + 1)]
        if taught:
            mean = np.mean([scores for scores, _ in taught], axis=0)
            targets = (1 - profile.teachers_share) * targets + profile.teachers_share * mean
        run = fitted(profile, seed, targets.astype(np.float32), checkpoint_location, on_epoch)
        scaling, compared = distributed.on_first(
            lambda: calibration.choose(validation.labels > 0, engines.logits(run.engine(), validation.rows))
        )
        fold_calibration(run.classifier, scaling)
    training = {
        **run.summary(),
        "weights": weights or f"{profile.base}@{profile.revision}",
        "dataset_digest": info["digest"],
        "max_length": encoder.max_length,
        "teachers": [summary for _, summary in taught],
        "calibration": {**dataclasses.asdict(scaling), "comparison": compared},
    }
    training["seconds"] += sum(summary["seconds"] for _, summary in taught)
    if distributed.is_first():
        save_classifier(output, run.classifier, tokenizer, training)
    return training


class Run:
    """One training run: the model, its optimizer, and where it stands."""

    def __init__(
        self, profile: Profile, classifier: Any, encoder: TextEncoder, seed: int, precision: str, digest: str, weights: str = ""
    ) -> None:
        self.profile = profile
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.classifier = classifier.to(self.device)
        self.encoder = encoder
        self.precision = precision
        self.seed = seed
        self.fingerprint = {
            "digest": digest,
            "weights": weights,
            "seed": seed,
            "precision": precision,
            "format": CHECKPOINT_FORMAT,
            **describe_profile(profile),
        }
        on_cpu = self.device.type == "cpu"
        self.optimizer = Optimizer(self.classifier, profile, is_lazy=on_cpu)
        self.masks = Masks(seed, distributed.rank()) if on_cpu else None
        if self.masks:
            dropout.install(self.classifier, self.masks)
            _keep_freed_memory()
        self.network = distributed.wrap(self.classifier)
        # The weighting of polynomial-decay averaging: it looks back over a fixed share of the steps (Shamir and Zhang 2013).
        self.averaged = (
            AveragedModel(self.classifier, multi_avg_fn=_polynomial_decay(profile.average)) if profile.average else None
        )
        self.loss: losses.Loss = torch.nn.functional.binary_cross_entropy_with_logits
        self.step = 0
        self.epoch_loss: float | torch.Tensor = 0.0
        self.seconds = 0.0
        self.history: list[dict[str, float]] = []
        self.best: dict[str, torch.Tensor] = {}

    @property
    def best_epoch(self) -> int:
        """The epoch (from 1) with the best validation AUC, micro before macro."""
        ranked = [(values["validation/auc_micro"], values["validation/auc_macro"]) for values in self.history]
        return ranked.index(max(ranked)) + 1 if ranked else 0

    @property
    def kept(self) -> Any:
        """The network whose weights count: the average where one is taken, the one being trained elsewhere."""
        return self.averaged.module if self.averaged and self.step >= AVERAGE_EVERY else self.classifier

    def engine(self, precision: str = "") -> engines.TorchEngine:
        """Scores with the weights that count, in the precision of evaluation and serving unless told otherwise."""
        return engines.TorchEngine(self.kept.eval(), self.encoder, self.device, precision)

    def fit(
        self,
        train: Split,
        validation: Split,
        location: str,
        checkpoint_steps: int,
        on_epoch: Callable[[int, dict[str, float]], None],
        stopped: threading.Event,
    ) -> None:
        """Trains to the last epoch, from the newest checkpoint where there is one, and leaves the best epoch's weights.

        Raises:
            Interrupted: ``stopped`` was set before the last step; a checkpoint is written first.
        """
        steps_per_epoch = math.ceil(len(train.rows) / self.profile.batch_size)
        total = steps_per_epoch * self.profile.epochs
        names = tuple(self.classifier.config.id2label.values())
        self.loss = losses.build(self.profile.loss, torch.from_numpy(train.labels.sum(axis=0)), names, self.profile.groups)
        torch.manual_seed(self.seed + DROPOUT_SEED * distributed.rank())
        if location and (found := checkpoints.newest(location, self.fingerprint)):
            self._restore(found)
            log.info("resuming %s at step %d of %d", self.profile.name, self.step, total)
        with tqdm(total=total, initial=self.step, desc=self.profile.name, **_bar()) as bar:
            while self.step < total:
                epoch, position = divmod(self.step, steps_per_epoch)
                started = time.perf_counter()
                for batch in batches(train.rows, self.profile.batch_size, self.seed, epoch)[position:]:
                    self.advance(train, batch, total)
                    stopping = distributed.total(stopped.is_set()) > 0
                    bar.update()
                    if self.step % steps_per_epoch == 0:
                        break  # Its checkpoint follows the validation: without that the epoch would be lost on resuming.
                    if stopping or (location and self.step % checkpoint_steps == 0):
                        self.seconds += time.perf_counter() - started
                        started = time.perf_counter()
                        self._checkpoint(location)
                    if stopping:
                        raise self._interrupted(total, location)
                self._end_epoch(validation, len(train.rows), steps_per_epoch, started)
                bar.set_postfix(auc=f"{self.history[-1]['validation/auc_micro']:.4f}")
                if distributed.is_first():
                    on_epoch(epoch + 1, self.history[-1])
                self._checkpoint(location)
                if distributed.total(stopped.is_set()) and self.step < total:
                    raise self._interrupted(total, location)
        self.classifier.load_state_dict(self.best)
        self.averaged = None

    def _interrupted(self, total: int, location: str) -> Interrupted:
        return Interrupted(
            f"training of {self.profile.name} was stopped at step {self.step} of {total}: "
            + (f"start it again to go on from {location}" if location else "it starts over next time")
        )

    def advance(self, split: Split, batch: list[int], total: int) -> None:
        """One optimizer step on one batch."""
        self.classifier.train()
        if self.masks:
            self.masks.restart(self.step)
        mine, factor = distributed.share(batch)
        ids, mask = self.encoder.pad([split.rows[position] for position in mine])
        labels = torch.from_numpy(split.labels[mine]).to(self.device)
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.precision == "bf16"):
            logits = self.network(
                input_ids=torch.from_numpy(ids).to(self.device), attention_mask=torch.from_numpy(mask).to(self.device)
            ).logits
        loss = self.loss(logits.float(), labels) * factor
        torch.autograd.backward(loss)
        self.optimizer.step(self.step / total)
        self.step += 1
        if self.averaged and self.step % AVERAGE_EVERY == 0:
            self.averaged.update_parameters(self.classifier)
        # Reading the loss waits for the GPU, so it is not read at every step.
        self.epoch_loss = self.epoch_loss + loss.detach().double() * len(batch) / distributed.size()
        if self.step % FINITE_EVERY == 0:
            self._require_finite()

    def _require_finite(self) -> None:
        if not math.isfinite(distributed.total(float(self.epoch_loss))):
            raise TrainingError(
                f"the loss of {self.profile.name} is not finite by step {self.step}: lower the learning rate "
                f"(now {self.profile.learning_rate}) or use precision fp32"
            )

    def _end_epoch(self, validation: Split, rows: int, steps_per_epoch: int, started: float) -> None:
        self._require_finite()
        loss = distributed.total(float(self.epoch_loss)) / rows

        def measured() -> dict[str, float]:
            scores = engines.score_ids(self.engine(), validation.rows)
            ranked = classification.ranking(validation.labels.astype(bool), scores)
            return {
                "epoch": self.step // steps_per_epoch,
                "train/loss": loss,
                "validation/loss": binary_loss(validation.labels, scores),
                "validation/auc_micro": ranked["auc_micro"],
                "validation/auc_macro": ranked["auc_macro"],
                "seconds": self.seconds + time.perf_counter() - started,
            }

        self.history.append(distributed.on_first(measured))
        self.seconds = self.history[-1]["seconds"]
        self.epoch_loss = 0.0
        if self.best_epoch == len(self.history):
            self.best = {name: tensor.detach().cpu().clone() for name, tensor in self.kept.state_dict().items()}

    def _checkpoint(self, location: str) -> None:
        if not location:
            return
        self._require_finite()
        epoch_loss = distributed.total(float(self.epoch_loss))
        if not distributed.is_first():
            return
        tensors = {f"model.{name}": tensor for name, tensor in self.classifier.state_dict().items()}
        tensors |= {f"best.{name}": tensor for name, tensor in self.best.items()}
        if self.averaged:
            tensors |= {f"averaged.{name}": tensor for name, tensor in self.averaged.state_dict().items()}
        tensors |= {f"optimizer.{name}": tensor for name, tensor in self.optimizer.state().items()}
        tensors["rng.cpu"] = torch.get_rng_state()
        if self.device.type == "cuda":
            tensors["rng.cuda"] = torch.cuda.get_rng_state()
        values = {
            "fingerprint": self.fingerprint,
            "step": self.step,
            "epoch_loss": epoch_loss,
            "seconds": self.seconds,
            "history": self.history,
        }
        checkpoints.save(location, self.step, Checkpoint({k: v.cpu().clone() for k, v in tensors.items()}, values))

    def _restore(self, found: Checkpoint) -> None:
        def part(prefix: str) -> dict[str, torch.Tensor]:
            return {key.removeprefix(prefix): value for key, value in found.tensors.items() if key.startswith(prefix)}

        self.classifier.load_state_dict(part("model."))
        self.best = part("best.")
        if self.averaged:
            self.averaged.load_state_dict(part("averaged."))
        self.optimizer.load(part("optimizer."))
        self.step = found.values["step"]
        self.epoch_loss = found.values["epoch_loss"] if distributed.is_first() else 0.0
        if distributed.is_first():
            torch.set_rng_state(found.tensors["rng.cpu"])
            if "rng.cuda" in found.tensors and self.device.type == "cuda":
                torch.cuda.set_rng_state(found.tensors["rng.cuda"])
        else:
            # The checkpoint holds the first process' generators: here, too, no mask of the dropout comes twice.
            torch.manual_seed(self.seed + DROPOUT_SEED * distributed.rank() + self.step)
        self.seconds = found.values["seconds"]
        self.history = found.values["history"]

    def summary(self) -> dict[str, Any]:
        """What ``training.json`` says of the run: settings, history, cost and hardware."""
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        return {
            "profile": describe_profile(self.profile),
            "parameters": sum(parameter.numel() for parameter in self.classifier.parameters()),
            "precision": self.precision,
            "seed": self.seed,
            "steps": self.step,
            "best_epoch": self.best_epoch,
            "history": self.history,
            "seconds": self.seconds,
            "hardware": hardware(),
            "processes": distributed.size(),
            "peak_memory_bytes": peak,
            "peak_gpu_memory_bytes": torch.cuda.max_memory_allocated() if self.device.type == "cuda" else 0,
            "torch": torch.__version__,
        }


def batches(rows: list[list[int]], size: int, seed: int, epoch: int) -> list[list[int]]:
    """Positions of every row once, in batches of rows of like length; the same for the same seed and epoch."""
    random = np.random.default_rng([seed, epoch])
    order = random.permutation(len(rows))
    lengths = np.array([len(row) for row in rows])
    chunk = size * CHUNK_BATCHES
    chunks = [order[start : start + chunk] for start in range(0, len(order), chunk)]
    # The short batch of a chunk comes last in it, so that there are exactly ceil(rows / size) batches.
    drawn = [
        part[np.argsort(lengths[part], kind="stable")][start : start + size].tolist()
        for part in chunks
        for start in range(0, len(part), size)
    ]
    return [drawn[position] for position in random.permutation(len(drawn))]


def binary_loss(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """Mean binary cross-entropy over all cells."""
    likely = np.clip(np.where(labels > 0, probabilities, 1 - probabilities), 1e-7, 1)
    return float(-np.log(likely).mean())


def resolve_precision(precision: str) -> str:
    """``auto`` becomes bf16 where the GPU, or the CPU's own instructions, compute in it; fp32 elsewhere."""
    if precision not in PRECISIONS:
        raise TrainingError(f"there is no precision {precision!r}: choose from {', '.join(PRECISIONS)}")
    if precision != "auto":
        return precision
    if torch.cuda.is_available():
        return "bf16" if torch.cuda.is_bf16_supported() else "fp32"
    return "bf16" if torch.cpu._is_avx512_bf16_supported() else "fp32"


def hardware() -> str:
    """The machine in a few words, for the report."""
    if torch.cuda.is_available():
        return f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}"
    cpu = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    return f"{torch.get_num_threads()} threads of {cpu} ({torch.backends.cpu.get_cpu_capability()})"


def _keep_freed_memory() -> None:
    """Has glibc keep what is freed: each step asks for the same sizes again, and pages from the kernel are zeroed anew."""
    mmap_max, trim_threshold, top_pad = -4, -1, -2
    with suppress(OSError, AttributeError):
        glibc = ctypes.CDLL("libc.so.6")
        for option, value in ((mmap_max, 0), (trim_threshold, 2**31 - 1), (top_pad, 2**28)):
            glibc.mallopt(option, value)


def _polynomial_decay(strength: float) -> Callable[..., None]:
    @torch.no_grad()
    def update(averaged: list[torch.Tensor], current: list[torch.Tensor], count: torch.Tensor | int) -> None:
        torch._foreach_lerp_(averaged, current, (strength + 1) / (int(count) + 1 + strength))

    return update


def _bar() -> dict[str, Any]:
    """A bar on a terminal, a line each ten seconds in a log."""
    interval = 0.2 if sys.stderr.isatty() else 10
    return {"unit": "step", "dynamic_ncols": True, "mininterval": interval, "disable": not distributed.is_first()}


@contextmanager
def stop_signal() -> Iterator[threading.Event]:
    """An event that SIGTERM or SIGINT sets, so that the run stops between two steps; a preempted pod gets the first."""
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


@contextmanager
def _memory_errors_named() -> Iterator[None]:
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise TrainingError("out of GPU memory: lower the profile's batch_size or max_length, or use a larger GPU") from error
