"""The data set: read from a source, validated row by row, described, and written once as a Dataset folder.

A Dataset folder holds a ``datasets.DatasetDict`` (splits train, validation, test; columns id, text, labels), ``dataset.json``
(digest, counts, statistics) and ``quarantine.csv`` (the rows left out, with the reason; never their text).

While they are read, rows wait in a file; in memory stay hashes and lengths, some fifty bytes a row.
"""

from __future__ import annotations

import csv
import hashlib
import json
import logging
import tempfile
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
from scipy import sparse

from goemotions import defaults
from goemotions.data.sources import SPLITS, RawRow, open_source
from goemotions.data.taxonomy import Taxonomy
from goemotions.data.text import clean, normalized
from goemotions.errors import DataError
from goemotions.storage import store

log = logging.getLogger(__name__)

UNLABELLED = ("quarantine", "keep")
CHUNK = 8192
WAITING = pa.schema(
    [("file", pa.string()), ("line", pa.int64()), ("id", pa.string()), ("text", pa.string()), ("labels", pa.list_(pa.int64()))]
)
# Of each row that is kept, in order: hashes of 64 bits (q), of which equal ones are taken for equal, and lengths (i).
COMPARED = {"text": "q", "normalized": "q", "labels": "q", "words": "i", "characters": "i", "size": "i"}

Row = tuple[str, str, list[int]]


@dataclass(frozen=True)
class Split:
    """A validated split.

    Attributes:
        path: Arrow stream of its rows.
        quarantined: the rows that were left out, as (file, line, id, reason).
        ids: hash of every row's id, int64, sorted, of the rows that were left out too.
        compared: what is compared between rows, by the names of ``COMPARED``.
        kept: which rows of the file count, bool; None for all.
    """

    path: Path
    quarantined: list[tuple[str, int, str, str]]
    ids: np.ndarray
    compared: dict[str, np.ndarray]
    kept: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.compared["text"])

    def keep(self, kept: np.ndarray) -> Split:
        return replace(self, kept=kept, compared={name: values[kept] for name, values in self.compared.items()})

    def batches(self) -> Iterator[pa.RecordBatch]:
        start = 0
        with pa.OSFile(str(self.path)) as file, pa.ipc.open_stream(file) as stream:
            for batch in stream:
                yield batch if self.kept is None else batch.filter(pa.array(self.kept[start : start + len(batch)]))
                start += len(batch)

    def places(self) -> Iterator[tuple[str, int, str]]:
        """File, line and id of every row of the source, those that were left out last."""
        for batch in replace(self, kept=None).batches():
            yield from zip(*(batch[name].to_pylist() for name in ("file", "line", "id")), strict=True)
        yield from ((file_name, line, row_id) for file_name, line, row_id, _ in self.quarantined)


@store.raise_on_full_disk
def ingest(
    source: str,
    output: Path,
    *,
    drop_leaked: bool = False,
    unlabelled: str = defaults.UNLABELLED,
    max_quarantined: float = defaults.MAX_QUARANTINED,
) -> dict[str, Any]:
    """Reads a source, validates it and writes a Dataset folder.

    Args:
        source: ``sample``, ``hub:<dataset>[:<config>][@<revision>]``, a local folder or ``s3://bucket/prefix/``.
        output: the Dataset folder to write.
        drop_leaked: leave out of train each text that also stands in validation or test.
        unlabelled: what happens to a row without a label: left out, or kept with no label set.
        max_quarantined: share of a split's rows that may be left out before that is an error.

    Returns:
        The content of ``dataset.json``.

    Raises:
        DataError: the source does not have the documented form.
        SourceUnreachable: the hub does not answer.
        StorageError: the bucket does not answer, refuses or is empty there.
    """
    if unlabelled not in UNLABELLED:
        raise DataError(f"unlabelled={unlabelled!r} is not a policy: choose {' or '.join(UNLABELLED)}")
    with tempfile.TemporaryDirectory() as scratch:
        taxonomy, raw, revision = open_source(source, Path(scratch))
        splits = {}
        for split in SPLITS:
            name, rows = raw[split]
            waiting = Path(scratch) / f"{split}.rows"
            splits[split] = _validate(name, rows, taxonomy, unlabelled, max_quarantined, waiting)
        _refuse_shared_ids(splits)
        leakage = _leakage(splits)
        if drop_leaked:
            splits["train"] = _without_leaked(splits)
        for split, kept in splits.items():
            if not len(kept):
                raise DataError(f"no row of {split} is left: every one is quarantined or stands in validation or test too")
        info = {
            "source": source,
            "revision": revision,
            "digest": digest(taxonomy, {split: _rows(kept) for split, kept in splits.items()}),
            "labels": list(taxonomy.names),
            "rows": {split: len(kept) for split, kept in splits.items()},
            "quarantined": {split: dict(Counter(reason for *_, reason in kept.quarantined)) for split, kept in splits.items()},
            "unlabelled": unlabelled,
            "leakage": leakage,
            "leaked_rows_dropped": drop_leaked,
            **describe(taxonomy, splits),
        }
        for label in info["labels_absent_from_train"]:
            log.warning("label %s never occurs in train: it cannot be learned, its scores carry no meaning", label)
        _write(output, taxonomy, splits, info)
    return info


def load_dataset(folder: Path, splits: Iterable[str] = SPLITS) -> tuple[datasets.DatasetDict, dict[str, Any]]:
    """Reads a Dataset folder: the splits asked for, and nothing of the others, and the content of ``dataset.json``."""
    try:
        info = json.loads((folder / "dataset.json").read_text(encoding="utf-8"))
        tables = {split: datasets.Dataset.load_from_disk(str(folder / split)) for split in splits}
        return datasets.DatasetDict(tables), info
    except (OSError, ValueError) as error:
        raise DataError(f"{folder} is not a Dataset folder: make one with `goemotions ingest`") from error


def taxonomy_of(info: dict[str, Any]) -> Taxonomy:
    return Taxonomy(tuple(info["labels"]))


def _validate(
    name: str, raw: Iterable[RawRow], taxonomy: Taxonomy, unlabelled: str, max_quarantined: float, waiting: Path
) -> Split:
    quarantined: list[tuple[str, int, str, str]] = []
    # They grow in place: many arrays that are put together in the end take twice the memory, and leave holes in it.
    compared, ids = {key: array(kind) for key, kind in COMPARED.items()}, array("q")
    with pa.ipc.new_stream(str(waiting), WAITING) as writer:
        for chunk in _chunks(raw):
            kept = []
            for row in chunk:
                text, labels = clean(row.text), _labels(row, len(taxonomy))
                if not row.id:
                    raise _no_id(row.file, row.line, row.id)
                if not text.strip():
                    quarantined.append((row.file, row.line, row.id, "blank text"))
                elif not labels and unlabelled == "quarantine":
                    quarantined.append((row.file, row.line, row.id, "no label"))
                else:
                    kept.append((row.file, row.line, row.id, text, labels))
            ids.extend(hash(row.id) for row in chunk)
            if kept:
                columns = list(zip(*kept, strict=True))
                arrays = [pa.array(values, column.type) for values, column in zip(columns, WAITING, strict=True)]
                writer.write_batch(pa.record_batch(arrays, schema=WAITING))
                _compare(compared, columns[3], columns[4])
    total = len(ids)
    if not total:
        raise DataError(f"{name} has no rows: it needs at least one row of text, labels and id")
    hashes = np.asarray(ids)
    hashes.sort()
    found = Split(waiting, quarantined, hashes, {key: np.asarray(values) for key, values in compared.items()})
    _refuse_repeated_ids(found)
    if len(quarantined) > max_quarantined * total:
        _, line, _, reason = quarantined[0]
        raise DataError(
            f"{name}: {len(quarantined)} of {total} rows are unusable (line {line}: {reason}), over the allowed "
            f"{max_quarantined:.0%}: fix the file or raise max_quarantined"
        )
    return found


def _chunks(raw: Iterable[RawRow]) -> Iterator[list[RawRow]]:
    rows = iter(raw)
    while chunk := list(islice(rows, CHUNK)):
        yield chunk


def _compare(compared: dict[str, array[int]], texts: Sequence[str], labels: Sequence[list[int]]) -> None:
    """Adds what is compared of these rows."""
    compared["text"].extend(map(hash, texts))
    compared["normalized"].extend(hash(normalized(text)) for text in texts)
    compared["labels"].extend(hash(tuple(found)) for found in labels)
    compared["words"].extend(len(text.split()) for text in texts)
    compared["characters"].extend(map(len, texts))
    compared["size"].extend(map(len, labels))


def _labels(row: RawRow, count: int) -> list[int]:
    labels = [_label(row, value, count) for value in row.labels]
    if len(set(labels)) != len(labels):
        twice = next(label for label in labels if labels.count(label) > 1)
        raise DataError(f"{row.file}, line {row.line}: label {twice} stands twice in the row: name it once")
    return sorted(labels)


def _label(row: RawRow, value: Any, labels: int) -> int:
    # Whole numbers only: int() would also take "1_0" for 10 and True for 1.
    index = int(value) if isinstance(value, str) and value.isdecimal() and len(value) < 10 else value
    if isinstance(index, bool) or not isinstance(index, int | float) or index not in range(labels):
        raise DataError(
            f"{row.file}, line {row.line}: label {value!r:.80} is not an index from 0 to {labels - 1}: fix the row or emotions.txt"
        )
    return int(index)


def _no_id(file: str, line: int, row_id: str) -> DataError:
    return DataError(f"{file}, line {line}: id {row_id!r} is empty or stands twice: give each row an id of its own")


def _refuse_repeated_ids(split: Split) -> None:
    suspects = set(_repeated(split.ids).tolist())
    if not suspects:
        return
    # Equal hashes are no proof, and the order of the files is lost for the rows that were left out.
    places = [place for place in split.places() if hash(place[2]) in suspects]
    files = {file: number for number, (file, *_) in enumerate(split.places())} if len({file for file, *_ in places}) > 1 else {}
    seen: set[str] = set()
    for file, line, row_id in sorted(places, key=lambda place: (files.get(place[0], 0), place[1])):
        if row_id in seen:
            raise _no_id(file, line, row_id)
        seen.add(row_id)


def _refuse_shared_ids(splits: dict[str, Split]) -> None:
    earlier: list[str] = []
    for split, rows in splits.items():
        for other in earlier:
            suspects = set(rows.ids[_among(rows.ids, splits[other].ids)].tolist())
            if suspects:
                owned = {row_id for *_, row_id in splits[other].places() if hash(row_id) in suspects}
                for *_, row_id in rows.places():
                    if row_id in owned:
                        raise DataError(f"id {row_id} stands in {other} and in {split}: each row belongs to one split")
        earlier.append(split)


def _leakage(splits: dict[str, Split]) -> dict[str, dict[str, int]]:
    found: dict[str, dict[str, int]] = {"validation": {}, "test": {}}
    for name, kind in (("exact", "text"), ("normalized", "normalized")):
        train = np.sort(splits["train"].compared[kind])
        for split, counts in found.items():
            counts[name] = int(_among(splits[split].compared[kind], train).sum())
    return found


def _without_leaked(splits: dict[str, Split]) -> Split:
    held_out = np.sort(np.concatenate([splits[split].compared["normalized"] for split in ("validation", "test")]))
    return splits["train"].keep(~_among(splits["train"].compared["normalized"], held_out))


def _repeated(values: np.ndarray) -> np.ndarray:
    """Those of sorted values that stand more than once."""
    return np.unique(values[1:][values[1:] == values[:-1]])


def _among(values: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Which values stand among others, which are sorted. In less memory than ``np.isin``, which sorts both together."""
    if not len(others):
        return np.zeros(len(values), dtype=bool)
    places = np.searchsorted(others, values)
    found: np.ndarray = others[np.minimum(places, len(others) - 1, out=places)] == values
    return found


def _rows(split: Split) -> Iterator[Row]:
    for batch in split.batches():
        yield from zip(*(batch[name].to_pylist() for name in ("id", "text", "labels")), strict=True)


def digest(taxonomy: Taxonomy, splits: Mapping[str, Iterable[Row]]) -> str:
    """sha256 over the taxonomy and the canonical rows (id, text, labels): one JSON list a row, in order, split by split."""
    state = hashlib.sha256(json.dumps(taxonomy.names).encode())
    for split in SPLITS:
        for row in splits[split]:
            state.update(json.dumps([split, *row], ensure_ascii=True).encode())
    return state.hexdigest()


def describe(taxonomy: Taxonomy, splits: dict[str, Split]) -> dict[str, Any]:
    """Statistics of the data set: lengths, labels, co-occurrence in train and repeated texts of train."""
    together = {split: _cooccurrence(rows, len(taxonomy)) for split, rows in splits.items()}
    counts = {split: matrix.diagonal() for split, matrix in together.items()}
    return {
        "label_counts": {split: dict(zip(taxonomy.names, map(int, c), strict=True)) for split, c in counts.items()},
        "labels_absent_from_train": [n for n, count in zip(taxonomy.names, counts["train"], strict=True) if count == 0],
        "labels_per_row": {split: np.bincount(rows.compared["size"]).tolist() for split, rows in splits.items()},
        "words": {split: _percentiles(rows.compared["words"]) for split, rows in splits.items()},
        "characters": {split: _percentiles(rows.compared["characters"]) for split, rows in splits.items()},
        "cooccurrence": together["train"].astype(int).tolist(),
        "duplicates": _duplicates(splits["train"].compared),
    }


def _cooccurrence(split: Split, labels: int) -> np.ndarray:
    """How often two labels stand in a row together, and on the diagonal how often each does, int64 [labels, labels]."""
    total = np.zeros((labels, labels), dtype=np.int64)
    for batch in split.batches():
        found = batch["labels"]
        columns, ends = found.flatten().to_numpy(), np.concatenate([[0], np.cumsum(found.value_lengths().to_numpy())])
        matrix = sparse.csr_matrix((np.ones(len(columns), dtype=np.int64), columns, ends), shape=(len(batch), labels))
        total += (matrix.T @ matrix).toarray()
    return total


def _duplicates(compared: dict[str, np.ndarray]) -> dict[str, int]:
    """Texts that stand more than once, their rows, and how many of those texts have not the same labels everywhere."""
    repeated = _repeated(np.sort(compared["text"]))
    rows = np.flatnonzero(_among(compared["text"], repeated))
    pairs = np.unique(np.column_stack([compared[name][rows] for name in ("text", "labels")]), axis=0)
    _, ways = np.unique(pairs[:, 0], return_counts=True)
    return {"texts": len(repeated), "rows": len(rows), "texts_with_other_labels": int((ways > 1).sum())}


def _percentiles(values: np.ndarray) -> dict[str, float]:
    if not len(values):
        return {}
    named = zip(("min", "p50", "p95", "p99", "max"), np.percentile(values, [0, 50, 95, 99, 100]), strict=True)
    return {"mean": round(float(np.mean(values)), 2), **{name: float(value) for name, value in named}}


def _write(output: Path, taxonomy: Taxonomy, splits: dict[str, Split], info: dict[str, Any]) -> None:
    features = datasets.Features(
        id=datasets.Value("string"),
        text=datasets.Value("string"),
        labels=datasets.List(datasets.ClassLabel(names=list(taxonomy.names))),
    )
    datasets.disable_progress_bars()
    schema = features.arrow_schema
    # `datasets` takes no rows batch by batch: it writes its folders for a single one, in whose place the rows are put.
    single = pa.table({"id": [""], "text": [""], "labels": [[]]}, schema=schema)
    datasets.DatasetDict({split: datasets.Dataset(single) for split in splits}).save_to_disk(str(output))
    for split, rows in splits.items():
        state = json.loads((output / split / "state.json").read_text(encoding="utf-8"))
        with pa.ipc.new_stream(str(output / split / state["_data_files"][0]["filename"]), schema) as writer:
            for batch in rows.batches():
                writer.write_batch(batch.select(["id", "text", "labels"]).cast(schema))
        # Its cache takes folders with one fingerprint for the same data.
        state["_fingerprint"] = f"{split}-{info['digest'][:16]}"
        (output / split / "state.json").write_text(json.dumps(state, indent=1), encoding="utf-8")
    with (output / "quarantine.csv").open("w", newline="", encoding="utf-8") as file:
        lines = csv.writer(file)
        lines.writerow(["split", "line", "id", "reason"])
        lines.writerows([split, *row[1:]] for split, rows in splits.items() for row in rows.quarantined)
    (output / "dataset.json").write_text(json.dumps(info, indent=1), encoding="utf-8")
