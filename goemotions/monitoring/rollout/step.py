"""A step of a rollout: look by look, what the servers have counted and what both versions answer to the same texts."""

from __future__ import annotations

import time
from dataclasses import dataclass

from goemotions.deployment.traffic import TrafficSplit
from goemotions.errors import ClusterUnavailable, MonitoringUnavailable, StorageError
from goemotions.monitoring.rollout import answers
from goemotions.monitoring.rollout.analysis import TESTS, Analysis
from goemotions.monitoring.rollout.answers import Answers, Expected
from goemotions.monitoring.rollout.plan import Plan
from goemotions.monitoring.rollout.sources import Scrape, Source, server_of_version
from goemotions.monitoring.rollout.state import ANEW, FILE, State
from goemotions.monitoring.rollout.version_traffic import Increases
from goemotions.registry.model_registry import Version

# A canary that serves less than its share for so long, or at the end of its step, is rolled back.
PROBLEM_SECONDS = 120.0


@dataclass(frozen=True)
class Rollout:
    """What a rollout works with.

    Attributes:
        model_name: name of the registered model.
        version: the version that is rolled out.
        split: the traffic.
        source: the metrics of the servers.
        plan: the steps.
        texts: those that both versions are sent.
        location: of the state, in the store.
    """

    model_name: str
    version: Version
    split: TrafficSplit
    source: Source
    plan: Plan
    texts: list[str]
    location: str


class Step:
    """A step as this process watches it.

    Attributes:
        analysis: what it has shown.
        obstacle: what kept the last look from showing more.
    """

    def __init__(self, rollout: Rollout, state: State) -> None:
        self._rollout, self._state, self._expected = rollout, state, Expected.from_json(state.expected)
        self.analysis = Analysis(rollout.plan, len(TESTS) * len(state.steps), self._expected)
        if state.analysis:
            try:
                self.analysis.resume(state.analysis)
            except (LookupError, TypeError, ValueError, AttributeError) as error:
                raise StorageError(f"{rollout.location}{FILE}: the analysis is damaged: {ANEW}") from error
        self._increases, self.obstacle, self._problem = Increases(), "", ""
        self._began = self._looked = self._problem_since = time.monotonic()

    def look(self) -> None:
        """Adds what was served since the last look, and answers to the next texts, to the analysis. The first look has only texts.

        Raises:
            TrafficChanged: the traffic is not as the rollout set it.
        """
        state, now = self._state, time.monotonic()
        try:
            state.require_traffic(self._rollout.split.shares(), {state.percent})
            self._problem_since = self._problem_since if self._problem else now
            self.obstacle = self._problem = self._rollout.split.problem()
            samples = self._rollout.source.read()
        except (ClusterUnavailable, MonitoringUnavailable) as error:
            self.obstacle = str(error)
            return
        traffic = self._increases.update(samples)
        champion, canary = traffic[state.champion], traffic[state.version]
        self.analysis.add_traffic(champion, canary, now - self._looked)
        self._looked = now
        copies = {name: int(count) for name, count in champion.copies[state.version].items()}
        rejected, compared = copies.pop("rejected", 0), sum(copies.values())
        if compared:
            self.analysis.add_copies(compared, copies.get("different", 0))
        if compared or rejected:
            self.analysis.add_repeated(compared + rejected, rejected)
        self._request(server_of_version(samples))

    def _request(self, servers: dict[str, str]) -> None:
        """Sends the next texts to both versions."""
        sent, plan = self.analysis.sent_texts, self._rollout.plan
        texts = self._rollout.texts[sent : min(sent + answers.BATCH, plan.step_texts)]
        if not texts:
            return
        try:
            champion = self._answers(servers, self._state.champion, texts)
            try:
                canary = self._answers(servers, self._state.version, texts)
            except answers.Rejected:
                # They are sent again by the next look: whether they are rejected again.
                self.analysis.add_repeated(1, 1)
                raise
        except (ClusterUnavailable, MonitoringUnavailable) as error:
            self.obstacle = self.obstacle or str(error)
            return
        self.analysis.add_repeated(1, 0)
        self.analysis.add_answers(champion, canary)
        self.analysis.sent_texts += len(texts)

    def _answers(self, servers: dict[str, str], number: str, texts: list[str]) -> Answers:
        return answers.request(self._address(servers, number), self._rollout.model_name, texts, self._expected.labels)

    def _address(self, servers: dict[str, str], number: str) -> str:
        """The address of a server of a version; if the metrics come from Prometheus, texts go to the servers themselves."""
        address = servers.get(number, "")
        if not address.startswith("http"):
            address = server_of_version(Scrape(self._rollout.split.targets).read()).get(number, "")
        if not address:
            raise MonitoringUnavailable(f"no server of version {number} can be reached from here")
        return address

    @property
    def is_over(self) -> bool:
        """Whether it has lasted for as long as a step may."""
        return time.monotonic() - self._began > self._rollout.plan.hold_seconds

    @property
    def fault(self) -> str:
        """Why the canary is rolled back; empty if nothing shows a fault."""
        lasts = time.monotonic() - self._problem_since
        is_lasting = self._problem and (lasts > PROBLEM_SECONDS or self.is_over)
        return self.analysis.fault or (f"it does not serve its share for {lasts:.0f} s: {self._problem}" if is_lasting else "")

    @property
    def waits_for(self) -> str:
        """What the step lacks; empty if it has shown enough."""
        return self.obstacle or self.analysis.champion_fails or self.analysis.missing

    @property
    def summary(self) -> str:
        """A line for people."""
        state, analysis, figures = self._state, self.analysis, self.analysis.figures()
        champion, canary = figures["champion"], figures["canary"]
        largest = max(figures["evidence"], key=figures["evidence"].get)
        requests = canary["requests"] + champion["requests"]
        return (
            f"{state.percent}%: {canary['requests']:,} of {requests:,} requests to version {state.version}, failed "
            f"{canary['failures']}/{champion['failures']}, p95 {canary['p95_ms']}/{champion['p95_ms']} ms, {analysis.different} of "
            f"{analysis.texts} texts with other labels, expected F1 {canary['expected_f1_macro']:.3f}/"
            f"{champion['expected_f1_macro']:.3f}; evidence against it {figures['evidence'][largest]:.1f} of {figures['limit']:.1f} "
            f"({largest})" + f"; {self.waits_for or 'passed'}"
        )
