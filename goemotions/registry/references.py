"""From a reference (an alias, a version number, an S3 prefix or a folder) to a verified bundle on this machine."""

from __future__ import annotations

import contextlib
import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from goemotions import addresses, defaults
from goemotions.errors import IntegrityError, ModelError, StorageError
from goemotions.registry import tracking
from goemotions.registry.tracking import Version
from goemotions.storage import manifest, store


def is_location(reference: str) -> bool:
    """Whether a reference is an S3 prefix or an existing folder, not an alias or a version number."""
    return addresses.reference(reference).startswith(addresses.S3) or Path(reference).is_dir()


def resolve(reference: str, model_name: str = defaults.MODEL_NAME) -> tuple[str, Version | None]:
    """The location of a bundle, and its version if the reference is an alias or a version number.

    Raises:
        BadAddress: the reference has an unknown form.
        ModelError: there is no such alias or version.
    """
    if is_location(reference):
        return reference, None
    version = tracking.get_version(model_name, reference)
    return version.source, version


@store.raise_on_full_disk
def fetch(reference: str, output: Path, model_name: str = defaults.MODEL_NAME) -> Version | None:
    """Downloads a bundle and verifies it.

    Args:
        reference: an alias (``champion-cpu``), a version number, or a location (``s3://...`` or a folder).
        output: the folder to write the bundle's files to.
        model_name: name of the registered model.

    Returns:
        The version if the reference is an alias or a version number.

    Raises:
        ModelError: there is no such alias or version.
        IntegrityError: the downloaded files do not match their manifest.
    """
    location, version = resolve(reference, model_name)
    store.fetch_named(location, output)
    manifest.verify(output)
    return version


@contextlib.contextmanager
def as_folder(reference: str, model_name: str = defaults.MODEL_NAME) -> Iterator[tuple[Path, str]]:
    """A verified bundle as a local folder, and its version number (its run id if the reference is a location).

    A folder is used where it is; anything else is downloaded to a temporary folder, which is removed afterwards.

    Args:
        reference, model_name: as for ``fetch``.

    Raises:
        ModelError, IntegrityError: as ``fetch`` does.
    """
    if Path(reference).is_dir() or ("/" in reference and not is_location(reference)):
        yield Path(reference), str(manifest.verify(Path(reference)).get("run_id"))
        return
    with tempfile.TemporaryDirectory() as scratch:
        version = fetch(reference, Path(scratch), model_name)
        yield Path(scratch), version.number if version else str(manifest.verify(Path(scratch)).get("run_id"))


def download(reference: str, output: Path, model_name: str = defaults.MODEL_NAME) -> tuple[Version | None, list[str]]:
    """Downloads a bundle into a folder, in place of the bundle that is there.

    The files are downloaded to a folder within ``output``, verified there and moved up, the manifest last. If the same bundle is
    there already, nothing is downloaded.

    Returns:
        The version if the reference is an alias or a version number, and the names of the bundle's files.

    Raises:
        ModelError: there is no such version, or the folder holds files that are no bundle.
        IntegrityError: the downloaded files do not match their manifest.
        StorageError: the location cannot be read, or the folder cannot be written.
    """
    location, version = resolve(reference, model_name)
    closed, partial = output / manifest.NAME, output / ".partial"
    if closed.is_file() and closed.read_bytes() == store.read(location, manifest.NAME):
        with contextlib.suppress(IntegrityError):
            return version, sorted(manifest.verify(output)["files"])
    if output.is_dir() and not closed.is_file() and any(path != partial for path in output.iterdir()):
        raise ModelError(f"{output} holds files but no complete bundle: empty it, or give another folder")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        fetch(location, partial, model_name)
        _replace(output, partial)
    except IntegrityError as error:
        raise IntegrityError(str(error).replace(str(partial), location.rstrip("/"))) from error
    except OSError as error:
        raise StorageError(f"{output} cannot be written ({error.strerror}): free space or choose another folder") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return version, sorted(json.loads(closed.read_bytes())["files"])


def _replace(output: Path, partial: Path) -> None:
    """Removes the files of the former bundle, its manifest first, and moves those of the new one up, its manifest last."""
    closed = output / manifest.NAME
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        former = set(json.loads(closed.read_bytes())["files"])
        closed.unlink()
        for path in [path for path in output.rglob("*") if path.relative_to(output).as_posix() in former]:
            path.unlink()
    closed.unlink(missing_ok=True)
    for path in sorted((path for path in partial.rglob("*") if path.is_file()), key=lambda path: path.name == manifest.NAME):
        target = output / path.relative_to(partial)
        target.parent.mkdir(parents=True, exist_ok=True)
        path.replace(target)
