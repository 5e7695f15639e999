"""Retirement: bundles that nothing refers to are removed, others never, and a retirement that was killed is completed."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import hypothesis
import pytest
from click.testing import CliRunner, Result
from hypothesis import strategies as st

from goemotions.cli import main as cli
from goemotions.errors import ModelError, PromotionRefused, StorageError, TrackingError
from goemotions.registry import changes, model_registry, orphans, promotion, references, retirement, rollouts, tracking, trust
from goemotions.registry.bundle import BundleLocation
from goemotions.registry.changes import HISTORY_TAG, Change
from goemotions.registry.mlflow_client import retrying
from goemotions.registry.model_registry import Version
from goemotions.registry.retirement import DAY_SECONDS, Policy
from goemotions.registry.rollouts import Record
from goemotions.storage import layout, lock, manifest, s3, store
from tests.support.champions import make_champion

EVERYTHING = Policy(newest=0, days=0)


@dataclass
class Model:
    """A registered model whose bundles are small files in S3."""

    name: str
    store: str
    scratch: Path

    def add(self, variant: Any = "cpu", model: str = "", location: str = "") -> Version:
        """A new version, with a bundle of its own unless the location of one is given."""
        name = model or self.name
        run = tracking.get_or_create_run(f"{name}-{variant}-{len(list(self.scratch.iterdir()))}").run_id
        if not location:
            folder = self.scratch / run
            folder.mkdir()
            (folder / "model.onnx").write_bytes(b"weights")
            manifest.write(folder, variant=variant, run_id=run)
            location = str(BundleLocation(self.store, name, run, variant))
            store.put(folder, location)
        return model_registry.get_or_create_version(name, run, location, {"variant": variant, "profile": "minilm"})

    def orphan(self, name: str) -> str:
        """The location of a bundle without a version."""
        run_id = tracking.get_or_create_run(f"{self.name}-{name}").run_id
        location = str(BundleLocation(self.store, self.name, run_id, "cpu"))
        store.write(location, manifest.NAME, b"{}")
        return location

    def stored(self) -> set[str]:
        """Numbers of the versions whose bundle is in the store with all its files."""
        return {one.number for one in model_registry.versions(self.name) if len(store.files(one.source)) == 2}

    def retire(self, policy: Policy = EVERYTHING, served: tuple[str, ...] = ()) -> list[str]:
        return [one.version.number for one in retirement.retire(self.name, policy, served) if not one.kept]


@pytest.fixture
def two_days_later(monkeypatch: pytest.MonkeyPatch) -> None:
    """For what looks for orphans."""
    monkeypatch.setattr(orphans, "time", SimpleNamespace(time=lambda: time.time() + 2 * DAY_SECONDS))


@pytest.fixture
def model(bucket: str, request: pytest.FixtureRequest, tmp_path: Path) -> Model:
    scratch = tmp_path / "bundles"
    scratch.mkdir()
    return Model(re.sub(r"\W+", "-", request.node.name), bucket, scratch)


def run(*arguments: str) -> Result:
    return CliRunner().invoke(cli.commands, ["model", "retire", "--no-cluster", *arguments], catch_exceptions=False)


def test_what_is_referred_to_is_kept_and_the_rest_is_removed(model: Model) -> None:
    first, second, third, fourth, fifth = (model.add() for _ in range(5))
    for champion in (first, second):
        make_champion(model.name, champion.number)
    model_registry.set_alias(model.name, "challenger-cpu", third.number)
    changes.record(model.name, fourth, "deploy", "ns/goemotions-cpu", "")
    kept = {one.version.number: one.kept for one in retirement.plan(model.name, EVERYTHING)}
    assert kept == {
        "1": "champion-cpu was it before version 2: a rollback goes back to it",
        "2": "champion-cpu",
        "3": "challenger-cpu",
        "4": "deployed to ns/goemotions-cpu",
        "5": "",
    }
    assert model.retire() == [fifth.number]
    assert model.stored() == {"1", "2", "3", "4"}
    assert store.files(fifth.source) == []
    assert model.retire() == []


@pytest.mark.fault("rollout-participant-retired")
def test_the_versions_of_an_unfinished_rollout_are_kept(model: Model) -> None:
    """Also if the champion of the rollout is none any more."""
    champion, candidate, other, _ = (model.add() for _ in range(4))
    rollouts.begin(model.name, "this-machine-cpu", candidate, Record(candidate.number, champion.number, "d" * 64))
    kept = {one.version.number: one.kept for one in retirement.plan(model.name, EVERYTHING)}
    assert kept == {
        "1": "the rollout of version 2 on this-machine-cpu goes back to it",
        "2": "its rollout on this-machine-cpu is not finished",
        "3": "",
        "4": "",
    }
    assert model.retire(Policy(newest=1, days=0)) == [other.number]
    with pytest.raises(ModelError, match="version 3 is retired"):
        rollouts.begin(model.name, "gpu", other, Record(other.number, champion.number, "d" * 64))
    rollouts.write(model.name, "this-machine-cpu", Record(candidate.number, champion.number, "d" * 64, "rolled back"))
    assert model.retire(Policy(newest=1, days=0)) == [champion.number, candidate.number]


@pytest.mark.fault("rollout-participant-retired")
@pytest.mark.parametrize("value", ["", "[]", "{", '{"version": 1}'])
def test_a_damaged_record_of_a_rollout_retires_nothing(model: Model, value: str) -> None:
    model.add()
    retrying.set_registered_model_tag(model.name, "goemotions.rollout.x", value)
    with pytest.raises(TrackingError, match=r"its tag goemotions.rollout.x is damaged: remove it in MLflow"):
        model.retire()


def test_references_to_a_retired_version_are_named_errors(model: Model, tmp_path: Path) -> None:
    first, _, third = (model.add() for _ in range(3))
    make_champion(model.name, third.number)
    model.retire(Policy(newest=1, days=0))
    gone = rf"^version {first.number} is retired \(.* by .*@.*\), its bundle is removed: take another version$"
    for refer in (
        lambda: promotion.promote(first.number, model_name=model.name),
        lambda: promotion.rollback("cpu", model_name=model.name, to=first.number),
        lambda: references.download(first.number, tmp_path / "out", model.name),
        lambda: model_registry.get_or_create_version(model.name, first.run_id, first.source, {}),
        lambda: make_champion(model.name, first.number),
    ):
        with pytest.raises((ModelError, PromotionRefused), match=gone):
            refer()


def test_the_newest_of_each_variant_and_young_versions_are_kept(model: Model) -> None:
    for variant in ("cpu", "cpu", "gpu", "cpu", "gpu"):
        model.add(variant)
    assert model.retire(Policy(newest=0, days=1)) == []
    assert model.retire(Policy(newest=1, days=0)) == ["1", "2", "3"]
    assert model.stored() == {"4", "5"}


def test_a_bundle_that_is_served_or_that_another_version_has_is_kept(model: Model) -> None:
    first, second, third = (model.add() for _ in range(3))
    model.add(location=second.source.rstrip("/"))
    model.add(location=third.source, model=f"{model.name}-other")
    elsewhere = f"s3://in-the-cluster/{first.source.removeprefix('s3://').partition('/')[2]}"
    assert model.retire(served=(elsewhere,)) == []
    assert model.stored() == {"1", "2", "3", "4"}


@pytest.mark.parametrize(
    "source",
    [
        "s3://b/",
        "s3://b/models/other/r/cpu/",
        "s3://b/models/m/../cpu/",
        "s3://b/models/m/r/tpu/",
        "/",
        "models:/m/1",
        "/tmp/m/",
    ],
)
def test_a_source_that_is_no_bundle_of_the_model_is_never_removed(source: str) -> None:
    versions = [Version("1", source, "r", {"variant": "cpu"})]
    (decision,) = retirement.decide(versions, {}, EVERYTHING, model_name="m", now=10 * DAY_SECONDS)
    assert decision.kept == "its source is no bundle of this model"


@pytest.mark.fault("version-forged")
def test_what_is_not_where_register_writes_is_never_removed(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    # Whoever can write to MLflow can create a version of any location, and who retires may be able to remove files there.
    theirs = Model(model.name, f"{model.store}theirs/", model.scratch)
    foreign, orphan = theirs.add(), theirs.orphan("theirs")
    make_champion(model.name, model.add().number)
    monkeypatch.setenv(trust.STORE, model.store)
    assert {one.kept for one in retirement.plan(model.name, EVERYTHING)} == {
        "champion-cpu",
        "`register` does not write where its source is",
    }
    assert model.retire() == []
    assert orphans.plan(model.name, days=0) == []
    assert store.files(foreign.source)
    assert store.files(orphan)


@pytest.mark.fault("version-forged")
@pytest.mark.parametrize(
    "values",
    [{"sequence": "1"}, {"sequence": None}, {"from": 1}, {"from": {"1": 1}}, {"where": ["x"]}, {"at": 5}, {"action": "x"}],
    ids=str,
)
def test_a_forged_history_is_a_named_error(values: dict[str, Any]) -> None:
    entry = {"action": "promote", "where": "champion-cpu", "from": "1", "to": "2", "by": "x", "at": "2026"} | values
    forged = Version("2", "s3://b/models/m/r/cpu/", "r", {f"{HISTORY_TAG}2": json.dumps(entry)})
    with pytest.raises(TrackingError, match=r"version 2: its tag goemotions.history.2 is damaged: remove it in MLflow"):
        changes.history(forged)


@pytest.mark.fault("version-forged")
@pytest.mark.parametrize("number", ["", "first", "-1", "9" * 5000])
def test_a_forged_number_of_changes_moves_nothing(model: Model, number: str) -> None:
    version = model.add()
    retrying.set_registered_model_tag(model.name, changes.CHANGES_TAG, number)
    with pytest.raises(TrackingError, match=r"its tag goemotions.changes is damaged: set it in MLflow to the highest number"):
        make_champion(model.name, version.number)
    assert promotion.champion(model.name, "cpu") is None


@pytest.mark.fault("version-forged")
def test_a_version_without_a_variant_is_a_named_error(model: Model) -> None:
    number = model.add().number
    retrying.delete_model_version_tag(model.name, number, "variant")
    for command in ("deploy", "rollout"):
        result = CliRunner().invoke(cli.commands, ["model", command, number, "--model-name", model.name])
        assert isinstance(result.exception, ModelError), result.exception
        assert f"version {number} has no tag `variant`: set it in MLflow" in str(result.exception)


@pytest.mark.fault("retirement-interrupted")
@pytest.mark.parametrize(
    ("step", "call"), [("set_tag", 2), ("delete", 2), ("set_tag", 4)], ids=["retired", "delete", "removed"]
)
def test_a_retirement_that_was_killed_is_completed_by_the_next(
    model: Model, monkeypatch: pytest.MonkeyPatch, step: str, call: int
) -> None:
    """Killed before a step; afterwards no version is without a complete bundle unless it is marked."""
    for _ in range(3):
        model.add()
    with monkeypatch.context() as patched:
        owner: Any = (
            __import__("goemotions.storage.s3", fromlist=["S3Backend"]).S3Backend if step == "delete" else model_registry
        )
        calls, original = [0], getattr(owner, step)

        def killed(*arguments: Any) -> Any:
            calls[0] += 1
            if calls[0] == call:
                raise KeyboardInterrupt
            if step == "delete":
                # Only the first file is deleted: the manifest.
                return original(arguments[0], list(arguments[1])[:1]) or (_ for _ in ()).throw(KeyboardInterrupt)
            return original(*arguments)

        patched.setattr(owner, step, killed)
        with pytest.raises(KeyboardInterrupt):
            model.retire(Policy(newest=1, days=0))
    for version in model_registry.versions(model.name):
        files = {file.name for file in store.files(version.source)}
        assert version.is_retired or len(files) == 2
        assert manifest.NAME in files or version.is_retired
        assert files in ({"model.onnx", manifest.NAME}, {"model.onnx"}, set())
    model.retire(Policy(newest=1, days=0))
    assert model.stored() == {"3"}
    assert [store.files(version.source) for version in model_registry.versions(model.name)].count([]) == 2
    assert retirement.plan(model.name, EVERYTHING)[0].version.number == "3"


def test_an_alias_that_moves_while_the_plan_is_made_is_respected(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    first, _ = model.add(), model.add()
    hold = lock.hold

    def promoted_meanwhile(location: str) -> Any:
        model_registry.set_alias(model.name, "champion-cpu", first.number)
        return hold(location)

    monkeypatch.setattr(retirement.lock, "hold", promoted_meanwhile)
    assert model.retire() == ["2"]
    assert model.stored() == {first.number}


def test_the_command_shows_first_and_removes_with_yes(model: Model, tmp_path: Path) -> None:
    for _ in range(3):
        model.add()
    options = ("--model-name", model.name, "--keep", "1", "--days", "0", "--file", str(tmp_path / "none.yaml"))
    shown = run(*options)
    assert "version 1 (cpu, minilm): would be removed, 0.0 MB" in shown.output
    assert "version 3 (cpu, minilm): kept: one of the 1 newest for cpu" in shown.output
    assert shown.output.endswith("2 of 3 versions, 0.0 MB would be removed: nothing was, --yes (YES=1) does it\n")
    assert model.stored() == {"1", "2", "3"}
    assert run(*options, "--yes").output.endswith("2 of 3 versions, 0.0 MB removed\n")
    assert model.stored() == {"3"}
    with pytest.raises(ModelError, match="no model nobody is registered"):
        run("--model-name", "nobody")


NUMBERS = [str(number) for number in range(1, 9)]
CHANGES = st.lists(
    st.tuples(st.sampled_from(["champion-cpu", "champion-gpu", "ns/service"]), st.sampled_from(NUMBERS)), max_size=12
)


@hypothesis.settings(max_examples=300, deadline=None)
@hypothesis.given(
    CHANGES,
    st.dictionaries(st.sampled_from(["challenger-cpu", "mine"]), st.sampled_from(NUMBERS)),
    st.sets(st.sampled_from(NUMBERS)),
    st.sets(st.sampled_from(NUMBERS)),
    st.sets(st.sampled_from(NUMBERS)),
    st.integers(0, 3),
)
def test_no_reference_ever_reaches_a_retired_bundle(
    changes: list[tuple[str, str]],
    others: dict[str, str],
    served: set[str],
    same_bundle: set[str],
    marked: set[str],
    newest: int,
) -> None:
    """Any history of aliases and deployments, on hosts with any clocks, and any versions that are marked or share a bundle."""
    aliases, tags = dict(others), {number: {"variant": "cpu"} for number in NUMBERS}
    current: dict[str, str] = {}
    for sequence, (target, number) in enumerate(changes, start=1):
        action: Any = "deploy" if "/" in target else "promote"
        clock = f"{9999 - sequence}"
        entry = Change(action, target, current.get(target, ""), number, "x@y", clock, sequence=sequence)
        tags[number][f"{HISTORY_TAG}{sequence:08d}.{clock}"] = entry.to_json()
        current[target] = number
    rollbacks = {
        json.loads(max(value for name, value in sorted(tags[number].items()) if name.startswith(HISTORY_TAG)))["from"]
        for target, number in current.items()
        if "/" not in target and len([name for name in tags[number] if name.startswith(HISTORY_TAG)]) == 1
    }
    aliases |= {target: number for target, number in current.items() if "/" not in target}
    for number in marked:
        tags[number][model_registry.RETIRED_TAG] = "then"

    def source(number: str) -> str:
        return f"s3://b/models/m/run-{'same' if number in same_bundle else number}/cpu/"

    versions = [Version(number, source(number), "r", tags[number], created=0.0) for number in NUMBERS]
    decisions = retirement.decide(
        versions,
        aliases,
        Policy(newest, 7),
        model_name="m",
        now=8 * DAY_SECONDS,
        served=[source(number).replace("//b/", "//other/") for number in served],
    )
    removed = {source(one.version.number) for one in decisions if not one.kept}
    reached = {*aliases.values(), *current.values(), *rollbacks, *served} - {""}
    assert not removed & {source(number) for number in reached}
    assert not removed & {source(one.version.number) for one in decisions if one.kept}
    unmarked = [number for number in NUMBERS if number not in marked]
    assert not removed & {source(number) for number in unmarked[::-1][:newest]}
    young = retirement.decide(versions, aliases, Policy(0, 7), model_name="m", now=6 * DAY_SECONDS)
    assert {one.version.number for one in young if not one.kept} <= marked


@pytest.mark.fault("registration-interrupted")
def test_what_no_version_refers_to_is_removed_when_it_is_old(model: Model, two_days_later: None) -> None:
    """Bundles of registrations that crashed, and trained models of runs without a version."""
    version = model.add()
    orphan = model.orphan("crashed")
    trained = {name: layout.trained(model.store, name, "minilm") for name in ("kept", "lost")}
    for name, run_id in (("kept", version.run_id), ("lost", orphan.split("/")[-3])):
        store.write(trained[name], manifest.NAME, json.dumps({"run_id": run_id, "files": {}}).encode())
    assert orphans.plan(model.name, days=3, trained_days=3) == []
    planned = orphans.plan(model.name, days=0, trained_days=0)
    assert {one.location for one in planned} == {orphan, trained["lost"]}
    assert run("--model-name", model.name, "--days", "0").output.count("no version has it") == 1
    assert store.files(orphan)
    assert [one.location for one in orphans.remove(planned)] == [one.location for one in planned]
    assert not store.files(orphan)
    assert not store.files(trained["lost"])
    assert store.files(trained["kept"])
    assert model.stored() == {version.number}


def test_a_trained_model_of_a_run_with_slashes_is_removed_when_it_is_old(model: Model, two_days_later: None) -> None:
    model.add()
    run_id = model.orphan("crashed").split("/")[-3]
    location = layout.trained(model.store, "team/nightly/7", "minilm")
    store.write(location, manifest.NAME, json.dumps({"run_id": run_id, "files": {}}).encode())
    store.write(location, "cpu/metrics.json", b"{}")
    beside = layout.trained(model.store, "team/nightly/8", "minilm")
    store.write(beside, manifest.NAME, json.dumps({"run_id": "0" * 32, "files": {}}).encode())
    planned = [one for one in orphans.plan(model.name, days=30, trained_days=0) if "trained" in one.location]
    assert [one.location for one in planned] == [location]
    orphans.remove(planned)
    assert not store.files(location)
    assert store.files(beside)


@pytest.mark.fault("lock-lost")
def test_what_a_step_has_written_meanwhile_stays_when_a_suspended_removal_goes_on(
    model: Model, two_days_later: None, tmp_path: Path
) -> None:
    """Nobody takes over the lock: a step does not need it for its upload."""
    model.add()
    tracking.get_or_create_run(model.name, "minilm")
    location, folder = layout.trained(model.store, model.name, "minilm"), tmp_path / "folder"
    folder.mkdir()
    names = ("a", "b", "c")
    for name in names:
        (folder / name).write_bytes(b"x")
        store.write(location, name, b"x")
    manifest.write(folder)
    (orphan,) = orphans.plan(model.name, days=0)

    def complete(params: dict[str, str], **_: Any) -> None:
        if params["Key"].endswith("minilm/a"):
            events.unregister("before-parameter-build.s3.DeleteObject", complete)
            time.sleep(1.1)
            store.put(folder, location)

    events = s3.client().meta.events
    events.register("before-parameter-build.s3.DeleteObject", complete)
    with pytest.raises(StorageError, match=rf"{location} was written to while it was removed.*run the step again"):
        orphans.remove([orphan])
    assert {file.name for file in store.files(location)} >= {"b", "c"}


KILLED = """
import os, signal, sys
from pathlib import Path
from goemotions.storage import s3, store
upload = s3.S3Backend.upload
def killed(backend, path, name):
    if name == "weights":
        os.kill(os.getpid(), signal.SIGKILL)
    upload(backend, path, name)
s3.S3Backend.upload = killed
store.put(Path(sys.argv[1]), sys.argv[2])
"""


@pytest.fixture
def unfinished(model: Model, tmp_path: Path) -> dict[str, str]:
    """Folders whose upload was killed, of a run and of a teacher, and such as others might have."""
    tracking.get_or_create_run(model.name, "minilm")
    teacher = layout.checkpoints(model.store, "teachers", "b" * 32)
    folders = {
        "trained": layout.trained(model.store, model.name, "minilm"),
        "checkpoint": store.join(layout.checkpoints(model.store, model.name, "minilm"), "step-000000001"),
        "teacher": layout.teacher(model.store, "a" * 32),
        "teacher's checkpoint": store.join(teacher, "step-000000001"),
        "of another run": layout.trained(model.store, "llama", "7b"),
        "of others": f"{model.store}checkpoints/it's/7b/step-000000001/",
        "of others, too": f"{model.store}teachers/mine/",
    }
    folder = tmp_path / "folder"
    (folder / "gpu").mkdir(parents=True)
    for name in ("config.json", "gpu/metrics.json", "weights"):
        (folder / name).write_bytes(b"x" * 500)
    manifest.write(folder)
    for location in folders.values():
        killed = subprocess.run([sys.executable, "-c", KILLED, str(folder), location], check=False)
        assert killed.returncode == -signal.SIGKILL
        assert {file.name for file in store.files(location)} == {"config.json", "gpu/metrics.json"}
    model.add()
    return folders


@pytest.mark.slow
@pytest.mark.fault("leftovers")
def test_a_folder_whose_upload_was_killed_is_removed_when_it_is_old(
    model: Model, unfinished: dict[str, str], monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    ours = {location for name, location in unfinished.items() if "other" not in name}
    assert orphans.plan(model.name, days=0, trained_days=0) == [], "a step that runs may have written them"
    request.getfixturevalue("two_days_later")
    assert orphans.plan(model.name, days=3) == []
    planned = orphans.plan(model.name, days=0)
    assert {(one.location, one.reason, one.size) for one in planned} == {
        (location, "its upload was never finished", 1000) for location in ours
    }
    # The step runs again after the plan was made.
    time.sleep(1.1)
    store.write(unfinished["trained"], "config.json", b"x" * 500)
    assert {one.location for one in orphans.remove(planned)} == ours - {unfinished["trained"]}
    assert {location for location in unfinished.values() if store.files(location)} == {*unfinished.values()} - ours | {
        unfinished["trained"]
    }
    output = run("--model-name", model.name, "--days", "0").output
    assert f"{unfinished['trained']}: would be removed, 0.0 MB: its upload was never finished\n" in output


@pytest.mark.fault("version-forged")
def test_a_bundle_that_is_served_is_kept_if_its_version_was_deleted(model: Model, tmp_path: Path, two_days_later: None) -> None:
    """Whoever can write to MLflow can delete versions there."""
    served, lost, _ = (model.add() for _ in range(3))
    for version in (served, lost):
        retrying.delete_model_version(model.name, version.number)
    file = tmp_path / "isvc.yaml"
    kinds = {"kind": "InferenceService", "metadata": {"name": "x", "annotations": {}}}
    file.write_text(json.dumps(kinds | {"spec": {"predictor": {"model": {"storageUri": served.source}}}}))
    output = run("--model-name", model.name, "--days", "0", "--file", str(file), "--yes").output
    assert f"{lost.source}: removed" in output
    assert served.source not in output
    assert len(store.files(served.source)) == 2


@pytest.mark.fault("version-forged")
def test_a_version_with_quotes_in_its_source_does_not_stop_retirements(model: Model, two_days_later: None) -> None:
    """MLflow's filters cannot hold them."""
    first, _ = model.add(), model.add()
    model_registry.get_or_create_version(
        model.name, first.run_id, f"{model.store}models/{model.name}/a'b/cpu/", {"variant": "cpu"}
    )
    store.write(f"{model.store}models/{model.name}/a'b/cpu/", "theirs", b"x")
    assert {one.kept for one in retirement.plan(model.name, EVERYTHING)} == {"", "its source is no bundle of this model"}
    assert model.retire() == ["1", "2"]
    assert orphans.plan(model.name, days=0) == []


def test_an_orphan_that_becomes_a_version_meanwhile_is_kept(model: Model, two_days_later: None) -> None:
    model.add()
    orphan = model.orphan("late")
    planned = orphans.plan(model.name, days=0)
    assert [one.location for one in planned] == [orphan]
    model_registry.get_or_create_version(model.name, orphan.split("/")[-3], orphan, {"variant": "cpu"})
    assert orphans.remove(planned) == []
    assert store.files(orphan)


def test_a_bundle_of_an_unknown_run_has_no_age_and_is_kept(model: Model, two_days_later: None) -> None:
    model.add()
    store.write(str(BundleLocation(model.store, model.name, "0" * 32, "cpu")), manifest.NAME, b"{}")
    assert orphans.plan(model.name, days=0, trained_days=0) == []


def test_a_trained_model_with_a_damaged_manifest_is_kept_and_the_others_are_cleaned(
    model: Model, caplog: pytest.LogCaptureFixture, two_days_later: None
) -> None:
    model.add()
    orphan = model.orphan("lost")
    lost, damaged = (layout.trained(model.store, name, "minilm") for name in ("lost", "damaged"))
    store.write(lost, manifest.NAME, json.dumps({"run_id": orphan.split("/")[-3], "files": {}}).encode())
    store.write(damaged, manifest.NAME, b"\x00")
    assert {one.location for one in orphans.plan(model.name, days=0, trained_days=0)} == {orphan, lost}
    assert f"{damaged} is kept" in caplog.text
