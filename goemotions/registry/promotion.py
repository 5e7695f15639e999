"""The champion of each variant: promoted if it passes the gate, moved back by an explicit rollback. Each change is recorded."""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

from goemotions import defaults, strict_json
from goemotions.data.dataset import as_folder, ingest, load_dataset
from goemotions.errors import DataError, PromotionRefused, SourceUnreachable, StorageError
from goemotions.evaluation import gate, latency
from goemotions.evaluation.gate import Verdict
from goemotions.evaluation.predictions import Predictions
from goemotions.evaluation.selection import CandidateScores, latency_limit
from goemotions.models import engines
from goemotions.models.engines import Engine
from goemotions.registry import bundle, changes, model_registry, tracking, trust
from goemotions.registry.bundle import SERVING, Bundle, BundleLocation, Variant
from goemotions.registry.candidates import stored_scores
from goemotions.registry.changes import Action
from goemotions.registry.model_registry import Version
from goemotions.storage import lock
from goemotions.storage.lock import Lock
from goemotions.storage.temporary import temporary_folder

UNDECIDED = "validation does not show that it is worse either: `make rollout VERSION={}` compares them on traffic"


@dataclass(frozen=True)
class Move:
    """The version numbers of an alias before and after, the same if nothing moved, and the gate's verdict if it was compared."""

    alias: str
    before: str
    after: str
    verdict: Verdict | None = None


@dataclass(frozen=True)
class Challenger:
    """What the gate needs of a model that may become champion: its scores, its engine when it is needed, its MLflow run."""

    scores: CandidateScores
    load_engine: Callable[[], Engine]
    run_id: str


@dataclass(frozen=True)
class GateOptions:
    """How a challenger is compared with the champion, as ``promote`` takes it."""

    dataset: str
    latency_budget_ms: float
    quality_tolerance: float


@dataclass(frozen=True)
class Comparison:
    """The scores of a challenger and of the champion on the same validation rows, and the gate's verdict on the challenger."""

    challenger: CandidateScores
    champion: CandidateScores
    verdict: Verdict


def champion_alias(variant: str) -> str:
    return f"champion-{variant}"


def challenger_alias(variant: str) -> str:
    return f"challenger-{variant}"


def champion(model_name: str, variant: str) -> Version | None:
    return model_registry.find_version(model_name, champion_alias(variant))


def is_champion(model_name: str, variant: str, version: Version | None) -> bool:
    """Whether a version is the champion now; with None, whether there is no champion."""
    return _number(champion(model_name, variant)) == _number(version)


def set_champion(model_name: str, version: Version, variant: str, before: str, held: Lock, action: Action = "promote") -> None:
    """Records the move, then moves the alias: after a crash between the two the move can be repeated.

    Raises:
        ModelError: the version was retired meanwhile.
    """
    model_registry.get_version(model_name, version.number)
    with held.writing():
        changes.record(model_name, version, action, champion_alias(variant), before)
    with held.writing():
        model_registry.set_alias(model_name, champion_alias(variant), version.number)


def was_rolled_back(version: Version, current: Version, variant: str) -> bool:
    """Whether the current champion became it by a rollback from this version."""
    history = changes.history(current, champion_alias(variant))
    return bool(history and history[-1].action == "rollback" and history[-1].before == version.number)


def promote(
    reference: str,
    *,
    model_name: str = defaults.MODEL_NAME,
    dataset: str = "",
    latency_budget_ms: float = defaults.LATENCY_BUDGET_MS,
    quality_tolerance: float = defaults.QUALITY_TOLERANCE,
    rolled_out_against: str = "",
    require: Callable[[], None] = lambda: None,
) -> Move:
    """Makes a version the champion of its variant if it passes the gate. Promoting the champion changes nothing.

    Args:
        reference: an alias, such as ``challenger-cpu``, or a version number.
        model_name: name of the registered model.
        dataset: the data of the version, as ``dataset.as_folder`` takes it; needed only if the champion was scored on other data.
            Empty for the source that the pipeline run of the version recorded in MLflow.
        latency_budget_ms: limit of a cpu version's latency for one text of 20 tokens (``evaluation.latency``).
        quality_tolerance: what a faster cpu version may lose (``gate.compare``).
        rolled_out_against: number of the champion that the version was compared with on traffic. This champion it replaces unless
            validation shows that it is worse; it need not be shown to be better.
        require: is called before the alias moves, and raises if it may not.

    Raises:
        ModelError: there is no such version, or the champion has other labels.
        PromotionRefused: the version does not pass the gate, its data is needed and was not found, or the champion is another one
            than that of the rollout.
        UntrustedBundle: the bundle is not one that `register` stored (``trust``).
    """
    options = GateOptions(dataset, latency_budget_ms, quality_tolerance)
    with _challenger(model_name, reference) as (challenger, variant, version):
        while True:
            before = champion(model_name, variant)
            if before and before.number == version.number:
                return Move(champion_alias(variant), version.number, version.number)
            if rolled_out_against and _number(before) != rolled_out_against:
                moved = f"from version {rolled_out_against} to {_number(before) or 'none'}"
                raise PromotionRefused(f"{champion_alias(variant)} was moved {moved} during the rollout")
            compared = compare_with_champion(challenger, variant, before, options)
            if compared and before:
                _require(compared.verdict, version, before, variant, is_rolled_out=bool(rolled_out_against))
            with lock.hold(BundleLocation.parse(version.source).model_prefix) as held:
                # The comparison takes long and is not locked: if the champion changed meanwhile, it is repeated with the new one.
                if is_champion(model_name, variant, before):
                    require()
                    set_champion(model_name, version, variant, _number(before), held)
                    verdict = compared.verdict if compared else None
                    return Move(champion_alias(variant), _number(before), version.number, verdict)


def _require(verdict: Verdict, version: Version, before: Version, variant: Variant, *, is_rolled_out: bool) -> None:
    """Raises PromotionRefused for a version that is not shown to be better, or after a rollout for one that is shown to be worse."""
    if reasons := verdict.losses if is_rolled_out else verdict.reasons:
        raise PromotionRefused(
            f"version {version.number} is not promoted, {champion_alias(variant)} remains version {before.number}: "
            f"{'; '.join(reasons)}" + ("" if verdict.losses else f"; {UNDECIDED.format(version.number)}")
        )


def compare(
    reference: str,
    *,
    model_name: str = defaults.MODEL_NAME,
    dataset: str = "",
    latency_budget_ms: float = defaults.LATENCY_BUDGET_MS,
    quality_tolerance: float = defaults.QUALITY_TOLERANCE,
) -> Comparison | None:
    """Compares a version with the champion of its variant as ``promote`` does, and moves nothing; None if there is no champion.

    Raises:
        ModelError, PromotionRefused, UntrustedBundle: as ``promote``, but not for a version that does not pass.
    """
    with _challenger(model_name, reference) as (challenger, variant, _):
        options = GateOptions(dataset, latency_budget_ms, quality_tolerance)
        return compare_with_champion(challenger, variant, champion(model_name, variant), options)


def compare_with_champion(
    challenger: Challenger, variant: Variant, before: Version | None, options: GateOptions
) -> Comparison | None:
    """Compares a challenger with the champion; None if there is no champion.

    If the variant has a latency budget, the engines of both are timed in turns. A champion that was scored on other data is scored
    on the challenger's.

    Raises:
        PromotionRefused: the challenger's data is needed and was not found.
    """
    if before is None:
        return None
    limit = latency_limit(variant, options.latency_budget_ms)
    with _fetched(before, variant) as loaded:
        ours, theirs = challenger.scores, stored_scores(loaded)
        if theirs.validation.digest != ours.validation.digest and theirs.validation.names == ours.validation.names:
            theirs = replace(theirs, validation=_score_again(loaded, before, challenger, options.dataset))
        if limit is not None:
            our_latency, their_latency = latency.measure([challenger.load_engine(), loaded.load_engine(threads=1)])
            ours, theirs = replace(ours, latency=our_latency), replace(theirs, latency=their_latency)
    verdict = gate.compare(
        ours, theirs, latency_budget_ms=limit, quality_tolerance=options.quality_tolerance, serving=SERVING[variant]
    )
    return Comparison(ours, theirs, verdict)


@contextlib.contextmanager
def _challenger(model_name: str, reference: str) -> Iterator[tuple[Challenger, Variant, Version]]:
    version = model_registry.get_version(model_name, reference)
    with _fetched(version, trust.variant_of(reference)) as candidate:
        load_engine = functools.partial(candidate.load_engine, threads=1)
        yield Challenger(stored_scores(candidate), load_engine, version.run_id), candidate.metadata.variant, version


def rollback(variant: Variant, *, model_name: str = defaults.MODEL_NAME, to: str = "") -> Move:
    """Makes the version that was champion before it again. A second rollback in a row is refused.

    Args:
        variant: ``gpu`` or ``cpu``.
        model_name: name of the registered model.
        to: number of an earlier champion; empty for the last one.

    Raises:
        PromotionRefused: nothing would change, there is no champion, none before it, or ``to`` never was one.
        UntrustedBundle: the bundle is not one that `register` stored (``trust``).
    """
    alias = champion_alias(variant)
    current = champion(model_name, variant)
    if current is None:
        raise PromotionRefused(f"{model_name} has no {alias}: promote a version first")
    history = changes.history(current, alias)
    if to == current.number:
        raise PromotionRefused(f"version {to} is {alias} already: nothing was moved")
    if history and history[-1].action == "rollback" and not to:
        raise PromotionRefused(
            f"version {current.number} is {alias} by a rollback already, nothing was moved: give an earlier champion by --to (TO=)"
        )
    number = to or (history[-1].before if history else "")
    if not number:
        raise PromotionRefused(f"no version was {alias} before version {current.number}: promote another one")
    version = model_registry.get_version(model_name, number)
    if not changes.history(version, alias):
        raise PromotionRefused(f"version {version.number} never was {alias}: promote it instead")
    trust.check(version, variant)
    with lock.hold(BundleLocation.parse(version.source).model_prefix) as held:
        if not is_champion(model_name, variant, current):
            raise PromotionRefused(
                f"{alias} was moved by another process at the same time: see `make status`, and run it again"
            )
        set_champion(model_name, version, variant, current.number, held, "rollback")
    return Move(alias, current.number, version.number)


def _number(version: Version | None) -> str:
    return version.number if version else ""


@contextlib.contextmanager
def _fetched(version: Version, variant: str = "") -> Iterator[Bundle]:
    location = str(trust.require_source(version, variant))
    model_registry.require_bundle(version)
    with temporary_folder() as scratch:
        trust.fetch(location, scratch, version)
        yield bundle.load(scratch, is_verified=True)


def _score_again(loaded: Bundle, champion: Version, challenger: Challenger, dataset: str) -> Predictions:
    """A champion's predictions on the validation rows of its challenger.

    Raises:
        PromotionRefused: the challenger's data was not found.
    """
    rows = challenger.scores.validation
    try:
        options: dict[str, Any] = {}
        if not dataset:
            dataset, options = _recorded_source(challenger.run_id)
        with as_folder(dataset, **options) as folder:
            splits, info = load_dataset(folder, ("validation",))
            if info["digest"] != rows.digest:
                raise DataError(f"{dataset} has the digest {info['digest'][:12]}, the challenger's data {rows.digest[:12]}")
            engine = loaded.load_engine()
            probabilities, _ = engines.score(engine, splits["validation"]["text"][:])
    except (DataError, SourceUnreachable, StorageError) as error:
        raise PromotionRefused(
            f"version {champion.number} was scored on other data than its challenger, whose data is needed to compare them: give "
            "its Dataset folder, s3:// prefix or source by --dataset (make promote DATASET=)"
            f"; {error}"
        ) from error
    return replace(rows, probabilities=probabilities, **asdict(engine.computation))


def _recorded_source(run_id: str) -> tuple[str, dict[str, Any]]:
    """The source of the data of a model's run, and the options of its ``ingest``, as that step tagged the pipeline run.

    Raises:
        DataError: the run has no such tag.
    """
    tags = tracking.pipeline_run_tags(run_id)
    if not (source := tags.get(tracking.SOURCE_TAG)):
        raise DataError("its run in MLflow does not say where the data is")
    name = f"the tag {tracking.INGEST_TAG} of the run"
    options = strict_json.parse(tags.get(tracking.INGEST_TAG, "{}"), name)
    strict_json.require(options, dict[str, Any], name)
    known = inspect.signature(ingest).parameters
    for option, value in options.items():
        if option not in known or known[option].kind != inspect.Parameter.KEYWORD_ONLY:
            raise DataError(f"{name} has the unknown option {option[:100]!r}")
        strict_json.require(value, type(known[option].default), f"{name}: {option}")
    return source, options
