"""Cost and energy: what the steps used, added up over a run, at given prices and by the stated formula."""

import shutil
from pathlib import Path

import pytest

from goemotions import usage
from goemotions.registry import costs
from goemotions.registry.assembly import assemble
from goemotions.registry.bundle import VARIANTS, BundleMetadata
from goemotions.registry.candidates import CandidateArtifacts
from goemotions.registry.costs import Prices, Step
from goemotions.report import cost
from goemotions.usage import Usage


def test_cost_and_energy_follow_from_seconds_prices_and_power() -> None:
    used = Usage(
        wall_seconds=3600, cpu_seconds=7200, gpu_seconds=3600, memory_gb_seconds=3600 * 10, device="NVIDIA A100-SXM4-80GB"
    )
    assert Prices(cpu_hour=0.5, gpu_hour=4).of(used) == pytest.approx(5.0)
    # 1.67 times (2 core hours of 12 W, a GPU hour of 400 W, 10 GB hours of 0.3725 W).
    assert costs.energy_kwh([used]) == pytest.approx(1.67 * (24 + 400 + 3.725) / 1000)


def test_the_sentence_of_a_run_on_gpus_has_their_hours_price_and_energy() -> None:
    """Two processes with a GPU each: the GPUs add up, and the name of the device stays beside a step on the CPU."""
    used = [Usage(1800, 7200, 3600, 0.0, "NVIDIA L4"), Usage(wall_seconds=60, cpu_seconds=3600)]
    assert costs.sentence(used, Prices(cpu_hour=0.5, gpu_hour=4)) == (
        "3.00 CPU hours and 1.00 GPU hours, which cost 5.50 at 0.5 per CPU hour and 4 per GPU hour, and about 0.18 kWh "
        "(Green Algorithms, Lannelongue et al. 2021)"
    )


def test_the_sentence_of_a_small_run_rounds_nothing_to_zero() -> None:
    sentence = costs.sentence([Usage(wall_seconds=61, cpu_seconds=35)], Prices(cpu_hour=0.05))
    assert sentence.startswith("0.0097 CPU hours and 0 GPU hours, which cost 0.00049 at 0.05 per CPU hour")
    assert "about 0.00019 kWh" in sentence


def test_the_energy_of_a_run_on_different_gpus_is_the_sum_of_its_steps() -> None:
    steps = [Step(name, "", Usage(gpu_seconds=3600, device=name)) for name in ("NVIDIA H100 80GB HBM3", "Tesla T4")]
    section = cost.section(steps, Prices())
    assert section
    assert [row[-1] for row in section.tables[0].rows] == pytest.approx([1.67 * 0.7, 1.67 * 0.07, 1.67 * 0.77])


@pytest.mark.parametrize(
    ("device", "watts"),
    [("NVIDIA L4", 72), ("NVIDIA L40S", 350), ("NVIDIA H100 80GB HBM3", 700), ("Tesla T4", 70), ("another", 200)],
)
def test_the_power_of_a_gpu_is_that_of_its_model(device: str, watts: float) -> None:
    assert costs.energy_kwh([Usage(gpu_seconds=3600, device=device)]) == pytest.approx(1.67 * watts / 1000)


def test_a_run_counts_each_step_once_and_the_teachers_that_several_models_share(
    dataset: Path, candidate: Path, tmp_path: Path
) -> None:
    taught = tmp_path / "taught"
    shutil.copytree(dataset, taught)
    usage.write(taught, {"teach mpnet@1": Usage(cpu_seconds=1000)})
    candidates = {variant: [CandidateArtifacts.below(candidate, variant)] for variant in VARIANTS}
    steps = costs.of_run(taught, candidates)
    assert [(step.name, step.profile) for step in steps] == [
        ("ingest", ""),
        ("teach", "mpnet@1"),
        *((name, "minilm") for name in ("train", "export", "evaluate (gpu)", "tune-thresholds (gpu)")),
        *((name, "minilm") for name in ("evaluate (cpu)", "tune-thresholds (cpu)")),
    ]
    assert all(step.used.cpu_seconds > 0 for step in steps)
    assert costs.total(steps).cpu_seconds == pytest.approx(sum(step.used.cpu_seconds for step in steps))


def test_the_model_card_has_the_cost_of_the_model_if_it_was_recorded(candidate: Path, tmp_path: Path) -> None:
    metadata = BundleMetadata("cpu", "openvino-int8", "minilm", "run", "digest")
    artifacts = CandidateArtifacts.below(candidate, "cpu")
    assemble(tmp_path / "bundle", artifacts, metadata, Prices(cpu_hour=3600, gpu_hour=0))
    recorded = usage.read(tmp_path / "bundle")
    assert sorted(recorded) == ["evaluate", "export", "train", "tune-thresholds"]
    seconds = sum(used.cpu_seconds for used in recorded.values())
    assert (
        f"which cost {seconds:.2f} at 3600 per CPU hour and 0 per GPU hour" in (tmp_path / "bundle" / "README.md").read_text()
    )
    shutil.copytree(candidate, tmp_path / "old")
    for file in (tmp_path / "old").rglob(usage.FILE):
        file.unlink()
    assemble(tmp_path / "old-bundle", CandidateArtifacts.below(tmp_path / "old", "cpu"), metadata)
    assert "CPU hours" not in (tmp_path / "old-bundle" / "README.md").read_text()
