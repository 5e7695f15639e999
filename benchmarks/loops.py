"""The training loops that benchmarks compare: Hugging Face's Trainer and ours on the same material, and the operations of a step.

Needs only torch, transformers and this project's loop: ``benchmarks.gpu`` runs on a bare machine.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from goemotions.training import batches
from goemotions.training.hardware import resolve_precision
from goemotions.training.loop import TrainingLoop

LONGEST = 128


class WithLoss(torch.nn.Module):
    """A network that returns its loss, as the Trainer requires."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network
        self.config = network.config

    def forward(self, input_ids: Any, attention_mask: Any, labels: Any) -> dict[str, Any]:
        logits = self.network(input_ids=input_ids, attention_mask=attention_mask).logits
        return {"loss": torch.nn.functional.binary_cross_entropy_with_logits(logits.float(), labels), "logits": logits}


class Clock(transformers.TrainerCallback):
    """The time at the end of each step."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.times.append(time.perf_counter())


def trainer(
    material: Any, *, tuned: bool, steps: int, scratch: Path, learning_rate: float = 2e-5, seed: int = 0
) -> tuple[Any, Clock]:
    """A Trainer on the material, and the clock of its steps."""
    rows, labels, encoder = material.split.rows, material.split.labels, material.encoder

    def collate(items: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        ids, mask = encoder.pad([item["input_ids"] for item in items])
        if not tuned:
            missing = ((0, 0), (0, LONGEST - ids.shape[1]))
            ids, mask = np.pad(ids, missing, constant_values=encoder.pad_id), np.pad(mask, missing)
        return {
            "input_ids": torch.from_numpy(ids),
            "attention_mask": torch.from_numpy(mask),
            "labels": torch.from_numpy(np.stack([item["labels"] for item in items])),
        }

    clock = Clock()
    arguments = transformers.TrainingArguments(
        output_dir=str(scratch),
        max_steps=steps,
        use_cpu=not torch.cuda.is_available(),
        per_device_train_batch_size=32 if tuned else 16,
        bf16=tuned and resolve_precision("auto") == "bf16",
        train_sampling_strategy="group_by_length" if tuned else "random",
        optim="adamw_torch_fused" if tuned else "adamw_torch",
        learning_rate=learning_rate,
        warmup_steps=int(0.1 * steps),
        seed=seed,
        save_strategy="no",
        logging_strategy="no",
        report_to=[],
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=False,
    )
    items = [{"input_ids": ids, "labels": target} for ids, target in zip(rows, labels, strict=True)]
    hf_trainer = transformers.Trainer(
        WithLoss(material.network(seed)), arguments, data_collator=collate, train_dataset=items, callbacks=[clock]
    )
    return hf_trainer, clock


def trainer_rate(material: Any, *, tuned: bool, steps: int, left_out: int) -> float:
    """Samples per second of the Trainer, without the first ``left_out`` steps."""
    with tempfile.TemporaryDirectory() as scratch:
        hf_trainer, clock = trainer(material, tuned=tuned, steps=left_out + steps, scratch=Path(scratch))
        hf_trainer.train()
    return (32 if tuned else 16) * steps / (clock.times[-1] - clock.times[-1 - steps])


class OurLoop:
    """The training loop of this project, on the batches of an epoch."""

    def __init__(self, material: Any) -> None:
        self._split = material.split
        precision = resolve_precision("auto")
        self.loop = TrainingLoop(material.profile, material.network(), material.encoder, precision=precision)
        self._batches = batches.draw(material.split.rows, material.profile.hyperparameters.batch_size, 0, 0)
        self._next = 0
        self.advance(3)

    def advance(self, steps: int) -> list[list[int]]:
        """Runs ``steps`` steps and returns their batches."""
        taken = [self._batches[(self._next + step) % len(self._batches)] for step in range(steps)]
        self._next += steps
        for batch in taken:
            self.loop.advance(self._split, batch, 10 * len(self._batches))
        return taken

    def rate(self, steps: int) -> float:
        """Samples per second."""
        started = time.perf_counter()
        return sum(map(len, self.advance(steps))) / (time.perf_counter() - started)


def operations(network: Any, tokens: Sequence[int]) -> float:
    """Floating-point operations of a training step on texts with these numbers of tokens: two per token and weight of the layers'
    matrices, those of the products in attention, and twice as many again for the gradients. Without padding, embeddings and head.
    """
    config = network.config
    weights = sum(
        parameter.numel() for name, parameter in network.named_parameters() if parameter.ndim == 2 and ".layer." in name
    )
    attention = 4 * config.num_hidden_layers * config.hidden_size
    return float(sum(3 * (2 * weights * count + attention * count**2) for count in tokens))
