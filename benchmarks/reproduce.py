"""Everything that the published report shows, in one command: the run of the pipeline, the spread between seeds, and the report itself.

    make reproduce DATA=path/to/goemotions WEIGHTS=mpnet=path/to/all-mpnet-base-v2

Two generations: one ``mpnet`` and four ``minilm``, each trained for one epoch, teach a ``mpnet`` and a ``minilm``. The mean of the
scores of these two teaches ``minilm`` (small) and ``minilm-3l`` (smallest), on train and on a transfer set of twice its size. The
report has these, and the ``mpnet`` (large) of the first generation: on validation one of the second was not better. The small ones
are trained again with other seeds. Two cores of AMD EPYC with AVX-512 and bf16 take five hours.

After an interruption the same command goes on: scores of teachers are found by their recipe, trainings resume from their checkpoints,
and what has finished is not done again. The test split is scored once per model and engine.
"""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from benchmarks.ablations import final_metrics, record
from goemotions import defaults
from goemotions.cli.options import pairs
from goemotions.models import profiles
from goemotions.models.records import TrainingRecord
from goemotions.report.measurements import SEEDS
from goemotions.training.options import TrainOptions
from goemotions.training.trainer import train
from pipelines import local, stack
from pipelines.parameters import training_arguments
from pipelines.run_folder import RunFolder

TEACHERS = "mpnet+minilm:4"
LARGE, SMALL, SEEDS_OF_SMALL = "mpnet", ("minilm", "minilm-3l"), 3
FIRST = (LARGE, "minilm")
# Soft targets overfit later than labels, most of all in a small network, whose epochs are cheap.
FIRST_SETTINGS: dict[str, dict[str, Any]] = {
    "mpnet": {"epochs": 3, "distillation_weight": 0.8, "teacher_epochs": 1},
    "minilm": {"epochs": 5, "distillation_weight": 0.8},
}
# An epoch is of train and the transfer set.
TRANSFER_TEXTS = 2.0
SETTINGS: dict[str, dict[str, Any]] = {
    "minilm": {"epochs": 4, "distillation_weight": 0.9},
    "minilm-3l": {"epochs": 6, "distillation_weight": 0.9},
}
WORK = Path(".local/reproduce")


@click.command()
@click.option("--data", default="sample", show_default=True)
@click.option("--weights", multiple=True, help="PROFILE=LOCATION; repeatable.")
@click.option("--models", default=",".join(SMALL), show_default=True, help="The students of the second generation.")
@click.option("--teachers", default=TEACHERS, show_default=True, help="Those of the first generation.")
@click.option("--settings", default=json.dumps(SETTINGS), show_default=True, help="Hyperparameters by profile, as JSON.")
@click.option("--precision", default=defaults.PRECISION, show_default=True, help="That of trainings to go on from, if any.")
@click.option("--seeds", default=SEEDS_OF_SMALL, show_default=True, help="Seeds of each small student.")
@click.option("--output", type=click.Path(path_type=Path), default=Path("docs"), show_default=True)
def main(
    data: str, weights: tuple[str, ...], models: str, teachers: str, settings: str, precision: str, seeds: int, output: Path
) -> None:
    """Train, register and measure the models of the report, and write it."""

    def arguments_of(names: str, taught_by: str, **others: str) -> dict[str, Any]:
        others |= {"precision": precision}
        return training_arguments(data, names, pairs(weights), 0, others, teachers=taught_by, is_local=True)

    first = finished_run("first", arguments_of(",".join(FIRST), teachers, settings=json.dumps(FIRST_SETTINGS)))
    trained = "+".join(map(str, model_folders(first)))
    arguments = arguments_of(models, trained, settings=settings, transfer_texts=str(TRANSFER_TEXTS))
    run = finished_run("second", arguments)
    name = "+".join(str(teacher) for teacher in profiles.teachers(teachers))
    for profile in models.split(","):
        for seed in range(seeds):
            measure_seed(run, profile, seed, f"{profile}, of the second generation after {name}", arguments)
    page = run.publish(stack.FOLDER / "report", output, large=(first, LARGE))
    click.echo(f"{output}/model-performance.md is written; the page is {page}")


def finished_run(generation: str, arguments: Mapping[str, Any]) -> RunFolder:
    """The run of a generation with these arguments that has finished, or a new or resumed one."""
    state = WORK / f"{generation}.json"
    done = json.loads(state.read_text(encoding="utf-8")) if state.exists() else {}
    if done.get("arguments") == arguments and Path(done["folder"]).is_dir():
        click.echo(f"the run is done: {done['folder']}")
        return RunFolder(Path(done["folder"]))
    run = local.run(**arguments)
    WORK.mkdir(parents=True, exist_ok=True)
    state.write_text(json.dumps({"arguments": arguments, "folder": str(run.path)}, indent=1), encoding="utf-8")
    return run


def measure_seed(run: RunFolder, profile: str, seed: int, recipe: str, arguments: Mapping[str, Any]) -> None:
    """Records one recipe with one seed; the model of the run's own seed is the one that the run has trained."""
    model, trained = next(
        (folder, one) for folder in model_folders(run) if (one := TrainingRecord.read(folder)).profile["name"] == profile
    )
    if is_recorded(recipe, seed, trained.dataset_digest):
        click.echo(f"{recipe}, seed {seed}: is measured")
        return
    taught, folder = run.path / "combine-teachers" / "taught", WORK / f"{profile}-{seed}"
    if seed != trained.seed:
        options = TrainOptions(
            weights=arguments.get("weights", {}).get(profile, ""),
            settings=arguments.get("settings", {}).get(profile, {}),
            seed=seed,
            precision=arguments.get("precision", defaults.PRECISION),
            checkpoint_location=str(folder / "checkpoints"),
        )
        model = folder / "model"
        train(taught, model, profile, options)
    measured = {"row": recipe, "seed": seed, **final_metrics(taught, model)}
    record(SEEDS, measured)
    click.echo(f"{recipe}, seed {seed}: macro F1 on test {measured['test/f1_macro']:.4f}")
    shutil.rmtree(folder, ignore_errors=True)


def model_folders(run: RunFolder) -> list[Path]:
    return [candidate.model for candidate in run.candidates()["gpu"]]


def is_recorded(recipe: str, seed: int, digest: str) -> bool:
    if not SEEDS.exists():
        return False
    with SEEDS.open(encoding="utf-8") as file:
        return any((row["row"], row["seed"], row["digest"]) == (recipe, str(seed), digest) for row in csv.DictReader(file))


if __name__ == "__main__":
    main()
