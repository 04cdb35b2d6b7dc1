"""A recipe as a RayJob of KubeRay v1.7, with everything around it. Pure: the same in, the same out.

head      1 pod    Ray's head, its autoscaler, the driver; no worker
learner   1 pod    learner ranks
rollout   0 to M   rollout workers, scorers, reward servers; with `spot`, such a group on spot nodes comes first
"""

from typing import Any

from orchestration.recipe.config import Recipe
from orchestration.recipe.text import resolved_toml
from orchestration.rendering.documents import Document
from orchestration.rendering.network import network_policies, reward_ports
from orchestration.rendering.pods import RECIPE_FOLDER, RUNS, labels, pod
from orchestration.rendering.sizing import completed
from orchestration.rendering.values import PodSize, Values

RECIPE_FILE = "recipe.toml"
PENDING_S = 3600
"""For nodes to be found: then the job fails rather than waits for ever."""
KEEP_FAILED_S = 600
"""That the cluster of a failed job stays, for who wants to look at its logs."""
GIB = 2**30
SPOT_PRIORITY = 10
"""Above the 0 of on-demand groups."""


def manifests(recipe: Recipe, values: Values) -> list[Document]:
    """Every object, in the order in which they are needed."""
    full = completed(values, recipe)
    documents = [
        _recipe(recipe, full),
        _claim(full),
        *network_policies(full, reward_ports(recipe)),
        _job(full),
    ]
    return [*documents, _pod_monitor(full)] if full.pod_monitor else documents


def entrypoint(values: Values) -> str:
    """What the driver runs: the same for the first try and for those after it.

    The overrides are what differs there, none of it what the run computes: /metrics where Prometheus reaches it,
    nodes that come when they are needed, checkpoints for retries.
    """
    overrides = {
        "metrics.host": "0.0.0.0",
        "metrics.port": values.metrics_port,
        "cluster.autoscaling": "true",
        "trainer.checkpoint_every": values.checkpoint_every,
        "deadlines.start_s": values.start_s,
    }
    words = ["leash", "train", f"{RECIPE_FOLDER}/{RECIPE_FILE}", "--run", f"{RUNS}/{values.name}"]
    return " ".join([*words, "--resume-or-start", *(f"{key}={value}" for key, value in overrides.items())])


def _recipe(recipe: Recipe, values: Values) -> Document:
    document = _object("v1", "ConfigMap", f"{values.name}-recipe", values)
    return document | {"data": {RECIPE_FILE: resolved_toml(recipe)}}


def _claim(values: Values) -> Document:
    volume = values.run_volume
    storage_class = {"storageClassName": volume.storage_class} if volume.storage_class else {}
    return _object("v1", "PersistentVolumeClaim", f"{values.name}-runs", values) | {
        "spec": {
            "accessModes": ["ReadWriteMany"],
            **storage_class,
            "resources": {"requests": {"storage": f"{volume.size_gib}Gi"}},
        }
    }


def _job(values: Values) -> Document:
    return _object("ray.io/v1", "RayJob", str(values.name), values) | {
        "spec": {
            "entrypoint": entrypoint(values),
            "submissionMode": "SidecarMode",
            "backoffLimit": values.retries,
            "preRunningDeadlineSeconds": PENDING_S,
            "deletionStrategy": {
                "deletionRules": [
                    {"policy": "DeleteCluster", "condition": {"jobStatus": "SUCCEEDED", "ttlSeconds": 0}},
                    {
                        "policy": "DeleteCluster",
                        "condition": {"jobStatus": "FAILED", "ttlSeconds": KEEP_FAILED_S},
                    },
                    {
                        "policy": "DeleteCluster",
                        "condition": {"jobDeploymentStatus": "Failed", "ttlSeconds": KEEP_FAILED_S},
                    },
                ]
            },
            "rayClusterSpec": _cluster(values),
        }
    }


def _cluster(values: Values) -> Document:
    return {
        "rayVersion": values.ray_version,
        "authOptions": {"mode": "token"},
        "enableInTreeAutoscaling": True,
        "autoscalerOptions": {
            "version": "v2",
            "idleTimeoutSeconds": values.rollout.idle_timeout_s,
            "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
            "resources": {
                "requests": {"cpu": "500m", "memory": "1Gi"},
                "limits": {"cpu": "500m", "memory": "1Gi"},
            },
        },
        "headGroupSpec": {
            "rayStartParams": _start(values.head),
            "template": pod(values, "head", values.head),
        },
        "workerGroupSpecs": [_learner_group(values), *_rollout_groups(values)],
    }


def _learner_group(values: Values) -> Document:
    return {
        "groupName": "learner",
        "replicas": 1,
        "minReplicas": 1,
        "maxReplicas": 1,
        "rayStartParams": _start(values.learner),
        "template": pod(values, "learner", values.learner),
    }


def _rollout_groups(values: Values) -> list[Document]:
    size = values.rollout

    def group(name: str, priority: int, **more: Any) -> Document:
        return {
            "groupName": name,
            "replicas": 0,
            "minReplicas": 0,
            "maxReplicas": size.max_replicas,
            "idleTimeoutSeconds": size.idle_timeout_s,
            "priority": priority,
            "rayStartParams": _start(size),
            "template": pod(values, "rollout", size, **more),
        }

    on_demand = group("rollout", 0)
    if not size.spot:
        return [on_demand]
    tolerations = [
        {"key": key, "operator": "Equal", "value": value, "effect": "NoSchedule"}
        for key, value in size.spot_selector.items()
    ]
    selector = size.node_selector | size.spot_selector
    return [group("rollout-spot", SPOT_PRIORITY, nodeSelector=selector, tolerations=tolerations), on_demand]


def _start(size: PodSize) -> dict[str, str]:
    """Of `ray start`. Left to itself, Ray would hand out every core of the pod, and fill /dev/shm with its objects,
    where weights need room, too."""
    assert size.shared_memory_gib is not None, "values are completed"
    return {"num-cpus": str(size.ray_cpus), "object-store-memory": str(size.shared_memory_gib * GIB // 2)}


def _pod_monitor(values: Values) -> Document:
    def label(target: str, source: str) -> Document:
        return {"sourceLabels": [f"__meta_kubernetes_pod_label_{source}"], "targetLabel": target}

    of_ray = [label(name, name) for name in ("ray_io_cluster", "ray_io_group")]
    # What deploy/monitoring's dashboards and alerts go by, as `metrics.discovery_folder` gives it elsewhere.
    of_run = [label("run", "app_kubernetes_io_instance"), {"targetLabel": "job", "replacement": "leash"}]
    endpoints = [
        {"port": "run-metrics", "relabelings": of_ray + of_run},
        *({"port": port, "relabelings": of_ray} for port in ("metrics", "as-metrics", "dash-metrics")),
    ]
    return _object("monitoring.coreos.com/v1", "PodMonitor", str(values.name), values) | {
        "spec": {
            "selector": {"matchLabels": _instance(values)},
            "podMetricsEndpoints": endpoints,
        }
    }


def _instance(values: Values) -> dict[str, str]:
    return {"app.kubernetes.io/instance": str(values.name)}


def _object(version: str, kind: str, name: str, values: Values) -> Document:
    metadata = {"name": name, "namespace": values.namespace, "labels": labels(values, "job")}
    return {"apiVersion": version, "kind": kind, "metadata": metadata}
