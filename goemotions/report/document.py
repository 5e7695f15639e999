"""A document of sections, rendered as Markdown with SVG figures and as one HTML page with interactive ones."""

from __future__ import annotations

import csv
import functools
import html
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import altair as alt
import vl_convert

Cell = str | float | int | None
Row = Sequence[Cell]

VEGA_LITE = ".".join(alt.SCHEMA_VERSION.removeprefix("v").split(".")[:2])

# Okabe and Ito's colours, told apart with every common colour blindness; those too light for a line come last.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#444444", "#E69F00", "#56B4E9")
INK = "#1c2230"
SVG_WIDTH = 720
# A number with its sign, share or hours, alone or with its interval.
FIGURE = re.compile(r"[-+]?[\d.,]+(e-\d+)?(%| h)?( \(.*\)| to .*)?")
LEGEND_COLUMN = 150

LEGEND = {
    "orient": "top",
    "columns": SVG_WIDTH // LEGEND_COLUMN,
    "labelLimit": 240,
    "titleLimit": 240,
    "symbolOpacity": 1,
}
TEXT = {"labelFontSize": 12, "titleFontSize": 13, "titleFontWeight": "normal", "labelColor": INK, "titleColor": INK}

CONFIG = {
    "font": "sans-serif",
    "background": "white",
    "range": {"category": PALETTE},
    "axis": {**TEXT, "gridColor": "#e3e7ee", "domainColor": "#8a94a8", "tickColor": "#8a94a8", "labelLimit": 160},
    "legend": {**TEXT, **LEGEND},
    "axisQuantitative": {"tickCount": 6},
    "view": {"stroke": None},
    "line": {"strokeWidth": 2},
    "text": {"color": INK, "fontSize": 12},
}

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #1c2230; background: #fff; margin: 0 auto; padding: 1rem; max-width: 76rem;
  overflow-wrap: anywhere; }
h1, h2, h3 { line-height: 1.2; } h2 { margin-top: 2.5rem; } h3 { margin-top: 2rem; } p { max-width: 48rem; }
a { color: #005a8c; } nav ul { padding: 0; list-style: none; columns: 14rem; } nav .level-3 { padding-left: 1rem; }
.wide, pre { overflow-x: auto; margin: 0 0 1.5rem; } pre { padding: .75rem; background: #f3f5f9; font-size: .875rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .75rem; text-align: right; border-bottom: 1px solid #d9dee8; white-space: nowrap; }
.text { text-align: left; } th { border-bottom: 2px solid #8a94a8; }
figure { margin: 0 0 2rem; max-width: 60rem; } figcaption { color: #4a5468; font-size: .9375rem; }
figure .chart { display: block; width: 100%; } .vega-bind { margin-top: .25rem; }
.vega-bind-name { margin-right: .5rem; } .vega-bind select { font: inherit; }
"""

# Browsers resolve "#..." inside an <iframe srcdoc> against the outer page, so the links scroll by themselves.
LINKS = """
document.querySelector("nav").addEventListener("click", event => {
  const target = event.target.hash && document.getElementById(event.target.hash.slice(1));
  if (target) { event.preventDefault(); target.scrollIntoView(); target.focus({ preventScroll: true }); }
});
"""

# A legend does not wrap by itself: it gets as many columns as there is room for.
DRAW = """
for (const chart of document.querySelectorAll(".chart")) {
  const columns = Math.max(1, Math.floor(chart.clientWidth / LEGEND_COLUMN));
  const config = { ...CONFIG, legend: { ...CONFIG.legend, columns } };
  vegaEmbed(chart, JSON.parse(chart.nextElementSibling.textContent), { actions: false, renderer: "svg", config });
}
"""


@dataclass(frozen=True)
class Table:
    columns: Sequence[str]
    rows: Sequence[Row]


@dataclass(frozen=True)
class Figure:
    """A chart with its caption; ``name`` is the stem of its file and must be unique in the document."""

    name: str
    caption: str
    chart: alt.Chart | alt.LayerChart


@dataclass(frozen=True)
class Section:
    """A heading, and below it text, code, figures, tables and private tables, in this order.

    ``text`` holds paragraphs of plain text and ``code`` command lines. ``private`` tables hold users' texts: they are on
    the HTML page and never in the Markdown, which is published. ``level`` is that of the heading: 2, or 3 for a subsection.
    """

    title: str
    text: Sequence[str] = ()
    tables: Sequence[Table] = ()
    figures: Sequence[Figure] = ()
    code: Sequence[str] = ()
    private: Sequence[Table] = ()
    level: int = 2


def to_markdown(title: str, sections: Iterable[Section], figures: str = "figures") -> str:
    """The document as Markdown; ``figures`` is the folder of ``write_figures``, relative to the Markdown file."""
    lines = [f"# {_markdown(title)}", ""]
    for section in sections:
        lines += [f"{'#' * section.level} {_markdown(section.title)}", ""]
        for paragraph in section.text:
            lines += [_markdown(paragraph), ""]
        if section.code:
            lines += ["```sh", *section.code, "```", ""]
        for figure in section.figures:
            caption = _markdown(figure.caption)
            # The image's own text shows only where the image does not.
            lines += [f"![{caption}]({figures}/{figure.name}.svg)", "", caption, ""]
        for table in section.tables:
            lines += [*_markdown_table(table), ""]
    return "\n".join(lines)


def _markdown_table(table: Table) -> list[str]:
    return [
        f"| {' | '.join(map(_markdown, table.columns))} |",
        f"|{'|'.join(_alignment(table, column) for column in range(len(table.columns)))}|",
        *(f"| {' | '.join(_markdown(_shown(cell)) for cell in row)} |" for row in table.rows),
    ]


def _alignment(table: Table, column: int) -> str:
    """To the left where every cell is text; figures, also those with an interval or a sign, to the right."""
    figures = any(FIGURE.fullmatch(_shown(row[column])) for row in table.rows)
    return "---:" if column and figures else "---"


def _markdown(text: str) -> str:
    """Plain text on one line: what would end a cell or a link's text, or be taken for HTML, is escaped."""
    escaped = html.escape(text, quote=False)
    for character in "|[]":
        escaped = escaped.replace(character, f"\\{character}")
    return " ".join(escaped.split())


def write_figures(sections: Iterable[Section], folder: Path) -> list[Path]:
    """Writes each figure as ``<name>.svg`` into a folder, and returns the paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for figure in (figure for section in sections for figure in section.figures):
        spec = {**_spec(figure), "width": SVG_WIDTH}
        svg = vl_convert.vegalite_to_svg(spec, vl_version=VEGA_LITE, config=CONFIG, allowed_base_urls=[])
        paths.append(folder / f"{figure.name}.svg")
        paths[-1].write_text(svg, encoding="utf-8")
    return paths


def write_tables(sections: Iterable[Section], folder: Path) -> list[Path]:
    """Writes each table as ``<section>-<first column>.csv`` into a folder, unrounded, and returns the paths; none that is private."""
    folder.mkdir(parents=True, exist_ok=True)
    paths: list[Path] = []
    for section in sections:
        for table in section.tables:
            stem = re.sub(r"[^a-z0-9]+", "-", f"{section.title} {table.columns[0]}".lower()).strip("-")
            paths.append(folder / f"{stem}.csv")
            with paths[-1].open("w", newline="", encoding="utf-8") as file:
                csv.writer(file).writerows([table.columns, *table.rows])
    return paths


def _spec(figure: Figure) -> dict[str, Any]:
    return {**figure.chart.to_dict(), "autosize": {"type": "fit-x", "contains": "padding"}, "description": figure.caption}


def to_html(title: str, sections: Sequence[Section]) -> str:
    """The document as one page that fetches nothing, neither scripts nor styles nor data."""
    links = "".join(
        f'<li class="level-{section.level}"><a href="#section-{number}">{html.escape(section.title)}</a></li>\n'
        for number, section in enumerate(sections, start=1)
    )
    body = "\n".join(_html_section(section, f"section-{number}") for number, section in enumerate(sections, start=1))
    scripts = [LINKS]
    if any(section.figures for section in sections):
        scripts += [_vega(), f"const LEGEND_COLUMN = {LEGEND_COLUMN}, CONFIG = {_json(CONFIG)};{DRAW}"]
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{STYLE}</style></head>\n'
        f'<body><h1>{html.escape(title)}</h1>\n<nav aria-label="Contents"><ul>\n{links}</ul></nav>\n{body}\n'
        f"{chr(10).join(f'<script>{script}</script>' for script in scripts)}</body></html>\n"
    )


@functools.cache
def _vega() -> str:
    """Vega, Vega-Lite and Vega-Embed as one script; about 0.9 MB."""
    return str(vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;", vl_version=VEGA_LITE))


def _html_section(section: Section, anchor: str) -> str:
    heading = f"h{section.level}"
    code = html.escape("\n".join(section.code))
    return "\n".join(
        [
            f'<{heading} id="{anchor}" tabindex="-1">{html.escape(section.title)}</{heading}>',
            *(f"<p>{html.escape(paragraph)}</p>" for paragraph in section.text),
            *([f'<pre tabindex="0"><code>{code}</code></pre>'] if section.code else []),
            *map(_html_figure, section.figures),
            *map(_html_table, (*section.tables, *section.private)),
        ]
    )


def _html_figure(figure: Figure) -> str:
    caption = html.escape(figure.caption)
    return (
        f'<figure id="{html.escape(figure.name)}"><div class="chart" role="group" aria-label="{caption}"></div>'
        f'<script type="application/json">{_json(_spec(figure))}</script><figcaption>{caption}</figcaption></figure>'
    )


def _json(value: Any) -> str:
    """JSON that can stand in a script element, which the first ``</script`` would end."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")


def _html_table(table: Table) -> str:
    head = "".join(
        f'<th scope="col"{" class=text" if _alignment(table, column) == "---" else ""}>{html.escape(name)}</th>'
        for column, name in enumerate(table.columns)
    )
    rows = "".join(f"<tr>{''.join(map(_html_cell, row))}</tr>\n" for row in table.rows)
    return f'<div class="wide" tabindex="0"><table><thead><tr>{head}</tr></thead><tbody>\n{rows}</tbody></table></div>'


def _html_cell(cell: Cell) -> str:
    return f"<td{' class=text' if isinstance(cell, str) else ''}>{html.escape(_shown(cell))}</td>"


def _shown(cell: Cell) -> str:
    if cell is None:
        return "–"
    if isinstance(cell, float):
        return f"{cell:.0e}" if 0 < abs(cell) < 1e-3 else f"{cell:.4f}"
    return f"{cell:,}" if isinstance(cell, int) else str(cell)
