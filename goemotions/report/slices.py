"""What the metrics depend on beside the labels: kinds of texts, groups of people, words; and where not to use the model."""

from __future__ import annotations

from collections.abc import Sequence

from goemotions.evaluation import counterfactuals, limitations, slices, words
from goemotions.report.document import Row, Section, Table
from goemotions.report.result import Result, judged


def limits_section(result: Result) -> Section:
    """Where not to use the model, from its test scores."""
    sentences = limitations.sentences(result.test, result.thresholds, result.artifacts.test)
    return Section("Where not to use it", [*sentences, f"The figures are those of {result.title} on test."])


def sections(result: Result, texts: Sequence[str]) -> list[Section]:
    """Metrics per slice and counterfactuals on test, and the words of each label in ``texts``, those of validation."""
    return [*_slices(result), *_groups(result), *_words(result, texts)]


def _slices(result: Result) -> list[Section]:
    of_slices = slices.read(result.artifacts.test)
    if not of_slices:
        return []
    rows = slices.measure(result.test, result.thresholds, of_slices)
    overall = rows[0]
    table: list[Row] = [
        [
            "all test texts" if row is overall else limitations.name_of(row),
            row["texts"],
            row["auc_micro"],
            f"{row['f1_micro']:.4f} ({row['f1_low']:.4f} to {row['f1_high']:.4f})",
            _verdict(row) if row is not overall else "",
        ]
        for row in rows
    ]
    return [
        Section(
            "Metrics per slice",
            (
                f"{result.title} on test at the fitted thresholds; micro F1 with its 95% interval of a bootstrap. A slice is worse or "
                "better than all texts if the interval of the difference, on the same resamples, excludes 0.",
            ),
            (Table(("slice", "texts", "micro AUC", "micro F1", "against all"), table),),
        )
    ]


def _verdict(row: slices.SliceRow) -> str:
    return "too few texts" if row["texts"] < slices.FEW_TEXTS else judged(row["difference_low"], row["difference_high"])


def _groups(result: Result) -> list[Section]:
    names = result.test.names
    scored = counterfactuals.read(result.artifacts.test, names)
    if not scored:
        return []
    changes = counterfactuals.measure(scored, result.thresholds, names)
    summary: list[Row] = [
        [
            one.group,
            one.pairs,
            "{:.1%} ({:.1%} to {:.1%})".format(*one.decisions),
            _points(one.difference),
            f"{one.most}: {100 * one.by_label[one.most].value:.2f}",
        ]
        for one in changes
    ]
    by_label: list[Row] = [
        [name, *(_points(one.by_label[name]) + (f", {one.flips[name]}" if one.flips[name] else "") for one in changes)]
        for name in names
    ]
    return [
        Section(
            "Names of groups swapped",
            (
                f"{result.title}: an English term of a group is replaced by another one (he by she, Christian by Muslim), whatever it "
                f"means there (an old song, straight on), in the first {counterfactuals.TEXTS} test texts with such a term and in "
                "neutral sentences. Other labels: share of the pairs whose chosen labels differ. Mean change: of a probability, up or "
                "down, over pairs and labels, in percentage points.",
                "Per label: the mean change of its probability with its 95% interval, in percentage points; after a comma, in how many "
                "pairs its decision changes, if in any.",
            ),
            (
                Table(("group", "pairs", "other labels", "mean change", "changes most"), summary),
                Table(("label", *(one.group for one in changes)), by_label),
            ),
        )
    ]


def _points(change: counterfactuals.Estimate) -> str:
    return "{:.2f} ({:.2f} to {:.2f})".format(*(100 * value for value in change))


def _words(result: Result, texts: Sequence[str]) -> list[Section]:
    engine = result.artifacts.load_engine(result.variant)
    scored = result.validation
    measured = words.measure(engine, texts, scored.labels, result.thresholds.apply(scored.probabilities), scored.names)
    if not measured:
        return []
    by_label: dict[str, list[str]] = {name: [] for name in scored.names}
    for row in measured.rows:
        by_label[row["label"]].append(f'"{row["word"]}" {100 * row["contribution"]:+.1f} ({row["texts"]:,})')
    return [
        Section(
            "Words that speak for each label",
            (
                f"{result.title}: the mean fall of a label's probability, in percentage points, if the word is removed (occlusion), "
                "and in brackets the number of texts with it. "
                f"Explained are the first {words.TEXTS_PER_LABEL} correct predictions of each label on validation, "
                f"{measured.explained:,} texts in all. Words in at least {words.LEAST_TEXTS} of them.",
                "Deletion test: if the words of a text are removed in the order of their contributions, the label's probability is "
                f"lower by {100 * measured.fall:.1f} percentage points on average over the first five; in a random order, by "
                f"{100 * measured.random_fall:.1f}.",
            ),
            (Table(("label", "words"), [[label, ", ".join(listed) or None] for label, listed in by_label.items()]),),
        )
    ]
