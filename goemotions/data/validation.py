"""Validation of a split, row by row: unusable rows are quarantined, and ids must be unique.

While they are read, the rows are kept in a file; in memory stay hashes and lengths, about fifty bytes per row.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from goemotions.data.sources import RawRow
from goemotions.data.taxonomy import Taxonomy
from goemotions.data.text import clean, count_words, normalized
from goemotions.errors import DataError

# Rows that are validated together: fewer if their texts are long.
CHUNK, CHUNK_CHARACTERS = 8192, 2**24
MOST_QUARANTINED = 2_000_000
DISAGREEMENT, NO_LABEL = "no label of the majority", "no label"
KEEP = "; if such rows have none of the labels, keep them (unlabelled=keep)"
ROW_SCHEMA = pa.schema(
    [
        ("file", pa.string()),
        ("line", pa.int64()),
        ("id", pa.string()),
        ("text", pa.string()),
        ("labels", pa.list_(pa.int64())),
        ("shares", pa.list_(pa.float32())),
    ]
)
# What stays in memory of each usable row, in order: hashes of 64 bits (q), where equal hashes count as equal values, and counts (i).
PER_ROW = {"text": "q", "normalized": "q", "labels": "q", "words": "i", "characters": "i", "label_count": "i"}


@dataclass(frozen=True)
class Split:
    """A validated split.

    Attributes:
        path: Arrow stream of its usable rows.
        quarantined: the rows that were left out, as (file, line, id, reason).
        ids: hash of every row's id, int64, sorted; quarantined rows included.
        are_positions: whether the ids only count the rows, from 0 or 1.
        has_shares: whether some rows have the shares of their raters.
        per_row: the arrays of ``PER_ROW``, one value per row that is kept.
        kept: which rows of the file are kept, bool; None for all.
        prefix: of every id.
    """

    path: Path
    quarantined: list[tuple[str, int, str, str]]
    ids: np.ndarray
    are_positions: bool
    has_shares: bool
    per_row: dict[str, np.ndarray]
    kept: np.ndarray | None = None
    prefix: str = ""

    def __len__(self) -> int:
        return len(self.per_row["text"])

    def keep(self, kept: np.ndarray) -> Split:
        return replace(self, kept=kept, per_row={name: values[kept] for name, values in self.per_row.items()})

    def batches(self) -> Iterator[pa.RecordBatch]:
        start = 0
        with pa.OSFile(str(self.path)) as file, pa.ipc.open_stream(file) as stream:
            for batch in stream:
                chosen = batch if self.kept is None else batch.filter(pa.array(self.kept[start : start + len(batch)]))
                yield self._prefixed(chosen) if self.prefix else chosen
                start += len(batch)

    def _prefixed(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        ids = pc.binary_join_element_wise(pa.scalar(self.prefix), batch["id"], "")
        return batch.set_column(batch.schema.get_field_index("id"), "id", ids)

    def places(self) -> Iterator[tuple[str, int, str]]:
        """File, line and id of every row of the source, quarantined rows last."""
        for batch in replace(self, kept=None, prefix="").batches():
            yield from zip(*(batch[name].to_pylist() for name in ("file", "line", "id")), strict=True)
        yield from ((file, line, row_id) for file, line, row_id, _ in self.quarantined)


def validate(
    name: str, raw: Iterable[RawRow], taxonomy: Taxonomy, path: Path, *, unlabelled: str, max_quarantined: float
) -> Split:
    """Validates the rows of a split and writes the usable ones to ``path``.

    Args:
        name: what error messages call the split, such as its file.
        raw: its rows.
        taxonomy: the labels that the rows may have.
        path: Arrow stream to write.
        unlabelled: ``quarantine`` or ``keep``, for rows without a label.
        max_quarantined: the largest share of rows that may be quarantined.

    Raises:
        DataError: no rows, an invalid label, an id that is empty or repeated, or too many quarantined rows.
    """
    quarantined: list[tuple[str, int, str, str]] = []
    # The arrays grow in place. Many arrays that are concatenated at the end take twice the memory and fragment it.
    per_row, ids = {key: array(kind) for key, kind in PER_ROW.items()}, array("q")
    are_positions, has_shares, first = True, False, 0
    with pa.ipc.new_stream(str(path), ROW_SCHEMA) as writer:
        for chunk in chunks(raw):
            usable = []
            for row in chunk:
                text, labels, reason = _check(row, len(taxonomy), unlabelled)
                if reason:
                    quarantined.append((row.file, row.line, row.id, reason))
                else:
                    usable.append((row.file, row.line, row.id, text, labels, row.shares))
                    has_shares = has_shares or row.shares is not None
            first = first if ids else int(chunk[0].id == "1")
            are_positions = are_positions and all(row.id == str(n) for n, row in enumerate(chunk, start=first + len(ids)))
            ids.extend(hash(row.id) for row in chunk)
            if len(quarantined) > MOST_QUARANTINED:
                _, line, _, reason = quarantined[0]
                raise DataError(
                    f"{name}: more than {MOST_QUARANTINED:,} rows are unusable (line {line}: {reason}): fix the file"
                )
            if usable:
                columns = list(zip(*usable, strict=True))
                arrays = [pa.array(values, column.type) for values, column in zip(columns, ROW_SCHEMA, strict=True)]
                writer.write_batch(pa.record_batch(arrays, schema=ROW_SCHEMA))
                _extend(per_row, columns[3], columns[4])
    if not ids:
        raise DataError(f"{name} has no rows: it needs at least one row of text, labels and id")
    hashes = np.asarray(ids)
    hashes.sort()
    arrays_per_row = {key: np.asarray(values) for key, values in per_row.items()}
    split = Split(path, quarantined, hashes, are_positions, has_shares, arrays_per_row)
    _refuse_repeated_ids(split)
    _refuse_many_unusable(name, split, max_quarantined)
    return split


def _refuse_many_unusable(name: str, split: Split, allowed: float) -> None:
    # Raters who disagree are no fault of the file.
    unusable = [row for row in split.quarantined if row[3] != DISAGREEMENT]
    if len(unusable) > allowed * len(split.ids):
        _, line, _, reason = unusable[0]
        raise DataError(
            f"{name}: {len(unusable)} of {len(split.ids)} rows are unusable (line {line}: {reason}), more than the allowed "
            f"{allowed:.0%}: fix the file or raise max_quarantined" + KEEP * (reason == NO_LABEL)
        )


def chunks(raw: Iterable[RawRow]) -> Iterator[list[RawRow]]:
    """The rows in lists that are bounded in rows and in characters."""
    chunk: list[RawRow] = []
    characters = 0
    for row in raw:
        chunk.append(row)
        characters += len(row.text)
        if len(chunk) == CHUNK or characters > CHUNK_CHARACTERS:
            yield chunk
            chunk, characters = [], 0
    if chunk:
        yield chunk


def _check(row: RawRow, label_count: int, unlabelled: str) -> tuple[str, list[int], str]:
    """The clean text and the sorted labels of a row, and why it is quarantined: empty if it is usable."""
    text, labels = clean(row.text), labels_of(row, label_count)
    if not row.id:
        raise _bad_id(row.file, row.line, row.id)
    if not text.strip():
        return text, labels, "blank text"
    if labels or unlabelled == "keep":
        return text, labels, ""
    return text, labels, DISAGREEMENT if row.shares and any(row.shares) else NO_LABEL


def labels_of(row: RawRow, count: int) -> list[int]:
    """The labels of a row as sorted indices.

    Raises:
        DataError: one is no index below ``count``, or is there twice.
    """
    labels = sorted(_label(row, value, count) for value in row.labels)
    for label, following in pairwise(labels):
        if label == following:
            raise DataError(f"{row.file}, line {row.line}: label {label} is twice in the row: list it once")
    return labels


def _label(row: RawRow, value: Any, count: int) -> int:
    # Whole numbers only: int() also takes "1_0" for 10 and True for 1.
    index = int(value) if isinstance(value, str) and value.isdecimal() and len(value) < 10 else value
    if isinstance(index, bool) or not isinstance(index, int | float) or index not in range(count):
        raise DataError(
            f"{row.file}, line {row.line}: label {value!r:.80} is not an index from 0 to {count - 1}: fix the row or emotions.txt"
        )
    return int(index)


def _extend(per_row: dict[str, array[int]], texts: Sequence[str], labels: Sequence[list[int]]) -> None:
    per_row["text"].extend(map(hash, texts))
    per_row["normalized"].extend(hash(normalized(text)) for text in texts)
    per_row["labels"].extend(hash(tuple(row)) for row in labels)
    per_row["words"].extend(map(count_words, texts))
    per_row["characters"].extend(map(len, texts))
    per_row["label_count"].extend(map(len, labels))


def _bad_id(file: str, line: int, row_id: str) -> DataError:
    return DataError(
        f"{file}, line {line}: id {row_id!r} is empty or repeated: write one row per text, with all its labels and a unique id, or "
        "leave out the column"
    )


def _refuse_repeated_ids(split: Split) -> None:
    suspects = set(repeated(split.ids).tolist())
    if not suspects:
        return
    # Equal hashes do not prove equal ids, and quarantined rows come last, not in the order of the files.
    places = [place for place in split.places() if hash(place[2]) in suspects]
    files = {file: number for number, (file, *_) in enumerate(split.places())} if len({file for file, *_ in places}) > 1 else {}
    seen: set[str] = set()
    for file, line, row_id in sorted(places, key=lambda place: (files.get(place[0], 0), place[1])):
        if row_id in seen:
            raise _bad_id(file, line, row_id)
        seen.add(row_id)


def tell_apart(splits: dict[str, Split]) -> dict[str, Split]:
    """The splits; ids that count the rows of each split get its name as a prefix.

    Raises:
        DataError: an id is in two splits.
    """
    shared = _shared_id(splits)
    if not shared:
        return splits
    if all(split.are_positions for split in splits.values()):
        return {name: replace(split, prefix=f"{name}-") for name, split in splits.items()}
    raise DataError(shared)


def _shared_id(splits: dict[str, Split]) -> str:
    """Which id is in which two splits; empty if there is none."""
    for (other, first), (name, second) in combinations(splits.items(), 2):
        suspects = set(second.ids[is_in(second.ids, first.ids)].tolist())
        if suspects:
            shared = {row_id for *_, row_id in first.places() if hash(row_id) in suspects}
            for *_, row_id in second.places():
                if row_id in shared:
                    return f"id {row_id} is in {other} and in {name}: give each row a unique id, or leave out the column"
    return ""


def soft_labels(batch: pa.RecordBatch, taxonomy: Taxonomy) -> np.ndarray:
    """The share of raters per label, float32 [rows, labels]; 0 or 1 where all agree."""
    shares = taxonomy.multi_hot(batch["labels"].to_pylist()).astype(np.float32)
    for row, known in enumerate(batch["shares"].to_pylist()):
        if known is not None:
            shares[row] = known
    return shares


def repeated(values: np.ndarray) -> np.ndarray:
    """The distinct values that occur more than once in a sorted array."""
    return np.unique(values[1:][values[1:] == values[:-1]])


def is_in(values: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Which values are in the sorted array ``others``, bool. Takes less memory than ``np.isin``, which sorts both together."""
    if not len(others):
        return np.zeros(len(values), dtype=bool)
    places = np.searchsorted(others, values)
    matches: np.ndarray = others[np.minimum(places, len(others) - 1, out=places)] == values
    return matches
