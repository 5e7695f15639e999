"""Champions: promotion through the gate, rollback, and the history of both."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import dataclass
from datetime import datetime, tzinfo
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from goemotions.cli import main as cli
from goemotions.data.dataset import ingest
from goemotions.errors import IntegrityError, ModelError, PromotionRefused, StorageError, TrackingError
from goemotions.evaluation import evaluate, tuning
from goemotions.registry import challenger, changes, mlflow_client, model_registry, promotion, tracking, trust
from goemotions.registry.bundle import BundleLocation
from goemotions.storage import lock
from goemotions.storage import store as storage
from goemotions.storage.s3 import S3Backend
from tests.support.champions import add, certain, make_champion, stored

ALIAS = "champion-cpu"
MANIFEST = Path(__file__).parents[2] / "manifests" / "isvc.yaml"


@pytest.fixture(scope="module")
def bundles(stack: Path, dataset: Path, candidate: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Locations of three bundles for cpu, the second better than the first, the third worse."""
    root = tmp_path_factory.mktemp("contenders")
    folders = (candidate, certain(candidate, root / "better", 0.99), certain(candidate, root / "worse", 0.01))
    return [stored(f"contender-{number}", folder, dataset) for number, folder in enumerate(folders)]


@pytest.fixture
def model(bundles: list[str], request: pytest.FixtureRequest) -> str:
    """A registered model: version 1 is champion, 2 is better, 3 is worse."""
    name = request.node.name
    assert [add(name, location) for location in bundles] == ["1", "2", "3"]
    promotion.promote("1", model_name=name)
    return name


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    return Path(shutil.copyfile(MANIFEST, tmp_path / "isvc.yaml"))


def champion(model: str) -> str:
    return model_registry.get_version(model, ALIAS).number


def run(*arguments: str) -> Result:
    return CliRunner().invoke(cli.commands, arguments)


def test_a_better_version_is_promoted_and_a_worse_one_refused(model: str) -> None:
    with pytest.raises(
        PromotionRefused, match=rf"version 3 is not promoted, {ALIAS} remains version 1: micro AUC is not higher"
    ):
        promotion.promote("3", model_name=model)
    move = promotion.promote("2", model_name=model)
    assert (move.before, move.after, champion(model)) == ("1", "2", "2")
    assert move.verdict is not None
    assert move.verdict.differences["auc_micro"].difference > 0
    (change,) = changes.history(model_registry.get_version(model, "2"), ALIAS)
    assert (change.action, change.before, change.after) == ("promote", "1", "2")
    assert "@" in change.by
    assert change.at.endswith("Z")


def test_promoting_the_champion_again_changes_nothing(model: str) -> None:
    promotion.promote("2", model_name=model)
    before = model_registry.get_version(model, "2").tags
    again = promotion.promote("2", model_name=model)
    assert (again.before, again.after) == ("2", "2")
    assert model_registry.get_version(model, "2").tags == before


@pytest.mark.fault("object-damaged")
@pytest.mark.parametrize("content", [None, b"{}"], ids=["removed", "cut"])
def test_a_rollback_to_a_bundle_that_is_not_in_the_store_moves_nothing(model: str, content: bytes | None) -> None:
    promotion.promote("2", model_name=model)
    source = model_registry.get_version(model, "1").source
    storage.remove(source)
    if content:
        storage.write(source, "MANIFEST.json", content)
    with pytest.raises(IntegrityError, match=re.escape(source)):
        promotion.rollback("cpu", model_name=model)
    assert champion(model) == "2"


def test_a_rollback_restores_the_previous_champion_once(model: str) -> None:
    promotion.promote("2", model_name=model)
    move = promotion.rollback("cpu", model_name=model)
    assert (move.before, move.after, champion(model)) == ("2", "1", "1")
    with pytest.raises(PromotionRefused, match="version 1 is champion-cpu by a rollback already, nothing was moved"):
        promotion.rollback("cpu", model_name=model)
    with pytest.raises(PromotionRefused, match="version 1 is champion-cpu already: nothing was moved"):
        promotion.rollback("cpu", model_name=model, to="1")
    with pytest.raises(PromotionRefused, match="version 1 is champion-cpu already: nothing was moved"):
        promotion.rollback("cpu", model_name=model, to=ALIAS)
    assert champion(model) == "1"
    assert [change.action for change in changes.history(model_registry.get_version(model, "1"), ALIAS)] == [
        "promote",
        "rollback",
    ]
    promotion.promote("2", model_name=model)
    assert promotion.rollback("cpu", model_name=model).after == "1"


@pytest.mark.fault("clock-differs")
def test_the_order_of_changes_does_not_come_from_clocks(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each change is made by a host whose clock is an hour behind that of the host before it."""
    hours = iter(range(20, 0, -1))

    class Clock(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> Clock:
            return cls(2026, 1, 1, next(hours), tzinfo=tz)

    monkeypatch.setattr(changes, "datetime", Clock)
    make_champion(model, "2")
    promotion.rollback("cpu", model_name=model)
    make_champion(model, "2")
    move = promotion.rollback("cpu", model_name=model)
    assert (move.before, move.after, champion(model)) == ("2", "1", "1")
    recorded = changes.history(model_registry.get_version(model, "1"), ALIAS)
    assert [(change.action, change.sequence) for change in recorded] == [("promote", 1), ("rollback", 3), ("rollback", 5)]


def test_changes_of_before_they_were_numbered_come_first(model: str) -> None:
    old = {"action": "rollback", "where": ALIAS, "from": "3", "to": "1", "by": "x@y", "at": "2099-01-01T00:00:00.000000Z"}
    mlflow_client.client().set_model_version_tag(model, "1", f"{changes.HISTORY_TAG}{old['at']}", json.dumps(old))
    recorded = changes.history(model_registry.get_version(model, "1"), ALIAS)
    assert [(change.action, change.sequence) for change in recorded] == [("rollback", 0), ("promote", 1)]
    mlflow_client.client().set_model_version_tag(model, "1", f"{changes.HISTORY_TAG}x", "[]")
    with pytest.raises(TrackingError, match=r"version 1: its tag goemotions.history.x is damaged: remove it in MLflow"):
        changes.history(model_registry.get_version(model, "1"), ALIAS)


@pytest.mark.fault("lock-lost")
def test_a_process_that_lost_the_lock_moves_no_alias(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between its record of the change and the move of the alias, another process takes the lock over."""
    record = changes.record

    def recorded(*arguments: Any, **options: Any) -> None:
        record(*arguments, **options)
        location = BundleLocation.parse(model_registry.get_version(model, "2").source).model_prefix
        S3Backend(location).delete([lock.NAME])

    monkeypatch.setattr(changes, "record", recorded)
    with pytest.raises(StorageError, match=r"another process has taken over lock\.json"):
        make_champion(model, "2")
    assert champion(model) == "1"


def test_a_champion_of_another_process_is_the_one_to_compare_with(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """While version 2 is compared with version 1, version 3 becomes the champion."""
    compare, others = challenger.compare, iter(["3"])

    def meanwhile(*arguments: Any) -> challenger.Comparison | None:
        compared = compare(*arguments)
        for number in others:
            make_champion(model, number)
        return compared

    monkeypatch.setattr(challenger, "compare", meanwhile)
    assert promotion.promote("2", model_name=model).before == "3"
    assert [one.before for one in changes.history(model_registry.get_version(model, "2"), ALIAS)] == ["3"]


def test_a_rollback_does_not_undo_a_move_of_another_process(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    promotion.promote("2", model_name=model)
    check = trust.require_stored

    def meanwhile(*arguments: Any) -> Any:
        make_champion(model, "3")
        return check(*arguments)

    monkeypatch.setattr(trust, "require_stored", meanwhile)
    with pytest.raises(PromotionRefused, match="champion-cpu was moved by another process at the same time: see"):
        promotion.rollback("cpu", model_name=model)
    assert champion(model) == "3"


def test_a_rollback_goes_to_former_champions_only(model: str) -> None:
    with pytest.raises(PromotionRefused, match="no version was champion-cpu before version 1"):
        promotion.rollback("cpu", model_name=model)
    with pytest.raises(PromotionRefused, match="version 3 never was champion-cpu"):
        promotion.rollback("cpu", model_name=model, to="3")
    with pytest.raises(PromotionRefused, match="no champion-gpu"):
        promotion.rollback("gpu", model_name=model)
    promotion.promote("2", model_name=model)
    assert promotion.rollback("cpu", model_name=model, to="1").after == "1"


def test_running_again_completes_a_promotion_that_crashed_before_the_alias_moved(
    model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(model_registry, "set_alias", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            promotion.promote("2", model_name=model)
    assert champion(model) == "1"
    assert promotion.promote("2", model_name=model).after == "2"
    assert [one.action for one in changes.history(model_registry.get_version(model, "2"), ALIAS)] == ["promote"]
    assert promotion.rollback("cpu", model_name=model).after == "1"


def test_the_command_promotes_and_writes_the_manifest(model: str, manifest: Path) -> None:
    # The file's services are those of the model goemotions; this model's are named after it.
    untouched = run("model", "promote", "1", "--model-name", model, "--file", str(manifest))
    assert f"no InferenceService {model}-cpu, nothing is written" in untouched.output
    service = f"{model}-cpu"
    manifest.write_text(manifest.read_text().replace("name: goemotions-cpu\n  annotations", f"name: {service}\n  annotations"))
    result = run("model", "promote", "2", "--model-name", model, "--file", str(manifest))
    assert result.exit_code == 0, result.output
    assert f"{ALIAS}: version 2, before it 1" in result.output
    assert "the gate passed: micro AUC rose by 0." in result.output
    assert "  note: one text takes " in result.output
    assert model_registry.get_version(model, "2").source in manifest.read_text()
    back = run("model", "rollback", "--model-name", model, "--file", str(manifest))
    assert f"{ALIAS}: version 1, before it 2" in back.output
    assert model_registry.get_version(model, "1").source in manifest.read_text()
    again = run("model", "rollback", "--model-name", model, "--file", str(manifest))
    assert again.exit_code == 1
    assert "nothing was moved" in str(again.exception)


@dataclass(frozen=True)
class OtherData:
    """Data with fewer validation rows: its source, its Dataset folder, and the number of a version that was scored on it."""

    source: Path
    dataset: Path
    number: str


@pytest.fixture
def other_data(model: str, source: Path, candidate: Path, model_folder: Path, onnx_folder: Path, tmp_path: Path) -> OtherData:
    other, dataset, folder = tmp_path / "other", tmp_path / "dataset", tmp_path / "candidate"
    shutil.copytree(source, other)
    lines = (other / "dev.tsv").read_text().splitlines(keepends=True)
    (other / "dev.tsv").write_text("".join(lines[:70]))
    ingest(str(other), dataset)
    shutil.copytree(candidate, folder, symlinks=True)
    shutil.rmtree(folder / "cpu")
    outputs = {split: folder / "cpu" / split for split in ("validation", "test")}
    evaluate.evaluate(dataset, model_folder, onnx_folder, "openvino-int8", outputs)
    tuning.tune(folder / "cpu" / "validation", folder / "cpu" / "thresholds")
    return OtherData(other, dataset, add(model, stored(f"{model}-other", folder, dataset)))


@pytest.mark.fault("champion-of-other-data")
def test_comparing_models_of_different_data_needs_the_data(
    model: str, other_data: OtherData, source: Path, bucket: str
) -> None:
    needed = "version 1 was scored on other data than its challenger.*--dataset .make promote DATASET=.; "
    with pytest.raises(PromotionRefused, match=f"{needed}its run in MLflow does not say where the data is"):
        promotion.promote(other_data.number, model_name=model)
    with pytest.raises(PromotionRefused, match=f"{needed}.* has the digest .*, the challenger's data "):
        promotion.promote(other_data.number, model_name=model, dataset=str(source))
    storage.put(other_data.dataset, bucket)
    for location in (str(other_data.dataset), str(other_data.source), bucket):
        with pytest.raises(PromotionRefused, match="micro AUC is not higher"):
            promotion.promote(other_data.number, model_name=model, dataset=location)


@pytest.mark.slow
@pytest.mark.fault("champion-of-other-data", "version-forged")
def test_the_data_is_found_through_the_run_of_the_challenger(model: str, other_data: OtherData) -> None:
    run, tags = tracking.get_or_create_run(f"{model}-other"), {tracking.SOURCE_TAG: str(other_data.source)}
    for damaged in ("[1]", '{"output": "/tmp"}', '{"split_share": "half"}'):
        run.set_tags(tags | {tracking.INGEST_TAG: damaged})
        with pytest.raises(PromotionRefused, match=r"the tag dataset\.options of the run"):
            promotion.promote(other_data.number, model_name=model)
    run.set_tags(tags | {tracking.INGEST_TAG: '{"drop_leaked": false}'})
    with pytest.raises(PromotionRefused, match="micro AUC is not higher"):
        promotion.promote(other_data.number, model_name=model)


def test_a_missing_version_is_a_named_error(model: str) -> None:
    with pytest.raises(ModelError, match="has no version or alias '99'"):
        promotion.promote("99", model_name=model)
