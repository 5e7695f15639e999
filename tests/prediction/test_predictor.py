"""The predictor: a bundle that verifies, options that are checked, labels best first."""

import dataclasses
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import mlflow.pyfunc
import numpy as np
import pandas as pd
import pytest
import torch

from goemotions.data.dataset import load_dataset
from goemotions.data.taxonomy import Taxonomy
from goemotions.errors import DataError, IntegrityError, ModelError
from goemotions.evaluation.predictions import Predictions
from goemotions.metrics.thresholds import Thresholds
from goemotions.models import engines
from goemotions.prediction.predictor import Options, Predictor
from goemotions.registry import bundle
from goemotions.storage import manifest
from tests.support import damage
from tests.support.bundles import assemble, assemble_former

TEXTS = ["we saw the lake", "storm and gravel", "balloon", "", "two quiet sparrow near the harbour"]


@pytest.fixture(scope="module")
def bundles(candidate: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[bundle.Variant, Path]:
    """A bundle of each variant."""
    root = tmp_path_factory.mktemp("bundles")
    for variant in bundle.VARIANTS:
        assemble(root / variant, candidate, variant)
    return {variant: root / variant for variant in bundle.VARIANTS}


@pytest.fixture(scope="module")
def predictor(bundles: dict[bundle.Variant, Path]) -> Predictor:
    return Predictor.load(bundles["cpu"], threads=1)


@pytest.mark.parametrize(("variant", "engine"), bundle.ENGINES.items())
def test_each_variant_uses_the_engine_that_suits_the_hardware(
    variant: bundle.Variant, engine: str, bundles: dict[bundle.Variant, Path]
) -> None:
    loaded = Predictor.load(bundles[variant])
    assert loaded.engine.name == engine
    assert len(loaded.predict(TEXTS)) == len(TEXTS)


def test_a_former_bundle_for_gpu_uses_its_onnx_file_where_there_is_no_gpu(candidate: Path, tmp_path: Path) -> None:
    loaded = Predictor.load(assemble_former(tmp_path / "former", candidate, "gpu"))
    assert loaded.engine.name == ("torch" if torch.cuda.is_available() else "openvino-fp32")
    assert (loaded.bundle.metadata.evaluated, loaded.bundle.metadata.checkpoint_sha256) == (None, "")


def test_an_engine_whose_weights_the_bundle_lacks_is_a_named_error(bundles: dict[bundle.Variant, Path]) -> None:
    for variant, engine, file in (("cpu", "torch", "model.safetensors"), ("gpu", "openvino-int8", "model.int8.onnx")):
        with pytest.raises(
            ModelError, match=rf"holds no {file}, which the engine {engine} reads: use {bundle.ENGINES[variant]}"
        ):
            Predictor.load(bundles[variant], engine=engine)


def test_another_engine_of_a_former_bundle_can_be_requested(candidate: Path, tmp_path: Path) -> None:
    former = assemble_former(tmp_path / "former", candidate)
    named = {name: Predictor.load(former, engine=name) for name in ("torch", "openvino-fp32", "openvino-int8")}
    assert [loaded.engine.name for loaded in named.values()] == list(named)
    scores = [loaded.predict(TEXTS, Options(all_scores=True)) for loaded in named.values()]
    for of_torch, of_onnx in zip(scores[0], scores[1], strict=True):
        assert of_onnx["scores"] == pytest.approx(of_torch["scores"], abs=1e-5)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "cut weights": lambda folder: damage.cut(folder / "model.int8.onnx"),
    "changed weights": lambda folder: damage.flip(folder / "model.int8.onnx"),
    "changed thresholds": lambda folder: damage.flip(folder / "thresholds.json"),
    "no tokenizer": lambda folder: (folder / "tokenizer.json").unlink(),
    "no manifest": lambda folder: (folder / manifest.NAME).unlink(),
    "empty manifest": lambda folder: (folder / manifest.NAME).write_text("[]"),
}


@pytest.mark.parametrize("change", DAMAGES.values(), ids=DAMAGES)
@pytest.mark.fault("object-damaged", "model-file-damaged")
def test_a_damaged_bundle_is_not_loaded(
    change: Callable[[Path], object], bundles: dict[bundle.Variant, Path], tmp_path: Path
) -> None:
    shutil.copytree(bundles["cpu"], tmp_path / "bundle")
    change(tmp_path / "bundle")
    with pytest.raises(IntegrityError, match="fetch it again"):
        Predictor.load(tmp_path / "bundle")


def test_a_verified_folder_that_is_not_a_bundle_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("nothing to see")
    manifest.write(tmp_path)
    with pytest.raises(ModelError, match="is not a bundle of this workflow"):
        Predictor.load(tmp_path)


def test_a_file_that_mlflow_adds_after_a_download_does_no_harm(
    bundles: dict[bundle.Variant, Path], predictor: Predictor, tmp_path: Path
) -> None:
    shutil.copytree(bundles["cpu"], tmp_path / "bundle")
    (tmp_path / "bundle" / "registered_model_meta").write_text("model_name: goemotions\n")
    assert Predictor.load(tmp_path / "bundle", threads=1).predict(TEXTS) == predictor.predict(TEXTS)


def test_labels_come_best_first_with_their_scores(predictor: Predictor) -> None:
    predictions = predictor.predict(TEXTS, Options(threshold=0.01))
    assert len(predictions) == len(TEXTS)
    for prediction in predictions:
        scores = list(prediction["scores"].values())
        assert list(prediction["scores"]) == prediction["labels"]
        assert scores == sorted(scores, reverse=True)
        assert len(scores) > 1


def test_the_tuned_thresholds_decide_unless_another_is_requested(predictor: Predictor, taxonomy: Taxonomy) -> None:
    probabilities, _ = engines.score(predictor.engine, TEXTS)
    tuned = predictor.bundle.thresholds.apply(probabilities)
    assert tuned.any()
    for options in (None, Options(), Options(threshold="tuned")):
        predictions = predictor.predict(TEXTS, options)
        assert [set(prediction["labels"]) for prediction in predictions] == [
            {name for name, chosen in zip(taxonomy.names, row, strict=True) if chosen} for row in tuned
        ]


@pytest.mark.parametrize("threshold", [0, 0.12, 0.2, 1, 1.0])
def test_a_threshold_keeps_what_reaches_it(threshold: float, predictor: Predictor, taxonomy: Taxonomy) -> None:
    everything = predictor.predict(TEXTS, Options(all_scores=True))
    for prediction, full in zip(predictor.predict(TEXTS, Options(threshold=threshold)), everything, strict=True):
        assert prediction["labels"] == [name for name, score in full["scores"].items() if score >= threshold]


@pytest.mark.parametrize("k", [1, 2, 3, 7, 100])
def test_top_k_scores_the_best_and_chooses_those_of_them_over_their_thresholds(k: int, predictor: Predictor) -> None:
    ranked = [list(prediction["scores"].items()) for prediction in predictor.predict(TEXTS, Options(all_scores=True))]
    for threshold in (0, 1, "tuned"):
        full = predictor.predict(TEXTS, Options(threshold=threshold))
        for scores, chosen, best in zip(ranked, full, predictor.predict(TEXTS, Options(k, threshold)), strict=True):
            assert list(best["scores"].items()) == scores[:k]
            assert best["labels"] == [name for name, _ in scores[:k] if name in chosen["labels"]]


def test_all_scores_names_every_label_and_changes_no_decision(predictor: Predictor, taxonomy: Taxonomy) -> None:
    for options in (Options(), Options(top_k=1), Options(threshold=1.0)):
        chosen = predictor.predict(TEXTS, options)
        scored = predictor.predict(TEXTS, Options(options.top_k, options.threshold, all_scores=True))
        for few, all_of_them in zip(chosen, scored, strict=True):
            assert all_of_them["labels"] == few["labels"]
            assert set(all_of_them["scores"]) == set(taxonomy.names)
            assert few["scores"].items() <= all_of_them["scores"].items()


def test_top_k_thresholds_give_each_text_that_many_labels(predictor: Predictor) -> None:
    opened = predictor.bundle
    by_rank = dataclasses.replace(opened, thresholds=Thresholds("top-k", (0.0,) * 7, 2))
    predictions = Predictor(by_rank, predictor.engine).predict(TEXTS)
    assert [len(prediction["labels"]) for prediction in predictions] == [2] * len(TEXTS)


def test_a_prediction_shows_whether_the_text_was_cut(predictor: Predictor) -> None:
    predictions = predictor.predict(["lake", "lake " * 126, "lake " * 127])
    assert [prediction["truncated"] for prediction in predictions] == [False, False, True]


def test_a_prediction_is_plain_json(predictor: Predictor) -> None:
    predictions = predictor.predict(TEXTS, Options(all_scores=True))
    assert json.loads(json.dumps(predictions)) == predictions


@pytest.mark.fault("http-blank-text")
def test_a_blank_text_has_a_defined_prediction(predictor: Predictor) -> None:
    predictions = predictor.predict(["", " \t\n"], Options(all_scores=True))
    assert predictions[0] == predictions[1]
    assert all(0 < score < 1 for score in predictions[0]["scores"].values())


def test_mlflow_loads_a_bundle_and_predicts_the_same(bundles: dict[bundle.Variant, Path], predictor: Predictor) -> None:
    loaded = mlflow.pyfunc.load_model(str(bundles["cpu"]))
    expected = predictor.predict(TEXTS)
    for given_as in (TEXTS, pd.DataFrame({"text": TEXTS}), [{"text": text} for text in TEXTS], {"text": np.array(TEXTS)}):
        for prediction, wanted in zip(loaded.predict(given_as), expected, strict=True):
            assert prediction["labels"] == wanted["labels"]
            assert prediction["scores"] == pytest.approx(wanted["scores"], abs=1e-5)
    assert loaded.predict(TEXTS[0]) == predictor.predict(TEXTS[:1])
    with pytest.raises(DataError, match="item 1 is no text"):
        loaded.predict([TEXTS[0], None])


def test_the_cpu_variant_predicts_without_the_training_libraries(
    bundles: dict[bundle.Variant, Path], predictor: Predictor
) -> None:
    script = (
        "import json, sys; from pathlib import Path; from goemotions.prediction.predictor import Predictor\n"
        "predictions = Predictor.load(Path(sys.argv[1]), threads=1).predict(json.loads(sys.argv[2]))\n"
        "heavy = {'torch', 'transformers', 'datasets', 'sklearn', 'scipy', 'mlflow', 'kfp'} & set(sys.modules)\n"
        "print(json.dumps([predictions, sorted(heavy)]))"
    )
    command = [sys.executable, "-c", script, str(bundles["cpu"]), json.dumps(TEXTS)]
    predictions, heavy = json.loads(subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout)
    assert heavy == []
    assert predictions == predictor.predict(TEXTS)


def test_the_bundle_contains_the_scores_it_was_registered_with(bundles: dict[bundle.Variant, Path], dataset: Path) -> None:
    for folder in bundles.values():
        stored = Predictions.read(folder / "validation.parquet")
        scores, _ = engines.score(Predictor.load(folder).engine, load_dataset(dataset)[0]["validation"]["text"][:])
        assert np.abs(stored.probabilities - scores).max() < 1e-4
