"""Manifests for KubeRay: what is committed, what is rendered, and whether they would be taken and would work."""

import copy
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate  # type: ignore[import-untyped]
import pytest

from orchestration.rendering.documents import Document, from_yaml, to_yaml
from orchestration.rendering.rules import problems
from tests.deploy.golden import DEPLOY, documents, golden
from tests.deploy.kuberay_schema import RAYJOB
from tests.deploy.kustomize import built

KUBERNETES = "1.34"
RAY_VERSION = "2.60.0"
KUBERAY = DEPLOY / "kuberay"
FOLDERS = [KUBERAY / "base", *sorted((KUBERAY / "overlays").iterdir())]
EVERYTHING: dict[str, Any] = {
    "pod_monitor": True,
    "rollout": {"spot": True, "max_replicas": 8, "node_selector": {"zone": "a"}},
    "run_volume": {"storage_class": "nfs"},
}


def job_of(documents: list[Document]) -> Document:
    return next(document for document in documents if document["kind"] == "RayJob")


def cluster_of(documents: list[Document]) -> Document:
    cluster: Document = job_of(documents)["spec"]["rayClusterSpec"]
    return cluster


def group_of(documents: list[Document], name: str) -> Document:
    return next(group for group in cluster_of(documents)["workerGroupSpecs"] if group["groupName"] == name)


def container_of(documents: list[Document], group: str) -> Document:
    spec = cluster_of(documents)["headGroupSpec"] if group == "head" else group_of(documents, group)
    container: Document = spec["template"]["spec"]["containers"][0]
    return container


def check_schemas(documents: list[Document]) -> None:
    """Raises for a key or a value that Kubernetes or KubeRay does not know."""
    for document in documents:
        if document["kind"] == "RayJob":
            jsonschema.validate(document, RAYJOB)
            cluster = document["spec"]["rayClusterSpec"]
            for group in [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]:
                pod = {"apiVersion": "v1", "kind": "Pod", **copy.deepcopy(group["template"])}
                kubernetes_validate.validate(pod, KUBERNETES, strict=True)
        elif document["kind"] != "PodMonitor":  # of the Prometheus operator
            kubernetes_validate.validate(document, KUBERNETES, strict=True)


@pytest.mark.parametrize("path", golden(), ids=lambda path: path.name)
def test_what_is_committed_is_what_the_code_writes(path: Path) -> None:
    """After a wanted change: python -m tests.deploy.golden."""
    assert path.read_text(encoding="utf-8") == golden()[path]


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_what_is_committed_would_be_taken_and_would_work(folder: Path) -> None:
    found = built(folder)
    check_schemas(found)
    assert problems(found, ray_version=RAY_VERSION) == []


def test_all_options_together_would_be_taken_and_would_work() -> None:
    found = documents(**EVERYTHING)
    check_schemas(found)
    assert problems(found, ray_version=RAY_VERSION) == []


@pytest.mark.parametrize(
    ("overlay", "values"), [("spot", {"rollout": {"spot": True}}), ("monitoring", {"pod_monitor": True})]
)
def test_an_overlay_says_the_same_as_the_value(overlay: str, values: dict[str, Any]) -> None:
    assert built(KUBERAY / "overlays" / overlay) == documents(**values)


def test_the_runs_series_have_the_labels_that_dashboards_and_alerts_go_by() -> None:
    run_metrics = documents(pod_monitor=True)[-1]["spec"]["podMetricsEndpoints"][0]
    assert run_metrics["port"] == "run-metrics"
    assert run_metrics["relabelings"][-2:] == [
        {"sourceLabels": ["__meta_kubernetes_pod_label_app_kubernetes_io_instance"], "targetLabel": "run"},
        {"targetLabel": "job", "replacement": "leash"},
    ]
    pod = cluster_of(documents())["headGroupSpec"]["template"]["metadata"]["labels"]
    assert (
        job_of(documents())["spec"]["entrypoint"].split()[4].endswith(f"/{pod['app.kubernetes.io/instance']}")
    )


def test_the_gpu_overlay_asks_for_one_gpu_a_process_and_shares_one_among_the_scorers() -> None:
    found = built(KUBERAY / "overlays" / "gpu")
    gpus = {
        name: container_of(found, name)["resources"]["limits"].get("nvidia.com/gpu")
        for name in ("head", "learner", "rollout")
    }
    assert gpus == {"head": None, "learner": "1", "rollout": "1"}
    assert tolerated(found, "learner") == tolerated(found, "rollout") == ["nvidia.com/gpu"]


def tolerated(found: list[Document], group: str) -> list[str]:
    spec = group_of(found, group)["template"]["spec"]
    return [toleration["key"] for toleration in spec.get("tolerations", ())]


def test_pods_with_gpus_go_onto_nodes_that_are_kept_for_such_pods() -> None:
    found = documents(
        image="leash:0.1.0-cuda", learner={"gpus": 1}, rollout={"gpus": 1, "spot": True, "max_replicas": 8}
    )
    check_schemas(found)
    assert problems(found, ray_version=RAY_VERSION) == []
    assert tolerated(found, "learner") == tolerated(found, "rollout") == ["nvidia.com/gpu"]
    assert tolerated(found, "rollout-spot") == ["node-lifecycle", "nvidia.com/gpu"]
    assert tolerated(documents(), "learner") == []


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="needs kubectl")
@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_kubectl_builds_the_same(folder: Path) -> None:
    done = subprocess.run(["kubectl", "kustomize", folder], capture_output=True, text=True, check=True)

    def by_name(documents: list[Document]) -> dict[tuple[str, str], Document]:
        return {(document["kind"], document["metadata"]["name"]): document for document in documents}

    assert by_name(from_yaml(done.stdout)) == by_name(built(folder))


def test_every_pod_reaches_dns_in_pods_and_in_the_cache_of_its_node() -> None:
    policies = [each["spec"] for each in documents() if each["kind"] == "NetworkPolicy"]
    assert len(policies) == 2
    for policy in policies:
        (dns,) = (
            rule for rule in policy["egress"] if {"protocol": "UDP", "port": 53} in rule.get("ports", ())
        )
        assert dns["to"] == [{"namespaceSelector": {}}, {"ipBlock": {"cidr": "169.254.20.10/32"}}]


def test_yaml_comes_back_as_it_was() -> None:
    found = documents(**EVERYTHING)
    assert from_yaml(to_yaml(found)) == found


@pytest.mark.parametrize(
    "plant",
    [
        lambda found: job_of(found)["spec"].update(backofLimit=3),
        lambda found: job_of(found)["spec"].update(backoffLimit="3"),
        lambda found: job_of(found)["spec"]["deletionStrategy"]["deletionRules"][0]["condition"].update(
            jobDeploymentStatus="Failed"
        ),
        lambda found: job_of(found)["metadata"].update(name="Movie_Reviews"),
        lambda found: cluster_of(found).update(rayVersion="2.55.1"),
        lambda found: cluster_of(found)["authOptions"].update(mode="tokens"),
        lambda found: group_of(found, "learner").pop("groupName"),
        lambda found: group_of(found, "learner").update(maxReplica=1),
        lambda found: group_of(found, "rollout")["rayStartParams"].update({"num-cpus": 1}),
        lambda found: group_of(found, "rollout")["template"]["spec"].update(nodeSelectors={"a": "b"}),
        lambda found: container_of(found, "head").update(ports=[{"containerPort": "metrics"}]),
        lambda found: next(each for each in found if each["kind"] == "NetworkPolicy")["spec"].update(
            ingres=[]
        ),
    ],
)
def test_a_wrong_key_or_value_is_caught(plant: Callable[[list[Document]], object]) -> None:
    found = documents(**EVERYTHING)
    plant(found)
    with pytest.raises((jsonschema.ValidationError, kubernetes_validate.ValidationError)):
        check_schemas(found)
