"""Checkpoints of a training run: written whole or not at all, checked before use, never a pickle."""

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
    """The tensors and the plain values that a run needs to go on as if it had never stopped."""

    tensors: dict[str, torch.Tensor]
    values: dict[str, Any]


def save(location: str, step: int, checkpoint: Checkpoint) -> None:
    """Writes the checkpoint of a step below a location (local or S3), then deletes all but it and the one before.

    Those of later steps go as well: a run that stands at this step did not start from them.
    """
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        save_file({name: tensor.contiguous() for name, tensor in checkpoint.tensors.items()}, folder / "state.safetensors")
        (folder / "state.json").write_text(json.dumps(checkpoint.values), encoding="utf-8")
        manifest.write(folder, step=step)
        store.put(folder, store.join(location, _name(step)))
    found = _names(location)
    kept = [name for name in found if name <= _name(step)][-KEPT:]
    for name in set(found).difference(kept):
        store.remove(store.join(location, name))


def newest(location: str, fingerprint: dict[str, Any]) -> Checkpoint | None:
    """The newest whole checkpoint of a run with the same fingerprint; None, with a warning, where there is none to use.

    Raises:
        StorageError: the store refuses or fails: to start over then would throw away what it holds.
    """
    found = _names(location)
    for name in reversed(found):
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
    if found:
        log.warning("no checkpoint below %s can be used: training starts over", location)
    return None


def _name(step: int) -> str:
    return f"step-{step:09d}"


def _names(location: str) -> list[str]:
    """Names of the checkpoints below a location, sorted; nothing else that lies there is touched."""
    return [name for name in store.children(location) if re.fullmatch(r"step-\d{9}", name)]
