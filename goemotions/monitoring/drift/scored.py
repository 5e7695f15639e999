"""The traffic in the Parquet outputs of batch scoring."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from goemotions import defaults
from goemotions.data import columnar, memory
from goemotions.errors import DataError
from goemotions.evaluation.traffic import Traffic, features_of
from goemotions.prediction import files, plans
from goemotions.registry.bundle import Bundle
from goemotions.storage import store


def traffic_of(location: str, bundle: Bundle, column: str = "") -> tuple[Traffic, list[str]]:
    """The traffic in the Parquet outputs of ``goemotions score``, and the names of those from before they named their bundle.

    Args:
        location: a .parquet file, or the folder or S3 prefix of scored shards.
        bundle: whose thresholds and tokenizer are used.
        column: the column with the texts; empty for the one that was scored.

    Raises:
        DataError: there is no file, or a row without the probabilities of the bundle's labels, or another bundle scored it.
    """
    names = bundle.taxonomy.names
    folder, _, only = location.rpartition("/") if location.endswith(".parquet") else (location, "", "")
    folder = folder or "."
    parts = [file.name for file in store.files(folder) if file.name.endswith(".parquet") and only in ("", file.name)]
    column = column or _scored_column(folder)
    if not parts:
        raise DataError(f"{location} has no .parquet: give the file or the folder that `goemotions score` wrote")
    counted = Traffic.empty(names)
    unnamed = [name for name in parts if not _is_scored_by(bundle, folder, name)]
    for name in parts:
        for texts, probabilities in _scored_rows(folder, name, column, names):
            features = features_of(bundle.encoder, texts)
            counted += Traffic.of(names, probabilities, bundle.thresholds, features)
    return counted, unnamed


def _scored_column(folder: str) -> str:
    return plans.read(folder).column if store.has(folder, plans.PLAN) else defaults.TEXT_COLUMN


def _is_scored_by(bundle: Bundle, folder: str, name: str) -> bool:
    """Whether a file names the bundle that scored it.

    Raises:
        DataError: it names another one.
    """
    with store.open_file(folder, name) as file:
        scorer = (columnar.open_parquet(file, name).schema_arrow.metadata or {}).get(files.SCORER)
    if scorer not in (None, files.identity(bundle)):
        raise DataError(
            f"{name} was scored by another bundle, {scorer.decode(errors='replace')}: compare it with that one (--bundle), or score it "
            "again"
        )
    return scorer is not None


def _scored_rows(folder: str, name: str, column: str, names: Iterable[str]) -> Iterator[tuple[list[str], np.ndarray[Any, Any]]]:
    import pyarrow as pa

    columns = [f"p/{label}" for label in names]
    with store.open_file(folder, name) as file:
        parquet, size = columnar.open_parquet(file, name), columnar.file_size(file)
        if missing := [one for one in (column, *columns) if one not in parquet.schema_arrow.names]:
            raise DataError(
                f"{name} has no column {missing[0]!r}: score it with the probabilities of all labels, or give --text-column"
            )
        for batch in columnar.whole_batches(parquet, name, size, columns=[column, *columns]):
            table = pa.table(batch).drop_null()
            try:
                with memory.bounded(name, size):
                    texts = table[column].cast(pa.string()).to_pylist()
            except pa.ArrowException as error:
                raise DataError(f"{name}: column {column!r} has no texts: give --text-column") from error
            if len(table):
                yield texts, columnar.probabilities(table, columns, name)
