"""A source that is one archive or one object of a bucket: its files in a folder, as if they had been given so."""

from __future__ import annotations

import shutil
import stat
import zipfile
from pathlib import Path
from typing import BinaryIO

from goemotions.data import text_files
from goemotions.data.layout import LABEL_NAMES
from goemotions.data.tables import is_table
from goemotions.errors import DataError
from goemotions.storage import store
from goemotions.storage.backend import File

MOST_FILES = 10_000


def is_archive(path: Path) -> bool:
    """Whether a file is a zip of several files, not one compressed file such as ``train.csv.zip``."""
    return path.suffix.lower() == ".zip" and not is_table(path.name) and path.is_file()


def unpack(path: Path, name: str, folder: Path) -> Path:
    """Unpacks a zip into a folder, which it returns.

    Args:
        path: the zip.
        name: what error messages call it.
        folder: the folder to write.

    Raises:
        DataError: it is damaged, encrypted, expands to far more than its size, or holds links or two files of one name.
    """
    folder.mkdir(parents=True, exist_ok=True)
    left = text_files.longest_content(path.stat().st_size)
    try:
        with zipfile.ZipFile(path) as archive:
            members = [item for item in archive.infolist() if not item.is_dir() and not text_files.is_junk(item.filename)]
            text_files.refuse_encrypted(members, name)
            if len(members) > MOST_FILES:
                raise DataError(f"{name} holds {len(members)} files: unpack it and give the folder")
            for item in members:
                target = folder / item.filename
                if not target.resolve().is_relative_to(folder.resolve()):
                    raise DataError(f"{name} holds a file named {item.filename!r}, which would leave its folder: remove it")
                if stat.S_ISLNK(item.external_attr >> 16):
                    raise DataError(f"{name} holds a link, {item.filename!r}: write the file that it names into the zip")
                with text_files.open_member(archive, item, name) as content, _new(target, name, item.filename) as file:
                    while chunk := content.read(2**20):
                        left -= len(chunk)
                        if left < 0:
                            raise text_files.expands(name)
                        file.write(chunk)
    except text_files.DAMAGES as error:
        raise DataError(f"{name} is not a complete zip file: copy it again") from error
    return _only_table(folder) or folder


def _new(path: Path, archive: str, name: str) -> BinaryIO:
    """A file that an archive holds, opened for writing.

    Raises:
        DataError: the archive holds it twice, or as a folder, too, or its name is too long.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.open("xb")
    except OSError as error:
        raise DataError(
            f"{archive} holds {name[:200]!r}, which cannot be unpacked ({error.strerror}): rename it, or remove it if it is there twice"
        ) from error


def _only_table(folder: Path) -> Path | None:
    """The file of rows, if there is one only, whatever its name."""
    files = [path for path in folder.rglob("*") if path.is_file() and is_table(path.name)]
    return files[0] if len(files) == 1 else None


def fetch_object(location: str, folder: Path) -> Path | None:
    """Downloads the object that a location names, with the label names beside it; None if it names no object of a known format.

    Raises:
        FileChanged: one of them was changed meanwhile.
        StorageError: the bucket cannot be reached or denies access.
    """
    parent, _, name = location.rpartition("/")
    is_known = is_table(name) or name.lower().endswith(".zip")
    if parent.count("/") < 2 or not is_known or not store.has(parent + "/", name):
        return None
    folder.mkdir(parents=True, exist_ok=True)
    listed = _with_label_names(parent + "/", name)
    for one in listed:
        with store.open_file(parent + "/", one.name, one) as content, (folder / one.name).open("wb") as file:
            shutil.copyfileobj(content, file)
    store.require_unchanged(parent + "/", listed, _with_label_names(parent + "/", name))
    return folder / name


def _with_label_names(location: str, name: str) -> list[File]:
    return [file for one in (name, LABEL_NAMES) if (file := store.find(location, one))]
