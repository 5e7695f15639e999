"""Commands that predict with a bundle: texts, files, and a server."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from goemotions import addresses, defaults
from goemotions.cli.options import BUNDLE, ENGINE, LOCATION, MODEL_NAME, options_of, record_of, setting
from goemotions.errors import DataError
from goemotions.serving.limits import Limits, LogSettings, ShadowSettings

COUNT = click.IntRange(min=1)
# KServe's own servers, and KServe where it reads the name, spell it with an underscore.
SERVED_NAME = setting(
    "--model-name",
    "--model_name",
    default=defaults.MODEL_NAME,
    help="Name of the registered model, and in the paths of the server.",
)


@click.command()
@click.argument("text", nargs=-1, required=True)
@click.option("--explain", "is_explained", is_flag=True, help="Add the contribution of each word to each chosen label.")
@click.option(
    "--removals",
    type=COUNT,
    default=defaults.REMOVALS,
    show_default=True,
    help="For --explain: most removals of words per text. With more, fewer neighbouring words share one, and it takes longer.",
)
@BUNDLE
@MODEL_NAME
def predict(text: tuple[str, ...], is_explained: bool, removals: int, bundle: str, model_name: str) -> None:
    """Label texts with a registered model; prints one JSON line per text. For files: `goemotions score`."""
    from goemotions.prediction import explanation
    from goemotions.prediction.predictor import Options, Predictor
    from goemotions.registry.references import as_folder

    with as_folder(bundle, model_name) as (folder, _):
        predictor = Predictor.load(folder, is_verified=True)
        if is_explained:
            predictions, explanations = explanation.explain(predictor, text, Options(), removals)
            lines: list[Any] = [{**one, **other} for one, other in zip(predictions, explanations, strict=True)]
        else:
            lines = list(predictor.predict(text))
        for line in lines:
            click.echo(json.dumps(line, ensure_ascii=False))


@click.command()
@click.option(
    "--input",
    "source",
    type=LOCATION,
    required=True,
    help="A .csv, .tsv, .jsonl (also .gz, .zst, .zip) or .parquet file, or a folder or s3:// prefix of them.",
)
@click.option(
    "--output",
    type=LOCATION,
    required=True,
    help="File to write, in the format of its extension, or a folder or s3:// prefix for shards.",
)
@BUNDLE
@MODEL_NAME
@setting(
    "--text-column",
    "--column",
    "column",
    default=defaults.TEXT_COLUMN,
    help="Column with the texts; a number for files that do not name their columns.",
)
@click.option("--all-scores/--labels-only", default=True, show_default=True, help="Add the probability of each label.")
@click.option(
    "--for-spreadsheet",
    is_flag=True,
    help="In a .csv or .tsv, an apostrophe before each text that a spreadsheet would take for a formula.",
)
@click.option("--shard-rows", type=COUNT, default=defaults.SHARD_ROWS, show_default=True, help="Most rows per shard.")
@click.option("--workers", type=COUNT, default=1, show_default=True, help="Processes for the shards of a folder.")
@click.option("--threads", type=COUNT, help="Threads per process; default: the cores, divided among the processes.")
def score(
    source: str,
    output: str,
    bundle: str,
    model_name: str,
    shard_rows: int,
    workers: int,
    threads: int | None,
    for_spreadsheet: bool,
    **options: Any,
) -> None:
    """Label the rows of a file, or of a folder of files shard by shard.

    A folder that was interrupted is continued by running the same command again.
    """
    from goemotions.data import layout
    from goemotions.prediction import plans, shards

    if layout.names_a_file(output):
        options["for_spreadsheet"] = for_spreadsheet
        counts = _score_file(source, output, bundle, model_name, threads, **options)
        spent, rate = "s", "per second"
    else:
        planned = plans.plan(source, output, bundle, model_name=model_name, shard_rows=shard_rows, **options)
        shards.score(output, digest=planned.digest, workers=workers, threads=threads)
        counts = shards.finish(output, planned.digest)
        # The seconds of shards are added up over workers and over runs.
        spent, rate = "s of work", "per second and worker"
    click.echo(
        f"{output}: {counts.rows:,} rows in {counts.seconds:,.1f} {spent}, {counts.rows / counts.seconds:,.0f} {rate}; "
        f"{counts.blank:,} without text, {counts.truncated:,} truncated"
    )


def _score_file(source: str, output: str, bundle: str, model_name: str, threads: int | None, **options: Any) -> Any:
    from goemotions.prediction import files
    from goemotions.prediction.predictor import Predictor
    from goemotions.registry.references import as_folder

    for location in (source, output):
        if addresses.is_s3(location):
            raise DataError(f"{location}: a single file is labelled on this machine only: give an s3:// prefix as the output")
    files.require_ending(Path(output))
    with as_folder(bundle, model_name) as (folder, _):
        predictor = Predictor.load(folder, threads=threads, is_verified=True)
        return files.score_file(predictor, Path(source), Path(output), **options)


@click.command()
@BUNDLE
@SERVED_NAME
@click.option("--engine", type=ENGINE, help="Default: that of the bundle.")
@click.option(
    "--threads", type=COUNT, help="Threads of the engine per process; default: the cores, divided among the processes."
)
@click.option("--workers", type=COUNT, default=1, show_default=True, help="Processes.")
@click.option("--host", default=defaults.HOST, show_default=True, help="Address to listen on; 0.0.0.0 in a container.")
@click.option("--port", default=defaults.PORT, show_default=True, help="Port of HTTP.")
@click.option("--grpc-port", default=0, show_default=True, help="Port of gRPC (Open Inference); 0: no gRPC.")
@click.option(
    "--version-number",
    default="",
    help="Number of the version in the registry, if the bundle is a location; `make deploy` sets it. Default: the id of its run.",
)
@click.option("--page/--no-page", default=True, show_default=True, help="Serve a page to try the model at /.")
@click.option(
    "--bundle-source",
    default="",
    help="Where a folder was downloaded from, as `make deploy` sets it: another bundle there is refused. Default: not checked.",
)
@options_of(Limits)
@options_of(ShadowSettings)
@options_of(LogSettings)
def serve(bundle: str, bundle_source: str, model_name: str, engine: str | None, version_number: str, **options: Any) -> None:
    """Serve a bundle by the protocols of KServe.

    Each option is an environment variable too, such as GOEMOTIONS_SERVE_PORT.
    """
    from goemotions.registry.references import as_folder
    from goemotions.serving import server

    limits, shadow, log = record_of(Limits, options), record_of(ShadowSettings, options), record_of(LogSettings, options)
    with as_folder(bundle, model_name, bundle_source, version_number) as (folder, number):
        settings = server.Settings(folder, number, model_name, engine or "", limits=limits, shadow=shadow, log=log, **options)
        server.serve(settings)


COMMANDS = (predict, score, serve)
