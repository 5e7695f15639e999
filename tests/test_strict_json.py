"""Stored JSON: what is damaged or made to do harm is a named error of its reader, and what the project writes is read."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from goemotions import strict_json, usage
from goemotions.data import annotation, dataset
from goemotions.deployment.job import ManifestChange
from goemotions.errors import BadJson, StorageError, WorkflowError
from goemotions.evaluation import drift
from goemotions.metrics import thresholds
from goemotions.models import records
from goemotions.monitoring import retraining
from goemotions.monitoring.rollout import state as rollout_state
from goemotions.monitoring.rollout.state import State
from goemotions.prediction import plans
from goemotions.registry import changes, registered_versions, rollouts
from goemotions.registry.bundle import BundleMetadata
from goemotions.registry.model_registry import Version
from goemotions.report import models as report
from goemotions.storage import manifest, store

HARMFUL = {
    "empty": b"",
    "cut": b'{"files": {',
    "deep": b"[" * 200_000,
    "deep-objects": b'{"files":' * 900 + b"1" + b"}" * 900,
    "infinite": b'{"files": 1e999}',
    "nan": b'{"files": NaN}',
    "huge-number": b'{"files": 9' + b"9" * 4000 + b"}",
    "longer-number": b'{"files": 9' + b"9" * 400_000 + b"}",
    "twice": b'{"files": {}, "files": {"a": 1}}',
    "half-a-pair": b'{"files": "\\ud800"}',
    "utf-16": '{"files": {}}'.encode("utf-16"),
    "not-utf-8": b'{"files": "\xff"}',
    "too-large": b'"' + b"a" * strict_json.MOST_BYTES + b'"',
}
SHAPES = {
    "list": b"[]",
    "objects": b"[{}]",
    "numbers": b"[1, 2]",
    "null": b"null",
    "text": b'"a"',
    "number": b"5",
    "object": b"{}",
    "nested": b'{"cpu": [1]}',
}


@pytest.mark.fault("stored-json-hostile")
@pytest.mark.parametrize("name", HARMFUL)
def test_harmful_json_is_a_named_error(name: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(HARMFUL[name])
    with pytest.raises(BadJson, match=r"^\S*a\.json ") as raised:
        strict_json.read(tmp_path / "a.json")
    assert len(str(raised.value)) < 400


@pytest.mark.parametrize("value", [{"a": [1, -(2**63), 2**64 - 1, 1.5, None, True, "é", "😀"]}, [[[[]]]], "text", 0, int(1e30)])
def test_other_json_is_read_as_it_was_written(value: object, tmp_path: Path) -> None:
    for ascii_only in (True, False):
        (tmp_path / "a.json").write_text(json.dumps(value, ensure_ascii=ascii_only), encoding="utf-8")
        assert strict_json.read(tmp_path / "a.json") == value


def test_a_missing_file_is_a_named_error(tmp_path: Path) -> None:
    with pytest.raises(BadJson, match=r"a\.json cannot be read \(No such file or directory\): check"):
        strict_json.read(tmp_path / "a.json")


READERS: dict[str, Callable[[Path], object]] = {
    "training.json": lambda folder: records.TrainingRecord.read(folder),
    "records.json": lambda folder: records.read_runs(folder / "records.json"),
    "export.json": lambda folder: records.read_exports(folder),
    "thresholds.json": lambda folder: thresholds.read(folder / "thresholds.json"),
    "MANIFEST.json": lambda folder: manifest.verify(folder),
    "registered.json": lambda folder: registered_versions.read(folder),
    "rollout.json": lambda folder: rollout_state.read(f"{folder}/"),
    "drift.json": lambda folder: drift.read_report(f"{folder}/"),
    "_plan.json": lambda folder: plans.read(f"{folder}/"),
    "dataset.json": lambda folder: dataset.load_dataset(folder, ("train",)),
    "export-of-tool.json": lambda folder: list(annotation.read_export(folder / "export-of-tool.json")),
    "decision": lambda folder: retraining.Decision.from_json((folder / "decision").read_text(errors="replace")),
}


def outcome(reader: Callable[[Path], object], folder: Path) -> object:
    try:
        return reader(folder)
    except WorkflowError as error:
        return error


@pytest.mark.fault("stored-json-hostile")
@pytest.mark.parametrize("name", READERS)
def test_every_reader_of_a_stored_file_reads_it_or_raises_a_named_error(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    for content in (HARMFUL | SHAPES).values():
        path.write_bytes(content)
        result = outcome(READERS[name], tmp_path)
        # An object without entries may be right.
        assert not result or (isinstance(result, WorkflowError) and (name in str(result) or str(tmp_path) in str(result)))


@pytest.mark.fault("stored-json-hostile")
def test_costs_without_a_readable_file_are_left_out(tmp_path: Path) -> None:
    for content in (*(HARMFUL | SHAPES).values(), b'{"train": {"wall_seconds": "1"}}', b'{"train": {"device": 1}}'):
        (tmp_path / usage.FILE).write_bytes(content)
        assert usage.read(tmp_path) == {}


@pytest.mark.fault("stored-json-hostile")
def test_a_tag_of_another_form_is_a_named_error() -> None:
    for content in (HARMFUL | SHAPES).values():
        with pytest.raises((ValueError, TypeError)):
            changes.Change.from_json(content.decode(errors="replace"))


GOOD = State("2", "1", "service", [5], {"rows": 1}, analysis={"rows": 1}, history=[{"percent": 5}])


@pytest.mark.fault("stored-json-hostile")
@pytest.mark.parametrize(
    ("field", "value"),
    [("steps", {}), ("steps", ["5"]), ("step", 1.5), ("step", True), ("analysis", [1]), ("analysis", "text"), ("version", 7)],
)
def test_a_value_of_another_type_is_named(field: str, value: object) -> None:
    for analysis in (None, {"rows": 1}):
        strict_json.require(json.loads(json.dumps(asdict(replace(GOOD, analysis=analysis)))), State, "rollout.json")
    with pytest.raises(BadJson, match=rf"^rollout\.json: {field}.* is not "):
        strict_json.require(asdict(GOOD) | {field: value}, State, "rollout.json")


def read_registered(text: str, folder: Path) -> None:
    (folder / "registered.json").write_text(text)
    registered = registered_versions.read(folder)
    for variant, version in registered.items():
        registered_versions.describe(variant, version)
    report.registered_versions(registered)
    report.artifacts(registered, "goemotions")


def read_drift(text: str, folder: Path) -> None:
    (folder / "drift.json").write_text(text)
    assert drift.read_report(f"{folder}/").alarms is not None


def read_rollout(text: str, folder: Path) -> None:
    (folder / "rollout.json").write_text(text)
    if state := rollout_state.read(f"{folder}/"):
        assert state.entry
        assert state.record()


def read_manifest(text: str, folder: Path) -> None:
    (folder / "MANIFEST.json").write_text(text)
    assert BundleMetadata.parse(manifest.read(folder))


VERDICT = {"passes": False, "reasons": ["it is slower"], "notes": ["on a CPU"]}
LATENCY = {"ms": 1.0, "low_ms": 1.0, "high_ms": 2.0}
# What is stored, and how it is read and used.
STORED: dict[str, tuple[Any, Callable[[str, Path], object]]] = {
    "registered.json": (
        {
            "cpu": dict.fromkeys(("profile", "version", "run_id", "source", "alias", "selection"), "x")
            | {"metrics": {"a": 0.5}, "latency": LATENCY, "gate": VERDICT}
        },
        read_registered,
    ),
    "drift.json": (
        dict.fromkeys(("model", "version", "from", "source", "reference"), "x")
        | {"to": "2026-01-02T00:00:00+00:00", "rows": 3, "drifted": True, "tests": [], "quality": [], "missing": []},
        read_drift,
    ),
    "rollout.json": (asdict(replace(GOOD, steps=[5, 20], analysis=None)), read_rollout),
    "MANIFEST.json": (
        dict.fromkeys(("engine", "profile", "run_id", "dataset_digest"), "x")
        | {"variant": "cpu", "evaluated": {"engine": "x", "device": "x", "precision": "x"}, "latency": LATENCY}
        | {"files": {"a": {"size": 1, "sha256": "x"}}},
        read_manifest,
    ),
    "the tag of a decision": (
        {"reasons": [{"kind": "data", "detail": "x", "key": "y"}], "dismissed": ["z"]},
        lambda text, _: str(retraining.Decision.from_json(text)),
    ),
    "the tag of a rollout": (
        asdict(rollouts.Record("1", "2", "x")),
        lambda text, _: rollouts._parse("goemotions", "a tag", text),
    ),
    "the message of a Job": (
        asdict(ManifestChange("mine", {"mine-cpu": Version("7", "x", "y", {"variant": "cpu"})})),
        lambda text, _: ManifestChange.parse(text),
    ),
}


def changed(value: Any) -> Iterator[Any]:
    """A value with each part in turn of another type, empty, left out, or beside one that nobody knows."""
    yield from (None, True, -1, "x", [], {}, [1], {"a": 1})
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        others = {name: one for name, one in value.items() if name != key} if isinstance(value, dict) else {}
        if others:
            yield others
        for other in changed(inner):
            yield others | {key: other} if isinstance(value, dict) else [*value[:key], other, *value[key + 1 :]]
    if isinstance(value, dict):
        yield value | {"another": 1}


@pytest.mark.fault("stored-json-hostile")
@pytest.mark.parametrize("name", STORED)
def test_every_value_of_another_form_is_read_or_a_named_error(name: str, tmp_path: Path) -> None:
    good, read = STORED[name]
    read(json.dumps(good), tmp_path)
    for content in changed(good):
        with contextlib.suppress(WorkflowError):
            read(json.dumps(content), tmp_path)


@pytest.mark.fault("stored-file-unbounded")
def test_a_small_file_of_the_store_is_read_up_to_its_bound(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"12345")
    assert store.read(str(tmp_path), "a", 5) == b"12345"
    with pytest.raises(StorageError, match=r"/a has more than .* MiB, and is not read: check"):
        store.read(str(tmp_path), "a", 4)
