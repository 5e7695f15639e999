"""The data set: read from a source, validated row by row, described, and written once as a Dataset folder.

A Dataset folder holds a ``datasets.DatasetDict`` (splits train, validation, test; columns id, text, labels), ``dataset.json``
(digest, counts, statistics) and ``quarantine.csv`` (the rows left out, with the reason; never their text).
"""

from __future__ import annotations

import csv
import functools
import gzip
import hashlib
import json
import logging
import re
import tempfile
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from scipy import sparse

from goemotions import storage
from goemotions.errors import DataError, SourceUnreachable
from goemotions.labels import Taxonomy
from goemotions.tokenization import clean

log = logging.getLogger(__name__)

SPLITS = ("train", "validation", "test")
FILE_NAMES = {"train": ("train",), "validation": ("validation", "dev", "val"), "test": ("test",)}
REFUSED_ENDINGS = {".pkl", ".pickle", ".pt", ".pth", ".bin", ".joblib", ".npy", ".py"}
HUB_TIMEOUT_SECONDS = 5

UNLABELLED = ("quarantine", "keep")


@dataclass
class Rows:
    """The columns of one split, and the rows that were left out of it as (line, id, reason)."""

    ids: list[str] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    labels: list[list[int]] = field(default_factory=list)
    quarantined: list[tuple[int, str, str]] = field(default_factory=list)

    def keep(self, wanted: Iterable[int]) -> Rows:
        wanted = list(wanted)
        return Rows(
            [self.ids[i] for i in wanted],
            [self.texts[i] for i in wanted],
            [self.labels[i] for i in wanted],
            self.quarantined,
        )


@dataclass(frozen=True)
class RawRow:
    """One row as a reader found it; ``line`` counts from 1 in each file."""

    file: str
    line: int
    id: str
    text: str
    labels: list[Any]


@storage.names_full_disk
def ingest(
    source: str,
    output: Path,
    *,
    drop_leaked: bool = False,
    unlabelled: str = "quarantine",
    max_quarantined: float = 0.05,
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
        raise DataError(f"unlabelled={unlabelled!r} is no policy: choose {' or '.join(UNLABELLED)}")
    with tempfile.TemporaryDirectory() as scratch:
        taxonomy, raw, revision = _open(source, Path(scratch))
        splits = {}
        for split in SPLITS:
            name, rows = raw[split]
            splits[split] = _validate(name, rows, taxonomy, unlabelled, max_quarantined)
    _refuse_shared_ids(splits)
    leakage = _leakage(splits)
    if drop_leaked:
        splits["train"] = _without_leaked(splits)
    for split, kept in splits.items():
        if not kept.ids:
            raise DataError(f"no row of {split} is left: every one is quarantined or stands in validation or test too")
    info = {
        "source": source,
        "revision": revision,
        "digest": digest(taxonomy, splits),
        "labels": list(taxonomy.names),
        "rows": {split: len(rows.ids) for split, rows in splits.items()},
        "quarantined": {split: dict(Counter(reason for *_, reason in r.quarantined)) for split, r in splits.items()},
        "unlabelled": unlabelled,
        "leakage": leakage,
        "leaked_rows_dropped": drop_leaked,
        **describe(taxonomy, splits),
    }
    for label in info["labels_absent_from_train"]:
        log.warning("label %s never occurs in train: it cannot be learned, its scores carry no meaning", label)
    _write(output, taxonomy, splits, info)
    return info


def load(folder: Path, splits: Iterable[str] = SPLITS) -> tuple[datasets.DatasetDict, dict[str, Any]]:
    """Reads a Dataset folder: the splits asked for, and nothing of the others, and the content of ``dataset.json``."""
    try:
        info = json.loads((folder / "dataset.json").read_text(encoding="utf-8"))
        tables = {split: datasets.Dataset.load_from_disk(str(folder / split)) for split in splits}
        return datasets.DatasetDict(tables), info
    except (OSError, ValueError) as error:
        raise DataError(f"{folder} is no Dataset folder: make one with `goemotions ingest`") from error


def taxonomy_of(info: dict[str, Any]) -> Taxonomy:
    return Taxonomy(tuple(info["labels"]))


def _open(source: str, scratch: Path) -> tuple[Taxonomy, dict[str, tuple[str, Iterable[RawRow]]], str]:
    if source == "sample":
        folder = Path(str(resources.files("goemotions") / "sample"))
        return *_open_folder(folder), "shipped"
    if source.startswith("hub:"):
        return _open_hub(source)
    if source.startswith("s3://"):
        storage.fetch(source, scratch)
        return *_open_folder(scratch, shown=source), "s3"
    folder = Path(source).expanduser()
    if not folder.is_dir():
        raise DataError(
            f"there is no data folder {source}: give `sample`, `hub:<dataset>`, a folder with train, dev and test, or s3://"
        )
    return *_open_folder(folder), "local"


def _open_folder(folder: Path, shown: str = "") -> tuple[Taxonomy, dict[str, tuple[str, Iterable[RawRow]]]]:
    shown = shown or str(folder)
    files = {split: _split_files(folder, split, shown) for split in SPLITS}
    names = folder / "emotions.txt"
    if names.exists():
        taxonomy = Taxonomy(tuple(_decode(names.read_bytes(), names).strip().splitlines()))
    elif all(path.suffix == ".parquet" for paths in files.values() for path in paths):
        taxonomy = _taxonomy_of_parquet(files["train"][0])
    else:
        raise DataError(f"{shown} has no emotions.txt: list the label names there, one a line, in index order")
    return taxonomy, {split: (paths[0].name, _read(paths, taxonomy)) for split, paths in files.items()}


def _split_files(folder: Path, split: str, shown: str) -> list[Path]:
    for name in FILE_NAMES[split]:
        for pattern in (f"{name}.tsv", f"{name}.tsv.gz", f"{name}.parquet", f"{name}-*-of-*.parquet"):
            if found := sorted(folder.glob(pattern)):
                announced = found[0].stem.rpartition("-of-")[2]
                if "*" in pattern and announced.isdecimal() and int(announced) != len(found):
                    raise DataError(
                        f"{shown}: {found[0].name} is one of {int(announced)} files, {len(found)} of them there: copy the rest"
                    )
                return found
    refused = [path.name for path in sorted(folder.iterdir()) if path.suffix in REFUSED_ENDINGS]
    if refused:
        raise DataError(
            f"{shown}: {refused[0]} is refused, since reading pickles and scripts runs code: convert it to .tsv or .parquet"
        )
    names = " or ".join(f"{name}.tsv, {name}.parquet" for name in FILE_NAMES[split])
    raise DataError(f"{shown} has no {split} split: add {names}")


def _read(paths: list[Path], taxonomy: Taxonomy) -> Iterator[RawRow]:
    for path in paths:
        if path.suffix == ".parquet":
            yield from _read_parquet(path, taxonomy)
        else:
            yield from _read_tsv(path)


def _decode(content: bytes, path: Path) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        # The error counts from behind a byte order mark.
        line = error.object[: error.start].count(b"\n") + 1
        raise DataError(f"{path.name}, line {line}: not UTF-8 (byte {error.object[error.start]:#04x}): re-encode it") from error


def _read_tsv(path: Path) -> Iterator[RawRow]:
    """Rows of the official layout: text, label indices joined by commas, id; tab-separated, no header."""
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{path.name} is no complete gzip file: copy it again") from error
    if content[:4] == content[-4:] == b"PAR1" or content[:2] == b"\x1f\x8b":
        raise DataError(f"{path.name} is not the text file its ending promises: rename it to .parquet or .tsv.gz")
    if not content.strip():
        return
    for line, record in enumerate(_decode(content, path).removesuffix("\n").split("\n"), start=1):
        record = record.removesuffix("\r")
        columns = record.split("\t")
        if len(columns) != 3:
            raise DataError(
                f"{path.name}, line {line}: {len(columns)} columns where 3 are needed (text, label indices, id), tab-separated"
            )
        text, labels, row_id = columns
        if line == 1 and [column.lower() for column in columns] == ["text", "labels", "id"]:
            continue
        yield RawRow(path.name, line, row_id, text, [label.strip() for label in labels.split(",") if label.strip()])


def _read_parquet(path: Path, taxonomy: Taxonomy) -> Iterator[RawRow]:
    line = 0
    try:
        with pq.ParquetFile(path) as file:
            missing = {"id", "text", "labels"} - set(file.schema_arrow.names)
            if missing:
                raise DataError(f"{path.name} has no column {sorted(missing)[0]!r}: it needs id, text and labels")
            index = {name: position for position, name in enumerate(taxonomy.names)}
            for batch in file.iter_batches(columns=["id", "text", "labels"]):
                for row in zip(*(batch.column(name) for name in ("id", "text", "labels")), strict=True):
                    line += 1
                    row_id, text, labels = (value.as_py() for value in row)
                    if not isinstance(text, str | None) or not isinstance(labels, list | None):
                        raise DataError(
                            f"{path.name}, line {line}: text must be a string, labels a list of indices or names: convert the columns"
                        )
                    labels = [index.get(label, label) if isinstance(label, str) else label for label in labels or []]
                    yield RawRow(path.name, line, "" if row_id is None else str(row_id), text or "", labels)
    except UnicodeDecodeError as error:
        raise DataError(f"{path.name}, line {line}: not UTF-8: re-encode it") from error
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path.name} is no complete Parquet file: copy it again") from error


def _taxonomy_of_parquet(path: Path) -> Taxonomy:
    try:
        metadata = pq.read_schema(path).metadata or {}
        features = json.loads(metadata.get(b"huggingface", b"{}"))["info"]["features"]
        return Taxonomy(tuple(features["labels"]["feature"]["names"]))
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path.name} is no complete Parquet file: copy it again") from error
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path.name} names no labels: put the label names into emotions.txt beside it") from error


def _open_hub(source: str) -> tuple[Taxonomy, dict[str, tuple[str, Iterable[RawRow]]], str]:
    name, _, revision = source.removeprefix("hub:").partition("@")
    name, _, config = name.partition(":")
    folder = _hub_snapshot(name, revision or None)
    if not any(folder.rglob("*.parquet")):
        raise DataError(f"{source} has no Parquet files, and pickles and loading scripts are refused: prepare a folder instead")
    try:
        found = datasets.load_dataset(str(folder), config or None)  # nosec B615 # Parquet on disk, its commit is the folder's name
    except Exception as error:
        raise DataError(f"{source} cannot be read ({type(error).__name__}): check the configuration's name") from error
    missing = [split for split in SPLITS if split not in found]
    if missing:
        raise DataError(f"{source} has no {missing[0]} split: prepare a folder with train, dev and test instead")
    features = found["train"].features
    if not {"id", "text", "labels"} <= set(features) or not hasattr(getattr(features["labels"], "feature", None), "names"):
        raise DataError(f"{source} lacks the columns id, text and labels (a list of ClassLabel): prepare a folder instead")
    taxonomy = Taxonomy(tuple(features["labels"].feature.names))

    def rows(split: str) -> Iterator[RawRow]:
        for line, row in enumerate(found[split], start=1):
            yield RawRow(f"{source} {split}", line, str(row["id"]), row["text"] or "", row["labels"] or [])

    return taxonomy, {split: (f"{source} {split}", rows(split)) for split in SPLITS}, folder.name


def _hub_snapshot(name: str, revision: str | None) -> Path:
    """The data set's Parquet files and card, in a folder named by their commit; from the cache where the hub is away."""
    import huggingface_hub
    from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError, RevisionNotFoundError

    snapshot = functools.partial(
        huggingface_hub.snapshot_download,
        name,
        repo_type="dataset",
        revision=revision,
        # Parquet and the card only: a loading script or a pickle is not even fetched.
        allow_patterns=["README.md", "*.parquet"],
    )
    try:
        # Without this bounded question an unreachable hub would be retried for half a minute.
        huggingface_hub.HfApi().dataset_info(name, revision=revision, timeout=HUB_TIMEOUT_SECONDS)
        return Path(snapshot())
    except (HFValidationError, RepositoryNotFoundError, RevisionNotFoundError) as error:
        raise DataError(f"the hub has no data set {name} at revision {revision or 'main'}: check both names") from error
    except Exception as error:
        try:
            return Path(snapshot(local_files_only=True))
        except OSError:
            raise SourceUnreachable(
                f"the hub cannot be reached for {name}: use DATA=sample, a local folder (DATA=path/to/folder) "
                "or DATA=s3://bucket/prefix/"
            ) from error


def _validate(name: str, raw: Iterable[RawRow], taxonomy: Taxonomy, unlabelled: str, max_quarantined: float) -> Rows:
    rows = Rows()
    seen: set[str] = set()
    for row in raw:
        labels = [_label(row, value, len(taxonomy)) for value in row.labels]
        if len(set(labels)) != len(labels):
            twice = next(label for label in labels if labels.count(label) > 1)
            raise DataError(f"{row.file}, line {row.line}: label {twice} stands twice in the row: name it once")
        if not row.id or row.id in seen:
            raise DataError(
                f"{row.file}, line {row.line}: id {row.id!r} is empty or stands twice: give each row an id of its own"
            )
        seen.add(row.id)
        text = clean(row.text)
        if not text.strip():
            rows.quarantined.append((row.line, row.id, "blank text"))
        elif not labels and unlabelled == "quarantine":
            rows.quarantined.append((row.line, row.id, "no label"))
        else:
            rows.ids.append(row.id)
            rows.texts.append(text)
            rows.labels.append(sorted(labels))
    total = len(seen)
    if not total:
        raise DataError(f"{name} has no rows: it needs at least one row of text, labels and id")
    if len(rows.quarantined) > max_quarantined * total:
        line, _, reason = rows.quarantined[0]
        raise DataError(
            f"{name}: {len(rows.quarantined)} of {total} rows are unusable (line {line}: {reason}), over the allowed "
            f"{max_quarantined:.0%}: mend the file or raise max_quarantined"
        )
    return rows


def _label(row: RawRow, value: Any, labels: int) -> int:
    # Whole numbers only: int() would also take "1_0" for 10 and True for 1.
    index = int(value) if isinstance(value, str) and value.isdecimal() and len(value) < 10 else value
    if isinstance(index, bool) or not isinstance(index, int | float) or index not in range(labels):
        raise DataError(
            f"{row.file}, line {row.line}: label {value!r:.80} is no index from 0 to {labels - 1}: mend the row or emotions.txt"
        )
    return int(index)


def _refuse_shared_ids(splits: dict[str, Rows]) -> None:
    owner: dict[str, str] = {}
    for split, rows in splits.items():
        for row_id in (*rows.ids, *(row_id for _, row_id, _ in rows.quarantined)):
            if row_id in owner:
                raise DataError(f"id {row_id} stands in {owner[row_id]} and in {split}: each row belongs to one split")
            owner[row_id] = split


def normalized(text: str) -> str:
    """A text without case, punctuation and spacing: two texts that agree in it are counted as the same."""
    return re.sub(r"\W+", " ", text.casefold()).strip() or text


def _leakage(splits: dict[str, Rows]) -> dict[str, dict[str, int]]:
    exact = set(splits["train"].texts)
    loose = {normalized(text) for text in exact}
    return {
        split: {
            "exact": sum(text in exact for text in splits[split].texts),
            "normalized": sum(normalized(text) in loose for text in splits[split].texts),
        }
        for split in ("validation", "test")
    }


def _without_leaked(splits: dict[str, Rows]) -> Rows:
    held_out = {normalized(text) for split in ("validation", "test") for text in splits[split].texts}
    train = splits["train"]
    return train.keep(i for i, text in enumerate(train.texts) if normalized(text) not in held_out)


def digest(taxonomy: Taxonomy, splits: dict[str, Rows]) -> str:
    """sha256 over the taxonomy and the canonical rows: one JSON list a row, in order, split by split."""
    state = hashlib.sha256(json.dumps(taxonomy.names).encode())
    for split in SPLITS:
        rows = splits[split]
        for row in zip(rows.ids, rows.texts, rows.labels, strict=True):
            state.update(json.dumps([split, *row], ensure_ascii=True).encode())
    return state.hexdigest()


def describe(taxonomy: Taxonomy, splits: dict[str, Rows]) -> dict[str, Any]:
    """Statistics of the data set: lengths, labels, co-occurrence in train and repeated texts of train."""
    matrices = {split: _sparse(rows.labels, len(taxonomy)) for split, rows in splits.items()}
    counts = {split: np.asarray(matrix.sum(axis=0)).ravel().astype(int) for split, matrix in matrices.items()}
    sizes = {split: np.bincount([len(labels) for labels in rows.labels]).tolist() for split, rows in splits.items()}
    train = splits["train"]
    by_text: dict[str, list[tuple[int, ...]]] = {}
    for text, labels in zip(train.texts, train.labels, strict=True):
        by_text.setdefault(text, []).append(tuple(labels))
    repeated = [found for found in by_text.values() if len(found) > 1]
    return {
        "label_counts": {split: dict(zip(taxonomy.names, map(int, c), strict=True)) for split, c in counts.items()},
        "labels_absent_from_train": [n for n, count in zip(taxonomy.names, counts["train"], strict=True) if count == 0],
        "labels_per_row": sizes,
        "words": {split: _percentiles([len(text.split()) for text in rows.texts]) for split, rows in splits.items()},
        "characters": {split: _percentiles([len(text) for text in rows.texts]) for split, rows in splits.items()},
        "cooccurrence": (matrices["train"].T @ matrices["train"]).toarray().astype(int).tolist(),
        "duplicates": {
            "texts": len(repeated),
            "rows": sum(map(len, repeated)),
            "texts_with_other_labels": sum(len(set(found)) > 1 for found in repeated),
        },
    }


def _sparse(rows: list[list[int]], labels: int) -> sparse.csr_matrix:
    ends = np.cumsum([0, *map(len, rows)])
    columns = np.fromiter((label for row in rows for label in row), dtype=np.int32, count=int(ends[-1]))
    return sparse.csr_matrix((np.ones(len(columns), dtype=np.int64), columns, ends), shape=(len(rows), labels))


def _percentiles(values: list[int]) -> dict[str, float]:
    if not values:
        return {}
    named = zip(("min", "p50", "p95", "p99", "max"), np.percentile(values, [0, 50, 95, 99, 100]), strict=True)
    return {"mean": round(float(np.mean(values)), 2), **{name: float(value) for name, value in named}}


def _write(output: Path, taxonomy: Taxonomy, splits: dict[str, Rows], info: dict[str, Any]) -> None:
    features = datasets.Features(
        id=datasets.Value("string"),
        text=datasets.Value("string"),
        labels=datasets.List(datasets.ClassLabel(names=list(taxonomy.names))),
    )
    # Straight from Arrow: Dataset.from_dict encodes label by label, 100 times slower.
    tables = {
        split: datasets.Dataset(
            pa.table({"id": rows.ids, "text": rows.texts, "labels": rows.labels}, schema=features.arrow_schema)
        )
        for split, rows in splits.items()
    }
    datasets.disable_progress_bars()
    datasets.DatasetDict(tables).save_to_disk(str(output))
    with (output / "quarantine.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["split", "line", "id", "reason"])
        writer.writerows([split, *row] for split, rows in splits.items() for row in rows.quarantined)
    (output / "dataset.json").write_text(json.dumps(info, indent=1), encoding="utf-8")
