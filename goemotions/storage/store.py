"""Files and folders in S3 or on disk. The only module that knows S3.

A location is a local path or ``s3://bucket/prefix/``. Endpoint and keys come from the usual AWS variables (``AWS_ENDPOINT_URL``,
``AWS_ACCESS_KEY_ID``, ...), a profile or a workload identity, as boto3 finds them.
"""

from __future__ import annotations

import errno
import functools
import io
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, ParamSpec, TypeVar

from goemotions.errors import StorageError
from goemotions.storage import manifest

P = ParamSpec("P")
R = TypeVar("R")

ATTEMPTS = 6
TIMEOUT_SECONDS = 10
READ_BYTES = 2**22
PARTIAL = ".partial"
REFUSALS = {"403", "AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "Forbidden"}


def raise_on_full_disk(function: Callable[P, R]) -> Callable[P, R]:
    """Decorates a step that writes files: a full disk becomes a named error, whichever library met it.

    Raises:
        StorageError: no space is left.
    """

    @functools.wraps(function)
    def named(*arguments: P.args, **options: P.kwargs) -> R:
        try:
            return function(*arguments, **options)
        except Exception as error:
            # Some libraries raise errors of their own, with the system's words in them.
            if getattr(error, "errno", None) == errno.ENOSPC or "No space left on device" in str(error):
                place = getattr(error, "filename", None) or "its output"
                raise StorageError(
                    f"{function.__name__}: the disk is full at {place}: free space or write elsewhere"
                ) from error
            raise

    return named


def is_s3(location: str) -> bool:
    return location.startswith("s3://")


def canonical(location: str) -> str:
    """The one way to write a location: a prefix with its final ``/``, a path from the root on, links followed."""
    return join(location) if is_s3(location) else str(Path(location).resolve())


def join(location: str, *names: str) -> str:
    """A folder below a location, with its final ``/``: without it ``v1`` would also match ``v10``."""
    return "/".join([location.rstrip("/"), *names]) + "/"


def in_bucket(location: str, bucket: str) -> str:
    """An S3 location as one in another bucket; without a bucket, and for a folder, as it is."""
    if not (bucket and is_s3(location)):
        return location
    return f"s3://{bucket}/{location.removeprefix('s3://').partition('/')[2]}"


def bucket_of(location: str) -> str:
    return location.removeprefix("s3://").partition("/")[0] if is_s3(location) else ""


def put(folder: Path, location: str) -> None:
    """Copies every file of a folder to a location, the manifest last: until then no reader takes the copy for whole."""
    files = sorted((path for path in folder.rglob("*") if path.is_file()), key=lambda path: (path.name == manifest.NAME, path))
    for path in files:
        name = path.relative_to(folder).as_posix()
        if is_s3(location):
            bucket, prefix = _split(location)
            with _named(location):
                _client().upload_file(str(path), bucket, prefix + name)
        else:
            target = Path(location) / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)


def fetch(location: str, folder: Path) -> Path:
    """Copies everything below a location into a folder, which it returns.

    Raises:
        StorageError: nothing is there, the store refuses, or it fails for longer than the retries.
    """
    found = False
    for name, copy in _files(location):
        target = folder / name
        if not target.resolve().is_relative_to(folder.resolve()):
            raise StorageError(f"{location} holds a file named {name!r}, which would leave its folder: remove it")
        target.parent.mkdir(parents=True, exist_ok=True)
        with _named(location):
            copy(target)
        found = True
    if not found:
        raise StorageError(f"{location} holds no file: check the location and its final /")
    return folder


@dataclass(frozen=True, order=True)
class File:
    """A file below a location; ``tag`` changes when the file does."""

    name: str
    size: int
    tag: str


def files(location: str) -> list[File]:
    """The files below a location, by name; none when there is nothing there."""
    if not is_s3(location):
        root = Path(location)
        found = [(path.relative_to(root).as_posix(), path.stat()) for path in root.rglob("*") if path.is_file()]
        return sorted(File(name, stat.st_size, str(stat.st_mtime_ns)) for name, stat in found)
    bucket, prefix = _split(location)
    with _named(location):
        return [
            File(entry["Key"].removeprefix(prefix), entry["Size"], entry["ETag"].strip('"'))
            for entry in _entries(bucket, prefix)
        ]


def open_file(location: str, name: str) -> BinaryIO:
    """One file below a location, to read from any place in it; of an object no more is fetched than is read.

    Raises:
        StorageError: it is not there, or cannot be read.
    """
    if is_s3(location):
        bucket, prefix = _split(location)
        return io.BufferedReader(_Object(location, bucket, prefix + name), READ_BYTES)
    try:
        return (Path(location) / name).open("rb")
    except OSError as error:
        raise StorageError(f"{Path(location) / name} cannot be read ({error.strerror}): check its path") from error


@contextmanager
def writing(location: str, name: str) -> Iterator[Path]:
    """A path to write a file to, which stands below the location once the block ends well: whole, or not at all."""
    if is_s3(location):
        bucket, prefix = _split(location)
        with tempfile.TemporaryDirectory() as scratch:
            path = Path(scratch) / name
            yield path
            with _named(location):
                _client().upload_file(str(path), bucket, prefix + name)
        return
    folder = Path(location)
    folder.mkdir(parents=True, exist_ok=True)
    path = _partial(folder, name)
    try:
        yield path
        _take_name(path, folder / name)
    finally:
        with suppress(OSError):
            path.unlink()


def _take_name(partial: Path, target: Path) -> None:
    try:
        os.replace(partial, target)
    except FileNotFoundError:
        # Another process had written the same file, and swept this one.
        if not target.is_file():
            raise


def sweep(location: str) -> None:
    """Removes what processes that were killed while ``writing`` left in a folder."""
    if not is_s3(location):
        for path in Path(location).glob(f".*{PARTIAL}"):
            path.unlink(missing_ok=True)


def children(location: str) -> list[str]:
    """Names of the folders directly below a location, sorted; none when there is nothing there."""
    if not is_s3(location):
        path = Path(location)
        return sorted(child.name for child in path.iterdir() if child.is_dir()) if path.is_dir() else []
    bucket, prefix = _split(location)
    # From the keys, not from a listing by folders: some stores keep showing a folder whose files are gone.
    with _named(location):
        names = [key.removeprefix(prefix).split("/") for key in _keys(bucket, prefix)]
    return sorted({first for first, *rest in names if rest})


def remove(location: str) -> None:
    """Deletes everything below a location, the manifest first: a half-deleted folder is no folder."""
    if not is_s3(location):
        (Path(location) / manifest.NAME).unlink(missing_ok=True)
        shutil.rmtree(location, ignore_errors=True)
        return
    bucket, prefix = _split(location)
    with _named(location):
        for key in sorted(_keys(bucket, prefix), key=lambda key: not key.endswith(manifest.NAME)):
            _client().delete_object(Bucket=bucket, Key=key)


def has(location: str, name: str) -> bool:
    """Whether one file is below a location."""
    if not is_s3(location):
        return (Path(location) / name).is_file()
    bucket, prefix = _split(location)
    with _named(location):
        return any(key == prefix + name for key in _keys(bucket, prefix + name))


def read(location: str, name: str) -> bytes | None:
    """The bytes of one file below a location, or None when it is not there."""
    if not is_s3(location):
        path = Path(location) / name
        return path.read_bytes() if path.is_file() else None
    from botocore.exceptions import ClientError

    bucket, prefix = _split(location)
    with _named(location):
        try:
            return bytes(_client().get_object(Bucket=bucket, Key=prefix + name)["Body"].read())
        except ClientError as error:
            if error.response["Error"]["Code"] in ("NoSuchKey", "404"):
                return None
            raise


def read_tagged(location: str, name: str) -> tuple[bytes, str] | None:
    """The bytes of one file below an S3 location and the tag of this writing of it, or None when it is not there."""
    from botocore.exceptions import ClientError

    bucket, prefix = _split(location)
    with _named(location):
        try:
            answer = _client().get_object(Bucket=bucket, Key=prefix + name)
            return bytes(answer["Body"].read()), str(answer["ETag"])
        except ClientError as error:
            if error.response["Error"]["Code"] in ("NoSuchKey", "404"):
                return None
            raise


def write_if(location: str, name: str, content: bytes, tag: str | None) -> str | None:
    """Writes one file below an S3 location if it is still the one with this tag, or, with None, if it is not there yet.

    Returns:
        The new tag; None where the condition does not hold and nothing was written.
    """
    from botocore.exceptions import ClientError

    bucket, prefix = _split(location)
    condition = {"IfNoneMatch": "*"} if tag is None else {"IfMatch": tag}
    with _named(location):
        try:
            answer = _client().put_object(Bucket=bucket, Key=prefix + name, Body=content, **condition)
            return str(answer["ETag"])
        except ClientError as error:
            # 409: another writing of the same file is under way.
            if error.response["Error"]["Code"] in (
                "PreconditionFailed",
                "ConditionalRequestConflict",
                "412",
                "409",
                "NoSuchKey",
            ):
                return _written(location, name, content)
            raise


def _written(location: str, name: str, content: bytes) -> str | None:
    """The tag, where the file holds this content all the same: a retry, after a lost answer, met its own writing."""
    found = read_tagged(location, name)
    return found[1] if found and found[0] == content else None


def write_new(location: str, name: str, content: bytes) -> bool:
    """Writes one file below a location unless it is there already; answers whether it was written."""
    if is_s3(location):
        return write_if(location, name, content, None) is not None
    folder = Path(location)
    folder.mkdir(parents=True, exist_ok=True)
    path = _partial(folder, name)
    path.write_bytes(content)
    try:
        os.link(path, folder / name)
    except FileExistsError:
        return False
    finally:
        path.unlink()
    return True


def _partial(folder: Path, name: str) -> Path:
    # Two processes may write the same file; the last one whole is as good as the first.
    return folder / f".{name}.{os.getpid()}{PARTIAL}"


def answers(bucket: str, environment: Mapping[str, str]) -> bool:
    """Whether a store answers for a bucket now, asked once, with the AWS variables of an environment instead of this process's."""
    import boto3
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError, ClientError

    client = boto3.client(
        "s3",
        endpoint_url=environment["AWS_ENDPOINT_URL"],
        aws_access_key_id=environment["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=environment["AWS_SECRET_ACCESS_KEY"],
        region_name=environment["AWS_REGION"],
        config=Config(retries={"total_max_attempts": 1}, connect_timeout=2, read_timeout=5, s3={"addressing_style": "path"}),
    )
    try:
        client.head_bucket(Bucket=bucket)
    except (BotoCoreError, ClientError):
        return False
    return True


class _Object(io.RawIOBase):
    """An object in S3 as a file: each read is a request for a range."""

    def __init__(self, location: str, bucket: str, key: str) -> None:
        self._location, self._bucket, self._key, self._position = location, bucket, key, 0
        with _named(location):
            self._size = int(_client().head_object(Bucket=bucket, Key=key)["ContentLength"])

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._position = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        return self._position

    def readinto(self, buffer: Any) -> int:
        wanted = min(len(buffer), self._size - self._position)
        if wanted <= 0:
            return 0
        span = f"bytes={self._position}-{self._position + wanted - 1}"
        with _named(self._location):
            content = _client().get_object(Bucket=self._bucket, Key=self._key, Range=span)["Body"].read()
        buffer[: len(content)] = content
        self._position += len(content)
        return len(content)


def _files(location: str) -> Iterator[tuple[str, Callable[[Path], Any]]]:
    if is_s3(location):
        bucket, prefix = _split(location)
        with _named(location):
            keys = _keys(bucket, prefix)
        for key in keys:
            yield key.removeprefix(prefix), functools.partial(_download, bucket, key)
    else:
        root = Path(location)
        for path in sorted(root.rglob("*")):
            if path.is_file():
                yield path.relative_to(root).as_posix(), functools.partial(shutil.copyfile, path)


def _download(bucket: str, key: str, target: Path) -> None:
    _client().download_file(bucket, key, str(target))


def _keys(bucket: str, prefix: str) -> list[str]:
    return [entry["Key"] for entry in _entries(bucket, prefix)]


def _entries(bucket: str, prefix: str) -> list[dict[str, Any]]:
    pages = _client().get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
    return [entry for page in pages for entry in page.get("Contents", []) if not entry["Key"].endswith("/")]


def _split(location: str) -> tuple[str, str]:
    bucket, _, prefix = location.removeprefix("s3://").partition("/")
    if not bucket:
        raise StorageError(f"{location!r} names no bucket: write s3://bucket/prefix/")
    return bucket, prefix if not prefix or prefix.endswith("/") else prefix + "/"


@functools.cache
def _client() -> Any:
    import boto3
    from botocore.config import Config

    return boto3.Session().client(
        "s3",
        config=Config(
            # `standard` waits exponentially longer, with jitter, on 500, 503 and SlowDown, and not at all on 403.
            retries={"mode": "standard", "total_max_attempts": ATTEMPTS},
            connect_timeout=TIMEOUT_SECONDS,
            read_timeout=60,
            s3={"addressing_style": "path"},
        ),
    )


@contextmanager
def _named(location: str) -> Iterator[None]:
    """Turns boto3's errors into ours."""
    from boto3.exceptions import Boto3Error
    from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError

    try:
        yield
    except NoCredentialsError as error:
        raise StorageError(f"{location}: no S3 credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY") from error
    except ClientError as error:
        raise _refused(location, str(error.response["Error"].get("Code"))) from error
    except Boto3Error as error:
        # upload_file wraps the refusal and keeps its code in the text alone.
        code = next((code for code in REFUSALS if f"({code})" in str(error)), "failed")
        raise _refused(location, code) from error
    except BotoCoreError as error:
        raise StorageError(
            f"{location}: the object store does not answer ({type(error).__name__}): check AWS_ENDPOINT_URL and that it runs"
        ) from error


def _refused(location: str, code: str) -> StorageError:
    if code in REFUSALS:
        return StorageError(f"{location}: access denied ({code}): check the keys and the bucket's policy")
    if code in ("NoSuchBucket", "404"):
        return StorageError(f"{location}: there is no such bucket ({code}): create it or check the name")
    return StorageError(f"{location}: the object store failed {ATTEMPTS} times ({code}): try again later")
