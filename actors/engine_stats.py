"""What an engine says of itself: how full it is, and vLLM's own series."""

import re
import threading
from typing import Any

import prometheus_client
from vllm.v1.metrics.loggers import StatLoggerBase
from vllm.v1.metrics.stats import IterationStats, SchedulerStats

from core.worker_report import WorkerReport, own_report

_OWN_SERIES = re.compile(r"^(# (HELP|TYPE) )?vllm:")


class EngineStats(StatLoggerBase):
    """Told by vLLM after every step of the engine; asked by who wants to know, in another thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._last = SchedulerStats()
        self._cache_fractions: list[float] = []
        """Of every step since somebody asked."""
        self._totals = dict.fromkeys(
            (
                "leash_engine_preemptions_total",
                "leash_engine_prefix_queries_total",
                "leash_engine_prefix_hits_total",
            ),
            0.0,
        )

    def record(
        self,
        scheduler_stats: SchedulerStats | None,
        iteration_stats: IterationStats | None,
        mm_cache_stats: Any = None,
        engine_idx: int = 0,
    ) -> None:
        with self._lock:
            if scheduler_stats is not None:
                self._last = scheduler_stats
                self._cache_fractions.append(scheduler_stats.kv_cache_usage)
                prefix = scheduler_stats.prefix_cache_stats
                self._totals["leash_engine_prefix_queries_total"] += prefix.queries
                self._totals["leash_engine_prefix_hits_total"] += prefix.hits
            if iteration_stats is not None:
                self._totals["leash_engine_preemptions_total"] += iteration_stats.num_preempted_reqs

    def log_engine_initialized(self) -> None:
        """Nothing to say yet."""

    def report(self) -> WorkerReport:
        """Of the engine and its process. Means and maxima start anew."""
        with self._lock:
            fractions = self._cache_fractions or [self._last.kv_cache_usage]
            self._cache_fractions = []
            gauges = {
                "leash_engine_running": float(self._last.num_running_reqs),
                "leash_engine_waiting": float(self._last.num_waiting_reqs),
                "leash_engine_kv_cache_fraction": sum(fractions) / len(fractions),
                "leash_engine_kv_cache_max_fraction": max(fractions),
            }
            totals = dict(self._totals)
        return own_report(gauges=gauges, totals=totals, engine_series=_own_series())


def _own_series() -> str:
    """vLLM registers its series with the process; others are left out, and so are empty times of creation."""
    text = prometheus_client.generate_latest().decode()
    lines = [line for line in text.splitlines() if _OWN_SERIES.match(line) and "_created" not in line]
    return "\n".join(lines) + "\n"
