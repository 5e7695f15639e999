"""The interface of a storage backend: the files below one location."""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO


@dataclass(frozen=True, order=True)
class File:
    """A file below a location; ``tag`` changes when the file does."""

    name: str
    size: int
    tag: str


class Backend(ABC):
    """The files below one location, by their names relative to it. The functions of ``store`` say what each method does."""

    @abstractmethod
    def files(self) -> list[File]: ...

    @abstractmethod
    def children(self) -> list[str]: ...

    @abstractmethod
    def has(self, name: str) -> bool: ...

    @abstractmethod
    def read(self, name: str) -> bytes | None: ...

    @abstractmethod
    def open(self, name: str) -> BinaryIO: ...

    @abstractmethod
    def download(self, name: str, path: Path) -> None: ...

    @abstractmethod
    def upload(self, path: Path, name: str) -> None: ...

    @abstractmethod
    def writing(self, name: str) -> AbstractContextManager[Path]: ...

    @abstractmethod
    def write_new(self, name: str, content: bytes) -> bool: ...

    @abstractmethod
    def remove(self, first: str) -> None: ...

    @abstractmethod
    def sweep(self) -> None: ...
