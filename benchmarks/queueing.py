"""The wait for batches alone: the server's batcher before an engine that only sleeps, for as long as the real one computes.

    python -m benchmarks.queueing --bundle champion-cpu --data ../goemotions

The times of the engine are fitted to batches of several sizes. There is no HTTP, and each worker has a core of its own: what a server
adds to these ratios is its own work, that of the load generator, and the scheduling of both.
"""

from __future__ import annotations

import asyncio
import itertools
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import click
import numpy as np

from benchmarks.measuring import BUNDLE_AND_DATA, Row, provenance, table
from goemotions.data.dataset import ingest, load_dataset
from goemotions.models.engines import Engine
from goemotions.prediction.predictor import Predictor
from goemotions.registry import references
from goemotions.serving.batching.batcher import Batcher
from goemotions.serving.limits import Limits

SIZES, LENGTHS = (1, 2, 4, 8, 16), (8, 16, 24, 32, 48)
SHARES = (0.5, 0.6, 0.7)
CLIENTS, SECONDS = 64, 10
# Slower than the real engine, so that the work of the batcher itself does not count; the queue refuses nothing.
SLOWER, LIMITS = 4, Limits(queue_seconds=60)


class Sleeping:
    """An engine that takes ``fixed`` seconds per batch, and ``each`` per token of it, padding included."""

    name, workers = "sleeping", 2

    def __init__(self, engine: Engine, fixed: float, each: float) -> None:
        self.computation, self.encoder, self.batch_tokens = engine.computation, engine.encoder, engine.batch_tokens
        self._fixed, self._each = fixed, each
        self.busy = 0.0

    def logits(self, ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
        seconds = self._fixed + self._each * ids.size
        time.sleep(SLOWER * seconds)
        self.busy += seconds
        return np.zeros((len(ids), 1), dtype=np.float32)


def fit(engine: Engine) -> tuple[float, float]:
    """The seconds of a worker per batch, and per token; of the CPU, so that other work of the machine counts little."""
    shapes, seconds = list(itertools.product(SIZES, LENGTHS)), []
    for shape in shapes:
        ids = np.ones(shape, dtype=np.int64)
        runs = []
        for _ in range(7):
            started = time.process_time()
            engine.logits(ids, ids)
            runs.append(time.process_time() - started)
        # The first prepares kernels.
        seconds.append(min(runs[1:]))
    weights = 1 / np.array(seconds)
    columns = np.array([[1, size * length] for size, length in shapes])
    fixed, each = np.linalg.lstsq(columns * weights[:, None], np.ones(len(seconds)), rcond=None)[0]
    return float(fixed), float(each)


async def _score(batcher: Batcher, text: str, seconds: list[float], due: float) -> None:
    await batcher.logits([text])
    seconds.append((time.perf_counter() - due) / SLOWER)


def closed(engine: Engine, texts: Iterator[str], clients: int) -> list[float]:
    """The seconds of each text of a closed loop."""
    batcher, seconds, end = Batcher(engine, LIMITS), list[float](), time.perf_counter() + SLOWER * SECONDS

    async def work() -> None:
        while (now := time.perf_counter()) < end:
            await _score(batcher, next(texts), seconds, now)

    async def run() -> None:
        await asyncio.gather(*(work() for _ in range(clients)))

    asyncio.run(run())
    return seconds


def opened(engine: Engine, texts: Iterator[str], rate: float) -> list[float]:
    """The seconds of each text of an open loop."""
    batcher, seconds, generator = Batcher(engine, LIMITS), list[float](), np.random.default_rng(0)

    async def run() -> None:
        started = due = time.perf_counter()
        async with asyncio.TaskGroup() as tasks:
            while (due := due + SLOWER * generator.exponential(1 / rate)) < started + SLOWER * SECONDS:
                await asyncio.sleep(due - time.perf_counter())
                tasks.create_task(_score(batcher, next(texts), seconds, due))

    asyncio.run(run())
    return seconds


def measure(engine: Engine, texts: list[str]) -> list[Row]:
    """The p99 of open loops at shares of the saturation, as multiples of the median of a lone text."""
    fixed, each = fit(engine)
    sleeping, upcoming = Sleeping(engine, fixed, each), itertools.cycle(texts)
    lone = float(np.median(closed(sleeping, upcoming, 1)))
    saturation = len(closed(sleeping, upcoming, CLIENTS)) / SECONDS
    rows = [
        Row("a batch takes a worker", f"{1e3 * fixed:.2f} ms, and {1e3 * each:.3f} ms per token"),
        Row("a lone text: median", f"{1e3 * lone:.1f} ms"),
        Row(f"saturation, {CLIENTS} clients", f"{saturation:,.0f} texts/s"),
    ]
    for share in SHARES:
        before = sleeping.busy
        tail = float(np.percentile(opened(sleeping, upcoming, share * saturation), 99))
        busy = (sleeping.busy - before) / SECONDS / sleeping.workers
        measured = f"{1e3 * tail:.1f} ms, {tail / lone:.1f} times a lone text; workers busy {busy:.0%} of the time"
        rows.append(Row(f"open loop at {share:.0%} of it: p99", measured))
    return rows


@click.command()
@BUNDLE_AND_DATA
def main(reference: str, model_name: str, source: str) -> None:
    """Measure the wait for batches alone."""
    with references.as_folder(reference, model_name) as (folder, _), tempfile.TemporaryDirectory() as name:
        ingest(source, Path(name) / "dataset")
        texts = load_dataset(Path(name) / "dataset", ("test",))[0]["test"]["text"][:]
        rows = measure(Predictor.load(folder, threads=Sleeping.workers).engine, texts)
    click.echo(f"{provenance()}.\n\n{table(rows)}")


if __name__ == "__main__":
    main()
