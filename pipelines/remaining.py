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
# Part of the training was done by an earlier run, so its duration says nothing about the others.
RESUMED = re.compile(r"teacher \S+: its scores are found in|resuming \S+ at step \d+ of \d+")


class Remaining:
    """Reads the lines of the log of a run with these parameters.

    A network takes as long per epoch as an earlier one of its profile; until there is one, the duration follows from the number of
    parameters.
    """

    def __init__(self, arguments: Mapping[str, Any], clock: Callable[[], float] = time.monotonic) -> None:
        self._left = _costs(arguments)
        self._count = len(self._left)
        self._paces: dict[str, tuple[float, float]] = {}
        self._clock = clock
        self._began: float | None = None
        self._started = 0.0
        self._is_resumed = False

    def read(self, line: str) -> str:
        """Returns what a line of the log says about the rest of the run; usually nothing."""
        if STARTED.search(line):
            self._started, self._is_resumed = self._clock(), False
            self._began = self._started if self._began is None else self._began
        self._is_resumed = self._is_resumed or bool(RESUMED.search(line))
        if self._began is None or not self._left or not DONE.search(line):
            return ""
        profile, cost = self._left.pop(0)
        # A teacher that was trained before costs nothing.
        if cost and not self._is_resumed:
            seconds, costs = self._paces.get(profile, (0.0, 0.0))
            self._paces[profile] = seconds + self._clock() - self._started, costs + cost
        done = f"{self._count - len(self._left)} of {self._count} trainings are done in {_minutes(self._clock() - self._began)}"
        return f"{done}; {self._rest()}" if self._left else done

    def _rest(self) -> str:
        if not self._paces:
            return "how long the others take is known after the first that was not resumed"
        seconds, costs = (sum(values) for values in zip(*self._paces.values(), strict=True))
        rest = 0.0
        for profile, cost in self._left:
            of_profile, per = self._paces.get(profile, (seconds, costs))
            rest += cost * of_profile / per
        return f"the others take about {_minutes(rest)}"


def _costs(arguments: Mapping[str, Any]) -> list[tuple[str, float]]:
    """Profile and relative cost of each training, in the order of the run."""
    settings, epochs = arguments.get("settings", {}), arguments.get("epochs", 0)
    teachers, rows = profiles.teachers(arguments.get("teachers", ())), 1 + arguments.get("transfer_texts", 0.0)
    costs = [
        (one.profile, 0.0 if one.location else _cost(profiles.get(one.profile, settings.get(one.profile)).as_teacher()))
        for one in teachers
    ]
    for name in arguments.get("models", defaults.CLUSTER_PROFILES):
        profile = profiles.get(name, {**settings.get(name, {}), **({"epochs": epochs} if epochs else {})})
        own = 0 if teachers else profile.hyperparameters.teachers
        taught = rows if teachers or own else 1
        costs.append((name, taught * _cost(profile) + own * _cost(profile.as_teacher())))
    return costs


def _cost(profile: Profile) -> float:
    return profile.encoder.parameters * profile.hyperparameters.epochs


def _minutes(seconds: float) -> str:
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"
