"""The conventions that every declared metric keeps."""

import re

import pytest

from core.metrics import METRICS, PREFIX, Metric

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


def test_histograms_are_durations_since_their_buckets_are(metric: Metric) -> None:
    assert metric.kind != "histogram" or metric.unit == "seconds"


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


def test_every_metric_is_declared_once() -> None:
    from core import metrics  # the declarations themselves, before they become a mapping by name

    assert len(metrics._DECLARED) == len(METRICS)
