"""Injected shifts: how many texts drift takes to be detected, and false alarms without a shift, beside the old rule.

    python -m benchmarks.drift --bundle FOLDER --dataset FOLDER

Texts of the test split are scored once, and every window is drawn from the scores. A run draws a reference of as many texts as
validation has, and windows of the other texts, so that both come from the same texts. The old rule was an alarm if the share of a label
moved by five points.
"""

from __future__ import annotations

import inspect
import pydoc_data.topics
import random
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np

from benchmarks.measuring import provenance
from goemotions.data.dataset import load_dataset
from goemotions.evaluation.predictions import Predictions
from goemotions.evaluation.robustness import typos
from goemotions.evaluation.traffic import FEATURES, SCORE_BINS, SCORE_EDGES, Traffic, features_of
from goemotions.models import engines
from goemotions.monitoring.drift.comparison import alpha_of, compare
from goemotions.prediction.predictor import Predictor

REFERENCE_ROWS, TEXTS_PER_DAY, DAYS = 5426, 1000, 30
OLD_POINTS = 0.05
SIZES = (50, 100, 200, 300, 500, 700, 1000, 1500, 2000, 3000, 5000, 7000, 10_000, 15_000)
# Everyday Spanish words, in any order: a language of the same script.
SPANISH = re.findall(
    r"\w+",
    "yo tú ella nosotros ustedes mi tu su el la los las un una y o pero porque cuando donde como muy también nunca siempre hoy ayer "
    "mañana es soy eres somos fue estaba tengo tiene quiero puedo hacer decir comer vivir pensar gracias hola adiós amigo hermana "
    "perro gato casa calle agua pan libro mesa coche ciudad tiempo trabajo bueno malo grande pequeño feliz triste cansado bonito",
)


@dataclass(frozen=True)
class Pool:
    """Texts in counts: uint8 [n, columns], columns for predictions, scores and features; ``names`` are the labels."""

    names: tuple[str, ...]
    counts: np.ndarray

    @classmethod
    def of(cls, predictor: Predictor, texts: Sequence[str], probabilities: np.ndarray | None = None) -> Pool:
        """Scores texts, unless their probabilities are known."""
        if probabilities is None:
            probabilities = engines.score(predictor.engine, texts)[0]
        bins = np.searchsorted(np.asarray(SCORE_EDGES, dtype=np.float32), probabilities)
        scores = (bins[:, :, None] == np.arange(len(SCORE_BINS))).reshape(len(texts), -1)
        features = [np.concatenate(list(features_of(predictor.bundle.encoder, [text]).values())) for text in texts]
        predicted = predictor.bundle.thresholds.apply(probabilities)
        return cls(predictor.bundle.taxonomy.names, np.column_stack([predicted, scores, features]).astype(np.uint8))

    def traffic(self, rows: np.ndarray) -> Traffic:
        """The traffic of some of the texts."""
        width, total = len(self.names), self.counts[rows].sum(axis=0, dtype=int)
        predicted, scores, others = np.split(total, [width, width * (1 + len(SCORE_BINS))])
        ends = np.cumsum([len(bins) for bins in FEATURES.values()])[:-1]
        features = dict(zip(FEATURES, np.split(others, ends), strict=True))
        return Traffic(self.names, len(rows), predicted, predicted, predicted, scores.reshape(width, -1), features)


def has_moved(reference: Traffic, window: Traffic) -> bool:
    """The old rule."""
    return bool((abs(window.predicted / window.rows - reference.predicted / reference.rows) > OLD_POINTS).any())


def false_alarms(pool: Pool, runs: int) -> tuple[list[int], list[int]]:
    """The alarms of each simulated month of daily windows without a shift, and those of the old rule."""
    new, old = [], []
    for run in range(runs):
        order = np.random.default_rng(run).permutation(len(pool.counts))
        reference, days = pool.traffic(order[:REFERENCE_ROWS]), order[REFERENCE_ROWS:]
        # Fewer texts than a month has: days share texts, but none has a text twice.
        windows = [
            pool.traffic(np.take(days, range(day * TEXTS_PER_DAY, (day + 1) * TEXTS_PER_DAY), mode="wrap"))
            for day in range(DAYS)
        ]
        new.append(sum(any(test.alarm for test in compare(reference, window, alpha_of())) for window in windows))
        old.append(sum(has_moved(reference, window) for window in windows))
    return new, old


def detection(pool: Pool, shifted: Pool, share: float, runs: int) -> tuple[list[float], int]:
    """The texts until an alarm of each run, infinite for none; and in how many runs the old rule fires on a day's texts."""
    both = Pool(pool.names, np.concatenate([pool.counts, shifted.counts]))
    needed, old = [], 0
    for run in range(runs):
        generator = np.random.default_rng(run)
        order = generator.permutation(len(pool.counts))
        reference, usual = pool.traffic(order[:REFERENCE_ROWS]), order[REFERENCE_ROWS:]
        drawn = len(pool.counts) + generator.integers(len(shifted.counts), size=max(SIZES))
        stream = np.where(generator.random(max(SIZES)) < share, drawn, np.resize(usual, max(SIZES)))
        needed.append(next((size for size in SIZES if _is_alarm(reference, both.traffic(stream[:size]))), float("inf")))
        old += has_moved(reference, both.traffic(stream[:TEXTS_PER_DAY]))
    return needed, old


def _is_alarm(reference: Traffic, window: Traffic) -> bool:
    return any(test.alarm for test in compare(reference, window, alpha_of()))


def docstrings() -> list[str]:
    """Sentences of Python's own documentation: another domain, in English."""
    paragraphs = [*pydoc_data.topics.topics.values(), *(inspect.getdoc(value) or "" for value in vars(inspect).values())]
    sentences = re.split(r"(?<=[.!?])\s+", " ".join(" ".join(paragraphs).split()))
    return [sentence[:300] for sentence in sentences if len(sentence.split()) > 3]


def spanish(texts: Iterable[str]) -> list[str]:
    """For each text, as many Spanish words."""
    generator = random.Random(0)
    return [" ".join(generator.choices(SPANISH, k=max(len(text.split()), 1))) for text in texts]


def shifts(
    predictor: Predictor, texts: Sequence[str], labels: np.ndarray, pool: Pool, rows: int
) -> dict[str, tuple[Pool, float]]:
    """The shifted texts of each shift, and their share of the traffic."""
    by_support = np.argsort(-labels.sum(axis=0))
    made: dict[str, tuple[Pool, float]] = {}
    for rank in (1, 6, 13, 20):
        label = int(by_support[rank])
        name = f"{pool.names[label]}, on {labels[:, label].mean():.1%} of the texts, is removed"
        made[name] = (Pool(pool.names, pool.counts[~labels[:, label]]), 1.0)
    some = [texts[row] for row in np.random.default_rng(0).permutation(len(texts))[:rows]]
    generator = random.Random(0)
    misspelt = Pool.of(predictor, [typos(text, generator) for text in some])
    written = {"typos in a tenth of the long words": (misspelt, 1.0), "the same in half of the texts": (misspelt, 0.5)}
    domain = Pool.of(predictor, random.Random(0).sample(docstrings(), rows))
    other = {"another domain: Python's documentation": (domain, 1.0), "the same in a tenth of the texts": (domain, 0.1)}
    foreign = Pool.of(predictor, spanish(some))
    return {**made, **written, **other, "half of the texts in Spanish": (foreign, 0.5), "a tenth in Spanish": (foreign, 0.1)}


def table(detections: dict[str, tuple[list[float], int]]) -> list[str]:
    """Rows of Markdown: texts until an alarm, and the runs in which the old rule fires on a day's texts."""
    lines = ["| shift | texts until an alarm, median | in 9 of 10 runs | old rule, within a day |", "|---|---:|---:|---:|"]
    for name, (needed, old) in detections.items():
        quantiles = [_count(float(np.quantile(needed, share, method="higher"))) for share in (0.5, 0.9)]
        lines.append(f"| {name} | {quantiles[0]} | {quantiles[1]} | {old} of {len(needed)} runs |")
    return lines


def _count(texts: float) -> str:
    return f"{texts:,.0f}" if np.isfinite(texts) else f"more than {max(SIZES):,}"


@click.command()
@click.option("--bundle", type=click.Path(path_type=Path, exists=True), required=True, help="A bundle, on this machine.")
@click.option(
    "--dataset", type=click.Path(path_type=Path, exists=True), required=True, help="The Dataset that it was evaluated on."
)
@click.option("--runs", default=200, show_default=True, help="Simulated months without a shift.")
@click.option("--shift-runs", default=50, show_default=True, help="Runs per shift.")
@click.option("--shifted-texts", default=3000, show_default=True, help="Texts that are changed and scored per shift.")
def main(bundle: Path, dataset: Path, runs: int, shift_runs: int, shifted_texts: int) -> None:
    """Measure rows until detection and false alarms; prints Markdown."""
    predictor = Predictor.load(bundle)
    test = Predictions.read(bundle / "test.parquet")
    splits, info = load_dataset(dataset)
    texts = splits["test"]["text"][:]
    needed = REFERENCE_ROWS + TEXTS_PER_DAY
    if test.digest != info["digest"] or len(texts) < needed:
        raise click.UsageError(f"give the Dataset that the bundle was evaluated on, with at least {needed:,} test texts")
    pool = Pool.of(predictor, texts, test.probabilities)
    made = shifts(predictor, texts, test.labels, pool, shifted_texts)
    detections = {name: detection(pool, shifted, share, shift_runs) for name, (shifted, share) in made.items()}
    new, old = false_alarms(pool, runs)
    click.echo(provenance())
    click.echo(f"\n{predictor.bundle.metadata.profile}, {len(texts):,} texts of the test split.\n")
    click.echo("\n".join(table(detections)))
    for name, counts in (("false alarms", new), ("of the old rule", old)):
        most = sum(count > 1 for count in counts)
        click.echo(
            f"\n{name}: {np.mean(counts):.3f} per month of {DAYS} windows of {TEXTS_PER_DAY:,} texts; "
            f"{sum(count == 0 for count in counts)} of {runs} months without one, {most} with more than one"
        )


if __name__ == "__main__":
    main()
