"""Parameters put together from the files of several ranks: by hand, as DeepSpeed lays them out.

Two parameters, `a` of 3 elements and `b` of 2 x 2, both trained, and `c` of 3, which is frozen. That real files
look so is tested in `test_learner_real.py`.
"""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from core.errors import UserError
from learner.saved_state import WEIGHT, SavedState

A, B, C = torch.tensor([1.0, 2, 3]), torch.tensor([[4.0, 5], [6, 7]]), torch.tensor([8.0, 9, 10])
PARAMETERS = {"a": True, "c": False, "b": True}
PAD = -1.0


def moments(*flat: float, step: int = 2) -> dict[str, torch.Tensor]:
    """Ten times the weight that it is of, and a hundred times."""
    values = torch.tensor(flat)
    return {"step": torch.tensor(float(step)), "exp_avg": values * 10, "exp_avg_sq": values * 100}


def place(start: int, numel: int) -> SimpleNamespace:
    return SimpleNamespace(start=start, numel=numel)


def cut_once(places: dict[str, SimpleNamespace], *flat: float) -> dict[str, Any]:
    """The optimizer file of a rank under ZeRO-1 or 2."""
    return {
        "optimizer_state_dict": {
            "param_slice_mappings": [places],
            "single_partition_of_fp32_groups": [torch.tensor(flat)],
            "base_optimizer_state": {"state": {0: moments(*flat)}},
        }
    }


def cut_each(*flat: float) -> dict[str, Any]:
    """The optimizer file of a rank under ZeRO-3."""
    return {
        "optimizer_state_dict": {
            "fp32_flat_groups": [torch.tensor(flat)],
            "optimizer_state_dict": {"state": {0: moments(*flat)}},
        }
    }


def network_of_zero_3(*frozen: float) -> dict[str, Any]:
    return {
        "param_shapes": [{"a": A.shape, "b": B.shape}],
        "frozen_param_shapes": {"c": C.shape},
        "frozen_param_fragments": {"c": torch.tensor(frozen)},
    }


WHOLE = {"module": {"a": A, "c": C, "b": B, "tied": A, "buffer": torch.zeros(1)}, "optimizer": None}
ADAM = {"state": {0: moments(1, 2, 3), 1: moments(*B.flatten().tolist())}}
ROUNDED = {"a": A.bfloat16() + 1, "c": C, "b": B.bfloat16() + 1}

FILES: dict[tuple[int, int], dict[str, Any]] = {
    (0, 1): {"mp_rank_00_model_states.pt": WHOLE | {"optimizer": ADAM}},
    (0, 2): {  # bfloat16: the optimizer has the weights themselves
        "mp_rank_00_model_states.pt": {
            "module": ROUNDED,
            "optimizer": {"fp32_groups": [[A, B]], "optimizer_state_dict": ADAM},
        }
    },
    (2, 2): {
        "mp_rank_00_model_states.pt": WHOLE,
        "zero_pp_rank_0_mp_rank_00_optim_states.pt": cut_once(
            {"a": place(0, 3), "b": place(3, 1)}, 1, 2, 3, 4
        ),
        "zero_pp_rank_1_mp_rank_00_optim_states.pt": cut_once({"b": place(0, 3)}, 5, 6, 7, PAD),
    },
    (3, 2): {
        "zero_pp_rank_0_mp_rank_00_model_states.pt": network_of_zero_3(8, 9),
        "zero_pp_rank_1_mp_rank_00_model_states.pt": network_of_zero_3(10, PAD),
        "zero_pp_rank_0_mp_rank_00_optim_states.pt": cut_each(1, 2, 4, 5),
        "zero_pp_rank_1_mp_rank_00_optim_states.pt": cut_each(3, PAD, 6, 7),
    },
    (3, 3): {
        "zero_pp_rank_0_mp_rank_00_model_states.pt": network_of_zero_3(8),
        "zero_pp_rank_1_mp_rank_00_model_states.pt": network_of_zero_3(9),
        "zero_pp_rank_2_mp_rank_00_model_states.pt": network_of_zero_3(10),
        "zero_pp_rank_0_mp_rank_00_optim_states.pt": cut_each(1, 4, 5),
        "zero_pp_rank_1_mp_rank_00_optim_states.pt": cut_each(2, 6, 7),
        "zero_pp_rank_2_mp_rank_00_optim_states.pt": cut_each(3, PAD, PAD),
    },
}


def saved(zero_stage: int, world_size: int, parameters: dict[str, bool]) -> SavedState:
    files = FILES[zero_stage, world_size]
    return SavedState(
        Path("state"),
        zero_stage=zero_stage,
        world_size=world_size,
        parameters=parameters,
        read=lambda file: files[file.name],
    )


@pytest.mark.parametrize(("zero_stage", "world_size"), FILES)
def test_parameters_are_whole_again(zero_stage: int, world_size: int) -> None:
    state = saved(zero_stage, world_size, PARAMETERS)
    for name, weight in (("a", A), ("b", B), ("c", C)):
        assert state.tensor(name, WEIGHT).tolist() == weight.flatten().tolist()
    for name, weight in (("a", A), ("b", B)):
        assert state.tensor(name, "exp_avg").tolist() == (weight.flatten() * 10).tolist()
        assert state.tensor(name, "exp_avg_sq").tolist() == (weight.flatten() * 100).tolist()
    assert state.num_updates == 2


@pytest.mark.parametrize(("zero_stage", "world_size"), FILES)
def test_a_parameter_that_no_file_holds_is_named(zero_stage: int, world_size: int) -> None:
    with pytest.raises(UserError, match="state: is of another network, without score"):
        saved(zero_stage, world_size, PARAMETERS | {"score": False})


def test_what_has_seen_no_update_has_no_moments() -> None:
    whole: dict[str, Any] = {"mp_rank_00_model_states.pt": WHOLE | {"optimizer": {"state": {}}}}
    state = SavedState(
        Path("state"),
        zero_stage=0,
        world_size=1,
        parameters=PARAMETERS,
        read=lambda file: whole[file.name],
    )
    assert state.num_updates == 0
    assert state.tensor("b", "exp_avg").tolist() == [0, 0, 0, 0]
