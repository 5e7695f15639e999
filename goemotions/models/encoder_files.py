"""The files of an encoder: those of a folder or store that the user names, of an installed package, or of the Hugging Face hub.

Neither torch nor transformers is needed.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.resources
import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from goemotions import addresses, outages
from goemotions.errors import ModelError, SourceUnreachable
from goemotions.models.profiles import Profile
from goemotions.storage import manifest, store
from goemotions.storage.temporary import temporary_folder


@dataclass(frozen=True)
class EncoderFiles:
    """A local folder with an encoder's config, weights and tokenizer; ``is_published``: the profile's own, not given by the user."""

    folder: Path
    is_published: bool


@contextlib.contextmanager
def resolve(profile: Profile, weights: str | EncoderFiles = "") -> Iterator[EncoderFiles]:
    """Resolves an encoder's files for as long as the block lasts.

    Args:
        profile: the profile whose encoder it is.
        weights: a folder or ``s3://`` prefix; empty for the profile's package if it is installed, else its revision on the hub;
            files that are resolved already are passed on.

    Raises:
        ModelError: the package's or hub's weights are not the published ones.
        SourceUnreachable: the hub cannot be reached.
    """
    encoder = profile.encoder
    if isinstance(weights, EncoderFiles):
        yield weights
    elif addresses.is_s3(weights):
        with temporary_folder() as scratch:
            yield EncoderFiles(store.fetch(weights, scratch), is_published=False)
    elif weights:
        yield EncoderFiles(addresses.local(weights), is_published=False)
    else:
        packaged = encoder.package and importlib.util.find_spec(encoder.package)
        folder = Path(str(importlib.resources.files(encoder.package) / "model")) if packaged else _from_hub(profile)
        path = folder / "model.safetensors"
        if encoder.sha256 and path.exists() and manifest.sha256(path) != encoder.sha256:
            raise ModelError(
                f"the weights in {folder} are not the published ones: install or download the pinned version again"
            )
        yield EncoderFiles(folder, is_published=True)


def _from_hub(profile: Profile) -> Path:
    import huggingface_hub

    base, revision = profile.encoder.base, profile.encoder.revision
    weights = ["model.safetensors", "model.safetensors.index.json", "model-*-of-*.safetensors"]
    files = ["config.json", *weights, "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"]
    download = functools.partial(huggingface_hub.snapshot_download, base, revision=revision, allow_patterns=files)

    def request() -> Path:
        huggingface_hub.HfApi().model_info(base, revision=revision, timeout=outages.HUB_TIMEOUT_SECONDS)
        return Path(download())

    try:
        # A pinned commit that is in the cache needs no network at all.
        with contextlib.suppress(OSError):
            return Path(download(local_files_only=True))
        return outages.retry(request, outages.is_unavailable, "the hub")
    except Exception as error:
        raise SourceUnreachable(
            f"the hub cannot be reached for {base}: give its files with weights={profile.name}=path/to/folder or "
            f"weights={profile.name}=s3://bucket/prefix/, or train minilm, whose weights are a package"
        ) from error
