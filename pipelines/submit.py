"""Runs and schedules on Kubeflow Pipelines: start a run, or run the training pipeline on a schedule."""

from __future__ import annotations

import contextlib
import io
import json
from dataclasses import dataclass
from typing import Any, NamedTuple

import kfp_server_api

from pipelines.client import Client, Connection, connect, translate_errors
from pipelines.package import Package

# Names of the schedules; that of the training is also that of older schedules, which train without a reason.
SCHEDULE, MONITORING_SCHEDULE = "goemotions-training", "goemotions-monitoring"


class PipelineVersion(NamedTuple):
    """Ids that Kubeflow Pipelines gave to a pipeline and a version of it."""

    pipeline_id: str
    version_id: str


@dataclass(frozen=True)
class Run:
    """A run on Kubeflow Pipelines."""

    client: Client
    connection: Connection
    run_id: str

    @property
    def link(self) -> str:
        return f"{self.client._get_url_prefix()}/#/runs/details/{self.run_id}"


def start(connection: Connection, package: Package, experiment: str) -> Run:
    """Uploads a package, unless this version is there already, and starts a run of it.

    Raises:
        ServerError: the server cannot be reached or refuses.
    """
    client = connect(connection)
    with translate_errors(connection), contextlib.redirect_stdout(io.StringIO()):
        version = upload(client, package, connection.namespace)
        run = client.run_pipeline(
            _experiment_id(client, experiment, connection),
            f"{package.name} {package.version}",
            params=package.arguments,
            pipeline_id=version.pipeline_id,
            version_id=version.version_id,
        )
    return Run(client, connection, str(run.run_id))


def upload(client: Client, package: Package, namespace: str) -> PipelineVersion:
    """Creates the pipeline and the package's version of it, unless they exist."""
    api = client._pipelines_api
    pipelines = api.pipeline_service_list_pipelines(namespace=namespace, filter=_by_name(package.name)).pipelines
    if not pipelines:
        pipeline = kfp_server_api.V2beta1Pipeline(
            name=package.name, display_name=package.name, namespace=namespace, description=package.description
        )
        pipelines = [api.pipeline_service_create_pipeline(pipeline)]
    pipeline_id = pipelines[0].pipeline_id
    versions = api.pipeline_service_list_pipeline_versions(pipeline_id, filter=_by_name(package.version)).pipeline_versions
    if not versions:
        versions = [client._upload_api.upload_pipeline_version(str(package.path), name=package.version, pipelineid=pipeline_id)]
    return PipelineVersion(pipeline_id, versions[0].pipeline_version_id)


def set_schedule(connection: Connection, package: Package, experiment: str, cron: str, name: str) -> str:
    """Runs a package on a schedule of this name, which replaces an earlier one; six fields, seconds first. Returns what was done.

    Raises:
        ServerError: the server cannot be reached or refuses; an earlier schedule is kept.
    """
    client = connect(connection)
    with translate_errors(connection):
        experiment_id = _experiment_id(client, experiment, connection)
        former = _schedules(client, experiment_id, name)
        version = upload(client, package, connection.namespace)
        wanted = (cron, version.version_id, package.arguments)
        if [_content(schedule) for schedule in former] == [wanted]:
            return "the schedule exists already: nothing changed"
        # The new one first: if it is refused, the old one stays.
        client.create_recurring_run(
            experiment_id,
            name,
            cron_expression=cron,
            max_concurrency=1,
            no_catchup=True,
            params=package.arguments,
            pipeline_id=version.pipeline_id,
            version_id=version.version_id,
        )
        _delete(client, former)
    return f"{'replaced the schedule' if former else 'scheduled'}: {cron}"


def remove_schedules(connection: Connection, experiment: str, name: str) -> str:
    """Removes the schedule of this name. Returns what was done.

    Raises:
        ServerError: the server cannot be reached or refuses.
    """
    client = connect(connection)
    with translate_errors(connection):
        former = _schedules(client, _experiment_id(client, experiment, connection), name)
        _delete(client, former)
    return f"ended {len(former)} schedule{'' if len(former) == 1 else 's'}"


def _experiment_id(client: Client, experiment: str, connection: Connection) -> str:
    with contextlib.redirect_stdout(io.StringIO()):
        return str(client.create_experiment(experiment, namespace=connection.namespace or None).experiment_id)


def _schedules(client: Client, experiment_id: str, name: str) -> list[Any]:
    api = client._recurring_run_api
    listed = api.recurring_run_service_list_recurring_runs(experiment_id=experiment_id, page_size=200).recurring_runs or []
    return [schedule for schedule in listed if schedule.display_name == name]


def _content(schedule: Any) -> tuple[str, str, dict[str, Any]]:
    """Cron expression, id of the pipeline's version, and parameters."""
    return (
        schedule.trigger.cron_schedule.cron,
        schedule.pipeline_version_reference.pipeline_version_id,
        (schedule.runtime_config and schedule.runtime_config.parameters) or {},
    )


def _delete(client: Client, schedules: list[Any]) -> None:
    for schedule in schedules:
        client._recurring_run_api.recurring_run_service_delete_recurring_run(schedule.recurring_run_id)


def _by_name(name: str) -> str:
    """A filter of the API."""
    return json.dumps({"predicates": [{"operation": "EQUALS", "key": "display_name", "stringValue": name}]})
