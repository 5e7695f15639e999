"""Checkpoints: they are restored exactly, and only complete ones of the same run are used."""

import json
import logging
import resource
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from goemotions.errors import StorageError
from goemotions.models import profiles
from goemotions.storage import manifest, store
from goemotions.training import checkpoints, trainer
from goemotions.training.checkpoints import Checkpoint, Writer
from goemotions.training.options import TrainOptions
from tests.support import damage, http_server
from tests.support.object_store import KEYS

RUN = {"digest": "d", "seed": 0, "name": "minilm"}
VALUES: Any = {"fingerprint": RUN, "step": 1, "epoch_loss": 0.5, "seconds": 1.0, "history": []}


def write(location: str, step: int, fingerprint: dict[str, object] = RUN) -> None:
    tensors = {"model.weight": torch.full((4, 3), float(step)), "rng.cpu": torch.arange(16, dtype=torch.uint8)}
    checkpoints.save(location, step, Checkpoint(tensors, VALUES | {"fingerprint": fingerprint, "step": step}))


def write_beside(location: Path, *steps: int) -> None:
    """Writes checkpoints that are there together, as after a process that was killed before it deleted the older one."""
    for step in steps:
        write(str(location / "apart"), step)
        (location / "apart" / f"step-{step:09d}").rename(location / f"step-{step:09d}")
    (location / "apart").rmdir()


def step_of(checkpoint: Checkpoint | None) -> int | None:
    return checkpoint.values["step"] if checkpoint else None


@pytest.fixture(params=["disk", "s3"])
def location(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return request.getfixturevalue("bucket") if request.param == "s3" else str(tmp_path / "checkpoints")


def test_a_saved_checkpoint_is_restored(location: str) -> None:
    tensors = {
        "float": torch.randn(3, 5),
        "half": torch.randn(2, 2).bfloat16(),
        "scalar": torch.tensor(7.0),
        "bytes": torch.get_rng_state(),
        "turned": torch.randn(4, 6).T,
    }
    values = VALUES | {"step": 3, "epoch_loss": 0.1 + 0.2, "history": [{"validation/auc_micro": 1 / 3}]}
    checkpoints.save(location, 3, Checkpoint(tensors, values))
    checkpoint = checkpoints.newest(location, RUN)
    assert checkpoint is not None
    assert checkpoint.values == values
    assert checkpoint.tensors.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert checkpoint.tensors[name].dtype == tensor.dtype
        assert torch.equal(checkpoint.tensors[name], tensor)


def test_no_checkpoint_is_a_pickle(tmp_path: Path) -> None:
    write(str(tmp_path), 1)
    (folder,) = tmp_path.iterdir()
    assert sorted(path.name for path in folder.iterdir()) == [manifest.NAME, "state.json", "state.safetensors"]


def test_only_the_newest_checkpoint_is_kept(location: str) -> None:
    for step in (9, 10, 99, 1000):
        write(location, step)
    assert store.children(location) == ["step-000001000"]
    assert step_of(checkpoints.newest(location, RUN)) == 1000


def test_an_empty_location_has_no_checkpoint_and_logs_no_warning(location: str, caplog: pytest.LogCaptureFixture) -> None:
    assert checkpoints.newest(location, RUN) is None
    assert not caplog.records


def remove(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).unlink()


DAMAGES: dict[str, Callable[[Path], object]] = {
    "no manifest": lambda folder: remove(folder, manifest.NAME),
    "one file of three": lambda folder: remove(folder, manifest.NAME, "state.safetensors"),
    "half a manifest": lambda folder: damage.cut(folder / manifest.NAME, 40),
    "cut tensors": lambda folder: damage.cut(folder / "state.safetensors"),
    "a changed byte": lambda folder: damage.flip(folder / "state.safetensors"),
    "a changed number": lambda folder: damage.flip(folder / "state.json"),
    "no file": lambda folder: remove(folder, manifest.NAME, "state.safetensors", "state.json"),
}


@pytest.mark.parametrize("change", DAMAGES.values(), ids=DAMAGES)
@pytest.mark.fault("checkpoint-partial")
def test_a_damaged_checkpoint_is_skipped_for_the_one_before(
    change: Callable[[Path], object], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_beside(tmp_path, 10, 20)
    change(tmp_path / "step-000000020")
    assert step_of(checkpoints.newest(str(tmp_path), RUN)) == 10
    assert "checkpoint step-000000020 is not used" in caplog.text


@pytest.mark.fault("checkpoint-partial")
def test_a_file_that_is_larger_than_the_checkpoint_says_is_not_copied(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It could have terabytes; nor is one that it does not name."""
    write_beside(tmp_path, 10, 20)
    for step, name in ((20, "state.safetensors"), (10, "more.bin")):
        with (tmp_path / f"step-{step:09d}" / name).open("ab") as file:
            file.truncate(2**26)
    _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**25, most))
    try:
        assert step_of(checkpoints.newest(str(tmp_path), RUN)) == 10
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
    assert "checkpoint step-000000020 is not used" in caplog.text


@pytest.mark.parametrize("change", DAMAGES.values(), ids=DAMAGES)
@pytest.mark.fault("checkpoints-corrupt")
def test_if_every_checkpoint_is_damaged_none_is_used_and_a_warning_is_logged(
    change: Callable[[Path], object], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_beside(tmp_path, 10, 20)
    for step in (10, 20):
        change(tmp_path / f"step-{step:09d}")
    assert checkpoints.newest(str(tmp_path), RUN) is None
    assert [record.levelno for record in caplog.records] == [logging.WARNING] * 3
    assert caplog.messages[-1] == f"no checkpoint below {tmp_path} can be used: training starts over"


@pytest.mark.parametrize("other", [{**RUN, "digest": "e"}, {**RUN, "seed": 1}, {**RUN, "name": "distilbert"}, {}])
def test_a_checkpoint_of_another_run_is_not_used(
    other: dict[str, object], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write(str(tmp_path), 10, other)
    assert checkpoints.newest(str(tmp_path), RUN) is None
    assert "checkpoint step-000000010 is not used: it belongs to another run" in caplog.text


def test_an_older_checkpoint_of_the_same_run_is_used_despite_a_newer_one_of_another_run(tmp_path: Path) -> None:
    write_beside(tmp_path, 10, 20)
    state = tmp_path / "step-000000020" / "state.json"
    state.write_text(json.dumps({**json.loads(state.read_text()), "fingerprint": {**RUN, "seed": 1}}))
    manifest.write(state.parent, step=20)
    assert step_of(checkpoints.newest(str(tmp_path), RUN)) == 10


def test_unused_later_checkpoints_do_not_displace_a_new_one(location: str) -> None:
    for step in (80, 90):
        write(location, step, {**RUN, "seed": 1})
    for step in (10, 20):
        write(location, step)
        assert step_of(checkpoints.newest(location, RUN)) == step
    assert store.children(location) == ["step-000000020"]


def test_other_files_at_the_location_are_not_removed(tmp_path: Path) -> None:
    for name in ("a", "step-1", "zebra"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "letter.txt").write_text("keep me")
    for step in (1, 2, 3):
        write(str(tmp_path), step)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "step-000000003", "step-1", "zebra"]
    assert step_of(checkpoints.newest(str(tmp_path), RUN)) == 3


def test_a_damaged_checkpoint_can_be_overwritten(tmp_path: Path) -> None:
    write(str(tmp_path), 10)
    (tmp_path / "step-000000010" / manifest.NAME).unlink()
    write(str(tmp_path), 10)
    assert step_of(checkpoints.newest(str(tmp_path), RUN)) == 10


class ListsButRefuses(http_server.Handler):
    """A store that lists one checkpoint and responds with 403 to every read."""

    def do_GET(self) -> None:
        if "list-type" in self.path:
            entry = b'<Key>run/step-000000010/MANIFEST.json</Key><Size>1</Size><ETag>"1"</ETag>'
            entry += b"<LastModified>2026-01-01T00:00:00Z</LastModified>"
            self.send(200, b"<ListBucketResult><Contents>" + entry + b"</Contents></ListBucketResult>")
        else:
            self.send(403, b"<Error><Code>AccessDenied</Code></Error>")


@pytest.mark.fault("store-denied")
def test_a_denied_request_to_the_store_ends_the_run_instead_of_starting_over(configure_s3: Callable[..., None]) -> None:
    with http_server.running(http_server.Server(ListsButRefuses)) as server:
        configure_s3(AWS_ENDPOINT_URL=server.url, **KEYS)
        with pytest.raises(StorageError, match="access denied"):
            checkpoints.newest("s3://bucket/run/", RUN)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time of writers, in seconds."""
    now = [0.0]
    monkeypatch.setattr("goemotions.training.checkpoints.time.monotonic", lambda: now[0])
    return now


@pytest.mark.fault("stored-json-hostile")
@pytest.mark.parametrize(
    "content",
    [
        *("[" * 100_000, '{"step": 1}', '{"fingerprint": 1e999}', "[]", ""),
        json.dumps(VALUES | {"step": 2, "usage": {"wall_seconds": "1"}}),
        json.dumps(VALUES | {"step": 2, "machines": "one"}),
        json.dumps(VALUES | {"step": 2, "peak_memory": "1"}),
    ],
    ids=["deep", "a value", "infinite", "list", "empty", "costs", "machines", "memory"],
)
def test_a_checkpoint_whose_values_are_damaged_is_not_used(
    content: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write(str(tmp_path), 1)
    write(str(tmp_path / "other"), 2)
    folder = shutil.copytree(next((tmp_path / "other").iterdir()), tmp_path / "step-000000002")
    (folder / "state.json").write_text(content + " ")
    manifest.write(folder, step=2)
    checkpoint = checkpoints.newest(str(tmp_path), RUN)
    assert checkpoint is not None
    assert checkpoint.values["step"] == 1
    assert "step-000000002 is not used: " in caplog.text


def a_checkpoint() -> Checkpoint:
    return Checkpoint({"t": torch.zeros(1)}, VALUES)


def test_checkpoints_are_due_by_time_and_not_without_a_location(tmp_path: Path, clock: list[float]) -> None:
    with Writer(str(tmp_path), 10) as writer, Writer("", 0) as nowhere:
        assert not writer.is_due()
        clock[0] = 600
        assert writer.is_due()
        writer.write(1, a_checkpoint())
        writer.wait()
        assert not writer.is_due()
        writer.hasten()
        assert writer.is_due()
        assert not nowhere.is_due()


def test_an_error_of_the_writer_is_raised_when_it_is_asked_again(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with Writer(str(tmp_path / "file"), 0) as writer:
        writer.write(1, a_checkpoint())
        with pytest.raises(OSError, match="file"):
            writer.wait()
        writer.wait()


def test_leaving_a_writer_waits_for_its_checkpoint(tmp_path: Path) -> None:
    with Writer(str(tmp_path), 0) as writer:
        writer.write(1, a_checkpoint())
    assert step_of(checkpoints.newest(str(tmp_path), RUN)) == 1


@pytest.mark.parametrize(
    ("name", "before"),
    [
        ("minilm", {"layers": None, "parameters": 22576156, "epochs": 3, "teachers": 3, "distillation_weight": 0.7}),
        ("minilm-3l", {"layers": 3, "parameters": 17252764, "epochs": 2, "teachers": 0, "distillation_weight": 0.5}),
    ],
)
def test_a_checkpoint_of_a_version_before_named_teachers_is_resumed(name: str, before: dict[str, Any], tmp_path: Path) -> None:
    stored = {
        "digest": "d",
        "weights": "",
        "seed": 0,
        "precision": "fp32",
        "format": 3,
        "name": name,
        "base": "sentence-transformers/all-MiniLM-L6-v2",
        "revision": "c9745ed1d9f207416be6d2e6f8de32d1f16199bf",
        "model_type": "bert",
        "pooling": "mean",
        "learning_rate": 2e-4,
        "head_lr_multiplier": 10.0,
        "batch_size": 32,
        "dropout": 0.1,
        "max_length": 128,
        "weight_decay": 0.01,
        "warmup_ratio": 0.1,
        "init_bias_from_frequency": True,
        "layer_decay": 1.0,
        "loss": "bce",
        "label_smoothing": 0.0,
        "teacher_epochs": 1,
        **before,
    }
    location = str(tmp_path / "checkpoints")
    checkpoints.save(location, 1, Checkpoint({"weight": torch.zeros(1)}, VALUES | {"fingerprint": stored}))
    options = TrainOptions(precision="fp32")
    assert checkpoints.newest(location, trainer.fingerprint_of("d", options, profiles.get(name), 0))
    for changed in (
        trainer.fingerprint_of("d", options, profiles.get(name), 0, taught_by="scores"),
        trainer.fingerprint_of("d", options, profiles.get(name, {"layers": 2}), 0),
        trainer.fingerprint_of("d", options, profiles.get(name), 1),
    ):
        assert checkpoints.newest(location, changed) is None
