"""The profiles: the architecture of each, and the way from weights to scores."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from goemotions.data.dataset import load_dataset
from goemotions.data.taxonomy import Taxonomy
from goemotions.errors import ModelError
from goemotions.models import classifier, engines, export, profiles
from goemotions.models.classifier import build_classifier, check_size, load_classifier
from goemotions.models.tokenizer import TextEncoder
from goemotions.training import losses, trainer
from goemotions.training.options import TrainOptions

PUBLISHED = {
    "roberta-large": 355_400_000,
    "distilbert": 66_980_000,
    "minilm": 22_600_000,
    "minilm-3l": 17_250_000,
    "mpnet": 108_900_000,
}
# Fields of the published config of each encoder that differ from the defaults of its class.
MINILM = {"hidden_size": 384, "num_hidden_layers": 6, "intermediate_size": 1536}
ARCHITECTURES = {
    "roberta-large": {
        "vocab_size": 50265,
        "hidden_size": 1024,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "intermediate_size": 4096,
        "max_position_embeddings": 514,
        "type_vocab_size": 1,
    },
    "minilm": MINILM,
    "minilm-3l": MINILM,
    "mpnet": {"vocab_size": 30527, "max_position_embeddings": 514},
}


@pytest.fixture(scope="module")
def full() -> Callable[[str, int], torch.nn.Module]:
    """A function from a profile's name and a number of labels to the full architecture, without memory for the weights."""

    def make(name: str, labels: int) -> torch.nn.Module:
        profile = profiles.get(name)
        fields = {"model_type": profile.encoder.model_type, **ARCHITECTURES.get(name, {})}
        config = classifier._config(profile, Taxonomy(tuple(f"label {number}" for number in range(labels))), fields)
        with torch.device("meta"):
            return classifier.CLASSES[config.model_type](config)

    return make


def test_every_profile_has_a_published_size() -> None:
    assert set(profiles.PROFILES) == set(PUBLISHED)


@pytest.mark.parametrize(("name", "published"), PUBLISHED.items())
def test_the_full_architecture_has_the_published_number_of_parameters(
    name: str, published: int, full: Callable[[str, int], torch.nn.Module]
) -> None:
    built = full(name, 28)
    parameters = sum(parameter.numel() for parameter in built.parameters())
    assert parameters == pytest.approx(published, rel=0.02)
    assert profiles.get(name).hyperparameters.layers or parameters == profiles.get(name).encoder.parameters


@pytest.mark.parametrize("labels", [2, 28, 300])
def test_the_size_check_does_not_depend_on_the_number_of_labels(
    labels: int, full: Callable[[str, int], torch.nn.Module]
) -> None:
    taxonomy = Taxonomy(tuple(f"label {number}" for number in range(labels)))
    check_size(profiles.get("minilm"), full("minilm", labels), taxonomy)


def test_the_size_check_refuses_the_weights_of_another_model(full: Callable[[str, int], torch.nn.Module]) -> None:
    taxonomy = Taxonomy(tuple(f"label {number}" for number in range(28)))
    with pytest.raises(ModelError, match=r"minilm has 17,252,764 parameters, but 22,576,156 are expected"):
        check_size(profiles.get("minilm"), full("minilm-3l", 28), taxonomy)


@pytest.mark.parametrize("profile", profiles.PROFILES.values(), ids=lambda profile: profile.name)
def test_every_profile_pins_a_commit(profile: profiles.Profile) -> None:
    assert re.fullmatch(r"[0-9a-f]{40}", profile.encoder.revision)


def test_the_error_of_an_unknown_profile_lists_the_profiles() -> None:
    with pytest.raises(ModelError, match="'bert-huge': choose from roberta-large, distilbert, minilm, minilm-3l, mpnet"):
        profiles.get("bert-huge")


def test_every_loss_that_may_be_set_is_built() -> None:
    assert all(losses.build(name, torch.ones(3)) for name in profiles.CHOICES["loss"])


def test_former_names_of_hyperparameters_are_read_and_removed_ones_are_named_errors() -> None:
    former = {"head_factor": 3, "warmup": 0.2, "prior": "false", "teachers_share": 0.25}
    hyperparameters = profiles.get("minilm", former).hyperparameters
    assert hyperparameters.head_lr_multiplier == 3
    assert hyperparameters.warmup_ratio == 0.2
    assert hyperparameters.init_bias_from_frequency is False
    assert hyperparameters.distillation_weight == 0.25
    for removed in ("average", "groups", "added_tokens"):
        with pytest.raises(
            ModelError, match=rf"no hyperparameter '{removed}': choose from pooling, learning_rate, .*, teacher_epochs"
        ):
            profiles.get("minilm", {removed: 1})


@pytest.mark.parametrize(
    "name", ["distilbert", *(pytest.param(name, marks=pytest.mark.slow) for name in ("roberta-large", "minilm"))]
)
def test_a_profile_trains_exports_and_scores(
    name: str, dataset: Path, weights: Callable[[str], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engines, "LATENCY_RUNS", 10)
    monkeypatch.setattr(export, "QUANTIZATION_TEXTS", 16)
    texts = load_dataset(dataset)[0]["validation"]["text"][:40]
    record = trainer.train(
        dataset, tmp_path / "model", name, TrainOptions(weights=weights(name), epochs=1, settings={"teachers": 0})
    )
    exported = export.export(dataset, tmp_path / "model", tmp_path / "onnx")

    assert record.profile["name"] == name
    assert len(record.history) == 1
    assert exported["openvino-fp32"].difference_max < 1e-4
    assert exported["openvino-int8"].difference_mean < 0.05
    loaded = load_classifier(tmp_path / "model")
    assert sum(parameter.numel() for parameter in loaded.parameters()) == record.parameters
    encoder = TextEncoder.load(tmp_path / "model")
    for engine, folder in (("torch", "model"), ("openvino-fp32", "onnx"), ("openvino-int8", "onnx")):
        probabilities, truncated = engines.score(engines.load(engine, tmp_path / folder, encoder), texts)
        assert probabilities.shape == (40, 7)
        assert ((probabilities > 0) & (probabilities < 1)).all()
        assert not truncated.any()


def test_a_profile_keeps_no_more_layers_than_the_weights_have(taxonomy: Taxonomy, weights: Callable[[str], str]) -> None:
    built = build_classifier(profiles.get("minilm-3l"), taxonomy, weights=weights("minilm-3l"))
    assert built.config.num_hidden_layers == 2
