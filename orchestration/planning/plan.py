"""A plan as data: what `leash plan` prints and gives as JSON."""

from collections.abc import Iterator
from typing import Any

from actors.config import RewardFunctionReward
from learner.algorithm_config import ClippedConfig
from orchestration.cluster.placement import workers_of
from orchestration.loop.rollout_queue import reserve_of
from orchestration.planning.demand import Demand, Demands
from orchestration.planning.fit import problems, smallest_change
from orchestration.planning.machine import Machine
from orchestration.planning.provenance import settings
from orchestration.recipe.config import Recipe
from orchestration.recipe.loading import Source
from orchestration.recipe.revision_rules import unpinned


def make_plan(recipe: Recipe, source: Source, machine: Machine) -> dict[str, Any]:
    """Everything there is to say before a run. Raises `UserError` for a model that cannot be planned."""
    demands = Demands(recipe)
    found = problems(demands, machine)
    return {
        "recipe": recipe.name,
        "settings": [
            {"key": each.key, "value": each.value, "source": each.source} for each in settings(recipe, source)
        ],
        "model": {"parameters": demands.policy.num_parameters, "source": demands.policy.source},
        "processes": [_process(demand) for demand in demands.by_kind.values()],
        "engine": _engine(demands, machine),
        "host": {
            "ram_bytes": demands.ram_bytes,
            "available_ram_bytes": machine.ram_bytes,
            "available_gpu_bytes": machine.gpu_bytes,
            "cpus": sum(worker.resources.num_cpus for worker in workers_of(recipe)),
            "gpus": sum(worker.resources.num_gpus for worker in workers_of(recipe)),
        },
        "step": _step(demands),
        "lag": _lag(recipe),
        "unsafe": list(_unsafe(recipe)),
        "notes": [
            *demands.notes,
            *(f"{name}: at any commit; a run asks for its revision" for name in unpinned(recipe)),
        ],
        "problems": [problem.text for problem in found],
        "change": smallest_change(recipe, machine) if found else None,
    }


def _process(demand: Demand) -> dict[str, Any]:
    return {
        "kind": demand.kind,
        "count": demand.count,
        "cpus": demand.resources.num_cpus,
        "gpus": demand.resources.num_gpus,
        "memory": "GPU" if demand.on_gpu else "RAM",
        "parts_bytes": dict(demand.parts),
        "total_bytes": demand.total_bytes,
        "host_bytes": demand.host_bytes,
    }


def _engine(demands: Demands, machine: Machine) -> dict[str, Any]:
    return {
        "kv_bytes_per_token": demands.kv_bytes_per_token,
        "cache_bytes": demands.cache_bytes(machine.gpu_bytes),
        "longest_sequences_in_cache": demands.cached_sequences(machine.gpu_bytes),
        "max_concurrent_sequences": demands.recipe.rollout.max_concurrent_sequences,
    }


def _step(demands: Demands) -> dict[str, Any]:
    """What one step samples, learns from and moves, at most."""
    recipe = demands.recipe
    group_size = 1 if recipe.datasets else recipe.rollout.group_size
    rollouts = recipe.trainer.prompts_per_step * group_size
    return {
        "rollouts": rollouts,
        "sampled_tokens": 0 if recipe.datasets else rollouts * recipe.rollout.max_new_tokens,
        "tokens": rollouts * recipe.model.max_model_len,
        "updates": recipe.algorithm.num_epochs * recipe.algorithm.num_minibatches,
        "tokens_of_a_row": demands.row_tokens,
        "push_bytes": demands.push_bytes,
        "checkpoint_bytes": demands.checkpoint_bytes,
    }


def _lag(recipe: Recipe) -> dict[str, int]:
    """How far rollouts may be behind, and how many are started ahead (`orchestration/loop/rollout_queue.py`)."""
    groups, max_lag = recipe.trainer.prompts_per_step, recipe.trainer.max_lag
    reserve = reserve_of(groups, max_lag, recipe.trainer.max_overtaken)
    group_size = 1 if recipe.datasets else recipe.rollout.group_size
    return {
        "steps": max_lag,
        "groups": max_lag * groups,
        "rollouts": max_lag * groups * group_size,
        "groups_in_flight": (max_lag + 1) * groups - reserve,
    }


def _unsafe(recipe: Recipe) -> Iterator[str]:
    """What runs foreign code, lets a crash cost a lot, or lets rollouts be wrong without a correction."""
    for reward in recipe.rewards:
        if isinstance(reward, RewardFunctionReward):
            yield f"reward {reward.name}: {reward.function} runs as trusted code, with the rights of its worker"
    algorithm, lags = recipe.algorithm, recipe.trainer.max_lag > 0
    if lags and isinstance(algorithm, ClippedConfig) and algorithm.importance_sampling == "none":
        yield "algorithm.importance_sampling = none: nothing corrects for rollouts of older policies"
    if recipe.trainer.checkpoint_every == 0:
        yield "trainer.checkpoint_every = 0: a crash costs the whole run; a checkpoint is only written at the end"
    if recipe.faults.on_reward_error == "drop":
        yield "faults.on_reward_error = drop: prompts whose reward fails are not learned from"
