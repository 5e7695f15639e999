"""Orphans: what killed and failed steps left in the store, and what no version refers to any more.

A bundle or a trained model is an orphan if the MLflow run that made it ended long ago, and no file of it was written since. A folder
without a manifest is one whose upload was never finished, which nobody reads: then the run counts that its place names. If MLflow has
no such run, it is kept, for it may be of another MLflow, or of others; only the scores of teachers are known by their keys.
"""

from __future__ import annotations

import functools
import logging
import re
import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from goemotions import defaults, outages
from goemotions.errors import IntegrityError, StorageError
from goemotions.registry import model_registry, tracking, trust
from goemotions.registry.bundle import BundleLocation
from goemotions.registry.retirement import DAY_SECONDS, bundle_of
from goemotions.storage import layout, lock, manifest, store
from goemotions.storage.backend import File
from goemotions.storage.lock import Lock

log = logging.getLogger(__name__)

# No step takes so long from one file of a folder to the next: what was written since may be of a step that runs.
WRITING_DAYS = 1.0
UNUSED, UNFINISHED = "no version has it", "its upload was never finished"
# Of a teacher (``training.teachers.key``), and the name of a run or profile that a filter of MLflow takes.
KEY, NAME = re.compile(r"[0-9a-f]{32}"), re.compile(r"[\w.-]+")


@dataclass(frozen=True)
class Orphan:
    """What is at a location, why it is not needed, its bytes, when its last file was written, and what is locked for its removal."""

    location: str
    reason: str
    size: int
    modified: float
    locked: str


def plan(
    model_name: str,
    days: float = defaults.KEPT_DAYS,
    trained_days: float = defaults.KEPT_TRAINED_DAYS,
    served: Collection[str] = (),
) -> list[Orphan]:
    """What ``remove`` would remove, in the stores that the versions of a registered model are in.

    Args:
        model_name: name of the registered model.
        days: bundles and unfinished folders that are younger are kept, as their step may be running or be repeated.
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
        for orphan in (
            *_bundles(location, model_name, days, kept),
            *_trained(location, trained_days),
            *_unfinished(location, days),
        )
    ]


def remove(orphans: list[Orphan]) -> list[Orphan]:
    """Removes what ``plan`` returned and returns it, without what a version refers to by now, or a step has written to.

    A bundle is removed under the lock under which a registration creates a version, and looks whether the bundle is there.
    """
    removed = []
    for orphan in orphans:
        with lock.hold(orphan.locked) as held:
            is_untouched = _modified(store.files(orphan.location)) == orphan.modified
            if is_untouched and not (bundle_of(orphan.location) and model_registry.versions_of_source(orphan.location)):
                # A process that was suspended between two of its files must not remove what a step has written meanwhile.
                with held.writing(), outages.guarded(functools.partial(_require_untouched, orphan, held)):
                    store.remove(orphan.location)
                removed.append(orphan)
    return removed


def _require_untouched(orphan: Orphan, held: Lock) -> None:
    held.require()
    if _modified(store.files(orphan.location)) > orphan.modified:
        raise StorageError(
            f"{orphan.location} was written to while it was removed, and a part of it is missing: run the step again that wrote it"
        )


def _bundles(location: str, model_name: str, days: float, kept: Collection[object]) -> Iterator[Orphan]:
    prefix = layout.models(location, model_name)
    for folder, files in store.folders(prefix, 2).items():
        named = bundle_of(folder)
        if named and named not in kept and _is_older(files, named[1], days) and not model_registry.versions_of_source(folder):
            yield _orphan(folder, files, prefix)


def _trained(location: str, days: float) -> Iterator[Orphan]:
    """Trained models of whose run no version is left."""
    prefix = store.join(location, "trained")
    for folder, files in _complete(prefix).items():
        is_older = _is_older(files, run_id := _run_of(folder), days)
        if is_older and all(version.is_retired for version in model_registry.versions_of_run(run_id)):
            yield _orphan(folder, files, prefix)


def _complete(prefix: str) -> dict[str, list[File]]:
    """The folders with a manifest, and their files: the id of a pipeline run may have slashes, so that no depth says which they are."""
    listed = store.files(prefix)
    names = [file.name.removesuffix(manifest.NAME) for file in listed if file.name.endswith(f"/{manifest.NAME}")]
    folders: dict[str, list[File]] = {name: [] for name in names if name.count("/") > 1}
    for file in listed:
        parts = file.name.split("/")
        for end in range(2, len(parts)):
            if (name := "/".join(parts[:end]) + "/") in folders:
                folders[name].append(file)
    return {prefix + name: files for name, files in folders.items()}


def _unfinished(location: str, days: float) -> Iterator[Orphan]:
    """Trained models, checkpoints and scores of teachers without a manifest."""
    for root, depth in (("trained", 2), ("checkpoints", 3), ("teachers", 1)):
        prefix = store.join(location, root)
        for folder, files in store.folders(prefix, depth).items():
            # A pipeline run and a profile, or the key of a teacher, alone or after another name.
            names = folder.removeprefix(prefix).split("/")
            run, name = names[0], names[min(depth, 2) - 1]
            if _is_complete(files) or not _is_written_before(files, days):
                continue
            if KEY.fullmatch(name) or any(_is_older(files, run_id, days) for run_id in _runs(run, name)):
                yield _orphan(folder, files, prefix)


def _orphan(location: str, files: Sequence[File], locked: str) -> Orphan:
    reason = UNUSED if _is_complete(files) else UNFINISHED
    return Orphan(location, reason, sum(file.size for file in files), _modified(files), locked)


def _is_complete(files: Sequence[File]) -> bool:
    """Whether a folder, or one within it, has a manifest: the id of a pipeline run may have slashes."""
    return any(file.name.rpartition("/")[2] == manifest.NAME for file in files)


def _modified(files: Sequence[File]) -> float:
    """When the last of these files was written, by the clock of the store; 0 if there is none."""
    return max((file.modified for file in files), default=0.0)


def _is_written_before(files: Sequence[File], days: float) -> bool:
    return time.time() - _modified(files) > max(days, WRITING_DAYS) * DAY_SECONDS


def _is_older(files: Sequence[File], run_id: str, days: float) -> bool:
    """Whether the files were written, and the MLflow run that made them ended, so many days ago; not if there is no such run."""
    if not _is_written_before(files, days):
        return False
    ended = tracking.end_of_run(run_id)
    return ended is not None and time.time() - ended > days * DAY_SECONDS


def _runs(pipeline_run: str, profile: str) -> list[str]:
    """The MLflow runs of a profile in a pipeline run."""
    if not NAME.fullmatch(pipeline_run):
        return []
    return [run_id for run_id, tags in tracking.tags_of_runs(pipeline_run).items() if tags.get(tracking.PROFILE_TAG) == profile]


def _run_of(trained: str) -> str:
    """The MLflow run that a trained model names; empty if it names none, or its manifest is damaged, which stops no cleaning."""
    try:
        content = store.read(trained, manifest.NAME)
        return str(manifest.parse(content, trained).get("run_id", "")) if content else ""
    except IntegrityError as error:
        log.warning("%s is kept: %s", trained, error)
        return ""
