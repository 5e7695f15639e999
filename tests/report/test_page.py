"""The report's page in a real browser, in a frame without rights as in the Kubeflow UI, as wide as a phone and as a screen."""

import html
import json
import queue
import subprocess
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from goemotions import report
from goemotions.registry.assembly import CandidateArtifacts
from goemotions.registry.bundle import VARIANTS
from tests.support import browser

WIDTHS = (400, 1400)
SECONDS = 120
# What the frame tells the page around it: the marks of each chart, and how far its content is wider than the frame.
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
  const wider = document.documentElement.scrollWidth - document.documentElement.clientWidth;
  const cut = [...document.querySelectorAll(".chart svg")].filter(svg => svg.getBoundingClientRect().right > innerWidth + 1).length;
  parent.postMessage({ width: innerWidth, charts, wider, cut, errors }, "*");
}, 100);
</script>
"""
AROUND = """<!doctype html><title>frames</title>%s<script>
const found = [];
addEventListener("message", event => {
  found.push(event.data);
  if (found.length === %d) fetch("/found", { method: "POST", body: JSON.stringify(found) });
});
</script>"""


class Frames(BaseHTTPRequestHandler):
    """Gives the browser the page with the frames, and takes what they found."""

    page = ""
    found: queue.Queue[Any]

    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/" else 404)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.end_headers()
        self.wfile.write(self.page.encode() if self.path == "/" else b"")

    def do_POST(self) -> None:
        self.found.put(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(204)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture(scope="module")
def page(dataset: Path, candidate: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    parts = {variant: [CandidateArtifacts.below(candidate, variant)] for variant in VARIANTS}
    folder = report.write(dataset, parts, tmp_path_factory.mktemp("report"))
    return (folder / "report.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def frames(page: str, tmp_path_factory: pytest.TempPathFactory) -> dict[int, dict[str, Any]]:
    """What the page in a frame of each width reports, by the width."""
    chromium = browser.chromium()
    probed = html.escape(page.replace("<head>", f"<head>{PROBE}", 1))
    shown = [f'<iframe sandbox="allow-scripts" width="{width}" height="800" srcdoc="{probed}"></iframe>' for width in WIDTHS]
    asked = {"page": AROUND % ("".join(shown), len(WIDTHS)), "found": queue.Queue()}
    with ThreadingHTTPServer(("127.0.0.1", 0), type("Asked", (Frames,), asked)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        command = [
            chromium,
            *("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"),
            *("--disable-component-update", "--disable-sync", "--remote-debugging-port=0", "--window-size=1500,900"),
            *(f"--user-data-dir={tmp_path_factory.mktemp('browser')}", f"http://127.0.0.1:{server.server_port}/"),
        ]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as running:
            try:
                answered = asked["found"].get(timeout=SECONDS)
            except queue.Empty:
                pytest.fail(f"the frames did not answer within {SECONDS} s")
            finally:
                running.terminate()
                server.shutdown()
    return {frame["width"]: frame for frame in answered}


@pytest.mark.parametrize("width", WIDTHS)
def test_every_plot_is_drawn_without_an_error(frames: dict[int, dict[str, Any]], page: str, width: int) -> None:
    assert frames[width]["errors"] == []
    assert len(frames[width]["charts"]) == page.count('<div class="chart"') > 10
    assert min(frames[width]["charts"]) > 0


@pytest.mark.parametrize("width", WIDTHS)
def test_nothing_is_wider_than_the_screen(frames: dict[int, dict[str, Any]], width: int) -> None:
    assert frames[width]["wider"] <= 0
    assert frames[width]["cut"] == 0
