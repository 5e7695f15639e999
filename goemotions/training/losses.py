"""Losses for multi-label training: logits and targets in [0, 1], both [n, labels], to one number."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch.nn.functional import binary_cross_entropy_with_logits as cross_entropy

from goemotions.errors import ModelError

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]

FOCAL_GAMMA = 2.0
ASYMMETRIC_GAMMA = 4.0
ASYMMETRIC_MARGIN = 0.05
CLASS_BALANCE = 0.999
GROUPS_WEIGHT = 0.5


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


def with_groups(loss: Loss, members: torch.Tensor) -> Loss:
    """A loss and, beside it, the cross-entropy of each group: has the text any of its labels?

    Labels of a group are taken for independent given the text; ``members``: float32 [groups, labels], 1 where a label belongs.
    A simple form of learning with a hierarchy of the labels, as in Demszky et al. 2020, section 5.
    """

    def total(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        belongs = members.to(logits.device)
        none = torch.nn.functional.logsigmoid(-logits) @ belongs.T
        wanted = 1 - ((1 - targets).clamp(min=1e-6).log() @ belongs.T).exp()
        some = torch.log(-torch.expm1(none.clamp(max=-1e-6)))
        return loss(logits, targets) - GROUPS_WEIGHT * (wanted * some + (1 - wanted) * none).mean()

    return total


def build(name: str, counts: torch.Tensor, labels: Sequence[str] = (), groups: Sequence[str] = ()) -> Loss:
    """The loss of a profile.

    Args:
        name: of the loss.
        counts: positives of each label in train, float32 [labels].
        labels: their names.
        groups: of labels, names joined by "+"; see ``with_groups``.

    Raises:
        ModelError: there is no such loss, or no such label.
    """
    losses: dict[str, Loss] = {
        "bce": cross_entropy,
        "focal": focal,
        "asymmetric": asymmetric,
        "class-balanced": class_balanced(counts.clamp(min=1)),
    }
    if name not in losses:
        raise ModelError(f"there is no loss {name!r}: choose from {', '.join(losses)}")
    members = [group.split("+") for group in groups]
    if unknown := [label for group in members for label in group if label not in labels]:
        raise ModelError(f"there is no label {unknown[0]!r} to group: choose from {', '.join(labels)}")
    if not members:
        return losses[name]
    return with_groups(losses[name], torch.tensor([[float(label in group) for label in labels] for group in members]))
