"""Options of the command line that are made from the fields of a dataclass."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

import click


def options_of(record: type[Any]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Returns a decorator that adds one option per field; the command gets each value under the field's name.

    A field's metadata holds ``help`` and, if needed, ``flag`` (the option, if it is not the field's name), ``choices``, and ``least``
    (the smallest number; otherwise 0). A field without a plain default takes ``NAME=VALUE`` pairs and gets a dictionary.
    """

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        for field in reversed(dataclasses.fields(record)):
            flag = field.metadata.get("flag", f"--{field.name.replace('_', '-')}")
            kind: dict[str, Any] = {"default": field.default, "show_default": field.default != "", "type": _type(field)}
            if field.default is dataclasses.MISSING:
                kind = {"multiple": True, "metavar": "NAME=VALUE", "callback": _pairs}
            command = click.option(flag, field.name, help=field.metadata["help"], **kind)(command)
        return command

    return decorate


def _type(field: dataclasses.Field[Any]) -> Any:
    if "choices" in field.metadata:
        return click.Choice(field.metadata["choices"])
    least = field.metadata.get("least", 0)
    return {int: click.IntRange(min=least), float: click.FloatRange(min=least)}.get(type(field.default))


def _pairs(context: click.Context, parameter: click.Parameter, values: Iterable[str]) -> dict[str, str]:
    return dict(value.partition("=")[::2] for value in values)
