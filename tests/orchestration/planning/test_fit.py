"""Whether a recipe fits, and that what is suggested really makes it fit."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestration.planning.demand import Demands
from orchestration.planning.fit import problems, smallest_change, with_changes
from orchestration.planning.machine import GIB, Machine
from orchestration.recipe.config import Recipe
from orchestration.recipe.loading import load_recipe

RECIPE = """
name = "seven"
[model]
path = "Qwen2.5-7B-Instruct"
dtype = "bfloat16"
max_model_len = 2048
[prompts]
kind = "movie-reviews"
[rollout]
group_size = 8
max_new_tokens = 1024
resources = { num_gpus = 1.0 }
[reference]
token_budget = 4096
resources = { num_gpus = 1.0 }
[learner]
world_size = 4
zero_stage = 2
token_budget = 8192
resources = { num_gpus = 1.0 }
[[rewards]]
kind = "function"
name = "length"
function = "rewards:length"
[algorithm]
kind = "grpo"
[kl]
placement = "loss"
estimator = "k3"
[trainer]
steps = 2
prompts_per_step = 16
"""


def seven(tmp_path: Path, *overrides: str) -> Recipe:
    (tmp_path / "seven.toml").write_text(RECIPE, encoding="utf-8")
    return load_recipe(tmp_path / "seven.toml", overrides)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    return seven(tmp_path_factory.mktemp("recipes"))


def machine(gpu_gib: float) -> Machine:
    return Machine(gpu_bytes=int(gpu_gib * GIB))


def test_a_learner_that_is_too_large_is_named_with_what_it_needs(recipe: Recipe) -> None:
    (problem,) = problems(Demands(recipe), machine(80))
    assert problem.who == "learner"
    assert problem.text.startswith("learner: needs ")
    assert problem.text.endswith("and its GPU has 80.0 GiB")


def test_one_change_is_preferred_to_two_and_adapters_come_last(recipe: Recipe) -> None:
    assert smallest_change(recipe, machine(80)) == {"learner.token_budget": 4096}
    cramped = smallest_change(recipe, machine(52))
    assert cramped is not None
    assert "learner.lora" not in cramped
    assert len(cramped) > 1


def test_nothing_is_suggested_that_does_not_help(recipe: Recipe) -> None:
    assert smallest_change(recipe, machine(12)) is None


@settings(max_examples=40, deadline=None)
@given(
    st.floats(8, 160),
    st.sampled_from((0, 1, 2, 3)),
    st.sampled_from((1, 2, 4)),
    st.sampled_from((2048, 4096, 16384)),
    st.sampled_from(("Qwen2.5-0.5B", "Llama-3.2-3B", "Qwen3-8B")),
    st.sampled_from((0.3, 0.85)),
    st.sampled_from((0.5, 1.0)),
)
def test_a_suggested_change_fits_when_it_is_made(
    recipe: Recipe,
    gpu_gib: float,
    stage: int,
    ranks: int,
    budget: int,
    name: str,
    fraction: float,
    share: float,
) -> None:
    wish: dict[str, Any] = {
        "model.path": name,
        "learner.zero_stage": stage,
        "learner.world_size": ranks,
        "learner.token_budget": budget,
        "rollout.gpu_memory_fraction": fraction,
        "rollout.resources.num_gpus": share,
    }
    wanted = with_changes(recipe, wish)
    assert wanted is not None
    change = smallest_change(wanted, machine(gpu_gib)) if problems(Demands(wanted), machine(gpu_gib)) else {}
    if change is not None:
        changed = with_changes(wanted, change)
        assert changed is not None
        assert problems(Demands(changed), machine(gpu_gib)) == []


def test_with_changes_refuses_what_no_recipe_could_say(recipe: Recipe) -> None:
    assert with_changes(recipe, {"learner.zero_stage": 4}) is None
    assert with_changes(recipe, {"learner.token_budget": 1024}) is None  # less than the longest sequence
    changed = with_changes(recipe, {"learner.lora": {"rank": 16, "alpha": 32.0}})
    assert changed is not None
    assert changed.learner.lora is not None
    assert changed.model_copy(update={"learner": recipe.learner}) == recipe


@pytest.mark.parametrize(
    ("overrides", "complaint"),
    [
        (["rollout.resources.num_gpus=0.5"], "gpu_memory_fraction is 0.85, and it asks Ray for 0.5"),
        (
            ["rollout.resources.num_gpus=0.5", "rollout.gpu_memory_fraction=0.5", "rollout.kv_cache_gib=80"],
            "GiB with its key-value cache, and 0.5 of a GPU has 89.5 GiB",
        ),
        (["rollout.gpu_memory_fraction=0.05"], "less than one sequence of 2048 tokens"),
        (["rollout.resources.num_gpus=16"], "one engine asks for 16 GPUs, and a node has 8"),
        (
            ["rollout.resources.num_gpus=8", "rollout.tensor_parallel=8"],
            "rollout.tensor_parallel is 8, and vLLM cannot split 28 attention heads and 4 key-value heads so",
        ),
        (["rollout.resources.num_gpus=7", "rollout.tensor_parallel=7"], "rollout.tensor_parallel is 7"),
    ],
)
def test_what_cannot_run_together_is_a_problem(tmp_path: Path, overrides: list[str], complaint: str) -> None:
    found = [problem.text for problem in problems(Demands(seven(tmp_path, *overrides)), machine(179))]
    assert len(found) == 1
    assert complaint in found[0]


@pytest.mark.parametrize(
    ("overrides", "change"),
    [
        (["rollout.resources.num_gpus=16"], {"rollout.resources.num_gpus": 8.0}),
        (
            ["rollout.resources.num_gpus=0.5", "rollout.gpu_memory_fraction=0.5", "rollout.kv_cache_gib=80"],
            {"rollout.kv_cache_gib": 40},
        ),
        (["rollout.resources.num_gpus=8", "rollout.tensor_parallel=8"], {"rollout.tensor_parallel": 4}),
        (["rollout.resources.num_gpus=4", "rollout.tensor_parallel=3"], {"rollout.tensor_parallel": 4}),
        (
            ["rollout.resources.num_gpus=16", "rollout.tensor_parallel=16", "model.path=Qwen3-8B"],
            {"rollout.resources.num_gpus": 8.0, "rollout.tensor_parallel": 8},
        ),
    ],
)
def test_an_engine_that_cannot_exist_is_given_other_gpus(
    tmp_path: Path, overrides: list[str], change: dict[str, Any]
) -> None:
    assert smallest_change(seven(tmp_path, *overrides), machine(179)) == change


def test_bfloat16_wants_a_gpu_that_has_it(tmp_path: Path) -> None:
    recipe = seven(tmp_path, "learner.token_budget=2048", "learner.zero_stage=3")
    (problem,) = problems(Demands(recipe), replace(machine(179), has_bfloat16=False))
    assert "compute capability 8.0" in problem.text
    assert smallest_change(recipe, replace(machine(179), has_bfloat16=False)) == {"model.dtype": "float32"}


def test_memory_and_shared_memory_of_the_host_bound_what_runs_on_cpus(tmp_path: Path) -> None:
    small = load_recipe(write_small(tmp_path))
    demands = Demands(small)
    push = 4 * 134_515_008
    assert demands.push_bytes == push
    just = Machine(ram_bytes=demands.ram_bytes, shm_bytes=push)
    assert problems(demands, just) == []
    (no_ram,) = problems(demands, Machine(ram_bytes=demands.ram_bytes - 1))
    assert no_ram.text.startswith("host: all processes need ")
    (no_shm,) = problems(demands, Machine(shm_bytes=push - 1))
    assert "of /dev/shm" in no_shm.text


def test_the_host_holds_every_process_the_caches_and_one_push(tmp_path: Path) -> None:
    demands = Demands(load_recipe(write_small(tmp_path), ["rollout.workers=2", "rollout.kv_cache_gib=3"]))
    totals = {kind: demand.total_bytes for kind, demand in demands.by_kind.items()}
    assert demands.ram_bytes == (
        totals["learner"]
        + 2 * totals["rollout"]
        + 2 * 3 * GIB
        + totals["reference"]
        + totals["reward-length"]
        + 4 * 134_515_008
        + (510 + 400) * 2**20
    )


def write_small(tmp_path: Path) -> Path:
    text = RECIPE.replace("Qwen2.5-7B-Instruct", "SmolLM2-135M").replace("bfloat16", "float32")
    text = text.replace("resources = { num_gpus = 1.0 }", "").replace("world_size = 4", "world_size = 1")
    (tmp_path / "small.toml").write_text(text, encoding="utf-8")
    return tmp_path / "small.toml"
