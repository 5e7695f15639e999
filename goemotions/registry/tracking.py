"""MLflow's tracking: the runs of the pipeline, one per pipeline run (the parent) and one per profile in it (a child).

A run is looked up by the pipeline run and the profile that it belongs to, and created only if it is absent.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from goemotions import addresses, defaults
from goemotions.errors import TrackingError
from goemotions.registry.mlflow_client import Absent, client, connect, create_once, retrying

if TYPE_CHECKING:
    # Importing it takes seconds.
    from goemotions.data.dataset import DatasetInfo

log = logging.getLogger(__name__)

RUN_TAG = "goemotions.pipeline_run"
PROFILE_TAG = "goemotions.profile"
SOURCE_TAG = "dataset.source"
INGEST_TAG = "dataset.options"
# Of a pipeline run that was started to see whether there is a reason to train, and of its versions (``monitoring.retraining``).
DECISION_TAG = "retraining.decision"
PARAMETER_LIMIT = 6000
# MLflow stores so many characters of a data set's digest.
DIGEST_LIMIT = 36
DATASET_COLUMNS = [
    {"type": "string", "name": "id", "required": True},
    {"type": "string", "name": "text", "required": True},
    {"type": "array", "items": {"type": "long"}, "name": "labels", "required": True},
]


class Run:
    """A run to log to. Metrics that the server does not accept are kept and sent with the next ones."""

    def __init__(self, run_id: str) -> None:
        self.run_id = run_id
        self._unsent: list[Any] = []

    def log_parameters(self, values: dict[str, Any]) -> None:
        from mlflow.entities import Param

        parameters = [Param(name, str(value)[:PARAMETER_LIMIT]) for name, value in values.items()]
        retrying.log_batch(self.run_id, params=parameters)

    def log_metrics(self, values: dict[str, float], step: int = 0) -> None:
        """Logs metrics. If the server cannot be reached, they are kept and sent by a later call."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        self._unsent += [Metric(name, float(value), now, step) for name, value in values.items()]
        try:
            client().log_batch(self.run_id, metrics=self._unsent)
            self._unsent = []
        except Exception as error:
            log.warning("MLflow did not accept %d metrics, they are kept: %s", len(self._unsent), type(error).__name__)

    def log_once(self, metrics: Mapping[str, float], tags: Mapping[str, str]) -> None:
        """Logs the metrics and tags that the run does not have yet with these values, so that a retried step adds nothing."""
        from mlflow.entities import Metric, RunTag

        now = int(time.time() * 1000)
        logged = retrying.get_run(self.run_id).data
        changed = [Metric(name, float(value), now, 0) for name, value in metrics.items() if logged.metrics.get(name) != value]
        new_tags = [RunTag(name, value) for name, value in tags.items() if logged.tags.get(name) != value]
        if changed or new_tags:
            retrying.log_batch(self.run_id, metrics=changed, tags=new_tags)

    def log_missing(self, history: Sequence[dict[str, float]]) -> None:
        """Logs the epochs (from 1) that the server lacks, because an earlier attempt of the step could not reach it."""
        logged = {entry.step for entry in retrying.get_metric_history(self.run_id, next(iter(history[0])))}
        for step, values in enumerate(history, start=1):
            if step not in logged:
                self.log_metrics(values, step)

    def set_tags(self, values: dict[str, str]) -> None:
        for name, value in values.items():
            retrying.set_tag(self.run_id, name, value)

    def log_dataset(self, info: DatasetInfo) -> None:
        """Logs each split of a Dataset as an input of the run. Logging it again changes nothing."""
        from mlflow.entities import Dataset, DatasetInput, InputTag

        source_type, source = _dataset_source(info)
        inputs = [
            DatasetInput(
                Dataset(
                    name=f"{info['source'].rstrip('/')}/{split}"[-500:],
                    digest=info["digest"][:DIGEST_LIMIT],
                    source_type=source_type,
                    source=json.dumps(source),
                    schema=json.dumps({"mlflow_colspec": DATASET_COLUMNS}),
                    profile=json.dumps({"num_rows": rows, "num_labels": len(info["labels"]), "digest": info["digest"]}),
                ),
                [InputTag("mlflow.data.context", split)],
            )
            for split, rows in info["rows"].items()
        ]
        retrying.log_inputs(self.run_id, inputs)

    def log_folder(self, path: Path, name: str) -> None:
        retrying.log_artifacts(self.run_id, str(path), name)

    def link(self, address: str = "") -> str:
        """The URL of the run in MLflow's user interface.

        Args:
            address: of MLflow as browsers reach it; empty for the tracking URI.
        """
        experiment = retrying.get_run(self.run_id).info.experiment_id
        return f"{(address or connect()).rstrip('/')}/#/experiments/{experiment}/runs/{self.run_id}"

    def finish(self, status: str = "FINISHED") -> None:
        retrying.set_terminated(self.run_id, status)
        # The server responds again; there is no later call that would send them.
        if self._unsent:
            retrying.log_batch(self.run_id, metrics=self._unsent)
            self._unsent = []


@contextmanager
def step(pipeline_run: str, profile: str = "") -> Iterator[Run]:
    """A context manager with the run of a pipeline run or of one profile in it; an exception marks the run as failed."""
    run = get_or_create_run(pipeline_run, profile)
    try:
        yield run
    except BaseException:
        try:
            run.finish("FAILED")
        except TrackingError as error:
            log.warning("the run could not be marked as failed: %s", error)
        raise
    run.finish()


def get_or_create_run(pipeline_run: str, profile: str = "") -> Run:
    """The MLflow run of a pipeline run (the parent) or of one profile in it (a child); created if there is none.

    If Kubeflow's own MLflow plugin created a run for the step (``MLFLOW_RUN_ID``), that run and its parent are used instead.

    Raises:
        TrackingError: no server is configured, or it does not respond within seconds.
    """
    from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID, MLFLOW_RUN_NAME

    connect()
    plugin_run = retrying.get_run(os.environ["MLFLOW_RUN_ID"]) if os.environ.get("MLFLOW_RUN_ID") else None
    experiment_id = plugin_run.info.experiment_id if plugin_run else _experiment()
    query = f"tags.`{RUN_TAG}` = '{pipeline_run}' and tags.`{PROFILE_TAG}` = '{profile or '-'}'"

    def find() -> Run | None:
        runs = retrying.search_runs([experiment_id], query, max_results=1, order_by=["attributes.start_time ASC"])
        return Run(runs[0].info.run_id) if runs else None

    def create() -> Run:
        tags = {RUN_TAG: pipeline_run, PROFILE_TAG: profile or "-"}
        if plugin_run:
            step_run = plugin_run.info.run_id
            run = Run(step_run if profile else plugin_run.data.tags.get(MLFLOW_PARENT_RUN_ID, step_run))
            run.set_tags(tags)
            return run
        tags[MLFLOW_RUN_NAME] = profile or pipeline_run
        if profile:
            tags[MLFLOW_PARENT_RUN_ID] = get_or_create_run(pipeline_run).run_id
        return Run(client().create_run(experiment_id, tags=tags).info.run_id)

    return create_once(find, create)


def tags_of_runs(pipeline_run: str) -> dict[str, dict[str, str]]:
    """The tags of a pipeline run's runs, parent and children, by their ids; none if MLflow has no such pipeline run."""
    connect()
    experiments = [experiment.experiment_id for experiment in retrying.search_experiments()]
    runs = retrying.search_runs(experiments, f"tags.`{RUN_TAG}` = '{pipeline_run}'")
    return {run.info.run_id: dict(run.data.tags) for run in runs}


def run_tags(run_id: str) -> dict[str, str]:
    """The tags of a run."""
    connect()
    return dict(retrying.get_run(run_id).data.tags)


def pipeline_run_tags(run_id: str) -> dict[str, str]:
    """The tags of the pipeline run to which the run of a model belongs: those of its parent, or its own."""
    from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

    tags = run_tags(run_id)
    return run_tags(tags[MLFLOW_PARENT_RUN_ID]) if MLFLOW_PARENT_RUN_ID in tags else tags


def end_of_run(run_id: str) -> float | None:
    """When an MLflow run ended, or began if it has not ended, in seconds since the epoch; None if there is no such run."""
    connect()
    try:
        info = retrying.get_run(run_id).info
    except Absent:
        return None
    return float(info.end_time or info.start_time) / 1000


def _dataset_source(info: DatasetInfo) -> tuple[str, dict[str, str]]:
    """Type and description of a source, as ``mlflow.data.get_source`` reads them."""
    source = info["source"]
    if source.startswith(addresses.HUB):
        name, _, config = source.removeprefix(addresses.HUB).partition("@")[0].partition(":")
        return "hugging_face", {"path": name, "config_name": config, "revision": info["revision"]}
    return "s3" if addresses.is_s3(source) else "local", {"uri": source}


def _experiment() -> str:
    def find() -> str | None:
        experiment = retrying.get_experiment_by_name(defaults.EXPERIMENT)
        return str(experiment.experiment_id) if experiment else None

    return create_once(find, lambda: str(client().create_experiment(defaults.EXPERIMENT)))
