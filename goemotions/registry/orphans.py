"""Orphans: bundles and trained models in the store that no version refers to, because a registration crashed or long ago.

Their age is that of the MLflow run that made them. What no run names has no age, and is kept.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass

from goemotions import defaults
from goemotions.errors import IntegrityError
from goemotions.registry import model_registry, tracking, trust
from goemotions.registry.bundle import VARIANTS, BundleLocation
from goemotions.registry.retirement import DAY_SECONDS, bundle_of
from goemotions.storage import layout, lock, manifest, store

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Orphan:
    """What is at a location, with its size in bytes; ``model_prefix``: that of a bundle, empty for a trained model."""

    location: str
    size: int
    model_prefix: str = ""


def plan(
    model_name: str,
    days: float = defaults.KEPT_DAYS,
    trained_days: float = defaults.KEPT_TRAINED_DAYS,
    served: Collection[str] = (),
) -> list[Orphan]:
    """What ``remove`` would remove, in the stores that the versions of a registered model are in.

    Args:
        model_name: name of the registered model.
        days: bundles whose run is younger are kept, as their registration may be running or be repeated.
        trained_days: the same of trained models.
        served: locations of bundles that are served, in any bucket: their version may have been deleted from MLflow.

    Raises:
        ModelError: there is no such model.
        StorageError, TrackingError: the store or MLflow fail.
    """
    versions = filter(trust.has_source_of_register, model_registry.versions(model_name))
    stores = {BundleLocation.parse(version.source).store for version in versions}
    kept = {bundle_of(location) for location in served}
    return [
        orphan
        for location in sorted(stores)
        for orphan in (*_bundles(location, model_name, days), *_trained(location, trained_days))
        if bundle_of(orphan.location) not in kept - {None}
    ]


def remove(orphans: list[Orphan]) -> list[Orphan]:
    """Removes what ``plan`` returned and returns it, without what a version refers to by now.

    A bundle is removed under the lock under which a registration creates a version, and looks whether the bundle is there.
    """
    removed = []
    for orphan in orphans:
        if not orphan.model_prefix:
            store.remove(orphan.location)
            removed.append(orphan)
            continue
        with lock.hold(orphan.model_prefix) as held, held.writing():
            if not model_registry.versions_of_source(orphan.location):
                store.remove(orphan.location)
                removed.append(orphan)
    return removed


def _bundles(location: str, model_name: str, days: float) -> Iterator[Orphan]:
    prefix = layout.models(location, model_name)
    for run_id in store.children(prefix):
        for variant in VARIANTS:
            bundle = str(BundleLocation(location, model_name, run_id, variant))
            if (size := store.size(bundle)) and _is_older(run_id, days) and not model_registry.versions_of_source(bundle):
                yield Orphan(bundle, size, prefix)


def _trained(location: str, days: float) -> Iterator[Orphan]:
    """Trained models of whose run no version is left."""
    for pipeline_run in store.children(store.join(location, "trained")):
        for profile in store.children(store.join(location, "trained", pipeline_run)):
            trained = layout.trained(location, pipeline_run, profile)
            run_id = _run_of(trained)
            if _is_older(run_id, days) and all(version.is_retired for version in model_registry.versions_of_run(run_id)):
                yield Orphan(trained, store.size(trained))


def _is_older(run_id: str, days: float) -> bool:
    ended = tracking.end_of_run(run_id)
    return ended is not None and time.time() - ended > days * DAY_SECONDS


def _run_of(trained: str) -> str:
    """The MLflow run that a trained model names; empty if it names none, or its manifest is damaged, which stops no cleaning."""
    try:
        content = store.read(trained, manifest.NAME)
        return str(manifest.parse(content, trained).get("run_id", "")) if content else ""
    except IntegrityError as error:
        log.warning("%s is kept: %s", trained, error)
        return ""
