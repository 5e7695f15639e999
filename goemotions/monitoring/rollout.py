"""A rollout: a version gets the traffic of a service in steps, and is promoted, held, or rolled back by what each step shows.

    running --(a step shows a fault, or the canary does not start)--> rolling back --> rolled back
       |  ^                                                                 ^
       |  +--(the step shows enough: the next share)                        |(it may not replace the champion now)
       +-----(the last step shows enough)------------------> promoting -----+--> promoted

The state is in the store, under a lock that the rollout holds, and is written before the traffic is changed: whatever kills the
process, the same command goes on from there. Too little traffic, metrics or a store that do not respond and a champion that fails
hold the rollout: both versions keep their shares. The traffic and the alias are changed only while the lock is surely held.

Whoever can write to the store can change the state. So the registry has a digest of what the gate has passed, and an interrupted
rollout goes on only if both agree and what it would go back to was champion before.
"""

from __future__ import annotations

import hashlib
import json
import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from goemotions import defaults, outages, strict_json
from goemotions.deployment.cluster import ClusterAway
from goemotions.deployment.traffic import Shares, TrafficSplit
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
    TrackingError,
    TrafficChanged,
)
from goemotions.monitoring import answers
from goemotions.monitoring.analysis import TESTS, Analysis
from goemotions.monitoring.answers import Answers, Expected
from goemotions.monitoring.observations import Increases, Scrape, Source, addresses
from goemotions.monitoring.plan import Plan
from goemotions.registry import changes, model_registry, promotion, rollouts, trust
from goemotions.registry.bundle import BundleLocation
from goemotions.registry.model_registry import Version
from goemotions.registry.promotion import Move
from goemotions.registry.rollouts import Record
from goemotions.storage import layout, lock, store

log = logging.getLogger(__name__)

FILE = "rollout.json"
RUNNING, PROMOTING, PROMOTED = "running", "promoting", "promoted"
ROLLING_BACK, ROLLED_BACK = "rolling back", "rolled back"
ENDED = (PROMOTED, ROLLED_BACK)
PHASES = (RUNNING, PROMOTING, ROLLING_BACK, *ENDED)
# What does not change from the beginning of a rollout to its end.
FIXED = ("version", "champion", "service", "steps", "expected", "started")
# A canary that serves less than its share for so long is rolled back.
PROBLEM_SECONDS = 120.0
ANEW = "deploy the champion, then run the rollout with --restart (RESTART=1)"


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

    @property
    def is_valid(self) -> bool:
        """Whether what changes has the right types."""
        is_step = type(self.step) is int and isinstance(self.steps, list) and 0 <= self.step < len(self.steps)
        is_history = isinstance(self.history, list) and all(isinstance(one, dict) and "percent" in one for one in self.history)
        return is_step and is_history and self.phase in PHASES and isinstance(self.reason, str)

    def record(self, outcome: str = "") -> Record:
        """What the registry has of it."""
        fixed = json.dumps({name: getattr(self, name) for name in FIXED}, sort_keys=True)
        return Record(self.version, self.champion, hashlib.sha256(fixed.encode()).hexdigest(), outcome)


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
        PromotionRefused: validation shows that it is worse; nothing was changed.
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
    # One that was retired during its rollout is still rolled back.
    version = model_registry.find_version(model_name, reference) or model_registry.get_version(model_name, reference)
    trust.check(version, trust.variant_of(reference))
    location = layout.rollout(BundleLocation.parse(version.source).store, model_name, split.name)
    rollout = Rollout(model_name, version, split, source, plan, texts, location)
    with _locked(location) as require_lock:
        state = None if restart else _unfinished(rollout)
        if state is None:
            model_registry.require_bundle(version)
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
        stored = strict_json.parse(content, FILE) if content else None
        if stored is not None:
            strict_json.require(stored, State, FILE)
        state = None if stored is None else State(**stored)
        if state and not state.is_valid:
            raise ValueError("a value is of another kind")
    except (ValueError, TypeError) as error:
        raise StorageError(f"{location}{FILE} is damaged: {ANEW}") from error
    return state


def unfinished(location: str, model_name: str, version: Version, service: str) -> State | None:
    """The state that an interrupted rollout left at a location; None if there is none. One of the version was checked, another not.

    Raises:
        StorageError: it is not that of the rollout that the registry has, or the version that it names as champion never was it.
        ModelError, IntegrityError, UntrustedBundle: the champion has no bundle that `register` stored.
    """
    state = read(location)
    if state is None or state.phase in ENDED:
        return None
    if state.version == version.number:
        if rollouts.records(model_name).get(service) != state.record():
            raise StorageError(
                f"{location}{FILE} is not the state of the rollout that the registry has, and nothing was changed: find out who "
                f"wrote it, then {ANEW}"
            )
        champion, variant = model_registry.get_version(model_name, state.champion), version.tags["variant"]
        alias = promotion.champion_alias(variant)
        if not changes.history(champion, alias) and not promotion.is_champion(model_name, variant, champion):
            raise StorageError(f"{location}{FILE} goes back to version {state.champion}, which never was {alias}: {ANEW}")
        trust.check(champion, variant)
    return state


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
        StorageError, ModelError, IntegrityError, UntrustedBundle: as ``unfinished``.
        TrafficChanged: the traffic is not as it left it.
    """
    state = unfinished(rollout.location, rollout.model_name, rollout.version, rollout.split.name)
    if state is None:
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
    if comparison.verdict.losses:
        raise PromotionRefused(
            f"version {number} is not rolled out, validation shows that it is worse than version {champion.number}: "
            f"{'; '.join(comparison.verdict.losses)}"
        )
    if seen.stable != champion.number or seen.canary not in ("", number):
        raise DeploymentError(
            f"{rollout.split.name} serves {_described(seen)}, and the champion is version {champion.number}: deploy that one first"
        )
    expected = asdict(Expected.of(comparison.challenger, comparison.champion))
    state = State(number, champion.number, rollout.split.name, steps, expected)
    rollouts.begin(rollout.model_name, state.service, rollout.version, state.record())
    return state


class _Runner:
    """Goes through the steps of one rollout; ``require_lock`` raises if another process may have taken over."""

    def __init__(self, rollout: Rollout, state: State, require_lock: Callable[[], None], show: Callable[[str], None]) -> None:
        self.rollout, self.state, self.require_lock, self.show = rollout, state, require_lock, show

    def run_steps(self) -> None:
        """Returns when the phase is no longer running.

        Raises:
            RolloutHeld, TrafficChanged: see ``run``.
        """
        state = self.state
        while state.phase == RUNNING:
            self.save()
            if reason := self._obsolete() or self._set_share():
                self._decide(ROLLING_BACK, reason)
                return
            self._watch()
            if state.phase == RUNNING and state.step + 1 < len(state.steps):
                state.step, state.analysis = state.step + 1, None
            elif state.phase == RUNNING:
                self._decide(PROMOTING, "")

    def _obsolete(self) -> str:
        """Why the two versions are no longer the ones to compare; empty if they are."""
        state, name, version = self.state, self.rollout.model_name, self.rollout.version
        champion = promotion.champion(name, version.tags["variant"])
        if champion is None or champion.number != state.champion:
            return f"the champion is version {champion.number if champion else '(none)'} now, not version {state.champion}"
        now = model_registry.find_version(name, state.version)
        return f"version {state.version} was retired" if now is None or now.is_retired else ""

    def _set_share(self) -> str:
        """Gives the canary its share; returns why that failed."""
        try:
            self._deploy(self.state.version, self.state.percent)
        except ClusterAway:
            raise
        except DeploymentError as error:
            return f"it does not become ready: {error}"
        return ""

    def _watch(self) -> None:
        """Looks at a step, window by window, until it has shown enough or a fault."""
        state, plan = self.state, self.rollout.plan
        step = _Step(self.rollout, state)
        entry = {"percent": state.percent, "from": _now(), "to": "", "decision": ""}
        state.history = [*[one for one in state.history if one["percent"] != state.percent], entry]
        while True:
            step.look()
            entry |= {"to": _now(), "figures": step.analysis.figures()}
            state.analysis = step.analysis.to_json()
            self.show(_line(state, step))
            if fault := step.fault:
                self._decide(ROLLING_BACK, fault)
                return
            waits_for, is_over = step.waits_for, time.monotonic() - step.began > plan.hold_seconds
            if is_over or not waits_for:
                entry["decision"] = f"held: {waits_for}" if waits_for else "passed"
            try:
                self.save()
            except StorageUnavailable as error:
                waits_for = str(error)
            if not waits_for:
                return
            if is_over:
                raise RolloutHeld(
                    f"version {state.version} is held at {state.percent}% of {state.service}: {waits_for}; both versions serve: run "
                    f"it again to go on, or take it back by `make deploy VERSION={state.champion}`"
                )
            time.sleep(plan.window_seconds)

    def promote(self, gate: dict[str, Any]) -> Move:
        """Moves the alias, then gives the version all the traffic; rolls it back if it may not replace the champion now."""
        state = self.state
        self.save()
        try:
            move = promotion.promote(
                state.version,
                model_name=self.rollout.model_name,
                rolled_out_against=state.champion,
                require=self.require_lock,
                **gate,
            )
        except (PromotionRefused, ModelError) as error:
            self._decide(ROLLING_BACK, str(error))
            self.roll_back()
        self._deploy(state.version, 0)
        self._end(PROMOTED)
        # The alias may have moved before the process was killed.
        return replace(move, before=state.champion)

    def roll_back(self) -> None:
        """Gives the champion all the traffic.

        Raises:
            RolledBack: with the reason.
        """
        state = self.state
        self._deploy(state.champion, 0)
        self._end(ROLLED_BACK)
        raise RolledBack(
            f"version {state.version} was rolled back at {state.percent}% of {state.service}, version {state.champion} has all the "
            f"traffic: {state.reason}; the figures of each step are in {self.rollout.location}"
        )

    def _deploy(self, number: str, percent: int) -> None:
        """Changes the traffic. While the lock is not renewed another process may hold it: then this one waits.

        Raises:
            StorageError: another process holds the lock, or it is not renewed for the longest time of a step.
        """
        deadline = time.monotonic() + self.rollout.plan.hold_seconds
        while True:
            try:
                return self.rollout.split.deploy(number, percent, self.require_lock)
            except StorageUnavailable as error:
                if time.monotonic() > deadline:
                    raise
                log.warning("the traffic is not changed yet: %s", error)
            time.sleep(self.rollout.plan.window_seconds)

    def _decide(self, phase: str, reason: str) -> None:
        state = self.state
        state.phase, state.reason = phase, reason
        if state.history and phase == ROLLING_BACK:
            state.history[-1]["decision"] = f"rolled back: {reason}"
        try:
            self.save()
        except StorageUnavailable as error:
            # The canary does not keep its traffic until the store is back.
            log.warning("the decision is not in the store: %s", error)

    def _end(self, phase: str) -> None:
        """Writes down how the rollout ended."""
        state = self.state
        state.phase = phase
        self.save()
        began = state.started.replace(":", "").replace("+", "-")
        write(self.rollout.location, f"{state.version}-{began}.json", state)
        summary = {
            "decision": phase,
            "percent": state.percent,
            "reason": state.reason[:500],
            "at": _now(),
            "service": state.service,
        }
        try:
            model_registry.set_tag(
                self.rollout.model_name, self.rollout.version, model_registry.ROLLOUT_TAG, json.dumps(summary)
            )
            rollouts.write(self.rollout.model_name, state.service, state.record(phase))
        except TrackingError as error:
            log.warning("version %s has no tag that says how its rollout ended: %s", state.version, error)

    def save(self) -> None:
        """Writes the state, which must still be this process's to write, also at the end of a write that took long."""
        self.require_lock()
        with outages.guarded(self.require_lock):
            write(self.rollout.location, FILE, self.state)
        self.require_lock()


class _Step:
    """A step as this process watches it.

    Attributes:
        analysis: what it has shown.
        began: when, by the monotonic clock.
        obstacle: what kept the last look from showing more.
    """

    def __init__(self, rollout: Rollout, state: State) -> None:
        self._rollout, self._state, self._expected = rollout, state, Expected.from_json(state.expected)
        self.analysis = Analysis(rollout.plan, len(TESTS) * len(state.steps), self._expected)
        if state.analysis:
            try:
                self.analysis.resume(state.analysis)
            except (LookupError, TypeError, ValueError, AttributeError) as error:
                raise StorageError(f"{rollout.location}{FILE}: the analysis is damaged: {ANEW}") from error
        self._increases, self.obstacle, self._problem = Increases(), "", ""
        self.began = self._looked = self._problem_since = time.monotonic()

    def look(self) -> None:
        """Adds what was served since the last look, and answers to the next texts, to the analysis. The first look has only texts.

        Raises:
            TrafficChanged: the traffic is not as the rollout set it.
        """
        state, now = self._state, time.monotonic()
        try:
            _require(self._rollout.split.shares(), state, {state.percent})
            self._problem_since = self._problem_since if self._problem else now
            self.obstacle = self._problem = self._rollout.split.problem()
            samples = self._rollout.source.read()
        except (ClusterAway, MonitoringUnavailable) as error:
            self.obstacle = str(error)
            return
        traffic = self._increases.update(samples)
        champion, canary = traffic[state.champion], traffic[state.version]
        self.analysis.add_traffic(champion, canary, now - self._looked)
        self._looked = now
        copies = {name: int(count) for name, count in champion.copies[state.version].items()}
        rejected, compared = copies.pop("rejected", 0), sum(copies.values())
        if compared:
            self.analysis.add_copies(compared, copies.get("different", 0))
        if compared or rejected:
            self.analysis.add_repeated(compared + rejected, rejected)
        self._request(addresses(samples))

    def _request(self, servers: dict[str, str]) -> None:
        """Sends the next texts to both versions."""
        sent, plan = self.analysis.sent_texts, self._rollout.plan
        texts = self._rollout.texts[sent : min(sent + answers.BATCH, plan.step_texts)]
        if not texts:
            return
        try:
            champion = self._answers(servers, self._state.champion, texts)
            try:
                canary = self._answers(servers, self._state.version, texts)
            except answers.Rejected:
                # They are sent again by the next look: whether they are rejected again.
                self.analysis.add_repeated(1, 1)
                raise
        except (ClusterAway, MonitoringUnavailable) as error:
            self.obstacle = self.obstacle or str(error)
            return
        self.analysis.add_repeated(1, 0)
        self.analysis.add_answers(champion, canary)
        self.analysis.sent_texts += len(texts)

    def _answers(self, servers: dict[str, str], number: str, texts: list[str]) -> Answers:
        return answers.request(self._address(servers, number), self._rollout.model_name, texts, self._expected.labels)

    def _address(self, servers: dict[str, str], number: str) -> str:
        """The address of a server of a version; if the metrics come from Prometheus, texts go to the servers themselves."""
        address = servers.get(number, "")
        if not address.startswith("http"):
            address = addresses(Scrape(self._rollout.split.targets).read()).get(number, "")
        if not address:
            raise MonitoringUnavailable(f"no server of version {number} can be reached from here")
        return address

    @property
    def fault(self) -> str:
        """Why the canary is rolled back; empty if nothing shows a fault."""
        lasts = time.monotonic() - self._problem_since
        is_lasting = self._problem and lasts > PROBLEM_SECONDS
        return self.analysis.fault or (f"it does not serve its share for {lasts:.0f} s: {self._problem}" if is_lasting else "")

    @property
    def waits_for(self) -> str:
        """What the step lacks; empty if it has shown enough."""
        return self.obstacle or self.analysis.champion_fails or self.analysis.missing


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


def _line(state: State, step: _Step) -> str:
    analysis, figures = step.analysis, step.analysis.figures()
    champion, canary = figures["champion"], figures["canary"]
    largest = max(figures["evidence"], key=figures["evidence"].get)
    requests = canary["requests"] + champion["requests"]
    return (
        f"{state.percent}%: {canary['requests']:,} of {requests:,} requests to version {state.version}, failed "
        f"{canary['failures']}/{champion['failures']}, p95 {canary['p95_ms']}/{champion['p95_ms']} ms, {analysis.different} of "
        f"{analysis.texts} texts with other labels, expected F1 {canary['expected_f1_macro']:.3f}/"
        f"{champion['expected_f1_macro']:.3f}; evidence against it {figures['evidence'][largest]:.1f} of {figures['limit']:.1f} "
        f"({largest})" + f"; {step.waits_for or 'passed'}"
    )


@contextmanager
def _locked(location: str) -> Iterator[Callable[[], None]]:
    """Holds the lock of a service's rollouts and renews it meanwhile; yields a function that raises if it was lost.

    Raises:
        StorageError: another rollout of the service runs.
    """
    lost: list[StorageError] = []
    ended, renewed = threading.Event(), [0.0]

    def renew_once(held: lock.Lock) -> None:
        began = time.monotonic()
        held.require()
        renewed[0] = began

    def renew(held: lock.Lock) -> None:
        while not lost and not ended.wait(lock.LEASE_SECONDS / 4):
            try:
                renew_once(held)
            except StorageUnavailable as error:
                log.warning("the lock of the rollout is not renewed: %s", error)
            except StorageError as error:
                lost.append(error)

    def require() -> None:
        if lost:
            raise lost[0]
        # What begins now must end before another process could take over.
        if time.monotonic() - renewed[0] > lock.LEASE_SECONDS * lock.MARGIN:
            raise StorageUnavailable(f"{location}: the lock is not renewed, as the store does not respond: run it again later")

    with lock.hold(location, 1.5 * lock.LEASE_SECONDS) as held:
        # The wait for the lock of a killed process may have taken longer than a lease.
        renew_once(held)
        renewing = threading.Thread(target=renew, args=(held,), daemon=True)
        renewing.start()
        try:
            yield require
        finally:
            ended.set()
            # A renewal that hangs is not waited for longer than it counts.
            renewing.join(lock.LEASE_SECONDS)


def write(location: str, name: str, state: State) -> None:
    """Writes a state to a file at a location."""
    with store.writing(location, name) as path:
        path.write_text(json.dumps(asdict(state), indent=1), encoding="utf-8")


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
