"""The contract of every metric: what Leash publishes, declared once.

From it come the series at /metrics, the keys of a step's record in metrics.jsonl, the page docs/metrics.md, the
dashboards and alert rules in deploy/monitoring/, and the charts of `leash dash`.

Conventions: the prefix `leash_`; base units (seconds, bytes, ratios from 0 to 1; log-probabilities in nats);
counters end in `_total`; a label's values are few and known beforehand, never ids. Whoever measures something
returns it under its key; `orchestration/reporting/metrics_hub.py` publishes it.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

PREFIX = "leash_"

Kind = Literal["counter", "gauge", "histogram"]
Unit = Literal["", "seconds", "bytes", "ratio", "nats", "tokens"]
Owner = Literal["loop", "learner", "rollout", "every worker", "alarm"]
Dashboard = Literal["learning", "throughput", "workers", "reliability"]


@dataclass(frozen=True, slots=True)
class Panel:
    """One chart, wherever it is drawn."""

    title: str
    dashboard: Dashboard
    help: str
    """What to look for in it, in a sentence."""
    in_overview: bool = False
    """Also among the few that are looked at first."""


@dataclass(frozen=True, slots=True)
class Healthy:
    """Where a metric should be, and what it means when it is not."""

    low: float | None
    high: float | None
    red_flag: str
    """What is probably wrong outside the range, and what to do."""

    def holds(self, value: float) -> bool:
        """Whether the value is in the range; NaN is not."""
        return (self.low is None or value >= self.low) and (self.high is None or value <= self.high)


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """One family of series."""

    name: str
    kind: Kind
    """`counter` only grows, `gauge` is the last value, `histogram` the distribution over a run."""
    unit: Unit = ""
    help: str
    panel: Panel
    owner: Owner = "loop"
    """Which part of the system measures it."""
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()
    """Upper bounds, of a histogram."""
    record: str | None = None
    """The key in a step's record, with labels in braces, as in `reward_{source}`; None if it is not in there.
    Of a counter the record has the growth since the step before."""
    values: tuple[str, ...] = ()
    """The values of the label in `record`, where they are known beforehand."""
    healthy: Healthy | None = None
    _pattern: re.Pattern[str] | None = field(init=False, repr=False, compare=False, default=None)

    def __post_init__(self) -> None:
        if self.record is not None:
            value = "|".join(self.values) or ".+"
            pattern = re.sub(r"\\{(\w+)\\}", rf"(?P<\1>{value})", re.escape(self.record))
            object.__setattr__(self, "_pattern", re.compile(pattern))

    def labels_of(self, key: str) -> dict[str, str] | None:
        """The labels that a key of a step's record says, if it is one of this metric."""
        match = self._pattern and self._pattern.fullmatch(key)
        return match.groupdict() if match else None


def series_of(
    record: Mapping[str, Any], metrics: Mapping[str, Metric]
) -> Iterator[tuple[Metric, dict[str, str], float]]:
    """The series that a step's record gives values to: metric, labels, value. What is no metric is left out."""
    for key, value in record.items():
        found = metric_of(key, metrics)
        if found is not None and isinstance(value, int | float):
            yield *found, value


def metric_of(key: str, metrics: Mapping[str, Metric]) -> tuple[Metric, dict[str, str]] | None:
    """The metric that a key of a step's record belongs to, and its labels; the most literal one if several fit."""
    fitting = [(m, labels) for m in metrics.values() if (labels := m.labels_of(key)) is not None]
    return min(fitting, key=lambda found: sum(map(len, found[1].values())), default=None)
