"""The manifest of a folder: every file with size and sha256, written last. A folder whose manifest does not verify is not complete."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from goemotions.errors import IntegrityError
from goemotions.storage.folder import replacing, sweep

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
        IntegrityError: there is no readable manifest.
    """
    try:
        content: dict[str, Any] = json.loads((folder / NAME).read_text(encoding="utf-8"))
        if not all(expected.keys() >= {"size", "sha256"} for expected in content["files"].values()):
            raise ValueError("a file has no size or no sha256")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise IntegrityError(f"{folder} has no readable {NAME}: it is not complete, fetch it again") from error
    return content


def verify(folder: Path) -> dict[str, Any]:
    """Reads a manifest and checks each file that it lists. Other files are ignored (MLflow adds one).

    Raises:
        IntegrityError: there is no readable manifest, or a file is missing, truncated or changed.
    """
    content = read(folder)
    for name, expected in content["files"].items():
        path = folder / name
        if not path.is_file():
            raise IntegrityError(f"{folder} lacks {name}: fetch it again")
        if path.stat().st_size != expected["size"] or sha256(path) != expected["sha256"]:
            raise IntegrityError(f"{path} differs from its manifest: fetch it again, or register the model again")
    return content


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
