"""The data set: read from a source, validated, described, and written once as a Dataset folder.

A Dataset folder holds a ``datasets.DatasetDict`` (splits train, validation, test; columns id, text, labels, and soft_labels if the
source has the shares of raters), ``dataset.json`` (digest, counts, statistics) and ``quarantine.csv`` (the rows left out, with the
reason; never their text).
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import json
import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NotRequired, TypedDict

import numpy as np
import pyarrow as pa

from goemotions import addresses, defaults, strict_json, usage
from goemotions.data import memory
from goemotions.data.labels import SOFT_LABELS
from goemotions.data.layout import SPLITS
from goemotions.data.raters import by_text
from goemotions.data.sources import Columns, Source, open_source
from goemotions.data.splitting import draw_missing
from goemotions.data.statistics import Disagreement, Statistics, describe, disagreement, leakage
from goemotions.data.taxonomy import Taxonomy
from goemotions.data.text import as_cell
from goemotions.data.validation import Split, is_in, soft_labels, tell_apart, validate
from goemotions.errors import DataError
from goemotions.storage import store
from goemotions.storage.temporary import temporary_folder

if TYPE_CHECKING:
    import datasets

log = logging.getLogger(__name__)

INFO_FILE = "dataset.json"
QUARANTINE_FILE = "quarantine.csv"
# Of the rows of train: with more texts that are there again with other labels, a row may be a label rather than a text.
REPEATED = 0.05

# Id, text, labels; and the soft labels of a source that has them.
Row = tuple[str, str, list[int]] | tuple[str, str, list[int], list[float]]


class Drawn(TypedDict):
    """Splits that were drawn from train: their names, the share of train's rows that each got, and the seed."""

    splits: list[str]
    share: float
    seed: int


class Contents(Statistics):
    """What ``dataset.json`` says of the rows.

    Attributes:
        digest: see ``digest``.
        labels: names in index order.
        rows: number of rows that are kept, per split.
        quarantined: number of rows left out, per split and reason.
        disagreement: of the raters, if the source has them and they disagree.
    """

    digest: str
    labels: list[str]
    rows: dict[str, int]
    quarantined: dict[str, dict[str, int]]
    disagreement: NotRequired[Disagreement | None]


class DatasetInfo(Contents):
    """The content of ``dataset.json``.

    Attributes:
        source: the source as it was given.
        form: how it was read, in words.
        drawn: the splits that the source lacks, drawn from train; the share and the seed they were drawn with.
        revision: ``shipped``, ``local``, ``s3``, or the commit of the hub's data set.
        unlabelled: what was done with rows without a label.
        leakage: for validation and test, how many texts are also in train: ``exact`` and ``normalized``.
        leaked_rows_dropped: whether such texts were left out of train.
    """

    source: str
    form: NotRequired[str]
    drawn: NotRequired[Drawn]
    revision: str
    unlabelled: str
    leakage: dict[str, dict[str, int]]
    leaked_rows_dropped: bool


@store.raise_on_full_disk
def ingest(
    source: str,
    output: Path,
    *,
    drop_leaked: bool = False,
    unlabelled: str = defaults.UNLABELLED,
    max_quarantined: float = defaults.MAX_QUARANTINED,
    text_column: str = defaults.TEXT_COLUMN,
    labels_column: str = defaults.LABELS_COLUMN,
    split_share: float = defaults.SPLIT_SHARE,
    split_seed: int = defaults.SPLIT_SEED,
) -> DatasetInfo:
    """Reads a source, validates it and writes a Dataset folder.

    Args:
        source: ``sample``, ``hub:<dataset>[:<config>][@<revision>]``, a local folder or file, or ``s3://bucket/prefix/``.
        output: the Dataset folder to write.
        drop_leaked: leave out of train each text that is also in validation or test.
        unlabelled: ``quarantine`` leaves rows without a label out, ``keep`` keeps them with no label set.
        max_quarantined: share of a split's rows that may be left out; more is an error.
        text_column: the column with the texts; a number for files that do not name their columns.
        labels_column: the column with the labels, or one per label, separated by commas; empty: ``labels``, ``label``, or the columns
            of 0 and 1.
        split_share: share of the rows of train that each split gets that the source lacks.
        split_seed: another seed draws other rows.

    Returns:
        The content of ``dataset.json``.

    Raises:
        DataError: the source does not have a documented form.
        FileChanged: a file of it was changed meanwhile.
        SourceUnreachable: the hub cannot be reached.
        StorageError: the bucket cannot be reached, denies access or has no file there.
    """
    if unlabelled not in (policies := defaults.UNLABELLED_POLICIES):
        raise DataError(f"unlabelled={unlabelled!r} is not a policy: choose {' or '.join(policies)}")
    with temporary_folder() as scratch:
        opened = open_source(source, scratch / "source", Columns(text_column, labels_column))
        taxonomy = opened.taxonomy
        with opened.reading():
            given = _validated(opened, scratch, unlabelled=unlabelled, max_quarantined=max_quarantined)
        splits, drawn = draw_missing(opened.splits["train"][0], given, split_share, split_seed)
        leaked = leakage(splits)
        if drop_leaked:
            splits["train"] = _without_leaked(splits)
        for split, kept in splits.items():
            if not len(kept):
                raise DataError(
                    f"no row of {split} is left: all are quarantined or also in validation or test: check the source"
                )
        is_soft = any(split.has_shares for split in given.values())
        info: DatasetInfo = {
            "source": source,
            "form": opened.form,
            "revision": opened.revision,
            "unlabelled": unlabelled,
            "leakage": leaked,
            "leaked_rows_dropped": drop_leaked,
            "drawn": {"splits": drawn, "share": split_share, "seed": split_seed},
            **_contents(taxonomy, splits, is_soft=is_soft),
        }
        if drawn:
            log.info(
                "%s: %s drawn from train, %g of its rows each, seed %d", source, " and ".join(drawn), split_share, split_seed
            )
        _warn(info)
        _write(output, taxonomy, splits, info, is_soft=is_soft)
    usage.end_step(output, "ingest")
    return info


def _validated(opened: Source, scratch: Path, *, unlabelled: str, max_quarantined: float) -> dict[str, Split]:
    """The splits that a source has."""
    splits = {}
    for split in SPLITS:
        if split in opened.splits:
            name, rows = opened.splits[split]
            if opened.has_raters:
                rows = by_text(rows, len(opened.taxonomy), scratch / f"{split}.raters")
            path = scratch / f"{split}.rows"
            splits[split] = validate(name, rows, opened.taxonomy, path, unlabelled=unlabelled, max_quarantined=max_quarantined)
    return tell_apart(splits)


def _warn(info: DatasetInfo) -> None:
    """Logs what somebody who trains on these rows should know of them."""
    for split, reasons in info["quarantined"].items():
        if reasons:
            listed = ", ".join(f"{count} {reason}" for reason, count in reasons.items())
            log.warning("rows of %s that are left out: %s; %s lists them", split, listed, QUARANTINE_FILE)
    for split, texts in info["leakage"].items():
        if texts["normalized"] and not info["leaked_rows_dropped"]:
            log.warning(
                "texts of %s that are also in train: %d; drop_leaked leaves them out of train", split, texts["normalized"]
            )
    differing = info["duplicates"]["texts_with_other_labels"]
    if differing > REPEATED * info["rows"]["train"]:
        log.warning(
            "texts of train that are in several rows with other labels: %d; if each row has one label of its text, write one row per "
            "text with all of them",
            differing,
        )
    for label in info["labels_absent_from_train"]:
        log.warning("label %s never occurs in train: it cannot be learned, and its scores are meaningless", label)


def _contents(taxonomy: Taxonomy, splits: dict[str, Split], *, is_soft: bool) -> Contents:
    return {
        "digest": digest(taxonomy, {split: _rows(kept, taxonomy, is_soft=is_soft) for split, kept in splits.items()}),
        "labels": list(taxonomy.names),
        "rows": {split: len(kept) for split, kept in splits.items()},
        "quarantined": {split: dict(Counter(reason for *_, reason in kept.quarantined)) for split, kept in splits.items()},
        "disagreement": disagreement(splits["train"], taxonomy) if is_soft else None,
        **describe(taxonomy, splits),
    }


def load_dataset(folder: Path, splits: Iterable[str] = SPLITS) -> tuple[datasets.DatasetDict, DatasetInfo]:
    """Reads a Dataset folder.

    Args:
        folder: the Dataset folder.
        splits: the splits to read; nothing of the others is opened.

    Returns:
        The splits, and the content of ``dataset.json``.

    Raises:
        DataError: the folder is no Dataset folder, or a part of it is missing.
    """
    # It takes a second, which only commands that read rows need.
    import datasets

    try:
        info: DatasetInfo = strict_json.read(folder / INFO_FILE)
        strict_json.require(info["labels"], list[str], INFO_FILE)
        strict_json.require(info["digest"], str, INFO_FILE)
        size = sum(path.stat().st_size for path in folder.rglob("*.arrow"))
        # What is compressed in them is unpacked at once.
        with memory.bounded(str(folder), size):
            tables = {split: datasets.Dataset.load_from_disk(str(folder / split)) for split in splits}
        return datasets.DatasetDict(tables), info
    except Exception as error:
        raise DataError(f"{folder} is not a Dataset folder: make one with `goemotions ingest`") from error


@contextlib.contextmanager
def as_folder(location: str, **options: Any) -> Iterator[Path]:
    """A Dataset folder for as long as the block lasts.

    Args:
        location: a Dataset folder; an ``s3://`` prefix with one; or a source, which is ingested.
        options: of ``ingest``.

    Raises:
        DataError, SourceUnreachable, StorageError: as ``ingest`` does.
    """
    if (Path(location) / INFO_FILE).is_file():
        yield Path(location)
        return
    with temporary_folder() as scratch:
        folder = scratch / "dataset"
        if addresses.source(location).startswith(addresses.S3) and store.has(location, INFO_FILE):
            store.fetch(location, folder)
        else:
            ingest(location, folder, **options)
        yield folder


def taxonomy_of(info: DatasetInfo) -> Taxonomy:
    return Taxonomy(tuple(info["labels"]))


def _without_leaked(splits: dict[str, Split]) -> Split:
    held_out = np.sort(np.concatenate([splits[split].per_row["normalized"] for split in ("validation", "test")]))
    return splits["train"].keep(~is_in(splits["train"].per_row["normalized"], held_out))


def _rows(split: Split, taxonomy: Taxonomy, *, is_soft: bool) -> Iterator[Row]:
    for batch in split.batches():
        columns = [batch[name].to_pylist() for name in ("id", "text", "labels")]
        yield from zip(*columns, *([soft_labels(batch, taxonomy).tolist()] if is_soft else []), strict=True)


def digest(taxonomy: Taxonomy, splits: Mapping[str, Iterable[Row]]) -> str:
    """sha256 over the taxonomy and the canonical rows: one JSON list per row, in order, split by split."""
    state = hashlib.sha256(json.dumps(taxonomy.names).encode())
    for split in SPLITS:
        for row in splits[split]:
            state.update(json.dumps([split, *row], ensure_ascii=True).encode())
    return state.hexdigest()


def _write(output: Path, taxonomy: Taxonomy, splits: dict[str, Split], info: DatasetInfo, *, is_soft: bool) -> None:
    import datasets

    features = datasets.Features(
        id=datasets.Value("string"),
        text=datasets.Value("string"),
        labels=datasets.List(datasets.ClassLabel(names=list(taxonomy.names))),
        **({SOFT_LABELS: datasets.List(datasets.Value("float32"))} if is_soft else {}),
    )
    datasets.disable_progress_bars()
    # `datasets` cannot write rows batch by batch: it writes its folders with a single row, which `_replace_rows` replaces.
    single = pa.Table.from_pylist([{"id": "", "text": "", "labels": [], SOFT_LABELS: []}], schema=features.arrow_schema)
    datasets.DatasetDict({split: datasets.Dataset(single) for split in splits}).save_to_disk(str(output))
    for split, rows in splits.items():
        fingerprint = f"{split}-{info['digest'][:16]}"
        _replace_rows(output / split, rows, taxonomy, features.arrow_schema, fingerprint=fingerprint)
    with (output / QUARANTINE_FILE).open("w", newline="", encoding="utf-8") as file:
        lines = csv.writer(file)
        lines.writerow(["split", "line", "id", "reason"])
        lines.writerows([split, *map(as_cell, row[1:])] for split, rows in splits.items() for row in rows.quarantined)
    (output / INFO_FILE).write_text(json.dumps(info, indent=1), encoding="utf-8")


def _replace_rows(folder: Path, split: Split, taxonomy: Taxonomy, schema: pa.Schema, fingerprint: str) -> None:
    state_file = folder / "state.json"
    state = strict_json.read(state_file)
    with pa.ipc.new_stream(str(folder / state["_data_files"][0]["filename"]), schema) as writer:
        for batch in split.batches():
            if SOFT_LABELS in schema.names:
                soft = pa.array(soft_labels(batch, taxonomy).tolist(), pa.list_(pa.float32()))
                batch = batch.append_column(SOFT_LABELS, soft)
            writer.write_batch(batch.select(schema.names).cast(schema))
    # The cache of `datasets` takes folders with the same fingerprint for the same data.
    state_file.write_text(json.dumps({**state, "_fingerprint": fingerprint}, indent=1), encoding="utf-8")
