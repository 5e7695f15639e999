"""Parquet files that the project stores and reads again: what is damaged or made to fill the memory is a named error of each reader."""

from __future__ import annotations

import contextlib
import io
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from goemotions.data import columnar, request_log
from goemotions.data.request_log import ANSWERS, Labels, LogReader
from goemotions.errors import DataError
from goemotions.evaluation import counterfactuals
from goemotions.evaluation.predictions import Predictions
from goemotions.monitoring.drift import scored

NAMES = ("calm", "dread")
SCORES = pa.array([0.25, 0.75], pa.float32())
METADATA = {"split": "validation", "engine": "torch", "digest": "d", "device": "cpu", "precision": "fp32", "profile": "x"}
LOGGED = {
    "id": "a",
    "index": 0,
    "time": 1.5,
    "version": "1",
    "text": "x",
    "labels": ["calm"],
    "scores": [0.5, 0.5],
    "truncated": False,
}
LOG = request_log.name(ANSWERS, "1", datetime(2026, 1, 31, 9, tzinfo=UTC), "w", 1)


def predictions() -> pa.Table:
    columns = {"id": ["a", "b"], "labels": pa.array([[0], [1, 0]], pa.list_(pa.int32())), "p/calm": SCORES, "p/dread": SCORES}
    return pa.table(columns).replace_schema_metadata(METADATA)


def swapped() -> pa.Table:
    columns = {f"{prefix}/{name}": SCORES for prefix in ("before", "after") for name in NAMES}
    return pa.table({"group": ["gender", "gender"], "row": [0, 1], **columns})


READERS: dict[str, tuple[Callable[[], pa.Table], str, Callable[[Path], Any]]] = {
    "predictions": (predictions, "predictions.parquet", lambda folder: Predictions.read(folder)),
    "counterfactuals": (swapped, counterfactuals.FILE, lambda folder: counterfactuals.read(folder, NAMES)),
    "scored": (
        lambda: pa.table({"text": ["a", "b"], "p/calm": SCORES, "p/dread": SCORES}),
        "part-000000.parquet",
        lambda folder: list(scored._scored_rows(str(folder), "part-000000.parquet", "text", NAMES)),
    ),
    "log": (
        lambda: request_log.table(ANSWERS, [LOGGED, LOGGED], Labels(NAMES, (0.5, 0.5))),
        f"requests/m/{LOG}",
        lambda folder: (LogReader(str(folder), "m").labels(), list(LogReader(str(folder), "m").rows(ANSWERS))),
    ),
}


def other_types(table: pa.Table) -> Iterator[pa.Table]:
    """Each column in turn with nulls, with another type, without values, and missing."""
    for place, name in enumerate(table.column_names):
        for column in (pa.nulls(2, table[name].type), pa.array([[1.5], [-1]]), pa.array([b"\xff", b"\xfe"]), pa.array([-7, 2])):
            yield table.set_column(place, name, column)
        yield table.drop_columns([name])
    yield table.select([])
    yield table.replace_schema_metadata({})


@pytest.mark.parametrize("kind", READERS)
def test_what_is_written_is_read(kind: str, tmp_path: Path) -> None:
    make, name, read = READERS[kind]
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(make(), tmp_path / name)
    assert read(tmp_path)


@pytest.mark.fault("stored-parquet-hostile")
@pytest.mark.parametrize("kind", READERS)
def test_rows_that_are_all_alike_are_a_named_error(kind: str, tmp_path: Path) -> None:
    _, name, read = READERS[kind]
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"id": pa.nulls(9_000_000, pa.int8())}), tmp_path / name, compression="zstd")
    assert (tmp_path / name).stat().st_size < 2**20
    with pytest.raises(DataError):
        read(tmp_path)


@pytest.mark.fault("stored-parquet-hostile")
@pytest.mark.parametrize("kind", READERS)
def test_other_columns_are_read_or_a_named_error(kind: str, tmp_path: Path) -> None:
    make, name, read = READERS[kind]
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    refused = 0
    for table in other_types(make()):
        pq.write_table(table, tmp_path / name)
        try:
            read(tmp_path)
        except DataError:
            refused += 1
    assert refused > 4


@pytest.mark.fault("stored-parquet-hostile")
@pytest.mark.parametrize("kind", READERS)
def test_a_file_that_is_cut_or_changed_is_read_or_a_named_error(kind: str, tmp_path: Path) -> None:
    make, name, read = READERS[kind]
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(make(), tmp_path / name)
    content, random = (tmp_path / name).read_bytes(), np.random.default_rng(0)
    for _ in range(40):
        changed = bytearray(content[: random.integers(len(content))] if random.random() < 0.2 else content)
        if changed:
            changed[random.integers(len(changed))] ^= 1 << random.integers(8)
        (tmp_path / name).write_bytes(changed)
        with contextlib.suppress(DataError):
            read(tmp_path)


@pytest.mark.fault("stored-parquet-hostile")
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -0.5, 1.5])
def test_a_probability_that_is_none_is_a_named_error(value: float, tmp_path: Path) -> None:
    table = predictions()
    pq.write_table(table.set_column(2, "p/calm", pa.array([0.5, value], pa.float32())), tmp_path / "predictions.parquet")
    with pytest.raises(DataError, match="is not a Predictions file"):
        Predictions.read(tmp_path)


FORGED: dict[str, tuple[dict[str, Any], Labels]] = {
    "fewer scores": ({"scores": [0.5]}, Labels(NAMES, (0.5, 0.5))),
    "no number": ({"scores": [float("nan"), 0.5]}, Labels(NAMES, (0.5, 0.5))),
    "no probability": ({"scores": [7.0, 0.5]}, Labels(NAMES, (0.5, 0.5))),
    "of another version": ({"version": "2"}, Labels(NAMES, (0.5, 0.5))),
    "fewer thresholds": ({}, Labels(NAMES, (0.5,))),
    "thresholds of text": ({}, Labels(NAMES, ("a", "b"))),  # type: ignore[arg-type]
    "a label twice": ({}, Labels(("calm", "calm"), (0.5, 0.5))),
    "labels of numbers": ({}, Labels((1, 2), (0.5, 0.5))),  # type: ignore[arg-type]
    "none of the best": ({}, Labels(NAMES, (0.5, 0.5), 0)),
}


@pytest.mark.fault("stored-parquet-hostile")
@pytest.mark.parametrize("forged", FORGED)
def test_rows_of_a_request_log_that_do_not_fit_its_labels_are_a_named_error(forged: str, tmp_path: Path) -> None:
    changes, labels = FORGED[forged]
    path = tmp_path / "requests" / "m" / LOG
    path.parent.mkdir(parents=True)
    pq.write_table(request_log.table(ANSWERS, [LOGGED, LOGGED | changes], labels), path)
    with pytest.raises(DataError, match=r"part-w-000001\.parquet is no file of a request log: remove it"):
        list(LogReader(str(tmp_path), "m").rows(ANSWERS))


@pytest.mark.fault("stored-parquet-hostile")
@pytest.mark.parametrize(
    "hour", ["date=2026-13-45/hour=09", "date=----------/hour=09", "date=0000-01-01/hour=09", "date=2026-01-31/hour=77"]
)
def test_an_hour_that_is_none_is_no_part_of_a_request_log(hour: str, tmp_path: Path) -> None:
    path = tmp_path / "requests" / "m" / "1" / hour / "part-w-000001.parquet"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"x")
    assert list(LogReader(str(tmp_path), "m").rows(ANSWERS)) == []


class Watched(io.BytesIO):
    """A file that remembers which threads read it."""

    def __init__(self, content: bytes) -> None:
        super().__init__(content)
        self.readers: set[int] = set()

    def read(self, size: int | None = -1) -> bytes:
        self.readers.add(threading.get_ident())
        return super().read(size)


def test_no_thread_of_arrow_reads_a_file_of_python() -> None:
    """One that frees what it has read while the process ends aborts it."""
    content = io.BytesIO()
    pq.write_table(pa.table({name: range(1000) for name in "abcdefgh"}), content)
    file = Watched(content.getvalue())
    parquet = columnar.open_parquet(file, "scores")
    assert sum(batch.num_rows for batch in columnar.whole_batches(parquet, "scores", len(content.getvalue()))) == 1000
    assert file.readers == {threading.get_ident()}
