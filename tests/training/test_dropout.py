"""Dropout by random bytes: its probability, the preserved mean, masks per step; and attention equal to that of transformers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from goemotions.data.taxonomy import Taxonomy
from goemotions.models import profiles
from goemotions.models.classifier import build_classifier
from goemotions.training import dropout
from goemotions.training.dropout import Masks


@pytest.mark.parametrize("probability", [0.1, 0.5])
def test_a_share_is_dropped_and_the_mean_kept(probability: float) -> None:
    dropped = Masks(1).apply(torch.ones(400, 500), probability)
    assert float((dropped == 0).float().mean()) == pytest.approx(probability, abs=0.005)
    assert float(dropped.mean()) == pytest.approx(1, abs=0.005)


def test_gradients_pass_through_the_kept_values_only() -> None:
    values = torch.ones(50, 50, requires_grad=True)
    dropped = Masks(1).apply(values, 0.3)
    dropped.sum().backward()
    assert torch.equal(values.grad, dropped.detach())


def test_masks_are_determined_by_step_and_seed() -> None:
    def drawn(*seed: int, step: int) -> torch.Tensor:
        masks = Masks(*seed)
        masks.apply(torch.ones(3, 3), 0.5)
        masks.restart(step)
        return masks.apply(torch.ones(20, 20), 0.5)

    assert torch.equal(drawn(1, 0, step=7), drawn(1, 0, step=7))
    for other in (drawn(1, 0, step=8), drawn(1, 1, step=7), drawn(2, 0, step=7)):
        assert not torch.equal(drawn(1, 0, step=7), other)


@pytest.mark.parametrize("name", ["minilm", "distilbert", "roberta-large"])
def test_dropout_applies_in_training_only_and_leaves_inference_unchanged(name: str, weights: Any, taxonomy: Taxonomy) -> None:
    network = build_classifier(profiles.get(name), taxonomy, weights=weights(name)).eval()
    ids = torch.tensor([[2, 5, 6, 7, 3], [2, 8, 3, 0, 0]])
    inputs = {"input_ids": ids, "attention_mask": (ids > 0).long()}
    expected = network(**inputs).logits
    dropout.install(network, Masks(0))
    assert not any(isinstance(module, nn.Dropout) for module in network.modules())
    torch.testing.assert_close(network(**inputs).logits, expected, atol=1e-5, rtol=1e-4)
    whole = {"input_ids": ids[:1], "attention_mask": torch.ones_like(ids[:1])}
    torch.testing.assert_close(network(**whole).logits, expected[:1], atol=1e-5, rtol=1e-4)
    assert not torch.equal(network.train()(**inputs).logits, expected)
