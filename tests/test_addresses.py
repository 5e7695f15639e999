"""Addresses: each known form is taken as it is; every other one is refused, with the right form, before anything is made."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from goemotions import addresses
from goemotions.errors import BadAddress
from goemotions.registry import mlflow_client, references
from goemotions.storage import lock, s3, store
from pipelines import client, package

ROOT = Path(__file__).parents[1]
Check = Callable[[str], str]
KNOWN = [
    (
        addresses.location,
        ["s3://b/", "s3://b", "s3://My_old.bucket/a b/ü/", "/abs/folder", "a:b/c", "./gs:/x", ""],
    ),
    (addresses.source, ["sample", "hub:imdb", "hub:owner/name:config@abc123", "s3://b/d/", "a/folder", "file.csv"]),
    (addresses.reference, ["champion-cpu", "3", "s3://b/models/m/r/cpu/", "/tmp/bundle"]),
    (
        lambda text: addresses.server(text, "V"),
        ["http://h:9000", "https://h", "https://h/storage/v1/s3", "http://[::1]:9000/", "http://user:pass/word@h:1", ""],
    ),
    (
        addresses.tracking,
        [
            "http://h:5000",
            "sqlite:///x.db",
            "postgresql://u:p@h/db",
            "mysql+pymysql://h/db",
            "file:///x",
            "./mlruns",
            "databricks",
            "",
        ],
    ),
    (
        addresses.image_prefix,
        ["", "registry.example/team", "localhost:5000/a/b-c", "123.dkr.ecr.eu-west-1.amazonaws.com/x/", "team"],
    ),
]
UNKNOWN_PLACES = [
    *(f"{scheme}://bucket/prefix/" for scheme in ("gs", "az", "ftp", "s3a", "abfss", "hdfs", "memory", "https", "S3", "Gs")),
    *(
        "file:/folder",
        "file:///folder",
        "s3:/bucket/prefix/",
        "s3:bucket/prefix",
        " gs://bucket/",
        "arn:aws:s3:::bucket/prefix",
    ),
    *("s3://host:9000/bucket/", "s3://user:" + "key@bucket/", "s3:///prefix/", "s3://", "models:/m-0123456789"),
]


@pytest.mark.parametrize(("check", "text"), [(check, text) for check, texts in KNOWN for text in texts])
def test_a_known_form_is_unchanged(check: Check, text: str) -> None:
    assert check(text) == text


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("models:/goemotions/3", ("goemotions", "3")),
        ("models:/goemotions@champion-cpu", ("goemotions", "champion-cpu")),
        ("models://other@a", ("other", "a")),
        ("models:/goemotions/latest", None),
        ("champion-cpu", None),
        ("folder/3", None),
    ],
)
def test_uris_of_mlflow_name_a_model_and_a_version(text: str, version: tuple[str, str] | None) -> None:
    assert addresses.model_version(text) == version
    if text.startswith("models:") and version:
        assert addresses.reference(text) == text


@pytest.mark.parametrize("text", UNKNOWN_PLACES)
@pytest.mark.parametrize("check", [addresses.location, addresses.source, addresses.reference, addresses.path])
def test_a_place_of_an_unknown_form_is_refused(check: Check, text: str) -> None:
    with pytest.raises(BadAddress):
        check(text)


@pytest.mark.parametrize(
    ("check", "text", "message"),
    [
        (
            addresses.location,
            "gs://b/p/",
            r"give s3://bucket/prefix/ or a path; Google Cloud Storage is read through .*=https://storage",
        ),
        (
            addresses.source,
            "abfss://c@a.dfs.core.windows.net/p",
            r"\(abfss:\): .*; Azure Storage has no S3 endpoint: copy the files",
        ),
        (addresses.reference, "az://c/p/", r"; Azure Storage has no S3 endpoint: copy the files to a store that has one$"),
        (addresses.location, "S3://b/p/", "here it is s3://b/p/$"),
        (addresses.location, "s3a://b/p/", "here it is s3://b/p/$"),
        (addresses.location, "file:///a/b", "here it is /a/b$"),
        (addresses.location, "arn:aws:s3:::b/p", "here it is s3://b/p$"),
        (addresses.location, "https://b.s3.eu-west-1.amazonaws.com/p/", "here it is s3://b/p/$"),
        (addresses.location, "https://s3.amazonaws.com/b/p/", "here it is s3://b/p/$"),
        (addresses.location, "s3://h:9000/b/", "names a server, not a bucket: set AWS_ENDPOINT_URL=http://h:9000$"),
        (addresses.source, "hub:", "names no data set of the hub"),
        (addresses.source, "hub:a/b/c", "names no data set of the hub"),
        (addresses.source, "hub://a/b", "names no data set of the hub"),
        (addresses.source, "hub:a/b@", "names no data set of the hub"),
        (addresses.source, "https://huggingface.co/datasets/a/b/tree/main", "here it is hub:a/b$"),
        (addresses.source, "hf://datasets/a/b", "here it is hub:a/b$"),
        (addresses.reference, "models:/goemotions/latest", r"unknown form \(models:\): give an alias.*, models:/name@alias, "),
        (addresses.reference, "models:/m-0123456789", r"unknown form \(models:\)"),
        (addresses.reference, "runs:/1a2b/model", r"unknown form \(runs:\): give an alias"),
        (addresses.tracking, "host:5000", "has no scheme: write MLFLOW_TRACKING_URI=http://host:5000, or https://$"),
        (addresses.tracking, "host", "has no scheme: write MLFLOW_TRACKING_URI=http://host, or"),
        (addresses.tracking, "redis://host:5000", "unknown scheme redis: known are http, https, sqlite, postgresql"),
        (addresses.tracking, "HTTP://host:5000", "write MLFLOW_TRACKING_URI=http://host:5000$"),
        (addresses.tracking, "http://", "is not the address of a server"),
        (addresses.tracking, "http://host:port", "is not the address of a server"),
        (addresses.tracking, "http://host:70000", "is not the address of a server"),
        (addresses.image_prefix, "https://registry.example/team", "has a scheme, .* write REGISTRY=registry.example/team$"),
        (addresses.image_prefix, "registry.example/Team", "in small letters"),
        (addresses.image_prefix, "registry.example/team:latest", "without a tag"),
        (addresses.image_prefix, "it's", "is not the prefix"),
    ],
)
def test_the_right_form_is_named(check: Check, text: str, message: str) -> None:
    with pytest.raises(BadAddress, match=message):
        check(text)


@pytest.mark.parametrize(
    "text",
    [
        f"{scheme}user:{secret}@host:9000"
        for scheme in ("", "redis://", "ftp://", "HTTP://")
        for secret in ("s3cret", "s3/cret")
    ],
)
def test_a_refused_address_does_not_show_its_password(text: str) -> None:
    for check in (addresses.tracking, addresses.image_prefix, functools.partial(addresses.server, what="V")):
        with pytest.raises(BadAddress) as refused:
            check(text)
        assert "cret" not in str(refused.value)


ACTIONS: dict[str, Callable[[str, Path], object]] = {
    "files are listed": lambda place, _: store.files(place),
    "files are stored": lambda place, folder: store.put(folder, place),
    "a file is written": lambda place, _: store.write_new(place, "a", b"x"),
    "a location is locked": lambda place, _: lock.hold(place).__enter__(),
    "a bundle is resolved": lambda place, _: references.resolve(place),
    "a bundle is read": lambda place, _: references.as_folder(place).__enter__(),
}


@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize("place", ["gs://bucket/x/", "S3://bucket/x/", "file:/x"])
def test_no_function_takes_an_unknown_address_for_a_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, action: str, place: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadAddress):
        ACTIONS[action](place, tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("variable", ["AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"])
def test_an_endpoint_without_scheme_is_named_at_the_first_request(monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    monkeypatch.setenv(variable, "host:9000")
    s3.client.cache_clear()
    with pytest.raises(BadAddress, match=f"write {variable}=http://host:9000, or https://"):
        store.files("s3://bucket/x/")


def test_servers_and_registries_are_checked_where_they_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "host:5000")
    with pytest.raises(BadAddress, match="MLFLOW_TRACKING_URI"):
        mlflow_client.connect()
    with pytest.raises(BadAddress, match=r"KF_PIPELINES_ENDPOINT=http://host:8080"):
        client.connect(client.Connection(endpoint="host:8080"))
    with pytest.raises(BadAddress, match=r"REGISTRY=registry\.example/team"):
        package.pack_training("https://registry.example/team", "", {}, force=True)


COMMANDS = [
    "ingest --source gs://b/d/ --output out",
    "ingest --source sample --output gs://b/d/",
    "train --dataset gs://b/d/ --output out --profile minilm",
    "train --dataset . --output out --profile minilm --weights gs://b/w/",
    "train --dataset . --output out --profile minilm --checkpoints file:/x",
    "register --dataset . --candidate . --run r --store S3://b/",
    "score --input az://b/i/ --output out",
    "score --input . --output ftp://b/o/",
    "predict hello --bundle models:/goemotions/latest",
    "model download gs://b/m/ --output out",
    "model download --run r --profile minilm --store gs://b/",
    "model isvc --registry https://registry.example/team",
    "model status --file gs://b/isvc.yaml",
    "pipeline run --data gs://b/d/",
    "pipeline run --weights minilm=gs://b/w/",
    "pipeline run --set store=gs://b/",
    "pipeline submit --data gs://b/d/ --dry-run --force",
    "pipeline submit --registry https://registry.example --dry-run --force",
    "pipeline score --input gs://b/i/ --output s3://b/o/ --dry-run --force",
]


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_with_an_unknown_address_makes_nothing(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from goemotions.cli import main as cli

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setattr(sys, "argv", ["goemotions", *command.split()])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    written = capsys.readouterr().err
    assert ended.value.code == 1, written
    assert len(written.splitlines()) == 1, written
    assert any(word in written for word in ("unknown form", "path on this machine", "has a scheme")), written
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("ingest --source ~nobody-here/data --output out", "there is no data folder ~nobody-here/data"),
        ("pipeline run --weights minilm=~nobody-here/w", "~nobody-here/w"),
    ],
)
def test_the_home_folder_of_nobody_is_a_path_that_does_not_exist(
    command: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from goemotions.cli import main as cli

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["goemotions", *command.split()])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert addresses.local("~/data") == Path.home() / "data"


def test_images_are_not_named_by_an_address() -> None:
    finished = subprocess.run(
        ["bash", ROOT / "images" / "image.sh", "build", "trainer"],
        env=os.environ | {"REGISTRY": "https://registry.example/team", "ENGINE": "true"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert finished.returncode != 0
    assert "write REGISTRY=registry.example/team" in finished.stderr
