"""Options that several commands share, and the parser of ``name=value`` options."""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

import click

from goemotions import addresses, defaults
from goemotions.cli.parameters import checked
from goemotions.errors import BadArgument
from goemotions.models import engine_names

Record = TypeVar("Record")
Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


class Number(click.FloatRange):
    """A finite number of a range. Click accepts ``nan`` in any, and no comparison with it is true: no limit would hold."""

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> Any:
        if not math.isfinite(number := super().convert(value, parameter, context)):
            self.fail(f"{value!r} is no finite number", parameter, context)
        return number


class LocalPath(click.Path):
    """A path on this machine; the address of another place is refused."""

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> Any:
        addresses.path(str(value), _name(parameter))
        return super().convert(value, parameter, context)


class Address(click.ParamType[str]):
    """An address, which a function of ``goemotions.addresses`` checks."""

    name = "text"

    def __init__(self, check: Callable[[str, str], str]) -> None:
        self.check = check

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> Any:
        return self.check(str(value), _name(parameter))


def _name(parameter: click.Parameter | None) -> str:
    """The longest spelling of an option, or the name of an argument."""
    return max(parameter.opts, key=len) if parameter else ""


FILE = LocalPath(path_type=Path, dir_okay=False)
# A value may contain spaces, such as those of JSON.
NEXT_PAIR = re.compile(r"\s+(?=[A-Za-z_][\w-]*=)")
FOLDER = LocalPath(path_type=Path, file_okay=False)
LOCATION, SOURCE, REFERENCE = Address(addresses.location), Address(addresses.source), Address(addresses.reference)
SERVER, IMAGE_PREFIX = Address(addresses.server), Address(addresses.image_prefix)


class EngineName(click.Choice[str]):
    """The name of an engine; former names are accepted."""

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> Any:
        return super().convert(engine_names.canonical_name(value), parameter, context)


ENGINE = EngineName(engine_names.NAMES)


def pairs(values: Iterable[str]) -> dict[str, str]:
    """``name=value`` texts by name; one text may hold several pairs, separated by spaces.

    Raises:
        BadArgument: a pair has no ``=``, or nothing before or after it, or two have the same name.
    """
    parsed: dict[str, str] = {}
    for text in (pair for value in values for pair in NEXT_PAIR.split(value.strip())):
        name, _, value = text.partition("=")
        if not (name and value):
            raise BadArgument(f"{text!r} is not a name=value pair")
        if parsed.setdefault(name, value) != value:
            raise BadArgument(f"{name} has two values, {parsed[name]!r} and {value!r}: give one")
    return parsed


def pair_option(*names: str, metavar: str = "NAME=VALUE", help: str) -> Any:
    """A repeatable option whose values the command gets as one dictionary."""
    return click.option(
        *names, multiple=True, metavar=metavar, callback=lambda context, parameter, texts: pairs(texts), help=help
    )


WEIGHTS = pair_option(
    "--weights", metavar="PROFILE=LOCATION", help="Other weights for a profile: s3://bucket/prefix/ or a folder."
)


def options_of(record: type[Any]) -> Decorator:
    """Returns a decorator that adds one option per field; the command gets each value under the field's name.

    A field's metadata holds ``help`` and, if needed, ``flag`` (the option, if it is not the field's name), ``choices``, ``type``
    (``location`` or ``server``), and ``least`` (the smallest number; otherwise 0). A field without a plain default takes
    ``NAME=VALUE`` pairs and gets a dictionary.
    """

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        for field in reversed(dataclasses.fields(record)):
            flag = field.metadata.get("flag", f"--{field.name.replace('_', '-')}")
            if field.default is dataclasses.MISSING:
                option = pair_option(flag, field.name, help=field.metadata["help"])
            else:
                shown = {"default": field.default, "show_default": field.default != "", "help": field.metadata["help"]}
                # A location is checked by its type.
                callback = None if "type" in field.metadata else checked
                option = click.option(flag, field.name, type=_type(field), callback=callback, **shown)
            command = option(command)
        return command

    return decorate


def record_of(kind: type[Record], options: dict[str, Any]) -> Record:
    """A record of options that ``options_of`` added; they are taken out of the others."""
    return kind(**{field.name: options.pop(field.name) for field in dataclasses.fields(kind)})  # type: ignore[arg-type]


def _type(field: dataclasses.Field[Any]) -> Any:
    if "type" in field.metadata:
        return {"location": LOCATION, "server": SERVER}[field.metadata["type"]]
    if "choices" in field.metadata:
        return click.Choice(field.metadata["choices"])
    least = field.metadata.get("least", 0)
    return {int: click.IntRange(min=least), float: Number(min=least)}.get(type(field.default))


def setting(*names: str, default: Any, help: str) -> Decorator:
    """An option with a default, whose value is checked by the rule of its name (``parameters.RULES``)."""
    return click.option(*names, default=default, show_default=True, callback=checked, help=help)


def together(*options: Decorator) -> Decorator:
    """Several options as one decorator; `--help` lists them in this order."""
    return lambda command: functools.reduce(lambda decorated, add: add(decorated), reversed(options), command)


LATENCY_BUDGET = setting(
    "--latency-budget-ms", default=defaults.LATENCY_BUDGET_MS, help="Largest latency for one text of a cpu version, in ms."
)
QUALITY_TOLERANCE = setting(
    "--quality-tolerance",
    default=defaults.QUALITY_TOLERANCE,
    help="Micro AUC and macro F1 on validation that a clearly faster cpu version may lose; 0 for none.",
)
TEXT_COLUMN = setting(
    "--text-column",
    default=defaults.TEXT_COLUMN,
    help="Column with the texts; a number for files that do not name their columns.",
)
MODEL_NAME = setting("--model-name", default=defaults.MODEL_NAME, help="Name of the registered model.")
BUNDLE = click.option(
    "--bundle",
    type=REFERENCE,
    default=defaults.REFERENCE,
    show_default=True,
    help="An alias, a version number, models:/name@alias, models:/name/number, or a location (a folder or s3://).",
)
