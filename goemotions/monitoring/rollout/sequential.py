"""Sequential tests of a canary: they may be looked at after every window of traffic without raising more false alarms.

The evidence against a canary is an e-process: a product of factors, one per window, each with an expectation of at most 1 if the
canary is no worse. By Ville's inequality such a product exceeds 1/a with a probability of at most a, however often one looks and
whenever one stops (Johari, Pekelis and Walsh 2017, "Always Valid Inference", arXiv:1512.04922; Ramdas et al. 2023, arXiv:2210.01948).
The factors are likelihood ratios, mixed over alternatives as in the mixture sequential probability ratio test (Robbins 1970), and over
the windows in which a fault may begin: what a canary did before it had the fault does not speak for it for ever.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NotRequired, TypedDict

import numpy as np

# By how much the odds of an event are multiplied in the alternatives that are mixed.
ODDS = np.array([1.5, 2.0, 3.0, 6.0, 15.0, 50.0, 200.0])
# The stakes of the alternatives of a mean, as shares of the largest possible.
STAKES = np.array([0.05, 0.1, 0.2, 0.4, 0.8])
# The weight of faults that begin after the first window. Of it, those that begin in window w have 1 / (w - 1) - 1 / w.
LATE = 0.2
# One window of traffic counts for at most this share of what decides: the requests of a burst are not independent.
WINDOW_SHARE = 1 / 3


class StoredEvidence(TypedDict):
    """What is stored of the evidence of one test."""

    rate: float
    logs: list[float]
    value: float
    windows: NotRequired[int]


@dataclass
class Evidence:
    """The evidence of one test, in one step of a rollout; with leading dimensions, of many rollouts at once.

    Attributes:
        rate: the largest probability with which ``is_decisive`` ever becomes true although the canary is no worse.
        logs: the logarithm of the weighted likelihood ratios of each alternative, for faults that begin until the next window,
            [..., alternatives].
        value: the logarithm of the e-process, [...].
        windows: that were added.
    """

    rate: float
    logs: np.ndarray = field(default_factory=lambda: np.log([1 - LATE]))
    value: Any = 0.0
    windows: int = 0

    @property
    def limit(self) -> float:
        """The value that decides."""
        return float(-np.log(self.rate))

    @property
    def is_decisive(self) -> Any:
        """Whether the canary is worse, bool [...]."""
        return np.greater_equal(self.value, self.limit)

    def add(self, increments: np.ndarray, share: float = WINDOW_SHARE) -> None:
        """Adds a window: what it adds to the logarithm of each alternative, [..., alternatives].

        ``share`` is the largest share of what decides that it adds; 1 for independent observations.
        """
        later = LATE / (self.windows + 1)
        # Evidence for other alternatives, such as other bounds of a histogram, has its value only.
        is_same = self.logs.shape[-1] in (1, increments.shape[-1])
        earlier = np.broadcast_to(self.logs if is_same else np.log([1 - LATE]), increments.shape)
        logs = earlier + increments
        now, before = (np.logaddexp(_mean(one), np.log(later)) for one in (logs, earlier))
        # A factor that is cut at the top still has an expectation of at most 1.
        self.value = self.value + np.minimum(now - before, share * self.limit)
        self.windows += 1
        self.logs = np.logaddexp(logs, np.log(later / (self.windows + 1)))

    def to_json(self) -> dict[str, Any]:
        logs = np.round(self.logs, 6).tolist()
        return {"rate": self.rate, "logs": logs, "value": round(float(self.value), 6), "windows": self.windows}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Evidence:
        # Evidence of before counted no windows.
        return cls(
            content["rate"], np.asarray(content["logs"], dtype=float), content["value"], max(content.get("windows", 1), 0)
        )


def events(ours: Any, all_events: Any, share: Any, *, fewer: bool = False) -> np.ndarray:
    """The increments for events of which each is the canary's with a probability of at most ``share`` (``fewer``: at least).

    To compare two rates, ``share`` is the canary's share of the requests of the window: given the number of requests and of events, the
    canary's events have a hypergeometric distribution, and the binomial one, which is used here, is larger in convex order (Hoeffding
    1963, section 6). The method compares within a window, so that a fault that hits both versions is no evidence against one.

    Args:
        ours: events of the canary, [...].
        all_events: events of both, [...].
        share: the probability, [...]; see ``with_odds`` for a tolerance.

    Returns:
        float [..., alternatives].
    """
    odds = 1 / ODDS if fewer else ODDS
    count, total, chance = (np.asarray(value, dtype=float)[..., None] for value in (ours, all_events, share))
    result: np.ndarray = count * np.log(odds) - total * np.log1p((odds - 1) * chance)
    return result


def with_odds(share: Any, odds: Any) -> np.ndarray:
    """The probability whose odds are those of ``share`` times ``odds``."""
    share = np.asarray(share, dtype=float)
    result: np.ndarray = odds * share / (1 - share + odds * share)
    return result


def means(values: np.ndarray, bound: float) -> np.ndarray:
    """The increments for independent values from -bound to bound whose mean is at most 0 if the canary is no worse.

    The bets of Waudby-Smith and Ramdas 2024, "Estimating means of bounded random variables by betting", arXiv:2010.09686.

    Args:
        values: float [..., n].
        bound: the largest absolute value.

    Returns:
        float [..., alternatives].
    """
    result: np.ndarray = np.log1p(STAKES * (np.asarray(values, dtype=float) / bound)[..., None]).sum(axis=-2)
    return result


def _mean(logs: np.ndarray) -> np.ndarray:
    """The logarithm of the mean of the alternatives, [...]."""
    largest = logs.max(axis=-1, keepdims=True)
    result: np.ndarray = largest[..., 0] + np.log(np.exp(logs - largest).mean(axis=-1))
    return result
