"""Counterfactuals: do the scores of a text change if it names another group of people?

The term of a group is swapped for another one, in texts of the data and in neutral sentences, and both are scored (Garg et al. 2019,
"Counterfactual Fairness in Text Classification through Robustness"). A fair model scores both alike. The terms are English.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple, TypedDict

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


class CounterfactualRow(TypedDict):
    """What swaps of one group change.

    Attributes:
        pairs: texts and neutral sentences with a swapped term.
        decisions: share of the pairs whose chosen labels change, with ``decisions_low`` and ``decisions_high``, its 95% interval
            (Wilson 1927).
        difference: mean absolute change of a probability, over pairs and labels, with its interval.
        label: the label that changes most, and ``label_difference``, its mean absolute change.
    """

    group: str
    pairs: int
    decisions: float
    decisions_low: float
    decisions_high: float
    difference: float
    difference_low: float
    difference_high: float
    label: str
    label_difference: float


class LabelChange(NamedTuple):
    """What swaps of one group change for one label: mean absolute difference, its 95% interval, and decisions that change."""

    group: str
    label: str
    difference: float
    low: float
    high: float
    changed: int


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


def measure(
    scored: Mapping[str, tuple[np.ndarray, np.ndarray]], fitted: Thresholds, names: Sequence[str], seed: int = 0
) -> list[CounterfactualRow]:
    """What swaps change, one row per group; ``scored`` is what ``read`` returns."""
    from scipy.stats import binomtest

    rows: list[CounterfactualRow] = []
    for group, (before, after) in scored.items():
        changed = int((fitted.apply(before) != fitted.apply(after)).any(axis=1).sum())
        per_label = _mean_change(before, after, seed)
        difference, most = per_label.mean(axis=1), int(per_label[0].argmax())
        # The bootstrap would be sure that no pair of many changes if none of these does.
        decisions_low, decisions_high = binomtest(changed, len(before)).proportion_ci(method="wilson")
        low, high = bootstrap.interval(difference)
        rows.append(
            CounterfactualRow(
                group=group,
                pairs=len(before),
                decisions=changed / len(before),
                decisions_low=float(decisions_low),
                decisions_high=float(decisions_high),
                difference=float(difference[0]),
                difference_low=low,
                difference_high=high,
                label=names[most],
                label_difference=float(per_label[0, most]),
            )
        )
    return rows


def measure_labels(
    scored: Mapping[str, tuple[np.ndarray, np.ndarray]], fitted: Thresholds, names: Sequence[str], seed: int = 0
) -> list[LabelChange]:
    """What swaps change, one row per group and label; ``scored`` is what ``read`` returns."""
    changes = []
    for group, (before, after) in scored.items():
        flipped = (fitted.apply(before) != fitted.apply(after)).sum(axis=0).tolist()
        for label, values, changed in zip(names, _mean_change(before, after, seed).T, flipped, strict=True):
            low, high = bootstrap.interval(values)
            changes.append(LabelChange(group, label, float(values[0]), low, high, changed))
    return changes


def _mean_change(before: np.ndarray, after: np.ndarray, seed: int) -> np.ndarray:
    """Mean absolute change of the probability of each label, float [RESAMPLES + 1, labels], of all pairs and on each resample."""
    drawn = bootstrap.weights(len(before), RESAMPLES, seed) / len(before)
    changes: np.ndarray = drawn @ np.abs(after - before)
    return changes


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
