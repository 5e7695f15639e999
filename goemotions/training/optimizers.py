"""The optimizer: AdamW with a learning rate per layer, a linear schedule, and clipped gradients.

On a CPU the word embeddings, half of a small encoder's weights, are updated lazily and not decayed: SparseAdam updates only the words
of a batch, because reading and writing all of them at each step would take as long as a layer.
"""

from __future__ import annotations

from typing import Any

import torch

from goemotions.models.architectures import head_parameters, layer_depth
from goemotions.models.profiles import Hyperparameters

CLIP_NORM = 1.0


class Optimizer:
    """AdamW for a classifier; with ``is_lazy``, only the word embeddings of a batch are updated.

    Create it before the classifier is wrapped for distributed training.
    """

    def __init__(self, classifier: Any, hyperparameters: Hyperparameters, *, is_lazy: bool) -> None:
        embeddings = classifier.get_input_embeddings()
        embeddings.sparse = is_lazy
        self._warmup_ratio = hyperparameters.warmup_ratio
        self._words: torch.nn.Parameter | None = embeddings.weight if is_lazy else None
        self._dense = [parameter for parameter in classifier.parameters() if parameter is not self._words]
        groups = parameter_groups(classifier, hyperparameters)
        self._parts: list[torch.optim.Optimizer] = []
        if self._words is not None:
            rate = next(group["peak_lr"] for group in groups if any(one is self._words for one in group["params"]))
            for group in groups:
                group["params"] = [one for one in group["params"] if one is not self._words]
            lazy = [{"params": [self._words], "peak_lr": rate}]
            self._parts = [torch.optim.SparseAdam(lazy, lr=hyperparameters.learning_rate)]
        groups = [group for group in groups if group["params"]]
        self._parts.insert(0, torch.optim.AdamW(groups, lr=hyperparameters.learning_rate, fused=True))

    def step(self, progress: float) -> None:
        """Clips the gradients together, updates the weights and clears the gradients. ``progress``: share of the steps done."""
        self._clip()
        factor = schedule(progress, self._warmup_ratio)
        for part in self._parts:
            for group in part.param_groups:
                group["lr"] = group["peak_lr"] * factor
            part.step()
            part.zero_grad(set_to_none=True)

    def _clip(self) -> None:
        gradients = [parameter.grad for parameter in self._dense if parameter.grad is not None]
        if self._words is not None and self._words.grad is not None:
            # A word that occurs twice in a batch has two gradients until they are summed.
            self._words.grad = self._words.grad.coalesce()
            gradients.append(self._words.grad._values())
        norm = torch.nn.utils.get_total_norm(gradients)
        torch._foreach_mul_(gradients, torch.clamp(CLIP_NORM / (norm + 1e-6), max=1.0))

    def state(self) -> dict[str, torch.Tensor]:
        """Returns the optimizer's state for a checkpoint."""
        return {
            f"{number}.{index}.{name}": torch.as_tensor(value)
            for number, part in enumerate(self._parts)
            for index, state in part.state_dict()["state"].items()
            for name, value in state.items()
        }

    def load(self, tensors: dict[str, torch.Tensor]) -> None:
        """Restores what ``state`` of an optimizer for the same classifier returned.

        Raises:
            LookupError, ValueError: it is that of another classifier.
        """
        for number, part in enumerate(self._parts):
            state: dict[int, dict[str, Any]] = {}
            for key, value in tensors.items():
                part_number, index, name = key.split(".", 2)
                if int(part_number) == number:
                    # SparseAdam counts its steps in a Python int.
                    is_count = name == "step" and isinstance(part, torch.optim.SparseAdam)
                    state.setdefault(int(index), {})[name] = int(value) if is_count else value
            part.load_state_dict({**part.state_dict(), "state": state})
            for parameter, values in part.state.items():
                if any(torch.is_tensor(value) and value.ndim and value.shape != parameter.shape for value in values.values()):
                    raise ValueError("the state of the optimizer has another shape than its parameters")


def schedule(progress: float, warmup_ratio: float) -> float:
    """Returns the factor of the learning rate at a share of the steps: up linearly during warm-up, then down linearly to 0."""
    return progress / warmup_ratio if progress < warmup_ratio else (1 - progress) / (1 - warmup_ratio)


def parameter_groups(classifier: Any, hyperparameters: Hyperparameters) -> list[dict[str, Any]]:
    """Groups parameters by learning rate (per layer, and the head's) and decay (not of biases and normalisation weights)."""
    in_head = {id(parameter) for parameter in head_parameters(classifier)}
    layers = int(classifier.config.num_hidden_layers)
    groups: dict[tuple[float, bool], list[torch.nn.Parameter]] = {}
    for name, parameter in classifier.named_parameters():
        if id(parameter) in in_head:
            factor = hyperparameters.head_lr_multiplier
        else:
            factor = hyperparameters.layer_decay ** (layers - layer_depth(classifier, name))
        groups.setdefault((factor, parameter.ndim > 1), []).append(parameter)
    return [
        {
            "params": parameters,
            "peak_lr": hyperparameters.learning_rate * factor,
            "weight_decay": hyperparameters.weight_decay if is_matrix else 0.0,
        }
        for (factor, is_matrix), parameters in groups.items()
    ]
