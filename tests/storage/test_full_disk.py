"""A full disk is a named error of every step, and earlier outputs stay as they were."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from goemotions.data.request_log import Labels
from goemotions.prediction.files import score_file
from goemotions.prediction.predictor import Predictor
from goemotions.storage import manifest
from tests.support import bundles, request_logs, tools


def on_a_small_disk(folder: Path, kilobytes: int, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Runs a command in its own mount namespace with a file system of this size at the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    command = shlex.join([sys.executable, "-m", "goemotions.cli", *map(str, arguments)])
    script = f"mount -t tmpfs -o size={kilobytes}k tmpfs {shlex.quote(str(folder))} && exec {command}"
    own = [
        tools.program("unshare", why="it mounts a small disk"),
        *([] if os.geteuid() == 0 else ["--user", "--map-root-user"]),
        "--mount",
    ]
    if subprocess.run([*own, "mount", "-t", "tmpfs", "tmpfs", folder], capture_output=True, check=False).returncode:
        tools.missing("no permission to make a namespace or to mount in it: a full disk is not tested")
    return subprocess.run([*own, "sh", "-c", script], capture_output=True, text=True, check=False, timeout=120)


@pytest.fixture(scope="module")
def steps(
    source: Path,
    dataset: Path,
    candidate: Path,
    whole: Path,
    weights: Callable[[str], str],
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, list[str | Path]]:
    """The arguments of each step except its outputs."""
    folder = tmp_path_factory.mktemp("inputs")
    texts, scored, log = folder / "texts.csv", folder / "scored.parquet", folder / "log"
    texts.write_text("text\n" + "we saw the lake\n" * 300)
    score_file(Predictor.load(whole, threads=1), texts, scored)
    labels = Labels(("joy",), (0.5,))
    request_logs.write(
        log, labels, [request_logs.answer(f"answer-{at}", f"text {at}", {"joy": 0.9}, labels) for at in range(60)]
    )
    model, onnx = candidate / "model", candidate / "onnx"
    return {
        "ingest": ["ingest", "--source", source],
        "train": ["train", "--dataset", dataset, "--profile", "minilm", "--weights", weights("minilm"), "--epochs", "1"],
        "export": ["export", "--dataset", dataset, "--model", model],
        "evaluate": ["evaluate", "--dataset", dataset, "--model", model, "--onnx", onnx, "--engine", "torch"],
        "tune-thresholds": ["tune-thresholds", "--validation", candidate / "cpu" / "validation"],
        "report": ["report", "--dataset", dataset, "--candidate", candidate],
        "monitor": ["monitor", "--bundle", whole, "--scored", scored],
        "to-label": ["data", "to-label", "--log", log, "--format", "label-studio"],
    }


@pytest.mark.slow
@pytest.mark.fault("disk-full")
@pytest.mark.parametrize(
    ("step", "kilobytes"),
    [
        ("ingest", 16),
        ("train", 64),
        ("export", 64),
        ("evaluate", 4),
        ("tune-thresholds", 4),
        ("report", 64),
        ("monitor", 4),
        ("to-label", 8),
    ],
)
def test_a_full_disk_is_a_named_error_of_each_step(
    steps: dict[str, list[str | Path]], step: str, kilobytes: int, candidate: Path, tmp_path: Path
) -> None:
    disk = tmp_path / "disk"
    outputs: list[str | Path] = ["--output", disk / "out"]
    if step == "evaluate":
        outputs = ["--validation", disk / "validation", "--test", disk / "test"]
    before = {path: manifest.sha256(path) for path in candidate.rglob("*") if path.is_file()}
    finished = on_a_small_disk(disk, kilobytes, *steps[step], *outputs)
    assert finished.returncode == 1, finished.stderr
    (line,) = [line for line in finished.stderr.splitlines() if line.startswith("goemotions: ")]
    assert "the disk is full at" in line
    assert line.endswith("free space or write elsewhere")
    assert {path: manifest.sha256(path) for path in candidate.rglob("*") if path.is_file()} == before


@pytest.mark.slow
@pytest.mark.fault("disk-full")
def test_checkpoints_on_a_full_disk_end_the_training_with_a_named_error(
    steps: dict[str, list[str | Path]], tmp_path: Path
) -> None:
    disk = tmp_path / "disk"
    arguments = [
        *steps["train"],
        "--output",
        tmp_path / "model",
        "--checkpoints",
        disk / "checkpoints",
        "--checkpoint-minutes",
        "0",
    ]
    finished = on_a_small_disk(disk, 64, *arguments)
    assert finished.returncode == 1
    assert "the disk is full at" in finished.stderr
    assert not (tmp_path / "model").exists()


@pytest.mark.fault("disk-full")
def test_a_source_that_does_not_fit_on_the_disk_is_not_called_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = "".join(f"text {number},{('joy', 'fear')[number % 2]}\n" for number in range(30_000))
    with zipfile.ZipFile(tmp_path / "data.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for split in ("train", "dev", "test"):
            archive.writestr(f"{split}.csv", f"text,labels\n{rows}")
    disk = tmp_path / "disk"
    monkeypatch.setenv("TMPDIR", str(disk))
    finished = on_a_small_disk(disk, 64, "ingest", "--source", tmp_path / "data.zip", "--output", tmp_path / "out")
    assert finished.returncode == 1
    assert "ingest: the disk is full at" in finished.stderr


@pytest.mark.fault("disk-full")
def test_a_download_to_a_full_disk_leaves_the_bundle_as_it_was(candidate: Path, tmp_path: Path) -> None:
    bundles.assemble(tmp_path / "bundle", candidate)
    disk = tmp_path / "disk"
    finished = on_a_small_disk(disk, 64, "model", "download", f"{tmp_path}/bundle", "--output", disk / "model")
    assert finished.returncode == 1
    assert "No space left on device" in finished.stderr or "the disk is full" in finished.stderr
    assert manifest.verify(tmp_path / "bundle")["variant"] == "cpu"
