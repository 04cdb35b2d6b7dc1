"""Does a recipe fit onto a machine; and if not, which smallest change of it would?"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from pydantic import ValidationError

from orchestration.planning.demand import Demands
from orchestration.planning.machine import GIB, Machine
from orchestration.planning.model_shape import model_shape
from orchestration.recipe.config import Recipe
from orchestration.recipe.contradictions import contradictions

MAX_CHANGES = 3
"""Keys that a suggestion changes at most."""

ADAPTERS = "learner.lora"
"""The one change that changes what is learned."""

Changes = dict[str, Any]
"""Key of a recipe -> another value."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """Why a recipe does not fit."""

    who: str
    """A kind of process, or host."""
    text: str


def problems(demands: Demands, machine: Machine) -> list[Problem]:
    """What keeps the recipe from running on the machine."""
    found = [*_gpu_problems(demands, machine), *_engine_problems(demands, machine)]
    return [*found, *_host_problems(demands, machine)]


def smallest_change(recipe: Recipe, machine: Machine) -> Changes | None:
    """The fewest keys that make it fit, the least harmful first, adapters only if nothing else helps; or None."""
    blamed = {problem.who for problem in problems(Demands(recipe), machine)}
    candidates = [
        (key, value)
        for key, value in _candidates(recipe, machine)
        if "host" in blamed or blamed & _who_gains(key)
    ]
    harmless = [candidate for candidate in candidates if candidate[0] != ADAPTERS]
    return _first_that_fits(recipe, machine, harmless) or _first_that_fits(recipe, machine, candidates)


def _first_that_fits(
    recipe: Recipe, machine: Machine, candidates: Sequence[tuple[str, Any]]
) -> Changes | None:
    for number in range(1, MAX_CHANGES + 1):
        for chosen in combinations(candidates, number):
            changes = dict(chosen)
            if len(changes) == number and _fits(with_changes(recipe, changes), machine):
                return changes
    return None


def with_changes(recipe: Recipe, changes: Mapping[str, Any]) -> Recipe | None:
    """The recipe with other values, or None if it would not be valid."""
    data = recipe.model_dump()
    for key, value in changes.items():
        *tables, name = key.split(".")
        table = data
        for part in tables:
            table = table[part]
        table[name] = value
    try:
        changed = Recipe.model_validate(data)
    except ValidationError:
        return None
    return None if contradictions(dict(changed)) else changed


def _fits(recipe: Recipe | None, machine: Machine) -> bool:
    return recipe is not None and not problems(Demands(recipe), machine)


def _gpu_problems(demands: Demands, machine: Machine) -> Iterator[Problem]:
    """Processes that take more of a GPU than the share that they ask Ray for."""
    if machine.gpu_bytes is None:
        return
    for demand in demands.by_kind.values():
        room = int(demand.gpu_share * machine.gpu_bytes)
        if demand.on_gpu and demand.kind != "rollout" and demand.total_bytes > room:
            share = f"{demand.gpu_share:g} of a GPU" if demand.gpu_share < 1 else "its GPU"
            yield Problem(
                who=demand.kind,
                text=f"{demand.kind}: needs {gib(demand.total_bytes)}, and {share} has {gib(room)}",
            )


def _engine_problems(demands: Demands, machine: Machine) -> Iterator[Problem]:
    rollout, engine = demands.recipe.rollout, demands.by_kind["rollout"]
    if engine.on_gpu and demands.recipe.model.dtype == "bfloat16" and not machine.has_bfloat16:
        yield Problem(
            who="rollout",
            text='rollout: model.dtype is "bfloat16", which vLLM wants compute capability 8.0 (Ampere) for',
        )
    if engine.on_gpu and rollout.gpu_memory_fraction > engine.gpu_share:
        yield Problem(
            who="rollout",
            text=f"rollout: rollout.gpu_memory_fraction is {rollout.gpu_memory_fraction:g}, and it asks Ray for "
            f"{engine.gpu_share:g} of a GPU: others are placed on the rest",
        )
    if rollout.resources.shares_gpu and machine.gpu_bytes is not None:
        need = engine.total_bytes + rollout.kv_cache_gib * GIB
        room = int(engine.gpu_share * machine.gpu_bytes)
        if need > room:
            yield Problem(
                who="rollout",
                text=f"rollout: needs {gib(need)} with its key-value cache, and {engine.gpu_share:g} of a GPU has "
                f"{gib(room)}",
            )
    if rollout.resources.num_gpus > machine.gpus_per_node:
        yield Problem(
            who="rollout",
            text=f"rollout: one engine asks for {rollout.resources.num_gpus:g} GPUs, and a node has "
            f"{machine.gpus_per_node}",
        )
    shape = demands.policy
    if not shape.can_split(rollout.tensor_parallel):
        yield Problem(
            who="rollout",
            text=f"rollout: rollout.tensor_parallel is {rollout.tensor_parallel}, and vLLM cannot split "
            f"{shape.num_heads} attention heads and {shape.num_kv_heads} key-value heads so",
        )
    sequences = demands.cached_sequences(machine.gpu_bytes)
    if sequences == 0:
        yield Problem(
            who="rollout",
            text=f"rollout: the key-value cache has room for {gib(demands.cache_bytes(machine.gpu_bytes) or 0)}, "
            f"less than one sequence of {demands.recipe.model.max_model_len} tokens",
        )


def _host_problems(demands: Demands, machine: Machine) -> Iterator[Problem]:
    if machine.ram_bytes is not None and demands.ram_bytes > machine.ram_bytes:
        yield Problem(
            who="host",
            text=f"host: all processes need {gib(demands.ram_bytes)}, and it has {gib(machine.ram_bytes)}",
        )
    if machine.shm_bytes is not None and demands.push_bytes > machine.shm_bytes:
        yield Problem(
            who="host",
            text=f"host: a weight push takes {gib(demands.push_bytes)} of /dev/shm, and it holds "
            f"{gib(machine.shm_bytes)}; enlarge it (docker run --shm-size, mount -o remount,size=)",
        )


def _candidates(recipe: Recipe, machine: Machine) -> Iterator[tuple[str, Any]]:
    """Changes of one key each that save memory, the least harmful first."""
    learner, rollout, reference = recipe.learner, recipe.rollout, recipe.reference
    shortest = recipe.model.max_model_len
    if not machine.has_bfloat16:
        yield "model.dtype", "float32"
    for budget in _halves(learner.token_budget, shortest):
        yield "learner.token_budget", budget
    if not learner.gradient_checkpointing:
        yield "learner.gradient_checkpointing", True
    for stage in range(max(1, learner.zero_stage + 1), 4):
        yield "learner.zero_stage", stage
    if learner.resources.num_gpus:
        places = ("none", "optimizer", "parameters")  # the host's memory has room, and updates take longer
        yield from (("learner.offload", place) for place in places[places.index(learner.offload) + 1 :])
    for budget in _halves(reference.token_budget, shortest):
        yield "reference.token_budget", budget
    if rollout.resources.num_gpus == 0 or rollout.resources.shares_gpu:
        for cache_gib in _halves(rollout.kv_cache_gib, 1):
            yield "rollout.kv_cache_gib", cache_gib
    if rollout.resources.num_gpus:
        yield from _engine_candidates(recipe, machine)
    if learner.lora is not None and not reference.adapters_off:
        yield "reference.adapters_off", True
    for workers in _halves(rollout.workers, 1):
        yield "rollout.workers", workers
    if learner.resources.num_gpus:
        for ranks in _doubles(learner.world_size, machine.gpus_per_node):
            yield "learner.world_size", ranks
    if learner.lora is None:
        yield ADAPTERS, {"rank": 16, "alpha": 32.0}


def _who_gains(key: str) -> set[str]:
    """The kinds of processes that a change of the key can help."""
    section = key.split(".")[0]
    if section == "model":
        return {"rollout", "learner", "host"}
    return {"rollout", "host"} if section == "rollout" else {section, "host"}


def _engine_candidates(recipe: Recipe, machine: Machine) -> Iterator[tuple[str, Any]]:
    rollout, shape = recipe.rollout, model_shape(recipe.model.path, recipe.model.revision)
    num_gpus = min(rollout.resources.num_gpus, float(machine.gpus_per_node))
    if num_gpus < rollout.resources.num_gpus:
        yield "rollout.resources.num_gpus", num_gpus
    share = min(1.0, rollout.resources.num_gpus)
    if rollout.gpu_memory_fraction > share:
        yield "rollout.gpu_memory_fraction", share
    for sequences in _halves(rollout.max_concurrent_sequences, 16):
        yield "rollout.max_concurrent_sequences", sequences
    for fraction in (0.9, 0.95):
        if rollout.gpu_memory_fraction < fraction <= share:
            yield "rollout.gpu_memory_fraction", fraction
    splits = [number for number in range(1, int(num_gpus) + 1) if shape.can_split(number)]
    yield from (("rollout.tensor_parallel", number) for number in splits if number > rollout.tensor_parallel)
    if not shape.can_split(rollout.tensor_parallel) or num_gpus < rollout.tensor_parallel:
        fewer = [number for number in splits if number < rollout.tensor_parallel]
        yield from (("rollout.tensor_parallel", number) for number in reversed(fewer))


def _halves(value: int, least: int) -> Iterator[int]:
    """The value halved and halved again, down to the least."""
    while value > least:
        value = max(least, value // 2)
        yield value


def _doubles(value: int, most: int) -> Iterator[int]:
    while value * 2 <= most:
        value *= 2
        yield value


def gib(num_bytes: float) -> str:
    """For people."""
    return f"{num_bytes / GIB:.2f} GiB" if num_bytes < 10 * GIB else f"{num_bytes / GIB:.1f} GiB"
