"""Explanations: the chosen labels with the contribution of each word, the same on every engine, in Python and on the command line."""

from __future__ import annotations

import json
from pathlib import Path

import click.testing
import pytest

from goemotions.cli import main
from goemotions.models import engines
from goemotions.prediction import explanation
from goemotions.prediction.predictor import Options, Predictor
from tests.support.bundles import assemble

TEXTS = ["we saw the old lake near the green balloon again today, they left", "storm", ""]


def test_the_chosen_labels_are_explained_and_the_word_that_determines_a_label_has_most(predictor: Predictor) -> None:
    explained = predictor.explain(TEXTS)
    for text, one, prediction in zip(TEXTS, explained, predictor.predict(TEXTS), strict=True):
        assert list(one["contributions"]) == prediction["labels"]
        assert [text[word["start"] : word["end"]] for word in one["words"]] == [word["text"] for word in one["words"]]
        assert all(len(values) == len(one["words"]) for values in one["contributions"].values())
    (calm,) = predictor.explain(["two small lake"], Options(threshold=0.0))
    assert max(zip(calm["contributions"]["calm"], ["two", "small", "lake"], strict=True))[1] == "lake"


def test_both_engines_explain_alike(predictor: Predictor, candidate: Path, tmp_path: Path) -> None:
    assemble(tmp_path / "gpu", candidate, "gpu")
    torch = Predictor.load(tmp_path / "gpu", engine="torch")
    options = Options(threshold=0.0)
    for one, other in zip(predictor.explain(TEXTS, options), torch.explain(TEXTS, options), strict=True):
        assert one["words"] == other["words"]
        for label, values in one["contributions"].items():
            assert values == pytest.approx(other["contributions"][label], abs=4 * engines.INT8_BOUND)


def test_the_predictions_beside_explanations_are_those_without(predictor: Predictor) -> None:
    predictions, _ = explanation.explain(predictor, TEXTS, Options(all_scores=True))
    for one, other in zip(predictions, predictor.predict(TEXTS, Options(all_scores=True)), strict=True):
        assert one["scores"] == pytest.approx(other["scores"], abs=engines.INT8_BOUND)


def test_the_command_line_prints_labels_and_contributions(whole: Path) -> None:
    command = ["predict", "--bundle", str(whole), "--explain", "--removals", "2", "the lake and a storm"]
    result = click.testing.CliRunner().invoke(main.commands, command)
    assert result.exit_code == 0, result.output
    line = json.loads(result.output.splitlines()[-1])
    assert set(line["contributions"]) == set(line["labels"])
    assert [word["text"] for word in line["words"]] == ["the", "lake", "and", "a", "storm"]
    assert {word["group"] for word in line["words"]} == {0, 1}
