"""Export: the files that it writes, and the scores of each graph compared with those of the model."""

import json
import logging
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from transformers.modeling_outputs import SequenceClassifierOutput

from goemotions.data.dataset import load_dataset
from goemotions.errors import ModelError
from goemotions.models import engine_names, engines, export, quantization
from goemotions.models.architectures import CLASSES
from goemotions.models.tokenizer import TextEncoder


@pytest.fixture(scope="module")
def texts(dataset: Path) -> list[str]:
    return load_dataset(dataset)[0]["test"]["text"][:]


@pytest.fixture(scope="module")
def probabilities(model_folder: Path, onnx_folder: Path, texts: list[str]) -> dict[str, np.ndarray]:
    """The scores of the test split, by engine."""
    encoder = TextEncoder.load(model_folder)
    folders = {"torch": model_folder, "openvino-fp32": onnx_folder, "openvino-int8": onnx_folder}
    return {name: engines.score(engines.load(name, folder, encoder), texts)[0] for name, folder in folders.items()}


def test_the_folder_has_two_graphs_and_the_records_of_export_and_usage(onnx_folder: Path) -> None:
    assert {path.name for path in onnx_folder.iterdir()} == {"model.onnx", "model.int8.onnx", "export.json", "usage.json"}


def test_the_export_records_match_the_files(onnx_folder: Path) -> None:
    records = json.loads((onnx_folder / "export.json").read_text())
    assert records.keys() == {"torch", "openvino-fp32", "openvino-int8"}
    for name, file in engine_names.FILES.items():
        assert records[name]["bytes"] == (onnx_folder / file).stat().st_size
        assert 0 <= records[name]["difference_mean"] <= records[name]["difference_max"] < 1
        assert 0 < records[name]["latency_ms_p50"] <= records[name]["latency_ms_p95"]
    assert (records["torch"]["latency_ms_p95"] is not None) == torch.cuda.is_available()


def test_the_float_graph_scores_like_the_model(probabilities: dict[str, np.ndarray]) -> None:
    assert np.abs(probabilities["openvino-fp32"] - probabilities["torch"]).max() < 1e-5


def test_the_int8_graph_scores_almost_like_the_model(probabilities: dict[str, np.ndarray]) -> None:
    difference = np.abs(probabilities["openvino-int8"] - probabilities["torch"])
    assert 0 < difference.mean() < 0.05


def test_the_int8_graph_computes_in_int8(onnx_folder: Path) -> None:
    operators = {
        name: {node.op_type for node in onnx.load(onnx_folder / file).graph.node} for name, file in engine_names.FILES.items()
    }
    assert "QuantizeLinear" in operators["openvino-int8"]
    assert "QuantizeLinear" not in operators["openvino-fp32"]


@pytest.mark.parametrize("file", engine_names.FILES.values())
def test_a_graph_takes_any_number_of_texts_and_tokens(file: str, onnx_folder: Path) -> None:
    graph = onnx.load(onnx_folder / file).graph
    shapes = {value.name: [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim] for value in graph.input}
    assert shapes == {"input_ids": ["texts", "tokens"], "attention_mask": ["texts", "tokens"]}
    assert [value.name for value in graph.output] == ["logits"]


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("tokens", [1, 2, 9, 128])
def test_the_float_graph_takes_every_length_the_model_was_trained_for(
    rows: int, tokens: int, model_folder: Path, onnx_folder: Path
) -> None:
    encoder = TextEncoder.load(model_folder)
    ids = np.random.default_rng(tokens).integers(4, 31, (rows, tokens))
    mask = np.ones_like(ids)
    outputs = [
        engines.load(name, folder, encoder).logits(ids, mask)
        for name, folder in (("torch", model_folder), ("openvino-fp32", onnx_folder))
    ]
    assert outputs[0].shape == (rows, 7)
    assert outputs[1] == pytest.approx(outputs[0], abs=1e-4)


def test_padding_changes_nothing_in_the_float_graph(model_folder: Path, onnx_folder: Path) -> None:
    engine = engines.load("openvino-fp32", onnx_folder, TextEncoder.load(model_folder))
    ids = np.array([[2, 5, 9, 3]])
    alone = engine.logits(ids, np.ones_like(ids))
    for filler in (0, 7, 30):
        padded = np.full((2, 60), filler)
        padded[0, :4] = ids
        mask = np.zeros_like(padded)
        mask[0, :4] = 1
        mask[1] = 1
        assert engine.logits(padded, mask)[:1] == pytest.approx(alone, abs=1e-5)


def test_the_same_model_exports_to_the_same_bytes_and_keeps_the_log_level(
    dataset: Path, model_folder: Path, onnx_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engines, "LATENCY_RUNS", 10)
    level = logging.getLogger().level
    export.export(dataset, model_folder, tmp_path)
    assert logging.getLogger().level == level
    for file in engine_names.FILES.values():
        assert (tmp_path / file).read_bytes() == (onnx_folder / file).read_bytes()


class Branching(CLASSES["bert-mean-pooled"]):  # type: ignore[misc]
    """A model whose scores depend on the number of texts, which a traced graph cannot express."""

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, **_: object) -> SequenceClassifierOutput:
        output = super().forward(input_ids, attention_mask)
        return output if len(input_ids) == 2 else SequenceClassifierOutput(logits=-output.logits)


def test_a_graph_whose_scores_differ_from_the_model_is_refused(
    dataset: Path, model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engines, "LATENCY_RUNS", 10)
    monkeypatch.setitem(CLASSES, "bert-mean-pooled", Branching)
    with pytest.raises(ModelError, match="the exported graph differs from the model by up to"):
        export.export(dataset, model_folder, tmp_path)
    assert not (tmp_path / "export.json").exists()


@pytest.mark.fault("export-killed")
def test_of_an_export_over_another_one_that_is_killed_nothing_of_the_other_is_left(
    dataset: Path, model_folder: Path, onnx_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise the steps that follow would take the graphs of two models for those of one."""
    output = Path(shutil.copytree(onnx_folder, tmp_path / "onnx"))

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(quantization, "write", killed)
    with pytest.raises(KeyboardInterrupt):
        export.export(dataset, model_folder, output)
    assert {path.name for path in output.iterdir()} == {"model.onnx", "usage.json"}
    with pytest.raises(ModelError, match=r"model.int8.onnx is missing or damaged"):
        engines.load("openvino-int8", output, TextEncoder.load(model_folder))


@pytest.mark.parametrize("missing", ["model.safetensors", "tokenizer.json"])
def test_a_damaged_model_is_refused(missing: str, dataset: Path, model_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(model_folder, tmp_path / "model")
    (tmp_path / "model" / missing).unlink()
    with pytest.raises(ModelError, match="damaged"):
        export.export(dataset, tmp_path / "model", tmp_path / "onnx")
    assert not (tmp_path / "onnx" / "export.json").exists()
