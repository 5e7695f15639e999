"""``goemotions pipeline`` and ``goemotions stack``: the commands that this package adds to the command line.

Importing kfp takes seconds, so each command imports what it needs.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from goemotions import defaults
from goemotions.cli import options as shared
from goemotions.deployment import node_pools
from goemotions.errors import WorkflowError
from goemotions.monitoring.rollout.plan import Plan
from pipelines import options

if TYPE_CHECKING:
    from pipelines.client import Connection
    from pipelines.package import Package

# What to do after a run that succeeded, by pipeline.
NEXT = {
    "goemotions-training": "`make status` lists the registered versions; `make promote VERSION=<number>` makes one the champion"
}


@click.group()
def pipeline() -> None:
    """Run the pipelines, on this machine or on a cluster."""


@pipeline.command()
@options.ON_THIS_MACHINE
@options.TRAINING
@shared.setting("--seed", default=defaults.SEED, help="Seed of the heads, the order of the rows and the dropout.")
@shared.MODEL_NAME
@options.AUTO_PROMOTE
def run(**given: Any) -> None:
    """Run the training pipeline on this machine.

    It registers and stores where MLFLOW_TRACKING_URI and the AWS variables say; if they are not set, on this machine.
    """
    from pipelines import local

    arguments = _training_arguments(given, is_local=True)
    folder = local.run(**given | arguments)
    click.echo(folder.summary())
    click.echo(f"MLflow: {os.environ['MLFLOW_TRACKING_URI']}")


@pipeline.command()
@options.ON_THIS_MACHINE
@options.TRAINING
@shared.MODEL_NAME
@options.AUTO_PROMOTE
@click.option("--reason", "manual_reason", default="", help="A reason to train, in words; the same words train once.")
@options.TRAFFIC
def monitor(server: str, prometheus: str, scored: str, **given: Any) -> None:
    """Check the traffic for drift if it is given, and train if there is a reason to: new data, drift, an old champion, or --reason.

    Once on this machine what the schedules do in a cluster (`schedule-monitoring`, `schedule`).
    """
    from pipelines import local, training
    from pipelines.parameters import monitoring_arguments

    if server or prometheus or scored:
        others = given["others"]
        of_monitoring = {name: others.pop(name) for name in ("service", "window", "version") if name in others}
        of_both = {name: others[name] for name in ("store",) if name in others}
        watched = monitoring_arguments(server, prometheus, scored, of_both | of_monitoring, is_local=True)
        local.monitor(model_name=given["model_name"], **watched)
    arguments = _training_arguments(given, is_local=True, pipeline=training.for_run(has_teachers=False, on_reason=True))
    folder = local.run(on_reason=True, **given | arguments)
    click.echo(folder.summary() if folder.has_trained else "nothing was trained: the line `retraining:` above says why")
    click.echo(f"MLflow: {os.environ['MLFLOW_TRACKING_URI']}")


@pipeline.command()
@options.ON_THIS_MACHINE
@options.EPOCHS
@shared.MODEL_NAME
def demo(data: str, models: str, teachers: str, epochs: int, model_name: str) -> None:
    """Train, register and serve on this machine, and label five comments."""
    from pipelines import demo as demonstration
    from pipelines.parameters import training_arguments

    try:
        arguments = training_arguments(data, models, {}, epochs, {}, teachers=teachers, is_local=True)
        click.echo(demonstration.run(model_name, arguments))
    except KeyboardInterrupt:
        raise WorkflowError(
            "interrupted: the same command resumes it; the stack keeps running (`make stack-down` stops it)"
        ) from None


@pipeline.command()
@click.option("--output", type=shared.FOLDER, default=Path("docs"), show_default=True, help="Folder to write to.")
@shared.MODEL_NAME
def report(output: Path, model_name: str) -> None:
    """Write the report of the newest local run again, and copy what may be published to OUTPUT.

    The HTML pages are not copied: they contain texts of the data.
    """
    from pipelines import stack
    from pipelines.run_folder import PUBLISHED, RunFolder

    page = RunFolder.newest(stack.FOLDER).publish(stack.FOLDER / "report", output, model_name)
    click.echo(f"{', '.join(str(output / name) for name in PUBLISHED.values())}; the page is {page}")


@pipeline.command("compile")
@click.option("--output", type=shared.FILE, help="File to write; default: .local/training.yaml.")
@options.RESOURCES
@options.REGISTRY
def compile_command(output: Path | None, resources: str, registry: str) -> None:
    """Write the training pipeline as one file to upload in the Kubeflow UI."""
    from pipelines.package import pack_training

    packed = pack_training(registry, resources, {}, force=True, path=output)
    click.echo(f"{packed.path}: upload it in the Kubeflow UI (Pipelines, Upload pipeline); its image is {packed.image}")


@pipeline.command()
@options.ON_A_CLUSTER
@options.TRAINING
@options.PLACEMENT
@options.CLUSTER
@options.WAIT
def submit(wait: bool, **given: Any) -> None:
    """Upload the training pipeline as a version named after the commit, and start a run of it."""
    package = _training_package(given)
    _send(_connection(given), package, given, wait, package.arguments.get("models", defaults.CLUSTER_PROFILES))


@pipeline.command()
@click.option(
    "--input",
    type=shared.LOCATION,
    required=True,
    help="S3 prefix with files of rows, such as .csv or .parquet, or one such file.",
)
@click.option("--output", type=shared.LOCATION, required=True, help="S3 prefix for the scored shards.")
@options.SET
@options.CLUSTER
@options.WAIT
def score(wait: bool, input: str, output: str, others: dict[str, str], **given: Any) -> None:
    """Label files in S3 on the cluster, with a registered model, in several pods."""
    from pipelines.package import pack_scoring
    from pipelines.parameters import scoring_arguments

    package = pack_scoring(
        given["registry"], given["resources"], scoring_arguments(input, output, others), force=given["force"]
    )
    _send(_connection(given), package, given, wait)


@pipeline.command()
@options.ON_A_CLUSTER
@options.TRAINING
@options.PLACEMENT
@options.CLUSTER
@options.CRON
def schedule(cron: str, **given: Any) -> None:
    """Train on a schedule if there is a reason to: new data, drift, an old champion, or --set manual_reason.

    It replaces an earlier schedule.
    """
    from pipelines.submit import SCHEDULE

    _schedule(given, cron, SCHEDULE, lambda: _training_package(given, on_reason=True))


@pipeline.command("schedule-monitoring")
@options.TRAFFIC
@options.SET
@options.CLUSTER
@options.CRON
def schedule_monitoring(cron: str, server: str, prometheus: str, scored: str, others: dict[str, str], **given: Any) -> None:
    """Check the traffic for drift on a schedule, which replaces an earlier one. The schedule of the training reads the report."""
    from pipelines.package import pack_monitoring
    from pipelines.parameters import monitoring_arguments
    from pipelines.submit import MONITORING_SCHEDULE

    def package() -> Package:
        arguments = monitoring_arguments(server, prometheus, scored, others)
        return pack_monitoring(given["registry"], given["resources"], arguments, force=given["force"])

    _schedule(given, cron, MONITORING_SCHEDULE, package)


def _schedule(given: dict[str, Any], cron: str, name: str, pack: Callable[[], Package]) -> None:
    from pipelines.submit import remove_schedules, set_schedule

    connection = _connection(given)
    if cron == "off" and given["dry_run"]:
        click.echo(f"the schedule {name} would be removed; nothing was sent")
    elif cron == "off":
        click.echo(remove_schedules(connection, given["experiment"], name))
    elif given["dry_run"]:
        _show(connection, pack(), given["experiment"])
    else:
        click.echo(set_schedule(connection, pack(), given["experiment"], cron, name))


def _connection(given: dict[str, Any]) -> Connection:
    from pipelines.client import Connection

    return Connection(
        **{name: given[name] for name in ("endpoint", "namespace", "token", "cookies", "kube_context", "ca_cert")}
    )


def _training_arguments(given: dict[str, Any], **how: Any) -> dict[str, Any]:
    """The parameters of the training pipeline, from the options of the data, the profiles and ``TRAINING``, which are taken out."""
    from pipelines.parameters import training_arguments

    names = ("data", "models", "weights", "epochs", "others", "teachers")
    return training_arguments(**{name: given.pop(name) for name in names}, **how)


def _training_package(given: dict[str, Any], *, on_reason: bool = False) -> Package:
    from pipelines import training
    from pipelines.package import pack_training
    from pipelines.placement import queue_labels, require_gpu_nodes

    arguments = _training_arguments(given, pipeline=training.for_run(has_teachers=False, on_reason=on_reason))
    if given["preset"]:
        arguments = node_pools.get(given["preset"]).placement() | arguments
    require_gpu_nodes(given["resources"], arguments)
    labels = queue_labels(given["queue"], given["priority"])
    return pack_training(
        given["registry"], given["resources"], arguments, gpu_labels=labels, on_reason=on_reason, force=given["force"]
    )


def _send(connection: Connection, package: Package, given: dict[str, Any], wait: bool, models: Sequence[str] = ()) -> None:
    from pipelines.progress import wait_for
    from pipelines.retries import warnings
    from pipelines.submit import start

    if given["dry_run"]:
        _show(connection, package, given["experiment"])
        return
    for warning in warnings(connection):
        click.echo(f"note: {warning}", err=True)
    started = start(connection, package, given["experiment"])
    click.echo(f"run {started.run_id} of version {package.version}: {started.link}")
    if wait:
        wait_for(started, click.echo, models)
        click.echo(f"run {started.run_id} SUCCEEDED: its outputs, such as the report's page, are at {started.link}")
        click.echo(NEXT.get(package.name, ""), nl=package.name in NEXT)


def _show(connection: Connection, package: Package, experiment: str) -> None:
    shown = {
        "endpoint": connection.endpoint or connection.kube_context or None,
        "namespace": connection.namespace or None,
        "pipeline": package.name,
        "version": package.version,
        "experiment": experiment,
        "image": package.image,
        "arguments": package.arguments,
        "resources": package.changed_resources,
        "gpu_pods": package.gpu_pods,
    }
    click.echo(json.dumps(shown, indent=1))
    click.echo(f"{package.path}: what would be uploaded; nothing was sent")


@click.group("stack")
def stack_commands() -> None:
    """MLflow and S3 on this machine, and a rollout between two servers on it."""


@stack_commands.command()
def up() -> None:
    """Start MLflow and S3 if they are not running, and print their addresses."""
    from pipelines import stack

    environment = stack.up()
    click.echo(f"MLflow    {environment['MLFLOW_TRACKING_URI']}")
    click.echo(f"S3        {environment['AWS_ENDPOINT_URL']}, bucket {defaults.BUCKET}")
    click.echo(f"variables . {stack.FOLDER}/env")


@stack_commands.command()
@click.argument("reference", type=shared.REFERENCE, default="challenger-cpu")
@shared.MODEL_NAME
@click.option("--rate", type=shared.Number(min=0, min_open=True), default=40.0, show_default=True, help="Requests per second.")
@options.FAULT
@click.option("--restart", is_flag=True, help="Begin again, whatever was left of an unfinished rollout.")
@shared.LATENCY_BUDGET
@shared.QUALITY_TOLERANCE
@shared.options_of(Plan)
def rollout(reference: str, **given: Any) -> None:
    """Roll a version out between two servers on this machine, under a load, and show it.

    It is promoted if it is no worse than the champion. Interrupted, the same command goes on.
    REFERENCE is an alias or a version number.
    """
    from pipelines import rollout as local_rollout
    from pipelines import stack

    os.environ.update(stack.services())
    plan = shared.record_of(Plan, given)
    move = local_rollout.run(reference, plan, show=click.echo, fault=given.pop("fault") or "", **given)
    click.echo(f"{move.alias}: version {move.after}, before it {move.before or 'none'}")


@stack_commands.command()
def down() -> None:
    """Stop MLflow and S3."""
    from pipelines import stack

    click.echo(f"stopped: {', '.join(stack.down()) or 'nothing was running'}")
