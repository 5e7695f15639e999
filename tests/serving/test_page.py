"""The predictor's page in a real browser: by keyboard, as a screen reader hears it, and with nothing from outside."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from goemotions.registry import registration
from goemotions.registry.registration import CandidateArtifacts
from tests.support import browser
from tests.support.browser import Tab
from tests.support.servers import Server, serving


@pytest.fixture(scope="module")
def server(candidate: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("paged")
    facts = {"profile": "minilm", "run_id": "</script><script>alert(1)</script>", "dataset_digest": "d"}
    registration.assemble(folder / "bundle", "cpu", CandidateArtifacts.below(candidate, "cpu"), facts)
    with serving(folder / "bundle", folder / "serve.log") as running:
        yield running


@pytest.fixture(scope="module")
def tab(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    with browser.opened(f"http://127.0.0.1:{server.port}/", tmp_path_factory.mktemp("profile"), width=400) as opened:
        yield opened


def ask(tab: Tab, text: str) -> str:
    """The answer to a comment that is typed and sent with Enter."""
    tab.run("document.getElementById('answer').textContent = ''; document.getElementById('text').select()")
    tab.call("Input.insertText", text=text)
    tab.press("Enter", "\r")
    return str(tab.wait_for("document.getElementById('answer').textContent"))


def test_a_comment_typed_and_sent_by_keyboard_is_answered(tab: Tab, server: Server) -> None:
    assert tab.run("document.activeElement.id") == "text"
    answer = ask(tab, "a quiet balloon on the lake")
    _, expected = server.predict(instances=["a quiet balloon on the lake"], parameters={"all_scores": True})
    labels = expected["predictions"][0]["labels"]
    assert answer == (f"Chosen: {', '.join(labels)}." if labels else "No emotion reaches its threshold.")
    rows = tab.run(
        "[...document.querySelectorAll('#rows tr')].map(row => [row.cells[0].textContent, row.cells[2].textContent])"
    )
    assert rows == [[label, f"{score:.2f}"] for label, score in expected["predictions"][0]["scores"].items()]
    bold = tab.run("[...document.querySelectorAll('#rows tr.chosen')].map(row => row.cells[0].textContent)")
    assert bold == labels


def test_a_long_comment_is_said_to_be_cut(tab: Tab) -> None:
    assert ask(tab, "storm " * 200).endswith("The comment was cut: it is longer than the model reads.")


def test_a_screen_reader_hears_the_field_the_answer_and_the_table(tab: Tab) -> None:
    ask(tab, "lake")
    nodes = tab.call("Accessibility.getFullAXTree")["nodes"]
    heard = {(node.get("role", {}).get("value"), node.get("name", {}).get("value", "")) for node in nodes}
    roles = {role for role, _ in heard}
    assert ("textbox", "Comment") in heard
    assert ("button", "Show emotions") in heard
    assert ("rowheader", "calm") in heard
    assert ("columnheader", "Probability") in heard
    assert {"main", "heading", "status", "table"} <= roles
    assert any("its threshold of" in name or "never chosen" in name for role, name in heard if role == "StaticText")


def test_nothing_comes_from_outside_and_nothing_fails(tab: Tab, server: Server) -> None:
    ask(tab, "lake")
    asked = [event["params"]["request"]["url"] for event in tab.events if event["method"] == "Network.requestWillBeSent"]
    assert {url.split("/")[2] for url in asked if url.startswith("http")} == {f"127.0.0.1:{server.port}"}
    said = [
        event
        for event in tab.events
        if event["method"] in ("Log.entryAdded", "Runtime.exceptionThrown", "Page.javascriptDialogOpening")
    ]
    assert json.dumps(said) == "[]"


def test_nothing_is_wider_than_a_phone(tab: Tab) -> None:
    ask(tab, "lake")
    assert tab.run("document.documentElement.scrollWidth - document.documentElement.clientWidth") <= 0


def test_the_page_allows_its_own_script_alone(server: Server) -> None:
    status, headers, body = server.ask("GET", "/")
    assert status == 200
    assert headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in headers["content-security-policy"]
    assert "unsafe" not in headers["content-security-policy"]
    assert body.count(b"<script>") == 1


def test_a_server_that_fails_is_reported(tab: Tab, server: Server) -> Any:
    server.process.terminate()
    server.process.wait(timeout=30)
    assert ask(tab, "lake").startswith("No answer: ")
