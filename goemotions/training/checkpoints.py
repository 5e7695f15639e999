"""Checkpoints of a training: complete or unused, verified before use, never a pickle."""

from __future__ import annotations

import json
import logging
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from goemotions.errors import IntegrityError
from goemotions.storage import manifest, store

log = logging.getLogger(__name__)

KEPT = 2


@dataclass(frozen=True)
class Checkpoint:
    """The tensors and JSON values from which a training resumes as if it had not been stopped."""

    tensors: dict[str, torch.Tensor]
    values: dict[str, Any]


def save(location: str, step: int, checkpoint: Checkpoint) -> None:
    """Writes the checkpoint of a step below a location (local or S3), then deletes all others but the one before it.

    Those of later steps are deleted as well: they belong to another run, since this one did not resume from them.
    """
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        save_file({name: tensor.contiguous() for name, tensor in checkpoint.tensors.items()}, folder / "state.safetensors")
        (folder / "state.json").write_text(json.dumps(checkpoint.values), encoding="utf-8")
        manifest.write(folder, step=step)
        store.put(folder, store.join(location, _name(step)))
    names = _names(location)
    kept = [name for name in names if name <= _name(step)][-KEPT:]
    for name in set(names).difference(kept):
        store.remove(store.join(location, name))


def newest(location: str, fingerprint: dict[str, Any]) -> Checkpoint | None:
    """Returns the newest complete checkpoint with this fingerprint, or None, with a warning if there are only others.

    Raises:
        StorageError: the store refuses or fails. Training does not start over then, since it would delete the checkpoints.
    """
    names = _names(location)
    for name in reversed(names):
        if store.read(store.join(location, name), manifest.NAME) is None:
            log.warning("checkpoint %s is not used: it was never finished", name)
            continue
        with tempfile.TemporaryDirectory() as scratch:
            folder = store.fetch(store.join(location, name), Path(scratch))
            try:
                manifest.verify(folder)
            except IntegrityError as error:
                log.warning("checkpoint %s is not used: %s", name, error)
                continue
            values = json.loads((folder / "state.json").read_text(encoding="utf-8"))
            if values["fingerprint"] != fingerprint:
                log.warning("checkpoint %s is not used: it belongs to another run (other data, profile or seed)", name)
                continue
            return Checkpoint(load_file(folder / "state.safetensors"), values)
    if names:
        log.warning("no checkpoint below %s can be used: training starts over", location)
    return None


def _name(step: int) -> str:
    return f"step-{step:09d}"


def _names(location: str) -> list[str]:
    """Lists the checkpoints below a location, sorted, and no other files or folders."""
    return [name for name in store.children(location) if re.fullmatch(r"step-\d{9}", name)]
