"""Runs every benchmark except those of the server and writes ``docs/benchmarks.md``.

make bench DATA=../goemotions                   # the quick form, at most 20 minutes on two idle cores
make bench-full DATA=../goemotions              # hours
make bench-full DATA=../goemotions ONLY=Growth  # one section; the others are kept
"""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import click

from benchmarks import frontier, growth, overhead, scoring, sections, store, training
from benchmarks.measuring import BUNDLE_AND_DATA, Row, provenance, table
from goemotions.data.dataset import ingest


@dataclass(frozen=True)
class Section:
    """A table: its title, the command that measures only this table, and the function that measures it."""

    title: str
    command: str
    measure: Callable[[], list[Row]]


def measured_sections(source: str, reference: str, model_name: str, scratch: Path, *, full: bool) -> list[Section]:
    data_option = f"--data {Path(source).name}"
    repeats, rows = (5, 1_000_000) if full else (2, 40_000)

    def trained() -> list[Row]:
        ingest(source, scratch / "dataset")
        material = training.Material.of(scratch / "dataset", "minilm")
        return training.rates(material, repeats)

    return [
        Section("Training", f"python -m benchmarks.training {data_option} --repeats {repeats}", trained),
        Section(
            "Batch scoring",
            f"python -m benchmarks.scoring {data_option} --rows {rows} --repeats 1",
            lambda: scoring.measure(reference, model_name, source, rows, 1),
        ),
        Section(
            "The pipeline besides training", f"python -m benchmarks.overhead {data_option}", lambda: overhead.measure(source)
        ),
        Section(
            "Growth", f"python -m benchmarks.growth{'' if full else ' --quick'}", lambda: growth.measure(is_quick=not full)
        ),
        Section(
            "The object store under checkpoints",
            f"python -m benchmarks.store --gigabytes {20 if full else 5}",
            lambda: store.measure(20 if full else 5),
        ),
        Section(
            "Quality against speed",
            f"python -m benchmarks.frontier {data_option} --repeats {repeats}{' --student-epochs 3' if full else ''}",
            lambda: frontier.rows_of(frontier.measure(reference, model_name, source, repeats, 3 if full else 0)[0]),
        ),
    ]


@click.command()
@BUNDLE_AND_DATA
@click.option("--full", is_flag=True, help="The long form: a million rows and all sizes.")
@click.option("--only", default="", help="Measure only the section with this title and keep the others.")
@click.option("--output", type=click.Path(path_type=Path), default=Path("docs/benchmarks.md"), show_default=True)
def main(source: str, reference: str, model_name: str, full: bool, only: str, output: Path) -> None:
    """Run every benchmark and write their tables."""
    with tempfile.TemporaryDirectory() as scratch:
        known = measured_sections(source, reference, model_name, Path(scratch), full=full)
        if not (chosen := [section for section in known if only in ("", section.title)]):
            raise click.BadParameter(f"{only!r} is not a section: choose from {', '.join(section.title for section in known)}")
        logging.disable(logging.WARNING)
        bodies = sections.read(output)
        for section in chosen:
            started = time.monotonic()
            rows = section.measure()
            how = f"`{section.command}` on {provenance()}; {time.monotonic() - started:.0f} s."
            bodies[section.title] = f"{how}\n\n{table(rows)}"
            order = [section.title for section in known if section.title in bodies]
            sections.write(output, {title: bodies[title] for title in [*order, *bodies]})
            click.echo(f"## {section.title}\n\n{bodies[section.title]}\n")
    click.echo(f"{output} is written")


if __name__ == "__main__":
    main()
