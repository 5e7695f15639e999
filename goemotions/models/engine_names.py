"""Names of the engines, the file of weights that each reads, and what it computes on. Servers import it, so it stays small."""

from __future__ import annotations

from dataclasses import dataclass

FILES: dict[str, str] = {"openvino-fp32": "model.onnx", "openvino-int8": "model.int8.onnx"}
# A bundle holds the weights of its own engine only.
WEIGHTS: dict[str, str] = {"torch": "model.safetensors", **FILES}
NAMES = tuple(WEIGHTS)
# Former names, in options, and in the predictions, export.json and bundles of before.
RENAMED = {"onnx": "openvino-fp32", "onnx-int8": "openvino-int8"}


@dataclass(frozen=True)
class Computation:
    """What computed scores: the engine, its device (``cpu`` or ``cuda``) and its precision (``fp32``, ``bf16`` or ``int8``).

    Device and precision are empty in files from before they were recorded.
    """

    engine: str
    device: str = ""
    precision: str = ""

    def __str__(self) -> str:
        return f"{self.engine} on {self.device} in {self.precision}" if self.device else self.engine


def canonical_name(name: str) -> str:
    """Replaces an engine's former name by today's."""
    return RENAMED.get(name, name)
