"""Which charts there are: the panels of the metrics contract that a run's records have figures for."""

from collections.abc import Iterable
from typing import Any

from core.metrics.contract import Metric, Panel, metric_of
from core.metrics.registry import METRICS, PANELS

X_AXIS = "step"
"""What every chart is drawn over; its own metric, the policy version, would be the diagonal."""


def charts_of(keys: Iterable[str]) -> list[dict[str, Any]]:
    """The charts of records with these keys, in the registry's order, each with its series."""
    series: dict[Panel, list[dict[str, Any]]] = {panel: [] for panel in PANELS}
    for key in keys:
        found = metric_of(key, METRICS) if key != X_AXIS else None
        if found is not None:
            series[found[0].panel].append(_series(key, *found))
    return [
        {
            "title": panel.title,
            "dashboard": panel.dashboard,
            "in_overview": panel.in_overview,
            "help": panel.help,
            "series": series[panel],
        }
        for panel in PANELS
        if series[panel]
    ]


def _series(key: str, metric: Metric, labels: dict[str, str]) -> dict[str, Any]:
    healthy = metric.healthy
    return {
        "key": key,
        "metric": metric.name,
        "label": " ".join([_words(metric), *labels.values()]),
        "unit": metric.unit,
        "help": metric.help + (", in each step" if metric.kind == "counter" else ""),
        "healthy": healthy and {"low": healthy.low, "high": healthy.high, "red_flag": healthy.red_flag},
    }


def _words(metric: Metric) -> str:
    """The metric's name as words; seconds stand at its figures, and a record has the growth of a total."""
    words = metric.name.removeprefix("leash_").replace("_", " ")
    return words.removesuffix(" total").removesuffix(" seconds")
