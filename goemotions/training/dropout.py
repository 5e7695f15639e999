"""Dropout on a CPU, by random bytes.

torch draws a number for each element, on one thread, and asks for a mask at each of the twenty dropouts of a small encoder: a tenth of
a step. A byte is enough to tell whether an element is kept, and NumPy draws bytes by the billion a second.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface, eager_mask

ATTENTION = "byte-dropout"


class Masks:
    """The masks of a training run: the same for the same seed and step, so that a run that resumes needs no state of it."""

    def __init__(self, *seed: int) -> None:
        self._seed = seed
        self.restart(0)

    def restart(self, step: int) -> None:
        """Begins the masks of a step."""
        self._bytes = np.random.Generator(np.random.SFC64([*self._seed, step]))

    def apply(self, values: torch.Tensor, probability: float) -> torch.Tensor:
        """Values of which each was zeroed with a probability, to the nearest 1/256, and the others scaled to keep the mean."""
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
    """Has every dropout of a classifier use these masks, that of the attention's weights too."""
    for module in list(classifier.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Dropout):
                setattr(module, name, ByteDropout(child.p, masks).train(child.training))
    classifier.set_attn_implementation(ATTENTION)


def _attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Attention of [n, heads, tokens, size] as transformers asks for it; short texts are fastest by plain batched products."""
    texts, heads, tokens, size = query.shape
    query, key, value = (each.reshape(texts * heads, tokens, size) for each in (query, key, value))
    query = query * (size**-0.5 if scaling is None else scaling)
    if attention_mask is None:
        weights = torch.bmm(query, key.transpose(1, 2))
    else:
        spread = attention_mask.expand(texts, heads, tokens, tokens).reshape(texts * heads, tokens, tokens)
        weights = torch.baddbmm(spread, query, key.transpose(1, 2))
    weights = module.dropout(torch.softmax(weights, dim=-1))
    return torch.bmm(weights, value).view(texts, heads, tokens, size).transpose(1, 2).contiguous(), None


AttentionInterface.register(ATTENTION, _attention)
AttentionMaskInterface.register(ATTENTION, eager_mask)
