"""Adapters: what is trained, and that the merged weights are the adapted model's."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

from core.models import linear_layers, load_policy, load_scalar_model
from core.packing import PackedRow, pack_row
from learner.config import LoRAConfig
from learner.engine import ZeroEngine
from learner.lora import (
    adapter_parameters,
    adapter_shapes,
    add_adapter,
    frozen_names,
    merged_parameters,
    merged_shapes,
)

LORA = LoRAConfig(rank=3, alpha=12.0)


class UnshardedEngine:
    """What merging needs of `ZeroEngine`, without DeepSpeed."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def full_parameters(self, wanted: Callable[[str], bool]) -> Iterator[tuple[str, torch.Tensor]]:
        for name, parameter in self.module.named_parameters():
            if wanted(name):
                yield name, parameter.detach()

    def parameter_shapes(self) -> Iterator[tuple[str, tuple[int, ...], torch.dtype]]:
        for name, parameter in self.module.named_parameters():
            yield name, tuple(parameter.shape), parameter.dtype


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    config = LlamaConfig(
        vocab_size=50,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=True,
        initializer_range=0.2,
        pad_token_id=0,
    )
    config.num_labels = 1
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(tmp_path / "policy")
    LlamaForSequenceClassification(config).save_pretrained(tmp_path / "value")
    return tmp_path


def a_row() -> PackedRow:
    ids = np.random.default_rng(0).integers(0, 50, 20).astype(np.int32)
    return pack_row([(ids[:8], np.arange(8) > 2), (ids, np.arange(20) > 0)])


def disturb_adapters(module: nn.Module) -> None:
    """As training does: a fresh adapter adds nothing."""
    for name, parameter in module.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.2)


def test_merged_weights_give_the_log_probs_of_the_adapted_model(folder: Path) -> None:
    adapted, plain, row = (
        load_policy(folder / "policy", "float32"),
        load_policy(folder / "policy", "float32"),
        a_row(),
    )
    with torch.no_grad():
        untouched = plain(row)
        add_adapter(adapted, LORA)
        torch.testing.assert_close(adapted(row), untouched)  # B starts at zero
        disturb_adapters(adapted)
        wanted = adapted(row)
        assert (wanted - untouched).abs().max() > 0.1
        engine = cast(ZeroEngine, UnshardedEngine(adapted))
        merged = dict(merged_parameters(engine, LORA))
        plain.model.load_state_dict(merged, strict=False)
        torch.testing.assert_close(plain(row), wanted, rtol=1e-4, atol=1e-5)


def test_merged_parameters_are_named_and_shaped_as_the_plain_model(folder: Path) -> None:
    adapted, plain = load_policy(folder / "policy", "float32"), load_policy(folder / "policy", "float32")
    add_adapter(adapted, LORA)
    engine = cast(ZeroEngine, UnshardedEngine(adapted))
    wanted = [(name, tuple(parameter.shape)) for name, parameter in plain.model.named_parameters()]
    assert [(name, tuple(tensor.shape)) for name, tensor in merged_parameters(engine, LORA)] == wanted
    assert [(name, shape) for name, shape, _ in merged_shapes(engine)] == wanted


def test_adapters_are_named_and_shaped_as_pefts_own_checkpoints(folder: Path) -> None:
    adapted = load_policy(folder / "policy", "float32")
    add_adapter(adapted, LORA)
    engine = cast(ZeroEngine, UnshardedEngine(adapted))
    config = LoraConfig(r=LORA.rank, target_modules="all-linear")
    wanted = get_peft_model_state_dict(
        get_peft_model(load_policy(folder / "policy", "float32").model, config)
    )
    shapes = {name: tuple(tensor.shape) for name, tensor in wanted.items()}
    assert {name: tuple(tensor.shape) for name, tensor in adapter_parameters(engine)} == shapes
    assert [name for name, _ in adapter_parameters(engine)] == [name for name, _, _ in adapter_shapes(engine)]
    assert {name: shape for name, shape, _ in adapter_shapes(engine)} == shapes


def test_the_engine_expects_adapters_where_the_learner_has_them(folder: Path) -> None:
    adapted = load_policy(folder / "policy", "float32")
    add_adapter(adapted, LORA)
    names = [name for name, _ in adapter_parameters(cast(ZeroEngine, UnshardedEngine(adapted)))]
    assert linear_layers(folder / "policy") == sorted({name.split(".")[-3] for name in names})
    assert len(linear_layers(folder / "policy")) == 7


def test_without_adapters_the_weights_come_as_they_are(folder: Path) -> None:
    plain = load_policy(folder / "policy", "float32")
    engine = cast(ZeroEngine, UnshardedEngine(plain))
    for name, tensor in merged_parameters(engine, None):
        assert tensor.data_ptr() == plain.model.get_parameter(name).data_ptr()


def test_only_adapters_and_a_scalar_head_are_trained(folder: Path) -> None:
    policy: Any = load_policy(folder / "policy", "float32")
    value_model: Any = load_scalar_model(folder / "value", "float32")
    for module in (policy, value_model):
        add_adapter(module, LORA)
    trained = [name for name, parameter in policy.named_parameters() if parameter.requires_grad]
    assert len(trained) == 2 * 7 * 2  # A and B beside each of seven linear layers, in two layers
    assert all("lora_" in name for name in trained)
    assert value_model.model.score.weight.requires_grad
    assert not value_model.model.model.embed_tokens.weight.requires_grad


def test_what_training_leaves_as_it_is_has_the_names_of_the_plain_model(folder: Path) -> None:
    adapted, plain = load_policy(folder / "policy", "float32"), load_policy(folder / "policy", "float32")
    assert frozen_names(cast(ZeroEngine, UnshardedEngine(plain))) == set()
    add_adapter(adapted, LORA)
    frozen = frozen_names(cast(ZeroEngine, UnshardedEngine(adapted)))
    names = {name for name, _ in plain.model.named_parameters()}
    assert frozen == {name for name in names if "norm" in name or "embed" in name}
