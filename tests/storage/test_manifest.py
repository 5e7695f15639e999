"""The manifest: a folder with any changed byte does not verify."""

import json
import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from goemotions.errors import IntegrityError
from goemotions.storage import manifest
from goemotions.storage.folder import PARTIAL

bounded = settings(max_examples=50, deadline=None)

contents = st.dictionaries(
    st.sampled_from(["a", "b.bin", "sub/c", "sub/deeper/d.json", ".hidden"]), st.binary(min_size=1, max_size=40), min_size=1
)


def make(folder: Path, files: dict[str, bytes]) -> None:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    make(tmp_path, {"weights": b"0123456789", "sub/config.json": b"{}"})
    manifest.write(tmp_path, variant="cpu")
    return tmp_path


@bounded
@given(contents)
def test_an_unchanged_folder_verifies(files: dict[str, bytes]) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        make(Path(scratch), files)
        manifest.write(Path(scratch), run="r1")
        content = manifest.verify(Path(scratch))
    assert {name: entry["size"] for name, entry in content["files"].items()} == {n: len(c) for n, c in files.items()}
    assert content["run"] == "r1"


@bounded
@given(contents, st.data())
@pytest.mark.fault("object-damaged")
def test_every_changed_byte_is_detected(files: dict[str, bytes], data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(sorted(files)))
    position = data.draw(st.integers(0, len(files[name]) - 1))
    flip = data.draw(st.integers(1, 255))
    changed = bytearray(files[name])
    changed[position] ^= flip
    refuse(files, name, bytes(changed))


@bounded
@given(contents, st.data())
@pytest.mark.fault("object-damaged")
def test_every_truncation_is_detected(files: dict[str, bytes], data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(sorted(files)))
    refuse(files, name, files[name][: data.draw(st.integers(0, len(files[name]) - 1))])


@bounded
@given(contents, st.binary(min_size=1, max_size=5), st.data())
def test_every_added_byte_is_detected(files: dict[str, bytes], extra: bytes, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(sorted(files)))
    refuse(files, name, files[name] + extra)


def refuse(files: dict[str, bytes], name: str, changed: bytes) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        make(Path(scratch), files)
        manifest.write(Path(scratch))
        (Path(scratch) / name).write_bytes(changed)
        with pytest.raises(IntegrityError, match="differs from its manifest: fetch it again"):
            manifest.verify(Path(scratch))


@pytest.mark.parametrize("name", ["weights", "sub/config.json"])
def test_a_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(IntegrityError, match=f"lacks {name}: fetch it again"):
        manifest.verify(folder)


@pytest.mark.parametrize("name", ["weights", manifest.NAME])
def test_a_pipe_is_not_waited_for(folder: Path, name: str) -> None:
    (folder / name).unlink()
    os.mkfifo(folder / name)
    with pytest.raises(IntegrityError, match=r"lacks weights|has no readable MANIFEST.json"):
        manifest.verify(folder)


def test_a_folder_instead_of_a_file_is_a_missing_file(folder: Path) -> None:
    (folder / "weights").unlink()
    (folder / "weights").mkdir()
    with pytest.raises(IntegrityError, match="lacks weights"):
        manifest.verify(folder)


def test_a_file_that_is_not_listed_is_ignored(folder: Path) -> None:
    (folder / "registered_model_meta").write_text("model_name: goemotions\n")
    assert manifest.verify(folder)["variant"] == "cpu"


OUTSIDE, TOO_LONG = r"names '.*', which is outside the folder", r"x cannot be read \(File name too long\)"


@pytest.mark.fault("unnamed-file", "stored-name-unfit")
@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("../outside", OUTSIDE),
        ("/etc/hostname", OUTSIDE),
        ("sub/../../outside", OUTSIDE),
        ("x" * 300, TOO_LONG),
        ("sub/" * 2000 + "x", TOO_LONG),
    ],
    ids=["above", "absolute", "above within", "long name", "long path"],
)
def test_a_manifest_that_names_a_file_outside_or_one_that_cannot_be_read_is_refused(
    name: str, reason: str, folder: Path
) -> None:
    content = json.loads((folder / manifest.NAME).read_text())
    content["files"][name] = content["files"]["weights"]
    (folder / manifest.NAME).write_text(json.dumps(content))
    with pytest.raises(IntegrityError, match=f"{reason}: fetch it again"):
        manifest.verify(folder)


@pytest.mark.fault("unnamed-file")
def test_a_link_is_verified_by_what_it_leads_to(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    outside = (folder / "weights").rename(tmp_path_factory.mktemp("outside") / "weights")
    (folder / "weights").symlink_to(outside)
    assert manifest.verify(folder)["variant"] == "cpu"
    outside.write_bytes(b"9876543210")
    with pytest.raises(IntegrityError, match="weights differs from its manifest"):
        manifest.verify(folder)


def test_a_folder_that_is_a_link_itself_verifies(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    link = tmp_path_factory.mktemp("links") / "link"
    link.symlink_to(folder)
    assert manifest.verify(link)["variant"] == "cpu"


@pytest.mark.fault("unnamed-file")
def test_a_folder_with_other_files_is_seen_without_them(folder: Path) -> None:
    with manifest.only_named(folder) as seen:
        assert seen == folder
    (folder / "sub" / "other").write_text("x")
    (folder / "dangling").symlink_to("nowhere")
    with manifest.only_named(folder) as seen:
        names = sorted(path.relative_to(seen).as_posix() for path in seen.rglob("*") if path.is_file())
        assert names == [manifest.NAME, "sub/config.json", "weights"]
        assert manifest.verify(folder) == manifest.read(seen)


@pytest.mark.fault("unnamed-file")
def test_a_linked_folder_that_is_not_named_is_not_seen(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    adapter = tmp_path_factory.mktemp("adapter")
    (adapter / "adapter_config.json").write_text("{}")
    (folder / "linked").symlink_to(adapter)
    with manifest.only_named(folder) as seen:
        assert not (seen / "linked").exists()
        assert (seen / "sub" / "config.json").is_file()


def test_an_empty_file_is_refused_and_no_manifest_is_written(tmp_path: Path) -> None:
    make(tmp_path, {"a": b"x", "sub/empty": b""})
    with pytest.raises(IntegrityError, match="sub/empty is empty"):
        manifest.write(tmp_path)
    assert not (tmp_path / manifest.NAME).exists()


@pytest.mark.parametrize(
    "content",
    [
        None,
        b"",
        b"[]",
        b"null",
        b"\xff\xfe",
        b'{"files": []}',
        b'{"variant": "cpu"}',
        b'{"files": {"weights": 10}}',
        b'{"files": {"weights": {"size": 10}}}',
        b'{"files": {"weights": null}}',
    ],
)
def test_a_damaged_manifest_is_a_named_error(folder: Path, content: bytes | None) -> None:
    (folder / manifest.NAME).unlink()
    if content is not None:
        (folder / manifest.NAME).write_bytes(content)
    with pytest.raises(IntegrityError, match=rf"has no readable {manifest.NAME}: it is not complete, fetch it again"):
        manifest.verify(folder)


@bounded
@given(st.data())
def test_changed_files_do_not_verify_with_a_changed_manifest_either(data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        make(Path(scratch), {"weights": b"0123456789"})
        manifest.write(Path(scratch))
        path = Path(scratch) / manifest.NAME
        content = bytearray(path.read_bytes())
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
        path.write_bytes(content)
        (Path(scratch) / "weights").write_bytes(b"0123456780")
        with pytest.raises(IntegrityError):
            manifest.verify(Path(scratch))


def test_a_truncated_manifest_is_a_named_error(folder: Path) -> None:
    content = (folder / manifest.NAME).read_bytes()
    for length in range(0, len(content), 7):
        (folder / manifest.NAME).write_bytes(content[:length])
        with pytest.raises(IntegrityError, match="has no readable"):
            manifest.verify(folder)


def test_writing_it_again_gives_the_same_bytes(folder: Path) -> None:
    before = (folder / manifest.NAME).read_bytes()
    manifest.write(folder, variant="cpu")
    assert (folder / manifest.NAME).read_bytes() == before


def test_the_temporary_manifest_of_a_crash_is_not_listed(folder: Path) -> None:
    (folder / f".{manifest.NAME}{PARTIAL}").write_text('{"files"')
    manifest.write(folder)
    assert sorted(manifest.verify(folder)["files"]) == ["sub/config.json", "weights"]


def test_nothing_but_the_manifest_is_added(folder: Path) -> None:
    assert sorted(path.name for path in folder.iterdir()) == [manifest.NAME, "sub", "weights"]
    assert json.loads((folder / manifest.NAME).read_text())["files"]["weights"]["size"] == 10
