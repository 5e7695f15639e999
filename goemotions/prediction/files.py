"""Batch scoring of a file: labels and probabilities for every row, chunk by chunk, in the formats of `goemotions.data.tables`.

The output is a .csv, .tsv, .jsonl or .parquet. A ``.csv`` may quote its cells, a ``.tsv`` never does, as in the official data.
"""

from __future__ import annotations

import csv
import json
import math
import operator
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import astuple, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from tqdm import tqdm

from goemotions.data import delimited
from goemotions.data.text import as_cell
from goemotions.errors import DataError, StorageError
from goemotions.metrics.probabilities import rank_labels
from goemotions.models import engines
from goemotions.prediction.predictor import Options, Predictor
from goemotions.prediction.rows import is_json, open_rows
from goemotions.registry.bundle import Bundle
from goemotions.storage import store
from goemotions.storage.folder import replacing

DIALECTS: dict[str, dict[str, Any]] = {
    ".csv": {"strict": True},
    ".tsv": {"strict": True, "delimiter": "\t", "quoting": csv.QUOTE_NONE, "quotechar": None},
}
# Of the output. The input may have any format of `goemotions.data.tables`.
ENDINGS = (*DIALECTS, ".jsonl", ".parquet")
# The metadata of a Parquet output that say which bundle scored its rows.
SCORER = b"goemotions.bundle"
# Before the name of an input column that has the name of an added one.
KEPT = "input/"


@dataclass(frozen=True)
class ScoringSummary:
    """Counts of the rows of a file, of those without a text and of those whose text was truncated, and the seconds it took."""

    rows: int = 0
    blank: int = 0
    truncated: int = 0
    seconds: float = 0.0

    def __add__(self, other: ScoringSummary) -> ScoringSummary:
        return ScoringSummary(*map(operator.add, astuple(self), astuple(other)))


def score_file(
    predictor: Predictor,
    input: Path,
    output: Path,
    column: str = "text",
    *,
    all_scores: bool = True,
    for_spreadsheet: bool = False,
) -> ScoringSummary:
    """Labels the rows of a file, in constant memory.

    The output holds every column and row of the input, in order, and the columns ``labels`` (best first; joined by ``|`` in CSV and
    TSV, otherwise a list), ``truncated`` and, with ``all_scores``, ``p/<label>``. A row without a text gets no labels and no
    probabilities. A column of the input that is called like one of these is kept as ``input/labels`` and so on.

    Args:
        input: a file in any format of `goemotions.data.tables`.
        output: the file to write, in the format of its extension; it replaces a file of this name when it is complete.
        column: the column with the texts; a number for a CSV or TSV file without a header.
        for_spreadsheet: in CSV and TSV, texts that begin like a formula get an apostrophe.

    Raises:
        DataError: the input is missing or not in the format of its extension, or its columns do not fit.
        FileChanged: the input was changed meanwhile.
        StorageError: the output cannot be written.
    """
    require_ending(output)
    if output.exists() and input.exists() and output.samefile(input):
        raise DataError(f"{output} is the input itself: write to another file")
    started = time.perf_counter()
    total = ScoringSummary()
    folder = str(input.parent)
    if not (listed := store.find(folder, input.name)):
        reason = "Is a directory" if input.is_dir() else "No such file or directory"
        raise DataError(f"{input.name} cannot be read ({reason}): check its path")
    with store.reading(folder, listed):
        # A file is opened several times: for its columns, and for its rows.
        source = open_rows(input.name, lambda: store.open_file(folder, input.name, listed), column)
        column = text_column(source.schema, input.name, column)
        schema = output_schema(source.schema, input.name, column, predictor.bundle.taxonomy.names if all_scores else ())
        schema = scored_by(predictor.bundle, schema)
    progress = tqdm(total=source.count, desc=input.name, unit=" texts", mininterval=1)
    with progress, _whole(output) as partial:
        with store.reading(folder, listed), _writer(partial, output.suffix.lower(), schema, for_spreadsheet) as write:
            for labelled in (label_rows(predictor, batch, column, schema) for batch in source.batches(0, None)):
                write(labelled)
                progress.update(len(labelled))
                total += count(labelled)
        if not total.rows:
            raise DataError(f"{input.name} has no rows: it needs at least one")
    return replace(total, seconds=time.perf_counter() - started)


def require_ending(output: Path) -> None:
    """Raises:
    DataError: a file of this name cannot be written.
    """
    if output.suffix.lower() not in ENDINGS:
        raise DataError(f"{output.name} has none of the endings {', '.join(ENDINGS)}: write one of these formats")


def text_column(schema: pa.Schema, file: str, column: str) -> str:
    """The name of the column with the texts as the file spells it.

    Raises:
        DataError: there is no such column, or it holds no texts.
    """
    name = delimited.find(schema.names, column)
    if not name:
        raise DataError(f"{file} has no column {column!r}: give the one with the texts, of {', '.join(schema.names):.300}")
    kind = schema.field(name).type
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    is_text = pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
    if not is_text or is_json(schema.field(name)):
        shown = "values other than strings" if is_text else f"type {kind}, not text"
        raise DataError(f"{file}: column {name!r} has {shown}: give another, or convert it to strings")
    return name


def output_schema(schema: pa.Schema, file: str, column: str, scores: Sequence[str]) -> pa.Schema:
    """The schema of a scored file: its own columns, labels, and the probabilities of the labels in ``scores``.

    Raises:
        DataError: two columns of the file would have the same name.
    """
    added = [("labels", pa.list_(pa.string())), ("truncated", pa.bool_()), *((f"p/{name}", pa.float32()) for name in scores)]
    taken = {name for name, _ in added}
    if column in taken:
        raise DataError(f"{file}: the column {column!r} of the texts has the name of one that is added: rename it")
    kept = [field.with_name(KEPT + field.name) if field.name in taken else field for field in schema]
    names = [field.name for field in kept]
    if twice := sorted(name for name, count in Counter(names).items() if count > 1):
        raise DataError(f"{file} has two columns {twice[0]!r}: rename one")
    # `datasets` rejects a file whose metadata describes fewer columns than it has.
    metadata = {key: value for key, value in (schema.metadata or {}).items() if key != b"huggingface"}
    return pa.schema([*kept, *pa.schema(added)], metadata=metadata)


def scored_by(bundle: Bundle, schema: pa.Schema) -> pa.Schema:
    """The schema of a scored file with the bundle in its metadata."""
    return schema.with_metadata({**(schema.metadata or {}), SCORER: identity(bundle)})


def identity(bundle: Bundle) -> bytes:
    """What the metadata of a scored file say of a bundle."""
    about = {"run": bundle.metadata.run_id, "variant": bundle.metadata.variant, "manifest": bundle.digest}
    return json.dumps(about).encode()


def label_rows(predictor: Predictor, rows: pa.RecordBatch, column: str, schema: pa.Schema) -> pa.RecordBatch:
    """Rows with the columns that ``output_schema`` adds; a row without a text has no labels, and nulls in the other columns."""
    texts = rows[column].to_pylist()
    blank = np.array([not (text and text.strip()) for text in texts], dtype=bool)
    names = predictor.bundle.taxonomy.names
    probabilities = np.zeros((len(texts), len(names)), dtype=np.float32)
    chosen, cut = np.zeros(probabilities.shape, dtype=bool), np.zeros(len(texts), dtype=bool)
    if present := [text for text, is_blank in zip(texts, blank, strict=True) if not is_blank]:
        probabilities[~blank], cut[~blank] = engines.score(predictor.engine, present)
        chosen[~blank] = predictor.choose(probabilities[~blank], Options())
    added = [_best_first(names, probabilities, chosen), pa.array(cut, mask=blank)]
    if len(schema) > rows.num_columns + len(added):
        added += [pa.array(scores, mask=blank) for scores in probabilities.T]
    return pa.RecordBatch.from_arrays([*rows.columns, *added], schema=schema)


def count(labelled: pa.RecordBatch) -> ScoringSummary:
    """The counts of rows of ``label_rows``."""
    return ScoringSummary(len(labelled), labelled["truncated"].null_count, pc.sum(labelled["truncated"]).as_py() or 0)


def _best_first(names: Sequence[str], probabilities: np.ndarray, chosen: np.ndarray) -> pa.Array:
    """The names of each row's chosen labels, best first, as lists."""
    order = rank_labels(probabilities)
    ranked = np.take_along_axis(chosen, order, axis=1)
    ends = np.concatenate([[0], np.cumsum(ranked.sum(axis=1))]).astype(np.int32)
    return pa.ListArray.from_arrays(ends, pa.array(names, pa.string()).take(pa.array(order[ranked])))


@contextmanager
def _whole(output: Path) -> Iterator[Path]:
    """``replacing``, with a named error if the file cannot be written."""
    try:
        with replacing(output) as partial:
            yield partial
    except OSError as error:
        raise StorageError(
            f"{output} cannot be written ({error.strerror or error}): free space or choose another folder"
        ) from error


@contextmanager
def _writer(path: Path, ending: str, schema: pa.Schema, for_spreadsheet: bool) -> Iterator[Callable[[pa.RecordBatch], None]]:
    if ending == ".parquet":
        with pq.ParquetWriter(path, schema) as writer:
            yield writer.write_batch
        return
    with path.open("w", newline="", encoding="utf-8") as file:
        if ending == ".jsonl":
            if binary := next((field for field in schema if "binary" in str(field.type)), None):
                raise _no_text(binary.name, binary.type)
            yield lambda batch: file.writelines(_json_lines(batch, schema))
            return
        lines = csv.writer(file, **DIALECTS[ending])
        escaped = as_cell if for_spreadsheet else lambda cell: cell

        def write_rows(rows: Iterable[Iterable[Any]]) -> None:
            try:
                lines.writerows(map(escaped, row) for row in rows)
            except csv.Error as error:
                raise DataError(
                    f"a cell has a tab or a line break, which a {ending} file cannot have: write a .csv or .parquet"
                ) from error

        write_rows([schema.names])
        yield lambda batch: write_rows(zip(*(_cells(name, batch[name]) for name in schema.names), strict=True))


def _json_lines(batch: pa.RecordBatch, schema: pa.Schema) -> Iterator[str]:
    parsed = [field.name for field in schema if is_json(field)]
    for row in batch.to_pylist():
        row |= {name: json.loads(row[name]) for name in parsed if row[name] is not None}
        yield json.dumps(_finite(row), ensure_ascii=False, default=str) + "\n"


def _finite(value: Any) -> Any:
    """A value without NaN and infinities, which JSON does not have."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list | tuple) else value


def _cells(name: str, column: pa.Array) -> list[str]:
    """A column as text; nulls become empty cells, and empty items of a list."""
    try:
        if pa.types.is_list(column.type) and pa.types.is_string(column.type.value_type):
            return ["|".join(item or "" for item in cell or ()) for cell in column.to_pylist()]
        if isinstance(column.type, pa.BaseExtensionType):
            # Those of UUIDs are bytes, which may happen to be text.
            column = pa.array([None if cell is None else str(cell) for cell in column.to_pylist()], pa.string())
        cells: list[str] = pc.fill_null(column.cast(pa.string()), "").to_pylist()
        return cells
    except pa.ArrowException as error:
        raise _no_text(name, column.type) from error


def _no_text(name: str, kind: pa.DataType) -> DataError:
    return DataError(f"column {name!r} has type {kind}, which a text file cannot have: write a .parquet")
