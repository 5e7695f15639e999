"""Runs, the model registry and its aliases. The only module that knows MLflow.

The server is the one in ``MLFLOW_TRACKING_URI``. Runs and versions are found again by what they belong to, never made twice.
"""

from __future__ import annotations

import functools
import getpass
import http.client
import importlib.util
import json
import logging
import os
import re
import socket
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import unquote

from goemotions import defaults
from goemotions.errors import ModelError, TrackingError

log = logging.getLogger(__name__)

# Unless it is told before its import, MLflow reports each use to its makers.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

RUN_TAG = "goemotions.pipeline_run"
PROFILE_TAG = "goemotions.profile"
HISTORY_TAG = "goemotions.history."
PARAMETER_LIMIT = 6000
HEALTH_SECONDS = 5
RETRIES = "MLFLOW_HTTP_REQUEST_MAX_RETRIES"
WAIT_SECONDS = (1, 2, 4)

Made = TypeVar("Made")


@dataclass(frozen=True)
class Version:
    """A version of a registered model; ``source`` is the location of its bundle."""

    number: str
    source: str
    run_id: str
    tags: dict[str, str]


class Run:
    """A run to log to. Metrics that the server does not take are kept and sent with the next ones."""

    def __init__(self, run_id: str) -> None:
        self.run_id = run_id
        self._unsent: list[Any] = []

    def log_parameters(self, values: dict[str, Any]) -> None:
        from mlflow.entities import Param

        parameters = [Param(name, str(value)[:PARAMETER_LIMIT]) for name, value in values.items()]
        with _named():
            _client().log_batch(self.run_id, params=parameters)

    def log_metrics(self, values: dict[str, float], step: int = 0) -> None:
        """Logs metrics; a server that is away loses nothing as long as a later call reaches it."""
        from mlflow.entities import Metric
        from mlflow.exceptions import MlflowException

        now = int(time.time() * 1000)
        self._unsent += [Metric(name, float(value), now, step) for name, value in values.items()]
        try:
            _client().log_batch(self.run_id, metrics=self._unsent)
            self._unsent = []
        except MlflowException as error:
            log.warning("MLflow did not take %d metrics, they are kept: %s", len(self._unsent), type(error).__name__)

    def log_missing(self, history: Sequence[dict[str, float]]) -> None:
        """Logs the epochs (from 1) that the server has not got: those that an attempt before this one met it away with."""
        with _named():
            found = {entry.step for entry in _client().get_metric_history(self.run_id, next(iter(history[0])))}
        for step, values in enumerate(history, start=1):
            if step not in found:
                self.log_metrics(values, step)

    def set_tags(self, values: dict[str, str]) -> None:
        with _named():
            for name, value in values.items():
                _client().set_tag(self.run_id, name, value)

    def log_folder(self, path: Path, name: str) -> None:
        with _named():
            _client().log_artifacts(self.run_id, str(path), name)

    def link(self, address: str = "") -> str:
        """Where a browser shows the run.

        Args:
            address: of MLflow, as a browser reaches it; empty for the tracking URI.
        """
        with _named():
            experiment = _client().get_run(self.run_id).info.experiment_id
        return f"{(address or connect()).rstrip('/')}/#/experiments/{experiment}/runs/{self.run_id}"

    def finish(self, status: str = "FINISHED") -> None:
        if self._unsent:
            self.log_metrics({})
        with _named():
            _client().set_terminated(self.run_id, status)


@contextmanager
def step(pipeline_run: str, profile: str = "") -> Iterator[Run]:
    """The run of a pipeline run, or of one profile in it, for the length of a step."""
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
    """The MLflow run of a pipeline run (the parent) or of one profile in it (a child); made if it is not there yet.

    Where Kubeflow's own MLflow plugin made a run for the step (``MLFLOW_RUN_ID``), that run and its parent are joined instead.

    Raises:
        TrackingError: no server is named, or it does not answer within seconds.
    """
    from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID, MLFLOW_RUN_NAME

    connect()
    with _named():
        joined = _joined()
        experiment_id = joined.info.experiment_id if joined else _experiment()
        wanted = f"tags.`{RUN_TAG}` = '{pipeline_run}' and tags.`{PROFILE_TAG}` = '{profile or '-'}'"

        def find() -> Run | None:
            found = _client().search_runs([experiment_id], wanted, max_results=1, order_by=["attributes.start_time ASC"])
            return Run(found[0].info.run_id) if found else None

        def make() -> Run:
            tags = {RUN_TAG: pipeline_run, PROFILE_TAG: profile or "-"}
            if joined:
                step_run = joined.info.run_id
                run = Run(step_run if profile else joined.data.tags.get(MLFLOW_PARENT_RUN_ID, step_run))
                run.set_tags(tags)
                return run
            tags[MLFLOW_RUN_NAME] = profile or pipeline_run
            if profile:
                tags[MLFLOW_PARENT_RUN_ID] = get_or_create_run(pipeline_run).run_id
            return Run(_client().create_run(experiment_id, tags=tags).info.run_id)

        return _once(find, make)


def _joined() -> Any:
    """The run that Kubeflow's plugin made for this step."""
    return _client().get_run(os.environ["MLFLOW_RUN_ID"]) if os.environ.get("MLFLOW_RUN_ID") else None


def _experiment() -> str:
    found = _client().get_experiment_by_name(defaults.EXPERIMENT)
    return str(found.experiment_id if found else _client().create_experiment(defaults.EXPERIMENT))


def connect() -> str:
    """The tracking URI, once its server has answered.

    Raises:
        TrackingError: MLFLOW_TRACKING_URI is not set, or nothing answers there.
    """
    if not importlib.util.find_spec("mlflow"):
        raise TrackingError("MLflow's client is not installed: name a location instead of an alias, or install mlflow-skinny")
    uri = _uri()
    if not uri:
        raise TrackingError("MLFLOW_TRACKING_URI is not set: `make stack-up` starts a server and says where it is")
    # MLflow's own retries would let a run hang for minutes on a server that is down.
    os.environ.setdefault(RETRIES, "3")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
    if uri.startswith(("http://", "https://")):
        try:
            health = f"{uri.rstrip('/')}/health"
            urllib.request.urlopen(health, timeout=HEALTH_SECONDS).close()  # nosec B310 # http or https, as just checked
        except urllib.error.HTTPError:
            pass  # It answers; a proxy in front may guard /health.
        except (OSError, ValueError, http.client.HTTPException) as error:
            raise TrackingError(
                f"MLflow does not answer at {uri}: start it (`make stack-up`) or fix MLFLOW_TRACKING_URI"
            ) from error
    return uri


def _uri() -> str:
    """MLFLOW_TRACKING_URI without user and password, which move to variables of their own.

    MLflow's client puts the whole address into its errors, and links and logs would show it too.
    """
    # Up to the last @: a password may hold a slash that nobody quoted.
    found = re.fullmatch(r"(https?://)(.*)@(.*)", os.environ.get("MLFLOW_TRACKING_URI", ""))
    if found:
        user, _, password = found[2].partition(":")
        os.environ["MLFLOW_TRACKING_USERNAME"] = unquote(user)
        os.environ["MLFLOW_TRACKING_PASSWORD"] = unquote(password)
        os.environ["MLFLOW_TRACKING_URI"] = found[1] + found[3]
    return os.environ.get("MLFLOW_TRACKING_URI", "")


def get_or_create_version(model: str, run_id: str, source: str, tags: dict[str, str]) -> Version:
    """The version of a registered model whose source this is; made if it is not there yet."""
    from mlflow.exceptions import MlflowException

    connect()
    with _named():
        try:
            _client().create_registered_model(model)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise

        def find() -> Version | None:
            found = _client().search_model_versions(f"name='{model}' and run_id='{run_id}'")
            return next((_version(one) for one in found if one.source == source), None)

        return _once(find, lambda: _version(_client().create_model_version(model, source, run_id, tags=tags)))


def find_version(model: str, reference: str) -> Version | None:
    """The version an alias (or a number) stands for; None where there is none."""
    from mlflow.exceptions import MlflowException

    connect()
    with _named():
        try:
            if reference.isdigit():
                return _version(_client().get_model_version(model, reference))
            return _version(_client().get_model_version_by_alias(model, reference))
        except MlflowException as error:
            if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                return None
            raise


def get_version(model: str, reference: str) -> Version:
    """The version an alias (or a number) stands for.

    Raises:
        ModelError: there is none.
    """
    found = find_version(model, reference)
    if found is None:
        raise ModelError(
            f"{model} has no version or alias {reference!r}: register one first (`make run`), or see `make status`"
        )
    return found


def set_alias(model: str, alias: str, number: str) -> None:
    with _named():
        _client().set_registered_model_alias(model, alias, number)


def record(model: str, version: Version, action: str, where: str, before: str, **facts: Any) -> None:
    """Writes into a version's tags who changed what it does, when, and which version did it before.

    Args:
        action: ``promote``, ``rollback`` or ``deploy``.
        where: the alias or InferenceService that changes.
        before: number of the version that had its place; empty where there was none.
    """
    now = datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
    change = {"action": action, "where": where, "from": before, "to": version.number, "by": _who(), "at": now, **facts}
    with _named():
        _client().set_model_version_tag(model, version.number, f"{HISTORY_TAG}{now}", json.dumps(change))


def history(version: Version, where: str) -> list[dict[str, Any]]:
    """What ``record`` wrote of a version and an alias or InferenceService, oldest first."""
    changes = [json.loads(value) for name, value in sorted(version.tags.items()) if name.startswith(HISTORY_TAG)]
    return [change for change in changes if change["where"] == where]


def write_mlmodel(folder: Path, identity: str) -> None:
    """Adds an MLmodel file: ``mlflow.pyfunc.load_model`` then loads the bundle through this package, without a pickle.

    The same identity gives the same bytes: two attempts to make one bundle may not differ.
    """
    import mlflow.pyfunc
    from mlflow.models import Model

    description = Model(
        model_uuid=uuid.uuid5(uuid.NAMESPACE_URL, identity).hex, utc_time_created=str(datetime.fromtimestamp(0, UTC))
    )
    mlflow.pyfunc.add_to_model(description, loader_module="goemotions.prediction.predictor")
    description.save(folder / "MLmodel")


def _who() -> str:
    """User and host; in a pod, whose user may have no name, its uid and the pod's name."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = f"uid {os.getuid()}"
    return f"{user}@{socket.gethostname()}"


def _version(found: Any) -> Version:
    return Version(str(found.version), found.source, found.run_id, dict(found.tags))


def _once(find: Callable[[], Made | None], make: Callable[[], Made]) -> Made:
    """What ``find`` finds, or else what ``make`` makes. Where the answer of ``make`` is lost, ``find`` looks before it is repeated."""
    from mlflow.exceptions import MlflowException

    waits = list(WAIT_SECONDS)
    while (found := find()) is None:
        retries = os.environ[RETRIES]
        try:
            # MLflow's client sends a request again by itself, and the server would then make a second one.
            os.environ[RETRIES] = "0"
            return make()
        except MlflowException as error:
            if error.get_http_status_code() < 500 or not waits:
                raise
            time.sleep(waits.pop(0))
        finally:
            os.environ[RETRIES] = retries
    return found


@functools.cache
def _client() -> Any:
    from mlflow import MlflowClient

    return MlflowClient(_uri())


@contextmanager
def _named() -> Iterator[None]:
    from mlflow.exceptions import MlflowException

    try:
        yield
    except MlflowException as error:
        reason = (str(error).strip().splitlines() or [""])[0][:200]
        raise TrackingError(f"MLflow refused or did not answer: {reason}") from error
