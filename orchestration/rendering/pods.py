"""Pod templates of a Ray cluster: non-root, limits equal to requests, the run volume and shared memory mounted."""

from typing import Any

from orchestration.rendering.documents import Document
from orchestration.rendering.values import PodSize, Values

RUNS = "/runs"
"""Where every pod mounts the run volume."""
RECIPE_FOLDER = "/etc/leash"
"""Where the head pod mounts the recipe."""
USER = 1000
"""Of the image; see deploy/image/Dockerfile."""
GPU = "nvidia.com/gpu"
GPU_TOLERATION = {"key": GPU, "operator": "Exists", "effect": "NoSchedule"}
"""Nodes with GPUs often turn away pods that do not say so; not every cluster adds it by itself."""

RAY_METRICS_PORT, GCS_PORT, DASHBOARD_PORT = 8080, 6379, 8265
"""KubeRay's defaults."""
AUTOSCALER_METRICS_PORT, DASHBOARD_METRICS_PORT = 44217, 44227
"""Ray's defaults."""


def labels(values: Values, component: str) -> dict[str, str]:
    """Those that selectors go by: pods of one RayJob, whatever KubeRay calls its Ray cluster."""
    return {
        "app.kubernetes.io/part-of": "leash",
        "app.kubernetes.io/instance": str(values.name),
        "app.kubernetes.io/component": component,
    }


def pod(values: Values, component: str, size: PodSize, **more: Any) -> Document:
    """A pod template with one container; `more` goes into the pod's spec."""
    is_head = component == "head"
    ports = {"metrics": RAY_METRICS_PORT}
    if is_head:
        ports |= {
            "gcs-server": GCS_PORT,
            "dashboard": DASHBOARD_PORT,
            "as-metrics": AUTOSCALER_METRICS_PORT,
            "dash-metrics": DASHBOARD_METRICS_PORT,
            "run-metrics": values.metrics_port,
        }
    mounts = {"runs": RUNS, "shared-memory": "/dev/shm"} | ({"recipe": RECIPE_FOLDER} if is_head else {})
    container = {
        "name": f"ray-{'head' if is_head else 'worker'}",
        "image": values.image,
        "imagePullPolicy": "IfNotPresent",
        "env": [
            {"name": "LEASH_CACHE", "value": f"{RUNS}/cache"},
            {"name": "RAY_USAGE_STATS_ENABLED", "value": "0"},
        ],
        "ports": [{"name": name, "containerPort": port} for name, port in ports.items()],
        "resources": {"requests": requests(size), "limits": requests(size)},
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
        "volumeMounts": [{"name": name, "mountPath": path} for name, path in mounts.items()],
    }
    # The autoscaler beside the head asks Kubernetes for pods; no other pod has anything to ask.
    account = {} if is_head else {"automountServiceAccountToken": False}
    selector = {"nodeSelector": size.node_selector} if size.node_selector else {}
    tolerations = [*more.pop("tolerations", ()), *([GPU_TOLERATION] if size.gpus else ())]
    tolerated = {"tolerations": tolerations} if tolerations else {}
    spec = {
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER,
            "runAsGroup": USER,
            "fsGroup": USER,
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        **account,
        **selector,
        **more,
        **tolerated,
        "containers": [container],
        "volumes": _volumes(values, size, is_head=is_head),
    }
    return {"metadata": {"labels": labels(values, component)}, "spec": spec}


def requests(size: PodSize) -> dict[str, str]:
    """Quantities, as Kubernetes writes them."""
    gpus = {GPU: str(size.gpus)} if size.gpus else {}
    return {"cpu": str(size.cpus), "memory": f"{size.memory_gib}Gi", **gpus}


def _volumes(values: Values, size: PodSize, *, is_head: bool) -> list[Document]:
    shared = {"medium": "Memory", "sizeLimit": f"{size.shared_memory_gib}Gi"}
    volumes: list[Document] = [
        {"name": "runs", "persistentVolumeClaim": {"claimName": f"{values.name}-runs"}},
        {"name": "shared-memory", "emptyDir": shared},
    ]
    if is_head:
        volumes.append({"name": "recipe", "configMap": {"name": f"{values.name}-recipe"}})
    return volumes
