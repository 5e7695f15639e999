"""Sources of data: the shipped sample, a folder, a bucket or the hub; TSV and Parquet files, read row by row."""

from __future__ import annotations

import functools
import gzip
import json
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq

from goemotions.data.taxonomy import Taxonomy
from goemotions.errors import DataError, SourceUnreachable
from goemotions.storage import store

SPLITS = ("train", "validation", "test")
FILE_NAMES = {"train": ("train",), "validation": ("validation", "dev", "val"), "test": ("test",)}
REFUSED_ENDINGS = {".pkl", ".pickle", ".pt", ".pth", ".bin", ".joblib", ".npy", ".py"}
HUB_TIMEOUT_SECONDS = 5


@dataclass(frozen=True)
class RawRow:
    """One row before validation; ``line`` counts from 1 in each file."""

    file: str
    line: int
    id: str
    text: str
    labels: list[Any]


# Per split: a name for error messages, and the rows, which are read lazily.
RawSplits = dict[str, tuple[str, Iterable[RawRow]]]


@dataclass(frozen=True)
class Source:
    """An opened source."""

    taxonomy: Taxonomy
    splits: RawSplits
    revision: str


def open_source(source: str, scratch: Path) -> Source:
    """Opens a source; files from S3 are downloaded into ``scratch``.

    Raises:
        DataError: the source does not exist, lacks a split or the label names, or holds pickles or scripts instead of data. Also raised
            while rows are read, with file and line.
        SourceUnreachable: the hub cannot be reached and its data set is not cached.
        StorageError: the bucket cannot be reached, denies access or has no file there.
    """
    if source == "sample":
        folder = Path(str(resources.files("goemotions.data") / "sample"))
        return Source(*_open_folder(folder), "shipped")
    if source.startswith("hub:"):
        return _open_hub(source)
    if source.startswith("s3://"):
        store.fetch(source, scratch)
        return Source(*_open_folder(scratch, name=source), "s3")
    folder = Path(source).expanduser()
    if not folder.is_dir():
        raise DataError(
            f"there is no data folder {source}: give `sample`, `hub:<dataset>`, a folder with train, dev and test, or s3://"
        )
    return Source(*_open_folder(folder), "local")


def _open_folder(folder: Path, name: str = "") -> tuple[Taxonomy, RawSplits]:
    name = name or str(folder)
    files = {split: _split_files(folder, split, name) for split in SPLITS}
    label_names = folder / "emotions.txt"
    if label_names.exists():
        taxonomy = Taxonomy(tuple(_decode(label_names.read_bytes(), label_names).strip().splitlines()))
    elif all(path.suffix == ".parquet" for paths in files.values() for path in paths):
        taxonomy = _taxonomy_of_parquet(files["train"][0])
    else:
        raise DataError(f"{name} has no emotions.txt: list the label names there, one per line, in index order")
    return taxonomy, {split: (paths[0].name, _read(paths, taxonomy)) for split, paths in files.items()}


def _split_files(folder: Path, split: str, source: str) -> list[Path]:
    for name in FILE_NAMES[split]:
        for pattern in (f"{name}.tsv", f"{name}.tsv.gz", f"{name}.parquet", f"{name}-*-of-*.parquet"):
            if files := sorted(folder.glob(pattern)):
                count = files[0].stem.rpartition("-of-")[2]
                if "*" in pattern and count.isdecimal() and int(count) != len(files):
                    raise DataError(
                        f"{source}: {files[0].name} is one of {int(count)} files, but there are {len(files)}: copy the missing ones"
                    )
                return files
    refused = [path.name for path in sorted(folder.iterdir()) if path.suffix in REFUSED_ENDINGS]
    if refused:
        raise DataError(
            f"{source}: {refused[0]} is refused, since reading pickles and scripts runs code: convert it to .tsv or .parquet"
        )
    names = " or ".join(f"{name}.tsv, {name}.parquet" for name in FILE_NAMES[split])
    hint = " (docs/data.md shows how to convert .csv)" if any(folder.glob("*.csv")) else ""
    raise DataError(f"{source} has no {split} split: add {names}{hint}")


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
        raise _not_text(error, path, 1 + error.object[: error.start].count(b"\n")) from error


def _not_text(error: UnicodeDecodeError, path: Path, line: int) -> DataError:
    return DataError(f"{path.name}, line {line}: not UTF-8 (byte {error.object[error.start]:#04x}): re-encode it")


def _read_tsv(path: Path) -> Iterator[RawRow]:
    """Rows of the official layout: text, label indices joined by commas, id; tab-separated, no header."""
    only_blank = True
    for line, record in enumerate(_lines(path), start=1):
        # A file of only blank lines has no rows; a blank line before a row is an error like any other.
        if only_blank and not record.strip():
            continue
        if only_blank and line > 1:
            raise _wrong_columns(path, 1, 1)
        only_blank = False
        columns = record.split("\t")
        if len(columns) != 3:
            raise _wrong_columns(path, line, len(columns))
        text, labels, row_id = columns
        if line == 1 and [column.lower() for column in columns] == ["text", "labels", "id"]:
            continue
        yield RawRow(path.name, line, row_id, text, [label.strip() for label in labels.split(",") if label.strip()])


def _wrong_columns(path: Path, line: int, count: int) -> DataError:
    return DataError(f"{path.name}, line {line}: {count} columns where 3 are needed (text, label indices, id), tab-separated")


def _lines(path: Path) -> Iterator[str]:
    """The lines of a text file, compressed or not, without line endings."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            start = file.peek(4)[:4]
            if start[:2] == b"\x1f\x8b" or (start == b"PAR1" and _ends_as_parquet(path)):
                raise DataError(f"{path.name} is not a text file, as its ending says: rename it to .parquet or .tsv.gz")
            for line, content in enumerate(file, start=1):
                try:
                    record = content.decode("utf-8-sig" if line == 1 else "utf-8")
                except UnicodeDecodeError as error:
                    raise _not_text(error, path, line) from error
                yield record.removesuffix("\n").removesuffix("\r")
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{path.name} is not a complete gzip file: copy it again") from error


def _ends_as_parquet(path: Path) -> bool:
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
        file.seek(0)
        last = b""
        while block := file.read(2**20):
            last = (last + block)[-4:]
    return last == b"PAR1"


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
        raise _damaged_parquet(path) from error


def _damaged_parquet(path: Path) -> DataError:
    return DataError(f"{path.name} is not a complete Parquet file: copy it again")


def _taxonomy_of_parquet(path: Path) -> Taxonomy:
    try:
        metadata = pq.read_schema(path).metadata or {}
        features = json.loads(metadata.get(b"huggingface", b"{}"))["info"]["features"]
        return Taxonomy(tuple(features["labels"]["feature"]["names"]))
    except (pa.ArrowException, OSError) as error:
        raise _damaged_parquet(path) from error
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path.name} does not name its labels: put their names into emotions.txt beside it") from error


def _open_hub(source: str) -> Source:
    name, _, revision = source.removeprefix("hub:").partition("@")
    name, _, config = name.partition(":")
    folder = _hub_snapshot(name, revision or None)
    if not any(folder.rglob("*.parquet")):
        raise DataError(f"{source} has no Parquet files, and pickles and loading scripts are refused: prepare a folder instead")
    try:
        splits = datasets.load_dataset(str(folder), config or None)  # nosec B615 # Parquet on disk, its commit is the folder's name
    except Exception as error:
        raise DataError(f"{source} cannot be read ({type(error).__name__}): check the configuration's name") from error
    missing = [split for split in SPLITS if split not in splits]
    if missing:
        raise DataError(f"{source} has no {missing[0]} split: prepare a folder with train, dev and test instead")
    features = splits["train"].features
    if not {"id", "text", "labels"} <= set(features) or not hasattr(getattr(features["labels"], "feature", None), "names"):
        raise DataError(f"{source} lacks the columns id, text and labels (a list of ClassLabel): prepare a folder instead")
    taxonomy = Taxonomy(tuple(features["labels"].feature.names))

    def rows(split: str) -> Iterator[RawRow]:
        for line, row in enumerate(splits[split], start=1):
            yield RawRow(f"{source} {split}", line, str(row["id"]), row["text"] or "", row["labels"] or [])

    return Source(taxonomy, {split: (f"{source} {split}", rows(split)) for split in SPLITS}, folder.name)


def _hub_snapshot(name: str, revision: str | None) -> Path:
    """The folder, named by its commit, with the data set's Parquet files and card; from the cache if the hub cannot be reached."""
    import huggingface_hub
    from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError, RevisionNotFoundError

    snapshot = functools.partial(
        huggingface_hub.snapshot_download,
        name,
        repo_type="dataset",
        revision=revision,
        # Parquet and the card only: a loading script or a pickle is not even downloaded.
        allow_patterns=["README.md", "*.parquet"],
    )
    try:
        # Without this request and its timeout, an unreachable hub would be retried for half a minute.
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
