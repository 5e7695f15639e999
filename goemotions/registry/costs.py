"""Cost and energy of a run: what its steps used (``usage.json``), at given prices, and by a formula for the energy.

The formula is that of Lannelongue, Grealey and Inouye 2021 (Green Algorithms, Advanced Science 8, 2100707): processor time times power
per core, plus time on GPUs times their power, plus memory times time times its power, and all of that times the power usage
effectiveness of a data centre. It is an estimate: nothing measures the power.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from goemotions import defaults, usage
from goemotions.errors import TrackingError
from goemotions.models.records import TrainingRecord
from goemotions.registry import tracking
from goemotions.registry.bundle import Variant
from goemotions.registry.candidates import CandidateArtifacts
from goemotions.usage import Usage

log = logging.getLogger(__name__)

# The defaults of Green Algorithms for an unknown CPU (W per core), for memory (W per GB) and for an unknown data centre.
CORE_WATTS, MEMORY_WATTS, POWER_USAGE_EFFECTIVENESS = 12.0, 0.3725, 1.67
# The largest power of GPUs by their makers' data sheets; the default of Green Algorithms for another one.
GPU_WATTS = {
    "H200": 700.0,
    "H100": 700.0,
    "A100": 400.0,
    "L40S": 350.0,
    "V100": 300.0,
    "A10": 150.0,
    "A10G": 150.0,
    "L4": 72.0,
    "T4": 70.0,
}
OTHER_GPU_WATTS = 200.0
SOURCE = "Green Algorithms, Lannelongue et al. 2021"


@dataclass(frozen=True)
class Prices:
    """Prices per hour of a core and of a GPU, in any currency."""

    cpu_hour: float = defaults.CPU_HOUR_PRICE
    gpu_hour: float = defaults.GPU_HOUR_PRICE

    def of(self, used: Usage) -> float:
        """What this use costs."""
        return (used.cpu_seconds * self.cpu_hour + used.gpu_seconds * self.gpu_hour) / 3600

    def __str__(self) -> str:
        return f"{self.cpu_hour:g} per CPU hour and {self.gpu_hour:g} per GPU hour"


@dataclass(frozen=True)
class Step:
    """A step of a run, the profile or teacher that it belongs to (empty: all of them), and what it used."""

    name: str
    profile: str
    used: Usage


def energy_kwh(parts: Iterable[Usage]) -> float:
    """The energy in kWh, by the formula above. Parts may have used GPUs of different power, so that their sum has no energy."""
    return POWER_USAGE_EFFECTIVENESS * sum(map(_watt_seconds, parts)) / 3.6e6


def _watt_seconds(used: Usage) -> float:
    words = re.split(r"[\s-]+", used.device)
    gpu_watts = next((watts for name, watts in GPU_WATTS.items() if name in words), OTHER_GPU_WATTS)
    return used.cpu_seconds * CORE_WATTS + used.gpu_seconds * gpu_watts + used.memory_gb_seconds * MEMORY_WATTS


def total(steps: Iterable[Step]) -> Usage:
    """The sum over steps."""
    return sum((step.used for step in steps), Usage())


def of_run(dataset: Path, candidates: Mapping[Variant, Sequence[CandidateArtifacts]], *others: Path) -> list[Step]:
    """The steps of a run: those of the data, of each profile, and of further folders.

    Args:
        dataset: the Dataset folder; with teachers the taught one.
        candidates: per variant the folders of every profile.
        others: folders of the steps that follow.
    """
    # The step of a teacher is named after it, such as `teach mpnet@1`.
    shared = ((*name.partition(" ")[::2], used) for name, used in usage.read(dataset).items())
    steps = [Step(name, teacher, used) for name, teacher, used in shared]
    models: dict[tuple[str, str], Step] = {}
    for variant, listed in candidates.items():
        for artifacts in listed:
            profile = TrainingRecord.read(artifacts.model).profile["name"]
            for name, used in artifacts.usage().items():
                # The model and its ONNX files are those of both variants.
                title = name if name in ("train", "export") else f"{name} ({variant})"
                models[profile, title] = Step(title, profile, used)
    return [*steps, *models.values(), *(Step(name, "", used) for folder in others for name, used in usage.read(folder).items())]


def log_costs(pipeline_run: str, steps: Sequence[Step], prices: Prices) -> None:
    """Logs cost, energy and use to MLflow: of the whole run to the parent, of each profile to its run. Again, it replaces them.

    If MLflow cannot be reached, only a warning is logged.
    """
    try:
        for profile in dict.fromkeys(["", *(step.profile for step in steps)]):
            own = [step for step in steps if step.profile == profile]
            counted = steps if not profile else own
            metrics = _metrics("", counted, prices) if counted else {}
            for step in own:
                metrics |= _metrics(f"{step.name.replace(' (', '_').replace(')', '').replace(' ', '_')}/", [step], prices)
            run = tracking.get_or_create_run(pipeline_run, profile)
            run.log_once({f"costs/{name}": value for name, value in metrics.items()}, {"costs.prices": str(prices)})
    except TrackingError as error:
        log.warning("the costs of the run are not in MLflow: %s", error)


def _metrics(prefix: str, steps: Sequence[Step], prices: Prices) -> dict[str, float]:
    used = total(steps)
    values = {
        "cost": prices.of(used),
        "energy_kwh": energy_kwh(step.used for step in steps),
        "wall_seconds": used.wall_seconds,
        "cpu_seconds": used.cpu_seconds,
        "gpu_seconds": used.gpu_seconds,
    }
    return {f"{prefix}{name}": value for name, value in values.items()}


def sentence(parts: Collection[Usage], prices: Prices) -> str:
    """Use, cost and energy as a clause, such as for a model card."""
    used = sum(parts, Usage())
    values = (used.cpu_seconds / 3600, used.gpu_seconds / 3600, prices.of(used), energy_kwh(parts))
    cpu_hours, gpu_hours, cost, energy = (f"{value:,.2f}" if value >= 1 else f"{value:.2g}" for value in values)
    return f"{cpu_hours} CPU hours and {gpu_hours} GPU hours, which cost {cost} at {prices}, and about {energy} kWh ({SOURCE})"
