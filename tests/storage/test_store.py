"""Storage: the same behaviour on disk and in S3, and named errors if the store fails."""

import contextlib
import http.client
import io
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from goemotions.errors import BadAddress, FileChanged, IntegrityError, StorageError
from goemotions.storage import manifest, s3, store
from tests.support import http_server, object_store

FILES = {"config.json": b"{}", "sub/model.safetensors": bytes(range(256)) * 40, "a b/ünï.txt": b"x"}


def make(folder: Path, files: dict[str, bytes] = FILES) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def read_all(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(params=["local", "s3"])
def location(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A location that only this test uses, on disk and in S3."""
    return request.getfixturevalue("bucket") if request.param == "s3" else f"{tmp_path}/store/"


Response = Callable[[str, str, int], str | bytes | None]


class Gateway(http_server.Server):
    """A proxy of the S3 server: records every request, and forwards it or responds with an S3 error or a body instead."""

    def __init__(self, upstream: str, instead: Response) -> None:
        super().__init__(Passing)
        self.upstream = urlsplit(upstream).netloc
        self.instead = instead
        self.requests: list[tuple[str, str]] = []
        self.lock = threading.Lock()


class Passing(http_server.Handler):
    server: Gateway

    def respond(self) -> None:
        body = self.body()
        with self.server.lock:
            self.server.requests.append((self.command, self.path))
            instead = self.server.instead(self.command, self.path, len(self.server.requests))
        if isinstance(instead, bytes):
            self.send(200, instead, {"Content-Type": "application/xml"})
            return
        if instead:
            status = {"AccessDenied": 403, "InternalError": 500, "SlowDown": 503}[instead]
            content = f"<Error><Code>{instead}</Code><Message>injected</Message></Error>".encode()
            self.send(status, content, {"Content-Type": "application/xml"})
            return
        connection = http.client.HTTPConnection(self.server.upstream, timeout=30)
        connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
        for name, value in self.headers.items():
            if name.lower() not in ("connection", "expect"):
                connection.putheader(name, value)
        connection.endheaders(body)
        response = connection.getresponse()
        content = response.read()
        left_out = ("transfer-encoding", "connection") + ("content-length",) * (self.command != "HEAD")
        headers = {name: value for name, value in response.getheaders() if name.lower() not in left_out}
        self.send(response.status, content, headers)
        connection.close()

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = respond


@pytest.fixture
def through(stack: Path, configure_s3: Callable[..., None]) -> Iterator[Callable[..., Gateway]]:
    """A function that starts a gateway before S3, which responds with what ``instead`` returns, or forwards the request."""
    with contextlib.ExitStack() as started:

        def start(instead: Response) -> Gateway:
            gateway = started.enter_context(http_server.running(Gateway(os.environ["AWS_ENDPOINT_URL"], instead)))
            configure_s3(AWS_ENDPOINT_URL=gateway.url)
            return gateway

        yield start


def test_put_and_fetch_copy_every_byte(location: str, tmp_path: Path) -> None:
    store.put(make(tmp_path / "from"), location)
    assert read_all(store.fetch(location, tmp_path / "to")) == FILES


def test_read_returns_the_content_or_none(location: str, tmp_path: Path) -> None:
    store.put(make(tmp_path / "from"), location)
    assert store.read(location, "sub/model.safetensors") == FILES["sub/model.safetensors"]
    assert store.read(location, "sub") is None
    assert store.read(location, "other.json") is None


def test_the_children_of_a_location_are_its_folders(location: str, tmp_path: Path) -> None:
    for name in ("step-10", "step-9", "step-2"):
        store.put(make(tmp_path / "from", {"deep/er/file": b"x"}), store.join(location, name))
    store.put(make(tmp_path / "beside", {"file": b"x"}), location)
    assert store.children(location) == ["step-10", "step-2", "step-9"]
    assert store.children(store.join(location, "step-2")) == ["deep"]
    assert store.children(store.join(location, "nothing")) == []


@pytest.mark.slow
def test_more_children_than_one_page_are_all_listed(bucket: str, tmp_path: Path) -> None:
    place = s3.S3Backend(bucket)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: place.write_new(f"{number:04d}/x", b"x"), range(1005)))
    assert len(store.children(bucket)) == 1005


@pytest.mark.parametrize("ending", ["v1", "v1/"], ids=["without slash", "with slash"])
def test_a_prefix_does_not_match_a_longer_one(location: str, tmp_path: Path, ending: str) -> None:
    for name in ("v1", "v10"):
        store.put(make(tmp_path / name, {"name": name.encode()}), store.join(location, name))
    assert read_all(store.fetch(location + ending, tmp_path / "to")) == {"name": b"v1"}
    assert store.read(location + ending, "name") == b"v1"
    store.remove(location + ending)
    assert store.children(location) == ["v10"]
    assert read_all(store.fetch(store.join(location, "v10"), tmp_path / "to 10")) == {"name": b"v10"}


def test_remove_deletes_everything_below_a_location(location: str, tmp_path: Path) -> None:
    store.put(make(tmp_path / "from"), store.join(location, "v1"))
    store.remove(store.join(location, "v1"))
    assert store.children(location) == []
    store.remove(store.join(location, "v1"))


def test_a_location_without_files_is_a_named_error(location: str, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="holds no file: check the location and its final /"):
        store.fetch(store.join(location, "nothing"), tmp_path / "to")


def test_a_file_is_listed_and_read_in_parts(location: str, tmp_path: Path) -> None:
    store.put(make(tmp_path / "from"), location)
    assert [(file.name, file.size) for file in store.files(location)] == sorted((name, len(FILES[name])) for name in FILES)
    assert [store.has(location, name) for name in ("config.json", "config", "sub")] == [True, False, False]
    with store.open_file(location, "sub/model.safetensors") as file:
        file.seek(-10, io.SEEK_END)
        assert (file.read(4), file.read()) == (FILES["sub/model.safetensors"][-10:-6], FILES["sub/model.safetensors"][-6:])


def test_a_file_is_written_completely_or_not_at_all(location: str) -> None:
    with store.writing(location, "a") as path:
        path.write_bytes(b"first")

    def interrupted() -> None:
        with store.writing(location, "a") as path:
            path.write_bytes(b"sec")
            raise KeyError

    with pytest.raises(KeyError):
        interrupted()
    assert [(file.name, store.read(location, file.name)) for file in store.files(location)] == [("a", b"first")]


def test_write_new_never_replaces_a_file(location: str) -> None:
    assert [store.write_new(location, "a", content) for content in (b"first", b"second")] == [True, False]
    assert store.read(location, "a") == b"first"


def test_putting_again_replaces_the_files(location: str, tmp_path: Path) -> None:
    store.put(make(tmp_path / "from", {"a": b"long before"}), location)
    store.put(make(tmp_path / "from", {"a": b"after"}), location)
    assert store.read(location, "a") == b"after"


@pytest.mark.parametrize(
    ("parts", "joined"),
    [(("s3://b", "models", "m"), "s3://b/models/m/"), (("s3://b/p/", "m"), "s3://b/p/m/"), (("store/",), "store/")],
)
def test_a_joined_location_ends_with_a_slash(parts: tuple[str, ...], joined: str) -> None:
    assert store.join(*parts) == joined


def test_a_location_without_a_bucket_is_a_named_error(tmp_path: Path) -> None:
    with pytest.raises(BadAddress, match="names no bucket: write s3://bucket/prefix/"):
        store.fetch("s3:///prefix/", tmp_path)


def test_a_missing_bucket_is_a_named_error(stack: Path, tmp_path: Path) -> None:
    make(tmp_path / "from", {"a": b"x"})
    for call in (
        lambda: store.fetch("s3://no-such-bucket/v1/", tmp_path / "to"),
        lambda: store.read("s3://no-such-bucket/v1/", "a"),
        lambda: store.children("s3://no-such-bucket/v1/"),
    ):
        with pytest.raises(StorageError, match=r"s3://no-such-bucket/v1/: there is no such bucket \(\w+\): create it"):
            call()


@pytest.mark.parametrize("variable", ["AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID"])
@pytest.mark.fault("store-denied")
def test_a_wrong_key_is_a_named_error_at_once(
    bucket: str, tmp_path: Path, configure_s3: Callable[..., None], variable: str
) -> None:
    store.put(make(tmp_path / "from", {"a": b"x"}), bucket)
    configure_s3(**{variable: "wrong"})
    for action in (
        lambda: store.put(tmp_path / "from", bucket),
        lambda: store.fetch(bucket, tmp_path / "to"),
        lambda: store.read(bucket, "a"),
        lambda: store.open_file(bucket, "a"),
        lambda: store.write_new(bucket, "b", b"x"),
        lambda: store.children(bucket),
        lambda: store.remove(bucket),
    ):
        started = time.monotonic()
        with pytest.raises(StorageError, match=r"(access denied|credentials are not valid there) \(\w+\): check "):
            action()
        assert time.monotonic() - started < 5


@pytest.mark.fault("store-denied")
def test_a_denied_request_is_not_retried(bucket: str, tmp_path: Path, through: Callable[..., Gateway]) -> None:
    gateway = through(lambda method, path, number: "AccessDenied")
    with pytest.raises(StorageError, match="access denied"):
        store.put(make(tmp_path / "from", {"a": b"x"}), bucket)
    assert [method for method, _ in gateway.requests] == ["PUT"]


@pytest.mark.parametrize("code", ["SlowDown", "InternalError"])
@pytest.mark.fault("store-recovers")
def test_a_store_that_recovers_is_retried(bucket: str, tmp_path: Path, through: Callable[..., Gateway], code: str) -> None:
    gateway = through(lambda method, path, number: code if number <= 2 else None)
    store.put(make(tmp_path / "from", {"a": b"x"}), bucket)
    assert [method for method, _ in gateway.requests] == ["PUT"] * 3
    assert store.read(bucket, "a") == b"x"


@pytest.mark.fault("store-recovers")
@pytest.mark.parametrize("cut", [2, 100])
def test_a_response_that_ends_within_an_object_is_requested_again(
    cut: int, configure_s3: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3, "ATTEMPTS", 3)
    reads: tuple[Callable[[], bytes | None], ...] = (
        lambda: store.read("s3://bucket/", "a"),
        lambda: store.open_file("s3://bucket/", "a").read(),
    )
    for read in reads:
        with object_store.running(object_store.Behaviour(cut=cut)) as server:
            configure_s3(AWS_ENDPOINT_URL=server.url, **object_store.KEYS)
            server.objects["bucket/a"] = b"abcdef"
            if cut == 2:
                assert read() == b"abcdef"
            else:
                with pytest.raises(StorageError, match=r"the object store cannot be reached"):
                    read()
            assert [method for method, _ in server.requests if method == "GET"] == ["GET"] * 3


@pytest.mark.fault("store-recovers")
def test_a_response_with_half_of_an_object_is_not_taken_for_all_of_it(
    configure_s3: Callable[..., None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Half of a data set would be read without a word."""
    with object_store.running(object_store.Behaviour(short=1)) as server:
        configure_s3(AWS_ENDPOINT_URL=server.url, **object_store.KEYS)
        server.objects["bucket/a"] = b"abcdef"
        with pytest.raises(StorageError, match=r"s3://bucket/a: the store returned 3 bytes in place of 6: try again later"):
            store.open_file("s3://bucket/", "a").read()
        server.behaviour.short = 1
        with pytest.raises(FileChanged, match=r"s3://bucket/a has changed since it was listed, when it had 6 bytes"):
            store.fetch("s3://bucket/", tmp_path)
        server.behaviour.short = 1
        monkeypatch.setenv("GOEMOTIONS_OUTAGE_SECONDS", "20")
        assert store.open_file("s3://bucket/", "a").read() == b"abcdef"


@pytest.mark.fault("store-recovers")
def test_retries_are_bounded(bucket: str, monkeypatch: pytest.MonkeyPatch, through: Callable[..., Gateway]) -> None:
    monkeypatch.setattr(s3, "ATTEMPTS", 2)
    gateway = through(lambda method, path, number: "SlowDown")
    with pytest.raises(StorageError, match=r"refused 2 times \(SlowDown\): try again later"):
        store.read(bucket, "a")
    assert len(gateway.requests) == 2


def test_a_server_that_is_down_is_a_named_error_in_bounded_time(configure_s3: Callable[..., None], tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    configure_s3(AWS_ENDPOINT_URL=f"http://127.0.0.1:{port}", AWS_ACCESS_KEY_ID="a", AWS_SECRET_ACCESS_KEY="b")
    started = time.monotonic()
    with pytest.raises(StorageError, match=r"the object store cannot be reached .*: check AWS_ENDPOINT_URL and that it runs"):
        store.fetch("s3://bucket/v1/", tmp_path)
    assert time.monotonic() - started < 60


def test_missing_keys_are_a_named_error(
    configure_s3: Callable[..., None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    configure_s3(
        AWS_EC2_METADATA_DISABLED="true",
        AWS_SHARED_CREDENTIALS_FILE=str(tmp_path / "none"),
        AWS_CONFIG_FILE=str(tmp_path / "none"),
        AWS_ENDPOINT_URL="http://127.0.0.1:9",
    )
    with pytest.raises(StorageError, match=r"no S3 credentials \(NoCredentialsError\): set AWS_ACCESS_KEY_ID"):
        store.children("s3://bucket/v1/")


def whole(folder: Path) -> Path:
    make(folder, {"Z": b"z", "a": b"a", "sub/m": b"m"})
    manifest.write(folder)
    return folder


def test_the_manifest_is_uploaded_last_and_removed_first(bucket: str, tmp_path: Path, through: Callable[..., Gateway]) -> None:
    gateway = through(lambda method, path, number: None)
    store.put(whole(tmp_path / "from"), bucket)
    store.remove(bucket)
    names = {
        method: [urlsplit(path).path.rpartition("/")[2] for used, path in gateway.requests if used == method]
        for method in ("PUT", "DELETE")
    }
    assert sorted(names["PUT"][:-1]) == ["Z", "a", "m"]
    assert names["PUT"][-1] == manifest.NAME
    assert sorted(names["DELETE"][1:]) == ["Z", "a", "m"]
    assert names["DELETE"][0] == manifest.NAME


@pytest.mark.parametrize("stop", [1, 2, 3, 4])
@pytest.mark.fault("upload-interrupted")
def test_an_interrupted_upload_does_not_verify(bucket: str, tmp_path: Path, through: Callable[..., Gateway], stop: int) -> None:
    refused = {"from": stop}
    through(lambda method, path, number: "AccessDenied" if method == "PUT" and number >= refused["from"] else None)
    with pytest.raises(StorageError, match="access denied"):
        store.put(whole(tmp_path / "from"), bucket)
    assert store.read(bucket, manifest.NAME) is None
    if stop > 1:
        with pytest.raises(IntegrityError, match=f"has no readable {manifest.NAME}"):
            manifest.verify(store.fetch(bucket, tmp_path / "to"))
    refused["from"] = 10_000
    store.put(tmp_path / "from", bucket)
    manifest.verify(store.fetch(bucket, tmp_path / "again"))


@pytest.mark.parametrize("changed", [b"", b"m" * 2, b"x"])
@pytest.mark.fault("object-damaged")
def test_an_object_changed_in_the_store_does_not_verify(bucket: str, tmp_path: Path, changed: bytes) -> None:
    store.put(whole(tmp_path / "from"), bucket)
    place = s3.S3Backend(bucket)
    s3.client().put_object(Bucket=place.bucket, Key=f"{place.prefix}sub/m", Body=changed)
    with pytest.raises(IntegrityError, match=r"sub/m differs from its manifest"):
        manifest.verify(store.fetch(bucket, tmp_path / "to"))


@pytest.mark.parametrize("size", [1, 20 * 2**20], ids=["at once", "in parts"])
@pytest.mark.parametrize("change", ["replaced", "removed"])
@pytest.mark.fault("input-changed")
def test_files_that_change_while_they_are_fetched_are_a_named_error(
    bucket: str, tmp_path: Path, through: Callable[..., Gateway], change: str, size: int
) -> None:
    """The copy would be of two versions; an object of several parts may itself be."""
    make(tmp_path / "from", {"a": b"1", "b": b"1" * size})
    store.put(tmp_path / "from", bucket)

    def act(method: str, path: str, number: int) -> str:
        if method == "GET" and "/b?" not in path and path.endswith("/b") and not done:
            done.append(path)
            if change == "removed":
                direct.delete_object(Bucket=name, Key=f"{prefix}a")
                direct.delete_object(Bucket=name, Key=f"{prefix}b")
            else:
                direct.put_object(Bucket=name, Key=f"{prefix}a", Body=b"2")
                direct.put_object(Bucket=name, Key=f"{prefix}b", Body=b"2" * size)
        return ""

    done: list[str] = []
    direct, (name, _, prefix) = s3.client(), bucket.removeprefix("s3://").partition("/")
    through(act)
    with pytest.raises(FileChanged, match=rf"^{bucket}[ab] has changed since it was listed"):
        store.fetch(bucket, tmp_path / "to")
    assert done


@pytest.mark.parametrize("size", [1, 20 * 2**20], ids=["at once", "in parts"])
@pytest.mark.parametrize("change", ["replaced", "removed"])
@pytest.mark.fault("input-changed")
def test_files_that_change_while_they_are_uploaded_are_a_named_error(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str, size: int
) -> None:
    make(tmp_path, {"a": b"1", "b": b"1" * size})
    upload = s3.S3Backend.upload

    def changed(backend: s3.S3Backend, path: Path, name: str) -> None:
        if name == "b":
            path.unlink() if change == "removed" else path.write_bytes(b"2" * size)
        upload(backend, path, name)

    monkeypatch.setattr(s3.S3Backend, "upload", changed)
    with pytest.raises(FileChanged, match=rf"^{tmp_path}/b has changed since it was listed"):
        store.put(tmp_path, bucket)
    assert not store.has(bucket, manifest.NAME)


@pytest.mark.fault("bundle-forged")
def test_of_a_file_that_is_replaced_by_a_large_one_nothing_is_downloaded(
    bucket: str, tmp_path: Path, through: Callable[..., Gateway]
) -> None:
    """Its size was compared with the signed manifest; who can write there waits until then, and fills the disk."""
    manifest.write(make(tmp_path / "from", {"a": b"1"}))
    store.put(tmp_path / "from", bucket)

    def act(method: str, path: str, number: int) -> str:
        if path.endswith("/a"):
            direct.put_object(Bucket=name, Key=f"{prefix}a", Body=bytes(40 * 2**20))
        return ""

    direct, (name, _, prefix) = s3.client(), bucket.removeprefix("s3://").partition("/")
    gateway = through(act)
    with pytest.raises(FileChanged, match=rf"^{bucket}a has changed since it was listed, when it had 1 bytes"):
        store.fetch_named(bucket, tmp_path / "to")
    assert len([path for _, path in gateway.requests if path.endswith("/a")]) == 1, "parts of it were requested"
    assert list((tmp_path / "to").iterdir()) == []


@pytest.mark.parametrize("names", [["x" * 300], ["a", "a/b"]])
@pytest.mark.fault("stored-name-unfit")
def test_names_that_no_folder_can_hold_are_named_errors(
    tmp_path: Path, configure_s3: Callable[..., None], names: list[str]
) -> None:
    with object_store.running(object_store.Behaviour()) as server:
        configure_s3(AWS_ENDPOINT_URL=server.url, **object_store.KEYS)
        server.objects.update({f"b/p/{name}": b"x" for name in names})
        with pytest.raises(
            StorageError, match=r"holds a file named '.{3,200}', which no folder can hold \(File .*\): remove it"
        ):
            store.fetch("s3://b/p/", tmp_path)


@pytest.mark.fault("upload-interrupted")
def test_a_folder_whose_files_are_removed_while_it_is_uploaded_gets_no_manifest(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As by a cleaning that began before the step did."""
    for name in ("a", "b"):
        (tmp_path / name).write_bytes(b"x")
    manifest.write(tmp_path)
    upload = s3.S3Backend.upload

    def removing(backend: s3.S3Backend, path: Path, name: str) -> None:
        upload(backend, path, name)
        if name == "b":
            backend.delete(["a"])

    monkeypatch.setattr(s3.S3Backend, "upload", removing)
    with pytest.raises(StorageError, match=r"/: 'a' is not there after it was written: it was removed meanwhile"):
        store.put(tmp_path, bucket)
    assert [file.name for file in store.files(bucket)] == ["b"]


@pytest.mark.parametrize("name", ["../outside", "sub/../../outside", "/outside"])
def test_an_object_named_to_leave_its_folder_is_refused(
    bucket: str, tmp_path: Path, through: Callable[..., Gateway], name: str
) -> None:
    prefix = s3.S3Backend(bucket).prefix
    entry = (
        f"<Key>{prefix}{name}</Key><LastModified>2026-01-01T00:00:00Z</LastModified><Size>1</Size><ETag>&quot;1&quot;</ETag>"
    )
    listing = f"<ListBucketResult><Contents>{entry}</Contents></ListBucketResult>".encode()
    through(lambda method, path, number: listing)
    with pytest.raises(StorageError, match=r"holds a file named .*outside', which would leave its folder: remove it"):
        store.fetch(bucket, tmp_path / "to")
    assert list(tmp_path.iterdir()) == []
