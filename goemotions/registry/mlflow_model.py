"""A bundle as an MLflow model: MLmodel with signature and input example, and an environment in which MLflow can serve it.

The environment installs this package from a wheel in the bundle, made of the files of the running package, and what the predictor
of the variant needs, with the versions that are installed here. None of it is read if the bundle is loaded where both are installed.
No file is a pickle. All bytes depend on the arguments and on what is installed, so that two attempts to write a bundle agree.
"""

from __future__ import annotations

import base64
import hashlib
import json
import platform
import uuid
import zipfile
from collections.abc import Iterator
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from goemotions import defaults
from goemotions.errors import DataError, UntrustedBundle
from goemotions.registry import references
from goemotions.storage import manifest

PACKAGE = "goemotions"
LOADER = "goemotions.prediction.predictor"
# Bundles of before name the first one.
LOADERS = ("goemotions.predictor", LOADER)
MLMODEL = "MLmodel"
EXAMPLE = ["thank you so much!"]
EXAMPLE_FILE, SERVING_EXAMPLE_FILE = "input_example.json", "serving_input_example.json"
REQUIREMENTS, PYTHON_ENV, CONDA_ENV = "requirements.txt", "python_env.yaml", "conda.yaml"
# The oldest time that a zip file can have.
ZIP_TIME = (1980, 1, 1, 0, 0, 0)


def write(folder: Path, variant: str, identity: str) -> None:
    """Writes what makes a bundle an MLflow model.

    Args:
        folder: the bundle.
        variant: the extra of this package that its predictor needs.
        identity: the id of the model is made from it.
    """
    (folder / EXAMPLE_FILE).write_text(json.dumps(EXAMPLE), encoding="utf-8")
    (folder / SERVING_EXAMPLE_FILE).write_text(json.dumps({"inputs": EXAMPLE}), encoding="utf-8")
    _write_environment(folder, variant)
    _write_mlmodel(folder, identity)


def load(reference: str = defaults.REFERENCE, model_name: str = defaults.MODEL_NAME) -> Any:
    """What ``mlflow.pyfunc.load_model`` returns for a bundle, which is verified before.

    MLflow alone imports what the MLmodel names before anything is verified.

    Args:
        reference, model_name: as for ``references.fetch``.

    Raises:
        ModelError, IntegrityError, UntrustedBundle: as ``references.as_folder``; or the MLmodel names code of others.
    """
    import mlflow.pyfunc
    from mlflow.models import Model

    with references.as_folder(reference, model_name) as (folder, _):
        is_verified = MLMODEL in manifest.read(folder)["files"]
        flavor = Model.load(str(folder)).flavors.get(mlflow.pyfunc.FLAVOR_NAME, {}) if is_verified else {}
        if flavor.get(mlflow.pyfunc.MAIN) not in LOADERS or flavor.keys() & {mlflow.pyfunc.CODE, mlflow.pyfunc.DATA}:
            raise UntrustedBundle(f"the {MLMODEL} of {reference} is not that of this package: register the model again")
        return mlflow.pyfunc.load_model(str(folder))


def refusal(error: DataError) -> Exception:
    """The error as one that MLflow's server passes on with its message; it is a DataError still."""
    from mlflow.exceptions import MlflowException

    class RefusedInput(MlflowException, DataError):  # type: ignore[misc]
        pass

    refused: Exception = RefusedInput.invalid_parameter_value(str(error))
    return refused


def _write_mlmodel(folder: Path, identity: str) -> None:
    """The MLmodel file, by which ``mlflow.pyfunc.load_model`` loads the bundle through this package."""
    import mlflow.pyfunc
    from mlflow.models import Model, ModelSignature
    from mlflow.types.schema import Array, ColSpec, Map, ParamSchema, ParamSpec, Schema

    outputs = [ColSpec(Array("string"), "labels"), ColSpec(Map("double"), "scores"), ColSpec("boolean", "truncated")]
    options = [
        ParamSpec("top_k", "long", None),
        ParamSpec("threshold", "double", None),
        ParamSpec("all_scores", "boolean", False),
    ]
    signature = ModelSignature(Schema([ColSpec("string")]), Schema(outputs), ParamSchema(options))
    # MLflow then passes the input as it is: `as_texts` checks it, and takes more forms than MLflow would.
    signature._is_signature_from_type_hint = True
    description = Model(
        model_uuid=uuid.uuid5(uuid.NAMESPACE_URL, identity).hex,
        utc_time_created=str(datetime.fromtimestamp(0, UTC)),
        signature=signature,
        saved_input_example_info={
            "artifact_path": EXAMPLE_FILE,
            "serving_input_path": SERVING_EXAMPLE_FILE,
            "type": "json_object",
        },
    )
    mlflow.pyfunc.add_to_model(description, loader_module=LOADER, conda_env=CONDA_ENV, python_env=PYTHON_ENV)
    description.save(folder / MLMODEL)


def _write_environment(folder: Path, variant: str) -> None:
    """The files by which MLflow makes an environment, with pip, uv or conda."""
    version = metadata.version(PACKAGE)
    # No index has a local version, so that no package of this name there can be installed instead.
    version = version if "+" in version else f"{version}+bundle"
    _write_wheel(folder, version)
    pins = sorted({*_pins(variant), f"mlflow=={metadata.version('mlflow-skinny')}"})
    requirements = ["--find-links .", f"{PACKAGE}=={version}", *pins]
    (folder / REQUIREMENTS).write_text("\n".join(requirements) + "\n", encoding="utf-8")
    python = platform.python_version()
    environment = {"python": python, "dependencies": [f"-r {REQUIREMENTS}"]}
    # Every JSON document is YAML.
    (folder / PYTHON_ENV).write_text(json.dumps(environment, indent=1), encoding="utf-8")
    packages = [f"python={python}", "pip", {"pip": environment["dependencies"]}]
    conda = {"name": PACKAGE, "channels": ["conda-forge"], "dependencies": packages}
    (folder / CONDA_ENV).write_text(json.dumps(conda, indent=1), encoding="utf-8")


def _pins(variant: str) -> Iterator[str]:
    """What this package needs with the extra of a variant, as pins of what is installed."""
    from packaging.requirements import Requirement
    from packaging.version import Version

    for line in metadata.requires(PACKAGE) or ():
        requirement = Requirement(line)
        if requirement.marker and not requirement.marker.evaluate({"extra": variant}):
            continue
        try:
            # Without the local part, such as that of a build of torch for CPUs, which the package index does not have.
            yield f"{requirement.name}=={Version(metadata.version(requirement.name)).public}"
        except metadata.PackageNotFoundError:
            yield f"{requirement.name}{requirement.specifier}"


def _write_wheel(folder: Path, version: str) -> None:
    """This package as a wheel, without the commands and the dependencies, which the requirements list."""
    root = Path(__file__).parents[1]
    files = {
        f"{PACKAGE}/{path.relative_to(root).as_posix()}": path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file() and "__pycache__" not in path.parts
    }
    info = f"{PACKAGE}-{version}.dist-info"
    files[f"{info}/METADATA"] = f"Metadata-Version: 2.1\nName: {PACKAGE}\nVersion: {version}\n".encode()
    files[f"{info}/WHEEL"] = b"Wheel-Version: 1.0\nGenerator: goemotions\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    listed = [f"{name},sha256={_digest(content)},{len(content)}" for name, content in files.items()]
    files[f"{info}/RECORD"] = "\n".join([*listed, f"{info}/RECORD,,", ""]).encode()
    with zipfile.ZipFile(folder / f"{PACKAGE}-{version}-py3-none-any.whl", "w", zipfile.ZIP_DEFLATED) as wheel:
        for name, content in files.items():
            entry = zipfile.ZipInfo(name, ZIP_TIME)
            entry.external_attr = 0o644 << 16
            wheel.writestr(entry, content, zipfile.ZIP_DEFLATED)


def _digest(content: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
