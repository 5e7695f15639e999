"""Trained models: every one can be downloaded with its metrics and predictions, whether it won or not."""

from __future__ import annotations

import csv
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from transformers import PreTrainedTokenizerFast

from benchmarks import all_engines
from goemotions.cli import main as cli
from goemotions.errors import IntegrityError, ModelError, StorageError, WorkflowError
from goemotions.evaluation import tuning
from goemotions.evaluation.predictions import FILE, Predictions
from goemotions.metrics import thresholds
from goemotions.models.classifier import load_classifier
from goemotions.models.engine_names import WEIGHTS
from goemotions.models.records import read_exports
from goemotions.prediction.predictor import Predictor
from goemotions.registry import mlflow_client, model_run, registration, tracking, trained
from goemotions.registry.bundle import VARIANTS
from goemotions.registry.candidates import CandidateArtifacts
from goemotions.registry.registered_versions import RegisteredVersion
from goemotions.storage import layout, manifest
from goemotions.storage import store as storage
from pipelines.stack import free_ports

RUN, STORE = "trained-run", "s3://goemotions/tests/trained/"
PER_SPLIT = ("{}.parquet", "{}.csv", "{}_per_label.csv", "{}_per_label.md")


@pytest.fixture(scope="module")
def loser(candidate: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A profile's folder whose model is worse on validation than that of the candidate."""
    folder = tmp_path_factory.mktemp("loser") / "loser"
    shutil.copytree(candidate, folder)
    record = folder / "model" / "training.json"
    record.write_text(record.read_text(encoding="utf-8").replace('"minilm"', '"worse"'), encoding="utf-8")
    for variant in VARIANTS:
        path = folder / variant / "validation" / FILE
        predictions = Predictions.read(path)
        scores = np.where(predictions.labels, 0.01, 0.99).astype(np.float32)
        replace(predictions, probabilities=scores).write(path)
        tuning.tune(folder / variant / "validation", folder / variant / "thresholds")
    return folder


@pytest.fixture(scope="module")
def registered(stack: Path, dataset: Path, candidate: Path, loser: Path) -> dict[str, RegisteredVersion]:
    """A pipeline run with two profiles, of which one won both variants."""
    parts = {variant: [CandidateArtifacts.below(folder, variant) for folder in (candidate, loser)] for variant in VARIANTS}
    return dict(registration.register(dataset, parts, store=STORE, pipeline_run=RUN, model_name=RUN))


def download(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli.commands, ["model", "download", *map(str, arguments)])


def files_of(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("profile", ["minilm", "worse"])
def test_every_trained_model_is_downloaded_by_its_run_and_profile(
    registered: dict[str, RegisteredVersion], loser: Path, candidate: Path, tmp_path: Path, profile: str
) -> None:
    assert {version["profile"] for version in registered.values()} == {"minilm"}
    result = download("--run", RUN, "--profile", profile, "--output", tmp_path)
    assert result.exit_code == 0, result.output
    assert result.output.startswith(f"{tmp_path}: {profile} of the run {RUN}, every file matches its manifest\n")
    content = manifest.verify(tmp_path)
    assert (content["profile"], content["pipeline_run"]) == (profile, RUN)
    steps = {"minilm": candidate, "worse": loser}[profile]
    assert (tmp_path / WEIGHTS["torch"]).read_bytes() == (steps / "model" / WEIGHTS["torch"]).read_bytes()
    tables = {
        f"{variant}/{name.format(split)}" for variant in VARIANTS for split in ("validation", "test") for name in PER_SPLIT
    }
    others = {f"{variant}/{name}" for variant in VARIANTS for name in ("metrics.json", "thresholds.json")}
    assert tables | others | {"config.json", "tokenizer.json", "training.json", "export.json"} <= files_of(tmp_path)


@pytest.mark.fault("links")
@pytest.mark.parametrize("kind", ["file", "folder", "pipe", "device", "nothing"])
def test_a_link_out_of_a_model_does_not_travel(candidate: Path, tmp_path: Path, kind: str) -> None:
    shutil.copytree(candidate, tmp_path / "run")
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets" / "key").write_text("secret")
    targets = {"file": tmp_path / "secrets" / "key", "folder": tmp_path / "secrets", "device": Path("/dev/null")}
    link = tmp_path / "run" / "model" / "notes"
    os.mkfifo(link) if kind == "pipe" else link.symlink_to(targets.get(kind, tmp_path / "nowhere"))
    result = download("--run", tmp_path / "run", "--profile", "minilm", "--output", tmp_path / "out")
    assert isinstance(result.exception, StorageError)
    assert str(result.exception).startswith(str(link))
    assert "remove it, or put a copy in its place" in str(result.exception)
    assert not (tmp_path / "out" / "notes").exists()


@pytest.mark.fault("links")
def test_links_within_a_model_and_to_the_files_of_the_hub_s_cache_are_followed(candidate: Path, tmp_path: Path) -> None:
    shutil.copytree(candidate, tmp_path / "run")
    model, cache = tmp_path / "run" / "model", tmp_path / "cache" / "models--org--name"
    snapshot, blobs = cache / "snapshots" / ("a" * 40), cache / "blobs"
    shutil.copytree(model, blobs)
    snapshot.mkdir(parents=True)
    for path in sorted(blobs.iterdir()):
        (snapshot / path.name).symlink_to(Path("..", "..", "blobs", path.name))
    (snapshot / "README.md").symlink_to("config.json")
    shutil.rmtree(model)
    model.symlink_to(snapshot)
    result = download("--run", tmp_path / "run", "--profile", "minilm", "--output", tmp_path / "out")
    assert result.exit_code == 0, result.output
    copied = {path.name: path for path in (tmp_path / "out").rglob("*")}
    assert not any(path.is_symlink() for path in copied.values())
    assert copied[WEIGHTS["torch"]].read_bytes() == (blobs / WEIGHTS["torch"]).read_bytes()
    assert copied["README.md"].read_bytes() == copied["config.json"].read_bytes()


def test_the_downloaded_files_agree_with_each_other(registered: dict[str, RegisteredVersion], tmp_path: Path) -> None:
    download("--run", RUN, "--profile", "worse", "--output", tmp_path)
    fitted = thresholds.read(tmp_path / "cpu" / "thresholds.json").thresholds
    predictions = Predictions.read(tmp_path / "cpu" / "test.parquet")
    with (tmp_path / "cpu" / "test.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    predicted = fitted.apply(predictions.probabilities)
    names = np.array(predictions.names)
    assert [row["predicted"] for row in rows] == ["|".join(names[decided]) for decided in predicted]
    with (tmp_path / "cpu" / "test_per_label.csv").open(newline="", encoding="utf-8") as file:
        table = list(csv.DictReader(file))
    lines = (tmp_path / "cpu" / "test_per_label.md").read_text().splitlines()
    assert [line.split(" | ")[0].removeprefix("| ") for line in lines] == ["label", "---", *(row["label"] for row in table)]
    assert f"{float(table[0]['f1']):.4f}" in lines[2]
    network = load_classifier(tmp_path)
    tokens = PreTrainedTokenizerFast.from_pretrained(tmp_path)("a lake", return_tensors="pt", return_token_type_ids=False)
    assert network(**tokens).logits.shape == (1, len(names))


def test_the_metrics_of_every_model_and_variant_are_in_its_own_run(
    registered: dict[str, RegisteredVersion],
) -> None:
    logged = {}
    for profile in ("minilm", "worse"):
        run = mlflow_client.client().get_run(tracking.get_or_create_run(RUN, profile).run_id)
        logged[profile] = run.data.metrics
        assert run.data.tags[trained.LOCATION_TAG] == layout.trained(STORE, RUN, profile)
        assert run.data.tags["mlflow.parentRunId"] == tracking.get_or_create_run(RUN).run_id
        for variant in VARIANTS:
            stored = json.loads(storage.read(layout.trained(STORE, RUN, profile), f"{variant}/metrics.json") or b"")
            for name, value in stored.items():
                assert logged[profile][f"{variant}/{name}"] == pytest.approx(value)
    for split in ("validation", "test"):
        assert {f"{variant}/{split}/f1_macro" for variant in VARIANTS} <= set(logged["worse"])
    assert logged["worse"]["cpu/validation/auc_micro"] < logged["minilm"]["cpu/validation/auc_micro"]


def test_registering_again_logs_and_stores_nothing_twice(
    registered: dict[str, RegisteredVersion], dataset: Path, candidate: Path, loser: Path
) -> None:
    before = storage.files(layout.trained(STORE, RUN, "worse"))
    # In another order the winner stays the one that is registered.
    parts = {variant: [CandidateArtifacts.below(folder, variant) for folder in (loser, candidate)] for variant in VARIANTS}
    again = registration.register(dataset, parts, store=STORE, pipeline_run=RUN, model_name=RUN)
    assert again == registered
    assert storage.files(layout.trained(STORE, RUN, "worse")) == before
    run = tracking.get_or_create_run(RUN, "worse").run_id
    for name in mlflow_client.client().get_run(run).data.metrics:
        assert len(mlflow_client.client().get_metric_history(run, name)) == 1, name


def test_the_store_alone_is_enough(
    registered: dict[str, RegisteredVersion], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    result = download("--run", RUN, "--profile", "worse", "--store", STORE, "--output", tmp_path / "one")
    assert result.exit_code == 0, result.output
    with pytest.raises(ModelError, match=r"/trained/trained-run/gone/ has no trained model: .* the store has minilm, worse"):
        trained.download(RUN, "gone", tmp_path / "two", store_location=STORE)


def test_a_folder_of_steps_that_were_run_by_hand_is_enough(loser: Path, tmp_path: Path) -> None:
    result = download("--run", loser, "--profile", "worse", "--output", tmp_path / "one")
    assert result.exit_code == 0, result.output
    assert manifest.verify(tmp_path / "one")["profile"] == "worse"
    with pytest.raises(ModelError, match="has no model of the profile 'minilm': it has worse"):
        trained.download(str(loser), "minilm", tmp_path / "two")


def test_a_run_or_profile_that_is_not_there_is_a_named_error(registered: dict[str, RegisteredVersion], tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="MLflow has no models of the pipeline run 'gone'"):
        trained.download("gone", "minilm", tmp_path)
    with pytest.raises(ModelError, match="has no stored model of the profile 'gone': it has minilm, worse"):
        trained.download(RUN, "gone", tmp_path)
    result = download("--run", RUN)
    assert isinstance(result.exception, WorkflowError)
    assert str(result.exception) == "--run and --profile belong together: give both, or neither"


def test_a_damaged_file_in_the_store_is_a_named_error(loser: Path, tmp_path: Path) -> None:
    location = layout.trained(str(tmp_path / "store"), "r", "worse")
    trained.put(location, trained.variants_by_profile({"cpu": [CandidateArtifacts.below(loser, "cpu")]})["worse"])
    (Path(location) / "cpu" / "test.csv").write_text("id\n")
    with pytest.raises(IntegrityError, match=r"test\.csv differs from its manifest"):
        trained.download("r", "worse", tmp_path / "out", store_location=str(tmp_path / "store"))


def test_benchmarks_compare_the_engines_that_a_bundle_lacks(registered: dict[str, RegisteredVersion]) -> None:
    with all_engines.as_folder("champion-cpu", RUN) as (folder, version):
        assert version == registered["cpu"]["version"]
        scores = [Predictor.load(folder, engine=name, threads=1).predict(["a lake"]) for name in ("torch", "openvino-fp32")]
        assert scores[0][0]["labels"] == scores[1][0]["labels"]
        assert Predictor.load(folder, threads=1).engine.name == "openvino-int8"


def test_a_step_goes_on_if_mlflow_cannot_be_reached(
    candidate: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{free_ports(1)[0]}")
    model_run.log_export("r", "minilm", read_exports(candidate / "onnx"))
    assert "the metrics of minilm are not in MLflow yet, the step register logs them: MLflow does not respond" in caplog.text
