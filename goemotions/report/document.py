"""A document of sections, rendered as Markdown with SVG figures, as one HTML page with interactive figures, and as CSV tables."""

from __future__ import annotations

import csv
import functools
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2

from goemotions.data.text import as_cell, as_markdown
from goemotions.report import vega

Cell = str | float | int | None
Row = Sequence[Cell]

# A number with an optional sign, percent sign or unit, followed by an optional interval.
NUMBER = re.compile(r"[-+]?[\d.,]+(e-\d+)?(%| h| s| times)?( \(.*\)| to .*)?")


@dataclass(frozen=True)
class Table:
    columns: Sequence[str]
    rows: Sequence[Row]

    @functools.cached_property
    def right_aligned(self) -> list[bool]:
        """Whether each column is aligned to the right: all but the first whose values are no more often text than a number."""
        cells = list(zip(*self.rows, strict=True)) or [()] * len(self.columns)
        are_numbers = [[bool(NUMBER.fullmatch(format_cell(cell))) for cell in values if cell is not None] for values in cells]
        return [column > 0 and 2 * sum(values) >= len(values) for column, values in enumerate(are_numbers)]


@dataclass(frozen=True)
class Figure:
    """A chart with its caption; ``name`` is the stem of its file and must be unique in the document."""

    name: str
    caption: str
    chart: vega.Chart

    @property
    def spec(self) -> dict[str, Any]:
        return vega.spec(self.chart, self.caption)


@dataclass(frozen=True)
class Highlight:
    """A number to read first: the value with its unit, and what it is."""

    value: str
    caption: str


@dataclass(frozen=True)
class Section:
    """A heading, followed by text, highlights, code, figures, tables and private tables, in this order.

    Attributes:
        text, code: paragraphs of plain text, and command lines.
        private: tables with users' texts. They appear on the HTML page only, since the Markdown and the CSV files are published.
        level: level of the heading: 2, or 3 for a subsection.
    """

    title: str
    text: Sequence[str] = ()
    tables: Sequence[Table] = ()
    figures: Sequence[Figure] = ()
    code: Sequence[str] = ()
    private: Sequence[Table] = ()
    level: int = 2
    highlights: Sequence[Highlight] = ()


def format_cell(cell: Cell) -> str:
    if cell is None:
        return "–"
    if isinstance(cell, float):
        return f"{cell:.0e}" if 0 < abs(cell) < 1e-3 else f"{cell:.4f}"
    return f"{cell:,}" if isinstance(cell, int) else cell


def to_markdown(title: str, sections: Iterable[Section], figures: str = "figures") -> str:
    """The document as Markdown; ``figures`` is the folder of ``write_figures``, relative to the Markdown file."""
    return "\n".join(
        [f"# {as_markdown(title)}", "", *(line for section in sections for line in _markdown_lines(section, figures))]
    )


def _markdown_lines(section: Section, figures: str) -> Iterator[str]:
    yield from (f"{'#' * section.level} {as_markdown(section.title)}", "")
    for paragraph in section.text:
        yield from (as_markdown(paragraph), "")
    if section.highlights:
        yield from (f"- **{as_markdown(one.value)}**: {as_markdown(one.caption)}" for one in section.highlights)
        yield ""
    if section.code:
        yield from ("```sh", *section.code, "```", "")
    for figure in section.figures:
        caption = as_markdown(figure.caption)
        yield from (f"![{caption}]({figures}/{figure.name}.svg)", "", caption, "")
    for table in section.tables:
        yield f"| {' | '.join(map(as_markdown, table.columns))} |"
        yield f"|{'|'.join('---:' if right else '---' for right in table.right_aligned)}|"
        yield from (f"| {' | '.join(as_markdown(format_cell(cell)) for cell in row)} |" for row in table.rows)
        yield ""


def to_html(title: str, sections: Sequence[Section]) -> str:
    """The document as one page without references to other files: KFP shows HTML artifacts in a sandboxed frame."""
    return _environment().get_template("report.html").render(title=title, sections=sections, vega=vega)


@functools.cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("goemotions.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["cell"] = format_cell
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":"), "allow_nan": False}
    return environment


def write_figures(sections: Iterable[Section], folder: Path) -> list[Path]:
    """Writes each figure as ``<name>.svg`` into a folder, and returns the paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for figure in (figure for section in sections for figure in section.figures):
        paths.append(folder / f"{figure.name}.svg")
        paths[-1].write_text(vega.to_svg(figure.chart, figure.caption), encoding="utf-8")
    return paths


def write_tables(sections: Iterable[Section], folder: Path) -> list[Path]:
    """Writes each table that is not private as ``<section>-<first column>.csv``, unrounded, and returns the paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for section in sections:
        for table in section.tables:
            stem = re.sub(r"[^a-z0-9]+", "-", f"{section.title} {table.columns[0]}".lower()).strip("-")
            paths.append(folder / f"{stem}.csv")
            with paths[-1].open("w", newline="", encoding="utf-8") as file:
                csv.writer(file).writerows(map(as_cell, row) for row in (table.columns, *table.rows))
    return paths
