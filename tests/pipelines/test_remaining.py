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
    remaining.read(EXECUTING.format("teach"))
    now[0] += 600.0
    assert remaining.read(FINISHED.format("teach", "SUCCESS")).endswith("the others take about 1 h 0 min")
    remaining.read(EXECUTING.format("train"))
    remaining.read(FINISHED.format("train", "SUCCESS"))
    now[0] += 3600.0
    assert remaining.read(FINISHED.format("train", "SUCCESS")) == "4 of 4 trainings are done in 1 h 20 min"


def test_a_profile_is_as_fast_as_an_earlier_network_of_it() -> None:
    now = [0.0]
    given = {"models": ["mpnet", "minilm-3l"], "teachers": ["mpnet@1", "minilm@1"], "settings": {"mpnet": {"epochs": 1}}}
    remaining = Remaining(given, lambda: now[0])
    for minutes in (60, 5):
        remaining.read(EXECUTING.format("teach"))
        now[0] += 60.0 * minutes
        shown = remaining.read(FINISHED.format("teach", "SUCCESS"))
    # An hour as before, and two epochs of a profile of which none is done, at the mean speed per parameter: 22 minutes.
    assert shown == "2 of 4 trainings are done in 1 h 5 min; the others take about 1 h 22 min"


def test_trainings_of_an_earlier_run_do_not_count_as_fast() -> None:
    now = [0.0]
    remaining = Remaining({"models": ["minilm", "mpnet"], "teachers": ["mpnet:2"]}, lambda: now[0])
    remaining.read(EXECUTING.format("teach"))
    remaining.read("INFO]: teacher mpnet@1: its scores are found in s3://goemotions/teachers/0/")
    unknown = "1 of 4 trainings are done in 0 min; how long the others take is known after the first that was not resumed"
    assert remaining.read(FINISHED.format("teach", "SUCCESS")) == unknown
    remaining.read(EXECUTING.format("teach"))
    remaining.read("INFO]: resuming mpnet at step 900 of 1000")
    assert "is known after" in remaining.read(FINISHED.format("teach", "SUCCESS"))
    remaining.read(EXECUTING.format("train"))
    now[0] += 600.0
    assert "take about" in remaining.read(FINISHED.format("train", "SUCCESS"))


def test_the_own_teachers_of_a_profile_count() -> None:
    now = [0.0]
    remaining = Remaining({"models": ["minilm", "minilm-3l"], "settings": {"minilm-3l": {"epochs": 6}}}, lambda: now[0])
    remaining.read(EXECUTING.format("train"))
    now[0] = 3600.0
    # Three teachers of one epoch and three epochs; then six.
    assert remaining.read(FINISHED.format("train", "SUCCESS")).endswith("the others take about 1 h 0 min")


def test_a_transfer_set_makes_the_epochs_of_students_longer() -> None:
    now = [0.0]
    given = {"models": ["minilm", "minilm-3l"], "settings": {"minilm-3l": {"epochs": 6}}, "transfer_texts": 2.0}
    remaining = Remaining(given, lambda: now[0])
    remaining.read(EXECUTING.format("train"))
    now[0] = 3600.0
    # Three teachers of one epoch and three epochs of three times the texts; then six of a profile that nobody teaches.
    assert remaining.read(FINISHED.format("train", "SUCCESS")).endswith("the others take about 30 min")
