"""The latency and the CPU time of requests with and without the request log: servers of one bundle take turns under the same load.

    python -m benchmarks.request_log --bundle champion-cpu --data sample

They are two servers without a log, one that logs every request, and one that does so while its store does not respond. Turns are
short and many. The p99 is that of all requests of a server; both it and the CPU time are compared with those of the first server. A
bootstrap of the turns, paired, gives the intervals; that of the two servers that do the same shows what the machine alone does.
"""

from __future__ import annotations

import contextlib
import os
import socket
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
import psutil
from scipy import stats

from benchmarks import load
from benchmarks.measuring import BUNDLE_AND_DATA, Row, provenance, table
from benchmarks.serving import predictor_arguments
from goemotions.data.dataset import ingest, load_dataset
from goemotions.registry import references
from pipelines.server import serving

TARGET = 1.02
RESAMPLES = 1000
WRITE_SECONDS = 0.6
WITHOUT, CONTROL = "no log", "no log, another server"
LOGGED, STORE_AWAY = "every request logged", "every request logged, the store does not respond"


def measure(folder: Path, scratch: Path, texts: list[str], *, rate: float, seconds: float, rounds: int) -> list[Row]:
    """The p99 and the CPU time of requests of one text that arrive at random, and the ratios to the server without a log."""
    wire = load.requests(texts, 1)
    logged = ("--log-share", "1", "--log-seconds", "10", "--log-folder")
    options = {
        WITHOUT: (),
        CONTROL: (),
        LOGGED: (*logged, str(scratch / "local")),
        STORE_AWAY: (*logged, str(scratch / "away"), "--log-store", "s3://b/"),
    }
    outcomes: dict[str, list[load.Outcome]] = {name: [] for name in options}
    cpu: dict[str, list[float]] = {name: [] for name in options}
    with contextlib.ExitStack() as stack:
        # Connections are accepted by the system, and nobody answers.
        silent = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        os.environ |= {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{silent.getsockname()[1]}"}
        os.environ |= dict.fromkeys(("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION"), "none")
        servers = {
            name: stack.enter_context(serving(predictor_arguments(folder, *chosen), scratch / f"{number}.log"))[:2]
            for number, (name, chosen) in enumerate(options.items())
        }
        for turn in range(rounds + 1):
            # In another order each time, so that none always follows the same one.
            for name in np.random.default_rng(turn).permutation(list(options)):
                port, running = servers[name]
                before = cpu_seconds(running.pid)
                # The same requests at the same moments for each server.
                outcome = load.opened(port, wire, rate=rate, seconds=seconds, seed=turn)
                # What the log writes after the last answer counts, too.
                time.sleep(WRITE_SECONDS)
                # The first turn warms up.
                if turn:
                    outcomes[name].append(outcome)
                    cpu[name].append(1000 * (cpu_seconds(running.pid) - before) / len(outcome.statuses))
    return [_row(name, rate, outcomes, cpu) for name in options]


def _row(name: str, rate: float, outcomes: dict[str, list[load.Outcome]], cpu: dict[str, list[float]]) -> Row:
    failed = sum(status != 200 for outcome in outcomes[name] for status in outcome.statuses)
    milliseconds = {one: [1000 * np.array(outcome.seconds) for outcome in outcomes[one]] for one in (WITHOUT, name)}
    shown = f"p99 {p99(milliseconds[name]):.2f} ms, CPU {np.mean(cpu[name]):.3f} ms per request, {failed} failed"
    if name == WITHOUT:
        return Row(f"{name}, {rate:g} requests/s", shown)
    latency = ratio(milliseconds[name], milliseconds[WITHOUT], p99)
    time_taken = ratio(cpu[name], cpu[WITHOUT], np.mean)
    for what, (middle, low, high) in (("p99", latency), ("CPU", time_taken)):
        shown += f"; {what} {middle:.3f} times ({low:.3f} to {high:.3f})"
    if name == CONTROL:
        return Row(f"{name}, {rate:g} requests/s", shown)
    _, low, high = latency
    # Undecided while the interval holds the target.
    is_met, is_missed = high <= TARGET and not failed, low > TARGET or failed > 0
    return Row(f"{name}, {rate:g} requests/s", shown, f"p99 within {TARGET - 1:.0%}", is_met if is_met or is_missed else None)


def p99(turns: Sequence[np.ndarray]) -> float:
    """The 99th percentile of all values of some turns."""
    return float(np.percentile(np.concatenate(turns), 99))


def ratio(one: Sequence[Any], other: Sequence[Any], statistic: Callable[[list[Any]], Any]) -> tuple[float, float, float]:
    """The ratio of a statistic of the turns of two servers, and its 95% interval by a bootstrap of the pairs of turns."""

    def of(turns: np.ndarray) -> float:
        return float(statistic([one[turn] for turn in turns]) / statistic([other[turn] for turn in turns]))

    numbers = np.arange(len(one))
    resampled = stats.bootstrap((numbers,), of, vectorized=False, n_resamples=RESAMPLES, method="percentile", rng=0)
    return of(numbers), float(resampled.confidence_interval.low), float(resampled.confidence_interval.high)


def cpu_seconds(pid: int) -> float:
    """User and system time of a server, with its workers."""
    server = psutil.Process(pid)
    times = [one.cpu_times() for one in (server, *server.children(recursive=True))]
    return float(sum(one.user + one.system for one in times))


@click.command()
@BUNDLE_AND_DATA
@click.option("--rate", default=200.0, show_default=True, help="Requests per second; well below what the machine can do.")
@click.option("--seconds", default=5.0, show_default=True, help="Seconds per turn.")
@click.option("--rounds", default=60, show_default=True, help="Turns of each server.")
def main(reference: str, model_name: str, source: str, rate: float, seconds: float, rounds: int) -> None:
    """Measure what the request log costs."""
    with references.as_folder(reference, model_name) as (folder, _), tempfile.TemporaryDirectory() as name:
        ingest(source, Path(name) / "dataset")
        texts = load_dataset(Path(name) / "dataset", ("test",))[0]["test"]["text"][:]
        rows = measure(folder, Path(name), texts, rate=rate, seconds=seconds, rounds=rounds)
    click.echo(
        f"{provenance()}; {rounds} turns of {seconds:g} s of each server, and ratios with 95% intervals.\n\n{table(rows)}"
    )


if __name__ == "__main__":
    main()
