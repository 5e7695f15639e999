"""The training loop: optimizer steps, validation after each epoch, checkpoints, and the weights of the best epoch."""

from __future__ import annotations

import logging
import math
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from tqdm import tqdm

from goemotions import defaults, usage
from goemotions.errors import Interrupted, TrainingError, first_line
from goemotions.metrics import calibration, classification
from goemotions.metrics.probabilities import sigmoid
from goemotions.models import devices, engines
from goemotions.models.profiles import Profile
from goemotions.models.records import RunRecord
from goemotions.models.tokenizer import TextEncoder
from goemotions.training import batches, checkpoints, distributed, dropout, hardware, losses
from goemotions.training.batches import TokenizedSplit
from goemotions.training.checkpoints import Checkpoint
from goemotions.training.dropout import Masks
from goemotions.training.optimizers import Optimizer
from goemotions.training.state import TrainingState

log = logging.getLogger(__name__)

FINITE_EVERY = 20
# Far enough apart that no two processes, and no two runs with neighbouring seeds, draw the same dropout.
DROPOUT_SEED = 1_000_003

# Called with the epoch (from 1) and its metrics.
OnEpoch = Callable[[int, dict[str, float]], None]


def ignore_epoch(epoch: int, metrics: dict[str, float]) -> None:
    """An ``OnEpoch`` that does nothing."""


@dataclass(frozen=True)
class CheckpointPlan:
    """Where checkpoints go (empty: nowhere), how many minutes lie between two, and what identifies the run that they belong to."""

    location: str = ""
    minutes: float = defaults.CHECKPOINT_MINUTES
    fingerprint: dict[str, Any] = field(default_factory=dict)


class TrainingLoop:
    """Trains one classifier, in ``fp32`` or ``bf16``; the seed is that of the order of the rows and of the dropout."""

    def __init__(
        self,
        profile: Profile,
        classifier: Any,
        encoder: TextEncoder,
        seed: int = 0,
        precision: str = "fp32",
        plan: CheckpointPlan = CheckpointPlan(),
    ) -> None:
        self.profile = profile
        self.device = torch.device(devices.resolve(compute=True))
        self.classifier = classifier.to(self.device)
        self.encoder = encoder
        self.seed = seed
        self.precision = precision
        self.plan = plan
        self.state = TrainingState()
        on_cpu = self.device.type == "cpu"
        self.optimizer = Optimizer(self.classifier, profile.hyperparameters, is_lazy=on_cpu)
        self.masks = Masks(seed, distributed.rank()) if on_cpu else None
        if self.masks:
            dropout.install(self.classifier, self.masks)
            hardware.keep_freed_memory()
            engines.set_torch_threads()
        self.network = distributed.wrap(self.classifier)
        self.loss: losses.Loss = torch.nn.functional.binary_cross_entropy_with_logits
        self._parts = 1
        self._started = 0.0

    def engine(self, precision: str = "") -> engines.TorchEngine:
        """An engine over the current weights, in the precision of evaluation and serving unless another is given."""
        return engines.TorchEngine(self.classifier.eval(), self.encoder, self.device, precision)

    def fit(
        self,
        train: TokenizedSplit,
        validation: TokenizedSplit,
        on_epoch: OnEpoch = ignore_epoch,
        stopped: threading.Event | None = None,
    ) -> None:
        """Trains to the last epoch, from the newest checkpoint if there is one, and leaves the best epoch's weights.

        The last epoch is the profile's, or the first one after which ``patience`` epochs have brought no better validation.

        Once ``stopped`` is set, training stops after the current step. ``on_epoch`` is called in the first process.

        Raises:
            TrainingError: the loss is not finite, or one text needs more memory than the GPU has.
            StorageError: a checkpoint was refused.
            Interrupted: ``stopped`` was set before the last step; a checkpoint was written first.
        """
        hyperparameters = self.profile.hyperparameters
        steps_per_epoch = math.ceil(len(train.rows) / hyperparameters.batch_size)
        total = steps_per_epoch * hyperparameters.epochs
        self.loss = losses.build(hyperparameters.loss, torch.from_numpy(train.labels.sum(axis=0)))
        torch.manual_seed(self.seed + DROPOUT_SEED * distributed.rank())
        self._resume(total)
        state = self.state
        bar = tqdm(total=total, initial=state.step, desc=self.profile.name, **_bar())
        with bar, checkpoints.Writer(self.plan.location, self.plan.minutes) as writer:
            while state.step < total and not self._is_exhausted():
                epoch, position = divmod(state.step, steps_per_epoch)
                self._started = time.perf_counter()
                drawn = batches.draw(train.rows, hyperparameters.batch_size, self.seed, epoch)
                for batch in drawn[position:]:
                    self.advance(train, batch, total)
                    bar.update()
                    self._after_step(writer, stopped, total, is_last=batch is drawn[-1])
                self._end_epoch(validation, len(train.rows))
                bar.set_postfix(auc=f"{state.history[-1]['validation/auc_micro']:.4f}")
                if distributed.is_first():
                    on_epoch(epoch + 1, state.history[-1])
                self._after_epoch(writer, stopped, total)
            writer.wait()
        if state.step < total:
            log.info(
                "%s ends after epoch %d of %d: none was better than epoch %d",
                self.profile.name,
                len(state.history),
                hyperparameters.epochs,
                state.best_epoch,
            )
        self.classifier.load_state_dict(state.best)

    def _after_step(self, writer: checkpoints.Writer, stopped: threading.Event | None, total: int, *, is_last: bool) -> None:
        """Writes a checkpoint if one is due, and ends the training if that was requested; after an epoch's last step ``fit`` does."""
        stopping, is_due = _signals(stopped, writer)
        # The epoch's checkpoint follows the validation: without that the epoch would be lost on resuming.
        if is_last or not (stopping or is_due):
            return
        now = time.perf_counter()
        self.state.seconds, self._started = self.state.seconds + now - self._started, now
        self._save_checkpoint(writer)
        if stopping:
            raise self._interrupted(writer, total)

    def _after_epoch(self, writer: checkpoints.Writer, stopped: threading.Event | None, total: int) -> None:
        """Writes the epoch's checkpoint, which waits for one that is still being written unless the training ends here."""
        is_last = self.state.step == total or self._is_exhausted()
        stopping, _ = _signals(stopped, writer)
        if stopping or is_last or distributed.on_first(writer.is_idle):
            self._save_checkpoint(writer, is_finished=self.state.step == total)
        else:
            writer.hasten()
        if stopping and not is_last:
            raise self._interrupted(writer, total)

    def advance(self, split: TokenizedSplit, batch: list[int], total: int) -> None:
        """Does one optimizer step of ``total`` on the rows at these positions."""
        self.classifier.train()
        mine, factor = distributed.share(batch)
        loss = self._backward(split, mine, factor)
        self.optimizer.step(self.state.step / total)
        self.state.step += 1
        # Reading the loss waits for the GPU, so it is not read at every step.
        self.state.epoch_loss = self.state.epoch_loss + loss * len(batch) / distributed.size()
        if self.state.step % FINITE_EVERY == 0:
            self._finite_loss()

    def _backward(self, split: TokenizedSplit, rows: list[int], factor: float) -> torch.Tensor:
        """Computes gradients and the loss, in more and smaller parts if the GPU has too little memory for all rows at once."""
        while True:
            if self.masks:
                self.masks.restart(self.state.step)
            try:
                return self._accumulate(split, rows, factor)
            except torch.OutOfMemoryError:
                # Other processes would wait for the gradients of the one that starts again.
                if distributed.is_launched() or self._parts >= len(rows):
                    raise
            self._parts = min(2 * self._parts, len(rows))
            log.warning(
                "out of GPU memory: %s computes its batches of %d texts in %d parts from now on, with the same gradients",
                self.profile.name,
                self.profile.hyperparameters.batch_size,
                self._parts,
            )
            self.classifier.zero_grad(set_to_none=True)
            if self.device.type == "cuda":
                torch.cuda.empty_cache()

    def _accumulate(self, split: TokenizedSplit, rows: list[int], factor: float) -> torch.Tensor:
        """Adds up the gradients of the parts of a batch; returns its mean loss times ``factor``."""
        size = math.ceil(len(rows) / self._parts)
        summed = torch.zeros((), dtype=torch.float64, device=self.device)
        for start in range(0, len(rows), size):
            part = rows[start : start + size]
            ids, mask = self.encoder.pad([split.rows[position] for position in part])
            labels = torch.from_numpy(split.labels[part]).to(self.device)
            with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.precision == "bf16"):
                logits = self.network(
                    input_ids=torch.from_numpy(ids).to(self.device), attention_mask=torch.from_numpy(mask).to(self.device)
                ).logits
            loss = self.loss(logits.float(), labels) * (factor * (len(part) / len(rows)))
            torch.autograd.backward(loss)
            summed += loss.detach().double()
        return summed

    def record(self) -> RunRecord:
        """Settings, history, cost and hardware of the run, for ``training.json``."""
        return RunRecord(
            profile=self.profile.describe(),
            parameters=sum(parameter.numel() for parameter in self.classifier.parameters()),
            precision=self.precision,
            seed=self.seed,
            steps=self.state.step,
            best_epoch=self.state.best_epoch,
            history=self.state.history,
            seconds=self.state.seconds,
            hardware=", then ".join(self.state.machines) or hardware.describe(),
            processes=distributed.size(),
            peak_memory_bytes=self.state.peak_memory,
            peak_gpu_memory_bytes=self.state.peak_gpu_memory,
            torch=torch.__version__,
        )

    def _finite_loss(self) -> float:
        """The epoch's loss, summed over all processes."""
        (loss,) = distributed.total(float(self.state.epoch_loss))
        if not math.isfinite(loss):
            raise TrainingError(
                f"the loss of {self.profile.name} is not finite by step {self.state.step}: lower the learning rate "
                f"(now {self.profile.hyperparameters.learning_rate}) or use precision fp32"
            )
        return loss

    def _end_epoch(self, validation: TokenizedSplit, rows: int) -> None:
        """Validates, adds the epoch to the history, and keeps its weights if it is the best so far."""
        state, loss = self.state, self._finite_loss() / rows

        def measure() -> dict[str, float]:
            logits = engines.logits(self.engine(), validation.rows)
            ranking = classification.ranking(validation.labels.astype(bool), sigmoid(logits))
            return {
                "epoch": len(state.history) + 1,
                "train/loss": loss,
                "validation/loss": calibration.log_loss(validation.labels, logits.astype(float)),
                "validation/auc_micro": ranking["auc_micro"],
                "validation/auc_macro": ranking["auc_macro"],
                "seconds": state.seconds + time.perf_counter() - self._started,
            }

        state.history.append(distributed.on_first(measure))
        state.seconds = state.history[-1]["seconds"]
        state.measure_machine()
        state.epoch_loss = 0.0
        if state.best_epoch == len(state.history):
            state.best = {name: tensor.detach().cpu().clone() for name, tensor in self.classifier.state_dict().items()}

    def _is_exhausted(self) -> bool:
        """Whether as many epochs as the profile's patience have brought no better validation."""
        patience, state = self.profile.hyperparameters.patience, self.state
        return 0 < patience <= len(state.history) - state.best_epoch

    def _interrupted(self, writer: checkpoints.Writer, total: int) -> Interrupted:
        writer.wait()
        location = self.plan.location
        return Interrupted(
            f"training of {self.profile.name} was stopped at step {self.state.step} of {total}: "
            + (f"start it again to resume from {location}" if location else "it starts over next time")
        )

    def _save_checkpoint(self, writer: checkpoints.Writer, *, is_finished: bool = False) -> None:
        """Copies the state to the CPU's memory and starts to write it; after the last step only the best weights are of use."""
        if not self.plan.location:
            return
        self.state.measure_machine()
        epoch_loss, used = self._finite_loss(), asdict(distributed.total_usage(usage.so_far()))
        if distributed.is_first():
            values = {"fingerprint": self.plan.fingerprint, "epoch_loss": epoch_loss, "usage": used}
            writer.write(self.state.step, self.state.to_checkpoint({} if is_finished else self._tensors(), values))

    def _tensors(self) -> dict[str, torch.Tensor]:
        """What the next step depends on."""
        tensors = {f"model.{name}": tensor for name, tensor in self.classifier.state_dict().items()}
        tensors |= {f"optimizer.{name}": tensor for name, tensor in self.optimizer.state().items()}
        tensors["rng.cpu"] = torch.get_rng_state()
        if self.device.type == "cuda":
            tensors["rng.cuda"] = torch.cuda.get_rng_state()
        return tensors

    def _resume(self, total: int) -> None:
        """Continues from the newest checkpoint of the same run, if there is one.

        Raises:
            TrainingError: it does not fit the network or the optimizer.
        """
        location = self.plan.location
        checkpoint = checkpoints.newest(location, self.plan.fingerprint) if location else None
        if checkpoint is None:
            return
        try:
            self._restore(checkpoint, total)
        except torch.OutOfMemoryError:
            raise
        except (LookupError, RuntimeError, TypeError, ValueError) as error:
            raise TrainingError(
                f"the checkpoint in {location} does not fit {self.profile.name} ({first_line(error):.200}): remove it, and training "
                "starts over"
            ) from error

    def _restore(self, checkpoint: Checkpoint, total: int) -> None:
        tensors, values = checkpoint.tensors, checkpoint.values
        if not 0 <= values["step"] <= total:
            raise ValueError(f"its step is {values['step']} of {total}")
        self.state = TrainingState.from_checkpoint(checkpoint)
        if self.state.best_epoch and self.state.best.keys() != self.classifier.state_dict().keys():
            raise ValueError("it lacks the weights of its best epoch")
        if distributed.is_first():
            self.state.epoch_loss = values["epoch_loss"]
            usage.continue_from(usage.parse(values.get("usage", {})))
        log.info("resuming %s at step %d of %d", self.profile.name, self.state.step, total)
        if self.state.step == total:
            return
        self.classifier.load_state_dict(checkpoint.part("model."))
        self.optimizer.load(checkpoint.part("optimizer."))
        if distributed.is_first():
            torch.set_rng_state(tensors["rng.cpu"])
            if "rng.cuda" in tensors and self.device.type == "cuda":
                torch.cuda.set_rng_state(tensors["rng.cuda"])
        else:
            # The checkpoint holds the first process' generators: here, too, no mask of the dropout may come twice.
            torch.manual_seed(self.seed + DROPOUT_SEED * distributed.rank() + self.state.step)


def _signals(stopped: threading.Event | None, writer: checkpoints.Writer) -> tuple[bool, bool]:
    """Whether any process has a request to stop, and whether a checkpoint is due, which the first one decides."""
    stops, due = distributed.total(stopped is not None and stopped.is_set(), distributed.is_first() and writer.is_due())
    return stops > 0, due > 0


def _bar() -> dict[str, Any]:
    """Updates the progress bar often on a terminal, and every ten seconds in a log."""
    interval = 0.2 if sys.stderr.isatty() else 10
    return {"unit": "step", "dynamic_ncols": True, "mininterval": interval, "disable": not distributed.is_first()}
