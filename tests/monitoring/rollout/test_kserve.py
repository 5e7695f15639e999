"""Rollouts of an InferenceService, against a Kubernetes API in a process of its own, and two servers with a load."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import pytest
import yaml

from goemotions.deployment import kserve
from goemotions.deployment.traffic import KServeSplit, Shares
from goemotions.errors import RolledBack, TrafficChanged
from goemotions.monitoring.rollout import rollout
from goemotions.monitoring.rollout import state as rollout_state
from goemotions.monitoring.rollout.answers import Expected
from goemotions.monitoring.rollout.plan import Plan
from goemotions.monitoring.rollout.sources import Scrape
from goemotions.registry import model_registry, rollouts, tracking
from goemotions.storage import layout
from tests.support import kserve_rules
from tests.support.kubernetes_process import Kubernetes, running
from tests.support.versions import Machine, machine

MANIFEST = Path(__file__).parents[3] / "manifests" / "isvc.yaml"
LABELS, SERVICE, MODEL = ("calm", "dread", "glee"), "goemotions-cpu", "on-kserve"
PLAN = Plan(step_requests=20, step_texts=40, step_seconds=0, window_seconds=0.05, hold_seconds=20)
EQUAL = Expected(LABELS, 400, 0, (130,) * 3, (130,) * 3)


@pytest.fixture(scope="module")
def versions(stack: Path) -> None:
    """A model whose version 1 is champion; the pods of version 3 do not start."""
    run = tracking.get_or_create_run(MODEL).run_id
    for place in (f"{1:032x}", f"{2:032x}", "broken"):
        tags = {"variant": "cpu", "profile": "minilm"}
        model_registry.get_or_create_version(MODEL, run, f"s3://goemotions/models/{MODEL}/{place}/cpu/", tags)
    model_registry.set_alias(MODEL, "champion-cpu", "1")


@pytest.fixture(params=["Standard", "Knative"])
def kubernetes(
    versions: None, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Kubernetes]:
    """The API with a service of version 1, in either mode of KServe."""
    documents = list(yaml.safe_load_all(MANIFEST.read_text()))
    for document in documents:
        if document["kind"] == "InferenceService":
            document["metadata"]["annotations"]["serving.kserve.io/deploymentMode"] = request.param
            if request.param == "Knative":
                # As manifests/overlays/knative leaves it out.
                document["spec"]["predictor"].pop("deploymentStrategy", None)
    (tmp_path / "isvc.yaml").write_text(yaml.safe_dump_all(documents))
    with running(tmp_path / "isvc.yaml", tmp_path, monkeypatch) as server:
        kserve.deploy("1", SERVICE, "", model_name=MODEL, wait_seconds=10)
        yield server


@pytest.fixture
def servers() -> Iterator[Machine]:
    """Half of the load reaches each: the analysis takes the shares that it sees."""
    with machine("1", "2", LABELS, MODEL) as both:
        both.proxy.shares.update(canary="2", percent=50)
        yield both


def begin(number: str = "2") -> None:
    """Leaves the state of a rollout that has passed the gate."""
    state = rollout_state.State(number, "1", SERVICE, [20, 50], asdict(EQUAL))
    rollouts.write(MODEL, SERVICE, state.record())
    rollout_state.write(layout.rollout("s3://goemotions/", MODEL, SERVICE), rollout_state.FILE, state)


def roll_out(servers: Machine, number: str = "2") -> None:
    split = KServeSplit(SERVICE, model_name=MODEL, wait_seconds=10)
    source = Scrape(lambda: [version.address for version in servers.versions.values()])
    rollout.run(number, split, source, PLAN, model_name=MODEL)


def shares_of(kubernetes: Kubernetes) -> list[tuple[str, int]]:
    """The canary and its share after each write."""
    return [(shares.canary, shares.percent) for shares in (_shares(one) for one in kubernetes.writes())]


def _shares(service: dict) -> Shares:  # type: ignore[type-arg]
    status = kserve.ServiceStatus.of(service)
    return Shares(status.version, status.canary_version, status.canary_percent)


@pytest.mark.fault("bad-version")
def test_a_bad_version_is_rolled_back_on_kserve(kubernetes: Kubernetes, servers: Machine) -> None:
    begin()
    servers.versions["2"].shift = 1
    with pytest.raises(RolledBack, match="version 2 was rolled back at 20% of goemotions-cpu"):
        roll_out(servers)
    assert ("2", 20) in shares_of(kubernetes)
    assert KServeSplit(SERVICE).shares() == Shares("1")
    assert not [error for one in kubernetes.writes() for error in kserve_rules.violations(one)]
    assert kubernetes.errors() == 0


@pytest.mark.fault("rollout-api-away")
@pytest.mark.parametrize("kubernetes", ["Standard"], indirect=True)
def test_an_api_that_is_away_for_a_while_does_not_keep_traffic_on_a_bad_version(
    kubernetes: Kubernetes, servers: Machine
) -> None:
    begin()
    servers.versions["2"].shift = 1
    split = KServeSplit(SERVICE, model_name=MODEL, wait_seconds=10)

    def show(_: str) -> None:
        # After a look, and before what it decides.
        kubernetes.switch(refuse=503)
        threading.Timer(1.0, kubernetes.switch, kwargs={"refuse": 0}).start()

    source = Scrape(lambda: [version.address for version in servers.versions.values()])
    with pytest.raises(RolledBack, match="version 2 was rolled back at 20% of goemotions-cpu"):
        rollout.run("2", split, source, PLAN, model_name=MODEL, show=show)
    assert split.shares() == Shares("1")


@pytest.mark.slow
@pytest.mark.fault("rollout-traffic-changed")
def test_a_canary_that_somebody_else_sets_stops_the_rollout(kubernetes: Kubernetes, servers: Machine) -> None:
    kserve.deploy("2", SERVICE, "", model_name=MODEL, canary_percent=33, wait_seconds=10)
    begin()
    with pytest.raises(TrafficChanged, match="goemotions-cpu serves version 1 and 33% version 2"):
        roll_out(servers)
    assert KServeSplit(SERVICE).shares() == Shares("1", "2", 33)


@pytest.mark.slow
@pytest.mark.fault("canary-not-ready")
@pytest.mark.parametrize("kubernetes", ["Standard"], indirect=True)
def test_a_canary_whose_pods_do_not_start_is_rolled_back(kubernetes: Kubernetes, servers: Machine) -> None:
    begin("3")
    split = KServeSplit(SERVICE, model_name=MODEL, wait_seconds=1)
    with pytest.raises(RolledBack, match="it does not become ready: goemotions-cpu is not ready after 1 s"):
        rollout.run("3", split, Scrape(list), PLAN, model_name=MODEL)
    assert KServeSplit(SERVICE).shares() == Shares("1")


@pytest.mark.parametrize("kubernetes", ["Standard"], indirect=True)
def test_a_canary_has_as_many_pods_per_request_as_the_stable_version(kubernetes: Kubernetes) -> None:
    split = KServeSplit(SERVICE, model_name=MODEL, wait_seconds=10)
    pods = {}
    for percent in (5, 50, 80):
        split.deploy("2", percent)
        (canary,) = kubernetes.writes()[-1]["spec"]["canary"]
        pods[percent] = canary["predictor"]["minReplicas"]
    assert pods == {5: 1, 50: 2, 80: 2}
