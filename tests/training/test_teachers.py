"""Teachers of any profile: trained once, found again by what determines their scores, and checked before they teach."""

import dataclasses
import hashlib
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import transformers

from goemotions.data.dataset import ingest, load_dataset
from goemotions.errors import BadAddress, DataError, IntegrityError, Interrupted, ModelError, TrainingError, UntrustedBundle
from goemotions.evaluation.predictions import Predictions
from goemotions.models import engines, profiles
from goemotions.models.encoder_files import EncoderFiles
from goemotions.models.profiles import Teacher
from goemotions.models.records import RunRecord, TrainingRecord, all_runs
from goemotions.models.tokenizer import TextEncoder
from goemotions.storage import manifest, signature, store
from goemotions.training import launcher, teachers, trainer, transfer
from goemotions.training.options import TrainOptions
from tests.support import damage
from tests.training.test_trainer import result_of, stop_at

SETTINGS = {"teacher_epochs": 1, "learning_rate": 3e-3}


@pytest.fixture(scope="module")
def scores(dataset: Path, weights: Callable[[str], str], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A function from a teacher's name to the folder of its scores, which it makes once."""
    root = tmp_path_factory.mktemp("scores")

    def make(name: str) -> Path:
        if not (root / name).exists():
            teach(name, dataset, root / name, weights)
        return root / name

    return make


def teach(
    name: str,
    dataset: Path,
    output: Path,
    weights: Callable[[str], str],
    location: str = "",
    transfer_texts: float = 0.0,
    **changed: object,
) -> RunRecord:
    (teacher,) = profiles.teachers(name)
    options = TrainOptions(
        weights=weights(teacher.profile), settings=SETTINGS | changed, precision="fp32", transfer_texts=transfer_texts
    )
    return launcher.teach(dataset, output, name, options, location)


def student(
    dataset: Path,
    output: Path,
    profile: str,
    weights: Callable[[str], str],
    transfer_texts: float = 0.0,
    **changed: object,
) -> None:
    settings = {"teachers": 0, "epochs": 2, "learning_rate": 3e-3, **changed}
    options = TrainOptions(weights=weights(profile), settings=settings, precision="fp32", transfer_texts=transfer_texts)
    trainer.train(dataset, output, profile, options)


def test_teachers_are_named_by_profile_and_seed() -> None:
    trained = Teacher(location="s3://bucket/trained/run/mpnet/")
    expected = [Teacher("mpnet", 1), Teacher("mpnet", 2), Teacher("minilm", 7), Teacher("distilbert", 1), trained]
    for text in (f"mpnet:2+minilm@7+distilbert+{trained}", f"mpnet:2 + minilm@7 +distilbert + {trained}"):
        assert profiles.teachers(text) == expected
    assert profiles.teachers([str(teacher) for teacher in expected]) == expected
    assert profiles.teachers("") == profiles.teachers([]) == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("mpnet:0", "'mpnet:0' names no teachers: write mpnet, mpnet:3 for three of them, mpnet@4"),
        ("mpnet:two", "names no teachers"),
        ("mpnet:2,minilm", r"'mpnet:2,minilm' names no teachers: .* and \+ between several"),
        ("minilm:\u0663", "names no teachers"),
        ("gs://bucket/model/", "gs://"),
        ("bert-huge:2", "there is no model profile 'bert-huge'"),
        ("minilm:2+minilm@2", "the teachers are not all different: minilm@2 is named twice"),
    ],
)
def test_names_of_other_forms_are_refused(text: str, message: str) -> None:
    with pytest.raises((BadAddress, ModelError), match=message):
        profiles.teachers(text)


def test_named_teachers_of_the_students_profile_teach_as_its_own_do(
    dataset: Path, weights: Callable[[str], str], scores: Callable[[str], Path], tmp_path: Path
) -> None:
    records = teachers.combine(dataset, [scores("minilm@1"), scores("minilm@2")], tmp_path / "taught")
    student(tmp_path / "taught", tmp_path / "named", "minilm", weights)
    student(dataset, tmp_path / "own", "minilm", weights, teachers=2, **SETTINGS)
    assert result_of(tmp_path / "named") == result_of(tmp_path / "own")
    content = json.loads((tmp_path / "named" / "training.json").read_text())
    assert [teacher["seed"] for teacher in content["teachers"]] == [1, 2]
    assert content["seconds"] > sum(record.seconds for record in records)


@pytest.mark.parametrize("profile", ["distilbert", "minilm-3l", "mpnet"])
def test_teachers_of_several_kinds_teach_students_of_every_kind(
    profile: str, dataset: Path, weights: Callable[[str], str], scores: Callable[[str], Path], tmp_path: Path
) -> None:
    """From large to small, to fewer layers, and to a profile of their own."""
    names = ["mpnet@1", "minilm@1", "roberta-large@3"]
    teachers.combine(dataset, [scores(name) for name in names], tmp_path / "taught")
    mean, records = teachers.scores_of(tmp_path / "taught", "mpnet+minilm+roberta-large@3") or (None, [])
    assert [record.name for record in records] == names
    each = [Predictions.read(scores(name)).probabilities for name in names]
    assert mean == pytest.approx(np.mean(each, axis=0))
    student(tmp_path / "taught", tmp_path / "taught-model", profile, weights, distillation_weight=1.0)
    student(dataset, tmp_path / "alone-model", profile, weights)
    assert result_of(tmp_path / "taught-model").weights != result_of(tmp_path / "alone-model").weights


def test_students_learn_from_teachers_alone_on_the_transfer_set(
    dataset: Path, weights: Callable[[str], str], scores: Callable[[str], Path], tmp_path: Path
) -> None:
    """240 rows of train, and 120 texts that are made of them: by the teachers of a run as by a profile's own."""
    location, names = str(tmp_path / "store"), ("minilm@1", "minilm@2")
    for name in names:
        teach(name, dataset, tmp_path / name, weights, location, transfer_texts=0.5)
        of_train = teachers.read(dataset, scores(name))[0]
        assert teachers.read(dataset, tmp_path / name)[0][:240] == pytest.approx(of_train, abs=1e-6)
    teachers.combine(dataset, [tmp_path / name for name in names], tmp_path / "taught")
    student(tmp_path / "taught", tmp_path / "named", "minilm", weights)
    student(dataset, tmp_path / "own", "minilm", weights, teachers=2, transfer_texts=0.5, **SETTINGS)
    assert result_of(tmp_path / "named") == result_of(tmp_path / "own")
    content = json.loads((tmp_path / "named" / "training.json").read_text())
    assert (content["transfer_texts"], content["steps"]) == (120, 2 * math.ceil(360 / 32))
    # Without teachers nobody knows their labels.
    student(dataset, tmp_path / "alone", "minilm", weights, transfer_texts=0.5)
    assert json.loads((tmp_path / "alone" / "training.json").read_text())["steps"] == 2 * math.ceil(240 / 32)
    with pytest.raises(DataError, match="scored different transfer sets"):
        teachers.combine(dataset, [tmp_path / "minilm@1", scores("minilm@2")], tmp_path / "mixed")


def test_models_that_are_trained_teach_without_being_trained_again(
    dataset: Path, weights: Callable[[str], str], scores: Callable[[str], Path], tmp_path: Path
) -> None:
    """A second generation: its teachers are the students of the first, on which a plain teacher was spent once."""
    teachers.combine(dataset, [scores("minilm@1")], tmp_path / "taught")
    (plain,) = teachers.read(dataset, scores("minilm@1"))[1]
    locations, students = [str(tmp_path / name) for name in ("minilm", "mpnet")], []
    for location in locations:
        student(tmp_path / "taught", Path(location), Path(location).name, weights)
        students.append(TrainingRecord.read(Path(location)))
    options = TrainOptions(precision="fp32", transfer_texts=0.5)
    folders = [tmp_path / "scores" / str(number) for number in (0, 1)]
    for location, folder in zip(locations, folders, strict=True):
        launcher.teach(dataset, folder, location, options, str(tmp_path / "store"))
    teachers.combine(dataset, folders, tmp_path / "second")
    mean, records = teachers.scores_of(tmp_path / "second", "+".join(locations)) or (None, [])
    texts = load_dataset(dataset)[0]["train"]["text"][:]
    made = transfer.texts(texts, 120)
    each = []
    for location in locations:
        engine = engines.load("torch", Path(location), TextEncoder.load(Path(location)))
        each.append(engines.score(engine, [*texts, *made])[0])
    assert mean == pytest.approx(np.mean(each, axis=0), abs=1e-6)
    student(tmp_path / "second", tmp_path / "third", "minilm-3l", weights)
    record = TrainingRecord.read(tmp_path / "third")
    assert [teacher.name for teacher in record.teachers] == [teacher.name for teacher in records] == locations
    # The plain teacher of both counts once.
    assert list(all_runs(record.teachers)) == ["minilm@1", *locations]
    alone = sum(one.seconds - plain.seconds for one in students)
    assert sum(run.seconds for run in all_runs(record.teachers).values()) == pytest.approx(plain.seconds + alone)
    assert record.seconds == pytest.approx(plain.seconds + alone + record.history[-1]["seconds"], rel=0.2)


@pytest.mark.fault("teachers-of-other-data")
def test_a_trained_model_of_other_data_or_labels_is_no_teacher(
    dataset: Path, weights: Callable[[str], str], tmp_path: Path
) -> None:
    student(dataset, tmp_path / "model", "minilm", weights)
    shutil.copytree(dataset, tmp_path / "other")
    message = other_data(tmp_path / "other") and "was trained on the data .* it may have seen texts of validation and test"
    with pytest.raises(DataError, match=message):
        launcher.teach(tmp_path / "other", tmp_path / "scores", str(tmp_path / "model"), TrainOptions())
    config = tmp_path / "model" / "config.json"
    content = json.loads(config.read_text())
    names = dict(zip(content["id2label"], reversed(content["id2label"].values()), strict=True))
    config.write_text(json.dumps(content | {"id2label": names}))
    with pytest.raises(DataError, match="other labels than the data, or in another order"):
        launcher.teach(dataset, tmp_path / "scores", str(tmp_path / "model"), TrainOptions())
    assert not (tmp_path / "scores").exists()


@pytest.mark.fault("teachers-of-other-data")
def test_a_trained_model_in_a_store_teaches_if_it_is_signed_and_whole(
    dataset: Path, weights: Callable[[str], str], bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    location = f"{bucket}trained/run/minilm/"
    student(dataset, tmp_path / "model", "minilm", weights)
    manifest.write(tmp_path / "model", profile="minilm", pipeline_run="run")
    store.put(tmp_path / "model", location)
    launcher.teach(dataset, tmp_path / "local", str(tmp_path / "model"), TrainOptions(precision="fp32"))
    launcher.teach(dataset, tmp_path / "stored", location, TrainOptions(precision="fp32"), bucket)
    assert (teachers.read(dataset, tmp_path / "stored")[0] == teachers.read(dataset, tmp_path / "local")[0]).all()
    signature.create_keys(tmp_path / "keys")
    monkeypatch.setenv(signature.TRUSTED_KEYS, str(tmp_path / "keys" / signature.PUBLIC_FILE))
    with pytest.raises(UntrustedBundle, match="is not signed"):
        launcher.teach(dataset, tmp_path / "unsigned", location, TrainOptions(precision="fp32"))
    monkeypatch.delenv(signature.TRUSTED_KEYS)
    store.write(location, "config.json", b"{}")
    with pytest.raises(IntegrityError):
        launcher.teach(dataset, tmp_path / "changed", location, TrainOptions(precision="fp32"))


def test_a_text_of_the_transfer_set_begins_as_one_of_train_and_ends_as_another() -> None:
    train = ["one two three", "four five", "six", "愛してる"]
    beginnings = {" ".join(text.split()[:count]) for text in train for count in range(4)}
    endings = {" ".join(text.split()[count:]) for text in train for count in range(4)}
    made = transfer.texts(train, 200)
    assert all(any(text == f"{first} {last}".strip() for first in beginnings for last in endings) for text in made)
    assert len(made) == 200 > len(set(made)) > 40
    # Scores that are kept belong to these texts.
    assert hashlib.sha256("\n".join(made).encode()).hexdigest().startswith("df4460c5d6cc")
    assert transfer.texts(train, 100) == made[:100]
    assert transfer.texts([], 3) == []


def test_scores_are_found_again_by_data_weights_recipe_and_seed(
    dataset: Path, source: Path, weights: Callable[[str], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    location = str(tmp_path / "store")
    first = teach("minilm@1", dataset, tmp_path / "first", weights, location)
    assert not store.children(store.join(location, "checkpoints", "teachers"))
    trained: list[int] = []
    fit = trainer.fit
    monkeypatch.setattr(trainer, "fit", lambda *arguments: trained.append(arguments[4]) or fit(*arguments))
    assert teach("minilm@1", dataset, tmp_path / "again", weights, location) == first
    assert not trained
    assert teachers.read(dataset, tmp_path / "again")[0] == pytest.approx(teachers.read(dataset, tmp_path / "first")[0])
    # What only students use is no part of the recipe.
    assert teach("minilm@1", dataset, tmp_path / "student", weights, location, distillation_weight=0.3) == first
    (tmp_path / "source").mkdir()
    for path in source.iterdir():
        lines = path.read_text().splitlines(keepends=True)
        (tmp_path / "source" / path.name).write_text("".join(lines[:-1] if path.name == "train.tsv" else lines))
    ingest(str(tmp_path / "source"), tmp_path / "other")
    other_weights = shutil.copytree(weights("minilm"), tmp_path / "weights")
    (other_weights / "config.json").write_text((other_weights / "config.json").read_text().replace("0.1", "0.2"))
    teach("minilm@2", dataset, tmp_path / "seed", weights, location)
    teach("minilm@1", dataset, tmp_path / "recipe", weights, location, dropout=0.3)
    teach("minilm@1", tmp_path / "other", tmp_path / "data", weights, location)
    teach("minilm@1", dataset, tmp_path / "files", lambda _: str(other_weights), location)
    assert trained == [2, 1, 1, 1]


def test_other_weights_in_shards_are_other_teachers(weights: Callable[[str], str], tmp_path: Path) -> None:
    profile, keys = profiles.get("minilm").as_teacher(), set()
    for change in (0.0, 0.5):
        folder = Path(shutil.copytree(weights("minilm"), tmp_path / str(change)))
        encoder = transformers.BertModel.from_pretrained(folder)
        encoder.embeddings.LayerNorm.bias.data += change
        (folder / "model.safetensors").unlink()
        encoder.save_pretrained(folder, max_shard_size="20KB")
        keys.add(teachers.key("digest", EncoderFiles(folder, is_published=False), profile, 1, "fp32"))
    assert len(keys) == 2


def test_a_dataset_may_be_taught_in_its_own_folder(dataset: Path, scores: Callable[[str], Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(dataset, tmp_path / "dataset"))
    for name in ("minilm@1", "minilm@2"):
        teachers.combine(folder, [scores(name)], folder)
        mean, records = teachers.scores_of(folder, name) or (None, [])
        assert (mean == Predictions.read(scores(name)).probabilities).all()
        assert [record.name for record in records] == [name]


def scores_of_other_rows(location: Path) -> None:
    scored = Predictions.read(location)
    dataclasses.replace(scored, ids=list(reversed(scored.ids))).write(location / "predictions.parquet")
    manifest.write(location)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "no record": lambda folder: (folder / teachers.RECORDS).unlink(),
    "cut scores": lambda folder: damage.cut(folder / "predictions.parquet"),
    "an empty manifest": lambda folder: (folder / manifest.NAME).write_text("{}"),
    "scores of other rows": scores_of_other_rows,
}


@pytest.mark.fault("teachers-of-other-data")
@pytest.mark.parametrize("change", DAMAGES.values(), ids=DAMAGES)
def test_damaged_scores_in_the_store_are_made_again(
    change: Callable[[Path], object],
    dataset: Path,
    weights: Callable[[str], str],
    scores: Callable[[str], Path],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    options = TrainOptions(weights=weights("minilm"), settings=SETTINGS, precision="fp32")
    profile = profiles.get("minilm", SETTINGS).as_teacher()
    digest = load_dataset(dataset)[1]["digest"]
    key = teachers.key(digest, EncoderFiles(Path(options.weights), is_published=False), profile, 1, "fp32")
    kept = tmp_path / "store" / "teachers" / key
    shutil.copytree(scores("minilm@1"), kept)
    change(kept)
    with caplog.at_level("WARNING"):
        teach("minilm@1", dataset, tmp_path / "again", weights, str(tmp_path / "store"))
    assert "are not used, and the teacher is trained again" in caplog.text
    for folder in (tmp_path / "again", kept):
        assert (teachers.read(dataset, folder)[0] == teachers.read(dataset, scores("minilm@1"))[0]).all()


def test_an_interrupted_teacher_resumes_in_another_run(
    dataset: Path,
    weights: Callable[[str], str],
    scores: Callable[[str], Path],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    location = str(tmp_path / "store")
    with pytest.MonkeyPatch.context() as patched:
        stop_at(5, patched)
        with pytest.raises(Interrupted):
            teach("minilm@1", dataset, tmp_path / "part", weights, location)
    with caplog.at_level("INFO"):
        teach("minilm@1", dataset, tmp_path / "whole", weights, location)
    assert "resuming minilm at step 5 of 8" in caplog.text
    resumed, undisturbed = (Predictions.read(folder).probabilities for folder in (tmp_path / "whole", scores("minilm@1")))
    assert (resumed == undisturbed).all()


def other_data(dataset: Path) -> str:
    path = dataset / "dataset.json"
    path.write_text(path.read_text().replace(load_dataset(dataset)[1]["digest"], "0" * 64))
    return "holds scores of the data"


def other_labels(dataset: Path) -> str:
    path = dataset / "dataset.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "labels": list(reversed(content["labels"]))}))
    return "holds scores of 7 labels that are not those of the data"


def fewer_rows(dataset: Path) -> str:
    splits, _ = load_dataset(dataset)
    splits["train"].select(range(239)).save_to_disk(str(dataset / "fewer"))
    shutil.rmtree(dataset / "train")
    (dataset / "fewer").rename(dataset / "train")
    return "holds scores of 240 rows that are not the 239 of train"


def a_changed_file(dataset: Path) -> str:
    path = dataset / teachers.FOLDER / "predictions.parquet"
    damage.cut(path)
    return "differs from its manifest"


@pytest.mark.fault("teachers-of-other-data")
@pytest.mark.parametrize("damage", [other_data, other_labels, fewer_rows, a_changed_file], ids=lambda damage: damage.__name__)
def test_scores_that_do_not_belong_to_the_data_teach_nobody(
    damage: Callable[[Path], str], dataset: Path, weights: Callable[[str], str], scores: Callable[[str], Path], tmp_path: Path
) -> None:
    teachers.combine(dataset, [scores("minilm@1")], tmp_path / "taught")
    message = damage(tmp_path / "taught")
    with pytest.raises((DataError, IntegrityError), match=message):
        student(tmp_path / "taught", tmp_path / "model", "minilm", weights)


@pytest.mark.fault("teachers-of-other-data")
def test_a_student_refuses_other_teachers_than_it_asks_for(
    dataset: Path, weights: Callable[[str], str], scores: Callable[[str], Path], tmp_path: Path
) -> None:
    teachers.combine(dataset, [scores("minilm@1")], tmp_path / "taught")
    for folder, held in ((tmp_path / "taught", "minilm@1"), (dataset, "no teachers")):
        options = TrainOptions(weights=weights("minilm"), teachers="minilm:2")
        with pytest.raises(DataError, match=f"holds scores of {held}, but minilm@1, minilm@2 are to teach"):
            trainer.train(folder, tmp_path / "model", "minilm", options)
    with pytest.raises(TrainingError, match="no scores to combine"):
        teachers.combine(dataset, [], tmp_path / "none")
