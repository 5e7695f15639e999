"""Repositories of encoders as the hub publishes them at the pinned revisions, with a small vocabulary and random weights.

Files, fields of each JSON, special tokens with their ids, and names of the tensors are those of the published ones.
"""

from __future__ import annotations

import base64
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
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
BERT = "google-bert/bert-base-uncased"
ELECTRA = "google/electra-base-discriminator"
ALBERT = "albert/albert-base-v2"
XLM_ROBERTA = "FacebookAI/xlm-roberta-base"
DEBERTA = "microsoft/deberta-v3-base"
MODERNBERT = "answerdotai/ModernBERT-base"
CAMEMBERT = "almanach/camembert-base"

Json = dict[str, Any]
SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "num_hidden_layers": 2}
UNUSED = [f"[unused{number}]" for number in range(99)]
BERT_NAMES = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
BERT_SPECIAL = ["[PAD]", *UNUSED, "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
SYMBOLS = [*"!?'.,abcdefghijklmnopqrstuvwxyz", *(f"##{letter}" for letter in "abcdefghijklmnopqrstuvwxyz")]
# An empty table of sentencepiece: a trie of 256 empty nodes (its size in bytes comes first), which replaces no character.
CHARSMAP: Json = {
    "type": "Precompiled",
    "precompiled_charsmap": base64.b64encode((1024).to_bytes(4, "little") + bytes(1024)).decode(),
}
BERT_TEMPLATE = (["[CLS]", "A", "[SEP]"], ["[CLS]", "A", "[SEP]", "B1", "[SEP]"])
METASPACE: Json = {"type": "Metaspace", "replacement": "▁", "add_prefix_space": True}
COMMON: Json = {
    "attention_probs_dropout_prob": 0.1,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "initializer_range": 0.02,
    **SMALL,
}
BERT_CONFIG: Json = (
    json.loads(
        """
    {"gradient_checkpointing": false, "layer_norm_eps": 1e-12, "max_position_embeddings": 512, "model_type": "bert",
     "pad_token_id": 0, "position_embedding_type": "absolute", "transformers_version": "4.6.0.dev0", "type_vocab_size": 2,
     "use_cache": true}
    """
    )
    | COMMON
)
SENTENCEPIECE_ROBERTA_CONFIG: Json = (
    json.loads(
        '{"layer_norm_eps": 1e-05, "max_position_embeddings": 514, "output_past": true, "pad_token_id": 1, "type_vocab_size": 1}'
    )
    | COMMON
)
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
    """A copy of a repository's folder with weights that are finite, and so large that no loss is."""
    shutil.copytree(source, folder)
    path = folder / "model.safetensors"
    tensors = load_file(path)
    next(value for name, value in sorted(tensors.items()) if name.endswith("weight") and value.dim() == 2)[:] = torch.finfo(
        torch.float32
    ).max
    save_file(tensors, path, metadata={"format": "pt"})
    return folder


def _roberta(folder: Path, words: Sequence[str]) -> None:
    alphabet, merges = _byte_pairs(words)
    tokens = ["<s>", "<pad>", "</s>", "<unk>", *alphabet, *("".join(pair) for pair in merges), "<mask>"]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    joined = [" ".join(pair) for pair in merges]
    special = [_added(vocabulary, token, normalized=True, lstrip=token == "<mask>") for token in (*tokens[:4], tokens[-1])]
    content = {
        "normalizer": None,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True},
        "post_processor": _roberta_processing(),
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True},
        "model": json.loads(
            '{"dropout": null, "unk_token": null, "continuing_subword_prefix": "", "end_of_word_suffix": "", "fuse_unk": false}'
        )
        | {"vocab": vocabulary, "merges": joined},
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
    special = [_added(vocabulary, token) for token in BERT_NAMES]
    content = _bert_content(vocabulary)
    del content["model"]["type"]
    _write_tokenizer(folder, special, content)
    _write_json(folder / "tokenizer_config.json", {"do_lower_case": True, "model_max_length": 512})
    small = {"dim": 32, "hidden_dim": 64, "n_heads": 2, "n_layers": 2, "vocab_size": len(vocabulary)}
    config = random_weights.CONFIGS["distilbert"] | small
    network = transformers.DistilBertForMaskedLM(_seeded(transformers.DistilBertConfig(**config)))
    _write_weights(folder, config, network.state_dict())


def _minilm(folder: Path, words: Sequence[str]) -> None:
    vocabulary = _bert_tokenizer(folder, words, padding=(0, "[PAD]"))
    names = {f"{kind}_token": f"[{kind.upper()}]" for kind in ("unk", "sep", "pad", "cls", "mask")}
    _write_json(folder / "special_tokens_map.json", names)
    tokenizer = (
        json.loads(
            """
        {"do_lower_case": true, "tokenize_chinese_chars": true, "strip_accents": null,
         "name_or_path": "nreimers/MiniLM-L6-H384-uncased", "do_basic_tokenize": true, "never_split": null,
         "tokenizer_class": "BertTokenizer", "model_max_length": 512}
        """
        )
        | names
    )
    _write_json(folder / "tokenizer_config.json", tokenizer)
    _write_sentence_transformer(folder, max_length=256)
    published = {
        "_name_or_path": "nreimers/MiniLM-L6-H384-uncased",
        "architectures": ["BertModel"],
        "transformers_version": "4.8.2",
    }
    config = BERT_CONFIG | published | {"vocab_size": len(vocabulary)}
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
    tokenizer = (
        json.loads(
            """
        {"do_lower_case": true, "tokenize_chinese_chars": true, "strip_accents": null, "model_max_length": 512,
         "special_tokens_map_file": null, "name_or_path": "microsoft/mpnet-base", "tokenizer_class": "MPNetTokenizer"}
        """
        )
        | tokens
    )
    _write_json(folder / "tokenizer_config.json", tokenizer)
    _write_sentence_transformer(folder, max_length=384)
    config = json.loads(
        """
        {"_name_or_path": "microsoft/mpnet-base", "architectures": ["MPNetForMaskedLM"], "bos_token_id": 0, "eos_token_id": 2,
         "layer_norm_eps": 1e-05, "max_position_embeddings": 514, "model_type": "mpnet", "pad_token_id": 1,
         "relative_attention_num_buckets": 32, "transformers_version": "4.8.2"}
        """
    ) | {**COMMON, "vocab_size": len(vocabulary)}
    tensors = transformers.MPNetModel(_seeded(transformers.MPNetConfig(**config))).state_dict()
    _write_weights(folder, config, tensors | {"embeddings.position_ids": torch.arange(514)[None]})


def _bert(folder: Path, words: Sequence[str]) -> None:
    """Weights of 2018: those of the normalization are called gamma and beta."""
    vocabulary = _bert_tokenizer(folder, words)
    _write_json(folder / "tokenizer_config.json", {"do_lower_case": True, "model_max_length": 512})
    config = BERT_CONFIG | {"architectures": ["BertForMaskedLM"], "vocab_size": len(vocabulary)}
    network = transformers.BertForPreTraining(_seeded(transformers.BertConfig(**config)))
    renamed = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): tensor
        for name, tensor in network.state_dict().items()
    }
    _write_weights(folder, config, renamed)


def _electra(folder: Path, words: Sequence[str]) -> None:
    """The discriminator; published as a pickle only, so these are its converted weights."""
    vocabulary = _bert_tokenizer(folder, words)
    _write_json(folder / "tokenizer_config.json", {"do_lower_case": True, "model_max_length": 512})
    published = json.loads(
        """
        {"architectures": ["ElectraForPreTraining"], "embedding_size": 16, "model_type": "electra",
         "summary_activation": "gelu", "summary_last_dropout": 0.1, "summary_type": "first", "summary_use_proj": true}
        """
    )
    config = BERT_CONFIG | published | {"vocab_size": len(vocabulary)}
    network = transformers.ElectraForPreTraining(_seeded(transformers.ElectraConfig(**config)))
    _write_weights(folder, config, network.state_dict())


def _albert(folder: Path, words: Sequence[str]) -> None:
    pieces = _pieces(["<pad>", "<unk>", "[CLS]", "[SEP]", "[MASK]"], words)
    ids = {piece: number for number, (piece, _) in enumerate(pieces)}
    quotes = [{"type": "Replace", "pattern": {"String": pair}, "content": '"'} for pair in ("``", "''")]
    normalizers = [*quotes, {"type": "NFKD"}, {"type": "StripAccents"}, {"type": "Lowercase"}, CHARSMAP]
    post_processor = _template(*BERT_TEMPLATE, ids)
    content = _unigram(pieces, 1, normalizers, post_processor)
    special = [_added(ids, token, lstrip=token == "[MASK]") for token, _ in pieces[:5]]
    _write_tokenizer(folder, special, content)
    (folder / "spiece.model").write_text("not read")
    _write_json(folder / "tokenizer_config.json", {"model_max_length": 512})
    config = json.loads(
        """
        {"architectures": ["AlbertForMaskedLM"], "attention_probs_dropout_prob": 0, "bos_token_id": 2,
         "classifier_dropout_prob": 0.1, "down_scale_factor": 1, "embedding_size": 16, "eos_token_id": 3, "gap_size": 0,
         "hidden_act": "gelu_new", "hidden_dropout_prob": 0, "initializer_range": 0.02, "inner_group_num": 1,
         "layer_norm_eps": 1e-12, "max_position_embeddings": 512, "model_type": "albert", "net_structure_type": 0,
         "num_hidden_groups": 1, "num_memory_blocks": 0, "pad_token_id": 0, "type_vocab_size": 2}
        """
    ) | {"vocab_size": len(pieces), **SMALL}
    network = transformers.AlbertForPreTraining(_seeded(transformers.AlbertConfig(**config)))
    _write_weights(folder, config, network.state_dict())


def _xlm_roberta(folder: Path, words: Sequence[str]) -> None:
    published = json.loads(
        """
        {"architectures": ["XLMRobertaForMaskedLM"], "bos_token_id": 0, "eos_token_id": 2, "model_type": "xlm-roberta",
         "position_embedding_type": "absolute", "transformers_version": "4.17.0.dev0", "use_cache": true}
        """
    )
    names = ["<s>", "<pad>", "</s>", "<unk>"]
    _sentencepiece_roberta(folder, words, names, published, transformers.XLMRobertaForMaskedLM, transformers.XLMRobertaModel)


def _camembert(folder: Path, words: Sequence[str]) -> None:
    published = {"architectures": ["CamembertForMaskedLM"], "bos_token_id": 5, "eos_token_id": 6, "model_type": "camembert"}
    names = ["<s>NOTUSED", "<pad>", "</s>NOTUSED", "<unk>", "<unk>NOTUSED", "<s>", "</s>"]
    _sentencepiece_roberta(folder, words, names, published, transformers.CamembertForMaskedLM, transformers.CamembertModel)


def _sentencepiece_roberta(
    folder: Path, words: Sequence[str], names: list[str], published: Json, masked: Any, encoder: Any
) -> None:
    """RoBERTa with a vocabulary of sentencepiece, which begins with special tokens of these names."""
    pieces = [*_pieces(names, words), ("<mask>", 0.0)]
    ids = {piece: number for number, (piece, _) in enumerate(pieces)}
    post_processor = _template(["<s>", "A", "</s>"], ["<s>", "A", "</s>", "</s>", "B", "</s>"], ids)
    content = _unigram(pieces, 3, [CHARSMAP], post_processor)
    _write_tokenizer(folder, [_added(ids, token, lstrip=token == "<mask>") for token in (*names, "<mask>")], content)
    (folder / "sentencepiece.bpe.model").write_text("not read")
    _write_json(folder / "tokenizer_config.json", {"model_max_length": 512})
    config = SENTENCEPIECE_ROBERTA_CONFIG | published | {"vocab_size": len(pieces)}
    network = masked(_seeded(masked.config_class(**config)))
    tensors = {name: tensor for name, tensor in network.state_dict().items() if name != "lm_head.decoder.weight"}
    pooler = encoder(network.config).pooler.state_dict()
    _write_weights(folder, config, tensors | {f"roberta.pooler.{name}": value for name, value in pooler.items()})


def _deberta(folder: Path, words: Sequence[str]) -> None:
    """Published in half precision, as a pickle, and with spm.model alone: converted, as the error for either says."""
    pieces = [*_pieces(["[PAD]", "[CLS]", "[SEP]", "[UNK]"], words), ("[MASK]", 0.0)]
    ids = {piece: number for number, (piece, _) in enumerate(pieces)}
    post_processor = _template(*BERT_TEMPLATE, ids)
    spaces = {"type": "Replace", "pattern": {"Regex": r"\s{2,}|[\n\r\t]"}, "content": " "}
    strip = {"type": "Strip", "strip_left": False, "strip_right": True}
    content = _unigram(pieces, 3, [spaces, {"type": "NFC"}, strip], post_processor)
    content["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [METASPACE]}
    special = [_added(ids, token, normalized=token == "[UNK]") for token in ("[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]")]
    _write_tokenizer(folder, special, content)
    (folder / "spm.model").write_text("not read")
    _write_json(folder / "tokenizer_config.json", {"do_lower_case": False, "vocab_type": "spm"})
    config = json.loads(
        """
        {"model_type": "deberta-v2", "max_position_embeddings": 512, "relative_attention": true, "position_buckets": 256,
         "norm_rel_ebd": "layer_norm", "share_att_key": true, "pos_att_type": "p2c|c2p", "layer_norm_eps": 1e-07,
         "max_relative_positions": -1, "position_biased_input": false, "type_vocab_size": 0}
        """
    ) | {**COMMON, "vocab_size": len(pieces)}
    network = transformers.DebertaV2Model(_seeded(transformers.DebertaV2Config(**config)))
    tensors = {f"deberta.{name}": tensor.half() for name, tensor in network.state_dict().items()}
    _write_weights(folder, config, tensors)


def _modernbert(folder: Path, words: Sequence[str]) -> None:
    alphabet, merges = _byte_pairs(words)
    kinds = ("UNK", "CLS", "SEP", "PAD", "MASK")
    joined = ("".join(pair) for pair in merges)
    tokens = ["|||IP_ADDRESS|||", "<|padding|>", *alphabet, *joined, *(f"[{kind}]" for kind in kinds)]
    ids = {token: number for number, token in enumerate(dict.fromkeys(tokens))}
    special = [_added(ids, f"[{kind}]", lstrip=kind == "MASK") for kind in kinds]
    content = {
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
        "post_processor": _template(["[CLS]", "A", "[SEP]"], ["[CLS]", "A", "[SEP]", "B", "[SEP]"], ids),
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": json.loads(
            """
            {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null, "end_of_word_suffix": null,
             "fuse_unk": false, "byte_fallback": false, "ignore_merges": false}
            """
        )
        | {"vocab": ids, "merges": [list(pair) for pair in merges]},
    }
    _write_tokenizer(folder, special, content)
    names = {f"{kind.lower()}_token": f"[{kind}]" for kind in kinds}
    _write_json(folder / "special_tokens_map.json", names)
    tokenizer = {
        "clean_up_tokenization_spaces": True,
        **names,
        "model_input_names": ["input_ids", "attention_mask"],
        "model_max_length": 8192,
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    _write_json(folder / "tokenizer_config.json", tokenizer)
    config = json.loads(
        """
        {"architectures": ["ModernBertForMaskedLM"], "attention_bias": false, "attention_dropout": 0.0,
         "classifier_activation": "gelu", "classifier_bias": false, "classifier_dropout": 0.0, "classifier_pooling": "mean",
         "decoder_bias": true, "deterministic_flash_attn": false, "embedding_dropout": 0.0, "global_attn_every_n_layers": 3,
         "global_rope_theta": 160000.0, "gradient_checkpointing": false, "hidden_activation": "gelu",
         "initializer_cutoff_factor": 2.0, "initializer_range": 0.02, "layer_norm_eps": 1e-05, "local_attention": 128,
         "local_rope_theta": 10000.0, "max_position_embeddings": 8192, "mlp_bias": false, "mlp_dropout": 0.0,
         "model_type": "modernbert", "norm_bias": false, "norm_eps": 1e-05, "position_embedding_type": "absolute",
         "tie_word_embeddings": true, "torch_dtype": "float32", "transformers_version": "4.47.0.dev0"}
        """
    ) | {
        "bos_token_id": ids["[CLS]"],
        "cls_token_id": ids["[CLS]"],
        "eos_token_id": ids["[SEP]"],
        "pad_token_id": ids["[PAD]"],
        "sep_token_id": ids["[SEP]"],
        "vocab_size": len(ids),
        **SMALL,
    }
    network = transformers.ModernBertForMaskedLM(_seeded(transformers.ModernBertConfig(**config)))
    _write_weights(folder, config, network.state_dict())


WRITERS: dict[str, Callable[[Path, Sequence[str]], None]] = {
    ROBERTA: _roberta,
    DISTILBERT: _distilbert,
    MINILM: _minilm,
    MPNET: _mpnet,
    BERT: _bert,
    ELECTRA: _electra,
    ALBERT: _albert,
    XLM_ROBERTA: _xlm_roberta,
    DEBERTA: _deberta,
    MODERNBERT: _modernbert,
    CAMEMBERT: _camembert,
}


def _byte_pairs(words: Sequence[str]) -> tuple[list[str], list[tuple[str, str]]]:
    """The bytes, and the merges that make each word after a space one token."""
    merges = dict.fromkeys((f"Ġ{word}"[:end], word[end - 1]) for word in words for end in range(1, len(word) + 1))
    return sorted(pre_tokenizers.ByteLevel.alphabet()), list(merges)


def _word_pieces(folder: Path, tokens: list[str]) -> dict[str, int]:
    vocabulary = {token: number for number, token in enumerate(dict.fromkeys(tokens))}
    (folder / "vocab.txt").write_text("\n".join([*vocabulary, ""]), encoding="utf-8")
    return vocabulary


def _bert_tokenizer(folder: Path, words: Sequence[str], padding: tuple[int, str] | None = None) -> dict[str, int]:
    vocabulary = _word_pieces(folder, [*BERT_SPECIAL, *SYMBOLS, *words])
    special = [_added(vocabulary, token) for token in BERT_NAMES]
    _write_tokenizer(folder, special, _bert_content(vocabulary), padding)
    return vocabulary


def _pieces(special: list[str], words: Sequence[str]) -> list[tuple[str, float]]:
    """A vocabulary of sentencepiece: special tokens, words after a space, and letters, with their log-probabilities."""
    letters = [*"▁!?'.,abcdefghijklmnopqrstuvwxyz"]
    return [
        *((token, 0.0) for token in special),
        *((f"▁{word}", -3.0) for word in words),
        *((letter, -9.0) for letter in letters),
    ]


def _unigram(pieces: list[tuple[str, float]], unknown: int, normalizers: list[Json], post_processor: Json) -> Json:
    return {
        "normalizer": {"type": "Sequence", "normalizers": normalizers} if len(normalizers) > 1 else normalizers[0],
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "WhitespaceSplit"}, METASPACE]},
        "post_processor": post_processor,
        "decoder": METASPACE,
        "model": {"type": "Unigram", "unk_id": unknown, "vocab": pieces},
    }


def _template(single: Sequence[str], pair: Sequence[str], ids: Mapping[str, int]) -> Json:
    """A post-processor; ``A`` and ``B`` are the texts, and what follows ``B`` has type 1 where a ``B1`` stands for it."""

    def parts(names: Sequence[str]) -> list[Json]:
        second = names.index("B1") if "B1" in names else len(names)
        named = [(name.removesuffix("1"), int(number >= second)) for number, name in enumerate(names)]
        return [_sequence(name, kind) if name in "AB" else _special(name, kind) for name, kind in named]

    special = {name: {"id": name, "ids": [ids[name]], "tokens": [name]} for name in single if name != "A"}
    return {"type": "TemplateProcessing", "single": parts(single), "pair": parts(pair), "special_tokens": special}


def _special(token: str, type_id: int = 0) -> Json:
    return {"SpecialToken": {"id": token, "type_id": type_id}}


def _sequence(name: str, type_id: int = 0) -> Json:
    return {"Sequence": {"id": name, "type_id": type_id}}


def _bert_content(vocabulary: dict[str, int]) -> Json:
    """The parts of tokenizer.json between ``added_tokens`` and its end."""

    return {
        "normalizer": json.loads(
            """
            {"type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true, "strip_accents": null,
             "lowercase": true}
            """
        ),
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": _template(*BERT_TEMPLATE, vocabulary),
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
    return json.loads(
        '{"type": "RobertaProcessing", "sep": ["</s>", 2], "cls": ["<s>", 0], "trim_offsets": true, "add_prefix_space": false}'
    )


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
