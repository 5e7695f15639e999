"""Ways to damage a file; each takes its path."""

from __future__ import annotations

from pathlib import Path


def cut(path: Path, length: int = 8) -> None:
    """Leaves out the last bytes."""
    path.write_bytes(path.read_bytes()[:-length])


def flip(path: Path) -> None:
    """Changes the last byte."""
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
