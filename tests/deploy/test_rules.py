"""Our own rules over finished manifests: each is broken once."""

from collections.abc import Callable
from typing import Any

import pytest

from orchestration.recipe.files import find_recipe
from orchestration.recipe.loading import load_recipe
from orchestration.rendering.documents import Document
from orchestration.rendering.kuberay import manifests
from orchestration.rendering.rules import problems
from orchestration.rendering.values import Values
from tests.deploy.golden import documents
from tests.deploy.test_kuberay import RAY_VERSION, cluster_of, container_of, group_of, job_of

Plant = Callable[[list[Document]], object]


def entrypoint(found: list[Document], before: str, after: str) -> None:
    spec = job_of(found)["spec"]
    assert before in spec["entrypoint"]
    spec["entrypoint"] = spec["entrypoint"].replace(before, after)


def pod_of(found: list[Document], group: str) -> Document:
    spec: Document = group_of(found, group)["template"]["spec"]
    return spec


def kind_of(found: list[Document], kind: str) -> Document:
    return next(document for document in found if document["kind"] == kind)


PLANTED: list[tuple[Plant, str]] = [
    (
        lambda found: entrypoint(found, "--run", "learner.world_size=5 --run"),
        "group learner: has 1 CPUs and 0 GPUs for Ray, but the learner's ranks ask for 1.25 and 0",
    ),
    (
        lambda found: entrypoint(found, "--run", "learner.resources.num_gpus=1 --run"),
        "ask for 0.25 and 1",
    ),
    (
        lambda found: entrypoint(found, "--run", "reference.replicas=12 --run"),
        "asks for 0.25 CPUs and 0 GPUs, and no group has room for it",
    ),
    (
        lambda found: [group.update(maxReplicas=0) for group in cluster_of(found)["workerGroupSpecs"][1:]],
        "reference-0: asks for 0.25 CPUs and 0 GPUs, and no group has room for it",
    ),
    (
        lambda found: cluster_of(found).update(rayVersion="2.59.0"),
        "rayVersion 2.59.0: Leash runs with 2.60.0",
    ),
    (
        lambda found: container_of(found, "rollout").update(image="leash:0.0.9-cpu"),
        "images leash:0.0.9-cpu, leash:0.1.0-cpu: all pods must run the same one",
    ),
    (
        lambda found: container_of(found, "learner")["resources"]["limits"].update(memory="32Gi"),
        "group learner: container ray-worker: limits and requests differ",
    ),
    (
        lambda found: container_of(found, "head").update(resources={}),
        "container ray-head: limits and requests",
    ),
    (
        lambda found: [
            container_of(found, "learner")["resources"][each].update(memory="16 GB")
            for each in ("limits", "requests")
        ],
        "group learner: container ray-worker: memory 16 GB: write it in Gi",
    ),
    (lambda found: pod_of(found, "learner").pop("securityContext"), "group learner: may run as root"),
    (lambda found: pod_of(found, "learner")["securityContext"].update(runAsUser=0), "may run as root"),
    (
        lambda found: container_of(found, "head").pop("securityContext"),
        "ray-head: may gain privileges",
    ),
    (
        lambda found: container_of(found, "rollout")["volumeMounts"].pop(0),
        "group rollout: container ray-worker: does not mount the run volume at /runs",
    ),
    (
        lambda found: container_of(found, "learner")["volumeMounts"].pop(1),
        "group learner: container ray-worker: has no sized shared memory",
    ),
    (
        lambda found: pod_of(found, "learner")["volumes"][1]["emptyDir"].update(sizeLimit="17Gi"),
        "its shared memory is larger than its memory",
    ),
    (
        lambda found: pod_of(found, "rollout")["volumes"][1]["emptyDir"].update(sizeLimit="0Gi"),
        "group rollout: has 0 GiB of shared memory, and a weight push takes 0.50 GiB of it",
    ),
    (
        lambda found: [
            container_of(found, "learner")["resources"][each].update({"nvidia.com/gpu": "1"})
            for each in ("limits", "requests")
        ],
        "container ray-worker: has GPUs, and image leash:0.1.0-cpu has no CUDA",
    ),
    (
        lambda found: group_of(found, "learner").update(maxReplicas=2),
        "is not of fixed size 1: (1, 1, 2)",
    ),
    (lambda found: group_of(found, "rollout").update(minReplicas=1), "group rollout: does not scale from 0"),
    (
        lambda found: group_of(found, "rollout").pop("idleTimeoutSeconds"),
        "group rollout: does not scale from 0",
    ),
    (
        lambda found: group_of(found, "rollout-spot").update(priority=0),
        "rollout-spot: its priority is not above",
    ),
    (lambda found: cluster_of(found).pop("authOptions"), "set authOptions.mode to token"),
    (
        lambda found: kind_of(found, "NetworkPolicy").update(kind="Ingress"),
        "head: no network policy covers its pods",
    ),
    (
        lambda found: kind_of(found, "ConfigMap")["metadata"].update(namespace="default"),
        "namespaces default, leash: all objects of a run share one",
    ),
    (lambda found: entrypoint(found, " --resume-or-start", ""), "entrypoint: a retry starts from nothing"),
    (
        lambda found: entrypoint(found, "--run /runs/", "--run /tmp/"),
        "entrypoint: a retry starts from nothing",
    ),
    (
        lambda found: entrypoint(found, "checkpoint_every=10", "checkpoint_every=0"),
        "trainer.checkpoint_every = 0: a retry loses all steps",
    ),
    (lambda found: entrypoint(found, "port=9464", "port=9465"), "the run serves 0.0.0.0:9465"),
    (lambda found: entrypoint(found, "host=0.0.0.0", "host=127.0.0.1"), "the run serves 127.0.0.1:9464"),
    (
        lambda found: entrypoint(found, "--run", "model.path=/home/me/model --run"),
        "recipe: model.path = /home/me/model: no pod has it",
    ),
]


def test_what_the_errors_are_planted_in_has_none() -> None:
    assert problems(documents(rollout={"spot": True}), ray_version=RAY_VERSION) == []


@pytest.mark.parametrize(("plant", "expected"), PLANTED, ids=range(len(PLANTED)))
def test_a_planted_error_is_caught(plant: Plant, expected: str) -> None:
    found = documents(rollout={"spot": True})
    plant(found)
    caught = problems(found, ray_version=RAY_VERSION)
    assert any(expected in problem for problem in caught), caught


@pytest.mark.parametrize(
    "overrides",
    [
        ["rollout.workers=7", "reference.replicas=3", "rewards.0.replicas=5"],
        ["learner.resources.num_gpus=1", "rollout.resources.num_gpus=1", "reference.resources.num_gpus=1"],
        ["rollout.autoscale.max_workers=6", "reference.adapters_off=true"],
        ["learner.world_size=4", "learner.resources.num_cpus=3.5", "rollout.resources.num_cpus=1.75"],
    ],
)
def test_left_out_sizes_fit_whatever_the_recipe_asks_for(overrides: list[str]) -> None:
    recipe = load_recipe(find_recipe("movie-reviews"), overrides)
    assert problems(manifests(recipe, Values()), ray_version=RAY_VERSION) == []


def test_there_are_as_many_pods_as_the_run_may_come_to_have_rollout_workers() -> None:
    recipe = load_recipe(find_recipe("movie-reviews"), ["rollout.autoscale.max_workers=6"])
    found: list[dict[str, Any]] = manifests(recipe, Values())
    assert group_of(found, "learner")["rayStartParams"]["num-cpus"] == "1"
    assert group_of(found, "rollout")["maxReplicas"] == 6
    assert problems(found, ray_version=RAY_VERSION) == []


def with_reward_server(token: str, url: str = "http://10.0.0.7:8300/a") -> list[Document]:
    server = f'{{kind = "http", name = "helpful", url = "{url}", {token}}}'
    recipe = load_recipe(find_recipe("movie-reviews-rloo"), [f"rewards=[{server}]", "reward_model=none"])
    return manifests(recipe, Values())


@pytest.mark.parametrize(
    ("url", "port"), [("http://10.0.0.7:8300/a", 8300), ("http://reward", 80), ("https://reward/a", 443)]
)
def test_pods_reach_the_reward_servers_of_the_recipe_and_their_tokens(url: str, port: int) -> None:
    found = with_reward_server('token_file = "/runs/token"', url)
    assert problems(found, ray_version=RAY_VERSION) == []
    _, workers = (document["spec"] for document in found if document["kind"] == "NetworkPolicy")
    assert workers["egress"][-1] == {"ports": [{"protocol": "TCP", "port": port}]}
    workers["egress"].pop()
    assert problems(found, ray_version=RAY_VERSION) == [
        f"rewards: no network policy lets rollout pods reach port {port} of a reward server"
    ]


@pytest.mark.parametrize(
    ("token", "expected"),
    [
        ('token_env = "REWARD_TOKEN"', "rewards.0.token_env = REWARD_TOKEN: no pod has it; copy the token"),
        ('token_file = "/home/me/token"', "rewards.0.token_file = /home/me/token: no pod has it; copy it to"),
    ],
)
def test_a_token_that_no_pod_has_is_named(token: str, expected: str) -> None:
    (problem,) = problems(with_reward_server(token), ray_version=RAY_VERSION)
    assert expected in problem
