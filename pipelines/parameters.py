"""Pipeline parameters from a command line: checked by name, since KFP passes on what the pipeline does not know."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

from kfp.dsl.base_component import BaseComponent

from goemotions.errors import WorkflowError
from pipelines.training import training

# Former names of pipeline parameters, still accepted.
RENAMED = {"stated_precision": "target_precision", "stated_recall": "target_recall"}


class BadArgument(WorkflowError):
    """An option of the command line cannot be understood."""


def parse(values: tuple[str, ...], pipeline: BaseComponent = training) -> dict[str, Any]:
    """``name=value`` pairs as parameters of a pipeline; a value is JSON, or a plain string.

    Raises:
        BadArgument: no pair, or no parameter of that name.
    """
    found: dict[str, Any] = {}
    known = pipeline.component_spec.inputs
    for name, value in map(pair, values):
        name = RENAMED.get(name, name)
        if name not in known:
            raise BadArgument(f"the pipeline has no parameter {name!r}: it has {', '.join(known)}")
        found[name] = value
        if known[name].type != "String":
            with contextlib.suppress(ValueError):
                found[name] = json.loads(value)
    return found


def named_weights(values: tuple[str, ...]) -> dict[str, str]:
    """``profile=location`` pairs; a local path becomes absolute: each step runs in a directory of its own."""
    pairs = [pair(value) for value in values]
    return {profile: place if "://" in place else str(Path(place).expanduser().absolute()) for profile, place in pairs}


def source(value: str) -> str:
    """The source of the data; a local folder becomes absolute."""
    return str(Path(value).absolute()) if Path(value).is_dir() else value


def pair(value: str) -> tuple[str, str]:
    name, separator, rest = value.partition("=")
    if not (name and separator and rest):
        raise BadArgument(f"{value!r} is not a name=value pair")
    return name, rest
