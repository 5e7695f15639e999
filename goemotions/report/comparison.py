"""How the models compare: metrics, significance, cost, and other systems."""

from __future__ import annotations

from goemotions.metrics import bootstrap
from goemotions.models import profiles
from goemotions.report import figures, use_cases
from goemotions.report.document import Cell, Figure, Section, Table
from goemotions.report.reference import OFFICIAL_DIGEST, PREVIOUS, PUBLISHED, Reference
from goemotions.report.result import HEADLINE, Result, best, signed, title_of

HEADLINE_TITLES = tuple(map(title_of, HEADLINE))
# At thresholds of 0.5, which the previous system used.
PREVIOUS_METRICS = (*HEADLINE, "precision_macro", "recall_macro", "precision_micro", "recall_micro")
NOT_MEASURED = "not measured"
OTHER_SYSTEMS = (
    "The previous system is the one that this workflow replaces: ten epochs on one A100. The first of the published results is from "
    "the data set's paper. The others are single reports whose training and hardware differ: use them as orientation only."
)


def section(results: list[Result], winner: Result, digest: str) -> Section:
    """Metrics on test; other systems only if the digest is that of the official data."""
    is_official = digest == OFFICIAL_DIGEST
    others = [result for result in results if result is not winner]
    tables = [
        _metrics_table(results),
        *([_differences_table(winner, others)] if others else []),
        _cost_table(results),
        *([*_previous_tables(results), _published_table()] if is_official else []),
    ]
    return Section(
        "Model comparison",
        (
            "Test split, with thresholds fitted on validation. Latency: 95th percentile for one text of 20 tokens; torch on a GPU if "
            "there was one to measure it on, the OpenVINO engines on one thread.",
            *((OTHER_SYSTEMS,) if is_official else ()),
        ),
        tables,
        _latency_figures(results),
    )


def _metrics_table(results: list[Result]) -> Table:
    names = (*(f"test/{name}" for name in HEADLINE), "test/at_0.5/f1_macro", "test/at_0.5/f1_micro")
    rows: list[list[Cell]] = [
        [result.title, *(result.metrics[name] for name in names), _latency(result)[1]] for result in results
    ]
    return Table(("model (engine)", *HEADLINE_TITLES, "F1 macro at 0.5", "F1 micro at 0.5", "p95 ms"), rows)


def _differences_table(winner: Result, others: list[Result]) -> Table:
    rows: list[list[Cell]] = []
    for other in others:
        for name, title in zip(HEADLINE, HEADLINE_TITLES, strict=True):
            difference, verdict = use_cases.verdict(other, winner, name)
            low, high = bootstrap.interval(other.bootstrapped[name] - winner.bootstrapped[name])
            relative = f"{difference / winner.bootstrapped[name][0]:+.2%}"
            interval = f"{signed(low)} to {signed(high)}"
            rows.append([f"{other.title}: {title}", signed(difference), relative, interval, verdict])
    return Table((f"compared with {winner.title}", "difference", "relative", "95% interval (paired)", "verdict"), rows)


def _cost_table(results: list[Result]) -> Table:
    rows: list[list[Cell]] = [
        [
            result.title,
            result.training.parameters,
            round(result.export.bytes / 2**20),
            *_latency(result),
            # A million texts at p50 ms each take p50 thousand seconds.
            f"{result.latency_ms[0] / 3.6:.1f} h" if result.latency_ms else NOT_MEASURED,
        ]
        for result in results
    ]
    return Table(("cost", "parameters", "MiB", "p50 ms", "p95 ms", "a million texts, one by one"), rows)


def _previous_tables(results: list[Result]) -> list[Table]:
    """Every trained profile, by its best engine, beside the models of the previous system, and the differences."""
    trained = [best([one for one in results if one.profile == name]) for name in dict.fromkeys(one.profile for one in results)]
    columns = {f"{reference.model}, previous system": _previous_figures(reference) for reference in PREVIOUS}
    missing = [reference.model for reference in PREVIOUS if reference.model not in {one.profile for one in trained}]
    for result in trained:
        columns[f"{result.title}, this system"] = _figures(result)
    for name in missing:
        columns[f"{name}, this system"] = dict.fromkeys(_figures(trained[0]), "not run")
    rows: list[list[Cell]] = [[title, *(column[title] for column in columns.values())] for title in _figures(trained[0])]
    differences: list[list[Cell]] = []
    for result in trained:
        for reference in PREVIOUS:
            changes = [signed(_at_half(result, name) - getattr(reference, name)) for name in HEADLINE]
            times = f"{result.training.seconds / reference.seconds:.2f} times" if reference.seconds else "not reported"
            differences.append([f"{result.title} compared with {reference.model}", *changes, times])
    return [
        Table(("test split, thresholds at 0.5", *columns), rows),
        Table(("difference from the previous system", *HEADLINE_TITLES, "training time"), differences),
    ]


def _figures(result: Result) -> dict[str, Cell]:
    training = result.training
    return {
        **{title_of(name): _at_half(result, name) for name in PREVIOUS_METRICS},
        "parameters": training.parameters,
        "training time in s": round(training.seconds),
        "best epoch": f"{training.best_epoch} of {len(training.history)}",
    }


def _previous_figures(reference: Reference) -> dict[str, Cell]:
    metrics = {title_of(name): getattr(reference, name, None) for name in PREVIOUS_METRICS}
    rest = {
        "parameters": profiles.PROFILES[reference.model].encoder.parameters,
        "training time in s": reference.seconds,
        "best epoch": f"{reference.best_epoch} of {reference.epochs}" if reference.best_epoch else None,
    }
    return {title: "not reported" if value is None else value for title, value in (metrics | rest).items()}


def _at_half(result: Result, name: str) -> float:
    # Ranking metrics do not depend on thresholds.
    return result.metrics[f"test/at_0.5/{name}"]


def _published_table() -> Table:
    rows = [[reference.model, *(getattr(reference, name) for name in HEADLINE)] for reference in PUBLISHED]
    return Table(("published, test split", *HEADLINE_TITLES), rows)


def _latency(result: Result) -> tuple[Cell, Cell]:
    return result.latency_ms or (NOT_MEASURED, NOT_MEASURED)


def _latency_figures(results: list[Result]) -> list[Figure]:
    rows = [
        {
            "model": result.title,
            "auc_micro": result.metrics["test/auc_micro"],
            "latency_ms": result.latency_ms[1],
            "bytes": result.export.bytes,
        }
        for result in results
        if result.latency_ms
    ]
    caption = "AUC micro on test and latency, where it was measured; the area of a dot is the size of the model"
    return [Figure("accuracy-latency", caption, figures.latency_tradeoff(rows))] if rows else []
