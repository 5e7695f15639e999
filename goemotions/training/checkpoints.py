"""Checkpoints of a training: complete or unused, verified before use, never a pickle."""

from __future__ import annotations

import json
import logging
import math
import re
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NotRequired, Self, TypedDict

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from goemotions import strict_json
from goemotions.errors import BadJson, IntegrityError, StorageUnavailable
from goemotions.storage import manifest, store
from goemotions.storage.temporary import temporary_folder
from goemotions.usage import Usage

log = logging.getLogger(__name__)


class Values(TypedDict):
    """``state.json``: all that is no tensor."""

    fingerprint: dict[str, Any]
    step: int
    epoch_loss: float
    seconds: float
    history: list[dict[str, float]]
    usage: NotRequired[Usage]
    machines: NotRequired[list[str]]
    peak_memory: NotRequired[int]
    peak_gpu_memory: NotRequired[int]


@dataclass(frozen=True)
class Checkpoint:
    """The tensors and JSON values from which a training resumes as if it had not been stopped."""

    tensors: dict[str, torch.Tensor]
    values: dict[str, Any]

    def part(self, prefix: str) -> dict[str, torch.Tensor]:
        """The tensors whose names have this prefix, by the rest of their names."""
        return {name.removeprefix(prefix): tensor for name, tensor in self.tensors.items() if name.startswith(prefix)}


def save(location: str, step: int, checkpoint: Checkpoint) -> None:
    """Writes the checkpoint of a step below a location (local or S3), then deletes all others.

    Those of later steps belong to another run, since this one did not resume from them.
    """
    with temporary_folder() as folder:
        save_file({name: tensor.contiguous() for name, tensor in checkpoint.tensors.items()}, folder / "state.safetensors")
        (folder / "state.json").write_text(json.dumps(checkpoint.values), encoding="utf-8")
        manifest.write(folder, step=step)
        store.put(folder, store.join(location, _name(step)))
    for name in set(_names(location)) - {_name(step)}:
        store.remove(store.join(location, name))


class Writer:
    """Writes checkpoints one after the other in a thread of its own, while training goes on; waits for the last one when it is left.

    One that a store does not take for now is done without, with a warning: hours of training are worth more than a checkpoint.

    Args:
        location: folder or S3 prefix; empty for no checkpoints.
        minutes: time between two checkpoints; 0 for one after each step, if the one before is written.
    """

    def __init__(self, location: str, minutes: float) -> None:
        self.location = location
        self._seconds = 60 * minutes
        self._began = time.monotonic()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoints")
        self._writing: Future[None] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.shutdown()

    def is_due(self) -> bool:
        """Whether it is time for the next checkpoint, and the one before is written.

        Raises:
            StorageError, OSError: the one before was refused.
        """
        return bool(self.location) and time.monotonic() - self._began >= self._seconds and self.is_idle()

    def is_idle(self) -> bool:
        """Whether no checkpoint is being written; raises what ``wait`` raises."""
        if self._writing is not None and self._writing.done():
            self.wait()
        return self._writing is None

    def hasten(self) -> None:
        """Makes the next checkpoint due as soon as the one before is written."""
        self._began = -math.inf

    def write(self, step: int, checkpoint: Checkpoint) -> None:
        """Starts to write a checkpoint, whose tensors nobody changes from now on; waits for the one before."""
        self.wait()
        self._began = time.monotonic()
        self._writing = self._thread.submit(save, self.location, step, checkpoint)

    def wait(self) -> None:
        """Waits for the checkpoint that is being written.

        Raises:
            StorageError, OSError: it was refused.
        """
        writing, self._writing = self._writing, None
        try:
            if writing is not None:
                writing.result()
        except StorageUnavailable as error:
            log.warning("a checkpoint was not written, and training goes on: %s", error)


def newest(location: str, fingerprint: dict[str, Any]) -> Checkpoint | None:
    """Returns the newest complete checkpoint with these entries in its fingerprint, or None, with a warning if there are only others.

    Raises:
        StorageError: the store refuses or fails. Training does not start over then, since it would delete the checkpoints.
    """
    store.sweep(location)
    names = _names(location)
    for name in reversed(names):
        if store.read(store.join(location, name), manifest.NAME) is None:
            log.warning("checkpoint %s is not used: it was never finished", name)
            continue
        with temporary_folder() as scratch:
            try:
                folder = store.fetch_named(store.join(location, name), scratch)
                manifest.verify(folder)
                values = strict_json.read(folder / "state.json")
                strict_json.require(values, Values, "state.json")
                tensors = load_file(folder / "state.safetensors")
            except (IntegrityError, BadJson, SafetensorError, OSError) as error:
                log.warning("checkpoint %s is not used: %s", name, error)
                continue
            if {name: values["fingerprint"].get(name) for name in fingerprint} != fingerprint:
                log.warning("checkpoint %s is not used: it belongs to another run (other data, profile or seed)", name)
                continue
            return Checkpoint(tensors, values)
    if names:
        log.warning("no checkpoint below %s can be used: training starts over", location)
    return None


def _name(step: int) -> str:
    return f"step-{step:09d}"


def _names(location: str) -> list[str]:
    """Lists the checkpoints below a location, sorted, and no other files or folders."""
    return [name for name in store.children(location) if re.fullmatch(r"step-\d{9}", name)]
