"""Compares explanations with Captum's and with a random order by the deletion test, and their cost with that of a prediction.

``by_words_alone`` is what occlusion is compared with on the CPU: it is closer to removing every word, and costs more (docs/decisions).
Captum is no dependency: without it (``pip install captum`` in an environment of your own) its rows are left out. Every order of words
is tested on the same torch model; the cost is that of the int8 engine.
"""

from __future__ import annotations

import importlib
import importlib.util
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch

from benchmarks import measuring
from benchmarks.measuring import Row
from goemotions import defaults
from goemotions.data.dataset import load_dataset
from goemotions.evaluation import occlusion
from goemotions.evaluation.occlusion import Occlusion
from goemotions.models import classifier, engines
from goemotions.models.engines import Engine
from goemotions.models.tokenizer import TextEncoder

TOKENS = 20
STEPS = 20
# Removals after each word was scored alone, and what a word weighs that does not speak for the label.
ALONE_REMOVALS, LEAST_WEIGHT = (4, 7), 0.001
WARM_UP = 5
# The contributions of a text's words to one label.
Explain = Callable[[str, Occlusion, int], np.ndarray]


def by_occlusion(engine: Engine, removals: int) -> Explain:
    def explain(text: str, one: Occlusion, label: int) -> np.ndarray:
        occluded = [occlusion.occlude(engine.encoder, text, removals)]
        probabilities, _ = engines.score(engine, occlusion.to_score([text], occluded))
        values: np.ndarray = occlusion.contributions(occluded, probabilities)[0][:, label]
        return values

    return explain


def by_words_alone(engine: Engine, removals: int) -> Explain:
    """Scores each word alone; neighbours that speak least for the label are then removed together, and share by these scores."""

    def explain(text: str, one: Occlusion, label: int) -> np.ndarray:
        probability = engines.score(engine, [text])[0][0, label]
        alone = engines.score(engine, [word["text"] for word in one.words])[0][:, label]
        weights = np.maximum(alone - empty[label], 0) + LEAST_WEIGHT
        groups = occlusion._merge(weights.tolist(), removals)
        rest = [occlusion._without_all(text, [one.words[i] for i in group]) for group in groups]
        falls = probability - engines.score(engine, rest)[0][:, label]
        return np.concatenate([fall * weights[group] / weights[group].sum() for fall, group in zip(falls, groups, strict=True)])

    empty = engines.score(engine, [""])[0][0]
    return explain


def by_captum(model: Any, encoder: TextEncoder) -> dict[str, Explain]:
    """Captum's feature ablation and integrated gradients, summed over the tokens of each word."""
    attr: Any = importlib.import_module("captum.attr")

    forward = lambda ids: model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits  # noqa: E731
    mask_id = encoder._tokenizer.token_to_id("[MASK]")
    gradients = attr.LayerIntegratedGradients(forward, model.get_input_embeddings())

    def ablate(text: str, one: Occlusion, label: int) -> np.ndarray:
        ids, features = _tokens(encoder, text, one)
        method = attr.FeatureAblation(forward)
        values = method.attribute(ids, baselines=mask_id, target=label, feature_mask=features)
        return _per_word(values.detach().numpy()[0], features, len(one.words), of_group=True)

    def integrate(text: str, one: Occlusion, label: int) -> np.ndarray:
        ids, features = _tokens(encoder, text, one)
        values = gradients.attribute(ids, baselines=torch.full_like(ids, encoder.pad_id), target=label, n_steps=STEPS)
        return _per_word(values.detach().numpy()[0].sum(axis=-1), features, len(one.words), of_group=False)

    return {
        "Captum, feature ablation by [MASK], one per word": ablate,
        f"Captum, integrated gradients, {STEPS} steps": integrate,
    }


def _tokens(encoder: TextEncoder, text: str, one: Occlusion) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids, int64 [1, tokens], and the number of each token's word; special tokens are one more feature."""
    encoded = encoder._tokenizer.encode(text)
    starts = [word["start"] for word in one.words]
    features = [
        int(np.searchsorted(starts, start, side="right")) - 1 if end > start else len(starts) for start, end in encoded.offsets
    ]
    return torch.tensor([encoded.ids]), torch.tensor([features])


def _per_word(values: np.ndarray, features: torch.Tensor, words: int, *, of_group: bool) -> np.ndarray:
    """The sum over a word's tokens; each token of a group that was removed at once has the group's whole value."""
    numbers = features.numpy()[0]
    inside = [values[numbers == word] for word in range(words)]
    return np.array([(own.mean() if of_group else own.sum()) if len(own) else 0.0 for own in inside])


def deletion_rows(engine: Engine, texts: Sequence[str], methods: dict[str, Explain]) -> list[Row]:
    """The area over the perturbation curve of each method for the best label of each text."""
    occluded = [occlusion.occlude(engine.encoder, text, len(text) or 1) for text in texts]
    best = [int(label) for label in engines.score(engine, texts)[0].argmax(axis=1)]
    generator = np.random.default_rng(0)
    methods = {"random order": lambda text, one, label: generator.random(len(one.words)), **methods}
    rows = []
    for name, explain in methods.items():
        started = time.perf_counter()
        orders = [np.argsort(-explain(*given)) for given in zip(texts, occluded, best, strict=True)]
        seconds = (time.perf_counter() - started) / len(texts)
        falls = occlusion.deletion(engine, texts, [one.words for one in occluded], orders, best)
        curve = ", ".join(f"{value:.3f}" for value in falls.mean(axis=0))
        rows.append(Row(name, f"{falls.mean():.4f} (after 1 to {occlusion.DELETED} words: {curve}); {1e3 * seconds:.0f} ms"))
    return rows


class CountedEngine:
    """An engine that counts the tokens that it computes, padding included."""

    def __init__(self, engine: Engine) -> None:
        self._engine, self.tokens = engine, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def logits(self, ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
        self.tokens += len(ids) * -(-ids.shape[1] // engines.LENGTH_STEP) * engines.LENGTH_STEP
        return self._engine.logits(ids, mask)


def cost_rows(engine: Engine, texts: Sequence[str], repeats: int) -> list[Row]:
    """How many times as long as a prediction an explanation of one text of about ``TOKENS`` tokens takes, all in turn."""
    chosen = [text for text, one in zip(texts, engine.encoder.encode(texts), strict=True) if abs(len(one.ids) - TOKENS) <= 1]
    occluded = [occlusion.occlude(engine.encoder, text, len(text)) for text in chosen]
    counted: Any = CountedEngine(engine)
    runs: dict[str, Explain] = {
        "prediction": lambda text, one, label: engines.score(counted, [text])[0],
        f"occlusion, {defaults.REMOVALS} removals": by_occlusion(counted, defaults.REMOVALS),
        **{f"words alone first, {removals} removals": by_words_alone(counted, removals) for removals in ALONE_REMOVALS},
    }
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    tokens = dict.fromkeys(runs, 0)
    for turn in range(repeats + WARM_UP):
        text, one = chosen[turn % len(chosen)], occluded[turn % len(chosen)]
        for name, run in runs.items():
            counted.tokens, started = 0, time.perf_counter()
            run(text, one, 0)
            if turn >= WARM_UP:
                seconds[name].append(time.perf_counter() - started)
                tokens[name] += counted.tokens
    predictions = seconds.pop("prediction")
    rows = []
    for name, values in seconds.items():
        ratio = float(np.percentile(values, 95) / np.percentile(predictions, 95))
        measured = (
            f"p95 {ratio:.2f} times; median {measuring.ratio(values, predictions)[1]}; {tokens[name] / repeats:.0f} tokens"
        )
        what = f"{name}, a text of {TOKENS} tokens against its prediction, {engine.workers} threads, {repeats} turns"
        rows.append(Row(what, measured, "at most 5 times at p95", ratio <= 5))
    return rows


@click.command()
@click.option("--candidate", type=click.Path(path_type=Path), required=True, help="Folder of a profile with model and onnx.")
@click.option("--dataset", type=click.Path(path_type=Path), required=True, help="Dataset folder.")
@click.option("--texts", default=200, show_default=True, help="Texts of validation for the deletion test.")
@click.option("--repeats", default=100, show_default=True, help="Turns for the cost.")
@click.option("--threads", default=0, help="Of the int8 engine; 0: every core.")
def main(candidate: Path, dataset: Path, texts: int, repeats: int, threads: int) -> None:
    """Print the table."""
    encoder = TextEncoder.load(candidate / "model")
    validation = load_dataset(dataset, ["validation"])[0]["validation"]["text"][:]
    int8 = engines.load("openvino-int8", candidate / "onnx", encoder, threads=threads or None)
    rows = cost_rows(int8, validation, repeats)
    engine = engines.load("torch", candidate / "model", encoder)
    methods = {f"occlusion, {removals} removals": by_occlusion(engine, removals) for removals in (defaults.REMOVALS, 100)}
    methods |= {f"words alone first, {removals} removals": by_words_alone(engine, removals) for removals in ALONE_REMOVALS}
    if importlib.util.find_spec("captum"):
        methods |= by_captum(classifier.load_classifier(candidate / "model").eval(), encoder)
    else:
        click.echo("Captum is not installed: its rows are left out (pip install captum)", err=True)
    rows += deletion_rows(engine, validation[:texts], methods)
    click.echo(f"{measuring.provenance(threads)}\n\n{measuring.table(rows)}")


if __name__ == "__main__":
    main()
