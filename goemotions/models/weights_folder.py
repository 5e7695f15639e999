"""A folder of weights, whoever made it: what is refused before a library reads it.

Neither torch nor transformers is needed, so that a run can be refused before its first step.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, get_args

from safetensors import SafetensorError, safe_open

from goemotions import strict_json
from goemotions.errors import ModelError, StorageError, first_line
from goemotions.models.profiles import ModelType, Profile
from goemotions.models.records import read_json
from goemotions.storage import store
from goemotions.storage.temporary import temporary_folder
from goemotions.strict_json import MOST_BYTES

TYPES: tuple[str, ...] = get_args(ModelType)
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
# Fields, besides attn_implementation and the like (which may name kernels on the hub), that load code or weights from elsewhere.
FOREIGN_FIELDS = ("auto_map", "quantization_config", "transformers_weights")
# How a file begins that `git clone` without Git LFS leaves in place of a large one.
LFS_POINTER = b"version https://git-lfs.github.com/spec/"
# Types of tensors that are weights as they are; quantized ones would need their scales.
FLOATS = ("F16", "BF16", "F32", "F64")
# Without a layer, transformers builds an encoder of its embeddings alone, and with less than one head, one that fails at the first
# batch. Each layer is built before its weights are compared with it.
COUNTS, MOST = ("num_hidden_layers", "n_layers", "num_attention_heads", "n_heads", "num_hidden_groups", "inner_group_num"), 1000
# Tensors that are no weights, such as position_ids.
POSITIONS = "_ids"


def require(profile: Profile, folder: Path) -> dict[str, Any]:
    """Checks that a folder is one of weights for a profile, as far as its files say without being loaded; returns its config.

    Raises:
        ModelError: as ``read_config``; or it is of another type than the profile's encoder.
    """
    fields, encoder = read_config(folder), profile.encoder
    if encoder.model_type not in TYPES:
        raise ModelError(f"{profile.name} is a {encoder.model_type}: only {', '.join(TYPES)} are loaded")
    if fields.get("model_type") != encoder.model_type:
        raise ModelError(
            f"{profile.name} is a {encoder.model_type}, but its weights are of type {fields.get('model_type')!r}: "
            f"give weights of {encoder.base}"
        )
    return fields


def require_stored(profile: Profile, location: str) -> None:
    """``require`` for a location in a store, of which little more than the names and shapes of the tensors is downloaded.

    Raises:
        ModelError: as for ``require``.
        StorageError: the location has no file, or cannot be read.
    """
    with temporary_folder() as folder:
        listed = [file for file in store.files(location) if "/" not in file.name]
        if not listed:
            raise StorageError(f"{location} holds no file: check the location and its final /")
        for file in listed:
            with store.open_file(location, file.name, file) as stored, (folder / file.name).open("wb") as outline:
                # A file of tensors begins with their names, types and shapes, and the size of these.
                size = int.from_bytes(stored.read(8), "little") if file.name.endswith(".safetensors") else MOST_BYTES
                stored.seek(0)
                outline.write(stored.read(min(size + 8, MOST_BYTES)))
                outline.truncate(file.size)
        try:
            require(profile, folder)
        except ModelError as error:
            raise ModelError(str(error).replace(str(folder), location.rstrip("/"))) from error


def read_config(folder: Path) -> dict[str, Any]:
    """Reads the config of a folder, after checking that nothing there makes transformers run code or load other weights.

    Raises:
        ModelError: the folder has no config, no safetensors, quantized or damaged ones, or no tokenizer.json, a pointer of Git LFS in
            place of one, a link to nothing, or names code or weights from elsewhere.
    """
    if links := sorted(path for path in folder.glob("*") if path.is_symlink() and not path.exists()):
        # A cache of the hub has the files themselves in another folder.
        raise ModelError(f"{links[0]} is a link to a file that is not there: copy the files themselves, as `cp -rL` does")
    if (folder / "adapter_config.json").is_file():
        raise ModelError(
            f"{folder} holds an adapter, not a whole model: load it with peft, and write what `merge_and_unload()` returns and the "
            "tokenizer with save_pretrained(folder)"
        )
    if not (folder / "config.json").is_file():
        # In a cache of the hub, beside checkpoints of a Trainer, or in an older folder of sentence-transformers.
        within = sorted(path.parent for form in ("*", "snapshots/*") for path in folder.glob(f"{form}/tokenizer*.json"))
        raise ModelError(
            f"{folder / 'config.json'} is missing: give a folder that `goemotions train` made, or for an encoder one with config.json, "
            "model.safetensors and tokenizer.json" + "".join(f", such as {place}" for place in within[:1])
        )
    fields = read_json(folder / "config.json")
    weights = _files(folder)
    for path in (*weights, folder / "tokenizer.json"):
        if path.is_file() and _starts_with(path, LFS_POINTER):
            raise ModelError(f"{path} is a pointer of Git LFS, not the file itself: run `git lfs pull` in {folder}")
    if not (folder / "tokenizer.json").is_file():
        is_slow = any(path.suffix == ".model" for path in folder.iterdir())
        raise ModelError(
            f"{folder / 'tokenizer.json'} is missing: other tokenizer formats are not read, convert it with "
            "AutoTokenizer.from_pretrained(folder).save_pretrained(folder)"
            + (" after `pip install sentencepiece protobuf`" if is_slow else "")
        )
    foreign = [name for name in fields if name in FOREIGN_FIELDS or name.endswith("_implementation")]
    if foreign:
        raise ModelError(
            f"{folder} takes code or weights from elsewhere ({foreign[0]}): only {', '.join(TYPES)} are loaded, as they are"
        )
    for name in COUNTS:
        if name in fields and fields[name] not in range(1, MOST + 1):
            raise ModelError(
                f"{folder / 'config.json'} has {name} {str(fields[name])[:20]}, and an encoder has 1 to {MOST:,}: copy it again"
            )
    for path in weights:
        _require_floats(path)
    return fields


def elements(folder: Path) -> int:
    """The number of values in the weights of a folder.

    Raises:
        ModelError: as ``read_config``.
    """
    return sum(math.prod(tensor.get_shape()) for path in _files(folder) for tensor in _tensors(path).values())


def _files(folder: Path) -> list[Path]:
    """The files that transformers reads the weights from: one, or those that an index names, each of which it would unpickle or read
    wherever it is."""
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    if not (folder / INDEX).is_file():
        if others := sorted(path.name for path in folder.glob("*.safetensors")):
            raise ModelError(
                f"{folder} holds no usable weights: it has {others[0]} and neither {WEIGHTS} nor {INDEX}: rename a file that has all "
                "weights, or copy the index of those in parts"
            )
        raise ModelError(
            f"{folder} holds no usable weights: pickles and scripts are never read, convert them to {WEIGHTS} with "
            "AutoModel.from_pretrained(folder).save_pretrained(folder); a bundle for CPU has none, take one for GPUs"
        )
    places = read_json(folder / INDEX, "weight_map")["weight_map"]
    try:
        strict_json.require(places, dict[str, str], INDEX)
    except ValueError as error:
        raise ModelError(f"{folder / INDEX} names no files: download or save the weights again") from error
    paths = [folder / name for name in sorted(set(places.values()))]
    for path in paths:
        if path.suffix != ".safetensors" or path.parent != folder:
            raise ModelError(
                f"{folder / INDEX} names {str(path)[:200]!r}, which is no .safetensors of its folder: save the weights again"
            )
        if not path.is_file():
            raise ModelError(f"{folder} holds no usable weights: {INDEX} names {path.name}, which is missing: copy it, too")
    return paths


def _require_floats(path: Path) -> None:
    for name, tensor in sorted(_tensors(path).items()):
        if (kind := tensor.get_dtype()) not in FLOATS and not name.endswith(POSITIONS):
            raise ModelError(
                f"{path} has {name} as {kind}, as quantized weights are: give the weights as they were before, in 16 or 32 bits"
            )


def _tensors(path: Path) -> dict[str, Any]:
    """The tensors of a file, by name, of which only types and shapes are read."""
    try:
        with safe_open(path, "numpy") as file:
            return {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 - it is no dictionary
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{path} is damaged ({first_line(error):.200}): copy or save it again") from error


def _starts_with(path: Path, start: bytes) -> bool:
    with path.open("rb") as file:
        return file.read(len(start)) == start
