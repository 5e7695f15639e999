"""Signatures of complete folders. A manifest alone proves only that no file changed since somebody wrote it, not who wrote it.

``registry`` signs what it stores with the private key in GOEMOTIONS_SIGNING_KEY, which no other step needs. Who reads it checks the
signature if GOEMOTIONS_TRUSTED_KEYS has public keys. Both are PEM, as text or as a path; the second may be several paths or a folder.

What is signed is a statement: the sha256 of the manifest, which covers every other file, and whose folder it is, such as the name of
the registered model. The signature is in a file of its own, because the manifest is written before it.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from goemotions import addresses, strict_json
from goemotions.errors import BadArgument, UntrustedBundle
from goemotions.storage import manifest

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

NAME = "SIGNATURE.json"
SIGNING_KEY, TRUSTED_KEYS = "GOEMOTIONS_SIGNING_KEY", "GOEMOTIONS_TRUSTED_KEYS"
PRIVATE_FILE, PUBLIC_FILE = "signing.key", "trusted.pub"
# Signed before each statement, so that the key's signature of anything else is none of a statement.
CONTEXT = b"goemotions signature 1\n"
MOST_BYTES = 16_384
PUBLIC_KEY = re.compile(rb"-----BEGIN PUBLIC KEY-----.+?-----END PUBLIC KEY-----", re.DOTALL)


@dataclass(frozen=True)
class Signature:
    """A signature that was checked: the id of its key and whose folder it says it is. Without trusted keys ``key`` is empty."""

    key: str = ""
    identity: dict[str, str] = field(default_factory=dict)
    is_present: bool = False

    def __str__(self) -> str:
        if self.key:
            return f"signed by the key {self.key}"
        return f"signed, but {TRUSTED_KEYS} has no key to check it" if self.is_present else "not signed"


def create_keys(folder: Path) -> str:
    """Writes a pair of keys into a folder, the private one readable by its owner alone; returns its id.

    Raises:
        BadArgument: the folder has keys already.
    """
    from cryptography.hazmat.primitives import serialization as form
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    key = Ed25519PrivateKey.generate()
    private = key.private_bytes(form.Encoding.PEM, form.PrivateFormat.PKCS8, form.NoEncryption())
    public = key.public_key().public_bytes(form.Encoding.PEM, form.PublicFormat.SubjectPublicKeyInfo)
    folder.mkdir(parents=True, exist_ok=True)
    for name, content, mode in ((PRIVATE_FILE, private, 0o600), (PUBLIC_FILE, public, 0o644)):
        try:
            descriptor = os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        except FileExistsError as error:
            raise BadArgument(f"{folder / name} exists, and keys are never overwritten: give another folder") from error
        with open(descriptor, "wb") as file:
            file.write(content)
    return _id(key.public_key())


def signing_key() -> str:
    """The id of the key that signs; empty if there is none."""
    key = _private_key()
    return _id(key.public_key()) if key else ""


def has_trusted_keys() -> bool:
    """Whether signatures are checked."""
    return bool(_trusted_keys())


def sign(content: bytes, identity: Mapping[str, str]) -> bytes | None:
    """The signature of a manifest, as the content of its file; None without a signing key.

    Args:
        content: the manifest.
        identity: whose folder it is.
    """
    key = _private_key()
    if key is None:
        return None
    statement = json.dumps({**identity, "manifest": hashlib.sha256(content).hexdigest()}, sort_keys=True)
    signature = base64.b64encode(key.sign(CONTEXT + statement.encode())).decode()
    return json.dumps({"statement": statement, "key": _id(key.public_key()), "signature": signature}, indent=1).encode()


def sign_folder(folder: Path, identity: Mapping[str, str]) -> None:
    """Writes the signature of a complete folder beside its manifest, if there is a signing key."""
    if signature := sign((folder / manifest.NAME).read_bytes(), identity):
        (folder / NAME).write_bytes(signature)


def verify(content: bytes, signature: bytes | None, location: str) -> Signature:
    """Checks the signature of a manifest, if there are trusted keys.

    Args:
        content: the manifest.
        signature: the content of the signature's file; None if there is none.
        location: what is signed, for the message.

    Raises:
        UntrustedBundle: there is no signature, or it is not one of this manifest by a trusted key.
        BadArgument: the trusted keys cannot be read.
    """
    keys = _trusted_keys()
    if not keys:
        return Signature(is_present=signature is not None)
    if signature is None:
        raise UntrustedBundle(
            f"{location} is not signed, and {TRUSTED_KEYS} is set: register the model again with {SIGNING_KEY}, or if you know "
            "who made it, sign it (`goemotions keys sign`)"
        )
    key, statement = _opened(signature, keys, location)
    if statement.pop("manifest", "") != hashlib.sha256(content).hexdigest():
        raise UntrustedBundle(f"{location}: {NAME} signs another {manifest.NAME}: fetch it again, or register the model again")
    return Signature(key, statement, is_present=True)


def verify_folder(folder: Path, location: str = "") -> Signature:
    """Checks the signature of a folder as ``verify`` does."""
    path = folder / NAME
    return verify((folder / manifest.NAME).read_bytes(), _read(path) if path.is_file() else None, location or str(folder))


def _opened(signature: bytes, keys: Mapping[str, Ed25519PublicKey], location: str) -> tuple[str, dict[str, str]]:
    """The key that made a signature, and its statement."""
    from cryptography.exceptions import InvalidSignature

    try:
        if len(signature) > MOST_BYTES:
            raise ValueError("too long")
        parsed = strict_json.parse(signature, NAME)
        statement, made = str(parsed["statement"]), base64.b64decode(parsed["signature"], validate=True)
        claimed = str(parsed["key"])[:64]
    except (ValueError, KeyError, TypeError) as error:
        raise UntrustedBundle(f"{location}: {NAME} is damaged: fetch it again, or register the model again") from error
    for name, key in keys.items():
        try:
            key.verify(made, CONTEXT + statement.encode())
        except InvalidSignature:
            continue
        return name, strict_json.parse(statement, NAME)
    raise UntrustedBundle(
        f"{location} is not signed by a trusted key: it names {claimed!r}, and {TRUSTED_KEYS} has {', '.join(keys)}"
    )


def _read(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(MOST_BYTES + 1)


def _private_key() -> Ed25519PrivateKey | None:
    value = os.environ.get(SIGNING_KEY, "").strip()
    if not value:
        return None
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        key = load_pem_private_key(_pem(value), None)
    except (OSError, ValueError, TypeError):
        key = None
    if not isinstance(key, Ed25519PrivateKey):
        # The value is not shown: it may be the key itself.
        raise BadArgument(f"{SIGNING_KEY} has no Ed25519 key in PEM, as text or as a path: `goemotions keys create` makes one")
    return key


def _trusted_keys() -> dict[str, Ed25519PublicKey]:
    """The public keys by their ids; that of the signing key is one of them."""
    own, value = _private_key(), os.environ.get(TRUSTED_KEYS, "").strip()
    keys = {_id(own.public_key()): own.public_key()} if own else {}
    if not value:
        return keys
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    try:
        parts = (
            [_pem(value)] if value.startswith("-----") else [part for path in value.split(os.pathsep) for part in _pems(path)]
        )
        loaded = [load_pem_public_key(pem) for part in parts for pem in PUBLIC_KEY.findall(part)]
    except (OSError, ValueError) as error:
        raise BadArgument(f"{TRUSTED_KEYS}: the keys cannot be read: give PEM, as text, files or a folder of .pub") from error
    trusted = [key for key in loaded if isinstance(key, Ed25519PublicKey)]
    if not trusted or len(trusted) < len(loaded):
        raise BadArgument(
            f"{TRUSTED_KEYS} has no Ed25519 public key, or others too: give the {PUBLIC_FILE} of `goemotions keys create`"
        )
    return keys | {_id(key): key for key in trusted}


def _pem(value: str) -> bytes:
    return value.encode() if value.startswith("-----") else addresses.local(value).read_bytes()


def _pems(path: str) -> list[bytes]:
    place = addresses.local(path)
    return [file.read_bytes() for file in sorted(place.glob("*.pub"))] if place.is_dir() else [place.read_bytes()]


def _id(key: Ed25519PublicKey) -> str:
    return hashlib.sha256(key.public_bytes_raw()).hexdigest()[:16]
