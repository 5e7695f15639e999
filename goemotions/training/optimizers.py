"""The optimizer of a training run: AdamW with a rate for each layer, a linear schedule, and clipped gradients.

On a CPU the word embeddings, half of a small encoder's weights, are updated by Adam only where a batch has the word (SparseAdam, known
as lazy Adam): reading and writing all of them at each step would take as long as a layer. They are not decayed there.
"""

from __future__ import annotations

from typing import Any

import torch

from goemotions.models.classifier import head_parameters, layer_depth
from goemotions.models.profiles import Profile

CLIP_NORM = 1.0


class Optimizer:
    """AdamW for a classifier; ``is_lazy``: with the embeddings of the words of a batch alone. To be made before it is distributed."""

    def __init__(self, classifier: Any, profile: Profile, *, is_lazy: bool) -> None:
        words = classifier.get_input_embeddings()
        words.sparse = is_lazy
        self._profile = profile
        self._words: torch.nn.Parameter | None = words.weight if is_lazy else None
        self._dense = [parameter for parameter in classifier.parameters() if parameter is not self._words]
        groups = parameter_groups(classifier, profile)
        self._parts: list[torch.optim.Optimizer] = []
        if self._words is not None:
            rate = next(group["peak_lr"] for group in groups if any(one is self._words for one in group["params"]))
            for group in groups:
                group["params"] = [one for one in group["params"] if one is not self._words]
            lazy = [{"params": [self._words], "peak_lr": rate}]
            self._parts = [torch.optim.SparseAdam(lazy, lr=profile.learning_rate)]
        groups = [group for group in groups if group["params"]]
        self._parts.insert(0, torch.optim.AdamW(groups, lr=profile.learning_rate, fused=True))

    def step(self, progress: float) -> None:
        """Updates the weights by their gradients, clipped together, and forgets these. ``progress``: share of the steps done."""
        self._clip()
        factor = schedule(progress, self._profile.warmup)
        for part in self._parts:
            for group in part.param_groups:
                group["lr"] = group["peak_lr"] * factor
            part.step()
            part.zero_grad(set_to_none=True)

    def _clip(self) -> None:
        gradients = [parameter.grad for parameter in self._dense if parameter.grad is not None]
        if self._words is not None and self._words.grad is not None:
            # A word that a batch has twice has two gradients until they are added up.
            self._words.grad = self._words.grad.coalesce()
            gradients.append(self._words.grad._values())
        norm = torch.nn.utils.get_total_norm(gradients)
        torch._foreach_mul_(gradients, torch.clamp(CLIP_NORM / (norm + 1e-6), max=1.0))

    def state(self) -> dict[str, torch.Tensor]:
        """What another one goes on from."""
        return {
            f"{number}.{index}.{name}": torch.as_tensor(value)
            for number, part in enumerate(self._parts)
            for index, state in part.state_dict()["state"].items()
            for name, value in state.items()
        }

    def load(self, tensors: dict[str, torch.Tensor]) -> None:
        """Goes on from the state of another one of the same kind."""
        for number, part in enumerate(self._parts):
            state: dict[int, dict[str, Any]] = {}
            for key, value in tensors.items():
                of, index, name = key.split(".", 2)
                if int(of) == number:
                    # SparseAdam counts its steps by a number of Python's.
                    is_count = name == "step" and isinstance(part, torch.optim.SparseAdam)
                    state.setdefault(int(index), {})[name] = int(value) if is_count else value
            part.load_state_dict({**part.state_dict(), "state": state})


def schedule(progress: float, warmup: float) -> float:
    """Factor of the learning rate at a share of the steps: up linearly over the warm-up, then down linearly to 0."""
    return progress / warmup if progress < warmup else (1 - progress) / (1 - warmup)


def parameter_groups(classifier: Any, profile: Profile) -> list[dict[str, Any]]:
    """Layers learn at rates of their own, the head at another; biases and normalisation weights are not decayed, as usual for BERT."""
    in_head = {id(parameter) for parameter in head_parameters(classifier)}
    layers = int(classifier.config.num_hidden_layers)
    groups: dict[tuple[float, bool], list[torch.nn.Parameter]] = {}
    for name, parameter in classifier.named_parameters():
        factor = (
            profile.head_factor if id(parameter) in in_head else profile.layer_decay ** (layers - layer_depth(classifier, name))
        )
        groups.setdefault((factor, parameter.ndim > 1), []).append(parameter)
    return [
        {
            "params": parameters,
            "peak_lr": profile.learning_rate * factor,
            "weight_decay": profile.weight_decay if is_matrix else 0.0,
        }
        for (factor, is_matrix), parameters in groups.items()
    ]
