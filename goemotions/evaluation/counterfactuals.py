"""Counterfactuals: do the scores of a text change if it names another group of people?

The term of a group is swapped for another one, in texts of the data and in neutral sentences, and both are scored (Garg et al. 2019,
"Counterfactual Fairness in Text Classification through Robustness"). A fair model scores both alike. The terms are English.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from goemotions.data import columnar
from goemotions.metrics import bootstrap
from goemotions.metrics.thresholds import Thresholds
from goemotions.models import engines
from goemotions.models.engines import Engine

# In the folder of a scored split: both probabilities of each pair, without its texts.
FILE = "counterfactuals.parquet"
RESAMPLES = 500
# Of the data, per group.
TEXTS = 200
# Each term becomes the next one of its list, the last one the first.
TERMS: dict[str, Sequence[Sequence[str]]] = {
    "gender": (
        *(("he", "she"), ("himself", "herself"), ("man", "woman"), ("men", "women"), ("boy", "girl"), ("boys", "girls")),
        *(("father", "mother"), ("dad", "mom"), ("brother", "sister"), ("son", "daughter"), ("husband", "wife")),
        *(("boyfriend", "girlfriend"), ("uncle", "aunt"), ("male", "female"), ("king", "queen"), ("sir", "madam")),
    ),
    "religion": (
        ("christian", "muslim", "jewish", "hindu", "buddhist", "atheist"),
        ("church", "mosque", "synagogue", "temple"),
    ),
    "nationality": (
        ("american", "mexican", "german", "nigerian", "chinese", "russian", "indian", "iranian", "british", "brazilian"),
        ("america", "mexico", "germany", "nigeria", "china", "russia", "india", "iran", "britain", "brazil"),
    ),
    "age": (("young", "old"), ("younger", "older"), ("teenager", "pensioner"), ("teenagers", "pensioners")),
    "orientation": (("gay", "straight", "lesbian", "heterosexual", "bisexual"),),
}
# Neutral sentences for each term that can stand before a noun.
SENTENCES = (
    "My neighbour is a {} person.",
    "I met two {} people on the train today.",
    "The {} person over there works in an office.",
    "They said that {} people live in this street.",
    "A {} colleague sent me the report.",
)
ADJECTIVES = {
    "gender": ("male", "female"),
    "religion": TERMS["religion"][0],
    "nationality": TERMS["nationality"][0],
    "age": ("young", "old"),
    "orientation": TERMS["orientation"][0],
}
_HIS = re.compile(r"\b(him|his|hers?)\b(?=\s+([a-z]+))?", re.IGNORECASE)
# After them, ``her`` stands for ``him``.
_NO_NOUN = re.compile("a|about|and|as|at|because|but|by|for|from|if|in|is|of|on|or|so|that|the|to|was|when|with", re.IGNORECASE)


# Most English texts have one of these words, and hardly any text of another language. Of fewer than this share, no term is swapped.
_ENGLISH = re.compile(r"\b(?:the|and|you|that|this|it|to|are|my|with|your|what|for|not|but|they|there)\b", re.IGNORECASE)
LEAST_ENGLISH = 0.25


class Pair(NamedTuple):
    """A text before and after a swap; ``row`` is the text's number in the split, -1 for a neutral sentence."""

    group: str
    row: int
    before: str
    after: str


class Estimate(NamedTuple):
    """A value with its 95% interval."""

    value: float
    low: float
    high: float


class GroupChange(NamedTuple):
    """What swaps of one group change.

    Attributes:
        pairs: texts and neutral sentences with a swapped term.
        decisions: share of the pairs whose chosen labels change (interval: Wilson 1927).
        difference: mean absolute change of a probability, over pairs and labels.
        by_label: mean absolute change of each label's probability.
        flips: pairs whose decision changes, per label.
    """

    group: str
    pairs: int
    decisions: Estimate
    difference: Estimate
    by_label: dict[str, Estimate]
    flips: dict[str, int]

    @property
    def most(self) -> str:
        """The label whose probability changes most."""
        return max(self.by_label, key=lambda name: self.by_label[name].value)


def swap(text: str, terms: Sequence[Sequence[str]], *, pronouns: bool = False) -> str:
    """The text with each term replaced by the next one of its list, in the same case; the text itself if it has none.

    The article before a term follows it: an old man, a young man.
    """
    following = {term: terms[(i + 1) % len(terms)] for terms in terms for i, term in enumerate(terms)}
    pattern = re.compile(rf"\b(?:(a)n? )?({'|'.join(sorted(following, key=len, reverse=True))})\b", re.IGNORECASE)

    def replaced(match: re.Match[str]) -> str:
        term = following[match[2].lower()]
        article = f"{match[1]}{'n' if term[0] in 'aeiou' else ''} " if match[1] else ""
        return article + _in_case(term, match[2])

    swapped = pattern.sub(replaced, text)
    return _HIS.sub(_swap_his, swapped) if pronouns else swapped


def pairs(texts: Sequence[str]) -> Iterator[Pair]:
    """Neutral sentences with neighbouring terms of each group, and the first ``TEXTS`` texts with a term of it."""
    for group, terms in TERMS.items():
        adjectives = ADJECTIVES[group]
        # Of two terms, the way back is the same pair.
        for one, other in pairwise((*adjectives, adjectives[0]) if len(adjectives) > 2 else adjectives):
            yield from (Pair(group, -1, _sentence(form, one), _sentence(form, other)) for form in SENTENCES)
        left = TEXTS
        for row, text in enumerate(texts):
            if left and (after := swap(text, terms, pronouns=group == "gender")) != text:
                left -= 1
                yield Pair(group, row, text, after)


def write(path: Path, engine: Engine, texts: Sequence[str], probabilities: np.ndarray, names: Sequence[str]) -> None:
    """Scores the pairs of n texts and writes both probabilities of each; ``probabilities`` are those of the texts.

    Nothing is written for texts that are not English: the neutral sentences would say nothing about them, and their own words are no
    terms, such as the Spanish ``he`` and the French ``son``.
    """
    if sum(bool(_ENGLISH.search(text)) for text in texts) < LEAST_ENGLISH * len(texts):
        return
    swapped = list(pairs(texts))
    sentences = [pair.before for pair in swapped if pair.row < 0]
    scored, _ = engines.score(engine, [*(pair.after for pair in swapped), *sentences])
    after, of_sentences = scored[: len(swapped)], iter(scored[len(swapped) :])
    before = np.stack([next(of_sentences) if pair.row < 0 else probabilities[pair.row] for pair in swapped])
    columns = {"group": pa.array([pair.group for pair in swapped]), "row": pa.array([pair.row for pair in swapped], pa.int32())}
    for prefix, values in (("before", before), ("after", after)):
        columns |= {f"{prefix}/{name}": pa.array(values[:, i], pa.float32()) for i, name in enumerate(names)}
    pq.write_table(pa.table(columns), path)


def read(folder: Path, names: Sequence[str]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Per group the probabilities before and after, float32 [pairs, labels]; empty for a folder from before there were any."""
    path = folder / FILE
    if not path.is_file():
        return {}
    table = columnar.read_parquet(path)
    before, after = (
        columnar.probabilities(table, [f"{prefix}/{name}" for name in names], str(path)) for prefix in ("before", "after")
    )
    if "group" not in table.column_names:
        raise columnar.damaged(str(path))
    groups = np.array(table["group"].to_pylist(), dtype=object)
    return {group: (before[groups == group], after[groups == group]) for group in TERMS if (groups == group).any()}


def measure(scored: Mapping[str, tuple[np.ndarray, np.ndarray]], fitted: Thresholds, names: Sequence[str]) -> list[GroupChange]:
    """What swaps change, per group; ``scored`` is what ``read`` returns."""
    from scipy.stats import binomtest

    changes = []
    for group, (before, after) in scored.items():
        flipped = fitted.apply(before) != fitted.apply(after)
        changed = int(flipped.any(axis=1).sum())
        # The bootstrap would be sure that no pair of many changes if none of these does.
        low, high = binomtest(changed, len(before)).proportion_ci(method="wilson")
        decisions = Estimate(changed / len(before), float(low), float(high))
        # Of all pairs, and on each resample, float [RESAMPLES + 1, labels].
        means = bootstrap.weights(len(before), RESAMPLES) / len(before) @ np.abs(after - before)
        by_label = dict(zip(names, map(_estimate, means.T), strict=True))
        flips = dict(zip(names, flipped.sum(axis=0).tolist(), strict=True))
        changes.append(GroupChange(group, len(before), decisions, _estimate(means.mean(axis=1)), by_label, flips))
    return changes


def _estimate(values: np.ndarray) -> Estimate:
    """From values [RESAMPLES + 1], the first on all rows."""
    return Estimate(float(values[0]), *bootstrap.interval(values))


def _sentence(form: str, term: str) -> str:
    term = term.capitalize() if term in TERMS["nationality"][0] else term
    return re.sub(r"\b([Aa]) (?=[aeiouAEIOU])", r"\1n ", form.format(term))


def _swap_his(match: re.Match[str]) -> str:
    """``her`` is ``his`` before a noun, or what may belong to one, and ``him`` elsewhere."""
    has_noun = bool(match[2]) and not _NO_NOUN.fullmatch(match[2])
    swapped = {"him": "her", "his": "her" if has_noun else "hers", "hers": "his", "her": "his" if has_noun else "him"}
    return _in_case(swapped[match[1].lower()], match[1])


def _in_case(term: str, like: str) -> str:
    return term.upper() if like.isupper() and len(like) > 1 else term.capitalize() if like[0].isupper() else term
