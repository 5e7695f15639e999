"""A rollout: a version gets the traffic of a service in steps, and is promoted, held, or rolled back by what each step shows.

    running --(a step shows a fault, or the canary does not start)--> rolling back --> rolled back
       |  ^                                                                 ^
       |  +--(the step shows enough: the next share)                        |(the gate refuses it now)
       +-----(the last step shows enough)------------------> promoting -----+--> promoted

The state is in the store, under a lock that the rollout holds, and is written before the traffic is changed: whatever kills the
process, the same command goes on from there. Too little traffic, metrics that cannot be read and a champion that fails hold the
rollout: both versions keep their shares.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any

from goemotions import defaults
from goemotions.deployment.cluster import ClusterAway
from goemotions.deployment.traffic import Shares, TrafficSplit
from goemotions.errors import (
    BadArgument,
    DeploymentError,
    MonitoringUnavailable,
    PromotionRefused,
    RolledBack,
    RolloutHeld,
    StorageError,
    TrafficChanged,
)
from goemotions.monitoring import answers
from goemotions.monitoring.analysis import TESTS, Analysis
from goemotions.monitoring.answers import Expected
from goemotions.monitoring.observations import Increases, Scrape, Source, addresses
from goemotions.monitoring.plan import Plan
from goemotions.registry import model_registry, promotion, trust
from goemotions.registry.bundle import BundleLocation
from goemotions.registry.model_registry import Version
from goemotions.registry.promotion import Move
from goemotions.storage import layout, lock, store

log = logging.getLogger(__name__)

FILE = "rollout.json"
RUNNING, PROMOTING, PROMOTED = "running", "promoting", "promoted"
ROLLING_BACK, ROLLED_BACK = "rolling back", "rolled back"
ENDED = (PROMOTED, ROLLED_BACK)
# A canary that serves less than its share for so long is rolled back.
PROBLEM_SECONDS = 120.0


@dataclass
class State:
    """A rollout, as the store has it.

    Attributes:
        version, champion: numbers.
        service: the service.
        steps: shares in percent, without that of the promotion.
        expected: how the answers differ in validation.
        step: position of the present one.
        phase: see the module.
        reason: why it was rolled back.
        history: per step its share, times, figures and decision.
        analysis: of the present step.
        started: when.
    """

    version: str
    champion: str
    service: str
    steps: list[int]
    expected: dict[str, Any]
    step: int = 0
    phase: str = RUNNING
    reason: str = ""
    history: list[dict[str, Any]] = field(default_factory=list)
    analysis: dict[str, Any] | None = None
    started: str = field(default_factory=lambda: _now())

    @property
    def percent(self) -> int:
        return self.steps[self.step]


@dataclass(frozen=True)
class Rollout:
    """What a rollout works with.

    Attributes:
        model_name: name of the registered model.
        version: the version that is rolled out.
        split: the traffic.
        source: the metrics of the servers.
        plan: the steps.
        texts: those that both versions are sent.
        location: of the state, in the store.
    """

    model_name: str
    version: Version
    split: TrafficSplit
    source: Source
    plan: Plan
    texts: list[str]
    location: str


def run(
    reference: str,
    split: TrafficSplit,
    source: Source,
    plan: Plan | None = None,
    *,
    model_name: str = defaults.MODEL_NAME,
    texts: list[str] | None = None,
    restart: bool = False,
    show: Callable[[str], None] = log.info,
    **gate: Any,
) -> Move:
    """Rolls a version out, or goes on with its rollout, until it is promoted.

    Args:
        reference: an alias, such as ``challenger-cpu``, or a version number.
        split: the traffic of the service.
        source: the metrics of its servers.
        plan: the steps, and what each must show.
        model_name: name of the registered model.
        texts: texts that both versions are sent, by default those of the sample.
        restart: begin again, whatever was left of an unfinished rollout of the service.
        show: gets a line per look.
        gate: other options of ``promotion.promote``.

    Raises:
        ModelError, IntegrityError, UntrustedBundle: the version has no bundle, or one of other labels.
        PromotionRefused: it does not pass the gate; nothing was changed.
        RolloutHeld: it has seen too little; both versions serve, and the same command goes on.
        RolledBack: the version is worse, or did not start; the champion has all the traffic.
        TrafficChanged: another process or person changed the traffic; it is left as it is.
        DeploymentError, StorageError, TrackingError: the cluster, the store or MLflow fail; the same command goes on.
    """
    plan, texts = plan or Plan(), answers.read_texts() if texts is None else texts
    if plan.step_texts > len(texts):
        raise BadArgument(
            f"--step-texts {plan.step_texts} needs as many texts, and there are {len(texts)}: give more texts, or a smaller number"
        )
    version = model_registry.get_version(model_name, reference)
    trust.check(version, trust.variant_of(reference))
    location = layout.rollout(BundleLocation.parse(version.source).store, model_name, split.name)
    rollout = Rollout(model_name, version, split, source, plan, texts, location)
    with _locked(location) as require_lock:
        state = None if restart else _unfinished(rollout)
        if state is None:
            state = _begin(rollout, gate)
        else:
            show(f"going on with the rollout of version {state.version}: {state.phase}, {state.percent}%")
        runner = _Runner(rollout, state, require_lock, show)
        if state.phase == RUNNING:
            runner.run_steps()
        if state.phase == PROMOTING:
            move = runner.promote(gate)
        if state.phase == ROLLING_BACK:
            runner.roll_back()
        return move


def read(location: str) -> State | None:
    """The state at a location; None if there was no rollout.

    Raises:
        StorageError: it is damaged.
    """
    content = store.read(location, FILE)
    try:
        return State(**json.loads(content)) if content else None
    except (ValueError, TypeError) as error:
        raise StorageError(f"{location}{FILE} is damaged: run the rollout with --restart") from error


def steps_of(plan: Plan) -> list[int]:
    """The shares of a plan, rising, in percent, without the 100 of the promotion.

    Raises:
        BadArgument: they are something else.
    """
    parts = [part.strip() for part in plan.steps.split(",")]
    shares = [int(part) for part in parts if part.isdigit()]
    if len(shares) != len(parts) or sorted(set(shares)) != shares or not 0 < shares[0] < 100 or shares[-1] != 100:
        raise BadArgument(f"--steps is rising shares in percent that end with 100, such as 5,25,50,100, not {plan.steps!r}")
    return shares[:-1]


def _unfinished(rollout: Rollout) -> State | None:
    """The rollout that was interrupted; None if there is none.

    Raises:
        BadArgument: it is that of another version.
        TrafficChanged: the traffic is not as it left it.
    """
    state = read(rollout.location)
    if state is None or state.phase in ENDED:
        return None
    seen = rollout.split.shares()
    if state.version != rollout.version.number:
        if not seen.canary:
            return None
        raise BadArgument(
            f"the rollout of version {state.version} on {state.service} is not finished ({state.phase}, {state.percent}%): run "
            f"it again, or begin with version {rollout.version.number} by --restart (RESTART=1)"
        )
    if state.phase == RUNNING:
        # The process may have been killed before it changed the traffic.
        before = state.steps[state.step - 1] if state.step else 0
        _require(seen, state, {state.percent, before})
    return state


def _begin(rollout: Rollout, gate: dict[str, Any]) -> State:
    """The state of a new rollout, after the gate has passed and before anything is changed."""
    number, steps = rollout.version.number, steps_of(rollout.plan)
    seen = rollout.split.shares()
    comparison = promotion.compare(number, model_name=rollout.model_name, **gate)
    champion = promotion.champion(rollout.model_name, rollout.version.tags["variant"])
    if comparison is None or champion is None:
        raise PromotionRefused(f"{rollout.model_name} has no champion to compare version {number} with: promote it")
    if champion.number == number:
        raise PromotionRefused(f"version {number} is the champion already: deploy it")
    if not comparison.verdict.passes:
        raise PromotionRefused(f"version {number} is not rolled out, it would not be promoted: {comparison.verdict.summary()}")
    if seen.stable != champion.number or seen.canary not in ("", number):
        raise DeploymentError(
            f"{rollout.split.name} serves {_described(seen)}, and the champion is version {champion.number}: deploy that one first"
        )
    expected = asdict(Expected.of(comparison.challenger, comparison.champion))
    return State(number, champion.number, rollout.split.name, steps, expected)


class _Runner:
    """Goes through the steps of one rollout; ``require_lock`` raises if another process may have taken over."""

    def __init__(self, rollout: Rollout, state: State, require_lock: Callable[[], None], show: Callable[[str], None]) -> None:
        self.rollout, self.state, self.require_lock, self.show = rollout, state, require_lock, show
        self.plan, self.split = rollout.plan, rollout.split
        self.expected = Expected.from_json(state.expected)

    def run_steps(self) -> None:
        """Returns when the phase is no longer running.

        Raises:
            RolloutHeld, TrafficChanged: see ``run``.
        """
        state = self.state
        while state.phase == RUNNING:
            self.save()
            try:
                self.split.deploy(state.version, state.percent)
            except ClusterAway:
                raise
            except DeploymentError as error:
                self._decide(ROLLING_BACK, f"it does not become ready: {error}")
                return
            self._watch()
            if state.phase == RUNNING and state.step + 1 < len(state.steps):
                state.step, state.analysis = state.step + 1, None
            elif state.phase == RUNNING:
                self._decide(PROMOTING, "")

    def _watch(self) -> None:
        """Looks at a step, window by window, until it has shown enough or a fault."""
        state = self.state
        analysis = Analysis(self.plan, len(TESTS) * len(state.steps), self.expected)
        if state.analysis:
            analysis.resume(state.analysis)
        entry = {"percent": state.percent, "from": _now(), "to": "", "decision": ""}
        state.history = [*[one for one in state.history if one["percent"] != state.percent], entry]
        increases, step = Increases(), _Step(time.monotonic())
        # What was sent before the traffic had changed is not counted.
        self._look(analysis, increases, step, is_first=True)
        while True:
            time.sleep(self.plan.window_seconds)
            self._look(analysis, increases, step)
            entry |= {"to": _now(), "figures": analysis.figures()}
            state.analysis = analysis.to_json()
            self.show(_line(state, analysis, step.obstacle))
            if fault := analysis.fault or step.lasting_problem:
                self._decide(ROLLING_BACK, fault)
                return
            waits_for = step.obstacle or analysis.champion_fails or analysis.missing
            if not waits_for:
                entry["decision"] = "passed"
                self.save()
                return
            self.save()
            if time.monotonic() - step.began > self.plan.hold_seconds:
                entry["decision"] = f"held: {waits_for}"
                self.save()
                raise RolloutHeld(
                    f"version {state.version} is held at {state.percent}% of {state.service}: {waits_for}; both versions serve: run "
                    f"it again to go on, or take it back by `make deploy VERSION={state.champion}`"
                )

    def _look(self, analysis: Analysis, increases: Increases, step: _Step, *, is_first: bool = False) -> None:
        """Adds a window to the analysis, or says in ``step`` what prevents that."""
        state, now = self.state, time.monotonic()
        try:
            _require(self.split.shares(), state, {state.percent})
            step.note_problem(self.split.problem(), now)
            samples = self.rollout.source.read()
        except (ClusterAway, MonitoringUnavailable) as error:
            step.obstacle = str(error)
            return
        step.obstacle = step.problem
        traffic = increases.update(samples)
        if is_first:
            step.last = now
            return
        champion, canary = traffic[state.champion], traffic[state.version]
        analysis.add_traffic(champion, canary, now - step.last)
        step.last = now
        for name in ("same", "different"):
            count = int(champion.copies[state.version][name])
            if count:
                analysis.add_agreement(count, count if name == "different" else 0)
        self._ask(analysis, addresses(samples), step)

    def _ask(self, analysis: Analysis, servers: dict[str, str], step: _Step) -> None:
        """Sends the next texts to both versions."""
        state = self.state
        texts = self.rollout.texts[analysis.sent_texts : min(analysis.sent_texts + answers.BATCH, self.plan.step_texts)]
        if not texts:
            return
        try:
            champion, canary = (
                answers.request(self._address(servers, number), self.rollout.model_name, texts, self.expected.labels)
                for number in (state.champion, state.version)
            )
        except MonitoringUnavailable as error:
            step.obstacle = step.obstacle or str(error)
            return
        analysis.add_answers(champion, canary)
        analysis.sent_texts += len(texts)

    def _address(self, servers: dict[str, str], number: str) -> str:
        """The address of a server of a version; where the metrics come from Prometheus, texts go to the servers themselves."""
        address = servers.get(number, "")
        if not address.startswith("http"):
            address = addresses(Scrape(self.split.targets).read()).get(number, "")
        if not address:
            raise MonitoringUnavailable(f"no server of version {number} can be reached from here")
        return address

    def promote(self, gate: dict[str, Any]) -> Move:
        """Moves the alias through the gate, then gives the version all the traffic; rolls it back if the gate refuses it now."""
        state = self.state
        self.save()
        try:
            move = promotion.promote(state.version, model_name=self.rollout.model_name, **gate)
        except PromotionRefused as error:
            self._decide(ROLLING_BACK, str(error))
            self.roll_back()
        self.require_lock()
        self.split.deploy(state.version, 0)
        self._decide(PROMOTED, "")
        self._archive()
        return move

    def roll_back(self) -> None:
        """Gives the champion all the traffic.

        Raises:
            RolledBack: with the reason.
        """
        state = self.state
        self.save()
        self.split.deploy(state.champion, 0)
        self._decide(ROLLED_BACK, state.reason)
        self._archive()
        raise RolledBack(
            f"version {state.version} was rolled back at {state.percent}% of {state.service}, version {state.champion} has all the "
            f"traffic: {state.reason}; the figures of each step are in {self.rollout.location}"
        )

    def _decide(self, phase: str, reason: str) -> None:
        state = self.state
        state.phase, state.reason = phase, reason
        if state.history and phase == ROLLING_BACK:
            state.history[-1]["decision"] = f"rolled back: {reason}"
        self.save()
        if phase in ENDED:
            summary = {
                "decision": phase,
                "percent": state.percent,
                "reason": reason[:500],
                "at": _now(),
                "service": state.service,
            }
            model_registry.set_tag(
                self.rollout.model_name, self.rollout.version, model_registry.ROLLOUT_TAG, json.dumps(summary)
            )

    def save(self) -> None:
        """Writes the state, which must still be this process's to write."""
        self.require_lock()
        write(self.rollout.location, FILE, self.state)

    def _archive(self) -> None:
        started = self.state.started.replace(":", "").replace("+", "-")
        write(self.rollout.location, f"{self.state.version}-{started}.json", self.state)


@dataclass
class _Step:
    """What is not stored of a step: its clock, and what hinders it now."""

    began: float
    last: float = 0.0
    obstacle: str = ""
    problem: str = ""
    problem_since: float = 0.0

    def note_problem(self, problem: str, now: float) -> None:
        if not self.problem:
            self.problem_since = now
        self.problem = problem

    @property
    def lasting_problem(self) -> str:
        """What has kept the canary from serving its share for too long."""
        lasts = time.monotonic() - self.problem_since
        return (
            f"it does not serve its share for {lasts:.0f} s: {self.problem}" if self.problem and lasts > PROBLEM_SECONDS else ""
        )


def _require(seen: Shares, state: State, percents: set[int]) -> None:
    """Raises TrafficChanged unless the traffic is as the rollout set it."""
    allowed = [Shares(state.champion, state.version, percent) for percent in percents if percent]
    if seen not in allowed and not (0 in percents and seen == Shares(state.champion)):
        raise TrafficChanged(
            f"{state.service} serves {_described(seen)}, and the rollout had set version {state.version} to {state.percent}% beside "
            f"version {state.champion}: somebody else changed it, and it is left so; deploy the champion, then run the rollout with "
            "--restart (RESTART=1)"
        )


def _described(seen: Shares) -> str:
    return f"version {seen.stable or '(unknown)'}" + (f" and {seen.percent}% version {seen.canary}" if seen.canary else "")


def _line(state: State, analysis: Analysis, obstacle: str) -> str:
    figures = analysis.figures()
    champion, canary = figures["champion"], figures["canary"]
    largest = max(figures["evidence"], key=figures["evidence"].get)
    waits = obstacle or analysis.champion_fails or analysis.missing
    requests = canary["requests"] + champion["requests"]
    return (
        f"{state.percent}%: {canary['requests']:,} of {requests:,} requests to version {state.version}, failed "
        f"{canary['failures']}/{champion['failures']}, p95 {canary['p95_ms']}/{champion['p95_ms']} ms, {analysis.different} of "
        f"{analysis.texts} texts with other labels, expected F1 {canary['expected_f1_macro']:.3f}/"
        f"{champion['expected_f1_macro']:.3f}; evidence against it {figures['evidence'][largest]:.1f} of {figures['limit']:.1f} "
        f"({largest})" + (f"; {waits}" if waits else "; passed")
    )


@contextmanager
def _locked(location: str) -> Iterator[Callable[[], None]]:
    """Holds the lock of a service's rollouts and renews it meanwhile; yields a function that raises if it was lost.

    Raises:
        StorageError: another rollout of the service runs.
    """
    lost: list[StorageError] = []
    ended = threading.Event()

    def renew(held: lock.Lock) -> None:
        while not ended.wait(lock.LEASE_SECONDS / 4):
            try:
                held.require()
            except StorageError as error:
                lost.append(error)
                return

    def require() -> None:
        if lost:
            raise lost[0]

    with lock.hold(location, 1.5 * lock.LEASE_SECONDS) as held:
        renewing = threading.Thread(target=renew, args=(held,), daemon=True)
        renewing.start()
        try:
            yield require
        finally:
            ended.set()
            renewing.join()


def write(location: str, name: str, state: State) -> None:
    """Writes a state to a file at a location."""
    with store.writing(location, name) as path:
        path.write_text(json.dumps(asdict(state), indent=1), encoding="utf-8")


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
