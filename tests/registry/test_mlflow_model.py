"""A bundle is a full MLflow model: MLflow's own tools read its signature, example and environment, and serve it."""

import json
import os
import platform
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import mlflow.pyfunc
import pytest
from mlflow.models import Model
from mlflow.models.utils import load_serving_example
from mlflow.pyfunc import scoring_server
from starlette.testclient import TestClient

from goemotions.errors import DataError
from goemotions.prediction.predictor import Options, Predictor
from goemotions.registry import mlflow_model
from pipelines import stack

MODELS = [sys.executable, "-m", "mlflow", "models"]
TEXTS = ["we found the lake", "a quiet balloon under the table"]


@pytest.fixture(scope="module")
def loaded(whole: Path) -> Any:
    return mlflow.pyfunc.load_model(str(whole))


@pytest.fixture(scope="module")
def client(loaded: Any) -> TestClient:
    """The application that ``mlflow models serve`` runs."""
    return TestClient(scoring_server.init(loaded))


def test_the_signature_has_the_inputs_the_options_and_the_outputs(whole: Path) -> None:
    signature = Model.load(str(whole)).signature
    assert [column["type"] for column in signature.inputs.to_dict()] == ["string"]
    assert [column["name"] for column in signature.outputs.to_dict()] == list(Predictor.load(whole).predict(TEXTS)[0])
    assert [param["name"] for param in signature.params.to_dict()] == ["top_k", "threshold", "all_scores"]


def test_the_input_example_can_be_served(whole: Path, client: TestClient, predictor: Predictor) -> None:
    description = Model.load(str(whole))
    assert description.load_input_example(str(whole)) == mlflow_model.EXAMPLE
    served = client.post("/invocations", json=json.loads(load_serving_example(str(whole))))
    assert served.json()["predictions"] == predictor.predict(mlflow_model.EXAMPLE)


@pytest.mark.parametrize(
    "inputs", [TEXTS, {"text": TEXTS}, [{"text": text} for text in TEXTS]], ids=["list", "columns", "rows"]
)
def test_mlflow_serves_what_the_predictor_returns(client: TestClient, predictor: Predictor, inputs: Any) -> None:
    served = client.post("/invocations", json={"inputs": inputs, "params": {"top_k": 2, "threshold": 0.2}})
    assert served.json() == {"predictions": predictor.predict(TEXTS, Options(2, 0.2))}
    everything = client.post("/invocations", json={"inputs": inputs, "params": {"all_scores": True}})
    assert everything.json() == {"predictions": predictor.predict(TEXTS, Options(all_scores=True))}


def test_mlflow_serves_csv(client: TestClient, predictor: Predictor) -> None:
    content = "\n".join(["id,text", *(f"{n},{text}" for n, text in enumerate(TEXTS))])
    served = client.post("/invocations", content=content, headers={"Content-Type": "text/csv"})
    assert served.json() == {"predictions": predictor.predict(TEXTS)}


REFUSED = {
    "a number": ({"inputs": [1]}, "item 0 is no text but of type int"),
    "no text": ({"inputs": []}, "there is no text to label"),
    "top_k of 0": ({"inputs": TEXTS, "params": {"top_k": 0}}, "parameter top_k=0: must be a whole number from 1"),
    "a threshold over 1": ({"inputs": TEXTS, "params": {"threshold": 2.0}}, 'must be "tuned" or a number from 0 to 1'),
}


@pytest.mark.fault("mlflow-input")
@pytest.mark.parametrize(("request_body", "message"), REFUSED.values(), ids=REFUSED)
def test_mlflow_passes_on_why_an_input_is_refused(client: TestClient, request_body: dict[str, Any], message: str) -> None:
    served = client.post("/invocations", json=request_body)
    assert served.status_code == 400
    assert message in served.json()["message"]
    assert "Traceback" not in served.text


@pytest.mark.parametrize(
    "params", [{"topk": 3}, {"top_k": True}, {"threshold": "high"}, {"threshold": float("nan")}, {"all_scores": 1}], ids=str
)
def test_a_parameter_of_another_name_or_value_is_named(loaded: Any, params: dict[str, Any]) -> None:
    with pytest.raises(DataError, match=f"parameter '?{next(iter(params))}"):
        loaded._model_impl.predict(TEXTS, params)


def test_pip_installs_this_package_from_the_bundle_in_any_folder(whole: Path, tmp_path: Path) -> None:
    (wheel,) = whole.glob("*.whl")
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / wheel.name).symlink_to(wheel)
    own = (whole / mlflow_model.REQUIREMENTS).read_text().splitlines()[:2]
    (tmp_path / "bundle" / "requirements.txt").write_text("\n".join(own))
    pip = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-index",
        "--no-deps",
        "--no-compile",
        "--target",
        "installed",
    ]
    subprocess.run([*pip, "-r", "bundle/requirements.txt"], cwd=tmp_path, check=True, timeout=120)
    script = "import goemotions.prediction.predictor as module; print(module.__file__)"
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "installed")}
    printed = subprocess.run(
        [sys.executable, "-c", script], env=environment, cwd=tmp_path, check=True, capture_output=True, text=True
    )
    assert printed.stdout.startswith(str(tmp_path / "installed"))
    assert (tmp_path / "installed" / "goemotions" / "data" / "sample" / "train.tsv").is_file()


@pytest.mark.parametrize("variant", ["cpu", "gpu"])
def test_the_environment_pins_what_the_variant_needs_and_is_the_same_every_time(tmp_path: Path, variant: str) -> None:
    for folder in (tmp_path / "a", tmp_path / "b"):
        folder.mkdir()
        mlflow_model.write(folder, variant, "r1")
    files = {path.name: path.read_bytes() for path in (tmp_path / "a").iterdir()}
    assert files == {path.name: path.read_bytes() for path in (tmp_path / "b").iterdir()}
    assert min(map(len, files.values())) > 0
    pinned = {line.split("==")[0] for line in files["requirements.txt"].decode().splitlines() if "==" in line}
    needed = {"cpu": {"openvino"}, "gpu": {"openvino", "safetensors", "torch", "transformers"}}[variant]
    assert pinned == {"goemotions", "boto3", "click", "cryptography", "numpy", "tokenizers", "mlflow", *needed}
    assert "+cpu" not in files["requirements.txt"].decode()


@pytest.mark.slow
@pytest.mark.fault("mlflow-input")
def test_the_commands_of_mlflow_serve_and_predict(whole: Path, tmp_path: Path, predictor: Predictor) -> None:
    (port,) = stack.free_ports(1)
    local = ["-m", str(whole), "--env-manager", "local"]
    expected = {"predictions": predictor.predict(TEXTS, Options(top_k=2))}
    (tmp_path / "input.json").write_text(json.dumps({"inputs": TEXTS, "params": {"top_k": 2}}))
    # MLflow starts uvicorn by its name.
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    with (tmp_path / "log").open("wb") as log:
        command = [*MODELS, "serve", *local, "--host", "127.0.0.1", "--port", str(port)]
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
    try:
        url = f"http://127.0.0.1:{port}/invocations"
        assert json.loads(post(url, (tmp_path / "input.json").read_bytes())) == expected
        with pytest.raises(urllib.error.HTTPError, match="400"):
            post(url, b'{"inputs": [null]}')
    finally:
        process.terminate()
        process.wait(timeout=60)
    command = [
        *MODELS,
        "predict",
        *local,
        "-t",
        "json",
        "-i",
        str(tmp_path / "input.json"),
        "-o",
        str(tmp_path / "output.json"),
    ]
    subprocess.run(command, check=True, timeout=200, capture_output=True, env=environment)
    assert json.loads((tmp_path / "output.json").read_bytes()) == expected
    command = [*MODELS, "generate-dockerfile", "-m", str(whole), "-d", str(tmp_path / "image")]
    subprocess.run(command, check=True, timeout=200, capture_output=True)
    assert f"FROM python:{platform.python_version()}-slim" in (tmp_path / "image" / "Dockerfile").read_text()


def post(url: str, body: bytes) -> bytes:
    """The response, as soon as the server is there."""
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
    deadline = time.monotonic() + 120
    while True:
        try:
            with urllib.request.urlopen(request, timeout=60) as response:
                return bytes(response.read())
        except urllib.error.HTTPError:
            raise
        except urllib.error.URLError:
            assert time.monotonic() < deadline
            time.sleep(0.2)
