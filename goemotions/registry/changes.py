"""Who made an alias or InferenceService refer to which version, and when: recorded in the tags of the versions."""

from __future__ import annotations

import getpass
import json
import os
import re
import socket
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

from goemotions import strict_json
from goemotions.errors import TrackingError
from goemotions.registry import model_registry
from goemotions.registry.mlflow_client import retrying
from goemotions.registry.model_registry import Version

HISTORY_TAG = "goemotions.history."
# Of a registered model: the number of its last change.
CHANGES_TAG = "goemotions.changes"
# Names of fields as they are stored.
NAMES = {"target": "where", "before": "from", "after": "to"}

Action = Literal["promote", "rollback", "deploy"]


@dataclass(frozen=True)
class Change:
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

    @property
    def tag(self) -> str:
        return f"{HISTORY_TAG}{self.sequence:08d}.{self.at}"

    def to_json(self) -> str:
        content = {NAMES.get(name, name): value for name, value in vars(self).items() if value is not None}
        return json.dumps(content)

    @classmethod
    def from_json(cls, text: str) -> Change:
        stored = strict_json.parse(text, "the tag")
        values = {name: stored[NAMES.get(name, name)] for name in cls.__annotations__ if NAMES.get(name, name) in stored}
        strict_json.require(values, cls, "the tag")
        return cls(**values)


def record(model: str, version: Version, action: Action, target: str, before: str, *, percent: int | None = None) -> Change:
    """Records in a version's tags who made an alias or InferenceService refer to it, and when.

    The registry numbers the changes: the clocks of the machines that make them may differ. If the newest change is the same one, its
    process was killed before it had made it, and nothing is recorded again.

    Args:
        target: the alias or InferenceService.
        before: number of the version that it referred to; empty if there was none.
        percent: share of the traffic that a deployment gives to the version.

    Raises:
        TrackingError: the registry's number of the last change is damaged.
    """
    now, last = _now(), _last(model)
    current = model_registry.get_version(model, version.number)
    for one in history(current, target)[-1:]:
        if (one.sequence, one.action, one.before, one.percent) == (last, action, before, percent):
            return one
    change = Change(action, target, before, version.number, _user_and_host(), now, percent, last + 1)
    retrying.set_registered_model_tag(model, CHANGES_TAG, str(change.sequence))
    model_registry.set_tag(model, version, change.tag, change.to_json())
    return change


def take_back(model: str, own: Change) -> Change | None:
    """Removes a record if the same target was changed since or at the same time; returns that change, or None."""
    others = [one for one in _all(model) if one != own]
    since = [one for one in others if one.target == own.target and one.sequence >= own.sequence]
    if not since:
        return None
    retrying.delete_model_version_tag(model, own.after, own.tag)
    retrying.set_registered_model_tag(model, CHANGES_TAG, str(max(one.sequence for one in others)))
    return max(since, key=_order)


def newest(model: str, target: str) -> Change | None:
    """The last change of an alias or InferenceService; None if there was none."""
    return max(_all(model, target), key=_order, default=None)


def history(version: Version, target: str = "") -> list[Change]:
    """What ``record`` wrote of a version and an alias or InferenceService (empty: any), oldest first.

    Raises:
        TrackingError: a tag holds something else.
    """
    changes = [_read(version, name) for name in version.tags if name.startswith(HISTORY_TAG)]
    return sorted((one for one in changes if target in ("", one.target)), key=_order)


def mark_retired(model: str, version: Version) -> None:
    """From now on a reference to the version is an error."""
    model_registry.set_tag(model, version, model_registry.RETIRED_TAG, f"{_now()} by {_user_and_host()}")


def unmark_retired(model: str, version: Version) -> None:
    """Takes the mark back, while the bundle is still there."""
    retrying.delete_model_version_tag(model, version.number, model_registry.RETIRED_TAG)


def _all(model: str, target: str = "") -> list[Change]:
    return [one for version in model_registry.versions(model) for one in history(version, target)]


def _order(change: Change) -> tuple[int, str]:
    return change.sequence, change.at


def _read(version: Version, tag: str) -> Change:
    try:
        return Change.from_json(version.tags[tag])
    except (ValueError, TypeError) as error:
        raise TrackingError(f"version {version.number}: its tag {tag} is damaged: remove it in MLflow") from error


def _last(model: str) -> int:
    """The number of the last change of a registered model; 0 if there was none."""
    text = retrying.get_registered_model(model).tags.get(CHANGES_TAG, "0")
    if not re.fullmatch("[0-9]{1,18}", text):
        last = f"the highest number in the tags {HISTORY_TAG}* of its versions"
        raise TrackingError(f"{model}: its tag {CHANGES_TAG} is damaged: set it in MLflow to {last}")
    return int(text)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def _user_and_host() -> str:
    """User and host; in a pod, where the user may have no name, its uid and the pod's name."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = f"uid {os.getuid()}"
    return f"{user}@{socket.gethostname()}"
