"""Names of the engines, and the files that those of OpenVINO run."""

FILES: dict[str, str] = {"openvino-fp32": "model.onnx", "openvino-int8": "model.int8.onnx"}
NAMES = ("torch", *FILES)
# Former names, in options, and in the predictions, export.json and bundles of before.
RENAMED = {"onnx": "openvino-fp32", "onnx-int8": "openvino-int8"}


def canonical_name(name: str) -> str:
    """Replaces an engine's former name by today's."""
    return RENAMED.get(name, name)
