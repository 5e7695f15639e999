"""Tables for people, which no step reads again: metrics as CSV and Markdown, predictions as CSV."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from goemotions.data.text import as_cell, as_markdown
from goemotions.evaluation.predictions import Predictions


def write_csv(path: Path, rows: Sequence[Mapping[str, object]]) -> None:
    """Writes rows, at least one, as CSV; those keys that the first one has are the columns."""
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(map(as_cell, cells) for cells in (rows[0], *(row.values() for row in rows)))


def write_markdown(path: Path, rows: Sequence[Mapping[str, object]]) -> None:
    """Writes rows as a Markdown table, numbers with four decimals."""
    lines = [list(rows[0]), ["---"] * len(rows[0]), *([_cell(value) for value in row.values()] for row in rows)]
    path.write_text("".join(f"| {' | '.join(cells)} |\n" for cells in lines), encoding="utf-8")


def write_predictions(path: Path, predictions: Predictions, predicted: np.ndarray) -> None:
    """Writes id, labels, predicted labels and probabilities of each row as CSV; ``predicted`` is bool [n, labels]."""
    names = np.array(predictions.names, dtype=object)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(map(as_cell, ["id", "labels", "predicted", *predictions.names]))
        rows = zip(predictions.ids, predictions.labels, predicted, predictions.probabilities, strict=True)
        for row_id, labels, decided, scores in rows:
            texts = map(as_cell, (row_id, "|".join(names[labels]), "|".join(names[decided])))
            writer.writerow([*texts, *(f"{score:.6f}" for score in scores)])


def _cell(value: object) -> str:
    text = "" if value is None else f"{value:.4f}" if isinstance(value, float) else str(value)
    return as_markdown(text)
