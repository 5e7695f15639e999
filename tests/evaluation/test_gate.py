"""The gate: only a better model passes."""

from dataclasses import replace

import numpy as np
import pytest
from sklearn.metrics import f1_score, roc_auc_score

from goemotions.errors import ModelError
from goemotions.evaluation import gate
from goemotions.evaluation.latency import Latency
from goemotions.evaluation.predictions import Predictions
from goemotions.evaluation.selection import CandidateScores
from goemotions.metrics import strategies
from goemotions.metrics.classification import macro_f1
from goemotions.metrics.sorted_scores import SortedScores
from goemotions.metrics.thresholds import Thresholds
from goemotions.models.engine_names import Computation

ROWS = 400
NAMES = ("calm", "dread", "glee", "scorn", "plain")
HALF = Thresholds("global-0.5", (0.5,) * len(NAMES))


def predictions(labels: np.ndarray, probabilities: np.ndarray) -> Predictions:
    names = tuple(f"label {i}" for i in range(labels.shape[1]))
    return Predictions(names, [f"r{i}" for i in range(len(labels))], labels, probabilities, "validation", "openvino-fp32", "d1")


def candidate(noise: float, *, seed: int = 0, latency_ms: float = 5.0) -> CandidateScores:
    """A model whose logits follow the same labels up to the noise."""
    labels = np.random.default_rng(11).random((ROWS, len(NAMES))) < 0.3
    logits = 4.0 * labels - 2 + noise * np.random.default_rng(seed).normal(size=labels.shape)
    scored = predictions(labels, (1 / (1 + np.exp(-logits))).astype(np.float32))
    return CandidateScores("x", replace(scored, names=NAMES), HALF, Latency.recorded(latency_ms))


def test_a_model_does_not_beat_itself() -> None:
    verdict = gate.compare(candidate(2.0), candidate(2.0), latency_budget_ms=None)
    assert not verdict.passes
    assert verdict.reasons == ("micro AUC is not higher",)
    assert {name: value.difference for name, value in verdict.differences.items()} == {
        "auc_micro": 0,
        "f1_macro": 0,
        "calibration_error": 0,
    }


def test_what_is_as_good_has_no_shown_loss_and_what_is_worse_has() -> None:
    same = gate.compare(candidate(2.0, seed=1), candidate(2.0, seed=2), latency_budget_ms=None)
    worse = gate.compare(candidate(3.0, seed=2), candidate(1.0, seed=1), latency_budget_ms=None)
    # What may have been lost refuses, and what is not shown to be lost is no loss.
    assert same.reasons == (
        "auc_micro may have fallen by more than 0.002",
        "f1_macro may have fallen by more than 0.002",
        "the calibration error rose by 0.0124",
    )
    assert same.losses == ()
    assert [loss.split(" fell by ")[0] for loss in worse.losses[:2]] == ["auc_micro", "f1_macro"]
    slow = gate.compare(candidate(2.0, latency_ms=40.0), candidate(2.0), latency_budget_ms=25.0)
    assert slow.losses == slow.reasons[-1:]
    rise = worse.differences["calibration_error"]
    assert rise.low < rise.difference < rise.high


def test_a_clearly_better_model_passes() -> None:
    verdict = gate.compare(candidate(1.0, seed=1), candidate(3.0, seed=2), latency_budget_ms=None)
    assert verdict.passes, verdict.reasons
    assert verdict.differences["auc_micro"].low > 0


def test_a_clearly_worse_model_does_not_pass() -> None:
    verdict = gate.compare(candidate(3.0, seed=2), candidate(1.0, seed=1), latency_budget_ms=None)
    assert not verdict.passes
    assert {reason.split(" ")[0] for reason in verdict.reasons} >= {"micro", "auc_micro", "f1_macro"}


def test_a_clearly_faster_model_may_lose_the_tolerance_if_latency_counts() -> None:
    champion, faster = candidate(2.0, seed=1, latency_ms=10.0), candidate(2.02, seed=1, latency_ms=5.0)
    lost = max(a - b for a, b in zip(champion.rank, faster.rank, strict=True))
    assert 0 < lost < 0.01
    verdict = gate.compare(faster, champion, latency_budget_ms=25.0, quality_tolerance=0.01)
    assert verdict.passes
    assert verdict.summary().startswith("it is clearly faster, and micro AUC changed by -0.00")
    assert not gate.compare(faster, champion, latency_budget_ms=None, quality_tolerance=0.01).passes
    assert not gate.compare(faster, champion, latency_budget_ms=25.0, quality_tolerance=lost / 2).passes
    assert not gate.compare(
        faster, candidate(2.0, seed=1, latency_ms=5.0), latency_budget_ms=25.0, quality_tolerance=0.01
    ).passes


def test_two_models_of_the_same_quality_do_not_replace_each_other() -> None:
    one, other = candidate(2.0, seed=1), candidate(2.0, seed=2)
    verdicts = [gate.compare(*pair, latency_budget_ms=None) for pair in ((one, other), (other, one))]
    assert [verdict.passes for verdict in verdicts] == [False, False]


def test_a_better_ranking_does_not_compensate_worse_decisions() -> None:
    strict = replace(candidate(1.0, seed=1), thresholds=Thresholds("global-tuned", (0.99,) * len(NAMES)))
    verdict = gate.compare(strict, candidate(3.0, seed=2), latency_budget_ms=None)
    assert verdict.reasons == ("f1_macro may have fallen by more than 0.002",)


def rare_labels(rows: int, seed: int, model: int) -> Predictions:
    """Scores of one of two models of the same quality, for labels of which many are rare."""
    rates = np.geomspace(0.003, 0.2, 20)
    labels = np.random.default_rng(seed).random((rows, len(rates))) < rates
    noise = np.random.default_rng([seed, model]).normal(size=labels.shape)
    logits = np.log(rates / (1 - rates)) + 3.0 * labels + 1.3 * noise
    return predictions(labels, (1 / (1 + np.exp(-logits))).astype(np.float32))


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [("per-label", "per-label-smoothed"), ("per-label-smoothed", "per-label")],
    ids=["of the candidate", "of the champion"],
)
def test_thresholds_that_follow_noise_are_no_advantage(ours: str, theirs: str) -> None:
    """On average, the difference is that on rows which the thresholds were not fitted on."""
    excess = []
    for seed in range(5):
        compared, true = [], []
        for model, strategy in ((1, ours), (2, theirs)):
            validation, fresh = rare_labels(1000, seed, model), rare_labels(10_000, 100 + seed, model)
            fitted = strategies.STRATEGIES[strategy](SortedScores.of(validation.labels, validation.probabilities))
            compared.append(CandidateScores(strategy, validation, fitted))
            true.append(macro_f1(fresh.labels, fitted.apply(fresh.probabilities)))
        difference = gate.compare(*compared, latency_budget_ms=None).differences["f1_macro"]
        excess.append(difference.difference - (true[0] - true[1]))
    assert np.mean(excess) == pytest.approx(0, abs=0.04)


def test_a_better_ranking_does_not_compensate_worse_calibration() -> None:
    better = candidate(1.0, seed=1)
    squeezed = replace(better.validation, probabilities=0.35 + 0.3 * better.validation.probabilities)
    verdict = gate.compare(replace(better, validation=squeezed), candidate(3.0, seed=2), latency_budget_ms=None)
    assert not verdict.passes
    assert [reason.rpartition(" ")[0] for reason in verdict.reasons] == ["the calibration error rose by"]


@pytest.mark.parametrize(
    ("latency_ms", "budget", "passes"),
    [(24.9, 25.0, True), (25.0, 25.0, True), (25.1, 25.0, False), (9000.0, None, True)],
    ids=["within", "at the budget", "over", "no budget"],
)
def test_a_slow_model_passes_only_within_the_budget(latency_ms: float, budget: float | None, passes: bool) -> None:
    better = candidate(1.0, seed=1, latency_ms=latency_ms)
    verdict = gate.compare(better, candidate(3.0, seed=2), latency_budget_ms=budget)
    assert verdict.passes is passes
    reason = "the latency for one text, 25.1 ms (25.1 to 25.1), is over the budget of 25 ms"
    assert verdict.reasons == (() if passes else (reason,))


def test_an_undecided_latency_refuses_nothing_and_is_noted() -> None:
    better, champion = candidate(1.0, seed=1), candidate(3.0, seed=2, latency_ms=20.0)
    noisy = replace(better, latency=Latency(30.0, 18.0, 41.0))
    verdict = gate.compare(noisy, champion, latency_budget_ms=25.0)
    assert verdict.passes
    assert verdict.notes == (
        "whether the latency is within the budget of 25 ms is undecided and did not count: 30.0 ms (18.0 to 41.0)",
        "one text takes 1.50 times as long as with the champion",
    )
    unmeasured = gate.compare(replace(better, latency=None), champion, latency_budget_ms=25.0)
    assert unmeasured.passes
    assert unmeasured.notes[0].endswith("did not count: it was not measured")


def test_scores_of_another_engine_than_the_one_that_serves_are_noted() -> None:
    serving, used = Computation("torch", "cuda", "bf16"), {"engine": "openvino-fp32", "device": "cpu", "precision": "fp32"}
    ours, theirs = candidate(1.0, seed=1), candidate(3.0, seed=2)
    on_cpu = replace(ours, validation=replace(ours.validation, **used))
    on_gpu = replace(theirs, validation=replace(theirs.validation, engine="torch", device="cuda", precision="bf16"))
    verdict = gate.compare(on_cpu, on_gpu, latency_budget_ms=None, serving=serving)
    assert (
        verdict.notes[-1]
        == "the candidate was evaluated by openvino-fp32 on cpu in fp32, but torch on cuda in bf16 will serve it"
    )
    assert not [note for note in verdict.notes if "champion was" in note]
    former = gate.compare(ours, theirs, latency_budget_ms=None, serving=serving)
    assert not [note for note in former.notes if "evaluated" in note], "files of before do not say what computed them"


def test_the_verdict_is_the_same_every_time() -> None:
    first, second = (gate.compare(candidate(1.5, seed=1), candidate(1.6, seed=2), latency_budget_ms=None) for _ in range(2))
    assert first == second


@pytest.mark.parametrize(
    "names", [("calm", "dread", "glee", "scorn", "other"), NAMES[::-1]], ids=["other names", "other order"]
)
def test_models_with_other_labels_are_not_compared(names: tuple[str, ...]) -> None:
    champion = candidate(2.0)
    with pytest.raises(ModelError, match="candidate and champion have different labels: register under another model name"):
        gate.compare(
            candidate(1.0), replace(champion, validation=replace(champion.validation, names=names)), latency_budget_ms=None
        )


@pytest.mark.parametrize("change", [{"digest": "d2"}, {"ids": [f"x{i}" for i in range(ROWS)]}], ids=["digest", "ids"])
def test_models_scored_on_other_rows_are_not_compared(change: dict[str, object]) -> None:
    champion = candidate(2.0)
    with pytest.raises(ModelError, match="scored on different rows: score the champion on this data first"):
        gate.compare(
            candidate(1.0), replace(champion, validation=replace(champion.validation, **change)), latency_budget_ms=None
        )


def test_the_differences_on_all_rows_are_those_of_scikit_learn() -> None:
    ours, theirs = candidate(1.5, seed=1), candidate(2.0, seed=2)
    verdict = gate.compare(ours, theirs, latency_budget_ms=None)
    labels = ours.validation.labels
    auc = [roc_auc_score(labels, one.validation.probabilities, average="micro") for one in (ours, theirs)]
    f1 = [f1_score(labels, one.validation.probabilities >= 0.5, average="macro") for one in (ours, theirs)]
    for name, (mine, other) in {"auc_micro": auc, "f1_macro": f1}.items():
        value = verdict.differences[name]
        assert value.difference == pytest.approx(mine - other)
        assert value.low < value.difference < value.high
