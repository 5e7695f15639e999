"""A rollout: a version gets the traffic of a service in steps, and is promoted, held, or rolled back by what each step shows.

    running --(a step shows a fault, or the canary does not start)--> rolling back --> rolled back
       |  ^                                                                 ^
       |  +--(the step shows enough: the next share)                        |(it may not replace the champion now)
       +-----(the last step shows enough)------------------> promoting -----+--> promoted

The state (``rollout_state``) is in the store, under a lock that the rollout holds, and is written before the traffic is changed:
whatever kills the process, the same command goes on from there. Too little traffic, metrics or a store that do not respond and a
champion that fails hold the rollout: both versions keep their shares. The traffic and the alias are changed only while the lock is
surely held.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

from goemotions import defaults, outages
from goemotions.deployment.traffic import TrafficSplit
from goemotions.errors import (
    BadArgument,
    ClusterUnavailable,
    DeploymentError,
    IntegrityError,
    LockLost,
    ModelError,
    PromotionRefused,
    RolledBack,
    RolloutHeld,
    StorageError,
    StorageUnavailable,
    TrackingError,
    TrackingUnavailable,
)
from goemotions.monitoring.rollout import answers
from goemotions.monitoring.rollout import state as rollout_state
from goemotions.monitoring.rollout.answers import Expected
from goemotions.monitoring.rollout.plan import Plan
from goemotions.monitoring.rollout.sources import Source
from goemotions.monitoring.rollout.state import FILE, PROMOTED, PROMOTING, ROLLED_BACK, ROLLING_BACK, RUNNING, State, now
from goemotions.monitoring.rollout.step import Rollout, Step
from goemotions.registry import model_registry, promotion, rollouts, trust
from goemotions.registry.bundle import BundleLocation
from goemotions.registry.promotion import Move
from goemotions.storage import layout, lease

log = logging.getLogger(__name__)

# What does not respond now may do so later.
AWAY = (ClusterUnavailable, StorageUnavailable, TrackingUnavailable)


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
    with lease.hold(location) as require_lock:
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


def _unfinished(rollout: Rollout) -> State | None:
    """The rollout that was interrupted; None if there is none.

    Raises:
        BadArgument: it is that of another version.
        StorageError, ModelError, IntegrityError, UntrustedBundle: as ``rollout_state.unfinished``.
        TrafficChanged: the traffic is not as it left it.
    """
    rollout_state.complete_end(rollout.location, rollout.model_name)
    state = rollout_state.unfinished(rollout.location, rollout.model_name, rollout.version, rollout.split.name)
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
        state.require_traffic(seen, {state.percent, before})
    if state.phase in (RUNNING, PROMOTING) and not state.is_trusted and not _is_promoted(rollout):
        log.warning("%s%s is not signed by a trusted key: its evidence does not count", rollout.location, FILE)
        state.phase, state.step, state.analysis, state.history = RUNNING, 0, None, []
    return state


def _is_promoted(rollout: Rollout) -> bool:
    """Whether the alias has moved already: then only the traffic is left."""
    champion = promotion.champion(rollout.model_name, rollout.version.variant)
    return champion is not None and champion.number == rollout.version.number


def _begin(rollout: Rollout, gate: dict[str, Any]) -> State:
    """The state of a new rollout, after the gate has passed and before anything is changed."""
    number, steps = rollout.version.number, rollout.plan.shares
    seen = rollout.split.shares()
    comparison = promotion.compare(number, model_name=rollout.model_name, **gate)
    champion = promotion.champion(rollout.model_name, rollout.version.variant)
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
            f"{rollout.split.name} serves {seen}, and the champion is version {champion.number}: deploy that one first"
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
            # One that was suspended while it began may have written its own record over it.
            rollouts.write(self.rollout.model_name, state.service, state.record())
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
        champion = promotion.champion(name, version.variant)
        if champion is None or champion.number != state.champion:
            return f"the champion is version {champion.number if champion else '(none)'} now, not version {state.champion}"
        current = model_registry.find_version(name, state.version)
        return f"version {state.version} was retired or removed" if current is None or current.is_retired else ""

    def _set_share(self) -> str:
        """Gives the canary its share; returns why that failed."""
        try:
            self._deploy(self.state.version, self.state.percent)
        except ClusterUnavailable:
            raise
        except DeploymentError as error:
            return f"it does not become ready: {error}"
        return ""

    def _watch(self) -> None:
        """Looks at a step, window by window, until it has shown enough or a fault."""
        state, plan = self.state, self.rollout.plan
        step, entry = Step(self.rollout, state), state.entry
        while True:
            step.look()
            entry |= {"to": now(), "figures": step.analysis.figures(), "decision": ""}
            state.analysis = step.analysis.to_json()
            self.show(step.summary)
            if fault := step.fault:
                self._decide(ROLLING_BACK, fault)
                return
            waits_for, is_over = step.waits_for, step.is_over
            if is_over or not waits_for:
                entry["decision"] = f"held: {waits_for}" if waits_for else "passed"
            try:
                self.save()
            except LockLost:
                raise
            except StorageError as error:
                # Also a store that is full: the canary does not keep its traffic without anybody who watches it.
                log.warning("the state is not in the store: %s", error)
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
        except (PromotionRefused, ModelError, IntegrityError) as error:
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
        """Changes the traffic. This waits while cluster, store or MLflow do not respond: otherwise a bad version would keep its share
        with nobody who watches it. While the lock is not renewed, another process may hold it, too.

        Raises:
            StorageError: another process holds the lock.
            DeploymentError, StorageError, TrackingError: as ``AWAY``, for the longest time of a step; or the version is not ready.
        """
        deadline = time.monotonic() + self.rollout.plan.hold_seconds
        while True:
            try:
                return self.rollout.split.deploy(number, percent, self.require_lock)
            except AWAY as error:
                if time.monotonic() > deadline:
                    raise
                log.warning("the traffic is not changed yet: %s", error)
            time.sleep(self.rollout.plan.window_seconds)

    def _decide(self, phase: str, reason: str) -> None:
        state = self.state
        state.phase, state.reason = phase, reason
        if phase == ROLLING_BACK:
            state.entry.update(to=now(), decision=f"rolled back: {reason}")
        try:
            self.save()
        except StorageError as error:
            # The canary does not keep its traffic because the store is unavailable or full. The change itself requires the lock.
            log.warning("the decision is not in the store: %s", error)

    def _end(self, phase: str) -> None:
        """Writes down how the rollout ended."""
        self.state.phase = phase
        self.save()
        try:
            rollout_state.record_end(self.rollout.location, self.rollout.model_name, self.state)
        except TrackingError as error:
            log.warning("MLflow does not say how the rollout of version %s ended: %s", self.state.version, error)

    def save(self) -> None:
        """Writes the state, which must still be this process's to write, also at the end of a write that took long."""
        self.require_lock()
        with outages.guarded(self.require_lock):
            rollout_state.write(self.rollout.location, FILE, self.state)
        self.require_lock()
