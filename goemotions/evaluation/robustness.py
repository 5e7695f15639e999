"""Robustness to the way a text is written: each perturbation of the texts, scored against the same labels."""

from __future__ import annotations

import random
import re
import unicodedata
from collections.abc import Callable, Sequence
from typing import TypedDict

import numpy as np

from goemotions.metrics import classification
from goemotions.metrics.thresholds import Thresholds
from goemotions.models import engines
from goemotions.models.engines import Engine

NAME = "[NAME]"
TYPO_SHARE = 0.1
AS_WRITTEN = "as written"

# Placeholders of the data set, such as [NAME] and [RELIGION]: perturbations leave them as they are.
PLACEHOLDER = re.compile(r"(\[[A-Z]+\])")
WORD = re.compile(r"[^\W\d_]{4,}")
# A word that does not start a sentence: before it a word, a comma, a semicolon or a placeholder, and one blank.
INNER_WORD = re.compile(r"(?<=[\w,;\]] )[^\W\d_]{2,}")
# Pictographs (symbols, dingbats, arrows, all from Mahjong tiles on, skin tones and flags among them), and any character
# that a variation selector makes one; with the joiners, keycaps and tags that follow them.
EMOJI = re.compile(
    "(?:[\u2300-\u23ff\u2600-\u27bf\u2b00-\u2bff\U0001f000-\U0001faff]|\\S(?=\ufe0f))"
    "[\u200d\u20e3\ufe0e\ufe0f\U000e0020-\U000e007f]*"
)


def upper_case(text: str, generator: random.Random) -> str:
    """Every letter in upper case."""
    return text.upper()


def lower_case(text: str, generator: random.Random) -> str:
    """Every letter in lower case, except in placeholders."""
    return _outside_placeholders(str.lower, text)


def typos(text: str, generator: random.Random) -> str:
    """One typing error in about one of ten words of four letters or more.

    Two neighbouring letters swapped, a letter left out or a letter doubled, equally often; swapping equal letters changes nothing.
    """

    def mistype(match: re.Match[str]) -> str:
        word = match[0]
        if generator.random() >= TYPO_SHARE:
            return word
        i = generator.randrange(len(word) - 1)
        middle = generator.choice([word[i + 1] + word[i], word[i + 1], word[i] * 2 + word[i + 1]])
        return word[:i] + middle + word[i + 2 :]

    return _outside_placeholders(lambda piece: WORD.sub(mistype, piece), text)


def without_emoji(text: str, generator: random.Random) -> str:
    """Emoji and pictographs removed, one blank between words; a text of nothing else stays unchanged."""
    return _tidied(EMOJI.sub(" ", text), text)


def masked_names(text: str, generator: random.Random) -> str:
    """Capitalised words that do not start a sentence become [NAME], one placeholder per word.

    A word starts a sentence unless it follows a word, a comma, a semicolon or a placeholder. Words entirely in capitals stay, ``I``
    included. Meant for languages that capitalise little but names.
    """

    def mask(match: re.Match[str]) -> str:
        word = match[0]
        return NAME if word[0].isupper() and word[1].islower() else word

    return INNER_WORD.sub(mask, text)


def without_punctuation(text: str, generator: random.Random) -> str:
    """Apostrophes removed, other punctuation (Unicode P*) a blank; placeholders, and a text of nothing else, stay unchanged."""

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


class RobustnessRow(TypedDict):
    """Texts under one perturbation.

    Attributes:
        changed: texts that the perturbation changes.
        auc_micro, auc_macro, f1_micro, f1_macro: over all texts.
        flips: share of the changed texts whose predicted labels differ from those as written; 0 if no text changed.
        shift: mean absolute change of a probability on the changed texts; 0 if no text changed.
    """

    perturbation: str
    changed: int
    auc_micro: float
    auc_macro: float
    f1_micro: float
    f1_macro: float
    flips: float
    shift: float


def measure(engine: Engine, texts: Sequence[str], labels: np.ndarray, fitted: Thresholds) -> list[RobustnessRow]:
    """One row for n texts as written, and one for each perturbation of them; labels bool [n, labels].

    Only the texts that a perturbation changes are scored again; the others keep their probabilities.

    Returns:
        The row of the texts as written first. If an engine's scores depend on the batch, no ``flips`` or ``shift`` is exactly 0.
    """
    written, _ = engines.score(engine, texts)
    rows = [_row(AS_WRITTEN, np.zeros(len(texts), dtype=bool), written, written, labels, fitted)]
    for name, perturb in PERTURBATIONS.items():
        generator = random.Random(0)
        perturbed = [perturb(text, generator) for text in texts]
        changed = np.array([after != text for after, text in zip(perturbed, texts, strict=True)], dtype=bool)
        probabilities = written.copy()
        if changed.any():
            probabilities[changed], _ = engines.score(engine, [perturbed[i] for i in np.flatnonzero(changed)])
        rows.append(_row(name, changed, written, probabilities, labels, fitted))
    return rows


def _row(
    name: str, changed: np.ndarray, written: np.ndarray, probabilities: np.ndarray, labels: np.ndarray, fitted: Thresholds
) -> RobustnessRow:
    predicted = fitted.apply(probabilities)
    flipped = (predicted != fitted.apply(written)).any(axis=1)
    ranking, metrics = classification.ranking(labels, probabilities), classification.decisions(labels, predicted)
    return {
        "perturbation": name,
        "changed": int(changed.sum()),
        "auc_micro": ranking["auc_micro"],
        "auc_macro": ranking["auc_macro"],
        "f1_micro": metrics["f1_micro"],
        "f1_macro": metrics["f1_macro"],
        "flips": float(flipped[changed].mean()) if changed.any() else 0.0,
        "shift": float(np.abs(probabilities - written)[changed].mean()) if changed.any() else 0.0,
    }


def _outside_placeholders(change: Callable[[str], str], text: str) -> str:
    pieces = PLACEHOLDER.split(text)
    return "".join(piece if position % 2 else change(piece) for position, piece in enumerate(pieces))


def _tidied(rest: str, text: str) -> str:
    """The rest of a text with single blanks; the text itself if nothing was removed, or everything."""
    return text if rest == text else " ".join(rest.split()) or text
