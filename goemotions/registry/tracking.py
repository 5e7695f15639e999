"""MLflow, in two halves: the runs of the pipeline, and the registry of models with its aliases. No other module imports MLflow.

The server is the one in ``MLFLOW_TRACKING_URI``. Runs and versions are looked up by what they belong to and created only if absent.
Both halves share the connection, its errors and the creation without duplicates at the end of the file.
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
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar
from urllib.parse import unquote

from goemotions import addresses, defaults, outages
from goemotions.errors import ModelError, TrackingError, TrackingUnavailable, WorkflowError

if TYPE_CHECKING:
    # Importing it takes seconds.
    from goemotions.data.dataset import DatasetInfo

log = logging.getLogger(__name__)

# MLflow reads this when it is imported; without it, MLflow reports each use to its makers.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

RUN_TAG = "goemotions.pipeline_run"
PROFILE_TAG = "goemotions.profile"
SOURCE_TAG = "dataset.source"
INGEST_TAG = "dataset.options"
# Of a pipeline run that was started to see whether there is a reason to train, and of its versions (``monitoring.retraining``).
DECISION_TAG = "retraining.decision"
HISTORY_TAG = "goemotions.history."
# Of a registered model: the number of its last change.
CHANGES_TAG = "goemotions.changes"
# Of a version: how its last rollout ended, as JSON.
ROLLOUT_TAG = "goemotions.rollout"
# Of a version whose bundle is to be removed, and of one whose bundle has been removed.
RETIRED_TAG, REMOVED_TAG = "goemotions.retired", "goemotions.removed"
PARAMETER_LIMIT = 6000
# MLflow stores so many characters of a data set's digest.
DIGEST_LIMIT = 36
DATASET_COLUMNS = [
    {"type": "string", "name": "id", "required": True},
    {"type": "string", "name": "text", "required": True},
    {"type": "array", "items": {"type": "long"}, "name": "labels", "required": True},
]
HEALTH_SECONDS = 5
RETRIES = "MLFLOW_HTTP_REQUEST_MAX_RETRIES"
WAIT_SECONDS = (1, 2, 4)

Created = TypeVar("Created")
Action = Literal["promote", "rollback", "deploy"]


@dataclass(frozen=True)
class Version:
    """A version of a registered model; ``source`` is the location of its bundle, ``created`` in seconds since the epoch."""

    number: str
    source: str
    run_id: str
    tags: dict[str, str]
    model_name: str = ""
    created: float = 0.0

    @property
    def is_retired(self) -> bool:
        return RETIRED_TAG in self.tags

    @property
    def is_removed(self) -> bool:
        return REMOVED_TAG in self.tags


@dataclass(frozen=True)
class HistoryEntry:
    """A change of what an alias or InferenceService refers to; stored as JSON in a tag of the version that it refers to now.

    ``sequence`` orders the changes of a registered model; entries of before have 0, and only their time ``at`` orders them.
    """

    action: Action
    target: str
    before: str
    after: str
    by: str
    at: str
    percent: int | None = None
    sequence: int = 0

    def to_json(self) -> str:
        names = {
            "action": self.action,
            "where": self.target,
            "from": self.before,
            "to": self.after,
            "by": self.by,
            "at": self.at,
            "sequence": self.sequence,
        }
        return json.dumps(names if self.percent is None else {**names, "percent": self.percent})

    @classmethod
    def from_json(cls, text: str) -> HistoryEntry:
        entry = json.loads(text)
        entry.setdefault("sequence", 0)
        names = ("action", "where", "from", "to", "by", "at", "percent", "sequence")
        return cls(*(entry.get(name) for name in names))


class Run:
    """A run to log to. Metrics that the server does not accept are kept and sent with the next ones."""

    def __init__(self, run_id: str) -> None:
        self.run_id = run_id
        self._unsent: list[Any] = []

    def log_parameters(self, values: dict[str, Any]) -> None:
        from mlflow.entities import Param

        parameters = [Param(name, str(value)[:PARAMETER_LIMIT]) for name, value in values.items()]
        with _translate_errors():
            _patient().log_batch(self.run_id, params=parameters)

    def log_metrics(self, values: dict[str, float], step: int = 0) -> None:
        """Logs metrics. If the server cannot be reached, they are kept and sent by a later call."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        self._unsent += [Metric(name, float(value), now, step) for name, value in values.items()]
        try:
            _client().log_batch(self.run_id, metrics=self._unsent)
            self._unsent = []
        except Exception as error:
            log.warning("MLflow did not accept %d metrics, they are kept: %s", len(self._unsent), type(error).__name__)

    def log_once(self, metrics: Mapping[str, float], tags: Mapping[str, str]) -> None:
        """Logs the metrics and tags that the run does not have yet with these values, so that a retried step adds nothing."""
        from mlflow.entities import Metric, RunTag

        now = int(time.time() * 1000)
        with _translate_errors():
            logged = _patient().get_run(self.run_id).data
            changed = [
                Metric(name, float(value), now, 0) for name, value in metrics.items() if logged.metrics.get(name) != value
            ]
            new_tags = [RunTag(name, value) for name, value in tags.items() if logged.tags.get(name) != value]
            if changed or new_tags:
                _patient().log_batch(self.run_id, metrics=changed, tags=new_tags)

    def log_missing(self, history: Sequence[dict[str, float]]) -> None:
        """Logs the epochs (from 1) that the server lacks, because an earlier attempt of the step could not reach it."""
        with _translate_errors():
            logged = {entry.step for entry in _patient().get_metric_history(self.run_id, next(iter(history[0])))}
        for step, values in enumerate(history, start=1):
            if step not in logged:
                self.log_metrics(values, step)

    def set_tags(self, values: dict[str, str]) -> None:
        with _translate_errors():
            for name, value in values.items():
                _patient().set_tag(self.run_id, name, value)

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
        with _translate_errors():
            _client().log_inputs(self.run_id, inputs)

    def log_folder(self, path: Path, name: str) -> None:
        with _translate_errors():
            _patient().log_artifacts(self.run_id, str(path), name)

    def link(self, address: str = "") -> str:
        """The URL of the run in MLflow's user interface.

        Args:
            address: of MLflow as browsers reach it; empty for the tracking URI.
        """
        with _translate_errors():
            experiment = _patient().get_run(self.run_id).info.experiment_id
        return f"{(address or connect()).rstrip('/')}/#/experiments/{experiment}/runs/{self.run_id}"

    def finish(self, status: str = "FINISHED") -> None:
        with _translate_errors():
            _patient().set_terminated(self.run_id, status)
        # The server responds again.
        if self._unsent:
            self.log_metrics({})


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
    with _translate_errors():
        plugin_run = _patient().get_run(os.environ["MLFLOW_RUN_ID"]) if os.environ.get("MLFLOW_RUN_ID") else None
        experiment_id = plugin_run.info.experiment_id if plugin_run else _experiment()
        query = f"tags.`{RUN_TAG}` = '{pipeline_run}' and tags.`{PROFILE_TAG}` = '{profile or '-'}'"

        def find() -> Run | None:
            runs = _patient().search_runs([experiment_id], query, max_results=1, order_by=["attributes.start_time ASC"])
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
            return Run(_client().create_run(experiment_id, tags=tags).info.run_id)

        return _create_once(find, create)


def tags_of_runs(pipeline_run: str) -> list[dict[str, str]]:
    """The tags of a pipeline run's runs, parent and children; none if MLflow has no such pipeline run."""
    connect()
    with _translate_errors():
        experiments = [experiment.experiment_id for experiment in _patient().search_experiments()]
        runs = _patient().search_runs(experiments, f"tags.`{RUN_TAG}` = '{pipeline_run}'")
        return [dict(run.data.tags) for run in runs]


def run_tags(run_id: str) -> dict[str, str]:
    """The tags of a run."""
    connect()
    with _translate_errors():
        return dict(_patient().get_run(run_id).data.tags)


def pipeline_run_tags(run_id: str) -> dict[str, str]:
    """The tags of the pipeline run to which the run of a model belongs: those of its parent, or its own."""
    from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

    tags = run_tags(run_id)
    return run_tags(tags[MLFLOW_PARENT_RUN_ID]) if MLFLOW_PARENT_RUN_ID in tags else tags


def _dataset_source(info: DatasetInfo) -> tuple[str, dict[str, str]]:
    """Type and description of a source, as ``mlflow.data.get_source`` reads them."""
    source = info["source"]
    if source.startswith(addresses.HUB):
        name, _, config = source.removeprefix(addresses.HUB).partition("@")[0].partition(":")
        return "hugging_face", {"path": name, "config_name": config, "revision": info["revision"]}
    return "s3" if addresses.is_s3(source) else "local", {"uri": source}


def _experiment() -> str:
    def find() -> str | None:
        experiment = _patient().get_experiment_by_name(defaults.EXPERIMENT)
        return str(experiment.experiment_id) if experiment else None

    return _create_once(find, lambda: str(_client().create_experiment(defaults.EXPERIMENT)))


def get_or_create_version(model: str, run_id: str, source: str, tags: dict[str, str]) -> Version:
    """The version of a registered model that has this source; created if there is none.

    Raises:
        ModelError: it is retired.
    """
    from mlflow.exceptions import MlflowException

    connect()
    with _translate_errors():
        try:
            _patient().create_registered_model(model)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise

        version = _create_once(
            lambda: version_of_bundle(model, run_id, source),
            lambda: _version(_client().create_model_version(model, source, run_id, tags=tags)),
        )
    require_bundle(version)
    return version


def version_of_bundle(model: str, run_id: str, source: str) -> Version | None:
    """The version of a registered model that has this source, if there is one."""
    with _translate_errors():
        versions = _patient().search_model_versions(f"name='{model}' and run_id='{run_id}'")
    return next((_version(version) for version in versions if version.source == source), None)


def find_version(model: str, reference: str) -> Version | None:
    """The version of an alias or a version number; None if there is none."""
    from mlflow.exceptions import MlflowException

    connect()
    with _translate_errors():
        try:
            if reference.isdigit():
                return _version(_patient().get_model_version(model, reference))
            return _version(_patient().get_model_version_by_alias(model, reference))
        except MlflowException as error:
            if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                return None
            raise


def get_version(model: str, reference: str) -> Version:
    """The version of an alias or a version number.

    Raises:
        ModelError: there is none, or it is retired.
    """
    version = find_version(model, reference)
    if version is None:
        raise ModelError(
            f"{model} has no version or alias {reference!r}: register one first (`make run`), or see `make status`"
        )
    require_bundle(version)
    return version


def require_bundle(version: Version) -> None:
    """Raises:
    ModelError: the version is retired.
    """
    if version.is_retired:
        raise ModelError(
            f"version {version.number} is retired ({version.tags[RETIRED_TAG]}), its bundle is removed: take another version"
        )


def versions(model: str) -> list[Version]:
    """All versions of a registered model.

    Raises:
        ModelError: there is no such model.
    """
    aliases(model)
    with _translate_errors():
        return [_version(entity) for entity in _search_versions(f"name='{model}'")]


def aliases(model: str) -> dict[str, str]:
    """The numbers of versions by alias.

    Raises:
        ModelError: there is no such model.
    """
    from mlflow.exceptions import MlflowException

    connect()
    with _translate_errors():
        try:
            return {alias: str(number) for alias, number in _patient().get_registered_model(model).aliases.items()}
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            raise ModelError(f"no model {model} is registered: check its name") from error


def is_used_elsewhere(model: str, source: str) -> bool:
    """Whether a version of another registered model has this bundle."""
    return any(one.name != model for one in _of_source(source))


def is_source(location: str) -> bool:
    """Whether a version of any registered model has this bundle."""
    return bool(_of_source(location))


def versions_of_run(run_id: str) -> list[Version]:
    """The versions of all registered models whose model an MLflow run trained."""
    with _translate_errors():
        return [_version(entity) for entity in _search_versions(f"run_id='{run_id}'")]


def end_of_run(run_id: str) -> float | None:
    """When an MLflow run ended, or began if it has not ended, in seconds since the epoch; None if there is no such run."""
    from mlflow.exceptions import MlflowException

    connect()
    with _translate_errors():
        try:
            info = _patient().get_run(run_id).info
        except MlflowException as error:
            if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                return None
            raise
    return float(info.end_time or info.start_time) / 1000


def _of_source(source: str) -> list[Any]:
    """The versions with a bundle, whose location may lack its final slash there."""
    with _translate_errors():
        return [one for end in ("/", "") for one in _search_versions(f"source_path='{source.rstrip('/')}{end}'")]


def _search_versions(query: str) -> list[Any]:
    page = _patient().search_model_versions(query)
    versions = list(page)
    while page.token:
        page = _patient().search_model_versions(query, page_token=page.token)
        versions += page
    return versions


def mark_retired(model: str, version: Version) -> None:
    """From now on a reference to the version is an error."""
    with _translate_errors():
        _patient().set_model_version_tag(model, version.number, RETIRED_TAG, f"{_now()} by {_user_and_host()}")


def mark_removed(model: str, version: Version) -> None:
    """The store holds nothing of the version any more."""
    with _translate_errors():
        _patient().set_model_version_tag(model, version.number, REMOVED_TAG, "true")


def tag_rollout(model: str, version: Version, summary: str) -> None:
    """Notes at a version how its rollout ended."""
    with _translate_errors():
        _patient().set_model_version_tag(model, version.number, ROLLOUT_TAG, summary)


def set_alias(model: str, alias: str, number: str) -> None:
    with _translate_errors():
        _patient().set_registered_model_alias(model, alias, number)


def record(model: str, version: Version, action: Action, target: str, before: str, *, percent: int | None = None) -> None:
    """Records in a version's tags who made an alias or InferenceService refer to it, and when.

    The registry numbers the changes: the clocks of the machines that make them may differ.

    Args:
        target: the alias or InferenceService.
        before: number of the version that it referred to; empty if there was none.
        percent: share of the traffic that a deployment gives to the version.
    """
    now = _now()
    with _translate_errors():
        sequence = int(_patient().get_registered_model(model).tags.get(CHANGES_TAG, 0)) + 1
        _patient().set_registered_model_tag(model, CHANGES_TAG, str(sequence))
        entry = HistoryEntry(action, target, before, version.number, _user_and_host(), now, percent, sequence)
        _patient().set_model_version_tag(model, version.number, f"{HISTORY_TAG}{sequence:08d}.{now}", entry.to_json())


def history(version: Version, target: str = "") -> list[HistoryEntry]:
    """What ``record`` wrote of a version and an alias or InferenceService (empty: any), oldest first.

    Raises:
        TrackingError: a tag holds something else.
    """
    entries = [_entry(version, name) for name in version.tags if name.startswith(HISTORY_TAG)]
    return sorted((entry for entry in entries if target in ("", entry.target)), key=lambda entry: (entry.sequence, entry.at))


def _entry(version: Version, tag: str) -> HistoryEntry:
    try:
        return HistoryEntry.from_json(version.tags[tag])
    except (ValueError, TypeError, AttributeError) as error:
        raise TrackingError(f"version {version.number}: its tag {tag} is damaged: remove it in MLflow") from error


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def _user_and_host() -> str:
    """User and host; in a pod, where the user may have no name, its uid and the pod's name."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = f"uid {os.getuid()}"
    return f"{user}@{socket.gethostname()}"


def _version(entity: Any) -> Version:
    created = (entity.creation_timestamp or 0) / 1000
    return Version(str(entity.version), entity.source, entity.run_id, dict(entity.tags), entity.name, created)


def connect() -> str:
    """The tracking URI, after its server has responded.

    Raises:
        BadAddress: MLFLOW_TRACKING_URI has an unknown form.
        TrackingError: MLFLOW_TRACKING_URI is not set, or no server responds there.
    """
    if not importlib.util.find_spec("mlflow"):
        raise TrackingError("MLflow's client is not installed: give a location instead of an alias, or install mlflow-skinny")
    uri = addresses.tracking(_uri())
    if not uri:
        raise TrackingError("MLFLOW_TRACKING_URI is not set: `make stack-up` starts a server and prints its address")
    # With MLflow's own number of retries a run would hang for minutes if the server is down.
    os.environ.setdefault(RETRIES, "3")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
    if uri.startswith(("http://", "https://")):
        _require_response(uri)
    return uri


@outages.borne(TrackingUnavailable, "MLflow")
def _require_response(uri: str) -> None:
    health = f"{uri.rstrip('/')}/health"
    try:
        urllib.request.urlopen(health, timeout=HEALTH_SECONDS).close()  # nosec B310 # http or https, as the caller has checked
    except urllib.error.HTTPError:
        pass  # The server responds; a proxy in front of it may protect /health.
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise TrackingUnavailable(
            f"MLflow does not respond at {uri}: start it (`make stack-up`) or fix MLFLOW_TRACKING_URI"
        ) from error


def _uri() -> str:
    """MLFLOW_TRACKING_URI without user and password, which move to MLflow's variables for them.

    Otherwise MLflow's errors, the links and the logs would show them.
    """
    # Up to the last @: a password may contain an unquoted slash.
    match = re.fullmatch(r"(https?://)(.*)@(.*)", os.environ.get("MLFLOW_TRACKING_URI", ""))
    if match:
        user, _, password = match[2].partition(":")
        os.environ["MLFLOW_TRACKING_USERNAME"] = unquote(user)
        os.environ["MLFLOW_TRACKING_PASSWORD"] = unquote(password)
        os.environ["MLFLOW_TRACKING_URI"] = match[1] + match[3]
    return os.environ.get("MLFLOW_TRACKING_URI", "")


def _create_once(find: Callable[[], Created | None], create: Callable[[], Created]) -> Created:
    """What ``find`` returns, or else what ``create`` returns. If the response to ``create`` is lost, ``find`` runs before a retry."""
    from mlflow.exceptions import MlflowException

    waits, deadline = list(WAIT_SECONDS), time.monotonic() + outages.seconds()
    while (existing := find()) is None:
        retries = os.environ[RETRIES]
        try:
            # A retry by MLflow's client would create a second one.
            os.environ[RETRIES] = "0"
            return create()
        except MlflowException as error:
            if not _is_away(error) or not (waits or time.monotonic() < deadline):
                raise
            time.sleep(waits.pop(0) if waits else outages.LONGEST_SECONDS)
            outages.guard()
        finally:
            os.environ[RETRIES] = retries
    return existing


@functools.cache
def _client() -> Any:
    from mlflow import MlflowClient

    return MlflowClient(_uri())


class _Patient:
    """MLflow's client, whose requests are repeated while the server is away: those that change nothing when they are repeated."""

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def request(*arguments: Any, **options: Any) -> Any:
            return outages.bear(lambda: getattr(_client(), name)(*arguments, **options), _is_away, "MLflow")

        return request


def _patient() -> Any:
    return _Patient()


def _is_away(error: Exception) -> bool:
    from mlflow.exceptions import MlflowException

    if isinstance(error, MlflowException):
        status = int(error.get_http_status_code())
        return status >= 500 or status == outages.TOO_MANY_REQUESTS
    return outages.is_away(error)


@contextmanager
def _translate_errors() -> Iterator[None]:
    """Raises every error of MLflow, and of the libraries that it uses, as TrackingError."""
    try:
        yield
    except WorkflowError:
        raise
    except ModuleNotFoundError as error:
        scheme = _uri().partition(":")[0]
        raise TrackingError(
            f"MLFLOW_TRACKING_URI={scheme}: needs the package {error.name}: install it, or give the address of an MLflow server"
        ) from error
    except Exception as error:
        # The address in a message may hold a password.
        reason = re.sub(r"//\S*@", "//***@", (str(error).strip().splitlines() or [type(error).__name__])[0])[:200]
        raise TrackingError(f"MLflow refused the request or did not respond: {reason}") from error
