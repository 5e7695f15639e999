"""Feedback and annotators' labels as a source: joined, one row per text, train alone, with its provenance."""

from __future__ import annotations

import csv
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from goemotions.cli.main import commands
from goemotions.data.dataset import ingest, load_dataset
from goemotions.data.feedback import CONFLICTS_FILE, INFO_FILE, Counts, from_feedback
from goemotions.data.ranking import choose
from goemotions.data.request_log import Labels, LogReader
from goemotions.errors import DataError
from tests.conftest import CUES
from tests.support.request_logs import NOON, answer, feedback, write

LABELS = Labels(tuple(CUES), (0.5,) * len(CUES))


def logged(folder: Path, answers: list[dict[str, Any]], given: list[dict[str, Any]], **hours: Any) -> LogReader:
    write(folder, LABELS, answers, given)
    return LogReader(str(folder), "goemotions", **hours)


def said(request_id: str, text: str, **columns: Any) -> dict[str, Any]:
    return answer(request_id, text, {"glee": 0.9}, LABELS, **columns)


def rows(folder: Path, split: str = "train") -> dict[str, set[str]]:
    """The texts of a source as ingest reads them, with the names of their labels."""
    ingest(str(folder), folder / "ingested", max_quarantined=0)
    table = load_dataset(folder / "ingested")[0][split]
    names = table.features["labels"].feature.names
    return {row["text"]: {names[label] for label in row["labels"]} for row in table}


def test_feedback_is_joined_with_its_answer_and_ingest_takes_it(tmp_path: Path, source: Path) -> None:
    answers = [
        said("one", "a kite"),
        said("two", "two kites"),
        said("two", "three kites", index=1),
        said("other", "no feedback"),
    ]
    given = [feedback("one", "calm", "glee"), feedback("two", "pity", index=1)]
    counts = from_feedback(tmp_path / "out", logged(tmp_path, answers, given), append_to=str(source))
    train = rows(tmp_path / "out")
    assert train["a kite"] == {"calm", "glee"}
    assert train["three kites"] == {"pity"}
    assert not {"two kites", "no feedback"} & set(train)
    assert (counts.rows, counts.without_answer, counts.versions) == (2, 0, {"7": 2})


def test_the_other_splits_and_the_rows_of_train_stay_as_they_are(tmp_path: Path, source: Path, dataset: Path) -> None:
    before, _ = load_dataset(dataset)
    held_out = before["test"][0]["text"]
    answers = [said("one", "a kite"), said("leak", f"  {held_out.upper()}!")]
    reader = logged(tmp_path, answers, [feedback("one", "calm"), feedback("leak", "calm")])
    for number, append_to in enumerate((str(source), str(dataset))):
        out = tmp_path / str(number)
        counts = from_feedback(out, reader, append_to=append_to)
        ingest(str(out), out / "ingested")
        after, info = load_dataset(out / "ingested")
        assert counts.held_out == 1
        assert info["drawn"]["splits"] == []
        for split in ("validation", "test"):
            assert after[split].to_list() == before[split].to_list()
        assert after["train"].to_list()[:-1] == before["train"].to_list()
        assert after["train"][-1]["text"] == "a kite"


def test_a_source_without_other_splits_gets_them_from_its_own_rows(tmp_path: Path) -> None:
    (tmp_path / "mine.csv").write_text(
        "text,labels\n" + "".join(f"text {n},{'glee' if n % 2 else 'calm'}\n" for n in range(40))
    )
    labels = Labels(("calm", "glee"), (0.5, 0.5))
    write(
        tmp_path / "log",
        labels,
        [answer(f"id-{n}", f"fed back {n}", {}, labels) for n in range(40)],
        [feedback(f"id-{n}", "glee") for n in range(40)],
    )
    from_feedback(tmp_path / "out", LogReader(str(tmp_path / "log"), "goemotions"), append_to=str(tmp_path / "mine.csv"))
    for split in ("validation", "test"):
        assert all(text.startswith("text") for text in rows(tmp_path / "out", split))


def test_feedback_of_the_same_log_can_be_appended_again(tmp_path: Path, source: Path) -> None:
    """Week by week, to what was written before: one row per text, with its newest labels."""
    answers = [said("one", "a kite"), said("two", "a boat")]
    reader = logged(tmp_path / "first", answers, [feedback("one", "calm"), feedback("two", "pity")])
    from_feedback(tmp_path / "before", reader, append_to=str(source))
    more = [feedback("one", "glee", time=NOON + 900), feedback("three", "calm", time=NOON + 900)]
    reader = logged(tmp_path / "second", [said("one", "a kite"), said("three", "A  kite!", time=NOON + 800)], more)
    counts = from_feedback(tmp_path / "after", reader, append_to=str(tmp_path / "before"))
    ingest(str(tmp_path / "after"), tmp_path / "ingested", max_quarantined=0)
    train = load_dataset(tmp_path / "ingested")[0]["train"]
    names = train.features["labels"].feature.names
    added = {row["text"]: [names[label] for label in row["labels"]] for row in train if row["id"].startswith("feedback-")}
    assert added == {"a boat": ["pity"], "A  kite!": ["calm"]}
    assert (counts.replaced, len(train)) == (1, 242)


def test_labels_keep_their_names_whatever_they_are(tmp_path: Path) -> None:
    names = ("trailing ", " leading", "two words", "a|b", "a,b", "x/y", "line\u2028end", "喜び")
    (tmp_path / "mine").mkdir()
    written = {"text": [f"text {n}" for n in range(80)], "labels": [[names[n % len(names)]] for n in range(80)]}
    pq.write_table(pa.table(written), tmp_path / "mine" / "train.parquet")
    labels = Labels(names, (0.5,) * len(names))
    write(tmp_path / "log", labels, [answer("one", "a kite", {}, labels)], [feedback("one", *names)])
    from_feedback(tmp_path / "out", LogReader(str(tmp_path / "log"), "goemotions"), append_to=str(tmp_path / "mine"))
    assert rows(tmp_path / "out")["a kite"] == set(names)


@pytest.mark.fault("request-log-false-feedback")
def test_feedback_without_an_answer_and_ids_of_several_texts_are_left_out_and_counted(tmp_path: Path, source: Path) -> None:
    answers = [
        said("good", "a kite"),
        said("twice", "one text"),
        said("twice", "another text"),
        said("again", "same"),
        said("again", "same"),
    ]
    given = [
        feedback("good", "calm"),
        feedback("twice", "calm"),
        feedback("missing", "calm"),
        feedback("again", "pity"),
        feedback("good", "calm", index=5),
    ]
    counts = from_feedback(tmp_path / "out", logged(tmp_path, answers, given), append_to=str(source))
    assert (counts.feedback, counts.rows, counts.without_answer, counts.ambiguous) == (5, 2, 2, 1)
    assert {"a kite", "same"} <= set(rows(tmp_path / "out"))


@pytest.mark.fault("request-log-false-feedback")
@pytest.mark.parametrize(("policy", "chosen"), [("newest", {"pity"}), ("majority", {"calm"})])
def test_a_text_has_one_row_and_its_conflicts_are_listed(tmp_path: Path, source: Path, policy: str, chosen: set[str]) -> None:
    answers = [said(f"id-{number}", text) for number, text in enumerate(["A kite.", "a kite", "a  KITE!", "quiet"])]
    given = [
        feedback(f"id-{number}", label, time=NOON + number) for number, label in enumerate(["calm", "calm", "pity", "glee"])
    ]
    counts = from_feedback(tmp_path / "out", logged(tmp_path, answers, given), append_to=str(source), conflicts=policy)
    train = rows(tmp_path / "out")
    assert [labels for text, labels in train.items() if "kite" in text.lower()] == [chosen]
    assert (counts.texts, counts.conflicts, counts.rows, counts.as_predicted) == (2, 1, 2, 1)
    with (tmp_path / "out" / CONFLICTS_FILE).open(newline="") as file:
        listed = list(csv.DictReader(file))
    assert [(row["id"], row["labels"], row["chosen"] == "True") for row in listed] == [
        (f"feedback-id-{number}-0", label, {label} == chosen) for number, label in enumerate(["calm", "calm", "pity"])
    ]


@pytest.mark.fault("request-log-repeated-feedback")
def test_who_repeats_himself_counts_once(tmp_path: Path, source: Path) -> None:
    answers = [said(f"id-{number}", "a kite") for number in range(6)]
    given = [feedback("id-0", label, time=NOON + number) for number, label in enumerate(["pity", "glee", "pity", "pity"])]
    given += [feedback(f"id-{number}", "glee", user="user-0001", time=NOON + 10 + number) for number in (1, 2, 3)]
    given += [feedback(f"id-{number}", "calm", time=NOON - number) for number in (4, 5)]
    counts = from_feedback(tmp_path / "out", logged(tmp_path, answers, given), append_to=str(source), conflicts="majority")
    assert rows(tmp_path / "out")["a kite"] == {"calm"}
    assert (counts.feedback, counts.repeated, counts.rows, counts.conflicts) == (9, 5, 1, 1)


def test_a_user_who_corrects_himself_is_taken_at_his_last_word(tmp_path: Path, source: Path) -> None:
    given = [feedback("one", "pity", time=NOON + 9), feedback("one", "calm", time=NOON)]
    from_feedback(
        tmp_path / "out", logged(tmp_path, [said("one", "a kite")], given), append_to=str(source), conflicts="majority"
    )
    assert rows(tmp_path / "out")["a kite"] == {"pity"}


@pytest.mark.fault("request-log-false-feedback")
def test_a_label_outside_the_taxonomy_leaves_out_its_row_alone(tmp_path: Path, source: Path) -> None:
    answers = [said("one", "a kite"), said("two", "a boat")]
    reader = logged(tmp_path, answers, [feedback("one", "calm"), feedback("two", "calm", "joy of others")])
    export = tmp_path / "export.json"
    tasks = [{"id": n, "text": f"task {n}", "labels": label} for n, label in enumerate(["pity", "old name"])]
    export.write_text(json.dumps(tasks))
    counts = from_feedback(tmp_path / "out", reader, labelled=[export], append_to=str(source))
    train = rows(tmp_path / "out")
    assert (counts.rows, counts.unknown_labels) == (2, 2)
    assert train["a kite"] == {"calm"}
    assert train["task 0"] == {"pity"}
    assert not {"a boat", "task 1"} & set(train)
    with (tmp_path / "out" / "quarantine.csv").open(newline="") as file:
        listed = [(row["id"], row["reason"]) for row in csv.DictReader(file)]
    assert listed == [
        ("feedback-two-0", "the taxonomy has no label 'joy of others'"),
        ("feedback-task-1-0", "the taxonomy has no label 'old name'"),
    ]
    with pytest.raises(DataError, match=r"2 rows have labels .* \(such as 'joy of others' in"):
        from_feedback(tmp_path / "strict", reader, labelled=[export], append_to=str(source), max_quarantined=0.4)
    assert not (tmp_path / "strict").exists()


def test_a_log_of_a_server_without_users_is_read(tmp_path: Path, source: Path) -> None:
    write(tmp_path, LABELS, [said("one", "a kite")], [feedback("one", "calm")])
    (path,) = tmp_path.rglob("feedback-*.parquet")
    pq.write_table(pq.read_table(path).drop_columns("user"), path)
    assert from_feedback(tmp_path / "out", LogReader(str(tmp_path), "goemotions"), append_to=str(source)).rows == 1


def test_the_provenance_is_written_beside_the_rows(tmp_path: Path, source: Path) -> None:
    answers = [said("one", "a kite"), said("two", "a boat", version="8")]
    given = [feedback("one", "glee"), feedback("two", "calm", time=NOON + 7200)]
    from_feedback(tmp_path / "out", logged(tmp_path, answers, given), append_to=str(source))
    info = json.loads((tmp_path / "out" / INFO_FILE).read_text())
    assert info["versions"] == {"7": 1, "8": 1}
    assert (info["since"], info["until"]) == ("2026-01-31T12:01:00+00:00", "2026-01-31T14:00:00+00:00")
    assert (info["rows"], info["as_predicted"], info["append_to"]) == (2, 1, str(source))


def test_hours_limit_what_is_read(tmp_path: Path, source: Path) -> None:
    answers = [said("one", "a kite"), said("two", "a boat", time=NOON + 7200)]
    given = [feedback("one", "glee"), feedback("two", "calm", time=NOON + 7200)]
    reader = logged(tmp_path, answers, given, since=datetime(2026, 1, 31, 13, tzinfo=UTC))
    assert from_feedback(tmp_path / "out", reader, append_to=str(source)).rows == 1


def test_feedback_of_the_next_hours_finds_its_answer(tmp_path: Path, source: Path) -> None:
    """Week by week: neither the call for the hours of the answer nor that for those of the feedback would have both."""
    given = [feedback("one", "calm", time=NOON + 7200)]
    reader = logged(tmp_path, [said("one", "a kite")], given, since=datetime(2026, 1, 31, 13, tzinfo=UTC))
    counts = from_feedback(tmp_path / "out", reader, append_to=str(source))
    assert (counts.feedback, counts.without_answer, counts.rows) == (1, 0, 1)
    reader = LogReader(str(tmp_path), "goemotions", until=datetime(2026, 1, 31, 13, tzinfo=UTC))
    assert not choose(reader, 5)[1]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "there is no feedback to write: 0 in the log"),
        ([feedback("missing", "calm")], "1 in the log, of which 1 have no answer there"),
        ([feedback("one", "joy of others")], "1 have labels that the taxonomy does not have"),
    ],
)
def test_nothing_to_write_is_an_error_with_its_reasons_and_writes_nothing(
    tmp_path: Path, source: Path, given: list[dict[str, Any]], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        from_feedback(tmp_path / "out", logged(tmp_path, [said("one", "a kite")], given), append_to=str(source))
    assert not (tmp_path / "out").exists()


def test_texts_that_differ_in_an_emoji_or_a_vowel_sign_keep_their_own_labels(tmp_path: Path, source: Path) -> None:
    texts = {"one": "that game 😂", "two": "that game 😢", "three": "की", "four": "का", "five": "That game, 😢!"}
    given = {"one": "glee", "two": "pity", "three": "calm", "four": "glee", "five": "pity"}
    answers = [said(name, text, time=NOON + number) for number, (name, text) in enumerate(texts.items())]
    reader = logged(tmp_path, answers, [feedback(name, label) for name, label in given.items()])
    counts = from_feedback(tmp_path / "out", reader, append_to=str(source))
    assert (counts.texts, counts.conflicts) == (4, 0)
    labels = rows(tmp_path / "out")
    assert [labels[text] for text in list(texts.values())[:4]] == [{"glee"}, {"pity"}, {"calm"}, {"glee"}]


def test_versions_with_other_labels_are_refused(tmp_path: Path) -> None:
    write(tmp_path, LABELS, [said("one", "a kite")])
    write(tmp_path, Labels(("joy",), (0.5,)), [answer("two", "a kite", {}, Labels(("joy",), (0.5,)), version="8")])
    with pytest.raises(DataError, match="the versions 7 and 8 have other labels"):
        from_feedback(tmp_path / "out", LogReader(str(tmp_path), "goemotions"))


def test_a_long_log_is_read_in_little_memory(tmp_path: Path, source: Path) -> None:
    """More rows than a batch, in several files; what is joined is on disk."""
    answers = [said(f"id-{number}", f"kite {number}", time=NOON + number) for number in range(6000)]
    given = [feedback(f"id-{number}", "calm", time=NOON + 8000 + number) for number in range(0, 6000, 3)]
    counts: Counts = from_feedback(tmp_path / "out", logged(tmp_path, answers, given), append_to=str(source))
    assert counts.rows == 2000


def test_the_command_says_what_it_wrote(tmp_path: Path, source: Path) -> None:
    write(tmp_path / "log", LABELS, [said("one", "a kite")], [feedback("one", "glee"), feedback("one", "joy")])
    arguments = [
        "data",
        "from-feedback",
        "--log",
        str(tmp_path / "log"),
        "--append-to",
        str(source),
        "--output",
        str(tmp_path / "out"),
    ]
    ended = CliRunner().invoke(commands, [*arguments, "--since", "2026-01-31T12", "--until", "2026-02-01"])
    assert ended.exit_code == 0, ended.output
    assert "1 texts in train (1 of version 7; 1 with the labels that were predicted)" in ended.output
    assert "1 rows are left out, whose labels the taxonomy does not have: see quarantine.csv there" in ended.output
    ended = CliRunner().invoke(commands, [*arguments[:-1], str(tmp_path / "strict"), "--max-quarantined", "0"])
    assert "1 rows have labels that the taxonomy does not have" in str(ended.exception)
