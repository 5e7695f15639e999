"""Steps of the compiled pipeline run in the trainer image, started as Kubeflow's launcher starts them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from goemotions.registry import tracking
from pipelines.package import compile_pipeline
from tests.images import containers

PARAMETERS = {
    "ingest": {
        "source": "sample",
        "text_column": "text",
        "labels_column": "",
        "split_share": 0.1,
        "split_seed": 0,
        "drop_leaked": True,
        "unlabelled": "quarantine",
        "max_quarantined": 0.5,
    },
    "train": {
        "profile": "minilm",
        "weights": {"minilm": "/mnt/weights"},
        "settings": {},
        "epochs": 1,
        "seed": 1,
        "precision": "fp32",
        "store": "/tmp/store",
        "checkpoint_minutes": 10.0,
        "transfer_texts": 0.0,
    },
}


@pytest.fixture(scope="module")
def executors(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    path = tmp_path_factory.mktemp("compiled") / "training.yaml"
    compile_pipeline(path, containers.image("trainer"), "c")
    return dict(next(yaml.safe_load_all(path.read_text()))["deploymentSpec"]["executors"])


def artifact(name: str, kind: str) -> dict[str, Any]:
    return {"artifacts": [{"name": name, "type": {"schemaTitle": f"system.{kind}"}, "uri": f"minio://steps/{name}"}]}


def test_ingest_and_train_run_in_the_trainer_image(
    executors: dict[str, Any], stack: Path, weights: Callable[[str], str], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Each step is a container of its own; they share a volume in place of the artifact store."""
    run_name = request.node.name
    # The user of the steps does not exist on this machine and needs access to the volume and the weights.
    tmp_path.chmod(0o777)
    encoder = Path(weights("minilm"))
    (encoder / "model.safetensors").chmod(0o644)
    options = ("--network", "host", "--env", "MLFLOW_TRACKING_URI", "--volume", f"{tmp_path}:/minio/steps")
    options += ("--volume", f"{encoder}:/mnt/weights:ro")

    def step(name: str, inputs: dict[str, Any], outputs: dict[str, Any], parameters: dict[str, Any]) -> dict[str, Any]:
        executor_input = {
            "inputs": {"parameterValues": PARAMETERS[name] | {"pipeline_run": run_name}, "artifacts": inputs},
            "outputs": {"artifacts": outputs, "parameters": parameters, "outputFile": f"/minio/steps/{name}.json"},
        }
        container = executors[f"exec-{name}"]["container"]
        arguments = [json.dumps(executor_input) if argument == "{{$}}" else argument for argument in container["args"]]
        containers.run("trainer", *container["command"], *arguments, options=options)
        return dict(json.loads((tmp_path / f"{name}.json").read_text()))

    result = step("ingest", {}, {"dataset": artifact("dataset", "Dataset")}, {"Output": {"outputFile": "/tmp/digest"}})
    assert result["parameterValues"]["Output"] == json.loads((tmp_path / "dataset" / "dataset.json").read_text())["digest"]

    step("train", {"dataset": artifact("dataset", "Dataset")}, {"model": artifact("model", "Model")}, {})
    assert {"config.json", "model.safetensors", "training.json"} <= {path.name for path in (tmp_path / "model").iterdir()}
    assert tracking.get_or_create_run(run_name, "minilm").run_id
