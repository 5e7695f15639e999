"""The report's HTML page in Chromium, in a sandboxed frame as in the Kubeflow UI, as wide as a phone and as a screen."""

import html
import json
import queue
import subprocess
from typing import Any

import pytest

from tests.support import browser, http_server

WIDTHS = (400, 1400)
SECONDS = 120
# The frame posts to the page around it: the number of marks per chart, and how far its content is wider than the frame.
PROBE = """
<script>
const errors = [];
addEventListener("error", event => errors.push(event.message));
addEventListener("unhandledrejection", event => errors.push(String(event.reason)));
console.error = (...parts) => errors.push(parts.join(" "));
console.warn = console.error;
const drawn = () => [...document.querySelectorAll(".chart")].map(
  chart => chart.querySelectorAll("svg .mark-symbol path, svg .mark-rect path, svg .mark-line path").length);
const started = Date.now();
const report = setInterval(() => {
  const charts = drawn();
  if (document.readyState !== "complete" || (Math.min(...charts) === 0 && Date.now() - started < 60000)) return;
  clearInterval(report);
  // As with a long name of a label.
  document.querySelector("select").add(new Option("a name of a label ".repeat(12)));
  const wider = document.documentElement.scrollWidth - document.documentElement.clientWidth;
  const cut = [...document.querySelectorAll(".chart svg")].filter(svg => svg.getBoundingClientRect().right > innerWidth + 1).length;
  const header = [...document.querySelectorAll("th")].find(th => th.textContent === "precision");
  const column = () => [...header.closest("table").tBodies[0].rows].map(row => row.cells[header.cellIndex].textContent);
  const sorted = [1, 2].map(() => (header.firstChild.click(), [header.getAttribute("aria-sort"), ...column()]));
  parent.postMessage({ width: innerWidth, charts, wider, cut, errors, sorted }, "*");
}, 100);
</script>
"""
AROUND = """<!doctype html><title>frames</title>%s<script>
const reports = [];
addEventListener("message", event => {
  reports.push(event.data);
  if (reports.length === %d) fetch("/reports", { method: "POST", body: JSON.stringify(reports) });
});
</script>"""


class Frames(http_server.Handler):
    """Serves the page with the frames, and receives their reports."""

    page = ""
    reports: queue.Queue[Any]

    def do_GET(self) -> None:
        status, content = (200, self.page.encode()) if self.path == "/" else (404, b"")
        self.send(status, content, {"Content-Type": "text/html; charset=utf-8"})

    def do_POST(self) -> None:
        self.reports.put(json.loads(self.body()))
        self.send(200)


@pytest.fixture(scope="module")
def frames(page: str, tmp_path_factory: pytest.TempPathFactory) -> dict[int, dict[str, Any]]:
    """What the page in a frame of each width reports, by the width."""
    chromium = browser.chromium()
    probed = html.escape(page.replace("<head>", f"<head>{PROBE}", 1))
    shown = [f'<iframe sandbox="allow-scripts" width="{width}" height="800" srcdoc="{probed}"></iframe>' for width in WIDTHS]
    attributes = {"page": AROUND % ("".join(shown), len(WIDTHS)), "reports": queue.Queue()}
    with http_server.running(http_server.Server(type("Handler", (Frames,), attributes))) as server:
        command = [
            chromium,
            *("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"),
            *("--disable-component-update", "--disable-sync", "--remote-debugging-port=0", "--window-size=1500,900"),
            *(f"--user-data-dir={tmp_path_factory.mktemp('browser')}", f"{server.url}/"),
        ]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as running:
            try:
                reports = attributes["reports"].get(timeout=SECONDS)
            except queue.Empty:
                pytest.fail(f"the frames posted no report within {SECONDS} s")
            finally:
                running.terminate()
    return {frame["width"]: frame for frame in reports}


@pytest.mark.parametrize("width", WIDTHS)
def test_every_plot_is_drawn_without_an_error(frames: dict[int, dict[str, Any]], page: str, width: int) -> None:
    assert frames[width]["errors"] == []
    assert len(frames[width]["charts"]) == page.count('<div class="chart"') > 10
    assert min(frames[width]["charts"]) > 0


@pytest.mark.parametrize("width", WIDTHS)
def test_nothing_is_wider_than_the_screen(frames: dict[int, dict[str, Any]], width: int) -> None:
    assert frames[width]["wider"] <= 0
    assert frames[width]["cut"] == 0


def test_a_click_on_a_header_sorts_the_table(frames: dict[int, dict[str, Any]]) -> None:
    for frame in frames.values():
        (first, *descending), (second, *ascending) = frame["sorted"]
        assert (first, second) == ("descending", "ascending")
        assert [float(cell) for cell in descending] == sorted(map(float, ascending), reverse=True)
        assert [float(cell) for cell in ascending] == sorted(map(float, descending))
        assert len(set(ascending)) > 1
