"""The interface of a storage backend: the files below one location."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Protocol

from goemotions.errors import FileChanged, StorageError
from goemotions.strict_json import MOST_BYTES


@dataclass(frozen=True, order=True)
class File:
    """A file below a location; ``tag`` changes when the file does.

    ``modified`` is when it was written, in seconds since the epoch by the clock of the store; in S3 only listings have it. It does not
    count when two are compared: the same file may be written again.
    """

    name: str
    size: int
    tag: str
    modified: float = field(default=0.0, compare=False)

    def changed(self, location: str) -> FileChanged:
        return FileChanged(
            f"{location.rstrip('/')}/{self.name} has changed since it was listed, when it had {self.size:,} bytes: "
            "restore it as it was, or begin again with another output"
        )


def too_large(location: str, name: str, most_bytes: int) -> StorageError:
    return StorageError(
        f"{location.rstrip('/')}/{name} has more than {most_bytes >> 20} MiB, and is not read: check who wrote it"
    )


class Backend(Protocol):
    """The files below one location, by their names relative to it. The functions of ``store`` say what each method does."""

    def files(self) -> list[File]: ...
    def children(self) -> list[str]: ...
    def find(self, name: str) -> File | None: ...
    def read(self, name: str, most_bytes: int = MOST_BYTES) -> bytes | None: ...
    def open(self, name: str, expected: File | None = None) -> BinaryIO: ...
    def require_unchanged(self, file: File) -> None: ...
    def download(self, file: File, path: Path) -> None: ...
    def upload(self, path: Path, name: str) -> None: ...
    def writing(self, name: str) -> AbstractContextManager[Path]: ...
    def write(self, name: str, content: bytes) -> None: ...
    def write_new(self, name: str, content: bytes) -> bool: ...
    def remove(self, first: str) -> None: ...
    def sweep(self, age_seconds: float) -> None: ...
