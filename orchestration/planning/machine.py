"""What a plan is made for: memory of the host and of its GPUs."""

import shutil
from dataclasses import dataclass
from pathlib import Path

import psutil

from core.errors import UserError

GIB = 2**30
SHARED_MEMORY = Path("/dev/shm")
CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")

GPU_MIB = {
    "T4": 15360,
    "L4": 23034,
    "A10G": 23028,
    "RTX4090": 24564,
    "V100-32GB": 32768,
    "A100-40GB": 40960,
    "L40S": 46068,
    "A100": 81920,
    "H100": 81559,
    "H200": 143771,
    "B200": 183359,
}
"""Memory in MiB as nvidia-smi shows it; A100 is the one of 80 GB, H100 the SXM one."""
WITHOUT_BFLOAT16 = {"t4", "v100-32gb"}
"""Before compute capability 8.0 (Ampere)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """One host. A bound that is None is not checked."""

    ram_bytes: int | None = None
    shm_bytes: int | None = None
    gpu_bytes: int | None = None
    """Of one GPU."""
    has_bfloat16: bool = True
    """Whether its GPUs compute in bfloat16."""
    gpus_per_node: int = 8


def gpu_memory(name: str) -> int:
    """Bytes of a known GPU. Raises `UserError`."""
    known = {each.lower(): mib for each, mib in GPU_MIB.items()}
    if name.lower() not in known:
        raise UserError(
            f"--gpu {name}: known are {', '.join(GPU_MIB)}; for another one give --gpu-memory-gib, as nvidia-smi "
            "shows it"
        )
    return known[name.lower()] * 2**20


def own_ram() -> int:
    """Bytes of memory that this machine, or the container, may use."""
    total = int(psutil.virtual_memory().total)
    limit = CGROUP_LIMIT.read_text().strip() if CGROUP_LIMIT.is_file() else "max"
    return min(total, int(limit)) if limit.isdecimal() else total


def own_shared_memory() -> int:
    """Bytes that /dev/shm of this machine may hold."""
    return shutil.disk_usage(SHARED_MEMORY).total
