"""Registrations by many processes that are killed at random: each run is one version, and the champion is the best of them."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import threading
import time
from collections import deque
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest

from goemotions import defaults
from goemotions.evaluation import tuning
from goemotions.evaluation.predictions import FILE, Predictions
from goemotions.registry import changes, mlflow_client, model_registry, promotion, registration, tracking
from goemotions.registry.candidates import CandidateArtifacts
from goemotions.storage import manifest
from goemotions.storage import store as storage

ROOT = Path(__file__).parents[2]
ALIAS = "champion-cpu"


@pytest.fixture(scope="module")
def qualities(candidate: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Folders of a profile from worst to best: the share of rows with random scores falls."""
    root = tmp_path_factory.mktemp("qualities")
    return [spoilt(candidate, root / str(number), share) for number, share in enumerate((0.9, 0.7, 0.5, 0.3, 0.1, 0.0))]


def spoilt(candidate: Path, folder: Path, share: float) -> Path:
    shutil.copytree(candidate, folder, symlinks=True)
    shutil.rmtree(folder / "gpu")
    for split in ("validation", "test"):
        path = folder / "cpu" / split / FILE
        predictions = Predictions.read(path)
        generator = np.random.default_rng(7)
        noise = generator.random(predictions.labels.shape)
        # The random rows of a better folder are a subset of those of a worse one.
        is_random = (np.arange(len(predictions.labels)) < share * len(predictions.labels))[:, None]
        scores = np.where(is_random, noise, np.where(predictions.labels, 0.95, 0.05))
        replace(predictions, probabilities=scores.astype(np.float32)).write(path)
    tuning.tune(folder / "cpu" / "validation", folder / "cpu" / "thresholds")
    return folder


class Crew:
    """Registers jobs by several processes; jobs of killed processes are run again by others."""

    def __init__(self, dataset: Path, store: str, model: str, jobs: list[str], processes: int) -> None:
        self.command = [sys.executable, str(ROOT / "tests" / "support" / "registering.py"), str(dataset), store, model]
        self.left = deque(jobs)
        self.done: list[str] = []
        self.failed: list[str] = []
        self.kills = 0
        self.running: dict[int, subprocess.Popen[str]] = {}
        self.threads = [threading.Thread(target=self._work, args=(number,)) for number in range(processes)]

    def _work(self, number: int) -> None:
        while True:
            mine = [self.left.popleft() for _ in range(min(8, len(self.left)))]
            if not mine:
                return
            process = subprocess.Popen([*self.command, *mine], cwd=ROOT, stdout=subprocess.PIPE, text=True)
            self.running[number] = process
            assert process.stdout
            for line in process.stdout:
                word, run, *reason = line.split(maxsplit=2)
                (self.done if word == "done" else self.failed).append(run if word == "done" else f"{run} {reason}")
                if word == "done":
                    mine = [job for job in mine if job.partition("=")[0] != run]
            process.wait()
            self.left.extend(mine)

    def run(self, kill_every: float, seed: int) -> None:
        generator = random.Random(seed)
        for thread in self.threads:
            thread.start()
        while any(thread.is_alive() for thread in self.threads):
            time.sleep(kill_every * generator.uniform(0.5, 1.5))
            alive = [process for process in self.running.values() if process.poll() is None]
            if len(self.left) > 8 and alive:
                generator.choice(alive).kill()
                self.kills += 1


@pytest.mark.slow
@pytest.mark.fault("registrations-concurrent", "registration-interrupted", "registration-response-lost")
def test_two_hundred_registrations_by_eight_processes_with_random_kills(
    stack: Path, dataset: Path, qualities: list[Path], bucket: str, capsys: pytest.CaptureFixture[str]
) -> None:
    model = "exactly-once"
    generator = random.Random(3)
    runs = {f"once-{number}": generator.randrange(len(qualities)) for number in range(160)}
    jobs = [f"{run}={qualities[quality]}" for run, quality in runs.items()]
    # Two processes register forty of the runs, often at once, like a step that is retried while its first attempt still runs.
    jobs = sorted(jobs + jobs[:40], key=lambda _: generator.random())
    crew = Crew(dataset, bucket, model, jobs, processes=8)
    began = time.monotonic()
    crew.run(kill_every=8.0, seed=5)
    with capsys.disabled():
        print(
            f"\n{len(crew.done)} registrations, {crew.kills} kills, {len(crew.failed)} tried again, {time.monotonic() - began:.0f} s"
        )
    assert crew.kills >= 5
    assert set(crew.done) == set(runs)

    client = mlflow.MlflowClient(os.environ["MLFLOW_TRACKING_URI"])
    versions = client.search_model_versions(f"name='{model}'", max_results=1000)
    assert len(versions) == len({version.source for version in versions}) == len(runs)
    quality_of = {}
    for version in versions:
        run = client.get_run(version.run_id)
        quality_of[version.version] = runs[run.data.tags[tracking.RUN_TAG]]
        assert storage.read(version.source, manifest.NAME) is not None
    experiment = client.get_experiment_by_name(defaults.EXPERIMENT)
    names = [run.data.tags.get(tracking.RUN_TAG) for run in client.search_runs([experiment.experiment_id], max_results=5000)]
    assert [run for run in runs if names.count(run) != 2] == [], "each has one parent and one child"
    champion = model_registry.get_version(model, ALIAS)
    assert quality_of[champion.number] == max(runs.values())
    moves = sorted(
        (change.at, change.after)
        for version in versions
        for change in changes.history(model_registry.get_version(model, version.version), ALIAS)
    )
    heights = [quality_of[to] for _, to in moves]
    assert heights == sorted(heights), "the champion never became worse"
    assert moves[-1][1] == champion.number
    bundle = storage.fetch(champion.source, dataset.parent / "champion")
    assert manifest.verify(bundle)["variant"] == "cpu"


@pytest.mark.slow
@pytest.mark.fault("registrations-concurrent")
def test_two_concurrent_runs_register_two_versions_and_the_better_is_champion(
    stack: Path, dataset: Path, qualities: list[Path], bucket: str
) -> None:
    crew = Crew(dataset, bucket, "at-once", [], processes=0)
    jobs = [f"at-once-{number}={qualities[quality]}" for number, quality in enumerate((0, 5, 3))]
    processes = [subprocess.Popen([*crew.command, job], cwd=ROOT, stdout=subprocess.PIPE, text=True) for job in jobs]
    assert [process.communicate(timeout=120)[0] for process in processes] == [f"done at-once-{n}\n" for n in range(3)]
    champion = model_registry.get_version("at-once", ALIAS)
    run = mlflow_client.client().get_run(champion.run_id)
    assert run.data.tags[tracking.RUN_TAG] == "at-once-1"
    versions = mlflow_client.client().search_model_versions("name='at-once'")
    assert len(versions) == 3


@pytest.mark.fault("registrations-concurrent")
def test_a_step_that_runs_twice_at_once_registers_one_version(
    stack: Path, dataset: Path, qualities: list[Path], bucket: str
) -> None:
    crew = Crew(dataset, bucket, "twice", [], processes=0)
    command = [*crew.command, f"twice-1={qualities[2]}"]
    processes = [subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert {process.communicate(timeout=120)[0] for process in processes} == {"done twice-1\n"}
    (version,) = mlflow_client.client().search_model_versions("name='twice'")
    assert manifest.verify(storage.fetch(version.source, dataset.parent / "twice"))["variant"] == "cpu"


@pytest.mark.fault("registration-interrupted")
def test_a_retry_does_not_undo_a_rollback(stack: Path, dataset: Path, qualities: list[Path], bucket: str) -> None:
    def register(run: str, quality: int) -> dict[str, Any]:
        parts = {"cpu": [CandidateArtifacts.below(qualities[quality], "cpu")]}
        return registration.register(
            dataset, parts, store=bucket, pipeline_run=run, model_name="taken-back", auto_promote=True
        )["cpu"]

    register("taken-back-1", 2)
    assert register("taken-back-2", 5)["alias"] == ALIAS
    promotion.rollback("cpu", model_name="taken-back")
    assert register("taken-back-2", 5)["alias"] == "challenger-cpu"
    assert model_registry.get_version("taken-back", ALIAS).number == "1"
    assert promotion.promote("2", model_name="taken-back").after == "2"
