"""A bundle with the weights of every engine, to compare them: bundles hold those of one only."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

from goemotions.errors import ModelError
from goemotions.models import export
from goemotions.models.engine_names import WEIGHTS
from goemotions.registry import bundle, references, tracking, trained
from goemotions.storage import manifest, store


@contextlib.contextmanager
def as_folder(reference: str, model_name: str) -> Iterator[tuple[Path, str]]:
    """Like ``references.as_folder``, with the checkpoint from the store and its fp32 graph, which is exported again.

    Raises:
        ModelError: the bundle lacks them, and its run in MLflow does not say where the trained model is.
    """
    with references.as_folder(reference, model_name) as (folder, version), tempfile.TemporaryDirectory() as scratch:
        checkpoint, graph = WEIGHTS["torch"], WEIGHTS["openvino-fp32"]
        if (folder / checkpoint).is_file() and (folder / graph).is_file():
            yield folder, version
            return
        tags = tracking.run_tags(bundle.load(folder, is_verified=True).metadata.run_id)
        if trained.LOCATION_TAG not in tags:
            raise ModelError(f"{reference} has one engine only, and no stored model to compare it with: register it again")
        model, complete = store.fetch(tags[trained.LOCATION_TAG], Path(scratch) / "model"), Path(scratch) / "bundle"
        complete.mkdir()
        for path in (*folder.iterdir(), model / checkpoint):
            if not (complete / path.name).exists():
                (complete / path.name).symlink_to(path.resolve())
        export.write_float(model, complete / graph)
        metadata = {name: value for name, value in manifest.read(folder).items() if name != "files"}
        # Engines read only what the manifest names.
        manifest.write(complete, **metadata)
        yield complete, version
