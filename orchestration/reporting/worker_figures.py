"""What workers have said since the last step, as figures of that step's record.

The keys are those of `core/metrics/`; a metric that declares none is left out.
"""

from collections import defaultdict
from statistics import fmean

from core.metrics.registry import METRICS
from core.worker_report import WorkerReport

LARGEST = {"leash_engine_kv_cache_max_fraction"}
"""Gauges of which a step keeps the largest; of the others it keeps the mean."""

Series = tuple[str, str]
"""A metric's name, and the value of its one label."""


class WorkerFigures:
    """Gauges as they were on the mean, counters by how much they grew.

    figures.report("rollout-0", report)     # with every sign of life
    record |= figures.take()                # with every step
    """

    def __init__(self) -> None:
        self._said: dict[Series, list[float]] = {}
        """Since the last step; at least the last before it."""
        self._is_old: set[Series] = set()
        """Of which only that one is left."""
        self._totals: dict[Series, float] = {}
        self._growth: defaultdict[Series, float] = defaultdict(float)

    def report(self, worker: str, report: WorkerReport) -> None:
        """A worker says how it is."""
        for name, value in report.gauges.items():
            series = (name, worker)
            if series in self._is_old:
                self._said[series].clear()
                self._is_old.remove(series)
            self._said.setdefault(series, []).append(value)
        for name, total in report.totals.items():
            self.follow(name, worker, total)

    def forget(self, worker: str) -> None:
        """It is gone: it uses nothing, and its successor counts from zero."""
        for series in [series for series in self._said if series[1] == worker]:
            del self._said[series]
            self._is_old.discard(series)
        for series in [series for series in self._totals if series[1] == worker]:
            del self._totals[series]

    def follow(self, name: str, label: str, total: float, *, begins_at: float | None = None) -> None:
        """What somebody else counts. Of who is not said to begin at a number, it is not known when the first count
        that is heard of was made."""
        before = self._totals.get((name, label), total if begins_at is None else begins_at)
        self.add(name, label, total - before if total >= before else total)
        self._totals[name, label] = total

    def add(self, name: str, label: str, growth: float) -> None:
        """What is counted here."""
        self._growth[name, label] += growth

    def take(self) -> dict[str, float]:
        """The figures of a step, by their keys in its record."""
        gauges = {
            series: max(values) if series[0] in LARGEST else fmean(values)
            for series, values in self._said.items()
        }
        self._is_old = set(self._said)
        for values in self._said.values():
            del values[:-1]
        growth, self._growth = self._growth, defaultdict(float)
        keys = {series: _key(*series) for series in (*gauges, *growth)}
        return {keys[series]: value for series, value in (*gauges.items(), *growth.items()) if keys[series]}


def _key(name: str, label: str) -> str:
    """The key of a series in a step's record; empty if it has none."""
    metric = METRICS[name]
    return (metric.record or "").format(**dict.fromkeys(metric.labels, label))
