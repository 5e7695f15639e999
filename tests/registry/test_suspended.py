"""A process that is suspended in the middle of a write, for longer than its lease: what others did meanwhile stands."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from goemotions.cli import main as cli
from goemotions.registry import changes, model_registry, promotion, registration, retirement, rollouts, tracking, trust
from goemotions.registry.bundle import BundleLocation
from goemotions.registry.retirement import Policy
from goemotions.storage import lock, manifest, signature, store
from tests.support.champions import make_champion

ROOT = Path(__file__).parents[2]
LEASE_SECONDS = 4.0
# The process stops itself just before it sends the first request of this kind, and may be killed just after it.
SUSPENDED = """
import os, signal, sys
import requests
from goemotions.registry import model_registry, promotion, registration, retirement, rollouts, trust
from goemotions.registry.bundle import BundleLocation
from goemotions.storage import lock

model, method, end, action, killed = sys.argv[1:]
lock.LEASE_SECONDS = 4.0
request = requests.Session.request

def suspended(session, verb, url, *arguments, **options):
    if verb == method and url.endswith(end):
        requests.Session.request = request
        os.kill(os.getpid(), signal.SIGSTOP)
        if killed:
            request(session, verb, url, *arguments, **options)
            os.kill(os.getpid(), signal.SIGKILL)
    return request(session, verb, url, *arguments, **options)

requests.Session.request = suspended
exec(action)
"""
PROMOTE = """
version = model_registry.get_version(model, "2")
with lock.hold(BundleLocation.parse(version.source).model_prefix) as held:
    promotion.set_champion(model, version, "cpu", "1", held)
"""
RETIRE = "retirement.retire(model, retirement.Policy(newest=0, days=0))"


@pytest.fixture
def model(bucket: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """A registered model with three versions, of which the first is champion."""
    name = re.sub(r"\W+", "-", request.node.name)
    monkeypatch.setattr(lock, "LEASE_SECONDS", LEASE_SECONDS)
    for number in range(3):
        run_id = tracking.get_or_create_run(f"{name}-{number}").run_id
        location = str(BundleLocation(bucket, name, run_id, "cpu"))
        store.write(location, manifest.NAME, b'{"files": {}}')
        model_registry.get_or_create_version(name, run_id, location, {"variant": "cpu"})
    make_champion(name, "1")
    return name


def suspend(model: str, request: tuple[str, str], action: str, meanwhile: Callable[[], object], *, killed: bool = False) -> str:
    """What a process writes to stderr that is suspended before a request, for as long as others act."""
    command = [sys.executable, "-c", SUSPENDED, model, *request, action, "killed" if killed else ""]
    process = subprocess.Popen(command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, stderr=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 60
        while Path(f"/proc/{process.pid}/stat").read_text(encoding="utf-8").rpartition(") ")[2][0] != "T":
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        meanwhile()
        time.sleep(LEASE_SECONDS)
    finally:
        process.send_signal(signal.SIGCONT)
    return process.communicate(timeout=60)[1]


def status(model: str) -> list[str]:
    arguments = ["model", "status", "--model-name", model, "--no-cluster"]
    return CliRunner().invoke(cli.commands, arguments, catch_exceptions=False).output.splitlines()


ALIAS, RECORD = ("POST", "/registered-models/alias"), ("POST", "/model-versions/set-tag")


@pytest.mark.slow
@pytest.mark.fault("lock-lost")
@pytest.mark.parametrize("request_", [RECORD, ALIAS, ("POST", "/registered-models/set-tag")], ids=["record", "alias", "number"])
def test_the_champion_of_the_process_that_took_over_stays(model: str, request_: tuple[str, str]) -> None:
    error = suspend(model, request_, PROMOTE, lambda: make_champion(model, "3"))
    assert "LockLost" in error
    champion = promotion.champion(model, "cpu")
    assert champion is not None
    assert champion.number == "3"
    history = [one for version in model_registry.versions(model) for one in changes.history(version)]
    assert sorted((one.sequence, one.before, one.after) for one in history) == [(1, "", "1"), (history[0].sequence, "1", "3")]
    make_champion(model, "2")
    assert changes.history(model_registry.get_version(model, "2"))[-1].sequence > history[0].sequence


@pytest.mark.slow
@pytest.mark.fault("lock-lost")
def test_the_status_names_a_champion_that_was_overwritten_by_a_process_which_could_not_undo_it(model: str) -> None:
    suspend(model, ALIAS, PROMOTE, lambda: make_champion(model, "3"), killed=True)
    champion = promotion.champion(model, "cpu")
    assert champion is not None
    assert champion.number == "2"
    (line,) = (line for line in status(model) if "champion-cpu" in line)
    assert "champion-cpu is version 2, but " in line
    assert "made it version 3" in line
    assert "`make rollback VARIANT=cpu TO=3`" in line
    promotion.rollback("cpu", model_name=model, to="3")
    assert not any("champion-cpu" in line for line in status(model))


@pytest.mark.slow
@pytest.mark.fault("lock-lost", "retired-while-deployed")
def test_a_rollout_that_is_begun_while_its_version_is_retired_leaves_no_record(model: str) -> None:
    begin = """
rollouts.begin(model, "service", model_registry.get_version(model, "2"), rollouts.Record("2", "1", "digest"))
"""
    request = ("POST", "/registered-models/set-tag")
    assert "LockLost" in suspend(model, request, begin, lambda: retirement.retire(model, Policy(newest=0, days=0)))
    assert model_registry.find_version(model, "2").is_removed  # type: ignore[union-attr]
    assert rollouts.records(model) == {}


@pytest.mark.slow
@pytest.mark.fault("lock-lost")
def test_a_suspended_process_that_nobody_overtook_moves_the_champion(model: str) -> None:
    assert "LockLost" in suspend(model, ALIAS, PROMOTE, lambda: None)
    assert promotion.champion(model, "cpu") == model_registry.get_version(model, "2")
    assert [one.after for one in changes.history(model_registry.get_version(model, "2"))] == ["2"]


@pytest.mark.slow
@pytest.mark.fault("lock-lost", "retired-while-deployed")
def test_a_version_that_is_promoted_while_it_is_retired_keeps_its_bundle(model: str) -> None:
    assert "LockLost" in suspend(model, RECORD, RETIRE, lambda: make_champion(model, "2"))
    version = model_registry.get_version(model, "2")
    assert promotion.champion(model, "cpu") == version
    assert store.has(version.source, manifest.NAME)


@pytest.mark.slow
@pytest.mark.fault("lock-lost", "version-renumbered")
def test_a_version_that_is_created_twice_keeps_its_first_number(
    model: str, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The number is signed: with the second one, the first would be refused, also as champion."""
    signature.create_keys(tmp_path)
    monkeypatch.setenv(signature.SIGNING_KEY, str(tmp_path / signature.PRIVATE_FILE))
    run_id = tracking.get_or_create_run(f"{model}-twice").run_id
    location = BundleLocation(bucket, model, run_id, "cpu")
    store.write(str(location), manifest.NAME, b'{"files": {}}')
    store.write(str(location), signature.NAME, signature.sign(b'{"files": {}}', trust.identity(location)) or b"")
    register = f"""
with lock.hold({location.model_prefix!r}) as held:
    registration.create_version(model, {run_id!r}, {str(location)!r}, {{"variant": "cpu"}}, held)
"""

    def meanwhile() -> None:
        with lock.hold(location.model_prefix) as held:
            registration.create_version(model, run_id, str(location), {"variant": "cpu"}, held)

    assert "LockLost" in suspend(model, ("POST", "/model-versions/create"), register, meanwhile)
    found = model_registry.version_of_bundle(model, run_id, str(location))
    assert found is not None
    assert found.number == "4"
    assert "signed by the key" in trust.check(found)
    assert [one.kept for one in retirement.plan(model, Policy(0, 0)) if one.version.number == "5"]
