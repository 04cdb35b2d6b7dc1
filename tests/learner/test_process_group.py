"""Sums over ranks, without ranks: where the numbers lie when they are summed."""

from typing import Any

import pytest
import torch

from learner import process_group


@pytest.mark.parametrize(("backend", "moves"), [("nccl", 2), ("gloo", 0)])
def test_numbers_move_to_the_gpu_when_nccl_sums_them(
    monkeypatch: pytest.MonkeyPatch, backend: str, moves: int
) -> None:
    moved: list[torch.Tensor] = []

    def to_gpu(tensor: torch.Tensor) -> torch.Tensor:
        moved.append(tensor.clone())
        return moved[-1]

    def double(tensor: torch.Tensor, **options: Any) -> None:
        assert any(tensor is each for each in moved) == bool(moves)
        tensor.mul_(2)

    monkeypatch.setattr(torch.Tensor, "cuda", to_gpu)
    monkeypatch.setattr(torch.distributed, "get_backend", lambda: backend)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "all_reduce", double)
    assert process_group.all_reduce_sum(torch.tensor([1.5, 2.0])).tolist() == [3.0, 4.0]
    assert process_group.all_reduce_max(7) == 14
    assert len(moved) == moves
