"""Losses for multi-label training: logits and targets in [0, 1], both [n, labels], to one number."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.nn.functional import binary_cross_entropy_with_logits as cross_entropy

from goemotions.errors import ModelError

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]

FOCAL_GAMMA = 2.0
ASYMMETRIC_GAMMA = 4.0
ASYMMETRIC_MARGIN = 0.05
CLASS_BALANCE = 0.999


def focal(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Cells that are already right count less (Lin et al. 2017, equation 4)."""
    wrong = (torch.sigmoid(logits) - targets).abs()
    return (wrong**FOCAL_GAMMA * cross_entropy(logits, targets, reduction="none")).mean()


def asymmetric(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Easy negatives count less, the easiest not at all; positives count in full (Ridnik et al. 2021, equation 7)."""
    probability = torch.sigmoid(logits)
    shifted = (probability - ASYMMETRIC_MARGIN).clamp(min=0)
    positive = torch.nn.functional.logsigmoid(logits)
    negative = shifted**ASYMMETRIC_GAMMA * torch.log1p(-shifted.clamp(max=1 - 1e-6))
    return -(targets * positive + (1 - targets) * negative).mean()


def class_balanced(counts: torch.Tensor) -> Loss:
    """Positives weigh by the inverse of their label's effective number, one on average (Cui et al. 2019, equation 2)."""
    effective = (1 - CLASS_BALANCE**counts) / (1 - CLASS_BALANCE)
    weights = 1 / effective
    weights = weights / weights.mean()

    def loss(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return cross_entropy(logits, targets, pos_weight=weights.to(logits.device))

    return loss


def build(name: str, counts: torch.Tensor) -> Loss:
    """The loss of that name; ``counts``: positives of each label in train, float32 [labels]."""
    if name == "class-balanced":
        return class_balanced(counts.clamp(min=1))
    losses: dict[str, Loss] = {"bce": cross_entropy, "focal": focal, "asymmetric": asymmetric}
    if name not in losses:
        raise ModelError(f"there is no loss {name!r}: choose from {', '.join([*losses, 'class-balanced'])}")
    return losses[name]
