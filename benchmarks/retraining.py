"""26 weeks of a schedule in a simulation: when the model is trained, how long after a change, and which runs are skipped.

    python -m benchmarks.retraining

Every week ``monitoring.retraining.decide`` decides on a real MLflow registry (SQLite). Nothing is trained: a training is a version
with the digest of its data and the decision, which becomes the champion or not as the scenario says, at a simulated time.
"""

from __future__ import annotations

import os
import sqlite3
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import click

from goemotions.evaluation.drift import DriftReport, DriftTest
from goemotions.monitoring import retraining
from goemotions.monitoring.retraining import DAY, Decision, Policy
from goemotions.registry import mlflow_client, model_registry, promotion, tracking
from goemotions.registry.bundle import VARIANTS
from goemotions.registry.model_registry import Version

WEEKS = 26
START = datetime(2026, 1, 4, 3, tzinfo=UTC).timestamp()
POLICY = Policy(max_age_days=42, drift_cooldown_days=28)
MODEL = "simulated"


@dataclass(frozen=True)
class Change:
    """Something that happens between two runs.

    Attributes:
        day: when, from the first run.
        kind: data, drift, manual, or age, which happens by itself.
        name: of the change, for the table.
        passes: whether the gate accepts what is trained because of it.
    """

    day: float
    kind: retraining.Kind
    name: str
    passes: bool = True


CHANGES = (
    Change(24, "data", "new data"),
    Change(59, "drift", "drift of the traffic"),
    Change(94, "data", "new data, whose model the gate refuses", passes=False),
    Change(122, "manual", "a person's reason, which stays set"),
    Change(168, "age", "the champion reaches 42 days"),
)


@dataclass(frozen=True)
class Week:
    """A run of the schedule.

    Attributes:
        number: from 1.
        change: what the training answers to, if there is one.
        lag_days: from the change to the run.
    """

    number: int
    decision: Decision
    change: Change | None = None
    lag_days: float = 0.0


class Registry:
    """A registered model in MLflow, whose versions are created at simulated times.

    Args:
        database: the file of MLflow's SQLite store.
    """

    def __init__(self, database: Path, model_name: str = MODEL) -> None:
        self.database = database
        self.model_name = model_name

    def add(self, now: float, digest: str, decision: Decision | None = None, *, is_champion: bool = True) -> list[Version]:
        """A version per variant, as ``register`` creates them."""
        run = tracking.get_or_create_run(f"{self.model_name} {now}")
        made = []
        for variant in VARIANTS:
            tags = {"variant": variant, "dataset_digest": digest}
            if decision:
                tags[tracking.DECISION_TAG] = decision.to_json()
            version = model_registry.get_or_create_version(
                self.model_name, run.run_id, f"s3://simulated/{now}/{variant}/", tags
            )
            with closing(sqlite3.connect(self.database)) as connection, connection:
                connection.execute(
                    "UPDATE model_versions SET creation_time = ? WHERE name = ? AND version = ?",
                    (round(now * 1000), self.model_name, version.number),
                )
            if is_champion:
                model_registry.set_alias(self.model_name, promotion.champion_alias(variant), version.number)
            made.append(version)
        return made


@contextmanager
def registry(folder: Path) -> Iterator[Registry]:
    """An MLflow store of its own in a folder; MLFLOW_TRACKING_URI names it for as long as the block lasts."""
    before, database = os.environ.get("MLFLOW_TRACKING_URI"), folder / "mlflow.db"
    os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{database}"
    mlflow_client.client.cache_clear()
    try:
        yield Registry(database)
    finally:
        os.environ.pop("MLFLOW_TRACKING_URI") if before is None else os.environ.update(MLFLOW_TRACKING_URI=before)
        mlflow_client.client.cache_clear()


def drift_report(version: str, now: float, *, drifted: bool) -> DriftReport:
    """A report on the week before a time."""
    test = DriftTest("predictions", "joy", 12.0, 1e-6 if drifted else 0.5, 1e-4, 2.0 if drifted else 1.0, drifted)
    start, end = (datetime.fromtimestamp(time, UTC).isoformat() for time in (now - 7 * DAY, now))
    return DriftReport(MODEL, version, start, end, 10_000, drifted, [test], [])


def simulate(registry: Registry) -> list[Week]:
    """The runs of a weekly schedule. The first champion is made a day before the first run."""
    champions = registry.add(START - DAY, "data-0")
    digest, manual, result = "data-0", "", list[Week]()
    pending: list[Change] = []
    for number in range(1, WEEKS + 1):
        day = 7.0 * number
        now = START + day * DAY
        happened = [change for change in CHANGES if day - 7 < change.day <= day]
        pending += happened
        for change in happened:
            digest = change.name if change.kind == "data" else digest
            manual = change.name if change.kind == "manual" else manual
        is_drifting = any(change.kind == "drift" for change in pending)
        report = drift_report(champions[0].number, now, drifted=is_drifting)
        decision = retraining.decide(digest, report, manual, model_name=registry.model_name, policy=POLICY, now=now)
        answered = next((change for change in pending if change.kind in decision.kinds), None)
        if decision.train:
            passes = answered is None or answered.passes
            versions = registry.add(now, digest, decision, is_champion=passes)
            champions = versions if passes else champions
        if answered:
            pending.remove(answered)
        result.append(Week(number, decision, answered, day - answered.day if answered else 0.0))
    return result


def table(weeks: Sequence[Week]) -> str:
    """The trainings, and the sum of all runs, as Markdown."""
    trained = [week for week in weeks if week.decision.train]
    rows = [
        f"| {week.number} | {week.change.name if week.change else 'none'} | {week.decision.kinds} | {week.lag_days:g} |"
        for week in trained
    ]
    skipped = len(weeks) - len(trained)
    answered = [week.lag_days for week in trained if week.change]
    lag = f"lag {min(answered):g} to {max(answered):g} days" if answered else "no change"
    return "\n".join(
        [
            "| week | change | reason | days from the change to the run |",
            "|---:|---|---|---:|",
            *rows,
            "",
            f"{len(weeks)} runs: {len(trained)} trainings, {skipped} skipped, {lag}. A schedule without reasons trains "
            f"{len(weeks)} times.",
        ]
    )


@click.command()
@click.option("--every-run", is_flag=True, help="Also print what each run said.")
def main(every_run: bool) -> None:
    """Simulate 26 weeks with 5 changes."""
    with tempfile.TemporaryDirectory() as folder, registry(Path(folder)) as simulated:
        weeks = simulate(simulated)
    for week in weeks if every_run else ():
        click.echo(f"week {week.number}: {week.decision}")
    click.echo(table(weeks))


if __name__ == "__main__":
    main()
