"""Sources of data: the shipped sample, a file, a folder, a bucket or the hub, read row by row."""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from importlib import resources
from itertools import chain, islice, product
from pathlib import Path
from typing import Any

from goemotions import addresses, defaults
from goemotions.data import archives, card, hub, layout, tables, text_files
from goemotions.data.labels import NAMES as LABELS
from goemotions.data.labels import RATERS, SAMPLED, Labelling, find_labelling
from goemotions.data.layout import SPLITS
from goemotions.data.tables import Table
from goemotions.data.taxonomy import MOST_LABELS, Taxonomy
from goemotions.errors import DataError
from goemotions.storage import store
from goemotions.storage.backend import File

log = logging.getLogger(__name__)

ID = "id"
SPLIT_COLUMN = re.compile("(data[-_ ]?)?split|is[-_ ]?(train|training|test|val|valid|validation|dev|eval)", re.IGNORECASE)
# What the cells of such a column have, whatever it is called.
TRAIN = {*layout.NAMES["train"]}
SPLIT_VALUE = re.compile(f"(public|private)?({'|'.join(layout.SPLIT_OF)}|eval|evaluation|hold[-_ ]?out)([-_ ]?set)?")

# Where Prodigy and Argilla say that a row was not accepted, and how.
REJECTED = {"answer": ("reject", "ignore"), "status": ("discarded",)}


@dataclass(frozen=True)
class RawRow:
    """One row before validation; ``line`` counts from 1 in each file. ``shares``: of the raters per label, if they are known."""

    file: str
    line: int
    id: str
    text: str
    labels: list[Any]
    shares: list[float] | None = None


# Per split: a name for error messages, and the rows, which are read lazily. A source that is not split has only train.
RawSplits = dict[str, tuple[str, Iterable[RawRow]]]


@dataclass(frozen=True)
class Source:
    """An opened source.

    Attributes:
        taxonomy: its labels.
        splits: its rows.
        revision: ``shipped``, ``local``, ``s3`` or the commit of the hub's data set.
        form: how it is read, in words.
        has_raters: whether several rows may have one id: one row per rater.
        files: the files of a local source with their folders, as they were before any was read.
    """

    taxonomy: Taxonomy
    splits: RawSplits
    revision: str
    form: str
    has_raters: bool
    files: tuple[tuple[str, File], ...] = ()

    @contextmanager
    def reading(self) -> Iterator[None]:
        """For what is read of the splits: the block ends with an error if they may be of two versions of the source.

        Raises:
            FileChanged: a file was changed meanwhile.
        """
        with ExitStack() as stack:
            for folder, file in self.files:
                stack.enter_context(store.reading(folder, file))
            yield


@dataclass(frozen=True)
class Columns:
    """The columns to read: that of the texts, and that of the labels (``labels.find_labelling`` says which are found without it)."""

    text: str = defaults.TEXT_COLUMN
    labels: str = ""


def open_source(source: str, scratch: Path, columns: Columns = Columns()) -> Source:
    """Opens a source; files from S3 are downloaded into ``scratch``.

    Raises:
        BadAddress: the source has an unknown form.
        DataError: the source does not exist, lacks a train split or the label names, has two readings, or holds pickles or scripts
            instead of data. Also raised while rows are read, with file and line.
        SourceUnreachable: the hub cannot be reached and its data set is not cached.
        StorageError: the bucket cannot be reached, denies access or has no file there.
    """
    addresses.source(source)
    if source == addresses.SAMPLE:
        folder = Path(str(resources.files("goemotions.data") / "sample"))
        return _open_path(folder, source, "shipped", columns)
    if source.startswith(addresses.HUB):
        folder = hub.fetch(source)
        return _open_path(folder, source, folder.name, columns, hub.configuration(source))
    if addresses.is_s3(source):
        fetched = archives.fetch_object(source, scratch / "object") or store.fetch(source, scratch)
        return _open_path(_unpacked(fetched, source, scratch), source, "s3", columns)
    path = addresses.local(source)
    if not path.exists():
        raise DataError(
            f"there is no data folder {source}: give `sample`, `hub:<dataset>`, a folder with train, dev and test, a file, or s3://"
        )
    archive = _as_they_are([path]) if archives.is_archive(path) else ()
    opened = _open_path(_unpacked(path, source, scratch), source, "local", columns)
    return replace(opened, files=archive or opened.files)


def _unpacked(path: Path, name: str, scratch: Path) -> Path:
    return archives.unpack(path, name, scratch / "unpacked") if archives.is_archive(path) else path


def _open_path(path: Path, name: str, revision: str, columns: Columns, config: str = "") -> Source:
    described = card.read(path, name, config)
    chosen = described.layout or layout.find(path, name)
    listed = [*chain(*chosen.files.values()), *filter(None, [chosen.label_names])]
    files = _as_they_are(listed)
    names = _label_names(chosen.label_names) if chosen.label_names else None
    return replace(_open_files(chosen.files, names, name, revision, columns, described.class_names), files=files)


def _as_they_are(paths: Sequence[Path]) -> tuple[tuple[str, File], ...]:
    """The folder of each file, and what the store says of the file."""
    return tuple((folder, file) for path in paths if (file := store.find(folder := str(path.parent), path.name)))


def _label_names(path: Path) -> list[str]:
    with path.open("rb") as file:
        names = [line.strip() for line in islice(text_files.lines(file, path.name), MOST_LABELS + 1)]
    while names and not names[-1].strip():
        names.pop()
    return list(Taxonomy(tuple(names)).names)


def _open_files(
    files: Mapping[str, Sequence[Path]],
    names: Sequence[str] | None,
    name: str,
    revision: str,
    columns: Columns,
    class_names: Mapping[str, tuple[str, ...]] | None = None,
) -> Source:
    """Opens the files of each split; ``class_names`` are those of files without names of their own."""
    opened = {
        split or "train": [_open_file(path, columns, class_names, names) for path in paths] for split, paths in files.items()
    }
    for parts in opened.values():
        if not any(table.columns for table in parts):
            raise DataError(f"{parts[0].name} has no rows: it needs at least one row of text, labels and id")
    every = [table for split in SPLITS for table in opened.get(split, ()) if table.columns]
    if not files.keys() & {"validation", "test"} and (column := _split_column(every[0])):
        raise DataError(
            f"{every[0].name} has a column {column!r}, and its rows would be split anew: write one file per split, such as train.csv, "
            "or remove the column"
        )
    _refuse_rejected(every)
    labelling = find_labelling(every, names, columns.labels)
    has_raters = any(_raters(table) for table in every)
    form = _form(every, labelling, columns, has_raters=has_raters)
    log.info("%s: %s", name, form)
    splits: RawSplits = {}
    for split, parts in opened.items():
        splits[split] = (parts[0].name, _rows(parts, labelling, columns, "row" if "" in files else split))
    return Source(labelling.taxonomy, splits, revision, form, has_raters)


def _split_column(table: Table) -> str:
    """The column that says the split of each row, by its name or its first values; empty if there is none."""
    if named := [column for column in table.columns if SPLIT_COLUMN.fullmatch(column.strip())]:
        return named[0]
    possible = [column for column in table.columns if column.lower() not in LABELS]
    # Of the columns that say one in the first row, of which there is hardly any, more rows are read.
    for sampled in (1, SAMPLED):
        if not possible:
            return ""
        rows = [cells for _, cells in islice(table.rows(possible), sampled)]
        values = {column: {_split_value(cells[position]) for cells in rows} for position, column in enumerate(possible)}
        possible = [column for column, found in values.items() if "" not in found]
    return next((column for column in possible if values[column] & TRAIN), "")


def _split_value(cell: Any) -> str:
    """The cell if it names a split; empty otherwise."""
    value = cell.strip().casefold() if isinstance(cell, str) else ""
    return value if SPLIT_VALUE.fullmatch(value) else ""


def _refuse_rejected(every: Sequence[Table]) -> None:
    """Raises DataError if a row was not accepted, by a column of a labelling tool that would not be looked at."""
    for table, (name, values) in product(every, REJECTED.items()):
        if column := table.column(name):
            for line, (cell,) in table.rows([column]):
                if cell in values:
                    raise DataError(
                        f"{table.name}, line {line}: {cell!r} in column {column!r}, and the row would be learned from: leave out such "
                        "rows, or the column"
                    )


def _open_file(
    path: Path, columns: Columns, class_names: Mapping[str, tuple[str, ...]] | None, names: Sequence[str] | None
) -> Table:
    table = tables.open_path(path, columns.text)
    if table.columns:
        _text_column(table, columns)
    # Numbers in text files mean what emotions.txt says, if it is there.
    is_named = table.class_names or (names is not None and not table.schema)
    return table if is_named else replace(table, class_names=class_names or {})


def _form(every: Sequence[Table], labelling: Labelling, columns: Columns, *, has_raters: bool) -> str:
    kinds = " and ".join(dict.fromkeys(table.form for table in every))
    shown = ", ".join(table.name for table in every[:4]) + (f" and {len(every) - 4} more" if len(every) > 4 else "")
    ids = "ids from column 'id'" if all(table.column(ID) for table in every) else "ids made from position and text"
    raters = "; one row per rater, combined by id" if has_raters else ""
    return f"{shown} ({kinds}): texts from column {_text_column(every[0], columns)!r}, {labelling.form}, {ids}{raters}"


def _text_column(table: Table, columns: Columns) -> str:
    column = table.column(columns.text)
    if not column and table.columns:
        raise DataError(
            f"{table.name} has no column {columns.text!r}: name the column with the texts (text_column), "
            f"of {', '.join(table.columns):.300}; a number if the file does not name its columns"
        )
    return column


def _raters(table: Table) -> str:
    """The column that identifies the rater of a row; empty if there is none."""
    return next((column for name in RATERS if (column := table.column(name))), "")


def _rows(parts: Sequence[Table], labelling: Labelling, columns: Columns, prefix: str) -> Iterator[RawRow]:
    number = 0
    for table in parts:
        if not table.columns:
            continue
        decode = labelling.decoder(table)
        has_ids, has_raters = bool(table.column(ID)), bool(_raters(table))
        wanted = [_text_column(table, columns), *([table.column(ID)] if has_ids else []), *labelling.columns(table)]
        for line, cells in table.rows(wanted):
            number += 1
            text = _text(cells[0], table.name, line)
            if not isinstance(text, str):
                raise DataError(
                    f"{table.name}, line {line}: column {wanted[0]!r} has {text!r:.80}, and a text must be a string: convert it, or "
                    "name the column with the texts (text_column)"
                )
            try:
                labels, shares = decode(cells[1 + has_ids :])
            except ValueError as error:
                raise DataError(f"{table.name}, line {line}: {error}: fix the row") from error
            # The raters of a text share its id.
            row_id = _id(cells[1]) if has_ids else _made_id(prefix if has_raters else f"{prefix}-{number}", text)
            yield RawRow(table.name, line, row_id, text, labels, shares)


def _text(cell: Any, name: str, line: int) -> Any:
    """A text; a missing one is NaN in pandas, and some writers of Parquet, such as Impala, store strings as bytes."""
    try:
        return "" if cell is None or cell != cell else cell.decode() if isinstance(cell, bytes) else cell
    except UnicodeDecodeError as error:
        raise DataError(f"{name}, line {line}: not UTF-8: re-encode it") from error


def _id(cell: Any) -> str:
    if isinstance(cell, bytes):
        return cell.hex()
    return "" if cell is None else str(cell)


def _made_id(prefix: str, text: str) -> str:
    return f"{prefix}-{hashlib.blake2b(text.encode('utf-8', 'surrogatepass'), digest_size=8).hexdigest()}"
