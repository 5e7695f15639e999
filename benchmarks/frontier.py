"""Quality against speed of each predictor, and of a cascade with a cheap first stage.

    python -m benchmarks.frontier --bundle champion-cpu --data ../goemotions --student-epochs 3

The cheap stage is a bag of static embeddings of tokens and pairs of tokens, mean-pooled, with one linear layer (as fastText: Joulin et
al. 2017), trained on the probabilities of the bundle. The cascade uses its scores for texts with every label far from its threshold,
and the engine of the bundle for the others. The student has half the layers of the encoder and is trained on the same probabilities.
Everything is fitted on train and selected on validation; the test split is not read.
"""

from __future__ import annotations

import functools
import logging
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import click
import numpy as np
import scipy.special
import torch

from benchmarks import all_engines
from benchmarks.measuring import BUNDLE_AND_DATA, Row, by_turns, machine, provenance, ratio, spread, table, timed
from goemotions.data.dataset import ingest, load_dataset, taxonomy_of
from goemotions.data.taxonomy import Taxonomy
from goemotions.evaluation import tables
from goemotions.metrics import cross_fitting, strategies
from goemotions.metrics.probabilities import sigmoid
from goemotions.metrics.sorted_scores import SortedScores
from goemotions.metrics.thresholds import Thresholds
from goemotions.models import engine_names, engines, export, profiles
from goemotions.models.classifier import build_classifier, init_bias_from_frequency, load_tokenizer, save_classifier
from goemotions.models.tokenizer import TextEncoder
from goemotions.prediction.predictor import Predictor
from goemotions.report import measurements
from goemotions.training import batches
from goemotions.training.hardware import resolve_precision
from goemotions.training.loop import TrainingLoop

THREADS, REPEATS = 2, 3
BUCKETS, WIDTH, EPOCHS, BATCH = 2**18, 96, 6, 256
TEXTS = 4096
LOSS, GAIN = 0.003, 2.0
CASCADE = 8 * engines.WINDOW
STUDENT = "minilm-3l"


@dataclass(frozen=True)
class Tier:
    """A predictor: its macro F1, and its texts per second in each run."""

    name: str
    f1: float
    rates: list[float]


@dataclass(frozen=True)
class Split:
    """Texts with labels, bool [n, labels]."""

    texts: list[str]
    labels: np.ndarray


class Bag(torch.nn.Module):
    """Logits from the mean embedding of hashed tokens and pairs of tokens."""

    def __init__(self, labels: int) -> None:
        super().__init__()
        self.words = torch.nn.EmbeddingBag(BUCKETS, WIDTH, mode="mean", sparse=True)
        self.head = torch.nn.Linear(WIDTH, labels)

    def forward(self, ids: torch.Tensor, starts: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(self.words(ids, starts))
        return logits

    def score(self, rows: Sequence[Sequence[int]]) -> np.ndarray:
        """Probabilities of tokenized texts, float32 [n, labels]."""
        with torch.inference_mode():
            return sigmoid(self(*bagged(rows)).numpy())


def bagged(rows: Sequence[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """The buckets of all tokens and pairs of neighbouring tokens, concatenated, and the start of each text."""
    flat = np.concatenate([np.asarray(row, dtype=np.int64) for row in rows])
    lengths = np.array([len(row) for row in rows])
    pairs = (flat[:-1] * 1_000_003 + flat[1:] * 31) % (BUCKETS - 32_768) + 32_768
    both = np.stack([np.minimum(flat, 32_767), np.append(pairs, 0)], axis=1)
    # The last token of a text has no pair; its own bucket is repeated, which changes the mean only slightly.
    ends = np.cumsum(lengths) - 1
    both[ends, 1] = both[ends, 0]
    starts = 2 * np.concatenate([[0], np.cumsum(lengths)[:-1]])
    return torch.from_numpy(both.ravel()), torch.from_numpy(starts)


def trained_bag(rows: list[list[int]], targets: np.ndarray) -> Bag:
    """A bag trained on targets in [0, 1], float32 [n, labels]."""
    torch.manual_seed(0)
    bag = Bag(targets.shape[1])
    optimizers = [torch.optim.SparseAdam(bag.words.parameters(), lr=5e-3), torch.optim.Adam(bag.head.parameters(), lr=5e-3)]
    for epoch in range(EPOCHS):
        order = np.random.default_rng(epoch).permutation(len(rows))
        for start in range(0, len(order), BATCH):
            chosen = order[start : start + BATCH]
            logits = bag(*bagged([rows[position] for position in chosen]))
            loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, torch.from_numpy(targets[chosen]))
            torch.autograd.backward(loss)
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
    return bag.eval()


def student(
    train: batches.TokenizedSplit,
    validation: batches.TokenizedSplit,
    taxonomy: Taxonomy,
    dataset: Path,
    scratch: Path,
    epochs: int,
) -> Any:
    """The int8 engine of a smaller encoder trained on the same targets."""
    profile = profiles.get(STUDENT, {"epochs": epochs})
    classifier, tokenizer = build_classifier(profile, taxonomy), load_tokenizer(profile)
    encoder = TextEncoder(tokenizer.backend_tokenizer, profile.hyperparameters.max_length, tokenizer.pad_token_id)
    init_bias_from_frequency(classifier, train.labels)
    loop = TrainingLoop(profile, classifier, encoder, precision=resolve_precision("auto"))
    loop.fit(train, validation)
    save_classifier(scratch / STUDENT, loop.classifier, tokenizer, {"max_length": encoder.max_length})
    export.export(dataset, scratch / STUDENT, scratch / "onnx")
    return engines.load("openvino-int8", scratch / "onnx", encoder, threads=THREADS)


def f1(split: Split, scores: np.ndarray) -> float:
    """Macro F1 on rows that the thresholds were not fitted on."""
    return cross_fitting.metrics(split.labels, scores, strategies.per_label_smoothed)["f1_macro"]


def margin(scores: np.ndarray, fitted: Thresholds) -> np.ndarray:
    """The smallest distance, in log-odds, between a label and its threshold, float [n]."""
    cuts = np.asarray(fitted.values)
    likely, needed = (scipy.special.logit(np.clip(values, 1e-6, 1 - 1e-6)) for values in (scores, cuts))
    nearest: np.ndarray = np.abs(likely - needed).min(axis=1)
    return nearest


@dataclass(frozen=True)
class Cascade:
    """A bag, and the engine for the texts whose margin is below ``least``."""

    bag: Bag
    engine: Any
    fitted: Thresholds
    least: float

    def score(self, texts: Sequence[str]) -> np.ndarray:
        combined = np.empty((len(texts), len(self.fitted.values)), dtype=np.float32)
        for start in range(0, len(texts), CASCADE):
            rows = [item.ids for item in self.engine.encoder.encode(texts[start : start + CASCADE])]
            scores = self.bag.score(rows)
            uncertain = np.flatnonzero(margin(scores, self.fitted) < self.least)
            if len(uncertain):
                scores[uncertain] = engines.score_ids(self.engine, [rows[position] for position in uncertain])
            combined[start : start + len(rows)] = scores
        return combined


def gate(split: Split, cheap: np.ndarray, expensive: np.ndarray, fitted: Thresholds) -> tuple[float, float, float]:
    """The lowest margin that costs at most LOSS of macro F1, the share of texts that the bag keeps, and the loss."""
    margins, whole = margin(cheap, fitted), f1(split, expensive)
    for kept in np.linspace(0.95, 0.05, 19):
        least = float(np.quantile(margins, 1 - kept))
        loss = whole - f1(split, np.where((margins >= least)[:, None], cheap, expensive))
        if loss <= LOSS:
            return least, float(kept), loss
    return float("inf"), 0.0, 0.0


def measure(reference: str, model_name: str, source: str, repeats: int, student_epochs: int = 0) -> tuple[list[Tier], str]:
    """All predictors, and the digest of the data. A student is included if ``student_epochs`` is not 0."""
    torch.set_num_threads(THREADS)
    with all_engines.as_folder(reference, model_name) as (folder, _), tempfile.TemporaryDirectory() as scratch:
        ingest(source, Path(scratch) / "dataset")
        read, info = load_dataset(Path(scratch) / "dataset", ("train", "validation"))
        taxonomy = taxonomy_of(info)
        train, validation = (Split(part["text"][:], taxonomy.multi_hot(part["labels"][:])) for part in read.values())
        predictor = Predictor.load(folder, threads=THREADS)
        engine = predictor.engine
        rows = [item.ids for item in engine.encoder.encode(train.texts)]
        targets = (0.7 * engines.score_ids(engine, rows) + 0.3 * train.labels).astype(np.float32)
        bag = trained_bag(rows, targets)
        others = {engine.name: engine}
        if (folder / engine_names.FILES["openvino-fp32"]).exists():
            others["openvino-fp32"] = engines.load("openvino-fp32", folder, engine.encoder, threads=THREADS)
        if student_epochs:
            seen = [item.ids for item in engine.encoder.encode(validation.texts)]
            others[f"{STUDENT}, distilled from it, {student_epochs} epochs, openvino-int8"] = student(
                batches.TokenizedSplit(rows, targets),
                batches.TokenizedSplit(seen, validation.labels.astype(np.float32)),
                taxonomy,
                Path(scratch) / "dataset",
                Path(scratch),
                student_epochs,
            )
        return _compared(validation, bag, others, engine, repeats), info["digest"]


def _compared(validation: Split, bag: Bag, others: dict[str, Any], engine: Any, repeats: int) -> list[Tier]:
    encoded = [item.ids for item in engine.encoder.encode(validation.texts)]
    cheap = bag.score(encoded)
    scores = {name: engines.score_ids(other, encoded) for name, other in others.items()}
    fitted = strategies.per_label_smoothed(SortedScores.of(validation.labels, cheap))
    least, kept, loss = gate(validation, cheap, scores[engine.name], fitted)
    cascade = Cascade(bag, engine, fitted, least)
    texts = validation.texts[:TEXTS]

    ways: dict[str, Callable[[], object]] = {
        "bag": lambda: bag.score([item.ids for item in engine.encoder.encode(texts)]),
        "cascade": lambda: cascade.score(texts),
        **{name: functools.partial(engines.score, other, texts) for name, other in others.items()},
    }
    runs = {name: timed(len(texts), way) for name, way in ways.items()}
    rates = by_turns(repeats, runs)
    quality = {name: f1(validation, scores[name]) for name in others}
    quality["bag"] = f1(validation, cheap)
    quality["cascade"] = quality[engine.name] - loss
    titles = {
        "bag": "bag of static embeddings",
        "cascade": f"cascade: {kept:.0%} of the texts by the bag, the rest by {engine.name}",
    }
    return [Tier(titles.get(name, name), quality[name], rates[name]) for name in [*others, "bag", "cascade"]]


def rows_of(tiers: Sequence[Tier]) -> list[Row]:
    """The table: every predictor, then the cascade, which is the last, relative to the engine, which is the first."""
    engine, cascade = tiers[0], tiers[-1]
    value, text = ratio(cascade.rates, engine.rates)
    lost = engine.f1 - cascade.f1
    is_met = value >= GAIN and lost <= LOSS
    target = f"at least {GAIN:g}, {100 * LOSS:.1f} points lost at most"
    return [
        *(Row(f"{tier.name}: macro F1 {tier.f1:.4f}", spread(tier.rates)) for tier in tiers),
        Row(f"- the cascade relative to {engine.name}, {100 * lost:.1f} points of macro F1 lost", text, target, is_met),
    ]


def record(tiers: Sequence[Tier], digest: str) -> None:
    """Writes what the report shows for the data with this digest."""
    rows = [
        {
            "predictor": tier.name,
            "f1_macro": f"{tier.f1:.5f}",
            "texts_per_second": f"{median(tier.rates):.0f}",
            "machine": machine(THREADS),
            "digest": digest,
        }
        for tier in tiers
    ]
    tables.write_csv(measurements.FRONTIER, rows)


@click.command()
@BUNDLE_AND_DATA
@click.option("--repeats", default=REPEATS, show_default=True)
@click.option(
    "--student-epochs", default=0, show_default=True, help="Epochs of a smaller encoder (minutes per epoch); 0: without it."
)
@click.option("--record", "is_recorded", is_flag=True, help="Write goemotions/report/frontier.csv, which the report shows.")
def main(reference: str, model_name: str, source: str, repeats: int, student_epochs: int, is_recorded: bool) -> None:
    """Measure quality against speed on the validation split."""
    logging.disable(logging.WARNING)
    tiers, digest = measure(reference, model_name, source, repeats, student_epochs)
    if is_recorded:
        record(tiers, digest)
    click.echo(
        f"{provenance()}; validation of {Path(source).name}; medians (and range) of {repeats} runs.\n\n{table(rows_of(tiers))}"
    )


if __name__ == "__main__":
    main()
