"""The text format in which a server exports its counters."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

LINE = re.compile(r"(?P<name>[a-zA-Z_:][\w:]*)(?:\{(?P<labels>.*)\})? (?P<value>\S+)(?: \S+)?")
LABEL = re.compile(r'([a-zA-Z_]\w*)="((?:[^"\\]|\\.)*)"')
ESCAPED = {r"\\": "\\", r"\"": '"', r"\n": "\n"}


@dataclass(frozen=True)
class Sample:
    """The value of one series of one server; ``labels`` in the order of their names."""

    instance: str
    name: str
    labels: tuple[tuple[str, str], ...]
    value: float


def parse(instance: str, text: str, names: Sequence[str]) -> Iterator[Sample]:
    """The samples of the metrics of these names in a server's text format.

    Raises:
        ValueError: a value is no finite number.
    """
    # Not ``splitlines``: a label may hold one of its other ends of lines.
    for line in text.split("\n"):
        if line.startswith(tuple(names)) and (match := LINE.fullmatch(line)) and match["name"] in names:
            labels = sorted((name, _unescaped(value)) for name, value in LABEL.findall(match["labels"] or ""))
            yield Sample(instance, match["name"], tuple(labels), finite(match["value"]))


def _unescaped(value: str) -> str:
    return re.sub(r"\\.", lambda one: ESCAPED.get(one[0], one[0]), value)


def finite(value: str) -> float:
    """The number; evidence that is not one would never decide.

    Raises:
        ValueError: it is none, or not finite.
    """
    if not math.isfinite(number := float(value)):
        raise ValueError(f"a counter is {value}")
    return number
