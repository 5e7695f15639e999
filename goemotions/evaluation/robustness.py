"""How a model stands up to text that is written another way: each perturbation of the texts, scored against the same labels."""

from __future__ import annotations

import random
import re
import unicodedata
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from goemotions.metrics import classification
from goemotions.metrics.thresholds import Thresholds
from goemotions.models import engines
from goemotions.models.engines import Engine

NAME = "[NAME]"
TYPO_SHARE = 0.1
AS_WRITTEN = "as written"

# [NAME], [RELIGION]: the data set's own placeholders are no text that somebody wrote.
PLACEHOLDER = re.compile(r"(\[[A-Z]+\])")
WORD = re.compile(r"[^\W\d_]{4,}")
# What stands before it within a sentence: a word, a comma, a semicolon or a placeholder, and one blank.
INNER_WORD = re.compile(r"(?<=[\w,;\]] )[^\W\d_]{2,}")
# Pictographs (symbols, dingbats, arrows, all from Mahjong tiles on, skin tones and flags among them), and any character
# that a variation selector makes one; with the joiners, keycaps and tags behind them.
EMOJI = re.compile(
    "(?:[\u2300-\u23ff\u2600-\u27bf\u2b00-\u2bff\U0001f000-\U0001faff]|\\S(?=\ufe0f))"
    "[\u200d\u20e3\ufe0e\ufe0f\U000e0020-\U000e007f]*"
)


def upper_case(text: str, generator: random.Random) -> str:
    """Every letter a capital."""
    return text.upper()


def lower_case(text: str, generator: random.Random) -> str:
    """No letter a capital, except in placeholders."""
    return _outside_placeholders(str.lower, text)


def typos(text: str, generator: random.Random) -> str:
    """One slip in about one of ten words of four letters or more.

    Two neighbours swapped, a letter left out or a letter doubled, each as often; a swap of equal letters shows no change.
    """

    def slip(found: re.Match[str]) -> str:
        word = found[0]
        if generator.random() >= TYPO_SHARE:
            return word
        i = generator.randrange(len(word) - 1)
        middle = generator.choice([word[i + 1] + word[i], word[i + 1], word[i] * 2 + word[i + 1]])
        return word[:i] + middle + word[i + 2 :]

    return _outside_placeholders(lambda piece: WORD.sub(slip, piece), text)


def without_emoji(text: str, generator: random.Random) -> str:
    """Emoji and pictographs left out; a text of nothing else stays. What was between words becomes one blank."""
    return _tidied(EMOJI.sub(" ", text), text)


def masked_names(text: str, generator: random.Random) -> str:
    """Capitalised words that do not start a sentence become [NAME], each by itself.

    A word starts one unless a word, a comma, a semicolon or a placeholder stands before it. Words in capitals throughout
    stay, so ``I`` does too. Meant for languages that write little but names that way.
    """

    def mask(found: re.Match[str]) -> str:
        word = found[0]
        return NAME if word[0].isupper() and word[1].islower() else word

    return INNER_WORD.sub(mask, text)


def without_punctuation(text: str, generator: random.Random) -> str:
    """Apostrophes close up, other punctuation (Unicode P*) becomes a blank; a text of nothing else stays, placeholders too."""

    def strip(piece: str) -> str:
        return "".join(
            character if unicodedata.category(character)[0] != "P" else "" if character in "'’" else " " for character in piece
        )

    return _tidied(_outside_placeholders(strip, text), text)


PERTURBATIONS: dict[str, Callable[[str, random.Random], str]] = {
    "upper case": upper_case,
    "lower case": lower_case,
    "typos": typos,
    "without emoji": without_emoji,
    "masked names": masked_names,
    "without punctuation": without_punctuation,
}


def measure(
    engine: Engine, texts: Sequence[str], labels: np.ndarray, fitted: Thresholds, seed: int = 0
) -> list[dict[str, Any]]:
    """A row for the texts as written, and one for each perturbation of them.

    Only the texts that a perturbation changes are scored again; the rest keep their probabilities.

    Args:
        engine: what scores.
        texts: n texts.
        labels: bool [n, labels].
        fitted: the thresholds of every decision.
        seed: of the typos.

    Returns:
        perturbation; changed (texts); auc_micro, auc_macro, f1_micro and f1_macro over all rows; and over the changed ones
        flips (share whose predicted labels differ from those as written) and shift (mean absolute change of a
        probability), both 0 where no text changed. An engine whose scores depend on the batch has some of both by itself.
    """
    written, _ = engines.score(engine, texts)
    rows = [_row(AS_WRITTEN, np.zeros(len(texts), dtype=bool), written, written, labels, fitted)]
    for name, perturb in PERTURBATIONS.items():
        generator = random.Random(seed)
        others = [perturb(text, generator) for text in texts]
        changed = np.array([other != text for other, text in zip(others, texts, strict=True)], dtype=bool)
        probabilities = written.copy()
        if changed.any():
            probabilities[changed], _ = engines.score(engine, [others[i] for i in np.flatnonzero(changed)])
        rows.append(_row(name, changed, written, probabilities, labels, fitted))
    return rows


def _row(
    name: str, changed: np.ndarray, written: np.ndarray, probabilities: np.ndarray, labels: np.ndarray, fitted: Thresholds
) -> dict[str, Any]:
    predicted = fitted.apply(probabilities)
    flipped = (predicted != fitted.apply(written)).any(axis=1)
    decisions = classification.decisions(labels, predicted)
    return {
        "perturbation": name,
        "changed": int(changed.sum()),
        **classification.ranking(labels, probabilities),
        "f1_micro": decisions["f1_micro"],
        "f1_macro": decisions["f1_macro"],
        "flips": float(flipped[changed].mean()) if changed.any() else 0.0,
        "shift": float(np.abs(probabilities - written)[changed].mean()) if changed.any() else 0.0,
    }


def _outside_placeholders(change: Callable[[str], str], text: str) -> str:
    pieces = PLACEHOLDER.split(text)
    return "".join(piece if position % 2 else change(piece) for position, piece in enumerate(pieces))


def _tidied(found: str, text: str) -> str:
    """What is left of a text, blanks joined; the text itself where nothing was taken out, or everything was."""
    return text if found == text else " ".join(found.split()) or text
