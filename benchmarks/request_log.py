"""The latency of requests with and without the request log, side by side: three servers of one bundle take turns under the same load.

    python -m benchmarks.request_log --bundle champion-cpu --data sample

They are a server without a log, one that logs every request, and one that does so while its store does not respond.
"""

from __future__ import annotations

import contextlib
import os
import socket
import tempfile
from pathlib import Path

import click

from benchmarks import all_engines, load
from benchmarks.measuring import Row, by_turns, provenance, ratio, table
from benchmarks.serving import process, serve_command
from goemotions.data.dataset import ingest, load_dataset

TARGET = 1.02
WITHOUT, LOGGED, STORE_AWAY = "no log", "every request logged", "every request logged, the store does not respond"


def measure(folder: Path, scratch: Path, texts: list[str], *, rate: float, seconds: float, rounds: int) -> list[Row]:
    """The p50 and p99 of requests of one text that arrive at random, and the ratios to the server without a log."""
    wire = load.requests(texts, 1)
    options = {
        WITHOUT: (),
        LOGGED: ("--log-share", "1", "--log-seconds", "10", "--log-folder", str(scratch / "local")),
        STORE_AWAY: (
            "--log-share",
            "1",
            "--log-seconds",
            "10",
            "--log-folder",
            str(scratch / "away"),
            "--log-store",
            "s3://b/",
        ),
    }
    outcomes: dict[str, list[load.Outcome]] = {name: [] for name in options}
    with contextlib.ExitStack() as stack:
        # Connections are accepted by the system, and nobody answers.
        silent = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        os.environ |= {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{silent.getsockname()[1]}"}
        os.environ |= dict.fromkeys(("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION"), "none")
        ports = {
            name: stack.enter_context(process(serve_command(folder, *chosen), scratch / f"{number}.log"))[0]
            for number, (name, chosen) in enumerate(options.items())
        }

        def run(name: str) -> float:
            outcomes[name].append(load.opened(ports[name], wire, rate=rate, seconds=seconds, seed=len(outcomes[name])))
            return outcomes[name][-1].percentile(99)

        p99 = by_turns(rounds, {name: lambda name=name: run(name) for name in options})  # type: ignore[misc]
    rows = []
    for name in options:
        p50 = [1000 * outcome.percentile(50) for outcome in outcomes[name][1:]]
        failed = sum(status != 200 for outcome in outcomes[name] for status in outcome.statuses)
        times, text = ratio(p99[name], p99[WITHOUT])
        shown = f"p50 {min(p50):.1f} to {max(p50):.1f} ms, p99 {text} of that without a log; {failed} failed"
        is_met = None if name == WITHOUT else times <= TARGET and not failed
        rows.append(
            Row(f"{name}, {rate:g} requests/s", shown, "" if name == WITHOUT else f"p99 within {TARGET - 1:.0%}", is_met)
        )
    return rows


@click.command()
@click.option("--bundle", "reference", default="champion-cpu", show_default=True)
@click.option("--model-name", default="goemotions", show_default=True)
@click.option("--data", "source", default="sample", show_default=True, help="The source of the test split.")
@click.option("--rate", default=50.0, show_default=True, help="Requests per second; well below what the machine can do.")
@click.option("--seconds", default=20.0, show_default=True, help="Seconds per turn.")
@click.option("--rounds", default=10, show_default=True, help="Turns of each server.")
def main(reference: str, model_name: str, source: str, rate: float, seconds: float, rounds: int) -> None:
    """Measure what the request log costs."""
    with all_engines.as_folder(reference, model_name) as (folder, _), tempfile.TemporaryDirectory() as name:
        ingest(source, Path(name) / "dataset")
        texts = load_dataset(Path(name) / "dataset", ("test",))[0]["test"]["text"][:]
        rows = measure(folder, Path(name), texts, rate=rate, seconds=seconds, rounds=rounds)
    click.echo(f"{provenance()}; medians and ranges of {rounds} turns of {seconds:g} s each.\n\n{table(rows)}")


if __name__ == "__main__":
    main()
