"""The tokenizer of a pretrained encoder: of the class that AutoTokenizer would take, checked against the encoder.

The published repositories of RoBERTa and DistilBERT name no special tokens, neither in ``tokenizer_config.json`` nor for a padding in
``tokenizer.json``: that ``<pad>`` or ``[PAD]`` pads is known to the tokenizer's class alone.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from goemotions.errors import ModelError
from goemotions.models.architectures import TOKENIZERS
from goemotions.models.profiles import Profile
from goemotions.models.records import read_json
from goemotions.models.tokenizer import POSITIONS_AFTER_PAD, positions
from goemotions.models.tokenizer_file import read_tokenizer

BY_NAME = {tokenizer_class.__name__: tokenizer_class for tokenizer_class in TOKENIZERS.values()}
# A text can be encoded without them.
OPTIONAL = ("pad_token", "mask_token")


def load(folder: Path, profile: Profile, fields: dict[str, Any]) -> PreTrainedTokenizerBase:
    """Loads the tokenizer of an encoder's folder. It has a pad token, and each of its ids and positions has an embedding.

    ``fields`` are those of the folder's ``config.json``.

    Raises:
        ModelError: it has no pad token or lacks another special token, or the encoder has no embedding for an id or a position.
    """
    path = folder / "tokenizer.json"
    file = read_tokenizer(path)
    tokenizer_class = _class(folder, profile, fields, file)
    tokenizer = _from_folder(tokenizer_class, folder)
    vocabulary = file.get_vocab(with_added_tokens=True)
    missing = {kind: token for kind, token in tokenizer.special_tokens_map.items() if token not in vocabulary}
    for kind, token in missing.items():
        if kind not in OPTIONAL:
            raise ModelError(
                f"{path} lacks the {kind} {token} of a {tokenizer_class.__name__}: give the encoder's own tokenizer"
            )
    if missing:
        # transformers appends them to the vocabulary, with ids that have no embedding.
        tokenizer = _from_folder(tokenizer_class, folder, **dict.fromkeys(missing))
    _set_pad_token(tokenizer, folder, fields)
    _check_embeddings(tokenizer, folder, profile, fields)
    return tokenizer


def _class(folder: Path, profile: Profile, fields: dict[str, Any], file: Tokenizer) -> type[PreTrainedTokenizerBase]:
    """The class that the folder names, or that of the model type; for any other name tokenizer.json is read as it is."""
    path = folder / "tokenizer_config.json"
    named = (read_json(path) if path.exists() else {}).get("tokenizer_class") or fields.get("tokenizer_class")
    if named:
        of_that_name: type[PreTrainedTokenizerBase] = BY_NAME.get(str(named).removesuffix("Fast"), PreTrainedTokenizerFast)
        return of_that_name
    tokenizer_class = TOKENIZERS[profile.encoder.model_type]
    # These classes take the vocabulary from tokenizer.json and build the rest themselves; CamemBERT's does not name its kind.
    expected, actual = getattr(tokenizer_class.model, "__name__", ""), type(file.model).__name__
    if expected and actual != expected:
        raise ModelError(
            f"{folder / 'tokenizer.json'} is a {actual} tokenizer, but that of a {profile.encoder.model_type} is {expected}: "
            f'write "tokenizer_class": "PreTrainedTokenizerFast" to {path.name} if it is right'
        )
    return tokenizer_class


def _from_folder(tokenizer_class: type[PreTrainedTokenizerBase], folder: Path, **tokens: None) -> PreTrainedTokenizerBase:
    tokenizer: PreTrainedTokenizerBase = tokenizer_class.from_pretrained(folder, local_files_only=True, **tokens)  # nosec B615 # a folder
    return tokenizer


def _set_pad_token(tokenizer: PreTrainedTokenizerBase, folder: Path, fields: dict[str, Any]) -> None:
    pad_id = fields.get("pad_token_id")
    if tokenizer.pad_token is None and pad_id is not None:
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(pad_id)
    if tokenizer.pad_token is None:
        raise ModelError(
            f"{folder} names no pad token of its vocabulary: write pad_token to tokenizer_config.json or pad_token_id to config.json"
        )
    # A config without one has the default of these classes, 1; with null, they fail at the first batch.
    network_pad_id = fields.get("pad_token_id", 1)
    if fields.get("model_type") in POSITIONS_AFTER_PAD and network_pad_id != tokenizer.pad_token_id:
        raise ModelError(
            f"{folder} pads with {tokenizer.pad_token_id} by its tokenizer and with {network_pad_id} by config.json: correct the "
            "wrong one"
        )


def _check_embeddings(tokenizer: PreTrainedTokenizerBase, folder: Path, profile: Profile, fields: dict[str, Any]) -> None:
    largest, rows = max(tokenizer.get_vocab().values()), fields.get("vocab_size")
    if rows is not None and largest >= rows:
        raise ModelError(
            f"{folder / 'tokenizer.json'} has ids up to {largest}, but the encoder embeds {rows} tokens (vocab_size): "
            "give the tokenizer that it was trained with"
        )
    most, length = positions(fields, tokenizer.pad_token_id), profile.hyperparameters.max_length
    if most is not None and length > most:
        raise ModelError(f"max_length of {profile.name} is {length}, but {folder} reads {most} tokens: lower max_length")
