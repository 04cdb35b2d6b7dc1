"""Memory of a learner rank: a tiny model by hand, rules that hold for every model, and what torch really keeps."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForCausalLM

from core.attention import PACKED_ATTENTION
from core.config import ModelConfig
from core.models import TokenLogprobs
from core.packing import pack_row
from learner.config import LearnerConfig, LoRAConfig
from orchestration.planning.learner_memory import (
    Network,
    States,
    activation_bytes,
    layer_activation_bytes,
    learner_host_memory,
    learner_memory,
    logit_bytes,
    states,
)
from orchestration.planning.model_shape import shape_of
from orchestration.planning.published_models import PUBLISHED

TINY = shape_of(
    {
        "hidden_size": 8,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "intermediate_size": 16,
        "vocab_size": 32,
        "tie_word_embeddings": True,
    },
    source="1448 parameters",
)
LARGE = shape_of(PUBLISHED["Qwen2.5-7B"], source="7,615,616,512 parameters")
SHAPES = {name: shape_of(config, source=name) for name, config in PUBLISHED.items()}


@pytest.mark.parametrize(
    ("dtype", "stage", "ranks", "expected"),
    [
        (
            "float32",
            0,
            1,
            States(weights=5792, gradients=5792, optimizer=11584, buckets=0, update=0),
        ),
        (
            "bfloat16",
            0,
            1,
            States(weights=2896, gradients=2896, optimizer=17376, buckets=0, update=5792),
        ),
        (
            "bfloat16",
            0,
            2,
            States(weights=2896, gradients=2896, optimizer=17376, buckets=2896, update=5792),
        ),
        (
            "bfloat16",
            1,
            4,
            States(weights=2896, gradients=2896, optimizer=4344, buckets=2896, update=2172),
        ),
        (
            "bfloat16",
            2,
            4,
            States(weights=2896, gradients=1448, optimizer=4344, buckets=2896, update=2172),
        ),
        (
            "bfloat16",
            3,
            4,
            States(weights=724, gradients=1448, optimizer=4344, buckets=5792, update=2172),
        ),
    ],
)
def test_model_states_of_a_tiny_model_by_hand(dtype: str, stage: Any, ranks: int, expected: States) -> None:
    config = LearnerConfig(zero_stage=stage, world_size=ranks)
    assert states(TINY, config, dtype, on_gpu=False) == expected


@pytest.mark.parametrize(
    ("stage", "offload", "expected"),
    [
        # 362 numbers a rank: 12 bytes of master weights and means, 4 of gradients and 2 or 4 of their sum, 2 of new
        # weights; and 32 * 8 numbers of the embedding's gradient on either side
        (
            1,
            "optimizer",
            States(weights=2896, gradients=2896, optimizer=0, buckets=3408, update=0, host=7752),
        ),
        (2, "optimizer", States(weights=2896, gradients=0, optimizer=0, buckets=3408, update=0, host=8476)),
        (3, "optimizer", States(weights=724, gradients=0, optimizer=0, buckets=5792, update=0, host=7240)),
        (3, "parameters", States(weights=0, gradients=0, optimizer=0, buckets=5792, update=0, host=7964)),
    ],
)
def test_offloaded_states_of_a_tiny_model_by_hand(stage: Any, offload: Any, expected: States) -> None:
    config = LearnerConfig(zero_stage=stage, world_size=4, offload=offload)
    assert states(TINY, config, "bfloat16", on_gpu=False) == expected


def test_without_a_gpu_what_is_offloaded_is_a_part_like_others() -> None:
    config, model = LearnerConfig(zero_stage=3, offload="optimizer"), ModelConfig(path="x", dtype="bfloat16")
    network = Network(name="policy", shape=TINY, logit_copies=3)
    parts = [dict(learner_memory([network], config, model, 1, on_gpu=on_gpu)) for on_gpu in (True, False)]
    assert "policy offloaded state" not in parts[0]
    assert parts[1]["policy offloaded state"] == learner_host_memory([network], config, model) == 20 * 1448


def test_on_a_gpu_the_gradient_bucket_is_allocated_whole() -> None:
    config = LearnerConfig(zero_stage=2, world_size=4)
    assert states(TINY, config, "bfloat16", on_gpu=True).buckets == 2 * 500_000_000


def test_with_adapters_only_they_have_gradients_and_optimizer_state() -> None:
    config = LearnerConfig(lora=LoRAConfig(rank=2))
    held = states(TINY, config, "float32", on_gpu=False)
    assert held.weights == 4 * (1448 + 512)
    assert held.gradients == 4 * 512
    assert held.optimizer == 8 * 512


def test_activations_of_a_token_by_hand() -> None:
    # two norms: input, normalised input and output; attention: q, k, v, out, and o's input; four of the MLP
    assert layer_activation_bytes(TINY, "float32", adapters=False) == 2 * 12 * 8 + 4 * (
        3 * 8 + 2 * 4 + 4 * 16
    )
    assert layer_activation_bytes(TINY, "bfloat16", adapters=False) == 2 * 8 * 8 + 2 * (
        3 * 8 + 2 * 4 + 4 * 16
    )
    assert layer_activation_bytes(TINY, "float32", adapters=True) == 2 * 8 * 8 + 4 * (3 * 8 + 2 * 4 + 4 * 16)
    assert activation_bytes(TINY, LearnerConfig(), "float32", num_tokens=10) == 10 * 3 * 576
    checkpointed = LearnerConfig(gradient_checkpointing=True)
    assert activation_bytes(TINY, checkpointed, "float32", num_tokens=10) == 10 * (2 * 576 + 2 * 4 * 8)


def test_logits_are_in_float32_for_every_trained_token() -> None:
    network = Network(name="policy", shape=TINY, logit_copies=3)
    assert logit_bytes(network, num_tokens=10) == 4 * 3 * 32 * 10


def test_backward_pass_and_update_take_turns() -> None:
    config, model = LearnerConfig(zero_stage=3, world_size=4), ModelConfig(path="x", dtype="bfloat16")
    network = Network(name="policy", shape=LARGE, logit_copies=3)
    parts = dict(learner_memory([network], config, model, 1, on_gpu=True))
    quarter = 7_615_616_512 // 4
    # Gradients in float32 and new weights of a billion parameters need more room than one token's backward pass.
    assert parts == {
        "policy weights": 2 * quarter,
        "policy gradients": 4 * quarter,
        "policy optimizer state": 12 * quarter,
        "policy update": 6 * 1_000_000_000,
    }


@given(st.sampled_from(sorted(SHAPES)), st.integers(2, 64), st.booleans())
def test_a_higher_zero_stage_never_holds_more(name: str, ranks: int, lora: bool) -> None:
    """In bfloat16, of several ranks. One alone holds more with it than without: master weights in float32, and from
    stage 2 on the sum of the gradients."""
    held = [
        states(
            SHAPES[name],
            LearnerConfig(zero_stage=stage, world_size=ranks, lora=LoRAConfig() if lora else None),
            "bfloat16",
            on_gpu=True,
        )
        for stage in (0, 1, 2, 3)
    ]
    totals = [state.weights + state.gradients + state.optimizer for state in held]
    assert totals == sorted(totals, reverse=True)


@given(
    st.sampled_from(sorted(SHAPES)),
    st.sampled_from((1, 2, 3)),
    st.sampled_from(("float32", "bfloat16")),
    st.integers(2, 32),
)
def test_more_ranks_never_need_more(name: str, stage: Any, dtype: str, ranks: int) -> None:
    network = Network(name="policy", shape=SHAPES[name], logit_copies=3)
    model = ModelConfig(path="x", dtype=dtype)
    few, many = (
        sum(
            size
            for _, size in learner_memory(
                [network], LearnerConfig(zero_stage=stage, world_size=count), model, 1024, on_gpu=True
            )
        )
        for count in (ranks, 2 * ranks)
    )
    assert many <= few


@pytest.mark.parametrize("adapters", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_torch_keeps_what_the_formula_says(dtype: str, adapters: bool) -> None:
    """Beside it one float32 a norm and a head of the queries, and what adapters compute between their matrices."""
    by_hand = layer_activation_bytes(small_shape(2), dtype, adapters=adapters)
    kept = bytes_kept_per_layer(dtype, adapters=adapters)
    between = 7 * RANK * (2 if dtype == "bfloat16" else 4) if adapters else 0
    assert kept == by_hand + 4 * (2 + NUM_HEADS) + between


def test_with_checkpointing_torch_keeps_the_input_of_each_layer() -> None:
    assert bytes_kept_per_layer("float32", checkpointing=True) == 4 * SMALL["hidden_size"]


NUM_HEADS, RANK, NUM_TOKENS = 4, 8, 256
SMALL: dict[str, Any] = {
    "hidden_size": 128,
    "num_attention_heads": NUM_HEADS,
    "num_key_value_heads": 2,
    "intermediate_size": 384,
    "vocab_size": 500,
    "tie_word_embeddings": True,
}


def small_shape(num_layers: int) -> Any:
    return shape_of(SMALL | {"num_hidden_layers": num_layers}, source="small")


def bytes_kept_per_layer(dtype: str, **options: bool) -> float:
    """For the backward pass, of one token: what two layers more keep more."""
    return (bytes_kept(4, dtype, **options) - bytes_kept(2, dtype, **options)) / 2 / NUM_TOKENS


def bytes_kept(num_layers: int, dtype: str, *, adapters: bool = False, checkpointing: bool = False) -> int:
    # peft brings DeepSpeed along, whose import takes seconds.
    from learner.lora import add_adapter

    options: dict[str, Any] = SMALL | {
        "num_hidden_layers": num_layers,
        "attn_implementation": PACKED_ATTENTION,
    }
    network = LlamaForCausalLM(LlamaConfig(**options)).to(getattr(torch, dtype))
    policy = TokenLogprobs(network).train()
    if adapters:
        add_adapter(policy, LoRAConfig(rank=RANK))
        network.to(getattr(torch, dtype))
    if checkpointing:
        network.gradient_checkpointing_enable()
    weights = {parameter.untyped_storage().data_ptr() for parameter in policy.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = tensor
        return tensor

    length = NUM_TOKENS // 4
    row = pack_row([(np.arange(length, dtype=np.int32), np.arange(length) > 0)] * 4)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        policy(row)
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
