"""Files and folders in S3 or on disk, by location: a local path or ``s3://bucket/prefix/``.

Each function passes the work to the backend of the location (``folder.py`` or ``s3.py``). All raise StorageError if there are no
credentials for S3, if it denies access, or if it still fails after the retries.
"""

from __future__ import annotations

import errno
import functools
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO, ParamSpec, TypeVar

from goemotions import outages
from goemotions.addresses import is_s3
from goemotions.errors import DataError, StorageError
from goemotions.storage import manifest
from goemotions.storage.backend import Backend, File, too_large
from goemotions.storage.folder import FolderBackend
from goemotions.strict_json import MOST_BYTES

# Of names that S3 permits and a folder cannot hold: too long, and the name of a file that is also that of a folder.
NOT_IN_FOLDERS = (errno.ENAMETOOLONG, errno.EEXIST, errno.EISDIR, errno.ENOTDIR)
P = ParamSpec("P")
R = TypeVar("R")


def raise_on_full_disk(function: Callable[P, R]) -> Callable[P, R]:
    """Decorates a step that writes files: a full disk becomes a named error, whichever library reports it.

    Raises:
        StorageError: no space is left.
    """

    @functools.wraps(function)
    def step(*arguments: P.args, **options: P.kwargs) -> R:
        try:
            return function(*arguments, **options)
        except Exception as error:
            # It may be the cause of an error about what was read, and some libraries have only the system's message in theirs.
            for cause in outages.causes(error):
                if getattr(cause, "errno", None) == errno.ENOSPC or "No space left on device" in str(cause):
                    place = getattr(cause, "filename", None) or "its output"
                    raise StorageError(
                        f"{function.__name__}: the disk is full at {place}: free space or write elsewhere"
                    ) from error
            raise

    return step


def canonical(location: str) -> str:
    """The only spelling of a location: a prefix with its final ``/``, a path as absolute path with symbolic links resolved."""
    return join(location) if is_s3(location) else str(Path(location).resolve())


def join(location: str, *names: str) -> str:
    """A folder below a location, with its final ``/``: without it ``v1`` would also match ``v10``."""
    return "/".join([location.rstrip("/"), *names]) + "/"


def in_bucket(location: str, bucket: str) -> str:
    """An S3 location moved to another bucket. Without a bucket, and for a local path, the location itself."""
    if not (bucket and is_s3(location)):
        return location
    return f"s3://{bucket}/{location.removeprefix('s3://').partition('/')[2]}"


def bucket_of(location: str) -> str:
    return location.removeprefix("s3://").partition("/")[0] if is_s3(location) else ""


def _backend(location: str) -> Backend:
    if not is_s3(location):
        return FolderBackend(location)
    # Importing boto3 takes half a second.
    from goemotions.storage.s3 import S3Backend

    return S3Backend(location)


def connect(location: str) -> None:
    """Prepares a location, without a request to it, so that the first one takes no longer than others.

    Raises:
        BadAddress: the location, or the endpoint of S3, has an unknown form.
    """
    if is_s3(location):
        from goemotions.storage import s3

        s3.client()


def put(folder: Path, location: str) -> None:
    """Copies every file of a folder to a location, the manifest last: until then no reader takes the copy for complete.

    Raises:
        FileChanged: a file was changed or removed meanwhile.
        StorageError: files of the copy are not there when all were written.
    """
    backend, listed = _backend(location), files(str(folder))
    names = {file.name for file in listed}
    for file in sorted(listed, key=lambda file: file.name == manifest.NAME):
        if file.name == manifest.NAME and (lost := names - {file.name, *(stored.name for stored in backend.files())}):
            raise StorageError(
                f"{location}: {min(lost)!r} is not there after it was written: it was removed meanwhile, or the store changes such "
                "names; run the step again"
            )
        with reading(str(folder), file):
            backend.upload(folder / file.name, file.name)


def fetch(location: str, folder: Path) -> Path:
    """Copies everything below a location into a folder, which it returns.

    Raises:
        FileChanged: a file was changed or removed meanwhile, so that the copy could be of two versions.
        StorageError: the location holds no file, or one whose name leads out of the folder.
    """
    copied = files(location)
    _fetch(location, folder, copied)
    require_unchanged(location, copied, files(location))
    return folder


def fetch_named(location: str, folder: Path, *others: str, content: dict[str, Any] | None = None) -> Path:
    """Copies the files that a location's manifest names into a folder, which it returns, and with them the manifest, the last.

    Args:
        location: the location.
        folder: the folder.
        others: names of files that are copied, too, if they are there.
        content: the manifest, if it was read and checked before.

    Raises:
        IntegrityError: the location has no readable manifest, or a file has another size than it says.
        StorageError: as for ``fetch``, or one of the others is too large.
    """
    listed = files(location)
    if listed:
        named = (content or manifest.parse(read(location, manifest.NAME), location))["files"]
        wanted = {*named, *others, manifest.NAME}
        listed = sorted((file for file in listed if file.name in wanted), key=lambda file: file.name == manifest.NAME)
        # Before anything is copied: who can write there can put terabytes in the place of a file.
        for file in listed:
            if file.name in named and file.size != named[file.name]["size"]:
                raise manifest.differs(join(location) + file.name)
            if file.name not in named and file.size > MOST_BYTES:
                raise too_large(location, file.name, MOST_BYTES)
    _fetch(location, folder, listed)
    return folder


def require_unchanged(location: str, before: Iterable[File], now: Iterable[File]) -> None:
    """Compares files below a location with those that are there now.

    Raises:
        FileChanged: one of them was changed or removed.
    """
    present = {*now}
    if changed := next((file for file in before if file not in present), None):
        raise changed.changed(location)


def _fetch(location: str, folder: Path, listed: Iterable[File]) -> None:
    backend = _backend(location)
    if not listed:
        raise StorageError(f"{location} holds no file: check the location and its final /")
    for file in listed:
        name, target = file.name, folder / file.name
        try:
            if not target.resolve().is_relative_to(folder.resolve()):
                raise StorageError(f"{location} holds a file named {name[:200]!r}, which would leave its folder: remove it")
            target.parent.mkdir(parents=True, exist_ok=True)
            backend.download(file, target)
            # A response may also be shorter than the object and say so.
            if target.stat().st_size != file.size:
                raise file.changed(location)
        except OSError as error:
            if error.errno not in NOT_IN_FOLDERS:
                raise
            raise StorageError(
                f"{location} holds a file named {name[:200]!r}, which no folder can hold ({error.strerror}): remove it"
            ) from error


def files(location: str) -> list[File]:
    """The files below a location, sorted by name; none if there is nothing."""
    return _backend(location).files()


def size(location: str) -> int:
    """The bytes of the files below a location."""
    return sum(file.size for file in files(location))


def folders(location: str, depth: int) -> dict[str, list[File]]:
    """The locations of the folders that are so many levels below a location, each with the files in it, by one listing."""
    listed: dict[str, list[File]] = {}
    for file in files(location):
        *parents, name = file.name.split("/", depth)
        if len(parents) == depth:
            listed.setdefault(join(location, *parents), []).append(replace(file, name=name))
    return listed


def children(location: str) -> list[str]:
    """Names of the folders directly below a location, sorted; none if there is nothing."""
    return _backend(location).children()


def find(location: str, name: str) -> File | None:
    """The file of this name below a location, or None if there is no such file."""
    return _backend(location).find(name)


def has(location: str, name: str) -> bool:
    """Whether a file of this name is below a location."""
    return find(location, name) is not None


def read(location: str, name: str, most_bytes: int = MOST_BYTES) -> bytes | None:
    """The content of one file below a location, or None if there is no such file.

    Raises:
        StorageError: it has more than ``most_bytes``.
    """
    return _backend(location).read(name, most_bytes)


def open_file(location: str, name: str, expected: File | None = None) -> BinaryIO:
    """One file below a location, opened for reading and seeking. In S3 only the parts that are read are downloaded.

    Args:
        location: a folder or prefix.
        name: of the file.
        expected: what ``files`` returned of it.

    Raises:
        StorageError: there is no such file, or it cannot be read.
        FileChanged: it is not the expected one. In S3, each read also raises it; of a local file ``reading`` does.
    """
    return _backend(location).open(name, expected)


@contextmanager
def reading(location: str, file: File) -> Iterator[None]:
    """For what is read of a file that ``files`` returned: the block ends with an error if it may have read another one.

    Raises:
        FileChanged: the file was changed meanwhile.
    """
    backend = _backend(location)
    try:
        yield
    except (DataError, StorageError, OSError):
        # A file that is replaced while it is read looks damaged, and to a store that gets it like a damaged request.
        backend.require_unchanged(file)
        raise
    backend.require_unchanged(file)


def writing(location: str, name: str) -> AbstractContextManager[Path]:
    """A path to write a file to, which appears below the location when the block ends without an error: complete, or not at all."""
    return _backend(location).writing(name)


def write(location: str, name: str, content: bytes) -> None:
    """Writes one small file below a location. In S3 by one request of this thread, so that a process can end while it hangs."""
    _backend(location).write(name, content)


def write_new(location: str, name: str, content: bytes) -> bool:
    """Writes one file below a location unless it exists; returns whether it was written."""
    return _backend(location).write_new(name, content)


def sweep(location: str, age_seconds: float = 0.0) -> None:
    """Removes what killed processes left while ``writing``: local temporary files that were not written to for this long, and in S3 the
    parts of uploads that are at least a day old."""
    _backend(location).sweep(age_seconds)


def remove(location: str) -> None:
    """Deletes everything below a location, the manifest first, so that a folder that is only half deleted is not taken for complete."""
    _backend(location).remove(manifest.NAME)
