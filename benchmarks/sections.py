"""Sections of ``docs/benchmarks.md``: each is written by its own command, and the others are kept."""

from __future__ import annotations

from pathlib import Path

HEAD = """# Benchmarks

Written by `make bench` and `make bench-full`, each section by its command, which also measures it anew: its numbers are those of the
commit that it names. Medians and ranges of alternating runs; a ratio is the median over pairs of consecutive runs. Those of the server
are in [serving-benchmarks.md](serving-benchmarks.md).
"""


def read(path: Path) -> dict[str, str]:
    """The sections of the file, by title."""
    parts = path.read_text(encoding="utf-8").split("\n## ")[1:] if path.exists() else []
    return {title: body.strip() for title, _, body in (part.partition("\n") for part in parts)}


def write(path: Path, bodies: dict[str, str]) -> None:
    """Writes the head and the sections."""
    text = [HEAD, *(f"## {title}\n\n{body}\n" for title, body in bodies.items())]
    path.write_text("\n".join(text), encoding="utf-8")


def write_one(path: Path, title: str, body: str) -> None:
    """Writes one section, in its place or at the end."""
    write(path, read(path) | {title: body})
