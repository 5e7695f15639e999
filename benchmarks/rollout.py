"""How many requests meet a bad version until a rollout takes it back, and how often one that is no worse is taken back.

Measured with the server and the command of the rollout, and simulated with the same analysis on the responses that were recorded:
``python -m benchmarks.rollout --bundle FOLDER`` prints both tables.
"""

from __future__ import annotations

import math
import os
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import click
import numpy as np

from goemotions.deployment.traffic import ProxySplit
from goemotions.errors import RolledBack, StorageError
from goemotions.metrics.thresholds import Thresholds
from goemotions.monitoring.rollout import answers, rollout
from goemotions.monitoring.rollout import state as rollout_state
from goemotions.monitoring.rollout.analysis import TESTS, Analysis
from goemotions.monitoring.rollout.answers import Answers, Expected
from goemotions.monitoring.rollout.plan import Plan
from goemotions.monitoring.rollout.sources import Scrape
from goemotions.monitoring.rollout.version_traffic import VersionTraffic
from goemotions.registry import bundle, mlflow_client, model_registry, rollouts, tracking
from goemotions.registry.candidates import stored_scores
from goemotions.serving.metrics import SECONDS
from goemotions.storage import layout
from pipelines import bad_version
from pipelines import rollout as local
from pipelines.options import FAULTS

PATH = "/v1/models/goemotions:predict"
RATE, WINDOW_SECONDS = 40.0, 5.0
RECORDED = 1000


@dataclass(frozen=True)
class Recording:
    """What a version answered: seconds per request in the order of arrival, float [n], and its answers to the sample's texts."""

    seconds: np.ndarray
    answers: Answers


@dataclass(frozen=True)
class Outcome:
    """How a rollout ended: the requests that met the canary, the seconds, and the reason if it was taken back."""

    requests: float
    seconds: float
    reason: str


def measure(folder: Path, fault: str, plan: Plan, texts: list[str]) -> Outcome:
    """One rollout of a bad version, or with ``none`` of an equal one, between two servers behind the proxy."""
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{scratch}/registry.db"
        mlflow_client.client.cache_clear()
        run = tracking.get_or_create_run("benchmark").run_id
        for number in "12":
            place = f"{scratch}/models/goemotions/{number * 32}/cpu/"
            model_registry.get_or_create_version("goemotions", run, place, {"variant": "cpu"})
        model_registry.set_alias("goemotions", "champion-cpu", "1")
        scores = stored_scores(bundle.load(folder, is_verified=True))
        expected = asdict(Expected.of(scores, scores))
        state = rollout_state.State("2", "1", "local", plan.shares, expected)
        rollouts.write("goemotions", "local", state.record())
        rollout_state.write(layout.rollout(f"{scratch}/", "goemotions", "local"), rollout_state.FILE, state)
        options = ["--bundle", str(folder)]
        with (
            local.served("1", options, Path(scratch)) as champion,
            local.served("2", options, Path(scratch), local.with_fault(fault)) as canary,
            local.proxied("1", {"1": champion, "2": canary}) as address,
            local.loaded(address, PATH, texts, RATE),
        ):
            split, began, reason = ProxySplit(address), time.monotonic(), ""
            try:
                rollout.run("2", split, Scrape(split.targets), plan, texts=texts, show=click.echo)
            except RolledBack as error:
                reason = str(error).partition("has all the traffic: ")[2].partition("; the figures")[0]
            except StorageError:
                # Every step was passed; what is promoted then is no bundle.
                click.echo("every step was passed")
            seconds = time.monotonic() - began
            requests = sum(
                one.value
                for one in Scrape(lambda: [canary]).read()
                if one.name == "goemotions_requests_total" and dict(one.labels)["protocol"] != "copy"
            )
        return Outcome(requests, seconds, reason)


def record(folder: Path, texts: list[str]) -> Recording:
    """The responses of a server under the load, and its answers to all texts."""
    labels = bundle.load(folder, is_verified=True).taxonomy.names
    seconds: list[float] = []
    with tempfile.TemporaryDirectory() as scratch, local.served("1", ["--bundle", str(folder)], Path(scratch)) as address:
        with local.loaded(address, PATH, texts, RATE, lambda status, content, took: seconds.append(took)):
            while len(seconds) < RECORDED:
                time.sleep(0.5)
        batches = [
            answers.request(address, "goemotions", texts[start : start + 64], labels) for start in range(0, len(texts), 64)
        ]
    return Recording(
        np.array(seconds),
        Answers(np.concatenate([one.chosen for one in batches]), np.concatenate([one.scores for one in batches])),
    )


class Simulation:
    """Rollouts on recorded responses, window by window, with the analysis of the command.

    The durations of a window are those of consecutive recorded requests, which keeps bursts; each goes to one version at random.
    """

    def __init__(self, recording: Recording, thresholds: Thresholds, expected: Expected, plan: Plan, fault: str) -> None:
        self.recording, self.expected, self.plan, self.fault = recording, expected, plan, fault
        self.names = expected.labels
        chosen, scores = recording.answers.chosen, recording.answers.scores
        if fault == "thresholds":
            chosen = bad_version.wrong(thresholds).apply(scores.astype(np.float32))
        if fault == "labels":
            order = [self.names.index(name) for name in bad_version.shuffled(self.names)]
            chosen, scores = (np.empty_like(one) for one in (chosen, scores))
            chosen[:, order], scores[:, order] = recording.answers.chosen, recording.answers.scores
        self.canary_answers = Answers(chosen, scores)

    def run(self, generator: np.random.Generator) -> Outcome:
        """One rollout."""
        plan, steps, requests, seconds = self.plan, self.plan.shares, 0.0, 0.0
        for percent in steps:
            analysis = Analysis(plan, len(TESTS) * len(steps), self.expected)
            order = generator.permutation(len(self.canary_answers.chosen))[: plan.step_texts]
            while analysis.missing:
                seconds += plan.window_seconds
                champion, canary = self._window(generator, percent / 100)
                requests += sum(canary.requests.values())
                analysis.add_traffic(champion, canary, plan.window_seconds)
                rows = order[analysis.sent_texts : analysis.sent_texts + answers.BATCH]
                if len(rows):
                    both = [
                        Answers(one.chosen[rows], one.scores[rows]) for one in (self.recording.answers, self.canary_answers)
                    ]
                    analysis.add_answers(*both)
                    analysis.sent_texts += len(rows)
                if fault := analysis.fault:
                    return Outcome(requests, seconds, fault)
        return Outcome(requests, seconds, "")

    def _window(self, generator: np.random.Generator, share: float) -> tuple[VersionTraffic, VersionTraffic]:
        count = generator.poisson(RATE * self.plan.window_seconds)
        start = generator.integers(len(self.recording.seconds))
        seconds = np.take(self.recording.seconds, np.arange(start, start + count), mode="wrap")
        rows = generator.integers(len(self.canary_answers.chosen), size=count)
        is_canary = generator.random(count) < share
        fails = is_canary & (generator.random(count) < bad_version.ERRORS * (self.fault == "failing"))
        seconds = seconds + is_canary * bad_version.DELAY_SECONDS * (self.fault == "slow")
        return (
            self._traffic(seconds[~is_canary], self.recording.answers.chosen[rows[~is_canary]], 0),
            self._traffic(seconds[is_canary & ~fails], self.canary_answers.chosen[rows[is_canary & ~fails]], int(fails.sum())),
        )

    def _traffic(self, seconds: np.ndarray, chosen: np.ndarray, failures: int) -> VersionTraffic:
        traffic = VersionTraffic(texts=len(seconds))
        traffic.requests["v1"], traffic.failures["v1"] = len(seconds) + failures, failures
        traffic.seconds["v1"] = {bound: int((seconds <= bound).sum()) for bound in (*SECONDS, math.inf)}
        traffic.labels.update(zip(self.names, chosen.sum(axis=0).tolist(), strict=True))
        return traffic


def quantiles(values: list[float]) -> str:
    return f"{np.median(values):,.0f} (95%: {np.quantile(values, 0.95):,.0f})"


@click.command()
@click.option("--bundle", "folder", type=click.Path(path_type=Path, exists=True), required=True, help="Folder of a bundle.")
@click.option("--runs", default=3, show_default=True, help="Measured rollouts per fault.")
@click.option("--simulated", default=200, show_default=True, help="Simulated rollouts per fault.")
@click.option("--equal", default=1000, show_default=True, help="Simulated rollouts of equal versions.")
@click.option("--steps", default="25,50,100", show_default=True, help="Shares of the measured rollouts.")
def main(folder: Path, runs: int, simulated: int, equal: int, steps: str) -> None:
    """Measure and simulate rollouts of bad versions and of equal ones."""
    texts, plan = answers.read_texts(), Plan(window_seconds=WINDOW_SECONDS)
    loaded = bundle.load(folder)
    scores = stored_scores(loaded)
    expected = Expected.of(scores, scores)
    recording = record(folder, texts)
    p50, p95, p99 = (1000 * float(value) for value in np.quantile(recording.seconds, (0.5, 0.95, 0.99)))
    click.echo(f"recorded: {len(recording.seconds)} requests, p50 {p50:.1f}, p95 {p95:.1f}, p99 {p99:.1f} ms")
    lines = [
        "| bad version | measured: requests until rollback | seconds | simulated: requests, median | taken back | by |",
        "|---|---|---|---|---|---|",
    ]
    generator = np.random.default_rng(0)
    for fault, text in FAULTS.items():
        measured = [measure(folder, fault, replace(plan, steps=steps), texts) for _ in range(runs)]
        outcomes = [Simulation(recording, loaded.thresholds, expected, plan, fault).run(generator) for _ in range(simulated)]
        caught = [one for one in outcomes if one.reason]
        reasons = sorted({name for name, reason in TESTS.items() for one in measured if reason in one.reason})
        lines.append(
            f"| {text} | {', '.join(f'{one.requests:.0f}' if one.reason else 'not taken back' for one in measured)} | "
            f"{', '.join(f'{one.seconds:.0f}' for one in measured)} | {quantiles([one.requests for one in caught])} | "
            f"{len(caught)} of {len(outcomes)} | {', '.join(reasons)} |"
        )
        click.echo(lines[-1])
    wrong = [Simulation(recording, loaded.thresholds, expected, plan, "").run(generator) for _ in range(equal)]
    first = sum(bool(one.reason) for one in wrong[:50])
    lines.append("")
    lines.append(
        f"Equal versions: {first} of the first 50 and {sum(bool(one.reason) for one in wrong)} of {equal} simulated rollouts were "
        f"taken back; a rollout took {quantiles([one.seconds for one in wrong])} s."
    )
    click.echo("\n".join(lines))


if __name__ == "__main__":
    main()
