"""What no schema of Kubernetes or KubeRay knows about a run: whether it would work there, and be safe.

Rules over the finished documents, so that overlays and edits by hand are held to them as well.
"""

import math
import re
import shlex
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from actors.config import RewardServerReward
from core.hub import is_hub_name
from orchestration.assets import ASSET_PREFIX
from orchestration.cluster.placement import Worker, workers_of
from orchestration.planning.fit import gib
from orchestration.recipe.config import Recipe
from orchestration.recipe.loading import load_recipe
from orchestration.rendering.documents import Document
from orchestration.rendering.kuberay import GIB, RECIPE_FILE
from orchestration.rendering.network import reward_ports
from orchestration.rendering.pods import GPU, RUNS
from orchestration.rendering.sizing import demands_of, is_fixed, with_autoscale
from orchestration.rendering.values import MAX_NAME_CHARACTERS, NAME_PATTERN

Room = tuple[float, float]
"""CPUs and GPUs that Ray hands out."""


def problems(documents: list[Document], *, ray_version: str) -> list[str]:
    """Every rule that the documents of one run break, as a sentence; `ray_version` is the one that Leash runs with.

    Raises `UserError` if the recipe in them is not valid.
    """
    job = next(document for document in documents if document["kind"] == "RayJob")
    cluster = job["spec"]["rayClusterSpec"]
    recipe = _recipe_in(documents, job)
    return [
        *_name_problems(job["metadata"]["name"]),
        *_placement_problems(recipe, cluster),
        *_version_problems(cluster, ray_version),
        *_weight_problems(recipe, cluster),
        *(problem for pod in _pods(cluster) for problem in _pod_problems(*pod)),
        *_group_problems(cluster),
        *_access_problems(documents, cluster),
        *_run_problems(recipe, documents, job),
        *_reward_server_problems(recipe, documents),
    ]


def _recipe_in(documents: list[Document], job: Document) -> Recipe:
    """The recipe as the driver reads it, overrides in the entry point included."""
    text = next(document for document in documents if document["kind"] == "ConfigMap")["data"][RECIPE_FILE]
    overrides = [word for word in shlex.split(job["spec"]["entrypoint"]) if "=" in word and word[0] != "-"]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / RECIPE_FILE
        file.write_text(text, encoding="utf-8")
        return load_recipe(file, overrides)


def _name_problems(name: str) -> Iterator[str]:
    if not re.fullmatch(NAME_PATTERN, name) or len(name) > MAX_NAME_CHARACTERS:
        yield (
            f"RayJob {name}: KubeRay takes a name of at most {MAX_NAME_CHARACTERS} lower-case letters, digits and "
            "hyphens, from a letter to a letter or digit; change the recipe's name, or set name in --values"
        )


def _placement_problems(recipe: Recipe, cluster: Document) -> Iterator[str]:
    groups = {group["groupName"]: group for group in cluster["workerGroupSpecs"]}
    fixed = [worker for worker in workers_of(recipe) if is_fixed(worker)]
    cpus, gpus = _room(groups["learner"])
    need_cpus, need_gpus = (sum(_need(worker)[i] for worker in fixed) for i in (0, 1))
    if need_cpus > cpus or need_gpus > gpus:
        yield (
            f"group learner: has {cpus:g} CPUs and {gpus:g} GPUs for Ray, but the learner's ranks ask for "
            f"{need_cpus:g} and {need_gpus:g}"
        )
    scaling = [group for name, group in groups.items() if name != "learner"]
    free = [_room(group) for group in scaling for _ in range(group["maxReplicas"])]
    for worker in sorted(
        (each for each in with_autoscale(recipe) if not is_fixed(each)), key=_need, reverse=True
    ):
        place = next((i for i, room in enumerate(free) if _fits(worker, room)), None)
        if place is None:
            cpus, gpus = _need(worker)
            yield f"{worker.name}: asks for {cpus:g} CPUs and {gpus:g} GPUs, and no group has room for it"
        else:
            free[place] = (free[place][0] - _need(worker)[0], free[place][1] - _need(worker)[1])


def _version_problems(cluster: Document, ray_version: str) -> Iterator[str]:
    if cluster["rayVersion"] != ray_version:
        yield f"rayVersion {cluster['rayVersion']}: Leash runs with {ray_version}"
    images = {container["image"] for _, template in _pods(cluster) for container in template["containers"]}
    images |= {cluster["autoscalerOptions"]["image"]} if "image" in cluster["autoscalerOptions"] else set()
    if len(images) > 1:
        yield f"images {', '.join(sorted(images))}: all pods must run the same one"


def _weight_problems(recipe: Recipe, cluster: Document) -> Iterator[str]:
    demands = demands_of(recipe)
    if demands is None:
        return
    for group in cluster["workerGroupSpecs"]:
        for volume in group["template"]["spec"]["volumes"]:
            shared = volume.get("emptyDir", {})
            shared_gib = _gib(shared.get("sizeLimit", "")) if shared.get("medium") == "Memory" else None
            if shared_gib is not None and shared_gib * GIB < demands.push_bytes:
                yield (
                    f"group {group['groupName']}: has {shared_gib:g} GiB of shared memory, and a weight push takes "
                    f"{gib(demands.push_bytes)} of it, twice where it comes from another node; set "
                    "shared_memory_gib, or leave it out"
                )


def _pod_problems(name: str, spec: Document) -> Iterator[str]:
    security = spec.get("securityContext", {})
    if security.get("runAsNonRoot") is not True or not security.get("runAsUser"):
        yield f"{name}: may run as root; set runAsNonRoot and a runAsUser above 0"
    claims = {volume["name"] for volume in spec["volumes"] if "persistentVolumeClaim" in volume}
    memory = {volume["name"]: volume["emptyDir"] for volume in spec["volumes"] if "emptyDir" in volume}
    for container in spec["containers"]:
        where = f"{name}: container {container['name']}"
        resources = container.get("resources", {})
        if resources.get("limits") != resources.get("requests") or not resources.get("limits"):
            yield f"{where}: limits and requests differ; Kubernetes evicts such a pod first"
        if container.get("securityContext", {}).get("allowPrivilegeEscalation") is not False:
            yield f"{where}: may gain privileges; set allowPrivilegeEscalation to false"
        if container["image"].endswith("-cpu") and GPU in resources.get("limits", {}):
            yield f"{where}: has GPUs, and image {container['image']} has no CUDA; build with --target cuda"
        memory_gib = _gib(resources.get("limits", {}).get("memory", "0Gi"))
        if memory_gib is None:
            yield f"{where}: memory {resources['limits']['memory']}: write it in Gi, as in 16Gi"
        mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
        if mounts.get(RUNS) not in claims:
            yield f"{where}: does not mount the run volume at {RUNS}"
        shared = memory.get(mounts.get("/dev/shm", ""), {})
        if shared.get("medium") != "Memory" or "sizeLimit" not in shared:
            yield f"{where}: has no sized shared memory at /dev/shm; weights and Ray's objects move through it"
        elif (_gib(shared["sizeLimit"]) or math.inf) > (memory_gib or math.inf):
            yield f"{where}: its shared memory is larger than its memory"


def _group_problems(cluster: Document) -> Iterator[str]:
    priorities = {group["groupName"]: group.get("priority", 0) for group in cluster["workerGroupSpecs"]}
    for group in cluster["workerGroupSpecs"]:
        name = group["groupName"]
        sizes = tuple(group.get(key) for key in ("minReplicas", "replicas", "maxReplicas"))
        if name == "learner" and sizes != (1, 1, 1):
            yield f"group learner: is not of fixed size 1: {sizes}; the learner's ranks share one node"
        if name != "learner" and (group["minReplicas"] != 0 or "idleTimeoutSeconds" not in group):
            yield f"group {name}: does not scale from 0 with an idle time-out"
        if name.endswith("-spot") and priorities[name] <= priorities.get(name.removesuffix("-spot"), -1):
            yield f"group {name}: its priority is not above that of its on-demand group"


def _access_problems(documents: list[Document], cluster: Document) -> Iterator[str]:
    if cluster.get("authOptions", {}).get("mode") != "token":
        yield "rayClusterSpec: whoever reaches Ray's ports may run code; set authOptions.mode to token"
    policies = [document["spec"] for document in documents if document["kind"] == "NetworkPolicy"]
    groups = [("head", cluster["headGroupSpec"])]
    groups += [(group["groupName"], group) for group in cluster["workerGroupSpecs"]]
    for name, group in groups:
        found = group["template"]["metadata"]["labels"]
        if not any(_selects(policy["podSelector"], found) for policy in policies):
            yield f"{name}: no network policy covers its pods"
    namespaces = {document["metadata"].get("namespace") for document in documents}
    if len(namespaces) > 1:
        yield f"namespaces {', '.join(sorted(map(str, namespaces)))}: all objects of a run share one"


def _run_problems(recipe: Recipe, documents: list[Document], job: Document) -> Iterator[str]:
    words = shlex.split(job["spec"]["entrypoint"])
    run = words[words.index("--run") + 1] if "--run" in words[:-1] else ""
    if not run.startswith(f"{RUNS}/") or "--resume-or-start" not in words:
        yield f"entrypoint: a retry starts from nothing; add --run {RUNS}/NAME --resume-or-start"
    if job["spec"].get("backoffLimit") and not recipe.trainer.checkpoint_every:
        yield "recipe: trainer.checkpoint_every = 0: a retry loses all steps; save on the way"
    head = job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"][0]
    ports = {port["name"]: port["containerPort"] for port in head["ports"]}
    if ports.get("run-metrics") != recipe.metrics.port or recipe.metrics.host != "0.0.0.0":
        yield f"metrics: the run serves {recipe.metrics.host}:{recipe.metrics.port}, the pod offers another port"
    for key, path in _paths(recipe.model_dump(), ()):
        if is_hub_name(path):
            yield (
                f"recipe: {key} = {path}: no pod reaches the Hugging Face Hub; download it to the run volume, name "
                f"it by its path below {RUNS}/, and leave revision out"
            )
        elif not path.startswith((ASSET_PREFIX, f"{RUNS}/")):
            yield f"recipe: {key} = {path}: no pod has it; copy it to the run volume, and name it below {RUNS}/"


def _reward_server_problems(recipe: Recipe, documents: list[Document]) -> Iterator[str]:
    """Servers elsewhere that no pod could reach, or that would not believe it."""
    policies = [document["spec"] for document in documents if document["kind"] == "NetworkPolicy"]
    opened = {
        port["port"]
        for policy in policies
        if _selects(policy["podSelector"], _rollout_labels(documents))
        for rule in policy.get("egress", ())
        for port in (() if "to" in rule else rule["ports"])
    }
    for port in reward_ports(recipe):
        if port not in opened:
            yield f"rewards: no network policy lets rollout pods reach port {port} of a reward server"
    for index, reward in enumerate(recipe.rewards):
        if isinstance(reward, RewardServerReward) and reward.token_env:
            yield (
                f"recipe: rewards.{index}.token_env = {reward.token_env}: no pod has it; copy the token to the run "
                f"volume, and name it in token_file"
            )


def _pods(cluster: Document) -> Iterator[tuple[str, Document]]:
    """Name and spec of every pod template."""
    yield "head", cluster["headGroupSpec"]["template"]["spec"]
    for group in cluster["workerGroupSpecs"]:
        yield f"group {group['groupName']}", group["template"]["spec"]


def _room(group: Document) -> Room:
    """What Ray hands out on one pod of the group."""
    limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
    return float(group["rayStartParams"].get("num-cpus", limits["cpu"])), float(limits.get(GPU, 0))


def _need(worker: Worker) -> Room:
    return worker.resources.num_cpus, worker.resources.num_gpus


def _fits(worker: Worker, room: Room) -> bool:
    cpus, gpus = _need(worker)
    return cpus <= room[0] + 1e-6 and gpus <= room[1] + 1e-6


def _rollout_labels(documents: list[Document]) -> dict[str, str]:
    job = next(document for document in documents if document["kind"] == "RayJob")
    group = job["spec"]["rayClusterSpec"]["workerGroupSpecs"][-1]
    labels: dict[str, str] = group["template"]["metadata"]["labels"]
    return labels


def _gib(quantity: str) -> float | None:
    """Of a quantity in Gi; None if it is in another unit, or no quantity."""
    number = quantity.removesuffix("Gi")
    return float(number) if quantity.endswith("Gi") and number.isdecimal() else None


def _selects(selector: Document, labels: dict[str, str]) -> bool:
    plain = all(labels.get(key) == value for key, value in selector.get("matchLabels", {}).items())
    return plain and all(
        labels.get(expression["key"]) in expression["values"]
        for expression in selector.get("matchExpressions", ())
    )


def _paths(value: Any, key: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    """Dotted key and value of every path in a recipe."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _paths(inner, (*key, name))
    elif isinstance(value, list):
        for position, inner in enumerate(value):
            yield from _paths(inner, (*key, str(position)))
    elif key[-1] in ("path", "token_file") and value:
        yield ".".join(key), value
