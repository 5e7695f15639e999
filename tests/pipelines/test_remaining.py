"""The estimate of the time that the trainings of a run still take."""

from pipelines.remaining import Remaining

EXECUTING, FINISHED = (
    "INFO - Executing task \x1b[96m'{}'\x1b[0m",
    "INFO - Task \x1b[96m'{}'\x1b[0m finished with status \x1b[92m{}\x1b[0m",
)


def test_the_rest_is_estimated_from_the_trainings_that_are_done() -> None:
    now = [0.0]
    given = {"models": ["minilm", "minilm-3l"], "teachers": ["minilm@1", "minilm@2"], "settings": {"minilm": {"epochs": 4}}}
    remaining = Remaining(given, lambda: now[0])
    assert remaining.read(EXECUTING.format("ingest")) == ""
    now[0] = 1000.0
    assert remaining.read(EXECUTING.format("teach")) == ""
    now[0] += 600.0
    # One epoch takes ten minutes: another teacher's, four, and two are left.
    expected = "1 of 4 trainings are done in 10 min; the others take about 1 h 10 min"
    assert remaining.read(FINISHED.format("teach", "SUCCESS")) == expected
    assert remaining.read(FINISHED.format("combine-teachers", "SUCCESS")) == ""
    assert remaining.read(FINISHED.format("train", "FAILURE")) == ""
    now[0] += 600.0
    assert remaining.read(FINISHED.format("teach", "SUCCESS")).endswith("the others take about 1 h 0 min")
    remaining.read(FINISHED.format("train", "SUCCESS"))
    now[0] += 3600.0
    assert remaining.read(FINISHED.format("train", "SUCCESS")) == "4 of 4 trainings are done in 1 h 20 min"


def test_the_own_teachers_of_a_profile_count() -> None:
    now = [0.0]
    remaining = Remaining({"models": ["minilm", "minilm-3l"], "settings": {"minilm-3l": {"epochs": 6}}}, lambda: now[0])
    remaining.read(EXECUTING.format("train"))
    now[0] = 3600.0
    # Three teachers of one epoch and three epochs; then six.
    assert remaining.read(FINISHED.format("train", "SUCCESS")).endswith("the others take about 1 h 0 min")
