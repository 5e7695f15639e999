"""When to take which model: sentences that follow from the metrics, sizes and durations of the trained models."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from goemotions.evaluation.selection import latency_limit
from goemotions.metrics import bootstrap
from goemotions.registry.bundle import Variant
from goemotions.registry.registration import RegisteredVersion
from goemotions.report.document import Section
from goemotions.report.result import Result, best, signed, title_of

# Of two models whose size, latency or duration differ by less, neither is called smaller or faster.
NOTABLE_RATIO = 1.1
# Smaller differences of precision or recall on validation are none.
NOTABLE_DIFFERENCE = 0.0005
COMPARED = ("auc_micro", "f1_macro")


def section(
    results: list[Result],
    winner: Result,
    latency_budget_ms: float,
    registered: Mapping[Variant, RegisteredVersion] | None = None,
) -> Section:
    """One paragraph per use case; a model that is first in several is named in each.

    The winners of the variants are those that were registered; without them, those that follow from the latencies of the export step.
    """
    paragraphs = [
        *_for_variants(results, latency_budget_ms, registered or {}),
        _lowest(results, winner, "many texts, or the fastest response", "p95 latency", _latency, lambda ms: f"{ms:.1f} ms"),
        _lowest(results, winner, "little memory", "size", lambda one: one.export.bytes / 2**20, lambda mib: f"{mib:,.0f} MiB"),
        _lowest(
            results, winner, "frequent retraining", "training time", lambda one: one.training.seconds, lambda s: f"{s:,.0f} s"
        ),
        _highest(results, "If wrong labels cost more than missing ones", "precision_micro"),
        _highest(results, "If missing labels cost more than wrong ones", "recall_micro"),
        *_int8(results),
    ]
    intro = "Validation decides; differences are on test, with a paired bootstrap. Precision and recall are at the tuned thresholds."
    return Section("When to take which", [intro, *paragraphs])


def verdict(one: Result, other: Result, metric: str) -> tuple[float, str]:
    """The difference of a metric on test, and whether its paired 95% interval makes it better, worse, or neither."""
    differences = one.bootstrapped[metric] - other.bootstrapped[metric]
    low, high = bootstrap.interval(differences)
    return float(differences[0]), "no clear difference" if low <= 0 <= high else "worse" if high < 0 else "better"


def _for_variants(
    results: list[Result], latency_budget_ms: float, registered: Mapping[Variant, RegisteredVersion]
) -> list[str]:
    lines = []
    for variant in dict.fromkeys(result.variant for result in results):
        candidates, limit = (
            [result for result in results if result.variant == variant],
            latency_limit(variant, latency_budget_ms),
        )
        winner = best(candidates, limit)
        reason = _reason(winner, limit)
        if (entry := registered.get(variant)) and "selection" in entry:
            winner, reason = next(one for one in candidates if one.profile == entry["profile"]), entry["selection"]
        latency = f"p95 {winner.latency_ms[1]:.1f} ms" if winner.latency_ms else "latency not measured"
        lines.append(
            f"For {variant}, use {winner.title}: {reason}; AUC micro {winner.metrics['validation/auc_micro']:.4f} on validation and "
            f"{winner.metrics['test/auc_micro']:.4f} on test, {latency}, {winner.export.bytes / 2**20:.0f} MiB."
        )
    return lines


def _reason(winner: Result, limit: float | None) -> str:
    if limit is None:
        return "the best on validation"
    match winner.scores.is_within(limit):
        case True:
            return f"the best on validation of those within {limit:g} ms"
        case False:
            return f"the fastest, since none is within {limit:g} ms"
        case _:
            return "the best on validation"


def _latency(result: Result) -> float | None:
    return result.latency_ms[1] if result.latency_ms else None


def _lowest(
    results: list[Result],
    winner: Result,
    case: str,
    measure: str,
    value: Callable[[Result], float | None],
    text: Callable[[float], str],
) -> str:
    """The model with the lowest value, and what it costs compared with the best on validation."""
    values = [(number, result) for result in results if (number := value(result)) is not None]
    if not values:
        return f"For {case}: {measure} was not measured."
    least = min(number for number, _ in values)
    # Of equal ones, such as the engines of one profile in training time, the best on validation.
    lowest = best([result for number, result in values if number == least])
    of_winner = value(winner)
    if lowest is not winner and of_winner is None:
        return (
            f"For {case}, use {lowest.title}: {measure} {text(least)}, the lowest that was measured. Compared with {winner.title}, the "
            f"best on validation, whose {measure} was not measured, on test: {_costs(lowest, winner)}."
        )
    ratio = of_winner / least if of_winner and least else 1.0
    best_value = text(of_winner or least)
    if lowest is winner or ratio < NOTABLE_RATIO:
        return f"For {case}, use {winner.title}, the best on validation: {measure} {best_value}, and none is clearly lower."
    return (
        f"For {case}, use {lowest.title}: {measure} {text(least)}, {ratio:.1f} times lower than that of {winner.title}, "
        f"the best on validation ({best_value}). On test: {_costs(lowest, winner)}."
    )


def _highest(results: list[Result], case: str, metric: str) -> str:
    first, *others = sorted(results, key=lambda one: -one.metrics[f"validation/{metric}"])
    value, on_test = (first.metrics[f"{split}/{metric}"] for split in ("validation", "test"))
    title = title_of(metric).replace(" micro", " (micro)")
    if others and value - others[0].metrics[f"validation/{metric}"] < NOTABLE_DIFFERENCE:
        return f"{case}, use {first.title} or {others[0].title}: {title} {value:.3f} on validation, the highest, in both."
    return f"{case}, use {first.title}: {title} {value:.3f} on validation, the highest, and {on_test:.3f} on test."


def _int8(results: list[Result]) -> list[str]:
    """What int8 costs and gains for each profile that both engines have scored."""
    lines = []
    for profile in dict.fromkeys(result.profile for result in results):
        engines = {result.variant: result for result in results if result.profile == profile}
        if len(engines) < 2:
            continue
        lines.append(
            f"{profile}: {engines['cpu'].engine} instead of {engines['gpu'].engine} is "
            f"{engines['gpu'].export.bytes / engines['cpu'].export.bytes:.1f} times smaller. "
            f"On test: {_costs(engines['cpu'], engines['gpu'])}."
        )
    return lines


def _costs(one: Result, other: Result) -> str:
    parts = []
    for metric in COMPARED:
        difference, judgement = verdict(one, other, metric)
        parts.append(f"{title_of(metric)} {signed(difference)} ({judgement})")
    return ", ".join(parts)
