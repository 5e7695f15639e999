"""Where not to use a model: sentences that follow from its scores, and what is known of the data's raters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from goemotions.evaluation import counterfactuals, slices
from goemotions.evaluation.counterfactuals import GroupChange
from goemotions.evaluation.predictions import Predictions
from goemotions.metrics import classification
from goemotions.metrics.thresholds import Thresholds

# Labels with fewer rows, or a lower F1, are not to be relied on.
FEW_POSITIVES, LOW_F1 = 30, 0.4
# A sentence names so many of them at most.
MOST_NAMES = 10
# Of scripts, where it is not the word in ``data.text.SCRIPTS``.
NAMES = {"cjk": "that of Chinese", "other": "that of the test texts"}
# Labels by which the GoEmotions data is recognized, whatever subset of them is used.
GOEMOTIONS = frozenset(("admiration", "annoyance", "caring", "curiosity", "disapproval", "gratitude", "remorse", "neutral"))
ABOUT_GOEMOTIONS = (
    "The texts are English comments of Reddit from 2005 to 2019, whose users are mostly young men. Three to five people rated each, "
    "all of them native speakers of English from India (Demszky et al. 2020, GoEmotions). Other domains, such as reviews, mail or "
    "speech, and other varieties of English were not evaluated.",
    "The labels are what raters read into a comment without its context, not what its author felt.",
)
ALWAYS = "Not for decisions about a person, such as on work, credit, health or safety, without a person who decides."


def sentences(predictions: Predictions, fitted: Thresholds, folder: Path) -> list[str]:
    """The limits of a model, each a sentence or two, from its scored test split in a folder, and the thresholds that serve.

    In a folder of before, slices and counterfactuals may be missing.
    """
    about = ABOUT_GOEMOTIONS if set(predictions.names) >= GOEMOTIONS else ()
    of_slices = slices.read(folder)
    groups = counterfactuals.measure(counterfactuals.read(folder, predictions.names), fitted, predictions.names)
    return [
        ALWAYS,
        *about,
        *_language(of_slices, groups),
        *_weak_slices(slices.measure(predictions, fitted, of_slices)),
        *_weak_labels(predictions, fitted),
        *_groups(groups),
    ]


def _language(of_slices: Mapping[str, Sequence[str]], groups: Sequence[GroupChange]) -> list[str]:
    scripts = [one for one in of_slices.get("script", ()) if one != "none"]
    main = max(sorted(set(scripts)), key=scripts.count, default="")
    others = len(scripts) - scripts.count(main)
    lines = []
    if main and others < slices.FEW_TEXTS:
        lines.append(
            f"Not for other scripts than {NAMES.get(main, main.title())}: {others:,} of {len(of_slices['script']):,} test texts have "
            "one. Use it for the language of the training data only: languages of one script were not separated."
        )
    if main and not groups:
        lines.append(
            "Whether its labels depend on the group of people that a text names was not measured: the terms to swap are English."
        )
    return lines


def _weak_slices(rows: Sequence[slices.SliceRow]) -> list[str]:
    overall = rows[0]
    weak = [row for row in rows[1:] if row["texts"] >= slices.FEW_TEXTS and row["difference_high"] < 0]
    few = [row for row in rows[1:] if row["texts"] < slices.FEW_TEXTS]
    lines = []
    if weak:
        listed = "; ".join(f"{name_of(row)} ({row['f1_micro']:.3f}, {row['texts']:,} texts)" for row in weak)
        lines.append(f"Micro F1 is clearly lower than that of all test texts ({overall['f1_micro']:.3f}) for {listed}.")
    if few:
        listed = "; ".join(f"{name_of(row)} ({row['texts']})" for row in few)
        lines.append(f"Too few test texts, fewer than {slices.FEW_TEXTS}, to say anything: {listed}.")
    return lines


def _weak_labels(predictions: Predictions, fitted: Thresholds) -> list[str]:
    predicted = fitted.apply(predictions.probabilities)
    rows = classification.per_label(predictions.names, predictions.labels, predictions.probabilities, predicted)
    low = [f"{row['label']} ({row['f1']:.2f})" for row in sorted(rows, key=lambda row: row["f1"]) if row["f1"] < LOW_F1]
    lines = []
    if low:
        lines.append(f"F1 on test is below {LOW_F1} for {listed(low)}: most decisions on them are wrong or missing.")
    if few := rare(rows):
        lines.append(f"Fewer than {FEW_POSITIVES} test rows have the labels {few}: their metrics say little.")
    return lines


def rare(rows: Sequence[classification.LabelMetrics]) -> str:
    """The labels with few rows, the rarest first; empty if there is none."""
    by_support = sorted(rows, key=lambda row: row["support"])
    return listed([f"{row['label']} ({row['support']})" for row in by_support if row["support"] < FEW_POSITIVES])


def listed(names: Sequence[str]) -> str:
    """The first names, and how many more there are: data of others may have hundreds of labels."""
    more = len(names) - MOST_NAMES
    return ", ".join(names) if more <= 1 else f"{', '.join(names[:MOST_NAMES])} and {more} more"


def _groups(changes: Sequence[GroupChange]) -> list[str]:
    most = max(changes, key=lambda one: one.decisions.value, default=None)
    if not most or not most.decisions.value:
        return []
    share, low, high = most.decisions
    return [
        f"Which group of people an English text names changes its labels: most for {most.group}, in {share:.1%} ({low:.1%} to "
        f"{high:.1%}) of {most.pairs:,} pairs. Do not compare groups by predicted labels."
    ]


def name_of(row: slices.SliceRow) -> str:
    """A slice in words."""
    kind, value = row["kind"], row["slice"]
    forms = {"words": f"texts of {value} words", "script": f"the script {value}"}
    return forms.get(kind, f"texts with{'' if value == 'yes' else 'out'} {kind}")
