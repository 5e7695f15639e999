"""Statistics of a data set: what ``dataset.json`` says of the rows that are kept."""

from __future__ import annotations

from typing import TypedDict

import numpy as np
from scipy import sparse

from goemotions.data.taxonomy import Taxonomy
from goemotions.data.validation import Split, is_in, repeated, soft_labels

# The square of more would be too large for the readers of dataset.json.
MOST_PAIRED = 1000


class Statistics(TypedDict):
    """Statistics of the rows that are kept. The outer key of most is the split.

    Attributes:
        label_counts: rows per label.
        labels_absent_from_train: labels without a row in train.
        labels_per_row: at position n the number of rows with n labels.
        words, characters: mean, min, max and percentiles of the texts' lengths.
        cooccurrence: rows of train with both labels, [labels][labels]; on the diagonal, rows with the label. Empty if there are more
            than ``MOST_PAIRED`` labels.
        duplicates: of train: ``texts`` that are repeated, their ``rows``, and ``texts_with_other_labels``, whose labels differ.
    """

    label_counts: dict[str, dict[str, int]]
    labels_absent_from_train: list[str]
    labels_per_row: dict[str, list[int]]
    words: dict[str, dict[str, float]]
    characters: dict[str, dict[str, float]]
    cooccurrence: list[list[int]]
    duplicates: dict[str, int]


class Disagreement(TypedDict):
    """How much the raters of train disagree: rows where they do; per label, the texts that any rater gave it, and the mean share."""

    rows: int
    texts: dict[str, int]
    share: dict[str, float]


def describe(taxonomy: Taxonomy, splits: dict[str, Split]) -> Statistics:
    """The statistics of all splits."""
    counts = {split: _label_counts(rows, len(taxonomy)).tolist() for split, rows in splits.items()}
    are_paired = len(taxonomy) <= MOST_PAIRED
    return {
        "label_counts": {split: dict(zip(taxonomy.names, values, strict=True)) for split, values in counts.items()},
        "labels_absent_from_train": [n for n, count in zip(taxonomy.names, counts["train"], strict=True) if count == 0],
        "labels_per_row": {split: np.bincount(rows.per_row["label_count"]).tolist() for split, rows in splits.items()},
        "words": {split: _percentiles(rows.per_row["words"]) for split, rows in splits.items()},
        "characters": {split: _percentiles(rows.per_row["characters"]) for split, rows in splits.items()},
        "cooccurrence": _cooccurrence(splits["train"], len(taxonomy)).tolist() if are_paired else [],
        "duplicates": _duplicates(splits["train"].per_row),
    }


def disagreement(split: Split, taxonomy: Taxonomy) -> Disagreement:
    """How much the raters of a split disagree."""
    rows, given, shares = 0, np.zeros(len(taxonomy), dtype=np.int64), np.zeros(len(taxonomy))
    for batch in split.batches():
        soft = soft_labels(batch, taxonomy)
        rows += len(batch) - batch["shares"].null_count
        given += (soft > 0).sum(axis=0)
        shares += soft.sum(axis=0, dtype=np.float64)
    means = np.round(shares / np.maximum(given, 1), 4)
    return {
        "rows": rows,
        "texts": dict(zip(taxonomy.names, given.tolist(), strict=True)),
        "share": dict(zip(taxonomy.names, means.tolist(), strict=True)),
    }


def leakage(splits: dict[str, Split]) -> dict[str, dict[str, int]]:
    """For validation and test, how many texts are also in train: ``exact`` and ``normalized``."""
    counts: dict[str, dict[str, int]] = {"validation": {}, "test": {}}
    for name, key in (("exact", "text"), ("normalized", "normalized")):
        train = np.sort(splits["train"].per_row[key])
        for split in counts:
            counts[split][name] = int(is_in(splits[split].per_row[key], train).sum())
    return counts


def _label_counts(split: Split, label_count: int) -> np.ndarray:
    """In how many rows each label occurs, int64 [labels]."""
    total = np.zeros(label_count, dtype=np.int64)
    for batch in split.batches():
        total += np.bincount(batch["labels"].flatten().to_numpy(), minlength=label_count)
    return total


def _cooccurrence(split: Split, label_count: int) -> np.ndarray:
    """In how many rows two labels occur together and, on the diagonal, each label, int64 [labels, labels]."""
    total = np.zeros((label_count, label_count), dtype=np.int64)
    for batch in split.batches():
        labels = batch["labels"]
        columns, ends = labels.flatten().to_numpy(), np.concatenate([[0], np.cumsum(labels.value_lengths().to_numpy())])
        matrix = sparse.csr_matrix((np.ones(len(columns), dtype=np.int64), columns, ends), shape=(len(batch), label_count))
        total += (matrix.T @ matrix).toarray()
    return total


def _duplicates(per_row: dict[str, np.ndarray]) -> dict[str, int]:
    texts = repeated(np.sort(per_row["text"]))
    rows = np.flatnonzero(is_in(per_row["text"], texts))
    pairs = np.unique(np.column_stack([per_row[name][rows] for name in ("text", "labels")]), axis=0)
    _, label_sets = np.unique(pairs[:, 0], return_counts=True)
    return {"texts": len(texts), "rows": len(rows), "texts_with_other_labels": int((label_sets > 1).sum())}


def _percentiles(values: np.ndarray) -> dict[str, float]:
    if not len(values):
        return {}
    named = zip(("min", "p50", "p95", "p99", "max"), np.percentile(values, [0, 50, 95, 99, 100]), strict=True)
    return {"mean": round(float(np.mean(values)), 2), **{name: float(value) for name, value in named}}
