"""The plan of a batch scoring, written into the output before a row is scored: the bundle, the input files, and the shards.

It has size and tag of each input file, which each read of one checks, and the digest of the bundle, so that no output mixes two
versions of a file or two models.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any, TypedDict

from goemotions import addresses, defaults, strict_json
from goemotions.data import layout, partitions, tables
from goemotions.errors import DataError, FileChanged
from goemotions.prediction import files
from goemotions.prediction.rows import Rows, open_rows, with_columns
from goemotions.registry import bundle, references
from goemotions.storage import manifest, store
from goemotions.storage.backend import File

# Readers of a folder of Parquet files skip names that begin with an underscore.
PLAN = "_plan.json"
FORMAT = 3
# Of a plan.
MOST_BYTES, MOST_ROWS = 2**26, 2**48
# A shard of any other name would be written outside of the output, or over its plan.
SHARD_NAME = re.compile(r"part-\d{6,9}\.parquet")


@dataclass(frozen=True)
class Shard:
    """Consecutive rows of an input file, and the name of the output file for them."""

    name: str
    file: str
    first: int
    rows: int


class Request(TypedDict):
    """What ``plan`` was called with: the arguments, and the files of the input."""

    input: str
    files: list[File]
    model: str
    version: str
    column: str
    all_scores: bool
    shard_rows: int


class Content(TypedDict):
    """The content of ``_plan.json``."""

    request: Request
    bundle: str
    bundle_digest: str
    shards: list[Shard]
    digest: str


@dataclass(frozen=True)
class Plan:
    """The input, the bundle and the shards of a batch scoring.

    Attributes:
        input: location of the input; ``files`` has its files by name.
        bundle, bundle_digest: its location, and its ``Bundle.digest``.
        shards: in the order of the rows.
        digest: of the whole plan; each scored shard holds it.
    """

    input: str
    files: dict[str, File]
    column: str
    all_scores: bool
    bundle: str
    bundle_digest: str
    shards: tuple[Shard, ...]
    digest: str

    def only(self, shard: Shard) -> Plan:
        """The plan with the input file of one shard: sent to a worker with each shard, the whole one would be quadratic."""
        return replace(self, shards=(), files={shard.file: self.files[shard.file]})


def plan(
    input: str,
    output: str,
    reference: str = defaults.REFERENCE,
    *,
    model_name: str = defaults.MODEL_NAME,
    column: str = "text",
    all_scores: bool = True,
    shard_rows: int = defaults.SHARD_ROWS,
) -> Plan:
    """The plan of an output, a folder or S3 prefix: the stored one, or a new one if there is none.

    Args:
        input: a folder or S3 prefix of files in any format of `goemotions.data.tables`, or one such file.
        reference: an alias, a version number, or a location of a bundle; an alias is resolved once.
        column: the column with the texts; a number for CSV or TSV files without a header.

    Raises:
        DataError: the input has no rows, or its files differ in their columns; or the output is
            within the input, or has the plan of another scoring, a damaged one, or shards without one.
        FileChanged: an input file is not as it was when the output was planned.
        ModelError: there is no such version, or no bundle.
        UntrustedBundle: the stored plan has a bundle that ``reference`` cannot have named.
    """
    folder, name = _input(input)
    within = store.join(store.canonical(output))
    if within == store.join(folder) or (not name and within.startswith(store.join(folder))):
        raise DataError(f"{output} is the input itself, or within it: write to another folder")
    inputs = _input_files(folder, name)
    request = {
        "input": folder,
        "files": [asdict(file) for file in inputs],
        "model": model_name,
        "version": store.canonical(reference) if references.is_location(reference) else reference,
        "column": column,
        "all_scores": all_scores,
        "shard_rows": shard_rows,
    }
    # Listed first: another process may write its plan, and then shards.
    others = [file.name for file in store.files(output)]
    if not store.has(output, PLAN):
        _write(output, others, request, reference, inputs)
    stored = _read(output)
    former = stored["request"]
    if differs := [name for name, value in request.items() if name != "files" and former[name] != value]:
        raise DataError(f"{output} has scores of another {' and '.join(differs)}: empty it, or choose another folder")
    _require_same(output, [File(**file) for file in former["files"]], inputs)
    references.require_possible(reference, stored["bundle"], model_name)
    return read(output, stored["digest"])


def _write(output: str, others: Sequence[str], request: dict[str, Any], reference: str, inputs: Sequence[File]) -> None:
    """Writes the plan of an output that has none, unless another process writes its own first; ``others`` are the files there."""
    if scored := next((name for name in others if name.startswith("part-")), ""):
        raise DataError(f"{output} has scored shards ({scored}) and no {PLAN}: empty it, or choose another folder")
    located = store.canonical(references.resolve(reference, request["model"])[0])
    digest = hashlib.sha256(store.read(located, manifest.NAME) or b"").hexdigest()
    names = bundle.taxonomy(located).names if request["all_scores"] else ()
    shards = [asdict(shard) for shard in _shards(request["input"], inputs, request["column"], names, request["shard_rows"])]
    content = {"format": FORMAT, "request": request, "bundle": located, "bundle_digest": digest, "shards": shards}
    written = json.dumps(content | {"digest": _digest(content)}, indent=1).encode()
    if len(written) > MOST_BYTES:
        raise DataError(
            f"{request['input']} has {len(inputs):,} files, {len(shards):,} shards in all, which is too many for one plan: score it in "
            "parts, or use larger shards"
        )
    store.write_new(output, PLAN, written)


def _require_same(output: str, planned: Sequence[File], inputs: Sequence[File]) -> None:
    before, now = ({file.name: file for file in files} for files in (planned, inputs))
    for name in sorted(before.keys() | now.keys()):
        if before.get(name) != now.get(name):
            change = "is new" if name not in before else "is missing" if name not in now else "has changed"
            raise FileChanged(
                f"{name} {change} since {output} was planned: restore the input as it was, or choose another folder"
            )


def read(output: str, digest: str = "") -> Plan:
    """The plan that an output has.

    Raises:
        DataError: there is none, it is damaged, or an earlier version of this package wrote it.
        FileChanged: it is not the one with this digest.
    """
    content = _read(output)
    if digest not in ("", content["digest"]):
        raise FileChanged(
            f"{output}: {PLAN} is another one than was made: find out who wrote it, and score into another folder"
        )
    request = content["request"]
    return Plan(
        request["input"],
        {file["name"]: File(**file) for file in request["files"]},
        request["column"],
        request["all_scores"],
        content["bundle"],
        content["bundle_digest"],
        tuple(Shard(**shard) for shard in content["shards"]),
        content["digest"],
    )


def _read(output: str) -> dict[str, Any]:
    try:
        content: dict[str, Any] = strict_json.parse(store.read(output, PLAN, MOST_BYTES), PLAN, MOST_BYTES)
        if content.get("format") != FORMAT:
            raise DataError(
                f"{output}: {PLAN} is of another version of this package and lacks the state of the input: score into another folder"
            )
        if content.get("digest") != _digest({name: value for name, value in content.items() if name != "digest"}):
            raise ValueError("it was changed")
        strict_json.require(content, Content, PLAN)
        _require_within(content)
    except (ValueError, TypeError, AttributeError) as error:
        raise DataError(
            f"{output} has no readable {PLAN}: it is missing or damaged; plan the scoring into an empty folder before shards are scored"
        ) from error
    return content


def _require_within(content: dict[str, Any]) -> None:
    """Checks that no name in a plan leads out of input or output, and no shard out of its file: whoever can write can forge a plan."""
    names = {File(**file).name for file in content["request"]["files"]}
    if any(PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts for name in names):
        raise ValueError("a file is outside of the input")
    if any("\0" in text for text in (content["request"]["input"], content["bundle"], *names)):
        raise ValueError("a name has a NUL")
    shards = [Shard(**shard) for shard in content["shards"]]
    for shard in shards:
        is_span = 0 <= shard.first < MOST_ROWS and 0 < shard.rows < MOST_ROWS
        if not (is_span and shard.file in names and SHARD_NAME.fullmatch(shard.name)):
            raise ValueError("a shard is none of a file of the input")
    if len({shard.name for shard in shards}) < max(len(shards), 1) or len(names) < len(content["request"]["files"]):
        raise ValueError("there is no shard, or a name is there twice")


def _digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _input(location: str) -> tuple[str, str]:
    """The folder of the input, and the name of the file if the input is a single one."""
    if not (addresses.is_s3(location) or Path(location).exists()):
        raise DataError(f"{location} does not exist: check its path")
    folder, _, name = location.rpartition("/")
    if not tables.is_table(name) or Path(location).is_dir():
        return store.canonical(location), ""
    return store.canonical(folder or "."), name


def _input_files(folder: str, name: str) -> list[File]:
    """The files of rows of a folder, or the one of this name."""
    if name:
        inputs = [file for file in [store.find(folder, name)] if file]
    elif addresses.is_s3(folder):
        listed = store.files(folder)
        tables.require_valid(folder, (file.name for file in listed))
        inputs = [file for file in listed if tables.holds_rows(file.name)]
    else:
        paths = [path.relative_to(folder).as_posix() for path in layout.tables_below(Path(folder), folder)]
        inputs = sorted(file for path in paths if (file := store.find(folder, path)))
    if not inputs:
        raise DataError(
            f"{store.join(folder)}{name} has no file of rows, such as .csv or .parquet: give a folder, a prefix or a file"
        )
    return inputs


def _shards(folder: str, inputs: Sequence[File], column: str, scores: Sequence[str], shard_rows: int) -> Iterator[Shard]:
    number = 0
    schema = None
    for file in inputs:
        with store.reading(folder, file):
            opened = open_input(folder, file, column)
            schema = schema or opened.schema
            if not opened.schema.equals(schema):
                raise DataError(f"{file.name} has other columns than {inputs[0].name}: score them into separate folders")
            files.output_schema(schema, file.name, files.text_column(schema, file.name, column), scores)
            total = opened.total()
        for first in range(0, total, shard_rows):
            yield Shard(f"part-{number:06d}.parquet", file.name, first, min(shard_rows, total - first))
            number += 1
    if not number:
        raise DataError(f"{folder} has no rows: it needs at least one")


def open_input(folder: str, file: File, column: str) -> Rows:
    """The rows of an input file, with the columns in the names of its folders; each read raises FileChanged if it is not as planned."""
    opened = open_rows(file.name, lambda: store.open_file(folder, file.name, file), column)
    return with_columns(opened, partitions.columns(file.name))
