"""One row per rater becomes one row per text: the labels that at least half of its raters gave, and each label's share of raters."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
from scipy import sparse

from goemotions import defaults
from goemotions.data.sources import RawRow
from goemotions.data.validation import chunks, labels_of
from goemotions.errors import DataError

SCHEMA = pa.schema([("file", pa.string()), ("line", pa.int64()), ("id", pa.string()), ("text", pa.string())])


def by_text(rows: Iterable[RawRow], label_count: int, path: Path) -> Iterator[RawRow]:
    """One row per id, in the order in which the ids appear.

    The raters of a text need not be side by side. In memory stay hashes and labels, about fifty bytes per row.

    Args:
        rows: one per rater.
        label_count: the number of labels.
        path: Arrow stream to write, for the texts.

    Raises:
        DataError: a label is invalid, or two rows of an id have different texts.
    """
    ids, texts, labels, ends = array("q"), array("q"), array("i"), array("q", [0])
    with pa.ipc.new_stream(str(path), SCHEMA) as writer:
        for chunk in chunks(rows):
            writer.write_batch(pa.RecordBatch.from_pylist([_place(row) for row in chunk], schema=SCHEMA))
            ids.extend(hash(row.id) for row in chunk)
            texts.extend(hash(row.text) for row in chunk)
            for row in chunk:
                labels.extend(labels_of(row, label_count))
                ends.append(len(labels))
    if not ids:
        return
    _, first, text_of = np.unique(np.asarray(ids), return_index=True, return_inverse=True)
    votes = _votes(np.asarray(labels), np.asarray(ends), text_of, label_count)
    raters = np.bincount(text_of)
    differs = np.asarray(texts) != np.asarray(texts)[first][text_of]
    for number, row in enumerate(_stored(path)):
        text = text_of[number]
        if differs[number]:
            raise DataError(
                f"{row.file}, line {row.line}: id {row.id!r} has another text than before: give each text its own id"
            )
        if first[text] == number:
            shares = votes[[text]].toarray()[0] / raters[text]
            chosen = np.flatnonzero(shares >= defaults.MAJORITY).tolist()
            agree = np.isin(shares, (0, 1)).all()
            yield RawRow(row.file, row.line, row.id, row.text, chosen, None if agree else shares.tolist())


def _place(row: RawRow) -> dict[str, object]:
    return {"file": row.file, "line": row.line, "id": row.id, "text": row.text}


def _votes(labels: np.ndarray, ends: np.ndarray, text_of: np.ndarray, label_count: int) -> sparse.csr_matrix:
    """How many raters gave each label, [texts, labels]."""
    text = np.repeat(text_of, np.diff(ends))
    return sparse.coo_matrix((np.ones(len(labels)), (text, labels)), shape=(int(text_of.max()) + 1, label_count)).tocsr()


def _stored(path: Path) -> Iterator[RawRow]:
    with pa.OSFile(str(path)) as file, pa.ipc.open_stream(file) as stream:
        for batch in stream:
            for file_name, line, row_id, text in zip(*(batch[name].to_pylist() for name in SCHEMA.names), strict=True):
                yield RawRow(file_name, line, row_id, text, [])
