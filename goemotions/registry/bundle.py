"""A bundle: everything one model version is, in one immutable folder that its manifest closes.

Opening one needs neither torch nor the training libraries: the server does it.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from goemotions import defaults
from goemotions.data.taxonomy import Taxonomy
from goemotions.errors import IntegrityError, ModelError, StorageError
from goemotions.metrics import thresholds
from goemotions.metrics.thresholds import Thresholds
from goemotions.models.tokenizer import TextEncoder
from goemotions.registry import tracking
from goemotions.registry.tracking import Version
from goemotions.storage import manifest, store

Variant = Literal["gpu", "cpu"]
VARIANTS: tuple[Variant, ...] = ("gpu", "cpu")
ENGINES: dict[str, str] = {"gpu": "torch", "cpu": "onnx-int8"}


@dataclass(frozen=True)
class Bundle:
    """A verified bundle, opened. ``facts`` is the content of its manifest."""

    folder: Path
    facts: dict[str, Any]
    taxonomy: Taxonomy
    thresholds: Thresholds
    encoder: TextEncoder


def load(folder: Path) -> Bundle:
    """Verifies a bundle and reads what a predictor needs besides the engine.

    Raises:
        IntegrityError: a file is missing or differs from the manifest.
        ModelError: the folder is whole, but no bundle.
    """
    facts = manifest.verify(folder)
    if facts.get("variant") not in VARIANTS:
        raise ModelError(f"{folder} is not a bundle of this workflow: give one that `goemotions register` made")
    fitted, content = thresholds.read(folder / thresholds.FILE)
    return Bundle(folder, facts, Taxonomy(tuple(content["thresholds"])), fitted, TextEncoder.load(folder))


def taxonomy(location: str) -> Taxonomy:
    """The labels of a bundle, by one small file of it.

    Raises:
        ModelError: no bundle is there.
    """
    if not store.has(location, manifest.NAME):
        raise ModelError(f"{location} is not a bundle: give one that `goemotions register` made")
    _, content = thresholds.parse(store.read(location, thresholds.FILE) or b"", f"{location}: {thresholds.FILE}")
    return Taxonomy(tuple(content["thresholds"]))


def is_location(reference: str) -> bool:
    """Whether a reference is a place, ``s3://...`` or a folder, and not an alias or a version number."""
    return store.is_s3(reference) or Path(reference).is_dir()


def locate(reference: str, model_name: str = defaults.MODEL_NAME) -> tuple[str, Version | None]:
    """The location that a reference stands for, and the version, where it is an alias or a number.

    Raises:
        ModelError: there is no such alias or version.
    """
    if is_location(reference):
        return reference, None
    version = tracking.version(model_name, reference)
    if version is None:
        raise ModelError(f"{model_name} has no version or alias {reference!r}: register one first (`make run`)")
    return version.source, version


@store.raise_on_full_disk
def fetch(reference: str, output: Path, model_name: str = defaults.MODEL_NAME) -> Version | None:
    """Brings a bundle and verifies it.

    Args:
        reference: an alias (``champion-cpu``), a version number, or a location (``s3://...`` or a folder).
        output: where the bundle's files are written.
        model_name: name of the registered model.

    Returns:
        The version, where the reference is an alias or a number.

    Raises:
        ModelError: there is no such alias or version.
        IntegrityError: what arrived does not match its manifest.
    """
    location, version = locate(reference, model_name)
    store.fetch(location, output)
    manifest.verify(output)
    return version


@contextlib.contextmanager
def opened(reference: str, model_name: str = defaults.MODEL_NAME) -> Iterator[tuple[Path, str]]:
    """The folder of a bundle, verified, and its version (its run where no number was asked for): a folder where it is, anything else
    fetched for as long as the block lasts.

    Args:
        reference, model_name: as ``fetch`` takes them.

    Raises:
        ModelError, IntegrityError: as ``fetch`` does.
    """
    if Path(reference).is_dir() or ("/" in reference and not store.is_s3(reference)):
        yield Path(reference), str(manifest.verify(Path(reference)).get("run_id"))
        return
    with tempfile.TemporaryDirectory() as scratch:
        version = fetch(reference, Path(scratch), model_name)
        yield Path(scratch), version.number if version else str(manifest.verify(Path(scratch)).get("run_id"))


def download(reference: str, output: Path, model_name: str = defaults.MODEL_NAME) -> tuple[Version | None, list[str]]:
    """Fetches a bundle to a folder within a folder, verifies it there and moves it up, its manifest last.

    Returns:
        The version, where the reference is an alias or a number, and the names of the bundle's files.

    Raises:
        ModelError: there is no such version, or the folder holds files and no bundle.
        IntegrityError: what arrived does not match its manifest.
        StorageError: the location does not answer, or the folder cannot be written.
    """
    location, version = locate(reference, model_name)
    closed, arrived = output / manifest.NAME, output / ".partial"
    if closed.is_file() and closed.read_bytes() == store.read(location, manifest.NAME):
        with contextlib.suppress(IntegrityError):
            return version, sorted(manifest.verify(output)["files"])
    if output.is_dir() and not closed.is_file() and any(path != arrived for path in output.iterdir()):
        raise ModelError(f"{output} holds files and no whole bundle: empty it, or give another folder")
    try:
        shutil.rmtree(arrived, ignore_errors=True)
        fetch(location, arrived, model_name)
        _replace(output, arrived)
    except IntegrityError as error:
        raise IntegrityError(str(error).replace(str(arrived), location.rstrip("/"))) from error
    except OSError as error:
        raise StorageError(f"{output} cannot be written ({error.strerror}): free space or choose another folder") from error
    finally:
        shutil.rmtree(arrived, ignore_errors=True)
    return version, sorted(json.loads(closed.read_bytes())["files"])


def _replace(output: Path, arrived: Path) -> None:
    """Moves the files of a bundle up, in place of those of the bundle that was there: its manifest goes first, the new one last."""
    closed = output / manifest.NAME
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        former = set(json.loads(closed.read_bytes())["files"])
        closed.unlink()
        for path in [path for path in output.rglob("*") if path.relative_to(output).as_posix() in former]:
            path.unlink()
    closed.unlink(missing_ok=True)
    for path in sorted((path for path in arrived.rglob("*") if path.is_file()), key=lambda path: path.name == manifest.NAME):
        target = output / path.relative_to(arrived)
        target.parent.mkdir(parents=True, exist_ok=True)
        path.replace(target)
