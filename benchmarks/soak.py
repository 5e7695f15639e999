"""A soak test: training, registration and serving at the same time, with random faults and hostile clients. Nothing may be lost.

python -m benchmarks.soak --minutes 10
"""

from __future__ import annotations

import collections
import contextlib
import functools
import json
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.client import HTTPException
from pathlib import Path
from typing import Any

import click
import psutil

from benchmarks import load
from benchmarks.measuring import provenance
from benchmarks.steps import after_training
from goemotions.defaults import BUCKET, MODEL_NAME
from goemotions.errors import IntegrityError, StorageError
from goemotions.registry import mlflow_client, tracking, trust
from goemotions.storage import manifest, store
from pipelines import stack
from tests.serving.grpc import test_hostile_clients
from tests.support.servers import Server
from tests.test_hostile import ATTACKS

# That of the honest clients: the server shares its connections by address, and the attacks come from another one.
HONEST = "127.0.0.3"
PROFILE, MODEL, STORE = "minilm-3l", "soak", f"s3://{BUCKET}/soak/"
TRAINING = ("--profile", PROFILE, "--epochs", "1", "--precision", "fp32", "--checkpoint-minutes", "0.1")
COMMENTS = tuple(f"thank you so much, that made my {day} a lot better" for day in ("monday", "friday", "week", "year"))
CLIENTS = 8
# A router removes a terminating pod within a second or two; the server accepts requests for longer than that.
ROUTER_SECONDS = 1.5
EVERY_SECONDS = {"serving": 40.0, "training": 15.0, "registering": 20.0, "MLflow": 75.0, "S3": 90.0}
DOWN_SECONDS = 5.0
# Starts of one training or registration: far more than the faults of a soak test require.
ATTEMPTS = 100
# Of the requests served beside the attacks.
MOST_REJECTED = 0.01
PEAK = "peak memory of the server, MiB"


@dataclass
class Tally:
    """Counts of events, from several threads."""

    counts: collections.Counter[str] = field(default_factory=collections.Counter)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, name: str, number: int = 1) -> None:
        with self.lock:
            self.counts[name] += number


@dataclass(frozen=True)
class Soak:
    """One activity of the soak test: its folder, the time at which it ends, its counts, and its random numbers."""

    folder: Path
    ends: float
    tally: Tally
    random: random.Random

    def continues(self) -> bool:
        return time.monotonic() < self.ends

    def pause(self, kind: str) -> None:
        """Waits about as long as EVERY_SECONDS says."""
        time.sleep(max(0.0, min(EVERY_SECONDS[kind] * self.random.uniform(0.5, 1.5), self.ends - time.monotonic())))


def goemotions(*arguments: str | Path, log: Path) -> subprocess.Popen[bytes]:
    with log.open("ab") as output:
        command = [sys.executable, "-m", "goemotions.cli", *map(str, arguments)]
        return subprocess.Popen(command, stdout=output, stderr=output)


def run(*arguments: str | Path, log: Path) -> None:
    _finish(goemotions(*arguments, log=log), str(arguments[0]), log)


def _finish(process: subprocess.Popen[bytes], name: str, log: Path) -> None:
    # The log goes with its folder.
    if process.wait():
        raise click.ClickException(f"{name} failed: {log.read_text(encoding='utf-8')[-2000:]}")


def prepare(folder: Path) -> None:
    """Makes a dataset, a trained candidate and its first version, without faults."""
    dataset, candidate, log = folder / "dataset", folder / "candidate", folder / "prepare.log"
    run("ingest", "--source", "sample", "--output", dataset, log=log)
    run("train", "--dataset", dataset, "--output", candidate / "model", *TRAINING, log=log)
    for _, arguments in after_training(dataset, candidate):
        run(*arguments, log=log)
    _finish(register(folder, "soak-0", log), "register", log)
    run("model", "download", "champion-cpu", "--model-name", MODEL, "--output", folder / "bundle", log=log)


def register(folder: Path, name: str, log: Path) -> subprocess.Popen[bytes]:
    common = ("--dataset", folder / "dataset", "--candidate", folder / "candidate", "--store", STORE, "--model-name", MODEL)
    return goemotions("register", *common, "--run", name, "--auto-promote", log=log)


def serve(soak: Soak) -> None:
    """Sends requests without a pause; again and again a new server takes over and the old one gets SIGTERM."""
    log, wire = soak.folder / "serve.log", load.requests(COMMENTS, 2)
    port, grpc_port, server = _server(soak.folder, log)
    threading.Thread(target=_watch, args=(soak, lambda: server), daemon=True).start()
    threading.Thread(target=_attack, args=(soak, lambda: Server(port, grpc_port, server, log, MODEL_NAME)), daemon=True).start()
    while soak.continues():
        until = min(time.monotonic() + EVERY_SECONDS["serving"] * soak.random.uniform(0.5, 1.5), soak.ends)
        while (left := until - time.monotonic()) > 0:
            _count(soak, load.closed(port, wire, clients=CLIENTS, seconds=min(5.0, left), address=HONEST))
        if not soak.continues():
            break
        successor = _server(soak.folder, log)
        server.terminate()
        soak.tally.add("fault: SIGTERM to the server under load")
        _count(soak, load.closed(port, wire, clients=CLIENTS, seconds=ROUTER_SECONDS, address=HONEST))
        old = server
        port, grpc_port, server = successor
        threading.Thread(target=old.wait, daemon=True).start()
    server.terminate()
    server.wait(timeout=60)


def _attack(soak: Soak, server: Callable[[], Server]) -> None:
    """Sends the attacks of the tests to the server, one after the other in random order; their connections may break."""
    attacks: dict[str, Callable[[Server], Any]] = {name: attack for name, (attack, _) in ATTACKS.items()}
    attacks |= {f"grpc-{name}": functools.partial(_grpc, attack) for name, (attack, _) in test_hostile_clients.ATTACKS.items()}
    while soak.continues():
        name = soak.random.choice(sorted(attacks))
        with contextlib.suppress(OSError, HTTPException):
            attacks[name](server())
        soak.tally.add("attacks over gRPC" if name.startswith("grpc-") else "attacks over HTTP")


def _grpc(attack: Callable[[int], Iterator[Any]], server: Server) -> None:
    """Sends an attack over gRPC and holds its connections for a second."""
    with contextlib.ExitStack() as opened:
        for connection in attack(server.grpc_port):
            opened.callback(connection.close)
        time.sleep(1)


def _server(folder: Path, log: Path) -> tuple[int, int, subprocess.Popen[bytes]]:
    port, grpc_port = stack.free_ports(2)
    ports = ("--port", str(port), "--grpc-port", str(grpc_port))
    process = goemotions("serve", "--bundle", folder / "bundle", *ports, log=log)
    while not stack.responds(f"http://127.0.0.1:{port}/v2/health/ready"):
        if process.poll() is not None:
            raise click.ClickException(f"the server ended: see {log}")
        time.sleep(0.2)
    return port, grpc_port, process


def _count(soak: Soak, outcome: load.Outcome) -> None:
    served = outcome.statuses.count(200)
    lost = sum(status in (load.LOST, load.REFUSED) for status in outcome.statuses)
    rejected = outcome.statuses.count(429)
    soak.tally.add("requests served", served)
    soak.tally.add("requests lost", lost)
    soak.tally.add("requests rejected", rejected)
    soak.tally.add("requests with an error", len(outcome.statuses) - served - lost - rejected)


def _watch(soak: Soak, server: Callable[[], subprocess.Popen[bytes]]) -> None:
    while soak.continues():
        with contextlib.suppress(psutil.NoSuchProcess):
            resident = psutil.Process(server().pid).memory_info().rss >> 20
            with soak.tally.lock:
                peak = soak.tally.counts[PEAK]
                soak.tally.counts[PEAK] = max(peak, resident)
        time.sleep(1)


def train(soak: Soak) -> None:
    """Repeats one training, interrupts it at random and restarts it; its metrics must equal those of the undisturbed one."""
    undisturbed = _metrics(soak.folder / "candidate" / "model")
    number = 0
    while soak.continues():
        number += 1
        output, log = soak.folder / f"model-{number}", soak.folder / "train.log"
        arguments = ("--dataset", soak.folder / "dataset", "--output", output, "--checkpoints", f"{STORE}checkpoints/{number}/")
        for _ in range(ATTEMPTS):
            process = goemotions("train", *arguments, *TRAINING, log=log)
            try:
                process.wait(timeout=EVERY_SECONDS["training"] * soak.random.uniform(0.7, 2.5) if soak.continues() else None)
            except subprocess.TimeoutExpired:
                kind = soak.random.choice(("SIGTERM", "SIGKILL"))
                process.terminate() if kind == "SIGTERM" else process.kill()
                soak.tally.add(f"fault: {kind} to training")
                process.wait()
            if (output / "training.json").exists() and process.returncode == 0:
                break
            soak.tally.add("trainings restarted")
        else:
            raise click.ClickException(f"a training did not finish in {ATTEMPTS} attempts: see {log}")
        soak.tally.add("trainings finished")
        soak.tally.add("trainings with other metrics", _metrics(output) != undisturbed)
        shutil.rmtree(output)


def _metrics(model: Path) -> list[dict[str, float]]:
    history = json.loads((model / "training.json").read_text(encoding="utf-8"))["history"]
    return [{name: value for name, value in epoch.items() if name != "seconds"} for epoch in history]


def register_repeatedly(soak: Soak, who: str) -> None:
    """Registers again and again; kills half of the registrations at random and restarts them until they succeed."""
    number = 0
    while soak.continues():
        number += 1
        name, log = f"soak-{who}-{number}", soak.folder / f"register-{who}.log"
        for _ in range(ATTEMPTS):
            process = register(soak.folder, name, log)
            try:
                is_undisturbed = soak.random.random() < 0.5 or not soak.continues()
                process.wait(timeout=None if is_undisturbed else soak.random.uniform(2, 12))
            except subprocess.TimeoutExpired:
                process.kill()
                soak.tally.add("fault: SIGKILL to a registration")
                process.wait()
            if process.returncode == 0:
                break
            soak.tally.add("registrations restarted")
            time.sleep(1)
        else:
            raise click.ClickException(f"a registration did not finish in {ATTEMPTS} attempts: see {log}")
        with soak.tally.lock:
            soak.tally.counts[f"run {name}"] = 1
        soak.tally.add("registrations finished")
        soak.pause("registering")


def disturb(soak: Soak, name: str, title: str) -> None:
    """Kills a server of the stack again and again, and restarts it on the same port."""
    while True:
        soak.pause(title)
        if not soak.continues():
            return
        server = stack._server(soak.folder / "stack", name)
        if server is None:
            raise click.ClickException(f"{title} is not running any more: see {soak.folder / 'stack'}")
        main = psutil.Process(server.pid)
        command, environment, folder = main.cmdline(), main.environ(), main.cwd()
        for process in [*main.children(recursive=True), main]:
            process.kill()
        soak.tally.add(f"fault: SIGKILL to {title}, down for {DOWN_SECONDS:g} s")
        time.sleep(DOWN_SECONDS)
        with (soak.folder / "stack" / f"{name}.log").open("ab") as log:
            restarted = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder, env=environment, start_new_session=True)
        record = json.dumps(vars(stack.Server.of(restarted, server.port)))
        stack._record(soak.folder / "stack", name).write_text(record, encoding="utf-8")


def lost_versions(tally: Tally) -> tuple[int, int]:
    """Over all finished registrations, how many variants have no complete version, and how many have more than one."""
    client = mlflow_client.client()
    names = ["soak-0", *(name.removeprefix("run ") for name in tally.counts if name.startswith("run "))]
    sources: dict[str, list[str]] = collections.defaultdict(list)
    for version in client.search_model_versions(f"name='{MODEL}'", max_results=5000):
        run = client.get_run(version.run_id).data.tags[tracking.RUN_TAG]
        sources[f"{run} {version.tags['variant']}"].append(version.source)
    expected = [f"{name} {variant}" for name in names for variant in ("gpu", "cpu")]
    lost = sum(not sources[key] or not _is_complete(sources[key][0]) for key in expected)
    return lost, sum(len(locations) > 1 for locations in sources.values())


def _is_complete(source: str) -> bool:
    with tempfile.TemporaryDirectory() as scratch, contextlib.suppress(IntegrityError, StorageError):
        manifest.verify(store.fetch(source, Path(scratch)))
        return True
    return False


def table(tally: Tally, minutes: float) -> str:
    """The counts as a Markdown table, faults first."""
    rows = {name: number for name, number in sorted(tally.counts.items()) if not name.startswith("run ")}
    rows["requests per second"] = round(tally.counts["requests served"] / (60 * minutes))
    return "\n".join(["| event | count |", "|---|---|", *(f"| {name} | {number:,} |" for name, number in rows.items())])


@click.command()
@click.option("--minutes", default=10.0, show_default=True)
@click.option("--seed", default=0, show_default=True, help="Seed of the times of the faults.")
def main(minutes: float, seed: int) -> None:
    """Run training, registration and serving with random faults, and count what is lost."""
    with tempfile.TemporaryDirectory(prefix="soak-") as scratch, stack.running(Path(scratch) / "stack", **{trust.STORE: STORE}):
        folder, tally = Path(scratch), Tally()
        click.echo("making a dataset, a model and its first version")
        prepare(folder)
        ends = time.monotonic() + 60 * minutes
        errors: list[BaseException] = []

        def start(function: Callable[..., None], *arguments: Any) -> threading.Thread:
            soak = Soak(folder, ends, tally, random.Random(f"{seed} {function.__name__} {arguments}"))

            def guarded() -> None:
                try:
                    function(soak, *arguments)
                except BaseException as error:
                    errors.append(error)

            thread = threading.Thread(target=guarded)
            thread.start()
            return thread

        threads = [start(serve), start(train), start(register_repeatedly, "a"), start(register_repeatedly, "b")]
        threads += [start(disturb, "mlflow", "MLflow"), start(disturb, "seaweedfs", "S3")]
        for thread in threads:
            thread.join()
        if errors:
            raise errors[0]
        stack.up(folder / "stack")
        lost, duplicated = lost_versions(tally)
        tally.counts.update({"versions lost": lost, "versions duplicated": duplicated})
        click.echo(f"{provenance()}; {minutes:g} min\n\n{table(tally, minutes)}\n")
        # A count that is missing is 0.
        losses = (
            "requests lost",
            "requests with an error",
            "versions lost",
            "versions duplicated",
            "trainings with other metrics",
        )
        click.echo(", ".join(f"{name}: {tally.counts[name]}" for name in losses))
        is_overloaded = tally.counts["requests rejected"] > MOST_REJECTED * tally.counts["requests served"]
        sys.exit(1 if is_overloaded or any(tally.counts[name] for name in losses) else 0)


if __name__ == "__main__":
    main()
