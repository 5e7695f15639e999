"""RoBERTa-large and DistilBERT of full size on one GPU: training, resuming, parity and serving, in at most 12 minutes.

    python -m benchmarks.gpu --prepare gpu.tar.gz --wheels wheels    # here: an archive of source, sample data and wheels
    tar -xzf gpu.tar.gz && python -m benchmarks.gpu                  # there: a machine with torch, transformers and NumPy
    python -m benchmarks.gpu --publish gpu-results                   # here: the section of docs/benchmarks.md

Weights and texts are made on the machine. The former system's recipe is a plain loop in fp32, every text padded to 128 tokens, batches
of 16. The tuned Trainer computes in bf16, on batches of 32 texts of similar length with fused AdamW; it needs accelerate, whose wheel
may be in the archive. Each section prints its rows when it ends and writes them, so that a run that is cut off leaves what it measured.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import logging
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks import gpu_archive

ROOT = Path(__file__).parents[1]
TITLE = "On a GPU"
MODELS = ("roberta-large", "distilbert")
LABELS = 28
EPOCHS, EPOCH_ROWS = 10, 43_410
SEED_BATCH = 16
# Peak operations per second in bf16 without sparsity, by a part of the card's name.
PEAKS = {"H100": 989e12, "H200": 989e12, "A100": 312e12, "L4": 121e12}
JSON_FILE, MARKDOWN_FILE = "gpu.json", "gpu.md"


class TimeIsUp(BaseException):
    """Ends the run; no library takes it for an error of its own."""


@dataclass(frozen=True)
class Scale:
    """How much is measured."""

    texts: int = 8192
    seconds: float = 10.0
    # Each length of a batch is slow when it comes first: all loops leave out as many steps.
    warm_steps: int = 50
    trainer_steps: int = 50
    scored_texts: int = 4096
    pipeline_batches: tuple[int, ...] = (32, 128, 512)
    small: bool = False


SMALL = Scale(64, 0.2, 1, 2, 32, (8, 16), small=True)


@dataclass
class Results:
    """The rows so far, what and measured, by section; written after each section."""

    folder: Path
    where: str
    rows: dict[str, list[tuple[str, str]]] = field(default_factory=dict)

    @contextlib.contextmanager
    def section(self, title: str) -> Iterator[Callable[[str, str], None]]:
        """A section that gets its rows from the block. An error in it is a row: the other sections are still measured."""
        rows = self.rows.setdefault(title, [])
        started = time.monotonic()
        try:
            yield lambda what, measured: rows.append((what, measured))
        except TimeIsUp:
            rows.append(("cut off", "the time is up"))
            raise
        except Exception as error:
            logging.exception("%s failed", title)
            rows.append(("failed", f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"))
        finally:
            rows.append(("time of this section", f"{time.monotonic() - started:.0f} s"))
            self.write()
            print(f"\n{title}", *(f"  {what}: {measured}" for what, measured in rows), sep="\n", flush=True)

    def write(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / JSON_FILE).write_text(json.dumps(asdict(self), default=str, indent=1), encoding="utf-8")
        (self.folder / MARKDOWN_FILE).write_text(markdown(self.where, self.rows), encoding="utf-8")


def markdown(where: str, sections: dict[str, Any]) -> str:
    lines = [f"`python -m benchmarks.gpu` on {where}. Random weights, made-up texts with the lengths of the sample data.", ""]
    lines += ["| section | what | measured |", "|---|---|---|"]
    lines += [f"| {title} | {what} | {measured} |" for title, rows in sections.items() for what, measured in rows]
    return "\n".join(lines) + "\n"


@dataclass(frozen=True)
class Material:
    """A profile, its weights and tokenizer, and texts with labels that follow from their words."""

    profile: Any
    folder: Path
    encoder: Any
    texts: list[str]
    split: Any

    @classmethod
    def make(cls, model: str, folder: Path, scale: Scale) -> Material:
        import numpy as np

        from benchmarks import random_weights
        from goemotions.models import classifier, profiles
        from goemotions.models.tokenizer import TextEncoder
        from goemotions.training.batches import TokenizedSplit

        sample = random_weights.sample_texts()
        if not (folder / "config.json").exists():
            random_weights.write(folder, model, sample, small=scale.small)
        profile = profiles.get(model)
        tokenizer = classifier.load_tokenizer(profile, str(folder))
        encoder = TextEncoder(tokenizer.backend_tokenizer, profile.hyperparameters.max_length, tokenizer.pad_token_id)
        texts = made_up_texts(sample, scale.texts)
        split = TokenizedSplit([item.ids for item in encoder.encode(texts)], np.array(labels_of(sample, texts), np.float32))
        return cls(profile, folder, encoder, texts, split)

    def network(self, seed: int = 0) -> Any:
        from goemotions.data.taxonomy import Taxonomy
        from goemotions.models.classifier import build_classifier

        names = tuple(f"label {number}" for number in range(LABELS))
        return build_classifier(self.profile, Taxonomy(names), weights=str(self.folder), seed=seed)


def made_up_texts(sample: list[str], count: int) -> list[str]:
    """Texts of the sample's words, with its numbers of words per text."""
    generator = random.Random(0)
    words = [word for text in sample for word in text.split()]
    return [" ".join(generator.choices(words, k=len(generator.choice(sample).split()))) for _ in range(count)]


def labels_of(sample: list[str], texts: list[str]) -> list[list[float]]:
    """A label for each of some frequent words: whether the text has it."""
    counts: dict[str, int] = {}
    for word in (word for text in sample for word in text.split()):
        counts[word] = counts.get(word, 0) + 1
    cues = sorted(counts, key=lambda word: (-counts[word], word))[:LABELS]
    return [[float(cue in words) for cue in cues] for words in (set(text.split()) for text in texts)]


def synchronize() -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


@contextlib.contextmanager
def gpu_memory() -> Iterator[Callable[[], str]]:
    """A function that returns the peak of GPU memory since the start of the block; memory is freed at both ends."""
    import torch

    def free() -> None:
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    free()
    yield lambda: f"{torch.cuda.max_memory_allocated() / 2**30:.1f} GiB" if torch.cuda.is_available() else "no GPU"
    free()


def timed(step: Callable[[], list[int]], scale: Scale) -> tuple[list[int], float]:
    """The rows that steps took after the warm-up, and the seconds; ``step`` returns the rows of its batch."""
    for _ in range(scale.warm_steps):
        step()
    synchronize()
    rows: list[int] = []
    started = time.perf_counter()
    while time.perf_counter() - started < scale.seconds:
        for _ in range(1 if scale.small else 5):
            rows += step()
        synchronize()
    return rows, time.perf_counter() - started


def seed_recipe(material: Material) -> Callable[[], list[int]]:
    """A step of the former system's recipe."""
    import numpy as np
    import torch

    from benchmarks.loops import LONGEST

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network = material.network().to(device).train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-5)
    position = 0

    def step() -> list[int]:
        nonlocal position
        batch = [(position + number) % len(material.split.rows) for number in range(SEED_BATCH)]
        position += SEED_BATCH
        ids, mask = material.encoder.pad([material.split.rows[row] for row in batch])
        missing = ((0, 0), (0, LONGEST - ids.shape[1]))
        ids, mask = np.pad(ids, missing, constant_values=material.encoder.pad_id), np.pad(mask, missing)
        inputs = {"input_ids": torch.from_numpy(ids).to(device), "attention_mask": torch.from_numpy(mask).to(device)}
        labels = torch.from_numpy(material.split.labels[batch]).to(device)
        loss = torch.nn.functional.binary_cross_entropy_with_logits(network(**inputs).logits, labels)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return batch

    return step


def speed(material: Material, network: Any, rows: list[int], seconds: float) -> str:
    """Samples per second, the seconds of ten epochs, and the used share of the card's peak on real tokens."""
    import torch

    from benchmarks.loops import operations

    rate = len(rows) / seconds
    text = f"{rate:,.1f} samples/s; {EPOCHS} epochs of {EPOCH_ROWS:,} texts in {EPOCHS * EPOCH_ROWS / rate:,.0f} s"
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    card_peak = next((value for part, value in PEAKS.items() if part in name), None)
    if card_peak is None:
        return f"{text}; MFU not measured on {name}"
    used = operations(network, [len(material.split.rows[row]) for row in rows]) / seconds / card_peak
    return f"{text}; MFU {used:.1%} of the bf16 peak, on real tokens"


def training(material: Material, scale: Scale, add: Callable[[str, str], None]) -> Any:
    """The rates of the recipes; returns our loop, whose network has learned something."""
    import torch

    from benchmarks.loops import OurLoop, trainer_rate

    network = material.network()
    for precision in ("highest", "high"):
        torch.set_float32_matmul_precision(precision)
        with gpu_memory() as peak:
            step = seed_recipe(material)
            add(f"former recipe, {'fp32' if precision == 'highest' else 'TF32'}", speed(material, network, *timed(step, scale)))
            add("- peak GPU memory", peak())
            del step
    torch.set_float32_matmul_precision("highest")
    with gpu_memory() as peak:
        try:
            rate = trainer_rate(material, tuned=True, steps=scale.trainer_steps, left_out=scale.warm_steps)  # type: ignore[arg-type]
            add("Trainer, tuned", f"{rate:,.1f} samples/s; {EPOCHS * EPOCH_ROWS / rate:,.0f} s for {EPOCHS} epochs")
            add("- peak GPU memory", peak())
        except ImportError as error:
            add("Trainer, tuned", f"not run: {str(error).splitlines()[0]}")
    with gpu_memory() as peak:
        ours = OurLoop(material)
        batches = iter(lambda: ours.advance(1)[0], None)
        add(f"ours, {ours.loop.precision}", speed(material, network, *timed(lambda: next(batches), scale)))
        add("- peak GPU memory", peak())
    return ours.loop


def parity(material: Material, loop: Any, scale: Scale, add: Callable[[str, str], None]) -> None:
    """The serving precision compared with fp32."""
    import numpy as np

    from goemotions.metrics import classification
    from goemotions.models import engines

    rows, labels = material.split.rows[: scale.scored_texts], material.split.labels[: scale.scored_texts] > 0
    scores = {precision: engines.score_ids(loop.engine(precision), rows) for precision in ("fp32", "bf16")}
    difference = np.abs(scores["bf16"] - scores["fp32"])
    add("largest difference of a probability, bf16 and fp32", f"{difference.max():.1e} (mean {difference.mean():.1e})")
    for name, value in classification.ranking(labels, scores["fp32"]).items():
        change = classification.ranking(labels, scores["bf16"])[name] - value
        add(f"{name} in fp32, and its change in bf16", f"{value:.4f}, {change:+.1e}")


def serving(material: Material, loop: Any, scale: Scale, add: Callable[[str, str], None]) -> None:
    """Texts per second of the engine and of a transformers pipeline, both with tokenization."""
    import torch

    from goemotions.models import engines

    texts = material.texts[: scale.scored_texts]
    with gpu_memory() as peak:
        engine = loop.engine()
        ours = scoring_rate(len(texts), lambda: engines.score(engine, texts))
        add(f"engine torch, {engine.computation.precision}", f"{ours:,.0f} texts/s; peak GPU memory {peak()}")
    for kind in (torch.float32, torch.bfloat16):
        with gpu_memory() as peak:
            size, best = best_pipeline(material, loop, kind, texts, scale)
            name = str(kind).removeprefix("torch.")
            add(f"transformers pipeline, {name}, at its best batch of {size}", f"{best:,.0f} texts/s; peak GPU memory {peak()}")
            add("- the engine relative to it", f"{ours / best:.2f} times")


def scoring_rate(texts: int, score: Callable[[], object]) -> float:
    """Texts per second of the second call."""
    score()
    synchronize()
    started = time.perf_counter()
    score()
    synchronize()
    return texts / (time.perf_counter() - started)


def best_pipeline(material: Material, loop: Any, kind: Any, texts: list[str], scale: Scale) -> tuple[int, float]:
    """The batch size at which a pipeline over the network, converted to a precision, is fastest, and its texts per second."""
    import transformers

    from goemotions.models.classifier import load_tokenizer

    tokenizer = load_tokenizer(material.profile, str(material.folder))
    pipeline = transformers.TextClassificationPipeline(
        model=loop.classifier.eval().to(kind), tokenizer=tokenizer, top_k=None, function_to_apply="sigmoid", device=loop.device
    )
    options = {"truncation": True, "max_length": material.encoder.max_length}

    def rate(size: int) -> float:
        return scoring_rate(len(texts), lambda: pipeline(texts, batch_size=size, **options))

    rates = {size: rate(size) for size in scale.pipeline_batches}
    return max(rates.items(), key=lambda item: item[1])


def resume(model: str, folder: Path, scale: Scale, add: Callable[[str, str], None]) -> None:
    """Kills a training after its first checkpoint, and resumes it."""
    from goemotions.storage import manifest

    command = [sys.executable, "-m", "benchmarks.gpu", "--train", model, str(folder), *(["--small"] if scale.small else [])]
    checkpoints = folder / "checkpoints"
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as process:
        while process.poll() is None and not list(checkpoints.glob(f"**/{manifest.NAME}")):
            time.sleep(0.02)
        process.kill()
    started = time.perf_counter()
    again = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    resumed = next((line for line in again.stderr.splitlines() if "resuming" in line), "")
    if again.returncode or not resumed:
        raise RuntimeError(f"it did not resume: {again.stderr[-300:]}")
    add("after SIGKILL", f"{resumed.partition('resuming ')[2]}; ended in {time.perf_counter() - started:.0f} s, start included")
    add("its last epoch", again.stdout.strip().splitlines()[-1])


def train(model: str, folder: Path, scale: Scale) -> None:
    """Two short epochs with checkpoints: the process that ``resume`` kills."""
    from goemotions.training.batches import TokenizedSplit
    from goemotions.training.hardware import resolve_precision
    from goemotions.training.loop import CheckpointPlan, TrainingLoop

    logging.basicConfig(level=logging.INFO)
    material = Material.make(model, folder / "weights", scale)
    part = TokenizedSplit(material.split.rows[:256], material.split.labels[:256])
    profile = material.profile.changed(epochs=2)
    plan = CheckpointPlan(str(folder / "checkpoints"), fingerprint={"model": model})
    loop = TrainingLoop(profile, material.network(), material.encoder, 0, resolve_precision("auto"), plan)
    loop.fit(part, part)
    last = loop.state.history[-1]
    print(f"train loss {last['train/loss']:.4f}, micro AUC {last['validation/auc_micro']:.4f}, step {loop.state.step}")


def measure(models: list[str], output: Path, scale: Scale, minutes: float) -> None:
    """Every section, until the time is up."""

    def stop(*_: object) -> None:
        raise TimeIsUp

    signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, 60 * minutes)
    results = Results(output, machine())
    with contextlib.suppress(TimeIsUp), tempfile.TemporaryDirectory() as scratch:
        folders = {model: Path(scratch) / model for model in models}
        for model, folder in folders.items():
            loop: Any = None
            with results.section(f"{model}: training") as add:
                material = Material.make(model, folder / "weights", scale)
                loop = training(material, scale, add)
            if loop is not None:
                with results.section(f"{model}: bf16 and fp32") as add:
                    parity(material, loop, scale, add)
                with results.section(f"{model}: serving") as add:
                    serving(material, loop, scale, add)
                del loop
        for model, folder in folders.items():
            with results.section(f"{model}: resuming") as add, gpu_memory():
                resume(model, folder, scale, add)
    signal.setitimer(signal.ITIMER_REAL, 0)
    print(f"\n{output / MARKDOWN_FILE} and {output / JSON_FILE} are written")


def machine() -> str:
    import torch
    import transformers

    name = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPUs, no GPU"
    return f"{name}, torch {torch.__version__}, transformers {transformers.__version__}"


def publish(folder: Path, document: Path) -> None:
    """Writes the results of a run as a section of the document."""
    from benchmarks import sections

    content = json.loads((folder / JSON_FILE).read_text(encoding="utf-8"))
    sections.write_one(document, TITLE, markdown(content["where"], content["rows"]))
    print(f"{document} is written")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--output", type=Path, default=Path("gpu-results"), help="folder for the results")
    parser.add_argument("--minutes", type=float, default=12.0, help="the run ends after this time")
    parser.add_argument("--small", action="store_true", help="tiny networks, to try the run on a CPU")
    parser.add_argument("--prepare", type=Path, metavar="ARCHIVE", help="write the archive and end")
    parser.add_argument("--wheels", type=Path, default=Path("wheels"), help="folder with wheels for the archive")
    parser.add_argument("--publish", type=Path, metavar="FOLDER", help="write the section of the document from results and end")
    parser.add_argument("--train", nargs=2, metavar=("MODEL", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    scale = SMALL if options.small else Scale()
    if options.prepare:
        gpu_archive.prepare(options.prepare, options.wheels)
    elif options.publish:
        publish(options.publish, ROOT / "docs" / "benchmarks.md")
    else:
        run(options, scale)


def run(options: argparse.Namespace, scale: Scale) -> None:
    with tempfile.TemporaryDirectory() as packages:
        gpu_archive.add_wheels(ROOT / "wheels", Path(packages))
        if options.train:
            train(options.train[0], Path(options.train[1]), scale)
        else:
            measure(options.models.split(","), options.output, scale, options.minutes)


if __name__ == "__main__":
    main()
