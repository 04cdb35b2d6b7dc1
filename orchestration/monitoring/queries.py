"""What is drawn of each metric, in PromQL, and the series that Prometheus computes for it.

A metric is drawn as it is, unless a derived series says more: a counter of seconds as seconds a second, a
histogram as the mean and the largest of what it observed lately.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from core.metrics.contract import PREFIX, Healthy, Metric, Panel
from core.metrics.registry import METRICS

STEP_WINDOW = "15m"
"""Of what comes once a step: several steps, also of a slow run. No step in it leaves a gap in the chart."""
BEAT_WINDOW = "2m"
"""Of what comes with every heartbeat of a worker."""


@dataclass(frozen=True, slots=True)
class Derived:
    """A series that Prometheus computes from others and records as `leash:<what>:<operation>`, per run."""

    name: str
    expr: str
    help: str
    unit: str = ""
    """As a contract's unit, or what a chart writes behind the number."""
    drawn_for: tuple[str, ...] = ()
    """The metrics that it is drawn in place of."""


@dataclass(frozen=True, slots=True)
class Query:
    """One expression of a chart."""

    expr: str
    legend: str
    """`{{label}}` stands for the label's value."""
    unit: str
    healthy: Healthy | None = None


def metric_words(metric: Metric) -> str:
    """What a metric is called among ours: `worker_restarts` for `leash_worker_restarts_total`."""
    return metric.name.removeprefix(PREFIX).removesuffix("_total")


def queries_of(panel: Panel) -> tuple[Query, ...]:
    """What a chart draws: every metric of it, of the run that `$run` names."""
    metrics = [metric for metric in METRICS.values() if metric.panel == panel]
    queries = (query for metric in metrics for query in _queries_of_metric(metric, alone=len(metrics) == 1))
    return tuple(dict.fromkeys(queries))


def _queries_of_metric(metric: Metric, *, alone: bool) -> Iterator[Query]:
    labels = "".join(f" {{{{{label}}}}}" for label in metric.labels)
    instead = [derived for derived in DERIVED if metric.name in derived.drawn_for]
    for derived in instead:
        legend = derived.name.removeprefix("leash:").replace("_", " ").replace(":", ", ")
        yield Query(f'{derived.name}{{run="$run"}}', f"{legend}{labels}", derived.unit)
    if not instead:
        words = "" if alone and labels else metric_words(metric).replace("_", " ")
        unit = _unit_of(metric)
        yield Query(f'{metric.name}{{run="$run"}}', f"{words}{labels}".strip(), unit, metric.healthy)


def _unit_of(metric: Metric) -> str:
    """The contract's unit, with what it is counted by where the name says that: `nats/token`."""
    per = re.search(r"([a-z]+)_per_([a-z]+)", metric.name)
    return f"{per[1]}/{per[2]}" if per else metric.unit


def _derived_of_metric(metric: Metric) -> Iterator[Derived]:
    """What follows from the kind of a metric."""
    name, words = metric.name, metric_words(metric)
    if metric.kind == "histogram":
        rate = f"rate({name}_{{}}[{STEP_WINDOW}])".format
        mean = f"{rate('sum')} / ({rate('count')} > 0)"
        largest = f"histogram_quantile(1, {rate('bucket')})"
        help_of = f"{{}}, of the last {STEP_WINDOW}: {metric.help}".format
        yield Derived(f"leash:{words}:mean{STEP_WINDOW}", mean, help_of("Mean"), metric.unit, (name,))
        yield Derived(
            f"leash:{words}:max{STEP_WINDOW}",
            largest,
            help_of("Upper bound of the largest one's bucket"),
            metric.unit,
            (name,),
        )
    if metric.kind == "counter" and metric.unit == "seconds":
        yield Derived(
            f"leash:{words}:rate{BEAT_WINDOW}",
            f"rate({name}[{BEAT_WINDOW}])",
            f"Seconds a second, so how many at once: {metric.help}",
            drawn_for=(name,),
        )


DERIVED: tuple[Derived, ...] = (
    *(derived for metric in METRICS.values() for derived in _derived_of_metric(metric)),
    Derived(
        f"leash:phase_time:rate{STEP_WINDOW}",
        f"rate(leash_phase_seconds_sum[{STEP_WINDOW}])",
        "Share of the time that the loop waited for a phase; what is missing to 1 are checkpoints and evaluations",
        "ratio",
        ("leash_phase_seconds",),
    ),
    Derived(
        f"leash:tokens:rate{STEP_WINDOW}",
        f"rate(leash_tokens_total[{STEP_WINDOW}])",
        "Tokens trained on, a second, pauses included",
        "tokens/second",
        ("leash_tokens_total",),
    ),
    Derived(
        f"leash:engine_prefix_hits:ratio{BEAT_WINDOW}",
        f"rate(leash_engine_prefix_hits_total[{BEAT_WINDOW}])"
        f" / (rate(leash_engine_prefix_queries_total[{BEAT_WINDOW}]) > 0)",
        "Share of the prompt tokens that were found in the prefix cache",
        "ratio",
        ("leash_engine_prefix_hits_total", "leash_engine_prefix_queries_total"),
    ),
    Derived(
        "leash:checkpoint:age",
        "time() - leash_checkpoint_timestamp_seconds",
        "Time since the last checkpoint: what a crash would cost",
        "seconds",
        ("leash_checkpoint_timestamp_seconds",),
    ),
)
"""Every derived series, in the order in which they are recorded."""
