"""The report's page in a real browser, in a frame without rights as in the Kubeflow UI, as wide as a phone and as a screen."""

import html
import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from goemotions import report
from goemotions.bundle import VARIANTS
from goemotions.registration import Parts

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
WIDTHS = (400, 1400)
SECONDS = 60
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
  if (document.readyState !== "complete" || (Math.min(...charts) === 0 && Date.now() - started < 30000)) return;
  clearInterval(report);
  const wider = document.documentElement.scrollWidth - document.documentElement.clientWidth;
  const cut = [...document.querySelectorAll(".chart svg")].filter(svg => svg.getBoundingClientRect().right > innerWidth + 1).length;
  parent.postMessage({ width: innerWidth, charts, wider, cut, errors }, "*");
}, 100);
</script>
"""
AROUND = """<!doctype html><title>frames</title>%s<pre id="found"></pre><script>
const found = [];
addEventListener("message", event => {
  found.push(event.data);
  if (found.length === %d) document.getElementById("found").textContent = JSON.stringify(found);
});
</script>"""


@pytest.fixture(scope="module")
def page(dataset: Path, candidate: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    parts = {variant: [Parts.below(candidate, variant)] for variant in VARIANTS}
    folder = report.write(dataset, parts, tmp_path_factory.mktemp("report"))
    return (folder / "report.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def frames(page: str, tmp_path_factory: pytest.TempPathFactory) -> dict[int, dict[str, Any]]:
    """What the page in a frame of each width reports, by the width."""
    if CHROMIUM is None:
        message = "Chromium is needed to look at the page: apt-get install chromium"
        pytest.fail(message) if os.environ.get("CI") else pytest.skip(message)
    folder = tmp_path_factory.mktemp("browser")
    probed = html.escape(page.replace("<head>", f"<head>{PROBE}", 1))
    shown = [f'<iframe sandbox="allow-scripts" width="{width}" height="800" srcdoc="{probed}"></iframe>' for width in WIDTHS]
    (folder / "frames.html").write_text(AROUND % ("".join(shown), len(WIDTHS)), encoding="utf-8")
    command = [
        CHROMIUM,
        *("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"),
        *("--disable-component-update", "--disable-sync", f"--user-data-dir={folder / 'profile'}"),
        *("--virtual-time-budget=45000", "--window-size=1500,900", "--dump-dom", (folder / "frames.html").as_uri()),
    ]
    answered = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=True).stdout
    found = re.search(r'<pre id="found">(.+?)</pre>', answered, re.DOTALL)
    assert found, "the frames did not answer"
    return {frame["width"]: frame for frame in json.loads(html.unescape(found[1]))}


@pytest.mark.parametrize("width", WIDTHS)
def test_every_plot_is_drawn_without_an_error(frames: dict[int, dict[str, Any]], page: str, width: int) -> None:
    assert frames[width]["errors"] == []
    assert len(frames[width]["charts"]) == page.count('<div class="chart"') > 10
    assert min(frames[width]["charts"]) > 0


@pytest.mark.parametrize("width", WIDTHS)
def test_nothing_is_wider_than_the_screen(frames: dict[int, dict[str, Any]], width: int) -> None:
    assert frames[width]["wider"] <= 0
    assert frames[width]["cut"] == 0
