"""Folders of RoBERTa-large and DistilBERT as the hub publishes them, with random weights and a vocabulary of the real size.

The files and their fields are those of the repositories at the pinned revisions: a bare tokenizer_config.json, no
special_tokens_map.json, no padding in tokenizer.json. The vocabularies are learned from the sample data and made-up words.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

import goemotions.data

MODELS = ("roberta-large", "distilbert")
WORDS = 120_000
ROBERTA_SPECIAL = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
BERT_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
SMALL = {
    "roberta-large": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64},
    "distilbert": {"dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 64},
}
SMALL_VOCABULARY = 400
CONFIGS: dict[str, dict[str, Any]] = {
    "roberta-large": json.loads(
        """
        {"architectures": ["RobertaForMaskedLM"], "attention_probs_dropout_prob": 0.1, "bos_token_id": 0, "eos_token_id": 2,
         "hidden_act": "gelu", "hidden_dropout_prob": 0.1, "hidden_size": 1024, "initializer_range": 0.02,
         "intermediate_size": 4096, "layer_norm_eps": 1e-05, "max_position_embeddings": 514, "model_type": "roberta",
         "num_attention_heads": 16, "num_hidden_layers": 24, "pad_token_id": 1, "type_vocab_size": 1, "vocab_size": 50265}
        """
    ),
    "distilbert": json.loads(
        """
        {"activation": "gelu", "architectures": ["DistilBertForMaskedLM"], "attention_dropout": 0.1, "dim": 768,
         "dropout": 0.1, "hidden_dim": 3072, "initializer_range": 0.02, "max_position_embeddings": 512,
         "model_type": "distilbert", "n_heads": 12, "n_layers": 6, "pad_token_id": 0, "qa_dropout": 0.1,
         "seq_classif_dropout": 0.2, "sinusoidal_pos_embds": false, "tie_weights_": true,
         "transformers_version": "4.10.0.dev0", "vocab_size": 30522}
        """
    ),
}
TOKENIZER_CONFIGS: dict[str, dict[str, Any]] = {
    "roberta-large": {"model_max_length": 512},
    "distilbert": {"do_lower_case": True, "model_max_length": 512},
}


def write(folder: Path, model: str, texts: list[str], *, small: bool = False, seed: int = 0) -> Path:
    """Writes the folder of one of ``MODELS``.

    Args:
        folder: the folder to write.
        model: the name of the profile.
        texts: texts whose words the vocabulary holds.
        small: two narrow layers and some hundred tokens, for tests.
        seed: seed of the weights.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config = CONFIGS[model] | (SMALL[model] | {"vocab_size": SMALL_VOCABULARY} if small else {})
    tokenizer = {"roberta-large": _byte_pairs, "distilbert": _word_pieces}[model](config["vocab_size"], texts)
    tokenizer.save(str(folder / "tokenizer.json"))
    tokenizer.model.save(str(folder))
    (folder / "tokenizer_config.json").write_text(json.dumps(TOKENIZER_CONFIGS[model]), encoding="utf-8")
    torch.manual_seed(seed)
    network_config = transformers.AutoConfig.for_model(**config)
    transformers.AutoModelForMaskedLM.from_config(network_config).save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    _write_json(folder / "config.json", config)
    return folder


def made_up_words(count: int) -> Iterator[str]:
    """Words of two to four syllables."""
    generator = random.Random(0)
    syllables = [one + two + three for one in "bdfgklmnprstvz" for two in "aeiou" for three in ("", "n", "r", "s", "l")]
    for _ in range(count):
        yield "".join(generator.choices(syllables, k=generator.randrange(2, 5)))


def sample_texts() -> list[str]:
    """The texts of the sample data's train split."""
    path = Path(goemotions.data.__file__).with_name("sample") / "train.tsv"
    return [line.split("\t")[0] for line in path.read_text(encoding="utf-8").splitlines()]


def _corpus(texts: list[str], size: int) -> Iterator[str]:
    # Words of the texts come first among the merges.
    for _ in range(50):
        yield from texts
    words = list(made_up_words(WORDS if size > SMALL_VOCABULARY else 0))
    yield from (" ".join(words[start : start + 20]) for start in range(0, len(words), 20))


def _byte_pairs(size: int, texts: list[str]) -> Tokenizer:
    """RoBERTa's: pairs of bytes, a space belongs to the word after it, <mask> is the last token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=size - 1, special_tokens=list(ROBERTA_SPECIAL[:4]), initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(_corpus(texts, size), trainer)
    start, _, end, _, mask = ROBERTA_SPECIAL
    tokenizer.add_special_tokens([AddedToken(mask, lstrip=True)])
    tokenizer.post_processor = processors.RobertaProcessing((end, 2), (start, 0), trim_offsets=True, add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _word_pieces(size: int, texts: list[str]) -> Tokenizer:
    """BERT's: words in lower case, cut into pieces; [PAD] is token 0 and the other special tokens are 100 to 103."""
    unused = [f"[unused{number}]" for number in range(99)]
    special = [BERT_SPECIAL[0], *unused, *BERT_SPECIAL[1:]]
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(vocab_size=size, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(_corpus(texts, size), trainer)
    tokenizer = Tokenizer(models.WordPiece(tokenizer.get_vocab(), unk_token="[UNK]", max_input_chars_per_word=100))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.add_special_tokens(list(BERT_SPECIAL))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS]:0 $A:0 [SEP]:0", pair="[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1", special_tokens=[("[CLS]", 101), ("[SEP]", 102)]
    )
    tokenizer.decoder = decoders.WordPiece()
    return tokenizer


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    """Writes the folder of a model."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", choices=MODELS)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--small", action="store_true", help="two narrow layers and some hundred tokens")
    options = parser.parse_args()
    print(write(options.folder, options.model, sample_texts(), small=options.small), "is written")


if __name__ == "__main__":
    main()
