"""Training in several processes has the same weights, files, resumption and errors as in one."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from safetensors.numpy import load_file

from goemotions.errors import Interrupted
from goemotions.models.records import TrainingRecord
from goemotions.training import launcher
from goemotions.training.loop import TrainingLoop
from goemotions.training.options import TrainOptions
from tests.support import repositories

# 240 rows in batches of 7, which cannot be split evenly between two processes; with one teacher.
SETTINGS = {"dropout": "0", "teachers": "1", "batch_size": "7"}
STEPS_PER_EPOCH = 35


@pytest.fixture(scope="module")
def still_weights(weights: Callable[[str], str], tmp_path_factory: pytest.TempPathFactory) -> str:
    """Weights without dropout, whose masks differ from process to process."""
    folder = tmp_path_factory.mktemp("weights") / "weights"
    shutil.copytree(weights("minilm"), folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


@pytest.fixture(scope="module")
def command(dataset: Path, still_weights: str) -> list[str]:
    """`goemotions train` by two processes, without the output option."""
    settings = [word for name, value in SETTINGS.items() for word in ("--set", f"{name}={value}")]
    options = ["--dataset", str(dataset), "--weights", still_weights, "--profile", "minilm", "--precision", "fp32", *settings]
    return [sys.executable, "-m", "goemotions.cli", "train", "--processes", "2", *options]


def by_two(command: list[str], output: Path, *options: str) -> TrainingRecord:
    finished = subprocess.run([*command, "--output", str(output), *options], capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    return TrainingRecord.read(output)


def launched(dataset: Path, weights: str, output: Path, processes: int, checkpoints: str = "") -> TrainingRecord:
    """Launched by this process, which saves the imports of another."""
    options = TrainOptions(
        weights=weights, epochs=2, settings=SETTINGS, precision="fp32", checkpoint_location=checkpoints, processes=processes
    )
    return launcher.run(dataset, output, "minilm", options)


def metrics(record: TrainingRecord) -> list[list[float]]:
    return [[value for name, value in epoch.items() if name != "seconds"] for epoch in record.history]


@pytest.fixture(scope="module")
def alone(dataset: Path, still_weights: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("alone") / "model"
    launched(dataset, still_weights, folder, 1)
    return folder


@pytest.fixture(scope="module")
def together(dataset: Path, still_weights: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("together") / "model"
    launched(dataset, still_weights, folder, 2, str(folder.parent / "checkpoints"))
    return folder


def test_two_processes_train_the_same_weights_as_one(alone: Path, together: Path) -> None:
    one, two = (TrainingRecord.read(folder) for folder in (alone, together))
    assert (one.processes, two.processes) == (1, 2)
    assert len(one.teachers) == len(two.teachers) == 1
    assert (one.steps, two.steps) == (2 * STEPS_PER_EPOCH, 2 * STEPS_PER_EPOCH)
    np.testing.assert_allclose(metrics(one), metrics(two), atol=2e-3)
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (alone, together))
    assert ours.keys() == theirs.keys()
    for name in ours:
        # Adam divides by the gradient's own size: float error in a gradient near zero moves a weight by up to a learning rate a step.
        np.testing.assert_allclose(ours[name], theirs[name], atol=2e-3, err_msg=name)


def test_two_processes_write_the_same_files_as_one(alone: Path, together: Path) -> None:
    assert {path.name for path in alone.iterdir()} == {path.name for path in together.iterdir()}


@pytest.mark.slow
@pytest.mark.fault("training-killed")
def test_a_checkpoint_of_two_processes_is_resumed_by_one_and_the_other_way_round(
    command: list[str], dataset: Path, still_weights: str, together: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = metrics(TrainingRecord.read(together))
    process = start(command, tmp_path, "--epochs", "2", first="step-*/MANIFEST.json")
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 1
    resumed = launched(dataset, still_weights, tmp_path / "one", 1, str(tmp_path / "checkpoints"))
    np.testing.assert_allclose(metrics(resumed), whole, atol=2e-3)

    advance = TrainingLoop.advance

    def advance_and_stop(loop: TrainingLoop, *arguments: Any) -> None:
        advance(loop, *arguments)
        if loop.state.step == STEPS_PER_EPOCH + 10:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(TrainingLoop, "advance", advance_and_stop)
    with pytest.raises(Interrupted):
        launched(dataset, still_weights, tmp_path / "none", 1, str(tmp_path / "c"))
    back = by_two(command, tmp_path / "two", "--epochs", "2", "--checkpoints", str(tmp_path / "c"))
    np.testing.assert_allclose(metrics(back), whole, atol=2e-3)
    assert back.processes == 2


def start(command: list[str], tmp_path: Path, *options: str, first: str) -> subprocess.Popen[str]:
    """A training by two processes, past its first checkpoint: the first file of a name."""
    checkpoints = tmp_path / "checkpoints"
    process = subprocess.Popen(
        [
            *command,
            "--output",
            str(tmp_path / "model"),
            "--checkpoints",
            str(checkpoints),
            "--checkpoint-minutes",
            "0",
            *options,
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 180
    while not list(checkpoints.glob(first)):
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.05)
    return process


def members(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """The training processes, children of the launcher."""
    children = psutil.Process(process.pid).children(recursive=True)
    return [child for child in children if "spawn_main" in " ".join(child.cmdline())]


@pytest.mark.slow
@pytest.mark.fault("training-killed")
def test_sigterm_leaves_a_checkpoint_of_the_step_at_which_all_processes_stopped(command: list[str], tmp_path: Path) -> None:
    process = start(command, tmp_path, "--set", "teacher_epochs=50", first="teacher-1/step-*/MANIFEST.json")
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "goemotions: training was stopped: start it again to resume from its last checkpoint" in errors
    newest = max((tmp_path / "checkpoints" / "teacher-1").iterdir(), key=lambda path: path.name)
    step = json.loads((newest / "state.json").read_text())["step"]
    assert newest.name == f"step-{step:09d}"
    assert step >= 1
    assert not (tmp_path / "model").exists()


@pytest.mark.slow
@pytest.mark.fault("training-killed")
def test_if_one_process_is_killed_all_end_within_seconds(command: list[str], tmp_path: Path) -> None:
    process = start(command, tmp_path, "--set", "teacher_epochs=50", first="teacher-1/step-*/MANIFEST.json")
    trainers = members(process)
    assert len(trainers) >= 2
    os.kill(trainers[-1].pid, signal.SIGKILL)
    began = time.monotonic()
    _, errors = process.communicate(timeout=60)
    assert time.monotonic() - began < 30
    assert process.returncode == 1
    assert re.search(r"goemotions: process \d of 2 failed, all were ended: Signal 9", errors)
    assert [trainer for trainer in trainers if trainer.is_running() and trainer.status() != psutil.STATUS_ZOMBIE] == []


@pytest.mark.slow
def test_an_error_in_every_process_is_reported_once_with_its_own_message(
    command: list[str], still_weights: str, tmp_path: Path
) -> None:
    weights = repositories.diverging(Path(still_weights), tmp_path / "weights")
    finished = subprocess.run(
        [*command, "--output", str(tmp_path / "model"), "--weights", str(weights)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 1
    assert re.search(
        r"^goemotions: process \d of 2 failed, all were ended: .*the loss of minilm is not finite", finished.stderr, re.M
    )
    assert not (tmp_path / "model").exists()
