"""Every metric by name, and every chart."""

from core.metrics.contract import Metric, Panel
from core.metrics.flow import FLOW_METRICS
from core.metrics.optimization import OPTIMIZATION_METRICS
from core.metrics.policy import POLICY_METRICS
from core.metrics.workers import WORKER_METRICS

METRICS: dict[str, Metric] = {
    metric.name: metric for metric in (*POLICY_METRICS, *OPTIMIZATION_METRICS, *FLOW_METRICS, *WORKER_METRICS)
}

PANELS: tuple[Panel, ...] = tuple(dict.fromkeys(metric.panel for metric in METRICS.values()))
"""In the order of their first metrics."""
