"""What values leave out: CPUs and GPUs from what the recipe's workers ask for, memory from its plan.

A pod is sized for the processes that Ray may put there. On top come copies of the weights, in shared memory:

learner's pod   the buffer of the learner; a copy in Ray's object store, for workers elsewhere
rollout pod     a copy in Ray's object store; one of each rollout worker, while it loads
"""

import math
from collections.abc import Iterable, Iterator
from importlib.metadata import PackageNotFoundError, version
from typing import TypeVar

from core.errors import UserError
from orchestration.cluster.placement import Worker, workers_of
from orchestration.planning.demand import GIB, LIBRARY_MIB, MIB, Demands
from orchestration.recipe.config import Recipe
from orchestration.rendering.values import PodSize, Values

CPU_IMAGE, CUDA_IMAGE = "leash:0.1.0-cpu", "leash:0.1.0-cuda"
"""Tags that deploy/image/Dockerfile says to build."""
LEAST_MEMORY_GIB, LEAST_SHARED_MEMORY_GIB = 16, 4
RAY_OBJECTS_GIB = 1
"""Of shared memory, for what is no weights: rollouts on their way, and what is about to be freed."""
MARGIN = 1.2
"""Measured peaks are up to 17% above a plan; see docs/planning.md."""

PodSizeT = TypeVar("PodSizeT", bound=PodSize)


def completed(values: Values, recipe: Recipe) -> Values:
    """With everything that was left out, from the recipe and from what is installed here."""
    fixed = [worker for worker in workers_of(recipe) if is_fixed(worker)]
    scaling = [worker for worker in with_autoscale(recipe) if not is_fixed(worker)]
    one_each = list({worker.kind: worker for worker in scaling}.values())
    replicas = [sum(worker.kind == kind.kind for worker in scaling) for kind in one_each]
    most = values.rollout.max_replicas
    demands = demands_of(recipe)
    learner = _with_memory(_sized(values.learner, fixed), demands, fixed, scaling)
    rollout = _with_memory(_sized(values.rollout, one_each), demands, [], scaling)
    has_gpus = any(size.gpus for size in (values.head, learner, rollout))
    return values.model_copy(
        update={
            "name": values.name or recipe.name,
            "image": values.image or (CUDA_IMAGE if has_gpus else CPU_IMAGE),
            "checkpoint_every": recipe.trainer.checkpoint_every or values.checkpoint_every,
            "start_s": max(math.ceil(recipe.deadlines.start_s), values.start_s),
            "ray_version": values.ray_version or _installed("ray"),
            "learner": learner,
            "rollout": rollout.model_copy(
                update={"max_replicas": max(replicas, default=0) if most is None else most}
            ),
        }
    )


def unsized(values: Values, recipe: Recipe) -> Iterator[str]:
    """What keeps sizes that were left out from following from the recipe, as a sentence."""
    sizes = {"learner": values.learner, "rollout": values.rollout}
    missing = [
        f"{group}.{name}"
        for group, size in sizes.items()
        for name in ("memory_gib", "shared_memory_gib")
        if getattr(size, name) is None
    ]
    try:
        Demands(recipe)
    except UserError as error:
        if missing:
            yield f"{error}; or give {', '.join(missing)} in --values"


def demands_of(recipe: Recipe) -> Demands | None:
    """What its processes need; None for a model that cannot be planned."""
    try:
        return Demands(recipe)
    except UserError:
        return None


def is_fixed(worker: Worker) -> bool:
    """Whether it is of the learner's group, which neither grows nor shrinks."""
    return worker.kind == "learner"


def with_autoscale(recipe: Recipe) -> list[Worker]:
    """The workers of a recipe, and as many more rollout workers as the run may start by itself."""
    workers, autoscale = workers_of(recipe), recipe.rollout.autoscale
    num_rollout = sum(worker.kind == "rollout" for worker in workers)
    most = autoscale.max_workers if autoscale else 0
    more = [
        Worker(name=f"rollout-{index}", resources=recipe.rollout.resources)
        for index in range(num_rollout, most)
    ]
    return workers + more


def _sized(given: PodSizeT, workers: list[Worker]) -> PodSizeT:
    """With a pod's CPUs and GPUs for these workers, where none are given."""
    cpus = sum(max(math.ceil(worker.resources.num_cpus), worker.resources.threads) for worker in workers)
    gpus = math.ceil(sum(worker.resources.num_gpus for worker in workers))
    asked_cpus = math.ceil(sum(worker.resources.num_cpus for worker in workers))
    return _filled(given, cpus=max(1, cpus), gpus=gpus, ray_cpus=max(1, asked_cpus))


def _with_memory(
    given: PodSizeT, demands: Demands | None, fixed: list[Worker], scaling: list[Worker]
) -> PodSizeT:
    """With a pod's memory, where none is given: for the fixed workers, and for as many others as find room."""
    if demands is None:
        return _filled(given, memory_gib=LEAST_MEMORY_GIB, shared_memory_gib=LEAST_SHARED_MEMORY_GIB)
    workers = fixed + _most_demanding(given, demands, fixed, scaling)
    push = demands.push_bytes
    loading = 1 if fixed else sum(worker.kind == "rollout" for worker in workers)
    shared_gib = math.ceil((1 + loading) * push / GIB) + RAY_OBJECTS_GIB
    given = _filled(given, shared_memory_gib=max(LEAST_SHARED_MEMORY_GIB, shared_gib))
    assert given.shared_memory_gib is not None, "filled above"
    processes = sum(demands.resident_bytes(worker.kind) for worker in workers) + LIBRARY_MIB["ray"] * MIB
    reading = push if fixed else 0  # the task that hands the buffer to Ray has a copy of its own
    memory_gib = math.ceil((MARGIN * processes + reading) / GIB) + given.shared_memory_gib
    return _filled(given, memory_gib=max(LEAST_MEMORY_GIB, memory_gib))


def _most_demanding(
    size: PodSize, demands: Demands, fixed: list[Worker], scaling: Iterable[Worker]
) -> list[Worker]:
    """Of the scaling workers those that need most memory, as many as Ray may put beside the fixed ones."""
    cpus, gpus = float(size.ray_cpus or 0), float(size.gpus or 0)
    cpus -= sum(worker.resources.num_cpus for worker in fixed)
    gpus -= sum(worker.resources.num_gpus for worker in fixed)
    found = []
    for worker in sorted(scaling, key=lambda each: demands.resident_bytes(each.kind), reverse=True):
        asks = worker.resources
        if asks.num_cpus <= cpus + 1e-6 and asks.num_gpus <= gpus + 1e-6:
            cpus, gpus = cpus - asks.num_cpus, gpus - asks.num_gpus
            found.append(worker)
    return found


def _filled(given: PodSizeT, **sizes: int) -> PodSizeT:
    """With these sizes where none are given."""
    return given.model_copy(
        update={name: size for name, size in sizes.items() if getattr(given, name) is None}
    )


def _installed(library: str) -> str:
    try:
        return version(library)
    except PackageNotFoundError as error:
        raise UserError(f"{library} is not installed here; give ray_version in --values") from error
