"""What a worker says of itself with every sign of life."""

import time
from collections.abc import Mapping
from dataclasses import dataclass

import psutil


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerReport:
    """Metrics of one process, by their names in `core/metrics/`, all of which have the label `worker`."""

    gauges: Mapping[str, float]
    totals: Mapping[str, float]
    """Counters, as counted since the process started."""
    engine_series: str = ""
    """vLLM's own series, in Prometheus' text format."""

    @property
    def memory_bytes(self) -> int:
        return int(self.gauges["leash_worker_memory_bytes"])


def own_report(
    *,
    gauges: Mapping[str, float] | None = None,
    totals: Mapping[str, float] | None = None,
    engine_series: str = "",
) -> WorkerReport:
    """Memory and CPU time of this process, and what else it measures.

    Memory that it shares with others counts in equal parts (PSS).
    """
    memory = {"leash_worker_memory_bytes": float(psutil.Process().memory_full_info().pss)}
    cpu = {"leash_worker_cpu_seconds_total": time.process_time()}
    return WorkerReport(
        gauges=memory | dict(gauges or {}), totals=cpu | dict(totals or {}), engine_series=engine_series
    )
