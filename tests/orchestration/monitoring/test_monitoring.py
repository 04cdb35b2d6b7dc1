"""Dashboards, rules and pages that follow from the contract, looked at without Prometheus or Grafana."""

import functools
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from core.metrics.contract import Healthy, Metric
from core.metrics.registry import METRICS, PANELS
from orchestration.monitoring.dashboards import DASHBOARDS, OVERVIEW, dashboards, healthy_text
from orchestration.monitoring.files import DASHBOARD_FOLDER, monitoring_files
from orchestration.monitoring.page import metrics_page
from orchestration.monitoring.queries import DERIVED, queries_of
from orchestration.monitoring.rules import alert_rules, recording_rules
from tests.orchestration.monitoring.prometheus_tools import SERIES, metrics_in, names_in

DEPLOYED = Path(__file__).parents[3] / "deploy" / "monitoring"
ALERTS = [rule for group in alert_rules()["groups"] for rule in group["rules"]]
RECORDED = {rule["record"] for group in recording_rules()["groups"] for rule in group["rules"]}


@pytest.fixture(params=METRICS.values(), ids=lambda metric: metric.name)
def metric(request: pytest.FixtureRequest) -> Metric:
    metric: Metric = request.param
    return metric


@pytest.fixture(params=DASHBOARDS)
def dashboard(request: pytest.FixtureRequest) -> dict[str, Any]:
    return dashboards()[request.param]


@functools.cache
def drawn_by(dashboard: str) -> set[str]:
    """The metrics that a dashboard draws."""
    targets = [target for panel in dashboards()[dashboard]["panels"] for target in panel["targets"]]
    return set().union(*(metrics_in(target["expr"]) for target in targets))


def panel_of(dashboard: str, title: str) -> dict[str, Any]:
    return next(panel for panel in dashboards()[dashboard]["panels"] if panel["title"] == title)


def test_a_metric_is_on_its_dashboard_and_no_other_but_the_overview(metric: Metric) -> None:
    wanted = {metric.panel.dashboard, *([OVERVIEW] if metric.panel.in_overview else [])}
    assert {name for name in DASHBOARDS if metric.name in drawn_by(name)} == wanted


def test_every_chart_of_the_contract_is_a_panel_with_its_help() -> None:
    for panel in PANELS:
        for name in [panel.dashboard, *([OVERVIEW] if panel.in_overview else [])]:
            drawn = panel_of(name, panel.title)
            assert drawn["description"].startswith(panel.help)
            assert len(drawn["targets"]) == len(queries_of(panel)) > 0


def test_a_dashboard_holds_what_grafana_needs(dashboard: dict[str, Any]) -> None:
    assert re.fullmatch(r"leash-[a-z]{1,34}", dashboard["uid"])
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(set(ids)) == len(ids)
    assert [variable["name"] for variable in dashboard["templating"]["list"]] == ["datasource", "run"]
    taken: set[tuple[int, int]] = set()
    for panel in dashboard["panels"]:
        place = panel["gridPos"]
        assert 0 <= place["x"] <= 24 - place["w"]
        cells = {(place["x"] + dx, place["y"] + dy) for dx in range(place["w"]) for dy in range(place["h"])}
        assert not cells & taken
        taken |= cells
        refs = [target["refId"] for target in panel["targets"]]
        assert len(set(refs)) == len(refs)
        assert [override["matcher"]["options"] for override in panel["fieldConfig"]["overrides"]] == refs


def test_uids_and_lines_are_told_apart() -> None:
    assert len({dashboard["uid"] for dashboard in dashboards().values()}) == len(DASHBOARDS)
    for panel in PANELS:
        legends = [query.legend for query in queries_of(panel)]
        assert len(set(legends)) == len(legends)
        assert all(legends)


def test_a_legend_names_labels_that_the_series_have(metric: Metric) -> None:
    for query in queries_of(metric.panel):
        for label in re.findall(r"{{(\w+)}}", query.legend):
            assert all(label in METRICS[name].labels for name in metrics_in(query.expr))


def test_every_expression_of_a_dashboard_is_of_the_chosen_run(dashboard: dict[str, Any]) -> None:
    asked = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    asked += [annotation["target"]["expr"] for annotation in dashboard["annotations"]["list"]]
    for expr in asked:
        assert names_in(expr) <= SERIES.keys() | RECORDED | {"ALERTS"}
        assert expr.count('run="$run"') == len(re.findall(r"\b(?:leash[_:]|ALERTS)[\w:]*", expr))


def test_every_rule_reads_declared_series_only() -> None:
    for derived in DERIVED:
        assert names_in(derived.expr) <= SERIES.keys()
        assert set(derived.drawn_for) <= METRICS.keys()
        assert re.fullmatch(r"leash:[a-z_]+:[a-z0-9]+", derived.name)
    for rule in ALERTS:
        assert names_in(rule["expr"]) <= SERIES.keys() | RECORDED | {"up"}
    assert len(RECORDED) == len(DERIVED)


def test_whatever_is_recorded_is_drawn() -> None:
    drawn = {expr.split("{")[0] for panel in PANELS for expr in (query.expr for query in queries_of(panel))}
    assert drawn >= {derived.name for derived in DERIVED}


def test_every_healthy_range_has_an_alert_that_says_its_red_flag(metric: Metric) -> None:
    flag = metric.healthy.red_flag if metric.healthy else None
    expr = re.compile(rf"{metric.name} unless {metric.name}( >= \S+)?( <= \S+)?")
    alerts = [rule for rule in ALERTS if expr.fullmatch(rule["expr"])]
    assert [rule["annotations"]["description"][1:-1] for rule in alerts] == ([flag[1:]] if flag else [])


def test_alerts_are_told_apart_and_say_what_to_do() -> None:
    assert len({rule["alert"] for rule in ALERTS}) == len(ALERTS)
    for rule in ALERTS:
        assert rule["annotations"]["summary"].startswith("{{ $labels.run }}: ")
        assert rule["annotations"]["description"].endswith(".")
        assert rule["labels"]["severity"] in ("warning", "critical")


def test_an_alert_is_the_range_in_promql() -> None:
    exprs = {rule["alert"]: rule["expr"] for rule in ALERTS}
    name = "leash_kl_nats_per_sequence"
    assert exprs["LeashKlNatsPerSequence"] == f"{name} unless {name} >= -2 <= 30"
    assert exprs["LeashScoreStd"] == "leash_score_std unless leash_score_std >= 1e-06"
    assert exprs["LeashApproxKl"] == "leash_approx_kl unless leash_approx_kl <= 0.1"


def test_a_healthy_range_is_drawn_as_thresholds() -> None:
    overrides = panel_of("learning", "KL from the reference")["fieldConfig"]["overrides"]
    of_sequence, of_token, _ = (
        {p["id"]: p["value"] for p in override["properties"]} for override in overrides
    )
    assert of_sequence["thresholds"]["steps"] == [
        {"value": None, "color": "red"},
        {"value": -2, "color": "transparent"},
        {"value": 30, "color": "red"},
    ]
    assert of_sequence["unit"] == "suffix: nats/sequence"
    assert of_token == {"unit": "suffix: nats/token"}


@pytest.mark.parametrize(
    ("dashboard", "title", "expected"),
    [
        (
            "workers",
            "CPU",
            [("leash:worker_cpu_seconds:rate2m", "worker cpu seconds, rate2m {{worker}}", "short")],
        ),
        ("workers", "Memory", [("leash_worker_memory_bytes", "{{worker}}", "bytes")]),
        ("workers", "Workers", [("leash_workers", "{{kind}} {{state}}", "short")]),
        (
            "throughput",
            "Lag and versions",
            [
                ("leash_lag", "lag", "short"),
                ("leash:rollout_lag:mean15m", "rollout lag, mean15m", "short"),
                ("leash:rollout_lag:max15m", "rollout lag, max15m", "short"),
                ("leash_version_spans", "version spans", "short"),
            ],
        ),
        (
            "reliability",
            "Checkpoints",
            [
                ("leash_checkpoint_seconds", "checkpoint seconds", "s"),
                ("leash_checkpoint_bytes", "checkpoint bytes", "bytes"),
                ("leash_checkpoint_age_seconds", "checkpoint age seconds", "s"),
                ("leash:checkpoint:age", "checkpoint, age", "s"),
            ],
        ),
    ],
)
def test_what_a_panel_draws(dashboard: str, title: str, expected: list[tuple[str, str, str]]) -> None:
    panel = panel_of(dashboard, title)
    units = [override["properties"][0]["value"] for override in panel["fieldConfig"]["overrides"]]
    drawn = [(target["expr"], target["legendFormat"]) for target in panel["targets"]]
    assert [(expr, legend, unit) for (expr, legend), unit in zip(drawn, units, strict=True)] == [
        (f'{series}{{run="$run"}}', legend, unit) for series, legend, unit in expected
    ]


@pytest.mark.parametrize(
    ("low", "high", "text"),
    [(None, 0.5, "at most 0.5"), (1e-6, None, "at least 1e-06"), (-2.0, 30.0, "-2 to 30")],
)
def test_a_range_in_words(low: float | None, high: float | None, text: str) -> None:
    assert healthy_text(Healthy(low, high, "x: y")) == text


def test_the_page_has_a_row_for_every_metric_under_its_chart() -> None:
    sections = dict(re.findall(r"^### (.+?)\n(.+?)(?=^##|\Z)", metrics_page(), re.MULTILINE | re.DOTALL))
    assert sections.keys() == {panel.title for panel in PANELS}
    for metric in METRICS.values():
        rows = [line for line in sections[metric.panel.title].splitlines() if f"| `{metric.name}` |" in line]
        assert len(rows) == 1
        cells = re.split(r"(?<!\\) \| ", rows[0].removeprefix("| ").removesuffix(" |"))
        assert len(cells) == 8
        assert cells[1].replace("\\|", "|") == metric.help
        assert cells[7] == (metric.healthy.red_flag if metric.healthy else "")


def test_the_page_names_every_derived_series_and_every_alert_of_runs() -> None:
    for name in (*RECORDED, *(rule["alert"] for rule in alert_rules()["groups"][0]["rules"])):
        assert f"| `{name}` |" in metrics_page()


def test_grafana_is_told_where_the_dashboards_are() -> None:
    files = monitoring_files()
    compose = yaml.safe_load((DEPLOYED / "compose.yaml").read_text())
    grafana = compose["services"]["grafana"]
    (provider,) = files["grafana/provisioning/dashboards/leash.yml"]["providers"]
    assert provider["options"]["path"] == DASHBOARD_FOLDER
    assert f"./grafana/dashboards:{DASHBOARD_FOLDER}:ro" in grafana["volumes"]
    home = grafana["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert home == f"{DASHBOARD_FOLDER}/overview.json"
    assert json.loads((DEPLOYED / "grafana/dashboards/overview.json").read_text())["uid"] == "leash-overview"


def test_compose_pins_images_mounts_what_exists_and_listens_on_this_machine_only() -> None:
    services = yaml.safe_load((DEPLOYED / "compose.yaml").read_text())["services"]
    for service in services.values():
        assert re.fullmatch(r"[a-z/]+:v?\d+\.\d+\.\d+", service["image"])
        assert "ports" not in service
        for volume in service["volumes"]:
            if volume.startswith("./"):
                assert (DEPLOYED / volume.split(":")[0]).exists()
    assert "--web.listen-address=127.0.0.1:9090" in services["prometheus"]["command"]
    assert services["grafana"]["environment"]["GF_SERVER_HTTP_ADDR"] == "127.0.0.1"
    assert services["grafana"]["environment"]["GF_AUTH_ANONYMOUS_ORG_ROLE"] == "Viewer"
