"""The architectures of encoders: each is built, trained, exported and scored from a folder as the hub lays it out."""

from collections.abc import Callable
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

from goemotions.data.dataset import load_dataset
from goemotions.data.taxonomy import Taxonomy
from goemotions.data.text import clean
from goemotions.errors import ModelError
from goemotions.models import architectures, engines, export, profiles
from goemotions.models.classifier import build_classifier, load_classifier, load_tokenizer, save_classifier
from goemotions.models.profiles import Encoder, Hyperparameters, ModelType, Profile
from goemotions.models.tokenizer import TextEncoder
from goemotions.training import trainer
from goemotions.training.options import TrainOptions
from tests.conftest import WORDS, MadeOnce
from tests.support import repositories

REPOSITORIES: dict[ModelType, str] = {
    "albert": repositories.ALBERT,
    "bert": repositories.BERT,
    "camembert": repositories.CAMEMBERT,
    "deberta-v2": repositories.DEBERTA,
    "distilbert": repositories.DISTILBERT,
    "electra": repositories.ELECTRA,
    "modernbert": repositories.MODERNBERT,
    "mpnet": repositories.MPNET,
    "roberta": repositories.ROBERTA,
    "xlm-roberta": repositories.XLM_ROBERTA,
}
TEXTS = ["the old lake", "", "a storm near the quiet harbour again", " Balloon, near  a TABLE!"]
# Architectures whose layers differ, or share their weights.
NEEDS_TWO_LAYERS = ("albert", "modernbert")
# Exporting takes seconds: the two whose graphs are most unlike that of BERT are exported every time, each with one of the poolings.
EVERY_TIME = [("deberta-v2", "first"), ("modernbert", "mean")]
EXPORTED = [
    pytest.param(*case, marks=[] if case in EVERY_TIME else pytest.mark.slow)
    for case in ((name, pooling) for name in REPOSITORIES for pooling in ("first", "mean"))
]


def profile_of(model_type: ModelType, **hyperparameters: object) -> Profile:
    """All that adding an encoder takes."""
    encoder = Encoder(base=REPOSITORIES[model_type], revision="0" * 40, parameters=1, model_type=model_type)
    return Profile("own", encoder, Hyperparameters()).changed(**hyperparameters)


@pytest.fixture(scope="module")
def repository(made_once: MadeOnce) -> Callable[[ModelType], Path]:
    """A function from an architecture to the folder of a tiny encoder with random weights."""
    return lambda model_type: made_once(
        f"weights-{model_type}", lambda folder: repositories.write(REPOSITORIES[model_type], folder, WORDS)
    )


def encoder_of(folder: Path, profile: Profile) -> TextEncoder:
    tokenizer = load_tokenizer(profile, str(folder))
    return TextEncoder(tokenizer.backend_tokenizer, 32, tokenizer.pad_token_id)


def spread(path: Path) -> None:
    """Makes the weights larger, so that the scores of texts differ by far more than those of two engines may."""
    save_file(
        {name: tensor * (8 if tensor.dim() == 2 else 1) for name, tensor in load_file(path).items()}, path, {"format": "pt"}
    )


def test_every_type_that_a_profile_may_name_has_its_classes() -> None:
    assert set(get_args(ModelType)) == set(architectures.STOCK) == set(architectures.TOKENIZERS) == set(REPOSITORIES)


@pytest.mark.parametrize("model_type", REPOSITORIES)
def test_a_text_has_the_ids_of_auto_tokenizer_and_of_the_published_file(
    model_type: ModelType, repository: Callable[[ModelType], Path]
) -> None:
    folder = repository(model_type)
    published = Tokenizer.from_file(str(folder / "tokenizer.json"))
    published.no_padding()
    ours, auto = encoder_of(folder, profile_of(model_type)), transformers.AutoTokenizer.from_pretrained(folder)
    for text, encoded in zip(TEXTS, ours.encode(TEXTS), strict=True):
        assert encoded.ids == auto(clean(text)).input_ids == published.encode(clean(text)).ids


@pytest.mark.parametrize("pooling", ["first", "mean"])
@pytest.mark.parametrize("model_type", REPOSITORIES)
def test_a_batch_has_the_states_of_auto_model_pooled_by_the_head(
    model_type: ModelType, pooling: str, taxonomy: Taxonomy, repository: Callable[[ModelType], Path], tmp_path: Path
) -> None:
    """Positions, token types and padding as transformers computes them, and the same again from the saved folder."""
    folder, profile = repository(model_type), profile_of(model_type, pooling=pooling)
    built = build_classifier(profile, taxonomy, weights=str(folder)).eval()
    assert {tensor.dtype for tensor in built.parameters()} == {torch.float32}
    ids, mask = (
        torch.from_numpy(array)
        for array in encoder_of(folder, profile).pad([item.ids for item in encoder_of(folder, profile).encode(TEXTS)])
    )
    theirs = transformers.AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.inference_mode():
        states = theirs(input_ids=ids, attention_mask=mask).last_hidden_state
        hidden = built.base_model(input_ids=ids, attention_mask=mask).last_hidden_state
        logits = built(input_ids=ids, attention_mask=mask).logits
        assert torch.allclose(hidden[mask.bool()], states[mask.bool()], atol=1e-5)
        if isinstance(built, architectures.MeanPooledClassifier):
            means = torch.stack([row[real.bool()].mean(0) for row, real in zip(states, mask, strict=True)])
            assert torch.allclose(logits, built.classifier(means), atol=1e-5)
    save_classifier(tmp_path, built, load_tokenizer(profile, str(folder)), {"max_length": 32})
    with torch.inference_mode():
        again = load_classifier(tmp_path)(input_ids=ids, attention_mask=mask).logits
    assert torch.equal(again, logits)
    if not isinstance(built, architectures.MeanPooledClassifier):
        stock = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
        with torch.inference_mode():
            assert torch.allclose(stock(input_ids=ids, attention_mask=mask).logits, logits, atol=1e-5)
    else:
        with pytest.raises(ValueError, match=f"{model_type}-mean-pooled"):
            transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path)


def test_a_stored_mean_pooled_bert_has_the_type_and_the_names_of_before(
    taxonomy: Taxonomy, repository: Callable[[ModelType], Path]
) -> None:
    built = build_classifier(profile_of("bert", pooling="mean"), taxonomy, weights=str(repository("bert")))
    assert built.config.model_type == "bert-mean-pooled"
    names = {name for name in built.state_dict() if not name.startswith(("bert.embeddings.", "bert.encoder.layer."))}
    assert names == {"classifier.weight", "classifier.bias"}


@pytest.mark.parametrize("model_type", REPOSITORIES)
def test_head_layers_and_dropout_are_set_for_every_architecture(
    model_type: ModelType, taxonomy: Taxonomy, repository: Callable[[ModelType], Path]
) -> None:
    built = build_classifier(profile_of(model_type, layers=1, dropout=0.25), taxonomy, weights=str(repository(model_type)))
    whole = build_classifier(profile_of(model_type), taxonomy, weights=str(repository(model_type)))
    assert (built.config.num_hidden_layers, whole.config.num_hidden_layers) == (1, 2)
    expected = whole.base_model.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in built.base_model.state_dict().items())
    in_head = sum(parameter.numel() for parameter in architectures.head_parameters(built))
    assert in_head == sum(p.numel() for p in built.parameters()) - sum(p.numel() for p in built.base_model.parameters())
    depths = {name: architectures.layer_depth(whole, name) for name, _ in whole.base_model.named_parameters(prefix="x")}
    assert min(depths.values()) == 0
    assert max(depths.values()) == 2
    dropouts = {
        module.p
        for name, module in built.named_modules()
        if isinstance(module, torch.nn.Dropout) and not name.startswith(f"{built.base_model_prefix}.")
    }
    assert dropouts == {0.25}


@pytest.mark.parametrize(("model_type", "pooling"), EXPORTED)
def test_every_architecture_is_trained_exported_and_scored(
    model_type: ModelType,
    pooling: str,
    dataset: Path,
    repository: Callable[[ModelType], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(engines, "LATENCY_RUNS", 10)
    monkeypatch.setattr(export, "QUANTIZATION_TEXTS", 16)
    layers = 2 if model_type in NEEDS_TWO_LAYERS else 1
    profile = profile_of(model_type, pooling=pooling, layers=layers, learning_rate=3e-3, head_lr_multiplier=10.0)
    monkeypatch.setitem(profiles.PROFILES, "own", profile)
    record = trainer.train(dataset, tmp_path / "model", "own", TrainOptions(weights=str(repository(model_type)), epochs=1))
    spread(tmp_path / "model" / "model.safetensors")
    export.export(dataset, tmp_path / "model", tmp_path / "onnx")
    texts = load_dataset(dataset)[0]["validation"]["text"][:40]
    encoder = TextEncoder.load(tmp_path / "model")
    loaded = {
        name: engines.load(name, tmp_path / folder, encoder, threads=1)
        for name, folder in (("torch", "model"), ("openvino-fp32", "onnx"), ("openvino-int8", "onnx"))
    }
    scores = {name: engines.score(engine, texts)[0] for name, engine in loaded.items()}
    spreads = scores["torch"].std(axis=0)
    assert spreads.max() > 0.005
    assert np.abs(scores["openvino-fp32"] - scores["torch"]).max() < 1e-4
    assert np.abs(scores["openvino-int8"] - scores["torch"]).mean() < spreads.max() / 2
    encoder.pad_id = 10**6
    for name, folder in (("torch", "model"), ("openvino-fp32", "onnx"), ("openvino-int8", "onnx")):
        with pytest.raises(ModelError, match=r"embeds \d+ tokens, but the tokenizer beside it has ids up to 1000000"):
            engines.load(name, tmp_path / folder, encoder, threads=1)
    generator = np.random.default_rng(0)
    for rows, tokens in ((1, 1), (3, 7), (2, 128)):
        ids = generator.integers(6, 50, (rows, tokens))
        mask = np.ones_like(ids)
        mask[-1, tokens // 2 + 1 :] = 0
        expected = loaded["torch"].logits(ids, mask)
        assert loaded["openvino-fp32"].logits(ids, mask) == pytest.approx(expected, abs=1e-3)
    assert record.profile["layers"] == layers
