"""The manifests of a model of another name: copies of the shipped ones with that name, in ``manifests/models/<name>/``.

Such a folder has everything that belongs to one model, so that several are served side by side in a namespace. What is there is kept:
only what a new variant needs is added.
"""

from __future__ import annotations

import copy
from collections.abc import Collection
from pathlib import Path
from typing import Any

from goemotions import defaults
from goemotions.deployment.manifest_files import dump, load, of_kind
from goemotions.registry.bundle import VARIANTS

MANIFESTS = Path("manifests")
ISVC, BUDGETS, RULE = "isvc.yaml", "poddisruptionbudgets.yaml", "alerts/prometheusrule.yaml"
ALERT = "GoEmotionsDown"
KUSTOMIZATIONS = {
    "kustomization.yaml": """\
# The services of the model {name}. They need the namespace and the policies of an overlay, which is applied once for all models.
# To give them the patches of an overlay, too, name this folder in its `resources` instead of applying it.
apiVersion: kustomize.config.k8s.io/v1beta1
kind: Kustomization
namespace: goemotions
resources:
  - isvc.yaml
  - poddisruptionbudgets.yaml
patches:
  - target: {{kind: InferenceService}}
    patch: |-
      - {{op: add, path: /spec/predictor/storageContainerName, value: goemotions}}
""",
    "alerts/kustomization.yaml": """\
# The alert that the model {name} is not served; the other alerts of manifests/components/monitoring are for every model. It needs the
# Prometheus operator.
apiVersion: kustomize.config.k8s.io/v1beta1
kind: Kustomization
namespace: goemotions
resources:
  - prometheusrule.yaml
""",
}


def file_of(model_name: str) -> Path:
    """The manifest with the InferenceServices of a model."""
    return MANIFESTS / ISVC if model_name == defaults.MODEL_NAME else MANIFESTS / "models" / model_name / ISVC


def add(file: Path, model_name: str, services: Collection[str]) -> None:
    """Adds the InferenceServices that the manifest of a model lacks, with runtime, budget and alert.

    Args:
        file: ``file_of`` the model; the shipped manifests are two folders above.
        model_name: name of the registered model.
        services: names of its InferenceServices; their versions and locations are those of the shipped ones until they are written.

    Raises:
        DeploymentError: a file cannot be read.
    """
    folder, shipped = file.parent, file.parents[2]
    base = shipped / "base"
    _complete(folder / ISVC, _renamed(load(base / ISVC), model_name), {*services, f"{model_name}-predictor"})
    _complete(folder / BUDGETS, _renamed(load(base / BUDGETS), model_name), set(services))
    for name, text in KUSTOMIZATIONS.items():
        if not (folder / name).exists():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(text.format(name=model_name), encoding="utf-8")
    if not (folder / RULE).exists():
        (rule,) = load(shipped / "components" / "monitoring" / "prometheusrule.yaml")
        rule["metadata"]["name"] = model_name
        (group,) = rule["spec"]["groups"]
        group["name"] = model_name
        group["rules"] = [alert for alert in group["rules"] if alert["alert"] == ALERT]
        dump(folder / RULE, [rule])
    (rule,) = load(folder / RULE)
    names = of_kind(load(folder / ISVC), "InferenceService")
    absent = [f'absent(goemotions_model_info{{serving_kserve_io_inferenceservice="{name}"}})' for name in names]
    rule["spec"]["groups"][0]["rules"][0]["expr"] = " or ".join(absent)
    dump(folder / RULE, [rule])


def _complete(path: Path, wanted: list[Any], names: set[str]) -> None:
    """Writes the documents of these names into a file that lacks them."""
    present = load(path) if path.exists() else []
    known = {(one["kind"], one["metadata"]["name"]) for one in present}
    missing = [
        one for one in wanted if one["metadata"]["name"] in names and (one["kind"], one["metadata"]["name"]) not in known
    ]
    if missing:
        dump(path, [*present, *missing])


def _renamed(documents: list[Any], model_name: str) -> list[Any]:
    shipped = defaults.MODEL_NAME
    names = {f"{shipped}-{part}": f"{model_name}-{part}" for part in (*VARIANTS, "predictor")}
    names[f"--model_name={shipped}"] = f"--model_name={model_name}"

    def rename(value: Any) -> Any:
        items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        for key, inner in items:
            value[key] = rename(inner)
        return names.get(value, value) if isinstance(value, str) else value

    return [rename(copy.deepcopy(document)) for document in documents]
