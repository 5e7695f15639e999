"""How the models compare: metrics, significance, cost, and other systems."""

from __future__ import annotations

from goemotions.metrics import bootstrap
from goemotions.models import profiles
from goemotions.models.records import RunRecord, all_runs
from goemotions.report import use_cases
from goemotions.report.document import Cell, Section, Table
from goemotions.report.published import HALF, OFFICIAL_DIGEST, PREVIOUS, PUBLISHED, Published
from goemotions.report.result import HEADLINE, Result, best, duration, milliseconds, signed, teacher_title, title_of

HEADLINE_TITLES = tuple(map(title_of, HEADLINE))
# At thresholds of 0.5, which the previous system used.
PREVIOUS_METRICS = (*HEADLINE, "precision_macro", "recall_macro", "precision_micro", "recall_micro")
NOT_MEASURED = "not measured"
TRAINING_TIME = "training time, teachers included (s)"
OTHER_SYSTEMS = (
    "The previous system is the one that this workflow replaces: ten epochs on one A100. Compare a published F1 only with "
    "ours at thresholds of the same kind: one at thresholds that were fitted on test is higher than on unseen texts. AUC needs none."
)


def sections(results: list[Result], winner: Result, digest: str) -> list[Section]:
    """Metrics on test, and the teachers; other systems only if the digest is that of the official data."""
    is_official = digest == OFFICIAL_DIGEST
    others = [result for result in results if result is not winner]
    tables = [
        _metrics_table(results),
        *([_differences_table(winner, others)] if others else []),
        _cost_table(results),
        *([*_previous_tables(results), _published_table(_best_of_each(results))] if is_official else []),
    ]
    compared = Section(
        "Model comparison",
        (
            "Test split, with thresholds fitted on validation. Latency: for one text of 20 tokens, without tokenization; torch on "
            "a GPU if there was one, the OpenVINO engines on one thread. Texts per second: the validation split, in batches, with "
            "tokenization, on all cores. Both were measured on the machine that ran the pipeline.",
            *((OTHER_SYSTEMS,) if is_official else ()),
        ),
        tables,
    )
    return [compared, *_teachers_section(results)]


def _metrics_table(results: list[Result]) -> Table:
    names = (*(f"test/{name}" for name in HEADLINE), "test/f1_macro/at_0.5", "test/f1_micro/at_0.5")
    rows: list[list[Cell]] = [
        [result.title, *(result.metrics[name] for name in names), _latency(result)[1]] for result in results
    ]
    return Table(("model (engine)", *HEADLINE_TITLES, "macro F1 at 0.5", "micro F1 at 0.5", "p95 latency (ms)"), rows)


def _differences_table(winner: Result, others: list[Result]) -> Table:
    rows: list[list[Cell]] = []
    for other in others:
        for name, title in zip(HEADLINE, HEADLINE_TITLES, strict=True):
            difference, verdict = use_cases.verdict(other, winner, name)
            low, high = bootstrap.interval(other.bootstrapped[name] - winner.bootstrapped[name])
            relative = f"{difference / winner.bootstrapped[name][0]:+.2%}"
            interval = f"{signed(low)} to {signed(high)}"
            rows.append([other.title, title, signed(difference), relative, interval, verdict])
    return Table(
        (f"compared with {winner.title}", "metric", "difference", "relative", "95% interval (paired)", "verdict"), rows
    )


def _cost_table(results: list[Result]) -> Table:
    rows: list[list[Cell]] = [
        [
            result.title,
            result.training.parameters,
            f"{result.export.bytes / 2**20:,.1f}",
            *_latency(result),
            # A million texts at p50 ms each take p50 thousand seconds.
            f"{result.latency_ms[0] / 3.6:.1f}" if result.latency_ms else NOT_MEASURED,
            round(result.texts_per_second) if result.texts_per_second else NOT_MEASURED,
            round(result.training.seconds - result.teachers_seconds),
            round(result.teachers_seconds),
        ]
        for result in results
    ]
    latencies = ("median latency (ms)", "p95 latency (ms)", "a million texts, one by one (h)")
    return Table(("cost", "parameters", "size (MiB)", *latencies, "texts per second", "training (s)", "teachers (s)"), rows)


def _previous_tables(results: list[Result]) -> list[Table]:
    """Every trained profile, by its best engine, beside the models of the previous system, and the differences."""
    trained = _best_of_each(results)
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


def _best_of_each(results: list[Result]) -> list[Result]:
    """Of every trained profile the result of its best engine."""
    names = dict.fromkeys(result.profile for result in results)
    return [best([one for one in results if one.profile == name]) for name in names]


def _figures(result: Result) -> dict[str, Cell]:
    training = result.training
    return {
        **{title_of(name): _at_half(result, name) for name in PREVIOUS_METRICS},
        "parameters": training.parameters,
        TRAINING_TIME: round(training.seconds),
        "best epoch": f"{training.best_epoch} of {len(training.history)}",
    }


def _previous_figures(reference: Published) -> dict[str, Cell]:
    metrics = {title_of(name): getattr(reference, name, None) for name in PREVIOUS_METRICS}
    rest = {
        "parameters": profiles.PROFILES[reference.model].encoder.parameters,
        TRAINING_TIME: reference.seconds,
        "best epoch": f"{reference.best_epoch} of {reference.epochs}" if reference.best_epoch else None,
    }
    return {title: "not reported" if value is None else value for title, value in (metrics | rest).items()}


def _at_half(result: Result, name: str) -> float:
    # Ranking metrics do not depend on thresholds.
    return result.metrics[f"test/{name}/at_0.5"]


def _published_table(trained: list[Result]) -> Table:
    """What others published, and every trained profile at thresholds of 0.5 and at its own."""
    names = ("f1_macro", "f1_micro", "auc_micro", "auc_macro")
    rows: list[list[Cell]] = [
        [one.model, one.thresholds, *(getattr(one, name) for name in names), one.source] for one in PUBLISHED
    ]
    for result in trained:
        for form, fitted in (("test/{}/at_0.5", HALF), ("test/{}", f"{result.thresholds.strategy}, fitted on validation")):
            shown = (result.metrics[form.format(name)] for name in names)
            rows.append([f"{result.title}, this system", fitted, *shown, "this report"])
    return Table(("published, test split", "thresholds", *map(title_of, names), "source"), rows)


def _latency(result: Result) -> tuple[Cell, Cell]:
    if result.latency_ms is None:
        return NOT_MEASURED, NOT_MEASURED
    median, high = map(milliseconds, result.latency_ms)
    return median, high


def _teachers_section(results: list[Result]) -> list[Section]:
    """What each teacher of the models cost, and how good it was; a teacher of several models was trained once."""
    students: dict[str, list[str]] = {}
    runs: dict[str, RunRecord] = {}
    for result in results:
        _add_students(students, result.profile, result.training.teachers)
        runs |= all_runs(result.training.teachers)
    rows: dict[str, list[Cell]] = {}
    for name, run in runs.items():
        best_epoch = run.history[run.best_epoch - 1]
        scores = (best_epoch.get(f"validation/{metric}") for metric in ("auc_micro", "auc_macro"))
        rows[name] = [teacher_title(run), run.parameters, len(run.history), round(run.seconds), *scores]
    if not rows:
        return []
    columns = ("teacher", "parameters", "epochs", "training (s)", "micro AUC", "macro AUC", "taught")
    table = Table(columns, [[*row, "; ".join(students[name])] for name, row in rows.items()])
    text = (
        f"The training of {len(rows)} teacher{'s' * (len(rows) > 1)}, each trained once for all its students, took "
        f"{duration(sum(run.seconds for run in runs.values()))} in all. A student learns from the mean of the probabilities of its "
        "teachers; they are not served. The AUCs are on validation."
    )
    return [Section("Teachers", (text,), (table,), level=3)]


def _add_students(students: dict[str, list[str]], student: str, teachers: list[RunRecord]) -> None:
    """Adds the student to those of each teacher, and each teacher to those of its own."""
    for teacher in teachers:
        of_teacher = students.setdefault(teacher.name, [])
        of_teacher += [student] if student not in of_teacher else []
        _add_students(students, teacher_title(teacher), teacher.teachers)
