"""The champion of each variant: promoted if it passes the gate, moved back by an explicit rollback. Each change is recorded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from goemotions import defaults
from goemotions.errors import LockLost, PromotionRefused
from goemotions.evaluation.gate import Verdict
from goemotions.registry import challenger as challengers
from goemotions.registry import changes, model_registry, trust
from goemotions.registry.bundle import BundleLocation, Variant
from goemotions.registry.challenger import Comparison, GateOptions
from goemotions.registry.changes import Action
from goemotions.registry.model_registry import Version
from goemotions.storage import lock
from goemotions.storage.lock import Lock

UNDECIDED = "validation does not show that it is worse either: `make rollout VERSION={}` compares them on traffic"


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
    return model_registry.find_version(model_name, champion_alias(variant))


def is_champion(model_name: str, variant: str, version: Version | None) -> bool:
    """Whether a version is the champion now; with None, whether there is no champion."""
    return _number(champion(model_name, variant)) == _number(version)


def unrecorded_move(model_name: str, variant: Variant, current: Version) -> str:
    """What is wrong if the recorded moves do not explain the champion: a process that was suspended while it moved the alias and then
    killed, so that it could not undo that, or somebody who moved it in MLflow. Empty if nothing is."""
    alias = champion_alias(variant)
    last = changes.newest(model_name, alias)
    # A process that is killed before it moves the alias leaves it as it was before.
    if last is None or current.number in (last.before, last.after):
        return ""
    return (
        f"{alias} is version {current.number}, but {last.by} made it version {last.after} at {last.at}, and no move since is recorded: "
        f"`make rollback VARIANT={variant} TO={last.after}` takes that back"
    )


def set_champion(model_name: str, version: Version, variant: str, before: str, held: Lock, action: Action = "promote") -> None:
    """Records the move, then moves the alias: after a crash between the two the move can be repeated.

    Raises:
        ModelError: the version was retired meanwhile.
        LockLost: another process has taken over the lock; if it moved the alias, the alias is as that process left it.
    """
    model_registry.get_version(model_name, version.number)
    alias, recorded = champion_alias(variant), None
    try:
        with held.writing():
            recorded = changes.record(model_name, version, action, alias, before)
        with held.writing():
            model_registry.set_alias(model_name, alias, version.number)
    except LockLost:
        if recorded:
            with lock.hold(BundleLocation.parse(version.source).model_prefix) as again, again.writing():
                if since := changes.take_back(model_name, recorded):
                    model_registry.set_alias(model_name, alias, since.after)
        raise


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
    with challengers.of_version(model_name, reference) as (challenger, variant, version):
        while True:
            before = champion(model_name, variant)
            if before and before.number == version.number:
                return Move(champion_alias(variant), version.number, version.number)
            if rolled_out_against and _number(before) != rolled_out_against:
                moved = f"from version {rolled_out_against} to {_number(before) or 'none'}"
                raise PromotionRefused(f"{champion_alias(variant)} was moved {moved} during the rollout: begin another one")
            compared = challengers.compare(challenger, variant, before, options)
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
    with challengers.of_version(model_name, reference) as (challenger, variant, _):
        options = GateOptions(dataset, latency_budget_ms, quality_tolerance)
        return challengers.compare(challenger, variant, champion(model_name, variant), options)


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
