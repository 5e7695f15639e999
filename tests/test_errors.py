"""Messages of named errors: bounded, and without control characters, whatever value of a file, server or client they hold."""

from __future__ import annotations

import csv
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from goemotions import addresses, errors
from goemotions.data.taxonomy import Taxonomy
from goemotions.data.text import as_cell, as_markdown
from goemotions.errors import RequestError, WorkflowError
from goemotions.evaluation import tables
from goemotions.metrics import thresholds
from goemotions.models import engines, profiles
from goemotions.registry import trust
from goemotions.registry.bundle import BundleLocation
from goemotions.registry.model_registry import Version
from goemotions.storage import manifest

LONG = "x" * 2**20
CLASSES = [one for one in vars(errors).values() if isinstance(one, type) and issubclass(one, WorkflowError)]


@pytest.mark.fault("message-unbounded")
@pytest.mark.parametrize("kind", CLASSES)
def test_every_message_is_bounded_and_ends_with_what_to_do(kind: type[WorkflowError]) -> None:
    error = kind(f"begin {LONG} \x1b[2J\u202e\x00 end: do this")
    assert len(str(error)) <= errors.MAX_CHARACTERS
    assert str(error).startswith("begin x")
    assert str(error).endswith("end: do this")
    assert not set(str(error)) & {"\x1b", "\u202e", "\x00"}
    assert str(kind("a\nb\tc")) == "a b\tc"


def test_errors_cross_processes() -> None:
    error = pickle.loads(pickle.dumps(RequestError(LONG, 413)))
    assert len(str(error)) <= errors.MAX_CHARACTERS


MESSAGES: dict[str, Callable[[], Any]] = {
    "location": lambda: addresses.location(f"gs://{LONG}"),
    "source": lambda: addresses.source(f"hub:{LONG}@"),
    "reference": lambda: addresses.reference(f"runs:/{LONG}/1"),
    "server": lambda: addresses.server(f"host {LONG}", "URL"),
    "image": lambda: addresses.image_prefix(f"https://{LONG} "),
    "bundle": lambda: BundleLocation.parse(LONG),
    "version": lambda: trust.require_source(Version(LONG, LONG, LONG, {"variant": LONG}, LONG)),
    "manifest": lambda: manifest.parse(b'{"files": {"../%b": {"size": 1, "sha256": ""}}}' % LONG.encode(), LONG),
    "engine": lambda: engines.load(LONG, None, None),  # type: ignore[arg-type]
    "profile": lambda: profiles.get(LONG),
    "labels": lambda: Taxonomy((LONG, LONG)),
    "thresholds": lambda: thresholds.parse(LONG.encode(), LONG),
}


@pytest.mark.fault("message-unbounded")
@pytest.mark.parametrize("name", MESSAGES)
def test_a_message_does_not_echo_a_megabyte(name: str) -> None:
    with pytest.raises(WorkflowError) as raised:
        MESSAGES[name]()
    assert len(str(raised.value)) <= errors.MAX_CHARACTERS


TEXTS = {
    "a|b": r"a\|b",
    r"a\|b": r"a\\\|b",
    "[x](http://evil)": r"\[x\](http://evil)",
    r"\[x\](http://evil)": r"\\\[x\\\](http://evil)",
    "![x](http://evil)": r"!\[x\](http://evil)",
    "<script>alert(1)</script>": "&lt;script&gt;alert(1)&lt;/script&gt;",
    "one\n\n# two": "one # two",
    "one\r\n| two |": r"one \| two \|",
    "[x]: http://evil": r"\[x\]: http://evil",
    "&lt;b&gt;": "&amp;lt;b&amp;gt;",
}


@pytest.mark.fault("message-unbounded")
@pytest.mark.parametrize("text", TEXTS)
def test_a_text_of_the_data_stays_text_in_markdown(text: str) -> None:
    assert as_markdown(text) == TEXTS[text]


FORMULAS = ['=HYPERLINK("http://evil","x")', "+1+1", "-1+cmd|' /C calc'!A0", "@SUM(1)", "\t=1", "\r=1", "\uff1d1"]


@pytest.mark.fault("message-unbounded")
def test_no_spreadsheet_computes_a_text_of_the_data(tmp_path: Path) -> None:
    assert [as_cell(text) for text in FORMULAS] == [f"'{text}" for text in FORMULAS]
    for value in ("calm", "a=b", "", "-0.5", "+1", "-1e-05", -0.5, None):
        assert as_cell(value) == value
    tables.write_csv(tmp_path / "a.csv", [{"label": text, "=f1": -0.5} for text in FORMULAS])
    with (tmp_path / "a.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))
    assert rows == [["label", "'=f1"], *([f"'{text}", "-0.5"] for text in FORMULAS)]
