"""The training loop: optimizer steps, validation after each epoch, checkpoints, and the weights of the best epoch."""

from __future__ import annotations

import logging
import math
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from tqdm import tqdm

from goemotions import defaults
from goemotions.errors import Interrupted, TrainingError
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

log = logging.getLogger(__name__)

FINITE_EVERY = 20
# Far enough apart that no two processes, and no two runs with neighbouring seeds, draw the same dropout.
DROPOUT_SEED = 1_000_003

# Called with the epoch (from 1) and its metrics.
OnEpoch = Callable[[int, dict[str, float]], None]


def ignore_epoch(epoch: int, metrics: dict[str, float]) -> None:
    """An ``OnEpoch`` that does nothing."""


@dataclass
class TrainingState:
    """What changes while a model is trained, apart from weights and optimizer; a checkpoint holds it.

    Attributes:
        step: optimizer steps done.
        epoch_loss: sum over the rows that were trained on in this epoch, of this process.
        seconds: duration up to the last checkpoint or epoch.
        history: metrics per finished epoch.
        best: weights of the best epoch.
    """

    step: int = 0
    epoch_loss: float | torch.Tensor = 0.0
    seconds: float = 0.0
    history: list[dict[str, float]] = field(default_factory=list)
    best: dict[str, torch.Tensor] = field(default_factory=dict)

    @property
    def best_epoch(self) -> int:
        """The epoch (from 1) with the best validation AUC, micro before macro; 0 before the first."""
        scores = [(epoch["validation/auc_micro"], epoch["validation/auc_macro"]) for epoch in self.history]
        return scores.index(max(scores)) + 1 if scores else 0


@dataclass(frozen=True)
class CheckpointPlan:
    """Where checkpoints go (empty: nowhere), how many steps lie between two, and what identifies the run that they belong to."""

    location: str = ""
    steps: int = defaults.CHECKPOINT_STEPS
    fingerprint: dict[str, Any] = field(default_factory=dict)


class TrainingLoop:
    """Trains one classifier.

    Args:
        profile: its hyperparameters.
        classifier: the network.
        encoder: the tokenizer, which pads the batches.
        seed: seed of the order of the rows and of the dropout.
        precision: ``fp32`` or ``bf16``.
        plan: checkpoints.
    """

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
        self.network = distributed.wrap(self.classifier)
        self.loss: losses.Loss = torch.nn.functional.binary_cross_entropy_with_logits

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

        Args:
            train, validation: the splits.
            on_epoch: called in the first process after each epoch.
            stopped: if it gets set, training stops after the current step.

        Raises:
            TrainingError: the loss is not finite.
            Interrupted: ``stopped`` was set before the last step; a checkpoint was written first.
        """
        hyperparameters = self.profile.hyperparameters
        steps_per_epoch = math.ceil(len(train.rows) / hyperparameters.batch_size)
        total = steps_per_epoch * hyperparameters.epochs
        self.loss = losses.build(hyperparameters.loss, torch.from_numpy(train.labels.sum(axis=0)))
        torch.manual_seed(self.seed + DROPOUT_SEED * distributed.rank())
        self._resume(total)
        state = self.state
        with tqdm(total=total, initial=state.step, desc=self.profile.name, **_bar()) as bar:
            while state.step < total:
                epoch, position = divmod(state.step, steps_per_epoch)
                started = time.perf_counter()
                for batch in batches.draw(train.rows, hyperparameters.batch_size, self.seed, epoch)[position:]:
                    self.advance(train, batch, total)
                    stopping = _is_stopped(stopped)
                    bar.update()
                    if state.step % steps_per_epoch == 0:
                        break  # Its checkpoint follows the validation: without that the epoch would be lost on resuming.
                    if stopping or state.step % self.plan.steps == 0:
                        state.seconds += time.perf_counter() - started
                        started = time.perf_counter()
                        self._save_checkpoint()
                    if stopping:
                        raise self._interrupted(total)
                self._end_epoch(validation, len(train.rows), started)
                bar.set_postfix(auc=f"{state.history[-1]['validation/auc_micro']:.4f}")
                if distributed.is_first():
                    on_epoch(epoch + 1, state.history[-1])
                self._save_checkpoint()
                if _is_stopped(stopped) and state.step < total:
                    raise self._interrupted(total)
        self.classifier.load_state_dict(state.best)

    def advance(self, split: TokenizedSplit, batch: list[int], total: int) -> None:
        """Does one optimizer step of ``total`` on the rows at these positions."""
        self.classifier.train()
        if self.masks:
            self.masks.restart(self.state.step)
        mine, factor = distributed.share(batch)
        ids, mask = self.encoder.pad([split.rows[position] for position in mine])
        labels = torch.from_numpy(split.labels[mine]).to(self.device)
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.precision == "bf16"):
            logits = self.network(
                input_ids=torch.from_numpy(ids).to(self.device), attention_mask=torch.from_numpy(mask).to(self.device)
            ).logits
        loss = self.loss(logits.float(), labels) * factor
        torch.autograd.backward(loss)
        self.optimizer.step(self.state.step / total)
        self.state.step += 1
        # Reading the loss waits for the GPU, so it is not read at every step.
        self.state.epoch_loss = self.state.epoch_loss + loss.detach().double() * len(batch) / distributed.size()
        if self.state.step % FINITE_EVERY == 0:
            self._finite_loss()

    def record(self) -> RunRecord:
        """Settings, history, cost and hardware of the run, for ``training.json``."""
        peak, peak_gpu = hardware.peak_memory()
        return RunRecord(
            profile=self.profile.describe(),
            parameters=sum(parameter.numel() for parameter in self.classifier.parameters()),
            precision=self.precision,
            seed=self.seed,
            steps=self.state.step,
            best_epoch=self.state.best_epoch,
            history=self.state.history,
            seconds=self.state.seconds,
            hardware=hardware.describe(),
            processes=distributed.size(),
            peak_memory_bytes=peak,
            peak_gpu_memory_bytes=peak_gpu,
            torch=torch.__version__,
        )

    def _finite_loss(self) -> float:
        """The epoch's loss, summed over all processes."""
        loss = distributed.total(float(self.state.epoch_loss))
        if not math.isfinite(loss):
            raise TrainingError(
                f"the loss of {self.profile.name} is not finite by step {self.state.step}: lower the learning rate "
                f"(now {self.profile.hyperparameters.learning_rate}) or use precision fp32"
            )
        return loss

    def _end_epoch(self, validation: TokenizedSplit, rows: int, started: float) -> None:
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
                "seconds": state.seconds + time.perf_counter() - started,
            }

        state.history.append(distributed.on_first(measure))
        state.seconds = state.history[-1]["seconds"]
        state.epoch_loss = 0.0
        if state.best_epoch == len(state.history):
            state.best = {name: tensor.detach().cpu().clone() for name, tensor in self.classifier.state_dict().items()}

    def _interrupted(self, total: int) -> Interrupted:
        location = self.plan.location
        return Interrupted(
            f"training of {self.profile.name} was stopped at step {self.state.step} of {total}: "
            + (f"start it again to resume from {location}" if location else "it starts over next time")
        )

    def _save_checkpoint(self) -> None:
        if not self.plan.location:
            return
        state, epoch_loss = self.state, self._finite_loss()
        if not distributed.is_first():
            return
        tensors = {f"model.{name}": tensor for name, tensor in self.classifier.state_dict().items()}
        tensors |= {f"best.{name}": tensor for name, tensor in state.best.items()}
        tensors |= {f"optimizer.{name}": tensor for name, tensor in self.optimizer.state().items()}
        tensors["rng.cpu"] = torch.get_rng_state()
        if self.device.type == "cuda":
            tensors["rng.cuda"] = torch.cuda.get_rng_state()
        values = {"fingerprint": self.plan.fingerprint, "step": state.step, "epoch_loss": epoch_loss}
        values |= {"seconds": state.seconds, "history": state.history}
        checkpoint = Checkpoint({name: tensor.cpu().clone() for name, tensor in tensors.items()}, values)
        checkpoints.save(self.plan.location, state.step, checkpoint)

    def _resume(self, total: int) -> None:
        """Continues from the newest checkpoint of the same run, if there is one."""
        checkpoint = checkpoints.newest(self.plan.location, self.plan.fingerprint) if self.plan.location else None
        if checkpoint is None:
            return
        tensors, values = checkpoint.tensors, checkpoint.values

        def part(prefix: str) -> dict[str, torch.Tensor]:
            return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}

        self.classifier.load_state_dict(part("model."))
        self.optimizer.load(part("optimizer."))
        self.state = TrainingState(values["step"], 0.0, values["seconds"], values["history"], part("best."))
        if distributed.is_first():
            self.state.epoch_loss = values["epoch_loss"]
            torch.set_rng_state(tensors["rng.cpu"])
            if "rng.cuda" in tensors and self.device.type == "cuda":
                torch.cuda.set_rng_state(tensors["rng.cuda"])
        else:
            # The checkpoint holds the first process' generators: here, too, no mask of the dropout may come twice.
            torch.manual_seed(self.seed + DROPOUT_SEED * distributed.rank() + self.state.step)
        log.info("resuming %s at step %d of %d", self.profile.name, self.state.step, total)


def _is_stopped(stopped: threading.Event | None) -> bool:
    """Whether any process was told to stop."""
    return distributed.total(stopped is not None and stopped.is_set()) > 0


def _bar() -> dict[str, Any]:
    """Updates the progress bar often on a terminal, and every ten seconds in a log."""
    interval = 0.2 if sys.stderr.isatty() else 10
    return {"unit": "step", "dynamic_ncols": True, "mininterval": interval, "disable": not distributed.is_first()}
