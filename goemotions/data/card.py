"""The card of a data set on the hub, ``README.md``: its head may say which files are which split, and name the labels.

Names of files may say something else. The card counts, as it does on the hub.
"""

from __future__ import annotations

import fnmatch
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from goemotions.data import layout
from goemotions.data.layout import Layout
from goemotions.data.tables import holds_rows
from goemotions.errors import DataError

# In place of the head of the card there may be a file of YAML alone.
NAME, HEAD_ALONE = "README.md", ".huggingface.yaml"
# Of what is read of a card, to the end of its head.
MOST_BYTES = 2**20
HEAD = re.compile(r"\A\ufeff?---\s*\n(.*?)\n---\s*(?:\n|\Z)", re.DOTALL)
HOW = "correct the card, remove `configs` from it, or give the files of one data set as the source"


@dataclass(frozen=True)
class Card:
    """What a card says of the data beside it.

    Attributes:
        layout: the files of each split; None if the card leaves that to their names.
        class_names: the names of the labels, for columns of numbers.
    """

    layout: Layout | None = None
    class_names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


def read(folder: Path, source: str, config: str = "") -> Card:
    """Reads the card of a folder; an empty one if there is none, or if its head is no YAML.

    Args:
        folder: the folder of the data set.
        source: what messages call it.
        config: the configuration; empty: the only one, or that which the card makes the default.

    Raises:
        DataError: the configuration is not there or not certain, or a split has no file, or files elsewhere.
    """
    folder = _with_card(folder)
    head = _head(folder)
    chosen = _configuration(head, source, config)
    infos = _objects(head.get("dataset_info"))
    described = infos if len(infos) == 1 else [one for one in infos if one.get("config_name") == chosen.get("config_name")]
    class_names = dict(pair for one in described[:1] for pair in _class_names(one))
    base = folder / _within(chosen.get("data_dir") or ".", source)
    if "data_files" in chosen:
        files = {split: _files(base, split, patterns, source) for split, patterns in _patterns(chosen, source).items()}
        return Card(layout.by_split(files, source, (base, folder)), class_names)
    return Card(layout.find(base, source) if "data_dir" in chosen else None, class_names)


def named(folder: Path, source: str, config: str, files: Iterable[str]) -> list[str] | None:
    """Of the files of a repository, those that its card names, and maybe some more; None if it leaves them to their names.

    Args:
        folder: a folder with the card.
        source, config: as for ``read``.
        files: the names of the files, which need not be there.

    Raises:
        DataError: the configuration is not there or not certain, or names files elsewhere.
    """
    chosen = _configuration(_head(folder), source, config)
    base = PurePosixPath(_within(chosen.get("data_dir") or ".", source))
    if "data_files" not in chosen:
        return [name for name in files if PurePosixPath(name).is_relative_to(base)] if "data_dir" in chosen else None
    given = [str(base / _within(path, source)) for paths in _patterns(chosen, source).values() for path in paths]
    # Here a * matches a / too, and without them, a folder in between.
    patterns = [pattern.replace("**/", "*") for pattern in given]
    return [name for name in files if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)]


def _with_card(folder: Path) -> Path:
    """The folder, or the one below it that holds the card and all files of rows, as in a zip of a repository or a cache of the hub."""
    if _head(folder) or not folder.is_dir() or not (rows := layout.tables_below(folder, str(folder), layout.DEPTH)):
        return folder
    within = Path(os.path.commonpath([path.parent for path in rows]))
    places = [place for place in (within, *within.parents) if place.is_relative_to(folder) and _head(place)]
    return places[-1] if places else folder


def _head(folder: Path) -> dict[str, Any]:
    """What the head of the card says, or a file in its place."""
    return _yaml(folder / NAME, HEAD) | _yaml(folder / HEAD_ALONE, re.compile(r"(.*)", re.DOTALL))


def _yaml(path: Path, pattern: re.Pattern[str]) -> dict[str, Any]:
    import yaml

    # A pipe would be waited for.
    if not path.is_file():
        return {}
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            match = pattern.match(file.read(MOST_BYTES))
        # Only texts, lists and objects: what else YAML has could take all memory.
        content = yaml.load(match[1], yaml.BaseLoader) if match else None  # nosec B506 # it makes no other objects
    except (OSError, RecursionError, yaml.YAMLError):
        return {}
    return content if isinstance(content, dict) else {}


def _objects(value: Any) -> list[dict[str, Any]]:
    return [one for one in (value if isinstance(value, list) else [value]) if isinstance(one, dict)]


def _configuration(head: Mapping[str, Any], source: str, config: str) -> dict[str, Any]:
    configs = [one for one in _objects(head.get("configs")) if isinstance(one.get("config_name"), str)]
    if not configs and not config:
        return {}
    names = [one["config_name"] for one in configs]
    defaults = [one for one in configs if _is_true(one.get("default")) or one["config_name"] == "default"]
    chosen = [one for one in configs if one["config_name"] == config] if config else configs if len(names) == 1 else defaults
    if len(chosen) != 1:
        raise DataError(
            f"{source} has the configurations {', '.join(names) or 'none':.300} by its {NAME}: name one of them "
            "(hub:<dataset>:<config>), or give the folder or the file of one"
        )
    return chosen[0]


def _is_true(value: Any) -> bool:
    return isinstance(value, str) and value.lower() in ("true", "yes", "on")


def _patterns(config: Mapping[str, Any], source: str) -> dict[str, list[str]]:
    """The patterns of the files of each split; without splits, all files are train."""
    given = config["data_files"]
    listed = given if isinstance(given, list) else [given]
    if all(isinstance(one, str) for one in listed):
        listed = [{"split": "train", "path": listed}]
    patterns: dict[str, list[str]] = {}
    for one in listed:
        split, paths = (one.get("split"), one.get("path")) if isinstance(one, dict) else (None, None)
        paths = paths if isinstance(paths, list) else [paths]
        if not isinstance(split, str) or not all(isinstance(path, str) for path in paths):
            raise DataError(f"{source}: data_files of its {NAME} are no paths by split: {HOW}")
        patterns.setdefault(split, []).extend(paths)
    return patterns


def _files(base: Path, split: str, patterns: list[str], source: str) -> list[Path]:
    paths: dict[Path, None] = {}
    for pattern in patterns:
        within = _within(pattern, source)
        try:
            matching = sorted(base.glob(f"{within}/*" if within.endswith("**") else within))
        except (ValueError, IndexError):
            # "**.csv" and "" are no patterns of Python's.
            matching = []
        of_rows = [path for path in matching if path.is_file() and holds_rows(path.name)]
        if not of_rows:
            raise DataError(f"{source}: its {NAME} says that {pattern!r:.200} is {split}, and no file of rows is there: {HOW}")
        paths |= dict.fromkeys(of_rows)
    return [*paths]


def _within(path: Any, source: str) -> str:
    """A relative path or pattern: who writes a card does not choose among the other files of a machine or network."""
    parts = PurePosixPath(path).parts if isinstance(path, str) else ("..",)
    if ".." in parts or parts[:1] == ("/",) or ":" in path or "\0" in path:
        raise DataError(f"{source}: its {NAME} names files elsewhere, or no files, in data_dir or data_files: {HOW}")
    return str(PurePosixPath(path))


def _class_names(info: Mapping[str, Any]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """The columns of ClassLabel, alone or in a list, and the names of their numbers."""
    for feature in _objects(info.get("features")):
        for kind in _objects([feature.get(key) for key in ("dtype", "sequence", "list")]):
            names = next(iter(_objects(kind.get("class_label"))), {}).get("names")
            if isinstance(names, dict):
                names = [names.get(str(number)) for number in range(len(names))]
            if isinstance(names, list) and names and all(isinstance(one, str) for one in names):
                yield str(feature.get("name")), tuple(names)
