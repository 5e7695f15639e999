"""What the run used and cost, by step."""

from __future__ import annotations

from collections.abc import Sequence

from goemotions.registry import costs
from goemotions.registry.costs import Prices, Step
from goemotions.report.document import Cell, Section, Table

COLUMNS = ("step", "model", "device", "duration", "CPU time", "GPU time", "cost", "kWh")


def section(steps: Sequence[Step], prices: Prices) -> Section | None:
    """One row per step and one for all of them; None if the run of the artifacts did not record it."""
    if not steps:
        return None
    rows = [_row(step.name, step.profile, step.used.device, [step], prices) for step in steps]
    return Section(
        "Cost and energy",
        (
            f"Prices: {prices}, in the currency of the prices. CPU time is what the processes used, not what a pod requested. Neither "
            "the report itself nor failed attempts of a step are included; a training that resumed counts all of its attempts.",
            f"Energy is estimated by the formula of {costs.SOURCE}: {costs.CORE_WATTS:g} W per busy core, {costs.MEMORY_WATTS:g} W "
            f"per GB of memory, the largest power of the GPU, times {costs.POWER_USAGE_EFFECTIVENESS:g} for the data centre. The power "
            "itself was not measured.",
        ),
        (Table(COLUMNS, [*rows, _row("all steps", "", "", steps, prices)]),),
    )


def _row(name: str, profile: str, device: str, steps: Sequence[Step], prices: Prices) -> list[Cell]:
    used = costs.total(steps)
    times = [f"{value:,.0f} s" for value in (used.wall_seconds, used.cpu_seconds, used.gpu_seconds)]
    energy = costs.energy_kwh(step.used for step in steps)
    return [name, profile or None, device or None, *times, prices.of(used), energy]
