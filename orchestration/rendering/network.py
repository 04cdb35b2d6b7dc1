"""Who may talk to the pods of a run: they to each other, KubeRay to the dashboard, Prometheus to the metrics.

Plain NetworkPolicy objects: KubeRay's own `networkPolicy` is an alpha feature that is off by default.
"""

from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

from actors.config import RewardServerReward
from orchestration.recipe.config import Recipe
from orchestration.rendering.documents import Document
from orchestration.rendering.pods import (
    AUTOSCALER_METRICS_PORT,
    DASHBOARD_METRICS_PORT,
    DASHBOARD_PORT,
    RAY_METRICS_PORT,
    labels,
)
from orchestration.rendering.values import Values

API_SERVER_PORTS = (443, 6443)
"""Where the autoscaler reaches Kubernetes: which address that is, no policy can say portably."""
DEFAULT_PORTS = {"http": 80, "https": 443}
NODE_DNS_CACHE = "169.254.20.10/32"
"""Where Kubernetes' NodeLocal DNSCache listens: in the host's network, which no selector of pods covers."""


def reward_ports(recipe: Recipe) -> list[int]:
    """Of the reward servers elsewhere that the recipe names, each once."""
    servers = [urlsplit(reward.url) for reward in recipe.rewards if isinstance(reward, RewardServerReward)]
    return sorted({where.port or DEFAULT_PORTS[where.scheme] for where in servers})


def network_policies(values: Values, ports_elsewhere: Sequence[int] = ()) -> list[Document]:
    """One for the head pod, one for all others, who reach these ports of any address."""
    mine = {"app.kubernetes.io/instance": str(values.name)}
    siblings = {"podSelector": {"matchLabels": mine}}
    resolvers = [{"namespaceSelector": {}}, {"ipBlock": {"cidr": NODE_DNS_CACHE}}]
    dns = {"to": resolvers, "ports": [_port(53, "UDP"), _port(53, "TCP")]}
    prometheus = _namespace(values.monitoring_namespace)
    operator = {
        "namespaceSelector": {},
        "podSelector": {"matchLabels": {"app.kubernetes.io/component": "kuberay-operator"}},
    }
    scraped = (RAY_METRICS_PORT, AUTOSCALER_METRICS_PORT, DASHBOARD_METRICS_PORT, values.metrics_port)
    head = _policy(
        values,
        "head",
        {"matchLabels": mine | {"app.kubernetes.io/component": "head"}},
        ingress=[
            {"from": [siblings]},
            {"from": [operator], "ports": [_port(DASHBOARD_PORT)]},
            {"from": [prometheus], "ports": [_port(port) for port in scraped]},
        ],
        egress=[{"to": [siblings]}, dns, {"ports": [_port(port) for port in API_SERVER_PORTS]}],
    )
    others = {"key": "app.kubernetes.io/component", "operator": "In", "values": ["learner", "rollout"]}
    workers = _policy(
        values,
        "workers",
        {"matchLabels": mine, "matchExpressions": [others]},
        ingress=[{"from": [siblings]}, {"from": [prometheus], "ports": [_port(RAY_METRICS_PORT)]}],
        egress=[
            {"to": [siblings]},
            dns,
            *([{"ports": [_port(port) for port in ports_elsewhere]}] if ports_elsewhere else []),
        ],
    )
    return [head, workers]


def _policy(values: Values, name: str, selector: Document, **rules: list[Any]) -> Document:
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {
            "name": f"{values.name}-{name}",
            "namespace": values.namespace,
            "labels": labels(values, "job"),
        },
        "spec": {"podSelector": selector, "policyTypes": ["Ingress", "Egress"], **rules},
    }


def _namespace(name: str) -> Document:
    return {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": name}}}


def _port(port: int, protocol: str = "TCP") -> Document:
    return {"protocol": protocol, "port": port}
