"""The interface of a storage backend: the files below one location."""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from goemotions.errors import FileChanged


@dataclass(frozen=True, order=True)
class File:
    """A file below a location; ``tag`` changes when the file does."""

    name: str
    size: int
    tag: str

    def changed(self, location: str) -> FileChanged:
        return FileChanged(
            f"{location.rstrip('/')}/{self.name} has changed since it was listed, when it had {self.size:,} bytes: "
            "restore it as it was, or begin again with another output"
        )


class Backend(ABC):
    """The files below one location, by their names relative to it. The functions of ``store`` say what each method does."""

    @abstractmethod
    def files(self) -> list[File]: ...

    @abstractmethod
    def children(self) -> list[str]: ...

    @abstractmethod
    def find(self, name: str) -> File | None: ...

    @abstractmethod
    def read(self, name: str) -> bytes | None: ...

    @abstractmethod
    def open(self, name: str, expected: File | None = None) -> BinaryIO: ...

    @abstractmethod
    def require_unchanged(self, file: File) -> None: ...

    @abstractmethod
    def download(self, name: str, path: Path) -> None: ...

    @abstractmethod
    def upload(self, path: Path, name: str) -> None: ...

    @abstractmethod
    def writing(self, name: str) -> AbstractContextManager[Path]: ...

    @abstractmethod
    def write(self, name: str, content: bytes) -> None: ...

    @abstractmethod
    def write_new(self, name: str, content: bytes) -> bool: ...

    @abstractmethod
    def remove(self, first: str) -> None: ...

    @abstractmethod
    def sweep(self, age_seconds: float) -> None: ...
