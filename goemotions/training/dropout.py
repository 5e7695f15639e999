"""Fast dropout on a CPU: masks are drawn as random bytes.

torch draws one float per element on one thread, which takes a tenth of a training step of a small encoder. One byte per element is
enough, and NumPy draws a billion bytes per second.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface, eager_mask

from goemotions.models import architectures

ATTENTION = "byte-dropout"


class Masks:
    """Dropout masks that depend on seed and step alone, so that a checkpoint needs no state of them."""

    def __init__(self, *seed: int) -> None:
        self._seed = seed
        self.restart(0)

    def restart(self, step: int) -> None:
        """Starts the masks of a step."""
        self._bytes = np.random.Generator(np.random.SFC64([*self._seed, step]))

    def apply(self, values: torch.Tensor, probability: float) -> torch.Tensor:
        """Zeroes each value with a probability, to the nearest 1/256, and scales the others to keep the mean."""
        dropped = round(256 * probability)
        drawn = np.frombuffer(self._bytes.bytes(values.numel()), dtype=np.uint8)
        kept = torch.from_numpy(drawn >= dropped).view(values.shape)
        return values * kept.to(values.dtype).mul_(256 / (256 - dropped))


class ByteDropout(nn.Module):
    """``nn.Dropout`` with these masks."""

    def __init__(self, p: float, masks: Masks) -> None:
        super().__init__()
        self.p = p
        self._masks = masks

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return self._masks.apply(values, self.p) if self.training and self.p else values


def install(classifier: Any, masks: Masks) -> None:
    """Replaces every dropout of a classifier, also of its attention weights, by one with these masks."""
    for module in list(classifier.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Dropout):
                setattr(module, name, ByteDropout(child.p, masks).train(child.training))
    architectures.set_attention(classifier, ATTENTION)


def _attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Attention over [n, heads, tokens, size] with transformers' signature; for short texts, batched products are fastest."""
    texts, heads, tokens, size = query.shape
    query, key, value = (each.reshape(texts * heads, tokens, size) for each in (query, key, value))
    query = query * (size**-0.5 if scaling is None else scaling)
    if attention_mask is None:
        weights = torch.bmm(query, key.transpose(1, 2))
    else:
        mask = attention_mask.expand(texts, heads, tokens, tokens).reshape(texts * heads, tokens, tokens)
        weights = torch.baddbmm(mask, query, key.transpose(1, 2))
    weights = torch.softmax(weights, dim=-1)
    # ALBERT's has another name, and ModernBERT's is a number.
    dropout = getattr(module, "dropout", None) or module.attention_dropout
    if isinstance(dropout, nn.Module):
        weights = dropout(weights)
    elif module.training:
        weights = nn.functional.dropout(weights, dropout)
    return torch.bmm(weights, value).view(texts, heads, tokens, size).transpose(1, 2).contiguous(), None


AttentionInterface.register(ATTENTION, _attention)
AttentionMaskInterface.register(ATTENTION, eager_mask)
