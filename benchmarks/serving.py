"""The predictor server compared with the alternatives in one run, and its behaviour under load.

    python -m benchmarks.serving --bundle champion-cpu --data ../goemotions

All have the same weights, the same cores and the same texts in the order of the file. Tokenization is included, nothing is cached,
and texts are reordered within windows of at most 512. Ratios compare runs that alternate.
"""

from __future__ import annotations

import logging
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from typing import Any

import click
import psutil

from benchmarks import all_engines, load, parity
from benchmarks.measuring import BUNDLE_AND_DATA, Row, by_turns, compared, provenance, spread, table, timed
from goemotions.data.dataset import ingest, load_dataset, taxonomy_of
from goemotions.evaluation.predictions import Predictions
from goemotions.metrics import classification, strategies
from goemotions.metrics.sorted_scores import SortedScores
from goemotions.models import engines
from goemotions.prediction.predictor import Predictor
from pipelines import server, stack
from pipelines.server import serving

REPEATS = 5
THREADS = 2
TEXTS = 2048
PIPELINE_SIZES = (1, 8, 16, 32, 64)
SOAK_REQUESTS = 100_000
OVERLOAD_SECONDS = 60
LONG_TEXT = "storm lake balloon harbour gravel " * 14


def predictor_arguments(folder: Path, *options: str) -> list[str]:
    return [*server.PREDICTOR, "--bundle", str(folder), "--threads", str(THREADS), *options]


def in_process(folder: Path, texts: list[str], engine: engines.Engine) -> tuple[list[Row], int]:
    """The engine compared with a transformers pipeline and ONNX Runtime; also returns the pipeline's best batch size."""
    import torch

    from benchmarks.stock import pipeline

    torch.set_num_threads(THREADS)
    stock_pipeline = pipeline(folder)

    def best_of_two(size: int) -> float:
        run = timed(256, lambda: stock_pipeline(texts[:256], batch_size=size, truncation=True))
        return max(run(), run())

    best = max(PIPELINE_SIZES, key=best_of_two)
    with tempfile.TemporaryDirectory() as scratch:
        onnxruntime = _onnxruntime(folder, Path(scratch), engine)
        few = texts[: len(texts) // 4]
        rates = by_turns(
            REPEATS,
            {
                "pipeline": timed(len(few), lambda: stock_pipeline(few, batch_size=best, truncation=True)),
                "onnxruntime": timed(len(texts), lambda: onnxruntime(texts)),
                "engine": timed(len(texts), lambda: engines.score(engine, texts)),
            },
        )
    tried = ", ".join(map(str, PIPELINE_SIZES))
    rows = [
        Row(f"transformers pipeline, fp32, batches of {best} (the best of {tried})", spread(rates["pipeline"])),
        Row("ONNX Runtime, dynamic int8, padded batches of 32 in the order of the file", spread(rates["onnxruntime"])),
        Row(f"the engine {engine.name}, in-process", spread(rates["engine"])),
    ]
    for name, title, target in (("pipeline", "the pipeline", 10.0), ("onnxruntime", "ONNX Runtime", 2.5)):
        rows.append(compared(f"relative to {title}", rates["engine"], rates[name], least=target))
    return rows, best


def _onnxruntime(folder: Path, scratch: Path, engine: engines.Engine) -> Callable[[Sequence[str]], None]:
    import onnxruntime
    from onnxruntime.quantization import QuantType, quantize_dynamic

    root, level = logging.getLogger(), logging.getLogger().level
    root.setLevel(logging.ERROR)
    quantize_dynamic(folder / "model.onnx", scratch / "int8.onnx", weight_type=QuantType.QUInt8, per_channel=True)
    root.setLevel(level)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = THREADS
    session = onnxruntime.InferenceSession(str(scratch / "int8.onnx"), options, providers=["CPUExecutionProvider"])

    def score(texts: Sequence[str]) -> None:
        for start in range(0, len(texts), 32):
            ids, mask = engine.encoder.pad([item.ids for item in engine.encoder.encode(texts[start : start + 32])])
            session.run(None, {"input_ids": ids, "attention_mask": mask})

    return score


def served(folder: Path, scratch: Path, texts: list[str], engine: engines.Engine, best: int) -> list[Row]:
    """The server under closed and open loops, compared with the engine alone, without batching, and the stock server."""
    ones, batches = load.requests(texts, 1), load.requests(texts, 32)
    with (
        serving(predictor_arguments(folder), scratch / "server.log") as (port, _, ready),
        serving(predictor_arguments(folder, "--no-batching"), scratch / "unbatched.log") as (unbatched, _, _),
        serving(["-m", "benchmarks.stock", str(folder), str(best)], scratch / "stock.log") as (stock, _, _),
    ):
        rows = [Row("time from start to ready, the model on disk", f"{ready:.1f} s", "at most 5 s", ready <= 5)]
        rates = by_turns(
            REPEATS,
            {
                "engine": timed(len(texts), lambda: engines.score(engine, texts)),
                "of 32": lambda: 32 * load.closed(port, batches, clients=16, count=len(batches)).rate(),
                "of 1": lambda: load.closed(port, ones, clients=64, count=len(ones)).rate(),
                "unbatched": lambda: load.closed(unbatched, ones, clients=64, count=len(ones) // 2).rate(),
                "stock": lambda: load.closed(stock, ones, clients=64, count=len(ones) // 8).rate(),
            },
        )
        rows += [Row("16 clients, 32 texts per request", spread(rates["of 32"]))]
        rows += [compared("relative to the engine in-process", rates["of 32"], rates["engine"], least=0.8)]
        rows += [Row("64 clients, one text per request", spread(rates["of 1"]))]
        for name, title, target in (
            ("unbatched", "the server without batching across requests", 1.3),
            ("stock", "KServe's server around the pipeline", 4.0),
        ):
            rows.append(compared(f"relative to {title}: {spread(rates[name])}", rates["of 1"], rates[name], least=target))
        return rows + _latency(port, ones, texts, engine, median(rates["of 1"])) + _fairness(port, ones, median(rates["of 1"]))


def _latency(port: int, ones: list[bytes], texts: list[str], engine: engines.Engine, saturation: float) -> list[Row]:
    lone, added = [], []
    for start in range(REPEATS):
        window = slice(100 * start, 100 * start + 100)
        alone = []
        for text in texts[window]:
            started = time.perf_counter()
            engines.score(engine, [text])
            alone.append(time.perf_counter() - started)
        lone.append(1000 * load.closed(port, ones[window], clients=1, count=100).percentile(50))
        added.append(lone[-1] - 1000 * median(alone))
    rows = [Row("one text, idle server: median latency", spread(lone, "ms"))]
    rows += [Row("- of which not the engine", spread(added, "ms"), "at most 3 ms", median(added) <= 3)]
    tails = [
        1000 * load.opened(port, ones, rate=0.7 * saturation, seconds=10, seed=seed).percentile(99) for seed in range(REPEATS)
    ]
    value = median(tails) / median(lone)
    what = f"open loop at 70% of saturation ({0.7 * saturation:,.0f} requests/s): p99"
    return [
        *rows,
        Row(
            what, f"{spread(tails, 'ms')}, {value:.1f} times that of one text on an idle server", "at most 5 times", value <= 5
        ),
    ]


def _fairness(port: int, ones: list[bytes], saturation: float) -> list[Row]:
    """The latency of single texts at a tenth of saturation, without and with a client that sends as many long texts as it can."""
    heavy = load.requests([LONG_TEXT] * 512, 512)
    ratios, rejected = [], 0
    for seed in range(REPEATS):
        rate = 0.1 * saturation
        quiet = load.opened(port, ones, rate=rate, seconds=5, seed=seed)
        with ThreadPoolExecutor() as pool:
            greedy = pool.submit(load.closed, port, heavy, clients=4, seconds=6)
            time.sleep(1)
            disturbed = load.opened(port, ones, rate=rate, seconds=5, seed=seed)
            greedy.result()
        ratios.append(disturbed.percentile(99) / quiet.percentile(99))
        rejected += len(disturbed.statuses) - disturbed.statuses.count(200)
    return [
        Row(
            "single texts at 10% of saturation beside a client with 4 connections and 512 texts of 126 tokens per request: p99",
            f"{spread(ratios, 'times')} that without it, {rejected} rejected",
            "at most 5 times, none",
            median(ratios) <= 5 and not rejected,
        )
    ]


def under_load(folder: Path, scratch: Path, texts: list[str]) -> list[Row]:
    """Memory over many requests, tenfold overload, and SIGTERM under load."""
    ones, eights = load.requests(texts, 1), load.requests(texts, 8)
    with serving(predictor_arguments(folder, "--drain-seconds", "2"), scratch / "load.log") as (port, running, _):
        memory = psutil.Process(running.pid).memory_info
        sizes = []
        for part in range(10):
            load.closed(port, ones, clients=64, count=SOAK_REQUESTS // 10)
            sizes.append(memory().rss / 2**20)
            click.echo(f"  {(part + 1) * SOAK_REQUESTS // 10:,} requests, {sizes[-1]:,.0f} MiB", err=True)
        growth = sizes[-1] - sizes[4]
        rows = [
            Row(
                f"memory after {SOAK_REQUESTS // 2:,} and {SOAK_REQUESTS:,} requests",
                f"{sizes[4]:,.0f} and {sizes[-1]:,.0f} MiB",
                "no growth",
                growth < 0.02 * sizes[4],
            )
        ]
        before = load.closed(port, eights, clients=16, count=len(eights) * 4)
        lone = load.closed(port, eights, clients=1, count=50).percentile(50)
        over = load.opened(port, eights, rate=10 * before.rate(), seconds=OVERLOAD_SECONDS)
        peak = memory().rss / 2**20
        started = time.monotonic()
        # The percentile is NaN if no request succeeds, and every comparison with NaN is false.
        while not load.closed(port, eights, clients=1, count=20).percentile(99) <= 5 * lone and time.monotonic() - started < 30:
            pass
        recovered = time.monotonic() - started
        rows += [
            Row(
                f"tenfold overload for {OVERLOAD_SECONDS} s ({10 * before.rate():,.0f} requests/s of 8 texts)",
                f"{over.rate():,.0f}/s served, {over.rate(429):,.0f}/s rejected, {over.lost()}, "
                f"p99 of those served {over.percentile(99):.2f} s, {peak:,.0f} MiB, normal again after {recovered:.1f} s",
                "bounded; normal within seconds",
                over.percentile(99) < 3 and peak < 1.5 * sizes[-1] and recovered < 10 and not over.losses,
            )
        ]
        return [*rows, _terminated(port, running, ones)]


def agreement(folder: Path, scratch: Path, split: Any, predictor: Predictor) -> list[Row]:
    """Every protocol compared with the stored predictions of the evaluate step, and the float engine with itself in-process."""
    texts, labels = split["text"][:], predictor.bundle.taxonomy.names
    stored = Predictions.read(folder / "test.parquet")
    is_same = list(stored.ids) == list(split["id"])
    expected = stored.probabilities if is_same else engines.score(predictor.engine, texts)[0]
    alone = engines.load("openvino-fp32", folder, predictor.bundle.encoder, threads=THREADS)
    cases = (
        (predictor.engine.name, expected, "the evaluate step" if is_same else "the engine in-process", engines.INT8_BOUND),
        ("openvino-fp32", engines.score(alone, texts)[0], "the engine in-process", 1e-5),
    )
    rows = []
    for name, probabilities, reference, bound in cases:
        grpc_port = stack.free_ports(1)[0]
        arguments = predictor_arguments(folder, "--engine", name, "--grpc-port", str(grpc_port))
        with serving(arguments, scratch / "parity.log") as (port, *_):
            for way, difference in parity.differences(port, grpc_port, texts, labels, probabilities):
                what = f"{name}: {len(texts):,} texts by {way}: largest difference to {reference}"
                rows.append(Row(what, f"{difference:.1e}", f"at most {bound:g}", difference <= bound))
    return rows


def _terminated(port: int, running: subprocess.Popen[bytes], ones: list[bytes]) -> Row:
    with ThreadPoolExecutor() as pool:
        loaded = pool.submit(load.closed, port, ones, clients=64, seconds=3)
        time.sleep(1.5)
        running.send_signal(signal.SIGTERM)
        outcome = loaded.result()
        code = running.wait(timeout=60)
    lost = len(outcome.statuses) - outcome.statuses.count(200)
    return Row(
        "SIGTERM under load of 64 clients",
        f"{outcome.statuses.count(200):,} served, {lost} lost, exit code {code}",
        "none lost",
        lost == 0 and code == 0,
    )


def quality(folder: Path, dataset: Path, predictor: Predictor) -> Row:
    """Macro F1 on the whole test split, of the engine and of fp32, each with thresholds fitted on validation."""
    splits, info = load_dataset(dataset, ("validation", "test"))
    taxonomy = taxonomy_of(info)
    labels = {split: taxonomy.multi_hot(splits[split]["labels"][:]) for split in splits}
    f1 = {}
    for name in (predictor.engine.name, "openvino-fp32"):
        engine = engines.load(name, folder, predictor.bundle.encoder, threads=THREADS)
        scores = {split: engines.score(engine, splits[split]["text"][:])[0] for split in splits}
        fitted = strategies.per_label_smoothed(SortedScores.of(labels["validation"], scores["validation"]))
        f1[name] = classification.decisions(labels["test"], fitted.apply(scores["test"]))["f1_macro"]
    difference = abs(f1[predictor.engine.name] - f1["openvino-fp32"])
    text = ", ".join(f"{name} {value:.4f}" for name, value in f1.items())
    return Row("macro F1 on the whole test split", text, "within 0.005", difference <= 0.005)


@click.command()
@BUNDLE_AND_DATA
@click.option("--output", type=click.Path(path_type=Path), help="A Markdown file to write.")
def main(reference: str, model_name: str, source: str, output: Path | None) -> None:
    """Measure the predictor."""
    with all_engines.as_folder(reference, model_name) as (folder, _), tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        ingest(source, scratch / "dataset")
        split = load_dataset(scratch / "dataset", ("test",))[0]["test"]
        texts = (split["text"][:] * (1 + TEXTS // len(split)))[:TEXTS]
        predictor = Predictor.load(folder, threads=THREADS)
        rows, best = in_process(folder, texts, predictor.engine)
        rows.append(quality(folder, scratch / "dataset", predictor))
        rows += served(folder, scratch, texts, predictor.engine, best)
        rows += agreement(folder, scratch, split, predictor)
        rows += under_load(folder, scratch, texts)
    text = (
        f"{provenance(THREADS)}. {len(texts):,} texts of the test split of {Path(source).name}; "
        f"medians (and range) of {REPEATS} runs.\n\n" + table(rows)
    )
    click.echo(text)
    if output:
        output.write_text(f"# Serving benchmarks\n\nWritten by `make bench-serving`.\n\n{text}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
