"""Bundles: their location in the store, and bundles in former formats."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow.pyfunc
import onnx
import pytest

from goemotions.errors import BadJson, DataError, IntegrityError, ModelError, WorkflowError
from goemotions.models import engines
from goemotions.models.engine_names import canonical_name
from goemotions.models.tokenizer import TextEncoder
from goemotions.prediction.predictor import Predictor
from goemotions.registry import bundle, references
from goemotions.registry.bundle import BundleLocation, Variant
from goemotions.storage import manifest
from tests.conftest import MadeOnce
from tests.support.bundles import assemble
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


def edited(name: str, change: Callable[[Any], Any]) -> Callable[[Path], None]:
    """A function that changes a JSON file of a folder: to what ``change`` returns, or in place."""

    def apply(folder: Path) -> None:
        content = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps(change(content) or content))

    return apply


def without(content: dict[str, Any], name: str) -> None:
    del content[name]


def renamed(content: dict[str, Any]) -> dict[str, Any]:
    return {f"other {name}": value for name, value in content.items()}


def for_six_labels(folder: Path) -> None:
    """All files but the weights: what is left is a model of seven labels."""
    edited(bundle.LABELS, lambda names: names[:-1])(folder)
    edited("thresholds.json", lambda content: without(content["thresholds"], "plain"))(folder)
    edited("reference.json", lambda content: without(content["traffic"]["labels"], "plain"))(folder)
    model_for_six_labels(folder)


def model_for_six_labels(folder: Path) -> None:
    edited("config.json", lambda content: without(content["id2label"], "6"))(folder)
    edited("training.json", lambda content: [content["calibration"][name].pop() for name in ("slope", "intercept")] and None)(
        folder
    )


MISFITS: dict[str, tuple[Callable[[Path], None], str]] = {
    "fewer labels": (edited("labels.json", lambda names: names[:-2]), r"thresholds\.json has 7 labels, but there are 5"),
    "more labels": (edited("labels.json", lambda names: [*names, "more"]), r"thresholds\.json has 7 labels, but there are 8"),
    "other order": (edited("labels.json", lambda names: names[::-1]), r"thresholds\.json calls label 0 'calm', but .* 'plain'"),
    "thresholds of others": (
        edited("thresholds.json", lambda content: content.update(thresholds=renamed(content["thresholds"]))),
        r"thresholds\.json calls label 0 'other calm'",
    ),
    "no k": (edited("thresholds.json", lambda content: content.update(k=0)), r"thresholds\.json is missing or damaged"),
    "k of text": (edited("thresholds.json", lambda content: content.update(k="3")), r"thresholds\.json is missing or damaged"),
    "reference of others": (
        edited("reference.json", lambda content: without(content["traffic"]["labels"], "calm")),
        r"reference\.json has 6 labels",
    ),
    "config of others": (
        edited("config.json", lambda content: content["id2label"].update({"2": "other"})),
        r"config\.json calls label 2 'other', but it is 'glee'",
    ),
    "short calibration": (
        edited("training.json", lambda content: content["calibration"].update(slope=[1.0])),
        r"a calibration of 1 labels, but there are 7",
    ),
    "longer texts": (
        edited("training.json", lambda content: content.update(max_length=4096)),
        r"max_length of 4096, but the model reads 512 tokens",
    ),
    "no room": (edited("training.json", lambda content: content.update(max_length=2)), r"max_length that is no such number"),
    "negative pad": (
        edited("config.json", lambda content: content.update(pad_token_id=-1)),
        r"pad_token_id or max_length that is no such number",
    ),
    "larger vocabulary": (
        edited("tokenizer.json", lambda content: content["model"]["vocab"].update(lake=9999)),
        r"embeds 187 tokens, but the tokenizer beside it has ids up to 9999",
    ),
    "other weights": (for_six_labels, r"the model has 7 outputs, but there are 6 labels"),
}


@pytest.mark.fault("bundle-mixed")
@pytest.mark.parametrize("misfit", MISFITS)
def test_files_that_are_not_of_one_model_are_refused_when_they_are_loaded(
    misfit: str, rewrite: Callable[[Callable[[Path], None]], Path]
) -> None:
    change, message = MISFITS[misfit]
    with pytest.raises(ModelError, match=message):
        Predictor.load(rewrite(change), threads=1)


@pytest.mark.fault("stored-json-hostile")
@pytest.mark.parametrize(("field", "value"), [("engine", {}), ("evaluated", -1), ("latency", [[]]), ("run_id", None)])
def test_a_manifest_with_a_value_of_another_type_is_a_named_error(
    whole: Path, tmp_path: Path, field: str, value: object
) -> None:
    folder = Path(shutil.copytree(whole, tmp_path / "bundle"))
    (folder / manifest.NAME).write_text(json.dumps(json.loads((folder / manifest.NAME).read_text()) | {field: value}))
    with pytest.raises(BadJson, match=rf"^MANIFEST\.json: {field} is not "):
        bundle.load(folder)


@pytest.mark.fault("bundle-mixed")
def test_a_network_with_fewer_embeddings_than_the_tokenizer_has_ids_is_refused(
    bundles_by_variant: dict[Variant, Path], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(bundles_by_variant["gpu"], tmp_path / "bundle"))
    edited("tokenizer.json", lambda content: content["model"]["vocab"].update(lake=9999))(folder)
    with pytest.raises(ModelError, match=r"embeds 187 tokens, but the tokenizer beside it has ids up to 9999"):
        engines.load("torch", folder, TextEncoder.load(folder))


@pytest.mark.fault("bundle-mixed")
@pytest.mark.parametrize(
    ("step", "message"),
    [
        ("thresholds", r"validation\.parquet has 7 labels, but there are 6"),
        ("model", r"config\.json calls label 2 'other'"),
    ],
)
def test_artifacts_of_different_models_do_not_become_a_bundle(step: str, message: str, candidate: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(candidate, tmp_path / "candidate"))
    if step == "model":
        edited("config.json", lambda content: content["id2label"].update({"2": "other"}))(folder / "model")
    else:
        edited("thresholds.json", lambda content: without(content["thresholds"], "plain"))(folder / "cpu" / "thresholds")
        model_for_six_labels(folder / "model")
    with pytest.raises(ModelError, match=message):
        assemble(tmp_path / "bundle", folder)
    assert not (tmp_path / "bundle" / manifest.NAME).exists()


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

    OpenVINO reads them by itself, so that Python opens them only to hash them, and once per engine to see where its weights are.
    """
    (tmp_path / "sitecustomize.py").write_text(RECORD_READS)
    log = tmp_path / "reads"
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{ROOT}")
    monkeypatch.setenv("RECORDED_FOLDER", str(whole))
    monkeypatch.setenv("RECORDED_LOG", str(log))
    return lambda: log.read_text().splitlines().count("model.int8.onnx")


def test_the_server_hashes_the_bundle_once_at_start(whole: Path, tmp_path: Path, reads_of_weights: Callable[[], int]) -> None:
    with serving(whole, tmp_path / "log", "--workers", "2"):
        assert reads_of_weights() == 1 + 2


def test_mlflow_hashes_the_bundle_once_when_it_loads_it(whole: Path, reads_of_weights: Callable[[], int]) -> None:
    script = "import mlflow.pyfunc, sys; mlflow.pyfunc.load_model(sys.argv[1])"
    subprocess.run([sys.executable, "-c", script, str(whole)], check=True, timeout=120, capture_output=True)
    assert reads_of_weights() == 1 + 1


def test_mlflow_loads_a_bundle_that_names_the_former_loader(
    whole: Path, rewrite: Callable[[Callable[[Path], None]], Path]
) -> None:
    def name_former_loader(folder: Path) -> None:
        text = (folder / "MLmodel").read_text()
        assert "loader_module: goemotions.prediction.predictor" in text
        (folder / "MLmodel").write_text(text.replace("goemotions.prediction.predictor", "goemotions.predictor"))

    loaded = mlflow.pyfunc.load_model(str(rewrite(name_former_loader)))
    assert loaded.predict(TEXTS) == Predictor.load(whole).predict(TEXTS)


@pytest.fixture(scope="module")
def bundles_by_variant(whole: Path, candidate: Path, made_once: MadeOnce) -> dict[Variant, Path]:
    return {"cpu": whole, "gpu": made_once("bundle-gpu", lambda folder: assemble(folder, candidate, "gpu"))}


READ = ("config.json", "training.json", "tokenizer.json", "thresholds.json")


@pytest.mark.fault("unnamed-file")
@pytest.mark.parametrize(
    ("variant", "name"),
    [
        (variant, name)
        for variant, weights in (("cpu", "model.int8.onnx"), ("gpu", "model.safetensors"))
        for name in (weights, *READ)
    ],
)
def test_a_file_that_the_manifest_does_not_name_counts_as_missing(
    variant: Variant, name: str, bundles_by_variant: dict[Variant, Path], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(bundles_by_variant[variant], tmp_path / "bundle"))
    unname(folder, name)
    with pytest.raises(WorkflowError, match=r"is missing|holds no (usable weights|model)") as raised:
        Predictor.load(folder, threads=1)
    assert name in str(raised.value) or "safetensors" in str(raised.value)


# What libraries look for beside the weights, and what this package reads if it is there.
EXTRA = (
    *("model.onnx", "model.safetensors", "model.int8.onnx.data", "model.onnx.data", "model.int8.bin", "openvino_model.bin"),
    *(
        "openvino_model.xml",
        "pytorch_model.bin",
        "model.safetensors.index.json",
        "adapter_config.json",
        "adapter_model.safetensors",
    ),
    *("config.4.0.0.json", "generation_config.json", "custom_generate/generate.py", "modeling.py", "added_tokens.json"),
    *("tokenizer.model", "chat_template.jinja", "special_tokens_map.json", "preprocessor_config.json", "quantize_config.json"),
)


@pytest.mark.fault("unnamed-file")
@pytest.mark.parametrize("variant", ["cpu", "gpu"])
def test_files_that_the_manifest_does_not_name_are_not_read(
    variant: Variant, bundles_by_variant: dict[Variant, Path], tmp_path: Path
) -> None:
    original = bundles_by_variant[variant]
    folder = Path(shutil.copytree(original, tmp_path / "bundle"))
    added = [name for name in EXTRA if not (folder / name).exists()]
    for name in added:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"{}\n" if name.endswith(".json") else b"no file of this format\n")
    (folder / "linked.json").symlink_to("/etc/hostname")
    loaded, expected = Predictor.load(folder, threads=1), Predictor.load(original, threads=1)
    assert loaded.engine.name == expected.engine.name == canonical_name(loaded.bundle.metadata.engine)
    assert loaded.predict(TEXTS) == expected.predict(TEXTS)
    copied = references.fetch(str(folder), tmp_path / "copy")
    assert copied is None
    assert {path.name for path in (tmp_path / "copy").iterdir()} == {path.name for path in original.iterdir()}


@pytest.mark.fault("unnamed-file")
def test_labels_that_the_manifest_does_not_name_are_not_read(
    whole: Path, rewrite: Callable[[Callable[[Path], None]], Path]
) -> None:
    older = rewrite(lambda folder: (folder / bundle.LABELS).unlink())
    (older / bundle.LABELS).write_text(json.dumps([f"forged {number}" for number in range(7)]))
    assert bundle.load(older).taxonomy == bundle.taxonomy(str(older)) == bundle.load(whole).taxonomy


@pytest.mark.fault("unnamed-file")
@pytest.mark.parametrize("name", [bundle.LABELS, "thresholds.json"])
def test_labels_that_differ_from_the_manifest_are_refused(name: str, rewrite: Callable[[Callable[[Path], None]], Path]) -> None:
    folder = rewrite(lambda folder: (folder / bundle.LABELS).unlink() if name != bundle.LABELS else None)
    (folder / name).write_text((folder / name).read_text().replace("calm", "clam"))
    with pytest.raises(IntegrityError, match=f"{name} is missing or differs from its manifest"):
        bundle.taxonomy(str(folder))


@pytest.mark.fault("unnamed-file", "graph-with-other-weights")
@pytest.mark.parametrize("location", ["weights", "../weights", "{outside}"], ids=["beside", "above", "absolute"])
def test_weights_outside_the_graph_that_the_manifest_does_not_name_are_not_read(
    location: str, rewrite: Callable[[Callable[[Path], None]], Path], tmp_path: Path
) -> None:
    def move_weights(folder: Path) -> None:
        onnx.save(
            onnx.load(folder / "model.int8.onnx"), folder / "model.int8.onnx", save_as_external_data=True, location="weights"
        )
        (folder / "weights").rename(tmp_path / "weights")
        graph = onnx.load(folder / "model.int8.onnx", load_external_data=False)
        for entry in (entry for tensor in graph.graph.initializer for entry in tensor.external_data if entry.key == "location"):
            entry.value = location.format(outside=tmp_path / "weights")
        onnx.save(graph, folder / "model.int8.onnx")

    folder = rewrite(move_weights)
    if location == "weights":
        shutil.copyfile(tmp_path / "weights", folder / "weights")
    with pytest.raises(ModelError, match=r"model\.int8\.onnx takes weights from another file"):
        Predictor.load(folder, threads=1)


def unname(folder: Path, name: str) -> None:
    """Removes a file from the manifest, and leaves it in the folder."""
    content = json.loads((folder / manifest.NAME).read_text())
    del content["files"][name]
    (folder / manifest.NAME).write_text(json.dumps(content))
