"""Grafana's dashboards: one for each part of the contract, and an overview, as dashboard JSON of version 42.

A chart of the contract becomes a panel: its help the description, healthy ranges thresholds.
"""

from collections.abc import Sequence
from string import ascii_uppercase
from typing import Any, get_args

from core.metrics.contract import Dashboard, Healthy, Metric, Panel
from core.metrics.registry import METRICS, PANELS
from orchestration.monitoring.queries import Query, queries_of

SCHEMA_VERSION = 42
"""Of Grafana 12.1 and later."""
OVERVIEW = "overview"
DASHBOARDS: tuple[str, ...] = (OVERVIEW, *get_args(Dashboard))

_SOURCE = {"type": "prometheus", "uid": "${datasource}"}
_GRID_COLUMNS = 24
_PANEL_WIDTH, _PANEL_HEIGHT = 12, 9
_UNITS = {"": "short", "seconds": "s", "bytes": "bytes", "ratio": "percentunit"}
"""The contract's units in Grafana's words; others are written behind the number."""


def dashboards() -> dict[str, dict[str, Any]]:
    """Every dashboard, by name."""
    return {name: _dashboard(name, panels_of(name)) for name in DASHBOARDS}


def panels_of(dashboard: str) -> list[Panel]:
    """The charts that belong on a dashboard."""
    if dashboard == OVERVIEW:
        return [panel for panel in PANELS if panel.in_overview]
    return [panel for panel in PANELS if panel.dashboard == dashboard]


def healthy_text(healthy: Healthy) -> str:
    """The range in words."""
    if healthy.low is None:
        return f"at most {healthy.high:g}"
    if healthy.high is None:
        return f"at least {healthy.low:g}"
    return f"{healthy.low:g} to {healthy.high:g}"


def _dashboard(name: str, panels: Sequence[Panel]) -> dict[str, Any]:
    return {
        "uid": f"leash-{name}",
        "title": f"Leash: {name}",
        "tags": ["leash"],
        "schemaVersion": SCHEMA_VERSION,
        "editable": False,
        "graphTooltip": 1,
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "timezone": "browser",
        "links": [_LINKS],
        "templating": {"list": [_SOURCE_VARIABLE, _RUN_VARIABLE]},
        "annotations": {"list": _ANNOTATIONS},
        "panels": [_panel(place, panel) for place, panel in enumerate(panels)],
    }


def _panel(place: int, panel: Panel) -> dict[str, Any]:
    queries = list(zip(ascii_uppercase, queries_of(panel), strict=False))
    columns = _GRID_COLUMNS // _PANEL_WIDTH
    return {
        "id": place + 1,
        "type": "timeseries",
        "title": panel.title,
        "description": _description(panel),
        "datasource": _SOURCE,
        "gridPos": {
            "x": place % columns * _PANEL_WIDTH,
            "y": place // columns * _PANEL_HEIGHT,
            "w": _PANEL_WIDTH,
            "h": _PANEL_HEIGHT,
        },
        "targets": [
            {"refId": ref, "datasource": _SOURCE, "expr": query.expr, "legendFormat": query.legend}
            for ref, query in queries
        ],
        "fieldConfig": {
            "defaults": {"custom": {"showPoints": "auto", "spanNulls": False}},
            "overrides": [
                {"matcher": {"id": "byFrameRefID", "options": ref}, "properties": _properties(query)}
                for ref, query in queries
            ],
        },
        "options": {
            "legend": {"displayMode": "table", "placement": "bottom", "calcs": ["lastNotNull"]},
            "tooltip": {"mode": "multi", "sort": "desc"},
        },
    }


def _properties(query: Query) -> list[dict[str, Any]]:
    """How the lines of one query are drawn. Each unit gets an axis of its own."""
    unit = _UNITS.get(query.unit, f"suffix: {query.unit}")
    properties: list[dict[str, Any]] = [{"id": "unit", "value": unit}]
    if query.healthy is not None:
        properties += [
            {"id": "thresholds", "value": {"mode": "absolute", "steps": _steps(query.healthy)}},
            {"id": "custom.thresholdsStyle", "value": {"mode": "dashed+area"}},
        ]
    return properties


def _steps(healthy: Healthy) -> list[dict[str, Any]]:
    """Colours from each value upwards: red outside of the range."""
    steps: list[tuple[float | None, str]] = [(None, "transparent")]
    if healthy.low is not None:
        steps = [(None, "red"), (healthy.low, "transparent")]
    if healthy.high is not None:
        steps.append((healthy.high, "red"))
    return [{"value": value, "color": color} for value, color in steps]


def _description(panel: Panel) -> str:
    """What to look for, then each metric, in Markdown."""
    lines = [_metric_line(metric) for metric in METRICS.values() if metric.panel == panel]
    return "\n".join([panel.help, "", *lines])


def _metric_line(metric: Metric) -> str:
    line = f"- `{metric.name}`: {metric.help}."
    if metric.healthy is not None:
        line += f" Healthy: {healthy_text(metric.healthy)}; else {metric.healthy.red_flag}."
    return line


def _annotation(
    name: str, color: str, expr: str, text: str, *, value_is_time: bool = False
) -> dict[str, Any]:
    return {
        "name": name,
        "enable": True,
        "iconColor": color,
        "datasource": _SOURCE,
        "target": {"refId": "Anno", "expr": expr},
        "titleFormat": name,
        "textFormat": text,
        "useValueForTime": value_is_time,
    }


_LINKS = {
    "type": "dashboards",
    "title": "Leash",
    "tags": ["leash"],
    "includeVars": True,
    "keepTime": True,
}
_SOURCE_VARIABLE = {"name": "datasource", "type": "datasource", "query": "prometheus"}
_RUN_VARIABLE = {
    "name": "run",
    "label": "run",
    "type": "query",
    "datasource": _SOURCE,
    "query": {"query": "label_values(leash_steps_total, run)", "refId": "run"},
    "refresh": 2,  # asked again whenever the time range changes: runs come and go
    "sort": 2,  # by name, backwards: of a recipe's runs, which end in their time, the newest first
    "multi": False,
    "includeAll": False,
}
_RESTARTS = 'leash_worker_restarts_total{run="$run"}'
_ANNOTATIONS = [
    _annotation("Alert", "red", 'ALERTS{alertstate="firing", run="$run"}', "{{alertname}}"),
    _annotation(
        "Worker replaced", "orange", f"{_RESTARTS} > ({_RESTARTS} offset 1m or {_RESTARTS} * 0)", "{{kind}}"
    ),
    _annotation(
        "Checkpoint",
        "green",
        'leash_checkpoint_timestamp_seconds{run="$run"} * 1000',
        "committed",
        value_is_time=True,
    ),
]
