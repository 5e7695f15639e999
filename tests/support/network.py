"""Which pods NetworkPolicies let reach which, by the rules of Kubernetes (https://kubernetes.io/docs/concepts/services-networking)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Pod:
    """A pod, or with an empty namespace an address outside the cluster."""

    namespace: str
    labels: Mapping[str, str] = field(default_factory=dict)
    namespace_labels: Mapping[str, str] = field(default_factory=dict)


def reaches(policies: Iterable[dict[str, Any]], source: Pod, target: Pod, port: int, protocol: str = "TCP") -> bool:
    """Whether a connection is allowed at both of its ends; an end that no policy selects allows everything."""
    listed = list(policies)
    return _allows(listed, source, target, "Egress", port, protocol) and _allows(
        listed, target, source, "Ingress", port, protocol
    )


def _allows(policies: list[dict[str, Any]], pod: Pod, peer: Pod, direction: str, port: int, protocol: str) -> bool:
    selecting = [
        policy["spec"]
        for policy in policies
        if pod.namespace == policy["metadata"]["namespace"]
        and direction in policy["spec"]["policyTypes"]
        and _selects(policy["spec"]["podSelector"], pod.labels)
    ]
    rules = [rule for spec in selecting for rule in spec.get(direction.lower(), [])]
    peers = "from" if direction == "Ingress" else "to"
    namespaces = {policy["metadata"]["namespace"] for policy in policies}
    return not selecting or any(
        _has_port(rule, port, protocol) and (peers not in rule or any(_matches(one, peer, namespaces) for one in rule[peers]))
        for rule in rules
    )


def _has_port(rule: dict[str, Any], port: int, protocol: str) -> bool:
    return "ports" not in rule or any((one["port"], one.get("protocol", "TCP")) == (port, protocol) for one in rule["ports"])


def _matches(selectors: dict[str, Any], peer: Pod, own: set[str]) -> bool:
    if "ipBlock" in selectors:
        return not peer.namespace
    labels = {"kubernetes.io/metadata.name": peer.namespace, **peer.namespace_labels}
    in_namespace = (
        _selects(selectors["namespaceSelector"], labels) if "namespaceSelector" in selectors else peer.namespace in own
    )
    return bool(peer.namespace) and in_namespace and _selects(selectors.get("podSelector", {}), peer.labels)


def _selects(selector: dict[str, Any], labels: Mapping[str, str]) -> bool:
    return all(labels.get(name) == value for name, value in selector.get("matchLabels", {}).items()) and all(
        (labels.get(one["key"]) in one["values"]) == (one["operator"] == "In") for one in selector.get("matchExpressions", [])
    )
