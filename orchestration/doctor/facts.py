"""What Leash depends on, as one machine has it. Looks, and changes nothing."""

import os
import platform
import shutil
import socket
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from core.errors import UserError
from core.versions import versions
from orchestration.assets import ASSETS, asset_path, cache_folder
from orchestration.planning.machine import SHARED_MEMORY, own_ram

CPU_FEATURES = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")
RAY_PORTS = (6379, 8265)
"""Where `ray start --head` listens: its control store, and its dashboard."""
RAY_TOKEN = "~/.ray/auth_token"
"""Where Ray looks for its token, unless RAY_AUTH_TOKEN_PATH names another place."""
NVIDIA_SMI_S = 30


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """As nvidia-smi lists it."""

    name: str
    memory_mib: int
    driver: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """One machine."""

    node: str
    python: str
    versions: dict[str, str]
    """Of Leash and of the libraries that decide a run's numbers; those that are not installed are missing."""
    machine: str
    """Such as x86_64."""
    cpu_features: tuple[str, ...]
    """Of `CPU_FEATURES`."""
    num_cpus: int
    ram_bytes: int
    shm_bytes: int
    shm_free_bytes: int
    cache: str
    """The folder of models and data: $LEASH_CACHE, or the default."""
    cache_is_writable: bool
    cache_free_bytes: int
    missing_assets: tuple[str, ...]
    """Why each model or data set that the demo needs cannot be used."""
    gpus: tuple[Gpu, ...]
    gpu_error: str | None
    """What nvidia-smi said, if it is there and failed."""
    ray_token: str
    """Ray's token file, which need not be there."""
    ray_token_mode: int | None
    """Permission bits of Ray's token file, if there is one."""
    umask: int
    can_listen: bool
    """On a free port of this machine, as a run's metrics and control do."""
    busy_ports: tuple[int, ...]
    """Of `RAY_PORTS`."""


def collect() -> Facts:
    """Of the machine that this is called on."""
    memory = shutil.disk_usage(SHARED_MEMORY) if SHARED_MEMORY.is_dir() else None
    existing = _first_existing(cache_folder())
    gpus, gpu_error = _gpus()
    token = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or RAY_TOKEN).expanduser()
    return Facts(
        node=socket.gethostname(),
        python=platform.python_version(),
        versions=versions(),
        machine=platform.machine(),
        cpu_features=_cpu_features(),
        num_cpus=len(os.sched_getaffinity(0)),
        ram_bytes=own_ram(),
        shm_bytes=memory.total if memory else 0,
        shm_free_bytes=memory.free if memory else 0,
        cache=str(cache_folder()),
        cache_is_writable=os.access(existing, os.W_OK | os.X_OK),
        cache_free_bytes=shutil.disk_usage(existing).free,
        missing_assets=tuple(_missing(ASSETS)),
        gpus=gpus,
        gpu_error=gpu_error,
        ray_token=str(token),
        ray_token_mode=token.stat().st_mode & 0o777 if token.is_file() else None,
        umask=_umask(),
        can_listen=_can_listen(0),
        busy_ports=tuple(port for port in RAY_PORTS if not _can_listen(port)),
    )


def parse_nvidia_smi(text: str) -> tuple[Gpu, ...]:
    """From lines of `name, memory.total, driver_version`, without units."""
    rows = [[cell.strip() for cell in line.rsplit(",", 2)] for line in text.splitlines() if line.strip()]
    return tuple(Gpu(name=name, memory_mib=int(memory), driver=driver) for name, memory, driver in rows)


def _gpus() -> tuple[tuple[Gpu, ...], str | None]:
    command = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader,nounits"]
    if shutil.which(command[0]) is None:
        return (), None
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=NVIDIA_SMI_S, check=True)
        return parse_nvidia_smi(done.stdout), None
    except subprocess.TimeoutExpired:
        return (), f"no answer within {NVIDIA_SMI_S} s"
    except subprocess.CalledProcessError as error:
        said = (error.stdout + error.stderr).strip().splitlines() or [f"exit code {error.returncode}"]
        return (), said[0]
    except (OSError, ValueError) as error:
        return (), str(error)


def _missing(names: Iterable[str]) -> list[str]:
    reasons = []
    for name in names:
        try:
            asset_path(name)
        except UserError as error:
            reasons.append(str(error))
    return reasons


def _cpu_features() -> tuple[str, ...]:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return ()  # not Linux, which is a finding of its own
    flags = next((line.partition(":")[2].split() for line in lines if line.startswith("flags")), [])
    return tuple(feature for feature in CPU_FEATURES if feature in flags)


def _umask() -> int:
    """There is no way to ask for it but to set another one for a moment."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def _can_listen(port: int) -> bool:
    with socket.socket() as listener:
        listener.setsockopt(
            socket.SOL_SOCKET, socket.SO_REUSEADDR, 1
        )  # as servers do: no wait for old connections
        try:
            listener.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def _first_existing(folder: Path) -> Path:
    return next(path for path in (folder, *folder.parents) if path.exists())
