"""A test of a store before hours are spent: whether it has what locks, bundles and shards need. It leaves nothing behind.

Locks need writes on a condition (``If-None-Match``, ``If-Match``), which some servers of the S3 API ignore: every process would then
hold the lock. The test uses one small object, and the requests that registration uses.
"""

from __future__ import annotations

import contextlib
import fcntl
import re
import time
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path

from goemotions import addresses
from goemotions.errors import StorageError
from goemotions.storage import s3
from goemotions.storage.folder import FolderBackend
from goemotions.storage.s3 import S3Backend

PREFIX = "probe-"
REMEDY = "use a store that has it, such as AWS S3, SeaweedFS or a current MinIO"
# A tag that no object has.
OTHER_TAG = f'"{"0" * 32}"'

_suitable: set[tuple[str, str]] = set()


def require(location: str) -> None:
    """Tests the store of a location, unless this process has found it suitable before.

    Raises:
        StorageError: as ``run`` does.
    """
    if not addresses.is_s3(location) or _key(location) not in _suitable:
        run(location)


def run(location: str) -> str:
    """Tests the store of a location, local or S3; returns the result as a line.

    Raises:
        StorageError: the store cannot be used, refuses a request, or cannot hold a lock.
    """
    began = time.monotonic()
    name = f"{PREFIX}{int(time.time())}-{uuid.uuid4().hex}.json"
    if not addresses.is_s3(location):
        _test_folder(Path(location), name)
        return f"{location}: files can be written, listed and locked there"
    backend = S3Backend(location)
    try:
        _test_bucket(backend, name)
    finally:
        # Those of processes that were killed, too; one that is a day old is none of a running process.
        kept = _remove(backend, [name, *_left(backend)])
    _suitable.add(_key(location))
    return (
        f"{location}: conditional writes, reads and listings work ({time.monotonic() - began:.1f} s)"
        f"{f'; {name} is left there, since it may not be deleted' if kept else ''}"
    )


def _key(location: str) -> tuple[str, str]:
    return str(s3.client().meta.endpoint_url), S3Backend(location).bucket


def _test_bucket(backend: S3Backend, name: str) -> None:
    first, second, third = (f'{{"probe": {number}}}'.encode() for number in range(3))
    tag = backend.write_if(name, first, None)
    if tag is None:
        raise _unsuitable(backend, "refuses If-None-Match for a new object")
    if backend.write_if(name, second, None) is not None:
        raise _unsuitable(backend, "ignores the condition If-None-Match, so that several processes would hold one lock")
    if backend.write_if(name, second, OTHER_TAG) is not None:
        raise _unsuitable(backend, "ignores the condition If-Match, so that several processes would hold one lock")
    tag = backend.write_if(name, third, tag)
    if tag is None:
        raise _unsuitable(backend, "refuses If-Match with the tag that it gave")
    if backend.read_tagged(name) != (third, tag):
        raise _unsuitable(backend, "does not return what was written last, or returns it with another tag")
    if not backend.find(name):
        raise _unsuitable(backend, "does not list what was written last")


def _unsuitable(backend: S3Backend, problem: str) -> StorageError:
    return StorageError(f"{backend.location}: the object store {problem}: {REMEDY}")


def _left(backend: S3Backend) -> Iterator[str]:
    with contextlib.suppress(StorageError):
        for file in backend.files(PREFIX):
            made = re.match(r"[0-9]{1,12}(?=-)", file.name.removeprefix(PREFIX))
            if made and time.time() - int(made[0]) > s3.ABANDONED_SECONDS:
                yield file.name


def _remove(backend: S3Backend, names: Sequence[str]) -> bool:
    """Deletes the objects; returns whether some remain, because registration itself needs no right to delete."""
    try:
        backend.delete(names)
    except StorageError:
        return True
    return False


def _test_folder(folder: Path, name: str) -> None:
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    backend = FolderBackend(str(folder))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not backend.write_new(name, b"{}") or backend.write_new(name, b"{}") or backend.read(name) != b"{}":
            raise StorageError(f"{folder}: a file that exists is written again: use another folder")
        with (folder / name).open("ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise StorageError(f"{folder} cannot be used as a store ({error.strerror}): check it, or use another folder") from error
    finally:
        with contextlib.suppress(OSError):
            (folder / name).unlink(missing_ok=True)
            for path in made:
                path.rmdir()
