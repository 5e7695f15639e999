"""The archive in which ``benchmarks.gpu`` travels to a machine with a GPU, where nothing can be installed."""

from __future__ import annotations

import sys
import tarfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
PARTS = ("goemotions", "benchmarks")
LARGEST_ARCHIVE = 60 * 2**20


def prepare(archive: Path, wheels: Path) -> None:
    """Writes the archive: the packages with the sample data, and the wheels of a folder."""
    with tarfile.open(archive, "w:gz") as tar:
        for path in sorted(path for part in PARTS for path in (ROOT / part).rglob("*") if path.is_file()):
            if "__pycache__" not in path.parts:
                tar.add(path, path.relative_to(ROOT))
        included = sorted(wheels.glob("*.whl"))
        for path in included:
            tar.add(path, Path("wheels") / path.name)
    size = archive.stat().st_size
    if size > LARGEST_ARCHIVE:
        archive.unlink()
        sys.exit(f"the archive would have {size / 2**20:.0f} MiB, more than {LARGEST_ARCHIVE / 2**20:.0f}: leave out wheels")
    print(f"{archive}: {size / 2**20:.1f} MiB, {len(included)} wheels; unpack it and run python -m benchmarks.gpu there")


def add_wheels(folder: Path, target: Path) -> None:
    """Makes the packages of the archive's wheels importable, after those that are installed."""
    for wheel in sorted(folder.glob("*.whl")):
        with zipfile.ZipFile(wheel) as content:
            content.extractall(target)  # nosec B202 # wheels of the archive's author
    sys.path.append(str(target))
