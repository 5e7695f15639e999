"""The rendering of a document: text is escaped, every referenced figure exists, and the page loads nothing from elsewhere."""

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import altair as alt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from goemotions.report import document
from goemotions.report.document import Figure, Section, Table, to_html, to_markdown, write_figures

bounded = settings(max_examples=50, deadline=None)

MARKUP = [
    "<script>alert(1)</script>",
    "</script><script>alert(1)</script>",
    "</td></table>",
    "a & b",
    '"><img src=x>',
    "&lt;b&gt;",
    "]]>",
    "<!--<script>",
]


class Page(HTMLParser):
    """A page's tables as lists of rows of text, its headings and paragraphs, its tags, links and scripts."""

    VOID = ("meta",)
    TEXTS = ("p", "h1", "h2", "h3", "figcaption", "code", "a")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tables: list[list[list[str]]] = []
        self.texts: list[tuple[str, str]] = []
        self.scripts: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in self.VOID:
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
        elif tag == "script":
            self.scripts.append("")
        elif tag in self.TEXTS:
            self.texts.append((tag, ""))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, text: str) -> None:
        tag = self.open[-1] if self.open else ""
        if tag in ("td", "th"):
            self.tables[-1][-1][-1] += text
        elif tag == "script":
            self.scripts[-1] += text
        elif tag in self.TEXTS:
            self.texts[-1] = (tag, self.texts[-1][1] + text)

    def values(self, attribute: str) -> list[str | None]:
        return [value for name, value in self.attributes if name == attribute]


def chart(label: str = "joy") -> alt.Chart:
    values = alt.InlineData(values=[{"label": label, "n": 1}])
    return alt.Chart(values).mark_bar().encode(x="n:Q", y="label:N").properties(width="container")


def figures(*names: str, caption: str = "What it shows", label: str = "joy") -> Section:
    return Section("Figures", figures=[Figure(name, caption, chart(label)) for name in names])


printable = st.text(st.characters(exclude_categories=["Cs", "Cc", "Zl", "Zp"]), max_size=20)


@bounded
@given(printable, printable, printable)
def test_text_on_the_page_is_shown_as_text(title: str, paragraph: str, cell: str) -> None:
    page = Page(to_html(title, [Section(title, (paragraph,), (Table((title, "n"), [(cell, 1)]),))]))
    assert page.tables == [[[title, "n"], [cell, "1"]]]
    assert page.texts == [("h1", title), ("a", title), ("h2", title), ("p", paragraph)]


@pytest.mark.parametrize("text", MARKUP)
def test_markup_in_the_data_is_escaped(text: str) -> None:
    table = Table((text,), [(text,)])
    with_markup = Section(text, (text,), (table,), [Figure("chart", text, chart(text))], (text,), (table,))
    plain = Section(
        "t", ("t",), (Table(("t",), [("t",)]),), [Figure("chart", "t", chart())], ("t",), (Table(("t",), [("t",)]),)
    )
    page, expected = (Page(to_html(title, [section])) for title, section in ((text, with_markup), ("t", plain)))
    assert page.tags == expected.tags
    assert [name for name, _ in page.attributes] == [name for name, _ in expected.attributes]
    assert page.tables == [[[text], [text]]] * 2
    assert dict(page.texts) == dict.fromkeys(("h1", "a", "h2", "p", "code", "figcaption"), text)


@pytest.mark.parametrize("name", ["joy|grief", "two\nlines", "<b>bold</b>", "|"])
def test_a_label_cannot_break_a_markdown_table(name: str, markdown_tables: Any) -> None:
    text = to_markdown("t", [Section("s", (), (Table(("label", "n"), [(name, 1), ("plain", 2)]),))])
    (table,) = markdown_tables(text)
    assert [len(row) for row in table] == [2, 2, 2]
    assert [row[1] for row in table] == ["n", "1", "2"]
    assert "<b>" not in text


def test_a_caption_cannot_end_its_image() -> None:
    text = to_markdown("t", [figures("chart", caption="joy](elsewhere) <script> | x")])
    assert "![joy\\](elsewhere) &lt;script&gt; \\| x](figures/chart.svg)" in text
    assert "<script>" not in text


@pytest.mark.parametrize(
    ("cell", "text"),
    [
        (None, "–"),
        (0.5, "0.5000"),
        (0.0, "0.0000"),
        (0.00002, "2e-05"),
        (-0.00002, "-2e-05"),
        (1234567, "1,234,567"),
        ("7", "7"),
    ],
)
def test_cells_are_shown_the_same_in_both(cell: Any, text: str, markdown_tables: Any) -> None:
    sections = [Section("s", (), (Table(("a", "b"), [("x", cell)]),))]
    assert markdown_tables(to_markdown("t", sections))[0][1] == ["x", text]
    assert Page(to_html("t", sections)).tables[0][1] == ["x", text]


def test_private_tables_are_on_the_page_only() -> None:
    section = Section("Errors", tables=[Table(("label",), [("joy",)])], private=[Table(("text",), [("what a user wrote",)])])
    assert "what a user wrote" not in to_markdown("t", [section])
    assert Page(to_html("t", [section])).tables == [[["label"], ["joy"]], [["text"], ["what a user wrote"]]]


def test_the_markdown_references_the_files_written(tmp_path: Path) -> None:
    sections = [figures("one", "two"), Section("Text alone"), figures("three")]
    paths = write_figures(sections, tmp_path / "report" / "figures")
    referenced = re.findall(r"!\[.*?\]\((.*?)\)", to_markdown("t", sections, "report/figures"))
    assert (
        sorted(tmp_path / name for name in referenced) == sorted(paths) == sorted((tmp_path / "report" / "figures").iterdir())
    )


def test_every_table_but_a_private_one_is_written_as_csv(tmp_path: Path) -> None:
    shown, hidden = Table(("label", "F1"), [["joy", 0.123456]]), Table(("row", "text"), [["r1", "secret"]])
    (path,) = document.write_tables([Section("Per label", tables=[shown], private=[hidden])], tmp_path)
    assert path.name == "per-label-label.csv"
    assert path.read_text().splitlines() == ["label,F1", "joy,0.123456"]
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_the_svg_is_the_same_each_time(tmp_path: Path) -> None:
    first, second = (write_figures([figures("chart")], tmp_path / name)[0].read_text("utf-8") for name in ("a", "b"))
    assert first == second
    assert ">joy<" in first


def test_the_page_loads_nothing_from_elsewhere() -> None:
    page = Page(to_html("t", [figures("one", "two")]))
    assert not {"link", "img", "iframe", "object"} & set(page.tags)
    assert page.values("src") == []
    assert all(str(link).startswith("#") for link in page.values("href"))
    assert sum("vegaEmbed" in script and len(script) > 100_000 for script in page.scripts) == 1


def test_a_page_without_figures_has_no_vega() -> None:
    assert len(to_html("t", [Section("s", ("text",))])) < 10_000


def test_the_contents_link_to_the_sections() -> None:
    page = Page(to_html("t", [Section("First"), Section("Second"), Section("Part of the second", level=3)]))
    links = [str(link).removeprefix("#") for link in page.values("href")]
    assert len(links) == 3
    assert set(links) <= set(page.values("id"))
    assert [text for tag, text in page.texts if tag in ("h2", "h3")] == ["First", "Second", "Part of the second"]


def test_code_is_a_block_in_both() -> None:
    section = Section("s", code=("make demo", "ls <folder> | head"))
    assert "```sh\nmake demo\nls <folder> | head\n```" in to_markdown("t", [section])
    assert ("code", "make demo\nls <folder> | head") in Page(to_html("t", [section])).texts


def test_figures_have_a_caption_and_a_description() -> None:
    page = Page(to_html("t", [figures("chart", caption="F1 per label")]))
    assert ("figcaption", "F1 per label") in page.texts
    assert "F1 per label" in page.values("aria-label")


def test_columns_of_numbers_are_aligned_to_the_right() -> None:
    rows = [["1", 0.5, "+0.1", "0.3 (0.2 to 0.4)", None, "not run"], ["2", None, "–", "0.1 (0.0 to 0.2)", None, "no"]]
    assert Table(("a", "b", "c", "d", "e", "f"), rows).right_aligned == [False, True, True, True, True, False]
    # As numbers, so that a click sorts 9 s before 10 s.
    assert Table(("step", "duration"), [["train", "1,234 s"], ["export", "9 s"]]).right_aligned == [False, True]
    rows = [["BERT", "0.5"], ["RoBERTa", "per label"], ["ModernBERT", "not stated"]]
    assert Table(("published", "thresholds"), rows).right_aligned == [False, False]
    assert Table(("a", "b"), []).right_aligned == [False, True]
