"""Parameters of the pipelines from a command line. Names, types, profiles and locations are checked before anything runs.

KFP itself passes on parameters that the pipeline does not have, and values of any type.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from kfp.dsl.base_component import BaseComponent

from goemotions import addresses, defaults
from goemotions.cli import parameters as rules
from goemotions.errors import BadArgument
from goemotions.models import profiles
from pipelines.monitoring import monitoring
from pipelines.scoring import scoring
from pipelines.training import training

# Former names of parameters.
RENAMED = {"stated_precision": "target_precision", "stated_recall": "target_recall"}
# KFP's name of a type, the type of its JSON value, and what to call it in a message.
TYPES: dict[str, tuple[type | tuple[type, ...], str]] = {
    "String": (str, "a text"),
    "Integer": (int, "a whole number"),
    "Float": ((int, float), "a number"),
    "Boolean": (bool, "true or false"),
    "List": (list, "a list in JSON"),
    "Dict": (dict, "a dictionary in JSON"),
}


def training_arguments(
    data: str,
    models: str,
    weights: Mapping[str, str],
    epochs: int,
    others: Mapping[str, str],
    *,
    teachers: str = "",
    is_local: bool = False,
    pipeline: BaseComponent = training,
) -> dict[str, Any]:
    """Parameters of the training pipeline.

    Args:
        data, epochs: the source, and 0 for the epochs of each profile.
        models, weights: names of profiles, separated by commas, and locations by profile.
        others: any parameters by name, as text; they take precedence.
        teachers: names of teachers, separated by ``+``.
        is_local: whether the steps run on this machine, where they can read its folders. Paths become absolute, because each step runs
            in a directory of its own.
        pipeline: the variant of the pipeline.

    Raises:
        BadArgument: no such parameter, a value of another type, or a location that a pod cannot read.
        ModelError: no such profile or hyperparameter.
    """
    arguments: dict[str, Any] = {"data": data, "models": [name.strip() for name in models.split(",")]}
    if epochs:
        arguments["epochs"] = epochs
    if weights:
        arguments["weights"] = dict(weights)
    if teachers:
        arguments["teachers"] = teachers.split("+")
    arguments |= typed(others, pipeline)
    check(arguments, pipeline)
    locate = _absolute if is_local else _readable_by_pods
    arguments["data"] = locate(arguments["data"])
    if "store" in arguments and not is_local:
        _require_s3(arguments["store"])
    elif "store" in arguments and not addresses.is_s3(arguments["store"]):
        arguments["store"] = str(addresses.local(arguments["store"]).absolute())
    if "teachers" in arguments:
        arguments["teachers"] = [
            locate(teacher.location) if teacher.location else str(teacher)
            for teacher in profiles.teachers(arguments["teachers"])
        ]
    if "weights" in arguments:
        arguments["weights"] = {name: locate(location) for name, location in arguments["weights"].items()}
    return arguments


def scoring_arguments(input: str, output: str, others: Mapping[str, str]) -> dict[str, Any]:
    """Parameters of the scoring pipeline.

    Raises:
        BadArgument: no such parameter, a value of another type, or a location outside S3.
    """
    arguments = {"input": input, "output": output, **typed(others, scoring)}
    check(arguments, scoring)
    for location in (arguments["input"], arguments["output"]):
        _require_s3(location, " (`goemotions score` takes folders)")
    return arguments


def monitoring_arguments(
    server: str, prometheus: str, scored: str, others: Mapping[str, str], *, is_local: bool = False
) -> dict[str, Any]:
    """Parameters of the monitoring pipeline; those that are empty are left out.

    Raises:
        BadArgument: none or several of server, prometheus and scored, no such parameter, a value of another type, or a location that a
            pod cannot read.
    """
    given = {name: value for name, value in (("server", server), ("prometheus", prometheus), ("scored", scored)) if value}
    arguments = {**given, **typed(others, monitoring)}
    check(arguments, monitoring)
    if len({"server", "prometheus", "scored"} & set(arguments)) != 1:
        raise BadArgument("give one of SERVER, PROMETHEUS and SCORED (--server, --prometheus, --scored): where the traffic is")
    if location := arguments.get("scored"):
        if not is_local:
            _require_s3(location)
        arguments["scored"] = _absolute(location)
    return arguments


def check(arguments: Mapping[str, Any], pipeline: BaseComponent = training) -> None:
    """Checks every parameter of a run: its name, its type as the pipeline declares it, its bounds and choices, and the profiles.

    Raises:
        BadArgument: no such parameter, or a value that it cannot have.
        BadAddress: an address of an unknown form.
        ModelError: no such profile or hyperparameter, or a hyperparameter with a value that it cannot have.
    """
    declared = pipeline.component_spec.inputs
    for name, value in arguments.items():
        if name not in declared:
            raise BadArgument(f"the pipeline has no parameter {name!r}: it has {', '.join(declared)}")
        accepted, called = TYPES[declared[name].type.partition("[")[0]]
        if not isinstance(value, accepted) or (isinstance(value, bool) and accepted is not bool):
            raise BadArgument(f"the parameter {name} is {called}, not {value!r}")
        rules.check(name, value)
    if arguments.get("deploy_namespace") and not rules.SERVICE.accepts(
        name := arguments.get("model_name", defaults.MODEL_NAME)
    ):
        raise BadArgument(f"the parameter model_name, with a deploy_namespace, is {rules.SERVICE.description}, not {name!r}")
    if "models" in declared:
        _check_profiles(arguments)


def typed(values: Mapping[str, str], pipeline: BaseComponent = training) -> dict[str, Any]:
    """Parameters of a pipeline from text, with the types that the pipeline declares as far as the text has them, for ``check``."""
    declared = pipeline.component_spec.inputs
    names = {RENAMED.get(name, name): text for name, text in values.items()}
    return {name: _value(name, text, declared[name].type if name in declared else "String") for name, text in names.items()}


def _value(name: str, text: str, kind: str) -> Any:
    if kind == "String":
        return text
    if name == "teachers" and not text.startswith("["):
        return text.split("+")
    try:
        value = json.loads(text.lower() if kind == "Boolean" else text)
        # KFP refuses a whole number for one that may have decimals.
        return float(value) if kind == "Float" and type(value) is int else value
    except ValueError:
        return text


def _check_profiles(arguments: Mapping[str, Any]) -> None:
    weights, settings = arguments.get("weights", {}), arguments.get("settings", {})
    for name, location in weights.items():
        addresses.location(location, f"weights of {name}")
    for name in {*arguments.get("models", ()), *weights, *settings}:
        changed = settings.get(name, {})
        if not isinstance(changed, dict):
            raise BadArgument(f"the settings of {name} are a dictionary of hyperparameters, not {changed!r}")
        profiles.get(name, changed)


def _absolute(location: str) -> str:
    path = addresses.local(location)
    return location if addresses.scheme(location) or not path.exists() else str(path.absolute())


def _require_s3(location: str, hint: str = "") -> None:
    if not addresses.is_s3(location):
        raise BadArgument(f"a pod cannot reach {location}: give s3://bucket/prefix/{hint}")


def _readable_by_pods(location: str) -> str:
    if location != addresses.SAMPLE and not location.startswith((addresses.HUB, addresses.S3)):
        raise BadArgument(f"a pod cannot read {location}: put it into S3 (s3://bucket/prefix/) or name a hub:<dataset>")
    return location
