"""The optimizer: no update for words that a batch lacks, equal to AdamW otherwise, and resumed bit for bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from goemotions.data.taxonomy import Taxonomy
from goemotions.models import profiles
from goemotions.models.classifier import build_classifier
from goemotions.training.optimizers import Optimizer

PROFILE = profiles.get("minilm", {"learning_rate": 1e-2, "weight_decay": 0.0, "dropout": 0.0})
LABELS = torch.tensor([[1.0, 0, 0, 0, 0, 0, 0], [0, 1, 1, 0, 0, 0, 0]])


@pytest.fixture
def network(weights: Any, taxonomy: Taxonomy) -> Any:
    return build_classifier(PROFILE, taxonomy, weights=weights("minilm")).eval()


def advance(network: Any, optimizer: Optimizer, ids: torch.Tensor, progress: float = 0.5) -> None:
    logits = network(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
    torch.nn.functional.binary_cross_entropy_with_logits(logits, LABELS).backward()
    optimizer.step(progress)


def parameters(network: Any) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in network.named_parameters()}


IDS = torch.tensor([[2, 5, 5, 6, 3], [2, 7, 6, 8, 3]])


def test_only_the_embeddings_of_words_in_the_batch_are_updated(network: Any) -> None:
    optimizer = Optimizer(network, PROFILE.hyperparameters, is_lazy=True)
    before = network.get_input_embeddings().weight.detach().clone()
    advance(network, optimizer, IDS)
    # The second batch lacks the words 5 and 8; AdamW would still update them by their momentum.
    other = torch.where((IDS == 5) | (IDS == 8), 9, IDS)
    middle = network.get_input_embeddings().weight.detach().clone()
    advance(network, optimizer, other)
    after = network.get_input_embeddings().weight.detach()
    moved = lambda one, two: set(torch.nonzero((one != two).any(dim=1)).flatten().tolist())  # noqa: E731
    assert moved(before, middle) == {2, 3, 5, 6, 7, 8}
    assert moved(middle, after) == {2, 3, 6, 7, 9}


def test_with_every_word_in_the_batch_the_update_is_that_of_adamw(network: Any, weights: Any, taxonomy: Taxonomy) -> None:
    other = build_classifier(PROFILE, taxonomy, weights=weights("minilm")).eval()
    lazy, eager = (
        Optimizer(network, PROFILE.hyperparameters, is_lazy=True),
        Optimizer(other, PROFILE.hyperparameters, is_lazy=False),
    )
    for step in range(4):
        advance(network, lazy, IDS, step / 4)
        advance(other, eager, IDS, step / 4)
    for name, values in parameters(network).items():
        torch.testing.assert_close(values, parameters(other)[name], atol=2e-4, rtol=1e-3, msg=name)


def test_gradients_are_clipped_together(network: Any) -> None:
    optimizer = Optimizer(network, PROFILE.hyperparameters, is_lazy=True)
    logits = network(input_ids=IDS, attention_mask=torch.ones_like(IDS)).logits
    (1000 * torch.nn.functional.binary_cross_entropy_with_logits(logits, LABELS)).backward()
    optimizer._clip()
    squares = [
        (parameter.grad.coalesce().values() if parameter.grad.is_sparse else parameter.grad).square().sum()
        for parameter in network.parameters()
        if parameter.grad is not None
    ]
    assert float(torch.stack(squares).sum().sqrt()) == pytest.approx(1, abs=1e-3)


def test_a_resumed_optimizer_gives_the_same_bits(network: Any, weights: Any, taxonomy: Taxonomy) -> None:
    first = Optimizer(network, PROFILE.hyperparameters, is_lazy=True)
    for step in range(3):
        advance(network, first, IDS, step / 6)
    other = build_classifier(PROFILE, taxonomy, weights=weights("minilm")).eval()
    second = Optimizer(other, PROFILE.hyperparameters, is_lazy=True)
    other.load_state_dict(network.state_dict())
    second.load({name: tensor.clone() for name, tensor in first.state().items()})
    for step in range(3, 6):
        advance(network, first, IDS, step / 6)
        advance(other, second, IDS, step / 6)
    assert all(torch.equal(values, parameters(other)[name]) for name, values in parameters(network).items())
