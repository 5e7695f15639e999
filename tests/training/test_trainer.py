"""Training: it learns, repeats itself, keeps the best epoch, and goes on after whatever stopped it."""

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

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from goemotions.data.dataset import ingest, load_dataset, taxonomy_of
from goemotions.errors import DataError, Interrupted, ModelError, TrainingError
from goemotions.metrics import calibration, classification
from goemotions.models import engines, profiles
from goemotions.models.classifier import MeanPooledClassifier, build_classifier, load_classifier
from goemotions.models.tokenizer import TextEncoder
from goemotions.storage import manifest, store
from goemotions.training import checkpoints, losses, optimizers, trainer

STEPS_PER_EPOCH = 8
SHORT, LONG = 3, 6


@pytest.fixture(scope="module", autouse=True)
def alone() -> Iterator[None]:
    """Without teachers, whose steps would count too; the tests of teachers ask for them."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setitem(profiles.PROFILES, "minilm", dataclasses.replace(profiles.get("minilm"), teachers=0))
        yield


@pytest.fixture(scope="module")
def tiny(weights: Callable[[str], str]) -> str:
    return weights("minilm")


@dataclasses.dataclass(frozen=True)
class Result:
    """What must not depend on how often a run was stopped."""

    history: list[dict[str, float]]
    best_epoch: int
    weights: bytes


def result_of(folder: Path) -> Result:
    facts = json.loads((folder / "training.json").read_text())
    history = [{name: value for name, value in epoch.items() if name != "seconds"} for epoch in facts["history"]]
    return Result(history, facts["best_epoch"], (folder / "model.safetensors").read_bytes())


@pytest.fixture(scope="module")
def undisturbed(dataset: Path, tiny: str, tmp_path_factory: pytest.TempPathFactory) -> dict[int, Result]:
    """The results of a short and of a long run that nothing stopped."""
    root = tmp_path_factory.mktemp("undisturbed")
    for epochs in (SHORT, LONG):
        trainer.train(dataset, root / str(epochs), "minilm", weights=tiny, epochs=epochs)
    return {epochs: result_of(root / str(epochs)) for epochs in (SHORT, LONG)}


def test_training_learns_what_gives_the_labels_away(
    dataset: Path, tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    eager = dataclasses.replace(profiles.get("minilm"), learning_rate=3e-3, epochs=8)
    monkeypatch.setitem(profiles.PROFILES, "minilm", eager)
    seen: list[tuple[int, float]] = []
    facts = trainer.train(
        dataset,
        tmp_path / "model",
        "minilm",
        weights=tiny,
        on_epoch=lambda epoch, values: seen.append((epoch, values["validation/auc_micro"])),
    )
    history = facts["history"]
    assert seen == [(epoch["epoch"], epoch["validation/auc_micro"]) for epoch in history]
    assert [epoch for epoch, _ in seen] == list(range(1, 9))
    assert (
        history[0]["validation/auc_micro"]
        < history[2]["validation/auc_micro"]
        < 0.95
        < facts["history"][-1]["validation/auc_micro"]
    )
    assert history[-1]["train/loss"] < history[0]["train/loss"] / 2
    assert history[-1]["validation/loss"] < history[0]["validation/loss"] / 2


def test_the_same_seed_gives_the_same_numbers_and_another_seed_others(
    dataset: Path, tiny: str, tmp_path: Path, undisturbed: dict[int, Result]
) -> None:
    for seed in (0, 1):
        trainer.train(dataset, tmp_path / str(seed), "minilm", weights=tiny, epochs=SHORT, seed=seed)
    assert result_of(tmp_path / "0") == undisturbed[SHORT]
    assert result_of(tmp_path / "1").history != undisturbed[SHORT].history


def test_the_model_that_is_written_ranks_as_its_best_epoch_did(dataset: Path, model_folder: Path) -> None:
    facts = json.loads((model_folder / "training.json").read_text())
    labels, scores = scored_validation(dataset, model_folder)
    # A scaling of each label keeps the order of its rows.
    found = classification.ranking(labels, scores)["auc_macro"]
    assert found == pytest.approx(facts["history"][facts["best_epoch"] - 1]["validation/auc_macro"], abs=1e-6)


def test_the_model_that_is_written_is_calibrated(dataset: Path, model_folder: Path) -> None:
    facts = json.loads((model_folder / "training.json").read_text())
    found = facts["calibration"]
    labels, scores = scored_validation(dataset, model_folder)
    scaling = calibration.Scaling(found["method"], found["slope"], found["intercept"])
    before = scaling.undo(scores)
    best = facts["history"][facts["best_epoch"] - 1]
    assert trainer.binary_loss(labels, before) == pytest.approx(best["validation/loss"], abs=1e-5)
    assert found["method"] == min(found["comparison"], key=lambda row: row["log_loss"])["method"]
    assert trainer.binary_loss(labels, scores) <= trainer.binary_loss(labels, before)


def scored_validation(dataset: Path, folder: Path) -> tuple[np.ndarray, np.ndarray]:
    splits, info = load_dataset(dataset, ("validation",))
    labels = taxonomy_of(info).multi_hot(splits["validation"]["labels"][:])
    engine = engines.load("torch", folder, TextEncoder.load(folder))
    return labels, engines.score(engine, splits["validation"]["text"][:])[0]


@pytest.mark.parametrize(
    "changes",
    [
        {"average": 4.0},
        {"loss": "focal"},
        {"loss": "asymmetric"},
        {"loss": "class-balanced"},
        {"groups": ["calm+glee+pity", "dread+scorn"]},
        {"label_smoothing": 0.2},
        {"layer_decay": 0.7},
        {"added_tokens": ["[NAME]"]},
        {"teachers": 1, "teacher_epochs": 2},
        {"prior": False, "head_factor": 1.0},
    ],
    ids=lambda changes: "-".join(changes) + str(changes.get("loss", "")),
)
def test_every_way_to_train_learns_and_goes_on_where_it_stopped(
    dataset: Path, tiny: str, tmp_path: Path, changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = {"learning_rate": 3e-3, "epochs": 3, **changes}
    whole = trainer.train(dataset, tmp_path / "whole", "minilm", weights=tiny, settings=changes)
    assert whole["history"][-1]["train/loss"] < whole["history"][0]["train/loss"]
    location = str(tmp_path / "checkpoints")
    with monkeypatch.context() as patched:
        stop_at(2 * STEPS_PER_EPOCH - 3, patched)
        with pytest.raises(Interrupted):
            trainer.train(dataset, tmp_path / "part", "minilm", weights=tiny, settings=changes, checkpoint_location=location)
    trainer.train(dataset, tmp_path / "part", "minilm", weights=tiny, settings=changes, checkpoint_location=location)
    assert result_of(tmp_path / "part") == result_of(tmp_path / "whole")


def test_a_teacher_is_another_network_whose_cost_counts(dataset: Path, tiny: str, tmp_path: Path) -> None:
    facts = trainer.train(dataset, tmp_path, "minilm", weights=tiny, settings={"teachers": 2, "epochs": 1})
    assert [teacher["seed"] for teacher in facts["teachers"]] == [1, 2]
    assert facts["seconds"] > sum(teacher["seconds"] for teacher in facts["teachers"])


def test_a_teacher_that_had_finished_is_not_trained_again(
    dataset: Path, tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    location, changes = str(tmp_path / "checkpoints"), {"teachers": 1, "epochs": 2}
    with monkeypatch.context() as patched:
        stop_at(STEPS_PER_EPOCH + 3, patched)
        with pytest.raises(Interrupted, match=rf"at step {STEPS_PER_EPOCH + 3} of {2 * STEPS_PER_EPOCH}"):
            trainer.train(dataset, tmp_path / "part", "minilm", weights=tiny, settings=changes, checkpoint_location=location)
    with caplog.at_level("INFO"):
        trainer.train(dataset, tmp_path / "part", "minilm", weights=tiny, settings=changes, checkpoint_location=location)
    assert f"resuming minilm at step {STEPS_PER_EPOCH} of {STEPS_PER_EPOCH}" in caplog.text
    assert f"resuming minilm at step {STEPS_PER_EPOCH + 3} of {2 * STEPS_PER_EPOCH}" in caplog.text


def test_a_signal_in_the_last_step_of_a_teacher_stops_what_it_would_teach(
    dataset: Path, tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    location, changes = str(tmp_path / "checkpoints"), {"teachers": 1, "teacher_epochs": 1, "epochs": 2}
    stop_at(STEPS_PER_EPOCH, monkeypatch)
    with pytest.raises(Interrupted, match=rf"at step 1 of {2 * STEPS_PER_EPOCH}"):
        trainer.train(dataset, tmp_path / "part", "minilm", weights=tiny, settings=changes, checkpoint_location=location)
    assert "teacher-1" in store.children(location)


def test_what_a_group_is_learnt_by() -> None:
    """A group is there with the chance that not all of its labels are missing; its cross-entropy comes on top."""
    logits, targets = torch.tensor([[0.5, -1.0, 2.0]]), torch.tensor([[1.0, 0.0, 0.0]])
    alone = losses.build("bce", torch.ones(3))(logits, targets)
    names = ("a", "b", "c")
    grouped = losses.build("bce", torch.ones(3), names, ["a+b", "c"])(logits, targets)
    chances = torch.sigmoid(logits)[0]
    some = 1 - (1 - chances[0]) * (1 - chances[1])
    assert float(grouped - alone) == pytest.approx(
        losses.GROUPS_WEIGHT * -float(some.log() + (1 - chances[2]).log()) / 2, rel=1e-4
    )
    with pytest.raises(ModelError, match="no label 'd'"):
        losses.build("bce", torch.ones(3), names, ["a+d"])


def test_a_token_of_its_own_is_one_id_in_the_written_model(dataset: Path, tiny: str, tmp_path: Path) -> None:
    trainer.train(dataset, tmp_path, "minilm", weights=tiny, settings={"added_tokens": ["[NAME]"], "epochs": 1})
    (encoded,) = TextEncoder.load(tmp_path).encode(["we saw [NAME] today"])
    assert len(encoded.ids) == 2 + 4
    assert load_classifier(tmp_path).config.vocab_size == max(encoded.ids) + 1


def a_run(dataset: Path, tiny: str, epochs: int) -> tuple[trainer.Run, trainer.Split, trainer.Split]:
    splits, info = load_dataset(dataset)
    taxonomy = taxonomy_of(info)
    profile = dataclasses.replace(profiles.get("minilm"), epochs=epochs)
    classifier, tokenizer = build_classifier(profile, taxonomy, weights=tiny)
    encoder = TextEncoder(tokenizer.backend_tokenizer, profile.max_length, tokenizer.pad_token_id)
    train, validation = (
        trainer.Split(
            [item.ids for item in encoder.encode(splits[name]["text"][:])],
            taxonomy.multi_hot(splits[name]["labels"][:]).astype(np.float32),
        )
        for name in ("train", "validation")
    )
    return trainer.Run(profile, classifier, encoder, 0, "fp32", info["digest"]), train, validation


def test_the_best_epoch_is_kept_when_a_later_one_is_worse(dataset: Path, tiny: str) -> None:
    run, train, validation = a_run(dataset, tiny, epochs=4)
    best: dict[str, torch.Tensor] = {}

    def spoil_after_the_third(epoch: int, values: dict[str, float]) -> None:
        if epoch == 3:
            best.update({name: tensor.clone() for name, tensor in run.classifier.state_dict().items()})
            with torch.no_grad():
                run.classifier.classifier.weight.neg_()

    run.fit(train, validation, "", 500, spoil_after_the_third, threading.Event())
    assert run.history[3]["validation/auc_micro"] < run.history[2]["validation/auc_micro"]
    assert run.summary()["best_epoch"] == 3
    assert all(torch.equal(tensor, best[name]) for name, tensor in run.classifier.state_dict().items())


def test_the_best_epoch_from_before_a_stop_is_kept_after_it(dataset: Path, tiny: str, tmp_path: Path) -> None:
    location = str(tmp_path / "checkpoints")
    stopped, train, validation = a_run(dataset, tiny, epochs=3)

    def spoil_after_the_first(epoch: int, values: dict[str, float]) -> None:
        with torch.no_grad():
            stopped.classifier.classifier.weight.neg_()

    with pytest.MonkeyPatch.context() as patched:
        stop_at(12, patched)
        with trainer.stop_signal() as signalled, pytest.raises(Interrupted):
            stopped.fit(train, validation, location, 500, spoil_after_the_first, signalled)
    resumed, *_ = a_run(dataset, tiny, epochs=3)
    resumed.fit(train, validation, location, 500, lambda epoch, values: None, threading.Event())
    assert resumed.best_epoch == 1
    assert all(torch.equal(tensor, stopped.best[name]) for name, tensor in resumed.classifier.state_dict().items())


def test_the_facts_of_a_run_say_what_was_done(dataset: Path, model_folder: Path, tiny: str) -> None:
    facts = json.loads((model_folder / "training.json").read_text())
    assert facts["profile"]["name"] == "minilm"
    assert facts["profile"]["epochs"] == 6
    assert facts["steps"] == 6 * STEPS_PER_EPOCH
    assert facts["weights"] == tiny
    assert facts["dataset_digest"] == load_dataset(dataset)[1]["digest"]
    assert facts["max_length"] == 128
    assert facts["parameters"] > 20_000
    assert facts["peak_memory_bytes"] > 2**26
    assert 0 < facts["history"][0]["seconds"] < facts["history"][-1]["seconds"]
    alone = facts["seconds"] - sum(teacher["seconds"] for teacher in facts["teachers"])
    assert alone == pytest.approx(facts["history"][-1]["seconds"])
    assert len(facts["teachers"]) == facts["profile"]["teachers"]
    assert facts["torch"] == torch.__version__
    assert facts["hardware"]


def test_training_needs_no_test_split(dataset: Path, tiny: str, tmp_path: Path, undisturbed: dict[int, Result]) -> None:
    copied = tmp_path / "dataset"
    shutil.copytree(dataset, copied)
    shutil.rmtree(copied / "test")
    (copied / "dataset_dict.json").write_text(json.dumps({"splits": ["train", "validation"]}))
    trainer.train(copied, tmp_path / "model", "minilm", weights=tiny, epochs=SHORT)
    assert result_of(tmp_path / "model") == undisturbed[SHORT]


def stop_at(step: int, monkeypatch: pytest.MonkeyPatch, number: int = signal.SIGTERM) -> None:
    """From now on a run in this process gets a signal within its step of that number."""
    advance = trainer.Run.advance

    def advance_and_stop(run: trainer.Run, *args: Any) -> None:
        advance(run, *args)
        if run.step == step:
            os.kill(os.getpid(), number)

    monkeypatch.setattr(trainer.Run, "advance", advance_and_stop)


@pytest.mark.fault("training-killed")
@pytest.mark.parametrize("step", [1, 7, 8, 9, 16, 23])
def test_a_run_stopped_at_any_step_ends_as_if_it_had_not_been(
    step: int, dataset: Path, tiny: str, tmp_path: Path, undisturbed: dict[int, Result], caplog: pytest.LogCaptureFixture
) -> None:
    """At every kind of step: within an epoch, the last of one, the first of one."""
    location = str(tmp_path / "checkpoints")

    def start() -> dict[str, Any]:
        return trainer.train(
            dataset, tmp_path / "model", "minilm", weights=tiny, epochs=SHORT, checkpoint_location=location, checkpoint_steps=3
        )

    with pytest.MonkeyPatch.context() as patched:
        stop_at(step, patched)
        with pytest.raises(Interrupted, match=f"stopped at step {step} of 24: start it again to go on from {location}"):
            start()
    assert not (tmp_path / "model").exists()
    with caplog.at_level(logging.INFO):
        start()
    assert f"resuming minilm at step {step} of 24" in caplog.text
    assert result_of(tmp_path / "model") == undisturbed[SHORT]


def test_a_run_stopped_at_its_last_step_is_finished(
    dataset: Path, tiny: str, tmp_path: Path, undisturbed: dict[int, Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    stop_at(24, monkeypatch)
    trainer.train(dataset, tmp_path / "model", "minilm", weights=tiny, epochs=SHORT)
    assert result_of(tmp_path / "model") == undisturbed[SHORT]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
def test_without_checkpoints_a_stopped_run_says_that_it_starts_over(
    number: int, dataset: Path, tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop_at(5, monkeypatch, number)
    before = [signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)]
    with pytest.raises(Interrupted, match="stopped at step 5 of 24: it starts over next time"):
        trainer.train(dataset, tmp_path / "model", "minilm", weights=tiny, epochs=SHORT)
    assert [signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)] == before


class Command:
    """A running `goemotions train`, as a pod runs it."""

    def __init__(self, dataset: Path, output: Path, weights: str, location: str, errors: Path) -> None:
        self.errors = errors
        options = {
            "--profile": "minilm",
            "--dataset": str(dataset),
            "--output": str(output),
            "--weights": weights,
            "--epochs": str(LONG),
            "--checkpoints": location,
            "--checkpoint-steps": "5",
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
    trainer.train(
        dataset, tmp_path / "model", "minilm", weights=tiny, epochs=LONG, checkpoint_location=location, checkpoint_steps=50
    )
    return result_of(tmp_path / "model")


@pytest.mark.fault("training-killed")
def test_a_terminated_command_leaves_one_more_checkpoint_and_is_resumed_there(
    dataset: Path,
    tiny: str,
    tmp_path: Path,
    bucket: str,
    undisturbed: dict[int, Result],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """SIGTERM, checkpoints in S3."""
    command = Command(dataset, tmp_path / "model", tiny, bucket, tmp_path / "stderr")
    assert command.kill_when(lambda: bool(store.children(bucket)), signal.SIGTERM) == 1
    last = store.children(bucket)[-1]
    step = int(last.removeprefix("step-"))
    assert 5 <= step < LONG * STEPS_PER_EPOCH
    assert (tmp_path / "stderr").read_text().strip().splitlines()[-1] == (
        f"goemotions: training of minilm was stopped at step {step} of 48: start it again to go on from {bucket}"
    )
    assert store.read(store.join(bucket, last), manifest.NAME)
    assert not (tmp_path / "model").exists()
    with caplog.at_level(logging.INFO):
        assert resume(dataset, tiny, tmp_path, bucket) == undisturbed[LONG]
    assert f"resuming minilm at step {step} of 48" in caplog.text


def wide_weights(tiny: str, folder: Path) -> str:
    """Weights with a vocabulary so large that writing a checkpoint takes long enough to be hit."""
    shutil.copytree(tiny, folder)
    config = transformers.AutoConfig.from_pretrained(tiny, vocab_size=200_000)
    torch.manual_seed(7)
    transformers.AutoModel.from_config(config).save_pretrained(folder)
    return str(folder)


@pytest.mark.fault("training-killed", "checkpoint-partial")
def test_a_command_killed_while_it_writes_a_checkpoint_is_resumed_from_the_one_before(
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
    assert f"resuming minilm at step {int(before.removeprefix('step-'))} of 48" in caplog.text
    trainer.train(dataset, tmp_path / "undisturbed", "minilm", weights=wide, epochs=LONG)
    assert resumed == result_of(tmp_path / "undisturbed")


def interrupted(dataset: Path, tiny: str, location: str, **options: Any) -> None:
    """Leaves the checkpoints of a run that was stopped after two epochs."""
    with pytest.MonkeyPatch.context() as patched:
        stop_at(18, patched)
        with pytest.raises(Interrupted):
            trainer.train(
                dataset, Path(location) / "none", "minilm", weights=tiny, epochs=SHORT, checkpoint_location=location, **options
            )


@pytest.mark.fault("checkpoints-corrupt")
def test_where_every_checkpoint_is_corrupt_training_starts_over(
    dataset: Path, tiny: str, tmp_path: Path, undisturbed: dict[int, Result], caplog: pytest.LogCaptureFixture
) -> None:
    location = tmp_path / "checkpoints"
    interrupted(dataset, tiny, str(location))
    states = list(location.glob("*/state.safetensors"))
    assert len(states) == checkpoints.KEPT
    for state in states:
        state.write_bytes(state.read_bytes()[:-100])
    trainer.train(
        dataset, tmp_path / "model", "minilm", weights=tiny, epochs=SHORT, checkpoint_location=str(location), checkpoint_steps=3
    )
    assert f"no checkpoint below {location} can be used: training starts over" in caplog.text
    assert result_of(tmp_path / "model") == undisturbed[SHORT]


def test_checkpoints_of_another_seed_are_not_used(
    dataset: Path, tiny: str, tmp_path: Path, undisturbed: dict[int, Result], caplog: pytest.LogCaptureFixture
) -> None:
    location = str(tmp_path / "checkpoints")
    interrupted(dataset, tiny, location, seed=1)
    trainer.train(dataset, tmp_path / "model", "minilm", weights=tiny, epochs=SHORT, checkpoint_location=location)
    assert "it belongs to another run" in caplog.text
    assert result_of(tmp_path / "model") == undisturbed[SHORT]


def test_checkpoints_of_other_data_are_not_used(
    source: Path, dataset: Path, tiny: str, tmp_path: Path, undisturbed: dict[int, Result], caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(source, tmp_path / "source")
    train = tmp_path / "source" / "train.tsv"
    train.write_text("".join(train.read_text().splitlines(keepends=True)[:-1]))
    ingest(str(tmp_path / "source"), tmp_path / "dataset")
    location = str(tmp_path / "checkpoints")
    interrupted(tmp_path / "dataset", tiny, location)
    trainer.train(dataset, tmp_path / "model", "minilm", weights=tiny, epochs=SHORT, checkpoint_location=location)
    assert "it belongs to another run" in caplog.text
    assert result_of(tmp_path / "model") == undisturbed[SHORT]


@pytest.mark.fault("loss-not-finite")
def test_a_loss_that_is_no_number_ends_the_run(
    dataset: Path, tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(profiles.PROFILES, "minilm", dataclasses.replace(profiles.get("minilm"), learning_rate=1e38))
    location = tmp_path / "checkpoints"
    with pytest.raises(
        TrainingError, match=r"the loss of minilm is not finite by step \d+: lower the learning rate \(now 1e\+38\)"
    ):
        trainer.train(
            dataset, tmp_path / "model", "minilm", weights=tiny, checkpoint_location=str(location), checkpoint_steps=3
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
        trainer.train(dataset, tmp_path / "model", "minilm", weights=tiny)
    assert not (tmp_path / "model").exists()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.fault("gpu-memory-full")
def test_real_exhaustion_of_gpu_memory_names_the_setting_to_lower(dataset: Path, tiny: str, tmp_path: Path) -> None:
    """With a GPU of which this process may use almost nothing."""
    wide = wide_weights(tiny, tmp_path / "weights")
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(1e-6)
    try:
        with pytest.raises(TrainingError, match="out of GPU memory"):
            trainer.train(dataset, tmp_path / "model", "minilm", weights=wide)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


def test_an_unknown_profile_and_a_folder_without_data_are_named(dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="there is no model profile 'gpt'"):
        trainer.train(dataset, tmp_path / "model", "gpt")
    with pytest.raises(DataError, match="is not a Dataset folder"):
        trainer.train(tmp_path, tmp_path / "model", "minilm")


def test_bf16_trains_to_about_the_same_numbers(
    dataset: Path, tiny: str, tmp_path: Path, undisturbed: dict[int, Result]
) -> None:
    facts = trainer.train(dataset, tmp_path / "model", "minilm", weights=tiny, epochs=1, precision="bf16")
    assert facts["precision"] == "bf16"
    assert facts["history"][0]["train/loss"] == pytest.approx(undisturbed[SHORT].history[0]["train/loss"], rel=0.02)
    written = load_classifier(tmp_path / "model")
    assert {parameter.dtype for parameter in written.parameters()} == {torch.float32}


def test_the_head_learns_faster_and_only_matrices_decay(dataset: Path, tiny: str) -> None:
    run, *_ = a_run(dataset, tiny, epochs=1)
    of = {id(parameter): name for name, parameter in run.classifier.named_parameters()}
    groups = optimizers.parameter_groups(run.classifier, run.profile)
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
    drawn = trainer.batches(rows, size, seed, epoch)
    assert sorted(position for batch in drawn for position in batch) == list(range(len(rows)))
    assert len(drawn) == math.ceil(len(rows) / size)
    assert all(1 <= len(batch) <= size for batch in drawn)
    assert drawn == trainer.batches(rows, size, seed, epoch)


def test_another_epoch_or_seed_draws_other_batches() -> None:
    rows = [[0] * (1 + number % 9) for number in range(200)]
    drawn = [trainer.batches(rows, 8, seed, epoch) for seed, epoch in ((0, 0), (0, 1), (1, 0))]
    assert drawn[0] != drawn[1] != drawn[2] != drawn[0]


def test_batches_hold_rows_of_like_length() -> None:
    lengths = np.random.default_rng(0).integers(1, 129, 3200)
    drawn = trainer.batches([[0] * int(length) for length in lengths], 32, 0, 0)
    padded = sum(len(batch) * int(lengths[batch].max()) for batch in drawn)
    assert padded < 1.05 * lengths.sum()


@given(progress=st.floats(0, 1), warmup=st.sampled_from([0.0, 0.06, 0.1, 0.5]))
@settings(max_examples=50, deadline=None)
def test_the_schedule_stays_between_nothing_and_its_peak(progress: float, warmup: float) -> None:
    assert 0 <= optimizers.schedule(progress, warmup) <= 1


def test_the_schedule_rises_to_its_peak_and_falls_to_nothing() -> None:
    points = [optimizers.schedule(step / 100, 0.1) for step in range(101)]
    assert points[0] == points[100] == 0
    assert points[10] == max(points) == 1
    assert points[5] == pytest.approx(0.5)
    assert points[55] == pytest.approx(0.5)
    assert np.allclose(np.diff(points[:11]), 0.1)
    assert np.allclose(np.diff(points[10:]), -1 / 90)


@given(drawn=st.data(), rows=st.integers(1, 6), columns=st.integers(1, 5))
@settings(max_examples=50, deadline=None)
def test_the_validation_loss_is_binary_cross_entropy(drawn: st.DataObject, rows: int, columns: int) -> None:
    labels = drawn.draw(arrays(np.int64, (rows, columns), elements=st.integers(0, 1))).astype(np.float32)
    scores = drawn.draw(arrays(np.int64, (rows, columns), elements=st.integers(1, 999))).astype(np.float32) / 1000
    expected = torch.nn.functional.binary_cross_entropy(torch.from_numpy(scores), torch.from_numpy(labels))
    assert trainer.binary_loss(labels, scores) == pytest.approx(float(expected), rel=1e-4, abs=1e-5)


def test_the_validation_loss_of_certain_errors_is_finite() -> None:
    assert math.isfinite(trainer.binary_loss(np.array([[1.0, 0.0]]), np.array([[0.0, 1.0]])))
