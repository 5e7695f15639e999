"""Failures of an object store: what real responses and exceptions of its client become, through boto3."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path

import botocore.exceptions
import pytest
from boto3.exceptions import Boto3Error, S3UploadFailedError

from goemotions.errors import StorageError
from goemotions.storage import failures, s3, store
from tests.support import http_server
from tests.support.object_store import KEYS

# Status, code, further elements of the body, and what the error says. The bodies are laid out as AWS, MinIO and Ceph lay them out.
RESPONSES = [
    (400, "ExpiredToken", "<Token-0>x</Token-0>", "credentials have expired .*: log in again"),
    (
        403,
        "InvalidAccessKeyId",
        "<AWSAccessKeyId>k</AWSAccessKeyId>",
        "credentials are not valid there .*: check AWS_ACCESS_KEY_ID",
    ),
    (403, "SignatureDoesNotMatch", "<StringToSign>s</StringToSign>", "credentials are not valid there"),
    (
        403,
        "RequestTimeTooSkewed",
        "<ServerTime>t</ServerTime>",
        r"clock .*: set the clock \(NTP\)",
    ),
    (400, "AuthorizationHeaderMalformed", "<Region>eu-west-1</Region>", "another region .*: set AWS_REGION=eu-west-1"),
    (403, "AccessDenied", "", "access denied .*: check the keys and the bucket's policy"),
    (404, "NoSuchBucket", "<BucketName>bucket</BucketName>", "there is no such bucket .*: create it"),
    (501, "NotImplemented", "<Header>If-None-Match</Header>", "does not support a request .*conditional writes"),
    (400, "XAmzContentSHA256Mismatch", "", "does not support a request .*AWS_REQUEST_CHECKSUM_CALCULATION=when_required"),
    (403, "QuotaExceeded", "", "the store is full or over its quota"),
    (400, "TeapotRequired", "", r"refused the request \(TeapotRequired: as the store says\)"),
]


class Store(http_server.Server):
    """A store that responds to each request with one error."""

    status, content, headers, count = 500, b"", {}, 0  # type: ignore[var-annotated]


class Responding(http_server.Handler):
    server: Store

    def respond(self) -> None:
        self.body()
        self.server.count += 1
        self.send(self.server.status, self.server.content, {"Content-Type": "application/xml", **self.server.headers})

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = respond


@pytest.fixture
def responding(configure_s3: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Store]]:
    """A function that starts such a store, which becomes that of this test."""
    started = Store(Responding)
    monkeypatch.delenv("AWS_PROFILE", raising=False)
    configure_s3(AWS_ENDPOINT_URL=started.url, **KEYS)

    def respond(status: int, code: str, elements: str = "", **headers: str) -> Store:
        started.status, started.headers = status, headers
        started.content = (
            f'<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>{code}</Code><Message>as the store says</Message>{elements}'
            "<RequestId>4442587FB7D0A2F9</RequestId><HostId>h</HostId></Error>"
        ).encode()
        return started

    with http_server.running(started):
        yield respond


@pytest.mark.parametrize(("status", "code", "elements", "message"), RESPONSES)
def test_an_error_of_the_store_says_what_is_wrong_and_what_to_do(
    responding: Callable[..., Store], tmp_path: Path, status: int, code: str, elements: str, message: str
) -> None:
    started = responding(status, code, elements)
    (tmp_path / "from").mkdir()
    (tmp_path / "from" / "a").write_bytes(b"x")
    for action in (
        lambda: store.files("s3://bucket/v1/"),
        lambda: store.put(tmp_path / "from", "s3://bucket/v1/"),
        lambda: store.read("s3://bucket/v1/", "a"),
        lambda: store.write_new("s3://bucket/v1/", "a", b"x"),
    ):
        started.count = 0
        with pytest.raises(StorageError, match=message) as refused:
            action()
        assert code in str(refused.value)
        assert "times" not in str(refused.value)
        assert started.count <= 3


@pytest.mark.parametrize(("status", "code"), [(503, "SlowDown"), (500, "InternalError")])
def test_only_real_tries_are_counted(
    responding: Callable[..., Store], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, status: int, code: str
) -> None:
    monkeypatch.setattr(s3, "ATTEMPTS", 2)
    started = responding(status, code)
    (tmp_path / "a").write_bytes(b"x")
    for action in (lambda: store.files("s3://bucket/v1/"), lambda: store.put(tmp_path, "s3://bucket/v1/")):
        started.count = 0
        with pytest.raises(StorageError, match=r"2 times .*: try again later"):
            action()
        assert started.count == 2


def test_the_region_of_a_redirect_is_named(responding: Callable[..., Store]) -> None:
    responding(301, "PermanentRedirect", **{"x-amz-bucket-region": "eu-central-1"})
    with pytest.raises(StorageError, match="set AWS_REGION=eu-central-1"):
        store.files("s3://bucket/v1/")


def test_a_redirect_without_a_region_ends_in_a_named_error(responding: Callable[..., Store]) -> None:
    responding(301, "PermanentRedirect", "<Endpoint>bucket.s3.amazonaws.com</Endpoint>")
    with pytest.raises(StorageError, match="set AWS_REGION=<the bucket's region>, or fix AWS_ENDPOINT_URL"):
        store.files("s3://bucket/v1/")


def test_a_redirect_to_itself_ends_in_a_named_error(responding: Callable[..., Store]) -> None:
    started = responding(307, "TemporaryRedirect")
    started.headers = {"Location": f"{started.url}/bucket"}
    with pytest.raises(StorageError, match="another region or at another endpoint"):
        store.read("s3://bucket/v1/", "a")


def test_a_bucket_within_the_endpoint_is_named(responding: Callable[..., Store], monkeypatch: pytest.MonkeyPatch) -> None:
    started = responding(404, "NoSuchBucket")
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"{started.url}/bucket")
    s3.client.cache_clear()
    with pytest.raises(StorageError, match=r"AWS_ENDPOINT_URL must not hold the bucket: it is http://127.0.0.1:.*/bucket"):
        store.files("s3://bucket/v1/")


def test_a_missing_profile_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("AWS_PROFILE", "none")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    s3.client.cache_clear()
    with pytest.raises(StorageError, match=r"no such profile of AWS \(ProfileNotFound\): fix AWS_PROFILE"):
        store.files("s3://bucket/v1/")


def test_no_code_is_in_two_groups() -> None:
    codes = [code for failure in failures.FAILURES for code in failure.codes]
    assert len(codes) == len(set(codes))


def random_error(draw: random.Random) -> Exception:
    """An error as boto3 raises it, of any class, with any content of the response."""
    kinds = [kind for kind in vars(botocore.exceptions).values() if isinstance(kind, type) and issubclass(kind, Exception)]
    kind = draw.choice([botocore.exceptions.ClientError, S3UploadFailedError, Boto3Error, ValueError, KeyError, *kinds])
    code = draw.choice(["", "NoSuchKey", "Weird Code", "500", "ümlaut", None])
    long = {"Error": {"Code": code, "Message": "m" * 5000}, "ResponseMetadata": {}}
    response = draw.choice([{}, {"Error": {}}, long, {"Error": None}])
    try:
        raise botocore.exceptions.ClientError(
            {"Error": {"Code": code}} if kind is S3UploadFailedError else response, "GetObject"
        )
    except Exception as client_error:
        if kind is botocore.exceptions.ClientError:
            return client_error
        error = kind.__new__(kind)
        Exception.__init__(error, "text")
        error.__context__ = client_error if draw.random() < 0.5 else None
        return error


@pytest.mark.parametrize("seed", range(20))
def test_any_error_of_the_client_is_a_named_error(seed: int) -> None:
    draw = random.Random(seed)
    for _ in range(20):
        error = random_error(draw)
        with (
            pytest.raises(StorageError, match=r"^s3://bucket/v1/: [^\n]+: [^\n]+$") as named,
            s3.translate_errors("s3://bucket/v1/"),
        ):
            raise error
        assert len(str(named.value)) < 700
