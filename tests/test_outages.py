"""Outages of the store, the registry and the hub: a step waits for them at every boundary, and only for those."""

from __future__ import annotations

import itertools
import json
import logging
import os
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
import requests
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

from goemotions import defaults, outages
from goemotions.data import hub as data_hub
from goemotions.errors import BadArgument, LockLost, SourceUnreachable, StorageError, StorageUnavailable, TrackingError
from goemotions.registry import changes, mlflow_client, model_registry, tracking
from goemotions.storage import lock, s3, store
from tests.support import hub
from tests.support.away import Port, in_front_of


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Waits as a step does, with short pauses, and with clients that do not try again by themselves."""
    monkeypatch.setenv(outages.VARIABLE, str(defaults.OUTAGE_SECONDS))
    monkeypatch.setattr(outages, "FIRST_SECONDS", 0.01)
    monkeypatch.setattr(outages, "LONGEST_SECONDS", 0.02)
    monkeypatch.setattr(s3, "ATTEMPTS", 1)
    monkeypatch.setenv(mlflow_client.RETRIES, "0")
    s3.client.cache_clear()
    mlflow_client.client.cache_clear()
    yield
    monkeypatch.undo()
    s3.client.cache_clear()
    mlflow_client.client.cache_clear()


@pytest.fixture
def unique_name() -> str:
    return f"outage-{uuid.uuid4().hex[:8]}"


@pytest.fixture
def away_store(stack: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Port]:
    with in_front_of(os.environ["AWS_ENDPOINT_URL"]) as port:
        monkeypatch.setenv("AWS_ENDPOINT_URL", port.address)
        yield port


@pytest.fixture
def away_registry(stack: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Port]:
    with in_front_of(os.environ["MLFLOW_TRACKING_URI"]) as port:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", port.address)
        yield port


def after_an_outage(port: Port, request: Callable[[], object]) -> object:
    """What a request returns that begins while the next three connections are dropped."""
    s3.client.cache_clear()
    mlflow_client.client.cache_clear()
    before = port.dropped
    port.drop(3)
    result = request()
    assert port.dropped == before + 3
    return result


def test_every_request_to_the_store_outlasts_an_outage(away_store: Port, bucket: str, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x").write_text("content")

    def locked() -> bool:
        with lock.hold(bucket) as held, held.writing():
            return store.write_new(bucket, "written", b"1")

    def opened() -> bytes:
        with store.open_file(bucket, "x") as file:
            return file.read()

    after_an_outage(away_store, lambda: store.put(tmp_path / "a", bucket))
    assert after_an_outage(away_store, lambda: store.has(bucket, "x"))
    assert after_an_outage(away_store, lambda: store.read(bucket, "x")) == b"content"
    assert after_an_outage(away_store, opened) == b"content"
    fetched = after_an_outage(away_store, lambda: store.fetch(bucket, tmp_path / "b"))
    assert isinstance(fetched, Path)
    assert (fetched / "x").read_text() == "content"
    assert after_an_outage(away_store, lambda: store.write_new(bucket, "new", b"1"))
    assert after_an_outage(away_store, locked)
    after_an_outage(away_store, lambda: store.remove(bucket))


def test_every_request_to_the_registry_outlasts_an_outage(away_registry: Port, unique_name: str, tmp_path: Path) -> None:
    (tmp_path / "x").write_text("content")
    run = tracking.get_or_create_run(unique_name)
    info: Any = {"source": "sample", "revision": "shipped", "digest": "d" * 64, "labels": ["a"], "rows": {"train": 1}}
    version = model_registry.get_or_create_version(unique_name, run.run_id, "s3://goemotions/models/x/", {"variant": "cpu"})
    for request in (
        lambda: tracking.get_or_create_run(unique_name, "minilm"),
        lambda: run.log_once({"a": 1.0}, {"b": "c"}),
        lambda: run.log_parameters({"p": 1}),
        lambda: run.set_tags({"t": "u"}),
        lambda: run.log_dataset(info),
        lambda: run.log_folder(tmp_path, "folder"),
        lambda: run.link(),
        lambda: model_registry.find_version(unique_name, "1"),
        lambda: model_registry.set_alias(unique_name, "champion-cpu", "1"),
        lambda: changes.record(unique_name, version, "promote", "champion-cpu", ""),
        lambda: run.finish(),
    ):
        after_an_outage(away_registry, request)
    assert len(tracking.tags_of_runs(unique_name)) == 2
    stored = model_registry.get_version(unique_name, "champion-cpu")
    assert [entry.action for entry in changes.history(stored, "champion-cpu")] == ["promote"]


def test_training_does_not_wait_for_its_metrics_and_sends_them_at_the_end(away_registry: Port, unique_name: str) -> None:
    run = tracking.get_or_create_run(unique_name)
    away_registry.drop(1000)
    run.log_metrics({"loss": 1.0}, 1)
    assert away_registry.dropped < 10
    away_registry.away = 3
    run.finish()
    assert mlflow_client.client().get_run(run.run_id).data.metrics == {"loss": 1.0}


def test_the_hub_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "repository").mkdir()
    (tmp_path / "repository" / "README.md").write_text("card")
    (tmp_path / "repository" / "train.csv").write_text("text,label\na lake,calm\n")
    with hub.serve({"team/data": tmp_path / "repository"}) as (address, _), in_front_of(address) as port:
        hub.use_hub(port.address, tmp_path / "cache", monkeypatch)
        port.away = 3
        folder = data_hub.fetch("hub:team/data")
        assert (folder / "README.md").read_text() == "card"
        assert port.dropped == 3
        monkeypatch.setenv(outages.VARIABLE, "0.05")
        port.drop(1000)
        with pytest.raises(SourceUnreachable):
            data_hub.fetch("hub:team/other")


def test_an_outage_that_lasts_longer_is_a_named_error(away_store: Port, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(outages.VARIABLE, "0.3")
    away_store.drop(10_000)
    with pytest.raises(StorageUnavailable, match="cannot be reached"):
        store.read(bucket, "x")
    assert away_store.dropped > 3


def test_what_does_not_pass_is_not_waited_for(
    stack: Path, monkeypatch: pytest.MonkeyPatch, bucket: str, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with caplog.at_level(logging.WARNING), pytest.raises(StorageError, match="credentials are not valid"):
        store.read(bucket, "x")
    with pytest.raises(TrackingError, match="refused"):
        tracking.run_tags("0" * 32)
    assert "tried again" not in caplog.text


def test_the_end_of_a_long_outage_is_noticed_within_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.setenv(outages.VARIABLE, str(defaults.OUTAGE_SECONDS))
    clock = [0.0]
    passing = SimpleNamespace(monotonic=lambda: clock[0], sleep=lambda seconds: clock.append(clock.pop() + seconds))
    monkeypatch.setattr(outages, "time", passing)
    moments: list[float] = []

    def request() -> None:
        moments.append(clock[0])
        raise StorageUnavailable("the store does not respond")

    with pytest.raises(StorageUnavailable):
        outages.retry(request, lambda _: True, "the store")
    assert max(later - moment for moment, later in itertools.pairwise(moments)) < 60
    assert moments[-1] == pytest.approx(defaults.OUTAGE_SECONDS)


def test_a_write_is_not_repeated_after_another_process_has_taken_the_lock_over(
    bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(outages.VARIABLE, "2")
    attempts = []

    def write() -> None:
        attempts.append("a request without a response, meanwhile the lock is taken over")
        store.write(bucket, lock.NAME, json.dumps({"holder": "another process", "written": "now"}).encode())
        raise StorageUnavailable("the store does not respond")

    with pytest.raises(LockLost), lock.hold(bucket) as held, held.writing():
        outages.retry(write, lambda error: isinstance(error, StorageUnavailable), "the store")
    assert len(attempts) == 1


def test_commands_do_not_wait(away_store: Port, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(outages.VARIABLE)
    away_store.drop(1000)
    with pytest.raises(StorageUnavailable):
        store.read(bucket, "x")
    assert away_store.dropped == 1


def response(status: int) -> requests.Response:
    made = requests.Response()
    made.status_code = status
    return made


REQUEST = httpx.Request("GET", "http://hub")


@pytest.mark.parametrize(
    ("error", "is_unavailable"),
    [
        (requests.ConnectionError("refused"), True),
        (requests.ReadTimeout("late"), True),
        (httpx.ConnectError("refused"), True),
        (httpx.ReadTimeout("late"), True),
        (requests.HTTPError(response=response(503)), True),
        (requests.HTTPError(response=response(429)), True),
        (requests.HTTPError(response=response(404)), False),
        (HfHubHTTPError("gone", response=httpx.Response(502, request=REQUEST)), True),
        (HfHubHTTPError("gated", response=httpx.Response(403, request=REQUEST)), False),
        (OfflineModeIsEnabled("HF_HUB_OFFLINE=1"), False),
        (requests.exceptions.SSLError("certificate"), False),
        (ValueError("wrong"), False),
    ],
)
def test_an_outage_is_told_from_other_failures(error: Exception, is_unavailable: bool) -> None:
    assert outages.is_unavailable(error) == is_unavailable
    wrapped = RuntimeError("wrapped")
    wrapped.__cause__ = error
    assert outages.is_unavailable(wrapped) == is_unavailable


@pytest.mark.parametrize("value", ["soon", "-1", "inf", "nan"])
def test_a_duration_that_is_none_is_a_named_error(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv(outages.VARIABLE, value)
    with pytest.raises(BadArgument, match=outages.VARIABLE):
        outages.seconds()
