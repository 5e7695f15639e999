"""When a model is trained again, on a real MLflow registry whose versions have simulated times."""

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import retraining as simulation
from benchmarks.retraining import Registry, drift_report
from goemotions.errors import BadArgument, TrackingError
from goemotions.monitoring.retraining import DAY, Decision, Policy, Reason, decide, decide_run
from goemotions.registry import mlflow_client, model_registry, tracking

NOW = simulation.START
POLICY = Policy(max_age_days=90, drift_cooldown_days=28)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    with simulation.registry(tmp_path_factory.mktemp("mlflow")) as made:
        yield made


@pytest.fixture
def registry(store: Registry, request: pytest.FixtureRequest) -> Registry:
    """A registered model of its own; its champions were trained ten days ago on the data `old`."""
    own = Registry(store.database, request.node.name.replace("[", "-").replace("]", ""))
    own.add(NOW - 10 * DAY, "old")
    return own


def decided(registry: Registry, digest: str = "old", *, manual: str = "", days: float = 0.0, drifted: bool = False) -> Decision:
    version = model_registry.get_version(registry.model_name, "champion-cpu").number
    report = drift_report(version, NOW + days * DAY, drifted=drifted)
    return decide(digest, report, manual, model_name=registry.model_name, policy=POLICY, now=NOW + days * DAY)


@pytest.mark.fault("nothing-to-train-for")
def test_without_a_reason_nothing_is_trained_and_the_decision_says_what_was_looked_at(registry: Registry) -> None:
    decision = decided(registry)
    assert not decision.train
    assert decision.kinds == ""
    assert str(decision).startswith(
        "skipped: the data is unchanged since version 1 (digest old); the drift report up to 2026-01-04"
    )
    assert str(decision).endswith("has no drift (10,000 texts); version 1 is 10 days old")


def test_each_reason_trains_and_several_are_all_named(registry: Registry) -> None:
    assert decided(registry, "new").kinds == "data"
    assert decided(registry, drifted=True).kinds == "drift"
    assert decided(registry, days=80).kinds == "age"
    assert decided(registry, manual="it's the raters' guidelines").kinds == "manual"
    everything = decided(registry, "new", manual="now", days=80, drifted=True)
    assert everything.kinds == "data, drift, age, manual"
    assert str(everything).startswith("training, because the data is new: digest new, the champion's is old; the drift report")
    assert Decision.from_json(everything.to_json()) == replace(everything, reasons=list(everything.reasons), dismissed=[])
    assert decide("old", model_name="never-registered", now=NOW).kinds == "first"


@pytest.mark.fault("retraining-refused")
@pytest.mark.parametrize("kind", ["data", "drift", "age", "manual"])
def test_a_reason_whose_model_the_gate_refused_does_not_train_again(registry: Registry, kind: str) -> None:
    digest, manual = "new" if kind == "data" else "old", "guidelines" if kind == "manual" else ""
    days = 80 if kind == "age" else 0
    first = decided(registry, digest, manual=manual, days=days, drifted=kind == "drift")
    assert first.kinds == kind
    registry.add(NOW + days * DAY, digest, first, is_champion=False)
    for later in (7, 14, 21):
        again = decided(registry, digest, manual=manual, days=days + later, drifted=kind == "drift")
        assert not again.train
        assert "version 3" in str(again) or "version 4" in str(again)


def test_drift_that_lasts_trains_again_after_the_cool_down_and_age_after_the_limit(registry: Registry) -> None:
    registry.add(NOW, "old", decided(registry, drifted=True), is_champion=False)
    assert [day for day in range(7, 36, 7) if decided(registry, days=day, drifted=True).train] == [28, 35]
    registry.add(NOW + 80 * DAY, "old", decided(registry, days=80), is_champion=False)
    assert [day for day in range(90, 181, 10) if decided(registry, days=day).train] == [170, 180]


def test_a_clock_that_is_years_ahead_of_mlflow_s_trains_by_age_once_per_limit(registry: Registry) -> None:
    """MLflow's clock names each new version as of today, which by the other clock is ten years old."""
    trained = []
    for day in range(0, 181, 10):
        decision = decided(registry, days=3650 + day)
        if decision.train:
            trained.append((day, decision.kinds))
            registry.add(NOW + day * DAY, "old", decision)
    assert trained == [(0, "age"), (90, "age"), (180, "age")]
    # The clock is right again.
    assert "is 10 days old" in str(decided(registry, days=190))


def test_a_champion_of_the_future_is_no_reason_and_is_named(registry: Registry) -> None:
    decision = decided(registry, days=-40)
    assert not decision.train
    assert "version 1 was registered 30 days after this run by the clock of MLflow: the clocks differ" in str(decision)


def test_one_drift_report_trains_once_however_long_it_stays_the_newest(registry: Registry) -> None:
    report = drift_report("1", NOW, drifted=True)
    decision = decide("old", report, model_name=registry.model_name, policy=POLICY, now=NOW)
    registry.add(NOW, "old", decision, is_champion=False)
    for days in (7, 60):
        again = decide("old", report, model_name=registry.model_name, policy=POLICY, now=NOW + days * DAY)
        assert not again.train
        assert "was trained because of the drift report up to 2026-01-04" in str(again)


def test_each_drift_report_of_batch_outputs_trains_though_they_have_no_time(registry: Registry) -> None:
    first = replace(drift_report("1", NOW, drifted=True), start="", end="", source="s3://bucket/scored/")
    decision = decide("old", first, model_name=registry.model_name, policy=POLICY, now=NOW)
    registry.add(NOW, "old", decision, is_champion=False)
    second = replace(first, tests=[replace(test, statistic=test.statistic + 1) for test in first.tests])
    later = NOW + 60 * DAY
    again, new = (decide("old", one, model_name=registry.model_name, policy=POLICY, now=later) for one in (first, second))
    assert "was trained because of the drift report of s3://bucket/scored/" in str(again)
    assert new.kinds == "drift"


def test_a_drift_report_of_a_former_champion_is_no_reason(registry: Registry) -> None:
    report = drift_report("1", NOW, drifted=True)
    registry.add(NOW + DAY, "old")
    decision = decide("old", report, model_name=registry.model_name, policy=POLICY, now=NOW + 2 * DAY)
    assert "is of version 1, which is no champion" in str(decision)


def test_a_drift_report_from_before_the_version_is_that_of_another_registry(registry: Registry) -> None:
    """MLflow's database was set up anew, and the store still has a report of a former version 1."""
    former = drift_report("1", NOW - 30 * DAY, drifted=True)
    decision = decide("old", former, model_name=registry.model_name, policy=POLICY, now=NOW)
    assert "is from before version 1 was registered" in str(decision)
    assert not decision.train


def test_a_long_reason_is_remembered_as_others_are(registry: Registry, tmp_path: Path) -> None:
    """MLflow cuts a tag after some thousand characters."""
    manual = "because \U0001f600" * 2000
    for _ in range(2):
        decision = decide_run("long", "old", str(tmp_path), manual, registry.model_name, Policy(0))
        assert decision.kinds == "manual"
    registry.add(NOW, "old", decision, is_champion=False)
    again = decide("old", None, manual, model_name=registry.model_name, policy=POLICY, now=NOW)
    assert "was trained for the reason" in str(again)
    assert decide("old", None, manual + ".", model_name=registry.model_name, policy=POLICY, now=NOW).kinds == "manual"


@pytest.mark.parametrize("days", [-1.0, float("nan"), float("inf")])
def test_limits_that_are_no_number_of_days_are_named_errors(days: float) -> None:
    """They would train with every run of the schedule."""
    for name in ("max_age_days", "drift_cooldown_days"):
        with pytest.raises(BadArgument, match=f"{name} is a number of days, not "):
            Policy(**{name: days})


def test_new_data_trains_even_if_only_one_variant_has_a_champion_of_it(registry: Registry) -> None:
    model_registry.set_alias(registry.model_name, "champion-cpu", registry.add(NOW, "new", is_champion=False)[1].number)
    assert "is that of version 4, which did not replace version 1" in str(decided(registry, "new"))
    assert decided(registry, "newer").kinds == "data"


def test_the_decision_of_a_pipeline_run_is_logged_and_a_retried_step_decides_nothing_else(
    registry: Registry, tmp_path: Path
) -> None:
    name = registry.model_name
    registry.add(time.time(), "old")
    arguments = ("old", str(tmp_path), "", name, POLICY)
    skipped = decide_run("skipped-run", *arguments)
    assert "there is no drift report" in str(skipped)
    run = mlflow_client.client().get_run(tracking.get_or_create_run("skipped-run").run_id)
    assert run.info.status == "FINISHED"
    assert (run.data.tags["retraining.reasons"], run.data.params["retraining_reasons"]) == ("none", "none")
    assert run.data.tags["retraining.why"] == str(skipped)
    drift_report("3", time.time(), drifted=True).write(str(tmp_path))
    assert decide_run("skipped-run", *arguments) == skipped
    training = decide_run("training-run", *arguments)
    assert training.kinds == "drift"
    run = mlflow_client.client().get_run(tracking.get_or_create_run("training-run").run_id)
    assert run.info.status == "RUNNING"
    assert (run.data.tags["retraining.reasons"], run.data.params["retraining_reasons"]) == ("drift", "drift")


def test_a_tag_that_somebody_changed_is_no_memory(registry: Registry) -> None:
    version = registry.add(NOW, "old", Decision([Reason("manual", "guidelines", "guidelines")]))[0]
    assert not decided(registry, manual="guidelines").train
    for variant in (version.number, str(int(version.number) + 1)):
        mlflow_client.client().set_model_version_tag(registry.model_name, variant, tracking.DECISION_TAG, "[1]")
    assert decided(registry, manual="guidelines").train


def test_a_registry_that_does_not_respond_is_an_error_and_no_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    with pytest.raises(TrackingError):
        decide("old", model_name="any", now=NOW)


def test_26_weeks_with_5_changes_train_5_times(store: Registry) -> None:
    weeks = simulation.simulate(Registry(store.database, "weeks"))
    trained = [week for week in weeks if week.decision.train]
    assert [week.change for week in trained] == list(simulation.CHANGES)
    assert [week.decision.kinds for week in trained] == ["data", "drift", "data", "manual", "age"]
    assert all(0 <= week.lag_days <= 7 for week in trained)
    assert simulation.table(weeks) in (Path(__file__).parents[2] / "docs" / "monitoring.md").read_text(encoding="utf-8")
