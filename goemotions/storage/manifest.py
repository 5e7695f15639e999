"""The manifest of a folder: every file with size and sha256, written last. A folder whose manifest does not verify is not complete.

A file that the manifest does not name is never read: whoever can add files could otherwise replace those that are optional.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

from goemotions import strict_json
from goemotions.errors import BadJson, IntegrityError
from goemotions.storage.folder import replacing, sweep
from goemotions.storage.temporary import temporary_folder

NAME = "MANIFEST.json"


def write(folder: Path, **metadata: Any) -> None:
    """Lists every file of a folder in its manifest, beside the caller's metadata.

    Raises:
        IntegrityError: a file is empty: KServe's downloader would skip it.
    """
    sweep(folder)
    files = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file() and path.name != NAME):
        name = path.relative_to(folder).as_posix()
        if not path.stat().st_size:
            raise IntegrityError(f"{folder / name} is empty: leave it out or write it")
        files[name] = {"size": path.stat().st_size, "sha256": sha256(path)}
    with replacing(folder / NAME) as temporary:
        temporary.write_text(json.dumps({**metadata, "files": files}, indent=1), encoding="utf-8")


def read(folder: Path) -> dict[str, Any]:
    """Reads a manifest without checking the files that it lists.

    Raises:
        IntegrityError: there is no readable manifest, or it names a file outside the folder.
    """
    try:
        # A pipe would be waited for.
        content = strict_json.read_bytes(folder / NAME) if (folder / NAME).is_file() else None
    except BadJson as error:
        raise _unreadable(str(folder)) from error
    return parse(content, str(folder))


def parse(content: bytes | None, location: str) -> dict[str, Any]:
    """The manifest of a location from its bytes; None if it has none.

    Raises:
        IntegrityError: as for ``read``.
    """
    try:
        parsed: dict[str, Any] = strict_json.parse(content, NAME)
        if not all(expected.keys() >= {"size", "sha256"} for expected in parsed["files"].values()):
            raise ValueError("a file has no size or no sha256")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _unreadable(location) from error
    for name in parsed["files"]:
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            raise IntegrityError(f"{location}: {NAME} names {name[:200]!r}, which is outside the folder: fetch it again")
    return parsed


def _unreadable(location: str) -> IntegrityError:
    return IntegrityError(f"{location} has no readable {NAME}: it is not complete, fetch it again")


def verify(folder: Path) -> dict[str, Any]:
    """Reads a manifest and checks each file that it lists. Other files are ignored (MLflow adds one).

    Raises:
        IntegrityError: there is no readable manifest, or a file is missing, unreadable, truncated or changed.
    """
    content = read(folder)
    for name, expected in content["files"].items():
        path = folder / name
        try:
            if not path.is_file():
                raise IntegrityError(f"{folder} lacks {name}: fetch it again")
            if path.stat().st_size != expected["size"] or sha256(path) != expected["sha256"]:
                raise differs(str(path))
        except OSError as error:
            raise IntegrityError(f"{path} cannot be read ({error.strerror}): fetch it again") from error
    return content


def differs(path: str) -> IntegrityError:
    """The error for a file that is not the one that a manifest names."""
    return IntegrityError(f"{path} differs from its manifest: fetch it again, or register the model again")


@contextmanager
def only_named(folder: Path) -> Iterator[Path]:
    """A folder with the files that a folder's manifest names, for as long as the block lasts.

    Libraries look for files by themselves, such as an adapter beside the weights. If the folder holds other files, the block gets a
    temporary folder of links to those that are named.
    """
    named = read(folder)["files"]
    present = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_symlink() or not path.is_dir())
    if {*present} <= {*named, NAME}:
        yield folder
        return
    with temporary_folder() as scratch:
        for name in (*named, NAME):
            link = scratch / name
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to((folder / name).resolve())
        yield scratch


def check(content: dict[str, Any], location: str, name: str, stored: bytes | None) -> bytes:
    """The bytes of one file that a manifest names, if they are those that it lists.

    Args:
        content: the manifest.
        location: the folder or prefix, for the message.
        name: the file.
        stored: its bytes; None if there is no such file.

    Raises:
        IntegrityError: they are not.
    """
    expected = content["files"].get(name)
    if stored is None or expected is None or hashlib.sha256(stored).hexdigest() != expected["sha256"]:
        raise IntegrityError(f"{location}: {name} is missing or differs from its manifest: register the model again")
    return stored


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
