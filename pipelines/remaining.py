"""How long the trainings of a run on this machine still take, by those that are done."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping
from typing import Any

from goemotions import defaults
from goemotions.models import profiles
from goemotions.models.profiles import Profile

# Lines of KFP's log, with codes of colours.
STARTED = re.compile(r"Executing task \S*'(teach|train)'")
DONE = re.compile(r"Task \S*'(teach|train)'\S* finished with status \S*SUCCESS")


class Remaining:
    """Reads the lines of a run's log, and estimates the rest from the size and epochs of each network.

    Args:
        arguments: the parameters of the run.
        clock: seconds.
    """

    def __init__(self, arguments: Mapping[str, Any], clock: Callable[[], float] = time.monotonic) -> None:
        self._left = _costs(arguments)
        self._count = len(self._left)
        self._done = 0.0
        self._clock = clock
        self._began: float | None = None

    def read(self, line: str) -> str:
        """Returns what a line of the log says about the rest of the run; usually nothing."""
        if self._began is None and STARTED.search(line):
            self._began = self._clock()
        if self._began is None or not self._left or not DONE.search(line):
            return ""
        self._done += self._left.pop(0)
        elapsed = self._clock() - self._began
        done = f"{self._count - len(self._left)} of {self._count} trainings are done in {_minutes(elapsed)}"
        return f"{done}; the others take about {_minutes(elapsed * sum(self._left) / self._done)}" if self._left else done


def _costs(arguments: Mapping[str, Any]) -> list[float]:
    """The relative cost of each training, in the order of the run."""
    settings, epochs = arguments.get("settings", {}), arguments.get("epochs", 0)
    teachers = profiles.teachers(arguments.get("teachers", ()))
    costs = [_cost(profiles.get(one.profile, settings.get(one.profile)).as_teacher()) for one in teachers]
    for name in arguments.get("models", defaults.CLUSTER_PROFILES):
        profile = profiles.get(name, {**settings.get(name, {}), **({"epochs": epochs} if epochs else {})})
        own = 0 if teachers else profile.hyperparameters.teachers
        costs.append(_cost(profile) + own * _cost(profile.as_teacher()))
    return costs


def _cost(profile: Profile) -> float:
    return profile.encoder.parameters * profile.hyperparameters.epochs


def _minutes(seconds: float) -> str:
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"
