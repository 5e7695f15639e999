"""Which model for what: sentences, numbers and a chart that follow from the metrics, sizes and durations of the trained models."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from goemotions import defaults
from goemotions.evaluation.selection import describe_winner, latency_limit
from goemotions.metrics import bootstrap
from goemotions.registry.bundle import Variant
from goemotions.registry.registered_versions import RegisteredVersion
from goemotions.report import figures
from goemotions.report.document import Figure, Highlight, Section
from goemotions.report.result import Result, best, duration, judged, milliseconds, signed, title_of

# Of two models whose size, latency or duration differ by less, neither is called smaller or faster.
NOTABLE_RATIO = 1.1
# Smaller differences of precision or recall on validation are none.
NOTABLE_DIFFERENCE = 0.0005
COMPARED = ("auc_micro", "f1_macro")
PLACES: dict[Variant, str] = {"gpu": "On a GPU", "cpu": "On CPUs"}


def recommendation(
    results: list[Result],
    latency_budget_ms: float = defaults.LATENCY_BUDGET_MS,
    quality_tolerance: float = defaults.QUALITY_TOLERANCE,
    registered: Mapping[Variant, RegisteredVersion] | None = None,
) -> Section:
    """The winner of each variant with the reason, three numbers of the last one, and quality against latency of all models.

    If the winners are two models, what the smaller one loses.

    The winners are those that were registered; without them, those that follow from the latencies of the export step.
    """
    winners = {
        variant: _winner(
            [one for one in results if one.variant == variant], latency_budget_ms, quality_tolerance, registered or {}
        )
        for variant in dict.fromkeys(result.variant for result in results)
    }
    sentences = [f"{PLACES[variant]}, serve {winner.title}: {reason}." for variant, (winner, reason) in winners.items()]
    if "cpu" in winners:
        sentences.append(
            f"The rule for CPUs: of the models within {latency_budget_ms:g} ms the best on validation wins, or in its place the "
            f"fastest one that is clearly faster and loses at most {quality_tolerance:g} of micro AUC and of macro F1."
        )
    sentences += _what_size_buys([winner for winner, _ in winners.values()])
    variant = "cpu" if "cpu" in winners else next(iter(winners))
    leading, entry = winners[variant][0], (registered or {}).get(variant)
    return Section(
        "Recommendation",
        sentences,
        figures=_latency_figures(results),
        highlights=[_quality(leading), *_speed_and_cost(leading, entry.get("latency") if entry else None)],
    )


def _winner(
    candidates: list[Result],
    latency_budget_ms: float,
    quality_tolerance: float,
    registered: Mapping[Variant, RegisteredVersion],
) -> tuple[Result, str]:
    variant = candidates[0].variant
    if (entry := registered.get(variant)) and "selection" in entry:
        return next(one for one in candidates if one.profile == entry["profile"]), entry["selection"]
    limit = latency_limit(variant, latency_budget_ms)
    winner = best(candidates, limit, quality_tolerance)
    reason = describe_winner([one.scores for one in candidates], candidates.index(winner), limit, quality_tolerance)
    return winner, reason


def _what_size_buys(winners: list[Result]) -> list[str]:
    large, small = (pick(winners, key=lambda one: one.training.parameters) for pick in (max, min))
    ratio = large.training.parameters / small.training.parameters
    if ratio < NOTABLE_RATIO:
        return []
    return [
        f"On test, {small.title} compared with {large.title}, which has {ratio:.1f} times as many parameters: {_costs(small, large)}."
    ]


def _quality(result: Result) -> Highlight:
    low, high = bootstrap.interval(result.bootstrapped["f1_macro"])
    what = f"macro F1 on test of {result.title}; 95% interval {low:.3f} to {high:.3f}"
    return Highlight(f"{result.metrics['test/f1_macro']:.3f}", what)


def _speed_and_cost(result: Result, registered_latency: Mapping[str, float] | None) -> list[Highlight]:
    """The first two of latency, throughput and duration that are known; the latency is that by which the winner was chosen."""
    teachers = ", teachers included" if result.training.teachers else ""
    training = f"training of {result.profile} on {result.training.hardware}{teachers}"
    highlights = [Highlight(duration(result.training.seconds), training)]
    if result.texts_per_second:
        throughput = [Highlight(f"{result.texts_per_second:,.0f} texts/s", f"{result.title} in batches, tokenization included")]
        highlights = [*throughput, *highlights]
    if registered_latency:
        low, ms, high = (milliseconds(registered_latency[name]) for name in ("low_ms", "ms", "high_ms"))
        what = f"{result.title} for one text of 20 tokens on one thread, measured beside the others; range {low} to {high}"
        highlights = [Highlight(f"{ms} ms", what), *highlights]
    elif result.latency_ms:
        latency = Highlight(
            f"{milliseconds(result.latency_ms[1])} ms", f"{result.title} for one text of 20 tokens, 95th percentile"
        )
        highlights = [latency, *highlights]
    return highlights[:2]


def _latency_figures(results: list[Result]) -> list[Figure]:
    rows = []
    for result in (one for one in results if one.latency_ms):
        low, high = bootstrap.interval(result.bootstrapped["f1_macro"])
        row = {**result.names, "f1_macro": result.metrics["test/f1_macro"], "low": low, "high": high}
        rows.append({**row, "latency_ms": result.latency_ms and result.latency_ms[0], "bytes": result.export.bytes})
    caption = (
        "Macro F1 on test with its 95% interval, and median latency for one text, where it was measured; "
        "the area of a dot is the size of the model"
    )
    return [Figure("accuracy-latency", caption, figures.latency_tradeoff(rows))] if rows else []


def section(results: list[Result], winner: Result) -> Section:
    """One paragraph per use case; a model that is first in several is named in each."""
    paragraphs = [
        _lowest(results, winner, "the fastest response", "p95 latency", _latency, lambda ms: f"{milliseconds(ms)} ms"),
        _lowest(results, winner, "many texts", "time for a million texts", _million_texts, duration),
        _lowest(results, winner, "little memory", "size", lambda one: one.export.bytes / 2**20, lambda mib: f"{mib:,.1f} MiB"),
        _lowest(results, winner, "frequent retraining", "training time", lambda one: one.training.seconds, duration),
        _highest(results, "If wrong labels cost more than missing ones", "precision_micro"),
        _highest(results, "If missing labels cost more than wrong ones", "recall_micro"),
        *_int8(results),
    ]
    intro = (
        "Validation decides; differences are on test, with a paired bootstrap. Precision and recall are at the tuned thresholds."
        + " Training times include the teachers." * any(result.training.teachers for result in results)
    )
    return Section("Use cases", [intro, *paragraphs])


def verdict(one: Result, other: Result, metric: str) -> tuple[float, str]:
    """The difference of a metric on test, and whether its paired 95% interval makes it better, worse, or neither."""
    differences = one.bootstrapped[metric] - other.bootstrapped[metric]
    return float(differences[0]), judged(*bootstrap.interval(differences))


def _latency(result: Result) -> float | None:
    return result.latency_ms[1] if result.latency_ms else None


def _million_texts(result: Result) -> float | None:
    return 1e6 / result.texts_per_second if result.texts_per_second else None


def _lowest(
    results: list[Result],
    winner: Result,
    case: str,
    measure: str,
    value: Callable[[Result], float | None],
    text: Callable[[float], str],
) -> str:
    """The model with the lowest value, and what it costs compared with the best on validation of those that were measured."""
    values = [(number, result) for result in results if (number := value(result)) is not None]
    if not values:
        return f"For {case}: {measure} was not measured."
    least = min(number for number, _ in values)
    # Of equal ones, such as the engines of one profile in training time, the best on validation.
    lowest = best([result for number, result in values if number == least])
    reference = winner if value(winner) is not None else best([result for _, result in values])
    what = "the best on validation" if reference is winner else "the best on validation of those that were measured"
    of_reference = value(reference) or least
    ratio = of_reference / least if least else 1.0
    if lowest is reference or ratio < NOTABLE_RATIO:
        return f"For {case}, use {reference.title}, {what}: {measure} {text(of_reference)}, and none is clearly lower."
    return (
        f"For {case}, use {lowest.title}: {measure} {text(least)}, against {text(of_reference)} ({ratio:.1f} times as much) for "
        f"{reference.title}, {what}. On test: {_costs(lowest, reference)}."
    )


def _highest(results: list[Result], case: str, metric: str) -> str:
    first, *others = sorted(results, key=lambda one: -one.metrics[f"validation/{metric}"])
    value, on_test = (first.metrics[f"{split}/{metric}"] for split in ("validation", "test"))
    title = title_of(metric)
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
