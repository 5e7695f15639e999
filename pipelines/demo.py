"""The demo: run the pipeline on this machine, serve the winner, and ask it about five comments."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from goemotions.errors import WorkflowError
from pipelines import local, parameters, stack

# A demonstration waits for no teachers, and on as little data as the sample one epoch of theirs teaches nothing.
QUICK = {"minilm": {"teachers": 0}}

COMMENTS = (
    "Thank you so much, you saved my whole weekend!",
    "lol that is the funniest thing I have read all week",
    "I miss my grandmother every single day since she died",
    "This is disgusting, who leaves food like that in a shared fridge?",
    "The meeting was moved to Thursday at ten.",
)
READY_SECONDS = 60


class ServerFailed(WorkflowError):
    """The model server did not become ready."""


@contextlib.contextmanager
def served(log: Path, model_name: str = "goemotions") -> Iterator[str]:
    """The URL of a model server with the champion for CPU, ended afterwards."""
    port = stack.free_ports(1)[0]
    command = [sys.executable, "-m", "goemotions.cli", "serve", f"--model-name={model_name}", f"--port={port}"]
    command += ["--drain-seconds=0"]
    with log.open("wb") as output, subprocess.Popen(command, stdout=output, stderr=output) as process:
        try:
            _wait(f"http://127.0.0.1:{port}/v1/models/goemotions", process, log)
            yield f"http://127.0.0.1:{port}/v1/models/goemotions:predict"
        finally:
            process.terminate()


def ask(url: str, texts: tuple[str, ...]) -> dict[str, Any]:
    """The server's answer to a V1 request."""
    body = json.dumps({"instances": list(texts), "parameters": {"top_k": 3}}).encode()
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as response:  # nosec B310 # the address is made by served
        answer: dict[str, Any] = json.load(response)
        return answer


def table(texts: tuple[str, ...], answer: dict[str, Any]) -> str:
    """Comments and their emotions, a line each."""
    width = max(map(len, texts))
    lines = []
    for text, prediction in zip(texts, answer["predictions"], strict=True):
        found = ", ".join(f"{label} {score:.2f}" for label, score in prediction["scores"].items())
        lines.append(f"  {text:<{width}}  {found or '(none over its threshold)'}")
    return "\n".join(lines)


def _wait(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + READY_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=5):  # nosec B310 # the address is made by served
            return
        time.sleep(0.2)
    raise ServerFailed(f"the model server did not become ready: its log is {log}")


@click.command()
@click.option("--data", default="sample", show_default=True)
@click.option("--models", default="minilm,minilm-3l", show_default=True, help="Profiles, joined by commas.")
@click.option("--epochs", default=0, help="0: each profile's own.")
@click.option("--model-name", default="goemotions", show_default=True, help="Name of the registered model.")
def main(data: str, models: str, epochs: int, model_name: str) -> None:
    """Train, register and serve on this machine."""
    run = local.run(
        data=parameters.source(data),
        models=models.split(","),
        epochs=epochs,
        settings=QUICK,
        model_name=model_name,
        auto_promote=True,
    )
    with served(stack.FOLDER / "serve.log", model_name) as url:
        answer = ask(url, COMMENTS)
    report = (local.report_folder(run) / "report.md").read_text(encoding="utf-8")
    comparison = next(block for block in report.split("\n\n") if block.startswith("| model (engine) |"))
    click.echo(f"\nThe champion for CPU (version {answer['model_version']}) answers:\n\n{table(COMMENTS, answer)}")
    click.echo(f"\nThe models compared, on test\n\n{comparison}\n")
    click.echo(local.summary(run))
    click.echo(f"MLflow: {os.environ['MLFLOW_TRACKING_URI']} (experiment goemotions, registered model {model_name})")
    click.echo("The stack keeps running: `make serve` serves the champion, `make stack-down` ends the stack.")


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        main()
    except WorkflowError as error:
        sys.exit(f"demo: {error}")
    except KeyboardInterrupt:
        sys.exit("demo: interrupted; run it again at any time, the stack keeps running (`make stack-down` ends it)")
