"""The analysis of one step of a rollout: is the canary worse than the champion, and has enough been seen to say that it is not?"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NotRequired, TypedDict

import numpy as np

from goemotions import strict_json
from goemotions.monitoring.rollout import sequential
from goemotions.monitoring.rollout.answers import Answers, Expected, Quality
from goemotions.monitoring.rollout.plan import Plan
from goemotions.monitoring.rollout.sequential import Evidence, StoredEvidence
from goemotions.monitoring.rollout.version_traffic import StoredTraffic, VersionTraffic

TESTS = {
    "errors": "it fails more often",
    "rejections": "it rejects more requests than the champion",
    "latency": "it is slower",
    "agreement": "its labels differ from the champion's on more texts than in validation",
    "labels": "it predicts a label more or less often than in validation",
    "thresholds": "its labels are not those that its thresholds choose",
    "quality": "its scores let expect a lower F1",
}
# A step has as many windows as are needed to decide, and is not passed while a test has come this near to its limit.
LEAST_WINDOWS, SUSPECT = 4, 0.5
# The share of the requests that the champion has answered which a version that is no worse may reject.
REJECTED = 0.01
# The share of the answers whose labels may differ from those of the thresholds.
OFF_THRESHOLDS = 0.01
# What is no fault: the odds of other labels, those of a label, and the expected F1 of a text may differ by so much from validation.
DISAGREEMENT_ODDS, LABEL_ODDS, F1_LOSS = 2.0, 2.0, 0.05
# What is stored as it is.
COUNTS = ("seconds", "texts", "different", "sent_texts", "off_thresholds", "rejected", "repeated", "compared", "windows")
# A champion that fails more often is no measure of a canary.
CHAMPION_FAILURES, CHAMPION_REQUESTS, RECENT_WINDOWS = 0.05, 20, 4
# Of any number in a stored analysis: sums of larger ones might not be finite.
LARGEST = 1e15


class Stored(TypedDict):
    """What is stored of an analysis; what is not required was not counted before."""

    seconds: float
    champion: StoredTraffic
    canary: StoredTraffic
    texts: int
    different: int
    sent_texts: int
    off_thresholds: NotRequired[int]
    rejected: NotRequired[int]
    repeated: NotRequired[int]
    compared: NotRequired[float]
    windows: int
    qualities: list[list[list[float]]]
    evidence: dict[str, StoredEvidence]


@dataclass
class Analysis:
    """What one step has shown so far.

    Args:
        plan: what it must show.
        tests: the number of tests of the whole rollout, among which the false alarms are divided.
        expected: how the answers differ in validation.
    """

    plan: Plan
    tests: int
    expected: Expected
    seconds: float = 0.0
    champion: VersionTraffic = field(default_factory=VersionTraffic)
    canary: VersionTraffic = field(default_factory=VersionTraffic)
    texts: int = 0
    different: int = 0
    sent_texts: int = 0
    off_thresholds: int = 0
    rejected: int = 0
    repeated: int = 0
    compared: float = 0.0
    windows: int = 0
    champion_quality: Quality = field(default_factory=Quality)
    canary_quality: Quality = field(default_factory=Quality)

    def __post_init__(self) -> None:
        rate = self.plan.false_rollbacks / self.tests
        self.evidence = {name: Evidence(rate) for name in TESTS}
        self._recent: deque[tuple[float, float]] = deque(maxlen=RECENT_WINDOWS)

    def add_traffic(self, champion: VersionTraffic, canary: VersionTraffic, seconds: float) -> None:
        """Adds a window."""
        self.seconds += seconds
        self._recent.append((sum(champion.requests.values()), sum(champion.failures.values())))
        self._add_outcomes("errors", "failures", champion, canary)
        self._add_outcomes("rejections", "rejections", champion, canary)
        self._add_latency(champion, canary)
        self._add_labels(champion, canary)
        self.champion.add(champion)
        self.canary.add(canary)
        # A version is compared with what the other one did in the same window, by the same protocol.
        protocols = champion.requests.keys() & canary.requests.keys()
        compared = sum(min(champion.requests[protocol], canary.requests[protocol]) for protocol in protocols)
        self.compared += compared
        self.windows += bool(compared)

    def add_answers(self, champion: Answers, canary: Answers) -> None:
        """Adds the answers of both to the same texts, which are chosen ones, independent of each other."""
        different = int((champion.chosen != canary.chosen).any(axis=1).sum())
        self._add_agreement(len(champion.chosen), different, share=1)
        off = self.expected.off_thresholds(canary)
        self.off_thresholds += off
        self.evidence["thresholds"].add(sequential.events(off, len(canary.chosen), OFF_THRESHOLDS), share=1)
        losses = champion.expected_f1() - canary.expected_f1() - F1_LOSS
        self.evidence["quality"].add(sequential.means(losses, 1 + F1_LOSS), share=1)
        self.champion_quality.add(champion)
        self.canary_quality.add(canary)

    def add_copies(self, texts: int, different: int) -> None:
        """Adds the texts of a window that a shadow compared, and those of them to which the two gave other labels."""
        self._add_agreement(texts, different, share=sequential.WINDOW_SHARE)

    def add_repeated(self, requests: int, rejected: int) -> None:
        """Adds requests that the champion answered and that the canary got too, and how many of them it rejected."""
        self.repeated, self.rejected = self.repeated + requests, self.rejected + rejected
        self.evidence["rejections"].add(sequential.events(rejected, requests, REJECTED))

    def _add_agreement(self, texts: int, different: int, share: float) -> None:
        self.texts, self.different = self.texts + texts, self.different + different
        allowed = sequential.with_odds(self.expected.disagreement, DISAGREEMENT_ODDS)
        self.evidence["agreement"].add(sequential.events(different, texts, allowed), share)

    def _add_outcomes(self, test: str, outcome: str, champion: VersionTraffic, canary: VersionTraffic) -> None:
        increments = []
        for protocol in sorted(champion.requests.keys() & canary.requests.keys()):
            ours, theirs = canary.requests[protocol], champion.requests[protocol]
            failed, also_failed = (getattr(one, outcome)[protocol] for one in (canary, champion))
            if ours and theirs:
                increments.append(sequential.events(failed, failed + also_failed, ours / (ours + theirs)))
        if increments:
            self.evidence[test].add(np.sum(increments, axis=0))

    def _add_latency(self, champion: VersionTraffic, canary: VersionTraffic) -> None:
        increments = []
        for protocol in sorted(champion.seconds.keys() & canary.seconds.keys()):
            ours, theirs = (one.seconds[protocol].get(math.inf, 0.0) for one in (canary, champion))
            if ours and theirs:
                bounds = np.array(sorted(canary.seconds[protocol])[:-1])
                slow = ours - _at_most(canary.seconds[protocol], bounds)
                also_slow = theirs - _at_most(champion.seconds[protocol], bounds / self.plan.slower)
                increments.append(sequential.events(slow, slow + also_slow, ours / (ours + theirs)).ravel())
        if increments:
            self.evidence["latency"].add(np.sum(increments, axis=0))

    def _add_labels(self, champion: VersionTraffic, canary: VersionTraffic) -> None:
        """The texts with each label. The texts of one request are alike: together they count as one."""
        texts = champion.texts + canary.texts
        if not (champion.texts and canary.texts):
            return
        weight = min(1.0, (sum(champion.requests.values()) + sum(canary.requests.values())) / texts)
        ours, theirs = (
            np.array([one.labels.get(label, 0.0) for label in self.expected.labels]) * weight for one in (canary, champion)
        )
        (odds, margin), share = self.expected.odds(), canary.texts / texts
        tolerated = LABEL_ODDS * margin
        # The canary's share of the texts with a label lies between its share of all texts and what the odds make of that, whatever
        # their number (Fisher's noncentral hypergeometric distribution). So odds below 1 are no upper bound, and those above no lower.
        most, least = np.maximum(odds * tolerated, 1), np.minimum(odds / tolerated, 1)
        more = sequential.events(ours, ours + theirs, sequential.with_odds(share, most))
        fewer = sequential.events(ours, ours + theirs, sequential.with_odds(share, least), fewer=True)
        self.evidence["labels"].add(np.concatenate([more, fewer]).ravel())

    @property
    def fault(self) -> str:
        """Why the canary is worse; empty if nothing shows it."""
        decisive = [name for name, evidence in self.evidence.items() if evidence.is_decisive]
        return "; ".join(f"{TESTS[name]} ({self._measured(name)})" for name in decisive)

    @property
    def champion_fails(self) -> str:
        """What the champion itself fails, if it is no measure now."""
        requests, failures = (sum(column) for column in zip(*self._recent, strict=True)) if self._recent else (0.0, 0.0)
        if requests < CHAMPION_REQUESTS or failures <= CHAMPION_FAILURES * requests:
            return ""
        return f"the champion itself fails {failures:.0f} of its last {requests:.0f} requests"

    @property
    def missing(self) -> str:
        """What the step lacks; empty if it has shown enough."""
        lacks, left = [], self.plan.step_requests - self.compared
        if left > 0:
            wait = f", {left * self.seconds / self.compared:,.0f} s at this rate" if self.compared else ""
            lacks.append(f"{left:,.0f} of {self.plan.step_requests:,} requests to each version{wait}")
        if self.texts < self.plan.step_texts:
            lacks.append(f"{self.plan.step_texts - self.texts:,} of {self.plan.step_texts:,} compared texts")
        if self.seconds < self.plan.step_seconds:
            lacks.append(f"{self.plan.step_seconds - self.seconds:,.0f} of {self.plan.step_seconds:,.0f} s")
        if self.windows < LEAST_WINDOWS:
            lacks.append(f"{LEAST_WINDOWS - self.windows} of {LEAST_WINDOWS} looks at requests to both versions")
        if lacks:
            return ", ".join(lacks) + " missing"
        if uncounted := self.canary.uncounted(self.expected.labels) or self.champion.uncounted(self.expected.labels):
            return f"{uncounted} is missing, so that a fault would not be seen: check whether Prometheus drops or renames it"
        suspect = [name for name, one in self.evidence.items() if one.value > SUSPECT * one.limit]
        return f"it is not decided whether {TESTS[suspect[0]]} ({self._measured(suspect[0])})" if suspect else ""

    def _measured(self, name: str) -> str:
        """The figures behind a test, canary against champion."""
        both = (self.canary, self.champion)
        if name in ("errors", "rejections"):
            outcome = "failures" if name == "errors" else name
            counts = " against ".join(
                f"{sum(getattr(one, outcome).values()):.0f} of {sum(one.requests.values()):.0f} requests" for one in both
            )
            return counts + f", {self.rejected} of {self.repeated} that both got" * (name == "rejections")
        if name == "latency":
            return "p95 " + " against ".join(f"{1000 * one.quantile(0.95):.0f} ms" for one in both)
        if name == "agreement":
            return f"{self.different} of {self.texts} texts, validation: {self.expected.different} of {self.expected.rows} rows"
        if name == "thresholds":
            return f"on {self.off_thresholds} texts"
        if name == "labels":
            label = self.expected.labels[self._largest_move()]
            return f"{label}: " + " against ".join(f"{one.labels.get(label, 0.0):.0f} of {one.texts:.0f} texts" for one in both)
        return f"macro {self.canary_quality.f1_macro:.3f} against {self.champion_quality.f1_macro:.3f}"

    def _largest_move(self) -> int:
        logs = np.reshape(self.evidence["labels"].logs, (2, len(self.expected.labels), -1))
        return int(logs.max(axis=(0, 2)).argmax())

    def figures(self) -> dict[str, Any]:
        """The step's figures as JSON types."""
        versions = {}
        for name, one, quality in (
            ("champion", self.champion, self.champion_quality),
            ("canary", self.canary, self.canary_quality),
        ):
            versions[name] = {
                "requests": round(sum(one.requests.values())),
                "failures": round(sum(one.failures.values())),
                "rejections": round(sum(one.rejections.values())),
                "p50_ms": _ms(one.quantile(0.5)),
                "p95_ms": _ms(one.quantile(0.95)),
                "texts": round(one.texts),
                "labels": {label: round(count) for label, count in sorted(one.labels.items())},
                "expected_f1_macro": round(quality.f1_macro, 4),
            }
        evidence = {name: round(float(one.value), 2) for name, one in self.evidence.items()}
        limit = round(self.evidence["errors"].limit, 2)
        return {**versions, "compared_texts": self.texts, "different": self.different, "evidence": evidence, "limit": limit}

    def to_json(self) -> dict[str, Any]:
        """Everything from which the step goes on, as JSON types."""
        return {
            **{name: getattr(self, name) for name in COUNTS},
            "champion": self.champion.to_json(),
            "canary": self.canary.to_json(),
            "qualities": [
                [one.predicted.tolist(), one.predicted_sum.tolist(), one.total_sum.tolist()]
                for one in (self.champion_quality, self.canary_quality)
            ],
            "evidence": {name: one.to_json() for name, one in self.evidence.items()},
        }

    def resume(self, content: dict[str, Any]) -> None:
        """Goes on from what ``to_json`` returned.

        Raises:
            ValueError, TypeError, LookupError: it is something else.
        """
        strict_json.require(content, Stored, "the analysis")
        for name in COUNTS:
            setattr(self, name, content.get(name, 0))
        self.champion, self.canary = VersionTraffic.from_json(content["champion"]), VersionTraffic.from_json(content["canary"])
        self.champion_quality, self.canary_quality = map(self._quality, content["qualities"])
        # The evidence of before may lack a test.
        self.evidence |= {name: self._evidence(name, one) for name, one in content["evidence"].items()}
        counts = {name: value for name, value in content.items() if name != "evidence"}
        if not all(0 <= number <= LARGEST for number in _numbers(counts)):
            raise ValueError("a count is negative or too large")

    def _quality(self, sums: list[list[float]]) -> Quality:
        if len(sums) != 3 or {len(one) for one in sums} not in ({1}, {len(self.expected.labels)}):
            raise ValueError("a quality is that of other labels")
        return Quality(*map(np.array, sums))

    def _evidence(self, test: str, content: StoredEvidence) -> Evidence:
        evidence, alternatives = Evidence.from_json(content), len(sequential.ODDS)
        lengths = {"labels": 2 * len(self.expected.labels) * alternatives, "quality": len(sequential.STAKES)}
        size = evidence.logs.size
        # One logarithm is that of a test to which nothing was added; latency has alternatives per bound of a histogram.
        is_new, is_of_bounds = size == 1 and not evidence.value, test == "latency" and size > 0 and not size % alternatives
        if test not in TESTS or not (is_new or is_of_bounds or size == lengths.get(test, alternatives)):
            raise ValueError("there is evidence of another test")
        if not 0 < evidence.rate < 1 or not all(abs(number) <= LARGEST for number in _numbers(content)):
            raise ValueError("there is evidence of impossible numbers")
        return evidence


def _numbers(value: Any) -> Iterator[float]:
    """The numbers within a value of JSON types."""
    if isinstance(value, dict | list):
        for one in value.values() if isinstance(value, dict) else value:
            yield from _numbers(one)
    else:
        yield value


def _at_most(counts: dict[float, float], seconds: np.ndarray) -> np.ndarray:
    """How many requests took at most so long, float [n], for seconds, float [n].

    Between two bounds of the counter the number is interpolated: it is never more than at the upper one, so that equal versions are
    no evidence.
    """
    bounds = sorted(counts)[:-1]
    result: np.ndarray = np.interp(seconds, [0.0, *bounds], [0.0, *(counts[bound] for bound in bounds)])
    return result


def _ms(seconds: float) -> float | None:
    return None if math.isnan(seconds) else round(1000 * seconds, 1)
