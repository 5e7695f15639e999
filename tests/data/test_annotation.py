"""Texts for a labelling tool: which come first, the formats of Label Studio and Argilla, and the exports of both."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from goemotions.cli.main import commands
from goemotions.data.annotation import read_export
from goemotions.data.feedback import from_feedback
from goemotions.data.ranking import choose, compare, uncertainty
from goemotions.data.request_log import Labels, LogReader
from goemotions.errors import DataError
from goemotions.metrics.thresholds import Thresholds
from goemotions.prediction.files import score_file
from goemotions.prediction.predictor import Predictor
from tests.support.request_logs import answer, feedback, write

LABELS = Labels(("joy", "anger", 'so "so" & <co>'), (0.5, 0.1, 0.5))
USER = "7f8a2a52-6f6c-4c0e-9df5-1c1f7d3f0f10"


def logged(folder: Path, answers: list[dict[str, Any]], *given: dict[str, Any]) -> LogReader:
    write(folder, LABELS, answers, given)
    return LogReader(str(folder), "goemotions")


def answers() -> list[dict[str, Any]]:
    """From the most certain to the least: the anger of the last one is at its threshold, 0.1."""
    return [
        answer("certain-1", "surely", {"joy": 0.99, "anger": 0.0001}, LABELS),
        answer("middling", "perhaps", {"joy": 0.8, "anger": 0.01}, LABELS),
        answer("uncertain", "who can say", {"joy": 0.97, "anger": 0.1}, LABELS),
    ]


def test_a_score_at_its_threshold_is_the_most_uncertain_one() -> None:
    thresholds = Thresholds("", (0.5, 0.1))
    scores = np.array([[0.5, 0.0], [0.0, 0.1], [0.9, 0.01], [1.0, 0.0]], dtype=np.float32)
    for by in ("margin", "entropy"):
        first, second, third, last = uncertainty(scores, thresholds, by)
        assert first == pytest.approx(second, abs=1e-5)
        assert 1 >= first > third > last >= 0
    assert uncertainty(scores, thresholds, "margin")[0] == pytest.approx(1)
    assert uncertainty(scores, thresholds, "entropy")[0] == pytest.approx(0.5, abs=1e-5)


@pytest.mark.parametrize("by", ["margin", "entropy"])
def test_of_one_label_per_text_the_best_is_chosen_and_close_rivals_are_uncertain(tmp_path: Path, by: str) -> None:
    """A version of single-label data: it has no thresholds, and chooses the label with the highest score."""
    single = Labels(LABELS.names, (0.0, 0.0, 0.0), 1)
    scores = {"clear": {"joy": 0.9, "anger": 0.1}, "close": {"joy": 0.41, "anger": 0.4}, "unclear": {"anger": 0.6, "joy": 0.3}}
    write(tmp_path, single, [answer(name, name, one, single) for name, one in scores.items()])
    _, candidates = choose(LogReader(str(tmp_path), "goemotions"), 3, by)
    assert [(one.id, one.labels) for one in candidates] == [("close", ("joy",)), ("unclear", ("anger",)), ("clear", ("joy",))]


@pytest.mark.parametrize("by", ["margin", "entropy"])
def test_the_most_uncertain_texts_come_first_each_once_and_without_those_that_have_feedback(tmp_path: Path, by: str) -> None:
    again = answer("repeated", "Who can say?", {"joy": 0.97, "anger": 0.1}, LABELS)
    known = answer("labelled", "known", {"anger": 0.1}, LABELS)
    known_again = answer("labelled-text", "Known!", {"anger": 0.1}, LABELS)
    reader = logged(tmp_path, [known_again, *answers(), again, known], feedback("labelled", "joy"))
    names, candidates = choose(reader, 2, by)
    assert names == LABELS.names
    assert [one.id for one in candidates] == ["uncertain", "middling"]
    assert candidates[0].labels == ("joy", "anger")


def test_texts_that_two_versions_label_differently_come_first(tmp_path: Path) -> None:
    other = [
        answer("certain-1", "surely", {"joy": 0.9, "anger": 0.0001}, LABELS, version="8"),
        answer("middling", "perhaps", {"joy": 0.2, "anger": 0.2}, LABELS, version="8"),
        answer("uncertain", "who can say", {"joy": 0.97}, LABELS, version="8"),
    ]
    _, candidates = choose(logged(tmp_path, [*answers(), *other]), 5, "disagreement")
    assert [one.id for one in candidates] == ["middling", "uncertain", "certain-1"]


def test_a_log_without_a_text_to_label_is_an_error(tmp_path: Path) -> None:
    """A folder of no tasks would be imported as if there was nothing to do."""
    blank = answer("blank", " ", {"joy": 0.5}, LABELS)
    reader = logged(tmp_path, [*answers()[:1], blank], feedback("certain-1", "joy"))
    assert choose(reader, 10)[1] == []
    arguments = ["data", "to-label", "--log", tmp_path, "--format", "argilla", "--output", tmp_path / "to-label"]
    with pytest.raises(DataError, match="there is no text to label: no answers are of that time, or all of them have feedback"):
        CliRunner().invoke(commands, list(map(str, arguments)), catch_exceptions=False)
    assert not (tmp_path / "to-label").exists()


def test_disagreement_needs_two_versions(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no request that two versions answered"):
        choose(logged(tmp_path, answers()), 5, "disagreement")


@pytest.mark.parametrize("ending", [".parquet", ".csv"])
def test_two_outputs_of_batch_scoring_are_compared(tmp_path: Path, predictor: Predictor, ending: str) -> None:
    """The second bundle has other thresholds for two texts."""
    texts = ["we saw the lake", "an old balloon", "under the storm", "quiet again"]
    (tmp_path / "in.csv").write_text("body\n" + "".join(f"{text}\n" for text in texts) + '""\n')
    outputs = [str(tmp_path / f"{number}{ending}") for number in range(2)]
    changed = Thresholds("of a test", tuple(1.1 - value for value in predictor.bundle.thresholds.values))
    second = Predictor(dataclasses.replace(predictor.bundle, thresholds=changed), predictor.engine)
    for one, output in zip((predictor, second), outputs, strict=True):
        score_file(one, tmp_path / "in.csv", Path(output), "body")
    names, candidates = compare(outputs, 3, "body")
    assert names == predictor.bundle.taxonomy.names
    first, again = (one.predict(texts) for one in (predictor, second))
    differences = {
        text: len(set(one["labels"]) ^ set(other["labels"])) for text, one, other in zip(texts, first, again, strict=True)
    }
    assert differences[candidates[0].text] == max(differences.values()) > 0
    assert [differences[one.text] for one in candidates] == sorted(differences.values(), reverse=True)[:3]
    with pytest.raises(DataError, match="have no text in common"):
        compare([outputs[0], outputs[0]], 3, "body")


def to_label(folder: Path, tool: str) -> Path:
    logged(folder / "log", answers())
    arguments = [
        "data",
        "to-label",
        "--log",
        str(folder / "log"),
        "--output",
        str(folder / tool),
        "--format",
        tool,
        "--rows",
        "2",
    ]
    ended = CliRunner().invoke(commands, arguments)
    assert ended.exit_code == 0, ended.output
    return folder / tool


def test_label_studio_gets_tasks_with_predictions_and_a_configuration(tmp_path: Path) -> None:
    folder = to_label(tmp_path, "label-studio")
    view = ElementTree.parse(folder / "labels.xml").getroot()
    text, choices = view.find("Text"), view.find("Choices")
    assert text is not None
    assert choices is not None
    assert (text.get("name"), text.get("value"), choices.get("toName"), choices.get("choice")) == (
        "text",
        "$text",
        "text",
        "multiple",
    )
    assert tuple(one.get("value") for one in choices) == LABELS.names
    first, second = json.loads((folder / "tasks.json").read_text())
    assert first["data"] == {"text": "who can say", "answer_id": "uncertain", "answer_index": 0, "version": "7", "rank": 1}
    (prediction,) = first["predictions"]
    assert prediction["model_version"] == "7"
    assert prediction["score"] < second["predictions"][0]["score"]
    (result,) = prediction["result"]
    assert {name: result[name] for name in ("from_name", "to_name", "type", "value")} == {
        "from_name": choices.get("name"),
        "to_name": text.get("name"),
        "type": "choices",
        "value": {"choices": ["joy", "anger"]},
    }


def test_argilla_gets_a_folder_of_its_own_layout(tmp_path: Path) -> None:
    folder = to_label(tmp_path, "argilla")
    settings = json.loads((folder / ".argilla" / "settings.json").read_text())
    (question,), (field,) = settings["questions"], settings["fields"]
    assert (question["settings"]["type"], field["settings"]["type"]) == ("multi_label_selection", "text")
    assert [one["value"] for one in question["settings"]["options"]] == list(LABELS.names)
    assert json.loads((folder / ".argilla" / "dataset.json").read_text())["name"]
    first, _ = json.loads((folder / "records.json").read_text())
    assert (first["id"], first["fields"]) == ("uncertain:0", {field["name"]: "who can say"})
    assert first["suggestions"] == {question["name"]: {"value": ["joy", "anger"], "score": [0.97, 0.1], "agent": "7"}}
    assert set(first["metadata"]) == {one["name"] for one in settings["metadata"]}


def label_studio(folder: Path) -> Path:
    """An export as JSON: one task labelled by two annotators, one of which skipped it."""
    tasks = json.loads((to_label(folder, "label-studio") / "tasks.json").read_text())
    result = {**tasks[0]["predictions"][0]["result"][0], "origin": "manual", "value": {"choices": ["joy"]}}
    moment = "2026-02-01T10:00:00.123456Z"
    tasks[0] |= {
        "id": 1,
        "annotations": [
            {
                "id": 1,
                "result": [result],
                "was_cancelled": False,
                "created_at": moment,
                "updated_at": moment,
                "completed_by": 1,
            },
            {"id": 2, "result": [], "was_cancelled": True, "created_at": moment, "updated_at": moment, "completed_by": 2},
        ],
    }
    tasks[1] |= {"id": 2, "annotations": []}
    (folder / "export.json").write_text(json.dumps(tasks))
    return folder / "export.json"


def label_studio_min(folder: Path) -> Path:
    """The same as JSON-MIN, where one label is a text and several are an object."""
    tasks = json.loads((to_label(folder, "label-studio") / "tasks.json").read_text())
    about = {"id": 1, "annotator": 1, "annotation_id": 1, "updated_at": "2026-02-01T10:00:00.123456Z", "lead_time": 2.5}
    (folder / "export.json").write_text(json.dumps([{**tasks[0]["data"], **about, "labels": "joy"}]))
    return folder / "export.json"


def argilla(folder: Path) -> Path:
    """The folder of ``to_disk`` of version 2.8; the response of the second record is a draft, which only its record shows."""
    exported = to_label(folder, "argilla")
    records = json.loads((exported / "records.json").read_text())
    for record, status in zip(records, ("completed", "pending"), strict=True):
        record |= {"responses": {"labels": [{"value": ["joy"], "user_id": USER}]}, "status": status, "_server_id": USER}
    (exported / "records.json").write_text(json.dumps(records))
    return exported


def argilla_flat(folder: Path) -> Path:
    """What ``records.to_datasets().to_parquet`` writes; one response is a draft."""
    first, second = json.loads((to_label(folder, "argilla") / "records.json").read_text())
    columns = {
        "id": [first["id"], second["id"]],
        "text": [first["fields"]["text"], second["fields"]["text"]],
        "labels.suggestion": [["joy", "anger"], ["joy"]],
        "labels.suggestion.agent": ["7", "7"],
        "labels.responses": [[["joy"], ["anger"]], None],
        "labels.responses.users": [[USER, USER], None],
        "labels.responses.status": [["submitted", "draft"], None],
    }
    pq.write_table(pa.table(columns), folder / "export.parquet")
    return folder / "export.parquet"


@pytest.mark.parametrize("export", [label_studio, label_studio_min, argilla, argilla_flat])
def test_exports_are_read_back_as_feedback(tmp_path: Path, export: Callable[[Path], Path]) -> None:
    exported = export(tmp_path)
    (one,) = read_export(exported)
    assert (one.id, one.position, one.version, one.text, one.labels) == ("uncertain", 0, "7", "who can say", ("joy",))
    counts = from_feedback(tmp_path / "out", LogReader(str(tmp_path / "log"), "goemotions"), labelled=[exported])
    assert (counts.exported, counts.rows, counts.versions) == (1, 1, {"7": 1})
    (row,) = pq.read_table(tmp_path / "out" / "train.parquet").to_pylist()
    assert (row["text"], row["labels"]) == ("who can say", [0])


@pytest.mark.parametrize(
    "content", ["{", "[1]", '{"text": "a"}', '[{"data": {}, "annotations": [{}]}]', '[{"fields": {"text": "a"}}]']
)
def test_another_file_is_an_error(tmp_path: Path, content: str) -> None:
    (tmp_path / "export.json").write_text(content)
    with pytest.raises(DataError, match=r"export\.json(, (line|item) 1: not| is no export of Label Studio or Argilla)"):
        list(read_export(tmp_path / "export.json"))


CHOSEN = {"type": "choices", "from_name": "labels", "value": {"choices": "joy"}}


@pytest.mark.parametrize(
    ("row", "labels"),
    [
        ({"id": "a:0", "fields": {"text": "a"}, "responses": {"labels": [{"value": "joy"}]}, "suggestions": {}}, ["joy"]),
        ({"data": {"text": "a"}, "annotations": [{"result": [CHOSEN]}]}, ["joy"]),
        ({"text": "a", "annotation_id": 3, "annotator": 1}, []),
        ({"text": "a", "labels": "", "annotation_id": 3}, []),
    ],
    ids=["one label in Argilla", "one label in Label Studio", "no choice in JSON-MIN", "an empty choice"],
)
def test_a_question_with_one_label_or_without_an_answer_is_read(tmp_path: Path, row: dict[str, Any], labels: list[str]) -> None:
    (tmp_path / "export.json").write_text(json.dumps([row]))
    assert [name for one in read_export(tmp_path / "export.json") for name in one.labels] == labels


def test_a_position_without_end_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "export.jsonl").write_text('{"id": 1, "text": "a", "labels": ["joy"], "answer_index": 1e999}\n')
    with pytest.raises(DataError, match=r"export\.jsonl is no export of Label Studio or Argilla"):
        list(read_export(tmp_path / "export.jsonl"))


@pytest.mark.parametrize(
    "changed",
    [
        *({"text": text} for text in (5, None, ["a"], "a \ud800")),
        *({"labels": labels} for labels in ([["joy"]], [1], [None])),
        *({"answer_index": position} for position in (2**63, -1)),
        {"updated_at": "0001-01-01T00:00:00+23:00"},
    ],
    ids=ascii,
)
def test_a_value_of_another_kind_is_an_error_before_it_is_joined(tmp_path: Path, changed: dict[str, Any]) -> None:
    row = {"id": 1, "text": "a", "labels": ["joy"], "answer_index": 0, "updated_at": "2026-02-01T10:00:00Z"}
    (tmp_path / "export.jsonl").write_text(json.dumps(row) + "\n")
    assert [one.text for one in read_export(tmp_path / "export.jsonl")] == ["a"]
    (tmp_path / "export.jsonl").write_text(json.dumps(row | changed) + "\n")
    with pytest.raises(DataError, match=r"export\.jsonl"):
        list(read_export(tmp_path / "export.jsonl"))
