"""Columns in the names of folders, as Hive, Spark, Arrow and Polars write tables: ``date=2026-01-01/part-0.parquet``."""

from __future__ import annotations

import re
from pathlib import PurePath
from urllib.parse import unquote

FOLDER = re.compile(r"([^=]+)=(.*)", re.DOTALL)
NULL = "__HIVE_DEFAULT_PARTITION__"


def columns(path: str | PurePath) -> dict[str, str | None]:
    """The columns that the folders of a file name, by the file's path below the table, with the value that all its rows have."""
    found = {unquote(match[1]): unquote(match[2]) for part in PurePath(path).parts[:-1] if (match := FOLDER.fullmatch(part))}
    return {name: None if value == NULL else value for name, value in found.items()}
