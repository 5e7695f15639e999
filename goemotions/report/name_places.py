"""Where the names beside the points of a chart go, so that none covers another name or a point."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

# In pixels, for the names beside points: the width of a chart on a phone, half the width and the height of a letter, and where a name
# may be: right or left of its point, above or below it, or higher or lower on a side.
NARROW, HALF_LETTER, TEXT_HEIGHT = 250, 3.3, 13
SIDES = (("left", 15), ("right", -15))
NAME_PLACES: list[dict[str, Any]] = [
    *({"align": align, "dx": dx, "dy": 0} for align, dx in SIDES),
    *({"align": "center", "dx": 0, "dy": dy} for dy in (-18, 18)),
    *({"align": align, "dx": dx, "dy": dy} for dy in (-18, 18, -32, 32) for align, dx in SIDES),
]


def on_axis(values: Any, domain: Any) -> np.ndarray:
    """Where values lie on an axis from the least to the greatest value of the domain, from 0 to 1, float [n]."""
    low, high = np.min(domain), np.max(domain)
    placed: np.ndarray = (np.asarray(values, dtype=float) - low) / max(high - low, 1e-9)
    return placed


def with_places(rows: Sequence[Mapping[str, Any]], x: np.ndarray, y: np.ndarray, key: str) -> list[dict[str, Any]]:
    """The rows with the place of the name beside each point, one of ``NAME_PLACES``.

    On a chart as small as on a phone, no name covers another name or a point, as long as there is room.

    Args:
        rows: one per point, with the name under ``key``.
        x: the points' places on the axis, from 0 to 1, float [n].
        y: the same, upwards.
    """
    across, down = x * NARROW, -y * NARROW
    occupied = [(center, middle, 2 * HALF_LETTER) for center, middle in zip(across, down, strict=True)]
    placed = list(rows)
    for i in np.argsort(across, kind="stable"):
        half = HALF_LETTER * len(rows[i][key])
        boxes = [(across[i] + place["dx"] + half * np.sign(place["dx"]), down[i] + place["dy"], half) for place in NAME_PLACES]
        chosen = next((number for number, box in enumerate(boxes) if _is_free(*box, occupied)), 0)
        placed[i] = {**rows[i], **NAME_PLACES[chosen]}
        occupied.append(boxes[chosen])
    return [dict(row) for row in placed]


def _is_free(center: float, middle: float, half: float, occupied: Sequence[tuple[float, float, float]]) -> bool:
    """Whether a text is within the chart and covers nothing of what is given by center, middle and half of the width."""
    is_within = half <= center <= NARROW - half
    return is_within and all(abs(center - c) > half + h or abs(middle - m) > TEXT_HEIGHT for c, m, h in occupied)
