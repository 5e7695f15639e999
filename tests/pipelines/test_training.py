"""The compiled training pipeline."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from goemotions.cli import parameters as rules
from goemotions.cli.options import pairs
from goemotions.errors import BadArgument, ModelError
from pipelines import local, monitoring, package, parameters, placement, resources, scoring, training, unfinished
from pipelines.kfp_local import adapted_to_this_machine
from pipelines.package import compile_pipeline
from pipelines.run_folder import RunFolder
from pipelines.training import pipeline as training_pipeline
from tests.support.documents import yaml_documents

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("compiled") / "training.yaml"
    compile_pipeline(path, "goemotions-trainer:abc123", "abc123")
    return path


@pytest.fixture(scope="module")
def pipeline(compiled: Path) -> dict[str, Any]:
    return yaml_documents(compiled.read_text())[0]


@pytest.fixture(scope="module")
def platform(compiled: Path) -> dict[str, Any]:
    """The settings of each step that are specific to Kubernetes."""
    document = yaml_documents(compiled.read_text())[1]
    return document["platforms"]["kubernetes"]["deploymentSpec"]["executors"]


@pytest.fixture(scope="module")
def loop(pipeline: dict[str, Any]) -> dict[str, Any]:
    return pipeline["components"]["comp-for-loop-1"]["dag"]["tasks"]


def test_every_parameter_is_described_and_has_a_default(pipeline: dict[str, Any]) -> None:
    declared = pipeline["root"]["inputDefinitions"]["parameters"]
    assert [name for name, field in declared.items() if not field.get("description")] == []
    assert [name for name, field in declared.items() if "defaultValue" not in field and not field.get("isOptional")] == []
    assert len(declared) == 38
    assert declared["data"]["defaultValue"] == "hub:google-research-datasets/go_emotions:simplified"
    assert declared["models"]["defaultValue"] == ["roberta-large", "distilbert"]


def test_image_and_commit_are_those_given_to_the_compiler(pipeline: dict[str, Any]) -> None:
    declared = pipeline["root"]["inputDefinitions"]["parameters"]
    assert declared["image"]["defaultValue"] == "goemotions-trainer:abc123"
    assert declared["commit"]["defaultValue"] == "abc123"
    images = {executor["container"]["image"] for executor in pipeline["deploymentSpec"]["executors"].values()}
    assert images == {"{{$.inputs.parameters['pipelinechannel--image']}}"}


def test_the_tasks_are_the_steps_in_their_order(pipeline: dict[str, Any], loop: dict[str, Any]) -> None:
    tasks = pipeline["root"]["dag"]["tasks"]
    assert set(tasks) == {"ingest", "for-loop-1", "register", "report", "condition-2"}
    assert set(loop) == {"train", "export", "evaluate", "evaluate-2", "tune-thresholds", "tune-thresholds-2"}
    assert tasks["for-loop-1"]["dependentTasks"] == ["ingest"]
    assert set(tasks["register"]["dependentTasks"]) == {"for-loop-1", "ingest"}
    assert set(loop["evaluate"]["dependentTasks"]) == {"train", "export"}
    assert [task["taskInfo"]["name"] for task in loop.values() if task["taskInfo"]["name"].startswith("evaluate")] == [
        "evaluate (gpu)",
        "evaluate (cpu)",
    ]


def test_teachers_are_trained_side_by_side_before_the_models_which_learn_from_all_of_them(tmp_path: Path) -> None:
    compile_pipeline(tmp_path / "taught.yaml", "image", "abc123", training.pipeline(has_teachers=True))
    compiled = yaml_documents((tmp_path / "taught.yaml").read_text())[0]
    tasks = compiled["root"]["dag"]["tasks"]
    assert set(tasks) == {"ingest", "for-loop-1", "combine-teachers", "for-loop-2", "register", "report", "condition-3"}
    assert tasks["for-loop-1"]["parameterIterator"]["items"] == {"inputParameter": "pipelinechannel--teachers"}
    assert set(tasks["combine-teachers"]["dependentTasks"]) == {"ingest", "for-loop-1"}
    assert set(tasks["for-loop-2"]["dependentTasks"]) == {"ingest", "combine-teachers"}
    train = compiled["components"]["comp-for-loop-2"]["dag"]["tasks"]["train"]
    assert train["inputs"]["artifacts"]["dataset"] == {"componentInputArtifact": "pipelinechannel--combine-teachers-taught"}
    executors = compiled["deploymentSpec"]["executors"]
    requested = [executors[f"exec-{step}"]["container"]["resources"] for step in ("teach", "train")]
    assert requested[0] == requested[1]


@pytest.mark.parametrize("text", ["mpnet:2+minilm@7", '["mpnet:2", "minilm@7"]'])
def test_teachers_are_given_by_profile_and_number(text: str) -> None:
    given = parameters.training_arguments("sample", "minilm", {}, 0, {"teachers": text}, teachers="minilm", is_local=True)
    assert given["teachers"] == ["mpnet@1", "mpnet@2", "minilm@7"]
    as_option = parameters.training_arguments("sample", "minilm", {}, 0, {}, teachers="mpnet:2+minilm@7", is_local=True)
    assert as_option == given


def test_a_run_on_reason_does_nothing_after_the_data_unless_a_reason_is_returned(
    pipeline: dict[str, Any], tmp_path: Path
) -> None:
    packed = package.pack_training("", "", {}, on_reason=True, force=True, path=tmp_path / "retraining.yaml")
    compiled = yaml_documents(packed.path.read_text())[0]
    tasks = compiled["root"]["dag"]["tasks"]
    assert set(tasks) == {"ingest", "decide-retraining", "condition-1"}
    assert tasks["condition-1"]["triggerPolicy"]["condition"] == (
        "inputs.parameter_values['pipelinechannel--decide-retraining-Output'] != ''"
    )
    gated = compiled["components"]["comp-condition-1"]["dag"]["tasks"]
    assert set(gated) == {"for-loop-2", "register", "report", "condition-3"}
    declared = compiled["root"]["inputDefinitions"]["parameters"]
    assert set(declared) - set(pipeline["root"]["inputDefinitions"]["parameters"]) == set(training.RETRAINING_PARAMETERS)
    assert [name for name, field in declared.items() if not field.get("description")] == []


def test_the_package_has_the_steps_of_its_run(tmp_path: Path) -> None:
    for teachers, steps in (([], 0), (["roberta-large@1"], 1)):
        packed = package.pack_training(
            "", "", {"models": ["distilbert"], "teachers": teachers}, force=True, path=tmp_path / "p.yaml"
        )
        executors = yaml_documents(packed.path.read_text())[0]["deploymentSpec"]["executors"]
        assert sum(name == "exec-teach" for name in executors) == steps


def test_nothing_is_deployed_unless_a_namespace_is_named(pipeline: dict[str, Any]) -> None:
    task = pipeline["root"]["dag"]["tasks"]["condition-2"]
    assert task["triggerPolicy"]["condition"] == "inputs.parameter_values['pipelinechannel--deploy_namespace'] != ''"
    assert pipeline["root"]["inputDefinitions"]["parameters"]["deploy_namespace"]["defaultValue"] == ""
    assert set(pipeline["components"]["comp-condition-2"]["dag"]["tasks"]) == {"deploy"}


def test_every_step_has_resource_requests_a_timeout_and_retries(
    pipeline: dict[str, Any], platform: dict[str, Any], loop: dict[str, Any]
) -> None:
    for name, executor in pipeline["deploymentSpec"]["executors"].items():
        resources = executor["container"]["resources"]
        assert resources["resourceCpuRequest"]
        assert resources["resourceMemoryRequest"] == resources["resourceMemoryLimit"]
        assert int(platform[name]["activeDeadlineSeconds"]) > 0
    tasks = {**pipeline["root"]["dag"]["tasks"], **loop, **pipeline["components"]["comp-condition-2"]["dag"]["tasks"]}
    steps = {name: task for name, task in tasks.items() if name not in ("for-loop-1", "condition-2")}
    assert len(steps) == 10
    for task in steps.values():
        policy = task["retryPolicy"]
        assert (policy["maxRetryCount"], policy["backoffDuration"]) == (3, "60s")
        executor = task["componentRef"]["name"].replace("comp-", "exec-", 1)
        attempts = 4 * int(platform[executor]["activeDeadlineSeconds"])
        # Argo measures it from the start of the first attempt: a shorter one would end the retries during an attempt.
        assert int(policy["backoffMaxDuration"].rstrip("s")) > attempts


def compile_with(overrides: str, path: Path) -> None:
    changed = resources.changed(overrides, resources.TRAINING)
    compile_pipeline(path, "image:1", "1", training_pipeline({**resources.TRAINING, **changed}))


def test_resources_are_changed_when_the_pipeline_is_compiled(tmp_path: Path) -> None:
    compile_with("train.gpus=4 train.memory=128Gi train.accelerator=amd.com/gpu report.cpu=500m", tmp_path / "four.yaml")
    spec = yaml_documents((tmp_path / "four.yaml").read_text())[0]
    train = spec["deploymentSpec"]["executors"]["exec-train"]["container"]["resources"]
    assert (train["accelerator"]["resourceType"], train["accelerator"]["resourceCount"]) == ("amd.com/gpu", "4")
    assert train["resourceMemoryLimit"] == "128Gi"
    assert spec["deploymentSpec"]["executors"]["exec-report"]["container"]["resources"]["resourceCpuRequest"] == "500m"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.gpu=1", r"no resource 'train.gpu'.*train.gpus"),
        ("train.gpus=two", "train.gpus is a whole number, not 'two'"),
        ("train.memory=16GB", "train.memory is a quantity such as 4 or 16Gi, not '16GB'"),
        ("train.cpu", "train.cpu is a quantity"),
    ],
)
def test_an_invalid_resource_is_refused(override: str, message: str) -> None:
    with pytest.raises(resources.BadResource, match=message):
        resources.changed(override, resources.TRAINING)


def test_nothing_is_installed_in_a_pod(compiled: Path) -> None:
    assert "pip install" not in compiled.read_text()


def test_tune_thresholds_gets_the_validation_split_only(loop: dict[str, Any]) -> None:
    for name in ("tune-thresholds", "tune-thresholds-2"):
        inputs = loop[name]["inputs"]["artifacts"]
        assert [given["taskOutputArtifact"]["outputArtifactKey"] for given in inputs.values()] == ["validation"]


@pytest.mark.fault("data-changed")
def test_no_step_uses_the_cache(pipeline: dict[str, Any], loop: dict[str, Any]) -> None:
    """Other data under the same name must not get an earlier output."""
    tasks = {**pipeline["root"]["dag"]["tasks"], **loop, **pipeline["components"]["comp-condition-2"]["dag"]["tasks"]}
    del tasks["for-loop-1"], tasks["condition-2"]
    assert [name for name, task in tasks.items() if task["cachingOptions"] != {}] == []


def test_credentials_are_references_to_the_secret(platform: dict[str, Any]) -> None:
    assert len(platform) == 10
    for name, executor in platform.items():
        secret, *others = executor["secretAsEnv"]
        # The last one wins where both have a key.
        assert [str(other["secretNameParameter"]) for other in others if "signing_secret" in str(other)] == [
            str(other["secretNameParameter"]) for other in others
        ]
        assert len(others) == (name == "exec-register")
        for other in others:
            assert {pair["envVar"] for pair in other["keyToEnv"]} == {*placement.REGISTER_VARIABLES}
            assert other["optional"]
        assert "GOEMOTIONS_SIGNING_KEY" not in {pair["envVar"] for pair in secret["keyToEnv"]}
        (settings,) = executor["configMapAsEnv"]
        wanted = {
            "MLFLOW_TRACKING_URI",
            "AWS_SECRET_ACCESS_KEY",
            "AWS_REQUEST_CHECKSUM_CALCULATION",
            "AWS_CA_BUNDLE",
            "HTTPS_PROXY",
        }
        for one in (secret, settings):
            assert {pair["envVar"] for pair in one["keyToEnv"]} >= wanted | {"NO_PROXY", "MLFLOW_TRACKING_SERVER_CERT_PATH"}
            assert one["optional"]
        assert "credentials_secret" in str(secret["secretNameParameter"])
        assert settings["configMapNameParameter"] == secret["secretNameParameter"]


def test_the_same_source_compiles_to_the_same_bytes(compiled: Path, tmp_path: Path) -> None:
    """In other processes, too: the order of protobuf maps differs between processes."""
    code = (
        "import sys, pathlib; from pipelines import package; package.compile_pipeline(pathlib.Path(sys.argv[1]), *sys.argv[2:])"
    )
    paths = [tmp_path / f"{number}.yaml" for number in range(2)]
    commands = [[sys.executable, "-c", code, str(path), "goemotions-trainer:abc123", "abc123"] for path in paths]
    for process in [subprocess.Popen(command, cwd=ROOT) for command in commands]:
        assert process.wait(timeout=60) == 0
    assert {path.read_bytes() for path in paths} == {compiled.read_bytes()}


def arguments(*others: str, weights: dict[str, str] | None = None, is_local: bool = True) -> dict[str, Any]:
    return parameters.training_arguments("sample", "minilm", weights or {}, 0, pairs(others), is_local=is_local)


def test_local_paths_become_absolute_and_locations_are_unchanged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    assert arguments("data=mine")["data"] == str(tmp_path / "mine")
    assert arguments("data=s3://bucket/data/")["data"] == "s3://bucket/data/"
    assert arguments(weights={"minilm": "mine", "distilbert": "s3://bucket/w/"})["weights"] == {
        "minilm": str(tmp_path / "mine"),
        "distilbert": "s3://bucket/w/",
    }


def test_parameters_have_the_types_that_the_pipeline_declares() -> None:
    others = ("max_quarantined=1", "unlabelled=keep", "seed=7", "auto_promote=True", 'models=["distilbert"]', "model_name=3")
    assert parameters.typed(pairs(others)) == {
        "max_quarantined": 1,
        "unlabelled": "keep",
        "seed": 7,
        "auto_promote": True,
        "models": ["distilbert"],
        "model_name": "3",
    }


def test_former_names_of_parameters_are_accepted() -> None:
    assert parameters.typed(pairs(["stated_recall=0.9", "stated_precision=0.6"])) == {
        "target_recall": 0.9,
        "target_precision": 0.6,
    }


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ("epoch=3", r"no parameter 'epoch'.*epochs"),
        ("epochs", "'epochs' is not a name=value pair"),
        ("epochs=two", "the parameter epochs is a whole number, not 'two'"),
        ("epochs=2.5", "the parameter epochs is a whole number, not 2.5"),
        ("seed=true", "the parameter seed is a whole number, not True"),
        ("max_quarantined=few", "the parameter max_quarantined is a number, not 'few'"),
        ("auto_promote=yes", "the parameter auto_promote is true or false, not 'yes'"),
        ("models=minilm", "the parameter models is a list in JSON, not 'minilm'"),
        ("settings=[]", r"the parameter settings is a dictionary in JSON, not \[\]"),
        ('settings={"minilm":3}', "the settings of minilm are a dictionary of hyperparameters, not 3"),
    ],
)
def test_a_wrong_parameter_is_refused_before_the_first_step(other: str, message: str) -> None:
    with pytest.raises(BadArgument, match=message):
        arguments(other)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ('models=["gpt"]', "there is no model profile 'gpt'"),
        ('weights={"gpt":"s3://bucket/w/"}', "there is no model profile 'gpt'"),
        ('settings={"minilm":{"learning_rat":1}}', "there is no hyperparameter 'learning_rat'"),
        ('settings={"minilm":{"batch_size":"many"}}', "batch_size"),
        ('settings={"minilm":{"epochs":Infinity}}', "epochs of minilm is a whole number, not inf"),
        ('settings={"minilm":{"learning_rate":1' + 400 * "0" + "}}", "learning_rate of minilm is a number, not 10000"),
        ('settings={"minilm":{"loss":"focus"}}', "loss of minilm is bce or focal or asymmetric or class-balanced, not 'focus'"),
    ],
)
def test_profiles_weights_and_settings_are_checked_before_the_first_step(other: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        arguments(other)


def test_a_local_run_does_not_change_the_pipeline(compiled: Path, tmp_path: Path) -> None:
    with adapted_to_this_machine(training.training, "the-run"):
        compile_pipeline(tmp_path / "local.yaml", "goemotions-trainer:abc123", "abc123")
    compile_pipeline(tmp_path / "after.yaml", "goemotions-trainer:abc123", "abc123")
    assert (tmp_path / "after.yaml").read_bytes() == compiled.read_bytes() != (tmp_path / "local.yaml").read_bytes()


def test_a_run_that_did_not_finish_is_resumed_under_its_id_by_the_same_parameters(tmp_path: Path) -> None:
    given = {"models": ["minilm"], "epochs": 2}
    first, _ = unfinished.begin(tmp_path, given)
    assert unfinished.begin(tmp_path, given) == (first, True)
    other, resumed = unfinished.begin(tmp_path, {**given, "epochs": 3})
    assert other != first
    assert not resumed
    unfinished.end(tmp_path)
    assert unfinished.begin(tmp_path, {**given, "epochs": 3})[1] is False
    (tmp_path / unfinished.RECORD).write_text("{")
    assert unfinished.begin(tmp_path, given)[1] is False


def test_the_newest_run_is_the_last_one_whatever_its_pipeline(tmp_path: Path) -> None:
    for age, name in enumerate(("goemotions-retraining-2026-02-01", "goemotions-training-2026-01-01")):
        report = tmp_path / "runs" / name / "report"
        report.mkdir(parents=True)
        os.utime(report, (1e9 - age, 1e9 - age))
    assert RunFolder.newest(tmp_path).path.name == "goemotions-retraining-2026-02-01"


def test_every_step_of_a_local_run_has_the_id_of_the_run(tmp_path: Path) -> None:
    for one in (training.training, training.for_run(has_teachers=True)):
        with adapted_to_this_machine(one, "the-run"):
            compile_pipeline(tmp_path / "local.yaml", "goemotions-trainer:abc123", "abc123", one)
        text = (tmp_path / "local.yaml").read_text()
        assert text.count("constant: the-run") >= 8
        assert placement.RUN not in text


# Any text, switch or structure that Kubernetes itself checks.
FREE = {
    "manual_reason",
    "settings",
    "labels_column",
    "drop_leaked",
    "auto_promote",
    "keep_checkpoints",
    "all_scores",
    "commit",
    "node_affinity",
}


def test_every_parameter_has_a_rule_and_its_default_keeps_it() -> None:
    for one in (
        training.training,
        training.for_run(has_teachers=False, on_reason=True),
        scoring.scoring,
        monitoring.monitoring,
    ):
        declared = one.component_spec.inputs
        assert {name for name in declared if name not in {*rules.RULES, *rules.ADDRESSES}} <= FREE
        parameters.check({name: spec.default for name, spec in declared.items() if spec.default is not None}, one)


WRONG: dict[str, tuple[Any, ...]] = {
    "data": ("gs://b/d/", "hub:", 3),
    "models": ([], [""], ["minilm", "minilm"], "minilm", [3]),
    "weights": ({"minilm": 3}, {"minilm": "gs://b/w/"}, []),
    "teachers": (["mpnet:0"], [3], "mpnet", ["mpnet", "mpnet@1"]),
    "settings": ({"minilm": {"epochs": 0}}, {"minilm": {"dropout": float("nan")}}, {"minilm": {"pooling": "max"}}),
    "epochs": (-1, 2.5, "two", True, 10**9),
    "seed": (-1, 2**32),
    "precision": ("fp16", ""),
    "checkpoint_minutes": (-1.0, float("inf"), float("nan")),
    "transfer_texts": (-0.1, 101.0, float("nan")),
    "text_column": ("", " "),
    "split_share": (0.0, 0.5, float("nan")),
    "split_seed": (-1,),
    "drop_leaked": ("False", 0, 1),
    "unlabelled": ("drop",),
    "max_quarantined": (-0.1, 1.1, float("nan")),
    "threshold_strategy": ("per_label", ""),
    "target_precision": (0.0, 1.0, 70.0),
    "target_recall": (0.0, 1.0, float("nan")),
    "store": ("gs://b/", "S3://b/", "s3://"),
    "model_name": ("", "it's", "a/b", 'a"b', "a:b", "-a", "a b", "a" * 101),
    "latency_budget_ms": (0.0, -1.0, float("nan")),
    "quality_tolerance": (-0.1, 1.5),
    "max_age_days": (-1.0, float("nan")),
    "drift_cooldown_days": (-1.0, float("inf")),
    "cpu_hour_price": (-0.1, float("inf")),
    "gpu_hour_price": (-0.1, float("nan")),
    "deploy_namespace": ("Team", "a/b", "-a"),
    "canary_percent": (-1, 100),
    "image": ("", "https://registry.example/x:y"),
    "credentials_secret": ("", "a_b", "Secret"),
    "signing_secret": ("", "a_b", "Secret"),
    "node_selector": ({"pool": 3}, []),
    "tolerations": (["key"], {}),
    "mlflow_address": ("mlflow.example:5000",),
    "epoch": (3,),
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in WRONG.items() for value in values])
def test_a_value_that_a_parameter_cannot_have_is_refused(name: str, value: Any) -> None:
    with pytest.raises((BadArgument, ModelError), match=name if name != "settings" else "of minilm is"):
        parameters.check({name: value}, training.for_run(has_teachers=False, on_reason=True))


def test_a_local_run_checks_its_parameters_before_anything_is_made(tmp_path: Path) -> None:
    with pytest.raises(BadArgument, match="model_name"):
        local.run(tmp_path / "stack", data="sample", model_name="it's")
    assert list(tmp_path.iterdir()) == []


def test_a_model_that_is_deployed_has_a_name_that_services_can_have() -> None:
    parameters.check({"model_name": "My_model"})
    with pytest.raises(BadArgument, match="model_name, with a deploy_namespace, is that of services too"):
        parameters.check({"model_name": "My_model", "deploy_namespace": "team"})


def test_spaces_around_the_names_of_models_are_stripped() -> None:
    given = parameters.training_arguments("sample", "minilm-3l, minilm ", {}, 0, {}, is_local=True)
    assert given["models"] == ["minilm-3l", "minilm"]


def test_a_teacher_that_is_trained_is_found_by_every_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").mkdir()
    trained = "s3://bucket/trained/run/mpnet/"
    given = parameters.training_arguments("sample", "minilm", {}, 0, {}, teachers=f"minilm:2+./model+{trained}", is_local=True)
    assert given["teachers"] == ["minilm@1", "minilm@2", str(tmp_path / "model"), trained]


def test_a_store_is_where_the_steps_can_reach_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert arguments("store=mine")["store"] == str(tmp_path / "mine")
    with pytest.raises(BadArgument, match="a pod cannot reach mine: give s3://bucket/prefix/"):
        arguments("store=mine", is_local=False)


def test_pairs_in_one_text_are_told_apart() -> None:
    assert pairs(['settings={"minilm": {"epochs": 3}} seed=1', "text_column=my text"]) == {
        "settings": '{"minilm": {"epochs": 3}}',
        "seed": "1",
        "text_column": "my text",
    }
    for wrong in ("epochs=1 epochs=2", "seed=1 epochs=", "=1"):
        with pytest.raises(BadArgument):
            pairs([wrong])
