"""Batch scoring at scale: a folder of files in shards, each scored once, by any number of processes and machines.

After ``plans.plan``, each shard becomes one file, which appears when it is complete, so that a second run scores only the shards
without a file. Several machines share the work if each takes a ``share``; two with the same share do no harm,
but repeat work. In the order of their names, the files have one row per row of the input, in order.
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
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TypedDict

import pyarrow.parquet as pq
from tqdm import tqdm

from goemotions import strict_json
from goemotions.data import columnar
from goemotions.errors import DataError, FileChanged, StorageError, WorkflowError
from goemotions.models import devices
from goemotions.prediction import files, plans
from goemotions.prediction.files import ScoringSummary
from goemotions.prediction.plans import PLAN, Plan, Shard, open_input
from goemotions.prediction.predictor import Predictor
from goemotions.registry import references
from goemotions.storage import store

# Readers of a folder of Parquet files skip names that begin with an underscore.
DONE = "_scored.json"
# Hidden from other readers, too: `datasets` would otherwise take few shards beside two files of JSON for a data set of JSON.
FOR_DATASETS = ".huggingface.yaml"
ONLY_SHARDS = b"configs: [{config_name: default, data_files: part-*.parquet}]\n"
COUNTS = b"goemotions"
# A temporary file that was not written to for so long is that of a process that was killed.
ABANDONED_SECONDS = 3600.0


class Counts(TypedDict):
    """What the metadata of a scored shard say of it."""

    plan: str
    blank: int
    truncated: int
    seconds: float


def score(
    output: str,
    *,
    digest: str = "",
    share: tuple[int, int] = (0, 1),
    workers: int = 1,
    threads: int | None = None,
    predictor: Predictor | None = None,
) -> None:
    """Scores the shards of a plan that have no file yet.

    Args:
        output: folder or S3 prefix with a plan.
        digest: of the plan, if it is known.
        share: ``(i, n)`` for the i-th of every n shards, if n machines share the work.
        workers: number of processes; with one, this process does the work.
        threads: threads of each worker; default: the cores, divided among the workers.
        predictor: a loaded predictor of the plan's bundle, for one worker.

    Raises:
        DataError: an input file is damaged.
        FileChanged: the plan has another digest; or an input file, or the bundle, is not as it was when it was planned.
        StorageError: a worker was killed, or the store fails.
    """
    planned = plans.read(output, digest)
    store.sweep(output, ABANDONED_SECONDS)
    done = {file.name for file in store.files(output)}
    shards = [shard for shard in planned.shards[share[0] :: share[1]] if shard.name not in done]
    if not shards:
        return
    located = nullcontext((Path(), "")) if predictor else references.as_folder(planned.bundle)
    progress = tqdm(total=sum(shard.rows for shard in shards), unit=" texts", mininterval=1)
    with progress, located as (folder, _):
        scored: Iterator[int]
        if workers == 1:
            loaded = predictor or Predictor.load(folder, threads=threads, is_verified=True)
            scored = (_score_shard(loaded, planned, output, shard) for shard in shards)
        else:
            scored = _in_processes(planned, output, shards, folder, workers, threads or max(1, devices.cpus() // workers))
        for rows in scored:
            progress.update(rows)


def finish(output: str, digest: str = "") -> ScoringSummary:
    """Checks that every shard has a file with all its rows, and writes their sums as ``_scored.json``.

    Raises:
        FileChanged: the plan has another digest.
        DataError: shards are missing, have another number of rows, or were scored by another plan.
    """
    planned = plans.read(output, digest)
    done = {file.name for file in store.files(output)}
    if missing := [shard.name for shard in planned.shards if shard.name not in done]:
        raise DataError(f"{output}: {len(missing)} of {len(planned.shards)} shards are missing ({missing[0]}): score it again")
    store.sweep(output)
    total = sum((_read_summary(output, shard, planned) for shard in planned.shards), ScoringSummary())
    store.write(output, FOR_DATASETS, ONLY_SHARDS)
    content = {**asdict(total), "bundle": planned.bundle, "shards": len(planned.shards)}
    with store.writing(output, DONE) as path:
        path.write_text(json.dumps(content, indent=1), encoding="utf-8")
    return total


def _read_summary(output: str, shard: Shard, planned: Plan) -> ScoringSummary:
    """The counts in the metadata of a scored shard.

    Raises:
        DataError: the file does not have the shard's rows, or another plan's.
    """
    with store.open_file(output, shard.name) as file:
        metadata = columnar.open_parquet(file, shard.name).metadata
    if metadata.num_rows != shard.rows:
        raise DataError(f"{output}: {shard.name} has {metadata.num_rows} rows, not {shard.rows}: remove it and score it again")
    counts = strict_json.parse((metadata.metadata or {}).get(COUNTS), f"the metadata of {shard.name}")
    strict_json.require(counts, Counts, f"the metadata of {shard.name}")
    if counts["plan"] != planned.digest:
        raise DataError(f"{output}: {shard.name} was scored by another plan: remove it and score it again")
    return ScoringSummary(shard.rows, counts["blank"], counts["truncated"], counts["seconds"])


def _score_shard(predictor: Predictor, planned: Plan, output: str, shard: Shard) -> int:
    """Writes the scored rows of a shard, unless another process has; returns their number."""
    if planned.bundle_digest != predictor.bundle.digest:
        raise FileChanged(
            f"{planned.bundle} is another bundle than {output} was planned for: restore it, or choose another folder"
        )
    if store.has(output, shard.name):
        return shard.rows
    started = time.perf_counter()
    done = ScoringSummary()
    with store.reading(planned.input, planned.files[shard.file]):
        opened = open_input(planned.input, planned.files[shard.file], planned.column)
        names = predictor.bundle.taxonomy.names if planned.all_scores else ()
        column = files.text_column(opened.schema, shard.file, planned.column)
        schema = files.scored_by(predictor.bundle, files.output_schema(opened.schema, shard.file, column, names))
    with store.writing(output, shard.name) as path, pq.ParquetWriter(path, schema) as writer:
        with store.reading(planned.input, planned.files[shard.file]):
            for batch in opened.batches(shard.first, shard.rows):
                labelled = files.label_rows(predictor, batch, column, schema)
                writer.write_batch(labelled)
                done += files.count(labelled)
        if done.rows < shard.rows:
            raise DataError(f"{output}: {PLAN} has more rows of {shard.file} than it holds: score into another folder")
        seconds = round(time.perf_counter() - started, 3)
        counts = {"plan": planned.digest, "blank": done.blank, "truncated": done.truncated, "seconds": seconds}
        writer.add_key_value_metadata({COUNTS: json.dumps(counts)})
    return shard.rows


# Of a worker; an error of the bundle is raised by its first shard, since one in its start looks like a killed process.
_PREDICTOR: Predictor | WorkflowError


def _in_processes(
    planned: Plan, output: str, shards: Sequence[Shard], folder: Path, workers: int, threads: int
) -> Iterator[int]:
    """The number of rows of each shard, as soon as it is scored."""
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(min(workers, len(shards)), context, _start, (folder, threads, os.getpid()))
    try:
        for done in as_completed([pool.submit(_score_here, planned.only(shard), output, shard) for shard in shards]):
            yield done.result()
    except BrokenProcessPool as error:
        raise StorageError(
            "a worker was killed, most often for lack of memory: use fewer workers and run it again; finished shards are kept"
        ) from error
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        for worker in multiprocessing.active_children():
            worker.terminate()


def _start(folder: Path, threads: int, parent: int) -> None:
    global _PREDICTOR
    # Ctrl-C is handled by the parent, which ends its workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    try:
        _PREDICTOR = Predictor.load(folder, threads=threads, is_verified=True)
    except WorkflowError as error:
        _PREDICTOR = error


def _end_with(parent: int) -> None:
    """Ends this process when its parent has ended: a parent that is killed cannot end its workers."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def _score_here(planned: Plan, output: str, shard: Shard) -> int:
    if isinstance(_PREDICTOR, WorkflowError):
        raise _PREDICTOR
    return _score_shard(_PREDICTOR, planned, output, shard)
