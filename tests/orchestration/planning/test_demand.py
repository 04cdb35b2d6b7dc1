"""What a step samples, learns from and moves, and how many sequences a cache holds: worked out by hand."""

from pathlib import Path

import pytest

from orchestration.planning.demand import Demands
from orchestration.planning.machine import GIB
from orchestration.recipe.loading import load_recipe
from tests.orchestration.planning.test_fit import seven, write_small


def test_the_cache_of_an_engine_is_what_its_share_of_the_gpu_leaves(tmp_path: Path) -> None:
    demands = Demands(seven(tmp_path))
    # 28 layers, a key and a value of 4 heads of 128, 2 bytes
    assert demands.kv_bytes_per_token == 28 * 2 * 4 * 128 * 2
    engine = demands.by_kind["rollout"]
    cache = int(0.85 * 80 * GIB) - engine.total_bytes
    assert demands.cache_bytes(80 * GIB) == cache
    assert demands.cached_sequences(80 * GIB) == cache // (2048 * 57344)


def test_a_process_on_a_gpu_takes_memory_of_the_host_too(tmp_path: Path) -> None:
    demands = Demands(seven(tmp_path))
    assert demands.by_kind["learner"].host_bytes == (600 + 2048) * 2**20
    # four ranks, an engine and a scorer; a reward function without one; a push; the driver and Ray
    on_gpus = 4 * 600 + 1250 + 310 + 6 * 2048
    assert demands.ram_bytes == (on_gpus + 310 + 510 + 400) * 2**20 + demands.push_bytes


def test_the_cache_on_a_gpu_that_is_shared_is_what_the_recipe_says(tmp_path: Path) -> None:
    shared = ["rollout.resources.num_gpus=0.5", "rollout.gpu_memory_fraction=0.5", "rollout.kv_cache_gib=3"]
    demands = Demands(seven(tmp_path, *shared))
    assert demands.cache_bytes(80 * GIB) == 3 * GIB
    assert demands.cached_sequences(80 * GIB) == 3 * GIB // (2048 * 57344)


def test_tensor_parallel_engines_share_weights_and_key_value_heads(tmp_path: Path) -> None:
    spread = Demands(seven(tmp_path, "rollout.tensor_parallel=8", "rollout.resources.num_gpus=8"))
    parts = dict(spread.by_kind["rollout"].parts)
    assert parts["weights"] == 2 * 7_615_616_512 // 8
    cache = spread.cache_bytes(80 * GIB)
    assert cache is not None
    # of 4 key-value heads each of the 8 GPUs holds a whole one
    assert spread.cached_sequences(80 * GIB) == cache // (2048 * 57344 // 4)


def test_the_cache_of_a_cpu_engine_is_what_the_recipe_says(tmp_path: Path) -> None:
    demands = Demands(
        load_recipe(write_small(tmp_path), ["model.max_model_len=130", "rollout.max_new_tokens=24"])
    )
    assert demands.cache_bytes(None) == GIB
    # 30 layers, 3 heads of 64, float32; pages of 128 tokens, so 130 tokens take 256
    assert demands.cached_sequences(None) == GIB // (256 * 30 * 2 * 3 * 64 * 4)


@pytest.mark.parametrize(
    ("overrides", "tokens"),
    [
        ([], 8192),  # the budget: 16 prompts x 8 completions / 4 ranks = 32 texts of 2048
        (["algorithm.num_minibatches=16"], 4096),  # 8 completions over 4 ranks: 2 texts
        (["algorithm.kind=sft", "algorithm.top_k=1", "learner.world_size=8"], 4096),  # 2 of 16 texts each
        (["algorithm.kind=dpo", "learner.world_size=16"], 4096),  # 32 texts over 16 ranks
        (["learner.token_budget=2048"], 2048),
    ],
)
def test_a_row_is_as_long_as_the_budget_or_all_there_is(
    tmp_path: Path, overrides: list[str], tokens: int
) -> None:
    assert Demands(seven(tmp_path, *overrides)).row_tokens == tokens


def test_a_push_is_the_policy_or_its_adapters(tmp_path: Path) -> None:
    adapters = ["learner.lora.rank=16"]
    assert Demands(seven(tmp_path, *adapters)).push_bytes == 2 * 7_615_616_512
    # 28 layers; 3584 hidden, 3584 query, 512 kv, 18944 inner
    layer = 2 * (3584 + 3584) + 2 * (3584 + 512) + 3 * (3584 + 18944)
    demands = Demands(seven(tmp_path, *adapters, "weight_push.form=adapters"))
    assert demands.push_bytes == 2 * 16 * 28 * layer


def test_a_checkpoint_holds_weights_and_what_the_optimizer_needs(tmp_path: Path) -> None:
    assert Demands(seven(tmp_path)).checkpoint_bytes == (2 + 12) * 7_615_616_512
    small = load_recipe(write_small(tmp_path))
    assert Demands(small).checkpoint_bytes == 12 * 134_515_008 + 12 * 134_515_008 - 8 * 134_515_008
    adapted = load_recipe(
        tmp_path / "small.toml", ["learner.lora={rank=16, alpha=32.0}", "learner.zero_stage=0"]
    )
    # As measured: 597,461,399 bytes, the rest is names and the format's own
    assert Demands(adapted).checkpoint_bytes == 4 * 134_515_008 + 12 * 4_884_480


def test_ppo_also_holds_a_value_model_of_the_reward_models_size(tmp_path: Path) -> None:
    ppo = [
        "algorithm.kind=ppo",
        f"rewards=[{reward_model('a', 'Qwen2.5-0.5B', 1.0)}, {reward_model('b', 'Llama-3.2-1B', 2.0)}]",
        "kl.placement=reward",
    ]
    demands = Demands(seven(tmp_path, *ppo))
    assert [network.name for network in demands.networks] == ["policy", "value model"]
    assert demands.networks[1].shape.num_parameters == 1_235_814_400
    assert demands.networks[1].shape.vocab_size == 0


def test_a_value_model_that_starts_from_the_policy_is_of_the_policys_size(tmp_path: Path) -> None:
    demands = Demands(
        seven(tmp_path, "algorithm.kind=ppo", "algorithm.value_init=policy", "kl.placement=reward")
    )
    policy, value_model = demands.networks
    assert value_model.shape.num_layers == policy.shape.num_layers
    assert value_model.shape.num_parameters == 7_615_616_512 - 152064 * 3584 + 3584


def test_a_reward_model_that_is_not_here_is_taken_for_one_of_the_policys_size(tmp_path: Path) -> None:
    demands = Demands(seven(tmp_path, f"rewards=[{reward_model('a', '/mine', 1.0)}]"))
    assert "/mine: is not on this disk; taken to be as large as the policy" in demands.notes
    weights = dict(demands.by_kind["reward-a"].parts)["weights"]
    assert weights == 2 * (7_615_616_512 - 152064 * 3584 + 3584)


def test_a_learner_that_is_its_own_reference_needs_no_scorer(tmp_path: Path) -> None:
    recipe = seven(tmp_path, "learner.lora={rank=16, alpha=32.0}", "reference.adapters_off=true")
    assert "reference" not in Demands(recipe).by_kind


def reward_model(name: str, path: str, weight: float) -> str:
    return f'{{kind="model", name="{name}", path="{path}", weight={weight}, token_budget=2048}}'
