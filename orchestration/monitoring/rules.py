"""Prometheus' rules: the derived series that it records, and the alerts.

Every healthy range of the contract is an alert, and its red flag what the alert says; what no single metric
shows is written by hand below.
"""

from dataclasses import dataclass
from typing import Any, Literal

from core.metrics.contract import Healthy, Metric
from core.metrics.registry import METRICS
from orchestration.monitoring.dashboards import healthy_text
from orchestration.monitoring.queries import DERIVED, metric_words

PATIENCE = "5m"
"""How long a metric is outside of its healthy range before anyone is told."""

Severity = Literal["warning", "critical"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Alert:
    """A condition that should not last."""

    name: str
    expr: str
    """Gives a series for each run that it holds for; the labels and the value of that series are in the texts."""
    lasting: str
    severity: Severity = "warning"
    summary: str
    """Behind the run's name."""
    what_to_do: str


def recording_rules() -> dict[str, Any]:
    """The derived series, as a file of Prometheus."""
    rules = [{"record": derived.name, "expr": derived.expr} for derived in DERIVED]
    return {"groups": [{"name": "leash-derived", "rules": rules}]}


def alert_rules() -> dict[str, Any]:
    """Every alert, as a file of Prometheus."""
    groups = {"leash-run": RUN_ALERTS, "leash-healthy": HEALTHY_ALERTS}
    return {
        "groups": [
            {"name": name, "rules": [_rule(alert) for alert in alerts]} for name, alerts in groups.items()
        ]
    }


def _rule(alert: Alert) -> dict[str, Any]:
    return {
        "alert": alert.name,
        "expr": alert.expr,
        "for": alert.lasting,
        "labels": {"severity": alert.severity},
        "annotations": {
            "summary": f"{{{{ $labels.run }}}}: {alert.summary}",
            "description": alert.what_to_do,
        },
    }


def _alert_of(metric: Metric, healthy: Healthy) -> Alert:
    """What `Healthy.holds` says, in PromQL. NaN is in no range, so it alerts too."""
    low = "" if healthy.low is None else f" >= {healthy.low:g}"
    high = "" if healthy.high is None else f" <= {healthy.high:g}"
    words = metric_words(metric)
    which = "".join(f" of {{{{ $labels.{label} }}}}" for label in metric.labels)
    return Alert(
        name="Leash" + "".join(word.capitalize() for word in words.split("_")),
        expr=f"{metric.name} unless {metric.name}{low}{high}",
        lasting=PATIENCE,
        summary=f"{words.replace('_', ' ')}{which} is {{{{ $value | humanize }}}}, "
        f"healthy is {healthy_text(healthy)}",
        what_to_do=f"{healthy.red_flag[0].upper()}{healthy.red_flag[1:]}.",
    )


def _grown(counter: str, window: str) -> str:
    """By how much a counter has grown, its first value included, which `increase` leaves out."""
    return f"{counter} - ({counter} offset {window} or {counter} * 0)"


HOUR_OLD = "time() - leash_checkpoint_timestamp_seconds > 3600"
UP_FOR_AN_HOUR = "leash_steps_total offset 1h"
"""Of this driver: a run that has just been resumed has lost nothing yet, however old its checkpoint."""

HEALTHY_ALERTS = tuple(_alert_of(metric, metric.healthy) for metric in METRICS.values() if metric.healthy)

RUN_ALERTS = (
    Alert(
        name="LeashRunGone",
        expr='up{job="leash"} == 0',
        lasting="2m",
        severity="critical",
        summary="no answer from {{ $labels.instance }}, and the run has not said that it ends",
        what_to_do="It failed, its driver was killed, or hangs: see the last words of its output and leash status, "
        "and go on with leash train --resume. If it is not to go on, remove its file from the discovery folder.",
    ),
    Alert(
        name="LeashStandsStill",
        expr="changes(leash_steps_total[5m]) == 0",
        lasting="30m",
        severity="critical",
        summary="no step for half an hour",
        what_to_do="It is paused, waits for workers, or hangs: leash status says what it does. Where a step takes "
        "that long, raise this rule's `for`.",
    ),
    Alert(
        name="LeashNoRolloutWorker",
        expr='leash_workers{kind="rollout", state="serving"} == 0',
        lasting="2m",
        severity="critical",
        summary="no rollout worker serves",
        what_to_do="All are starting, dead, or without the present weights: see the events of leash status.",
    ),
    Alert(
        name="LeashRestartsInARow",
        expr=f"{_grown('leash_worker_restarts_total', '15m')} >= 3",
        lasting="0s",
        summary="{{ $value }} workers of kind {{ $labels.kind }} were replaced within 15 minutes",
        what_to_do="One cause, most likely: memory, a full disk, a bad reward function. The events of leash status "
        "say what each died of; after faults.max_restarts the run gives up.",
    ),
    Alert(
        name="LeashCheckpointTooOld",
        expr=f"{HOUR_OLD} and {UP_FOR_AN_HOUR} or leash_steps_total > 0 and {UP_FOR_AN_HOUR} "
        "unless leash_checkpoint_timestamp_seconds",
        lasting="0s",
        summary="it has run for an hour without a checkpoint",
        what_to_do="A crash would cost all steps since the last one, or since the start: set "
        "trainer.checkpoint_every, or set it lower.",
    ),
    Alert(
        name="LeashOverOptimization",
        expr=f"{_grown('leash_alarms_total', '15m')} > 0",
        lasting="0s",
        severity="critical",
        summary="{{ $labels.signal }} says that the policy has begun to cheat",
        what_to_do="Read the latest samples. If they got worse while the reward rose, go back to an earlier "
        "checkpoint and raise kl_coef, or improve the reward.",
    ),
)
