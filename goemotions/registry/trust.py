"""Whether a bundle is the one that ``register`` stored. Whoever reaches MLflow can create versions and move aliases, so a version alone
proves nothing: its source must be where only ``register`` writes, and the bundle there must be signed for this model, run and variant.

GOEMOTIONS_STORE names the store, or several separated by spaces. If it is not set, only folders that MLflow itself writes are refused.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from goemotions import addresses
from goemotions.errors import BadAddress, IntegrityError, ModelError, UntrustedBundle
from goemotions.registry.bundle import VARIANTS, BundleLocation
from goemotions.registry.model_registry import Version
from goemotions.storage import layout, manifest, signature, store
from goemotions.storage.signature import Signature

STORE = "GOEMOTIONS_STORE"
# Where MLflow's servers keep artifacts, by their documentation and by these manifests: every client can write there by its proxy.
MLFLOW_FOLDERS = {"mlflow", "mlruns", "mlartifacts", "artifacts", "mlflow-artifacts"}
# Of a signature: the number of the version.
NUMBER = "version"
SHOWN = 200


def require_source(version: Version, variant: str = "") -> BundleLocation:
    """The location of a version's bundle, before anything is read there.

    Args:
        version: the version.
        variant: the one that the alias names; empty for any.

    Raises:
        UntrustedBundle: ``register`` does not write there, or not the bundles of this model and variant.
    """
    source = version.source or ""

    def refused(reason: str) -> UntrustedBundle:
        return UntrustedBundle(
            f"version {version.number} of {version.model_name} is not used: its source {source[:SHOWN]!r} {reason}; register the "
            f"model again, or set {STORE} to the store that `register` writes to"
        )

    try:
        location = BundleLocation.parse(source)
    except ModelError:
        raise refused("is not a bundle that `register` stored") from None
    wanted = variant or version.tags.get("variant") or location.variant
    # A version that a Job of an older image hands over has no name of a model.
    if (location.model_name, location.variant) != (version.model_name or location.model_name, wanted):
        raise refused(f"is not that of a {wanted} bundle of this model")
    if reason := _is_elsewhere(source, location.store):
        raise refused(reason)
    return location


def require_trained(location: str, pipeline_run: str, profile: str) -> str:
    """The location of a trained model, which MLflow names, before anything is read there.

    Raises:
        UntrustedBundle: ``register`` does not write there, or not this model.
    """
    end = layout.trained("", pipeline_run, profile)
    reason = "is not that of this model" if not location.endswith(end) else _is_elsewhere(location, location.removesuffix(end))
    if reason:
        raise UntrustedBundle(
            f"the model {profile} of the run {pipeline_run} is not downloaded: its location {location[:SHOWN]!r} in MLflow {reason}; "
            f"give the store by --store, or set {STORE} to the one that `register` writes to"
        )
    return location


def _is_elsewhere(location: str, its_store: str) -> str:
    """Why ``register`` does not write at a location, which is in a store; empty if it does."""
    if addresses.scheme(location) not in ("", "s3") or ".." in location.split("/"):
        return "is not in a store: it is an address of MLflow's artifacts, or of an unknown form"
    try:
        its_store = store.canonical(its_store)
    except BadAddress:
        return "is of an unknown form"
    stores = os.environ.get(STORE, "").split()
    if stores and its_store not in map(store.canonical, stores):
        return f"is not in {' or '.join(stores)}"
    if not stores and MLFLOW_FOLDERS & {*its_store.split("/")}:
        return "is in a folder of MLflow's artifacts, where every client of MLflow can write"
    return ""


def has_source_of_register(version: Version) -> bool:
    """Whether ``require_source`` accepts the source of a version. What is elsewhere is not removed: anybody may have registered it."""
    try:
        require_source(version)
    except UntrustedBundle:
        return False
    return True


def variant_of(alias: str) -> str:
    """The variant that an alias names, such as ``champion-cpu``; empty for a version number."""
    return next((variant for variant in VARIANTS if alias.endswith(f"-{variant}")), "")


def fetch(location: str, folder: Path, version: Version | None = None) -> dict[str, Any]:
    """Copies a bundle, or another folder with a manifest, and verifies it; returns its manifest.

    Raises:
        IntegrityError, UntrustedBundle: as ``verify``.
    """
    # Before files are copied: a manifest that nobody signed, also one that is put there after the check, may name terabytes.
    checked = stored(location)
    store.fetch_named(location, folder, signature.NAME, content=checked and checked[0])
    return verify(folder, location, version)


def verify(folder: Path, location: str, version: Version | None = None) -> dict[str, Any]:
    """Verifies a folder that was copied from a location, or is there; returns its manifest.

    Args:
        folder: the copy.
        location: where it is from: that of a bundle says which one it must be.
        version: the version whose bundle it must be.

    Raises:
        IntegrityError: it does not match its manifest.
        UntrustedBundle: it is not signed by a trusted key, or it is another bundle than the location or the version says.
    """
    content = manifest.verify(folder)
    require_identity(content, signature.verify_folder(folder, location), location, version)
    return content


def number_of(folder: Path, given: str = "") -> str:
    """The number of the version that a verified bundle was registered as, by its signature; otherwise the one that is given.

    Args:
        folder: the bundle.
        given: the number that whoever deployed it says that it has; empty if none.

    Raises:
        UntrustedBundle: the signature says another one.
    """
    signed = signature.verify_folder(folder).identity.get(NUMBER, "")
    if signed and given not in ("", signed):
        raise UntrustedBundle(
            f"{folder} is version {signed} of its model, not {given[:SHOWN]}: deploy the version by its alias or number"
        )
    return signed or given


def stored(location: str, version: Version | None = None) -> tuple[dict[str, Any], Signature] | None:
    """The manifest at a location, verified but for its files, and its signature; None if there is no manifest.

    Raises:
        IntegrityError, UntrustedBundle: as ``verify``.
    """
    content = store.read(location, manifest.NAME)
    return None if content is None else _opened(content, location, version)


def require_stored(location: str, version: Version | None = None) -> tuple[dict[str, Any], Signature]:
    """As ``stored``, for a location that must have a manifest.

    Raises:
        IntegrityError, UntrustedBundle: as ``verify``.
    """
    if (opened := stored(location, version)) is None:
        raise IntegrityError(f"{location} has no {manifest.NAME}: register the model again")
    return opened


def _opened(content: bytes, location: str, version: Version | None = None) -> tuple[dict[str, Any], Signature]:
    parsed = manifest.parse(content, location)
    signed = signature.verify(content, store.read(location, signature.NAME), location)
    require_identity(parsed, signed, location, version)
    return parsed, signed


def sign_number(version: Version) -> None:
    """Adds the number of a version, which the registry has given it, to the signature of its bundle, if there is a signing key.

    Without it, whoever may deploy could have a bundle served under the number of another one.

    Raises:
        IntegrityError, UntrustedBundle: as ``verify``.
    """
    if not signature.signing_key():
        return
    content = store.read(version.source, manifest.NAME) or b""
    if _opened(content, version.source)[1].identity.get(NUMBER) != version.number:
        signed = signature.sign(content, identity(BundleLocation.parse(version.source), version.number)) or b""
        store.write(version.source, signature.NAME, signed)


def check(version: Version, variant: str = "") -> str:
    """Checks the source and the signature of a version without copying its files; returns what the signature is.

    Without trusted keys the store is not read.

    Raises:
        UntrustedBundle: as ``require_source`` and ``verify``.
    """
    location = str(require_source(version, variant))
    if not signature.has_trusted_keys():
        return f"the signature is not checked, because {signature.TRUSTED_KEYS} is not set"
    signed = require_stored(location, version)[1]
    return (
        str(signed)
        if NUMBER in signed.identity
        else f"{signed}, but without its number: `goemotions keys sign {version.number}`"
    )


def identity(location: BundleLocation, number: str = "") -> dict[str, str]:
    """What the signature of a bundle says that it is, with the number of its version once that is known."""
    named = {"model_name": location.model_name, "run_id": location.run_id, "variant": location.variant}
    return named | ({NUMBER: number} if number else {})


def _identity_of(location: str) -> dict[str, str]:
    """What a location says of the folder there; nothing for a location of another form."""
    try:
        return identity(BundleLocation.parse(location))
    except ModelError:
        # The id of a pipeline run may have slashes.
        run, _, profile = location.rstrip("/").rpartition("/trained/")[2].rpartition("/")
        return {"pipeline_run": run, "profile": profile} if "/trained/" in location and run else {}


def require_identity(content: dict[str, Any], signed: Signature, location: str, version: Version | None = None) -> None:
    """Checks that a folder is the one that its location, and the version if given, say.

    Args:
        content: its manifest.
        signed: its signature.
        location, version: as for ``verify``.

    Raises:
        UntrustedBundle: it is another one.
    """
    named = [*_identity_of(location).items()]
    if version:
        # Signatures of before have no number.
        named += [("run_id", version.run_id)] * bool(version.run_id)
        named += [(NUMBER, version.number)] * (NUMBER in signed.identity)
    for name, value in named:
        # Without a signature the manifest says it, which has no name of a model.
        actual = signed.identity.get(name) if signed.key else content.get(name, value)
        if actual != value:
            raise UntrustedBundle(
                f"{location} holds another bundle: its {name} is {str(actual)[:SHOWN]!r}, not {value[:SHOWN]!r}: register the model "
                "again"
            )
