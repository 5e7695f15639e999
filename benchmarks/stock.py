"""A baseline of ``benchmarks.serving``: KServe's own server around a transformers pipeline."""

from __future__ import annotations

import functools
import logging
import sys
from pathlib import Path
from typing import Any

import kserve
import kserve.model_server
from kserve.protocol.rest.server import RESTServer


def pipeline(folder: Path) -> Any:
    """A transformers pipeline over the model of a bundle, in fp32 on the CPU, with every label's probability."""
    import transformers

    from goemotions.models.classifier import load_classifier
    from goemotions.models.tokenizer import TextEncoder

    transformers.logging.set_verbosity(logging.CRITICAL)
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(TextEncoder.load(folder).pad_id)
    model = load_classifier(folder).eval()
    return transformers.TextClassificationPipeline(
        model=model, tokenizer=tokenizer, top_k=None, function_to_apply="sigmoid", device="cpu"
    )


class Stock(kserve.Model):
    """A custom predictor as in KServe's documentation."""

    def __init__(self, folder: Path, batch_size: int) -> None:
        super().__init__("goemotions")
        self._pipeline = pipeline(folder)
        self._batch_size = batch_size
        self.ready = True

    def predict(self, payload: Any, headers: Any = None, response_headers: Any = None) -> dict[str, Any]:
        return {"predictions": self._pipeline(payload["instances"], batch_size=self._batch_size, truncation=True)}


def _on_loopback(*arguments: Any, **options: Any) -> RESTServer:
    server = RESTServer(*arguments, **options)
    server.config.host = "127.0.0.1"
    return server


if __name__ == "__main__":
    # ModelServer binds every interface and has no option for the address.
    kserve.model_server.RESTServer = functools.partial(_on_loopback)
    folder, batch_size, _, port = sys.argv[1:]
    model = Stock(Path(folder), int(batch_size))
    kserve.ModelServer(http_port=int(port), enable_grpc=False, workers=1).start([model])
