"""The state of a rollout: a file in the store, from which an interrupted rollout goes on.

Whoever can write to the store can change it. So the registry has a digest of what the gate has passed, and an interrupted rollout goes
on only if both agree and what it would go back to was champion before. If there are trusted keys, the evidence of a state that none of
them signed does not count.
"""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any

from goemotions import strict_json
from goemotions.deployment.traffic import Shares
from goemotions.errors import ModelError, StorageError, TrafficChanged, UntrustedBundle
from goemotions.registry import changes, model_registry, promotion, rollouts, trust
from goemotions.registry.model_registry import Version
from goemotions.registry.rollouts import Record
from goemotions.storage import signature, store

log = logging.getLogger(__name__)

# Within the file, so that both are written at once.
FILE, SIGNATURE = "rollout.json", "signature"
RUNNING, PROMOTING, PROMOTED = "running", "promoting", "promoted"
ROLLING_BACK, ROLLED_BACK = "rolling back", "rolled back"
ENDED = (PROMOTED, ROLLED_BACK)
PHASES = (RUNNING, PROMOTING, ROLLING_BACK, *ENDED)
# What does not change from the beginning of a rollout to its end.
FIXED = ("version", "champion", "service", "steps", "expected", "started")
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
        phase: one of ``PHASES``, as ``rollout`` has them.
        reason: why it was rolled back.
        history: per step its share, times, figures and decision.
        analysis: of the present step.
        started: when.
    """

    # Of a state that was read: whether a trusted key has signed it, or there is none. It is not stored.
    is_trusted = True

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
    started: str = field(default_factory=lambda: now())

    @property
    def percent(self) -> int:
        return self.steps[self.step]

    @property
    def entry(self) -> dict[str, Any]:
        """What the history has of the present step."""
        for one in self.history:
            if one["percent"] == self.percent:
                return one
        self.history.append({"percent": self.percent, "from": now(), "to": "", "decision": ""})
        return self.history[-1]

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

    def require_traffic(self, seen: Shares, percents: set[int]) -> None:
        """Raises TrafficChanged unless the version has one of these shares of the traffic, in percent, and the champion the rest."""
        allowed = [Shares(self.champion, self.version, percent) if percent else Shares(self.champion) for percent in percents]
        if seen not in allowed:
            raise TrafficChanged(
                f"{self.service} serves {seen}, and the rollout had set version {self.version} to {self.percent}% beside version "
                f"{self.champion}: somebody else changed it, and it is left so; {ANEW}"
            )


def read(location: str) -> State | None:
    """The state at a location; None if there was no rollout.

    Raises:
        StorageError: it is damaged.
    """
    content = store.read(location, FILE)
    try:
        stored = strict_json.parse(content, FILE) if content else None
        if stored is None:
            return None
        signed = stored.pop(SIGNATURE, "")
        strict_json.require(stored, State, FILE)
        state = State(**stored)
        if not (state.is_valid and isinstance(signed, str)):
            raise ValueError("a value is of another kind")
        state.is_trusted = _is_trusted(stored, signed, location)
    except (ValueError, TypeError, AttributeError) as error:
        raise StorageError(f"{location}{FILE} is damaged: {ANEW}") from error
    return state


def write(location: str, name: str, state: State) -> None:
    """Writes a state to a file at a location, signed if there is a key."""
    content = asdict(state)
    signed = signature.sign(_statement(content), {"rollout": state.service})
    stored = content | ({SIGNATURE: signed.decode()} if signed else {})
    # Without a local file: a full disk does not end a rollout.
    store.write(location, name, json.dumps(stored, indent=1).encode())


def _statement(content: dict[str, Any]) -> bytes:
    return json.dumps(content, sort_keys=True).encode()


def _is_trusted(content: dict[str, Any], signed: str, location: str) -> bool:
    try:
        checked = signature.verify(_statement(content), signed.encode() or None, f"{location}{FILE}")
    except UntrustedBundle as error:
        log.info("%s", error)
        return False
    return not checked.key or checked.identity == {"rollout": content["service"]}


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
        champion, variant = model_registry.find_version(model_name, state.champion), version.variant
        if champion is None:
            raise ModelError(f"version {state.champion}, which the rollout goes back to, was removed from MLflow: {ANEW}")
        model_registry.require_bundle(champion)
        alias = promotion.champion_alias(variant)
        if not changes.history(champion, alias) and not promotion.is_champion(model_name, variant, champion):
            raise StorageError(f"{location}{FILE} goes back to version {state.champion}, which never was {alias}: {ANEW}")
        trust.check(champion, variant)
    return state


def record_end(location: str, model_name: str, state: State) -> None:
    """Writes down how a rollout ended: a file for good, and in MLflow, where its versions are no longer kept for it.

    Raises:
        StorageError, TrackingError: the store or MLflow fail. ``complete_end`` repeats it.
    """
    write(location, f"{state.version}-{state.started.replace(':', '').replace('+', '-')}.json", state)
    rollouts.write(model_name, state.service, state.record(state.phase))
    summary = {
        "decision": state.phase,
        "percent": state.percent,
        "reason": state.reason[:500],
        "at": now(),
        "service": state.service,
    }
    if version := model_registry.find_version(model_name, state.version):
        model_registry.set_tag(model_name, version, model_registry.ROLLOUT_TAG, json.dumps(summary))


def complete_end(location: str, model_name: str) -> None:
    """Writes down how the last rollout ended if its process was killed before it had, or MLflow did not respond."""
    state = read(location)
    if state and state.phase in ENDED and rollouts.records(model_name).get(state.service) == state.record():
        record_end(location, model_name, state)


def now() -> str:
    """The time, as ISO 8601 in UTC."""
    return datetime.now(UTC).isoformat(timespec="seconds")
