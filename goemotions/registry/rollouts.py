"""The unfinished rollouts of a registered model, as the registry has them: a tag of the model per service.

The state of a rollout is in the store, where others may be able to write. This record, made after the gate has passed, shows which
state is genuine. A version that takes part in an unfinished rollout keeps its bundle.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields

from goemotions import strict_json
from goemotions.errors import LockLost, TrackingError
from goemotions.registry import model_registry
from goemotions.registry.bundle import BundleLocation
from goemotions.registry.mlflow_client import retrying
from goemotions.registry.model_registry import Version
from goemotions.storage import lock

TAG = "goemotions.rollout."


@dataclass(frozen=True)
class Record:
    """The last rollout of a service.

    Attributes:
        version, champion: their numbers.
        digest: sha256 of what its state says from beginning to end.
        outcome: how it ended; empty while it is unfinished.
    """

    version: str
    champion: str
    digest: str
    outcome: str = ""


def begin(model: str, service: str, version: Version, record: Record) -> None:
    """Records that a rollout begins.

    Raises:
        ModelError: one of the versions was retired meanwhile.
        LockLost: another process has taken over the lock; the record is taken back, as one of the versions may be retired.
    """
    prefix = BundleLocation.parse(version.source).model_prefix
    with lock.hold(prefix) as held:
        for number in (record.version, record.champion):
            model_registry.get_version(model, number)
        try:
            with held.writing():
                write(model, service, record)
            return
        except LockLost as error:
            lost = error
    with lock.hold(prefix) as held, held.writing():
        if records(model).get(service) == record:
            retrying.delete_registered_model_tag(model, TAG + service)
    raise lost


def write(model: str, service: str, record: Record) -> None:
    """Writes the record of a service."""
    retrying.set_registered_model_tag(model, TAG + service, json.dumps(asdict(record)))


def records(model: str) -> dict[str, Record]:
    """The record of each service.

    Raises:
        ModelError: there is no such model.
        TrackingError: a tag holds something else.
    """
    tags = model_registry.tags(model)
    return {tag.removeprefix(TAG): _parse(model, tag, value) for tag, value in tags.items() if tag.startswith(TAG)}


def participants(model: str) -> dict[str, str]:
    """Why the versions that take part in unfinished rollouts are kept, by number."""
    reasons: dict[str, str] = {}
    for service, record in records(model).items():
        if not record.outcome:
            reasons[record.version] = f"its rollout on {service} is not finished"
            reasons[record.champion] = f"the rollout of version {record.version} on {service} goes back to it"
    return reasons


def _parse(model: str, tag: str, value: str) -> Record:
    try:
        content = strict_json.parse(value, "the tag")
        if content.keys() == {field.name for field in fields(Record)} and all(isinstance(one, str) for one in content.values()):
            return Record(**content)
    except (ValueError, AttributeError, RecursionError):
        pass
    raise TrackingError(f"{model}: its tag {tag} is damaged: remove it in MLflow, and run the rollout with --restart")
