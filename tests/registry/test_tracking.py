"""Tracking: runs and versions are created once, and failures of the MLflow server are retried or reported."""

import contextlib
import http.client
import http.server
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import mlflow
import pytest
import requests
import sqlalchemy.exc

from goemotions import defaults
from goemotions.errors import TrackingError
from goemotions.registry import changes, mlflow_client, model_registry, registration, tracking
from goemotions.registry.candidates import CandidateArtifacts
from goemotions.storage import manifest, store
from tests.support import http_server


@pytest.fixture
def client(stack: Path) -> mlflow.MlflowClient:
    return mlflow.MlflowClient(os.environ["MLFLOW_TRACKING_URI"])


@pytest.fixture
def unique_name(request: pytest.FixtureRequest) -> str:
    """A name that only this test uses, for a pipeline run or a registered model."""
    return f"{request.node.name}".replace("[", "-").replace("]", "").replace(" ", "-")


@pytest.fixture
def use_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """A function that sets another MLflow server for this test; MLflow's client retries once."""

    def name(uri: str) -> None:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        mlflow_client.client.cache_clear()

    yield name
    monkeypatch.undo()
    mlflow_client.client.cache_clear()


class Gateway(http_server.Server):
    """A proxy of MLflow: forwards requests, drops those to paths with ``down``, and drops one response of a path with ``lost``."""

    def __init__(self, upstream: str) -> None:
        super().__init__(Forwarding)
        self.upstream = urlsplit(upstream).netloc
        self.down = ""
        self.lost = ""
        self.requests: list[str] = []


class Forwarding(http_server.Handler):
    server: Gateway

    def forward(self) -> None:
        body = self.body()
        self.server.requests.append(self.path)
        self.close_connection = True
        if self.server.down and self.server.down in self.path:
            return
        connection = http.client.HTTPConnection(self.server.upstream, timeout=30)
        connection.request(self.command, self.path, body, {"Content-Type": self.headers.get("Content-Type", "")})
        response = connection.getresponse()
        content = response.read()
        connection.close()
        if self.server.lost and self.server.lost in self.path:
            self.server.lost = ""
            return
        # Said to the client, which would otherwise send its next request to a connection that is closed.
        self.send(response.status, content, {"Content-Type": response.headers.get("Content-Type", ""), "Connection": "close"})

    do_GET = do_POST = do_PATCH = do_DELETE = forward


@pytest.fixture
def gateway(stack: Path, use_server: Callable[[str], None]) -> Iterator[Gateway]:
    """A proxy of MLflow that receives all requests of this test."""
    with http_server.running(Gateway(os.environ["MLFLOW_TRACKING_URI"])) as server:
        use_server(server.url)
        yield server


def unused_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def runs(client: mlflow.MlflowClient, pipeline_run: str) -> list[Any]:
    experiment = client.get_experiment_by_name(defaults.EXPERIMENT)
    return client.search_runs([experiment.experiment_id], f"tags.`{tracking.RUN_TAG}` = '{pipeline_run}'")


def test_a_run_is_created_once(client: mlflow.MlflowClient, unique_name: str) -> None:
    first = tracking.get_or_create_run(unique_name)
    assert tracking.get_or_create_run(unique_name).run_id == first.run_id
    assert [run.info.run_id for run in runs(client, unique_name)] == [first.run_id]


def test_each_profile_is_a_child_of_its_pipeline_run(client: mlflow.MlflowClient, unique_name: str) -> None:
    children = {name: tracking.get_or_create_run(unique_name, name).run_id for name in ("minilm", "minilm-3l")}
    assert {name: tracking.get_or_create_run(unique_name, name).run_id for name in children} == children
    parent = tracking.get_or_create_run(unique_name).run_id
    assert len({parent, *children.values()}) == len(runs(client, unique_name)) == 3
    for name, run_id in children.items():
        tags = client.get_run(run_id).data.tags
        assert (tags["mlflow.parentRunId"], tags["mlflow.runName"]) == (parent, name)


def test_each_pipeline_run_has_its_own_runs(stack: Path, unique_name: str) -> None:
    assert (
        tracking.get_or_create_run(f"{unique_name}-1", "minilm").run_id
        != tracking.get_or_create_run(f"{unique_name}-10", "minilm").run_id
    )


@pytest.mark.parametrize(
    ("source", "described"),
    [
        ("hub:owner/data:simplified@main", {"path": "owner/data", "config_name": "simplified", "revision": "c0ffee"}),
        ("s3://bucket/data/", {"uri": "s3://bucket/data/"}),
        ("some/folder", {"uri": "some/folder"}),
    ],
)
def test_a_dataset_is_an_input_of_the_run_once(
    client: mlflow.MlflowClient, unique_name: str, source: str, described: dict[str, str]
) -> None:
    rows = {"train": 3, "validation": 2, "test": 1}
    info: Any = {"source": source, "revision": "c0ffee", "digest": "d" * 64, "labels": ["a", "b"], "rows": rows}
    run = tracking.get_or_create_run(unique_name.replace("/", "-").replace(":", "-"))
    for _ in range(2):
        run.log_dataset(info)
    inputs = client.get_run(run.run_id).inputs.dataset_inputs
    assert {one.tags[0].value: json.loads(one.dataset.profile)["num_rows"] for one in inputs} == rows
    read = mlflow.data.get_source(inputs[0].dataset).to_dict()
    assert described.items() <= read.items()


def test_a_step_that_ends_finishes_its_run_and_one_that_fails_marks_it(client: mlflow.MlflowClient, unique_name: str) -> None:
    failing = tracking.get_or_create_run(unique_name, "minilm")
    with pytest.raises(KeyError), tracking.step(unique_name, "minilm"):
        raise KeyError("x")
    assert client.get_run(failing.run_id).info.status == "FAILED"
    with tracking.step(unique_name, "minilm") as again:
        pass
    assert again.run_id == failing.run_id
    assert client.get_run(failing.run_id).info.status == "FINISHED"


def test_parameters_metrics_and_tags_are_logged(client: mlflow.MlflowClient, unique_name: str, tmp_path: Path) -> None:
    run = tracking.get_or_create_run(unique_name)
    run.log_parameters({"rate": 0.1, "long": "x" * 10_000})
    run.log_metrics({"loss": 0.5}, 1)
    run.log_metrics({"loss": 0.25}, 2)
    run.set_tags({"dataset.digest": "d1"})
    (tmp_path / "report.md").write_text("# report")
    run.log_folder(tmp_path, "report")
    data = client.get_run(run.run_id).data
    assert data.params["rate"] == "0.1"
    assert set(data.params["long"]) == {"x"}
    assert data.tags["dataset.digest"] == "d1"
    assert [(metric.step, metric.value) for metric in client.get_metric_history(run.run_id, "loss")] == [(1, 0.5), (2, 0.25)]
    assert [file.path for file in client.list_artifacts(run.run_id, "report")] == ["report/report.md"]


@pytest.mark.fault("mlflow-down-in-training")
def test_metrics_logged_while_the_server_is_down_are_sent_with_the_next(
    client: mlflow.MlflowClient, gateway: Gateway, unique_name: str, caplog: pytest.LogCaptureFixture
) -> None:
    run = tracking.get_or_create_run(unique_name)
    run.log_metrics({"loss": 3.0}, 1)
    gateway.down = "/"
    run.log_metrics({"loss": 2.0, "auc": 0.8}, 2)
    assert "MLflow did not accept 2 metrics, they are kept" in caplog.text
    gateway.down = ""
    run.log_metrics({"loss": 1.0}, 3)
    history = {name: client.get_metric_history(run.run_id, name) for name in ("loss", "auc")}
    assert [(metric.step, metric.value) for metric in history["loss"]] == [(1, 3.0), (2, 2.0), (3, 1.0)]
    assert [(metric.step, metric.value) for metric in history["auc"]] == [(2, 0.8)]


@pytest.mark.fault("mlflow-down-in-training")
def test_last_metrics_logged_while_the_server_was_down_are_sent_when_the_step_ends(
    client: mlflow.MlflowClient, gateway: Gateway, unique_name: str
) -> None:
    with tracking.step(unique_name, "minilm") as run:
        gateway.down = "/"
        run.log_metrics({"loss": 2.0}, 1)
        gateway.down = ""
    assert [metric.value for metric in client.get_metric_history(run.run_id, "loss")] == [2.0]


@pytest.mark.fault("mlflow-down-at-start")
def test_a_server_that_is_down_is_a_named_error_within_seconds(use_server: Callable[[str], None]) -> None:
    uri = f"http://127.0.0.1:{unused_port()}"
    use_server(uri)
    started = time.monotonic()
    for call in (
        lambda: tracking.get_or_create_run("r"),
        lambda: model_registry.get_or_create_version("m", "r", "s3://b/", {}),
        lambda: model_registry.find_version("m", "champion-cpu"),
    ):
        with pytest.raises(TrackingError, match=f"MLflow does not respond at {uri}: start it"):
            call()
    assert time.monotonic() - started < 5


@pytest.mark.fault("mlflow-down-at-start")
def test_a_server_that_never_responds_is_a_named_error_within_seconds(use_server: Callable[[str], None]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        use_server(f"http://127.0.0.1:{silent.getsockname()[1]}")
        started = time.monotonic()
        with pytest.raises(TrackingError, match="MLflow does not respond"):
            tracking.get_or_create_run("r")
    assert time.monotonic() - started < 2 * mlflow_client.HEALTH_SECONDS


def test_no_server_is_a_named_error(use_server: Callable[[str], None]) -> None:
    use_server("")
    with pytest.raises(TrackingError, match="MLFLOW_TRACKING_URI is not set: `make stack-up` starts a server"):
        mlflow_client.connect()


@pytest.mark.fault("mlflow-down-at-registration")
def test_a_server_that_goes_down_between_two_requests_is_a_named_error(gateway: Gateway, unique_name: str) -> None:
    run = tracking.get_or_create_run(unique_name)
    gateway.down = "/"
    for call in (
        lambda: run.set_tags({"a": "b"}),
        lambda: run.log_parameters({"a": "b"}),
        lambda: run.finish(),
        lambda: model_registry.set_alias(unique_name, "champion-cpu", "1"),
    ):
        with pytest.raises(TrackingError, match=r"^MLflow refused the request or did not respond: .+$"):
            call()


def test_a_source_is_registered_as_one_version(client: mlflow.MlflowClient, unique_name: str) -> None:
    run = tracking.get_or_create_run(unique_name)
    first = model_registry.get_or_create_version(unique_name, run.run_id, "s3://b/models/cpu/", {"variant": "cpu"})
    again = model_registry.get_or_create_version(unique_name, run.run_id, "s3://b/models/cpu/", {"variant": "cpu"})
    other = model_registry.get_or_create_version(unique_name, run.run_id, "s3://b/models/gpu/", {"variant": "gpu"})
    assert (first.number, again.number, other.number) == ("1", "1", "2")
    assert again == first
    assert (first.source, first.run_id, first.tags) == ("s3://b/models/cpu/", run.run_id, {"variant": "cpu"})
    assert len(client.search_model_versions(f"name='{unique_name}'")) == 2


@pytest.mark.fault("registration-response-lost")
def test_a_version_is_created_once_if_the_response_is_lost(
    client: mlflow.MlflowClient, gateway: Gateway, unique_name: str
) -> None:
    run = tracking.get_or_create_run(unique_name)
    gateway.lost = "model-versions/create"
    created = model_registry.get_or_create_version(unique_name, run.run_id, "s3://b/models/cpu/", {"variant": "cpu"})
    assert gateway.lost == ""
    assert [version.version for version in client.search_model_versions(f"name='{unique_name}'")] == [created.number]


def test_a_run_is_created_once_if_the_response_is_lost(client: mlflow.MlflowClient, gateway: Gateway, unique_name: str) -> None:
    gateway.lost = "runs/create"
    created = tracking.get_or_create_run(unique_name)
    assert gateway.lost == ""
    assert [run.info.run_id for run in runs(client, unique_name)] == [created.run_id]


def test_an_alias_moves(stack: Path, unique_name: str) -> None:
    run = tracking.get_or_create_run(unique_name)
    for source in ("s3://b/1/", "s3://b/2/"):
        model_registry.set_alias(
            unique_name, "champion-cpu", model_registry.get_or_create_version(unique_name, run.run_id, source, {}).number
        )
        resolved = model_registry.find_version(unique_name, "champion-cpu")
        assert resolved is not None
        assert resolved.source == source
    assert model_registry.find_version(unique_name, "1") is not None


@pytest.mark.parametrize("reference", ["champion-cpu", "7", "no such alias!", ""])
def test_a_missing_version_is_none(stack: Path, unique_name: str, reference: str) -> None:
    assert model_registry.find_version("no-such-model", reference) is None
    model_registry.get_or_create_version(unique_name, tracking.get_or_create_run(unique_name).run_id, "s3://b/1/", {})
    assert model_registry.find_version(unique_name, reference) is None


def test_the_tags_of_a_version_are_kept(stack: Path, unique_name: str) -> None:
    version = model_registry.get_or_create_version(
        unique_name, tracking.get_or_create_run(unique_name).run_id, "s3://b/1/", {"variant": "cpu", "commit": "c1"}
    )
    stored = model_registry.find_version(unique_name, version.number)
    assert stored is not None
    assert stored.tags == {"variant": "cpu", "commit": "c1"}


@pytest.mark.fault("mlflow-down-at-registration", "registration-interrupted")
def test_a_registration_that_mlflow_interrupts_is_completed_by_a_retry(
    client: mlflow.MlflowClient, gateway: Gateway, dataset: Path, candidate: Path, bucket: str, unique_name: str
) -> None:
    parts: Any = {"cpu": [CandidateArtifacts.below(candidate, "cpu")]}
    options = {"store": bucket, "pipeline_run": unique_name, "model_name": unique_name}
    for down in ("model-versions/create", "registered-models/alias"):
        gateway.down = down
        with pytest.raises(TrackingError, match="MLflow refused the request or did not respond"):
            registration.register(dataset, parts, **options)
        run_id = tracking.get_or_create_run(unique_name, "minilm").run_id
        assert store.read(f"{bucket}models/{unique_name}/{run_id}/cpu/", manifest.NAME) is not None
    gateway.down = ""
    assert registration.register(dataset, parts, **options)["cpu"]["alias"] == "champion-cpu"
    assert [version.version for version in client.search_model_versions(f"name='{unique_name}'")] == ["1"]


def test_runs_created_by_the_kubeflow_plugin_are_used(
    client: mlflow.MlflowClient, unique_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = client.create_experiment(unique_name)
    parent = client.create_run(experiment).info.run_id
    ingest, train, register = (
        client.create_run(experiment, tags={"mlflow.parentRunId": parent}).info.run_id for _ in ("ingest", "train", "register")
    )
    monkeypatch.setenv("MLFLOW_RUN_ID", ingest)
    assert tracking.get_or_create_run(unique_name).run_id == parent
    monkeypatch.setenv("MLFLOW_RUN_ID", train)
    with tracking.step(unique_name, "minilm") as run:
        run.log_metrics({"seconds": 3})
    assert run.run_id == train
    assert client.get_run(train).data.metrics == {"seconds": 3}
    # Later steps use the run that train recorded, not those that the plugin created for them.
    monkeypatch.setenv("MLFLOW_RUN_ID", register)
    assert tracking.get_or_create_run(unique_name, "minilm").run_id == train
    assert tracking.get_or_create_run(unique_name).run_id == parent
    assert run.link("https://mlflow.example/") == f"https://mlflow.example/#/experiments/{experiment}/runs/{train}"
    assert len(client.search_runs([experiment])) == 4


def test_a_step_that_runs_again_uses_the_run_of_its_first_attempt(
    client: mlflow.MlflowClient, unique_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = client.create_experiment(unique_name)
    parent = client.create_run(experiment).info.run_id
    first, second = (client.create_run(experiment, tags={"mlflow.parentRunId": parent}).info.run_id for _ in range(2))
    monkeypatch.setenv("MLFLOW_RUN_ID", first)

    def fail() -> None:
        with tracking.step(unique_name, "minilm") as run:
            run.log_metrics({"loss": 2.0}, 1)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    # The plugin makes another run for the second attempt.
    monkeypatch.setenv("MLFLOW_RUN_ID", second)
    with tracking.step(unique_name, "minilm") as run:
        run.log_metrics({"loss": 1.0}, 2)
    assert run.run_id == first
    assert client.get_run(first).info.status == "FINISHED"
    assert [entry.value for entry in client.get_metric_history(first, "loss")] == [2.0, 1.0]
    assert client.get_run(second).data.metrics == {}


def test_the_history_of_a_version_is_returned_in_order(client: mlflow.MlflowClient, unique_name: str) -> None:
    run = tracking.get_or_create_run(unique_name).run_id
    version = model_registry.get_or_create_version(unique_name, run, "s3://goemotions/models/x/", {"variant": "cpu"})
    changes.record(unique_name, version, "promote", "champion-cpu", "")
    changes.record(unique_name, version, "deploy", "models/goemotions-cpu", "3", percent=10)
    changes.record(unique_name, version, "rollback", "champion-cpu", "4")
    stored = model_registry.get_version(unique_name, version.number)
    assert [(one.action, one.before, one.after) for one in changes.history(stored, "champion-cpu")] == [
        ("promote", "", version.number),
        ("rollback", "4", version.number),
    ]
    (deployed,) = changes.history(stored, "models/goemotions-cpu")
    assert deployed.percent == 10


@pytest.mark.fault("mlflow-down-in-training")
def test_epochs_that_an_earlier_attempt_could_not_log_are_logged_later(
    client: mlflow.MlflowClient, gateway: Gateway, unique_name: str
) -> None:
    history = [{"auc": 0.5, "loss": 3.0}, {"auc": 0.6, "loss": 2.0}, {"auc": 0.7, "loss": 1.0}]
    run = tracking.get_or_create_run(unique_name, "minilm")
    run.log_metrics(history[0], 1)
    gateway.down = "/"
    run.log_metrics(history[1], 2)
    with pytest.raises(TrackingError):
        run.finish()
    gateway.down = ""
    # The next attempt resumes after the second epoch, whose metrics are in no other process.
    with tracking.step(unique_name, "minilm") as run:
        run.log_metrics(history[2], 3)
        run.log_missing(history)
    logged = client.get_metric_history(run.run_id, "loss")
    assert sorted((metric.step, metric.value) for metric in logged) == [(1, 3.0), (2, 2.0), (3, 1.0)]
    assert client.get_run(run.run_id).info.status == "FINISHED"


def test_mlflow_sends_no_telemetry() -> None:
    # In tests and CI, which MLflow recognizes by these variables, it sends no telemetry anyway.
    script = (
        "import os\n"
        "for name in [name for name in os.environ if name.startswith(('PYTEST', 'CI', 'GITHUB', 'MLFLOW', 'DO_NOT_TRACK'))]:\n"
        "    del os.environ[name]\n"
        "from goemotions.registry import changes, mlflow_client, model_registry, tracking\n"
        "import mlflow, mlflow.telemetry.utils as utils\n"
        "print(utils.is_telemetry_disabled(), utils._IS_IN_CI_ENV_OR_TESTING)"
    )
    finished = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert finished.stdout.split() == ["True", "False"]


@pytest.mark.parametrize(
    "error",
    [
        ModuleNotFoundError("No module named 'psycopg2'", name="psycopg2"),
        RuntimeError("postgresql://user:" + "s3cret@host is away"),
        ConnectionResetError(),
        UnicodeDecodeError("utf-8", b"x", 0, 1, "r"),
        KeyError("run"),
        RecursionError(),
    ],
    ids=lambda error: type(error).__name__,
)
def test_any_error_of_mlflow_and_of_what_it_uses_is_a_named_error(error: Exception) -> None:
    with pytest.raises(TrackingError, match=r"^[^\n]+: [^\n]+$") as named, mlflow_client.translate_errors():
        raise error
    assert "s3cret" not in str(named.value)


def test_a_database_without_its_driver_is_named(use_server: Callable[[str], None]) -> None:
    use_server("mysql+nodriver://user:" + "s3cret@127.0.0.1:1/db")
    with pytest.raises(TrackingError) as named:
        model_registry.find_version("goemotions", "1")
    assert "s3cret" not in str(named.value)


class Failing:
    """A client of MLflow all of whose calls raise an exception."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def __getattr__(self, name: str) -> Callable[..., None]:
        def fail(*_: Any, **__: Any) -> None:
            raise self.error

        return fail


def exceptions() -> list[Exception]:
    """One exception of every class of MLflow, of its HTTP library and of its database library that takes a message."""
    made: list[Exception] = [OSError("x"), ValueError("x"), KeyError("x"), TypeError("x"), AttributeError("x")]
    for module in (mlflow.exceptions, requests.exceptions, sqlalchemy.exc):
        for kind in vars(module).values():
            if isinstance(kind, type) and issubclass(kind, Exception) and not issubclass(kind, Warning):
                with contextlib.suppress(TypeError, AttributeError):
                    made.append(kind("at http://user:phrase@host/\nthe second line"))
    return made


CALLS: dict[str, Callable[[], object]] = {
    "get_or_create_run": lambda: tracking.get_or_create_run("p"),
    "tags_of_runs": lambda: tracking.tags_of_runs("p"),
    "run_tags": lambda: tracking.run_tags("r"),
    "get_or_create_version": lambda: model_registry.get_or_create_version("m", "r", "s3://b/", {}),
    "set_alias": lambda: model_registry.set_alias("m", "champion-cpu", "1"),
    "log_once": lambda: tracking.Run("r").log_once({"a": 1.0}, {}),
    "set_tags": lambda: tracking.Run("r").set_tags({"a": "b"}),
    "finish": lambda: tracking.Run("r").finish(),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_whatever_mlflow_raises_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: Callable[[], object]) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.setattr(mlflow_client, "WAIT_SECONDS", ())
    made = exceptions()
    assert len(made) > 40
    for error in made:
        monkeypatch.setattr(mlflow_client, "client", lambda error=error: Failing(error))
        with pytest.raises(TrackingError) as raised:
            call()
        assert "phrase" not in str(raised.value)
        assert len(str(raised.value).splitlines()) == 1
