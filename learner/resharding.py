"""A saved network brought into an engine of other ranks or another ZeRO stage than those that saved it.

Every rank reads all of it, parameter by parameter, and keeps its own part.
"""

from typing import Any

import deepspeed
import torch
import torch.distributed as dist
import torch.nn.functional as F
from deepspeed.utils import (
    safe_set_full_fp32_param,
    safe_set_full_optimizer_state,
    safe_set_local_fp32_param,
    safe_set_local_optimizer_state,
)
from torch import nn

from learner.saved_state import MOMENTS, STEP, WEIGHT, SavedState


def set_state(engine: Any, saved: SavedState) -> None:
    """Weights, Adam's moments and its count of updates into DeepSpeed's engine. All ranks must call."""
    stage = engine.zero_optimization_stage()
    keys: tuple[str, ...] = (WEIGHT,)
    if saved.num_updates:
        _make_moments(engine, saved.num_updates)
        keys += MOMENTS
    masters = iter(_masters(engine))
    for name, parameter in engine.module.named_parameters():
        with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0, enabled=stage == 3):
            parameter.data.copy_(saved.tensor(name, WEIGHT).view(parameter.shape))
        if not parameter.requires_grad:
            continue
        values = {key: saved.tensor(name, key) for key in keys}
        match stage:
            case 0:
                _set_whole(engine, next(masters), values)
            case 1 | 2:
                _set_fragment(parameter, values)
            case _:
                _set_part(parameter, values)


def _masters(engine: Any) -> list[torch.Tensor]:
    """The tensors that torch's Adam updates: of stage 0 whole parameters, else this rank's share of all in few."""
    if engine.zero_optimization_stage() == 3:  # there the optimizer is given them during a step alone
        masters: list[torch.Tensor] = engine.optimizer.fp32_partitioned_groups_flat
        return masters
    return [tensor for group in engine.basic_optimizer.param_groups for tensor in group["params"]]


def _make_moments(engine: Any, num_updates: float) -> None:
    """Adam makes them in its first update, which is over where this engine goes on."""
    for master in _masters(engine):
        step = torch.tensor(num_updates, device=master.device)
        engine.basic_optimizer.state[master] = {
            STEP: step,
            **{key: torch.zeros_like(master) for key in MOMENTS},
        }
    if engine.zero_optimization_stage() in (1, 2):
        engine.optimizer._lazy_init_hp_params_optimizer_state()  # or the setters below would not find them


def _set_whole(engine: Any, master: torch.Tensor, values: dict[str, torch.Tensor]) -> None:
    state = engine.basic_optimizer.state[master]
    for key, value in values.items():
        target = master if key == WEIGHT else state[key]
        target.data.copy_(value.view(target.shape))


def _set_fragment(parameter: nn.Parameter, values: dict[str, torch.Tensor]) -> None:
    for key, value in values.items():
        if key == WEIGHT:
            safe_set_full_fp32_param(parameter, value)
        else:
            safe_set_full_optimizer_state(parameter, value, key)


def _set_part(parameter: nn.Parameter, values: dict[str, torch.Tensor]) -> None:
    """Not by `safe_set_full_*`, which fail for a parameter that does not divide by the number of ranks."""
    rank, size = dist.get_rank(), parameter.ds_tensor.numel()  # type: ignore[attr-defined]
    for key, value in values.items():
        padded = F.pad(value, (0, size * dist.get_world_size() - value.numel()))
        part = padded.narrow(0, rank * size, size)
        if key == WEIGHT:
            safe_set_local_fp32_param(parameter, part)
        else:
            safe_set_local_optimizer_state(parameter, part, key)
