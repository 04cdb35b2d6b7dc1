"""The page docs/metrics.md: every metric, chart by chart, then what is computed from them and what alerts."""

from collections.abc import Iterable, Iterator

from core.metrics.contract import Metric, Panel
from core.metrics.registry import METRICS
from orchestration.monitoring.dashboards import DASHBOARDS, OVERVIEW, healthy_text, panels_of
from orchestration.monitoring.queries import DERIVED
from orchestration.monitoring.rules import PATIENCE, RUN_ALERTS

_INTRODUCTION = """\
# Metrics

What a run publishes at `/metrics`, declared in `core/metrics/`. From there come this page (written by
`leash render docs`), the dashboards and alert rules in [deploy/monitoring](../deploy/monitoring/README.md), and the
keys of `metrics.jsonl`.

A series is there from its first value on: what is not known, or not measured with this recipe, is absent, not zero.
Counters begin at zero when the driver starts. Log-probabilities, KL and entropy are in nats, shares from 0 to 1.
Prometheus adds the labels `run`, the name of the run's folder, and `recipe`.
"""


def metrics_page() -> str:
    """In Markdown."""
    blocks = [_INTRODUCTION]
    for dashboard in DASHBOARDS:
        if dashboard != OVERVIEW:
            blocks.append(f"## {dashboard.capitalize()}\n")
            blocks += [_panel_section(panel) for panel in panels_of(dashboard)]
    return "\n".join([*blocks, _derived_section(), _alert_section()])


def _panel_section(panel: Panel) -> str:
    metrics = [metric for metric in METRICS.values() if metric.panel == panel]
    also = " In the overview, too." if panel.in_overview else ""
    header = ("metric", "what", "kind", "labels", "measured by", "in metrics.jsonl", "healthy", "if not")
    return f"### {panel.title}\n{panel.help}{also}\n\n{_table(header, map(_row, metrics))}"


def _row(metric: Metric) -> Iterator[str]:
    yield f"`{metric.name}`"
    yield metric.help
    yield f"{metric.kind}, {metric.unit}" if metric.unit else metric.kind
    yield ", ".join(f"`{label}`" for label in metric.labels)
    yield metric.owner
    yield f"`{metric.record}`" if metric.record else ""
    yield healthy_text(metric.healthy) if metric.healthy else ""
    yield metric.healthy.red_flag if metric.healthy else ""


def _derived_section() -> str:
    rows = [(f"`{derived.name}`", derived.help, f"`{derived.expr}`") for derived in DERIVED]
    return f"## What Prometheus computes from them\n\n{_table(('series', 'what', 'expression'), rows)}"


def _alert_section() -> str:
    rows = [
        (
            f"`{alert.name}`",
            f"`{alert.expr}`",
            "at once" if alert.lasting == "0s" else alert.lasting,
            alert.what_to_do,
        )
        for alert in RUN_ALERTS
    ]
    return f"## Alerts\n\nOne for every healthy range above, after {PATIENCE}, and:\n\n" + _table(
        ("alert", "condition", "for", "what to do"), rows
    )


def _table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    header = list(header)
    lines = [header, ["---"] * len(header), *rows]
    return "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |\n" for line in lines)
