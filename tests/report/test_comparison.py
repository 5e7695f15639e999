"""The comparison with the previous system, and the use cases that follow from the figures."""

from dataclasses import replace
from typing import Any

import pytest
from sklearn.metrics import precision_score, recall_score

from goemotions.models.records import RunRecord
from goemotions.registry.bundle import VARIANTS
from goemotions.registry.candidates import CandidateArtifacts
from goemotions.report import comparison, use_cases
from goemotions.report.document import to_markdown
from goemotions.report.published import OFFICIAL_DIGEST
from goemotions.report.result import Result, best
from tests.report.test_winner import write_candidate


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> list[Result]:
    """Three profiles by both engines: ``second`` is the best, ``third`` the next best; int8 is faster and smaller."""
    root = tmp_path_factory.mktemp("compared")
    results = []
    for profile, seconds, latency in (("first", 100.0, 2.0), ("second", 2000.0, 40.0), ("third", 400.0, 20.0)):
        folder = write_candidate(root / profile, profile, latency)
        for variant in VARIANTS:
            one = Result.read(variant, CandidateArtifacts.below(folder, variant))
            share = 1 if variant == "gpu" else 4
            export = replace(one.export, latency_ms_p95=latency / share, bytes=2**24 // share)
            training = replace(one.training, seconds=seconds, best_epoch=2, history=[{}, {}, {}])
            results.append(replace(one, export=export, training=training))
    return results


@pytest.fixture(scope="module")
def text(compared: list[Result]) -> str:
    return to_markdown("t", [*comparison.sections(compared, best(compared), OFFICIAL_DIGEST)])


@pytest.fixture(scope="module")
def previous(text: str, markdown_tables: Any) -> dict[str, dict[str, str]]:
    header, *rows = next(table for table in markdown_tables(text) if table[0][0] == "test split, thresholds at 0.5")
    return {row[0]: dict(zip(header[1:], row[1:], strict=True)) for row in rows}


def test_every_trained_profile_is_compared_with_the_previous_system(previous: Any, compared: list[Result]) -> None:
    for profile in ("first", "second", "third"):
        result = best([one for one in compared if one.profile == profile])
        predicted = result.test.probabilities >= 0.5
        for average in ("macro", "micro"):
            scores = (precision_score, recall_score)
            for name, score in zip(("precision", "recall"), scores, strict=True):
                expected = score(result.test.labels, predicted, average=average, zero_division=0)
                assert previous[f"{average} {name}"][f"{result.title}, this system"] == f"{expected:.4f}"
        assert (
            previous["training time, teachers included (s)"][f"{result.title}, this system"]
            == f"{result.training.seconds:,.0f}"
        )
        assert previous["best epoch"][f"{result.title}, this system"] == "2 of 3"
        assert previous["parameters"][f"{result.title}, this system"] == "10"


def test_what_the_previous_system_did_not_report_is_said_so(previous: Any) -> None:
    column = {row: cells["roberta-large, previous system"] for row, cells in previous.items()}
    assert (column["micro AUC"], column["training time, teachers included (s)"], column["best epoch"]) == (
        "0.9045",
        "7,363",
        "1 of 10",
    )
    assert {column[f"{average} {name}"] for name in ("precision", "recall") for average in ("macro", "micro")} == {
        "not reported"
    }
    assert {cells["roberta-large, this system"] for cells in previous.values()} == {"not run"}


def test_the_differences_from_the_previous_system_are_those_of_the_figures(
    text: str, previous: Any, markdown_tables: Any, compared: list[Result]
) -> None:
    rows = next(table for table in markdown_tables(text) if table[0][0] == "difference from the previous system")
    assert len(rows) == 1 + 3 * 2
    result = best([one for one in compared if one.profile == "third"])
    row = next(row for row in rows if row[0] == f"{result.title} compared with distilbert")
    assert float(row[1]) == pytest.approx(result.metrics["test/auc_micro"] - 0.88, abs=1e-4)
    assert row[-1] == f"{400 / 1113:.2f} times"


def test_published_results_name_source_and_thresholds_and_ours_are_beside_them(
    text: str, markdown_tables: Any, compared: list[Result]
) -> None:
    header, *rows = next(table for table in markdown_tables(text) if table[0][0] == "published, test split")
    published = [dict(zip(header, row, strict=True)) for row in rows]
    assert all(row["thresholds"] and row["source"] for row in published)
    ours = {row["thresholds"]: row for row in published if row["published, test split"].startswith("second (")}
    result = best([one for one in compared if one.profile == "second"])
    assert ours["0.5"]["macro F1"] == f"{result.metrics['test/f1_macro/at_0.5']:.4f}"
    fitted = ours[f"{result.thresholds.strategy}, fitted on validation"]
    assert fitted["micro F1"] == f"{result.metrics['test/f1_micro']:.4f}"


def test_other_data_has_no_previous_system(compared: list[Result]) -> None:
    assert "previous system" not in to_markdown("t", comparison.sections(compared, best(compared), "of other data"))


def run(profile: str, seed: int, seconds: float, *teachers: RunRecord) -> RunRecord:
    epoch = {"validation/auc_micro": 0.9, "validation/auc_macro": 0.8}
    about = {"parameters": 10, "precision": "fp32", "steps": 1, "hardware": "2 threads"}
    return RunRecord(
        profile={"name": profile}, seed=seed, seconds=seconds, best_epoch=1, history=[epoch], teachers=list(teachers), **about
    )


def test_a_teacher_of_teachers_counts_once(compared: list[Result], markdown_tables: Any) -> None:
    """Two of a second generation, which one plain teacher taught: 100 s, and 300 s and 500 s without those."""
    plain = run("mpnet", 1, 100.0)
    second = [run("mpnet", 0, 400.0, plain), run("minilm", 0, 600.0, plain)]
    taught = [replace(one, training=replace(one.training, teachers=second, seconds=950.0)) for one in compared[:1]]
    text = to_markdown("t", comparison.sections(taught, taught[0], "of other data"))
    rows = next(table for table in markdown_tables(text) if table[0][0] == "teacher")[1:]
    assert [(row[0], row[3], row[-1]) for row in rows] == [
        ("mpnet, seed 1", "100", "mpnet, seed 0, taught; minilm, seed 0, taught"),
        ("mpnet, seed 0, taught", "300", "first"),
        ("minilm, seed 0, taught", "500", "first"),
    ]
    assert "The training of 3 teachers" in text
    assert "took 15 min in all" in text
    (cost,) = next(table for table in markdown_tables(text) if table[0][0] == "cost")[1:]
    assert cost[-2:] == ["50", "900"]


def sentences(results: list[Result]) -> list[str]:
    return [*use_cases.recommendation(results, 25.0, 0.0).text, *use_cases.section(results, best(results)).text]


def test_the_use_cases_name_the_model_with_the_figure(compared: list[Result]) -> None:
    text = sentences(compared)
    winner = best(compared)
    assert any(line.startswith("For the fastest response, use first (openvino-int8): p95 latency 0.50 ms") for line in text)
    assert any(
        line.startswith("For frequent retraining, use first") and "against 33 min (20.0 times as much) for second" in line
        for line in text
    )
    memory = next(line for line in text if line.startswith("For little memory"))
    assert "4.0 MiB" in memory
    assert winner.profile == "second"
    precise = max(compared, key=lambda one: one.metrics["validation/precision_micro"])
    line = next(line for line in text if line.startswith("If wrong labels cost more"))
    assert precise.profile in line
    assert f"{precise.metrics['validation/precision_micro']:.3f}" in line


def test_other_figures_give_other_use_cases(compared: list[Result]) -> None:
    swapped = [
        replace(one, export=replace(one.export, latency_ms_p95=0.1)) if one.profile == "third" and one.variant == "gpu" else one
        for one in compared
    ]
    assert any(
        line.startswith("For the fastest response, use third (torch): p95 latency 0.10 ms") for line in sentences(swapped)
    )


def test_a_cost_within_the_interval_is_no_clear_difference(compared: list[Result]) -> None:
    of_engines = [line for line in sentences(compared) if " instead of torch is " in line]
    assert len(of_engines) == 3
    assert all("micro AUC +0.0000 (no clear difference)" in line and "4.0 times smaller" in line for line in of_engines)
    fast = next(line for line in sentences(compared) if line.startswith("For the fastest response"))
    assert "(worse)" in fast


def test_a_model_whose_latency_was_not_measured_is_not_called_fast_or_slow(compared: list[Result]) -> None:
    unmeasured = [
        replace(one, export=replace(one.export, latency_ms_p50=None, latency_ms_p95=None)) if one.variant == "gpu" else one
        for one in compared
    ]
    text = sentences(unmeasured)
    fast = next(line for line in text if line.startswith("For the fastest response"))
    assert "use first (openvino-int8): p95 latency 0.50 ms" in fast
    # The best of those that were measured, so that the latencies can be compared.
    assert "against 10.0 ms (20.0 times as much) for second (openvino-int8), the best on validation of those that were" in fast
    assert "None" not in " ".join(text)
    assert "nan" not in " ".join(text)


def test_the_registered_winner_is_the_one_that_is_recommended(compared: list[Result]) -> None:
    registered: Any = {"cpu": {"profile": "first", "selection": "the best on validation; the rest is too noisy"}}
    text = "\n".join(use_cases.recommendation(compared, registered=registered).text)
    assert "On CPUs, serve first (openvino-int8): the best on validation; the rest is too noisy." in text


def test_what_the_smaller_winner_loses_is_said(compared: list[Result]) -> None:
    sizes = {"first": 10, "second": 63, "third": 20}
    results = [
        replace(one, training=replace(one.training, parameters=sizes[one.profile]))
        for one in compared
        if (one.profile == "second") == (one.variant == "gpu")
    ]
    text = use_cases.recommendation(results, 25.0, 0.0).text
    small = next(one for one in results if one.title == "third (openvino-int8)")
    difference, judgement = use_cases.verdict(small, best(results), "f1_macro")
    start = "On test, third (openvino-int8) compared with second (torch), which has 3.1 times as many parameters: micro AUC "
    assert text[-1].startswith(start)
    assert text[-1].endswith(f", macro F1 {difference:+.4f} ({judgement}).")
    assert not any("times as many parameters" in line for line in use_cases.recommendation(compared, 25.0, 0.0).text)


def test_one_model_alone_is_recommended_for_all(compared: list[Result]) -> None:
    alone = [one for one in compared if one.profile == "second" and one.variant == "gpu"]
    text = " ".join(sentences(alone))
    assert "None" not in text
    assert text.count("second (torch)") >= 5


def test_the_page_has_the_section(markdown: str) -> None:
    answer = markdown.split("\n## ")[1]
    assert answer.startswith("Recommendation\n\nOn a GPU, serve minilm (torch): ")
    assert "On CPUs, serve minilm (openvino-int8): " in answer
    assert "loses at most 0.005 of micro AUC and of macro F1" in answer
    assert answer.count("- **") == 3
    assert "accuracy-latency.svg" in answer
    assert "|" not in answer
