"""Registration: winners are selected on validation, stored as verified bundles, and only a better one replaces the champion."""

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import f1_score, roc_auc_score

from goemotions.errors import IntegrityError, ModelError
from goemotions.evaluation import counterfactuals, tuning
from goemotions.evaluation.predictions import FILE, Predictions
from goemotions.metrics import thresholds
from goemotions.prediction.predictor import Predictor
from goemotions.registry import (
    bundle,
    changes,
    model_registry,
    references,
    registered_versions,
    registration,
    tracking,
)
from goemotions.registry.bundle import ENGINES, VARIANTS, Variant
from goemotions.registry.candidates import CandidateArtifacts, collect
from goemotions.storage import layout, lock, manifest, s3, store
from tests.support import damage
from tests.support.bundles import assemble

TEXTS = ["a balloon over the lake", "gravel", "", "the quiet harbour and the storm there again", "balloon " * 3000]


@pytest.fixture
def unique_name(request: pytest.FixtureRequest) -> str:
    """A name that only this test uses, for its registered model and its pipeline runs."""
    return str(request.node.name).replace("[", "-").replace("]", "").replace(" ", "-")


@dataclass(frozen=True)
class Registry:
    """A registered model that only one test uses, with its bundles in S3."""

    name: str
    store: str
    dataset: Path

    def register(self, run: str, *folders: Path, variants: tuple[Variant, ...] = ("cpu",), **options: Any) -> dict[str, Any]:
        parts = {variant: [CandidateArtifacts.below(folder, variant) for folder in folders] for variant in variants}
        arguments = {"store": self.store, "pipeline_run": f"{self.name}-{run}", "model_name": self.name, **options}
        return registration.register(self.dataset, parts, **arguments)

    def alias(self, name: str) -> str | None:
        version = model_registry.find_version(self.name, name)
        return version.number if version else None

    def versions(self) -> list[str]:
        versions = mlflow.MlflowClient(os.environ["MLFLOW_TRACKING_URI"]).search_model_versions(f"name='{self.name}'")
        return sorted(version.version for version in versions)


@pytest.fixture
def registry(bucket: str, unique_name: str, dataset: Path) -> Registry:
    return Registry(unique_name, bucket, dataset)


def change(candidate: Path, folder: Path, changes: dict[str, Callable[[Predictions], Predictions]]) -> Path:
    """A copy of a profile's folder with other Predictions for some splits, and thresholds fitted on those of validation."""
    shutil.copytree(candidate, folder, symlinks=True)
    for variant in VARIANTS:
        for split, changed in changes.items():
            path = folder / variant / split / FILE
            changed(Predictions.read(path)).write(path)
        tuning.tune(folder / variant / "validation", folder / variant / "thresholds")
    return folder


def perfect(predictions: Predictions) -> Predictions:
    return replace(predictions, probabilities=np.where(predictions.labels, 0.99, 0.01).astype(np.float32))


def inverted(predictions: Predictions) -> Predictions:
    return replace(predictions, probabilities=np.where(predictions.labels, 0.01, 0.99).astype(np.float32))


@pytest.fixture(scope="module")
def better(candidate: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A profile's folder whose stored predictions are all correct."""
    return change(candidate, tmp_path_factory.mktemp("better") / "better", {"validation": perfect, "test": perfect})


@dataclass(frozen=True)
class Registered:
    """A pipeline run that was registered once, for the tests that only look at it."""

    registry: Registry
    versions: dict[str, Any]
    run_id: str


@pytest.fixture(scope="module")
def registered(stack: Path, dataset: Path, candidate: Path) -> Registered:
    registry = Registry("registered-once", "s3://goemotions/tests/registered-once/", dataset)
    versions = registry.register("1", candidate, variants=VARIANTS, tags={"commit": "c1"})
    return Registered(registry, versions, tracking.get_or_create_run("registered-once-1", "minilm").run_id)


def test_candidate_scores_are_read_without_the_test_split(candidate: Path) -> None:
    for variant in VARIANTS:
        parts = replace(CandidateArtifacts.below(candidate, variant), test=Path("not-there"))
        assert parts.validation_scores().validation.split == "validation"


def test_a_better_test_split_does_not_win(registry: Registry, candidate: Path, tmp_path: Path) -> None:
    """The profile that would win on test comes last, and is worse on validation."""
    tempting = change(candidate, tmp_path / "tempting", {"validation": inverted, "test": perfect})
    (tempting / "model").unlink()
    shutil.copytree((candidate / "model").resolve(), tempting / "model")
    record = tempting / "model" / "training.json"
    record.write_text(record.read_text(encoding="utf-8").replace('"minilm"', '"tempting"'), encoding="utf-8")
    versions = registry.register("1", candidate, tempting)
    assert versions["cpu"]["profile"] == "minilm"


def test_artifact_lists_are_collected_by_profile() -> None:
    @dataclass
    class Artifact:
        path: str

    def artifacts(name: str) -> list[Artifact]:
        return [Artifact(f"{name}{number}") for number in (1, 2)]

    lists = tuple(artifacts(name) for name in ("validation", "test", "thresholds"))
    collected = collect(artifacts("model"), artifacts("onnx"), {"cpu": lists})
    assert collected == {
        "cpu": [
            CandidateArtifacts(*(Path(f"{name}{n}") for name in ("model", "onnx", "validation", "test", "thresholds")))
            for n in (1, 2)
        ]
    }


def test_the_first_version_of_each_variant_is_the_champion(registered: Registered, candidate: Path) -> None:
    registry, versions = registered.registry, registered.versions
    assert {variant: version["alias"] for variant, version in versions.items()} == {
        "gpu": "champion-gpu",
        "cpu": "champion-cpu",
    }
    assert {variant: registry.alias(f"champion-{variant}") for variant in VARIANTS} == {"gpu": "1", "cpu": "2"}
    assert [registry.alias(f"challenger-{variant}") for variant in VARIANTS] == [None, None]


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_version_records_its_origin(registered: Registered, candidate: Path, variant: Variant) -> None:
    registry, run_id = registered.registry, registered.run_id
    version = model_registry.find_version(registry.name, f"champion-{variant}")
    assert version is not None
    digest = Predictions.read(candidate / variant / "validation" / FILE).digest
    metadata = {"variant": variant, "profile": "minilm", "run_id": run_id, "dataset_digest": digest}
    (change,) = changes.history(version, f"champion-{variant}")
    assert (change.action, change.before, change.after) == ("promote", "", version.number)
    assert {name: value for name, value in version.tags.items() if name in metadata or name == "commit"} == {
        **metadata,
        "commit": "c1",
    }
    assert version.tags["evaluated"] == str(Predictions.read(candidate / variant / "validation" / FILE).computation)
    assert version.run_id == run_id
    assert version.source == registered.versions[variant]["source"]
    assert version.source == f"{registry.store}models/{registry.name}/{run_id}/{variant}/"


def test_registering_again_returns_the_same_versions_and_bundles(registry: Registry, candidate: Path) -> None:
    first = registry.register("1", candidate, variants=VARIANTS)
    written = stored_times(registry.store)
    assert registry.register("1", candidate, variants=VARIANTS) == first
    assert registry.versions() == ["1", "2"]
    assert stored_times(registry.store) == written


def stored_times(store: str) -> dict[str, str]:
    place = s3.S3Backend(store)
    pages = s3.client().get_paginator("list_objects_v2").paginate(Bucket=place.bucket, Prefix=place.prefix)
    entries = [entry for page in pages for entry in page["Contents"] if not entry["Key"].endswith(lock.NAME)]
    return {entry["Key"]: str(entry["LastModified"]) for entry in entries}


def test_the_checkpoints_of_a_run_are_removed_when_it_is_registered(
    registry: Registry, candidate: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def put(run: str) -> str:
        location = layout.checkpoints(registry.store, f"{registry.name}-{run}", "minilm")
        store.write_new(location, "step-000000001/state.json", b"{}")
        return location

    kept, finished, other = put("1"), put("2"), put("3")
    caplog.set_level("INFO")
    registry.register("1", candidate, keep_checkpoints=True)
    assert f"{registry.store}models/{registry.name}/: conditional writes, reads and listings work (" in caplog.text
    assert not [file.name for file in store.files(registry.store) if "probe" in file.name]
    registry.register("2", candidate)
    assert [len(store.files(location)) for location in (kept, finished, other)] == [1, 0, 1]


@pytest.mark.fault("leftovers")
def test_parts_of_the_uploads_of_killed_registrations_are_removed_by_a_later_one(
    registry: Registry, candidate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = s3.S3Backend(registry.store)

    def begun() -> list[str]:
        uploads = s3.client().list_multipart_uploads(Bucket=backend.bucket, Prefix=backend.prefix)
        return [upload["Key"].removeprefix(backend.prefix) for upload in uploads.get("Uploads", [])]

    killed = [f"models/{registry.name}/run/cpu/weights", "teachers/other/scores", "trained/run/minilm/weights"]
    for name in killed:
        s3.client().create_multipart_upload(Bucket=backend.bucket, Key=f"{backend.prefix}{name}")
    registry.register("1", candidate)
    assert sorted(begun()) == killed, "a process that runs may have begun them"
    monkeypatch.setattr(s3, "ABANDONED_SECONDS", 0.0)
    registry.register("1", candidate)
    assert begun() == ["teachers/other/scores"]


def test_a_new_run_becomes_the_challenger(registry: Registry, candidate: Path) -> None:
    registry.register("1", candidate)
    version = registry.register("2", candidate, auto_promote=True)["cpu"]
    assert (version["alias"], version["gate"]["reasons"]) == ("challenger-cpu", ["micro AUC is not higher"])
    first, second, *notes = registered_versions.describe("cpu", version).splitlines()
    assert first == f"cpu: minilm is version 2 (challenger-cpu), bundle {version['source']}"
    assert second == "  the champion for cpu remains, because micro AUC is not higher"
    assert all(note.startswith("  note: ") for note in notes)
    assert (registry.alias("champion-cpu"), registry.alias("challenger-cpu")) == ("1", "2")


@pytest.mark.parametrize("auto_promote", [True, False], ids=["promoting", "not promoting"])
def test_a_better_run_becomes_the_champion_only_with_auto_promote(
    registry: Registry, candidate: Path, better: Path, auto_promote: bool
) -> None:
    registry.register("1", candidate)
    version = registry.register("2", better, auto_promote=auto_promote)["cpu"]
    assert (version["gate"]["passes"], version["gate"]["reasons"]) == (True, [])
    assert version["alias"] == ("champion-cpu" if auto_promote else "challenger-cpu")
    sentence = "it is the champion now" if auto_promote else "`make promote VERSION=challenger-cpu` makes it the champion"
    assert f"\n  the gate passed: {sentence}" in registered_versions.describe("cpu", version)
    assert (registry.alias("champion-cpu"), registry.alias("challenger-cpu")) == ("2" if auto_promote else "1", "2")


def test_a_worse_run_does_not_become_the_champion(registry: Registry, candidate: Path, better: Path) -> None:
    registry.register("1", better)
    assert not registry.register("2", candidate, auto_promote=True)["cpu"]["gate"]["passes"]
    assert (registry.alias("champion-cpu"), registry.alias("challenger-cpu")) == ("1", "2")


def test_only_the_cpu_model_has_a_latency_budget(registry: Registry, candidate: Path, better: Path) -> None:
    registry.register("1", candidate, variants=VARIANTS)
    versions = registry.register("2", better, variants=VARIANTS, auto_promote=True, latency_budget_ms=1e-6)
    assert (versions["gpu"]["alias"], versions["cpu"]["alias"]) == ("champion-gpu", "challenger-cpu")
    (reason,) = versions["cpu"]["gate"]["reasons"]
    assert reason.startswith("the latency for one text, ")
    assert reason.endswith("is over the budget of 1e-06 ms")
    assert versions["cpu"]["selection"].startswith("the fastest, since no candidate is within the latency budget of 1e-06 ms: ")
    assert versions["gpu"]["selection"] == "the only candidate"
    assert (versions["gpu"]["latency"], versions["cpu"]["latency"]["ms"] > 0) == (None, True)


@pytest.mark.parametrize("before", [pytest.param("challenger", marks=pytest.mark.slow), "champion"])
@pytest.mark.fault("registration-interrupted")
def test_a_crash_before_an_alias_is_completed_by_the_next(
    registry: Registry, candidate: Path, better: Path, before: str
) -> None:
    registry.register("1", candidate)
    versions = registry.register("2", better, auto_promote=True)
    model_registry.set_alias(registry.name, "champion-cpu", "1")
    if before == "challenger":
        client = mlflow.MlflowClient(os.environ["MLFLOW_TRACKING_URI"])
        client.delete_registered_model_alias(registry.name, "challenger-cpu")
    again = registry.register("2", better, auto_promote=True)
    for version in (versions["cpu"], again["cpu"]):
        # The latency compared with the champion's is measured again.
        assert any(note.startswith("one text takes ") for note in version["gate"].pop("notes"))
    assert again == versions
    assert (registry.alias("champion-cpu"), registry.alias("challenger-cpu")) == ("2", "2")
    assert registry.versions() == ["1", "2"]


@pytest.mark.parametrize("variant", [pytest.param("gpu", marks=pytest.mark.slow), "cpu"])
def test_a_champion_scored_on_other_data_is_scored_again(
    registry: Registry, candidate: Path, tmp_path: Path, variant: Variant
) -> None:
    """Its stored predictions would win; its model is that of the candidate, so that scoring it again gives a draw."""
    old = change(
        candidate, tmp_path / "old", {"validation": lambda predictions: replace(perfect(predictions), digest="other data")}
    )
    registry.register("1", old, variants=(variant,))
    version = registry.register("2", candidate, variants=(variant,), auto_promote=True)[variant]
    assert abs(version["gate"]["differences"]["auc_micro"]["difference"]) < 1e-3


def test_another_taxonomy_is_refused_under_the_same_name(registry: Registry, candidate: Path, tmp_path: Path) -> None:
    def renamed(predictions: Predictions) -> Predictions:
        return replace(predictions, names=tuple(f"other {name}" for name in predictions.names))

    other = change(candidate, tmp_path / "other", {"validation": renamed, "test": renamed})
    registry.register("1", candidate)
    with pytest.raises(ModelError, match="has other labels than this data: register under another model name"):
        registry.register("2", other, auto_promote=True)
    assert (registry.alias("champion-cpu"), registry.alias("challenger-cpu")) == ("1", None)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_bundle_is_complete_and_verifies(candidate: Path, tmp_path: Path, variant: Variant) -> None:
    metadata = {"profile": "minilm", "run_id": "r1", "dataset_digest": "d1"}
    assemble(tmp_path / "bundle", candidate, variant)
    files = {path.relative_to(tmp_path / "bundle").as_posix(): path.stat().st_size for path in (tmp_path / "bundle").rglob("*")}
    content = manifest.verify(tmp_path / "bundle")
    assert {key: content[key] for key in ("variant", "engine", *metadata)} == {
        "variant": variant,
        "engine": ENGINES[variant],
        **metadata,
    }
    assert set(content["files"]) == set(files) - {manifest.NAME}
    expected_files = {"config.json", "tokenizer.json", "training.json", "export.json", "thresholds.json", "metrics.json"}
    expected_files |= {"validation.parquet", "test.parquet", "README.md", "MLmodel"}
    assert expected_files <= set(files)
    weights = {name for name in files if name.endswith((".safetensors", ".onnx"))}
    assert weights == ({"model.safetensors"} if variant == "gpu" else {"model.int8.onnx"})
    assert min(files.values()) > 0
    assert not [name for name in files if name.endswith((".pkl", ".pickle", ".bin", ".pt", ".py"))]


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_metrics_of_a_bundle_are_those_of_scikit_learn(candidate: Path, tmp_path: Path, variant: Variant) -> None:
    values = assemble(tmp_path / "bundle", candidate, variant)
    card = (tmp_path / "bundle" / "README.md").read_text(encoding="utf-8")
    fitted = thresholds.read(tmp_path / "bundle" / "thresholds.json").thresholds
    for split in ("validation", "test"):
        predictions = Predictions.read(tmp_path / "bundle" / f"{split}.parquet")
        predicted = fitted.apply(predictions.probabilities)
        auc = roc_auc_score(predictions.labels, predictions.probabilities, average="micro")
        f1 = f1_score(predictions.labels, predicted, average="macro", zero_division=0)
        half = f1_score(predictions.labels, predictions.probabilities >= 0.5, average="macro", zero_division=0)
        assert values[f"{split}/auc_micro"] == pytest.approx(auc)
        assert values[f"{split}/f1_macro"] == pytest.approx(f1)
        assert values[f"{split}/f1_macro/at_0.5"] == pytest.approx(half)
    auc, f1 = (f"| {values[f'validation/{name}']:.4f} | {values[f'test/{name}']:.4f} |" for name in ("auc_micro", "f1_macro"))
    assert f"| auc_micro {auc}\n" in card
    assert f"| f1_macro {f1}\n" in card


def test_the_metrics_are_logged_to_the_run_of_the_profile(registered: Registered) -> None:
    logged = mlflow.MlflowClient(os.environ["MLFLOW_TRACKING_URI"]).get_run(registered.run_id).data.metrics
    for variant in VARIANTS:
        for name, value in registered.versions[variant]["metrics"].items():
            assert logged[f"{variant}/{name}"] == pytest.approx(value)
        of_slices = {name: value for name, value in logged.items() if name.startswith(f"{variant}/test/slices/")}
        swapped = {name: value for name, value in logged.items() if name.startswith(f"{variant}/test/swapped_names/")}
        assert all(name.endswith("/f1_micro") and 0 <= value <= 1 for name, value in of_slices.items())
        assert set(swapped) == {f"{variant}/test/swapped_names/{group}/changed_decisions" for group in counterfactuals.TERMS}
        assert 1 <= len(of_slices) <= 50


def test_a_download_equals_the_bundle_byte_for_byte(registered: Registered, tmp_path: Path) -> None:
    names = ("champion-cpu", "2", registered.versions["cpu"]["source"])
    folders = [tmp_path / str(number) for number in range(3)]
    name = registered.registry.name
    versions = [references.fetch(*pair, name) for pair in zip(names, folders, strict=True)]
    assert [version.number if version else None for version in versions] == ["2", "2", None]
    contents = [
        {path.relative_to(folder): manifest.sha256(path) for path in folder.rglob("*") if path.is_file()} for folder in folders
    ]
    assert contents[0] == contents[1] == contents[2]
    assert bundle.load(folders[0]).metadata.variant == "cpu"


@pytest.mark.parametrize("reference", ["champion-cpu", "7", "no-such-alias"])
def test_a_missing_version_is_a_named_error(stack: Path, unique_name: str, tmp_path: Path, reference: str) -> None:
    with pytest.raises(ModelError, match=f"has no version or alias '{reference}': register one first"):
        references.fetch(reference, tmp_path, unique_name)


@pytest.mark.fault("object-damaged")
def test_a_bundle_damaged_in_the_store_is_never_loaded(registry: Registry, candidate: Path, tmp_path: Path) -> None:
    source = registry.register("1", candidate)["cpu"]["source"]
    place = s3.S3Backend(source)
    key = {"Bucket": place.bucket, "Key": f"{place.prefix}model.int8.onnx"}
    content = s3.client().get_object(**key)["Body"].read()
    for damaged in (content[:-1] + bytes([content[-1] ^ 1]), content[:-1], None):
        s3.client().delete_object(**key)
        if damaged is not None:
            s3.client().put_object(**key, Body=damaged)
        with pytest.raises(IntegrityError, match=r"model\.int8\.onnx"):
            references.fetch("champion-cpu", tmp_path / "to", registry.name)
        # Of a file of another size nothing is copied, not even the manifest.
        with pytest.raises(IntegrityError, match=r"model\.int8\.onnx|MANIFEST\.json"):
            Predictor.load(tmp_path / "to")
        shutil.rmtree(tmp_path / "to", ignore_errors=True)


@pytest.mark.parametrize("variant", VARIANTS)
def test_mlflow_loads_the_champion_and_predicts_the_same(registered: Registered, tmp_path: Path, variant: Variant) -> None:
    name = registered.registry.name
    loaded = mlflow.pyfunc.load_model(f"models:/{name}@champion-{variant}")
    references.fetch(f"champion-{variant}", tmp_path, name)
    expected = Predictor.load(tmp_path).predict(TEXTS)
    assert loaded.predict(pd.DataFrame({"text": TEXTS})) == expected
    assert loaded.predict(TEXTS) == expected
    assert [prediction["truncated"] for prediction in expected] == [False] * 4 + [True]


def test_another_model_under_the_same_run_is_refused(registry: Registry, candidate: Path, tmp_path: Path) -> None:
    registry.register("1", candidate)
    other = change(candidate, tmp_path / "other", {})
    (other / "model").unlink()
    shutil.copytree(candidate / "model", other / "model")
    damage.flip(other / "model" / "model.safetensors")
    with pytest.raises(ModelError, match="another model of the same run and profile: register under another run id"):
        registry.register("1", other)
