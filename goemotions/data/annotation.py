"""Texts for annotators in the formats of Label Studio and Argilla, and what these export.

Argilla's is the folder of ``Dataset.from_disk`` and ``to_disk`` (version 2). Label Studio's are tasks with predictions and, of its
exports, JSON and JSON-MIN.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from goemotions.data import tables, text_files
from goemotions.data.layout import LABEL_NAMES
from goemotions.data.ranking import Candidate
from goemotions.errors import DataError

ARGILLA, LABEL_STUDIO = "argilla", "label-studio"
TASKS, CONFIG, RECORDS = "tasks.json", "labels.xml", "records.json"
FIELD, QUESTION = "text", "labels"
# The status of a record in Argilla that lacks submitted responses.
PENDING = "pending"


@dataclass(frozen=True)
class Labelled:
    """A text with the labels of an annotator, and what was predicted for it; the time in seconds since 1970."""

    id: str
    position: int
    version: str
    text: str
    time: float
    labels: tuple[str, ...]
    predicted: tuple[str, ...]


def write(output: Path, tool: str, names: Sequence[str], candidates: Sequence[Candidate]) -> None:
    """Writes the candidates in the format of a tool, into a new folder.

    Raises:
        DataError: there are no candidates, or the folder is not empty.
    """
    if not candidates:
        raise DataError("there is no text to label: no answers are of that time, or all of them have feedback")
    if output.exists() and any(output.iterdir()):
        raise DataError(f"{output} is not empty: give another folder")
    output.mkdir(parents=True, exist_ok=True)
    (output / LABEL_NAMES).write_text("".join(f"{name}\n" for name in names), encoding="utf-8")
    if tool == LABEL_STUDIO:
        (output / CONFIG).write_text(_config(names), encoding="utf-8")
        _dump(output / TASKS, [_task(one, rank) for rank, one in enumerate(candidates, start=1)])
        return
    _dump(output / ".argilla" / "settings.json", _settings(names))
    _dump(
        output / ".argilla" / "dataset.json", {"name": "goemotions-to-label", "status": "draft", "allow_extra_metadata": False}
    )
    _dump(output / RECORDS, [_record(one, rank) for rank, one in enumerate(candidates, start=1)])


def _dump(path: Path, content: Any) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content, ensure_ascii=False, indent=1), encoding="utf-8")


def _config(names: Sequence[str]) -> str:
    view = ElementTree.Element("View")
    ElementTree.SubElement(view, "Text", name=FIELD, value=f"${FIELD}")
    choices = ElementTree.SubElement(view, "Choices", name=QUESTION, toName=FIELD, choice="multiple", showInLine="true")
    for name in names:
        ElementTree.SubElement(choices, "Choice", value=name)
    ElementTree.indent(view)
    return ElementTree.tostring(view, encoding="unicode") + "\n"


def _task(one: Candidate, rank: int) -> dict[str, Any]:
    data = {"text": one.text, "answer_id": one.id, "answer_index": one.position, "version": one.version, "rank": rank}
    choices = {"from_name": QUESTION, "to_name": FIELD, "type": "choices", "value": {"choices": list(one.labels)}}
    # Label Studio shows the tasks with the lowest score first. A prediction without a label has no result.
    prediction = {"model_version": one.version, "score": round(1 - one.worth, 4), "result": [{"id": f"r{rank}", **choices}]}
    return {"data": data, "predictions": [prediction] if one.labels else []}


def _settings(names: Sequence[str]) -> dict[str, Any]:
    options = [{"value": name, "text": name, "description": None} for name in names]
    question = {"type": "multi_label_selection", "options": options, "options_order": "suggestion"}
    kinds = {"version": "terms", "rank": "integer", "worth": "float"}
    return {
        "guidelines": None,
        "allow_extra_metadata": False,
        "fields": [{"name": FIELD, "title": "Text", "required": True, "settings": {"type": "text", "use_markdown": False}}],
        "questions": [{"name": QUESTION, "title": "Labels", "description": None, "required": True, "settings": question}],
        "metadata": [
            {"name": name, "title": name, "type": kind, "visible_for_annotators": True, "settings": {"type": kind}}
            for name, kind in kinds.items()
        ],
        "vectors": [],
    }


def _record(one: Candidate, rank: int) -> dict[str, Any]:
    suggestion = {"value": list(one.labels), "score": [one.scores[name] for name in one.labels], "agent": one.version}
    return {
        "id": f"{one.id}:{one.position}",
        "fields": {FIELD: one.text},
        "metadata": {"version": one.version, "rank": rank, "worth": one.worth},
        "suggestions": {QUESTION: suggestion} if one.labels else {},
        "responses": {},
        "vectors": {},
    }


def read_export(path: Path) -> Iterator[Labelled]:
    """The labels in an export of Label Studio (JSON, JSON-MIN) or of Argilla (the folder of ``to_disk``, or its records as JSON, JSON
    Lines or Parquet), one per annotator and text. Skipped tasks, drafts and, of ``to_disk``, incomplete records are left out.

    Raises:
        DataError: the file is none of these, or too large.
    """
    file = path / RECORDS if path.is_dir() else path
    try:
        for number, row in enumerate(_rows(file)):
            yield from map(_checked, _read(row, number, file.stat().st_mtime))
    except (KeyError, TypeError, ValueError, OverflowError, AttributeError) as error:
        raise DataError(f"{file} is no export of Label Studio or Argilla: export JSON there, or use Dataset.to_disk") from error


def _checked(one: Labelled) -> Labelled:
    """Raises ValueError or OverflowError if a value is of another type, or cannot be stored."""
    texts = [one.text, one.id, one.version, *one.labels, *one.predicted]
    if not all(isinstance(text, str) for text in texts) or not 0 <= one.position < 2**31:
        raise ValueError("a text or a label is no text, or a position is none")
    # Half of a surrogate pair cannot be encoded.
    "".join(texts).encode()
    datetime.fromtimestamp(one.time, UTC)
    return one


def _rows(path: Path) -> Iterable[Any]:
    if text_files.split_name(path.name)[1] in tables.JSON:
        return (row for _, row in tables.json_objects(path.name, lambda: path.open("rb")))
    table = tables.open_path(path)
    return (dict(zip(table.columns, cells, strict=True)) for _, cells in table.rows(table.columns))


def _read(row: Mapping[str, Any], number: int, now: float) -> Iterator[Labelled]:
    if "data" in row:
        return _label_studio(row, now)
    if "fields" in row:
        # This form has no status per response: of a record that is pending, they are drafts, discarded, or not yet enough.
        given = () if row.get("status") == PENDING else row["responses"].get(QUESTION, ())
        return _argilla(row, row["fields"][FIELD], given, row["suggestions"].get(QUESTION) or {}, now)
    if f"{QUESTION}.responses" in row:
        values, states = row[f"{QUESTION}.responses"] or (), row.get(f"{QUESTION}.responses.status")
        given = [{"value": value, "status": states[at] if states else None} for at, value in enumerate(values)]
        suggested = {"value": row.get(f"{QUESTION}.suggestion"), "agent": row.get(f"{QUESTION}.suggestion.agent")}
        return _argilla(row, row[FIELD], given, suggested, now)
    return _label_studio_min(row, number, now)


def _label_studio(task: Mapping[str, Any], now: float) -> Iterator[Labelled]:
    data = task["data"]
    predicted = [_choices(one["result"]) for one in task.get("predictions") or () if isinstance(one, dict)]
    for annotation in task.get("annotations") or ():
        if labels := () if annotation.get("was_cancelled") else _choices(annotation["result"]):
            time = _time(annotation.get("updated_at") or annotation.get("created_at"), now)
            about = (
                str(data.get("answer_id") or f"task-{task.get('id')}"),
                int(data.get("answer_index") or 0),
                str(data.get("version") or ""),
            )
            yield Labelled(*about, data[FIELD], time, labels, predicted[0] if predicted else ())


def _choices(result: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    return tuple(
        name
        for one in result
        if one["type"] == "choices" and one["from_name"] == QUESTION
        for name in _names(one["value"]["choices"])
    )


def _names(value: Any) -> tuple[str, ...]:
    """The names of labels in a value, which is one name if the question allows a single label."""
    return (value,) if value and isinstance(value, str) else tuple(value or ())


def _label_studio_min(row: Mapping[str, Any], number: int, now: float) -> Iterator[Labelled]:
    # Annotations without a choice have no column of the question.
    given = row.get(QUESTION) if "annotation_id" in row else row[QUESTION]
    labels = _names(given["choices"] if isinstance(given, dict) else given)
    about = (
        str(row.get("answer_id") or f"task-{row.get('id', number)}"),
        int(row.get("answer_index") or 0),
        str(row.get("version") or ""),
    )
    if labels:
        yield Labelled(*about, row[FIELD], _time(row.get("updated_at"), now), labels, ())


def _argilla(
    record: Mapping[str, Any], text: str, responses: Sequence[Mapping[str, Any]], suggestion: Mapping[str, Any], now: float
) -> Iterator[Labelled]:
    name, _, position = str(record["id"]).rpartition(":")
    about = (name, int(position)) if name and position.isdecimal() else (str(record["id"]), 0)
    for response in responses:
        if response.get("value") and response.get("status") in (None, "submitted"):
            labels, predicted = _names(response["value"]), _names(suggestion.get("value"))
            yield Labelled(*about, str(suggestion.get("agent") or ""), text, now, labels, predicted)


def _time(text: Any, now: float) -> float:
    if not text:
        return now
    moment = datetime.fromisoformat(str(text))
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
