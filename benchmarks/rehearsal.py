"""The path of a model from the hub's files to the answers of a server, at full size on this machine, each step in its own process.

    python -m benchmarks.rehearsal --models roberta-large,distilbert,minilm

All encoders but MiniLM have random weights, in folders as the hub lays them out (``benchmarks.random_weights``), and few rows are
used, so the metrics mean nothing: time and peak memory are measured. Some rows are as long as a model reads; training is killed after
its first checkpoint and resumes. The memory limits of the steps follow from this table (``pipelines.resources``).
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import click
import psutil

from benchmarks import random_weights, sections
from benchmarks.measuring import peak_mib, provenance
from benchmarks.steps import after_training
from goemotions.registry.bundle import VARIANTS
from goemotions.storage import manifest
from pipelines import stack

TITLE = "Rehearsal at full size"
MODELS = (*random_weights.MODELS, "minilm")
SPLITS = {"train": 32, "dev": 24, "test": 24}
# Of the rows of train, those that are as long as a model reads.
LONG_ROWS, LONG_WORDS = 16, 120
BATCH, EPOCHS = 16, 2
# Below this much free memory a step is stopped: other processes of the machine need it.
LEAST_FREE = 2**30
HEADER = ("step", "model", "seconds", "peak MiB")


class StepFailed(click.ClickException):
    """A step ended with an error."""


@dataclass(frozen=True)
class Step:
    """One process of the rehearsal: its duration in seconds and peak memory in bytes."""

    name: str
    model: str
    seconds: float
    peak: int

    def cells(self) -> tuple[str, ...]:
        return self.name, self.model, f"{self.seconds:,.0f}", f"{self.peak / 2**20:,.0f}"


@dataclass
class Process:
    """A running step, and its peak memory in bytes so far. It is killed before the memory of the machine runs out."""

    popen: subprocess.Popen[bytes]
    log: Path
    peak: int = 0

    def __post_init__(self) -> None:
        threading.Thread(target=self._watch, daemon=True).start()

    def is_running(self) -> bool:
        return self.popen.poll() is None

    def wait(self) -> int:
        """The exit code, once the step has ended."""
        return self.popen.wait()

    def _watch(self) -> None:
        while memory := peak_mib(self.popen.pid):
            self.peak = int(memory * 2**20)
            if psutil.virtual_memory().available < LEAST_FREE:
                self.popen.kill()
            time.sleep(0.05)


class Rehearsal:
    """Runs the steps below a folder and collects what they took."""

    def __init__(self, folder: Path, *, small: bool, on_step: Callable[[Step], None]) -> None:
        self.folder = folder
        self.small = small
        self.on_step = on_step
        self.dataset = folder / "dataset"

    def start(self, arguments: list[str], log: Path) -> Process:
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as output:
            popen = subprocess.Popen([sys.executable, "-m", *arguments], stdout=output, stderr=subprocess.STDOUT)
        return Process(popen, log)

    def step(self, name: str, model: str, *arguments: str) -> None:
        """Runs a step to its end.

        Raises:
            StepFailed: it ended with another exit code than 0; the message has the end of its output.
        """
        started = time.perf_counter()
        process = self.start(["goemotions.cli", *arguments], self.folder / "logs" / f"{name}-{model or 'all'}.log")
        if code := process.wait():
            raise StepFailed(f"{name} of {model or 'all'} ended with {code}: {_end_of(process.log)}")
        self.on_step(Step(name, model, time.perf_counter() - started, process.peak))

    def weights(self, model: str) -> list[str]:
        """The option that names the weights of a model; none for those that a package has."""
        if model not in random_weights.MODELS:
            return []
        folder = self.folder / "hub" / model
        if not (folder / "model.safetensors").exists():
            options = ["--small"] if self.small else []
            made = self.start(["benchmarks.random_weights", model, str(folder), *options], self.folder / "logs" / "weights.log")
            if made.wait():
                raise StepFailed(f"the weights of {model} were not made: {_end_of(made.log)}")
        return ["--weights", str(folder)]

    def train(self, model: str) -> None:
        """Trains, kills the process after its first checkpoint, and trains on."""
        checkpoints = self.folder / model / "checkpoints"
        data = ["--dataset", str(self.dataset), "--profile", model, *self.weights(model)]
        options = ["--epochs", str(EPOCHS), "--set", f"batch_size={BATCH}", "--checkpoints", str(checkpoints)]
        arguments = ["train", *data, *options, "--output", str(self.folder / model / "model")]
        started = time.perf_counter()
        process = self.start(["goemotions.cli", *arguments], self.folder / "logs" / f"train-{model}.log")
        while process.is_running() and not list(checkpoints.glob(f"**/{manifest.NAME}")):
            time.sleep(0.05)
        process.popen.send_signal(signal.SIGKILL)
        code = process.wait()
        if code != -signal.SIGKILL or not list(checkpoints.glob(f"**/{manifest.NAME}")):
            raise StepFailed(f"train of {model} ended with {code} before it was killed: {_end_of(process.log)}")
        self.on_step(Step("train, killed after a checkpoint", model, time.perf_counter() - started, process.peak))
        self.step("train, resumed", model, *arguments)
        if "resuming" not in (log := self.folder / "logs" / f"train, resumed-{model}.log").read_text(encoding="utf-8"):
            raise StepFailed(f"train of {model} did not resume: {_end_of(log)}")

    def model(self, model: str) -> None:
        """All steps of one profile."""
        self.train(model)
        for title, arguments in after_training(self.dataset, self.folder / model):
            self.step(title, model, *arguments)

    def register(self, model: str) -> None:
        folder = str(self.folder / model)
        name = ("--model-name", f"rehearsal-{model}", "--run", f"rehearsal-{model}")
        arguments = ("--dataset", str(self.dataset), "--candidate", folder)
        self.step("register", model, "register", *arguments, "--store", "s3://goemotions/rehearsal/", *name)
        self.step("report", model, "report", *arguments, "--output", str(self.folder / model / "report"))

    def serve(self, model: str, variant: str) -> None:
        """Serves the champion until it has answered; the time is that until the answer."""
        (port,) = stack.free_ports(1)
        started = time.perf_counter()
        arguments = ["serve", "--bundle", f"champion-{variant}", "--model-name", f"rehearsal-{model}", "--port", str(port)]
        process = self.start(["goemotions.cli", *arguments], self.folder / "logs" / f"serve-{model}-{variant}.log")
        try:
            answer = _ask(process, port, f"rehearsal-{model}")
            seconds = time.perf_counter() - started
        finally:
            process.popen.terminate()
            process.wait()
        if len(answer["predictions"]) != 2:
            raise StepFailed(f"the server of {model} answered {answer}")
        self.on_step(Step(f"serve ({variant}), until it has answered", model, seconds, process.peak))

    def run(self, models: list[str]) -> None:
        source = self.folder / "source"
        write_rows(source)
        self.step("ingest", "", "ingest", "--source", str(source), "--output", str(self.dataset))
        # If the environment names a registry and a store, those are used.
        with contextlib.nullcontext() if "MLFLOW_TRACKING_URI" in os.environ else stack.running(self.folder / "stack"):
            for model in models:
                self.model(model)
                self.register(model)
                for variant in VARIANTS:
                    self.serve(model, variant)


def write_rows(folder: Path) -> None:
    """Writes a source folder: the first rows of the sample data, and rows of train that are as long as a model reads."""
    import goemotions.data

    sample = Path(goemotions.data.__file__).with_name("sample")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "emotions.txt").write_bytes((sample / "emotions.txt").read_bytes())
    generator = random.Random(0)
    for split, count in SPLITS.items():
        rows = [line.split("\t") for line in (sample / f"{split}.tsv").read_text(encoding="utf-8").splitlines()[:count]]
        words = [word for text, *_ in rows for word in text.split()]
        for row in rows[:LONG_ROWS] if split == "train" else ():
            row[0] = " ".join(generator.choices(words, k=LONG_WORDS))
        (folder / f"{split}.tsv").write_text("".join("\t".join(row) + "\n" for row in rows), encoding="utf-8")


def _ask(process: Process, port: int, name: str) -> dict[str, list[object]]:
    """The answer of a model of this name to a request, as soon as its server is ready.

    Raises:
        StepFailed: the server ended, or refused the request.
    """
    body = json.dumps({"instances": ["thank you so much!", "what a day"]}).encode()
    address = f"http://127.0.0.1:{port}"
    while not stack.responds(f"{address}/v2/health/ready"):
        if not process.is_running():
            raise StepFailed(f"the server ended: {_end_of(process.log)}")
        time.sleep(0.1)
    request = urllib.request.Request(f"{address}/v1/models/{name}:predict", body, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=60) as response:  # nosec B310 # loopback
            answer: dict[str, list[object]] = json.load(response)
            return answer
    except OSError as error:
        raise StepFailed(f"the server refused a request ({error}): {_end_of(process.log)}") from error


def _end_of(log: Path) -> str:
    return log.read_text(encoding="utf-8", errors="replace")[-1500:]


def peaks(document: Path) -> dict[tuple[str, str], float]:
    """The largest peak memory in GiB by model and step, the steps named as in ``pipelines.resources``, of the document's table."""
    peaks: dict[tuple[str, str], float] = {}
    for line in sections.read(document).get(TITLE, "").splitlines():
        if row := re.fullmatch(r"\| ([^|]+) \| ([^|]+) \| [\d,]+ \| ([\d,]+) \|", line):
            step = re.sub(r",.*", "", row[1]).replace("-", "_")
            step = re.sub(r"evaluate \((\w+)\)", r"evaluate_\1", step).partition(" (")[0]
            key = row[2].strip(), step
            peaks[key] = max(peaks.get(key, 0.0), int(row[3].replace(",", "")) / 1024)
    return peaks


def table(steps: list[Step]) -> str:
    rows = [HEADER, ("---", "---", "---:", "---:"), *(step.cells() for step in steps)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def body(steps: list[Step], command: str, load: float) -> str:
    """The section: how, where and when it was measured, at most under which load of the machine, and the table."""
    return (
        f"`{command}` on {provenance()}. Random weights but for MiniLM, {sum(SPLITS.values())} rows of the sample data, "
        f"{LONG_ROWS} of them as long as a model reads; {EPOCHS} epochs in batches of {BATCH}. "
        "Memory is the largest resident set of the step's process, mapped files included. "
        f"The load of the machine was at most {load:.1f}: where that is more than its cores, the seconds are upper bounds.\n\n"
        f"{table(steps)}"
    )


@click.command()
@click.option("--models", default=",".join(MODELS), show_default=True, help="Profiles, separated by commas.")
@click.option("--small", is_flag=True, help="Tiny networks, to try the path in a minute; nothing is written to the document.")
@click.option("--folder", type=click.Path(path_type=Path), help="Where the steps write; default: a temporary folder.")
@click.option("--output", type=click.Path(path_type=Path), default=Path("docs/benchmarks.md"), show_default=True)
def main(models: str, small: bool, folder: Path | None, output: Path) -> None:
    """Run every step on full-size models and write time and memory to the document."""
    names = models.split(",")
    if unknown := set(names) - set(MODELS):
        raise click.BadParameter(f"{', '.join(sorted(unknown))}: choose from {', '.join(MODELS)}", param_hint="--models")
    steps: list[Step] = []
    load = 0.0

    def on_step(step: Step) -> None:
        nonlocal load
        steps.append(step)
        load = max(load, os.getloadavg()[0])
        click.echo(" ".join(f"{cell:>12}" if i > 1 else f"{cell:<40}" for i, cell in enumerate(step.cells())))
        if not small:
            # After each step, so that a run that is cut off leaves what it measured.
            sections.write_one(output, TITLE, body(steps, f"python -m benchmarks.rehearsal --models {models}", load))

    with tempfile.TemporaryDirectory() as scratch:
        Rehearsal(folder or Path(scratch), small=small, on_step=on_step).run(names)
    click.echo(f"\n{table(steps)}" if small else f"{output} is written")


if __name__ == "__main__":
    main()
