"""A classifier: an encoder with a multi-label head; built from a profile, saved and loaded as Hugging Face's own files."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from torch import nn

from goemotions.data.taxonomy import Taxonomy
from goemotions.errors import ModelError, first_line
from goemotions.metrics.calibration import Calibrator
from goemotions.models import architectures, encoder_files, pretrained_tokenizer, weights_folder
from goemotions.models.architectures import CLASSES, STOCK
from goemotions.models.encoder_files import EncoderFiles
from goemotions.models.profiles import Profile
from goemotions.models.records import TRAINING_FILE

# Set by the profile and the taxonomy, whatever the config of the weights says.
OWN_FIELDS = ("model_type", "architectures", "id2label", "label2id", "num_labels", "problem_type")
# Of these the defaults count: they change the form of what a network returns, or which batches it takes.
FORM_FIELDS = (
    "return_dict",
    "use_return_dict",
    "torchscript",
    "output_attentions",
    "output_hidden_states",
    "chunk_size_feed_forward",
)
# Of an encoder, in parameters: 1 GiB.
LARGE = 2**28
UNREADABLE = (
    ArithmeticError,
    OSError,
    ValueError,
    TypeError,
    KeyError,
    AttributeError,
    AssertionError,
    RuntimeError,
    SafetensorError,
    StrictDataclassError,
)


def build_classifier(
    profile: Profile, taxonomy: Taxonomy, *, weights: str | EncoderFiles = "", seed: int = 0
) -> transformers.PreTrainedModel:
    """Builds a pretrained encoder with a new head.

    Args:
        profile, taxonomy: the encoder with its settings, and the labels of the head.
        weights: the encoder's files, as ``encoder_files.resolve`` takes them.
        seed: seed of the head's initial weights.

    Raises:
        ModelError: the weights do not fit the profile.
        SourceUnreachable: the hub cannot be reached.
    """
    with encoder_files.resolve(profile, weights) as files, _quiet_transformers():
        torch.manual_seed(seed)
        try:
            config = _config(profile, taxonomy, weights_folder.require(profile, files.folder))
            model, report = _from_folder(files.folder, config.model_type, config=config)
        except UNREADABLE as error:
            raise ModelError(f"{files.folder} holds no usable weights for {profile.name}: {first_line(error):.200}") from error
        if fault := _fault(model, report, cut=bool(profile.hyperparameters.layers)):
            raise ModelError(
                f"{files.folder} holds no usable weights for {profile.name}: they {fault}: write the encoder itself, "
                "without what wraps it, with save_pretrained(folder)"
            )
        # The head of a fine-tuned classifier was trained for other labels, or another order of them.
        if any(
            architectures.is_in_head(model, name) and name not in report["missing_keys"] for name, _ in model.named_parameters()
        ):
            torch.manual_seed(seed)
            architectures.renew_head(model)
    architectures.set_head_dropout(model, profile.hyperparameters.dropout)
    if files.is_published and not profile.hyperparameters.layers:
        check_size(profile, model, taxonomy)
    return model


def _fault(model: transformers.PreTrainedModel, report: dict[str, Any], *, cut: bool) -> str:
    """Returns what is wrong with an encoder's weights by the report of loading; empty if only the head and a pooler are new.

    transformers initializes what a file lacks or has in another shape at random, and ignores what the architecture lacks.
    """
    prefix = model.base_model_prefix + "."
    parts = {name.split(".")[0] for name in model.base_model.state_dict()}
    for name in sorted(report["missing_keys"]):
        if name.startswith(prefix) and ".pooler." not in name:
            return f"lack {name}"
    for name, stored, expected in sorted(report["mismatched_keys"]):
        if name.startswith(prefix):
            return f"have {name} in the shape {list(stored)}, but config.json means {list(expected)}"
    for name in sorted(report["unexpected_keys"]):
        inner = name.removeprefix(prefix)
        left_out = cut and architectures.layer_depth(model, f".{inner}") > model.config.num_hidden_layers
        if inner.split(".")[0] in parts and not inner.endswith("_ids") and not left_out:
            return f"have {name}, for which a {model.config.model_type} with this config.json has no use"
    return ""


def load_tokenizer(profile: Profile, weights: str | EncoderFiles = "") -> transformers.PreTrainedTokenizerBase:
    """Loads an encoder's tokenizer, which has a pad token.

    Raises:
        ModelError: the folder holds none, one that cannot be read, or one that does not fit the encoder.
        SourceUnreachable: the hub cannot be reached.
    """
    with encoder_files.resolve(profile, weights) as files, _quiet_transformers():
        fields = weights_folder.require(profile, files.folder)
        try:
            return pretrained_tokenizer.load(files.folder, profile, fields)
        except Exception as error:  # tokenizers raises nothing more specific.
            if isinstance(error, ModelError):
                raise
            raise ModelError(
                f"{files.folder} holds no usable tokenizer for {profile.name}: {first_line(error):.200}"
            ) from error


def init_bias_from_frequency(model: transformers.PreTrainedModel, labels: np.ndarray) -> None:
    """Sets the last layer's bias so that an untrained head predicts each label's frequency in ``labels`` [n, labels].

    Without it the first hundreds of steps go into learning that labels are rare (Lin et al. 2017, section 4.1).
    """
    frequency = (labels.sum(axis=0) + 1) / (len(labels) + 2)
    with torch.no_grad():
        _last_layer(model).bias.copy_(torch.from_numpy(np.log(frequency / (1 - frequency))))


def fold_calibration(model: transformers.PreTrainedModel, calibrator: Calibrator) -> None:
    """Folds a calibrator of the logits into the last layer, so that every engine returns calibrated probabilities."""
    layer = _last_layer(model)
    slope, intercept = (torch.tensor(values, device=layer.weight.device) for values in (calibrator.slope, calibrator.intercept))
    with torch.no_grad():
        layer.weight.mul_(slope[:, None])
        layer.bias.mul_(slope).add_(intercept)


def _last_layer(model: transformers.PreTrainedModel) -> nn.Linear:
    in_head = {id(parameter) for parameter in architectures.head_parameters(model)}
    linear: nn.Linear = [layer for layer in model.modules() if isinstance(layer, nn.Linear) and id(layer.weight) in in_head][-1]
    return linear


def check_size(profile: Profile, model: transformers.PreTrainedModel, taxonomy: Taxonomy) -> None:
    """Checks that a model has as many parameters as its profile, within 2%.

    Raises:
        ModelError: it has not.
    """
    expected, extra_labels = profile.encoder.parameters, len(taxonomy) - 28
    count = sum(parameter.numel() for parameter in model.parameters()) - extra_labels * (model.config.hidden_size + 1)
    if abs(count - expected) > 0.02 * expected:
        raise ModelError(
            f"{profile.name} has {count:,} parameters, but {expected:,} are expected: give the weights of {profile.encoder.base}"
        )


def save_classifier(
    folder: Path,
    model: transformers.PreTrainedModel,
    tokenizer: transformers.PreTrainedTokenizerBase,
    training: dict[str, Any],
) -> None:
    """Writes a Model folder: Hugging Face's files and ``training.json``, whose content is ``training``."""
    folder.mkdir(parents=True, exist_ok=True)
    model.config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / TRAINING_FILE).write_text(json.dumps(training, indent=1), encoding="utf-8")


def load_classifier(folder: Path) -> transformers.PreTrainedModel:
    """Loads the classifier of a Model folder, in evaluation mode.

    Raises:
        ModelError: it is damaged, incomplete, or of a type that is not loaded.
    """
    model_type = weights_folder.read_config(folder).get("model_type")
    if not isinstance(model_type, str) or model_type not in CLASSES:
        raise ModelError(f"{folder} holds a model of type {model_type!r}: only {', '.join(STOCK)} are loaded")
    with _quiet_transformers():
        try:
            model, report = _from_folder(folder, model_type)
        except UNREADABLE as error:
            raise ModelError(f"{folder} is damaged: {first_line(error):.200}") from error
    # transformers fills what a file lacks, or has in another shape, with random numbers.
    if missing := report["missing_keys"] | {name for name, *_ in report["mismatched_keys"]}:
        raise ModelError(f"{folder} is damaged: its weights lack {min(missing)}, or have it in another shape")
    return model.eval()


def _from_folder(
    folder: Path, model_type: str, config: transformers.PretrainedConfig | None = None
) -> tuple[transformers.PreTrainedModel, dict[str, Any]]:
    network = CLASSES[model_type]
    config = config or network.config_class.from_pretrained(folder, local_files_only=True)
    _require_size(network, config, folder)
    # By default transformers keeps the type of the weights: DeBERTa's are published in half precision.
    model, report = network.from_pretrained(
        folder,
        config=config,
        dtype=torch.float32,
        use_safetensors=True,
        local_files_only=True,
        output_loading_info=True,
        ignore_mismatched_sizes=True,
    )
    for name, parameter in model.named_parameters():
        if not torch.isfinite(parameter).all():
            raise ModelError(
                f"{folder} holds no usable weights: {name} has values that are not finite: give weights of before training diverged"
            )
    return model, report


def _require_size(network: type[transformers.PreTrainedModel], config: transformers.PretrainedConfig, folder: Path) -> None:
    """Refuses a config that means far more than the weights have, before memory is taken for it."""
    with torch.device("meta"):
        encoder = network(config).base_model
    meant, stored = (
        sum(tensor.numel() for tensor in chain(encoder.parameters(), encoder.buffers())),
        weights_folder.elements(folder),
    )
    # Of less, the tensor that differs is named after loading. A pooler may be new, and the numbers of the positions are no weights.
    if meant > max(2 * stored, LARGE):
        raise ModelError(
            f"{folder / 'config.json'} means an encoder of {meant:,} parameters, and its weights have {stored:,}: copy both again"
        )


def _config(profile: Profile, taxonomy: Taxonomy, fields: dict[str, Any]) -> transformers.PretrainedConfig:
    hyperparameters = profile.hyperparameters
    config_class = architectures.class_for(profile.encoder.model_type, hyperparameters.pooling).config_class
    fields = {key: value for key, value in fields.items() if key not in OWN_FIELDS + FORM_FIELDS}
    config = config_class(
        **fields,
        id2label=dict(enumerate(taxonomy.names)),
        label2id={name: position for position, name in enumerate(taxonomy.names)},
        problem_type="multi_label_classification",
    )
    architectures.set_pooling(config, hyperparameters.pooling)
    if hyperparameters.layers:
        architectures.keep_layers(config, hyperparameters.layers)
    return config


@contextlib.contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Hides the loading report: a new head and left-out layers are intended."""
    before = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers.logging.set_verbosity(before)
