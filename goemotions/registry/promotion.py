"""The champion of each variant: moved forward by the gate alone, and back by an explicit rollback. Every move is on record."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

from goemotions import defaults
from goemotions.data.dataset import load_dataset
from goemotions.errors import PromotionRefused
from goemotions.evaluation import gate
from goemotions.evaluation.gate import Verdict
from goemotions.evaluation.predictions import FILE, Predictions
from goemotions.evaluation.selection import CandidateScores, latency_limit
from goemotions.models import engines
from goemotions.models.records import read_json
from goemotions.registry import bundle, tracking
from goemotions.registry.bundle import ENGINES, Variant
from goemotions.registry.tracking import Version
from goemotions.storage import lock
from goemotions.storage import store as storage
from goemotions.storage.lock import Lock


@dataclass(frozen=True)
class Move:
    """What became of an alias: the versions before and after, the same where nothing moved."""

    alias: str
    before: str
    after: str
    verdict: Verdict | None = None


def champion(model_name: str, variant: str) -> Version | None:
    return tracking.find_version(model_name, alias(variant))


def alias(variant: str) -> str:
    return f"champion-{variant}"


def lock_location(store: str, model_name: str) -> str:
    """The location to lock before a version of the model is made or its aliases are moved."""
    return storage.join(store, "models", model_name)


def set_champion(model_name: str, version: Version, variant: str, before: str, held: Lock, action: str = "promote") -> None:
    """Puts the move on record, then moves the alias: after a crash between the two the move can be made again."""
    tracking.record(model_name, version, action, alias(variant), before)
    held.require()
    tracking.set_alias(model_name, alias(variant), version.number)


def was_taken_back(version: Version, current: Version, variant: str) -> bool:
    """Whether the current champion has its place by a rollback from this version."""
    last = (tracking.history(current, alias(variant)) or [{}])[-1]
    return last.get("action") == "rollback" and last["from"] == version.number


def promote(
    reference: str,
    *,
    model_name: str = defaults.MODEL_NAME,
    dataset: Path | None = None,
    latency_budget_ms: float = defaults.LATENCY_BUDGET_MS,
) -> Move:
    """Makes a version the champion of its variant, if it passes the gate. A version that is champion already stays it.

    Args:
        reference: an alias, such as ``challenger-cpu``, or a version number.
        model_name: name of the registered model.
        dataset: the Dataset folder of the version; needed only where the champion was scored on other data.
        latency_budget_ms: 95th percentile that a cpu version may take for one text of 20 tokens.

    Raises:
        ModelError: there is no such version, or the champion knows other labels.
        PromotionRefused: the gate says no, or it needs the data.
    """
    version = tracking.get_version(model_name, reference)
    variant = version.tags["variant"]
    candidate = contender(version)
    while True:
        before = champion(model_name, variant)
        if before and before.number == version.number:
            return Move(alias(variant), version.number, version.number)
        verdict = judge(candidate, variant, before, dataset, latency_budget_ms)
        if verdict and before and not verdict.passes:
            raise PromotionRefused(
                f"version {version.number} stays as it is, {alias(variant)} remains version {before.number}: "
                f"{'; '.join(verdict.reasons)}"
            )
        with lock.hold(_lock_location_of(version)) as held:
            # Comparing takes long and is done outside: whoever became champion meanwhile is compared with as well.
            if _number(champion(model_name, variant)) == _number(before):
                set_champion(model_name, version, variant, _number(before), held)
                return Move(alias(variant), _number(before), version.number, verdict)


def judge(
    candidate: CandidateScores, variant: str, before: Version | None, dataset: Path | None, latency_budget_ms: float
) -> Verdict | None:
    """The gate's verdict on a candidate against the champion; None where there is none."""
    if before is None:
        return None
    limit = latency_limit(variant, latency_budget_ms)
    return gate.compare(candidate, contender(before, candidate.validation, dataset), latency_budget_ms=limit)


def _number(version: Version | None) -> str:
    return version.number if version else ""


def _lock_location_of(version: Version) -> str:
    """The ``lock_location`` of a version's model: two folders above its bundle, ``models/<model>/<run>/<variant>/``."""
    return version.source.rstrip("/").rsplit("/", 2)[0] + "/"


def rollback(variant: Variant, *, model_name: str = defaults.MODEL_NAME, to: str = "") -> Move:
    """Gives the champion's place back to the version that had it before. Once that is done, again changes nothing.

    Args:
        variant: ``gpu`` or ``cpu``.
        model_name: name of the registered model.
        to: number of an earlier champion; empty for the last one.

    Raises:
        PromotionRefused: there is no champion, none before it, or ``to`` never was one.
    """
    current = champion(model_name, variant)
    if current is None:
        raise PromotionRefused(f"{model_name} has no {alias(variant)}: promote a version first")
    last = (tracking.history(current, alias(variant)) or [{"action": "", "from": ""}])[-1]
    if to == current.number or (last["action"] == "rollback" and not to):
        return Move(alias(variant), current.number, current.number)
    if not (to or last["from"]):
        raise PromotionRefused(f"no version was {alias(variant)} before version {current.number}: promote another one")
    version = tracking.get_version(model_name, to or last["from"])
    if not tracking.history(version, alias(variant)):
        raise PromotionRefused(f"version {version.number} never was {alias(variant)}: promote it instead")
    with lock.hold(_lock_location_of(version)) as held:
        if _number(champion(model_name, variant)) != current.number:
            raise PromotionRefused(
                f"{alias(variant)} is moved by someone else at the same time: look at `make status`, and run it again"
            )
        set_champion(model_name, version, variant, current.number, held, "rollback")
    return Move(alias(variant), current.number, version.number)


def contender(version: Version, like: Predictions | None = None, dataset: Path | None = None) -> CandidateScores:
    """A registered version as the gate sees it, on the validation rows of ``like``: as stored, or scored anew on other data.

    Raises:
        PromotionRefused: the rows are others, and there is no Dataset folder to score them from.
    """
    with tempfile.TemporaryDirectory() as scratch:
        folder = storage.fetch(version.source, Path(scratch))
        opened = bundle.load(folder)
        found = Predictions.read(folder / f"validation{Path(FILE).suffix}")
        if like is not None and found.digest != like.digest and found.names == like.names:
            if dataset is None:
                raise PromotionRefused(
                    f"version {version.number} was scored on other data than its challenger: give the challenger's Dataset folder"
                )
            rows = load_dataset(dataset, ("validation",))[0]["validation"]
            engine = engines.load(opened.facts["engine"], folder, opened.encoder)
            scores, _ = engines.score(engine, rows["text"][:])
            found = Predictions(found.names, like.ids, like.labels, scores, "validation", engine.name, like.digest)
        measured = read_json(folder / "export.json").get(ENGINES[opened.facts["variant"]], {})
        return CandidateScores(opened.facts["profile"], found, opened.thresholds, measured.get("latency_ms_p95", 0.0))
