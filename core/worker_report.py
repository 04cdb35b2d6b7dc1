"""What a worker says of itself with every sign of life."""

import importlib
import itertools
import sys
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

import psutil

_PROCESS = uuid.uuid4().hex
_numbers = itertools.count()


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerReport:
    """Metrics of one process, by their names in `core/metrics/`, all of which have the label `worker`."""

    gauges: Mapping[str, float]
    totals: Mapping[str, float]
    """Counters, as counted since the process started."""
    engine_series: str = ""
    """vLLM's own series, in Prometheus' text format."""
    process: str = _PROCESS
    """Of the cluster's processes the one that says it."""
    number: int = field(default_factory=_numbers.__next__)
    """Of its reports, in the order in which it made them."""

    def overtook(self, other: "WorkerReport | None") -> bool:
        """Whether the other one is older news of the same process."""
        return other is not None and other.process == self.process and other.number < self.number

    @property
    def memory_bytes(self) -> int:
        return int(self.gauges["leash_worker_memory_bytes"])


def own_report(
    *,
    gauges: Mapping[str, float] | None = None,
    totals: Mapping[str, float] | None = None,
    engine_series: str = "",
) -> WorkerReport:
    """Memory and CPU time of this process, its GPUs if it has any, and what else it measures.

    Memory that it shares with others counts in equal parts (PSS).
    """
    memory = {"leash_worker_memory_bytes": float(psutil.Process().memory_full_info().pss)}
    cpu = {"leash_worker_cpu_seconds_total": time.process_time()}
    return WorkerReport(
        gauges=memory | gpu_figures() | dict(gauges or {}),
        totals=cpu | dict(totals or {}),
        engine_series=engine_series,
    )


def gpu_figures() -> dict[str, float]:
    """Of the GPUs that this process may use, as their driver tells; nothing where there is none or it is silent."""
    torch: Any = sys.modules.get("torch")  # who computes on a GPU has imported it, and others do without
    if torch is None or not torch.cuda.is_available():
        return {}
    gpus = range(torch.cuda.device_count())
    try:
        nvml: Any = importlib.import_module("pynvml")  # comes with what is built for GPUs
    except ModuleNotFoundError:
        return {}
    try:
        return {
            "leash_worker_gpu_memory_bytes": float(sum(map(torch.cuda.device_memory_used, gpus))),
            "leash_worker_gpu_busy_fraction": fmean(map(torch.cuda.utilization, gpus)) / 100,
        }
    except (nvml.NVMLError, RuntimeError):  # a part of a GPU, or a virtual one, does not say
        return {}
