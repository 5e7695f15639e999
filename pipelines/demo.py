"""The demo: run the pipeline on this machine, serve the winner, and label five comments with it."""

from __future__ import annotations

import contextlib
import json
import os
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from goemotions import defaults
from pipelines import local, server, stack

# On as little data as the sample, distillation takes minutes and improves nothing.
WITHOUT_DISTILLATION = {"minilm": {"teachers": 0}}
COMMENTS = (
    "Thank you so much, you saved my whole weekend!",
    "lol that is the funniest thing I have read all week",
    "I miss my grandmother every single day since she died",
    "This is disgusting, who leaves food like that in a shared fridge?",
    "The meeting was moved to Thursday at ten.",
)


def run(model_name: str, arguments: Mapping[str, Any]) -> str:
    """Trains, registers and serves on this machine. Returns what to show: the labelled comments, the models compared, and the links.

    Raises:
        RunFailed, StackError, ServerFailed: a step or a server failed.
    """
    # It promotes what it trains, which must not happen in a registry of others.
    os.environ.update(stack.up())
    finished = local.run(model_name=model_name, settings=WITHOUT_DISTILLATION, auto_promote=True, **arguments)
    with served(stack.FOLDER / "serve.log", model_name) as url:
        response = predict(url, COMMENTS)
    report = (finished.report / "report.md").read_text(encoding="utf-8")
    comparison = next(block for block in report.split("\n\n") if block.startswith("| model (engine) |"))
    return (
        f"\nThe champion for CPU (version {response['model_version']}) predicts:\n\n{table(COMMENTS, response)}\n"
        f"\nThe models compared, on test\n\n{comparison}\n\n{finished.summary()}\n"
        f"MLflow: {os.environ['MLFLOW_TRACKING_URI']} (experiment {defaults.EXPERIMENT}, registered model {model_name})\n"
        "The stack keeps running: `make serve` serves the champion, `make stack-down` stops the stack."
    )


@contextlib.contextmanager
def served(log: Path, model_name: str = defaults.MODEL_NAME) -> Iterator[str]:
    """Runs a model server with the champion for CPU; yields the URL for predictions.

    Raises:
        ServerFailed: it did not become ready.
    """
    with server.serving([*server.PREDICTOR, f"--model-name={model_name}"], log) as running:
        yield f"{running.address}/v1/models/{model_name}:predict"


def predict(url: str, texts: tuple[str, ...]) -> dict[str, Any]:
    """The response of the server to a V1 request."""
    body = json.dumps({"instances": list(texts), "parameters": {"top_k": 3}}).encode()
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as response:  # nosec B310 # the address is made by served
        content: dict[str, Any] = json.load(response)
        return content


def table(texts: tuple[str, ...], response: dict[str, Any]) -> str:
    """The texts and their labels, one line per text."""
    width = max(map(len, texts))
    lines = []
    for text, prediction in zip(texts, response["predictions"], strict=True):
        labels = ", ".join(
            f"{label} {score:.2f}" for label, score in prediction["scores"].items() if label in prediction["labels"]
        )
        lines.append(f"  {text:<{width}}  {labels or '(none over its threshold)'}")
    return "\n".join(lines)
