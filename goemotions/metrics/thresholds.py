"""Thresholds: applied to probabilities, and kept in ``thresholds.json`` with the comparison of the strategies (``strategies``)."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from goemotions import strict_json
from goemotions.errors import BadJson, ModelError
from goemotions.metrics.probabilities import is_top_k

FILE = "thresholds.json"
# Ends the names of cross-fitted metrics in a row of the comparison.
CROSS_FITTED = "_cross_fitted"
# Of a label that is never predicted, the lowest float32 above 1: a probability may round to 1.
NEVER = float(np.nextafter(np.float32(1), np.float32(2)))


@dataclass(frozen=True)
class Thresholds:
    """A fitted strategy: one threshold per label, and for top-k the highest number of labels per text."""

    strategy: str
    values: tuple[float, ...]
    k: int | None = None

    def apply(self, probabilities: np.ndarray) -> np.ndarray:
        """Which labels are predicted, bool [n, labels]."""
        reached: np.ndarray = probabilities >= np.asarray(self.values, dtype=np.float32)
        return reached if self.k is None else reached & is_top_k(probabilities, self.k)


@dataclass(frozen=True)
class StrategyResult:
    """A fitted strategy in the comparison.

    Attributes:
        thresholds: fitted on all rows.
        cross_fitted: the metrics of ``classification.decisions``, of decisions on rows that the thresholds were not fitted on.
        f1_macro_fitted: the macro F1 of ``thresholds`` on the rows that they were fitted on.
    """

    thresholds: Thresholds
    cross_fitted: dict[str, float]
    f1_macro_fitted: float

    def to_row(self) -> dict[str, Any]:
        """The result as a flat row of JSON types."""
        cross_fitted = {f"{name}{CROSS_FITTED}": value for name, value in self.cross_fitted.items()}
        return {**cross_fitted, "f1_macro_fitted": self.f1_macro_fitted, **asdict(self.thresholds)}

    @classmethod
    def from_row(cls, row: dict[str, Any]) -> StrategyResult:
        # Rows of older bundles have no values and fewer metrics.
        fitted = Thresholds(row["strategy"], tuple(row.get("values", ())), row.get("k"))
        metrics = {key.removesuffix(CROSS_FITTED): value for key, value in row.items() if key.endswith(CROSS_FITTED)}
        return cls(fitted, metrics, row["f1_macro_fitted"])


@dataclass(frozen=True)
class ThresholdsFile:
    """``thresholds.json``: the chosen thresholds by label, the comparison of the strategies, and what they were fitted on.

    ``names`` are the labels, in the order of the thresholds.
    """

    thresholds: Thresholds
    names: tuple[str, ...]
    comparison: list[StrategyResult]
    split: str = ""
    engine: str = ""
    digest: str = ""

    @property
    def chosen(self) -> StrategyResult:
        """The result of the chosen strategy."""
        return next(result for result in self.comparison if result.thresholds.strategy == self.thresholds.strategy)

    def write(self, path: Path) -> None:
        content = {
            "strategy": self.thresholds.strategy,
            "thresholds": dict(zip(self.names, self.thresholds.values, strict=True)),
            "k": self.thresholds.k,
            "split": self.split,
            "engine": self.engine,
            "digest": self.digest,
            "f1_macro_cross_fitted": self.chosen.cross_fitted["f1_macro"],
            "comparison": [result.to_row() for result in self.comparison],
        }
        path.write_text(json.dumps(content, indent=1), encoding="utf-8")


def read(path: Path) -> ThresholdsFile:
    """Reads a ``thresholds.json``.

    Raises:
        ModelError: the file is missing or damaged.
    """
    content = None
    with suppress(BadJson):
        content = strict_json.read_bytes(path)
    return parse(content, str(path))


def parse(content: bytes | None, name: str) -> ThresholdsFile:
    """``read`` for the bytes of a file of this name; None if there is none."""
    try:
        values = strict_json.parse(content, name)
        strict_json.require(values["thresholds"], dict[str, float], name)
        strict_json.require(values["strategy"], str, name)
        strict_json.require(values["k"], int | None, name)
        if values["k"] is not None and values["k"] < 1:
            raise ValueError("no label could be predicted")
        if not all(0 <= threshold <= NEVER for threshold in values["thresholds"].values()):
            raise ValueError("a threshold is no probability")
        return ThresholdsFile(
            Thresholds(values["strategy"], tuple(values["thresholds"].values()), values["k"]),
            tuple(values["thresholds"]),
            [StrategyResult.from_row(row) for row in values.get("comparison", ())],
            **{key: values.get(key, "") for key in ("split", "engine", "digest")},
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{name} is missing or damaged: run `goemotions tune-thresholds` again") from error
