"""Losses for multi-label training, and label smoothing.

A loss takes logits and targets in [0, 1], both [n, labels], and returns their mean loss per text-label pair.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch.nn.functional import binary_cross_entropy_with_logits

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]

FOCAL_GAMMA = 2.0
ASYMMETRIC_GAMMA = 4.0
ASYMMETRIC_MARGIN = 0.05
CLASS_BALANCE = 0.999


def focal(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Focal loss: text-label pairs that are already right count less (Lin et al. 2017, equation 4)."""
    wrong = (torch.sigmoid(logits) - targets).abs()
    return (wrong**FOCAL_GAMMA * binary_cross_entropy_with_logits(logits, targets, reduction="none")).mean()


def asymmetric(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Asymmetric loss: easy negatives count less, the easiest not at all (Ridnik et al. 2021, equation 7)."""
    probability = torch.sigmoid(logits)
    shifted = (probability - ASYMMETRIC_MARGIN).clamp(min=0)
    positive = torch.nn.functional.logsigmoid(logits)
    negative = shifted**ASYMMETRIC_GAMMA * torch.log1p(-shifted.clamp(max=1 - 1e-6))
    return -(targets * positive + (1 - targets) * negative).mean()


def class_balanced(counts: torch.Tensor) -> Loss:
    """Weights positives by the inverse of their label's effective number, on average 1 (Cui et al. 2019, equation 2).

    ``counts`` are the positives per label, at least 1 each, float32 [labels].
    """
    effective = (1 - CLASS_BALANCE**counts) / (1 - CLASS_BALANCE)
    weights = 1 / effective
    weights = weights / weights.mean()

    def loss(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return binary_cross_entropy_with_logits(logits, targets, pos_weight=weights.to(logits.device))

    return loss


def build(name: str, counts: torch.Tensor) -> Loss:
    """Returns the loss of that name, one that ``Hyperparameters`` lists, for the positives per label in train, float32 [labels]."""
    losses: dict[str, Loss] = {
        "bce": binary_cross_entropy_with_logits,
        "focal": focal,
        "asymmetric": asymmetric,
        "class-balanced": class_balanced(counts.clamp(min=1)),
    }
    return losses[name]


def smooth(labels: np.ndarray, share: float) -> np.ndarray:
    """Label smoothing: replaces a share of each target by its label's frequency (Szegedy et al. 2016, section 7); both [n, labels]."""
    smoothed: np.ndarray = (1 - share) * labels + share * labels.mean(axis=0, keepdims=True)
    return smoothed
