"""No output contains credentials: a run gets recognizable ones, and everything that it writes is searched for them."""

import base64
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import quote

import pytest

from goemotions import defaults
from goemotions.errors import BadAddress
from goemotions.registry import mlflow_client, tracking
from goemotions.storage import store
from pipelines import demo, stack
from pipelines.package import compile_pipeline
from pipelines.run_folder import RunFolder
from tests.support import http_server

ROOT = Path(__file__).parents[1]
# The files from which the stack reads its keys; only their owner can read them.
PRIVATE = ("env", "s3.json")


@pytest.fixture(scope="module", autouse=True)
def environment(planted: dict[str, str]) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in planted.items():
            patch.setenv(name, value)
        yield


@pytest.fixture(scope="module")
def login(planted: dict[str, str]) -> str:
    """User and password of MLflow as in a URL."""
    return f"{planted['MLFLOW_TRACKING_USERNAME']}:{quote(planted['MLFLOW_TRACKING_PASSWORD'], safe='')}"


@pytest.fixture(scope="module")
def basic(planted: dict[str, str]) -> str:
    """User and password of MLflow as in an HTTP header."""
    plain = f"{planted['MLFLOW_TRACKING_USERNAME']}:{planted['MLFLOW_TRACKING_PASSWORD']}"
    return base64.b64encode(plain.encode()).decode()


@pytest.fixture(scope="module")
def credentials_in(planted: dict[str, str], basic: str) -> Callable[[bytes], list[str]]:
    """A function from content to the names of the secrets in it: plain, quoted as in a URL, or encoded as in an HTTP header."""
    forms = {name: {value.encode(), quote(value, safe="").encode()} for name, value in planted.items()}
    # The user name is not a secret.
    del forms["MLFLOW_TRACKING_USERNAME"]
    forms["MLFLOW_TRACKING_PASSWORD"].add(basic.encode())

    def search(content: bytes) -> list[str]:
        return [name for name, values in forms.items() if any(value in content for value in values)]

    return search


def test_the_search_finds_planted_credentials(
    planted: dict[str, str], login: str, basic: str, credentials_in: Callable[[bytes], list[str]]
) -> None:
    names = ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "HF_TOKEN", "MLFLOW_TRACKING_PASSWORD"]
    assert [credentials_in(f"x {planted[name]} y".encode()) for name in names] == [[name] for name in names]
    assert credentials_in(f"http://{login}@host".encode()) == credentials_in(f"Basic {basic}".encode()) == names[-1:]


def test_no_file_of_a_run_contains_credentials(run: RunFolder, credentials_in: Callable[[bytes], list[str]]) -> None:
    paths = [path for path in run.path.rglob("*") if path.is_file()]
    assert {"run.log", "training.json", "registered.json", "report.html"} <= {path.name for path in paths}
    assert {path: names for path in paths if (names := credentials_in(path.read_bytes()))} == {}


def test_no_object_in_the_store_contains_credentials(run: RunFolder, credentials_in: Callable[[bytes], list[str]]) -> None:
    locations = [f"s3://{defaults.BUCKET}/{prefix}/" for prefix in ("models", "trained", "mlflow")]
    assert all(store.files(location) for location in locations)
    contents = {file: store.read(location, file.name) or b"" for location in locations for file in store.files(location)}
    assert {key: names for key, content in contents.items() if (names := credentials_in(content))} == {}


def test_server_logs_and_the_mlflow_database_contain_no_credentials(
    run: RunFolder, stack: Path, credentials_in: Callable[[bytes], list[str]]
) -> None:
    paths = [path for path in stack.iterdir() if path.is_file() and path.name not in PRIVATE]
    assert {"mlflow.db", "mlflow.log", "seaweedfs.log"} <= {path.name for path in paths}
    assert {path: names for path in paths if (names := credentials_in(path.read_bytes()))} == {}
    assert [oct((stack / name).stat().st_mode & 0o777) for name in PRIVATE] == ["0o600", "0o600"]


def test_the_log_of_the_predictor_contains_no_credentials(
    run: RunFolder, credentials_in: Callable[[bytes], list[str]], tmp_path: Path
) -> None:
    with demo.served(tmp_path / "serve.log") as url:
        assert demo.predict(url, ("we found the lake today",))["predictions"]
    log = (tmp_path / "serve.log").read_bytes()
    assert log
    assert b"lake" not in log
    assert credentials_in(log) == []


def test_the_compiled_pipeline_references_the_kubernetes_secret_and_contains_no_credentials(
    credentials_in: Callable[[bytes], list[str]], tmp_path: Path
) -> None:
    compile_pipeline(tmp_path / "training.yaml", "goemotions-trainer:abc123", "abc123")
    content = (tmp_path / "training.yaml").read_bytes()
    assert b"AWS_SECRET_ACCESS_KEY" in content
    assert credentials_in(content) == []


def test_wheel_and_sdist_contain_no_credentials(
    planted: dict[str, str], credentials_in: Callable[[bytes], list[str]], tmp_path: Path
) -> None:
    project = tmp_path / "project"
    for name in ("goemotions", "components", "pipelines"):
        shutil.copytree(ROOT / name, project / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE", "NOTICE", "constraints.txt", ".gitignore"):
        shutil.copy(ROOT / name, project)
    for folder in (project, project / ".local", project / "goemotions"):
        folder.mkdir(exist_ok=True)
        (folder / ".env").write_text("".join(f"export {name}={value}\n" for name, value in planted.items()))
    build = "import setuptools.build_meta as build; build.build_wheel('dist'); build.build_sdist('dist')"
    subprocess.run([sys.executable, "-c", build], cwd=project, check=True, capture_output=True)
    (wheel,), (sdist,) = project.glob("dist/*.whl"), project.glob("dist/*.tar.gz")
    with zipfile.ZipFile(wheel) as archive:
        contents = {name: archive.read(name) for name in archive.namelist()}
    with tarfile.open(sdist) as archive:
        contents |= {each.name: archive.extractfile(each).read() for each in archive if each.isfile()}  # type: ignore[union-attr]
    top = sdist.name.removesuffix(".tar.gz")
    assert {"goemotions/models/classifier.py", f"{top}/goemotions/models/classifier.py"} <= set(contents)
    assert {name: names for name, content in contents.items() if (names := credentials_in(content))} == {}


def goemotions(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "goemotions.cli", *arguments]
    return subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.parametrize("name", ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"])
def test_keys_that_the_store_rejects_are_not_in_the_error(name: str, planted: dict[str, str], tmp_path: Path) -> None:
    wrong = "planted" + planted[name][::-1]
    finished = goemotions(
        "model", "download", f"s3://{defaults.BUCKET}/none/", "--output", str(tmp_path / "out"), **{name: wrong}
    )
    assert finished.returncode == 1
    assert "the credentials are not valid there" in finished.stderr
    assert wrong not in finished.stdout + finished.stderr


class Refusing(http_server.Handler):
    """An MLflow that rejects every password, and records those that it receives."""

    sent: list[str]

    def do_GET(self) -> None:
        self.body()
        self.sent.append(self.headers.get("Authorization", ""))
        self.send(401)

    do_POST = do_GET


def test_a_password_in_mlflows_address_is_sent_and_not_shown(
    login: str, basic: str, credentials_in: Callable[[bytes], list[str]]
) -> None:
    handler = type("Handler", (Refusing,), {"sent": []})
    with http_server.running(http_server.Server(handler)) as server:
        finished = goemotions("model", "status", MLFLOW_TRACKING_URI=f"http://{login}@127.0.0.1:{server.server_port}")
    assert finished.returncode == 1
    assert "MLflow refused the request or did not respond" in finished.stderr
    assert f"Basic {basic}" in handler.sent
    assert credentials_in((finished.stdout + finished.stderr).encode()) == []


def test_the_error_of_an_unreachable_server_has_the_address_without_the_password(
    login: str, credentials_in: Callable[[bytes], list[str]]
) -> None:
    port = stack.free_ports(1)[0]
    finished = goemotions("model", "status", MLFLOW_TRACKING_URI=f"http://{login}@127.0.0.1:{port}/mlflow")
    assert finished.returncode == 1
    assert f"MLflow does not respond at http://127.0.0.1:{port}/mlflow: " in finished.stderr
    assert credentials_in((finished.stdout + finished.stderr).encode()) == []


@pytest.mark.parametrize("host", ["[host", "127.0.0.1:port"])
def test_the_error_of_an_invalid_address_has_no_password(
    host: str, planted: dict[str, str], credentials_in: Callable[[bytes], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"):
        monkeypatch.delenv(name)
    # The slash in the password is not quoted.
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://user:{planted['MLFLOW_TRACKING_PASSWORD']}@{host}")
    with pytest.raises(
        BadAddress, match=re.escape(f"MLFLOW_TRACKING_URI: 'http://{host}' is not the address of a server")
    ) as error:
        mlflow_client.connect()
    assert credentials_in(str(error.value).encode()) == []


def test_links_and_tags_of_a_run_contain_no_password(
    run: RunFolder, login: str, credentials_in: Callable[[bytes], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    address = os.environ["MLFLOW_TRACKING_URI"]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address.replace("://", f"://{login}@"))
    mlflow_client.client.cache_clear()
    joined = tracking.get_or_create_run("secret-address")
    assert joined.link().startswith(f"{address}/#/experiments/")
    tags = mlflow_client.client().get_run(joined.run_id).data.tags
    assert credentials_in(repr((joined.link(), tags)).encode()) == []
    mlflow_client.client.cache_clear()


def test_the_token_of_the_hub_is_not_in_the_error(
    credentials_in: Callable[[bytes], list[str]], dataset: Path, tmp_path: Path
) -> None:
    port = stack.free_ports(1)[0]
    hub = {"HF_ENDPOINT": f"http://127.0.0.1:{port}", "HF_HOME": str(tmp_path / "hub")}
    finished = goemotions("train", "--profile", "distilbert", "--dataset", str(dataset), "--output", str(tmp_path / "m"), **hub)
    assert "the hub cannot be reached" in finished.stderr
    assert credentials_in((finished.stdout + finished.stderr).encode()) == []
