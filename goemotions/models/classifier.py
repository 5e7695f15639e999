"""A classifier: an encoder with a multi-label head; built from a profile, saved and loaded as Hugging Face's own files."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.resources
import importlib.util
import json
import re
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from tokenizers import AddedToken
from torch import nn
from transformers.modeling_outputs import SequenceClassifierOutput

from goemotions.data.taxonomy import Taxonomy
from goemotions.errors import ModelError, SourceUnreachable
from goemotions.metrics.calibration import Scaling
from goemotions.models.profiles import Profile
from goemotions.models.records import read_json
from goemotions.storage import manifest, store

HUB_TIMEOUT_SECONDS = 5


class MeanPooledConfig(transformers.BertConfig):
    """A BERT config under a model type of its own: AutoModel refuses it instead of leaving out the head."""

    model_type = "bert-mean-pooled"


class MeanPooledClassifier(transformers.BertPreTrainedModel):
    """BERT, the mean of its last hidden states over the real tokens, dropout, and one linear layer.

    ``forward`` takes ids and attention mask [n, tokens] and answers logits [n, labels].
    """

    config_class = MeanPooledConfig

    def __init__(self, config: MeanPooledConfig) -> None:
        super().__init__(config)
        self.num_labels = config.num_labels
        self.bert = transformers.BertModel(config, add_pooling_layer=False)
        self.dropout = nn.Dropout(config.classifier_dropout or 0.0)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, **_: Any) -> SequenceClassifierOutput:
        hidden = self.bert(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        weights = attention_mask.unsqueeze(-1).to(hidden.dtype)
        pooled = (hidden * weights).sum(1) / weights.sum(1).clamp(min=1)
        return SequenceClassifierOutput(logits=self.classifier(self.dropout(pooled)))


# Nothing else is ever built: a config that names another type, or code of its own, is refused.
CLASSES: dict[str, type[transformers.PreTrainedModel]] = {
    "roberta": transformers.RobertaForSequenceClassification,
    "distilbert": transformers.DistilBertForSequenceClassification,
    "bert": transformers.BertForSequenceClassification,
    MeanPooledConfig.model_type: MeanPooledClassifier,
}
# Beside attn_implementation and the like, which may name kernels of the hub.
FOREIGN_FIELDS = ("auto_map", "quantization_config", "transformers_weights")
CLASSIFIER_DROPOUT = {"distilbert": "seq_classif_dropout"}
# Set by the profile and the taxonomy, whatever the weights' own config says of them.
OWN_FIELDS = ("model_type", "architectures", "id2label", "label2id", "num_labels", "problem_type")
UNREADABLE = (OSError, ValueError, TypeError, KeyError, RuntimeError, SafetensorError, StrictDataclassError)


def build_classifier(
    profile: Profile, taxonomy: Taxonomy, *, weights: str = "", seed: int = 0
) -> tuple[transformers.PreTrainedModel, transformers.PreTrainedTokenizerBase]:
    """A pretrained encoder with a fresh head.

    Args:
        profile: the encoder and its settings.
        taxonomy: the labels of the head.
        weights: where the encoder's files are: empty (the profile's package if installed, else its hub revision), a folder or s3://.
        seed: of the head's initial weights.

    Raises:
        ModelError: the weights do not fit the profile.
        SourceUnreachable: the hub does not answer.
    """
    with _encoder_files(profile, weights) as (folder, is_published):
        torch.manual_seed(seed)
        with _quiet_transformers():
            try:
                config = _config(profile, taxonomy, _safe_fields(folder))
                model, found = CLASSES[config.model_type].from_pretrained(
                    folder,
                    config=config,
                    use_safetensors=True,
                    local_files_only=True,
                    output_loading_info=True,
                )
                # Not AutoTokenizer: it takes the class, and with it the files to read, from the folder.
                tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(
                    folder,
                    local_files_only=True,  # nosec B615 # a folder on disk
                )
            except UNREADABLE as error:
                raise ModelError(f"{folder} holds no usable weights for {profile.name}: {_first_line(error)}") from error
        missing = sorted(name for name in found["missing_keys"] if name.startswith(model.base_model_prefix + "."))
        if missing:
            raise ModelError(f"{folder} holds no usable weights for {profile.name}: they lack {missing[0]}")
    if is_published:
        check_size(profile, model, taxonomy)
    _add_tokens(model, tokenizer, profile.added_tokens)
    return model, tokenizer


def build_untrained(profile: Profile, taxonomy: Taxonomy) -> transformers.PreTrainedModel:
    """The full architecture of a profile with random weights, built from its config alone."""
    config = _config(profile, taxonomy, {"model_type": profile.model_type, **profile.architecture})
    return CLASSES[config.model_type](config)


def head_parameters(model: transformers.PreTrainedModel) -> list[nn.Parameter]:
    """The parameters of the head: those the encoder does not have."""
    return [p for name, p in model.named_parameters() if not name.startswith(model.base_model_prefix + ".")]


def layer_depth(model: transformers.PreTrainedModel, name: str) -> int:
    """Depth of a parameter of the encoder: 0 for the embeddings, 1 for the first layer, and so on."""
    found = re.search(r"\.layer\.(\d+)\.", name)
    if found:
        return int(found.group(1)) + 1
    return 0 if ".embeddings." in name else int(model.config.num_hidden_layers)


def _add_tokens(
    model: transformers.PreTrainedModel, tokenizer: transformers.PreTrainedTokenizerBase, tokens: Sequence[str]
) -> None:
    """Gives each token one id; its embedding starts as the mean of its word's, without the brackets."""
    pieces = {token: tokenizer(token.strip("[]<>"), add_special_tokens=False).input_ids for token in tokens}
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in tokens])
    if len(tokenizer) > model.config.vocab_size:
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    table = model.get_input_embeddings().weight
    with torch.no_grad():
        for token, ids in pieces.items():
            table[tokenizer.convert_tokens_to_ids(token)] = table[ids].mean(0)


def init_bias_from_frequency(model: transformers.PreTrainedModel, labels: np.ndarray) -> None:
    """Sets the last layer's bias so that an untrained head predicts each label's frequency in ``labels`` [n, labels].

    Without it the first hundreds of steps are spent on learning that emotions are rare (Lin et al. 2017, section 4.1).
    """
    frequency = (labels.sum(axis=0) + 1) / (len(labels) + 2)
    with torch.no_grad():
        _last_layer(model).bias.copy_(torch.from_numpy(np.log(frequency / (1 - frequency))))


def fold_calibration(model: transformers.PreTrainedModel, scaling: Scaling) -> None:
    """Folds a scaling of the logits into the last layer, so that every engine answers with calibrated probabilities."""
    layer = _last_layer(model)
    slope, intercept = (torch.tensor(values, device=layer.weight.device) for values in (scaling.slope, scaling.intercept))
    with torch.no_grad():
        layer.weight.mul_(slope[:, None])
        layer.bias.mul_(slope).add_(intercept)


def _last_layer(model: transformers.PreTrainedModel) -> nn.Linear:
    linear: nn.Linear = [layer for layer in model.modules() if isinstance(layer, nn.Linear)][-1]
    return linear


def check_size(profile: Profile, model: transformers.PreTrainedModel, taxonomy: Taxonomy) -> None:
    """Refuses a model whose parameter count is more than 2% off its profile's."""
    head = (len(taxonomy) - 28) * (model.config.hidden_size + 1)
    found = sum(parameter.numel() for parameter in model.parameters()) - head
    if abs(found - profile.parameters) > 0.02 * profile.parameters:
        raise ModelError(
            f"{profile.name} has {found:,} parameters where {profile.parameters:,} are expected: these are other weights"
        )


def save_classifier(
    folder: Path,
    model: transformers.PreTrainedModel,
    tokenizer: transformers.PreTrainedTokenizerBase,
    training: dict[str, Any],
) -> None:
    """Writes a Model folder: Hugging Face's files and ``training.json``."""
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "training.json").write_text(json.dumps(training, indent=1), encoding="utf-8")


def load_classifier(folder: Path) -> transformers.PreTrainedModel:
    """Reads the classifier of a Model folder, in evaluation mode."""
    model_type = _safe_fields(folder).get("model_type")
    model_class = CLASSES.get(str(model_type))
    if model_class is None:
        raise ModelError(f"{folder} holds a model of type {model_type!r}: only {', '.join(CLASSES)} are loaded")
    with _quiet_transformers():
        try:
            model, found = model_class.from_pretrained(
                folder, use_safetensors=True, local_files_only=True, output_loading_info=True
            )
        except UNREADABLE as error:
            raise ModelError(f"{folder} is damaged: {_first_line(error)}") from error
    # transformers fills what a file lacks with random numbers.
    if found["missing_keys"]:
        raise ModelError(f"{folder} is damaged: its weights lack {min(found['missing_keys'])}")
    return model.eval()


def _safe_fields(folder: Path) -> dict[str, Any]:
    """The fields of a folder's config, once nothing in the folder can make transformers run code or fetch other weights.

    Raises:
        ModelError: the folder has no safetensors or no tokenizer.json, or names code or weights from elsewhere.
    """
    fields = read_json(folder / "config.json")
    names = [path.name for path in folder.iterdir()]
    if not any(name.endswith(".safetensors") for name in names):
        raise ModelError(f"{folder} holds no usable weights: a pickle or script is never read, convert it to model.safetensors")
    if "tokenizer.json" not in names:
        raise ModelError(f"{folder / 'tokenizer.json'} is missing: other forms of a tokenizer are not read, convert it")
    foreign = [name for name in fields if name in FOREIGN_FIELDS or name.endswith("_implementation")]
    foreign += [name for name in names if name == "adapter_config.json"]
    if foreign:
        raise ModelError(
            f"{folder} takes code or weights from elsewhere ({foreign[0]}): only {', '.join(CLASSES)} are loaded, as they are"
        )
    return fields


@contextlib.contextmanager
def _encoder_files(profile: Profile, weights: str) -> Iterator[tuple[Path, bool]]:
    """The folder with the encoder's files, and whether they are the published ones."""
    if store.is_s3(weights):
        with tempfile.TemporaryDirectory() as scratch:
            yield store.fetch(weights, Path(scratch)), False
    elif weights:
        yield Path(weights).expanduser(), False
    elif profile.package and importlib.util.find_spec(profile.package[0]):
        yield _published(profile, Path(str(importlib.resources.files(profile.package[0]) / "model"))), True
    else:
        yield _published(profile, _from_hub(profile)), True


def _published(profile: Profile, folder: Path) -> Path:
    """The folder, where its weights are the published ones as far as their sha256 is on record."""
    if profile.package and manifest.sha256(folder / "model.safetensors") != profile.package[1]:
        raise ModelError(f"the weights in {folder} are not the published ones: install or fetch the pinned version again")
    return folder


def _from_hub(profile: Profile) -> Path:
    import huggingface_hub

    wanted = ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"]
    try:
        # A pinned commit that is in the cache needs no network at all.
        return Path(
            huggingface_hub.snapshot_download(
                profile.base, revision=profile.revision, allow_patterns=wanted, local_files_only=True
            )
        )
    except OSError:
        pass
    try:
        huggingface_hub.HfApi().model_info(profile.base, revision=profile.revision, timeout=HUB_TIMEOUT_SECONDS)
        return Path(huggingface_hub.snapshot_download(profile.base, revision=profile.revision, allow_patterns=wanted))
    except Exception as error:
        raise SourceUnreachable(
            f"the hub cannot be reached for {profile.base}: give its files with weights={profile.name}=path/to/folder or "
            f"weights={profile.name}=s3://bucket/prefix/, or train minilm, whose weights are a package"
        ) from error


def _config(profile: Profile, taxonomy: Taxonomy, fields: dict[str, Any]) -> transformers.PretrainedConfig:
    if fields.get("model_type") != profile.model_type:
        raise ModelError(
            f"{profile.name} is a {profile.model_type}, its weights are of type {fields.get('model_type')!r}: give others"
        )
    config_class = MeanPooledConfig if profile.pooling == "mean" else CLASSES[profile.model_type].config_class
    fields = {key: value for key, value in fields.items() if key not in OWN_FIELDS}
    config = config_class(
        **fields,
        id2label=dict(enumerate(taxonomy.names)),
        label2id={name: position for position, name in enumerate(taxonomy.names)},
        problem_type="multi_label_classification",
    )
    setattr(config, CLASSIFIER_DROPOUT.get(profile.model_type, "classifier_dropout"), profile.dropout)
    if profile.layers:
        config.num_hidden_layers = min(profile.layers, config.num_hidden_layers)
    return config


@contextlib.contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Hides the load report: a fresh head and left-out layers are what was asked for."""
    before = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers.logging.set_verbosity(before)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def describe_profile(profile: Profile) -> dict[str, Any]:
    """A profile's settings as JSON has them, for ``training.json`` and MLflow."""
    fields = {key: value for key, value in dataclasses.asdict(profile).items() if key not in ("architecture", "package")}
    return {key: list(value) if isinstance(value, tuple) else value for key, value in fields.items()}
