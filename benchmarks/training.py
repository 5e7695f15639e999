"""Training compared with Hugging Face's Trainer: the same network, weights, texts and optimizer steps.

    python -m benchmarks.training --data ../goemotions

``old`` is the recipe of the former system: the Trainer in fp32, every text padded to 128 tokens, batches of 16. ``tuned`` is the
Trainer with efficient settings: bf16 if the hardware supports it, batches of 32 texts of similar length padded to the longest,
fused AdamW.
"""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import click
import numpy as np
import torch
import transformers
from torch.profiler import ProfilerActivity, profile, record_function

from benchmarks.loops import OurLoop, operations, trainer, trainer_rate
from benchmarks.measuring import DATA, Row, by_turns, compared, provenance, spread, table
from goemotions.data.dataset import ingest, load_dataset
from goemotions.metrics import classification
from goemotions.models import engines, profiles
from goemotions.models.classifier import build_classifier
from goemotions.models.tokenizer import TextEncoder
from goemotions.training import trainer as training
from goemotions.training.batches import TokenizedSplit
from goemotions.training.dropout import Masks
from goemotions.training.hardware import resolve_precision
from goemotions.training.loop import TrainingLoop
from goemotions.training.options import TrainOptions

REPEATS = 5
# Batches of the Trainer's sampler by length between two draws of texts.
TURN = 50
PEAK_SECONDS, PROFILED_STEPS = 0.5, 20
DROPOUT = "dropout"
# Kinds of operators, by parts of their names in torch.
KINDS = {
    "matrix multiplication": ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm", "scaled_dot_product"),
    DROPOUT: (),
    "optimizer": ("adamw", "SparseAdam", "Optimizer.", "_foreach_", "linalg_vector_norm"),
    "copies, casts and zeros": ("aten::copy_", "aten::fill_", "aten::_to_copy", "aten::cat", "aten::empty"),
}


@dataclass(frozen=True)
class Material:
    """A profile, and its tokenized train split with labels, float32 [n, labels]."""

    profile: profiles.Profile
    taxonomy: Any
    encoder: TextEncoder
    split: TokenizedSplit

    @classmethod
    def of(cls, dataset: Path, profile_name: str) -> Material:
        profile = profiles.get(profile_name, {"teachers": 0, "epochs": 1})
        with training.load(dataset, profile) as material:
            return cls(profile, material.taxonomy, material.encoder, material.train)

    def network(self, seed: int = 0) -> Any:
        return build_classifier(self.profile, self.taxonomy, seed=seed)


def peak(precision: torch.dtype, shapes: Sequence[tuple[int, int, int]]) -> float:
    """Floating-point operations per second of matrix products of these shapes, [n, k] by [k, m]."""
    pairs = [(torch.randn(n, k, dtype=precision), torch.randn(m, k, dtype=precision), 2 * n * k * m) for n, k, m in shapes]

    def once() -> int:
        return sum(cost for one, other, cost in pairs if torch.nn.functional.linear(one, other) is not None)

    once()
    done, started = 0, time.perf_counter()
    while time.perf_counter() - started < PEAK_SECONDS:
        done += once()
    return done / (time.perf_counter() - started)


def shares(ours: OurLoop) -> dict[str, float]:
    """The share of a step's time that each kind of operator takes."""
    apply = Masks.apply

    def named(masks: Masks, values: torch.Tensor, probability: float) -> torch.Tensor:
        with record_function(DROPOUT):
            return apply(masks, values, probability)

    with mock.patch.object(Masks, "apply", named), profile(activities=[ProfilerActivity.CPU]) as measured:
        ours.advance(PROFILED_STEPS)
    totals = dict.fromkeys([*KINDS, "the rest"], 0.0)
    for event in measured.events():
        totals[_kind(event)] += event.self_cpu_time_total
    return {kind: value / sum(totals.values()) for kind, value in totals.items()}


def _kind(event: Any) -> str:
    """The kind of an operator: dropout is recognized by the caller, the others by their names."""
    above = event
    while above:
        if above.name == DROPOUT:
            return DROPOUT
        above = above.cpu_parent
    return next((kind for kind, names in KINDS.items() if any(name in event.name for name in names)), "the rest")


def rates(material: Material, repeats: int) -> list[Row]:
    """The rates of all three, the time of our step by kind of operator, and the used share of the peak rate of the machine."""
    ours = OurLoop(material)
    runs: dict[str, Callable[[], float]] = {
        "old": lambda: trainer_rate(material, tuned=False, steps=6, left_out=2),
        # A whole draw of its sampler, from the longest of 1,600 texts to the shortest.
        "tuned": lambda: trainer_rate(material, tuned=True, steps=TURN, left_out=TURN),
        "ours": lambda: ours.rate(100),
    }
    measured = by_turns(repeats, runs, warm=False)
    lengths = np.array([len(row) for row in material.split.rows])
    precision = resolve_precision("auto")
    rows = [
        Row("Trainer, fp32, padded to 128, batches of 16", spread(measured["old"])),
        Row(f"Trainer, {precision}, padded to the longest of 32 of similar length, fused AdamW", spread(measured["tuned"])),
        Row(f"ours, {precision}, {material.profile.hyperparameters.batch_size} texts per step", spread(measured["ours"])),
    ]
    for name, target in (("old", 12.0), ("tuned", 1.5)):
        rows.append(compared(f"relative to {name}", measured["ours"], measured[name], least=target))
    network = material.network()
    tokens, width = int(lengths.mean() * material.profile.hyperparameters.batch_size), network.config.hidden_size
    inner = network.config.intermediate_size
    fastest: dict[str, list[float]] = {}
    for kind in (torch.float32, torch.bfloat16):
        shapes = [(tokens, width, width)] * 4 + [(tokens, width, inner), (tokens, inner, width)]
        name = str(kind).removeprefix("torch.")
        fastest[name] = [peak(kind, shapes) for _ in range(repeats)]
        rows.append(
            Row(f"matrix products of the model's shapes, {name}", spread([one / 1e9 for one in fastest[name]], "GFLOP/s"))
        )
    each = operations(network, lengths.tolist()) / len(lengths)
    ceiling = "bfloat16" if precision == "bf16" else "float32"
    used = [each * rate / top for rate, top in zip(measured["ours"], fastest[ceiling], strict=True)]
    rows.append(
        Row(
            f"- share of that in {ceiling} that training uses, on real tokens",
            f"{100 * float(np.median(used)):.0f}% ({100 * min(used):.0f} to {100 * max(used):.0f})",
            "at least 50%",
            float(np.median(used)) >= 0.5,
        )
    )
    text = ", ".join(f"{kind} {share:.0%}" for kind, share in sorted(shares(ours).items(), key=lambda one: -one[1]))
    return [*rows, Row("time of a step by operator", text)]


def quality(material: Material, dataset: Path, epochs: int, seeds: Sequence[int]) -> list[Row]:
    """Validation AUC of the tuned Trainer and of ours after the same number of epochs, per seed."""
    splits, _ = load_dataset(dataset, ("validation",))
    labels = material.taxonomy.multi_hot(splits["validation"]["labels"][:])
    texts = [item.ids for item in material.encoder.encode(splits["validation"]["text"][:])]
    rows = []
    steps = epochs * -(-len(material.split.rows) // 32)
    results: dict[str, list[tuple[float, float]]] = {"Trainer": [], "ours": []}
    for seed in seeds:
        with tempfile.TemporaryDirectory() as scratch:
            transformers.set_seed(seed)
            hf_trainer, _ = trainer(
                material,
                tuned=True,
                steps=steps,
                scratch=Path(scratch),
                learning_rate=material.profile.hyperparameters.learning_rate,
                seed=seed,
            )
            hf_trainer.train()
            loop = TrainingLoop(material.profile, hf_trainer.model.network, material.encoder, seed)
            ranking = classification.ranking(labels, engines.score_ids(loop.engine(), texts))
            results["Trainer"].append((ranking["auc_micro"], ranking["auc_macro"]))
            options = TrainOptions(epochs=epochs, seed=seed, settings={"teachers": 0})
            record = training.train(dataset, Path(scratch) / "ours", material.profile.name, options)
            last = record.history[-1]
            results["ours"].append((last["validation/auc_micro"], last["validation/auc_macro"]))
    for name, values in results.items():
        text = "; ".join(f"micro {micro:.4f}, macro {macro:.4f}" for micro, macro in values)
        rows.append(Row(f"validation AUC of {name} after {epochs} epochs, seeds {', '.join(map(str, seeds))}", text))
    return rows


@click.command()
@DATA
@click.option("--profile", "profile_name", default="minilm", show_default=True)
@click.option("--repeats", default=REPEATS, show_default=True)
@click.option("--epochs", default=0, help="Compare the quality, too, after this number of epochs (minutes to hours).")
@click.option("--seeds", default=1, show_default=True, help="Seeds of that comparison.")
def main(source: str, profile_name: str, repeats: int, epochs: int, seeds: int) -> None:
    """Measure training on this machine."""
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as name:
        dataset = Path(name) / "dataset"
        ingest(source, dataset)
        material = Material.of(dataset, profile_name)
        rows = rates(material, repeats)
        if epochs:
            rows += quality(material, dataset, epochs, range(seeds))
    click.echo(
        f"{provenance()}; {profile_name} on {Path(source).name}; medians (and range) of {repeats} runs.\n\n{table(rows)}"
    )


if __name__ == "__main__":
    main()
