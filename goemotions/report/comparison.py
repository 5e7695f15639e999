"""How the models compare: metrics, significance, cost, other systems, and the recommendation per variant."""

from __future__ import annotations

from goemotions.evaluation.selection import latency_limit
from goemotions.metrics import bootstrap
from goemotions.report import figures
from goemotions.report.document import Cell, Figure, Section, Table
from goemotions.report.reference import OFFICIAL_DIGEST, PREVIOUS, PUBLISHED
from goemotions.report.result import HEADLINE, Result, best, signed, title_of

HEADLINE_TITLES = tuple(map(title_of, HEADLINE))
OTHER_SYSTEMS = (
    "The previous system is the one that this workflow replaces: ten epochs on one A100. The first of the published results is from "
    "the data set's paper. The others are single reports whose training and hardware differ: use them as orientation only."
)


def section(results: list[Result], winner: Result, digest: str, latency_budget_ms: float) -> Section:
    """Metrics on test; other systems only if the digest is that of the official data."""
    is_official = digest == OFFICIAL_DIGEST
    others = [result for result in results if result is not winner]
    tables = [
        _metrics_table(results),
        *([_differences_table(winner, others)] if others else []),
        _cost_table(results),
        *([_previous_table(winner, {result.profile for result in results}), _published_table()] if is_official else []),
    ]
    return Section(
        "Model comparison",
        (
            "Test split, with thresholds fitted on validation. Latency: 95th percentile for one text of 20 tokens; torch on two "
            "threads, the OpenVINO engines on one.",
            *_recommendations(results, latency_budget_ms),
            *((OTHER_SYSTEMS,) if is_official else ()),
        ),
        tables,
        (_latency_figure(results),),
    )


def _metrics_table(results: list[Result]) -> Table:
    names = (*(f"test/{name}" for name in HEADLINE), "test/at_0.5/f1_macro", "test/at_0.5/f1_micro")
    rows: list[list[Cell]] = [
        [result.title, *(result.metrics[name] for name in names), result.export.latency_ms_p95] for result in results
    ]
    return Table(("model (engine)", *HEADLINE_TITLES, "F1 macro at 0.5", "F1 micro at 0.5", "p95 ms"), rows)


def _differences_table(winner: Result, others: list[Result]) -> Table:
    rows: list[list[Cell]] = []
    for other in others:
        for name, title in zip(HEADLINE, HEADLINE_TITLES, strict=True):
            differences = other.bootstrapped[name] - winner.bootstrapped[name]
            low, high = bootstrap.interval(differences)
            verdict = "no clear difference" if low <= 0 <= high else "worse" if high < 0 else "better"
            relative = f"{differences[0] / winner.bootstrapped[name][0]:+.2%}"
            interval = f"{signed(low)} to {signed(high)}"
            rows.append([f"{other.title}: {title}", signed(differences[0]), relative, interval, verdict])
    return Table((f"compared with {winner.title}", "difference", "relative", "95% interval (paired)", "verdict"), rows)


def _cost_table(results: list[Result]) -> Table:
    rows: list[list[Cell]] = [
        [
            result.title,
            result.training.parameters,
            round(result.export.bytes / 2**20),
            result.export.latency_ms_p50,
            result.export.latency_ms_p95,
            # A million texts at p50 ms each take p50 thousand seconds.
            f"{result.export.latency_ms_p50 / 3.6:.1f} h",
        ]
        for result in results
    ]
    return Table(("cost", "parameters", "MiB", "p50 ms", "p95 ms", "a million texts, one by one"), rows)


def _previous_table(winner: Result, profiles: set[str]) -> Table:
    rows: list[list[Cell]] = []
    for reference in PREVIOUS:
        values = [getattr(reference, name) for name in HEADLINE]
        rows.append([f"{reference.model}, previous system", *values, reference.seconds])
        if reference.model not in profiles:
            rows.append([f"{reference.model}, this system", *["not run"] * 5])
    names = ("test/auc_micro", "test/auc_macro", "test/at_0.5/f1_macro", "test/at_0.5/f1_micro")
    values = [winner.metrics[name] for name in names]
    rows.append([f"{winner.title}, this system", *values, round(winner.training.seconds)])
    return Table(("thresholds at 0.5", *HEADLINE_TITLES, "training s"), rows)


def _published_table() -> Table:
    rows = [[reference.model, *(getattr(reference, name) for name in HEADLINE)] for reference in PUBLISHED]
    return Table(("published, test split", *HEADLINE_TITLES), rows)


def _recommendations(results: list[Result], latency_budget_ms: float) -> list[str]:
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


def _latency_figure(results: list[Result]) -> Figure:
    rows = []
    for result in results:
        measured = {"auc_micro": result.metrics["test/auc_micro"], "latency_ms": result.export.latency_ms_p95}
        rows.append({"model": result.title, **measured, "bytes": result.export.bytes})
    caption = "AUC micro on test and latency; the area of a dot is the size of the model"
    return Figure("accuracy-latency", caption, figures.latency_tradeoff(rows))
