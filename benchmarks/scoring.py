"""Batch scoring relative to the engine, two workers relative to one, and the growth of memory with the rows.

    python -m benchmarks.scoring --bundle champion-cpu --data ../goemotions --rows 1000000

The rows are the comments of the data, repeated with different words appended, so that no two are the same.
"""

from __future__ import annotations

import itertools
import logging
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import click
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.measuring import BUNDLE_AND_DATA, Row, by_turns, compared, provenance, spread, table
from goemotions.data.dataset import ingest, load_dataset
from goemotions.models import engines
from goemotions.prediction import plans, shards
from goemotions.prediction.predictor import Predictor
from goemotions.prediction.rows import CHUNK
from goemotions.registry import references

THREADS = 2
ROWS, REPEATS = 20_000, 3
WORDS = ("today", "again", "honestly", "you know", "in the end", "as ever", "they said", "for once")


def comments(source: str, rows: int, scratch: Path) -> Iterator[str]:
    ingest(source, scratch)
    splits, _ = load_dataset(scratch)
    texts = [text for split in splits.values() for text in split["text"][:]]
    order = np.random.default_rng(0).permutation(len(texts))
    changed = (f"{texts[position]} {WORDS[turn % len(WORDS)]} {turn}" for turn in itertools.count() for position in order)
    return itertools.islice(changed, rows)


def write(path: Path, texts: Iterator[str]) -> None:
    with pq.ParquetWriter(path, pa.schema([("text", pa.string())])) as writer:
        while part := list(itertools.islice(texts, 50_000)):
            writer.write(pa.table({"text": pa.array(part, pa.string())}))


class Scorer:
    """Ways to score one file; each method returns rows per second."""

    def __init__(self, folder: Path, source: Path, scratch: Path) -> None:
        self._folder, self._source, self._scratch = folder, source, scratch
        self._rows: int = pq.ParquetFile(source).metadata.num_rows
        self._predictor = Predictor.load(folder, threads=THREADS)

    def engine(self) -> float:
        """The engine: texts in, probabilities out."""
        taken = 0.0
        for batch in pq.ParquetFile(self._source).iter_batches(CHUNK):
            texts = batch["text"].to_pylist()
            started = time.perf_counter()
            engines.score(self._predictor.engine, texts)
            taken += time.perf_counter() - started
        return self._rows / taken

    def here(self) -> float:
        """Batch scoring in this process."""
        return self._score(workers=1, predictor=self._predictor)

    def workers(self, count: int) -> float:
        """Batch scoring by ``count`` processes with one thread each; the time includes their start."""
        return self._score(workers=count, threads=1)

    def _score(self, **options: object) -> float:
        output = self._scratch / "out"
        shutil.rmtree(output, ignore_errors=True)
        plans.plan(str(self._source), str(output), str(self._folder), shard_rows=max(1, self._rows // 16))
        started = time.perf_counter()
        shards.score(str(output), **options)  # type: ignore[arg-type]
        taken = time.perf_counter() - started
        shards.finish(str(output))
        return self._rows / taken


def rates(folder: Path, source: Path, scratch: Path, repeats: int) -> list[Row]:
    scorer = Scorer(folder, source, scratch)
    rows = pq.ParquetFile(source).metadata.num_rows
    measured = by_turns(
        repeats,
        {"engine": scorer.engine, "here": scorer.here, "one": lambda: scorer.workers(1), "two": lambda: scorer.workers(2)},
        warm=False,
    )
    return [
        Row(f"the engine in-process, {rows:,} comments, {THREADS} threads", spread(measured["engine"])),
        Row("`goemotions score`, Parquet to Parquet, the same threads", spread(measured["here"])),
        compared("relative to the engine", measured["here"], measured["engine"], least=0.9),
        Row("one worker of one thread", spread(measured["one"])),
        Row("two workers of one thread", spread(measured["two"])),
        compared("relative to one", measured["two"], measured["one"], least=1.8),
    ]


def memory(folder: Path, source: Path, few: Path, scratch: Path) -> Row:
    """Peak memory of the command on few rows and on all rows."""
    peaks = []
    for path in (few, source):
        code = (
            "import sys; from goemotions.cli import main as cli; from benchmarks import measuring\n"
            "try: cli.main()\n"
            "finally: print(measuring.peak_mib(), file=sys.stderr)"
        )
        output = scratch / f"memory-{path.stem}"
        command = [sys.executable, "-c", code, "score", "--bundle", str(folder), "--input", str(path), "--output", str(output)]
        ended = subprocess.run(command, capture_output=True, text=True, check=True)
        peaks.append(float(ended.stderr.splitlines()[-1]))
    counts = [pq.ParquetFile(path).metadata.num_rows for path in (few, source)]
    growth = peaks[1] / peaks[0]
    text = " and ".join(f"{peak:,.0f} MiB" for peak in peaks)
    return Row(f"peak memory on {counts[0]:,} and {counts[1]:,} rows", text, "no growth", growth < 1.1)


def measure(reference: str, model_name: str, source: str, rows: int, repeats: int) -> list[Row]:
    with references.as_folder(reference, model_name) as (folder, _), tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        whole, few = scratch / "whole.parquet", scratch / "few.parquet"
        write(whole, comments(source, rows, scratch / "dataset"))
        pq.write_table(pq.read_table(whole).slice(0, max(1, rows // 10)), few)
        return [*rates(folder, whole, scratch, repeats), memory(folder, whole, few, scratch)]


@click.command()
@BUNDLE_AND_DATA
@click.option("--rows", default=ROWS, show_default=True)
@click.option("--repeats", default=REPEATS, show_default=True)
def main(reference: str, model_name: str, source: str, rows: int, repeats: int) -> None:
    """Measure batch scoring on this machine."""
    logging.disable(logging.WARNING)
    lines = measure(reference, model_name, source, rows, repeats)
    click.echo(f"{provenance()}; comments of {Path(source).name}; medians (and range) of {repeats} runs.\n\n{table(lines)}")


if __name__ == "__main__":
    main()
