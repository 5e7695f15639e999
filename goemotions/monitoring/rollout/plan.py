"""The steps of a rollout and what each of them must show: the defaults and the help texts of the options of ``model rollout``."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from goemotions.errors import BadArgument


def _option(default: Any, help: str, **others: Any) -> Any:
    return field(default=default, metadata={"help": help, **others})


@dataclass(frozen=True)
class Plan:
    """The steps of a rollout, and what each of them must show.

    Raises:
        BadArgument: a number with which no fault would ever be found, or no step would end.
    """

    steps: str = _option("5,25,50,100", "Shares of the traffic, in percent; 100 is the promotion.")
    step_requests: int = _option(500, "Least requests to each of the two versions per step.")
    step_texts: int = _option(200, "Texts per step whose answers are compared; 0: none.")
    step_seconds: float = _option(60.0, "Least duration of a step.")
    hold_seconds: float = _option(1800.0, "Longest duration of a step; then the rollout stops, and both versions serve.")
    window_seconds: float = _option(15.0, "Time between two looks; with Prometheus not below its scrape interval.")
    false_rollbacks: float = _option(0.01, "Largest probability that a version which is no worse is rolled back.")
    slower: float = _option(1.25, "How many times as long a request may take as with the champion.")

    def __post_init__(self) -> None:
        # Not a number is in no range.
        allowed = {
            "step_requests": (self.step_requests >= 1, "at least 1"),
            "step_texts": (self.step_texts >= 0, "at least 0"),
            "step_seconds": (0 <= self.step_seconds < math.inf, "a number of seconds"),
            "hold_seconds": (0 <= self.hold_seconds < math.inf, "a number of seconds"),
            "window_seconds": (0 < self.window_seconds < math.inf, "a number of seconds above 0"),
            "false_rollbacks": (0 < self.false_rollbacks < 1, "between 0 and 1, and neither of them"),
            "slower": (1 <= self.slower < math.inf, "at least 1"),
        }
        for name, (is_allowed, what) in allowed.items():
            if not is_allowed:
                raise BadArgument(f"--{name.replace('_', '-')} is {what}, not {getattr(self, name)}")

    @property
    def shares(self) -> list[int]:
        """The shares of the steps, rising, in percent, without the 100 of the promotion.

        Raises:
            BadArgument: ``steps`` is something else.
        """
        parts = [part.strip() for part in self.steps.split(",")]
        shares = [int(part) for part in parts if part.isdecimal()]
        if len(shares) != len(parts) or sorted(set(shares)) != shares or not 0 < shares[0] < 100 or shares[-1] != 100:
            raise BadArgument(f"--steps is rising shares in percent that end with 100, such as 5,25,50,100, not {self.steps!r}")
        return shares[:-1]
