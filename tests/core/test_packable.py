"""Architectures that packing gets right, and those that are refused: by their config, or by their log-probs."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import CONFIG_MAPPING, AutoModelForSequenceClassification

from core.errors import UserError
from core.models import load_policy, load_scalar_model, load_with_scalar_head
from core.pretrained import check_model
from tests.core.networks import SIZES, save_network

MAX_MODEL_LEN = 32
OWN_SIZES = SIZES | {"num_key_value_heads": 2, "head_dim": 8}
EXPERTS = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
WINDOW = {"sliding_window": MAX_MODEL_LEN}
SHORT_WINDOW = {"sliding_window": MAX_MODEL_LEN - 1}
SLIDING = {"layer_types": ["full_attention", "sliding_attention"]}


def save(folder: Path, kind: str, **keys: Any) -> Path:
    sizes = SIZES if kind in ("bloom", "gpt2", "gpt_neox", "opt", "mamba") else OWN_SIZES
    save_network(folder, CONFIG_MAPPING[kind](**sizes, **keys))
    return folder


@pytest.mark.parametrize(
    ("kind", "keys"),
    [
        ("llama", {}),
        ("qwen2", SHORT_WINDOW | {"use_sliding_window": False}),
        ("qwen3", {}),
        ("qwen3_moe", EXPERTS),
        ("mixtral", EXPERTS | {"sliding_window": None}),
        ("mistral", WINDOW),
        ("phi3", WINDOW),
        ("gemma", {}),
        ("gemma3_text", WINDOW | SLIDING),
        ("olmo2", {}),
        ("granite", {"attention_multiplier": 0.3, "residual_multiplier": 0.7}),
        ("gpt2", {}),
        ("gpt_neox", {}),
        ("opt", {}),
    ],
)
def test_networks_that_can_be_packed_are_taken(tmp_path: Path, kind: str, keys: dict[str, Any]) -> None:
    check_model(save(tmp_path, kind, **keys), max_model_len=MAX_MODEL_LEN)
    load_policy(tmp_path, "float32")


@pytest.mark.parametrize(
    ("kind", "keys", "words"),
    [
        ("mistral", SHORT_WINDOW, "sliding_window = 31 is shorter than model.max_model_len = 32"),
        ("phi3", SHORT_WINDOW, "sliding_window = 31 is shorter"),
        ("gemma3_text", SHORT_WINDOW | SLIDING, "sliding_window = 31 is shorter"),
        (
            "gemma2",
            WINDOW | {"final_logit_softcapping": None},
            "attn_logit_softcapping = 50.0, which packing",
        ),
        (
            "gemma2",
            WINDOW | {"attn_logit_softcapping": None},
            "final_logit_softcapping = 30.0, which packing",
        ),
        ("granite", {"logits_scaling": 8.0}, "logits_scaling = 8.0, which packing leaves out"),
        ("cohere", {}, "logit_scale = 0.0625, which packing leaves out"),
        ("bloom", {}, "model_type = bloom has ALiBi"),
        ("mamba", {}, "model_type = mamba has state-space layers"),
        ("lfm2", {"full_attn_idxs": [1]}, "layer_types has conv, which packing cannot do"),
        ("qwen3_next", EXPERTS, "layer_types has linear_attention, which packing cannot do"),
        ("gpt_oss", EXPERTS | WINDOW, "model_type = gpt_oss has attention sinks"),
    ],
)
def test_networks_that_cannot_be_packed_are_refused_before_anything_is_loaded(
    tmp_path: Path, kind: str, keys: dict[str, Any], words: str
) -> None:
    with pytest.raises(UserError, match=f"config.json: {words}.*Use a model with full attention"):
        check_model(save(tmp_path, kind, **keys), max_model_len=MAX_MODEL_LEN)


@pytest.mark.parametrize(
    ("kind", "keys"),
    [("gemma2", {}), ("cohere", {}), ("bloom", {}), ("mamba", {}), ("lfm2", {"full_attn_idxs": [1]})],
)
def test_a_network_that_nobody_listed_is_found_out_by_its_logprobs(
    tmp_path: Path, kind: str, keys: dict[str, Any]
) -> None:
    """As it would be if its config had another key for what it does."""
    save(tmp_path, kind, **keys)
    with pytest.raises(UserError, match=f"model type {kind} gives other log-probs on packed rows .* apart"):
        load_policy(tmp_path, "float32")


def test_a_network_that_does_not_take_packed_rows_says_so(tmp_path: Path) -> None:
    save(tmp_path, "stablelm")
    with pytest.raises(UserError, match="model type stablelm does not run on packed rows"):
        load_policy(tmp_path, "float32")


def test_value_and_reward_models_are_compared_too(tmp_path: Path) -> None:
    save(tmp_path, "qwen3_next", **EXPERTS)
    with pytest.raises(UserError, match="model type qwen3_next gives other scores on packed rows"):
        load_with_scalar_head(tmp_path, "float32")
    config_class: Any = CONFIG_MAPPING["qwen3_next"]
    config = config_class(**OWN_SIZES, **EXPERTS, num_labels=1)
    torch.manual_seed(0)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path / "reward")
    with pytest.raises(UserError, match="reward: model type qwen3_next gives other scores on packed rows"):
        load_scalar_model(tmp_path / "reward", "float32")
