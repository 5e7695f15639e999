"""What killed processes leave: temporary folders, half-written files and parts of uploads are removed at the next start."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from goemotions.errors import StorageError
from goemotions.storage import manifest, probe, s3, store, temporary
from goemotions.storage.temporary import temporary_folder

KILLED = """
import os, signal
from pathlib import Path
from goemotions.storage.temporary import temporary_folder
with temporary_folder() as folder:
    (Path(folder) / "model.safetensors").write_bytes(b"x" * 1000)
    print(folder, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    temporary._sweep_once.cache_clear()
    return tmp_path


@pytest.mark.fault("leftovers")
def test_the_temporary_folder_of_a_killed_process_is_removed_and_others_stay(elsewhere: Path) -> None:
    environment = os.environ | {"TMPDIR": str(elsewhere)}
    killed = subprocess.run([sys.executable, "-c", KILLED], env=environment, stdout=subprocess.PIPE, text=True, check=False)
    left = Path(killed.stdout.strip())
    assert (left / "model.safetensors").is_file()
    others = [elsewhere / "goemotions-data", elsewhere / "mine"]
    for other in others:
        (other / "files").mkdir(parents=True)
    (elsewhere / "goemotions-link").symlink_to(left.parent)
    with temporary_folder() as used:
        assert not left.exists()
        (used / "file").touch()
        temporary.sweep(elsewhere)
        assert (used / "file").is_file(), "the folder of a process that runs stays"
    assert not used.parent.exists()
    assert all(other.is_dir() for other in others)


@pytest.mark.fault("leftovers")
def test_every_temporary_folder_is_one_that_the_next_start_removes() -> None:
    package = Path(temporary.__file__).parents[1]
    for path in package.rglob("*.py"):
        made = any(
            name in path.read_text(encoding="utf-8") for name in ("TemporaryDirectory(", "mkdtemp(", "NamedTemporaryFile(")
        )
        assert made == (path == Path(temporary.__file__)), path


@pytest.mark.fault("leftovers")
def test_old_parts_of_scored_files_are_removed_at_the_next_start(tmp_path: Path) -> None:
    for name, age in ((".part-000000.parquet.aa.partial", 7200), (".part-000001.parquet.bb.partial", 0)):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (time.time() - age,) * 2)
    store.sweep(str(tmp_path), 3600)
    assert [path.name for path in tmp_path.iterdir()] == [".part-000001.parquet.bb.partial"]


def uploads(bucket: str) -> list[str]:
    backend = s3.S3Backend(bucket)
    response = s3.client().list_multipart_uploads(Bucket=backend.bucket, Prefix=backend.prefix)
    return [upload["Key"].removeprefix(backend.prefix) for upload in response.get("Uploads", [])]


@pytest.mark.fault("leftovers")
def test_uploads_that_were_interrupted_are_aborted(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = s3.S3Backend(bucket)
    for name in ("step-1/state", "step-2/state"):
        s3.client().create_multipart_upload(Bucket=backend.bucket, Key=f"{backend.prefix}{name}")
    store.sweep(bucket)
    assert uploads(bucket) == ["step-1/state", "step-2/state"], "a process that runs may have begun them"
    store.remove(f"{bucket}step-1/")
    assert uploads(bucket) == ["step-2/state"]
    monkeypatch.setattr(s3, "ABANDONED_SECONDS", 0.0)
    store.sweep(bucket)
    assert uploads(bucket) == []


@pytest.mark.fault("leftovers")
def test_the_probe_of_a_killed_process_is_removed_by_a_later_one(bucket: str) -> None:
    old, young = (f"probe-{int(time.time()) - age}-0.json" for age in (2 * 86_400, 60))
    for name in (old, young, "probe-mine.json"):
        store.write(bucket, name, b"{}")
    probe.run(bucket)
    assert [file.name for file in store.files(bucket)] == [young, "probe-mine.json"]


def test_a_folder_is_removed_with_its_manifests_first_or_is_a_named_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for step in ("step-1", "step-2"):
        (tmp_path / "run" / step).mkdir(parents=True)
        for name in ("state", manifest.NAME):
            (tmp_path / "run" / step / name).touch()

    def killed(_: Path) -> None:
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patched:
        patched.setattr("shutil.rmtree", killed)
        with pytest.raises(StorageError, match=r"run cannot be removed .Permission denied.: check its permissions"):
            store.remove(str(tmp_path / "run"))
    assert not list(tmp_path.rglob(manifest.NAME))
    store.remove(str(tmp_path / "run"))
    store.remove(str(tmp_path / "run"))
    assert list(tmp_path.iterdir()) == []
