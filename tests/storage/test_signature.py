"""Signatures: only a trusted key's signature of this manifest is accepted, and keys are never shown."""

from __future__ import annotations

import base64
import json
import os
import stat
from pathlib import Path

import pytest
from click.testing import CliRunner
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from goemotions.cli import main as cli
from goemotions.errors import BadArgument, UntrustedBundle
from goemotions.storage import manifest, signature

IDENTITY = {"model_name": "goemotions", "run_id": "r1", "variant": "cpu"}


@pytest.fixture
def keys(tmp_path: Path) -> tuple[Path, str]:
    """A folder with a pair of keys, and their id."""
    return tmp_path / "keys", signature.create_keys(tmp_path / "keys")


@pytest.fixture
def folder(tmp_path: Path, keys: tuple[Path, str], monkeypatch: pytest.MonkeyPatch) -> Path:
    """A signed folder; the public key is trusted, and the private one is gone."""
    folder = tmp_path / "signed"
    folder.mkdir()
    (folder / "weights").write_bytes(b"0123456789")
    manifest.write(folder, run_id="r1")
    monkeypatch.setenv(signature.SIGNING_KEY, str(keys[0] / signature.PRIVATE_FILE))
    signature.sign_folder(folder, IDENTITY)
    monkeypatch.delenv(signature.SIGNING_KEY)
    monkeypatch.setenv(signature.TRUSTED_KEYS, str(keys[0] / signature.PUBLIC_FILE))
    return folder


def test_the_command_makes_keys_and_shows_no_private_one(tmp_path: Path) -> None:
    result = CliRunner().invoke(cli.commands, ["keys", "create", "--output", str(tmp_path / "keys")])
    private, public = tmp_path / "keys" / signature.PRIVATE_FILE, tmp_path / "keys" / signature.PUBLIC_FILE
    assert result.exit_code == 0, result.output
    assert stat.S_IMODE(private.stat().st_mode) == 0o600
    assert private.read_text().startswith("-----BEGIN " + "PRIVATE KEY-----")
    assert public.read_text().startswith("-----BEGIN PUBLIC KEY-----")
    assert not any(line in result.output for line in private.read_text().splitlines())
    before = private.read_bytes()
    again = CliRunner().invoke(cli.commands, ["keys", "create", "--output", str(tmp_path / "keys")])
    assert isinstance(again.exception, BadArgument)
    assert "keys are never overwritten" in str(again.exception)
    assert private.read_bytes() == before


def test_a_signature_is_accepted_and_says_whose_folder_it_is(folder: Path, keys: tuple[Path, str]) -> None:
    signed = signature.verify_folder(folder)
    assert (signed.key, signed.identity, str(signed)) == (keys[1], IDENTITY, f"signed by the key {keys[1]}")


def test_without_trusted_keys_every_folder_is_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(signature.TRUSTED_KEYS)
    assert str(signature.verify_folder(folder)) == "signed, but GOEMOTIONS_TRUSTED_KEYS has no key to check it"
    (folder / signature.NAME).unlink()
    assert str(signature.verify_folder(folder)) == "not signed"


def edited(folder: Path, **fields: str) -> None:
    path = folder / signature.NAME
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def other_statement(folder: Path) -> None:
    edited(folder, statement=json.loads((folder / signature.NAME).read_text())["statement"].replace("cpu", "gpu"))


FORGERIES = {
    "no signature": (lambda folder: (folder / signature.NAME).unlink(), "is not signed, and GOEMOTIONS_TRUSTED_KEYS is set"),
    "another manifest": (lambda folder: manifest.write(folder, run_id="r2"), "signs another MANIFEST.json"),
    "another statement": (other_statement, "is not signed by a trusted key"),
    "another signature": (
        lambda folder: edited(folder, signature=base64.b64encode(bytes(64)).decode()),
        "is not signed by a trusted key",
    ),
    "a short signature": (lambda folder: edited(folder, signature="AAAA"), "is not signed by a trusted key"),
    "no base64": (lambda folder: edited(folder, signature="?"), "SIGNATURE.json is damaged"),
    "no JSON": (lambda folder: (folder / signature.NAME).write_bytes(b"\xff{"), "SIGNATURE.json is damaged"),
    "a list": (lambda folder: (folder / signature.NAME).write_text("[]"), "SIGNATURE.json is damaged"),
    "surrogates": (lambda folder: edited(folder, statement="\ud800"), "SIGNATURE.json is damaged"),
    "a megabyte": (lambda folder: (folder / signature.NAME).write_bytes(b" " * 2**20), "SIGNATURE.json is damaged"),
    "blanks after it": (
        lambda folder: (folder / signature.NAME).open("ab").write(b" " * signature.MOST_BYTES),
        "SIGNATURE.json is damaged",
    ),
    "a long name of a key": (
        lambda folder: edited(folder, key="x" * 10_000, signature="AAAA"),
        r"is not signed by a trusted key: it names 'x{64}'",
    ),
}


@pytest.mark.fault("bundle-forged")
@pytest.mark.parametrize("forgery", FORGERIES)
def test_a_forged_signature_is_refused(forgery: str, folder: Path) -> None:
    change, message = FORGERIES[forgery]
    change(folder)
    with pytest.raises(UntrustedBundle, match=message) as raised:
        signature.verify_folder(folder)
    assert len(str(raised.value)) < 1000


@pytest.mark.fault("bundle-forged")
def test_keys_are_rotated_by_trusting_both(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old, new = tmp_path / "keys" / signature.PUBLIC_FILE, tmp_path / "new" / signature.PUBLIC_FILE
    signature.create_keys(new.parent)
    both = old.read_text() + new.read_text()
    (tmp_path / "all").mkdir()
    (tmp_path / "all" / "old.pub").write_text(old.read_text())
    (tmp_path / "all" / "new.pub").write_text(new.read_text())
    for trusted in (f"{new}{os.pathsep}{old}", both, str(tmp_path / "all")):
        monkeypatch.setenv(signature.TRUSTED_KEYS, trusted)
        assert signature.verify_folder(folder).key
    monkeypatch.setenv(signature.TRUSTED_KEYS, str(new))
    with pytest.raises(UntrustedBundle, match="is not signed by a trusted key"):
        signature.verify_folder(folder)


def test_who_signs_trusts_its_own_key(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(signature.TRUSTED_KEYS)
    monkeypatch.setenv(signature.SIGNING_KEY, (tmp_path / "keys" / signature.PRIVATE_FILE).read_text())
    assert signature.verify_folder(folder).key == signature.signing_key()
    (folder / signature.NAME).unlink()
    with pytest.raises(UntrustedBundle, match="is not signed"):
        signature.verify_folder(folder)


@pytest.mark.parametrize(
    "value",
    ["{folder}/absent", "{folder}/empty", "{folder}", "{folder}/signing.key", "-----BEGIN x", "~nobody-here/trusted.pub"],
)
def test_trusted_keys_that_cannot_be_read_are_an_error_not_no_keys(
    value: str, folder: Path, keys: tuple[Path, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (keys[0] / "empty").write_text("")
    (keys[0] / signature.PUBLIC_FILE).rename(keys[0] / "elsewhere")
    monkeypatch.setenv(signature.TRUSTED_KEYS, value.format(folder=keys[0]))
    with pytest.raises(BadArgument, match="GOEMOTIONS_TRUSTED_KEYS"):
        signature.verify_folder(folder)


def test_a_key_of_another_kind_among_the_trusted_ones_is_an_error(
    folder: Path, keys: tuple[Path, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    other = ec.generate_private_key(ec.SECP256R1()).public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    monkeypatch.setenv(signature.TRUSTED_KEYS, (keys[0] / signature.PUBLIC_FILE).read_text() + other.decode())
    with pytest.raises(BadArgument, match="has no Ed25519 public key, or others too"):
        signature.verify_folder(folder)


@pytest.mark.parametrize(
    "value", ["-----BEGIN " + "PRIVATE KEY-----\nMC4CAQAwBQYDK2Vw", "/absent/secret-name", "~nobody-here/key", "trusted"]
)
def test_a_signing_key_that_cannot_be_read_is_not_shown(
    value: str, keys: tuple[Path, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    value = str(keys[0] / signature.PUBLIC_FILE) if value == "trusted" else value
    monkeypatch.setenv(signature.SIGNING_KEY, value)
    with pytest.raises(BadArgument, match="GOEMOTIONS_SIGNING_KEY has no Ed25519 key in PEM") as raised:
        signature.signing_key()
    assert value.splitlines()[-1] not in str(raised.value)
    assert raised.value.__cause__ is None
