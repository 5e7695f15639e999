"""The architectures of encoders: for each the classifier with the head of transformers, and one over the mean of the tokens.

A type that is not in this table is never built. An encoder of a listed type needs a profile only.
"""

from __future__ import annotations

import inspect
import re
from typing import Any

import torch
import transformers
from torch import nn
from transformers.modeling_outputs import SequenceClassifierOutput

# The classes that AutoModelForSequenceClassification takes.
STOCK: dict[str, type[transformers.PreTrainedModel]] = {
    "albert": transformers.AlbertForSequenceClassification,
    "bert": transformers.BertForSequenceClassification,
    "camembert": transformers.CamembertForSequenceClassification,
    "deberta-v2": transformers.DebertaV2ForSequenceClassification,
    "distilbert": transformers.DistilBertForSequenceClassification,
    "electra": transformers.ElectraForSequenceClassification,
    "modernbert": transformers.ModernBertForSequenceClassification,
    "mpnet": transformers.MPNetForSequenceClassification,
    "roberta": transformers.RobertaForSequenceClassification,
    "xlm-roberta": transformers.XLMRobertaForSequenceClassification,
}
TOKENIZERS: dict[str, type[transformers.PreTrainedTokenizerBase]] = {
    "albert": transformers.AlbertTokenizer,
    "bert": transformers.BertTokenizer,
    "camembert": transformers.CamembertTokenizer,
    "deberta-v2": transformers.DebertaV2Tokenizer,
    "distilbert": transformers.DistilBertTokenizer,
    "electra": transformers.BertTokenizer,
    "modernbert": transformers.PreTrainedTokenizerFast,
    "mpnet": transformers.MPNetTokenizer,
    "roberta": transformers.RobertaTokenizer,
    "xlm-roberta": transformers.XLMRobertaTokenizer,
}


class MeanPooledClassifier(transformers.PreTrainedModel):
    """An encoder, the mean of its last hidden states over the real tokens, dropout, and one linear layer.

    ``forward`` takes ids and attention mask, int64 [n, tokens], and returns logits [n, labels]. Its subclasses, one per architecture,
    have model types of their own: AutoModel refuses them, where it would leave out the head.
    """

    encoder_class: type[transformers.PreTrainedModel]

    def __init__(self, config: transformers.PretrainedConfig) -> None:
        super().__init__(config)
        self.num_labels = config.num_labels
        has_pooler = "add_pooling_layer" in inspect.signature(self.encoder_class.__init__).parameters
        options = {"add_pooling_layer": False} if has_pooler else {}
        setattr(self, self.base_model_prefix, self.encoder_class(config, **options))
        self.dropout = nn.Dropout(0.0)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, **_: Any) -> SequenceClassifierOutput:
        hidden = self.base_model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        weights = attention_mask.unsqueeze(-1).to(hidden.dtype)
        pooled = (hidden * weights).sum(1) / weights.sum(1).clamp(min=1)
        return SequenceClassifierOutput(logits=self.classifier(self.dropout(pooled)))


def _mean_pooled(stock: type[transformers.PreTrainedModel]) -> type[transformers.PreTrainedModel]:
    config_class = stock.config_class
    name = f"MeanPooled{stock.__name__.removesuffix('ForSequenceClassification')}"
    fields = {"model_type": f"{config_class.model_type}-mean-pooled", "__module__": __name__}
    body = {
        "config_class": type(f"{name}Config", (config_class,), fields),
        "encoder_class": transformers.MODEL_MAPPING[config_class],
        "__module__": __name__,
    }
    bases: tuple[type, ...] = (MeanPooledClassifier, *stock.__bases__)
    return type(name, bases, body)


# Nothing else is built: a config with another type, or with its own code, is refused.
CLASSES = STOCK | {model.config_class.model_type: model for model in map(_mean_pooled, STOCK.values())}


def class_for(model_type: str, pooling: str) -> type[transformers.PreTrainedModel]:
    """Returns the class of a classifier: that of transformers, unless it cannot pool like this."""
    stock = STOCK[model_type]
    has_both = hasattr(stock.config_class, "classifier_pooling")
    return stock if pooling == "first" or has_both else CLASSES[f"{model_type}-mean-pooled"]


def set_pooling(config: transformers.PretrainedConfig, pooling: str) -> None:
    """Sets the pooling of an architecture that has both kinds."""
    if hasattr(config, "classifier_pooling"):
        config.classifier_pooling = {"first": "cls"}.get(pooling, pooling)


def keep_layers(config: transformers.PretrainedConfig, layers: int) -> None:
    """Keeps at most this many of the first layers; from_pretrained leaves the weights of the others out."""
    config.num_hidden_layers = min(layers, config.num_hidden_layers)
    # A type per layer: ModernBERT attends globally in every third.
    if types := getattr(config, "layer_types", None):
        config.layer_types = types[:layers]


def is_in_head(model: transformers.PreTrainedModel, name: str) -> bool:
    """Whether a module or parameter of this name belongs to the head: the encoder does not have it."""
    return not f"{name}.".startswith(f"{model.base_model_prefix}.")


def head_parameters(model: transformers.PreTrainedModel) -> list[nn.Parameter]:
    """Returns the parameters of the head."""
    return [parameter for name, parameter in model.named_parameters() if is_in_head(model, name)]


def renew_head(model: transformers.PreTrainedModel) -> None:
    """Initializes the head again, by torch's random state, as the architecture initializes a new one."""
    for name, module in model.named_modules():
        if name and is_in_head(model, name):
            for parameter in module.parameters(recurse=False):
                parameter._is_hf_initialized = False  # type: ignore[attr-defined]
            model._init_weights(module)


def set_head_dropout(model: transformers.PreTrainedModel, probability: float) -> None:
    """Sets the dropout of the head; each architecture calls the field of its config by another name, and MPNet's has none."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Dropout) and is_in_head(model, name):
            module.p = probability


def layer_depth(model: transformers.PreTrainedModel, name: str) -> int:
    """Returns the depth of an encoder's parameter: 0 for the embeddings, 1 for the first layer, and so on.

    What all layers share, such as ALBERT's only one, has the depth of the last.
    """
    if layer := re.search(r"\.layers?\.(\d+)\.", name):
        return int(layer[1]) + 1
    return 0 if "embeddings" in name else int(model.config.num_hidden_layers)


def set_attention(model: transformers.PreTrainedModel, implementation: str) -> None:
    """Sets what computes the attention, unless the architecture has only its own code for it, as MPNet and DeBERTa have."""
    if model.base_model._can_set_attn_implementation():
        model.set_attn_implementation(implementation)
