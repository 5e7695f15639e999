"""How the labels of a source are written, and the reading of them that is without doubt.

Labels are in one column (numbers or names, one or several, separated or as a list, or one 0 or 1 per label) or in one column per label.
If the rows have two readings, both are named and none is taken.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from itertools import islice
from typing import Any

from goemotions.data.label_cells import (
    BY_NAME,
    MARKS,
    NUMBERS,
    ONE_HOT,
    Decode,
    Decoded,
    Parser,
    Reading,
    by_own_names,
    flag,
    flags_if_any,
    flags_of,
    is_list,
    is_missing,
    majority,
    plain,
)
from goemotions.data.tables import Table
from goemotions.data.taxonomy import MOST_LABELS, Taxonomy
from goemotions.errors import DataError

NAMES = ("labels", "label")
# The column of a Dataset folder with the share of raters per label; only sources with such shares have it.
SOFT_LABELS = "soft_labels"
LONGEST_NAME = 200
# Columns that tell the raters of a text apart.
RATERS = ("rater_id", "rater", "annotator_id", "annotator", "_annotator_id", "worker_id")
# Columns that are no labels even if they hold 0 and 1 only; the first is one of the raw GoEmotions files.
NO_LABELS = ("example_very_unclear", "id", "index", "unnamed: 0", *RATERS)
# Columns that often say something else of a row than a label of it, even if they hold 0 and 1.
DOUBTFUL = re.compile(
    r"""(is_|in_|use_)?(train(ing)?|test(ing)?|val(id(ation)?)?|dev|eval(uation)?|hold_?out|split|k?fold|partition|subset)(_?(set|id|\d+))?
    |(is_|has_)?(gold|golden|dup|duplicates?|duplicated|deleted|removed|edited|stickied|archived|nsfw|over_?18|verified|reviewed|annotated
    |flagged|unclear|retweet|reply|bot)|weights?|confidence|score|agreement|controversiality""",
    re.VERBOSE,
)
# They may be labels if all of them are called so.
DOUBTFUL_AMONG_OTHERS = re.compile("(is|has)_.+|.+_(weight|confidence|score|agreement)")
# What programs write for a missing value.
MISSING = ("None", "nan", "NaN", "null", "NULL", "NA", "N/A", "<NA>", "#N/A", "\\N")
NUMBER = re.compile(r"[-+]?\d+(\.\d+)?")
# Marks of no width, soft hyphens, and how an emoji is drawn.
INVISIBLE = re.compile("[\u00ad\u200b-\u200f\u2060\ufe00-\ufe0f\ufeff]")
# A tuple, a set or an object of Python, JSON or PostgreSQL, or a call as their classes, NumPy and Spark show themselves.
BRACKETED = re.compile(r"\w*\([^,'\"]*[,'\"].*\)|\{.*\}", re.DOTALL)
# What may join two names: anything but letters and digits, or a short word between blanks.
JOINT = re.compile(r"\s+[^\W_]{1,3}\s+|[\W_]+")
# The # of doccano, and the commas and semicolons of Arabic, Chinese and Japanese, which are hardly ever part of a name.
FOREIGN_MARKS = ("#", "\u060c", "\u061b", "\u3001", "\uff0c", "\uff1b")
YES = {"1", "true", "yes", "y", "present", "positive"}
SAMPLED, LOOKED_AT = 1000, 100
# A file without a header has a label that no other row has in its first row by chance in one of so many.
CHANCE = 50


@dataclass(frozen=True)
class Labelling:
    """How the labels of a source are read.

    Attributes:
        taxonomy: the labels.
        columns: called with a table, returns its columns with labels.
        decoder: called with a table, returns the function that reads the cells of these columns.
        form: how they are read, in words.
    """

    taxonomy: Taxonomy
    columns: Callable[[Table], Sequence[str]]
    decoder: Callable[[Table], Decode]
    form: str


def find_labelling(tables: Sequence[Table], names: Sequence[str] | None, labels_column: str) -> Labelling:
    """How the labels are written.

    Args:
        tables: the files of the source, those of train first.
        names: the label names in index order, if they are listed beside the files.
        labels_column: the column with the labels, or one per label, separated by commas; empty: ``labels``, ``label``, or the columns
            of 0 and 1.

    Raises:
        DataError: there is no such column, the labels have no names, or the rows have two readings.
    """
    column = _single_column(tables, labels_column, names)
    if column is None:
        return _one_per_label(tables, names, [part.strip() for part in labels_column.split(",") if part.strip()])
    known = _known_names(tables, names, column)
    mark = MARKS
    if known is None:
        known, mark = _names_in(tables, column)
    taxonomy = Taxonomy(known)
    parse = Parser(taxonomy.names, mark)
    unnamed: dict[str, list[Table]] = {}
    for table in tables:
        if not table.class_names.get(table.column(column)):
            unnamed.setdefault(table.form, []).append(table)
    # Files of one format are read alike.
    readings = {form: _reading(group, column, parse) for form, group in unnamed.items()}

    def columns(table: Table) -> list[str]:
        return [_present(table, column, tables[0]), *([SOFT_LABELS] if _has_soft_labels(table, taxonomy, column) else [])]

    def decoder(table: Table) -> Decode:
        own = table.class_names.get(table.column(column))
        reading = by_own_names(own) if own else readings[table.form]

        def decode(cells: Sequence[Any]) -> Decoded:
            return reading.decode(parse(cells[0]), parse)

        return _with_shares(decode, len(taxonomy)) if _has_soft_labels(table, taxonomy, column) else decode

    forms = dict.fromkeys(reading.form for reading in readings.values())
    form = f"{' and '.join(forms) or 'ClassLabel numbers'} in column {column!r}"
    return Labelling(taxonomy, columns, decoder, form)


def _has_soft_labels(table: Table, taxonomy: Taxonomy, column: str) -> bool:
    """Whether a file of a Dataset folder has the shares of raters, in the order of the labels."""
    return SOFT_LABELS in table.columns and table.class_names.get(table.column(column)) == taxonomy.names


def _with_shares(decode: Decode, label_count: int) -> Decode:
    def decode_both(cells: Sequence[Any]) -> Decoded:
        shares = [flag(share) for share in cells[1] or ()]
        if len(shares) != label_count or None in shares:
            raise ValueError(f"{SOFT_LABELS} must have a share between 0 and 1 per label")
        return decode(cells[:1])[0], majority([share for share in shares if share is not None])[1]

    return decode_both


def _present(table: Table, column: str, first: Table) -> str:
    values = table.column(column)
    if not values:
        raise DataError(f"{table.name} has no column {column!r}: {_ways_out(table, first)}")
    return values


def _ways_out(table: Table, first: Table) -> str:
    """How a file is read that has no labels, or ``first`` of them, that of train."""
    way_out = f"name the column with the labels (labels_column), of {', '.join(table.columns):.300}"
    return way_out if table is first else f"{way_out}; or leave the file out if it has none, and its split is drawn from train"


def _single_column(tables: Sequence[Table], labels_column: str, names: Sequence[str] | None) -> str | None:
    """The column with all labels of a row, or None if there is one column per label."""
    first = tables[0]
    if labels_column:
        is_flag = names is not None and [*names] == [first.column(labels_column)]
        return labels_column if not is_flag and (first.column(labels_column) or "," not in labels_column) else None
    present = [name for name in NAMES if first.column(name)]
    if len(present) > 1:
        raise DataError(f"{first.name} has the columns {present[0]!r} and {present[1]!r}: choose one (labels_column)")
    return present[0] if present else None


# One column per label.


def _one_per_label(tables: Sequence[Table], names: Sequence[str] | None, chosen: Sequence[str]) -> Labelling:
    first = tables[0]
    if chosen and names and set(chosen) != set(names):
        raise DataError(
            f"emotions.txt lists {len(names)} labels and labels_column {len(chosen)} others: remove one of the two lists"
        )
    taxonomy = Taxonomy(tuple(names or chosen or _flag_columns(first)))
    # Columns that nobody listed are all named.
    shown = _listed(taxonomy.names) if names or chosen else f"{', '.join(taxonomy.names):.1000}"

    def columns(table: Table) -> list[str]:
        missing = [name for name in taxonomy.names if name not in table.columns]
        if len(missing) == len(taxonomy):
            raise DataError(f"{table.name} has no column 'labels', and no column per label: {_ways_out(table, first)}")
        if missing:
            raise DataError(
                f"{table.name} has no column {missing[0]!r} for this label: add it, or name the columns (labels_column)"
            )
        if inverted := [name for name in taxonomy.names if _is_inverted(name, table.class_names.get(name))]:
            raise DataError(
                f"{table.name}: 0 in column {inverted[0]!r} is {table.class_names[inverted[0]][0]!r} by its ClassLabel: write 1 in "
                "rows that have the label, and 0 in the others"
            )
        return list(taxonomy.names)

    def decoder(table: Table) -> Decode:
        # A row of a rater who said nothing would count as an opinion.
        return flags_of if any(map(table.column, RATERS)) else flags_if_any

    for table in tables:
        columns(table)
    return Labelling(taxonomy, columns, decoder, f"0 or 1 in {len(taxonomy)} columns, {shown}")


def _is_inverted(label: str, class_names: Sequence[str] | None) -> bool:
    """Whether the names of a ClassLabel column say that 0 is for rows with the label."""
    return bool(class_names and class_names[0].strip().casefold() in {*YES, label.strip().casefold()})


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names) if len(names) < 5 else f"{names[0]} to {names[-1]}"


def _flag_columns(table: Table) -> list[str]:
    """The columns whose first values are all 0 or 1, or shares between them.

    Raises:
        DataError: there is none, or one may be no label, or has no value in rows where others have one.
    """
    columns = [column for column in table.columns if column.lower() not in NO_LABELS and column]
    values: dict[str, set[float | None]] = {column: set() for column in columns}
    empty: dict[str, set[int]] = {column: set() for column in columns}
    for line, cells in islice(table.rows(columns), SAMPLED):
        for column, cell in zip(columns, cells, strict=True):
            if is_missing(cell):
                empty[column].add(line)
            else:
                values[column].add(flag(cell))
    flags = [column for column, found in values.items() if found and None not in found]
    if not flags:
        raise DataError(f"{table.name} has no column 'labels', and no column of 0 and 1 per label: {_ways_out(table, table)}")
    if doubtful := [
        *dict.fromkeys([*_doubtful(flags), *_doubtful_by_values(table, {column: values[column] for column in flags})])
    ]:
        surely = [column for column in flags if column not in doubtful]
        raise DataError(
            f"{table.name}: {', '.join(map(repr, doubtful)):.200} may be labels, or say something else of the rows: name the columns "
            f"with the labels (labels_column), such as {','.join(surely or flags):.300}"
        )
    # A row without any value has no label.
    unlabelled = set.intersection(*(empty[column] for column in flags))
    for column in flags:
        if only := sorted(empty[column] - unlabelled):
            raise DataError(
                f"{table.name}, line {only[0]}: column {column!r} has 0 or 1 in other rows and no value here: write 0 or 1, or name "
                "the columns with the labels (labels_column) if it is none"
            )
    return flags


def _doubtful_by_values(table: Table, values: Mapping[str, Set[float | None]]) -> list[str]:
    """The columns, of those of 0 and 1 or shares, with one value in all rows, and those of shares beside some of 0 and 1 alone.

    No label has one value, and the others are scores, such as a polarity. In a file of a few rows either may be by chance.
    """
    if len([*islice(table.rows([*values][:1]), LOOKED_AT)]) < LOOKED_AT:
        return []
    constant = [
        column for column, found in values.items() if len(found) == 1 and 0 not in found and _is_constant(table, column)
    ]
    are_plain = any(found == {0, 1} for found in values.values())
    return constant + [column for column, found in values.items() if are_plain and found - {0, 1}]


def _is_constant(table: Table, column: str) -> bool:
    """Whether a column has one value in all rows, not only in the first."""
    rows = (cells[0] for _, cells in table.rows([column]))
    first = next(rows, None)
    return all(cell == first for cell in rows)


def _doubtful(flags: Sequence[str]) -> list[str]:
    """The columns of 0 and 1 whose names are often no labels."""
    names = {column: re.sub(r"[\s.-]+", "_", column.strip().casefold()).lstrip("_") for column in flags}
    among_others = [column for column, name in names.items() if DOUBTFUL_AMONG_OTHERS.fullmatch(name)]
    are_all = len(among_others) == len(flags)
    return [column for column, name in names.items() if DOUBTFUL.fullmatch(name) or (column in among_others and not are_all)]


# All labels in one column.


def _known_names(tables: Sequence[Table], names: Sequence[str] | None, column: str) -> tuple[str, ...] | None:
    """The names that are listed beside the files or in them; files may have them in any order, but must have the same."""
    listed = tuple(names) if names is not None else None
    where = "emotions.txt"
    for table in tables:
        own = table.class_names.get(table.column(column))
        if not own:
            continue
        if listed is None:
            listed, where = own, table.name
        elif odd := sorted(set(own) ^ set(listed)):
            raise DataError(
                f"{table.name} and {where} name different labels ({odd[0]!r} is only in one): number 0 is {own[0]!r} or {listed[0]!r}; "
                f"remove {where if where == 'emotions.txt' else 'the names of one'} or make them the same"
            )
    return listed


def _names_in(tables: Sequence[Table], column: str) -> tuple[tuple[str, ...], str]:
    """The distinct names in a column, sorted, and the marks that separate them.

    Raises:
        DataError: they are numbers, too many, or may be separated in two ways.
    """
    by_mark: dict[str, set[str]] = {mark: set() for mark in ("", MARKS)}
    parsers = {mark: Parser((), mark) for mark in by_mark}
    marks: set[str] = set()
    # Names that a list has set apart.
    listed: set[str] = set()
    has_numbers = False
    for table, value in _values(tables, column):
        if isinstance(value, str) and not is_list(value):
            if BRACKETED.fullmatch(value.strip()):
                raise DataError(
                    f'{table.name}: column {column!r} has {value!r:.80}, which is not a list: write ["a", "b"], or one column per label'
                )
            marks |= set(MARKS) & set(value)
        elif isinstance(value, str | list):
            listed.update(map(str, _parsed(table, column, value, parsers[""])))
        for mark, names in by_mark.items():
            items = _parsed(table, column, value, parsers[mark])
            has_numbers = has_numbers or not all(isinstance(item, str) for item in items)
            names.update(item for item in items if isinstance(item, str))
            if len(names) > MOST_LABELS or any(len(name) > LONGEST_NAME for name in names):
                raise DataError(f"{table.name}: column {column!r} holds texts rather than labels: {_ways_out(table, table)}")
    names = by_mark[MARKS if marks else ""]
    first = tables[0]
    if not names and not has_numbers:
        raise DataError(f"{first.name} has no rows with a label in column {column!r}: it needs at least one")
    if has_numbers or all(NUMBER.fullmatch(name) for name in names):
        flag = (
            "" if column.lower() in NAMES else f" (only {first.column(column)}, if 0 and 1 say whether a text has this label)"
        )
        raise DataError(
            f"{first.name} has no emotions.txt: list the label names there, one per line, in index order{flag}, or "
            f"{_ways_out(first, first)}"
        )
    if len(marks) > 1 or (marks and column.lower() == "label"):
        raise DataError(
            f"{first.name}: column {column!r} has cells with {' and '.join(map(repr, sorted(marks)))}, which separate labels or belong "
            "to their names: list the names in emotions.txt, one per line"
        )
    _refuse_names_of_columns(tables, column)
    _refuse_doubtful(first.name, names)
    _refuse_joined(first.name, names, names - listed)
    return tuple(sorted(names)), MARKS if marks else ""


def _refuse_names_of_columns(tables: Sequence[Table], column: str) -> None:
    """Raises DataError if the first line of a file that is read without a header seems to be one: no other row has its label."""
    without = [table for table in tables if table.columns[:1] == ("0",)]
    firsts = [value for table in without for _, value in islice(_values([table], column), 1)]
    others = Counter(value for _, value in _values(without, column)) - Counter(firsts)
    seldom = 1 + sum(count == 1 for count in others.values())
    for table, value in zip(without, firsts, strict=True):
        if value not in others and (value.strip().lower() in NAMES or CHANCE * seldom <= others.total()):
            raise DataError(
                f"{table.name}, line 1: no other row has the label {value!r:.80}, which may be the name of the column: if the line "
                "names the columns, give their names (text_column, labels_column), otherwise list the label names in emotions.txt"
            )


def _refuse_doubtful(name: str, labels: Iterable[str]) -> None:
    """Names that are found in rows and may be a slip: two that look the same, and what programs write for a missing value."""
    seen: dict[str, str] = {}
    for label in sorted(labels):
        form = " ".join(INVISIBLE.sub("", unicodedata.normalize("NFKC", label)).casefold().split())
        if form in seen:
            raise DataError(
                f"{name}: labels {seen[form]!a} and {label!a} differ only in case, spaces, Unicode form or what is not visible, "
                "which are one label or two: write them alike, or list both in emotions.txt"
            )
        seen[form] = label
        if label in MISSING:
            raise DataError(
                f"{name}: {label!r} is the name of a label or a missing value: leave the cell empty, or list the names in emotions.txt"
            )


def _refuse_joined(name: str, labels: Set[str], from_cells: Iterable[str]) -> None:
    """Cells with several labels that are separated by something else than ``MARKS``, such as the # of doccano, or with a quote."""
    for cell in sorted(from_cells):
        if cell.startswith(("'", '"')):
            raise DataError(
                f"{name}: label {cell!r:.200} begins with a quote, which is part of the name or quotes it: remove the quotes, and "
                "blanks before them, or list the names in emotions.txt"
            )
        for mark in sorted({*JOINT.findall(cell), *re.findall(r"\s+", cell)}):
            parts = [part.strip() for part in cell.split(mark)]
            if len(parts) > 1 and all(part in labels or (part and mark.strip() in FOREIGN_MARKS) for part in parts):
                raise DataError(
                    f"{name}: {cell!r:.200} is one label, or {len(parts)} that are joined by {mark!r}: separate labels by a comma, or "
                    "list the names in emotions.txt if it is one"
                )


def _parsed(table: Table, column: str, value: Any, parse: Parser) -> list[Any]:
    """The items of a cell.

    Raises:
        DataError: they are neither names nor numbers.
    """
    try:
        return parse(value)
    except ValueError as error:
        raise DataError(f"{table.name}: column {column!r} {error}") from error


def _values(tables: Sequence[Table], column: str) -> Iterator[tuple[Table, Any]]:
    for table in tables:
        for _, cells in table.rows([_present(table, column, tables[0])]):
            yield table, plain(cells[0])


def _reading(tables: Sequence[Table], column: str, parse: Parser) -> Reading:
    """The only reading that fits the rows; if none does, the one whose errors say most.

    Raises:
        DataError: two readings fit every row.
    """
    left = [NUMBERS, BY_NAME, ONE_HOT]
    has_labels = False
    for table in tables:
        for position, (_, value) in enumerate(_values([table], column)):
            if len(left) == 1 and position >= LOOKED_AT:
                break
            if not (items := _parsed(table, column, value, parse)):
                continue
            has_labels = True
            fitting = [reading for reading in left if reading.fits(items, parse)]
            if not fitting:
                return BY_NAME if left == [BY_NAME] else NUMBERS
            left = fitting
    if not has_labels or (NUMBERS in left and _agree(left, list(parse.index))):
        return NUMBERS
    if len(left) > 1:
        raise DataError(
            f"{tables[0].name}: every row of column {column!r} can be read as {' or as '.join(reading.form for reading in left)}: "
            f"{_way_out(left)}"
        )
    return left[0]


def _agree(left: Sequence[Reading], names: Sequence[str]) -> bool:
    """Whether the readings give the same labels: number n is the name of label n, or a single label would never be set."""
    return len(names) == 1 or (ONE_HOT not in left and list(names) == [str(number) for number in range(len(names))])


def _way_out(left: Sequence[Reading]) -> str:
    if ONE_HOT in left:
        return "write label names, or one column per label, named as in emotions.txt"
    return "emotions.txt has numbers as names; give the labels other names, in both files"
