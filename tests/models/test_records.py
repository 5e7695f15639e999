"""Records: the current and the former format are read, and damaged files are rejected."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from goemotions.errors import ModelError
from goemotions.models.records import TrainingRecord, read_exports, read_runs


def edited(source: Path, target: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    """A folder with a changed copy of a JSON file."""
    content = json.loads(source.read_text())
    change(content)
    (target / source.name).write_text(json.dumps(content))
    return target


def test_a_training_record_has_the_fields_of_its_file(model_folder: Path) -> None:
    content, record = json.loads((model_folder / "training.json").read_text()), TrainingRecord.read(model_folder)
    for name in ("parameters", "seed", "steps", "history", "best_epoch", "dataset_digest", "max_length", "weights", "profile"):
        assert getattr(record, name) == content[name]
    assert list(record.calibration.slope) == content["calibration"]["slope"]
    assert [teacher.seed for teacher in record.teachers] == [teacher["seed"] for teacher in content["teachers"]]


def test_an_old_record_is_read_with_the_current_names(model_folder: Path, tmp_path: Path) -> None:
    def older(content: dict[str, Any]) -> None:
        profile = content["profile"]
        profile["head_factor"] = profile.pop("head_lr_multiplier")
        profile["average"] = 0.0
        content["of_another_time"] = 1

    record = TrainingRecord.read(edited(model_folder / "training.json", tmp_path, older))
    assert record.profile["head_lr_multiplier"] == 10
    assert "head_factor" not in record.profile


@pytest.mark.parametrize("key", ["profile", "history", "calibration", "weights"])
def test_a_training_record_that_lacks_a_field_is_a_named_error(key: str, model_folder: Path, tmp_path: Path) -> None:
    folder = edited(model_folder / "training.json", tmp_path, lambda content: content.pop(key))
    with pytest.raises(ModelError, match=r"training\.json is missing or damaged"):
        TrainingRecord.read(folder)


@pytest.mark.parametrize("name", [None, 5])
def test_a_profile_without_a_name_is_a_named_error(name: object, model_folder: Path, tmp_path: Path) -> None:
    folder = edited(model_folder / "training.json", tmp_path, lambda content: content["profile"].update(name=name))
    with pytest.raises(ModelError, match=r"training\.json is missing or damaged"):
        TrainingRecord.read(folder)
    (folder / "records.json").write_text(json.dumps([json.loads((folder / "training.json").read_text())]))
    with pytest.raises(ModelError, match=r"records\.json is missing or damaged"):
        read_runs(folder / "records.json")


def test_export_records_are_read_by_engine(onnx_folder: Path, tmp_path: Path) -> None:
    content, records = json.loads((onnx_folder / "export.json").read_text()), read_exports(onnx_folder)
    assert {name: record.bytes for name, record in records.items()} == {name: entry["bytes"] for name, entry in content.items()}
    folder = edited(onnx_folder / "export.json", tmp_path, lambda content: content["torch"].pop("bytes"))
    with pytest.raises(ModelError, match=r"export\.json is missing or damaged"):
        read_exports(folder)
