"""The generated rules, the exposition and the dashboards' expressions, before the real promtool and Prometheus."""

from collections.abc import Iterator
from pathlib import Path
from urllib.request import urlopen

import pytest
import yaml

from core.metrics.contract import Metric
from core.metrics.registry import METRICS
from orchestration.monitoring.discovery import announced
from orchestration.reporting.metrics_hub import MetricsHub
from tests.orchestration.monitoring.prometheus_tools import (
    eventually,
    expressions_without_series,
    following,
    metrics_in,
    promtool,
    query,
)

DEPLOYED = Path(__file__).parents[3] / "deploy" / "monitoring"
RULES = [str(DEPLOYED / "rules" / f"{name}.yml") for name in ("recording", "alerts")]
GUARDED = [metric for metric in METRICS.values() if metric.healthy is not None]


@pytest.fixture
def hub() -> Iterator[MetricsHub]:
    hub = MetricsHub(0)
    yield hub
    hub.close()


def publish_everything(hub: MetricsHub) -> None:
    """One value of every metric, for one value of each label."""
    for metric in METRICS.values():
        labels = {label: f"some-{label}" for label in metric.labels}
        {"gauge": hub.set, "counter": hub.add, "histogram": hub.observe}[metric.kind](
            metric.name, 0.5, **labels
        )


def test_promtool_finds_no_fault_with_configuration_and_rules() -> None:
    assert "SUCCESS: 2 rule files found" in promtool("check", "config", str(DEPLOYED / "prometheus.yml"))
    assert promtool("check", "rules", *RULES).count("SUCCESS") == 2


def test_alerts_of_whole_runs_fire_when_they_should() -> None:
    promtool("test", "rules", str(Path(__file__).with_name("alert_rules_test.yml")))


@pytest.mark.parametrize("metric", GUARDED, ids=lambda metric: metric.name)
def test_leaving_a_healthy_range_alerts_after_five_minutes(metric: Metric, tmp_path: Path) -> None:
    """Of runs at both ends of the range, beyond them, beyond and back within five minutes, and with NaN."""
    assert metric.healthy is not None
    low, high = metric.healthy.low, metric.healthy.high
    end = low if high is None else high
    beyond = {} if low is None else {"below": low - 0.001}
    beyond |= {} if high is None else {"above": high + 0.001}
    values = {name: f"{value}x10" for name, value in beyond.items()} | {"nan": " ".join(["NaN"] * 11)}
    values |= {f"at-{value}": f"{value}x10" for value in (low, high) if value is not None}
    values["back"] = f"{next(iter(beyond.values()))}x4 {end}x5"
    test = {
        "interval": "1m",
        "input_series": [
            {"series": f'{metric.name}{{run="{run}"}}', "values": text} for run, text in values.items()
        ],
        "promql_expr_test": [
            {
                "expr": 'count by (run) (ALERTS{alertstate="firing"})',
                "eval_time": eval_time,
                "exp_samples": [{"labels": f'{{run="{run}"}}', "value": 1} for run in firing],
            }
            for eval_time, firing in (("4m", []), ("5m", [*beyond, "nan"]))
        ],
    }
    file = tmp_path / "test.yml"
    file.write_text(yaml.safe_dump({"rule_files": RULES, "evaluation_interval": "1m", "tests": [test]}))
    promtool("test", "rules", str(file))


def test_promtool_finds_no_fault_with_what_is_served(hub: MetricsHub) -> None:
    publish_everything(hub)
    assert hub.url is not None
    with urlopen(hub.url, timeout=10) as response:
        exposition = response.read().decode()
    assert exposition.count("# TYPE ") == len(METRICS)
    assert promtool("check", "metrics", stdin=exposition) == ""


def test_prometheus_finds_a_run_draws_all_of_it_and_lets_it_go(hub: MetricsHub, tmp_path: Path) -> None:
    with following(tmp_path) as url:
        assert expressions_without_series(url, "a") != []
        with announced(tmp_path / "discovery", url=hub.url, run=tmp_path / "a", recipe="movie-reviews"):

            def all_is_drawn() -> bool:
                publish_everything(hub)
                return expressions_without_series(url, "a") == []

            eventually(all_is_drawn)
            assert expressions_without_series(url, "a") == []
            (up,) = query(url, "up")
            assert (up["metric"]["run"], up["metric"]["recipe"], up["value"][1]) == (
                "a",
                "movie-reviews",
                "1",
            )
        assert eventually(lambda: query(url, "up") == [])


def test_what_an_expression_needs_is_told_through_derived_series() -> None:
    ratio = 'leash:engine_prefix_hits:ratio2m{run="$run"}'
    assert metrics_in(ratio) == {"leash_engine_prefix_hits_total", "leash_engine_prefix_queries_total"}
    assert metrics_in("leash:rollout_lag:max15m + leash_lag") == {"leash_rollout_lag", "leash_lag"}
    with pytest.raises(KeyError):
        metrics_in("leash_undeclared")
