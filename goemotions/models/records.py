"""Records beside a model's weights: ``training.json`` and ``export.json``, written as plain JSON and read with types.

A server reads them too, so this module needs neither torch nor SciPy.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from goemotions import strict_json
from goemotions.errors import ModelError
from goemotions.metrics.calibration import Calibrator, MethodScores
from goemotions.models import profiles
from goemotions.models.engine_names import canonical_name
from goemotions.models.profiles import Teacher

TRAINING_FILE = "training.json"
EXPORT_FILE = "export.json"


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """One run of the training loop.

    Attributes:
        profile: name, encoder and hyperparameters, as ``Profile.describe`` returns them.
        parameters: number of parameters of the network.
        history: one entry per epoch, ``epoch`` (from 1), losses, validation AUCs, and ``seconds`` since the start.
        best_epoch: the epoch whose weights were kept, from 1.
        seconds: duration; for a model with teachers, theirs included.
        processes: how many trained it together.
        teachers: the runs of its teachers.
        location: of a teacher that was trained before, where it is.
    """

    profile: dict[str, Any]
    parameters: int
    precision: str
    seed: int
    steps: int
    best_epoch: int
    history: list[dict[str, float]]
    seconds: float
    hardware: str
    processes: int = 1
    peak_memory_bytes: int = 0
    peak_gpu_memory_bytes: int = 0
    torch: str = ""
    teachers: list[RunRecord] = field(default_factory=list)
    location: str = ""

    @property
    def name(self) -> str:
        """Its name as a teacher, as ``profiles.teachers`` reads it."""
        return str(Teacher(self.profile["name"], self.seed, self.location))

    @classmethod
    def parse(cls, content: dict[str, Any]) -> RunRecord:
        """The record in a JSON object of checked types."""
        return RunRecord(**_known(RunRecord, content))


@dataclass(frozen=True)
class CalibrationRecord(Calibrator):
    """The calibrator that was folded into the last layer, and the comparison of the methods."""

    comparison: list[MethodScores]


@dataclass(frozen=True, kw_only=True)
class TrainingRecord(RunRecord):
    """``training.json``: the run of the model that was kept, and what it was trained on and from.

    ``transfer_texts`` is the number of texts that its teachers alone labelled.
    """

    weights: str
    dataset_digest: str
    max_length: int
    calibration: CalibrationRecord
    transfer_texts: int = 0

    @classmethod
    def read(cls, folder: Path) -> TrainingRecord:
        """Reads the record of a Model folder or a bundle; hyperparameters under former names get today's.

        Raises:
            ModelError: the file is missing, damaged, or lacks a field.
        """
        path = folder / TRAINING_FILE
        content = read_json(path)
        with _damage_named(path):
            strict_json.require(content, cls, str(path))
            return cls(**{**_known(cls, content), "calibration": CalibrationRecord(**content["calibration"])})


def read_runs(path: Path) -> list[RunRecord]:
    """Reads the records of teachers.

    Raises:
        ModelError: the file is missing, damaged, or lacks a field.
    """
    with _damage_named(path):
        content = strict_json.read(path)
        strict_json.require(content, list[RunRecord], str(path))
        return [RunRecord.parse(entry) for entry in content]


def all_runs(teachers: Iterable[RunRecord]) -> dict[str, RunRecord]:
    """The runs of teachers and of their own teachers, each once, by name, with the seconds of the run alone."""
    runs: dict[str, RunRecord] = {}
    for teacher in teachers:
        before = all_runs(teacher.teachers)
        alone = teacher.seconds - sum(run.seconds for run in before.values())
        runs |= {**before, teacher.name: dataclasses.replace(teacher, seconds=alone)}
    return runs


@dataclass(frozen=True)
class ExportRecord:
    """One engine in ``export.json``: its difference in probability to torch, its size, and its latency for one text of 20 tokens.

    The latency is None if it was not measured: that of torch counts on a GPU only, where it serves.
    """

    difference_max: float
    difference_mean: float
    bytes: int
    latency_ms_p50: float | None
    latency_ms_p95: float | None


def read_exports(folder: Path) -> dict[str, ExportRecord]:
    """Reads the records of an Onnx folder or a bundle, by the engine's name of today.

    Raises:
        ModelError: the file is missing, damaged, or lacks a field.
    """
    path = folder / EXPORT_FILE
    content = read_json(path)
    with _damage_named(path):
        strict_json.require(content, dict[str, ExportRecord], str(path))
        return {canonical_name(engine): ExportRecord(**entry) for engine, entry in content.items()}


def read_json(path: Path, *required: str) -> dict[str, Any]:
    """Reads a JSON object of a model's folder.

    Raises:
        ModelError: the file is missing or damaged, or lacks a required key.
    """
    with _damage_named(path):
        content = strict_json.read(path)
        if not isinstance(content, dict) or not content.keys() >= set(required):
            raise ValueError(f"no object with {required}")
        return content


@contextmanager
def _damage_named(path: Path) -> Generator[None]:
    try:
        yield
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{path} is missing or damaged: give a folder that `goemotions train` or `register` made") from error


def _known(record: type[RunRecord], content: dict[str, Any]) -> dict[str, Any]:
    """The entries of a JSON object that a record has fields for."""
    values = {item.name: content[item.name] for item in dataclasses.fields(record) if item.name in content}
    strict_json.require(content["profile"].get("name"), str, "the name of the profile")
    teachers = [RunRecord.parse(teacher) for teacher in content.get("teachers", [])]
    return values | {"profile": profiles.current_names(content["profile"]), "teachers": teachers}
