"""Options of ``goemotions pipeline`` that several commands share; those of all of goemotions are in ``goemotions.cli.options``."""

from __future__ import annotations

from collections.abc import Iterable

import click

from goemotions import defaults
from goemotions.cli.options import IMAGE_PREFIX, LOCATION, SERVER, SOURCE, WEIGHTS, Decorator, pair_option, together
from goemotions.deployment import node_pools
from goemotions.errors import BadArgument

SET = pair_option("--set", "others", help="Any parameter of the pipeline; lists and dictionaries as JSON. Repeatable.")


def _checked(context: click.Context, parameter: click.Parameter, cron: str) -> str:
    fields = len(cron.split())
    if cron != "off" and fields != 6:
        raise BadArgument(f"{cron!r} has {fields} fields: Kubeflow takes six, seconds first ('0 0 3 * * 0')")
    return cron


def data_and_models(source: str, profiles: Iterable[str]) -> Decorator:
    """The options of the data and of the profiles, with these defaults."""
    return together(
        click.option(
            "--data",
            type=SOURCE,
            default=source,
            show_default=True,
            help="sample, hub:<dataset>[:<config>][@<revision>], s3://bucket/prefix/, or a folder or file (on this machine only).",
        ),
        click.option("--models", default=",".join(profiles), show_default=True, help="Profiles, separated by commas."),
        click.option(
            "--teachers",
            default="",
            help="Networks that teach the models: profiles and seeds, as mpnet:2+minilm@7, or locations of trained models.",
        ),
    )


ON_THIS_MACHINE = data_and_models(defaults.SOURCE, defaults.PROFILES)
ON_A_CLUSTER = data_and_models(defaults.CLUSTER_SOURCE, defaults.CLUSTER_PROFILES)
EPOCHS = click.option(
    "--epochs",
    type=click.IntRange(min=0),
    default=defaults.EPOCHS,
    show_default=True,
    help="Epochs of every model; 0: as each profile has it.",
)
TRAINING = together(WEIGHTS, EPOCHS, SET)
TRAFFIC = together(
    click.option("--server", type=SERVER, default="", help="A predictor server, such as http://127.0.0.1:8080."),
    click.option("--prometheus", type=SERVER, default="", help="A Prometheus that has the metrics of the predictors."),
    click.option("--scored", type=LOCATION, default="", help="Parquet files that `goemotions score` wrote."),
)
AUTO_PROMOTE = click.option(
    "--auto-promote/--no-auto-promote", default=False, help="Move the champion aliases if the gate passes."
)
CRON = click.option(
    "--cron",
    required=True,
    callback=_checked,
    help="Six fields, seconds first, such as '0 0 3 * * 0' for Sundays at three; off: no schedule.",
)
RESOURCES = click.option("--resources", default="", help="Changed resources, such as 'train.gpus=4 train.memory=64Gi'.")
REGISTRY = click.option("--registry", type=IMAGE_PREFIX, default="", help="Prefix of the image, such as registry.example/team.")
PLACEMENT = together(
    click.option("--preset", default="", help=f"Node pool with GPUs: {', '.join(node_pools.PRESETS)}."),
    click.option("--queue", default="", help="Kueue's LocalQueue for the pods that request GPUs."),
    click.option("--priority", default="", help="Kueue's WorkloadPriorityClass of these pods."),
)
CLUSTER = together(
    RESOURCES,
    REGISTRY,
    click.option("--experiment", default=defaults.EXPERIMENT, show_default=True, help="Experiment of the run in Kubeflow."),
    click.option("--force", is_flag=True, help="Even if the checkout has uncommitted changes."),
    click.option("--dry-run", is_flag=True, help="Show what would be sent, and send nothing."),
    click.option("--endpoint", type=SERVER, envvar="KF_PIPELINES_ENDPOINT", default="", help="Address of Kubeflow Pipelines."),
    click.option(
        "--namespace", envvar="KF_PIPELINES_NAMESPACE", default="", help="Namespace of the profile, on a multi-user Kubeflow."
    ),
    click.option("--token", envvar="KF_PIPELINES_TOKEN", default="", help="Bearer token; use the variable.", hidden=True),
    click.option(
        "--cookies", envvar="KF_PIPELINES_COOKIES", default="", help="Session cookies; use the variable.", hidden=True
    ),
    click.option("--ca-cert", envvar="KF_PIPELINES_SSL_CA_CERT", default="", help="Certificate authority of the endpoint."),
    click.option("--kube-context", envvar="KUBE_CONTEXT", default="", help="Connect through the API server of this context."),
)
# What the server of a bad version may have.
FAULTS = {
    "slow": "200 ms slower",
    "failing": "2% of the requests fail",
    "thresholds": "thresholds shuffled among the labels",
    "labels": "labels permuted",
}
FAULT = click.option(
    "--fault",
    type=click.Choice(list(FAULTS)),
    help=f"Rehearse a rollback by a fault of the version's server: {'; '.join(FAULTS.values())}.",
)
WAIT = click.option(
    "--wait/--no-wait", default=False, help="Follow the run until it ends; the exit code is 0 only if it succeeded."
)
