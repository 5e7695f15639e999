"""The report names the winners of registration."""

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from goemotions.evaluation.predictions import FILE, Predictions
from goemotions.evaluation.selection import latency_limit, select_winner
from goemotions.metrics import thresholds
from goemotions.metrics.thresholds import StrategyResult, Thresholds, ThresholdsFile
from goemotions.models.records import CalibrationRecord, ExportRecord, TrainingRecord
from goemotions.registry.bundle import ENGINES, VARIANTS
from goemotions.registry.candidates import CandidateArtifacts
from goemotions.report import use_cases
from goemotions.report.result import Result

NAMES = ("a", "b", "c")
# The noise of each profile's logits: the second is the best, the third the next best.
NOISE = {"first": 3.0, "second": 0.5, "third": 1.5}


def write_candidate(folder: Path, profile: str, latency_ms: float) -> Path:
    """What the steps of a profile leave, as far as selection and the use cases read it."""
    random = np.random.default_rng(0)
    labels = random.random((80, 3)) < 0.4
    logits = 2.0 * labels - 1 + NOISE[profile] * random.normal(size=labels.shape)
    probabilities = (1 / (1 + np.exp(-logits))).astype(np.float32)
    measured = asdict(ExportRecord(0.0, 0.0, 2**20, latency_ms, latency_ms))
    for name in ("model", "onnx"):
        (folder / name).mkdir(parents=True)
    training = TrainingRecord(
        profile={"name": profile},
        parameters=10,
        precision="fp32",
        seed=0,
        steps=1,
        best_epoch=1,
        history=[],
        seconds=1,
        hardware="",
        weights="",
        dataset_digest="d",
        max_length=128,
        calibration=CalibrationRecord("none", (), (), []),
    )
    (folder / "model" / "training.json").write_text(json.dumps(asdict(training)), encoding="utf-8")
    (folder / "onnx" / "export.json").write_text(json.dumps(dict.fromkeys(ENGINES.values(), measured)), encoding="utf-8")
    for variant in VARIANTS:
        artifacts = CandidateArtifacts.below(folder, variant)
        for split, place in (("validation", artifacts.validation), ("test", artifacts.test)):
            place.mkdir(parents=True)
            ids = [f"{split}-{i}" for i in range(len(labels))]
            Predictions(NAMES, ids, labels, probabilities, split, ENGINES[variant], "d").write(place / FILE)
        artifacts.thresholds.mkdir()
        fitted = Thresholds("global-0.5", (0.5,) * 3)
        results = [StrategyResult(fitted, {"f1_macro": 0.5}, 0.5)]
        ThresholdsFile(fitted, NAMES, results).write(artifacts.thresholds / thresholds.FILE)
    return folder


@pytest.mark.parametrize(
    ("latencies", "gpu", "cpu", "reason"),
    [
        ((5, 5, 5), "second", "second", "the best on validation of those within the latency budget of 25 ms"),
        ((5, 25.1, 5), "second", "third", "the best on validation of those within the latency budget of 25 ms"),
        ((40, 50, 30), "second", "third", "the fastest, since no candidate is within the latency budget of 25 ms"),
    ],
    ids=["all within", "best too slow", "none within"],
)
def test_the_report_names_the_winners_of_registration(
    tmp_path: Path, latencies: tuple[float, ...], gpu: str, cpu: str, reason: str
) -> None:
    folders = [write_candidate(tmp_path / profile, profile, latency) for profile, latency in zip(NOISE, latencies, strict=True)]
    artifacts = {variant: [CandidateArtifacts.below(folder, variant) for folder in folders] for variant in VARIANTS}
    registered = {}
    for variant in VARIANTS:
        scores = [Result.read(variant, one).scores for one in artifacts[variant]]
        registered[variant] = scores[select_winner(scores, latency_limit(variant, 25.0))].profile
    assert registered == {"gpu": gpu, "cpu": cpu}

    results = [Result.read(variant, one) for variant in VARIANTS for one in artifacts[variant]]
    text = "\n".join(use_cases.recommendation(results, 25.0).text)
    assert f"On a GPU, serve {gpu} (torch): the best on validation." in text
    assert f"On CPUs, serve {cpu} (openvino-int8): {reason}" in text
