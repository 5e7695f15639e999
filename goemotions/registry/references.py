"""From a reference (an alias, a version number, a URI of MLflow, an S3 prefix or a folder) to a verified bundle on this machine."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from goemotions import addresses, defaults, strict_json
from goemotions.errors import BadArgument, IntegrityError, ModelError, StorageError, UntrustedBundle
from goemotions.registry import model_registry, trust
from goemotions.registry.bundle import BundleLocation
from goemotions.registry.model_registry import Version
from goemotions.storage import manifest, signature, store
from goemotions.storage.signature import Signature
from goemotions.storage.temporary import temporary_folder


def is_location(reference: str) -> bool:
    """Whether a reference is an S3 prefix or an existing folder, not an alias or a version number."""
    return addresses.reference(reference).startswith(addresses.S3) or Path(reference).is_dir()


def resolve(reference: str, model_name: str = defaults.MODEL_NAME) -> tuple[str, Version | None]:
    """The location of a bundle, and its version if the reference is an alias or a version number.

    Raises:
        BadAddress: the reference has an unknown form.
        ModelError: there is no such alias or version.
        UntrustedBundle: `register` does not write where the version's source is.
    """
    if is_location(reference):
        return reference, None
    version = model_registry.get_version(model_name, reference)
    return str(trust.require_source(version, trust.variant_of(reference))), version


def require_possible(reference: str, location: str, model_name: str = defaults.MODEL_NAME) -> None:
    """Checks that a reference may have named this location before: since then an alias may have moved.

    Raises:
        UntrustedBundle: it is another location, or not one of a bundle of this model that ``register`` stored.
    """
    if not is_location(reference):
        name, reference = addresses.model_version(reference) or (model_name, reference)
        trust.require_source(Version(reference, location, "", {}, name), trust.variant_of(reference))
    elif store.canonical(reference) != store.canonical(location):
        raise UntrustedBundle(f"{location[:200]} is not the bundle that was asked for, {reference}: find out who named it")


@store.raise_on_full_disk
def fetch(reference: str, output: Path, model_name: str = defaults.MODEL_NAME) -> Version | None:
    """Downloads a bundle and verifies it.

    Args:
        reference: an alias (``champion-cpu``), a version number, either as a URI (``models:/goemotions@champion-cpu``), or a location
            (``s3://...`` or a folder).
        output: the folder to write the bundle's files to.
        model_name: name of the registered model.

    Returns:
        The version if the reference is an alias or a version number.

    Raises:
        ModelError: there is no such alias or version.
        IntegrityError: the downloaded files do not match their manifest.
        UntrustedBundle: there are trusted keys, and none signed it, or it is another bundle than the registry says.
    """
    location, version = resolve(reference, model_name)
    trust.fetch(location, output, version)
    return version


@contextlib.contextmanager
def as_folder(
    reference: str, model_name: str = defaults.MODEL_NAME, source: str = "", number: str = ""
) -> Iterator[tuple[Path, str]]:
    """A verified bundle as a local folder, and its version number (its run id if that is not known).

    A folder is used where it is; anything else is downloaded to a temporary folder, which is removed afterwards.

    Args:
        reference, model_name: as for ``fetch``.
        source: where a folder was downloaded from, if that is known: the bundle must be the one that `register` stored there.
        number: the number that whoever deployed it says that it has, if any.

    Raises:
        ModelError, IntegrityError: as ``fetch`` does.
        UntrustedBundle: as ``fetch`` does, or its signature has another number.
    """
    is_version = "/" not in reference or addresses.model_version(reference)
    if Path(reference).is_dir() or not (is_version or is_location(reference)):
        # Where somebody keeps a folder does not say which bundle it must be.
        run_id = trust.verify(Path(reference), source).get("run_id")
        yield Path(reference), trust.number_of(Path(reference), number) or str(run_id)
        return
    with temporary_folder() as scratch:
        version = fetch(reference, scratch, model_name)
        number = trust.number_of(scratch, number or (version.number if version else ""))
        yield scratch, number or str(manifest.read(scratch).get("run_id"))


def download(
    reference: str,
    output: Path,
    model_name: str = defaults.MODEL_NAME,
    *,
    copy: Callable[[str, Path, Version | None], object] = trust.fetch,
) -> tuple[Version | None, list[str]]:
    """Downloads a bundle into a folder, in place of the bundle that is there.

    The files are downloaded to a folder within ``output``, verified there and moved up, the manifest last. If the same bundle is
    there already, nothing is downloaded.

    Args:
        reference, model_name: as for ``fetch``.
        output: the folder.
        copy: copies a location into a folder and verifies it.

    Returns:
        The version if the reference is an alias or a version number, and the names of the bundle's files.

    Raises:
        ModelError: there is no such version, or the folder holds files that are no bundle.
        IntegrityError: the downloaded files do not match their manifest.
        UntrustedBundle: as for ``fetch``.
        StorageError: the location cannot be read, or the folder cannot be written.
    """
    location, version = resolve(reference, model_name)
    closed, partial = output / manifest.NAME, output / ".partial"
    if (partial / manifest.NAME).is_file() and not closed.is_file():
        # A process that moved the files up was killed.
        with _writing(output, partial):
            _replace(output, partial)
    if closed.is_file() and strict_json.read_bytes(closed) == store.read(location, manifest.NAME):
        with contextlib.suppress(IntegrityError):
            return version, sorted(trust.verify(output, location, version)["files"])
    if output.is_dir() and not closed.is_file() and any(path != partial for path in output.iterdir()):
        raise ModelError(f"{output} holds files but no complete bundle: empty it, or give another folder")
    with _writing(output, partial):
        shutil.rmtree(partial, ignore_errors=True)
        try:
            copy(location, partial, version)
        except IntegrityError as error:
            raise type(error)(str(error).replace(str(partial), location.rstrip("/"))) from error
        _replace(output, partial)
    return version, sorted(manifest.read(output)["files"])


def sign(reference: str, model_name: str = defaults.MODEL_NAME) -> tuple[str, str]:
    """Signs a stored bundle after its files were verified; returns its location and the id of the key.

    Raises:
        BadArgument: there is no signing key.
        ModelError: there is no such version, or the location is not that of a bundle in a store.
        IntegrityError, UntrustedBundle: the files do not match, or it is another bundle than its location or the registry says.
    """
    if not (key := signature.signing_key()):
        raise BadArgument(f"{signature.SIGNING_KEY} is not set: give the private key (`goemotions keys create` makes one)")
    location, version = resolve(reference, model_name)
    identity = trust.identity(BundleLocation.parse(location), version.number if version else "")
    with temporary_folder() as scratch:
        store.fetch_named(location, scratch)
        trust.require_identity(manifest.verify(scratch), Signature(), location, version)
        signed = signature.sign((scratch / manifest.NAME).read_bytes(), identity) or b""
    with store.writing(location, signature.NAME) as path:
        path.write_bytes(signed)
    return location, key


@contextlib.contextmanager
def _writing(output: Path, partial: Path) -> Iterator[None]:
    """Removes the partial folder at the end. Raises StorageError if the output cannot be written."""
    try:
        yield
    except OSError as error:
        raise StorageError(f"{output} cannot be written ({error.strerror}): free space or choose another folder") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _replace(output: Path, partial: Path) -> None:
    """Removes the files of the former bundle, its manifest first, and moves those of the new one up, its manifest last."""
    closed = output / manifest.NAME
    with contextlib.suppress(OSError, IntegrityError):
        former = set(manifest.read(output)["files"])
        closed.unlink()
        for path in [path for path in output.rglob("*") if path.relative_to(output).as_posix() in former]:
            path.unlink()
    closed.unlink(missing_ok=True)
    (output / signature.NAME).unlink(missing_ok=True)
    for path in sorted((path for path in partial.rglob("*") if path.is_file()), key=lambda path: path.name == manifest.NAME):
        target = output / path.relative_to(partial)
        target.parent.mkdir(parents=True, exist_ok=True)
        path.replace(target)
