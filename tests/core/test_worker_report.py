"""What a worker says of its process and of its GPUs. No GPU is needed: what would speak for one is made up."""

import sys
from types import ModuleType, SimpleNamespace

import pytest

from core.worker_report import gpu_figures, own_report


class NVMLError(Exception):
    """As the driver's library raises it."""


def two_gpus(monkeypatch: pytest.MonkeyPatch, *, is_silent: bool = False) -> None:
    """24 and 8 bytes in use; busy for half of the time, and not at all."""

    def utilization(gpu: int) -> int:
        if is_silent:
            raise NVMLError("Not Supported")
        return (50, 0)[gpu]

    cuda = SimpleNamespace(
        is_available=lambda: True,
        device_count=lambda: 2,
        device_memory_used=lambda gpu: (24, 8)[gpu],
        utilization=utilization,
    )
    nvml = ModuleType("pynvml")
    vars(nvml)["NVMLError"] = NVMLError
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda))
    monkeypatch.setitem(sys.modules, "pynvml", nvml)


def test_gpus_are_reported_with_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    two_gpus(monkeypatch)
    gauges = own_report().gauges
    assert gauges["leash_worker_gpu_memory_bytes"] == 32.0
    assert gauges["leash_worker_gpu_busy_fraction"] == 0.25
    assert gauges["leash_worker_memory_bytes"] > 2**20


@pytest.mark.parametrize("torch", [None, SimpleNamespace(cuda=SimpleNamespace(is_available=lambda: False))])
def test_without_a_gpu_nothing_is_said_of_one(monkeypatch: pytest.MonkeyPatch, torch: object) -> None:
    monkeypatch.setitem(sys.modules, "torch", torch)
    assert set(own_report().gauges) == {"leash_worker_memory_bytes"}


def test_a_gpu_whose_driver_does_not_say_is_absent_and_not_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    two_gpus(monkeypatch, is_silent=True)
    assert gpu_figures() == {}


def test_without_the_drivers_library_a_gpu_is_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    two_gpus(monkeypatch)
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert gpu_figures() == {}
