"""The kinds of GPU node pools: the label that a pool's nodes have, and their taints.

The steps that train and evaluate on GPUs and the GPU predictor are placed by the same table, ``PRESETS``. Names are those of the
cloud and of the card; ``generic`` are the labels of NVIDIA's GPU Feature Discovery, which any cluster can run.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from goemotions.errors import BadArgument

GPU = "nvidia.com/gpu"
ACCELERATOR = "cloud.google.com/gke-accelerator"
INSTANCE_TYPE = "node.kubernetes.io/instance-type"
PRODUCT = "nvidia.com/gpu.product"
NVIDIA_TAINT = {"key": GPU, "operator": "Exists", "effect": "NoSchedule"}
# The taint that Azure's own instructions give to node pools with GPUs.
AKS_TAINT = {"key": "sku", "operator": "Equal", "value": "gpu", "effect": "NoSchedule"}


@dataclass(frozen=True)
class NodePool:
    """Nodes whose label has one of several values; the properties are fields of a pod, as Kubernetes writes them."""

    label: str
    values: tuple[str, ...]

    @property
    def node_selector(self) -> dict[str, str]:
        """For a label with one value; empty otherwise."""
        return {self.label: self.values[0]} if len(self.values) == 1 else {}

    @property
    def node_affinity(self) -> dict[str, Any]:
        """For a label with several values; empty otherwise."""
        if len(self.values) == 1:
            return {}
        term = {"matchExpressions": [{"key": self.label, "operator": "In", "values": list(self.values)}]}
        return {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [term]}}

    @property
    def tolerations(self) -> list[dict[str, str]]:
        is_aks = self.values[0].startswith("Standard_")
        return [dict(taint) for taint in (NVIDIA_TAINT, *((AKS_TAINT,) if is_aks else ()))]

    def placement(self) -> dict[str, Any]:
        """Selector or affinity, and tolerations, by the names of the pipeline's parameters."""
        fields = {"node_selector": self.node_selector, "node_affinity": self.node_affinity, "tolerations": self.tolerations}
        return {name: value for name, value in fields.items() if value}


def place(predictor: dict[str, Any], pool: NodePool) -> None:
    """Sets the pool on the predictor of an InferenceService, in place of another one."""
    affinity = {name: value for name, value in predictor.get("affinity", {}).items() if name != "nodeAffinity"}
    if pool.node_affinity:
        affinity["nodeAffinity"] = pool.node_affinity
    fields = {"nodeSelector": pool.node_selector, "affinity": affinity, "tolerations": pool.tolerations}
    for name, value in fields.items():
        if not value:
            predictor.pop(name, None)
        elif predictor.get(name) != value:
            predictor[name] = value


PRESETS = {
    "gke-a100": NodePool(ACCELERATOR, ("nvidia-tesla-a100", "nvidia-a100-80gb")),
    "gke-a100-40gb": NodePool(ACCELERATOR, ("nvidia-tesla-a100",)),
    "gke-a100-80gb": NodePool(ACCELERATOR, ("nvidia-a100-80gb",)),
    "gke-h100": NodePool(ACCELERATOR, ("nvidia-h100-80gb", "nvidia-h100-mega-80gb")),
    "gke-l4": NodePool(ACCELERATOR, ("nvidia-l4",)),
    "eks-a100": NodePool(INSTANCE_TYPE, ("p4d.24xlarge", "p4de.24xlarge")),
    "eks-a100-40gb": NodePool(INSTANCE_TYPE, ("p4d.24xlarge",)),
    "eks-a100-80gb": NodePool(INSTANCE_TYPE, ("p4de.24xlarge",)),
    "eks-h100": NodePool(INSTANCE_TYPE, ("p5.48xlarge", "p5.4xlarge")),
    "eks-l4": NodePool(INSTANCE_TYPE, ("g6.xlarge", "g6.2xlarge", "g6.4xlarge", "g6.8xlarge", "g6.16xlarge", "g6.12xlarge")),
    "aks-a100-40gb": NodePool(INSTANCE_TYPE, ("Standard_ND96asr_v4",)),
    "aks-a100-80gb": NodePool(
        INSTANCE_TYPE,
        (
            "Standard_NC24ads_A100_v4",
            "Standard_NC48ads_A100_v4",
            "Standard_NC96ads_A100_v4",
            "Standard_ND96amsr_A100_v4",
        ),
    ),
    "aks-h100": NodePool(INSTANCE_TYPE, ("Standard_NC40ads_H100_v5", "Standard_NC80adis_H100_v5", "Standard_ND96isr_H100_v5")),
    # Azure has no L4; these are the sizes with whole A10s.
    "aks-a10": NodePool(INSTANCE_TYPE, ("Standard_NV36ads_A10_v5", "Standard_NV36adms_A10_v5", "Standard_NV72ads_A10_v5")),
    "generic-a100-40gb": NodePool(PRODUCT, ("NVIDIA-A100-SXM4-40GB", "NVIDIA-A100-PCIE-40GB")),
    "generic-a100-80gb": NodePool(PRODUCT, ("NVIDIA-A100-SXM4-80GB", "NVIDIA-A100-80GB-PCIe")),
    "generic-h100": NodePool(PRODUCT, ("NVIDIA-H100-80GB-HBM3", "NVIDIA-H100-PCIe", "NVIDIA-H100-NVL")),
    "generic-l4": NodePool(PRODUCT, ("NVIDIA-L4",)),
}
# Former names, all of which meant the card with 40 GB.
RENAMED = {"gke": "gke-a100-40gb", "eks": "eks-a100-40gb", "generic": "generic-a100-40gb"}


def get(preset: str) -> NodePool:
    """The node pool of a preset, or of a former name.

    Raises:
        BadArgument: there is no such preset.
    """
    name = RENAMED.get(preset, preset)
    if name not in PRESETS:
        raise BadArgument(f"there is no preset {preset!r}: choose from {', '.join(PRESETS)}")
    return PRESETS[name]
