"""Vega-Lite: the theme of all charts, and their rendering as SVG; the only module that uses ``vl_convert``."""

from __future__ import annotations

import functools
from typing import Any

import altair as alt
import vl_convert

Chart = alt.Chart | alt.LayerChart

VERSION = ".".join(alt.SCHEMA_VERSION.removeprefix("v").split(".")[:2])

# The palette of Okabe and Ito, distinguishable with every common colour blindness. Colours too light for a line come last.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#444444", "#E69F00", "#56B4E9")
TEXT_COLOR, AXIS_COLOR = "#1c2230", "#8a94a8"
SVG_WIDTH, LEGEND_COLUMN_WIDTH = 720, 150

_TEXT = {
    "labelFontSize": 12,
    "titleFontSize": 13,
    "titleFontWeight": "normal",
    "labelColor": TEXT_COLOR,
    "titleColor": TEXT_COLOR,
}
CONFIG = {
    "font": "sans-serif",
    "background": "white",
    "range": {"category": PALETTE},
    "axis": {**_TEXT, "gridColor": "#e3e7ee", "domainColor": AXIS_COLOR, "tickColor": AXIS_COLOR, "labelLimit": 160},
    "legend": {
        **_TEXT,
        "orient": "top",
        "columns": SVG_WIDTH // LEGEND_COLUMN_WIDTH,
        "labelLimit": 240,
        "titleLimit": 240,
        "symbolOpacity": 1,
    },
    "axisQuantitative": {"tickCount": 6},
    "view": {"stroke": None},
    "line": {"strokeWidth": 2},
    "text": {"color": TEXT_COLOR, "fontSize": 12},
}


def spec(chart: Chart, description: str) -> dict[str, Any]:
    """The Vega-Lite specification of a chart that takes the width of its container."""
    return {**chart.to_dict(), "autosize": {"type": "fit-x", "contains": "padding"}, "description": description}


def to_svg(chart: Chart, description: str) -> str:
    return vl_convert.vegalite_to_svg(
        {**spec(chart, description), "width": SVG_WIDTH}, vl_version=VERSION, config=CONFIG, allowed_base_urls=[]
    )


@functools.cache
def script() -> str:
    """Vega, Vega-Lite and Vega-Embed as one script that defines ``vegaEmbed``; about 0.9 MB."""
    return vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;", vl_version=VERSION)
