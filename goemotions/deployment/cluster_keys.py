"""The keys of ``manifests/overlays/local``: an identity of the object store for each role, the login of MLflow, the keys of bundles.

Each folder is what ``kubectl create secret generic --from-file=<folder>`` takes: a file per key.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Mapping
from pathlib import Path

from goemotions import defaults
from goemotions.errors import BadArgument
from goemotions.registry import trust
from goemotions.storage import signature

ENDPOINT = "http://seaweedfs.goemotions:8333"
TRACKING = "http://mlflow.goemotions:5000"


def _writes(*prefixes: str) -> tuple[str, ...]:
    return tuple(f"Write:{{bucket}}/{prefix}/*" for prefix in prefixes)


# What each role may do, as SeaweedFS writes it. Only `register` writes bundles, and removes what other steps left; MLflow sees its own
# prefix alone.
READ_ALL = ("Read:{bucket}/*", "List:{bucket}/*")
ROLES: Mapping[str, tuple[str, ...]] = {
    "register": (*READ_ALL, *_writes("models", "rollouts", "trained", "checkpoints", "teachers")),
    "pipeline": (*READ_ALL, *_writes("checkpoints", "data", "labelled", "monitoring", "teachers")),
    "predictor": ("Read:{bucket}/models/*", "List:{bucket}/models/*"),
    # A predictor that logs requests.
    "requests": ("Write:{bucket}/requests/*",),
    "mlflow": tuple(f"{action}:{{bucket}}/mlflow/*" for action in ("Read", "List", "Write")),
}
ADMINISTRATOR = "admin"


def identity(role: str, actions: tuple[str, ...], keys: Mapping[str, str]) -> dict[str, object]:
    """An identity in SeaweedFS's own form, which ``weed -s3.config`` reads."""
    return {"name": role, "credentials": [dict(keys)], "actions": [action.format(bucket=defaults.BUCKET) for action in actions]}


def new_keys() -> dict[str, str]:
    return {"accessKey": secrets.token_hex(10), "secretKey": secrets.token_hex(20)}


def write(folder: Path) -> None:
    """Writes the keys into a new folder, readable by its owner alone.

    Raises:
        BadArgument: the folder exists.
    """
    if folder.exists():
        raise BadArgument(f"{folder} exists, and keys are never overwritten: remove it, or give another folder")
    folder.mkdir(parents=True, mode=0o700)
    keys = {role: new_keys() for role in ROLES}
    password = secrets.token_urlsafe(24)
    signature.create_keys(folder)
    private, public = (folder / name for name in (signature.PRIVATE_FILE, signature.PUBLIC_FILE))
    identities = [identity(role, actions, keys[role]) for role, actions in ROLES.items()]
    contents = {
        role: {"AWS_ACCESS_KEY_ID": one["accessKey"], "AWS_SECRET_ACCESS_KEY": one["secretKey"]} for role, one in keys.items()
    }
    contents["seaweedfs"] = {"s3.json": json.dumps({"identities": identities}, indent=1)} | {
        name: secrets.token_hex(32) for name in ("WEED_JWT_FILER_SIGNING_KEY", "WEED_JWT_FILER_SIGNING_READ_KEY")
    }
    contents["mlflow"] |= {
        "AWS_ENDPOINT_URL": ENDPOINT,
        "MLFLOW_AUTH_ADMIN_USERNAME": ADMINISTRATOR,
        "MLFLOW_AUTH_ADMIN_PASSWORD": password,
        "MLFLOW_FLASK_SERVER_SECRET_KEY": secrets.token_hex(32),
    }
    contents["pipeline"] |= {
        "AWS_ENDPOINT_URL": ENDPOINT,
        "MLFLOW_TRACKING_URI": TRACKING,
        "MLFLOW_TRACKING_USERNAME": ADMINISTRATOR,
        "MLFLOW_TRACKING_PASSWORD": password,
        trust.STORE: defaults.STORE,
        signature.TRUSTED_KEYS: public.read_text(encoding="utf-8"),
    }
    contents["register"][signature.SIGNING_KEY] = private.read_text(encoding="utf-8")
    for role, files in contents.items():
        (folder / role).mkdir(mode=0o700)
        for name, content in files.items():
            with open(
                os.open(folder / role / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8"
            ) as file:
                file.write(content)
    private.unlink()
