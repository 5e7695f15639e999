"""The request log of the server: the Parquet files of its answers and of the feedback to them, by version and hour.

    <store>/requests/<model>/<version>/date=2026-01-31/hour=09/part-<worker>-<number>.parquet       answers
    <store>/requests/<model>/<version>/date=2026-01-31/hour=09/feedback-<worker>-<number>.parquet   feedback

The metadata of each file hold the labels of the version and their thresholds. Files are read batch by batch.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa

from goemotions import strict_json
from goemotions.data import tables
from goemotions.data.taxonomy import Taxonomy
from goemotions.errors import DataError
from goemotions.storage import layout, store
from goemotions.storage.backend import File

ANSWERS, FEEDBACK = "part", "feedback"
TIME = pa.timestamp("us", "UTC")
KEY = [("id", pa.string()), ("index", pa.int32()), ("time", TIME), ("version", pa.string())]
LABELS = ("labels", pa.list_(pa.string()))
SCHEMAS = {
    # Scores are in the order of the labels in the metadata.
    ANSWERS: pa.schema([*KEY, ("text", pa.string()), LABELS, ("scores", pa.list_(pa.float32())), ("truncated", pa.bool_())]),
    FEEDBACK: pa.schema([*KEY, LABELS, ("user", pa.string())]),
}
# Feedback of earlier servers has no users.
EARLIER_SCHEMAS = {FEEDBACK: pa.schema([*KEY, LABELS])}
PATH = re.compile(r"(?P<version>[^/]+)/date=(?P<date>[\d-]{10})/hour=(?P<hour>\d\d)/(?P<kind>part|feedback)-[^/]+\.parquet")
METADATA = b"goemotions"
# Feedback may follow its answer by so many seconds: it may be in another hour of the log, and on the other side of a limit.
FEEDBACK_DELAY = 7 * 86400.0


@dataclass(frozen=True)
class Labels:
    """The labels of a version in their order, and how it chooses them: ``thresholds`` and ``k`` are those of ``Thresholds``."""

    names: tuple[str, ...]
    thresholds: tuple[float, ...]
    k: int | None = None


@dataclass(frozen=True)
class Part:
    """A file of the log: its kind, version and hour, which begins at ``start``."""

    file: File
    kind: str
    version: str
    start: datetime


def is_logged(request_id: str, share: float) -> bool:
    """Whether the answers of a request are in a log with this share: decided by its id alone, so that every process agrees."""
    if share >= 1:
        return True
    drawn = int.from_bytes(hashlib.blake2b(request_id.encode(), digest_size=8).digest(), "big")
    return drawn < share * 2**64


def name(kind: str, version: str, hour: datetime, worker: str, number: int) -> str:
    """The name of a file below the log of a model."""
    return f"{path_of(version)}/date={hour:%Y-%m-%d}/hour={hour:%H}/{kind}-{worker}-{number:06}.parquet"


def path_of(version: str) -> str:
    """A version as the name of a folder."""
    return re.sub(r"[^A-Za-z0-9_-]", "_", version)[:100] or "unknown"


def table(kind: str, rows: Sequence[Mapping[str, Any]], labels: Labels) -> pa.Table:
    """Rows as they are stored; ``time`` in seconds since 1970."""
    timed = [{"user": "", **row, "time": int(row["time"] * 1e6)} for row in rows]
    metadata = {METADATA: json.dumps({"labels": labels.names, "thresholds": labels.thresholds, "k": labels.k})}
    return pa.Table.from_pylist(timed, SCHEMAS[kind]).replace_schema_metadata(metadata)


class LogReader:
    """The log of a model, for reading.

    Args:
        location: the store, or the server's folder if it has no store.
        model_name: the model.
        since, until: hours that begin before, or at and after, are left out: of answers and of feedback, but not of what they are
            joined with.
    """

    def __init__(self, location: str, model_name: str, since: datetime | None = None, until: datetime | None = None) -> None:
        self.location = layout.requests(location, model_name)
        parts = (_part(file) for file in store.files(self.location))
        self._parts = sorted((part for part in parts if part), key=lambda part: (part.start, part.file.name))
        self._first, self._end = since.timestamp() if since else -math.inf, until.timestamp() if until else math.inf

    def _within(self, kind: str, earlier: float = 0.0, later: float = 0.0) -> list[Part]:
        """The files of a kind that are of the hours, and of so many seconds before and after them."""
        first, end = self._first - earlier, self._end + later
        return [part for part in self._parts if part.kind == kind and first <= part.start.timestamp() < end]

    def labels(self) -> dict[str, Labels]:
        """The labels and thresholds of each version, those of its newest file.

        Raises:
            DataError: there are no answers, or two versions have other labels.
        """
        # Feedback of the hours may be to earlier answers alone.
        parts = self._within(ANSWERS) or self._within(ANSWERS, earlier=FEEDBACK_DELAY)
        newest = {part.version: part for part in parts}
        if not newest:
            raise DataError(f"{self.location} has no answers of that time: check the store, --model-name and the hours")
        labels_of = {version: self._labels(part) for version, part in newest.items()}
        first, *others = labels_of.items()
        for version, labels in others:
            if labels.names != first[1].names:
                raise DataError(f"the versions {first[0]} and {version} have other labels: choose the hours of one of them")
        return labels_of

    def rows(self, kind: str, version: str = "", earlier: float = 0.0, later: float = 0.0) -> Iterator[dict[str, Any]]:
        """The rows of a kind, oldest hours first; ``scores`` is float32 [labels].

        Args:
            kind: answers or feedback.
            version: of this one only, if it is given.
            earlier, later: seconds before and after the hours of the reader, of which rows are read, too.

        Raises:
            DataError: a file is none of a request log.
        """
        for part in self._within(kind, earlier, later):
            if version in ("", part.version):
                table, width = self._table(part), len(self._labels(part).names)
                if not table.schema or table.schema not in (SCHEMAS[kind], EARLIER_SCHEMAS.get(kind)):
                    raise self._foreign(part)
                for _, cells in table.rows(table.columns):
                    if None in cells:
                        raise self._foreign(part)
                    row = dict(zip(table.columns, cells, strict=True))
                    if path_of(row["version"]) != part.version:
                        raise self._foreign(part)
                    if "scores" in row:
                        scores = row["scores"] = np.asarray(row["scores"], dtype=np.float32)
                        # Not a number is in no range.
                        if len(scores) != width or not ((scores >= 0) & (scores <= 1)).all():
                            raise self._foreign(part)
                    yield row

    def _table(self, part: Part) -> tables.Table:
        return tables.open_table(part.file.name, lambda: store.open_file(self.location, part.file.name, part.file))

    def _labels(self, part: Part) -> Labels:
        schema = self._table(part).schema or pa.schema([])
        try:
            content = strict_json.parse((schema.metadata or {})[METADATA], part.file.name)
            # Files of earlier servers have no k.
            names, k = content["labels"], content.get("k")
            strict_json.require(names, list[str], part.file.name)
            strict_json.require(content["thresholds"], list[float], part.file.name)
            strict_json.require(k, int | None, part.file.name)
            if len(content["thresholds"]) != len(names) or (k is not None and k < 1):
                raise ValueError("no thresholds of these labels")
            return Labels(Taxonomy(tuple(names)).names, tuple(content["thresholds"]), k)
        except (KeyError, TypeError, ValueError, DataError) as error:
            raise self._foreign(part) from error

    def _foreign(self, part: Part) -> DataError:
        return DataError(f"{self.location}{part.file.name} is no file of a request log: remove it")


def _part(file: File) -> Part | None:
    match = PATH.fullmatch(file.name)
    if not match:
        return None
    try:
        start = datetime.strptime(f"{match['date']} {match['hour']}", "%Y-%m-%d %H").replace(tzinfo=UTC)
    except ValueError:
        return None
    return Part(file, match["kind"], match["version"], start)
