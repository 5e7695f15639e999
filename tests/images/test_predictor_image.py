"""The predictor images serve a bundle, without a network and without privileges."""

import json
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from goemotions.models import engines
from goemotions.prediction.predictor import Options, Predictor
from goemotions.registry.bundle import Variant
from tests.images import containers
from tests.support import bundles
from tests.support.servers import PREDICT

START_SECONDS = 90
# Sends a request from inside the container, which has a loopback interface only.
SEND_REQUEST = """import sys, urllib.request as r
print(r.urlopen(r.Request('http://127.0.0.1:8080' + sys.argv[1], sys.argv[2].encode() if sys.argv[2:] else None,
    {'Content-Type': 'application/json'})).read().decode())"""


@pytest.fixture(scope="module", params=["cpu", "gpu"])
def variant(request: pytest.FixtureRequest) -> Variant:
    return request.param  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def bundle(variant: Variant, candidate: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp(variant) / "bundle"
    bundles.assemble(folder, candidate, variant)
    # As a download from S3 leaves it: safetensors writes its file for the owner alone.
    (folder / "model.safetensors").chmod(0o644)
    return folder


@pytest.fixture(scope="module")
def server(variant: Variant, bundle: Path) -> Iterator[str]:
    """The id of a container with a ready server; SIGTERM must end it with exit code 0."""
    image = containers.image(f"predictor-{variant}")
    options = [*containers.RESTRICTED, "--network", "none", "--volume", f"{bundle}:/mnt/models:ro"]
    container = containers.engine_output("run", "--detach", *options, image)
    try:
        wait_until_ready(container)
        yield container
        containers.engine_output("stop", "--time", "60", container)
        assert containers.inspect("container", container, "{{.State.ExitCode}}") == "0"
        assert "Traceback" not in logs(container)
    finally:
        containers.engine_output("rm", "--force", container)


def wait_until_ready(container: str) -> None:
    deadline = time.monotonic() + START_SECONDS
    probe = [containers.engine(), "exec", container, "python3", "-c", SEND_REQUEST, "/v2/health/ready"]
    while subprocess.run(probe, capture_output=True, check=False).returncode:
        assert containers.inspect("container", container, "{{.State.Running}}") == "true", logs(container)
        assert time.monotonic() < deadline, logs(container)
        time.sleep(0.2)


def logs(container: str) -> str:
    done = subprocess.run([containers.engine(), "logs", container], capture_output=True, text=True, check=True)
    return done.stdout + done.stderr


def test_the_predictor_image_predicts(server: str, bundle: Path) -> None:
    text = "we found the lake"
    request = json.dumps({"instances": [text], "parameters": {"all_scores": True}})
    response = json.loads(containers.engine_output("exec", server, "python3", "-c", SEND_REQUEST, PREDICT, request))
    assert (response["model_name"], response["model_version"]) == ("goemotions", "r1")
    expected = Predictor.load(bundle, threads=1).predict([text], Options(all_scores=True))
    assert response["predictions"][0]["scores"] == pytest.approx(expected[0]["scores"], abs=engines.INT8_BOUND)


def test_the_health_check_of_the_image_passes(server: str, variant: Variant) -> None:
    check = json.loads(
        containers.inspect("image", containers.image(f"predictor-{variant}"), "{{json .Config.Healthcheck.Test}}")
    )
    assert check[0] == "CMD"
    containers.engine_output("exec", server, *check[1:])
