"""Engines: the scores of a text do not depend on its batch or on the engine."""

import functools
import json
import random
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from goemotions.errors import ModelError
from goemotions.evaluation.predictions import FILE, Predictions
from goemotions.models import engine_names, engines
from goemotions.models.engines import Engine
from goemotions.models.records import read_exports
from goemotions.models.tokenizer import TextEncoder
from tests.support import damage

ENGINES = ["torch", "openvino-fp32", "openvino-int8"]
WORDS = ["lake", "storm", "balloon", "harbour", "the", "quiet", "unheard-of", "\N{GRINNING FACE}"]
TEXTS = st.lists(st.lists(st.sampled_from(WORDS), max_size=150).map(" ".join), min_size=1, max_size=40)


@pytest.fixture(scope="module")
def engine_of(model_folder: Path, onnx_folder: Path) -> Callable[[str], Engine]:
    """A function from an engine's name to the engine."""
    encoder = TextEncoder.load(model_folder)

    @functools.cache
    def make(name: str) -> Engine:
        return engines.load(name, model_folder if name == "torch" else onnx_folder, encoder)

    return make


@pytest.mark.fault("http-mixed-batch")
@pytest.mark.parametrize("name", ["torch", "openvino-fp32"])
@given(texts=TEXTS)
@settings(max_examples=15, deadline=None)
def test_a_text_gets_the_same_scores_in_a_batch_as_alone(
    name: str, engine_of: Callable[[str], Engine], texts: list[str]
) -> None:
    """The float engines: equal up to float error."""
    engine = engine_of(name)
    together, _ = engines.score(engine, texts)
    distinct = {text: engines.score(engine, [text])[0][0] for text in set(texts)}
    assert np.abs(together - np.array([distinct[text] for text in texts])).max() < 1e-5


@pytest.mark.parametrize("name", ["torch", "openvino-fp32"])
@given(texts=TEXTS, order=st.randoms(use_true_random=False))
@settings(max_examples=15, deadline=None)
def test_scores_do_not_depend_on_the_order_of_the_texts(
    name: str, engine_of: Callable[[str], Engine], texts: list[str], order: random.Random
) -> None:
    engine = engine_of(name)
    shuffled = list(range(len(texts)))
    order.shuffle(shuffled)
    forwards, cut = engines.score(engine, texts)
    mixed, cut_mixed = engines.score(engine, [texts[position] for position in shuffled])
    assert np.abs(mixed - forwards[shuffled]).max() < 1e-5
    assert (cut_mixed == cut[shuffled]).all()


@pytest.mark.parametrize("name", ENGINES)
def test_scores_are_in_the_order_of_the_texts(name: str, engine_of: Callable[[str], Engine]) -> None:
    engine = engine_of(name)
    words = {"storm": 90, "lake": 1, "gravel": 40, "harbour": 126, "sparrow": 3}
    texts = [" ".join([word] * length) for word, length in words.items()] * 20
    together, _ = engines.score(engine, texts)
    assert together.shape == (100, 7)
    assert together.dtype == np.float32
    one_round = together[:5]
    assert np.abs(together.reshape(20, 5, 7) - one_round).max() < (engines.INT8_BOUND if name == "openvino-int8" else 1e-5)
    assert min(np.abs(one_round[a] - one_round[b]).max() for a in range(5) for b in range(a)) > 1e-3


@pytest.mark.fault("http-mixed-batch")
def test_int8_scores_of_a_batch_and_of_single_texts_are_within_the_bound(engine_of: Callable[[str], Engine]) -> None:
    """The int8 engine: sums in another order may round an activation to the next int8 value."""
    engine = engine_of("openvino-int8")
    texts = [" ".join([*WORDS[: 1 + number % 8], *["the"] * number]) for number in range(40)]
    together, _ = engines.score(engine, texts)
    alone = np.concatenate([engines.score(engine, [text])[0] for text in texts])
    assert np.abs(together - alone).max() < engines.INT8_BOUND


@pytest.mark.parametrize("name", ENGINES)
def test_a_long_text_is_cut_and_marked(name: str, engine_of: Callable[[str], Engine]) -> None:
    words = {"fits": 126, "over": 127, "far over": 100_000}
    probabilities, truncated = engines.score(engine_of(name), [" ".join(["lake"] * count) for count in words.values()])
    assert truncated.tolist() == [False, True, True]
    assert np.abs(probabilities - probabilities[0]).max() < 1e-5


@pytest.mark.fault("data-odd-characters")
@pytest.mark.parametrize("name", ENGINES)
@pytest.mark.parametrize("text", ["", "   ", "\x00\x07", "\ud800", "\u202elake", "\N{FAMILY}" * 50])
def test_an_unusual_text_gets_the_same_scores_every_time(name: str, text: str, engine_of: Callable[[str], Engine]) -> None:
    scores = [engines.score(engine_of(name), [text])[0] for _ in range(2)]
    assert np.isfinite(scores[0]).all()
    assert np.array_equal(*scores)


@pytest.mark.parametrize("name", ENGINES)
def test_scoring_no_texts_is_a_named_error(name: str, engine_of: Callable[[str], Engine]) -> None:
    with pytest.raises(ModelError, match="there is no text to score"):
        engines.score(engine_of(name), [])


def test_progress_counts_every_text(engine_of: Callable[[str], Engine]) -> None:
    heard: list[int] = []
    engines.score(engine_of("openvino-fp32"), ["lake"] * 700, heard.append)
    assert sum(heard) == 700
    assert len(heard) > 2


def test_threads_may_share_an_engine(engine_of: Callable[[str], Engine]) -> None:
    engine = engine_of("openvino-fp32")
    texts = [[" ".join(WORDS[: 1 + number % 8])] * 20 for number in range(32)]
    expected = [engines.score(engine, some)[0] for some in texts]
    with ThreadPoolExecutor(4) as pool:
        scores = list(pool.map(lambda some: engines.score(engine, some)[0], texts))
    assert np.abs(np.array(scores) - np.array(expected)).max() < 1e-5


@pytest.mark.parametrize("threads", [1, 2])
def test_scores_do_not_depend_on_the_number_of_threads(threads: int, model_folder: Path, onnx_folder: Path) -> None:
    encoder = TextEncoder.load(model_folder)
    bounded = engines.load("openvino-fp32", onnx_folder, encoder, threads=threads)
    free = engines.load("openvino-fp32", onnx_folder, encoder)
    texts = ["lake and storm", "balloon"]
    assert np.abs(engines.score(bounded, texts)[0] - engines.score(free, texts)[0]).max() < 1e-5


def test_the_error_of_an_unknown_engine_lists_the_engines(model_folder: Path) -> None:
    with pytest.raises(ModelError, match="there is no engine 'tensorrt': choose from torch, openvino-fp32, openvino-int8"):
        engines.load("tensorrt", model_folder, TextEncoder.load(model_folder))


@pytest.mark.parametrize(("former", "name"), [("onnx", "openvino-fp32"), ("onnx-int8", "openvino-int8")])
def test_former_names_of_engines_are_read(
    former: str, name: str, model_folder: Path, onnx_folder: Path, tmp_path: Path
) -> None:
    assert engines.load(former, onnx_folder, TextEncoder.load(model_folder)).name == name
    assert engines.suited(former) == name
    content = json.loads((onnx_folder / "export.json").read_text())
    (tmp_path / "export.json").write_text(json.dumps({former: content[name]}))
    assert read_exports(tmp_path).keys() == {name}
    labels, probabilities = np.ones((1, 1), bool), np.ones((1, 1), np.float32)
    Predictions(("joy",), ["a"], labels, probabilities, "test", former, "d").write(tmp_path / FILE)
    assert Predictions.read(tmp_path / FILE).engine == name


@pytest.mark.parametrize(
    "change", [damage.cut, lambda path: path.write_bytes(b""), Path.unlink], ids=["cut", "empty", "missing"]
)
@pytest.mark.parametrize("name", engine_names.FILES)
def test_a_damaged_graph_is_a_named_error(
    name: str, change: Callable[[Path], object], model_folder: Path, onnx_folder: Path, tmp_path: Path
) -> None:
    shutil.copytree(onnx_folder, tmp_path / "onnx")
    change(tmp_path / "onnx" / engine_names.FILES[name])
    with pytest.raises(ModelError, match=rf"{engine_names.FILES[name]} is missing or damaged: export the model again"):
        engines.load(name, tmp_path / "onnx", TextEncoder.load(model_folder))
