"""The benchmark of a GPU, in its small form on a CPU, and the archive that it travels in."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from benchmarks import gpu, gpu_archive, sections

# Installed here, but not on the machine that the benchmark is for: modules of the archive must not import them. torch and
# transformers may, since they look first whether a package is there.
MISSING = ("mlflow", "kfp", "boto3", "botocore", "onnx", "onnxruntime", "openvino", "nncf", "datasets", "pandas", "pyarrow")
MISSING += ("scipy", "sklearn", "click", "kserve", "psutil", "kubernetes", "altair", "pydantic")
BARE = f"""
import sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        frame = sys._getframe(1)
        while frame.f_back and "importlib" in frame.f_code.co_filename:
            frame = frame.f_back
        if "/machine/" in frame.f_code.co_filename and name.partition(".")[0] in {MISSING!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Missing())
"""


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results of the small form, run from the unpacked archive without the libraries that a bare machine lacks."""
    folder = tmp_path_factory.mktemp("gpu")
    gpu_archive.prepare(folder / "gpu.tar.gz", folder / "no-wheels")
    with tarfile.open(folder / "gpu.tar.gz") as tar:
        tar.extractall(folder / "machine", filter="data")
    (folder / "site").mkdir()
    (folder / "site" / "sitecustomize.py").write_text(BARE, encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": f"{folder / 'site'}:{folder / 'machine'}", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "benchmarks.gpu", "--small", "--models", "distilbert", "--output", str(folder / "results")]
    ended = subprocess.run(
        command, cwd=folder / "machine", env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert ended.returncode == 0, ended.stderr[-2000:]
    return folder / "results"


@pytest.mark.slow
@pytest.mark.fault("training-killed")
def test_every_section_is_measured_on_a_bare_machine(results: Path) -> None:
    rows = json.loads((results / gpu.JSON_FILE).read_text(encoding="utf-8"))["rows"]
    assert list(rows) == [f"distilbert: {part}" for part in ("training", "bf16 and fp32", "serving", "resuming")]
    measured = {what: text for part in rows.values() for what, text in part}
    assert "failed" not in measured
    assert "samples/s" in measured["former recipe, fp32"]
    assert any(what.startswith("ours, ") for what in measured)
    assert re.match(r"distilbert at step \d+ of 4; ended in", measured["after SIGKILL"])


def test_results_are_published_beside_the_other_sections(tmp_path: Path) -> None:
    results = gpu.Results(tmp_path, "a machine")
    with results.section("distilbert: serving") as add:
        add("engine torch, bf16", "9 texts/s")
    document = tmp_path / "benchmarks.md"
    sections.write(document, {"Growth": "`two`"})
    gpu.publish(tmp_path, document)
    assert list(sections.read(document)) == ["Growth", gpu.TITLE]
    assert "| distilbert: serving | engine torch, bf16 | 9 texts/s |" in document.read_text(encoding="utf-8")


@pytest.mark.slow
def test_training_parity_and_serving_are_measured(tmp_path: Path) -> None:
    measured: dict[str, str] = {}
    material = gpu.Material.make("distilbert", tmp_path, gpu.SMALL)
    loop = gpu.training(material, gpu.SMALL, measured.__setitem__)
    gpu.parity(material, loop, gpu.SMALL, measured.__setitem__)
    gpu.serving(material, loop, gpu.SMALL, measured.__setitem__)
    for recipe in ("former recipe, fp32", "former recipe, TF32", "Trainer, tuned"):
        assert re.match(r"[\d,.]+ samples/s", measured[recipe])
    largest = measured["largest difference of a probability, bf16 and fp32"]
    assert 0 < float(largest.partition(" ")[0]) < 0.01
    assert sum("texts/s" in text for text in measured.values()) == 3


def test_a_failed_section_leaves_the_others(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = gpu.Results(tmp_path, "a machine")
    with results.section("first") as add:
        add("rate", "12 samples/s")
        raise RuntimeError("no such kernel")
    with contextlib.suppress(gpu.TimeIsUp), results.section("second") as add:
        add("rate", "13 samples/s")
        raise gpu.TimeIsUp
    rows = json.loads((tmp_path / gpu.JSON_FILE).read_text(encoding="utf-8"))["rows"]
    assert rows["first"][:2] == [["rate", "12 samples/s"], ["failed", "RuntimeError: no such kernel"]]
    assert rows["second"][:2] == [["rate", "13 samples/s"], ["cut off", "the time is up"]]
    assert "| second | rate | 13 samples/s |" in (tmp_path / gpu.MARKDOWN_FILE).read_text(encoding="utf-8")
    assert "rate: 12 samples/s" in capsys.readouterr().out


def test_the_archive_has_source_sample_data_and_wheels_and_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    with zipfile.ZipFile(wheels / "travelling-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("travelling.py", "WHERE = 'a wheel'\n")
    gpu_archive.prepare(tmp_path / "gpu.tar.gz", wheels)
    with tarfile.open(tmp_path / "gpu.tar.gz") as tar:
        names = tar.getnames()
    assert {"benchmarks/gpu.py", "goemotions/data/sample/train.tsv", "wheels/travelling-1.0-py3-none-any.whl"} <= set(names)
    assert not [name for name in names if "__pycache__" in name]
    monkeypatch.setattr(sys, "path", list(sys.path))
    gpu_archive.add_wheels(wheels, tmp_path / "packages")
    import travelling  # type: ignore[import-not-found]

    assert travelling.WHERE == "a wheel"
    monkeypatch.setattr(gpu_archive, "LARGEST_ARCHIVE", 1000)
    with pytest.raises(SystemExit, match="leave out wheels"):
        gpu_archive.prepare(tmp_path / "gpu.tar.gz", wheels)
    assert not (tmp_path / "gpu.tar.gz").exists()


def test_made_up_texts_have_the_lengths_of_the_sample_and_labels_follow_from_words() -> None:
    sample = ["a b c", "a b", "a"]
    texts = gpu.made_up_texts(sample, 50)
    assert {len(text.split()) for text in texts} == {1, 2, 3}
    labels = gpu.labels_of(sample, ["a c", "b"])
    assert [row[:3] for row in labels] == [[1.0, 0.0, 1.0], [0.0, 1.0, 0.0]]
