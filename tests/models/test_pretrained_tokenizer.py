"""Tokenizers of published repositories: ids as AutoTokenizer gives them, and a pad token that no file names."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from goemotions.data.taxonomy import Taxonomy
from goemotions.data.text import clean
from goemotions.errors import ModelError
from goemotions.models import profiles
from goemotions.models.classifier import build_classifier, load_tokenizer, save_classifier
from goemotions.models.tokenizer import TextEncoder
from goemotions.storage import store
from tests.support import repositories

MAX_LENGTH = 16
PROFILES = ("roberta-large", "distilbert", "minilm")
# Special tokens, capitals, accents, ideographs, control characters and spaces at the start, in words that the vocabularies have.
PIECES = [
    "lake",
    "storm",
    "the",
    "zzxq",
    " ",
    "  ",
    "\t",
    "\n",
    "!",
    "'",
    "\x07",
    "\u00e9",
    "\u0130",
    "\u65e5",
    "\U0001f44d",
    "LAKE",
]
PIECES += ["<s>", "<pad>", "</s>", "<mask>", " <mask>", "[PAD]", "[MASK]", "[CLS]", "[UNK]", "[unused3]"]
TEXTS = st.lists(st.one_of(st.sampled_from(PIECES), st.text(max_size=5)), max_size=12).map("".join)
# What tokenizer_config.json may say otherwise, and of which profiles.
BERTS = ("distilbert", "minilm")
CHANGES: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
    "published": (PROFILES, {}),
    "cased": (BERTS, {"do_lower_case": False}),
    "accents": (BERTS, {"strip_accents": False}),
    "prefix-space": (("roberta-large",), {"add_prefix_space": True}),
    "fast-class": (BERTS, {"tokenizer_class": "BertTokenizerFast"}),
    "generic-class": (PROFILES, {"tokenizer_class": "PreTrainedTokenizerFast"}),
}
CASES = [(name, change) for change, (names, _) in CHANGES.items() for name in names]


def edit(path: Path, **fields: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def encoder_of(folder: Path, profile: str) -> TextEncoder:
    tokenizer = load_tokenizer(profiles.get(profile), str(folder))
    return TextEncoder(tokenizer.backend_tokenizer, MAX_LENGTH, tokenizer.pad_token_id)


@pytest.fixture
def folder(request: pytest.FixtureRequest, weights: Callable[[str], str], tmp_path: Path) -> Path:
    """A copy of a repository, DistilBERT's unless the test names another profile."""
    return Path(shutil.copytree(weights(getattr(request, "param", "distilbert")), tmp_path / "repository"))


@pytest.fixture(scope="module", params=CASES, ids="-".join)
def pair(
    request: pytest.FixtureRequest, weights: Callable[[str], str], tmp_path_factory: pytest.TempPathFactory
) -> tuple[TextEncoder, transformers.PreTrainedTokenizerBase]:
    """The encoder of a repository, maybe changed, and what AutoTokenizer loads from it."""
    name, change = request.param
    folder = Path(shutil.copytree(weights(name), tmp_path_factory.mktemp("tokenizer") / "repository"))
    edit(folder / "tokenizer_config.json", **CHANGES[change][1])
    return encoder_of(folder, name), transformers.AutoTokenizer.from_pretrained(folder)


@settings(max_examples=30, deadline=None)
@given(text=TEXTS)
def test_a_text_has_the_ids_that_auto_tokenizer_gives_it(
    pair: tuple[TextEncoder, transformers.PreTrainedTokenizerBase], text: str
) -> None:
    encoder, expected = pair
    assert encoder.encode([text])[0].ids == expected(clean(text), truncation=True, max_length=MAX_LENGTH).input_ids


@pytest.mark.parametrize(
    ("profile", "tokenizer_class"),
    [
        ("roberta-large", transformers.RobertaTokenizer),
        ("distilbert", transformers.DistilBertTokenizer),
        ("minilm", transformers.BertTokenizer),
    ],
)
def test_special_tokens_are_those_of_auto_tokenizer_and_of_the_class(
    profile: str, tokenizer_class: Any, weights: Callable[[str], str]
) -> None:
    loaded = load_tokenizer(profiles.get(profile), weights(profile))
    for expected in (transformers.AutoTokenizer, tokenizer_class):
        tokenizer = expected.from_pretrained(weights(profile))
        assert loaded.special_tokens_map == tokenizer.special_tokens_map
        assert sorted(loaded.all_special_ids) == sorted(tokenizer.all_special_ids)
        assert loaded.pad_token_id == tokenizer.pad_token_id
        assert loaded.get_vocab() == tokenizer.get_vocab()


@pytest.mark.parametrize("profile", PROFILES)
def test_a_padded_batch_has_the_hidden_states_of_auto_model_and_auto_tokenizer(
    profile: str, taxonomy: Taxonomy, weights: Callable[[str], str]
) -> None:
    """Position ids included: RoBERTa counts them from the pad id."""
    texts = ["the old lake", "", "a storm near the quiet harbour again", " <pad> table"]
    folder = weights(profile)
    ids, mask = encoder_of(Path(folder), profile).pad([item.ids for item in encoder_of(Path(folder), profile).encode(texts)])
    ours = build_classifier(profiles.get(profile), taxonomy, weights=folder).eval().base_model
    theirs = transformers.AutoModel.from_pretrained(folder).eval()
    inputs = transformers.AutoTokenizer.from_pretrained(folder)(texts, padding=True, return_tensors="pt")
    assert torch.equal(torch.from_numpy(ids), inputs["input_ids"])
    with torch.inference_mode():
        expected = theirs(**inputs).last_hidden_state
        hidden = ours(input_ids=torch.from_numpy(ids), attention_mask=torch.from_numpy(mask)).last_hidden_state
    kept = torch.from_numpy(mask).bool()
    assert torch.allclose(hidden[kept], expected[kept], atol=1e-6)


@pytest.mark.parametrize("profile", PROFILES)
def test_a_saved_model_names_its_pad_token_and_encodes_as_before(
    profile: str, taxonomy: Taxonomy, weights: Callable[[str], str], tmp_path: Path
) -> None:
    chosen = profiles.get(profile)
    tokenizer = load_tokenizer(chosen, weights(profile))
    encoder = TextEncoder(tokenizer.backend_tokenizer, MAX_LENGTH, tokenizer.pad_token_id)
    network = build_classifier(chosen, taxonomy, weights=weights(profile))
    save_classifier(tmp_path / "model", network, tokenizer, {"max_length": MAX_LENGTH})
    saved = TextEncoder.load(tmp_path / "model")
    texts = ["the old lake", " The LAKE!", "", "a <mask> [MASK]"]
    assert (saved.pad_id, saved.encode(texts)) == (encoder.pad_id, encoder.encode(texts))
    named = json.loads((tmp_path / "model" / "tokenizer_config.json").read_text())["pad_token"]
    assert transformers.AutoTokenizer.from_pretrained(tmp_path / "model").pad_token == named == tokenizer.pad_token


def test_a_tokenizer_is_read_from_s3(weights: Callable[[str], str], bucket: str) -> None:
    store.put(Path(weights("roberta-large")), bucket)
    loaded = load_tokenizer(profiles.get("roberta-large"), bucket)
    assert (loaded.pad_token_id, loaded(" lake").input_ids) == (1, [0, loaded.get_vocab()["\u0120lake"], 2])


def test_the_pad_token_of_a_class_without_one_is_that_of_the_config(folder: Path) -> None:
    edit(folder / "tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast")
    edit(folder / "config.json", pad_token_id=100)
    tokenizer = load_tokenizer(profiles.get("distilbert"), str(folder))
    assert (tokenizer.pad_token, tokenizer.pad_token_id) == ("[UNK]", 100)


def drop_tokens(folder: Path, *dropped: str) -> None:
    """Replaces tokens of tokenizer.json by words."""
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text())
    content["added_tokens"] = [token for token in content["added_tokens"] if token["content"] not in dropped]
    vocabulary = content["model"]["vocab"]
    content["model"]["vocab"] = {f"was{number}" if token in dropped else token: number for token, number in vocabulary.items()}
    path.write_text(json.dumps(content))


def test_a_vocabulary_without_a_mask_token_gets_none(folder: Path) -> None:
    drop_tokens(folder, "[MASK]")
    tokenizer = load_tokenizer(profiles.get("distilbert"), str(folder))
    assert "[MASK]" not in tokenizer.get_vocab()
    assert max(tokenizer("the [MASK] lake").input_ids) < json.loads((folder / "config.json").read_text())["vocab_size"]


def no_pad_token_at_all(folder: Path) -> None:
    drop_tokens(folder, "[PAD]")
    edit(folder / "config.json", pad_token_id=None)


def no_pad_token_of_a_generic_class(folder: Path) -> None:
    edit(folder / "tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast")
    edit(folder / "config.json", pad_token_id=None)


def another_kind_of_tokenizer(folder: Path) -> None:
    repositories.write(repositories.ROBERTA, folder.parent / "other", ["lake"])
    shutil.copy(folder.parent / "other" / "tokenizer.json", folder)


NO_PAD = "names no pad token of its vocabulary: write pad_token to"
UNUSABLE: dict[str, tuple[Callable[[Path], object], str]] = {
    "no pad token": (no_pad_token_at_all, NO_PAD),
    "no pad token of a generic class": (no_pad_token_of_a_generic_class, NO_PAD),
    "no class token": (
        lambda folder: drop_tokens(folder, "[CLS]"),
        r"lacks the cls_token \[CLS\] of a DistilBertTokenizer: give the encoder's own tokenizer",
    ),
    "a slow tokenizer only": (
        lambda folder: (folder / "tokenizer.json").unlink(),
        r"tokenizer\.json is missing: other tokenizer formats are not read, convert it with",
    ),
    "another architecture": (
        lambda folder: repositories.write(repositories.MPNET, folder, ["lake"]),
        "is a distilbert, but its weights are of type 'mpnet': give weights of distilbert/",
    ),
    "another kind of tokenizer": (
        another_kind_of_tokenizer,
        "is a BPE tokenizer, but that of a distilbert is WordPiece: write",
    ),
    "more tokens than embeddings": (
        lambda folder: edit(folder / "config.json", vocab_size=150),
        r"has ids up to \d+, but the encoder embeds 150 tokens \(vocab_size\): give the tokenizer",
    ),
    "fewer positions than max_length": (
        lambda folder: edit(folder / "config.json", max_position_embeddings=100),
        r"max_length of distilbert is 128, but .* reads 100 tokens: lower max_length",
    ),
}


@pytest.mark.fault("weights-unusable")
@pytest.mark.parametrize(("change", "message"), UNUSABLE.values(), ids=UNUSABLE)
def test_weights_that_cannot_be_trained_are_refused(change: Callable[[Path], object], message: str, folder: Path) -> None:
    change(folder)
    with pytest.raises(ModelError, match=message) as raised:
        load_tokenizer(profiles.get("distilbert"), str(folder))
    assert len(str(raised.value).splitlines()) == 1


@pytest.mark.fault("weights-unusable")
@pytest.mark.parametrize("folder", ["roberta-large"], indirect=True)
def test_two_pad_ids_of_a_roberta_are_refused(folder: Path) -> None:
    """A network of its config would count positions from another id than the tokenizer pads with, or from none."""
    for pad_id in (3, None):
        edit(folder / "config.json", pad_token_id=pad_id)
        with pytest.raises(ModelError, match=rf"pads with 1 by its tokenizer and with {pad_id} by config\.json"):
            load_tokenizer(profiles.get("roberta-large"), str(folder))
    fields = json.loads((folder / "config.json").read_text())
    del fields["pad_token_id"]
    (folder / "config.json").write_text(json.dumps(fields))
    assert load_tokenizer(profiles.get("roberta-large"), str(folder)).pad_token_id == 1
    edit(folder / "tokenizer_config.json", pad_token="<unk>")
    with pytest.raises(ModelError, match=r"pads with 3 by its tokenizer and with 1 by config\.json"):
        load_tokenizer(profiles.get("roberta-large"), str(folder))


@pytest.mark.parametrize("folder", ["roberta-large"], indirect=True)
def test_positions_of_a_roberta_begin_after_its_pad_id(folder: Path) -> None:
    load_tokenizer(profiles.get("roberta-large", {"max_length": 512}), str(folder))
    edit(folder / "config.json", max_position_embeddings=513)
    with pytest.raises(ModelError, match=r"max_length of roberta-large is 512, but .* reads 511 tokens"):
        load_tokenizer(profiles.get("roberta-large", {"max_length": 512}), str(folder))
