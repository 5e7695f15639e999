"""The champion of each variant: promoted if it passes the gate, moved back by an explicit rollback. Each change is recorded."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

from goemotions import defaults
from goemotions.data.dataset import load_dataset
from goemotions.errors import PromotionRefused
from goemotions.evaluation import gate
from goemotions.evaluation.gate import Verdict
from goemotions.evaluation.predictions import Predictions
from goemotions.evaluation.selection import CandidateScores, latency_limit
from goemotions.models import engines
from goemotions.registry import assembly, bundle, tracking
from goemotions.registry.bundle import Bundle, BundleLocation, Variant
from goemotions.registry.tracking import Action, Version
from goemotions.storage import lock, store
from goemotions.storage.lock import Lock


@dataclass(frozen=True)
class Move:
    """The version numbers of an alias before and after, the same if nothing moved, and the gate's verdict if it was compared."""

    alias: str
    before: str
    after: str
    verdict: Verdict | None = None


def champion_alias(variant: str) -> str:
    return f"champion-{variant}"


def challenger_alias(variant: str) -> str:
    return f"challenger-{variant}"


def champion(model_name: str, variant: str) -> Version | None:
    return tracking.find_version(model_name, champion_alias(variant))


def is_champion(model_name: str, variant: str, version: Version | None) -> bool:
    """Whether a version is the champion now; with None, whether there is no champion."""
    return _number(champion(model_name, variant)) == _number(version)


def set_champion(model_name: str, version: Version, variant: str, before: str, held: Lock, action: Action = "promote") -> None:
    """Records the move, then moves the alias: after a crash between the two the move can be repeated."""
    tracking.record(model_name, version, action, champion_alias(variant), before)
    held.require()
    tracking.set_alias(model_name, champion_alias(variant), version.number)


def was_rolled_back(version: Version, current: Version, variant: str) -> bool:
    """Whether the current champion became it by a rollback from this version."""
    history = tracking.history(current, champion_alias(variant))
    return bool(history and history[-1].action == "rollback" and history[-1].before == version.number)


def promote(
    reference: str,
    *,
    model_name: str = defaults.MODEL_NAME,
    dataset: Path | None = None,
    latency_budget_ms: float = defaults.LATENCY_BUDGET_MS,
) -> Move:
    """Makes a version the champion of its variant if it passes the gate. Promoting the champion changes nothing.

    Args:
        reference: an alias, such as ``challenger-cpu``, or a version number.
        model_name: name of the registered model.
        dataset: the Dataset folder of the version; needed only if the champion was scored on other data.
        latency_budget_ms: limit of a cpu version's 95th percentile for one text of 20 tokens.

    Raises:
        ModelError: there is no such version, or the champion has other labels.
        PromotionRefused: the version does not pass the gate, or the Dataset folder is needed.
    """
    version = tracking.get_version(model_name, reference)
    variant = version.tags["variant"]
    candidate = _scores(version)
    while True:
        before = champion(model_name, variant)
        if before and before.number == version.number:
            return Move(champion_alias(variant), version.number, version.number)
        verdict = judge(candidate, variant, before, dataset, latency_budget_ms)
        if verdict and before and not verdict.passes:
            raise PromotionRefused(
                f"version {version.number} is not promoted, {champion_alias(variant)} remains version {before.number}: "
                f"{'; '.join(verdict.reasons)}"
            )
        with lock.hold(BundleLocation.parse(version.source).model_prefix) as held:
            # The comparison takes long and is not locked: if the champion changed meanwhile, it is repeated with the new one.
            if is_champion(model_name, variant, before):
                set_champion(model_name, version, variant, _number(before), held)
                return Move(champion_alias(variant), _number(before), version.number, verdict)


def judge(
    candidate: CandidateScores, variant: str, before: Version | None, dataset: Path | None, latency_budget_ms: float
) -> Verdict | None:
    """The gate's verdict on a candidate against the champion; None if there is no champion."""
    if before is None:
        return None
    limit = latency_limit(variant, latency_budget_ms)
    return gate.compare(candidate, _scores(before, candidate.validation, dataset), latency_budget_ms=limit)


def rollback(variant: Variant, *, model_name: str = defaults.MODEL_NAME, to: str = "") -> Move:
    """Makes the version that was champion before it again. A second rollback in a row changes nothing.

    Args:
        variant: ``gpu`` or ``cpu``.
        model_name: name of the registered model.
        to: number of an earlier champion; empty for the last one.

    Raises:
        PromotionRefused: there is no champion, none before it, or ``to`` never was one.
    """
    alias = champion_alias(variant)
    current = champion(model_name, variant)
    if current is None:
        raise PromotionRefused(f"{model_name} has no {alias}: promote a version first")
    history = tracking.history(current, alias)
    was_rollback = bool(history and history[-1].action == "rollback")
    if to == current.number or (was_rollback and not to):
        return Move(alias, current.number, current.number)
    number = to or (history[-1].before if history else "")
    if not number:
        raise PromotionRefused(f"no version was {alias} before version {current.number}: promote another one")
    version = tracking.get_version(model_name, number)
    if not tracking.history(version, alias):
        raise PromotionRefused(f"version {version.number} never was {alias}: promote it instead")
    with lock.hold(BundleLocation.parse(version.source).model_prefix) as held:
        if not is_champion(model_name, variant, current):
            raise PromotionRefused(
                f"{alias} was moved by another process at the same time: see `make status`, and run it again"
            )
        set_champion(model_name, version, variant, current.number, held, "rollback")
    return Move(alias, current.number, version.number)


def _number(version: Version | None) -> str:
    return version.number if version else ""


def _scores(version: Version, rows: Predictions | None = None, dataset: Path | None = None) -> CandidateScores:
    """The validation scores of a registered version: the stored ones, or new ones if ``rows`` are of other data.

    Raises:
        PromotionRefused: the data differs, and there is no Dataset folder to score.
    """
    with tempfile.TemporaryDirectory() as scratch:
        loaded = bundle.load(store.fetch(version.source, Path(scratch)))
        scores = assembly.stored_scores(loaded)
        stored = scores.validation
        if rows is None or stored.digest == rows.digest or stored.names != rows.names:
            return scores
        if dataset is None:
            raise PromotionRefused(
                f"version {version.number} was scored on other data than its challenger: give the challenger's Dataset folder"
            )
        return replace(scores, validation=_score_again(loaded, rows, dataset))


def _score_again(loaded: Bundle, rows: Predictions, dataset: Path) -> Predictions:
    """A bundle's predictions on the validation rows of a Dataset folder, which are those of ``rows``."""
    texts = load_dataset(dataset, ("validation",))[0]["validation"]["text"][:]
    engine = engines.load(loaded.metadata.engine, loaded.folder, loaded.encoder)
    probabilities, _ = engines.score(engine, texts)
    return replace(rows, probabilities=probabilities, engine=engine.name)
