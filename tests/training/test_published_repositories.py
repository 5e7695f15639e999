"""Models of the hub's published repositories: downloaded, trained, exported, and read by the server's predictor."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import transformers

from goemotions.data.taxonomy import Taxonomy
from goemotions.evaluation import evaluate, tuning
from goemotions.models import engines, export, profiles
from goemotions.models.classifier import build_classifier
from goemotions.models.tokenizer import TextEncoder
from goemotions.prediction.predictor import Predictor
from goemotions.registry.bundle import ENGINES
from goemotions.training import trainer
from goemotions.training.options import TrainOptions
from tests.support import bundles
from tests.support.hub import serve, use_hub

NAMES = ["roberta-large", "distilbert"]


@pytest.mark.fault("pad-token-unnamed")
@pytest.mark.parametrize("profile", NAMES)
def test_a_published_repository_is_trained_from_the_hub(
    profile: str,
    dataset: Path,
    taxonomy: Taxonomy,
    weights: Callable[[str], str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    chosen = profiles.get(profile)
    tiny = build_classifier(chosen, taxonomy, weights=weights(profile))
    # Only the size differs from the published weights.
    encoder = dataclasses.replace(chosen.encoder, parameters=sum(parameter.numel() for parameter in tiny.parameters()))
    monkeypatch.setitem(profiles.PROFILES, profile, dataclasses.replace(chosen, encoder=encoder))
    with serve({encoder.base: Path(weights(profile))}) as (address, _):
        use_hub(address, tmp_path / "hub", monkeypatch)
        record = trainer.train(dataset, tmp_path / "model", profile, TrainOptions(epochs=1))
    assert record.weights == f"{encoder.base}@{encoder.revision}"
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "model")
    assert tokenizer.pad_token == transformers.AutoTokenizer.from_pretrained(weights(profile)).pad_token
    assert TextEncoder.load(tmp_path / "model").pad_id == tokenizer.pad_token_id


@pytest.mark.slow
@pytest.mark.fault("pad-token-unnamed")
@pytest.mark.parametrize("profile", NAMES)
def test_a_published_repository_becomes_bundles_that_are_served(
    profile: str, dataset: Path, weights: Callable[[str], str], tmp_path: Path
) -> None:
    trainer.train(dataset, tmp_path / "model", profile, TrainOptions(weights=weights(profile), epochs=1))
    export.export(dataset, tmp_path / "model", tmp_path / "onnx")
    for variant, engine in ENGINES.items():
        outputs = {split: tmp_path / variant / split for split in ("validation", "test")}
        evaluate.evaluate(dataset, tmp_path / "model", tmp_path / "onnx", engine, outputs)
        tuning.tune(outputs["validation"], tmp_path / variant / "thresholds")
    pad_id = transformers.AutoTokenizer.from_pretrained(weights(profile)).pad_token_id
    texts = ["the old lake", "", "a storm near the quiet harbour again today there", " Balloon"]
    for variant in ENGINES:
        bundles.assemble(tmp_path / f"bundle-{variant}", tmp_path, variant)
        served = Predictor.load(tmp_path / f"bundle-{variant}")
        assert served.bundle.encoder.pad_id == pad_id
        together, _ = engines.score(served.engine, texts)
        alone = [engines.score(served.engine, [text])[0][0] for text in texts]
        assert np.allclose(together, alone, atol=engines.INT8_BOUND)
