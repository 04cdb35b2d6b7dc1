"""The conventions that every declared metric keeps."""

import re
from pathlib import Path

import pytest

from core.metrics.contract import PREFIX, Healthy, Metric, metric_of, series_of
from core.metrics.flow import FLOW_METRICS
from core.metrics.optimization import OPTIMIZATION_METRICS
from core.metrics.policy import POLICY_METRICS
from core.metrics.registry import METRICS, PANELS
from core.metrics.workers import WORKER_METRICS

ID_LABELS = {"id", "pid", "run", "request", "prompt", "group", "step", "version", "node", "host", "ip"}
"""Labels with a value for every process, prompt or run would make series without end."""


@pytest.fixture(params=METRICS.values(), ids=lambda metric: metric.name)
def metric(request: pytest.FixtureRequest) -> Metric:
    metric: Metric = request.param
    return metric


def test_names_follow_prometheus_and_carry_the_prefix(metric: Metric) -> None:
    assert re.fullmatch(PREFIX + "[a-z][a-z0-9_]*", metric.name)


def test_only_counters_end_in_total(metric: Metric) -> None:
    assert metric.name.endswith("_total") == (metric.kind == "counter")


def test_names_say_their_unit(metric: Metric) -> None:
    base = metric.name.removesuffix("_total")
    for unit, suffix in (("seconds", "_seconds"), ("bytes", "_bytes"), ("ratio", "_fraction")):
        assert base.endswith(suffix) == (metric.unit == unit) or base == "leash_tokens_per_second"
    for scaled in ("_ms", "milliseconds", "minutes", "_gib", "_mb", "percent"):
        assert scaled not in metric.name


def test_histograms_and_nothing_else_have_buckets(metric: Metric) -> None:
    assert bool(metric.buckets) == (metric.kind == "histogram")
    assert list(metric.buckets) == sorted(set(metric.buckets))


def test_a_key_in_the_record_holds_all_labels_and_is_for_what_has_one_value(metric: Metric) -> None:
    if metric.record is not None:
        assert metric.kind != "histogram"
        assert tuple(re.findall(r"{(\w+)}", metric.record)) == metric.labels
    assert not metric.values or (metric.record is not None and len(metric.labels) == 1)
    for value in metric.values:
        assert value in metric.help


def test_a_red_flag_says_what_to_do(metric: Metric) -> None:
    if metric.healthy is not None:
        assert metric.kind == "gauge"
        assert ":" in metric.healthy.red_flag
        assert (metric.healthy.low, metric.healthy.high) != (None, None)


def test_help_is_a_phrase_that_names_the_label_values_where_they_are_few(metric: Metric) -> None:
    assert metric.help[0].isupper() or metric.help[0].isdigit()
    assert not metric.help.endswith(".")
    for label in metric.labels:
        assert re.search(rf"\bby {label}\b|\bby slot\b", metric.help)


def test_labels_are_no_ids(metric: Metric) -> None:
    for label in metric.labels:
        assert label not in ID_LABELS
        assert not label.endswith("_id")
    assert len(set(metric.labels)) == len(metric.labels)


def test_every_metric_and_every_key_is_declared_once() -> None:
    declared = [*POLICY_METRICS, *OPTIMIZATION_METRICS, *FLOW_METRICS, *WORKER_METRICS]
    assert len(declared) == len(METRICS)
    keys = [metric.record for metric in declared if metric.record]
    assert len(set(keys)) == len(keys)


def test_signals_of_many_units_are_not_drawn_among_their_deviations() -> None:
    """Which have one unit, and stand in the overview."""
    deviations = METRICS["leash_signal_deviation"].panel
    assert deviations.in_overview
    assert METRICS["leash_signal"].panel != deviations


def test_every_chart_has_a_title_of_its_own() -> None:
    assert len({panel.title for panel in PANELS}) == len(PANELS)


@pytest.mark.parametrize(
    ("key", "name", "labels"),
    [
        ("score_mean", "leash_score_mean", {}),
        ("reward_human_ratings", "leash_reward", {"source": "human_ratings"}),
        ("clip_fraction_low", "leash_clip_fraction", {"side": "low"}),
        ("pack_s", "leash_weight_push_seconds", {"part": "pack"}),
        ("step_s", "leash_step_seconds", {}),
        ("memory_rollout-0_bytes", "leash_worker_memory_bytes", {"worker": "rollout-0"}),
    ],
)
def test_a_key_of_a_record_leads_to_its_metric(key: str, name: str, labels: dict[str, str]) -> None:
    assert metric_of(key, METRICS) == (METRICS[name], labels)


@pytest.mark.parametrize(
    "key", ["learn_s", "score", "clip_fraction_middle", "xscore_mean", "score_meanx", "reward_"]
)
def test_a_key_that_no_metric_declares_leads_nowhere(key: str) -> None:
    assert metric_of(key, METRICS) is None


def test_a_record_gives_series_and_what_is_no_number_gives_none() -> None:
    record = {"step": 3, "score_mean": None, "reward_vader": 0.5, "learn_s": 2.0, "note": "x"}
    found = [(metric.name, labels, value) for metric, labels, value in series_of(record, METRICS)]
    assert found == [("leash_policy_version", {}, 3), ("leash_reward", {"source": "vader"}, 0.5)]


@pytest.mark.parametrize(
    ("low", "high", "value", "holds"),
    [
        (0, 1, 0, True),
        (0, 1, 1, True),
        (0, 1, -0.1, False),
        (0, 1, 1.1, False),
        (None, 1, -9, True),
        (0, None, 9, True),
    ],
)
def test_a_healthy_range_includes_its_ends(
    low: float | None, high: float | None, value: float, holds: bool
) -> None:
    assert Healthy(low, high, "x: y").holds(value) == holds
    assert not Healthy(low, high, "x: y").holds(float("nan"))


SOURCES = "\n".join(
    path.read_text(encoding="utf-8")
    for room in ("core", "actors", "learner", "orchestration")
    for path in (Path(__file__).parents[2] / room).rglob("*.py")
    if path.parent.name != "metrics"
)


def test_every_metric_is_measured_somewhere(metric: Metric) -> None:
    """By its name or by its key in the record, of which labels may be filled in."""
    names = [metric.name, metric.record] if metric.record else [metric.name]
    keys = [f'"{name}"' for name in names if "{" not in name]
    keys += [
        metric.record.replace(f"{{{label}}}", value)
        for label in metric.labels
        for value in metric.values
        if metric.record
    ]
    keys += (
        [f"{metric.record.partition('{')[0]}{{"]
        if metric.record and metric.labels and metric.record[0] != "{"
        else []
    )
    assert any(key in SOURCES for key in keys), keys
