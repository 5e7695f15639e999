"""Batch scoring at scale: a folder of Parquet files in shards, each scored once, by any number of processes and machines.

A plan is written first, beside the output. Then each shard becomes one file, whole or not at all, so whoever starts again scores the
shards whose files are not there yet. Several at a time share the work by each taking its ``share``: two that take the same one do no
harm, and much of it twice. Read by name, the files hold a row for each row of the input, in order.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from tqdm import tqdm

from goemotions import defaults
from goemotions.errors import DataError, StorageError
from goemotions.models import engines
from goemotions.prediction import files as scoring
from goemotions.prediction.files import Scored
from goemotions.prediction.predictor import Predictor
from goemotions.registry import bundle, references
from goemotions.storage import store
from goemotions.storage.backend import File

# Their names begin so that readers of a folder of Parquet files pass over them.
PLAN, DONE = "_plan.json", "_scored.json"
COUNTS = b"goemotions"


@dataclass(frozen=True)
class Shard:
    """Some consecutive rows of an input file, and the name of the file that they become."""

    name: str
    file: str
    first: int
    rows: int


@dataclass(frozen=True)
class Plan:
    """What is scored, by which bundle, and in which shards. ``input`` and ``bundle`` are locations."""

    input: str
    column: str
    all_scores: bool
    bundle: str
    shards: tuple[Shard, ...]


def plan(
    input: str,
    output: str,
    reference: str = defaults.REFERENCE,
    *,
    model_name: str = defaults.MODEL_NAME,
    column: str = "text",
    all_scores: bool = True,
    shard_rows: int = defaults.SHARD_ROWS,
) -> Plan:
    """The plan of an output: the one that is there, or a new one.

    Args:
        input: a folder or S3 prefix of Parquet files, or one such file.
        output: folder or S3 prefix for the scored shards.
        reference: an alias, a version number, or a location of a bundle; an alias is looked up once.
        model_name: name of the registered model.
        column: the column with the texts.
        all_scores: add the probability of each label.
        shard_rows: most rows of a shard.

    Raises:
        DataError: the input holds no rows of Parquet, or its files differ in their columns, or have one that is to be added; or the
            output is within the input, or of something else.
        ModelError: there is no such version, or no bundle.
    """
    folder, name = _input(input)
    within = store.join(store.canonical(output))
    if within == store.join(folder) or (not name and within.startswith(store.join(folder))):
        raise DataError(f"{output} is the input itself, or within it: write to another place")
    files = _files(folder, name)
    asked = {
        "input": folder,
        "files": [asdict(file) for file in files],
        "model": model_name,
        "version": store.canonical(reference) if references.is_location(reference) else reference,
        "column": column,
        "all_scores": all_scores,
        "shard_rows": shard_rows,
    }
    if not (found := store.read(output, PLAN)):
        located = store.canonical(references.resolve(reference, model_name)[0])
        names = bundle.taxonomy(located).names
        shards = [asdict(shard) for shard in _shards(folder, files, column, names if all_scores else (), shard_rows)]
        content = {"asked": asked, "bundle": located, "shards": shards}
        store.write_new(output, PLAN, json.dumps(content, indent=1).encode())
        # Another process may have been first.
        found = store.read(output, PLAN) or b""
    former = json.loads(found)["asked"]
    if differs := [name for name, value in asked.items() if former[name] != value]:
        raise DataError(f"{output} holds scores of another {' and '.join(differs)}: empty it, or choose another place")
    return read(output)


def read(output: str) -> Plan:
    """The plan of an output.

    Raises:
        DataError: there is none.
    """
    try:
        content = json.loads(store.read(output, PLAN) or b"")
        asked = content["asked"]
        shards = tuple(Shard(**shard) for shard in content["shards"])
        return Plan(asked["input"], asked["column"], asked["all_scores"], content["bundle"], shards)
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{output} has no readable {PLAN}: plan the scoring first, into an empty place") from error


def score(
    output: str,
    *,
    share: tuple[int, int] = (0, 1),
    workers: int = 1,
    threads: int | None = None,
    predictor: Predictor | None = None,
) -> None:
    """Scores the shards of a plan that are not there yet.

    Args:
        output: the place of a plan.
        share: ``(i, n)`` for the i-th of every n shards, where n machines share the work.
        workers: processes; one is this process itself.
        threads: of each; default: the cores, divided among them.
        predictor: the bundle's, opened already, for one process.

    Raises:
        DataError: an input file is damaged or has changed its columns.
        StorageError: a worker was killed, or the store fails.
    """
    planned = read(output)
    there = {file.name for file in store.files(output)}
    shards = [shard for shard in planned.shards[share[0] :: share[1]] if shard.name not in there]
    if not shards:
        return
    with tqdm(total=sum(shard.rows for shard in shards), unit=" texts", mininterval=1) as progress:
        if workers == 1 and predictor:
            for shard in shards:
                progress.update(_score(predictor, planned, output, shard))
            return
        with references.as_folder(planned.bundle) as (folder, _):
            if workers == 1:
                alone = Predictor.load(folder, threads=threads)
                for shard in shards:
                    progress.update(_score(alone, planned, output, shard))
                return
            for rows in _in_processes(planned, output, shards, folder, workers, threads or max(1, engines.cpus() // workers)):
                progress.update(rows)


def finish(output: str) -> Scored:
    """Checks that every shard is there with its rows, and writes their sums as ``_scored.json``.

    Raises:
        DataError: shards are missing, or hold another number of rows.
    """
    planned = read(output)
    there = {file.name for file in store.files(output)}
    if missing := [shard.name for shard in planned.shards if shard.name not in there]:
        raise DataError(f"{output}: {len(missing)} of {len(planned.shards)} shards are missing ({missing[0]}): score it again")
    store.sweep(output)
    blank = truncated = 0
    seconds = 0.0
    for shard in planned.shards:
        with store.open_file(output, shard.name) as file:
            metadata = scoring.parquet(file, shard.name).metadata
        counts = json.loads((metadata.metadata or {}).get(COUNTS, b"{}"))
        if metadata.num_rows != shard.rows or not counts:
            raise DataError(
                f"{output}: {shard.name} holds {metadata.num_rows} rows, not {shard.rows}: remove it and score it again"
            )
        blank, truncated, seconds = blank + counts["blank"], truncated + counts["truncated"], seconds + counts["seconds"]
    made = Scored(sum(shard.rows for shard in planned.shards), blank, truncated, seconds)
    with store.writing(output, DONE) as path:
        path.write_text(
            json.dumps({**asdict(made), "bundle": planned.bundle, "shards": len(planned.shards)}, indent=1), encoding="utf-8"
        )
    return made


def _input(location: str) -> tuple[str, str]:
    """The folder of the input, and the name of its one file where it is a file."""
    if not (store.is_s3(location) or Path(location).exists()):
        raise DataError(f"{location} does not exist: check its path")
    if not location.endswith(".parquet") or Path(location).is_dir():
        return store.canonical(location), ""
    folder, _, name = location.rpartition("/")
    return store.canonical(folder or "."), name


def _files(folder: str, name: str) -> list[File]:
    """The Parquet files of a folder, or the one of this name."""
    hidden = ("_", ".")
    files = [
        file
        for file in store.files(folder)
        if file.name.endswith(".parquet") and not file.name.rpartition("/")[2].startswith(hidden) and name in ("", file.name)
    ]
    if not files:
        raise DataError(f"{store.join(folder)}{name} holds no .parquet file: name a folder, a prefix or a file of that format")
    return files


def _shards(folder: str, files: Sequence[File], column: str, scores: Sequence[str], shard_rows: int) -> Iterator[Shard]:
    number = 0
    schema = None
    for file in files:
        with store.open_file(folder, file.name) as opened:
            found = scoring.parquet(opened, file.name)
            schema = schema or found.schema_arrow
            if not found.schema_arrow.equals(schema):
                raise DataError(f"{file.name} has other columns than {files[0].name}: score them apart")
            scoring.labelled(schema, file.name, column, scores)
            for first in range(0, found.metadata.num_rows, shard_rows):
                rows = min(shard_rows, found.metadata.num_rows - first)
                yield Shard(f"part-{number:06d}.parquet", file.name, first, rows)
                number += 1
    if not number:
        raise DataError(f"{folder} has no rows: it needs at least one")


def _score(predictor: Predictor, planned: Plan, output: str, shard: Shard) -> int:
    if store.has(output, shard.name):
        # By another one that shares the work.
        return shard.rows
    started = time.perf_counter()
    blank = truncated = 0
    with store.open_file(planned.input, shard.file) as file:
        found = scoring.parquet(file, shard.file)
        names = predictor.bundle.taxonomy.names if planned.all_scores else ()
        schema = scoring.labelled(found.schema_arrow, shard.file, planned.column, names)
        with store.writing(output, shard.name) as path, pq.ParquetWriter(path, schema) as writer:
            for batch in _rows(found, shard):
                answered = scoring.label(predictor, batch, planned.column, schema)
                writer.write_batch(answered)
                blank += answered["truncated"].null_count
                truncated += pc.sum(answered["truncated"]).as_py() or 0
            counts = {"blank": blank, "truncated": truncated, "seconds": round(time.perf_counter() - started, 3)}
            writer.add_key_value_metadata({COUNTS: json.dumps(counts)})
    return shard.rows


def _rows(found: pq.ParquetFile, shard: Shard) -> Iterator[pa.RecordBatch]:
    """A shard's rows; of the row groups that hold none nothing is read."""
    groups: list[int] = []
    start = skip = 0
    for number in range(found.metadata.num_row_groups):
        end = start + found.metadata.row_group(number).num_rows
        if start < shard.first + shard.rows and end > shard.first:
            skip = skip if groups else shard.first - start
            groups.append(number)
        start = end
    left = shard.rows
    for batch in scoring.batches(found, shard.file, groups):
        part = batch.slice(min(skip, len(batch)), left)
        skip -= min(skip, len(batch))
        left -= len(part)
        if len(part):
            yield part
        if not left:
            return
    raise DataError(f"{shard.file} has fewer rows than when it was planned: restore it, or score it into another place")


_PREDICTOR: Predictor


def _in_processes(
    planned: Plan, output: str, shards: Sequence[Shard], folder: Path, workers: int, threads: int
) -> Iterator[int]:
    """The rows of each shard that was scored, as they come."""
    # What is wrong with the bundle is said here, and not by each worker.
    bundle.load(folder)
    # With each shard the plan goes to a worker: all of the shards with each would be the square of their number.
    planned = replace(planned, shards=())
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(min(workers, len(shards)), context, _start, (folder, threads, os.getpid()))
    try:
        for done in as_completed([pool.submit(_score_here, planned, output, shard) for shard in shards]):
            yield done.result()
    except BrokenProcessPool as error:
        raise StorageError(
            "a worker was killed, most often for memory: use fewer, and start again; what is done stays"
        ) from error
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        for worker in multiprocessing.active_children():
            worker.terminate()


def _start(folder: Path, threads: int, parent: int) -> None:
    global _PREDICTOR
    # The parent hears Ctrl-C and ends its workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    _PREDICTOR = Predictor.load(folder, threads=threads)


def _end_with(parent: int) -> None:
    """Ends this process when its parent is gone: a killed one takes nobody along."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def _score_here(planned: Plan, output: str, shard: Shard) -> int:
    return _score(_PREDICTOR, planned, output, shard)
