"""The state of a training, apart from the network and its optimizer: what the loop counts, and how a checkpoint holds it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from goemotions.training import hardware
from goemotions.training.checkpoints import Checkpoint

# Entries of a checkpoint that those of before do not have.
MACHINE = ("machines", "peak_memory", "peak_gpu_memory")


@dataclass
class TrainingState:
    """What changes while a model is trained.

    Attributes:
        epoch_loss: sum over the rows that were trained on in this epoch, of this process.
        seconds: duration up to the last checkpoint or epoch.
        history, best: metrics per finished epoch, and weights of the best one.
        machines: those that trained it, each once, in their order; the largest memory and GPU memory of any of them, in bytes.
    """

    step: int = 0
    epoch_loss: float | torch.Tensor = 0.0
    seconds: float = 0.0
    history: list[dict[str, float]] = field(default_factory=list)
    best: dict[str, torch.Tensor] = field(default_factory=dict)
    machines: list[str] = field(default_factory=list)
    peak_memory: int = 0
    peak_gpu_memory: int = 0

    def measure_machine(self) -> None:
        """Adds this machine, and the memory that this process has taken on it."""
        self.machines = list(dict.fromkeys([*self.machines, hardware.describe()]))
        peak, peak_gpu = hardware.peak_memory()
        self.peak_memory, self.peak_gpu_memory = max(self.peak_memory, peak), max(self.peak_gpu_memory, peak_gpu)

    @property
    def best_epoch(self) -> int:
        """The epoch (from 1) with the best validation AUC, micro before macro; 0 before the first."""
        scores = [(epoch["validation/auc_micro"], epoch["validation/auc_macro"]) for epoch in self.history]
        return scores.index(max(scores)) + 1 if scores else 0

    def to_checkpoint(self, tensors: Mapping[str, torch.Tensor], values: Mapping[str, Any]) -> Checkpoint:
        """A checkpoint with this state, and with further tensors, which are copied to the CPU's memory, and values."""
        copied = {name: tensor.detach().to("cpu", copy=True) for name, tensor in tensors.items()}
        # The best weights are replaced, but never changed.
        copied |= {f"best.{name}": tensor for name, tensor in self.best.items()}
        own = {name: getattr(self, name) for name in ("step", "seconds", *MACHINE)}
        return Checkpoint(copied, {**own, "history": list(self.history), **values})

    @classmethod
    def from_checkpoint(cls, checkpoint: Checkpoint) -> TrainingState:
        """What ``to_checkpoint`` took; the loss of the epoch is a sum over processes there, and is left out."""
        values = checkpoint.values
        machine = {name: values[name] for name in MACHINE if name in values}
        return cls(values["step"], 0.0, values["seconds"], values["history"], checkpoint.part("best."), **machine)
