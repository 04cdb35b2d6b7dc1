"""Low-rank adapters: train small matrices beside frozen weights (arXiv:2106.09685), push the merged sum or them.

A linear layer's weight W stays as it was and gains B A * alpha / rank. Far fewer numbers move, so an update
of the same use costs less KL, less memory for optimizer state, and no gradient of the big matrices.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from learner.config import LoRAConfig
from learner.engine import ZeroEngine

WRAPPER = "model."
"""Prefix of parameter names that `core.models` adds to Hugging Face's."""


def add_adapter(module: nn.Module, config: LoRAConfig, *, dropout: float = 0.0) -> None:
    """Freeze the module's network and put an adapter beside each linear layer; a scalar head stays trained."""
    network = module.model
    assert isinstance(network, nn.Module)
    alpha: Any = config.alpha  # peft declares an int, and divides by the rank: a float is as good
    inject_adapter_in_model(
        LoraConfig(
            r=config.rank,
            lora_alpha=alpha,
            lora_dropout=dropout,
            target_modules="all-linear",
            bias="none",
        ),
        network,
    )
    head = getattr(network, "score", None)
    if isinstance(head, nn.Module):
        head.requires_grad_(True)


@contextmanager
def adapters_off(engine: ZeroEngine) -> Iterator[None]:
    """Within it the network is the frozen base: the reference that the policy started from."""
    layers = [layer for layer in engine.module.modules() if isinstance(layer, BaseTunerLayer)]
    assert layers, "only a policy with adapters has a base"
    for layer in layers:
        layer.enable_adapters(enabled=False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(enabled=True)


def merged_parameters(engine: ZeroEngine, config: LoRAConfig | None) -> Iterator[tuple[str, torch.Tensor]]:
    """(Hugging Face name, full tensor) of the plain model, adapters added in. All ranks must iterate together.

    The sum goes into a tensor of its own: adding to W and subtracting again would let rounding errors grow.
    """
    adapters = {name: tensor.clone() for name, tensor in engine.full_parameters(_is_adapter)}
    for name, weight in engine.full_parameters(lambda name: not _is_adapter(name)):
        down = adapters.get(name.replace("base_layer.weight", "lora_A.default.weight"))
        if down is not None:
            assert config is not None
            up = adapters[name.replace("base_layer.weight", "lora_B.default.weight")]
            weight = torch.addmm(weight, up, down, alpha=config.alpha / config.rank)
        yield plain_name(name), weight


def merged_shapes(engine: ZeroEngine) -> Iterator[tuple[str, tuple[int, ...], torch.dtype]]:
    """(Hugging Face name, shape, dtype), in the order of `merged_parameters`."""
    for name, shape, dtype in engine.parameter_shapes():
        if not _is_adapter(name):
            yield plain_name(name), shape, dtype


def adapter_parameters(engine: ZeroEngine) -> Iterator[tuple[str, torch.Tensor]]:
    """(name in PEFT's checkpoints, full tensor) of the adapters alone. All ranks must iterate together."""
    for name, tensor in engine.full_parameters(_is_adapter):
        yield _checkpoint_name(name), tensor


def adapter_shapes(engine: ZeroEngine) -> Iterator[tuple[str, tuple[int, ...], torch.dtype]]:
    """(name in PEFT's checkpoints, shape, dtype), in the order of `adapter_parameters`."""
    for name, shape, dtype in engine.parameter_shapes():
        if _is_adapter(name):
            yield _checkpoint_name(name), shape, dtype


def frozen_names(engine: ZeroEngine) -> set[str]:
    """Hugging Face names of the weights that training leaves as they are, so that they are written once."""
    adapted = {name.split(".lora_")[0] for name, _, _ in engine.parameter_shapes() if _is_adapter(name)}
    return {
        plain_name(name)
        for name, parameter in engine.module.named_parameters()
        if not parameter.requires_grad
        and not _is_adapter(name)
        and name.removesuffix(".base_layer.weight") not in adapted
    }


def plain_name(name: str) -> str:
    """The name that the parameter has in the Hugging Face model without adapters."""
    return name.removeprefix(WRAPPER).replace(".base_layer.", ".")


def _checkpoint_name(name: str) -> str:
    return f"base_model.model.{plain_name(name).replace('.default.', '.')}"


def _is_adapter(name: str) -> bool:
    return ".lora_" in name
