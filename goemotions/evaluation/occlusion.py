"""Occlusion: how much each word of a text matters to a score, by how far the score falls when the word is removed.

Zeiler and Fergus 2014, "Visualizing and Understanding Convolutional Networks", section 4.2; for words, Li et al. 2016, "Understanding
Neural Networks through Representation Erasure". It needs scores only, so it is the same for every engine. A long text has fewer
removals than words: neighbouring short words, which are mostly function words, are then removed together.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypedDict

import numpy as np

from goemotions import defaults
from goemotions.data.text import SEPARATORS, UNSPACED, UNSPACED_CHARACTERS
from goemotions.evaluation.robustness import EMOJI
from goemotions.models import engines
from goemotions.models.engines import Engine
from goemotions.models.tokenizer import TextEncoder

_PUNCTUATION = SEPARATORS + (
    r"!-/:-@\[-`{-~\u00a1-\u00a7\u00ab\u00b6\u00b7\u00bb\u00bf\u060c\u061b\u061f\u0964\u0965\u2010-\u2027\u2030-\u205e\u3001-\u303f"
    r"\uff01-\uff0f\uff1a-\uff20\uff3b-\uff40\uff5b-\uff65"
)
_LETTERS = rf"(?:(?!{EMOJI.pattern})[^\s{_PUNCTUATION}{UNSPACED_CHARACTERS}])+"
# A placeholder of the data set, adjacent emoji, a character of an unspaced script, a word with its inner apostrophes and hyphens, or
# adjacent punctuation. Together they are all characters that are not blank.
WORD = re.compile(
    rf"(?P<placeholder>\[[A-Z]+\])|(?P<emoji>(?:{EMOJI.pattern})+)|(?P<unspaced>{UNSPACED.pattern})"
    rf"|(?P<word>{_LETTERS}(?:['’_-]{_LETTERS})*)|(?P<punctuation>[{_PUNCTUATION}]+)"
)
# Words that the deletion test removes.
DELETED = 5
# What is merged first is lightest: words weigh as much as they have characters.
WEIGHTS = {"punctuation": 0.5, "unspaced": 3.0, "emoji": 8.0}


class Word(TypedDict):
    """A word, or adjacent punctuation or emoji: characters ``start`` to ``end`` of the text. Those of a group are removed together."""

    text: str
    start: int
    end: int
    group: int


@dataclass(frozen=True)
class Occlusion:
    """A text and what is scored beside it: the text without each group of words, float32 [words] each word's share of its group."""

    words: list[Word]
    shares: np.ndarray
    texts: list[str]


def occlude(encoder: TextEncoder, text: str, removals: int = defaults.REMOVALS) -> Occlusion:
    """The words of a text, up to where the model reads it, and the text without each group of them; at most so many groups."""
    text = text[: encoder.characters_read(text)]
    matches = list(WORD.finditer(text))
    weights = [WEIGHTS.get(match.lastgroup or "", len(match[0])) for match in matches]
    groups = _merge(weights, removals)
    words: list[Word] = []
    shares = []
    for number, group in enumerate(groups):
        total = sum(weights[position] for position in group)
        for position in group:
            match = matches[position]
            words.append({"text": match[0], "start": match.start(), "end": match.end(), "group": number})
            shares.append(weights[position] / total)
    spans = [(matches[group[0]].start(), matches[group[-1]].end()) for group in groups]
    return Occlusion(words, np.array(shares, dtype=np.float32), [_without(text, *span) for span in spans])


def to_score(texts: Sequence[str], occlusions: Sequence[Occlusion]) -> list[str]:
    """The n texts, followed by those without words of the first, of the second, and so on."""
    return [*texts, *(removed for occlusion in occlusions for removed in occlusion.texts)]


def contributions(occlusions: Sequence[Occlusion], probabilities: np.ndarray) -> list[np.ndarray]:
    """What each word of n texts contributes to each label, float32 [words, labels] per text, from -1 to 1.

    ``probabilities`` are those of the texts of ``to_score``, float32 [n + removals, labels].
    """
    result = []
    start = len(occlusions)
    for row, occlusion in enumerate(occlusions):
        falls = probabilities[row] - probabilities[start : start + len(occlusion.texts)]
        start += len(occlusion.texts)
        groups = np.array([word["group"] for word in occlusion.words], dtype=int)
        result.append(falls[groups] * occlusion.shares[:, None])
    return result


def deletion(
    engine: Engine, texts: Sequence[str], words: Sequence[list[Word]], orders: Sequence[np.ndarray], labels: Sequence[int]
) -> np.ndarray:
    """The deletion test: how far a label's probability falls when words are removed one after the other.

    The mean over the columns is the area over the perturbation curve (Samek et al. 2017, "Evaluating the Visualization of What a Deep
    Neural Network Has Learned"): the higher, the better the order.

    Args:
        engine, texts, words: the engine, n texts, and the words of each.
        orders: positions of each text's words in the order of their removal.
        labels: the column of the label of each text.

    Returns:
        float32 [n, DELETED], after one, two and more words; a text with fewer words keeps its last value.
    """
    removed = list(texts)
    for text, own, order in zip(texts, words, orders, strict=True):
        removed += [_without_all(text, [own[i] for i in order[:count]]) for count in range(1, DELETED + 1)]
    probabilities, _ = engines.score(engine, removed)
    columns = np.asarray(labels)
    after = probabilities[len(texts) :].reshape(len(texts), DELETED, -1)
    before = probabilities[np.arange(len(texts)), columns]
    falls: np.ndarray = before[:, None] - after[np.arange(len(texts)), :, columns]
    return falls


def _without_all(text: str, words: Sequence[Word]) -> str:
    for word in sorted(words, key=lambda word: -word["start"]):
        text = _without(text, word["start"], word["end"])
    return text


def _merge(weights: Sequence[float], groups: int) -> list[list[int]]:
    """The positions in order, in at most so many groups: the lightest two neighbours are merged until they are so few."""
    merged, sums = [[position] for position in range(len(weights))], np.array(weights)
    while len(merged) > groups:
        first = int(np.argmin(sums[:-1] + sums[1:]))
        merged[first] += merged.pop(first + 1)
        sums[first] += sums[first + 1]
        sums = np.delete(sums, first + 1)
    return merged


def _without(text: str, start: int, end: int) -> str:
    """The text without some characters and the blanks before them; words that they separated stay separate, where blanks do that."""
    before, after = text[:start].rstrip(), text[end:]
    are_words = before[-1:].isalnum() and after[:1].isalnum()
    are_unspaced = UNSPACED.match(before[-1:]) and UNSPACED.match(after[:1])
    return f"{before} {after}" if are_words and not are_unspaced else (before + after).strip()
