"""Splits that a source lacks are drawn from its rows: stratified over the label sets, and grouped by text."""

from __future__ import annotations

import hashlib
import logging
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import groupby

import numpy as np

from goemotions.data.layout import SPLITS
from goemotions.data.text import normalized
from goemotions.data.validation import Split
from goemotions.errors import DataError

log = logging.getLogger(__name__)


def draw_missing(name: str, splits: Mapping[str, Split], share: float, seed: int) -> tuple[dict[str, Split], list[str]]:
    """All three splits, and the names of those that were drawn from train.

    Rows whose texts are equal up to case, punctuation and spacing go to the same split. Within each label set, each split gets its
    share of the rows, up to one; a label's first row stays in train. The result depends on the rows and the seed alone.

    Args:
        name: what error messages call the file.
        splits: the splits that the source has, train among them.
        share: share of the rows of train that each missing split gets.
        seed: another seed draws other rows.

    Raises:
        DataError: there are too few rows, or the share leaves no row for train.
    """
    missing = [split for split in SPLITS if split not in splits]
    if not missing:
        return dict(splits), []
    if not 0 < share * len(missing) < 1:
        raise DataError(
            f"split_share={share:g} for each of {len(missing)} splits leaves nothing for train: choose a smaller share"
        )
    train = splits["train"]
    shares = [1 - share * len(missing), *(share for _ in missing)]
    owner = _draw(train, np.array(shares), seed)
    drawn = {split: replace(train.keep(owner == number), quarantined=[]) for number, split in enumerate(missing, start=1)}
    for split, rows in drawn.items():
        if not len(rows):
            raise DataError(f"{name}: {len(train)} rows are too few to draw {split} from: add rows, or a file for {split}")
    complete = {**splits, "train": train.keep(owner == 0), **drawn}
    return {split: complete[split] for split in SPLITS}, missing


def _draw(train: Split, shares: np.ndarray, seed: int) -> np.ndarray:
    """For each row the number of its split, 0 for train."""
    group, strata = _groups(train, seed)
    rows_of = np.bincount(group)
    owner = np.zeros(len(rows_of), dtype=np.int8)
    drawn = np.zeros(len(shares))
    for _, groups in groupby(_in_order(strata), key=lambda item: item[0]):
        for position, (_, number) in enumerate(groups):
            # The split that is furthest behind its share is next. A label's first row is learned from.
            behind = shares * (drawn.sum() + rows_of[number]) - drawn
            chosen = 0 if position == 0 else int(np.argmax(behind))
            owner[number] = chosen
            drawn[chosen] += rows_of[number]
    chosen_rows: np.ndarray = owner[group]
    return chosen_rows


def _groups(train: Split, seed: int) -> tuple[np.ndarray, list[tuple[int, ...]]]:
    """For each row the number of its group of equal texts, and the label set of each group, in an order that the seed decides."""
    hashes, labels = array("q"), []
    key = seed.to_bytes(8, "little", signed=True)
    seen: dict[tuple[int, ...], tuple[int, ...]] = {}
    for batch in train.batches():
        for text, row in zip(batch["text"].to_pylist(), batch["labels"].to_pylist(), strict=True):
            content = hashlib.blake2b(normalized(text).encode(), digest_size=8, key=key).digest()
            hashes.append(int.from_bytes(content, "little", signed=True))
            # Equal label sets are one object: a reference per row, not a tuple.
            labels.append(seen.setdefault(tuple(row), tuple(row)))
    _, first, group = np.unique(np.asarray(hashes), return_index=True, return_inverse=True)
    return group, [labels[row] for row in first]


def _in_order(strata: Sequence[tuple[int, ...]]) -> list[tuple[int, int]]:
    """The groups as (rarest label, number): those with the rarest label first, those with the same label set side by side."""
    counts: dict[int, int] = {}
    for labels in strata:
        for label in labels:
            counts[label] = counts.get(label, 0) + 1
    rarest = [min(labels, key=lambda label: (counts[label], label), default=-1) for labels in strata]
    order = sorted(
        range(len(strata)), key=lambda number: (counts.get(rarest[number], 0), rarest[number], strata[number], number)
    )
    return [(rarest[number], number) for number in order]
