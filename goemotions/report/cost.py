"""What the run used and cost, by step."""

from __future__ import annotations

from collections.abc import Sequence

from goemotions.registry import costs
from goemotions.registry.costs import Prices, Step
from goemotions.report.document import Cell, Section, Table
from goemotions.usage import Usage

COLUMNS = ("step", "model", "device", "duration", "CPU time", "GPU time", "cost", "kWh")


def section(steps: Sequence[Step], prices: Prices) -> Section | None:
    """One row per step and one for all of them; None if the run of the artifacts did not record it."""
    if not steps:
        return None
    whole = costs.total(steps)
    rows = [_row(step.name, step.profile, step.used, prices) for step in steps]
    return Section(
        "Cost and energy",
        (
            f"Prices: {prices}, in the currency of the prices. CPU time is what the processes used, not what a pod requested. Neither "
            "the report itself nor failed attempts of a step are included; a training that resumed counts all of its attempts.",
            f"Energy is estimated by the formula of {costs.SOURCE}: {costs.CORE_WATTS:g} W per busy core, {costs.MEMORY_WATTS:g} W "
            f"per GB of memory, the largest power of the GPU, times {costs.POWER_USAGE_EFFECTIVENESS:g} for the data centre. The power "
            "itself was not measured.",
        ),
        (Table(COLUMNS, [*rows, _row("all steps", "", whole, prices, several_devices=True)]),),
    )


def _row(name: str, profile: str, used: Usage, prices: Prices, *, several_devices: bool = False) -> list[Cell]:
    seconds = (used.wall_seconds, used.cpu_seconds, used.gpu_seconds)
    device = None if several_devices else used.device
    times = [f"{value:,.0f} s" for value in seconds]
    return [name, profile or None, device, *times, prices.of(used), costs.energy_kwh(used)]
