"""Storage in a local folder, and the atomic write of a local file."""

from __future__ import annotations

import os
import secrets
import shutil
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from goemotions.errors import StorageError
from goemotions.storage.backend import Backend, File, too_large
from goemotions.strict_json import MOST_BYTES

PARTIAL = ".partial"


@contextmanager
def replacing(path: Path, *, shared: bool = False) -> Iterator[Path]:
    """A temporary path beside a file: when the block ends without an error, what was written there replaces the file atomically.

    After an error the file is as it was before.

    Args:
        path: the file; its folder is created.
        shared: several processes or threads may write the file at the same time, and the last one to finish wins. The temporary file
            of a process that was killed then remains until ``sweep``; otherwise the next write overwrites it.
    """
    with _temporary(path, _unique() if shared else PARTIAL) as temporary:
        yield temporary
        try:
            os.replace(temporary, path)
        except FileNotFoundError:
            # Another process wrote the same file and then removed this temporary one with `sweep`.
            if not path.is_file():
                raise


@contextmanager
def _temporary(path: Path, ending: str) -> Iterator[Path]:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}{ending}")
    try:
        yield temporary
    finally:
        with suppress(OSError):
            temporary.unlink()


def _unique() -> str:
    """An ending that no other writer has, on no host that mounts the folder."""
    return f".{secrets.token_hex(8)}{PARTIAL}"


def copy(folder: Path, output: Path, ignore: Callable[[str, list[str]], Collection[str]] | None = None) -> None:
    """Copies a folder. Links are followed within it, and if it is a snapshot in the hub's cache, within that repository's cache.

    Args:
        folder: the folder.
        output: the copy.
        ignore: as for ``shutil.copytree``.

    Raises:
        StorageError: a link leads elsewhere, or what should be a file is a pipe or a device.
    """
    root = folder.resolve()
    if root.parent.name == "snapshots":
        root = root.parents[1]

    def copy_file(source: str, target: str) -> None:
        path = Path(source).resolve()
        if not (path.is_file() and path.is_relative_to(root)):
            raise StorageError(f"{source} is no file of {folder}, but leads to {path}: remove it, or put a copy in its place")
        shutil.copyfile(path, target)

    shutil.copytree(folder, output, ignore=ignore, dirs_exist_ok=True, copy_function=copy_file)


def sweep(folder: Path, age_seconds: float = 0.0) -> None:
    """Removes the temporary files of processes that were killed: those that were not written to for this long."""
    for path in folder.glob(f".*{PARTIAL}"):
        with suppress(FileNotFoundError):
            if time.time() - path.stat().st_mtime >= age_seconds:
                path.unlink()


def _file(name: str, stat: os.stat_result) -> File:
    return File(name, stat.st_size, str(stat.st_mtime_ns), stat.st_mtime)


class FolderBackend(Backend):
    def __init__(self, location: str) -> None:
        self.root = Path(location)

    def files(self) -> list[File]:
        paths = [path for path in self.root.rglob("*") if path.is_file()]
        return sorted(_file(path.relative_to(self.root).as_posix(), path.stat()) for path in paths)

    def children(self) -> list[str]:
        return sorted(path.name for path in self.root.iterdir() if path.is_dir()) if self.root.is_dir() else []

    def find(self, name: str) -> File | None:
        path = self.root / name
        return _file(name, path.stat()) if path.is_file() else None

    def read(self, name: str, most_bytes: int = MOST_BYTES) -> bytes | None:
        if not (self.root / name).is_file():
            return None
        with self.open(name) as file:
            content = file.read(most_bytes + 1)
        if len(content) > most_bytes:
            raise too_large(str(self.root), name, most_bytes)
        return content

    def open(self, name: str, expected: File | None = None) -> BinaryIO:
        path = self.root / name
        try:
            file = path.open("rb")
        except OSError as error:
            raise StorageError(f"{path} cannot be read ({error.strerror}): check its path") from error
        if expected and _file(name, os.fstat(file.fileno())) != expected:
            file.close()
            raise expected.changed(str(self.root))
        return file

    def require_unchanged(self, file: File) -> None:
        if self.find(file.name) != file:
            raise file.changed(str(self.root))

    def download(self, file: File, path: Path) -> None:
        try:
            shutil.copyfile(self.root / file.name, path)
        except FileNotFoundError as error:
            raise file.changed(str(self.root)) from error

    def upload(self, path: Path, name: str) -> None:
        (self.root / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, self.root / name)

    @contextmanager
    def writing(self, name: str) -> Iterator[Path]:
        with replacing(self.root / name, shared=True) as temporary:
            yield temporary

    def write(self, name: str, content: bytes) -> None:
        with self.writing(name) as temporary:
            temporary.write_bytes(content)

    def write_new(self, name: str, content: bytes) -> bool:
        with _temporary(self.root / name, _unique()) as temporary:
            temporary.write_bytes(content)
            try:
                # Unlike a rename, a link fails if the name is taken.
                os.link(temporary, self.root / name)
            except FileExistsError:
                return False
        return True

    def remove(self, first: str) -> None:
        try:
            for path in sorted(self.root.rglob(first)):
                path.unlink(missing_ok=True)
            shutil.rmtree(self.root)
        except FileNotFoundError:
            pass
        except OSError as error:
            raise StorageError(f"{self.root} cannot be removed ({error.strerror}): check its permissions") from error

    def sweep(self, age_seconds: float) -> None:
        sweep(self.root, age_seconds)
