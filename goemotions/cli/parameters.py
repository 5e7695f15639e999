"""What each parameter of the steps may be. The command line and the pipelines check values here, before anything runs.

The type of a parameter is that of its definition: of the option, or in the signature of the pipeline.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import click

from goemotions import addresses, defaults
from goemotions.errors import BadArgument
from goemotions.models import profiles
from goemotions.training.options import PRECISIONS

LARGEST_SEED = 2**32 - 1


@dataclass(frozen=True)
class Rule:
    """A condition for values, and what such a value is in words."""

    accepts: Callable[[Any], bool]
    description: str


def at_least(least: float) -> Rule:
    return Rule(lambda value: math.isfinite(value) and value >= least, f"a number from {least:g}")


def between(least: float, most: float) -> Rule:
    return Rule(lambda value: least <= value <= most, f"a number from {least:g} to {most:,g}")


def within(low: float, high: float) -> Rule:
    description = f"a number above {low:g}" + (f" and below {high:g}" if math.isfinite(high) else "")
    return Rule(lambda value: low < value < high, description)


def one_of(*choices: str) -> Rule:
    return Rule(lambda value: value in choices, f"one of {', '.join(choices)}")


def matching(pattern: str, description: str) -> Rule:
    return Rule(lambda value: re.fullmatch(pattern, value) is not None, description)


def _is_strategy(name: str) -> bool:
    # Importing NumPy takes a fifth of a second.
    from goemotions.metrics.strategies import STRATEGIES

    return name in (*STRATEGIES, "best", "precision", "recall")


NOT_EMPTY = Rule(lambda value: bool(value.strip()), "not empty")
NAME = matching(
    r"[A-Za-z0-9]([A-Za-z0-9._-]{0,98}[A-Za-z0-9])?",
    "a name of letters, digits, '-', '_' and '.', which begins and ends with a letter or digit, of at most 100 characters",
)
# As Kubernetes has them.
LABEL = r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?"
NAMESPACE = matching(f"({LABEL})?", "the name of a namespace: small letters, digits and '-', at most 63, or empty")
SERVICE = matching(r"[a-z]([-a-z0-9]{0,48}[a-z0-9])?", "that of services too: small letters, digits and '-', at most 50")
SECRET = matching(rf"{LABEL}(\.{LABEL})*", "the name of a Kubernetes object: small letters, digits, '-' and '.'")
IMAGE = matching(r"(?!.*//)[A-Za-z0-9][A-Za-z0-9._/:@-]*", "the name of an image, such as registry.example/team/name:tag")
STRATEGY = Rule(_is_strategy, "best, precision, recall, or the name of a strategy, such as per-label")
TEXTS = Rule(lambda value: all(isinstance(one, str) and one.strip() for one in value) and bool(value), "a list of names")
WITHOUT_REPETITION = Rule(lambda value: len(set(value)) == len(value), "a list without repetition")
TEXT_BY_NAME = Rule(lambda value: all(isinstance(text, str) for text in value.values()), "a dictionary of texts")
DICTIONARIES = Rule(lambda value: all(isinstance(one, dict) for one in value), "a list of dictionaries")

RULES: Mapping[str, tuple[Rule, ...]] = {
    "models": (TEXTS, WITHOUT_REPETITION),
    "weights": (TEXT_BY_NAME,),
    # An error of its own names the profile that does not exist.
    "teachers": (
        Rule(lambda value: all(isinstance(one, str) for one in value), "a list of names"),
        Rule(lambda value: profiles.teachers(value) is not None, "names of teachers, such as mpnet:2+minilm:3"),
    ),
    "transfer_texts": (between(0, 100),),
    "epochs": (between(0, 10_000),),
    "seed": (between(0, LARGEST_SEED),),
    "precision": (one_of(*PRECISIONS),),
    "checkpoint_minutes": (at_least(0),),
    "text_column": (NOT_EMPTY,),
    "split_share": (within(0, 0.5),),
    "split_seed": (between(0, LARGEST_SEED),),
    "unlabelled": (one_of(*defaults.UNLABELLED_POLICIES),),
    "max_quarantined": (between(0, 1),),
    "threshold_strategy": (STRATEGY,),
    "strategy": (STRATEGY,),
    "target_precision": (within(0, 1),),
    "target_recall": (within(0, 1),),
    "model_name": (NAME,),
    "latency_budget_ms": (within(0, math.inf),),
    "quality_tolerance": (between(0, 1),),
    "max_age_days": (at_least(0),),
    "drift_cooldown_days": (at_least(0),),
    "cpu_hour_price": (at_least(0),),
    "gpu_hour_price": (at_least(0),),
    "deploy_namespace": (NAMESPACE,),
    "canary_percent": (between(0, 99),),
    "image": (IMAGE,),
    "credentials_secret": (SECRET,),
    "signing_secret": (SECRET,),
    "node_selector": (TEXT_BY_NAME,),
    "tolerations": (DICTIONARIES,),
    "service": (
        matching(rf"(({LABEL}/)?[a-z]([-a-z0-9]{{0,48}}[a-z0-9])?)?", "an InferenceService, or its namespace/name, or empty"),
    ),
    "window": (matching(r"[1-9][0-9]*[smhdw]", "a number with s, m, h, d or w, such as 1d"),),
    "column": (NOT_EMPTY,),
    "shard_rows": (at_least(1),),
    "pods": (between(1, 1000),),
    "shadow_percent": (between(0, 100),),
    "false_rollbacks": (within(0, 1),),
    "slower": (at_least(1),),
    "window_seconds": (within(0, math.inf),),
    "threads": (at_least(0),),
    "log_share": (between(0, 1),),
}
ADDRESSES: Mapping[str, Callable[[str, str], str]] = {
    "data": addresses.source,
    "source": addresses.source,
    "store": addresses.location,
    "input": addresses.location,
    "output": addresses.location,
    "version": addresses.reference,
    "mlflow_address": addresses.server,
    "server": addresses.server,
    "prometheus": addresses.server,
    "scored": addresses.location,
}


def check(name: str, value: Any) -> None:
    """Checks the value of a parameter, which has the type of its definition.

    Raises:
        BadArgument: it is not within the bounds, or none of the choices.
        BadAddress: an address of an unknown form.
    """
    for rule in RULES.get(name, ()):
        if not rule.accepts(value):
            raise BadArgument(f"the parameter {name} is {rule.description}, not {value!r}")
    if name in ADDRESSES:
        ADDRESSES[name](value, name)


def checked(context: click.Context, parameter: click.Parameter, value: Any) -> Any:
    """A callback of an option: checks its value by the option's name."""
    if value is not None and parameter.name:
        check(parameter.name, value)
    return value
