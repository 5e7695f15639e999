"""``goemotions monitor``: whether what a model gets is still what it was validated on."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from goemotions import defaults
from goemotions.cli.options import BUNDLE, FILE, LOCATION, MODEL_NAME, SERVER, Number
from goemotions.errors import BadArgument

if TYPE_CHECKING:
    from goemotions.monitoring.drift.window import Window

# Beside 1 for an error and 2 for wrong usage.
DRIFTED = 3
SCRAPE = "metrics.txt"


@click.command()
@BUNDLE
@MODEL_NAME
@click.option("--server", type=SERVER, default="", help="A predictor server, such as http://127.0.0.1:8080.")
@click.option(
    "--since", type=FILE, help=f"With --server: the {SCRAPE} of an earlier run, from which on texts count; default: its start."
)
@click.option(
    "--prometheus",
    type=SERVER,
    default="",
    envvar="PROMETHEUS_URL",
    show_envvar=True,
    help="A Prometheus, such as http://host:9090.",
)
@click.option(
    "--service",
    default="",
    help="With --prometheus: the InferenceService, such as goemotions-cpu or NAMESPACE/goemotions-cpu; default: all.",
)
@click.option("--scored", type=LOCATION, default="", help="A .parquet, folder or s3:// prefix that `goemotions score` wrote.")
@click.option("--text-column", default="", help="With --scored: the column with the texts; default: the one that was scored.")
@click.option(
    "--window",
    default="",
    help=f"Such as 6h: the time until now (default: {defaults.MONITORING_WINDOW}); with --server the time to wait.",
)
@click.option("--version-number", default="", help="The version as the server calls it. Default: that of the bundle.")
@click.option(
    "--false-alarms",
    type=Number(min=0, min_open=True),
    default=defaults.FALSE_ALARMS_PER_MONTH,
    show_default=True,
    help="False alarms that are accepted per month, if windows follow each other.",
)
@click.option(
    "--output", type=LOCATION, default="", help="Folder or s3:// prefix for drift.json and drift.html; empty for none."
)
@click.option("--fail", is_flag=True, help=f"Exit with code {DRIFTED} if there is drift.")
def monitor(
    bundle: str, model_name: str, version_number: str, false_alarms: float, output: str, fail: bool, **where: Any
) -> None:
    """Compare what a model scored with its validation: predictions, scores, and the texts themselves.

    Give one of --server, --prometheus and --scored.
    """
    from goemotions.monitoring.drift import monitor as monitoring
    from goemotions.registry import bundle as bundles
    from goemotions.registry.references import as_folder
    from goemotions.report import drift

    if (where["scored"] and (where["server"] or where["service"])) or not (
        where["scored"] or where["server"] or where["prometheus"]
    ):
        raise BadArgument("give one of --server, --prometheus and --scored: what is to be compared with the bundle")
    with as_folder(bundle, model_name) as (folder, number):
        loaded = bundles.load(folder, is_verified=True)
        version = version_number or number
        if where["scored"]:
            report = monitoring.of_scored(
                loaded, where["scored"], where["text_column"], model=model_name, version=version, false_alarms=false_alarms
            )
        else:
            window = _window(output=output, **where)
            report = monitoring.of_window(loaded, window, model=model_name, version=version, false_alarms=false_alarms)
    for line in drift.lines(report):
        click.echo(line)
    # What was compared before stays.
    if output and report.rows:
        monitoring.write(report, output)
        click.echo(f"{output}: {monitoring.PAGE}, drift.json")
    if fail and report.drifted:
        sys.exit(DRIFTED)


def _window(server: str, since: Path | None, prometheus: str, service: str, window: str, output: str, **_: Any) -> Window:
    """The window of a server or of Prometheus; the newest scrape of a server is stored in the output, for the next window."""
    from goemotions.monitoring.drift import prometheus_series, server_scrapes
    from goemotions.monitoring.drift.window import seconds_of
    from goemotions.storage import store

    if not server:
        return prometheus_series.window(prometheus, window or defaults.MONITORING_WINDOW, service)
    before = since.read_text(encoding="utf-8", errors="replace") if since else ""
    if window and not since:
        before = server_scrapes.scrape(server)
        time.sleep(seconds_of(window))
    now = server_scrapes.scrape(server)
    if output:
        with store.writing(output, SCRAPE) as path:
            path.write_text(now, encoding="utf-8")
    return server_scrapes.window(server, before, now)
