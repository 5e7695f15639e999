"""Bundles: their location in the store, and bundles in former formats."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import mlflow.pyfunc
import pytest

from goemotions.errors import DataError, ModelError
from goemotions.prediction.predictor import Predictor
from goemotions.registry import bundle
from goemotions.registry.bundle import BundleLocation
from goemotions.storage import manifest
from tests.support.servers import serving

ROOT = Path(__file__).parents[2]
TEXTS = ["we saw the lake", "gravel and a balloon"]


@pytest.fixture
def rewrite(whole: Path, tmp_path: Path) -> Callable[[Callable[[Path], None]], Path]:
    """A function that copies a bundle, applies a change and writes a new manifest."""

    def apply(change: Callable[[Path], None]) -> Path:
        folder = tmp_path / "bundle"
        shutil.copytree(whole, folder)
        change(folder)
        metadata = {name: value for name, value in json.loads((folder / manifest.NAME).read_text()).items() if name != "files"}
        manifest.write(folder, **metadata)
        return folder

    return apply


def test_a_location_is_written_and_parsed() -> None:
    location = BundleLocation("s3://bucket/prefix/", "goemotions", "0f", "cpu")
    assert str(location) == "s3://bucket/prefix/models/goemotions/0f/cpu/"
    assert location.model_prefix == "s3://bucket/prefix/models/goemotions/"
    assert BundleLocation.parse(str(location)) == BundleLocation.parse(str(location).rstrip("/")) == location
    assert str(BundleLocation.parse("/data/store/models/m/r/gpu/")) == "/data/store/models/m/r/gpu/"


@pytest.mark.parametrize(
    "location", ["s3://bucket/models/m/r/tpu/", "s3://bucket/m/r/cpu/", "s3://bucket/other/m/r/cpu/", "models", ""]
)
def test_another_location_is_rejected(location: str) -> None:
    with pytest.raises(ModelError, match=r"is not <store>/models/<model>/<run>/<variant>/: give a bundle that was registered"):
        BundleLocation.parse(location)


def test_a_bundle_without_a_file_of_labels_has_those_of_its_thresholds(
    whole: Path, rewrite: Callable[[Callable[[Path], None]], Path]
) -> None:
    assert json.loads((whole / bundle.LABELS).read_text()) == list(bundle.load(whole).taxonomy.names)
    older = rewrite(lambda folder: (folder / bundle.LABELS).unlink())
    assert bundle.load(older).taxonomy == bundle.taxonomy(str(older)) == bundle.load(whole).taxonomy
    assert Predictor.load(older, threads=1).predict(TEXTS) == Predictor.load(whole, threads=1).predict(TEXTS)


@pytest.mark.parametrize("content", ["{", "5", "[1]", '["a", "a"]'])
def test_damaged_labels_are_reported(rewrite: Callable[[Callable[[Path], None]], Path], content: str) -> None:
    folder = rewrite(lambda folder: (folder / bundle.LABELS).write_text(content) and None)
    with pytest.raises((ModelError, DataError), match=r"labels.json is damaged|twice"):
        bundle.load(folder)


# As sitecustomize.py: each process, and those that it starts, writes the name of every bundle file that Python opens for reading.
RECORD_READS = """
import os, sys
def record(event, arguments, folder=os.environ["RECORDED_FOLDER"] + "/", log=os.environ["RECORDED_LOG"]):
    if event == "open" and str(arguments[0]).startswith(folder) and "r" in (arguments[1] or ""):
        with open(log, "a") as file:
            file.write(str(arguments[0]).removeprefix(folder) + chr(10))
sys.addaudithook(record)
"""


@pytest.fixture
def reads_of_weights(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """A function that counts how often processes have opened the bundle's weights in Python.

    OpenVINO reads them by itself, so that Python opens them only to hash them.
    """
    (tmp_path / "sitecustomize.py").write_text(RECORD_READS)
    log = tmp_path / "reads"
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{ROOT}")
    monkeypatch.setenv("RECORDED_FOLDER", str(whole))
    monkeypatch.setenv("RECORDED_LOG", str(log))
    return lambda: log.read_text().splitlines().count("model.int8.onnx")


def test_the_server_hashes_the_bundle_once_at_start(whole: Path, tmp_path: Path, reads_of_weights: Callable[[], int]) -> None:
    with serving(whole, tmp_path / "log", "--workers", "2"):
        assert reads_of_weights() == 1


def test_mlflow_hashes_the_bundle_once_when_it_loads_it(whole: Path, reads_of_weights: Callable[[], int]) -> None:
    script = "import mlflow.pyfunc, sys; mlflow.pyfunc.load_model(sys.argv[1])"
    subprocess.run([sys.executable, "-c", script, str(whole)], check=True, timeout=120, capture_output=True)
    assert reads_of_weights() == 1


def test_mlflow_loads_a_bundle_that_names_the_former_loader(
    whole: Path, rewrite: Callable[[Callable[[Path], None]], Path]
) -> None:
    def name_former_loader(folder: Path) -> None:
        text = (folder / "MLmodel").read_text()
        assert "loader_module: goemotions.prediction.predictor" in text
        (folder / "MLmodel").write_text(text.replace("goemotions.prediction.predictor", "goemotions.predictor"))

    loaded = mlflow.pyfunc.load_model(str(rewrite(name_former_loader)))
    assert loaded.predict(TEXTS) == Predictor.load(whole).predict(TEXTS)
