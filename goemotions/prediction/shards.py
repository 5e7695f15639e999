"""Batch scoring at scale: a folder of files in shards, each scored once, by any number of processes and machines.

A plan is written first, into the output. Then each shard becomes one file, which appears when it is complete, so that a second run
scores only the shards without a file. The plan holds size and tag of every input file: each read checks them, so that no output mixes
two versions of a file. Several machines share the work if each takes a ``share``; two with the same share do no harm,
but repeat work. In the order of their names, the files have one row per row of the input, in order.
"""

from __future__ import annotations

import hashlib
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
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from tqdm import tqdm

from goemotions import addresses, defaults, strict_json
from goemotions.data import tables
from goemotions.errors import DataError, FileChanged, StorageError
from goemotions.models import engines
from goemotions.prediction import files
from goemotions.prediction.files import ScoringSummary
from goemotions.prediction.predictor import Predictor
from goemotions.prediction.rows import Rows, open_rows
from goemotions.registry import bundle, references
from goemotions.storage import store
from goemotions.storage.backend import File

# Readers of a folder of Parquet files skip names that begin with an underscore.
PLAN, DONE = "_plan.json", "_scored.json"
COUNTS = b"goemotions"
FORMAT = 2
# A temporary file that was not written to for so long is that of a process that was killed.
ABANDONED_SECONDS = 3600.0
# Of a plan.
MOST_BYTES = 2**26


@dataclass(frozen=True)
class Shard:
    """Consecutive rows of an input file, and the name of the output file for them."""

    name: str
    file: str
    first: int
    rows: int


@dataclass(frozen=True)
class Plan:
    """The input, the bundle and the shards of a batch scoring.

    Attributes:
        input: location of the input; ``files`` has its files by name.
        column: the column with the texts.
        all_scores: whether the probability of each label is added.
        bundle: location of the bundle.
        shards: in the order of the rows.
        digest: of the whole plan; each scored shard holds it.
    """

    input: str
    files: dict[str, File]
    column: str
    all_scores: bool
    bundle: str
    shards: tuple[Shard, ...]
    digest: str

    def only(self, shard: Shard) -> Plan:
        """The plan with the input file of one shard: sent to a worker with each shard, the whole one would be quadratic."""
        return replace(self, shards=(), files={shard.file: self.files[shard.file]})


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
    """The plan of an output: the stored one, or a new one if there is none.

    Args:
        input: a folder or S3 prefix of files in any format of `goemotions.data.tables`, or one such file.
        output: folder or S3 prefix for the scored shards.
        reference: an alias, a version number, or a location of a bundle; an alias is resolved once.
        model_name: name of the registered model.
        column: the column with the texts; a number for CSV or TSV files without a header.
        all_scores: add the probability of each label.
        shard_rows: most rows of a shard.

    Raises:
        DataError: the input has no rows, or its files differ in their columns; or the output is
            within the input, or has the plan of another scoring, a damaged one, or shards without one.
        FileChanged: an input file is not as it was when the output was planned.
        ModelError: there is no such version, or no bundle.
    """
    folder, name = _input(input)
    within = store.join(store.canonical(output))
    if within == store.join(folder) or (not name and within.startswith(store.join(folder))):
        raise DataError(f"{output} is the input itself, or within it: write to another folder")
    inputs = _input_files(folder, name)
    request = {
        "input": folder,
        "files": [asdict(file) for file in inputs],
        "model": model_name,
        "version": store.canonical(reference) if references.is_location(reference) else reference,
        "column": column,
        "all_scores": all_scores,
        "shard_rows": shard_rows,
    }
    others = [file.name for file in store.files(output) if file.name != PLAN]
    if not store.has(output, PLAN):
        if scored := next((name for name in others if name.startswith("part-")), ""):
            raise DataError(f"{output} has scored shards ({scored}) and no {PLAN}: empty it, or choose another folder")
        located = store.canonical(references.resolve(reference, model_name)[0])
        names = bundle.taxonomy(located).names
        shards = [asdict(shard) for shard in _shards(folder, inputs, column, names if all_scores else (), shard_rows)]
        content = {"format": FORMAT, "asked": request, "bundle": located, "shards": shards}
        written = json.dumps(content | {"digest": _digest(content)}, indent=1).encode()
        if len(written) > MOST_BYTES:
            raise DataError(
                f"{input} has {len(inputs):,} files, {len(shards):,} shards in all, which is too many for one plan: score it in "
                "parts, or use larger shards"
            )
        # Another process may write its plan first.
        store.write_new(output, PLAN, written)
    former = _read(output)["asked"]
    if differs := [name for name, value in request.items() if name != "files" and former[name] != value]:
        raise DataError(f"{output} has scores of another {' and '.join(differs)}: empty it, or choose another folder")
    _require_same(output, [File(**file) for file in former["files"]], inputs)
    return read(output)


def _require_same(output: str, planned: Sequence[File], inputs: Sequence[File]) -> None:
    before, now = ({file.name: file for file in files} for files in (planned, inputs))
    for name in sorted(before.keys() | now.keys()):
        if before.get(name) != now.get(name):
            change = "is new" if name not in before else "is missing" if name not in now else "has changed"
            raise FileChanged(
                f"{name} {change} since {output} was planned: restore the input as it was, or choose another folder"
            )


def read(output: str) -> Plan:
    """The plan that an output has.

    Raises:
        DataError: there is none, it is damaged, or an earlier version of this package wrote it.
    """
    content = _read(output)
    try:
        request = content["asked"]
        strict_json.require(request["files"], list[File], PLAN)
        strict_json.require(content["shards"], list[Shard], PLAN)
        return Plan(
            request["input"],
            {file["name"]: File(**file) for file in request["files"]},
            request["column"],
            request["all_scores"],
            content["bundle"],
            tuple(Shard(**shard) for shard in content["shards"]),
            content["digest"],
        )
    except (ValueError, KeyError, TypeError) as error:
        raise _unreadable(output) from error


def _read(output: str) -> dict[str, Any]:
    try:
        content = strict_json.parse(store.read(output, PLAN, MOST_BYTES), PLAN, MOST_BYTES)
        if not isinstance(content, dict):
            raise TypeError
    except (ValueError, TypeError) as error:
        raise _unreadable(output) from error
    if content.get("format") != FORMAT:
        raise DataError(
            f"{output}: {PLAN} is of another version of this package and lacks the state of the input: score into another folder"
        )
    if content.get("digest") != _digest({name: value for name, value in content.items() if name != "digest"}):
        raise _unreadable(output)
    return content


def _unreadable(output: str) -> DataError:
    return DataError(
        f"{output} has no readable {PLAN}: it is missing or damaged; plan the scoring into an empty folder before shards are scored"
    )


def _digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def score(
    output: str,
    *,
    share: tuple[int, int] = (0, 1),
    workers: int = 1,
    threads: int | None = None,
    predictor: Predictor | None = None,
) -> None:
    """Scores the shards of a plan that have no file yet.

    Args:
        output: folder or S3 prefix with a plan.
        share: ``(i, n)`` for the i-th of every n shards, if n machines share the work.
        workers: number of processes; with one, this process does the work.
        threads: threads of each worker; default: the cores, divided among the workers.
        predictor: a loaded predictor of the plan's bundle, for one worker.

    Raises:
        DataError: an input file is damaged.
        FileChanged: an input file is not as it was when it was planned.
        StorageError: a worker was killed, or the store fails.
    """
    planned = read(output)
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
            scored = _in_processes(planned, output, shards, folder, workers, threads or max(1, engines.cpus() // workers))
        for rows in scored:
            progress.update(rows)


def finish(output: str) -> ScoringSummary:
    """Checks that every shard has a file with all its rows, and writes their sums as ``_scored.json``.

    Raises:
        DataError: shards are missing, have another number of rows, or were scored by another plan.
    """
    planned = read(output)
    done = {file.name for file in store.files(output)}
    if missing := [shard.name for shard in planned.shards if shard.name not in done]:
        raise DataError(f"{output}: {len(missing)} of {len(planned.shards)} shards are missing ({missing[0]}): score it again")
    store.sweep(output)
    total = sum((_read_summary(output, shard, planned) for shard in planned.shards), ScoringSummary())
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
        metadata = tables.open_parquet(file, shard.name).metadata
    counts = strict_json.parse((metadata.metadata or {}).get(COUNTS, b"{}"), shard.name)
    if metadata.num_rows != shard.rows or not counts:
        raise DataError(f"{output}: {shard.name} has {metadata.num_rows} rows, not {shard.rows}: remove it and score it again")
    if counts.get("plan") != planned.digest:
        raise DataError(f"{output}: {shard.name} was scored by another plan: remove it and score it again")
    return ScoringSummary(shard.rows, counts["blank"], counts["truncated"], counts["seconds"])


def _input(location: str) -> tuple[str, str]:
    """The folder of the input, and the name of the file if the input is a single one."""
    if not (addresses.is_s3(location) or Path(location).exists()):
        raise DataError(f"{location} does not exist: check its path")
    folder, _, name = location.rpartition("/")
    if not tables.is_table(name) or Path(location).is_dir():
        return store.canonical(location), ""
    return store.canonical(folder or "."), name


def _input_files(folder: str, name: str) -> list[File]:
    """The files of rows of a folder, or the one of this name; hidden ones are skipped."""
    inputs = [
        file
        for file in store.files(folder)
        if tables.is_table(file.name) and not file.name.rpartition("/")[2].startswith(("_", ".")) and name in ("", file.name)
    ]
    if not inputs:
        raise DataError(
            f"{store.join(folder)}{name} has no file of rows, such as .csv or .parquet: give a folder, a prefix or a file"
        )
    return inputs


def _shards(folder: str, inputs: Sequence[File], column: str, scores: Sequence[str], shard_rows: int) -> Iterator[Shard]:
    number = 0
    schema = None
    for file in inputs:
        with store.reading(folder, file):
            opened = _open(folder, file, column)
            schema = schema or opened.schema
            if not opened.schema.equals(schema):
                raise DataError(f"{file.name} has other columns than {inputs[0].name}: score them into separate folders")
            files.output_schema(schema, file.name, files.text_column(schema, file.name, column), scores)
            total = opened.total()
        for first in range(0, total, shard_rows):
            yield Shard(f"part-{number:06d}.parquet", file.name, first, min(shard_rows, total - first))
            number += 1
    if not number:
        raise DataError(f"{folder} has no rows: it needs at least one")


def _open(folder: str, file: File, column: str) -> Rows:
    return open_rows(file.name, lambda: store.open_file(folder, file.name, file), column)


def _score_shard(predictor: Predictor, planned: Plan, output: str, shard: Shard) -> int:
    """Writes the scored rows of a shard, unless another process has; returns their number."""
    if store.has(output, shard.name):
        return shard.rows
    started = time.perf_counter()
    done = ScoringSummary()
    with store.reading(planned.input, planned.files[shard.file]):
        opened = _open(planned.input, planned.files[shard.file], planned.column)
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


_PREDICTOR: Predictor


def _in_processes(
    planned: Plan, output: str, shards: Sequence[Shard], folder: Path, workers: int, threads: int
) -> Iterator[int]:
    """The number of rows of each shard, as soon as it is scored."""
    # An error of the bundle is raised here once, not by each worker.
    bundle.load(folder, is_verified=True)
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
    _PREDICTOR = Predictor.load(folder, threads=threads, is_verified=True)


def _end_with(parent: int) -> None:
    """Ends this process when its parent has ended: a parent that is killed cannot end its workers."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def _score_here(planned: Plan, output: str, shard: Shard) -> int:
    return _score_shard(_PREDICTOR, planned, output, shard)
