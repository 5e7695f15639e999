"""Retirement: the bundles of versions that nothing refers to any more are removed from the store.

A version that is retired keeps its number, tags and metrics in MLflow, and gets a tag that says that its bundle is gone: whatever
refers to it ends with a named error. The tag is set first, under the registry's lock; then the bundle is removed, its manifest first. A
retirement that was killed is completed by the next one.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from goemotions import defaults
from goemotions.errors import BadAddress, ModelError
from goemotions.registry import changes, model_registry, rollouts, trust
from goemotions.registry.bundle import BundleLocation
from goemotions.registry.changes import Change
from goemotions.registry.model_registry import Version
from goemotions.storage import lock, store

DAY_SECONDS = 86_400


@dataclass(frozen=True)
class Policy:
    """Which versions are kept although nothing refers to them: the newest of each variant, and young ones."""

    newest: int = defaults.KEPT_VERSIONS
    days: float = defaults.KEPT_DAYS


@dataclass(frozen=True)
class Decision:
    """Whether a version is kept: ``kept`` is the reason, empty if it is retired. ``size`` is that of its bundle in the store."""

    version: Version
    kept: str = ""
    size: int = 0


def plan(model_name: str, policy: Policy, served: Collection[str] = ()) -> list[Decision]:
    """What ``retire`` would do, for each version that is not retired yet or whose bundle is not removed yet, oldest first.

    Args:
        model_name: name of the registered model.
        policy: what is kept besides.
        served: locations of bundles that are served or about to be, in any bucket.

    Raises:
        ModelError: there is no such model.
        StorageError, TrackingError: the store or MLflow fail.
    """
    decisions = _decide(model_name, policy, served)
    return [one if one.kept else replace(one, size=store.size(one.version.source)) for one in decisions]


def retire(model_name: str, policy: Policy, served: Collection[str] = ()) -> list[Decision]:
    """Retires versions and removes their bundles; see ``plan``. Running it again completes what was interrupted.

    Returns:
        The decisions; those of the retired versions have the size that was removed.
    """
    decisions = plan(model_name, policy, served)
    by_prefix: dict[str, list[Version]] = {}
    for one in decisions:
        if not one.kept:
            by_prefix.setdefault(BundleLocation.parse(one.version.source).model_prefix, []).append(one.version)
    kept: dict[str, str] = {}

    def still(versions: list[Version]) -> list[Version]:
        """Those that nothing refers to by now."""
        kept.update({one.version.number: one.kept for one in _decide(model_name, policy, served) if one.kept})
        return [version for version in versions if version.number not in kept]

    for prefix, versions in by_prefix.items():
        marked: list[Version] = []
        try:
            with lock.hold(prefix) as held:
                # An alias may have moved since the plan was made.
                for version in still(versions):
                    marked.append(version)
                    if not version.is_retired:
                        with held.writing():
                            changes.mark_retired(model_name, version)
        finally:
            # A deployment holds no lock: it records itself, then looks whether the version is marked. And a process that is suspended
            # while it marks a version may do so when another one holds the lock.
            with lock.hold(prefix) as held:
                removed = still(marked)
                for version in marked:
                    if version not in removed and not version.is_retired:
                        with held.writing():
                            changes.unmark_retired(model_name, version)
        for version in removed:
            store.remove(version.source)
            model_registry.set_tag(model_name, version, model_registry.REMOVED_TAG, "true")
    return [replace(one, kept=one.kept or kept.get(one.version.number, "")) for one in decisions]


def decide(
    versions: Sequence[Version],
    aliases: Mapping[str, str],
    policy: Policy,
    *,
    model_name: str,
    now: float,
    served: Collection[str] = (),
    rolled_out: Mapping[str, str] | None = None,
    is_shared: Callable[[str], bool] = lambda source: False,
) -> list[Decision]:
    """Decides for each version, oldest first.

    Args:
        versions: all versions of a registered model that are not retired and removed.
        aliases: numbers of versions by alias.
        policy: what is kept besides.
        model_name: name of the registered model.
        now: seconds since the epoch.
        served: locations of bundles that are served.
        rolled_out: why versions that take part in a rollout are kept, by number.
        is_shared: whether versions of other registered models have a bundle; called for those only that would be retired.
    """
    ordered = sorted(versions, key=lambda version: int(version.number))
    referred = {**(rolled_out or {}), **_references(ordered, aliases)}
    present: dict[str, list[str]] = {}
    for version in reversed(ordered):
        if not version.is_retired:
            present.setdefault(version.tags.get("variant", ""), []).append(version.number)
    newest = {number for numbers in present.values() for number in numbers[: policy.newest]}
    kept_bundles = {bundle_of(location) for location in served}
    sources = [_canonical(version.source) for version in ordered]

    def reason(version: Version, source: str) -> str:
        if version.number in referred:
            return referred[version.number]
        location = bundle_of(source)
        if location is None or location[0] != model_name:
            return "its source is no bundle of this model"
        if not trust.has_source_of_register(version):
            return "`register` does not write where its source is"
        if location in kept_bundles:
            return "it is served, or in the manifest"
        if version.number in newest:
            return f"one of the {policy.newest} newest for {version.tags.get('variant', 'its variant')}"
        if not version.is_retired and now - version.created < policy.days * DAY_SECONDS:
            return f"younger than {policy.days:g} days"
        if sources.count(source) > 1 or is_shared(version.source):
            return "another version has the same bundle"
        return ""

    return [Decision(version, reason(version, source)) for version, source in zip(ordered, sources, strict=True)]


def _decide(model_name: str, policy: Policy, served: Collection[str]) -> list[Decision]:
    def is_shared(source: str) -> bool:
        return any(version.model_name != model_name for version in model_registry.versions_of_source(source))

    versions = [version for version in model_registry.versions(model_name) if not version.is_removed]
    return decide(
        versions,
        model_registry.aliases(model_name),
        policy,
        model_name=model_name,
        now=time.time(),
        served=served,
        rolled_out=rollouts.participants(model_name),
        is_shared=is_shared,
    )


def _references(versions: Sequence[Version], aliases: Mapping[str, str]) -> dict[str, str]:
    """Why versions are referred to, by number: aliases, what a rollback goes back to, what was deployed last."""
    by_number = {version.number: version for version in versions}
    reasons = {number: alias for alias, number in aliases.items()}
    for alias, number in aliases.items():
        if number in by_number:
            for entry in changes.history(by_number[number], alias):
                reasons.setdefault(entry.before, f"{alias} was it before version {number}: a rollback goes back to it")
    deployed: dict[str, Change] = {}
    for entry in (entry for version in versions for entry in changes.history(version)):
        last = deployed.get(entry.target)
        if entry.action == "deploy" and (last is None or (last.sequence, last.at) < (entry.sequence, entry.at)):
            deployed[entry.target] = entry
    for target, entry in deployed.items():
        reasons.setdefault(entry.after, f"deployed to {target}")
        reasons.setdefault(entry.before, f"{target} served it before version {entry.after}")
    return reasons


def bundle_of(location: str) -> tuple[str, str, str] | None:
    """Model, run and variant of a bundle's location; the bucket may have another name in a cluster."""
    with contextlib.suppress(ModelError):
        bundle = BundleLocation.parse(location)
        if not {bundle.model_name, bundle.run_id} & {"", ".", ".."}:
            return bundle.model_name, bundle.run_id, bundle.variant
    return None


def _canonical(location: str) -> str:
    """The only spelling of a location; another kind of address is left as it is."""
    with contextlib.suppress(BadAddress):
        return store.canonical(location)
    return location
