"""The export for the hub: classes of transformers return the probabilities of the bundle, and the card has the hub's metadata."""

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers
from huggingface_hub import ModelCard

from goemotions.data.taxonomy import Taxonomy
from goemotions.errors import IntegrityError, ModelError
from goemotions.models import classifier, engines, profiles
from goemotions.models.records import TRAINING_FILE, TrainingRecord
from goemotions.models.tokenizer import TextEncoder
from goemotions.registry import hugging_face
from goemotions.storage import manifest

TEXTS = ["we found the lake", "a quiet balloon under the table", "the old harbour " * 200]


@pytest.fixture(scope="module", params=["distilbert", "minilm"])
def bundle(
    request: pytest.FixtureRequest,
    candidate: Path,
    taxonomy: Taxonomy,
    weights: Callable[[str], str],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """A bundle for GPUs of a stock architecture; its weights are not trained."""
    folder: Path = tmp_path_factory.mktemp(request.param) / "bundle"
    profile = profiles.get(request.param, {"pooling": "first"})
    files = weights(request.param)
    model = classifier.build_classifier(profile, taxonomy, weights=files, seed=3)
    training = asdict(TrainingRecord.read(candidate / "model")) | {"profile": profile.describe(), "weights": ""}
    classifier.save_classifier(folder, model, classifier.load_tokenizer(profile, files), training)
    (folder / "thresholds.json").write_bytes((candidate / "gpu" / "thresholds" / "thresholds.json").read_bytes())
    (folder / "metrics.json").write_text(
        json.dumps({f"test/{name}": 0.5 for names in hugging_face.METRICS.values() for name in names})
    )
    manifest.write(folder, variant="gpu")
    return folder


@pytest.fixture(scope="module")
def exported(bundle: Path) -> Path:
    output = bundle.with_name("exported")
    hugging_face.export(bundle, output, data="owner/data", language="de")
    return output


def test_classes_of_transformers_return_the_probabilities_of_the_bundle(
    bundle: Path, exported: Path, taxonomy: Taxonomy
) -> None:
    model = transformers.AutoModelForSequenceClassification.from_pretrained(exported)
    assert type(model).__module__.startswith("transformers.")
    classify = transformers.pipeline("text-classification", model=str(exported), top_k=None, truncation=True)
    scores = [{one["label"]: one["score"] for one in row} for row in classify(TEXTS)]
    own = np.array([[row[name] for name in taxonomy.names] for row in scores])
    expected, _ = engines.score(engines.load("torch", bundle, TextEncoder.load(bundle)), TEXTS)
    assert own == pytest.approx(expected, abs=1e-5)


def test_the_card_has_the_metadata_of_the_hub(exported: Path) -> None:
    card = ModelCard.load(exported / "README.md")
    data: Any = card.data
    assert (data.language, data.license, data.datasets) == ("de", "apache-2.0", ["owner/data"])
    assert (data.pipeline_tag, data.library_name) == ("text-classification", "transformers")
    assert data.base_model in (profiles.get("distilbert").encoder.base, profiles.get("minilm").encoder.base)
    named = {
        (result.metric_type, result.metric_name, result.dataset_split): result.metric_value for result in data.eval_results
    }
    assert named["f1", "macro F1", "test"] == 0.5
    assert {name for name, *_ in named} == set(data.metrics) == set(hugging_face.METRICS)
    assert "| macro F1 | 0.5000 |" in card.text


def test_weights_that_the_user_gave_have_no_licence_and_base_of_others(bundle: Path, tmp_path: Path) -> None:
    folder = tmp_path / "own"
    shutil.copytree(bundle, folder)
    record = json.loads((folder / TRAINING_FILE).read_text()) | {"weights": "/home/ann/my-encoder"}
    (folder / TRAINING_FILE).write_text(json.dumps(record))
    manifest.write(folder, variant="gpu")
    hugging_face.export(folder, tmp_path / "exported")
    card = ModelCard.load(tmp_path / "exported" / "README.md")
    assert (card.data.license, card.data.base_model) == ("other", None)
    assert "fine-tuned from other weights of the architecture of `" in card.text
    hugging_face.export(folder, tmp_path / "licensed", license_name="mit")
    assert ModelCard.load(tmp_path / "licensed" / "README.md").data.license == "mit"


def test_a_model_that_averages_the_tokens_is_refused(model_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    for path in model_folder.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    manifest.write(folder, profile="minilm")
    with pytest.raises(ModelError, match=r"'bert-mean-pooled', which averages the tokens, .*--set pooling=first"):
        hugging_face.export(folder, tmp_path / "output")
    assert not (tmp_path / "output").exists()


def test_a_bundle_for_cpus_a_changed_file_and_a_full_folder_are_refused(
    whole: Path, bundle: Path, exported: Path, tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match=r"has no model.safetensors: give a version for GPUs"):
        hugging_face.export(whole, tmp_path / "output")
    with pytest.raises(ModelError, match=r"is not empty: give another folder"):
        hugging_face.export(bundle, exported)
    (tmp_path / "changed").mkdir()
    for path in bundle.iterdir():
        (tmp_path / "changed" / path.name).write_bytes(path.read_bytes())
    (tmp_path / "changed" / "config.json").write_text("{}")
    with pytest.raises(IntegrityError, match=r"config.json"):
        hugging_face.export(tmp_path / "changed", tmp_path / "output")
