"""Repositories of encoders as the hub publishes them at the pinned revisions, with a small vocabulary and random weights.

Files, fields of each JSON, special tokens with their ids, and names of the tensors are those of the published ones.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file
from tokenizers import pre_tokenizers

from benchmarks import random_weights

ROBERTA = "FacebookAI/roberta-large"
DISTILBERT = "distilbert/distilbert-base-uncased"
MINILM = "sentence-transformers/all-MiniLM-L6-v2"
MPNET = "sentence-transformers/all-mpnet-base-v2"

Json = dict[str, Any]
SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "num_hidden_layers": 2}
UNUSED = [f"[unused{number}]" for number in range(99)]
BERT_SPECIAL = ["[PAD]", *UNUSED, "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
SYMBOLS = [*"!?'.,abcdefghijklmnopqrstuvwxyz", *(f"##{letter}" for letter in "abcdefghijklmnopqrstuvwxyz")]
# Files in other formats, which are not read.
OTHERS = (".gitattributes", "README.md", "pytorch_model.bin", "rust_model.ot", "tf_model.h5")


def write(repository: str, folder: Path, words: Sequence[str]) -> Path:
    """Writes a repository's folder.

    Args:
        repository: one of the names above.
        folder: the folder to write.
        words: words that are one token each (RoBERTa's after a space).
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name in OTHERS:
        (folder / name).write_text("not read")
    WRITERS[repository](folder, words)
    return folder


def diverging(source: Path, folder: Path) -> Path:
    """A copy of a repository's folder with one weight that is not a number: no loss of it is finite."""
    shutil.copytree(source, folder)
    path = folder / "model.safetensors"
    tensors = load_file(path)
    next(value for name, value in sorted(tensors.items()) if name.endswith("weight") and value.dim() == 2)[:] = torch.nan
    save_file(tensors, path, metadata={"format": "pt"})
    return folder


def _roberta(folder: Path, words: Sequence[str]) -> None:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = list(dict.fromkeys((f"Ġ{word}"[:end], word[end - 1]) for word in words for end in range(1, len(word) + 1)))
    tokens = ["<s>", "<pad>", "</s>", "<unk>", *alphabet, *("".join(pair) for pair in merges), "<mask>"]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    joined = [" ".join(pair) for pair in merges]
    special = [_added(vocabulary, token, normalized=True, lstrip=token == "<mask>") for token in (*tokens[:4], tokens[-1])]
    content = {
        "normalizer": None,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True},
        "post_processor": _roberta_processing(),
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True},
        "model": {
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": "",
            "end_of_word_suffix": "",
            "fuse_unk": False,
            "vocab": vocabulary,
            "merges": joined,
        },
    }
    _write_tokenizer(folder, special, content)
    _write_json(folder / "vocab.json", vocabulary)
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *joined, ""]), encoding="utf-8")
    _write_json(folder / "tokenizer_config.json", {"model_max_length": 512})
    config = random_weights.CONFIGS["roberta-large"] | SMALL | {"vocab_size": len(tokens)}
    network = transformers.RobertaForMaskedLM(_seeded(transformers.RobertaConfig(**config)))
    pooler = transformers.RobertaModel(network.config).pooler.state_dict()
    _write_weights(folder, config, network.state_dict() | {f"roberta.pooler.{name}": value for name, value in pooler.items()})


def _distilbert(folder: Path, words: Sequence[str]) -> None:
    vocabulary = _word_pieces(folder, [*BERT_SPECIAL, *SYMBOLS, *words])
    special = [_added(vocabulary, token) for token in ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")]
    content = _bert_content(vocabulary)
    del content["model"]["type"]
    _write_tokenizer(folder, special, content)
    _write_json(folder / "tokenizer_config.json", {"do_lower_case": True, "model_max_length": 512})
    small = {"dim": 32, "hidden_dim": 64, "n_heads": 2, "n_layers": 2, "vocab_size": len(vocabulary)}
    config = random_weights.CONFIGS["distilbert"] | small
    network = transformers.DistilBertForMaskedLM(_seeded(transformers.DistilBertConfig(**config)))
    _write_weights(folder, config, network.state_dict())


def _minilm(folder: Path, words: Sequence[str]) -> None:
    vocabulary = _word_pieces(folder, [*BERT_SPECIAL, *SYMBOLS, *words])
    special = [_added(vocabulary, token) for token in ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")]
    _write_tokenizer(folder, special, _bert_content(vocabulary), padding=(0, "[PAD]"))
    names = {f"{kind}_token": f"[{kind.upper()}]" for kind in ("unk", "sep", "pad", "cls", "mask")}
    _write_json(folder / "special_tokens_map.json", names)
    tokenizer = {
        "do_lower_case": True,
        **names,
        "tokenize_chinese_chars": True,
        "strip_accents": None,
        "name_or_path": "nreimers/MiniLM-L6-H384-uncased",
        "do_basic_tokenize": True,
        "never_split": None,
        "tokenizer_class": "BertTokenizer",
        "model_max_length": 512,
    }
    _write_json(folder / "tokenizer_config.json", tokenizer)
    _write_sentence_transformer(folder, max_length=256)
    config = {
        "_name_or_path": "nreimers/MiniLM-L6-H384-uncased",
        "architectures": ["BertModel"],
        "attention_probs_dropout_prob": 0.1,
        "gradient_checkpointing": False,
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.1,
        "initializer_range": 0.02,
        "layer_norm_eps": 1e-12,
        "max_position_embeddings": 512,
        "model_type": "bert",
        "pad_token_id": 0,
        "position_embedding_type": "absolute",
        "transformers_version": "4.8.2",
        "type_vocab_size": 2,
        "use_cache": True,
        "vocab_size": len(vocabulary),
        **SMALL,
    }
    tensors = transformers.BertModel(_seeded(transformers.BertConfig(**config))).state_dict()
    _write_weights(folder, config, tensors | {"embeddings.position_ids": torch.arange(512)[None]})


def _mpnet(folder: Path, words: Sequence[str]) -> None:
    vocabulary = _word_pieces(folder, ["<s>", "<pad>", "</s>", "<unk>", *BERT_SPECIAL, *SYMBOLS, *words, "<mask>"])
    special = [
        _added(vocabulary, token, normalized=token == "<unk>", lstrip=token == "<mask>")
        for token in ("<s>", "<pad>", "</s>", "<unk>", "[UNK]", "<mask>")
    ]
    content = _bert_content(vocabulary) | {"post_processor": _roberta_processing()}
    _write_tokenizer(folder, special, content, padding=(1, "<pad>"))
    names = {"bos": "<s>", "eos": "</s>", "unk": "[UNK]", "sep": "</s>", "pad": "<pad>", "cls": "<s>", "mask": "<mask>"}
    mask = {"content": "<mask>", "single_word": False, "lstrip": True, "rstrip": False, "normalized": False}
    tokens = {f"{kind}_token": token for kind, token in names.items()}
    _write_json(folder / "special_tokens_map.json", tokens | {"mask_token": mask})
    tokenizer = {
        "do_lower_case": True,
        **tokens,
        "tokenize_chinese_chars": True,
        "strip_accents": None,
        "model_max_length": 512,
        "special_tokens_map_file": None,
        "name_or_path": "microsoft/mpnet-base",
        "tokenizer_class": "MPNetTokenizer",
    }
    _write_json(folder / "tokenizer_config.json", tokenizer)
    _write_sentence_transformer(folder, max_length=384)
    config = {
        "_name_or_path": "microsoft/mpnet-base",
        "architectures": ["MPNetForMaskedLM"],
        "attention_probs_dropout_prob": 0.1,
        "bos_token_id": 0,
        "eos_token_id": 2,
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.1,
        "initializer_range": 0.02,
        "layer_norm_eps": 1e-05,
        "max_position_embeddings": 514,
        "model_type": "mpnet",
        "pad_token_id": 1,
        "relative_attention_num_buckets": 32,
        "transformers_version": "4.8.2",
        "vocab_size": len(vocabulary),
        **SMALL,
    }
    tensors = transformers.MPNetModel(_seeded(transformers.MPNetConfig(**config))).state_dict()
    _write_weights(folder, config, tensors | {"embeddings.position_ids": torch.arange(514)[None]})


WRITERS: dict[str, Callable[[Path, Sequence[str]], None]] = {
    ROBERTA: _roberta,
    DISTILBERT: _distilbert,
    MINILM: _minilm,
    MPNET: _mpnet,
}


def _word_pieces(folder: Path, tokens: list[str]) -> dict[str, int]:
    vocabulary = {token: number for number, token in enumerate(dict.fromkeys(tokens))}
    (folder / "vocab.txt").write_text("\n".join([*vocabulary, ""]), encoding="utf-8")
    return vocabulary


def _bert_content(vocabulary: dict[str, int]) -> Json:
    """The parts of tokenizer.json between ``added_tokens`` and its end."""

    def part(kind: str, name: str, type_id: int) -> Json:
        return {kind: {"id": name, "type_id": type_id}}

    cls, sep = part("SpecialToken", "[CLS]", 0), part("SpecialToken", "[SEP]", 0)
    single = [cls, part("Sequence", "A", 0), sep]
    return {
        "normalizer": {
            "type": "BertNormalizer",
            "clean_text": True,
            "handle_chinese_chars": True,
            "strip_accents": None,
            "lowercase": True,
        },
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": single,
            "pair": [*single, part("Sequence", "B", 1), part("SpecialToken", "[SEP]", 1)],
            "special_tokens": {
                token: {"id": token, "ids": [vocabulary[token]], "tokens": [token]} for token in ("[CLS]", "[SEP]")
            },
        },
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
        "model": {
            "type": "WordPiece",
            "unk_token": "[UNK]",
            "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100,
            "vocab": vocabulary,
        },
    }


def _roberta_processing() -> Json:
    return {
        "type": "RobertaProcessing",
        "sep": ["</s>", 2],
        "cls": ["<s>", 0],
        "trim_offsets": True,
        "add_prefix_space": False,
    }


def _added(vocabulary: dict[str, int], token: str, *, normalized: bool = False, lstrip: bool = False) -> Json:
    return {
        "id": vocabulary[token],
        "special": True,
        "content": token,
        "single_word": False,
        "lstrip": lstrip,
        "rstrip": False,
        "normalized": normalized,
    }


def _write_tokenizer(folder: Path, special: list[Json], content: Json, padding: tuple[int, str] | None = None) -> None:
    """Writes tokenizer.json; sentence-transformers' hold a truncation and the id and name of a padding."""
    head: Json = {"version": "1.0", "truncation": None, "padding": None}
    if padding:
        head["truncation"] = {"max_length": 128, "strategy": "LongestFirst", "stride": 0}
        head["padding"] = {
            "strategy": {"Fixed": 128},
            "direction": "Right",
            "pad_to_multiple_of": None,
            "pad_id": padding[0],
            "pad_type_id": 0,
            "pad_token": padding[1],
        }
    _write_json(folder / "tokenizer.json", {**head, "added_tokens": special, **content})


def _write_sentence_transformer(folder: Path, max_length: int) -> None:
    """Writes the files that sentence-transformers adds."""
    kinds = {"": "Transformer", "1_Pooling": "Pooling", "2_Normalize": "Normalize"}
    modules = [
        {"idx": number, "name": str(number), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for number, (path, kind) in enumerate(kinds.items())
    ]
    (folder / "modules.json").write_text(json.dumps(modules), encoding="utf-8")
    _write_json(folder / "sentence_bert_config.json", {"max_seq_length": max_length, "do_lower_case": False})
    versions = {"sentence_transformers": "2.0.0", "transformers": "4.6.1", "pytorch": "1.8.1"}
    _write_json(folder / "config_sentence_transformers.json", {"__version__": versions})
    modes = {f"pooling_mode_{mode}": mode == "mean_tokens" for mode in ("cls_token", "mean_tokens", "max_tokens")}
    (folder / "1_Pooling").mkdir(exist_ok=True)
    pooling = {"word_embedding_dimension": 32, **modes, "pooling_mode_mean_sqrt_len_tokens": False}
    _write_json(folder / "1_Pooling" / "config.json", pooling)
    (folder / "train_script.py").write_text("raise SystemExit('never run')\n")


def _seeded(config: transformers.PretrainedConfig) -> transformers.PretrainedConfig:
    torch.manual_seed(7)
    return config


def _write_weights(folder: Path, config: Json, tensors: dict[str, torch.Tensor]) -> None:
    _write_json(folder / "config.json", config)
    shared: set[int] = set()
    own = {
        name: tensor for name, tensor in tensors.items() if not (tensor.data_ptr() in shared or shared.add(tensor.data_ptr()))
    }
    save_file({name: tensor.contiguous() for name, tensor in own.items()}, folder / "model.safetensors", {"format": "pt"})


def _write_json(path: Path, content: Json) -> None:
    path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
