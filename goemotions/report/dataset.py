"""The data set: size, label distribution, co-occurrence, text lengths, duplicates and leakage."""

from __future__ import annotations

import numpy as np

from goemotions.data.dataset import DatasetInfo
from goemotions.evaluation.limitations import listed
from goemotions.report import figures
from goemotions.report.document import Cell, Figure, Section, Table
from goemotions.report.result import source_name

PAIRS = 15


def sections(info: DatasetInfo, words: dict[str, np.ndarray]) -> list[Section]:
    """Sections from ``dataset.json``; ``words`` are the numbers of words of each text, by split."""
    return [
        _counts(info),
        _label_distribution(info),
        *([_cooccurrence(info)] if info["cooccurrence"] else []),
        _lengths(info, words),
        _duplicates(info),
        *_disagreement(info),
    ]


def _counts(info: DatasetInfo) -> Section:
    rows: list[list[Cell]] = []
    for split, count in info["rows"].items():
        texts_by_labels = info["labels_per_row"][split]
        texts = max(sum(texts_by_labels), 1)
        mean = sum(number * count for number, count in enumerate(texts_by_labels)) / texts
        quarantined = sum(info["quarantined"][split].values())
        rows.append([split, count, quarantined, mean, f"{sum(texts_by_labels[2:]) / texts:.1%}", len(texts_by_labels) - 1])
    return Section(
        "Dataset",
        (f"Source: {source_name(info['source'])}, digest {info['digest']}.", *_origin(info)),
        (Table(("split", "rows", "quarantined", "labels per text", "several labels", "most labels"), rows),),
    )


def _origin(info: DatasetInfo) -> list[str]:
    """How the source was read, and which splits were drawn; files of before do not record it."""
    lines = [f"Read as {info['form']}."] if info.get("form") else []
    drawn = info.get("drawn")
    if drawn and drawn["splits"]:
        missing = " and no ".join(drawn["splits"])
        lines.append(
            f"The source has no {missing}: {drawn['share']:.0%} of the rows of train each, drawn per label set with the seed "
            f"{drawn['seed']}. Equal texts are in one split."
        )
    return lines


def _label_distribution(info: DatasetInfo) -> Section:
    splits, counts, absent = list(info["rows"]), info["label_counts"], info["labels_absent_from_train"]
    by_count = sorted(info["labels"], key=lambda name: -counts["train"][name])
    most, least = by_count[0], by_count[-1]
    share = counts["train"][most] / max(info["rows"]["train"], 1)
    return Section(
        "Label distribution",
        (
            f"In train, the most frequent label is {most} ({share:.1%} of the rows) and the rarest {least} "
            f"({counts['train'][least]:,} rows).",
            *([f"Labels that do not occur in train: {listed(absent)}."] if absent else []),
        ),
        (Table(("label", *splits), [[name, *(counts[split][name] for split in splits)] for name in info["labels"]]),),
        (Figure("class-distribution", "Rows per label", figures.class_distribution(counts)),),
        level=3,
    )


def _cooccurrence(info: DatasetInfo) -> Section:
    names, together = info["labels"], np.asarray(info["cooccurrence"])
    pairs = [(a, b) for a in range(len(names)) for b in range(a + 1, len(names)) if together[a, b]]
    pairs.sort(key=lambda pair: -together[pair])
    rows: list[list[Cell]] = [
        [
            f"{names[a]} and {names[b]}",
            int(together[a, b]),
            f"{together[a, b] / together[a, a]:.1%}",
            f"{together[a, b] / together[b, b]:.1%}",
        ]
        for a, b in pairs[:PAIRS]
    ]
    caption = "Share of a label's train rows that also have the other label"
    return Section(
        "Label co-occurrence",
        (f"{len(pairs)} pairs of labels occur together in train. The most frequent:",),
        (Table(("labels together", "rows", "of the first", "of the second"), rows),),
        (Figure("co-occurrence", caption, figures.cooccurrence(names, together)),),
        level=3,
    )


def _lengths(info: DatasetInfo, words: dict[str, np.ndarray]) -> Section:
    columns = ("mean", "min", "p50", "p95", "p99", "max")
    rows: list[list[Cell]] = [
        [f"{split}, {unit}", *(_whole(lengths[split].get(column)) for column in columns)]
        for unit, lengths in (("words", info["words"]), ("characters", info["characters"]))
        for split in info["rows"]
    ]
    return Section(
        "Text lengths",
        (),
        (Table(("length", *columns), rows),),
        (Figure("lengths", "Words per text", figures.lengths(words)),),
        level=3,
    )


def _whole(value: float | None) -> Cell:
    """The value, as an integer if it is one."""
    return int(value) if value is not None and float(value).is_integer() else value


def _disagreement(info: DatasetInfo) -> list[Section]:
    raters = info.get("disagreement")
    if not raters:
        return []
    rows: list[list[Cell]] = [[name, raters["texts"][name], f"{raters['share'][name]:.2f}"] for name in info["labels"]]
    return [
        Section(
            "Disagreement of raters",
            (
                f"In {raters['rows']:,} rows of train, raters disagree. Training learns from the share of raters per label. Metrics "
                "use the labels that at least half of the raters gave.",
            ),
            (Table(("label", "texts where a rater gave it", "mean share of raters there"), rows),),
            level=3,
        )
    ]


def _duplicates(info: DatasetInfo) -> Section:
    duplicates = info["duplicates"]
    leakage: list[list[Cell]] = [[split, counts["exact"], counts["normalized"]] for split, counts in info["leakage"].items()]
    return Section(
        "Duplicates and leakage",
        (
            f"Train contains {duplicates['texts']:,} texts more than once, in {duplicates['rows']:,} rows; "
            f"{duplicates['texts_with_other_labels']:,} of them have different labels.",
            "Texts of validation and test that are also in train make metrics look better than they are. The option drop_leaked "
            "removes them from train.",
        ),
        (Table(("texts also in train", "exact", "ignoring case and punctuation"), leakage),),
        level=3,
    )
