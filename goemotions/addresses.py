"""Addresses as users give them: of files, data, bundles, servers and images. Each is checked here, before anything is made.

A function that checks returns the address unchanged, or raises BadAddress with the known forms and, if it is clear, the right one.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

from goemotions.errors import BadAddress

SAMPLE, HUB, S3 = "sample", "hub:", "s3://"
PLACES = "s3://bucket/prefix/ or a path"
SOURCES = f"{SAMPLE}, hub:<dataset>[:<config>][@<revision>], {PLACES}"
REFERENCES = f"an alias such as champion-cpu, a version number, models:/name@alias, models:/name/number, {PLACES}"
DATABASES = ("sqlite", "postgresql", "mysql", "mssql")
ENDPOINTS = ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3")
# A path may contain a colon, so a scheme is a name before `:/`, or one of these names before `:`.
SCHEMES = (
    *("s3", "s3a", "s3n", "gs", "gcs", "az", "adl", "abfs", "abfss", "wasb", "wasbs", "r2", "oss", "oci", "minio", "arn"),
    *("file", "http", "https", "ftp", "sftp", "hdfs", "webhdfs", "dbfs", "hf", "hub", "models", "runs", "pvc"),
)
# What to do instead of an address of another cloud.
OTHER_CLOUDS = {
    ("gs", "gcs"): (
        "Google Cloud Storage is read through its S3 endpoint: s3://bucket/prefix/ with HMAC keys and "
        "AWS_ENDPOINT_URL=https://storage.googleapis.com"
    ),
    ("az", "adl", "abfs", "abfss", "wasb", "wasbs"): "Azure Storage has no S3 endpoint: copy the files to a store that has one",
}
SCHEME = re.compile(rf"([A-Za-z][A-Za-z0-9+.-]+):(?=/)|({'|'.join(SCHEMES)}):", re.IGNORECASE)
BUCKET = re.compile(r"[A-Za-z0-9._-]+")
REPOSITORY = re.compile(r"[\w.-]+(/[\w.-]+)?")
HOST_AND_PORT = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[\w.-]+)(:\d{1,5})?(/\S*)?")
IMAGE_HOST = r"[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?(:\d{1,5})?"
IMAGE_PATH = r"[a-z0-9]+((\.|_{1,2}|-+)[a-z0-9]+)*"
IMAGE_PREFIX = re.compile(rf"{IMAGE_HOST}(/{IMAGE_PATH})*/?")


def scheme(text: str) -> str:
    """The scheme of an address as it is written, such as ``s3`` or ``GS``; empty for a path or a name."""
    match = SCHEME.match(text.strip())
    return (match[1] or match[2]) if match else ""


def is_s3(text: str) -> bool:
    """Whether a location is an S3 prefix, not a path.

    Raises:
        BadAddress: it is neither.
    """
    return location(text).startswith(S3)


def location(text: str, what: str = "") -> str:
    """A place for files: ``s3://bucket/prefix/`` or a path.

    Args:
        text: the address.
        what: what it is the address of, such as ``--store``, for the message.
    """
    if not scheme(text):
        return text
    if text.startswith(S3):
        bucket = text.removeprefix(S3).partition("/")[0]
        if BUCKET.fullmatch(bucket):
            return text
        if not bucket:
            raise BadAddress(f"{_named(what)}{text!r} names no bucket: write s3://bucket/prefix/")
        if re.fullmatch(r"[\w.-]+:\d+", bucket):
            raise BadAddress(f"{_named(what)}{text!r} names a server, not a bucket: set AWS_ENDPOINT_URL=http://{bucket}")
    raise _unknown(text, what, PLACES, _right_place(text))


def path(text: str, what: str = "") -> str:
    """A path on this machine."""
    if scheme(text):
        raise BadAddress(f"{_named(what)}{shown(text)!r} must be a path on this machine")
    return text


def local(text: str) -> Path:
    """A path on this machine, with ``~`` as the home folder."""
    # Not that of pathlib, which raises a RuntimeError if there is no such user.
    return Path(os.path.expanduser(text))


def source(text: str, what: str = "") -> str:
    """A source of data: ``sample``, ``hub:<dataset>[:<config>][@<revision>]``, ``s3://bucket/prefix/`` or a path."""
    if text.startswith(HUB):
        name, at, revision = text.removeprefix(HUB).partition("@")
        dataset, colon, config = name.partition(":")
        if REPOSITORY.fullmatch(dataset) and bool(at) == bool(revision) and bool(colon) == bool(config):
            return text
        raise BadAddress(f"{_named(what)}{text!r} names no data set of the hub: write hub:<dataset>[:<config>][@<revision>]")
    match = re.fullmatch(r"(?:https?://(?:www\.)?(?:huggingface\.co|hf\.co)/|hf://)datasets/([\w.-]+(?:/[\w.-]+)?).*", text)
    if match:
        raise _unknown(text, what, SOURCES, HUB + match[1])
    if scheme(text) and not text.startswith(S3):
        raise _unknown(text, what, SOURCES, _right_place(text))
    return location(text, what)


def reference(text: str, what: str = "") -> str:
    """A bundle: an alias, a version number, either of them as a URI of MLflow, ``s3://bucket/prefix/`` or a path."""
    if model_version(text):
        return text
    if scheme(text) and not text.startswith(S3):
        raise _unknown(text, what, REFERENCES, _right_place(text))
    return location(text, what)


def model_version(text: str) -> tuple[str, str] | None:
    """The name of the model, and the alias or version number, of ``models:/name@alias`` or ``models:/name/number``; None for others."""
    match = re.fullmatch(r"models:/{1,2}([^/@]+)(?:@([^/@]+)|/(\d+))", text)
    return (match[1], match[2] or match[3]) if match else None


def server(text: str, what: str) -> str:
    """A server: ``http://host:port`` or ``https://host:port``, and a path if it has one. Empty if none is given."""
    if not text:
        return text
    match = re.fullmatch(r"(?:([A-Za-z][A-Za-z0-9+.-]*):)?//(.*)", text)
    used, rest = (match[1] or "", match[2]) if match else ("", text)
    # Up to the last @: a password may contain an unquoted slash. It must not be shown.
    place = rest.rpartition("@")[2]
    if not _is_server(place):
        raise BadAddress(f"{what}: {shown(text)!r} is not the address of a server: write http://host:port or https://host:port")
    if used not in ("http", "https"):
        near = used.lower() if used.lower() in ("http", "https") else "http"
        wrong = f"has the scheme {used}" if used else "has no scheme"
        raise BadAddress(f"{what}: {shown(text)!r} {wrong}: write {what}={near}://{place}" + ("" if used else ", or https://"))
    return text


def endpoints(environment: Mapping[str, str]) -> None:
    """Checks the variables with the server of S3."""
    for variable in ENDPOINTS:
        server(environment.get(variable, ""), variable)


def tracking(text: str, what: str = "MLFLOW_TRACKING_URI") -> str:
    """A registry: a server, the URL of a database, ``databricks``, or a folder."""
    used = scheme(text)
    is_folder = text.startswith(("/", "./", "../", "~")) or (not used and Path(text).is_dir())
    if text in ("", "databricks") or is_folder or used in ("file", "databricks") or used.partition("+")[0] in DATABASES:
        return text
    if used and used.lower() not in ("http", "https"):
        known = ", ".join(["http", "https", *DATABASES, "file", "databricks"])
        raise BadAddress(
            f"{what}: {shown(text)!r} has an unknown scheme {used}: known are {known}; write {what}=http://host:port"
        )
    return server(text, what)


def image_prefix(text: str, what: str = "REGISTRY") -> str:
    """The prefix of an image's name, such as ``registry.example/team``; empty for none."""
    if not text or IMAGE_PREFIX.fullmatch(text):
        return text
    used = re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", text)
    bare = text[used.end() :] if used else text
    if used and IMAGE_PREFIX.fullmatch(bare):
        raise BadAddress(f"{what}: {text!r} has a scheme, and the name of an image has none: write {what}={bare}")
    raise BadAddress(
        f"{what}: {shown(text)!r} is not the prefix of an image's name: write host[:port]/path in small letters, without a tag, "
        "such as registry.example/team"
    )


def _is_server(place: str) -> bool:
    match = HOST_AND_PORT.fullmatch(place)
    try:
        return bool(match) and urlsplit(f"//{place}").port != 0
    except ValueError:
        return False


def _right_place(text: str) -> str:
    """The right form of a location, if the wrong one says what is meant."""
    used, rest = scheme(text).lower(), text.strip().partition(":")[2]
    if used in ("s3", "s3a", "s3n") and BUCKET.match(rest.lstrip("/")):
        return S3 + rest.lstrip("/")
    if used == "arn" and (match := re.fullmatch(r"arn:aws[\w-]*:s3:::([\w./-]+)", text.strip())):
        return S3 + match[1]
    if used == "file" and rest.startswith("/"):
        return "/" + rest.removeprefix("//localhost").lstrip("/")
    host = r"https?://(?:([\w.-]+)\.)?s3[.-][\w.-]*amazonaws\.com/([^?]*)"
    if match := re.fullmatch(host, text.strip()):
        return S3 + "/".join(filter(None, (match[1], match[2])))
    return ""


def _unknown(text: str, what: str, known: str, right: str) -> BadAddress:
    meant = f"; here it is {right}" if right else ""
    for schemes, remedy in OTHER_CLOUDS.items():
        meant += f"; {remedy}" if scheme(text).lower() in schemes else ""
    return BadAddress(f"{_named(what)}{shown(text)!r} has an unknown form ({scheme(text)}:): give {known}{meant}")


def _named(what: str) -> str:
    return f"{what}: " if what else ""


def shown(text: str) -> str:
    """The address without user, password and query, which may hold a key."""
    text = text.partition("?")[0]
    return re.sub(r"//.*@", "//***@", text) if "://" in text else re.sub(r"^[^/]*@|^[^/@]*:.*@", "***@", text)
