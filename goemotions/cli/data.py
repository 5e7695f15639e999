"""Commands that turn the request log of the server into data: feedback as a source, and texts for a labelling tool."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from goemotions import defaults
from goemotions.cli.options import FOLDER, LOCATION, SOURCE, LocalPath, Number, setting, together

HOUR = click.DateTime(["%Y-%m-%dT%H", "%Y-%m-%d"])
LOG = together(
    click.option(
        "--log", "store", type=LOCATION, default="", help="Store of the request log: s3://bucket/prefix/ or a folder."
    ),
    setting("--model-name", default=defaults.MODEL_NAME, help="Model that the log is of."),
    click.option("--since", type=HOUR, help="First hour of the log, in UTC, such as 2026-01-31T09 or 2026-01-31."),
    click.option("--until", type=HOUR, help="Hour before which the log ends."),
)
OUTPUT = click.option("--output", type=FOLDER, required=True, help="New folder to write.")


@click.group("data")
def data() -> None:
    """Turn the request log into training data."""


def _reader(store: str, model_name: str, since: datetime | None, until: datetime | None) -> Any:
    from goemotions.data.request_log import LogReader

    hours = (moment.replace(tzinfo=UTC) if moment else None for moment in (since, until))
    return LogReader(store, model_name, *hours)


@data.command()
@LOG
@OUTPUT
@click.option(
    "--labelled",
    multiple=True,
    type=LocalPath(path_type=Path),
    help="Export of Label Studio or Argilla, a file or folder. Repeatable.",
)
@click.option(
    "--append-to", type=SOURCE, default="", help="Source whose train the rows are added to; its other splits stay as they are."
)
@click.option(
    "--conflicts",
    type=click.Choice(["newest", "majority"]),
    default="newest",
    show_default=True,
    help="Labels of a text that was given several. Each user, or answer of an unknown user, counts once, by the newest labels.",
)
@click.option(
    "--max-quarantined",
    default=1.0,
    show_default=True,
    type=Number(0, 1),
    help="Largest share of rows that may be left out because the taxonomy has no such label; 0: such a row is an error.",
)
def from_feedback(
    store: str, model_name: str, since: datetime | None, until: datetime | None, output: Path, **options: Any
) -> None:
    """Write the feedback to logged answers, and annotators' labels, as a source for `goemotions ingest`."""
    from goemotions.data import feedback
    from goemotions.data.dataset import QUARANTINE_FILE

    counts = feedback.from_feedback(output, _reader(store, model_name, since, until) if store else None, **options)
    versions = ", ".join(f"{count:,} of version {version or 'unknown'}" for version, count in counts.versions.items())
    click.echo(
        f"{output}: {counts.rows:,} texts in train ({versions}; {counts.as_predicted:,} with the labels that were predicted), "
        f"{counts.since} to {counts.until}"
    )
    click.echo(
        f"of {counts.feedback:,} labels in the log {counts.without_answer:,} have no answer there and {counts.ambiguous:,} an id of "
        f"several texts; {counts.exported:,} were exported; {counts.repeated:,} were replaced by later ones; "
        f"{counts.conflicts:,} texts had other labels, too; {counts.held_out:,} are in validation or test and left out; "
        f"see {feedback.INFO_FILE} and {feedback.CONFLICTS_FILE} there"
    )
    if counts.unknown_labels:
        click.echo(
            f"{counts.unknown_labels:,} rows are left out, whose labels the taxonomy does not have: see {QUARANTINE_FILE} there",
            err=True,
        )
    if not options["append_to"]:
        click.echo("`goemotions ingest` would draw validation and test from these rows: --append-to keeps those of your data")


@data.command()
@LOG
@click.option(
    "--scored",
    type=LOCATION,
    multiple=True,
    help="Instead of a log, twice: outputs of `goemotions score` of the same texts by two bundles.",
)
@setting("--text-column", default=defaults.TEXT_COLUMN, help="Their column with the texts.")
@OUTPUT
@click.option("--format", "tool", type=click.Choice(["argilla", "label-studio"]), required=True, help="The labelling tool.")
@click.option("--rows", type=click.IntRange(min=1), default=500, show_default=True, help="Most texts.")
@click.option(
    "--by",
    type=click.Choice(["margin", "entropy", "disagreement"]),
    default="margin",
    show_default=True,
    help="What makes a text of the log worth it: a score near its threshold, the mean entropy of all labels, or other labels of "
    "another version. Outputs are compared by disagreement.",
)
def to_label(
    store: str,
    model_name: str,
    since: datetime | None,
    until: datetime | None,
    scored: tuple[str, ...],
    text_column: str,
    output: Path,
    tool: str,
    rows: int,
    by: str,
) -> None:
    """Write the texts of the log that are worth labelling most, for a labelling tool."""
    from goemotions.data import annotation, ranking

    if bool(store) == bool(scored) or len(scored) not in (0, 2):
        raise click.UsageError("Missing option: give --log, or --scored twice")
    if scored:
        by = ranking.DISAGREEMENT
        names, candidates = ranking.compare(scored, rows, text_column)
    else:
        names, candidates = ranking.choose(_reader(store, model_name, since, until), rows, by)
    annotation.write(output, tool, names, candidates)
    click.echo(
        f"{output}: {len(candidates):,} texts by {by}, best first, for {tool}; read its export by `from-feedback --labelled`"
    )
