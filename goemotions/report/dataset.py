"""The data: what the models learn from, and what is wrong with it."""

from __future__ import annotations

import numpy as np

from goemotions.data.dataset import DatasetInfo
from goemotions.report import figures
from goemotions.report.document import Cell, Figure, Section, Table
from goemotions.report.result import source_name

PAIRS = 15


def sections(info: DatasetInfo, words: dict[str, np.ndarray]) -> list[Section]:
    """Distribution, co-occurrence, lengths, repeated texts; words of each text by split."""
    return [_counts(info), _distribution(info), _cooccurrence(info), _lengths(info, words), _repeated(info)]


def _counts(info: DatasetInfo) -> Section:
    rows: list[list[Cell]] = []
    for split, count in info["rows"].items():
        sizes = info["labels_per_row"][split]
        mean = sum(number * rows for number, rows in enumerate(sizes)) / max(sum(sizes), 1)
        several = sum(sizes[2:]) / max(sum(sizes), 1)
        rows.append([split, count, sum(info["quarantined"][split].values()), mean, f"{several:.1%}", len(sizes) - 1])
    return Section(
        "Data",
        (f"Source: {source_name(info['source'])}, digest {info['digest']}.",),
        (Table(("split", "rows", "quarantined", "labels a text", "with several", "most labels"), rows),),
    )


def _distribution(info: DatasetInfo) -> Section:
    splits = list(info["rows"])
    counts = info["label_counts"]
    ordered = sorted(info["labels"], key=lambda name: -counts["train"][name])
    most, least = ordered[0], ordered[-1]
    share = counts["train"][most] / max(info["rows"]["train"], 1)
    rarest = f"the rarest {least} ({counts['train'][least]:,} rows)"
    line = f"The most frequent label of train is {most} ({share:.1%} of its rows), {rarest}."
    absent = info["labels_absent_from_train"]
    return Section(
        "Label distribution",
        (line, *([f"Not in train at all: {', '.join(absent)}."] if absent else [])),
        (Table(("label", *splits), [[name, *(counts[split][name] for split in splits)] for name in info["labels"]]),),
        (Figure("class-distribution", "Rows of each label", figures.class_distribution(counts)),),
        level=3,
    )


def _cooccurrence(info: DatasetInfo) -> Section:
    names, together = info["labels"], np.asarray(info["cooccurrence"])
    pairs = [
        (names[a], names[b], int(together[a, b]), together[a, b] / together[a, a], together[a, b] / together[b, b])
        for a in range(len(names))
        for b in range(a + 1, len(names))
        if together[a, b]
    ]
    pairs.sort(key=lambda pair: -pair[2])
    rows: list[list[Cell]] = [
        [f"{a} and {b}", count, f"{of_a:.1%}", f"{of_b:.1%}"] for a, b, count, of_a, of_b in pairs[:PAIRS]
    ]
    return Section(
        "Co-occurrence",
        (f"{len(pairs)} pairs of labels occur together in train; the most frequent:",),
        (Table(("labels together", "rows", "of the first", "of the second"), rows),),
        (
            Figure(
                "co-occurrence", "Share of a label's train rows that have the other too", figures.cooccurrence(names, together)
            ),
        ),
        level=3,
    )


def _lengths(info: DatasetInfo, words: dict[str, np.ndarray]) -> Section:
    columns = ("mean", "min", "p50", "p95", "p99", "max")
    rows: list[list[Cell]] = [
        [f"{split}, {unit}", *(_plain(lengths[split].get(column)) for column in columns)]
        for unit, lengths in (("words", info["words"]), ("characters", info["characters"]))
        for split in info["rows"]
    ]
    chart = figures.lengths({split: found.tolist() for split, found in words.items()})
    return Section(
        "Lengths",
        (),
        (Table(("length", *columns), rows),),
        (Figure("lengths", "Words of a text", chart),),
        level=3,
    )


def _plain(value: float | None) -> Cell:
    """A whole number without decimals."""
    return int(value) if value is not None and float(value).is_integer() else value


def _repeated(info: DatasetInfo) -> Section:
    repeated = info["duplicates"]
    leakage: list[list[Cell]] = [[split, counts["exact"], counts["normalized"]] for split, counts in info["leakage"].items()]
    return Section(
        "Duplicates and leakage",
        (
            f"Train repeats {repeated['texts']:,} texts in {repeated['rows']:,} rows, {repeated['texts_with_other_labels']:,} of "
            "them with other labels: raters disagree on the same words.",
            "Texts of validation and test that also stand in train make a score look better than it is; `drop_leaked` leaves them out "
            "of train.",
        ),
        (Table(("texts also in train", "exact", "ignoring case and punctuation"), leakage),),
        level=3,
    )
