"""The learner on real DeepSpeed ranks: processes that talk over gloo, without Ray."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from learner.checkpoint_files import read_tensors
from learner.saved_state import MOMENTS, WEIGHT, SavedState
from tests.learner.learner_rank import METHODS, OFFLOADED, SCENARIOS, VOCABULARY
from tests.learner.ranks import facts, run_ranks
from tests.tiny_models import build_tiny_model, build_tiny_scalar_model

pytestmark = [pytest.mark.real, pytest.mark.timeout(900)]  # the first test waits for all scenarios

STAGES = (0, 1, 2, 3)
ONE_RANK = (
    *(f"rloo-{stage}" for stage in STAGES),
    *("ppo-0", "ppo-2", "rloo-small-rows", "ppo-small-rows", "rloo-checkpointing", "rloo-minibatches"),
    *("resume-dropout-attention-0", "resume-dropout-adapters-0"),
    *(
        "resume-ppo-0",
        "resume-rloo-2",
        "resume-bfloat16-0",
        "save-0",
        "base-0",
        "dropout-attention",
        "dropout-adapters",
    ),
    *(name for name in SCENARIOS if name.startswith("nan-")),
    *(f"{method}-{rest}" for method in METHODS for rest in ("0", "small-rows")),
    *("offload-optimizer-2", "many-rows-2", "many-rows-3"),
)
TWO_RANKS = (
    *(f"rloo-{stage}" for stage in STAGES),
    *("ppo-0", "ppo-3", "rloo-small-rows", "resume-rloo-0", "resume-ppo-2", "resume-rloo-3", "save-3"),
    *("resume-dropout-attention-2", "resume-dropout-adapters-3", "nan-rloo-score", "base-3"),
    *("resume-rloo-1", "resume-lora-1", "resume-bfloat16-2", "reshard-ppo-to-2-from-0-world1"),
    *("reshard-lora-to-3-from-1-world2", "reshard-rloo-to-3-from-1-world2"),
    "reshard-bfloat16-to-2-from-0-world1",
    *(f"offload-{name}" for name in OFFLOADED),
    *("resume-offload-optimizer-2", "resume-offload-parameters-3"),
    *(f"{method}-{stage}" for method in METHODS for stage in (0, 3)),
)
THREE_RANKS = ("resume-rloo-3", "reshard-rloo-to-3-from-3-world2", "reshard-lora-to-2-from-1-world2")
"""By which no parameter divides without a rest."""
ONE_RANK_AGAIN = (
    *("reshard-ppo-to-3-from-2-world2", "reshard-rloo-to-0-from-3-world2", "reshard-lora-to-0-from-1-world2"),
    *("reshard-rloo-to-1-from-3-world3", "reshard-bfloat16-to-0-from-2-world2"),
)
RESHARDED_RUNS = [
    f"{name}-world{world_size}"
    for world_size, names in ((2, TWO_RANKS), (3, THREE_RANKS), (1, ONE_RANK_AGAIN))
    for name in names
    if name.startswith("reshard-")
]
ABSOLUTE, RELATIVE = 1e-5, 1e-4
"""What float32 allows after three steps of Adam at 1e-3: sums over ranks are taken in another order."""
NOISY_FRACTION, NOISE = 1e-4, 1e-4
"""Adam divides a gradient by its size, so where that is rounding noise, so is a tenth of an update's way. Which
elements these are differs by processor; one of a tensor may be among them, however small it is."""


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that all scenarios have written to."""
    folder = tmp_path_factory.mktemp("learner")
    build_tiny_model(folder / "policy", vocabulary=VOCABULARY)
    build_tiny_scalar_model(folder / "value", vocabulary=VOCABULARY)
    run_ranks(folder, 1, ONE_RANK)
    run_ranks(folder, 2, TWO_RANKS)
    run_ranks(folder, 3, THREE_RANKS)
    run_ranks(folder, 1, ONE_RANK_AGAIN)
    return folder


def assert_same_weights(folder: Path, name: str, other: str, *, num_updates: float = 3) -> None:
    first, second = load_file(folder / f"{name}.safetensors"), load_file(folder / f"{other}.safetensors")
    assert first.keys() == second.keys()
    for key in first:
        close = torch.isclose(second[key], first[key], atol=ABSOLUTE, rtol=RELATIVE)
        assert (~close).sum() <= max(1, NOISY_FRACTION * close.numel()), key
        assert (second[key] - first[key]).abs().max() < NOISE * num_updates, key


def test_three_steps_move_every_tensor_by_far_more_than_the_tolerance(results: Path) -> None:
    """Or the comparisons below would compare nothing."""
    trained = load_file(results / "rloo-0-world1.safetensors")
    original = load_file(results / "policy" / "model.safetensors")
    for name, tensor in original.items():
        assert (trained[f"policy.model.{name}"] - tensor).abs().max() > 50 * ABSOLUTE, name


@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize("stage", STAGES)
def test_rloo_gives_the_same_weights_on_every_zero_stage_and_world_size(
    results: Path, stage: int, world_size: int
) -> None:
    assert_same_weights(results, "rloo-0-world1", f"rloo-{stage}-world{world_size}")


@pytest.mark.parametrize("name", ["ppo-2-world1", "ppo-0-world2", "ppo-3-world2"])
def test_ppo_gives_the_same_policy_and_value_model(results: Path, name: str) -> None:
    assert_same_weights(results, "ppo-0-world1", name)


@pytest.mark.parametrize(
    "name", ["rloo-small-rows-world1", "rloo-small-rows-world2", "rloo-checkpointing-world1"]
)
def test_how_rows_are_packed_does_not_change_the_update(results: Path, name: str) -> None:
    assert_same_weights(results, "rloo-0-world1", name)


@pytest.mark.parametrize("name", ["optimizer-2-world1", *(f"{name}-world2" for name in OFFLOADED)])
def test_where_the_optimizer_and_the_weights_are_held_does_not_change_the_update(
    results: Path, name: str
) -> None:
    assert_same_weights(results, "rloo-0-world1", f"offload-{name}")
    everything = ["optimizer", "parameters"]
    assert facts(results, f"offload-{name}")["offloaded"] == everything[: 1 + name.startswith("parameters")]


@pytest.mark.parametrize("stage", [2, 3])
def test_small_summands_are_not_lost_in_bfloat16(results: Path, stage: int) -> None:
    """Summed in bfloat16 the 400 parts come to 0.94 of the whole."""
    whole, summed = facts(results, f"many-rows-{stage}-world1")["norms"]
    assert summed == pytest.approx(whole, rel=0.01)


@pytest.mark.parametrize("method", METHODS)
def test_a_method_gives_the_same_weights_however_rows_and_ranks_are_cut(results: Path, method: str) -> None:
    num_updates = sum(step["num_updates"] for step in facts(results, f"{method}-0-world1")["metrics"])
    for name in ("small-rows-world1", "0-world2", "3-world2"):
        assert_same_weights(results, f"{method}-0-world1", f"{method}-{name}", num_updates=num_updates)


@pytest.mark.parametrize("method", METHODS)
def test_a_method_moves_the_weights_and_reports_the_same_on_every_rank(results: Path, method: str) -> None:
    single = facts(results, f"{method}-0-world1")["metrics"]
    for rank in (0, 1):
        several = facts(results, f"{method}-3-world2", rank)["metrics"]
        for one, other in zip(single, several, strict=True):
            assert other == pytest.approx(one, rel=5e-3, abs=1e-4, nan_ok=True)
    assert all(step["gradient_norm"] > 1e-4 for step in single)
    assert [step["kl_coef_next"] for step in single[:-1]] == [step["kl_coef"] for step in single[1:]]


@pytest.mark.parametrize("name", ["base-0-world1", "base-3-world2"])
def test_with_adapters_off_the_policy_is_the_base_model_again(results: Path, name: str) -> None:
    found = facts(results, name)
    assert max(found["gaps"]) < 1e-5
    assert abs(found["trained_nll"] - found["untrained_nll"]) > 1e-4  # and with them on it is not


@pytest.mark.parametrize("what", ["attention", "adapters"])
def test_dropout_is_for_what_is_learned_from_alone(results: Path, what: str) -> None:
    found = facts(results, f"dropout-{what}-world1")
    assert found["looking"][0] == found["looking"][1]
    assert found["learning"][0] != found["learning"][1]


def test_how_rows_are_packed_does_not_change_the_value_model(results: Path) -> None:
    assert_same_weights(results, "ppo-0-world1", "ppo-small-rows-world1")


@pytest.mark.parametrize("name", ["rloo-0", "rloo-3", "ppo-3"])
def test_every_rank_reports_the_same_metrics_as_a_single_one(results: Path, name: str) -> None:
    single = facts(results, f"{name.replace('3', '0')}-world1")
    for rank in (0, 1):
        several = facts(results, f"{name}-world2", rank)
        assert several["version"] == single["version"] == 3
        for one, other in zip(single["metrics"], several["metrics"], strict=True):
            assert other == pytest.approx(one, rel=2e-3, abs=1e-5)


def test_the_gap_is_the_distance_of_behavior_and_policy_log_probs(results: Path) -> None:
    """The hand-made behavior log-probs are off by noise of 0.15, so the first step must say so."""
    first = facts(results, "rloo-0-world1")["metrics"][0]
    assert 0.3 < first["logprob_gap_max"] < 1.0
    assert first["logprob_gap_mean"] == pytest.approx(0.15 * (2 / torch.pi) ** 0.5, rel=0.2)


@pytest.mark.parametrize(
    "name",
    [
        "resume-ppo-0-world1",
        "resume-rloo-2-world1",
        "resume-rloo-0-world2",
        "resume-ppo-2-world2",
        "resume-rloo-3-world2",
        "resume-dropout-attention-0-world1",
        "resume-dropout-adapters-0-world1",
        "resume-dropout-attention-2-world2",
        "resume-dropout-adapters-3-world2",
        "resume-offload-optimizer-2-world2",
        "resume-offload-parameters-3-world2",
    ],
)
def test_a_resumed_learner_goes_on_bit_for_bit(results: Path, name: str) -> None:
    kept, resumed = (
        load_file(results / f"{name}-{kind}.safetensors") for kind in ("uninterrupted", "resumed")
    )
    assert kept.keys() == resumed.keys()
    assert [key for key in kept if not torch.equal(kept[key], resumed[key])] == []
    assert facts(results, f"{name}-uninterrupted") == facts(results, f"{name}-resumed")
    assert facts(results, f"{name}-resumed")["version"] == 4


def source_of(name: str) -> str:
    """The scenario whose checkpoint a learner of another shape went on from."""
    match = re.fullmatch(r"reshard-(\w+)-to-\d-from-(.*)-world\d", name)
    assert match is not None
    return f"resume-{match[1]}-{match[2]}"


@pytest.mark.parametrize("name", [name for name in RESHARDED_RUNS if "bfloat16" not in name])
def test_a_learner_resumed_on_other_ranks_goes_on_as_the_uninterrupted_one(results: Path, name: str) -> None:
    uninterrupted = f"{source_of(name)}-uninterrupted"
    assert_same_weights(results, uninterrupted, name)
    single, several = facts(results, uninterrupted), facts(results, name)
    assert several["version"] == single["version"] == 4
    assert several["kl_coef"] == single["metrics"][0]["kl_coef"]
    for one, other in zip(single["metrics"], several["metrics"], strict=True):
        assert other == pytest.approx(one, rel=5e-3, abs=1e-4)


def saved_state(
    folder: Path, name: str, network: str, parameters: dict[str, bool]
) -> dict[str, torch.Tensor]:
    """Every weight and moment of a checkpoint, and how often Adam has updated them."""
    # DeepSpeed, which the other tests of this file leave to the ranks.
    from learner.engine import SAVED_CLASSES

    checkpoint = folder / f"{name}-checkpoint"
    shape = json.loads((checkpoint / "learner.json").read_text(encoding="utf-8"))["shape"]
    saved = SavedState(
        checkpoint / network / "state",
        zero_stage=shape["zero_stage"],
        world_size=shape["world_size"],
        parameters=parameters,
        read=lambda file: read_tensors(file, SAVED_CLASSES),
    )
    state = {name: saved.tensor(name, WEIGHT) for name in parameters}
    for name in (name for name, is_trained in parameters.items() if is_trained):
        state |= {f"{name}.{key}": saved.tensor(name, key) for key in MOMENTS}
        assert all(state[f"{name}.{key}"].any() for key in MOMENTS)
    return state | {"num_updates": torch.tensor(saved.num_updates)}


@pytest.mark.parametrize("name", RESHARDED_RUNS)
def test_other_ranks_hold_the_same_weights_and_moments_bit_for_bit(results: Path, name: str) -> None:
    for network, parameters in facts(results, name)["parameters"].items():
        before, after = (
            saved_state(results, which, network, parameters) for which in (source_of(name), name)
        )
        assert before.keys() == after.keys()
        assert [key for key in before if not torch.equal(before[key].float(), after[key].float())] == []
        assert before["num_updates"] >= 2  # in bfloat16 without ZeRO DeepSpeed counts an empty one, too


@pytest.mark.parametrize("name", [name for name in SCENARIOS if name.startswith("nan-")])
def test_a_nan_stops_the_step_before_a_weight_changes(results: Path, name: str) -> None:
    found = facts(results, f"{name}-world1")
    assert "nan" in found["raised"] or "not finite" in found["raised"]
    assert found["changed"] == []
    assert found["version"] == 1


@pytest.mark.parametrize("rank", [0, 1])
def test_a_nan_among_the_rollouts_of_one_rank_stops_every_rank(results: Path, rank: int) -> None:
    found = facts(results, "nan-rloo-score-world2", rank)
    assert found["raised"]
    assert found["changed"] == []


@pytest.mark.parametrize("name", ["save-0-world1", "save-3-world2"])
def test_a_saved_model_loads_in_transformers_with_the_learners_weights(results: Path, name: str) -> None:
    weights = load_file(results / f"{name}.safetensors")
    auto: Any = AutoModelForCausalLM  # typed as if it always returned the model alone
    model, report = auto.from_pretrained(results / f"{name}-model", output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    named = dict(model.named_parameters())
    assert {f"policy.model.{key}" for key in named} == weights.keys()
    for key, parameter in named.items():
        assert torch.equal(parameter, weights[f"policy.model.{key}"]), key
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
