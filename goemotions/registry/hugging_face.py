"""A trained model as a folder of the Hugging Face hub: transformers loads it without this package, and its card has the hub's metadata.

Only architectures whose head a class of transformers has can be exported; the mean of the tokens is none of these, but for ModernBERT.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from goemotions.data.text import as_markdown
from goemotions.errors import ModelError
from goemotions.metrics import thresholds
from goemotions.metrics.classification import METRICS_FILE
from goemotions.models.engine_names import WEIGHTS
from goemotions.models.records import TrainingRecord, read_json
from goemotions.registry.bundle import CARD
from goemotions.storage import manifest

CHECKPOINT = WEIGHTS["torch"]
TOKENIZER_CONFIG = "tokenizer_config.json"
# The licences of the encoders, as NOTICE has them; a fine-tuned model is subject to it.
LICENSES = {
    "FacebookAI/roberta-large": "mit",
    "distilbert/distilbert-base-uncased": "apache-2.0",
    "sentence-transformers/all-MiniLM-L6-v2": "apache-2.0",
    "sentence-transformers/all-mpnet-base-v2": "apache-2.0",
}
METRICS = {
    "roc_auc": ("auc_micro", "auc_macro"),
    "f1": ("f1_micro", "f1_macro"),
    "precision": ("precision_macro",),
    "recall": ("recall_macro",),
}


def export(folder: Path, output: Path, *, license_name: str = "", language: str = "en", data: str = "") -> str:
    """Writes a folder that ``AutoModelForSequenceClassification.from_pretrained`` and ``pipeline("text-classification")`` load.

    Args:
        folder: a bundle for GPUs or a trained model, as ``goemotions model download`` writes them.
        output: the folder to write, which must be empty or absent.
        license_name: as the hub names it; empty for that of the profile's encoder, or `other` for weights that the user gave.
        language: code of the language.
        data: the data set on the hub, or another name of it.

    Returns:
        The name of the model's class.

    Raises:
        ModelError: the folder has no weights of torch, no class of transformers has its head, or the output is not empty.
        IntegrityError: a file is missing or differs from the manifest.
    """
    manifest.verify(folder)
    if not (folder / CHECKPOINT).is_file():
        raise ModelError(
            f"{folder} has no {CHECKPOINT}: give a version for GPUs such as champion-gpu, or a trained model with --run and --profile"
        )
    record, config = TrainingRecord.read(folder), read_json(folder / "config.json")
    name = _stock_class(folder, config)
    if output.is_dir() and any(output.iterdir()):
        raise ModelError(f"{output} is not empty: give another folder")
    output.mkdir(parents=True, exist_ok=True)
    for file in (CHECKPOINT, "config.json", "tokenizer.json"):
        shutil.copyfile(folder / file, output / file)
    # The pipeline of transformers cuts texts there, as the predictor does.
    tokenizer = read_json(folder / TOKENIZER_CONFIG) | {"model_max_length": record.max_length}
    (output / TOKENIZER_CONFIG).write_text(json.dumps(tokenizer, indent=1), encoding="utf-8")
    fitted, metrics = _evaluated(folder)
    shutil.copyfile(fitted, output / thresholds.FILE)
    card = _card(
        record, metrics, license_name=license_name, language=language, data=data or f"digest {record.dataset_digest[:12]}"
    )
    (output / CARD).write_text(card, encoding="utf-8")
    return name


def _stock_class(folder: Path, config: dict[str, Any]) -> str:
    from goemotions.models.architectures import STOCK

    model_type = config.get("model_type")
    if model_type not in STOCK:
        raise ModelError(
            f"the model is of type {model_type!r}, which averages the tokens, and no class of transformers does that: use it through "
            'this package, or train it with --set pooling=first (in `settings` of a run: {"pooling":"first"})'
        )
    return STOCK[model_type].__name__


def _evaluated(folder: Path) -> tuple[Path, dict[str, float]]:
    """The thresholds and metrics of a bundle, or those of the variant gpu of a trained model."""
    place = folder if (folder / METRICS_FILE).is_file() else folder / "gpu"
    return place / thresholds.FILE, read_json(place / METRICS_FILE)


def _card(record: TrainingRecord, metrics: dict[str, float], *, license_name: str, language: str, data: str) -> str:
    from huggingface_hub import EvalResult, ModelCardData

    profile = record.profile
    results = [
        EvalResult(
            "text-classification",
            dataset_type=data,
            dataset_name=data,
            dataset_split="test",
            metric_type=kind,
            metric_name=_title(name),
            metric_value=metrics[f"test/{name}"],
        )
        for kind, names in METRICS.items()
        for name in names
    ]
    # Weights that the user gave are maybe not those of the profile's encoder.
    is_base_known = not record.weights
    base = f"`{profile['base']}`" if is_base_known else f"other weights of the architecture of `{profile['base']}`"
    metadata = ModelCardData(
        language=language,
        license=license_name or LICENSES.get(profile["base"] if is_base_known else "", "other"),
        library_name="transformers",
        pipeline_tag="text-classification",
        base_model=profile["base"] if is_base_known else None,
        datasets=[data] if "/" in data else None,
        metrics=list(METRICS),
        tags=["multi-label-classification"],
        model_name=profile["name"],
        eval_results=results,
    )
    rows = "\n".join(f"| {result.metric_name} | {result.metric_value:.4f} |" for result in results)
    return f"""---
{metadata.to_yaml()}
---
# {as_markdown(str(profile["name"]))}

Multi-label classifier of short texts, fine-tuned from {base}. Each label has a probability of its own, which is
calibrated on validation:

```python
from transformers import pipeline

classify = pipeline("text-classification", model="path/or/name", top_k=None, truncation=True)
classify("thank you so much!")
```

`{thresholds.FILE}` has one threshold per label, fitted on validation. On the test split of {data}, with these thresholds:

| metric | test |
|---|---|
{rows}

Not for decisions about a person: the labels are the impressions of raters, and carry their biases.
"""


def _title(name: str) -> str:
    metric, _, average = name.rpartition("_")
    return f"{average} {metric.upper() if len(metric) < 4 else metric}"
