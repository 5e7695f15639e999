"""The pipelines on a cluster: compile, submit a run and follow it, or have training run on a schedule."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import kfp_server_api
from kfp import compiler
from kfp.dsl.base_component import BaseComponent

from goemotions.errors import WorkflowError
from pipelines import parameters, placement
from pipelines.batch import pipeline as build_scoring
from pipelines.batch import scoring
from pipelines.client import Client, Connection, ServerAway, ServerError, connect, named
from pipelines.training import pipeline as build
from pipelines.training import training

REPOSITORY = "goemotions-trainer"
NAME = "goemotions-training"
EXPERIMENT = "goemotions"
PACKAGE, SCORING_PACKAGE = Path(".local/training.yaml"), Path(".local/scoring.yaml")
# As images/image.sh has it: a commit of documents or manifests builds no new image.
CONTENT = ("images", "pyproject.toml", "constraints.txt", "goemotions", "components", "pipelines")
# What `make promote` rewrites does not change what runs.
NOT_COUNTED = ("manifests/isvc.yaml", "manifests/base/isvc.yaml")
# Nodes of the workflow that are no steps: what prepares a step's pod, the pod of each attempt, and what holds others.
NOT_STEPS = re.compile(r"^(root|executor(\(\d+\))?|iteration-.*)$|driver(\(\d+\))?$")
FINAL = ("SUCCEEDED", "FAILED", "CANCELED", "SKIPPED")
POLL_SECONDS = 5.0
# An API server that restarts is away for less.
AWAY_SECONDS = 300.0


class SubmitError(WorkflowError):
    """What would be submitted is not in order, or a run that was waited for did not succeed."""


@dataclass(frozen=True)
class Package:
    """A compiled pipeline: its file, its name and description, the name of its version, and the arguments of its runs."""

    path: Path
    name: str
    description: str
    version: str
    image: str
    arguments: dict[str, Any]


def commit() -> str:
    """The commit that last changed what goes into the images, which are named by it; ``unknown`` outside a git checkout."""
    return _git("log", "-1", "--format=%H", "--", *CONTENT) or _git("rev-parse", "HEAD") or "unknown"


def compile_pipeline(path: Path, image: str, commit: str, pipeline: BaseComponent = training) -> None:
    """Writes the pipeline as YAML; the image and the commit become the defaults of their parameters."""
    path.parent.mkdir(parents=True, exist_ok=True)
    compiler.Compiler().compile(pipeline, str(path), pipeline_parameters={"image": image, "commit": commit})
    # KFP's comment lists the keys of a default in an order that changes from one process to the next; the definition itself is sorted.
    path.write_text(
        re.sub(r"^# Inputs:\n(#    .*\n)+", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE), encoding="utf-8"
    )


def pack(path: Path, registry: str, pipeline: BaseComponent, arguments: dict[str, Any], *, force: bool) -> Package:
    """Compiles a pipeline of what is checked out.

    The version is named by the commit and the bytes: the same are uploaded once, and others never hide behind an old name.

    Raises:
        SubmitError: the checkout has changes of its own, or there is none, and it is not forced.
    """
    revision = commit()
    if not force:
        _refuse_dirty(revision)
    image = "/".join(filter(None, [registry.rstrip("/"), f"{REPOSITORY}:{revision}"]))
    compile_pipeline(path, image, revision, pipeline)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return Package(path, pipeline.name, pipeline.description or "", f"{revision[:12]}-{digest[:8]}", image, arguments)


def upload(client: Client, package: Package, namespace: str) -> tuple[str, str]:
    """The ids of the pipeline and of the package's version of it, both made where they are not there yet."""
    pipelines = client._pipelines_api
    found = pipelines.pipeline_service_list_pipelines(namespace=namespace, filter=_is_named(package.name)).pipelines
    if found:
        pipeline_id = found[0].pipeline_id
    else:
        made = kfp_server_api.V2beta1Pipeline(
            name=package.name, display_name=package.name, namespace=namespace, description=package.description
        )
        pipeline_id = pipelines.pipeline_service_create_pipeline(made).pipeline_id
    versions = pipelines.pipeline_service_list_pipeline_versions(
        pipeline_id, filter=_is_named(package.version)
    ).pipeline_versions
    if versions:
        return pipeline_id, versions[0].pipeline_version_id
    answer = client._upload_api.upload_pipeline_version(str(package.path), name=package.version, pipelineid=pipeline_id)
    return pipeline_id, answer.pipeline_version_id


def submit(client: Client, package: Package, experiment: str, namespace: str) -> str:
    """Starts a run; answers its id."""
    with contextlib.redirect_stdout(io.StringIO()):
        pipeline_id, version_id = upload(client, package, namespace)
        experiment_id = client.create_experiment(experiment, namespace=namespace or None).experiment_id
        run = client.run_pipeline(
            experiment_id,
            f"{package.name} {package.version}",
            params=package.arguments,
            pipeline_id=pipeline_id,
            version_id=version_id,
        )
    return str(run.run_id)


def schedule(client: Client, package: Package | None, experiment: str, namespace: str, cron: str) -> str:
    """Has the pipeline run by the clock, in place of an earlier schedule; without a package, ends that. Answers what was done."""
    with contextlib.redirect_stdout(io.StringIO()):
        experiment_id = client.create_experiment(experiment, namespace=namespace or None).experiment_id
    api = client._recurring_run_api
    listed = api.recurring_run_service_list_recurring_runs(experiment_id=experiment_id, page_size=200).recurring_runs or []
    former = [one for one in listed if one.display_name == NAME]
    if package:
        pipeline_id, version_id = upload(client, package, namespace)
        wanted = (cron, version_id, package.arguments)
        if len(former) == 1 and _scheduled(former[0]) == wanted:
            return "the schedule is there already: nothing changed"
        # The new one first: where it is refused, the old one goes on.
        client.create_recurring_run(
            experiment_id,
            NAME,
            cron_expression=cron,
            max_concurrency=1,
            no_catchup=True,
            params=package.arguments,
            pipeline_id=pipeline_id,
            version_id=version_id,
        )
    for one in former:
        api.recurring_run_service_delete_recurring_run(one.recurring_run_id)
    if not package:
        return f"ended {len(former)} schedule{'' if len(former) == 1 else 's'}"
    return f"{'replaced the schedule' if former else 'scheduled'}: {cron}"


def follow(client: Client, connection: Connection, run_id: str, show: Callable[[str], None] = click.echo) -> str:
    """Waits for a run's end and shows each change of a step's state; answers the state of the run.

    Raises:
        ServerError: the server refuses, or stays away for longer than a restart takes.
    """
    states: dict[str, str] = {}
    answered = time.monotonic()
    while True:
        try:
            with named(connection):
                run = client.get_run(run_id)
            answered = time.monotonic()
        except ServerAway:
            if time.monotonic() - answered > AWAY_SECONDS:
                raise
            time.sleep(POLL_SECONDS)
            continue
        for task in (run.run_details and run.run_details.task_details) or []:
            if task.state and not NOT_STEPS.search(task.display_name or "") and states.get(task.task_id) != task.state:
                states[task.task_id] = task.state
                show(f"  {time.strftime('%H:%M:%S')}  {task.state:<10} {task.display_name}")
        if run.state in FINAL:
            if run.error and run.error.message:
                show(f"  {run.error.message}")
            return str(run.state)
        time.sleep(POLL_SECONDS)


def _scheduled(recurring: Any) -> tuple[str, str, dict[str, Any]]:
    return (
        recurring.trigger.cron_schedule.cron,
        recurring.pipeline_version_reference.pipeline_version_id,
        (recurring.runtime_config and recurring.runtime_config.parameters) or {},
    )


def _is_named(name: str) -> str:
    return json.dumps({"predicates": [{"operation": "EQUALS", "key": "display_name", "stringValue": name}]})


def _refuse_dirty(revision: str) -> None:
    if revision == "unknown":
        raise SubmitError("this is not a git checkout, so no commit names the image: clone the repository, or use FORCE=1")
    lines = (_git("status", "--porcelain") or "").splitlines()
    changed = [line[3:] for line in lines if line[3:] not in NOT_COUNTED]
    if changed:
        raise SubmitError(
            f"the checkout has changes that no commit names ({', '.join(changed[:3])}): commit them, or use FORCE=1"
        )


def _git(*arguments: str) -> str:
    found = subprocess.run(["git", *arguments], capture_output=True, text=True, check=False)
    return found.stdout.rstrip()


def _arguments(options: dict[str, Any]) -> dict[str, Any]:
    """The pipeline's parameters from the command line's options: those that were given."""
    found: dict[str, Any] = {"data": options["data"], "models": options["models"].split(",")}
    if options["epochs"]:
        found["epochs"] = options["epochs"]
    if options["weights"]:
        found["weights"] = dict(map(parameters.pair, options["weights"]))
    if options["preset"]:
        preset = placement.PRESETS[options["preset"]]
        found |= {"node_selector": preset.node_selector, "tolerations": preset.tolerations}
    found |= parameters.parse(options["others"])
    for place in (found["data"], *found.get("weights", {}).values()):
        if place != "sample" and not place.startswith(("hub:", "s3://")):
            raise parameters.BadArgument(
                f"a pod cannot read {place}: put it into S3 (s3://bucket/prefix/) or name a hub:<dataset>"
            )
    return found


CONNECTION = (
    click.option("--endpoint", envvar="KF_PIPELINES_ENDPOINT", default="", help="Address of Kubeflow Pipelines."),
    click.option("--namespace", envvar="KF_PIPELINES_NAMESPACE", default="", help="Of the profile, on a multi-user Kubeflow."),
    click.option(
        "--token", envvar="KF_PIPELINES_TOKEN", default="", help="Bearer token; give it by the variable.", hidden=True
    ),
    click.option("--cookies", envvar="KF_PIPELINES_COOKIES", default="", help="Of a session; by the variable.", hidden=True),
    click.option("--ca-cert", envvar="KF_PIPELINES_SSL_CA_CERT", default="", help="Certificate authority of the endpoint."),
    click.option("--kube-context", envvar="KUBE_CONTEXT", default="", help="Reach it through this context's API server."),
)
PIPELINE = (
    click.option("--data", default="sample", show_default=True, help="sample, hub:..., or s3://bucket/prefix/."),
    click.option("--models", default="minilm,minilm-3l", show_default=True, help="Profiles, joined by commas."),
    click.option("--epochs", default=0, help="0: each profile's own."),
    click.option("--weights", multiple=True, help="profile=s3://bucket/prefix/; repeatable."),
    click.option("--set", "others", multiple=True, help="Any parameter of the pipeline, as name=value; repeatable."),
    click.option("--preset", type=click.Choice([*placement.PRESETS]), help="Labels of the A100 node pool."),
)
SCORING = (
    click.option("--input", required=True, help="S3 prefix with .parquet files."),
    click.option("--output", required=True, help="S3 prefix for the scored shards."),
    click.option("--set", "others", multiple=True, help="Any other parameter of the pipeline, as name=value; repeatable."),
)
PACKING = (
    click.option("--resources", default="", help="Such as 'train.gpus=4 train.memory=64Gi'."),
    click.option("--registry", default="", help="Prefix of the image, such as registry.example/team."),
    click.option("--experiment", default=EXPERIMENT, show_default=True),
    click.option("--force", is_flag=True, help="Even if the checkout has changes that no commit names."),
    click.option("--dry-run", is_flag=True, help="Show what would be sent, and send nothing."),
)


def _with(*groups: tuple[Callable[..., Any], ...]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    def add(command: Callable[..., Any]) -> Callable[..., Any]:
        for option in reversed([option for group in groups for option in group]):
            command = option(command)
        return command

    return add


@click.group()
def main() -> None:
    """The pipelines on a cluster."""


@main.command("compile")
@click.option("--output", type=click.Path(path_type=Path), default=PACKAGE, show_default=True)
@click.option("--resources", default="", help="Such as 'train.gpus=4 train.memory=64Gi'.")
@click.option("--registry", default="", help="Prefix of the image, such as registry.example/team.")
def compile_command(output: Path, resources: str, registry: str) -> None:
    """Write one file to upload in the Kubeflow UI."""
    package = pack(output, registry, build(placement.resources(resources.split())), {}, force=True)
    click.echo(f"{output}: upload it in the Kubeflow UI (Pipelines, Upload pipeline); its image is {package.image}")


@main.command("submit")
@_with(PIPELINE, PACKING, CONNECTION)
@click.option("--wait/--no-wait", default=False, help="Follow the run to its end; the exit code is 0 only if it succeeded.")
def submit_command(wait: bool, **options: Any) -> None:
    """Upload the pipeline as a version named by commit, and start a run of it."""
    connection, package = _prepared(options)
    if not options["dry_run"]:
        _start(connection, package, options["experiment"], wait)


@main.command("score")
@_with(SCORING, PACKING, CONNECTION)
@click.option("--wait/--no-wait", default=False, help="Follow the run to its end; the exit code is 0 only if it succeeded.")
def score_command(wait: bool, input: str, output: str, **options: Any) -> None:
    """Have a registered model label Parquet files, S3 to S3, in as many pods as asked for."""
    for place in (input, output):
        if not place.startswith("s3://"):
            raise parameters.BadArgument(
                f"a pod cannot reach {place}: give s3://bucket/prefix/ (`goemotions score` takes folders)"
            )
    connection = _connection(options)
    resources = placement.resources(options["resources"].split(), placement.SCORING)
    arguments = {"input": input, "output": output, **parameters.parse(options["others"], scoring)}
    package = pack(SCORING_PACKAGE, options["registry"], build_scoring(resources), arguments, force=options["force"])
    if options["dry_run"]:
        _show(connection, package, options["experiment"], _changed(resources, placement.SCORING))
    else:
        _start(connection, package, options["experiment"], wait)


def _start(connection: Connection, package: Package, experiment: str, wait: bool) -> None:
    client = connect(connection)
    with named(connection):
        run_id = submit(client, package, experiment, connection.namespace)
    click.echo(f"run {run_id} of version {package.version}: {client._get_url_prefix()}/#/runs/details/{run_id}")
    if not wait:
        return
    try:
        state = follow(client, connection, run_id)
    except KeyboardInterrupt:
        raise SubmitError(f"not waited for any longer: run {run_id} goes on") from None
    except ServerError as error:
        raise SubmitError(f"not waited for any longer, run {run_id} goes on: {error}") from error
    if state != "SUCCEEDED":
        raise SubmitError(f"run {run_id} ended as {state}: its steps and logs are behind the link above")
    click.echo(f"run {run_id} SUCCEEDED")


@main.command("schedule")
@_with(PIPELINE, PACKING, CONNECTION)
@click.option("--cron", required=True, help="Six fields, seconds first, such as '0 0 3 * * 0' for Sundays at three; off: none.")
def schedule_command(cron: str, **options: Any) -> None:
    """Have the pipeline run by the clock, in place of an earlier schedule."""
    if cron != "off" and len(cron.split()) != 6:
        raise parameters.BadArgument(
            f"{cron!r} has {len(cron.split())} fields: Kubeflow takes six, seconds first ('0 0 3 * * 0')"
        )
    package = None
    if cron == "off":
        connection = _connection(options)
    else:
        connection, package = _prepared(options)
    if options["dry_run"]:
        return
    client = connect(connection)
    with named(connection):
        click.echo(schedule(client, package, options["experiment"], connection.namespace, cron))


def _connection(options: dict[str, Any]) -> Connection:
    names = ("endpoint", "namespace", "token", "cookies", "kube_context", "ca_cert")
    return Connection(**{name: options[name] for name in names})


def _prepared(options: dict[str, Any]) -> tuple[Connection, Package]:
    """The connection and the package that a command's options ask for; shown, where nothing is to be sent."""
    connection = _connection(options)
    resources = placement.resources(options["resources"].split())
    package = pack(PACKAGE, options["registry"], build(resources), _arguments(options), force=options["force"])
    if options["dry_run"]:
        _show(connection, package, options["experiment"], _changed(resources, placement.DEFAULTS))
    return connection, package


def _changed(resources: dict[str, str], defaults: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in resources.items() if value != defaults[name]}


def _show(connection: Connection, package: Package, experiment: str, resources: dict[str, str]) -> None:
    shown = {
        "endpoint": connection.endpoint or connection.kube_context or None,
        "namespace": connection.namespace or None,
        "pipeline": package.name,
        "version": package.version,
        "experiment": experiment,
        "image": package.image,
        "arguments": package.arguments,
        "resources": resources,
    }
    click.echo(json.dumps(shown, indent=1))
    click.echo(f"{package.path}: what would be uploaded; nothing was sent")


if __name__ == "__main__":
    try:
        main()
    except WorkflowError as error:
        sys.exit(f"submit: {error}")
