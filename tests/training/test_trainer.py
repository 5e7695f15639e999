"""Training: it learns, is reproducible, keeps the best epoch, and resumes after any interruption."""

import contextlib
import dataclasses
import json
import logging
import math
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from goemotions.data.dataset import ingest, load_dataset, taxonomy_of
from goemotions.data.taxonomy import Taxonomy
from goemotions.errors import DataError, Interrupted, ModelError, StorageError, TrainingError
from goemotions.metrics import calibration, classification
from goemotions.models import devices, engines, profiles
from goemotions.models.architectures import MeanPooledClassifier
from goemotions.models.classifier import build_classifier, load_classifier
from goemotions.models.records import TrainingRecord
from goemotions.models.tokenizer import TextEncoder
from goemotions.storage import manifest, store
from goemotions.training import batches, checkpoints, optimizers, trainer
from goemotions.training.loop import CheckpointPlan, OnEpoch, TrainingLoop, ignore_epoch
from goemotions.training.options import TrainOptions
from tests.support import http_server, repositories
from tests.support.object_store import KEYS

STEPS_PER_EPOCH = 8
SHORT, LONG = 2, 4


@pytest.fixture(scope="module", autouse=True)
def alone() -> Iterator[None]:
    """Options without teachers, whose steps would be counted, too; the tests of teachers add them."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setitem(profiles.PROFILES, "minilm", profiles.get("minilm", {"teachers": 0}))
        yield


def train(dataset: Path, output: Path, on_epoch: OnEpoch = ignore_epoch, **options: Any) -> TrainingRecord:
    return trainer.train(dataset, output, "minilm", TrainOptions(**options), on_epoch)


@pytest.fixture(scope="module")
def tiny(weights: Callable[[str], str]) -> str:
    return weights("minilm")


@dataclasses.dataclass(frozen=True)
class Result:
    """The results that must not depend on interruptions."""

    history: list[dict[str, float]]
    best_epoch: int
    weights: bytes


def result_of(folder: Path) -> Result:
    record = TrainingRecord.read(folder)
    history = [{name: value for name, value in epoch.items() if name != "seconds"} for epoch in record.history]
    return Result(history, record.best_epoch, (folder / "model.safetensors").read_bytes())


@pytest.fixture(scope="module")
def undisturbed(dataset: Path, tiny: str, tmp_path_factory: pytest.TempPathFactory) -> dict[int, Result]:
    """The results of a short and of a long run without interruption."""
    root = tmp_path_factory.mktemp("undisturbed")
    for epochs in (SHORT, LONG):
        train(dataset, root / str(epochs), weights=tiny, epochs=epochs)
    return {epochs: result_of(root / str(epochs)) for epochs in (SHORT, LONG)}


def test_training_learns_labels_that_one_word_determines(dataset: Path, tiny: str, tmp_path: Path) -> None:
    seen: list[tuple[int, float]] = []
    record = train(
        dataset,
        tmp_path / "model",
        weights=tiny,
        settings={"learning_rate": 3e-3},
        epochs=8,
        on_epoch=lambda epoch, values: seen.append((epoch, values["validation/auc_micro"])),
    )
    history = record.history
    assert seen == [(epoch["epoch"], epoch["validation/auc_micro"]) for epoch in history]
    assert [epoch for epoch, _ in seen] == list(range(1, 9))
    assert history[0]["validation/auc_micro"] < history[2]["validation/auc_micro"] < 0.95 < history[-1]["validation/auc_micro"]
    assert history[-1]["train/loss"] < history[0]["train/loss"] / 2
    assert history[-1]["validation/loss"] < history[0]["validation/loss"] / 2


def test_results_are_determined_by_the_seed(dataset: Path, tiny: str, tmp_path: Path, undisturbed: dict[int, Result]) -> None:
    for seed in (0, 1):
        train(dataset, tmp_path / str(seed), weights=tiny, epochs=SHORT, seed=seed)
    assert result_of(tmp_path / "0") == undisturbed[SHORT]
    assert result_of(tmp_path / "1").history != undisturbed[SHORT].history


def test_the_written_model_has_the_auc_of_its_best_epoch(dataset: Path, model_folder: Path) -> None:
    record = TrainingRecord.read(model_folder)
    labels, scores = scored_validation(dataset, model_folder)
    # Calibration per label keeps the order of the scores of a label.
    auc = classification.ranking(labels, scores)["auc_macro"]
    assert auc == pytest.approx(record.history[record.best_epoch - 1]["validation/auc_macro"], abs=1e-6)


def test_the_written_model_is_calibrated(dataset: Path, model_folder: Path) -> None:
    record = TrainingRecord.read(model_folder)
    labels, scores = scored_validation(dataset, model_folder)
    calibrated = record.calibration
    calibrator = calibration.Calibrator(calibrated.method, calibrated.slope, calibrated.intercept)
    before = calibrator.undo(scores)
    best = record.history[record.best_epoch - 1]
    assert binary_loss(labels, before) == pytest.approx(best["validation/loss"], abs=1e-5)
    assert calibrated.method == min(calibrated.comparison, key=lambda row: row["log_loss"])["method"]
    assert binary_loss(labels, scores) <= binary_loss(labels, before)


def binary_loss(labels: np.ndarray, probabilities: np.ndarray) -> float:
    tensors = torch.from_numpy(probabilities.astype(np.float32)), torch.from_numpy(labels.astype(np.float32))
    return float(torch.nn.functional.binary_cross_entropy(*tensors))


def scored_validation(dataset: Path, folder: Path) -> tuple[np.ndarray, np.ndarray]:
    splits, info = load_dataset(dataset, ("validation",))
    labels = taxonomy_of(info).multi_hot(splits["validation"]["labels"][:])
    engine = engines.load("torch", folder, TextEncoder.load(folder))
    return labels, engines.score(engine, splits["validation"]["text"][:])[0]


@pytest.mark.parametrize(
    "changes",
    [
        {"loss": "focal"},
        {"loss": "asymmetric"},
        {"loss": "class-balanced"},
        {"label_smoothing": 0.2},
        {"layer_decay": 0.7},
        {"teachers": 1, "teacher_epochs": 2},
        {"init_bias_from_frequency": False, "head_lr_multiplier": 1.0},
    ],
    ids=lambda changes: "-".join(changes) + str(changes.get("loss", "")),
)
def test_every_training_option_learns_and_resumes_where_it_stopped(
    dataset: Path, tiny: str, tmp_path: Path, changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = {"learning_rate": 3e-3, "epochs": 2, **changes}
    whole = train(dataset, tmp_path / "whole", weights=tiny, settings=changes)
    assert whole.history[-1]["train/loss"] < whole.history[0]["train/loss"]
    location = str(tmp_path / "checkpoints")
    with monkeypatch.context() as patched:
        stop_at(2 * STEPS_PER_EPOCH - 3, patched)
        with pytest.raises(Interrupted):
            train(dataset, tmp_path / "part", weights=tiny, settings=changes, checkpoint_location=location)
    train(dataset, tmp_path / "part", weights=tiny, settings=changes, checkpoint_location=location)
    assert result_of(tmp_path / "part") == result_of(tmp_path / "whole")


def test_a_teacher_is_a_separate_network_and_its_steps_are_counted(dataset: Path, tiny: str, tmp_path: Path) -> None:
    record = train(dataset, tmp_path, weights=tiny, settings={"teachers": 2, "epochs": 1})
    assert [teacher.seed for teacher in record.teachers] == [1, 2]
    assert record.seconds > sum(teacher.seconds for teacher in record.teachers)


def test_a_finished_teacher_is_not_trained_again(
    dataset: Path, tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    location, changes = str(tmp_path / "checkpoints"), {"teachers": 1, "epochs": 2}
    with monkeypatch.context() as patched:
        stop_at(STEPS_PER_EPOCH + 3, patched)
        with pytest.raises(Interrupted, match=rf"at step {STEPS_PER_EPOCH + 3} of {2 * STEPS_PER_EPOCH}"):
            train(dataset, tmp_path / "part", weights=tiny, settings=changes, checkpoint_location=location)
    with caplog.at_level("INFO"):
        train(dataset, tmp_path / "part", weights=tiny, settings=changes, checkpoint_location=location)
    assert f"resuming minilm at step {STEPS_PER_EPOCH} of {STEPS_PER_EPOCH}" in caplog.text
    assert f"resuming minilm at step {STEPS_PER_EPOCH + 3} of {2 * STEPS_PER_EPOCH}" in caplog.text


def test_a_signal_in_the_last_step_of_a_teacher_stops_the_training_of_the_student(
    dataset: Path, tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    location, changes = str(tmp_path / "checkpoints"), {"teachers": 1, "teacher_epochs": 1, "epochs": 2}
    stop_at(STEPS_PER_EPOCH, monkeypatch)
    with pytest.raises(Interrupted, match=rf"at step 1 of {2 * STEPS_PER_EPOCH}"):
        train(dataset, tmp_path / "part", weights=tiny, settings=changes, checkpoint_location=location)
    assert "teacher-1" in store.children(location)


@pytest.fixture(scope="module")
def material(dataset: Path, tiny: str) -> Iterator[trainer.Material]:
    with trainer.load(dataset, profiles.get("minilm"), tiny) as loaded:
        yield loaded


def a_loop(material: trainer.Material, epochs: int, location: str = "", patience: int = 0) -> TrainingLoop:
    profile = profiles.get("minilm", {"epochs": epochs, "learning_rate": 3e-3, "patience": patience})
    network = build_classifier(profile, material.taxonomy, weights=material.files)
    return TrainingLoop(profile, network, material.encoder, plan=CheckpointPlan(location))


@pytest.mark.fault("checkpoints-corrupt")
def test_a_checkpoint_of_another_network_is_a_named_error(material: trainer.Material, tmp_path: Path) -> None:
    """Whoever can write to the store can write one whose manifest fits its files."""
    loop = a_loop(material, 2)
    tensors, bias = loop._tensors(), torch.zeros(3)
    values = {"fingerprint": {}, "step": 1, "epoch_loss": 0.0, "seconds": 1.0, "history": []}
    epoch = {"validation/auc_micro": 0.5, "validation/auc_macro": 0.5}
    weight = "model.classifier.weight"
    damaged: dict[str, tuple[dict[str, torch.Tensor], dict[str, object]]] = {
        "step": (tensors, {"step": 10**6}),
        "history": (tensors, {"history": [{}]}),
        "best": (tensors, {"history": [epoch]}),
        "generator": ({name: tensor for name, tensor in tensors.items() if name != "rng.cpu"}, {}),
        "weight": ({name: tensor for name, tensor in tensors.items() if name != weight}, {}),
        "shape": (tensors | {weight: bias}, {}),
        "optimizer": (tensors | {"optimizer.0.0.exp_avg": bias}, {}),
        "name": (tensors | {"optimizer.another": bias}, {}),
    }
    for name, (stored, changed) in damaged.items():
        location = str(tmp_path / name)
        checkpoints.save(location, 1, checkpoints.Checkpoint(stored, values | changed))
        with pytest.raises(
            TrainingError, match=f"the checkpoint in {location} does not fit minilm .*: remove it, and training"
        ):
            a_loop(material, 2, location).fit(material.train, material.validation)


def test_the_targets_of_train_are_the_shares_of_raters_and_those_of_validation_the_labels(tiny: str, tmp_path: Path) -> None:
    content = "text,calm,dread\na lake,0.75,0.25\na storm,0,1\n"
    (tmp_path / "source").mkdir()
    for split in ("train", "dev", "test"):
        (tmp_path / "source" / f"{split}.csv").write_text(content)
    ingest(str(tmp_path / "source"), tmp_path / "dataset")
    with trainer.load(tmp_path / "dataset", profiles.get("minilm"), tiny) as loaded:
        assert loaded.train.labels.tolist() == [[0.75, 0.25], [0, 1]]
        assert loaded.validation.labels.tolist() == [[1, 0], [0, 1]]


def test_the_best_epoch_is_kept_when_a_later_one_is_worse(material: trainer.Material) -> None:
    loop = a_loop(material, epochs=4)
    best: dict[str, torch.Tensor] = {}

    def spoil_after_the_third(epoch: int, values: dict[str, float]) -> None:
        if epoch == 3:
            best.update({name: tensor.clone() for name, tensor in loop.classifier.state_dict().items()})
            with torch.no_grad():
                loop.classifier.classifier.weight.mul_(-100)

    loop.fit(material.train, material.validation, spoil_after_the_third)
    history = loop.state.history
    assert history[3]["validation/auc_micro"] < history[2]["validation/auc_micro"]
    assert loop.record().best_epoch == 3
    assert all(torch.equal(tensor, best[name]) for name, tensor in loop.classifier.state_dict().items())


def test_the_best_epoch_before_an_interruption_is_kept_after_it(material: trainer.Material, tmp_path: Path) -> None:
    location = str(tmp_path / "checkpoints")
    interrupted = a_loop(material, 3, location)

    def spoil_after_the_first(epoch: int, values: dict[str, float]) -> None:
        with torch.no_grad():
            interrupted.classifier.classifier.weight.mul_(-100)

    with pytest.MonkeyPatch.context() as patched:
        stop_at(12, patched)
        with trainer.stop_signal() as stopped, pytest.raises(Interrupted):
            interrupted.fit(material.train, material.validation, spoil_after_the_first, stopped)
    resumed = a_loop(material, 3, location)
    resumed.fit(material.train, material.validation)
    assert resumed.state.best_epoch == 1
    best = interrupted.state.best
    assert all(torch.equal(tensor, best[name]) for name, tensor in resumed.classifier.state_dict().items())


def spoiling(loop: TrainingLoop, epoch: int) -> OnEpoch:
    """Makes the head worse after an epoch, by more than the next epochs can repair."""

    def spoil(number: int, values: dict[str, float]) -> None:
        if number == epoch:
            with torch.no_grad():
                loop.classifier.classifier.weight.mul_(-100)

    return spoil


def test_training_ends_when_no_epoch_is_better_for_as_long_as_its_patience(
    material: trainer.Material, caplog: pytest.LogCaptureFixture
) -> None:
    loop = a_loop(material, epochs=6, patience=2)
    with caplog.at_level(logging.INFO):
        loop.fit(material.train, material.validation, spoiling(loop, 2))
    record = loop.record()
    assert [epoch["epoch"] for epoch in record.history] == [1, 2, 3, 4]
    assert (record.best_epoch, record.steps, record.profile["epochs"]) == (2, 4 * STEPS_PER_EPOCH, 6)
    assert "minilm ends after epoch 4 of 6: none was better than epoch 2" in caplog.text
    best = loop.state.best
    assert all(torch.equal(tensor, best[name]) for name, tensor in loop.classifier.state_dict().items())


@pytest.mark.parametrize("step", [2 * STEPS_PER_EPOCH, 2 * STEPS_PER_EPOCH + 5, 3 * STEPS_PER_EPOCH])
def test_patience_counts_the_epochs_before_an_interruption(step: int, material: trainer.Material, tmp_path: Path) -> None:
    whole = a_loop(material, epochs=6, patience=2)
    whole.fit(material.train, material.validation, spoiling(whole, 1))
    location = str(tmp_path / "checkpoints")
    interrupted = a_loop(material, 6, location, patience=2)
    with pytest.MonkeyPatch.context() as patched:
        stop_at(step, patched)
        # The signal in the last step of the training comes too late to interrupt it.
        with trainer.stop_signal() as stopped, contextlib.suppress(Interrupted):
            interrupted.fit(material.train, material.validation, spoiling(interrupted, 1), stopped)
    resumed = a_loop(material, 6, location, patience=2)
    resumed.fit(material.train, material.validation)
    assert (resumed.state.step, resumed.state.best_epoch, len(resumed.state.history)) == (3 * STEPS_PER_EPOCH, 1, 3)
    assert all(torch.equal(tensor, whole.state.best[name]) for name, tensor in resumed.classifier.state_dict().items())


def test_without_patience_training_goes_on_to_its_last_epoch(material: trainer.Material) -> None:
    loop = a_loop(material, epochs=4)
    loop.fit(material.train, material.validation, spoiling(loop, 1))
    assert len(loop.state.history) == 4


@pytest.mark.parametrize("name", ["roberta-large", "distilbert"])
def test_models_of_many_epochs_have_patience(name: str) -> None:
    assert 0 < profiles.get(name).hyperparameters.patience < profiles.get(name).hyperparameters.epochs


def test_the_training_record_describes_the_run(dataset: Path, model_folder: Path, tiny: str) -> None:
    record = TrainingRecord.read(model_folder)
    assert record.profile["name"] == "minilm"
    assert record.profile["epochs"] == 6
    assert record.steps == 6 * STEPS_PER_EPOCH
    assert record.weights == tiny
    assert record.dataset_digest == load_dataset(dataset)[1]["digest"]
    assert record.max_length == 128
    assert record.parameters > 20_000
    assert record.peak_memory_bytes > 2**26
    assert 0 < record.history[0]["seconds"] < record.history[-1]["seconds"]
    without_teachers = record.seconds - sum(teacher.seconds for teacher in record.teachers)
    assert without_teachers == pytest.approx(record.history[-1]["seconds"])
    assert len(record.teachers) == record.profile["teachers"]
    assert record.torch == torch.__version__
    assert record.hardware


def test_training_needs_no_test_split(dataset: Path, tiny: str, tmp_path: Path, undisturbed: dict[int, Result]) -> None:
    copied = tmp_path / "dataset"
    shutil.copytree(dataset, copied)
    shutil.rmtree(copied / "test")
    (copied / "dataset_dict.json").write_text(json.dumps({"splits": ["train", "validation"]}))
    train(copied, tmp_path / "model", weights=tiny, epochs=SHORT)
    assert result_of(tmp_path / "model") == undisturbed[SHORT]


def stop_at(step: int, monkeypatch: pytest.MonkeyPatch, number: int = signal.SIGTERM) -> None:
    """Sends this process a signal within the step of that number, in each later training."""
    advance = TrainingLoop.advance

    def advance_and_stop(loop: TrainingLoop, *args: Any) -> None:
        advance(loop, *args)
        if loop.state.step == step:
            os.kill(os.getpid(), number)

    monkeypatch.setattr(TrainingLoop, "advance", advance_and_stop)


def test_training_uses_as_many_threads_as_the_container_has_cores(
    dataset: Path, tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = torch.get_num_threads()
    monkeypatch.setattr(devices, "cpus", lambda: 1)
    try:
        torch.set_num_threads(4)
        record = train(dataset, tmp_path, weights=tiny, epochs=1)
    finally:
        torch.set_num_threads(before)
    assert record.hardware.startswith("1 threads of ")


@pytest.mark.fault("training-killed")
@pytest.mark.parametrize("step", [1, 7, 8, 9, 15])
def test_a_run_interrupted_at_any_step_ends_with_the_same_results(
    step: int, dataset: Path, tiny: str, tmp_path: Path, undisturbed: dict[int, Result], caplog: pytest.LogCaptureFixture
) -> None:
    """At every kind of step: within an epoch, the last of one, the first of one."""
    location = str(tmp_path / "checkpoints")

    def start() -> TrainingRecord:
        return train(
            dataset, tmp_path / "model", weights=tiny, epochs=SHORT, checkpoint_location=location, checkpoint_minutes=0
        )

    with pytest.MonkeyPatch.context() as patched:
        stop_at(step, patched)
        with pytest.raises(Interrupted, match=f"stopped at step {step} of 16: start it again to resume from {location}"):
            start()
    assert not (tmp_path / "model").exists()
    with caplog.at_level(logging.INFO):
        start()
    assert f"resuming minilm at step {step} of 16" in caplog.text
    assert result_of(tmp_path / "model") == undisturbed[SHORT]


def test_a_run_interrupted_at_its_last_step_is_finished(
    dataset: Path, tiny: str, tmp_path: Path, undisturbed: dict[int, Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    stop_at(16, monkeypatch)
    train(dataset, tmp_path / "model", weights=tiny, epochs=SHORT)
    assert result_of(tmp_path / "model") == undisturbed[SHORT]


def test_a_training_that_finished_on_another_machine_is_taken_from_its_checkpoint_with_the_name_of_that_machine(
    dataset: Path, tiny: str, tmp_path: Path, undisturbed: dict[int, Result]
) -> None:
    location = str(tmp_path / "checkpoints")
    options = {"weights": tiny, "epochs": SHORT, "checkpoint_location": location}
    there = train(dataset, tmp_path / "there", **options)
    (name,) = store.children(location)
    last = checkpoints.newest(location, {})
    assert last is not None
    assert {tensor.split(".")[0] for tensor in last.tensors} == {"best"}
    entries = {"machines": ["1 x another GPU"], "peak_gpu_memory": 2**40}
    checkpoints.save(location, int(name.removeprefix("step-")), checkpoints.Checkpoint(last.tensors, last.values | entries))
    here = train(dataset, tmp_path / "here", **options)
    assert result_of(tmp_path / "here") == undisturbed[SHORT]
    assert (here.hardware, here.peak_gpu_memory_bytes) == ("1 x another GPU", 2**40)
    assert (here.history, here.steps) == (there.history, there.steps)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
def test_an_interrupted_run_without_checkpoints_reports_that_it_starts_over(
    number: int, dataset: Path, tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop_at(5, monkeypatch, number)
    before = [signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)]
    with pytest.raises(Interrupted, match="stopped at step 5 of 16: it starts over next time"):
        train(dataset, tmp_path / "model", weights=tiny, epochs=SHORT)
    assert [signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)] == before


class Command:
    """A running `goemotions train`, started as in a pod."""

    def __init__(self, dataset: Path, output: Path, weights: str, location: str, errors: Path) -> None:
        self.errors = errors
        options = {
            "--profile": "minilm",
            "--dataset": str(dataset),
            "--output": str(output),
            "--weights": weights,
            "--epochs": str(LONG),
            "--checkpoints": location,
            "--checkpoint-minutes": "0",
        }
        command = [
            sys.executable,
            "-m",
            "goemotions.cli",
            "train",
            "--set",
            "teachers=0",
            *(word for option in options.items() for word in option),
        ]
        with errors.open("w") as stderr:
            threads = str(torch.get_num_threads())
            self.process = subprocess.Popen(command, stderr=stderr, env={**os.environ, "OMP_NUM_THREADS": threads})

    def kill_when(self, condition: Callable[[], bool], number: int) -> int:
        """Sends a signal as soon as a condition holds, and returns the exit status."""
        deadline = time.monotonic() + 120
        try:
            while not condition():
                assert self.process.poll() is None, self.errors.read_text()
                assert time.monotonic() < deadline, "the command did nothing for two minutes"
                time.sleep(0.002)
            self.process.send_signal(number)
            return self.process.wait(60)
        finally:
            self.process.kill()
            self.process.wait()


def resume(dataset: Path, tiny: str, tmp_path: Path, location: str) -> Result:
    train(dataset, tmp_path / "model", weights=tiny, epochs=LONG, checkpoint_location=location, checkpoint_minutes=0)
    return result_of(tmp_path / "model")


@pytest.mark.fault("training-killed")
def test_a_terminated_command_writes_a_checkpoint_and_resumes_from_it(
    dataset: Path,
    tiny: str,
    tmp_path: Path,
    bucket: str,
    undisturbed: dict[int, Result],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """SIGTERM, checkpoints in S3."""
    command = Command(dataset, tmp_path / "model", tiny, bucket, tmp_path / "stderr")
    # It trains for half a second: on a busy machine the first checkpoint in the store may be seen after the last step.
    assert command.kill_when(lambda: "0/32" in command.errors.read_text(), signal.SIGTERM) == 1
    last = store.children(bucket)[-1]
    step = int(last.removeprefix("step-"))
    assert 1 <= step < LONG * STEPS_PER_EPOCH
    assert (tmp_path / "stderr").read_text().strip().splitlines()[-1] == (
        f"goemotions: training of minilm was stopped at step {step} of 32: start it again to resume from {bucket}"
    )
    assert store.read(store.join(bucket, last), manifest.NAME)
    assert not (tmp_path / "model").exists()
    with caplog.at_level(logging.INFO):
        assert resume(dataset, tiny, tmp_path, bucket) == undisturbed[LONG]
    assert f"resuming minilm at step {step} of 32" in caplog.text


def wide_weights(tiny: str, folder: Path) -> str:
    """Weights with a vocabulary so large that a signal can be sent while a checkpoint is written."""
    shutil.copytree(tiny, folder)
    config = transformers.AutoConfig.from_pretrained(tiny, vocab_size=200_000)
    torch.manual_seed(7)
    transformers.AutoModel.from_config(config).save_pretrained(folder)
    return str(folder)


@pytest.mark.slow
@pytest.mark.fault("training-killed", "checkpoint-partial")
def test_a_command_killed_while_writing_a_checkpoint_resumes_from_the_one_before(
    dataset: Path, tiny: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """SIGKILL between the first and the last file of a checkpoint."""
    wide = wide_weights(tiny, tmp_path / "weights")
    location = tmp_path / "checkpoints"

    def is_writing() -> bool:
        names = store.children(str(location))
        whole = [(location / name / manifest.NAME).exists() for name in names]
        return whole[-2:] == [True, False]

    command = Command(dataset, tmp_path / "model", wide, str(location), tmp_path / "stderr")
    assert command.kill_when(is_writing, signal.SIGKILL) == -signal.SIGKILL
    *_, before, partial = store.children(str(location))
    assert not (location / partial / manifest.NAME).exists()
    with caplog.at_level(logging.INFO):
        resumed = resume(dataset, wide, tmp_path, str(location))
    assert f"checkpoint {partial} is not used: it was never finished" in caplog.text
    assert f"resuming minilm at step {int(before.removeprefix('step-'))} of 32" in caplog.text
    train(dataset, tmp_path / "undisturbed", weights=wide, epochs=LONG)
    assert resumed == result_of(tmp_path / "undisturbed")


ABOUT = '<LastModified>2026-01-01T00:00:00Z</LastModified><ETag>"0"</ETag><Size>1</Size>'


class SlowStore(http_server.Handler):
    """An S3 store that holds every upload until it is released, then keeps or denies it."""

    released: threading.Event
    status: int
    stored: set[str]
    written: list[str]

    def do_PUT(self) -> None:
        self.body()
        assert self.released.wait(60)
        self.stored.add(self.path)
        self.written.append(self.path)
        body = b"" if self.status != 403 else b"<Error><Code>AccessDenied</Code></Error>"
        self.send(self.status, body, {"ETag": '"0"'})

    def do_DELETE(self) -> None:
        self.stored.discard(self.path)
        self.send(204)

    def do_GET(self) -> None:
        prefix = parse_qs(urlsplit(self.path).query)["prefix"][0]
        keys = [path.removeprefix("/bucket/") for path in self.stored]
        entries = "".join(f"<Contents><Key>{key}</Key>{ABOUT}</Contents>" for key in keys if key.startswith(prefix))
        self.send(200, f"<ListBucketResult>{entries}</ListBucketResult>".encode())


@pytest.fixture(params=[200])
def slow_store(request: pytest.FixtureRequest, configure_s3: Callable[..., None]) -> Iterator[type[SlowStore]]:
    handler = type(
        "Store", (SlowStore,), {"released": threading.Event(), "status": request.param, "stored": set(), "written": []}
    )
    with http_server.running(http_server.Server(handler)) as server:
        configure_s3(AWS_ENDPOINT_URL=server.url, **KEYS)
        yield handler


def test_training_goes_on_while_a_checkpoint_is_written(
    dataset: Path, tiny: str, tmp_path: Path, slow_store: type[SlowStore]
) -> None:
    def release_after_the_third(epoch: int, values: dict[str, float]) -> None:
        assert not slow_store.stored
        if epoch == 3:
            slow_store.released.set()

    options = {"weights": tiny, "epochs": 3, "checkpoint_location": "s3://bucket/run/", "checkpoint_minutes": 0.0}
    train(dataset, tmp_path / "model", release_after_the_third, **options)
    # The first one, which was held, and the last one, for which the end of the training waits.
    written = [path for path in slow_store.written if path.endswith(manifest.NAME)]
    assert written == [f"/bucket/run/step-{step:09d}/{manifest.NAME}" for step in (1, 3 * STEPS_PER_EPOCH)]


@pytest.mark.fault("store-denied")
@pytest.mark.parametrize("slow_store", [403], indirect=True)
def test_a_checkpoint_that_is_denied_ends_the_training_at_the_next_step(
    dataset: Path, tiny: str, tmp_path: Path, slow_store: type[SlowStore]
) -> None:
    epochs: list[int] = []

    def release(epoch: int, values: dict[str, float]) -> None:
        epochs.append(epoch)
        slow_store.released.set()

    with pytest.raises(StorageError, match="access denied"):
        train(dataset, tmp_path / "model", release, weights=tiny, epochs=500, checkpoint_location="s3://bucket/run/")
    assert 1 <= len(epochs) < 100
    assert not (tmp_path / "model").exists()


@pytest.mark.fault("store-away-in-training")
@pytest.mark.parametrize("slow_store", [503], indirect=True)
def test_a_store_that_is_away_costs_checkpoints_but_not_the_training(
    dataset: Path, tiny: str, tmp_path: Path, slow_store: type[SlowStore], caplog: pytest.LogCaptureFixture
) -> None:
    slow_store.released.set()
    train(dataset, tmp_path / "model", weights=tiny, epochs=2, checkpoint_location="s3://bucket/run/")
    assert result_of(tmp_path / "model")
    assert "a checkpoint was not written, and training goes on: s3://bucket/run/" in caplog.text


def interrupted(dataset: Path, tiny: str, location: str, **options: Any) -> None:
    """Writes the checkpoints of a run that is interrupted in its second epoch."""
    with pytest.MonkeyPatch.context() as patched:
        stop_at(12, patched)
        with pytest.raises(Interrupted):
            train(dataset, Path(location) / "none", weights=tiny, epochs=SHORT, checkpoint_location=location, **options)


@pytest.mark.fault("checkpoints-corrupt")
def test_if_every_checkpoint_is_corrupt_training_starts_over(
    dataset: Path, tiny: str, tmp_path: Path, undisturbed: dict[int, Result], caplog: pytest.LogCaptureFixture
) -> None:
    location = tmp_path / "checkpoints"
    interrupted(dataset, tiny, str(location))
    states = list(location.glob("*/state.safetensors"))
    assert len(states) == 1
    for state in states:
        state.write_bytes(state.read_bytes()[:-100])
    train(dataset, tmp_path / "model", weights=tiny, epochs=SHORT, checkpoint_location=str(location), checkpoint_minutes=0)
    assert f"no checkpoint below {location} can be used: training starts over" in caplog.text
    assert result_of(tmp_path / "model") == undisturbed[SHORT]


def test_checkpoints_of_another_seed_are_not_used(
    dataset: Path, tiny: str, tmp_path: Path, undisturbed: dict[int, Result], caplog: pytest.LogCaptureFixture
) -> None:
    location = str(tmp_path / "checkpoints")
    interrupted(dataset, tiny, location, seed=1)
    train(dataset, tmp_path / "model", weights=tiny, epochs=SHORT, checkpoint_location=location)
    assert "it belongs to another run" in caplog.text
    assert result_of(tmp_path / "model") == undisturbed[SHORT]


def test_checkpoints_of_other_data_are_not_used(
    source: Path, dataset: Path, tiny: str, tmp_path: Path, undisturbed: dict[int, Result], caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(source, tmp_path / "source")
    rows = tmp_path / "source" / "train.tsv"
    rows.write_text("".join(rows.read_text().splitlines(keepends=True)[:-1]))
    ingest(str(tmp_path / "source"), tmp_path / "dataset")
    location = str(tmp_path / "checkpoints")
    interrupted(tmp_path / "dataset", tiny, location)
    train(dataset, tmp_path / "model", weights=tiny, epochs=SHORT, checkpoint_location=location)
    assert "it belongs to another run" in caplog.text
    assert result_of(tmp_path / "model") == undisturbed[SHORT]


@pytest.mark.fault("loss-not-finite")
def test_a_loss_that_is_not_finite_ends_the_run(dataset: Path, tiny: str, tmp_path: Path) -> None:
    location = tmp_path / "checkpoints"
    with pytest.raises(
        TrainingError, match=r"the loss of minilm is not finite by step \d+: lower the learning rate \(now 0\.0002\)"
    ):
        train(
            dataset,
            tmp_path / "model",
            weights=str(repositories.diverging(Path(tiny), tmp_path / "weights")),
            checkpoint_location=str(location),
            checkpoint_minutes=0,
        )
    assert not (tmp_path / "model").exists()
    for values in location.glob("*/state.json"):
        assert math.isfinite(json.loads(values.read_text())["epoch_loss"])


@pytest.mark.fault("gpu-memory-full")
def test_out_of_memory_names_the_setting_to_lower(
    dataset: Path, tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With torch's own error."""

    def allocate_too_much(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")

    monkeypatch.setattr(MeanPooledClassifier, "forward", allocate_too_much)
    with pytest.raises(TrainingError, match="out of GPU memory: lower the profile's batch_size or max_length"):
        train(dataset, tmp_path / "model", weights=tiny)
    assert not (tmp_path / "model").exists()


def limit_texts(limit: int, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Gives the network the memory for so many texts at once; returns the sizes of the batches in training, as they come."""
    forward, sizes = MeanPooledClassifier.forward, []

    def allocate(network: MeanPooledClassifier, input_ids: torch.Tensor, **inputs: Any) -> Any:
        if network.training:
            sizes.append(len(input_ids))
            if len(input_ids) > limit:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")
        return forward(network, input_ids=input_ids, **inputs)

    monkeypatch.setattr(MeanPooledClassifier, "forward", allocate)
    return sizes


@pytest.mark.fault("gpu-memory-full")
@pytest.mark.parametrize("loss", ["bce", "focal", "asymmetric", "class-balanced"])
def test_a_batch_that_does_not_fit_into_memory_is_split_with_the_same_result(
    loss: str, dataset: Path, tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Without dropout, whose masks depend on the parts."""
    still = shutil.copytree(tiny, tmp_path / "weights")
    fields = json.loads((still / "config.json").read_text()) | {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    (still / "config.json").write_text(json.dumps(fields))
    changes = {"dropout": 0.0, "loss": loss, "batch_size": 30}
    options = {"weights": str(still), "epochs": 1, "settings": changes, "precision": "fp32"}
    whole = train(dataset, tmp_path / "whole", **options)
    sizes = limit_texts(10, monkeypatch)
    split = train(dataset, tmp_path / "split", **options)
    assert sizes[:6] == [30, 15, 8, 8, 8, 6]
    assert set(sizes[2:]) <= {8, 6}
    assert [record.message for record in caplog.records if "out of GPU memory" in record.message] == [
        f"out of GPU memory: minilm computes its batches of 30 texts in {parts} parts from now on, with the same gradients"
        for parts in (2, 4)
    ]
    for name, value in whole.history[0].items():
        assert name == "seconds" or split.history[0][name] == pytest.approx(value, abs=2e-3), name


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.fault("gpu-memory-full")
def test_real_exhaustion_of_gpu_memory_names_the_setting_to_lower(dataset: Path, tiny: str, tmp_path: Path) -> None:
    """On a GPU of which this process may use a small part only."""
    wide = wide_weights(tiny, tmp_path / "weights")
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(1e-6)
    try:
        with pytest.raises(TrainingError, match="out of GPU memory"):
            train(dataset, tmp_path / "model", weights=wide)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


def test_an_unknown_profile_and_a_folder_without_data_are_named_errors(dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="there is no model profile 'gpt'"):
        trainer.train(dataset, tmp_path / "model", "gpt")
    with pytest.raises(DataError, match="is not a Dataset folder"):
        train(tmp_path, tmp_path / "model")


def test_bf16_trains_to_about_the_same_numbers(
    dataset: Path, tiny: str, tmp_path: Path, undisturbed: dict[int, Result]
) -> None:
    record = train(dataset, tmp_path / "model", weights=tiny, epochs=1, precision="bf16")
    assert record.precision == "bf16"
    assert record.history[0]["train/loss"] == pytest.approx(undisturbed[SHORT].history[0]["train/loss"], rel=0.02)
    written = load_classifier(tmp_path / "model")
    assert {parameter.dtype for parameter in written.parameters()} == {torch.float32}


def test_the_head_has_a_higher_learning_rate_and_only_matrices_have_weight_decay(taxonomy: Taxonomy, tiny: str) -> None:
    profile = profiles.get("minilm")
    network = build_classifier(profile, taxonomy, weights=tiny)
    of = {id(parameter): name for name, parameter in network.named_parameters()}
    groups = optimizers.parameter_groups(network, profile.hyperparameters)
    rates = {of[id(p)]: (group["peak_lr"], group["weight_decay"]) for group in groups for p in group["params"]}
    assert rates.keys() == set(of.values())
    assert rates["classifier.weight"] == (pytest.approx(2e-3), 0.01)
    assert rates["classifier.bias"] == (pytest.approx(2e-3), 0.0)
    assert rates["bert.encoder.layer.0.attention.self.query.weight"] == (2e-4, 0.01)
    assert rates["bert.encoder.layer.0.attention.output.LayerNorm.weight"] == (2e-4, 0.0)


@given(
    lengths=st.lists(st.integers(1, 128), min_size=1, max_size=400),
    size=st.integers(1, 40),
    seed=st.integers(0, 2**32),
    epoch=st.integers(0, 100),
)
@settings(max_examples=50, deadline=None)
def test_every_row_is_in_exactly_one_batch(lengths: list[int], size: int, seed: int, epoch: int) -> None:
    rows = [[0] * length for length in lengths]
    drawn = batches.draw(rows, size, seed, epoch)
    assert sorted(position for batch in drawn for position in batch) == list(range(len(rows)))
    assert len(drawn) == math.ceil(len(rows) / size)
    assert all(1 <= len(batch) <= size for batch in drawn)
    assert drawn == batches.draw(rows, size, seed, epoch)


def test_another_epoch_or_seed_draws_other_batches() -> None:
    rows = [[0] * (1 + number % 9) for number in range(200)]
    drawn = [batches.draw(rows, 8, seed, epoch) for seed, epoch in ((0, 0), (0, 1), (1, 0))]
    assert drawn[0] != drawn[1] != drawn[2] != drawn[0]


def test_batches_have_rows_of_similar_length() -> None:
    lengths = np.random.default_rng(0).integers(1, 129, 3200)
    drawn = batches.draw([[0] * int(length) for length in lengths], 32, 0, 0)
    padded = sum(len(batch) * int(lengths[batch].max()) for batch in drawn)
    assert padded < 1.05 * lengths.sum()


@given(progress=st.floats(0, 1), warmup=st.sampled_from([0.0, 0.06, 0.1, 0.5]))
@settings(max_examples=50, deadline=None)
def test_the_learning_rate_is_between_zero_and_its_peak(progress: float, warmup: float) -> None:
    assert 0 <= optimizers.schedule(progress, warmup) <= 1


def test_the_learning_rate_rises_to_its_peak_and_falls_to_zero() -> None:
    points = [optimizers.schedule(step / 100, 0.1) for step in range(101)]
    assert points[0] == points[100] == 0
    assert points[10] == max(points) == 1
    assert points[5] == pytest.approx(0.5)
    assert points[55] == pytest.approx(0.5)
    assert np.allclose(np.diff(points[:11]), 0.1)
    assert np.allclose(np.diff(points[10:]), -1 / 90)
