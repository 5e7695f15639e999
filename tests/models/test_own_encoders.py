"""Folders of encoders that users bring: fine-tuned, cut, converted or edited ones either work or are refused by name."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from goemotions.data.taxonomy import Taxonomy
from goemotions.errors import ModelError
from goemotions.models import architectures, weights_folder
from goemotions.models.classifier import build_classifier, load_classifier, load_tokenizer, save_classifier
from goemotions.models.profiles import ModelType
from tests.conftest import WORDS
from tests.models.test_architectures import REPOSITORIES, profile_of
from tests.support import repositories

IDS = torch.tensor([[4, 5, 6, 7], [4, 5, 6, 7]])
MASK = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])


@pytest.fixture
def repository(tmp_path: Path) -> Callable[[ModelType], Path]:
    """A function from an architecture to a folder of a tiny encoder, which the test may change."""
    return lambda model_type: repositories.write(REPOSITORIES[model_type], tmp_path / model_type, WORDS)


def edit(folder: Path, **fields: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def rewrite(folder: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> None:
    path = folder / "model.safetensors"
    save_file(change(load_file(path)), path, {"format": "pt"})


def states(network: transformers.PreTrainedModel) -> torch.Tensor:
    with torch.inference_mode():
        return network.base_model.eval()(input_ids=IDS, attention_mask=MASK).last_hidden_state[MASK.bool()]


@pytest.mark.parametrize("labels", [3, 7])
@pytest.mark.parametrize("pooling", ["first", "mean"])
@pytest.mark.parametrize("model_type", ["bert", "deberta-v2", "distilbert", "modernbert", "roberta"])
def test_a_fine_tuned_classifier_gives_its_encoder_and_gets_a_new_head(
    model_type: ModelType, pooling: str, labels: int, repository: Callable[[ModelType], Path], taxonomy: Taxonomy
) -> None:
    folder = repository(model_type)
    config = transformers.AutoConfig.from_pretrained(folder, num_labels=labels)
    tuned = architectures.STOCK[model_type].from_pretrained(
        folder, config=config, ignore_mismatched_sizes=True, dtype=torch.float32
    )
    with torch.no_grad():
        for parameter in architectures.head_parameters(tuned):
            parameter.add_(3)
    tuned.save_pretrained(folder)
    one, again, other = (
        build_classifier(profile_of(model_type, pooling=pooling), taxonomy, weights=str(folder), seed=seed)
        for seed in (1, 1, 2)
    )
    assert torch.equal(states(one), states(tuned))
    heads = [torch.cat([p.flatten() for p in architectures.head_parameters(network)]) for network in (one, again, other)]
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])
    assert heads[0].abs().max() < 2
    assert len(one.config.id2label) == 7


@pytest.mark.parametrize("model_type", ["albert", "bert"])
def test_weights_without_a_pooler_get_a_new_one(
    model_type: ModelType, repository: Callable[[ModelType], Path], taxonomy: Taxonomy
) -> None:
    """As further pretraining with masked words leaves them."""
    folder = repository(model_type)
    rewrite(folder, lambda tensors: {name: tensor for name, tensor in tensors.items() if "pooler" not in name})
    one, again = (build_classifier(profile_of(model_type), taxonomy, weights=str(folder), seed=4) for _ in range(2))
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in one.state_dict().items())


@pytest.mark.parametrize("model_type", REPOSITORIES)
def test_a_folder_that_transformers_saved_is_read(
    model_type: ModelType, repository: Callable[[ModelType], Path], taxonomy: Taxonomy, tmp_path: Path
) -> None:
    """As docs/models.md converts one. Without a length, the tokenizer has one of 31 digits; a token was added to the vocabulary."""
    folder, saved = repository(model_type), tmp_path / "saved"
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, model_max_length=int(1e30))
    tokenizer.add_tokens(["<url>"])
    encoder = transformers.AutoModel.from_pretrained(folder, dtype=torch.float32)
    encoder.resize_token_embeddings(len(tokenizer))
    encoder.save_pretrained(saved)
    tokenizer.save_pretrained(saved)
    assert '"model_max_length": 1000000000000000019884624838656' in (saved / "tokenizer_config.json").read_text()
    profile = profile_of(model_type)
    assert torch.equal(states(build_classifier(profile, taxonomy, weights=str(saved))), states(encoder))
    ours = load_tokenizer(profile, str(saved))
    assert ours("a lake <url>").input_ids == tokenizer("a lake <url>").input_ids


def test_weights_in_shards_are_read(repository: Callable[[ModelType], Path], taxonomy: Taxonomy, tmp_path: Path) -> None:
    folder = repository("bert")
    whole = build_classifier(profile_of("bert", pooling="mean"), taxonomy, weights=str(folder))
    (folder / "model.safetensors").unlink()
    whole.base_model.save_pretrained(folder, max_shard_size="20KB")
    edit(folder, model_type="bert")
    assert len(list(folder.glob("model-*-of-*.safetensors"))) > 2
    built = build_classifier(profile_of("bert", pooling="mean"), taxonomy, weights=str(folder))
    assert torch.equal(states(built), states(whole))
    next(folder.glob("model-00002-of-*")).unlink()
    with pytest.raises(
        ModelError, match=r"holds no usable weights: model.safetensors.index.json names model-00002-of-.*missing"
    ):
        build_classifier(profile_of("bert", pooling="mean"), taxonomy, weights=str(folder))


@pytest.mark.fault("weights-unusable")
@pytest.mark.parametrize("name", ["weights.bin", "../weights.safetensors", "/weights.safetensors"])
def test_an_index_of_other_files_is_refused_and_none_is_opened(
    name: str, repository: Callable[[ModelType], Path], taxonomy: Taxonomy, tmp_path: Path
) -> None:
    folder = repository("bert")
    (folder / "model.safetensors").rename(folder / name if name != "/weights.safetensors" else tmp_path / "elsewhere")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"bert.pooler.dense.bias": name}}))
    with pytest.raises(ModelError, match=r"index\.json names .*weights\.\w+', which is no \.safetensors of its folder"):
        build_classifier(profile_of("bert"), taxonomy, weights=str(folder))


@pytest.mark.fault("weights-unusable")
@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"weight_map": {"bert.pooler.dense.bias": 1}}', '{"weight_map": []}'])
def test_a_damaged_index_is_named(content: str, repository: Callable[[ModelType], Path], taxonomy: Taxonomy) -> None:
    folder = repository("bert")
    (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
    with pytest.raises(ModelError, match=r"it has model-00001-of-.* and neither model\.safetensors nor .*: rename"):
        build_classifier(profile_of("bert"), taxonomy, weights=str(folder))
    (folder / "model.safetensors.index.json").write_text(content)
    with pytest.raises(ModelError, match=r"index\.json (is missing or damaged|names no files)"):
        build_classifier(profile_of("bert"), taxonomy, weights=str(folder))


@pytest.mark.fault("weights-unusable")
@pytest.mark.parametrize("layers", [0, -1, 10**7, "two", None, 1.5])
def test_a_config_without_layers_or_heads_or_with_millions_is_refused(
    layers: object, repository: Callable[[ModelType], Path], taxonomy: Taxonomy
) -> None:
    counts = ("num_hidden_layers", "num_attention_heads"), ("n_layers", "n_heads"), ("num_hidden_groups", "inner_group_num")
    for kind, name in (
        (kind, name) for kind, names in zip(("bert", "distilbert", "albert"), counts, strict=True) for name in names
    ):
        folder = repository(kind)
        edit(folder, **{name: layers})
        with pytest.raises(ModelError, match=f"config.json has {name} .*, and an encoder has 1 to 1,000"):
            build_classifier(profile_of(kind), taxonomy, weights=str(folder))


@pytest.mark.fault("weights-unusable")
@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("hidden_size", 10**5),
        ("intermediate_size", 10**10),
        ("type_vocab_size", 10**10),
        ("vocab_size", 10**8),
        ("max_position_embeddings", 10**10),
    ],
)
def test_a_config_that_means_far_more_than_the_weights_have_is_refused_before_memory_is_taken(
    name: str, size: int, repository: Callable[[ModelType], Path], taxonomy: Taxonomy
) -> None:
    folder = repository("bert")
    edit(folder, **{name: size})
    with pytest.raises(
        ModelError, match=r"means an encoder of [\d,]+ parameters, and its weights have [\d,]+: copy both again"
    ):
        build_classifier(profile_of("bert"), taxonomy, weights=str(folder))


@pytest.mark.fault("weights-unusable")
def test_weights_in_a_store_are_refused_by_what_their_files_begin_with(repository: Callable[[ModelType], Path]) -> None:
    folder = repository("bert")
    weights_folder.require_stored(profile_of("bert"), f"{folder}/")
    rewrite(folder, lambda tensors: tensors | {"bert.pooler.dense.bias": tensors["bert.pooler.dense.bias"].to(torch.int8)})
    with pytest.raises(ModelError, match=rf"{folder}/model\.safetensors has bert\.pooler\.dense\.bias as I8"):
        weights_folder.require_stored(profile_of("bert"), f"{folder}/")
    lfs_pointer(folder / "model.safetensors")
    with pytest.raises(ModelError, match=rf"{folder}/model\.safetensors is a pointer of Git LFS"):
        weights_folder.require_stored(profile_of("bert"), f"{folder}/")


@pytest.mark.fault("weights-unusable")
def test_a_size_of_zero_is_refused(repository: Callable[[ModelType], Path], taxonomy: Taxonomy) -> None:
    folder = repository("bert")
    edit(folder, hidden_size=0)
    with pytest.raises(ModelError, match="holds no usable weights"):
        build_classifier(profile_of("bert"), taxonomy, weights=str(folder))


@pytest.mark.fault("weights-unusable")
@pytest.mark.parametrize("kind", [torch.int8, torch.float8_e4m3fn, torch.bool], ids=str)
def test_quantized_weights_are_refused_rather_than_read_without_their_scales(
    kind: torch.dtype, repository: Callable[[ModelType], Path], taxonomy: Taxonomy
) -> None:
    folder = repository("bert")
    name = "bert.encoder.layer.1.output.dense.weight"
    rewrite(folder, lambda tensors: tensors | {name: tensors[name].to(kind)})
    with pytest.raises(ModelError, match=rf"{name} as \w+, as quantized weights are: give the weights as they were before"):
        build_classifier(profile_of("bert"), taxonomy, weights=str(folder))


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_weights_of_any_float_are_read(kind: torch.dtype, repository: Callable[[ModelType], Path], taxonomy: Taxonomy) -> None:
    folder = repository("bert")
    before = states(build_classifier(profile_of("bert"), taxonomy, weights=str(folder)))
    positions = {"bert.embeddings.position_ids": torch.arange(512)[None]}
    rewrite(folder, lambda tensors: {name: tensor.to(kind) for name, tensor in tensors.items()} | positions)
    assert torch.allclose(states(build_classifier(profile_of("bert"), taxonomy, weights=str(folder))), before, atol=0.02)


@pytest.mark.fault("weights-unusable")
@pytest.mark.parametrize("value", [float("nan"), float("inf")], ids=str)
def test_weights_that_are_not_finite_are_refused(
    value: float, repository: Callable[[ModelType], Path], taxonomy: Taxonomy, tmp_path: Path
) -> None:
    """As a training leaves them whose loss diverged."""
    folder = repository("bert")
    save_classifier(
        tmp_path / "model",
        build_classifier(profile_of("bert"), taxonomy, weights=str(folder)),
        load_tokenizer(profile_of("bert"), str(folder)),
        {},
    )
    name = "bert.encoder.layer.1.output.dense.weight"
    for place in (folder, tmp_path / "model"):
        rewrite(place, lambda tensors: tensors | {name: tensors[name].index_fill(0, torch.tensor([3]), value)})
    for read in (lambda: build_classifier(profile_of("bert"), taxonomy, weights=str(folder)), lambda: load_classifier(place)):
        with pytest.raises(ModelError, match=rf"holds no usable weights: {name} has values that are not finite"):
            read()


@pytest.mark.parametrize(
    "fields",
    [
        {"return_dict": False},
        {"use_return_dict": False},
        {"torchscript": True, "output_attentions": True, "output_hidden_states": True},
        {"chunk_size_feed_forward": 3},
    ],
    ids=lambda fields: next(iter(fields)),
)
@pytest.mark.parametrize("pooling", ["first", "mean"])
def test_a_config_that_changes_what_a_network_returns_changes_nothing(
    pooling: str, fields: dict[str, object], repository: Callable[[ModelType], Path], taxonomy: Taxonomy, tmp_path: Path
) -> None:
    folder, profile = repository("bert"), profile_of("bert", pooling=pooling)
    expected = build_classifier(profile, taxonomy, weights=str(folder)).eval()(input_ids=IDS, attention_mask=MASK).logits
    edit(folder, **fields)
    built = build_classifier(profile, taxonomy, weights=str(folder)).eval()
    save_classifier(tmp_path / "model", built, load_tokenizer(profile, str(folder)), {"max_length": 32})
    for network in (built, load_classifier(tmp_path / "model")):
        assert torch.equal(network(input_ids=IDS, attention_mask=MASK).logits, expected)


def relative_positions(folder: Path) -> None:
    """As in embedding-relative-key-query, which transformers can no longer compute."""
    edit(folder, position_embedding_type="relative_key_query")
    name = "bert.encoder.layer.{}.attention.self.distance_embedding.weight"
    rewrite(folder, lambda tensors: tensors | {name.format(layer): torch.zeros(1023, 16) for layer in (0, 1)})


def wrapped(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {f"auto_model.{name}": tensor for name, tensor in tensors.items()}


ADAPTER = {"bert.encoder.layer.0.adapter.down.weight": torch.zeros(4, 4)}


@pytest.mark.fault("weights-unusable")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            relative_positions,
            r"they have bert\.encoder\.layer\.0\.attention\.self\.distance_embedding\.weight, for which a bert",
        ),
        (
            lambda folder: edit(folder, num_hidden_layers=1),
            r"they have bert\.encoder\.layer\.1\..*, for which a bert with this config\.json has no use",
        ),
        (
            lambda folder: rewrite(folder, lambda tensors: tensors | ADAPTER),
            r"have bert\.encoder\.layer\.0\.adapter\.down\.weight",
        ),
        (lambda folder: rewrite(folder, wrapped), r"they lack bert\.embeddings\.LayerNorm\.bias"),
        (
            lambda folder: edit(folder, vocab_size=5000),
            r"word_embeddings\.weight in the shape \[\d+, 32\], but config\.json means \[5000, 32\]",
        ),
        (lambda folder: edit(folder, pad_token_id=5000), "Padding_idx must be within num_embeddings"),
    ],
    ids=["relative positions", "layers", "adapters", "names of a wrapper", "vocabulary", "pad token"],
)
def test_weights_that_would_give_another_network_are_refused(
    change: Callable[[Path], None], message: str, repository: Callable[[ModelType], Path], taxonomy: Taxonomy
) -> None:
    folder = repository("bert")
    change(folder)
    with pytest.raises(ModelError, match=f"{folder} holds no usable weights for own: .*{message}"):
        build_classifier(profile_of("bert"), taxonomy, weights=str(folder))


def test_a_profile_of_a_type_that_is_not_loaded_is_refused(repository: Callable[[ModelType], Path]) -> None:
    folder, profile = repository("xlm-roberta"), profile_of("xlm-roberta")
    edit(folder, model_type="gpt2")
    other = dataclasses.replace(profile, encoder=dataclasses.replace(profile.encoder, model_type="gpt2"))
    with pytest.raises(ModelError, match=r"own is a gpt2: only albert, bert, .* are loaded"):
        load_tokenizer(other, str(folder))


def lfs_pointer(path: Path) -> Path:
    """What a clone without Git LFS has in place of a large file."""
    path.write_text(f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 437955512\n")
    return path.parent


def adapter(folder: Path) -> Path:
    """As peft saves it, without the config of its encoder."""
    (folder / "model.safetensors").rename(folder / "adapter_model.safetensors")
    (folder / "config.json").unlink()
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA", "base_model_name_or_path": "x/y"}')
    return folder


def hub_cache(folder: Path) -> Path:
    """As the hub's library lays a model out below ``~/.cache/huggingface/hub``."""
    cache = folder.parent / "models--a--b"
    (cache / "snapshots").mkdir(parents=True)
    folder.rename(cache / "snapshots" / "0123abcd")
    return cache


def links_to_nothing(folder: Path) -> Path:
    """A snapshot of that cache that was copied with its links, without what they name."""
    for path in [path for path in folder.iterdir() if path.is_file()]:
        path.unlink()
        path.symlink_to(f"../../blobs/{path.name}")
    return folder


@pytest.mark.fault("weights-unusable")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda folder: lfs_pointer(folder / "model.safetensors"),
            "/model.safetensors is a pointer of Git LFS, .*`git lfs pull`",
        ),
        (
            lambda folder: lfs_pointer(folder / "tokenizer.json"),
            "/tokenizer.json is a pointer of Git LFS, .* `git lfs pull` in",
        ),
        (adapter, " holds an adapter, not a whole model: .*merge_and_unload"),
        (
            lambda folder: folder.parent,
            "/config.json is missing: .*for an encoder one with config.json, .*, such as {folder}/bert$",
        ),
        (
            hub_cache,
            "/config.json is missing: .*for an encoder one with config.json, .*, such as {folder}/snapshots/0123abcd$",
        ),
        (links_to_nothing, "/.* is a link to a file that is not there: copy the files themselves, as `cp -rL` does"),
    ],
    ids=["weights in Git LFS", "tokenizer in Git LFS", "adapter", "folder around it", "cache of the hub", "links to nothing"],
)
def test_a_folder_that_is_no_encoder_says_what_to_give(
    change: Callable[[Path], Path], message: str, repository: Callable[[ModelType], Path], taxonomy: Taxonomy
) -> None:
    folder = change(repository("bert"))
    with pytest.raises(ModelError, match=f"{folder}{message.replace('{folder}', str(folder))}"):
        build_classifier(profile_of("bert"), taxonomy, weights=str(folder))
