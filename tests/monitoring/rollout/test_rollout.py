"""Rollouts: versions behind a proxy, in steps, with every way they end, and whatever interrupts them."""

from __future__ import annotations

import functools
import json
import math
import re
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from prometheus_client import Counter

from goemotions.deployment.traffic import ProxySplit
from goemotions.errors import (
    BadArgument,
    DeploymentError,
    ModelError,
    MonitoringUnavailable,
    PromotionRefused,
    RolledBack,
    RolloutHeld,
    StorageError,
    StorageUnavailable,
    TrafficChanged,
    WorkflowError,
)
from goemotions.metrics.thresholds import Thresholds
from goemotions.monitoring.exposition import Sample
from goemotions.monitoring.rollout import rollout, step
from goemotions.monitoring.rollout import state as rollout_state
from goemotions.monitoring.rollout.analysis import Analysis
from goemotions.monitoring.rollout.answers import Answers, Expected, read_texts
from goemotions.monitoring.rollout.plan import Plan
from goemotions.monitoring.rollout.sources import Scrape
from goemotions.monitoring.rollout.state import State
from goemotions.monitoring.rollout.version_traffic import VersionTraffic
from goemotions.registry import changes, mlflow_client, model_registry, promotion, references, rollouts, tracking
from goemotions.registry.bundle import BundleLocation
from goemotions.registry.promotion import Move
from goemotions.storage import layout, lease, lock, s3, signature, store
from pipelines import rollout as local
from pipelines import stack as services
from tests.support.champions import add, certain, make_champion, stored
from tests.support.object_store import Behaviour, ObjectStore, running
from tests.support.versions import Machine, Version, machine

LABELS = ("calm", "dread", "glee", "longing", "pity", "scorn", "plain")
PLAN = Plan(step_requests=60, step_texts=40, step_seconds=0, window_seconds=0.1, hold_seconds=20)
EQUAL = Expected(LABELS, 400, 0, (57,) * 7, (57,) * 7)
ANALYSIS = Analysis(PLAN, 7, EQUAL).to_json()


@pytest.fixture(scope="module")
def bundles(stack: Path, dataset: Path, candidate: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Locations of two bundles, the second better than the first."""
    better = certain(candidate, tmp_path_factory.mktemp("better") / "better", 0.99)
    return [stored(f"rollout-{number}", folder, dataset) for number, folder in enumerate((candidate, better))]


@pytest.fixture
def registered(bundles: list[str], request: pytest.FixtureRequest) -> str:
    """A registered model with bundles: version 1 is champion, 2 is better."""
    name = request.node.name
    assert [add(name, location) for location in bundles] == ["1", "2"]
    promotion.promote("1", model_name=name)
    return name


@pytest.fixture(scope="module")
def versions(stack: Path) -> str:
    """A registered model whose bundles are not needed: version 1 is champion."""
    return registered_without_bundles("rolled-out")


def registered_without_bundles(name: str) -> str:
    run = tracking.get_or_create_run(name).run_id
    for number in (1, 2, 3, 4):
        place = f"s3://goemotions/models/{name}/{number:032x}/cpu/"
        model_registry.get_or_create_version(name, run, place, {"variant": "cpu", "profile": "minilm"})
    make_champion(name, "1")
    return name


@dataclass
class Service:
    """A service on this machine and its rollouts."""

    model: str
    name: str
    servers: Machine
    lines: list[str] = field(default_factory=list)

    @property
    def location(self) -> str:
        return layout.rollout(
            BundleLocation.parse(model_registry.get_version(self.model, "2").source).store, self.model, self.name
        )

    @property
    def shares(self) -> tuple[str, str, int]:
        return self.servers.shares

    @property
    def state(self) -> State:
        state = rollout_state.read(self.location)
        assert state is not None
        return state

    @property
    def canary(self) -> Version:
        return self.servers.versions["2"]

    def begun(self, **fields: Any) -> None:
        """Leaves the state of a rollout that has passed the gate, as a process that was killed then does."""
        state = State("2", "1", self.name, [20, 50], asdict(EQUAL), **fields)
        rollouts.write(self.model, self.name, state.record())
        rollout_state.write(self.location, rollout_state.FILE, state)

    def after_a_look(self, change: Callable[[], object]) -> None:
        """Makes a change once the rollout has looked at its first step."""

        def work() -> None:
            while not any(line.startswith("20%") for line in self.lines):
                time.sleep(0.01)
            change()

        threading.Thread(target=work, daemon=True).start()

    def split(self) -> ProxySplit:
        return ProxySplit(self.servers.address, name=self.name, wait_seconds=1)

    def roll_out(self, *, split: Any = None, source: Any = None, number: str = "2", texts: Any = None, **plan: Any) -> Move:
        split = split or self.split()
        source = source or Scrape(split.targets)
        return rollout.run(
            number, split, source, replace(PLAN, **plan), model_name=self.model, show=self.lines.append, texts=texts
        )


@pytest.fixture
def service(versions: str, request: pytest.FixtureRequest) -> Iterator[Service]:
    with machine("1", "2", LABELS, versions) as running:
        yield Service(versions, re.sub(r"\W", "-", request.node.name), running)


@pytest.fixture
def complete(registered: str) -> Iterator[Service]:
    """A service whose versions have bundles."""
    with machine("1", "2", LABELS, registered) as running:
        yield Service(registered, "local", running)


@pytest.mark.slow
@pytest.mark.fault("rollout-killed")
def test_a_version_that_is_no_worse_is_promoted_step_by_step(complete: Service) -> None:
    move = complete.roll_out(steps="20,50,100")
    assert (move.before, move.after, complete.shares) == ("1", "2", ("2", "", 0))
    assert model_registry.get_version(complete.model, "champion-cpu").number == "2"
    ended = complete.state
    assert (ended.phase, [entry["percent"] for entry in ended.history]) == ("promoted", [20, 50])
    for entry in ended.history:
        assert entry["decision"] == "passed"
        assert entry["figures"]["canary"]["requests"] >= PLAN.step_requests
        assert entry["figures"]["compared_texts"] == PLAN.step_texts
    assert any(line.startswith("20%: ") and line.endswith("missing") for line in complete.lines)
    assert (
        json.loads(model_registry.get_version(complete.model, "2").tags[model_registry.ROLLOUT_TAG])["decision"] == "promoted"
    )
    with pytest.raises(PromotionRefused, match="version 2 is the champion already"):
        complete.roll_out()
    # Killed between the alias and the traffic, it is completed by the same command.
    complete.servers.proxy.shares.update(stable="1", canary="2", percent=50)
    complete.begun(phase=rollout_state.PROMOTING, step=1)
    move = complete.roll_out()
    assert (move.before, move.after) == ("1", "2")
    assert complete.shares == ("2", "", 0)


@pytest.mark.fault("bad-version")
@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        pytest.param({"delay": 0.2}, r"it is slower \(p95 \d+ ms against \d+ ms\)", marks=pytest.mark.slow),
        pytest.param(
            {"errors": 0.3}, r"it fails more often \(\d+ of \d+ requests against 0 of \d+ requests\)", marks=pytest.mark.slow
        ),
        pytest.param(
            {"rejections": 0.3},
            r"it rejects more requests than the champion \(\d+ of \d+ requests against 0 of \d+ requests, 0 of \d+ that both",
            marks=pytest.mark.slow,
        ),
        ({"rejected_copies": 1.0}, r"it rejects more requests than the champion \(.*, (\d+) of \1 that both got\)"),
        ({"lacks_scores": True}, r"it rejects more requests than the champion \(.*, (\d+) of \1 that both got\)"),
        ({"shift": 1}, r"its labels differ from the champion's on more texts than in validation \(\d+ of \d+ texts"),
    ],
    ids=["slow", "failing", "rejecting", "rejecting-texts", "no-scores", "other-labels"],
)
def test_a_bad_version_is_rolled_back_and_the_reason_is_recorded(
    service: Service, fault: dict[str, float], reason: str
) -> None:
    service.begun()
    vars(service.canary).update(fault)
    with pytest.raises(RolledBack, match=rf"version 2 was rolled back at 20% of .*, version 1 has all the traffic: .*{reason}"):
        service.roll_out()
    assert service.shares == ("1", "", 0)
    assert model_registry.get_version(service.model, "champion-cpu").number == "1"
    ended = service.state
    assert (ended.phase, ended.history[-1]["decision"]) == ("rolled back", f"rolled back: {ended.reason}")
    assert (
        json.loads(model_registry.get_version(service.model, "2").tags[model_registry.ROLLOUT_TAG])["reason"]
        == ended.reason[:500]
    )


@pytest.mark.fault("rollout-undecided")
def test_without_traffic_the_rollout_is_held_says_how_much_is_missing_and_goes_on(service: Service) -> None:
    service.begun()
    service.servers.paused.set()
    with pytest.raises(
        RolloutHeld, match=r"held at 20% of .*: 60 of 60 requests to each version.* missing; both versions serve"
    ):
        service.roll_out(hold_seconds=0.3)
    assert service.shares == ("1", "2", 20)
    assert service.state.history[-1]["decision"].startswith("held: 60 of 60 requests")
    service.servers.paused.clear()
    service.canary.errors = 0.5
    with pytest.raises(RolledBack):
        service.roll_out()


@pytest.mark.slow
@pytest.mark.fault("rollout-undecided")
def test_a_canary_is_not_blamed_for_a_champion_that_fails(service: Service) -> None:
    service.begun()
    for version in service.servers.versions.values():
        version.errors = 0.6
    with pytest.raises(RolloutHeld, match=r"the champion itself fails \d+ of its last \d+ requests"):
        service.roll_out(hold_seconds=4)
    assert service.shares == ("1", "2", 20)


@pytest.mark.fault("challenger-rejects")
def test_copies_that_the_version_rejects_count_against_it(service: Service) -> None:
    """The champion has a shadow; its counter is that of the server."""
    service.begun()
    champion = service.servers.versions["1"]
    copies = Counter("goemotions_shadow_texts", "", ["version", "labels"], registry=champion.registry)
    for labels in ("same", "rejected"):
        copies.labels("2", labels)

    def copy() -> None:
        while not service.servers.ended.wait(0.01):
            copies.labels("2", "same").inc(5)
            copies.labels("2", "rejected").inc(2)

    threading.Thread(target=copy, daemon=True).start()
    with pytest.raises(RolledBack, match=r"it rejects more requests than the champion \(.*, [1-9]\d* of \d+ that both got\)"):
        service.roll_out(step_requests=10_000)
    assert service.shares == ("1", "", 0)


@pytest.mark.fault("challenger-rejects")
def test_a_version_is_not_blamed_for_texts_that_the_champion_rejects(service: Service) -> None:
    service.begun()
    for version in service.servers.versions.values():
        version.rejected_copies = 1.0
    with pytest.raises(RolloutHeld, match=r"does not accept the request \(HTTP Error 400: Bad Request\)"):
        service.roll_out(step_requests=10_000, hold_seconds=0.6)
    assert service.shares == ("1", "2", 20)


class Away:
    """Metrics that cannot be read for some looks."""

    def __init__(self, source: Scrape, looks: int) -> None:
        self.source, self.looks = source, looks

    def read(self) -> Any:
        self.looks -= 1
        if self.looks >= 0:
            raise MonitoringUnavailable("prometheus:9090 does not respond (refused)")
        return self.source.read()


@pytest.mark.slow
@pytest.mark.fault("rollout-undecided")
def test_metrics_that_are_away_for_a_while_are_waited_for_and_otherwise_hold_the_rollout(service: Service) -> None:
    service.begun()
    source = Scrape(service.split().targets)
    with pytest.raises(RolloutHeld, match="prometheus:9090 does not respond"):
        service.roll_out(source=Away(source, 1000), hold_seconds=0.3)
    service.canary.shift = 1
    with pytest.raises(RolledBack):
        service.roll_out(source=Away(source, 3))


@pytest.mark.slow
@pytest.mark.fault("canary-not-ready")
def test_a_canary_that_does_not_become_ready_is_rolled_back(service: Service) -> None:
    service.begun()
    service.canary.is_ready = False
    with pytest.raises(RolledBack, match=r"it does not become ready: version 2 at .* is not ready after 1 s"):
        service.roll_out()
    assert service.shares == ("1", "", 0)


@pytest.mark.slow
@pytest.mark.fault("canary-not-ready")
def test_a_canary_that_stops_serving_is_rolled_back(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step, "PROBLEM_SECONDS", 0.4)
    service.begun()
    service.after_a_look(lambda: setattr(service.canary, "is_ready", False))
    with pytest.raises(RolledBack, match=r"it does not serve its share for \d+ s: .* is not ready"):
        service.roll_out(step_requests=10_000)


@pytest.mark.fault("rollout-traffic-changed")
def test_a_canary_that_does_not_serve_at_the_end_of_a_step_is_rolled_back(service: Service) -> None:
    """Held, it would keep its share of the traffic."""
    service.begun()
    service.after_a_look(lambda: setattr(service.canary, "is_ready", False))
    with pytest.raises(RolledBack, match=r"it does not serve its share for \d+ s: .* is not ready"):
        service.roll_out(step_requests=10_000, hold_seconds=1)
    assert service.shares == ("1", "", 0)


def test_traffic_that_somebody_else_changes_stops_the_rollout_and_stays_as_it_is(service: Service) -> None:
    service.begun()
    service.servers.proxy.shares.update(canary="2", percent=70)
    with pytest.raises(TrafficChanged, match=r"serves version 1 and 70% version 2, and the rollout had set version 2 to 20%"):
        service.roll_out()
    service.servers.proxy.shares.update(percent=20)
    service.after_a_look(lambda: service.servers.proxy.shares.update(percent=70))
    with pytest.raises(TrafficChanged):
        service.roll_out(step_requests=10_000)
    assert service.shares == ("1", "2", 70)


def test_traffic_of_one_version_alone_shows_nothing() -> None:
    analysis = Analysis(replace(PLAN, step_texts=0), 5, EQUAL)
    for _ in range(10):
        canary, champion = VersionTraffic(), VersionTraffic()
        for outcome in ("server", "ok"):
            canary.count("goemotions_requests_total", {"protocol": "v1", "outcome": outcome}, 50)
        champion.count("goemotions_requests_total", {"protocol": "grpc-v2", "outcome": "ok"}, 50)
        analysis.add_traffic(champion, canary, 1.0)
    assert not analysis.fault
    assert analysis.missing.startswith("60 of 60 requests to each version, 4 of 4 looks")


@pytest.mark.fault("rollout-undecided")
@pytest.mark.parametrize(
    "dropped", ["goemotions_request_seconds_bucket", "goemotions_request_texts_sum", "goemotions_predictions_total"]
)
def test_a_step_is_not_passed_without_a_metric_that_would_show_a_fault(service: Service, dropped: str) -> None:
    """Prometheus may drop the buckets of histograms, or store native histograms in their place."""

    class Dropping(Scrape):
        def read(self) -> list[Sample]:
            return [one for one in super().read() if one.name != dropped]

    service.begun(step=1)
    service.servers.proxy.shares.update(canary="2", percent=50)
    split = service.split()
    with pytest.raises(RolloutHeld, match=f"held at 50%.*: {dropped} is missing, so that a fault would not be seen"):
        service.roll_out(split=split, source=Dropping(split.targets), step_requests=10, step_texts=0, hold_seconds=3)


@pytest.mark.parametrize(("champion", "challenger"), [(0.9, 0.7), (0.7, 0.9), (0.3, 0.3)])
def test_a_version_that_predicts_labels_as_in_validation_is_no_fault_however_frequent_they_are(
    champion: float, challenger: float
) -> None:
    """The odds of a label on most texts differ by more than its rates do."""
    generator, rows = np.random.default_rng(4), 5000
    expected = Expected(("plain",), rows, 0, (int(champion * rows),), (int(challenger * rows),))
    analysis = Analysis(replace(PLAN, step_texts=0), 7, expected)
    for _ in range(60):
        both = [(150, champion), (50, challenger)]
        seen = [
            VersionTraffic({"v1": texts}, texts=texts, labels={"plain": generator.binomial(texts, rate)})
            for texts, rate in both
        ]
        analysis.add_traffic(*seen, seconds=1.0)
    assert not analysis.fault
    for _ in range(60):
        seen = [VersionTraffic({"v1": texts}, texts=texts, labels={"plain": count}) for texts, count in ((150, 140), (50, 2))]
        analysis.add_traffic(*seen, seconds=1.0)
    assert "predicts a label" in analysis.fault


def test_thresholds_of_other_labels_are_a_fault_even_if_they_change_few_answers() -> None:
    """Thresholds that a large data set was fitted with lie close together."""
    fitted = Thresholds("per-label", tuple(np.linspace(0.2, 0.4, len(LABELS)).tolist()))
    scores = np.random.default_rng(1).uniform(0, 0.6, (40, len(LABELS))).astype(np.float32)
    own = Answers(fitted.apply(scores), scores)
    others = Answers(replace(fitted, values=fitted.values[::-1]).apply(scores), scores)
    faults = []
    for answers in (own, others):
        analysis, resumed = (Analysis(PLAN, 7, replace(EQUAL, different=390, thresholds=fitted.values)) for _ in range(2))
        analysis.add_answers(own, answers)
        resumed.resume(json.loads(json.dumps(analysis.to_json())))
        resumed.add_answers(own, answers)
        faults.append(resumed.fault)
    off = (own.chosen != others.chosen).any(axis=1).sum()
    assert faults == ["", f"its labels are not those that its thresholds choose (on {2 * off} texts)"]


def test_evidence_on_latencies_is_resumed_however_many_bounds_the_histogram_has() -> None:
    bounds = {"v1": {0.01: 40.0, 0.02: 70.0, 0.05: 90.0, math.inf: 100.0}}
    champion, canary = (
        VersionTraffic({"v1": 100.0}, seconds=seconds) for seconds in (bounds, {"v1": bounds["v1"] | {0.01: 0.0, 0.02: 30.0}})
    )
    analysis, resumed = (Analysis(PLAN, 7, EQUAL) for _ in range(2))
    analysis.add_traffic(champion, canary, seconds=1.0)
    resumed.resume(json.loads(json.dumps(analysis.to_json())))
    for one in (analysis, resumed):
        one.add_traffic(champion, canary, seconds=1.0)
    assert resumed.evidence["latency"].value == pytest.approx(analysis.evidence["latency"].value, abs=1e-4)


class Killed(BaseException):
    """What kills a process, so that nothing of it is caught."""


class KillingSplit(ProxySplit):
    """Ends the process before or after it changes the traffic."""

    def __init__(self, split: ProxySplit, *, before: bool) -> None:
        vars(self).update(vars(split))
        self.before = before

    def deploy(self, number: str, percent: int, require: Callable[[], None] = lambda: None) -> None:
        if not self.before:
            super().deploy(number, percent, require)
        raise Killed


@pytest.mark.fault("rollout-killed")
@pytest.mark.parametrize(
    "before", [True, pytest.param(False, marks=pytest.mark.slow)], ids=["before-the-traffic-changed", "after-it"]
)
def test_a_rollout_that_is_killed_goes_on_at_its_step(service: Service, before: bool) -> None:
    service.begun(step=1)
    service.servers.proxy.shares.update(canary="2", percent=20)
    with pytest.raises(Killed):
        service.roll_out(split=KillingSplit(service.split(), before=before))
    assert service.state.step == 1
    service.canary.errors = 0.5
    with pytest.raises(RolledBack, match="rolled back at 50%"):
        service.roll_out()


@pytest.mark.fault("rollout-killed")
def test_a_rollback_that_is_killed_is_completed(service: Service) -> None:
    service.begun(phase=rollout_state.ROLLING_BACK, reason="it is slower")
    service.servers.proxy.shares.update(canary="2", percent=20)
    with pytest.raises(Killed):
        service.roll_out(split=KillingSplit(service.split(), before=True))
    with pytest.raises(RolledBack, match="it is slower"):
        service.roll_out()
    assert service.shares == ("1", "", 0)


@pytest.mark.slow
@pytest.mark.fault("rollout-killed")
@pytest.mark.parametrize("after", [False, True], ids=["before-each-change", "after-each-change"])
def test_a_rollout_that_is_killed_again_and_again_promotes_once(
    complete: Service, monkeypatch: pytest.MonkeyPatch, after: bool
) -> None:
    """Each process is killed at one of its first seven changes of the store, the registry or the traffic; the last are left alone."""
    left, killed = 0, 0

    def kill_at(owner: Any, name: str) -> None:
        change = getattr(owner, name)

        def changed(*arguments: Any, **options: Any) -> Any:
            nonlocal left
            left -= 1
            result = None if left == 0 and not after else change(*arguments, **options)
            if left == 0:
                raise Killed
            return result

        monkeypatch.setattr(owner, name, changed)

    changing = ((rollout_state, "write"), (ProxySplit, "deploy"), (rollouts, "write"), (changes, "record"))
    for owner, name in (*changing, (model_registry, "set_alias"), (model_registry, "set_tag")):
        kill_at(owner, name)
    for number in range(30):
        left = number % 7 + 1 if number < 20 else 0
        try:
            complete.roll_out(steps="20,50,100", step_requests=10, step_texts=10)
            break
        except Killed:
            killed += 1
        except PromotionRefused:
            # It was killed at the very end, and the version is the champion already.
            break
    assert killed > 5
    assert (complete.shares, complete.state.phase) == (("2", "", 0), "promoted")
    assert [(entry["percent"], entry["decision"]) for entry in complete.state.history] == [(20, "passed"), (50, "passed")]
    version = model_registry.get_version(complete.model, "champion-cpu")
    assert [(one.action, one.before) for one in changes.history(version, "champion-cpu")] == [("promote", "1")]
    assert rollouts.records(complete.model)["local"].outcome == "promoted"


@pytest.mark.fault("rollout-killed")
def test_the_end_of_a_rollout_that_was_killed_before_it_was_recorded_is_recorded(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    service.begun(phase=rollout_state.ROLLING_BACK, reason="it is slower")
    kept = {number: reason for number, reason in rollouts.participants(service.model).items() if service.name in reason}
    assert set(kept) == {"1", "2"}

    def killed(*_: Any) -> None:
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(rollout_state, "record_end", killed)
        with pytest.raises(Killed):
            service.roll_out()
    # The next one of the service does it, whatever becomes of that.
    with pytest.raises(StorageError, match="holds no file"):
        service.roll_out()
    assert rollouts.records(service.model)[service.name].outcome == "rolled back"
    assert len(store.files(service.location)) == 3, "the state, the record for good, the lock"


@pytest.mark.fault("rollout-killed")
def test_the_evidence_of_a_step_survives(service: Service) -> None:
    service.begun()
    analyses = [ANALYSIS]
    for _ in range(20):
        with pytest.raises(RolloutHeld):
            service.roll_out(step_requests=10_000, hold_seconds=0.5)
        analysis = service.state.analysis
        assert analysis is not None
        before, after = (one["canary"]["requests"].get("v1", 0) for one in (analyses[-1], analysis))
        assert after >= before
        assert analysis["sent_texts"] >= analyses[-1]["sent_texts"]
        # A busy machine may serve nothing between two looks.
        analyses += [analysis] * (after > before)
        if len(analyses) == 4:
            break
    assert len(analyses) == 4
    assert analysis["sent_texts"] > 0


@pytest.mark.slow
@pytest.mark.fault("rollout-twice")
def test_a_second_rollout_of_a_service_is_refused_while_one_runs(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "LEASE_SECONDS", 2.0)
    service.begun()
    ended: list[BaseException] = []

    def first() -> None:
        try:
            service.roll_out(step_requests=100_000, hold_seconds=8)
        except RolloutHeld as error:
            ended.append(error)

    running = threading.Thread(target=first)
    running.start()
    while service.shares[2] == 0:
        pass
    with pytest.raises(StorageError, match=r"another process still holds lock.json after 3 s"):
        service.roll_out()
    running.join()
    assert len(ended) == 1


@pytest.mark.fault("rollout-killed")
def test_the_lock_of_a_killed_rollout_is_taken_over(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "LEASE_SECONDS", 1.0)
    killed = lock.hold(service.location)
    killed.__enter__()
    with lease.hold(service.location) as require_lock:
        require_lock()


@pytest.mark.slow
@pytest.mark.fault("rollout-refused")
def test_what_could_not_be_promoted_is_refused_before_anything_changes(complete: Service) -> None:
    with pytest.raises(BadArgument, match="rising shares"):
        complete.roll_out(steps="50,20,100")
    with pytest.raises(BadArgument, match="--step-texts 5 needs as many texts, and there are 1"):
        complete.roll_out(step_texts=5, texts=["one"])
    source = model_registry.get_version(complete.model, "2")
    place = replace(BundleLocation.parse(source.source), run_id="0" * 32)
    empty = model_registry.get_or_create_version(complete.model, source.run_id, str(place), dict(source.tags))
    with pytest.raises(StorageError, match="holds no file"):
        complete.roll_out(number=empty.number)
    complete.servers.proxy.shares.update(stable="7")
    with pytest.raises(DeploymentError, match="local serves version 7, and the champion is version 1: deploy that one first"):
        complete.roll_out()
    assert complete.shares == ("7", "", 0)
    assert rollout_state.read(complete.location) is None


def test_an_unfinished_rollout_of_another_version_is_named(service: Service) -> None:
    rollout_state.write(service.location, rollout_state.FILE, State("9", "1", service.name, [20], asdict(EQUAL)))
    service.servers.proxy.shares.update(canary="9", percent=20)
    with pytest.raises(BadArgument, match=r"the rollout of version 9 on .* is not finished"):
        service.roll_out()


@pytest.mark.parametrize("name", ["false_rollbacks", "slower", "window_seconds", "hold_seconds", "step_seconds"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0])
def test_a_plan_by_which_no_version_is_ever_worse_is_a_named_error(name: str, value: float) -> None:
    """Without a limit that can be reached, a version that fails on most requests was promoted."""
    with pytest.raises(BadArgument, match=f"--{name.replace('_', '-')} is .*, not "):
        Plan(**{name: value})
    for other in ({"false_rollbacks": 0.0}, {"slower": 0.5}, {"window_seconds": 0.0}, {"step_requests": 0}):
        with pytest.raises(BadArgument):
            Plan(**other)


def test_the_shipped_texts_and_a_file_of_texts(tmp_path: Path) -> None:
    assert len(read_texts()) >= Plan().step_texts
    (tmp_path / "texts").write_text("one\n\n two \n")
    assert read_texts(tmp_path / "texts") == ["one", "two"]


@pytest.mark.fault("rollout-obsolete")
def test_a_rollout_against_a_champion_of_before_is_rolled_back(service: Service) -> None:
    service.begun(step=1, history=[{"percent": 20, "from": "", "to": "", "decision": "passed"}])
    service.servers.proxy.shares.update(canary="2", percent=20)
    make_champion(service.model, "4")
    try:
        with pytest.raises(RolledBack, match="the champion is version 4 now, not version 1"):
            service.roll_out()
    finally:
        make_champion(service.model, "1")
    assert service.shares == ("1", "", 0)
    assert [(entry["percent"], entry["decision"]) for entry in service.state.history] == [
        (20, "passed"),
        (50, "rolled back: the champion is version 4 now, not version 1"),
    ]


@pytest.mark.fault("rollout-obsolete")
@pytest.mark.parametrize(
    ("removed", "reason"),
    [("1", r"the champion is version \(none\) now"), ("2", "version 2 was retired or removed")],
    ids=["champion", "challenger"],
)
def test_a_version_that_is_removed_during_the_rollout(stack: Path, removed: str, reason: str) -> None:
    name = registered_without_bundles(f"removed-{removed}")
    with machine("1", "2", LABELS, name) as running:
        service = Service(name, "removed", running)
        service.begun()
        service.after_a_look(lambda: mlflow_client.client().delete_model_version(name, removed))
        with pytest.raises(RolledBack, match=reason):
            service.roll_out(step_requests=10)
        assert service.shares == ("1", "", 0)
        # Nothing is kept for it any more.
        assert (rollouts.records(name)["removed"].outcome, rollouts.participants(name)) == ("rolled back", {})


@pytest.mark.fault("rollout-obsolete")
def test_a_rollout_whose_champion_was_removed_meanwhile_says_so(stack: Path) -> None:
    name = registered_without_bundles("removed-meanwhile")
    with machine("1", "2", LABELS, name) as running:
        service = Service(name, "removed", running)
        service.begun()
        mlflow_client.client().delete_model_version(name, "1")
        with pytest.raises(ModelError, match=r"version 1, which the rollout goes back to, was removed .*: deploy the champion"):
            service.roll_out()


@pytest.mark.fault("rollout-obsolete")
def test_a_version_whose_bundle_was_changed_during_the_rollout_is_not_promoted(complete: Service) -> None:
    complete.begun(phase=rollout_state.PROMOTING, step=1)
    complete.servers.proxy.shares.update(canary="2", percent=50)
    bundle = model_registry.get_version(complete.model, "2").source
    content = store.read(bundle, "thresholds.json")
    assert content
    store.write(bundle, "thresholds.json", content + b" ")
    try:
        with pytest.raises(RolledBack, match=r"thresholds\.json differs from its manifest"):
            complete.roll_out()
    finally:
        store.write(bundle, "thresholds.json", content)
    assert complete.shares == ("1", "", 0)
    assert promotion.champion(complete.model, "cpu") == model_registry.get_version(complete.model, "1")


FORGED: dict[str, dict[str, Any]] = {
    "another champion": {"champion": "3"},
    "the version itself": {"champion": "2", "phase": rollout_state.ROLLING_BACK},
    "other steps": {"steps": [20, 99], "step": 1},
    "other labels in validation": {"expected": asdict(replace(EQUAL, different=400))},
    "a rollout that has ended": {"started": "2026-01-01T00:00:00+00:00"},
}


@pytest.mark.fault("rollout-forged")
@pytest.mark.parametrize("fields", FORGED.values(), ids=FORGED)
def test_a_state_that_is_not_the_registry_s_changes_nothing(service: Service, fields: dict[str, Any]) -> None:
    service.begun(phase=rollout_state.PROMOTING)
    service.servers.proxy.shares.update(canary="2", percent=20)
    rollout_state.write(service.location, rollout_state.FILE, replace(service.state, **fields))
    with pytest.raises(
        StorageError, match=r"rollout.json is not the state of the rollout that the registry has, and nothing was"
    ):
        service.roll_out()
    assert service.shares == ("1", "2", 20)
    assert promotion.champion(service.model, "cpu") == model_registry.get_version(service.model, "1")


@pytest.mark.fault("rollout-forged")
def test_a_state_is_trusted_that_was_written_with_a_trusted_key_for_its_service(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("own", "other"):
        signature.create_keys(tmp_path / name)
    location, keys = f"{tmp_path}/store/", {name: str(tmp_path / name / signature.PRIVATE_FILE) for name in ("own", "other")}
    state = State("2", "1", "local", [20, 50], asdict(EQUAL), history=[{"percent": 20}], analysis=ANALYSIS)

    def is_trusted(writer: str, reader: str) -> bool:
        monkeypatch.setenv(signature.SIGNING_KEY, keys.get(writer, ""))
        rollout_state.write(location, rollout_state.FILE, state)
        monkeypatch.setenv(signature.SIGNING_KEY, keys.get(reader, ""))
        read = rollout_state.read(location)
        assert read is not None
        assert read.record() == state.record()
        return read.is_trusted

    pairs = (("own", "own"), ("other", "own"), ("", "own"), ("", ""), ("own", ""))
    assert [is_trusted(*pair) for pair in pairs] == [True, False, False, True, True]
    assert is_trusted("own", "own")
    content = store.read(location, rollout_state.FILE) or b""
    changes_of_it = {
        "its step": (b'"step": 0', b'"step": 1'),
        "its service": (b'"service": "local"', b'"service": "other"'),
        "no text": (b'"signature": "', b'"signature": "x'),
    }
    for what, (before, after) in changes_of_it.items():
        assert before in content, what
        store.write(location, rollout_state.FILE, content.replace(before, after))
        changed = rollout_state.read(location)
        assert changed is not None
        assert not changed.is_trusted, what


@pytest.mark.slow
@pytest.mark.fault("rollout-forged")
@pytest.mark.parametrize("writer", ["own", "other", "nobody"])
def test_evidence_that_no_trusted_key_has_signed_does_not_count(
    complete: Service, writer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A state by which the last step has been passed, of a version that fails."""
    for name in ("own", "other"):
        signature.create_keys(tmp_path / name)
    key = tmp_path / "own" / signature.PRIVATE_FILE
    monkeypatch.setenv(signature.SIGNING_KEY, str(key))
    for number in ("1", "2"):
        references.sign(number, complete.model)
    monkeypatch.setenv(signature.SIGNING_KEY, str(key.parent.with_name(writer) / key.name) if writer != "nobody" else "")
    complete.begun(phase=rollout_state.PROMOTING, step=1)
    complete.servers.proxy.shares.update(canary="2", percent=50)
    monkeypatch.setenv(signature.SIGNING_KEY, str(key))
    complete.canary.errors = 0.5
    if writer == "own":
        assert complete.roll_out().after == "2"
    else:
        with pytest.raises(RolledBack, match=r"rolled back at 20% .*it fails more often"):
            complete.roll_out()
    assert promotion.champion(complete.model, "cpu") == model_registry.get_version(
        complete.model, "2" if writer == "own" else "1"
    )


@pytest.mark.fault("rollout-forged")
def test_a_state_of_a_rollout_that_ended_is_not_taken_up_again(service: Service) -> None:
    service.begun(phase=rollout_state.ROLLING_BACK)
    before = service.state
    with pytest.raises(RolledBack):
        service.roll_out()
    rollout_state.write(service.location, rollout_state.FILE, replace(before, phase=rollout_state.PROMOTING))
    with pytest.raises(StorageError, match="is not the state of the rollout that the registry has"):
        service.roll_out()


@pytest.mark.fault("rollout-forged")
def test_the_traffic_never_goes_back_to_a_version_that_was_not_champion(service: Service) -> None:
    """Also if the registry was forged with the state."""
    for champion, message in (
        ("3", "goes back to version 3, which never was champion-cpu"),
        ("8", "version 8, which the rollout goes back to, was removed"),
    ):
        state = State("2", champion, service.name, [20, 50], asdict(EQUAL), phase=rollout_state.ROLLING_BACK)
        rollouts.write(service.model, service.name, state.record())
        rollout_state.write(service.location, rollout_state.FILE, state)
        with pytest.raises(WorkflowError, match=message):
            service.roll_out()
    assert service.shares == ("1", "", 0)


@pytest.mark.fault("rollout-forged")
@pytest.mark.parametrize(
    "fields",
    [
        *({"step": 2}, {"step": "0"}, {"phase": "done"}, {"history": [1]}, {"analysis": {"seconds": 1}}, {"analysis": [1]}),
        {"analysis": ANALYSIS | {"seconds": "1"}},
        {"analysis": ANALYSIS | {"evidence": {"errors": {"rate": "0.01", "logs": [0.0], "value": 0.0}}}},
        {"analysis": ANALYSIS | {"evidence": {"errors": {"rate": 0.01, "logs": [0.0] * 3, "value": 0.0}}}},
        {"analysis": ANALYSIS | {"evidence": {"labels": {"rate": 0.01, "logs": [0.0] * 3, "value": 9.0}}}},
    ],
    ids=lambda fields: str(fields)[-60:],
)
def test_a_damaged_state_is_a_named_error(service: Service, fields: dict[str, Any]) -> None:
    service.begun(**fields)
    with pytest.raises(
        StorageError, match=r"rollout.json.* is damaged: deploy the champion, then run the rollout with --restart"
    ):
        service.roll_out()


@pytest.mark.fault("rollout-forged")
@pytest.mark.parametrize(
    "changed",
    [
        *(
            {"evidence": {test: {"rate": 0.01, "logs": [0.0], "value": 0.0} | changed}}
            for test, changed in (
                ("errors", {"rate": -1}),
                ("errors", {"logs": []}),
                ("errors", {"value": 1e300}),
                ("labels", {"value": 1e9}),
                ("quality", {"logs": [0.0] * 7}),
                ("another", {}),
            )
        ),
        *({"qualities": [sums] * 2} for sums in ([[0.0] * 3] * 3, [[0.0]] * 2, [[], [], []])),
        *({"canary": ANALYSIS["canary"] | {"requests": {"http": count, "grpc": count}}} for count in ("1", -1, 1e308)),
        *({"canary": ANALYSIS["canary"] | changed} for changed in ({"seconds": {"http": {"soon": 1}}}, {"another": {}})),
    ],
    ids=lambda changed: str(changed)[:80],
)
def test_an_analysis_of_sizes_that_there_cannot_be_is_refused(changed: dict[str, Any]) -> None:
    """Before it is added to: numbers of other tests, labels or signs would be a traceback, or no evidence, only at the next look."""
    with pytest.raises((ValueError, TypeError)):
        Analysis(PLAN, 7, EQUAL).resume(json.loads(json.dumps(ANALYSIS | changed)))


@pytest.mark.fault("rollout-store-away")
def test_a_store_that_is_away_does_not_keep_traffic_on_a_bad_version(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    service.begun()
    service.canary.shift = 1
    write, left = rollout_state.write, [1]

    def away(location: str, name: str, state: State) -> None:
        # The first write is that of the start.
        if state.history and left[0]:
            left[0] -= 1
            raise StorageUnavailable("the store does not respond")
        write(location, name, state)

    monkeypatch.setattr(rollout_state, "write", away)
    with pytest.raises(RolledBack, match="its labels differ"):
        service.roll_out()
    assert left == [0]
    assert (service.shares, service.state.phase) == (("1", "", 0), "rolled back")


@pytest.fixture
def memory_store(service: Service, monkeypatch: pytest.MonkeyPatch) -> Iterator[ObjectStore]:
    """A store in memory in place of S3."""
    with running(Behaviour()) as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
        monkeypatch.setattr(s3, "client", functools.cache(s3.client.__wrapped__))
        yield server


@pytest.mark.fault("rollout-store-away")
@pytest.mark.parametrize("refused", [(507, "InsufficientStorage"), (403, "AccessDenied")], ids=["full", "denied"])
def test_a_store_that_takes_no_decision_does_not_keep_traffic_on_a_bad_version(
    service: Service, memory_store: ObjectStore, monkeypatch: pytest.MonkeyPatch, refused: tuple[int, str]
) -> None:
    service.begun()
    service.canary.shift = 1
    decide = rollout._Runner._decide

    def decide_while_the_store_refuses(runner: Any, phase: str, reason: str) -> None:
        memory_store.behaviour.refused["PUT"] = refused
        decide(runner, phase, reason)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(rollout._Runner, "_decide", decide_while_the_store_refuses)
        with pytest.raises(StorageError, match=r"full|denied"):
            service.roll_out()
    assert service.shares == ("1", "", 0)
    memory_store.behaviour.refused.clear()
    # The lock could not be released.
    monkeypatch.setattr(lock, "LEASE_SECONDS", 4.0)
    with pytest.raises(RolledBack):
        service.roll_out()


@pytest.mark.fault("rollout-store-away")
def test_a_store_that_is_full_for_a_while_neither_ends_the_rollout_nor_loses_the_lock(
    service: Service, memory_store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "LEASE_SECONDS", 2.0)
    service.begun()

    def fill() -> None:
        memory_store.behaviour.refused["PUT"] = (507, "InsufficientStorage")
        # Longer than from one renewal to the next.
        time.sleep(0.8)
        memory_store.behaviour.refused.clear()
        service.canary.errors = 0.6

    service.after_a_look(fill)
    with pytest.raises(RolledBack, match="it fails more often"):
        service.roll_out(step_requests=100_000)
    assert (service.shares, service.state.phase) == (("1", "", 0), "rolled back")


@pytest.mark.fault("rollout-store-away")
def test_a_store_that_remains_full_holds_the_rollout_and_is_named(
    service: Service, memory_store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    service.begun()
    service.after_a_look(lambda: memory_store.behaviour.refused.update({"PUT": (507, "InsufficientStorage")}))
    with pytest.raises(RolloutHeld, match=r"held at 20% of .*: .* the store is full .*; both versions serve: run it again"):
        service.roll_out(step_requests=100_000, hold_seconds=1)
    memory_store.behaviour.refused.clear()


@pytest.mark.fault("rollout-full-disk")
def test_a_full_disk_of_the_machine_does_not_end_a_rollout(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """No temporary file can be made, as on a full disk."""
    service.begun()
    service.canary.shift = 1
    monkeypatch.setattr(tempfile, "tempdir", "/dev/null")
    with pytest.raises(RolledBack, match="its labels differ"):
        service.roll_out()
    assert (service.shares, service.state.phase) == (("1", "", 0), "rolled back")


@pytest.mark.fault("rollout-lease-over")
@pytest.mark.parametrize("recovers", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_rollout_whose_lease_may_be_over_changes_no_traffic(
    service: Service, memory_store: ObjectStore, monkeypatch: pytest.MonkeyPatch, recovers: bool
) -> None:
    """The renewals hang in the store from the time on at which it decides to roll back."""
    monkeypatch.setattr(lock, "LEASE_SECONDS", 1.0)
    monkeypatch.setattr(lock, "ATTEMPTS", 3 if recovers else 1)
    service.begun()
    service.canary.shift = 1
    decide, changed = rollout._Runner._decide, []

    def decide_while_the_store_hangs(runner: Any, phase: str, reason: str) -> None:
        hanging = memory_store.writes + 2
        memory_store.behaviour.late = lambda number: 0.0 if recovers and number > hanging else 1.5
        time.sleep(0.7)
        decide(runner, phase, reason)
        changed.append(service.shares)

    monkeypatch.setattr(rollout._Runner, "_decide", decide_while_the_store_hangs)
    error = RolledBack if recovers else StorageError
    with pytest.raises(error, match="its labels differ" if recovers else "the lock is not renewed|too slow to lock"):
        service.roll_out(hold_seconds=5)
    assert (changed, service.shares) == ([("1", "2", 20)], ("1", "", 0) if recovers else ("1", "2", 20))


@pytest.mark.slow
@pytest.mark.fault("rollout-killed")
def test_on_one_machine_a_rollout_that_was_killed_after_the_alias_moved_is_completed(
    registered: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(services, "FOLDER", tmp_path)
    source = BundleLocation.parse(model_registry.get_version(registered, "2").source)
    state = State("2", "1", "this-machine-cpu", [20, 50], asdict(EQUAL), step=1, phase=rollout_state.PROMOTING)
    location = layout.rollout(source.store, registered, state.service)
    rollouts.write(registered, state.service, state.record())
    rollout_state.write(location, rollout_state.FILE, state)
    promotion.promote("2", model_name=registered, rolled_out_against="1")
    lines: list[str] = []
    assert local.run("2", PLAN, model_name=registered, show=lines.append).after == "2"
    assert "going on with the rollout of version 2: promoting, 50%" in lines
    ended = rollout_state.read(location)
    assert ended is not None
    assert ended.phase == rollout_state.PROMOTED
    with pytest.raises(WorkflowError, match=r"a rollout needs a champion and another version \(version 2 is it\)"):
        local.run("2", PLAN, model_name=registered, show=lines.append)
