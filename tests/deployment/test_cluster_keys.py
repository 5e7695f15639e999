"""The identities of the object store of `manifests/overlays/local`, in a real SeaweedFS with those keys."""

from __future__ import annotations

import json
import os
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError

from goemotions.deployment import cluster_keys
from pipelines import stack

ONCE = Config(retries={"max_attempts": 1})


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Callable[[str], Any], int]]:
    """A function from a role to its client of S3, and the port of the filer."""
    folder = tmp_path_factory.mktemp("store")
    cluster_keys.write(folder / "keys")
    secret = folder / "keys" / "seaweedfs"
    ports = stack.free_ports(len(stack.WEED_PORTS))
    (folder / "data").mkdir()
    command = [stack._program("weed"), "mini", f"-dir={folder / 'data'}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1"]
    command += [f"-{name}={port}" for name, port in zip(stack.WEED_PORTS, ports, strict=True)]
    command += [f"-s3.config={secret / 's3.json'}", "-bucket=goemotions", "-master.telemetry=false", "-admin.ui=false"]
    command += ["-webdav=false", "-s3.port.iceberg=0", "-s3.port.lance=0"]
    variables = {path.name: path.read_text() for path in secret.iterdir() if path.name.startswith("WEED_")}

    def client(role: str) -> Any:
        names = {"aws_access_key_id": "AWS_ACCESS_KEY_ID", "aws_secret_access_key": "AWS_SECRET_ACCESS_KEY"}
        keys = {option: (folder / "keys" / role / name).read_text() for option, name in names.items()}
        return boto3.client("s3", endpoint_url=f"http://127.0.0.1:{ports[0]}", region_name="us-east-1", config=ONCE, **keys)

    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=os.environ | variables)
    try:
        deadline = time.monotonic() + 120
        while not may(lambda: client("register").put_object(Bucket="goemotions", Key="models/one", Body=b"x")):
            assert time.monotonic() < deadline, (folder / "log").read_text()[-2000:]
            time.sleep(0.5)
        yield client, ports[stack.WEED_PORTS.index("filer.port")]
    finally:
        process.terminate()
        process.wait(timeout=60)


def may(request: Callable[[], Any]) -> bool:
    try:
        request()
    except ClientError as error:
        return error.response["ResponseMetadata"]["HTTPStatusCode"] == 404 and error.response["Error"]["Code"] == "NoSuchKey"
    except Exception:
        return False
    return True


OF_STEPS = ("models", "trained", "rollouts", "checkpoints", "teachers", "monitoring", "data", "labelled")
PREFIXES = (*OF_STEPS, "requests", "mlflow", "modelsx")
READS = {"register": {*PREFIXES}, "pipeline": {*PREFIXES}, "predictor": {"models"}, "requests": set(), "mlflow": {"mlflow"}}
WRITES = {
    "register": {"models", "trained", "rollouts", "checkpoints", "teachers"},
    "pipeline": {"checkpoints", "teachers", "monitoring", "data", "labelled"},
    "predictor": set(),
    "requests": {"requests"},
    "mlflow": {"mlflow"},
}


@pytest.mark.slow
@pytest.mark.fault("bundle-forged")
@pytest.mark.parametrize("role", READS)
def test_each_role_reads_and_writes_its_prefixes_alone(role: str, store: tuple[Callable[[str], Any], int]) -> None:
    client = store[0](role)
    where = {"Bucket": "goemotions"}
    for prefix in PREFIXES:
        key = {**where, "Key": f"{prefix}/{role}"}
        assert may(lambda key=key: client.put_object(**key, Body=b"x")) == (prefix in WRITES[role]), prefix
        assert may(lambda key=key: client.create_multipart_upload(**key)) == (prefix in WRITES[role]), prefix
        assert may(lambda key=key: client.get_object(**key)) == (prefix in READS[role]), prefix
        assert may(lambda prefix=prefix: client.list_objects_v2(**where, Prefix=f"{prefix}/")) == (prefix in READS[role]), (
            prefix
        )
    if "models" not in WRITES[role]:
        policy = {"Effect": "Allow", "Principal": "*", "Action": "s3:*", "Resource": "arn:aws:s3:::goemotions/*"}
        document = json.dumps({"Version": "2012-10-17", "Statement": [policy]})
        source = {**where, "Key": f"mlflow/{role}"}
        assert not may(lambda: client.delete_object(**where, Key="models/one"))
        client.delete_objects(**where, Delete={"Objects": [{"Key": "models/one"}]})
        assert not may(lambda: client.copy_object(**where, Key="models/copy", CopySource=source))
        assert not may(lambda: client.put_object(**where, Key="mlflow/../models/two", Body=b"x"))
        assert not may(lambda: client.put_bucket_policy(**where, Policy=document))
        assert not may(lambda: client.put_bucket_acl(**where, ACL="public-read-write"))
    assert [one["Key"] for one in store[0]("register").list_objects_v2(**where, Prefix="models/one")["Contents"]] == [
        "models/one"
    ]


@pytest.mark.slow
@pytest.mark.fault("bundle-forged")
def test_the_port_of_the_filer_needs_a_token(store: tuple[Callable[[str], Any], int], tmp_path: Path) -> None:
    for method, name in (("GET", "models/"), ("GET", "models/one"), ("PUT", "models/two"), ("DELETE", "models/one")):
        request = urllib.request.Request(f"http://127.0.0.1:{store[1]}/buckets/goemotions/{name}", b"x", method=method)
        with pytest.raises(urllib.error.HTTPError, match="401"):
            urllib.request.urlopen(request, timeout=10)
