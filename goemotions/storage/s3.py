"""Storage in S3, for any server of its API. The only module that imports boto3.

Endpoint and keys come from the usual AWS variables (``AWS_ENDPOINT_URL``, ``AWS_ACCESS_KEY_ID``, ...), a profile or a workload
identity, as boto3 resolves them.
"""

from __future__ import annotations

import functools
import io
import logging
import math
import os
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import boto3
from boto3.s3.transfer import TransferConfig, create_transfer_manager
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, HTTPClientError, IncompleteReadError
from s3transfer.subscribers import BaseSubscriber

from goemotions import addresses, outages
from goemotions.errors import StorageError, StorageUnavailable, WorkflowError
from goemotions.storage import failures
from goemotions.storage.backend import Backend, File, too_large
from goemotions.storage.temporary import temporary_folder
from goemotions.strict_json import MOST_BYTES

log = logging.getLogger(__name__)

# Per request, the first one included.
ATTEMPTS = 6
CONNECT_TIMEOUT_SECONDS = 10
READ_TIMEOUT_SECONDS = 60
READ_BYTES = 2**22
ABANDONED_SECONDS = 86_400.0
MISSING = {"NoSuchKey", "404"}
# 409: another write of the same object is in progress.
CONFLICTS = {"PreconditionFailed", "ConditionalRequestConflict", "412", "409", "NoSuchKey"}

# A part is requested on the condition that the object has its tag; an object without parts is not.
IN_PARTS = TransferConfig(multipart_threshold=1, preferred_transfer_client="classic")
# Decorates requests, all of which may be repeated.
RETRIED = outages.retried(StorageUnavailable, "the object store")


class S3Backend(Backend):
    """The objects below ``s3://bucket/prefix/``; a missing final ``/`` is added, since ``v1`` would also match ``v10``.

    Raises:
        StorageError: of every method: no credentials, access denied, or the server failed after all retries.
    """

    def __init__(self, location: str) -> None:
        self.location = location
        self.bucket, _, prefix = location.removeprefix("s3://").partition("/")
        self.prefix = prefix if not prefix or prefix.endswith("/") else prefix + "/"

    @RETRIED
    def files(self, prefix: str = "") -> list[File]:
        with translate_errors(self.location):
            pages = client().get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=self.prefix + prefix)
            return [
                File(
                    entry["Key"].removeprefix(self.prefix),
                    entry["Size"],
                    entry["ETag"].strip('"'),
                    entry["LastModified"].timestamp(),
                )
                for page in pages
                for entry in page.get("Contents", [])
                if not entry["Key"].endswith("/")
            ]

    def children(self) -> list[str]:
        # From the keys, not from a listing of folders: some servers keep listing a folder whose files are deleted.
        return sorted({file.name.partition("/")[0] for file in self.files() if "/" in file.name})

    def find(self, name: str) -> File | None:
        return next((file for file in self.files(name) if file.name == name), None)

    def read(self, name: str, most_bytes: int = MOST_BYTES) -> bytes | None:
        tagged = self.read_tagged(name, most_bytes)
        return tagged[0] if tagged else None

    @RETRIED
    def read_tagged(self, name: str, most_bytes: int = MOST_BYTES) -> tuple[bytes, str] | None:
        """The content of an object and the tag of this version of it, or None if there is no such object."""
        with translate_errors(self.location):
            try:
                response, content = _get({"Bucket": self.bucket, "Key": self.prefix + name}, most_bytes)
                if content is None:
                    raise too_large(self.location, name, most_bytes)
                return content, str(response["ETag"])
            except ClientError as error:
                if _code(error) in MISSING:
                    return None
                raise

    def open(self, name: str, expected: File | None = None) -> BinaryIO:
        return io.BufferedReader(_ObjectReader(self, name, expected), READ_BYTES)

    def require_unchanged(self, file: File) -> None:
        """Nothing to do: each read has this condition."""

    @RETRIED
    def download(self, file: File, path: Path) -> None:
        with translate_errors(self.location):
            try:
                if not file.size:
                    path.touch()
                    return
                # Its size and tag are those that were listed: what is put in its place meanwhile, of any size, is not downloaded.
                with create_transfer_manager(client(), IN_PARTS) as transfers:
                    transfers.download(self.bucket, self.prefix + file.name, str(path), subscribers=[_Listed(file)]).result()
            except Exception as error:
                codes = {_code(cause) for cause in outages.causes(error) if isinstance(cause, ClientError)}
                if codes & (CONFLICTS | MISSING):
                    raise file.changed(self.location) from error
                raise

    @RETRIED
    def upload(self, path: Path, name: str) -> None:
        with translate_errors(self.location):
            client().upload_file(str(path), self.bucket, self.prefix + name)

    @contextmanager
    def writing(self, name: str) -> Iterator[Path]:
        with temporary_folder() as scratch:
            path = scratch / Path(name).name
            yield path
            self.upload(path, name)

    @RETRIED
    def write(self, name: str, content: bytes) -> None:
        with translate_errors(self.location):
            client().put_object(Bucket=self.bucket, Key=self.prefix + name, Body=content)

    def write_new(self, name: str, content: bytes) -> bool:
        return self.write_if(name, content, None) is not None

    @RETRIED
    def write_if(self, name: str, content: bytes, tag: str | None) -> str | None:
        """Writes an object if it still has this tag or, with None, if it does not exist yet.

        Returns:
            The new tag, or None if the condition was not met and nothing was written.
        """
        condition = {"IfNoneMatch": "*"} if tag is None else {"IfMatch": tag}
        with translate_errors(self.location):
            try:
                return str(client().put_object(Bucket=self.bucket, Key=self.prefix + name, Body=content, **condition)["ETag"])
            except ClientError as error:
                if _code(error) not in CONFLICTS:
                    raise
        # boto3 repeats a request whose response was lost: the condition then fails on the content that it wrote itself.
        stored = self.read_tagged(name)
        return stored[1] if stored and stored[0] == content else None

    def remove(self, first: str) -> None:
        self.delete(sorted((file.name for file in self.files()), key=lambda name: not name.endswith(first)))
        self._abort_uploads(0.0)

    @RETRIED
    def delete(self, names: Sequence[str]) -> None:
        with translate_errors(self.location):
            for name in names:
                outages.guard()
                client().delete_object(Bucket=self.bucket, Key=self.prefix + name)

    def sweep(self, age_seconds: float) -> None:
        """An upload that was interrupted leaves no object, but its parts; one that is a day old is none of a running process."""
        self._abort_uploads(max(age_seconds, ABANDONED_SECONDS))

    def _abort_uploads(self, age_seconds: float) -> None:
        """Aborts the multipart uploads below the prefix that began before. Not every store has such requests, or allows them."""
        try:
            with translate_errors(self.location):
                pages = client().get_paginator("list_multipart_uploads").paginate(Bucket=self.bucket, Prefix=self.prefix)
                for upload in [upload for page in pages for upload in page.get("Uploads", [])]:
                    if time.time() - upload["Initiated"].timestamp() >= age_seconds:
                        client().abort_multipart_upload(Bucket=self.bucket, Key=upload["Key"], UploadId=upload["UploadId"])
        except StorageError as error:
            log.debug("multipart uploads are left: %s", error)


class _Listed(BaseSubscriber):  # type: ignore[misc]
    """What a download knows of its object beforehand."""

    def __init__(self, file: File) -> None:
        self._file = file

    def on_queued(self, future: Any, **_: Any) -> None:
        future.meta.provide_transfer_size(self._file.size)
        future.meta.provide_object_etag(f'"{self._file.tag}"')


class _ObjectReader(io.RawIOBase):
    """An object as a file: each read requests a range of bytes, on the condition that it is still the same object."""

    def __init__(self, backend: S3Backend, name: str, expected: File | None) -> None:
        self._location, self._position = backend.location, 0
        self._object = {"Bucket": backend.bucket, "Key": backend.prefix + name}
        head = self._head()
        self._size = int(head["ContentLength"])
        self._file = File(name, self._size, _tag(head))
        if expected and self._file != expected:
            raise expected.changed(self._location)

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
        content = self._content(wanted)
        buffer[: len(content)] = content
        self._position += len(content)
        return len(content)

    @RETRIED
    def _head(self) -> Mapping[str, Any]:
        with translate_errors(self._location):
            head: Mapping[str, Any] = client().head_object(**self._object)
            return head

    @RETRIED
    def _content(self, count: int) -> bytes:
        span = f"bytes={self._position}-{self._position + count - 1}"
        with translate_errors(self._location):
            try:
                response, content = _get({**self._object, "Range": span, "IfMatch": f'"{self._file.tag}"'})
            except ClientError as error:
                if _code(error) in CONFLICTS:
                    raise self._file.changed(self._location) from error
                raise
            if _tag(response) != self._file.tag:
                raise self._file.changed(self._location)
            if content is None or len(content) != count:
                raise StorageUnavailable(
                    f"{self._location}{self._file.name}: the store returned {len(content or b''):,} bytes in place of {count:,}: "
                    "try again later, and check what is between this machine and the store"
                )
            return content


def _get(wanted: Mapping[str, str], most_bytes: float = math.inf) -> tuple[Mapping[str, Any], bytes | None]:
    """The response to a request for an object, and its body; None if that has more bytes, which are not read.

    boto3 repeats a request, but not one whose connection ends within the body.
    """
    attempt = 0
    while True:
        response = client().get_object(**wanted)
        if response["ContentLength"] > most_bytes:
            response["Body"].close()
            return response, None
        try:
            return response, bytes(response["Body"].read())
        except (HTTPClientError, IncompleteReadError):
            attempt += 1
            if attempt == ATTEMPTS:
                raise
        time.sleep(random.random() * 2**attempt / 10)


def _tag(response: Mapping[str, Any]) -> str:
    return str(response["ETag"]).strip('"')


@functools.cache
def client() -> Any:
    """The client of this process, with the timeouts and the retries of every request.

    Raises:
        BadAddress: the variable of the endpoint has no address of a server.
    """
    addresses.endpoints(os.environ)
    return boto3.Session().client(
        "s3",
        config=Config(
            # `standard` backs off exponentially, with jitter, on 500, 503 and SlowDown, and does not retry a 403.
            retries={"mode": "standard", "total_max_attempts": ATTEMPTS},
            connect_timeout=CONNECT_TIMEOUT_SECONDS,
            read_timeout=READ_TIMEOUT_SECONDS,
            s3={"addressing_style": "path"},
        ),
    )


def is_reachable(bucket: str, environment: Mapping[str, str]) -> bool:
    """Whether one request for a bucket succeeds now, with the AWS variables of ``environment`` instead of this process's own."""
    once = boto3.client(
        "s3",
        endpoint_url=environment["AWS_ENDPOINT_URL"],
        aws_access_key_id=environment["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=environment["AWS_SECRET_ACCESS_KEY"],
        region_name=environment["AWS_REGION"],
        config=Config(retries={"total_max_attempts": 1}, connect_timeout=2, read_timeout=5, s3={"addressing_style": "path"}),
    )
    try:
        once.head_bucket(Bucket=bucket)
    except (BotoCoreError, ClientError):
        return False
    return True


@contextmanager
def translate_errors(location: str) -> Iterator[None]:
    """Raises every error of boto3 as StorageError. Errors of the disk are left: they are not the store's."""
    try:
        yield
    except WorkflowError:
        raise
    except Exception as error:
        # Some errors of botocore are derived from OSError.
        if isinstance(error, OSError) and not isinstance(error, BotoCoreError):
            raise
        raise failures.named(location, error) from error


def _code(error: ClientError) -> str:
    return str(error.response["Error"].get("Code"))
