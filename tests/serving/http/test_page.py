"""The predictor's page in a real browser: keyboard, accessibility tree, and no request to another host."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support import browser, bundles
from tests.support.browser import Tab
from tests.support.servers import Server, serving


@pytest.fixture(scope="module")
def server(candidate: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("paged")
    bundles.assemble(folder / "bundle", candidate, run_id="</script><script>alert(1)</script>")
    with serving(folder / "bundle", folder / "serve.log") as running:
        yield running


@pytest.fixture(scope="module")
def tab(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    with browser.opened(f"http://127.0.0.1:{server.port}/", tmp_path_factory.mktemp("profile"), width=400) as opened:
        yield opened


def send(tab: Tab, text: str) -> str:
    """The result for a comment that is typed and sent with Enter."""
    tab.run("document.getElementById('result').textContent = ''; document.getElementById('text').select()")
    tab.call("Input.insertText", text=text)
    tab.press("Enter", "\r")
    return str(tab.wait_for("document.getElementById('result').textContent"))


def test_a_comment_is_typed_and_sent_by_keyboard(tab: Tab, server: Server) -> None:
    assert tab.run("document.activeElement.id") == "text"
    result = send(tab, "a quiet balloon on the lake")
    _, expected = server.predict(instances=["a quiet balloon on the lake"], parameters={"all_scores": True})
    labels = expected["predictions"][0]["labels"]
    assert result == (f"Chosen: {', '.join(labels)}." if labels else "No emotion reaches its threshold.")
    rows = tab.run(
        "[...document.querySelectorAll('#rows tr')].map(row => [row.cells[0].textContent, row.cells[2].textContent])"
    )
    assert rows == [[label, f"{score:.2f}"] for label, score in expected["predictions"][0]["scores"].items()]
    bold = tab.run("[...document.querySelectorAll('#rows tr.chosen')].map(row => row.cells[0].textContent)")
    assert bold == labels


def test_the_page_shows_in_text_what_each_word_contributes_to_each_chosen_label(tab: Tab, server: Server) -> None:
    text = "\U0001f600 we saw the balloon, a lake"
    send(tab, text)
    tab.wait_for("!document.getElementById('explanation').hidden")
    _, response = server.predict("explain", instances=[text], parameters={"removals": 31})
    (explained,) = response["explanations"]
    assert tab.run("[...document.querySelectorAll('#labels h3')].map(one => one.textContent)") == list(
        explained["contributions"]
    )
    shown = tab.run("[...document.querySelectorAll('#labels .words')].map(one => one.textContent)")
    with_words = [values for values in explained["contributions"].values() if max(map(abs, values)) >= 0.005]
    for line, values in zip(shown, with_words, strict=True):
        points = [f"{value:+.0%}".rstrip("%").replace("-", "\u2212") if abs(value) >= 0.005 else "\xa0" for value in values]
        pieces = [f"{word['text']}{point}" for word, point in zip(explained["words"], points, strict=True)]
        assert line == "{} {} {} {} {}{} {} {}".format(*pieces)


def test_the_page_says_what_is_stored(tab: Tab, bundle: Path, tmp_path: Path) -> None:
    assert tab.run("document.getElementById('model-info').textContent").endswith("Nothing you type is stored.")
    with serving(bundle, tmp_path / "serve.log", "--log-share", "0.25", "--log-folder", str(tmp_path / "log")) as logging:
        assert b'"log_share": 0.25' in logging.request("GET", "/")[2]


def test_the_page_says_that_a_long_comment_was_cut(tab: Tab) -> None:
    assert send(tab, "storm " * 200).endswith("The comment was cut: it is longer than the model's maximum length.")


def test_the_accessibility_tree_has_the_field_the_result_and_the_table(tab: Tab) -> None:
    send(tab, "lake")
    nodes = tab.call("Accessibility.getFullAXTree")["nodes"]
    accessible = {(node.get("role", {}).get("value"), node.get("name", {}).get("value", "")) for node in nodes}
    roles = {role for role, _ in accessible}
    assert ("textbox", "Comment") in accessible
    assert ("button", "Show emotions") in accessible
    assert ("rowheader", "calm") in accessible
    assert ("columnheader", "Probability") in accessible
    assert {"main", "heading", "status", "table"} <= roles
    assert any("its threshold of" in name or "never chosen" in name for role, name in accessible if role == "StaticText")


def test_the_page_loads_nothing_from_another_host_and_logs_no_error(tab: Tab, server: Server) -> None:
    send(tab, "lake")
    requested = [event["params"]["request"]["url"] for event in tab.events if event["method"] == "Network.requestWillBeSent"]
    assert {url.split("/")[2] for url in requested if url.startswith("http")} == {f"127.0.0.1:{server.port}"}
    reported = [
        event
        for event in tab.events
        if event["method"] in ("Log.entryAdded", "Runtime.exceptionThrown", "Page.javascriptDialogOpening")
    ]
    assert json.dumps(reported) == "[]"


def test_the_page_fits_the_width_of_a_phone(tab: Tab) -> None:
    send(tab, "lake")
    assert tab.run("document.documentElement.scrollWidth - document.documentElement.clientWidth") <= 0


def test_the_page_allows_only_its_own_script(server: Server) -> None:
    status, headers, body = server.request("GET", "/")
    assert status == 200
    assert headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in headers["content-security-policy"]
    assert "unsafe" not in headers["content-security-policy"]
    assert body.count(b"<script") == 2
    assert b'<script src="page.js">' in body


def test_a_server_that_fails_is_reported(tab: Tab, server: Server) -> Any:
    server.process.terminate()
    server.process.wait(timeout=30)
    assert send(tab, "lake").startswith("The request failed: ")
