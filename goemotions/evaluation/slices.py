"""Slices: the metrics of kinds of texts, such as long ones or those of another script, with intervals."""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypedDict

import numpy as np

from goemotions.data.text import count_words, script
from goemotions.evaluation.error_analysis import LENGTHS
from goemotions.evaluation.predictions import Predictions
from goemotions.evaluation.robustness import EMOJI, PLACEHOLDER
from goemotions.metrics import bootstrap, classification
from goemotions.metrics.thresholds import Thresholds

# In the folder of a scored split: the slices of each row, without its text; and their metrics at 0.5.
FILE = "slices.csv"
PER_SLICE = "per_slice.csv"
RESAMPLES = 500
# That of Latin, the wide one of Chinese and Japanese, the Arabic and the Armenian one.
QUESTION_MARKS = frozenset("?\uff1f\u061f\u055e")
# Metrics of fewer texts say little.
FEW_TEXTS = 30


def _words(text: str) -> str:
    count = count_words(text)
    edges = (1, *LENGTHS)
    position = int(np.searchsorted(LENGTHS, count, side="right"))
    return f"{edges[position]} to {edges[position + 1] - 1}" if position < len(LENGTHS) else f"{edges[-1]} or more"


def _has(present: bool) -> str:
    return "yes" if present else "no"


SLICES: dict[str, Callable[[str], str]] = {
    "words": _words,
    "script": script,
    "emoji": lambda text: _has(bool(EMOJI.search(text))),
    "masked names": lambda text: _has(bool(PLACEHOLDER.search(text))),
    "question marks": lambda text: _has(not QUESTION_MARKS.isdisjoint(text)),
}


class SliceRow(TypedDict):
    """The metrics of the texts of one slice.

    Attributes:
        f1_low, f1_high: the 95% interval of ``f1_micro``.
        difference_low, difference_high: that of its difference to the micro F1 of all texts, on the same resamples.
    """

    kind: str
    slice: str
    texts: int
    auc_micro: float
    f1_micro: float
    f1_low: float
    f1_high: float
    difference_low: float
    difference_high: float


def write(path: Path, ids: Sequence[str], texts: Sequence[str]) -> None:
    """Writes the slices of n texts, a row per text and a column per kind."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["id", *SLICES])
        writer.writerows([row_id, *(find(text) for find in SLICES.values())] for row_id, text in zip(ids, texts, strict=True))


def read(folder: Path) -> dict[str, list[str]]:
    """The slice of each row of a scored split, per kind; empty for a folder from before there were slices."""
    path = folder / FILE
    if not path.is_file():
        return {}
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return {kind: [row[kind] for row in rows] for kind in SLICES if rows and kind in rows[0]}


def measure(predictions: Predictions, fitted: Thresholds, slices: Mapping[str, Sequence[str]]) -> list[SliceRow]:
    """One row for all texts, and one for each slice of each kind that has several; ``slices``: per kind that of each row."""
    labels, predicted = predictions.labels, fitted.apply(predictions.probabilities)
    drawn = bootstrap.weights(len(labels), RESAMPLES)
    everything = bootstrap.f1(labels, predicted, drawn)[1]
    rows = []
    for kind, values in {"all": ["all texts"] * len(labels), **slices}.items():
        # Lengths are ordered by their first number, the others by size.
        order = sorted(set(values), key=lambda value: (int(value.split()[0]) if kind == "words" else 0, -values.count(value)))
        for value in order if len(order) > 1 or kind == "all" else ():
            inside = np.array([one == value for one in values])
            scores = bootstrap.f1(labels[inside], predicted[inside], drawn[:, inside])[1]
            low, high = bootstrap.interval(scores)
            difference_low, difference_high = bootstrap.interval(scores - everything)
            auc = classification.ranking(labels[inside], predictions.probabilities[inside])["auc_micro"]
            rows.append(
                SliceRow(
                    kind=kind,
                    slice=value,
                    texts=int(inside.sum()),
                    auc_micro=auc,
                    f1_micro=float(scores[0]),
                    f1_low=low,
                    f1_high=high,
                    difference_low=difference_low,
                    difference_high=difference_high,
                )
            )
    return rows
