"""The ranks of a learner: joining them, and what they tell each other."""

import os
from datetime import timedelta
from typing import TypeVar

import deepspeed
import torch
import torch.distributed as dist

T = TypeVar("T")


def join_group(*, rank: int, world_size: int, address: str, port: int, deadline_s: float) -> None:
    """Make this process a rank of the learner group: gloo on CPUs, NCCL on GPUs. It may see no GPU but its own."""
    cuda = torch.cuda.is_available()
    os.environ.update(MASTER_ADDR=address, MASTER_PORT=str(port), RANK=str(rank), WORLD_SIZE=str(world_size))
    os.environ.update(LOCAL_RANK="0", LOCAL_SIZE=str(world_size))
    if not cuda:
        os.environ["DS_ACCELERATOR"] = "cpu"
        # An all-reduce of its own for ranks on one host, which DeepSpeed would compile for a minute at the
        # first start and whose buffers it leaves in /dev/shm: gloo does the same work.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    backend = "nccl" if cuda else "gloo"
    deepspeed.init_distributed(
        dist_backend=backend, timeout=timedelta(seconds=deadline_s), verbose=False, auto_mpi_discovery=False
    )


def leave_group() -> None:
    """Destroy the process group; without this gloo aborts the process at exit."""
    if dist.is_initialized():
        dist.destroy_process_group()


def all_reduce_sum(values: torch.Tensor) -> torch.Tensor:
    """The sum over ranks, on every rank."""
    if dist.get_world_size() == 1:
        return values
    summed = _where_reduced(values)
    dist.all_reduce(summed)
    return summed.to(values.device)


def all_reduce_max(value: int) -> int:
    """The largest value of any rank, on every rank."""
    if dist.get_world_size() == 1:
        return value
    largest = _where_reduced(torch.tensor(value))
    dist.all_reduce(largest, op=dist.ReduceOp.MAX)
    return int(largest)


def all_gather(parts: list[T]) -> list[T]:
    """The parts of all ranks, in order of rank, on every rank."""
    if dist.get_world_size() == 1:
        return parts
    gathered: list[list[T]] = [[] for _ in range(dist.get_world_size())]
    dist.all_gather_object(gathered, parts)
    return [part for share in gathered for part in share]


def place_in_group() -> tuple[int, int]:
    """Rank of this process, and how many there are."""
    return dist.get_rank(), dist.get_world_size()


def raise_together(failure: str | None, error: type[Exception]) -> None:
    """Raise on every rank if one of them failed, naming it, so that none waits for one that gave up.

    All ranks must call, each with its own failure or None.
    """
    ranks_of: dict[str, list[str]] = {}
    for rank, told in enumerate(all_gather([failure])):
        if told is not None:
            ranks_of.setdefault(told, []).append(str(rank))
    if ranks_of:
        raise error("; ".join(f"learner rank {', '.join(ranks)}: {told}" for told, ranks in ranks_of.items()))


def _where_reduced(tensor: torch.Tensor) -> torch.Tensor:
    """NCCL reduces what lies on a GPU, and nothing else."""
    return tensor.cuda() if dist.get_backend() == "nccl" else tensor
