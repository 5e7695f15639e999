"""The time of the pipeline without training: the steps of a run like `make run MODELS=minilm`.

    python -m benchmarks.overhead --data ../goemotions

The run has a separate stack and folder. Training is one epoch in few steps, without teachers; its time is not counted.
"""

from __future__ import annotations

import contextlib
import io
import logging
import re
import tempfile
from datetime import datetime
from pathlib import Path

import click

from benchmarks.measuring import DATA, Row, provenance, table
from pipelines import local, parameters, stack

LONGEST = 60.0
EVENT = re.compile(r"^(\d\d:\d\d:\d\d\.\d+) - INFO - (?:Executing task|Task) '([\w-]+)'( finished with status)?", re.MULTILINE)
COLOURS = re.compile(r"\x1b\[\d+m")
LEFT_OUT = ("train", "report")
DAY = 86_400.0


def seconds(log: str) -> dict[str, float]:
    """The seconds of each step, from the log of a local run."""
    durations: dict[str, float] = {}
    started: dict[str, datetime] = {}
    for at, step, is_over in EVENT.findall(COLOURS.sub("", log)):
        moment = datetime.strptime(at, "%H:%M:%S.%f")
        if is_over:
            durations[step] = (moment - started[step]).total_seconds() % DAY
        else:
            started[step] = moment
    return durations


def measure(source: str) -> list[Row]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        # The times are in the log of KFP.
        level = logging.root.manager.disable
        logging.disable(logging.NOTSET)
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                arguments = parameters.training_arguments(source, "minilm", {}, 0, {}, is_local=True)
                finished = local.run(folder, **arguments, settings={"minilm": {"teachers": 0, "epochs": 1, "batch_size": 256}})
            durations = seconds(finished.log.read_text(encoding="utf-8"))
        finally:
            logging.disable(level)
            stack.down(folder)
    if "register" not in durations:
        raise click.ClickException(
            "the log of the run has no times of the steps: adapt EVENT to the format of this version of KFP"
        )
    rows = [Row(step, f"{taken:.1f} s") for step, taken in durations.items()]
    total = sum(taken for step, taken in durations.items() if step not in LEFT_OUT)
    return [
        *rows,
        Row("ingest through register, without training", f"{total:.1f} s", f"at most {LONGEST:g} s", total <= LONGEST),
    ]


@click.command()
@DATA
def main(source: str) -> None:
    """Measure the steps of a run on this machine."""
    rows = measure(source)
    click.echo(f"{provenance()}; {Path(source).name}; one run.\n\n{table(rows)}")


if __name__ == "__main__":
    main()
