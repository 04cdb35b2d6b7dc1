"""A network's weights and Adam's moments from DeepSpeed's files, whatever ranks and ZeRO stage wrote them.

Every file holds flat tensors, in which each parameter has a place. ZeRO cuts a parameter into fragments, which
joined in the order of the ranks are the parameter again:

    stage 0     one file of whole parameters
    stage 1, 2  all parameters are laid end to end and cut once for each rank
    stage 3     each parameter is cut, in equal parts with padding after the last
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from core.errors import UserError

WEIGHT, MOMENTS, STEP = "weight", ("exp_avg", "exp_avg_sq"), "step"
"""A trained parameter's full-precision weight, and what torch's Adam keeps beside it."""

Flat = Mapping[str, torch.Tensor]
"""Tensors in which a parameter has the same place: its weight and its moments."""


@dataclass(frozen=True, slots=True)
class Fragment:
    """A piece of one parameter."""

    tensors: Flat
    start: int
    numel: int


class SavedState:
    """What a checkpoint holds of one network. A parameter is put together when it is asked for.

    for name, parameter in module.named_parameters():
        weight = saved.tensor(name, WEIGHT).view(parameter.shape)
    """

    def __init__(
        self,
        folder: Path,
        *,
        zero_stage: int,
        world_size: int,
        parameters: Mapping[str, bool],
        read: Callable[[Path], Any],
    ) -> None:
        """`parameters`: the network's, in its order, and whether each is trained. `read`: what a file holds.

        Raises `UserError` if a parameter is missing, and what `read` raises.
        """
        trained = [name for name, is_trained in parameters.items() if is_trained]
        match zero_stage:
            case 0:
                fragments = _fragments_0(folder, trained, read)
            case 1 | 2:
                fragments = _fragments_1_2(folder, world_size, read)
            case _:
                fragments = _fragments_3(folder, world_size, read)
        self._fragments: dict[str, list[Fragment]] = {name: [] for name in parameters}
        for name, fragment in fragments:
            if name in parameters:  # and not a tied weight's second name, or a buffer
                self._fragments[name].append(fragment)
        if missing := [name for name in parameters if not self._fragments[name]]:
            raise UserError(f"{folder}: is of another network, without {missing[0]}")
        self.num_updates = max(
            (
                float(fragment.tensors[STEP])
                for fragments in self._fragments.values()
                for fragment in fragments
                if STEP in fragment.tensors
            ),
            default=0.0,
        )
        """Optimizer steps that the moments have seen: every one is of all trained parameters."""

    def tensor(self, name: str, key: str) -> torch.Tensor:
        """[numel] a parameter's weight or one of its moments; zeros for moments that have seen no update."""
        return torch.cat(
            [
                fragment.tensors[key].flatten().narrow(0, fragment.start, fragment.numel)
                if key in fragment.tensors
                else torch.zeros(fragment.numel)
                for fragment in self._fragments[name]
            ]
        )


def _fragments_0(
    folder: Path, trained: Sequence[str], read: Callable[[Path], Any]
) -> Iterator[tuple[str, Fragment]]:
    saved = read(folder / "mp_rank_00_model_states.pt")
    optimizer, weights = saved["optimizer"], dict(saved["module"])
    if "fp32_groups" in optimizer:  # the weights that bfloat16's are rounded from
        weights |= zip(trained, optimizer["fp32_groups"][0], strict=True)
        optimizer = optimizer["optimizer_state_dict"]
    moments = {name: optimizer["state"].get(index, {}) for index, name in enumerate(trained)}
    for name, weight in weights.items():
        yield name, Fragment({WEIGHT: weight, **moments.get(name, {})}, 0, weight.numel())


def _fragments_1_2(
    folder: Path, world_size: int, read: Callable[[Path], Any]
) -> Iterator[tuple[str, Fragment]]:
    states = [read(_optimizer_file(folder, rank))["optimizer_state_dict"] for rank in range(world_size)]
    trained = {name for state in states for group in state["param_slice_mappings"] for name in group}
    for name, weight in read(folder / "mp_rank_00_model_states.pt")["module"].items():
        if name not in trained:
            yield name, Fragment({WEIGHT: weight}, 0, weight.numel())
    for state in states:
        moments = state["base_optimizer_state"]["state"]
        weights = state["single_partition_of_fp32_groups"]
        for index, places in enumerate(state["param_slice_mappings"]):
            flat = {WEIGHT: weights[index], **moments.get(index, {})}
            for name, place in places.items():
                yield name, Fragment(flat, place.start, place.numel)


def _fragments_3(
    folder: Path, world_size: int, read: Callable[[Path], Any]
) -> Iterator[tuple[str, Fragment]]:
    for rank in range(world_size):
        network = read(folder / f"zero_pp_rank_{rank}_mp_rank_00_model_states.pt")
        for name, shape in network["frozen_param_shapes"].items():
            flat = {WEIGHT: network["frozen_param_fragments"][name]}
            yield name, Fragment(flat, 0, _part_of_rank(shape, rank, world_size)[1])
        state = read(_optimizer_file(folder, rank))["optimizer_state_dict"]
        moments = state["optimizer_state_dict"]["state"]
        for index, shapes in enumerate(network["param_shapes"]):
            flat = {WEIGHT: state["fp32_flat_groups"][index], **moments.get(index, {})}
            start = 0
            for name, shape in shapes.items():
                padded, numel = _part_of_rank(shape, rank, world_size)
                yield name, Fragment(flat, start, numel)
                start += padded


def _part_of_rank(shape: Sequence[int], rank: int, world_size: int) -> tuple[int, int]:
    """Elements of a parameter that a rank holds under ZeRO-3: with the padding, and without."""
    padded = math.ceil(math.prod(shape) / world_size)
    return padded, min(padded, max(0, math.prod(shape) - rank * padded))


def _optimizer_file(folder: Path, rank: int) -> Path:
    """DeepSpeed puts a word before the name if the weights are bfloat16."""
    name = f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt"
    half = folder / f"bf16_{name}"
    return half if half.exists() else folder / name
