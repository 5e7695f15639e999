"""When to take which model: sentences that follow from the metrics, sizes and durations of the trained models."""

from __future__ import annotations

from collections.abc import Callable

from goemotions.evaluation.selection import latency_limit
from goemotions.metrics import bootstrap
from goemotions.report.document import Section
from goemotions.report.result import Result, best, signed, title_of

# Of two models whose size, latency or duration differ by less, neither is called smaller or faster.
NOTABLE_RATIO = 1.1
# Smaller differences of precision or recall on validation are none.
NOTABLE_DIFFERENCE = 0.0005
COMPARED = ("auc_micro", "f1_macro")


def section(results: list[Result], winner: Result, latency_budget_ms: float) -> Section:
    """One paragraph per use case; a model that is first in several is named in each."""
    paragraphs = [
        *_for_variants(results, latency_budget_ms),
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


def _for_variants(results: list[Result], latency_budget_ms: float) -> list[str]:
    lines = []
    for variant in dict.fromkeys(result.variant for result in results):
        limit = latency_limit(variant, latency_budget_ms)
        winner = best([result for result in results if result.variant == variant], limit)
        if limit is None:
            reason = "the best on validation"
        elif winner.scores.latency_ms <= limit:
            reason = f"the best on validation of those within {limit:g} ms"
        else:
            reason = f"the fastest, since none is within {limit:g} ms"
        lines.append(
            f"For {variant}, use {winner.title}: {reason}; AUC micro {winner.metrics['validation/auc_micro']:.4f} on validation and "
            f"{winner.metrics['test/auc_micro']:.4f} on test, p95 {winner.scores.latency_ms:.1f} ms, "
            f"{winner.export.bytes / 2**20:.0f} MiB."
        )
    return lines


def _latency(result: Result) -> float:
    return result.export.latency_ms_p95


def _lowest(
    results: list[Result],
    winner: Result,
    case: str,
    measure: str,
    value: Callable[[Result], float],
    text: Callable[[float], str],
) -> str:
    """The model with the lowest value, and what it costs compared with the best on validation."""
    # Of equal ones, such as the engines of one profile in training time, the best on validation.
    lowest = best([result for result in results if value(result) == min(map(value, results))])
    ratio = value(winner) / value(lowest) if value(lowest) else 1.0
    best_value = text(value(winner))
    if lowest is winner or ratio < NOTABLE_RATIO:
        return f"For {case}, use {winner.title}, the best on validation: {measure} {best_value}, and none is clearly lower."
    return (
        f"For {case}, use {lowest.title}: {measure} {text(value(lowest))}, {ratio:.1f} times lower than that of {winner.title}, "
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
            f"{profile}: {engines['cpu'].engine} instead of {engines['gpu'].engine} on a CPU has a p95 latency of "
            f"{_latency(engines['cpu']):.1f} instead of {_latency(engines['gpu']):.1f} ms and is "
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
