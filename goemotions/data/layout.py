"""The files of a source and the splits they belong to, by their names and those of their folders."""

from __future__ import annotations

import logging
import math
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, product
from pathlib import Path, PurePath

from goemotions.data import partitions
from goemotions.data.tables import ENDINGS, holds_rows, is_table, require_valid
from goemotions.data.text_files import COMPRESSIONS, split_name
from goemotions.errors import DataError

log = logging.getLogger(__name__)

SPLITS = ("train", "validation", "test")
NAMES = {
    "train": ("train", "training"),
    "validation": ("validation", "dev", "valid", "val"),
    "test": ("test", "testing"),
}
SPLIT_OF = {name: split for split, names in NAMES.items() for name in names}
# ``train``, ``train-00000-of-00002``, also with the hash that ``datasets`` added once, ``train_1``, and the folder ``split=train``.
SPLIT_NAME = re.compile(rf"(?:split=)?({'|'.join(SPLIT_OF)})([-_.]?\d+(?:[-_]of[-_]\d+(?:-[0-9a-f]{{16}})?)?)?", re.IGNORECASE)
# ``goemotions_train`` and ``train_data``: a training split whose name has a prefix or an ending that those of the other splits share.
AFFIXED_TRAIN = re.compile(
    rf"(.*[-_. ])?(?:{'|'.join(NAMES['train'])})(?:[-_.]?\d+(?:[-_]of[-_]\d+)?)?([-_. ]\D.*)?", re.IGNORECASE
)
# ``eval_set``, ``validation_set`` and ``test-gold``: what is no name of a split, and may be one that is missing.
MAYBE = {
    split: re.compile(rf"(?:.*[-_. ])?(?:{words})(?:[-_. ]?(?:set|data|split))?(?:[-_. ]?{rest})?", re.IGNORECASE)
    for split, words, rest in (
        ("validation or the test", "eval|evaluation|held[-_ ]?out|hold[-_ ]?out", r"\d+(?:[-_]of[-_]\d+)?"),
        ("validation", "|".join((*NAMES["validation"], "validate", "devel", "development")), r"(?:(?<=[-_. ])|\d).*"),
        ("test", "|".join((*NAMES["test"], "tests")), r"(?:(?<=[-_. ])|\d).*"),
    )
}
REFUSED_ENDINGS = {".pkl", ".pickle", ".pt", ".pth", ".bin", ".joblib", ".npy", ".py"}
# Files that are not read, by ending, and what to do with them.
UNREAD = {
    (".zip", ".tar", ".tgz", ".gz", ".7z", ".rar", ".bz2", ".xz"): "unpack it and give the folder, or one file per split",
    (".xlsx", ".xls", ".ods"): "save it as CSV in UTF-8",
    (".txt", ".tab", ".dat"): "rename it to .csv if its cells are separated by commas or semicolons, to .tsv if by tabs",
    (".orc", ".avro", ".h5", ".sqlite", ".db"): "write it as .parquet or .csv",
}
LABEL_NAMES = "emotions.txt"
DEPTH = 4


@dataclass(frozen=True)
class Layout:
    """The files of each split of a source, in order; ``files`` has the key "" if they are not split.

    Attributes:
        files: paths by split.
        label_names: the file that lists the label names, or None.
    """

    files: dict[str, list[Path]]
    label_names: Path | None


@dataclass(frozen=True)
class _SplitFile:
    """A file of rows: its path, the folder that holds the splits, its split, and what distinguishes two forms of a split."""

    path: Path
    within: PurePath
    split: str
    form: tuple[str, ...]


def names_a_file(location: str) -> bool:
    """Whether a location ends as files of rows do, in formats that are read or not; a final ``/`` is that of a folder."""
    return location.lower().endswith((*ENDINGS, *COMPRESSIONS, *chain(*UNREAD)))


def find(folder: Path, name: str = "") -> Layout:
    """The layout of a source.

    Args:
        folder: a folder, or a single file of rows.
        name: what error messages call it.

    Raises:
        DataError: there is no train split, a split is there twice or incomplete, or several configurations are there.
    """
    name = name or str(folder)
    if folder.is_file():
        if not is_table(folder.name):
            raise _nothing(folder.parent, name, [folder])
        return Layout({"": [folder]}, _label_names(folder.parent))
    paths = tables_below(folder, name, DEPTH)
    _require_columns(name, folder, paths)
    tables = [_classify(folder, path) for path in paths]
    if not any(file.split for file in tables):
        affix = _affix(name, paths)
        tables = [_classify(folder, path, affix) for path in paths]
    splits = [file for file in tables if file.split]
    if not splits:
        return Layout({"": _unsplit(folder, name, [file.path for file in tables])}, _label_names(folder))
    within = _configuration(folder, name, splits)
    beside = [file.path.name for file in tables if not file.split and not file.within.parts]
    if within.parts and beside:
        raise DataError(f"{name} holds {beside[0]} and the splits in {within}/: give one of the two as the source")
    chosen = [file for file in splits if file.within == within]
    files = {split: _one_form(name, split, [file for file in chosen if file.split == split]) for split in SPLITS}
    if not files["train"]:
        raise _nothing(folder, name, [file.path for file in tables])
    _refuse_unread_split(name, folder / within, files)
    _name_unread(name, files, [str(file.path.relative_to(folder)) for file in tables if not file.split])
    return Layout({split: paths for split, paths in files.items() if paths}, _label_names(folder / within, folder))


def by_split(named: Mapping[str, Sequence[Path]], name: str, folders: Sequence[Path] = ()) -> Layout:
    """The layout of a source that names the split of each file itself.

    Args:
        named: files by the name of their split, such as ``dev``.
        name: what error messages call the source.
        folders: where the file with the label names may be.

    Raises:
        DataError: there is no train split, two are the same one or share a file, one is incomplete, or may be validation or test.
    """
    splits: dict[str, str] = {}
    for given in named:
        split = SPLIT_OF.get(given.lower(), "")
        if split in splits:
            raise DataError(f"{name}: {splits[split]} and {given} are both the {split} split: remove one")
        splits |= {split: given} if split else {}
    if "train" not in splits:
        raise DataError(f"{name} has no train split, but {', '.join(named) or 'none'}: prepare a folder instead")
    files = {split: [*named[splits[split]]] for split in SPLITS if split in splits}
    for paths in files.values():
        _require_all_parts(name, paths)
    if twice := [path for path, count in Counter(chain(*files.values())).items() if count > 1]:
        raise DataError(f"{name}: {twice[0].name} is in two splits: give each split files of its own")
    _name_unread(name, files, [given for given in named if given not in splits.values()])
    return Layout(files, _label_names(*folders))


def _refuse_unread_split(name: str, folder: Path, files: Mapping[str, Sequence[Path]]) -> None:
    """Raises DataError if a split that would be drawn from train is there in a format that is not read."""
    for path in sorted(folder.iterdir()):
        match, remedy = SPLIT_NAME.fullmatch(path.name.split(".")[0]), _remedy(path.name)
        if match and remedy and not files[split := SPLIT_OF[match[1].lower()]]:
            raise DataError(f"{name}: {path.name} may be the {split} split, and is not of a format that is read: {remedy}")


def _remedy(file: str) -> str:
    """What to do with a file that is not read, by its ending; empty if it holds no rows."""
    return next((remedy for endings, remedy in UNREAD.items() if file.lower().endswith(endings)), "")


def _name_unread(name: str, files: Mapping[str, Sequence[Path]], unread: Sequence[str]) -> None:
    """Logs files or splits that are not read.

    Raises:
        DataError: one of them may be a split that would be drawn from train.
    """
    missing = [split for split in SPLITS if not files.get(split)]
    for path, (maybe, form) in product(map(PurePath, unread), MAYBE.items()):
        if any(split in maybe for split in missing) and any(form.fullmatch(split_name(part)[0]) for part in path.parts):
            raise DataError(
                f"{name}: {path} may be the {maybe} split: rename it to the split's name, or leave it out, in a copy of the data if it "
                "is not yours"
            )
    if unread:
        more = f" and {len(unread) - 10} more" if len(unread) > 10 else ""
        log.info("%s: not read, since their names are no splits: %s%s", name, ", ".join(unread[:10]), more)


def tables_below(folder: Path, source: str, depth: float = math.inf) -> list[Path]:
    """The files of rows below a folder, those in linked folders too, each folder once.

    Args:
        folder: the folder.
        source: what error messages call it.
        depth: how many levels are read.

    Raises:
        DataError: a folder cannot be read, is that of an unfinished job, or of a table that keeps what was replaced; or what is called
            like a file of rows is a pipe, or a link to nothing.
    """
    tables: list[Path] = []
    walked: set[Path] = set()
    for place, folders, names in os.walk(folder, followlinks=True, onerror=_raise):
        here = Path(place)
        is_deep = len(here.relative_to(folder).parts) >= depth - 1
        is_new = here.resolve() not in walked
        walked.add(here.resolve())
        require_valid(source, (str((here / name).relative_to(folder)) for name in (*folders, *names)))
        folders[:] = sorted(name for name in folders if not name.startswith((".", "_")) and is_new and not is_deep)
        tables += [here / name for name in names if is_new and holds_rows(name)]
    for path in tables:
        if not path.exists():
            raise DataError(f"{path} is a link to a file that is not there: copy the file, or remove the link")
        if not path.is_file():
            raise DataError(f"{path} is a pipe or a device, not a file: write what it holds to a file")
    return sorted(tables)


def _raise(error: OSError) -> None:
    raise DataError(f"{error.filename} cannot be read ({error.strerror}): check its path and permissions") from error


def _require_columns(name: str, folder: Path, paths: Sequence[Path]) -> None:
    """Raises DataError if texts or labels are not in the files, but in the names of their folders."""
    for path in paths:
        if named := {"text", "label", "labels", "emotion", "emotions"} & partitions.columns(path.relative_to(folder)).keys():
            raise DataError(
                f"{name} has its {min(named)} in names of folders ({path.relative_to(folder).parent}): write it as a column, such as "
                "by pyarrow.dataset.dataset(folder, partitioning='hive').to_table()"
            )


def _label_names(*folders: Path) -> Path | None:
    return next((path for folder in folders if (path := folder / LABEL_NAMES).is_file()), None)


def _affix(name: str, paths: Sequence[Path]) -> tuple[str, str]:
    """What precedes and what follows the split in the names of files, none of which is that of a split alone."""
    trains = {
        (match[1] or "", match[2] or ""): path for path in paths if (match := AFFIXED_TRAIN.fullmatch(split_name(path.name)[0]))
    }
    if len(trains) > 1:
        first, second = sorted(path.name for path in trains.values())[:2]
        raise DataError(f"{name}: {first} and {second} may both be the train split: rename the one to read to train")
    return next(iter(trains), ("", ""))


def _classify(folder: Path, path: Path, affix: tuple[str, str] = ("", "")) -> _SplitFile:
    parts = path.relative_to(folder).parts
    for position, part in enumerate(parts):
        stem, *_ = split_name(part)
        is_file = position == len(parts) - 1
        if is_file:
            stem = stem.removeprefix(affix[0]).removesuffix(affix[1])
        match = SPLIT_NAME.fullmatch(stem if is_file or is_table(part) else part)
        if match:
            _, own_ending, own_compression = split_name(path.name)
            kind = ("parts" if match[2] else "one file") if is_file else "folder"
            form = (part if not match[2] else match[1], kind, own_ending + own_compression)
            return _SplitFile(path, PurePath(*parts[:position]), SPLIT_OF[match[1].lower()], form)
    return _SplitFile(path, PurePath(*parts[:-1]), "", ())


def _configuration(folder: Path, name: str, splits: Sequence[_SplitFile]) -> PurePath:
    """The folder with the splits: the source itself, or the only one below it."""
    places = sorted({file.within for file in splits}, key=lambda place: (len(place.parts), place))
    listed = ", ".join(str(place) for place in places if place.parts)
    if len(places) == 1:
        return places[0]
    if not places[0].parts:
        log.info("%s: its own splits are taken, not those below it (%s)", name, listed)
        return places[0]
    raise DataError(
        f"{name} holds several data sets ({listed}): give the folder of one, such as {name.rstrip('/')}/{places[0]}"
    )


def _one_form(name: str, split: str, files: Sequence[_SplitFile]) -> list[Path]:
    forms = sorted({file.form for file in files})
    if len(forms) > 1:
        first, second = (next(file.path for file in files if file.form == form) for form in forms[:2])
        shown = [path.name if path.name != other.name else str(path) for path, other in ((first, second), (second, first))]
        raise DataError(f"{name}: {shown[0]} and {shown[1]} are both the {split} split: remove one")
    paths = sorted((file.path for file in files), key=_natural)
    _require_all_parts(name, paths)
    return paths


def _require_all_parts(name: str, paths: Sequence[Path]) -> None:
    numbered = {path: match for path in paths if (match := re.match(r"(.*?)\d+[-_]of[-_](\d{1,9})\b", path.name))}
    series = {path: (path.parent, *match.groups()) for path, match in numbered.items()}
    present = Counter(series.values())
    for path, match in numbered.items():
        if int(match[2]) != (count := present[series[path]]):
            raise DataError(
                f"{name}: {path.name} is one of {int(match[2])} files, but there are {count}: copy the missing ones, remove others"
            )


def _natural(path: Path) -> list[tuple[int, str]]:
    """Sorts ``part-10`` after ``part-9``."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", str(path)) if part]


def _unsplit(folder: Path, name: str, paths: Sequence[Path]) -> list[Path]:
    """The files of a source without splits: one, or several whose names differ in a number."""
    stems = {re.sub(r"\d+", "#", str(path.relative_to(folder))) for path in paths}
    if not paths:
        raise _nothing(folder, name, paths)
    if len(stems) > 1:
        shown = ", ".join(str(path.relative_to(folder)) for path in paths[:5])
        raise DataError(
            f"{name} has no train split, and several files that could be it ({shown}): add train.tsv, give one file as the source, or "
            "put the files of train into a folder train/"
        )
    return sorted(paths, key=_natural)


def _nothing(folder: Path, name: str, paths: Sequence[Path]) -> DataError:
    """There is no train split: what is there instead."""
    there = sorted(folder.iterdir()) if folder.is_dir() else []
    refused = [path.name for path in [*there, *paths] if path.suffix.lower() in REFUSED_ENDINGS]
    if refused:
        return DataError(
            f"{name}: {refused[0]} is refused, since reading pickles and scripts runs code: convert it to .tsv or .parquet"
        )
    if unread := [path.name for path in [*paths, *there] if _remedy(path.name) and path.name != LABEL_NAMES]:
        return DataError(f"{name} has no train split, and {unread[0]} is not of a format that is read: {_remedy(unread[0])}")
    shown = ", ".join(path.name + "/" * path.is_dir() for path in there[:5] if not path.name.startswith("."))
    instead = f"; there are {shown}" + (" and others" if len(there) > 5 else "") if shown else "; it is empty"
    return DataError(f"{name} has no train split: add train.tsv, train.csv, train.jsonl or train.parquet{instead}")
