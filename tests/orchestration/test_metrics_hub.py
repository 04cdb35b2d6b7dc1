"""The hub, asked over HTTP as Prometheus would, and its file of JSON lines."""

import json
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import pytest
from prometheus_client.parser import text_string_to_metric_families

from core.errors import UserError
from core.metrics.registry import METRICS
from orchestration.metrics_hub import MetricsHub


@pytest.fixture
def hub() -> Iterator[MetricsHub]:
    hub = MetricsHub(0)
    yield hub
    hub.close()


def scrape(hub: MetricsHub) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """Every sample that is served, by name and labels."""
    assert hub.url is not None
    with urlopen(hub.url, timeout=10) as response:
        families = text_string_to_metric_families(response.read().decode())
        samples = [sample for family in families for sample in family.samples]
    return {(sample.name, tuple(sorted(sample.labels.items()))): sample.value for sample in samples}


def test_values_are_served_under_their_names_and_labels(hub: MetricsHub) -> None:
    hub.set("leash_kl_coef", 0.1)
    hub.set("leash_kl_coef", 0.05)
    hub.set("leash_reward", -1.5, source="vader")
    hub.set("leash_reward", 2.5, source="human_ratings")
    hub.add("leash_steps_total")
    hub.add("leash_tokens_total", 100, kind="prompt")
    hub.add("leash_tokens_total", 20, kind="prompt")
    hub.observe("leash_phase_seconds", 2.0, phase="sampling")
    hub.observe("leash_phase_seconds", 5.0, phase="sampling")
    served = scrape(hub)
    assert served["leash_kl_coef", ()] == 0.05
    assert served["leash_reward", (("source", "vader"),)] == -1.5
    assert served["leash_reward", (("source", "human_ratings"),)] == 2.5
    assert served["leash_steps_total", ()] == 1
    assert served["leash_tokens_total", (("kind", "prompt"),)] == 120
    assert served["leash_phase_seconds_sum", (("phase", "sampling"),)] == 7.0
    assert served["leash_phase_seconds_count", (("phase", "sampling"),)] == 2
    assert served["leash_phase_seconds_bucket", (("le", "3.0"), ("phase", "sampling"))] == 1


def test_only_counters_are_there_before_their_first_value(hub: MetricsHub) -> None:
    unlabelled_counters = {name for name, m in METRICS.items() if m.kind == "counter" and not m.labels}
    assert scrape(hub) == {(name, ()): 0.0 for name in unlabelled_counters}


def test_every_declared_metric_can_be_published_and_nothing_else_is(hub: MetricsHub) -> None:
    for metric in METRICS.values():
        publish = {"gauge": hub.set, "counter": hub.add, "histogram": hub.observe}[metric.kind]
        publish(metric.name, 1.0, **dict.fromkeys(metric.labels, "x"))
    served = {name for name, _ in scrape(hub)}
    suffixes = {"gauge": [""], "counter": [""], "histogram": ["_bucket", "_sum", "_count"]}
    assert served == {name + suffix for name, m in METRICS.items() for suffix in suffixes[m.kind]}


def test_two_hubs_share_nothing(hub: MetricsHub) -> None:
    other = MetricsHub(0)
    try:
        other.add("leash_steps_total", 5)
        assert scrape(hub)["leash_steps_total", ()] == 0
    finally:
        other.close()


def test_what_is_not_declared_is_an_error(hub: MetricsHub) -> None:
    with pytest.raises(ValueError, match="leash_kl_coeff: not declared in core/metrics/; leash_kl_coef is"):
        hub.set("leash_kl_coeff", 1.0)
    with pytest.raises(ValueError, match="leash_reward: declared with labels"):
        hub.set("leash_reward", 1.0)
    with pytest.raises(ValueError, match="leash_kl_coef: declared with labels"):
        hub.set("leash_kl_coef", 1.0, source="x")
    with pytest.raises(ValueError, match="leash_kl_coef: declared as a gauge, not as a counter"):
        hub.add("leash_kl_coef", 1.0)
    with pytest.raises(ValueError, match="leash_steps_total: declared as a counter, not as a histogram"):
        hub.observe("leash_steps_total", 1.0)


def test_the_server_listens_on_this_machine_only_and_ends_with_close() -> None:
    hub = MetricsHub(0)
    url = hub.url
    assert url is not None
    assert url.startswith("http://127.0.0.1:")
    hub.close()
    hub.close()
    assert hub.url is None
    with pytest.raises(URLError):
        urlopen(url, timeout=10)


def test_a_port_in_use_is_the_users_to_change(hub: MetricsHub) -> None:
    assert hub.url is not None
    port = int(hub.url.split(":")[2].split("/")[0])
    with pytest.raises(UserError, match=f"metrics.port = {port}: cannot be opened .*; set 0 for a free port"):
        MetricsHub(port)


def test_without_a_port_nothing_is_served_and_all_else_works(tmp_path: Path) -> None:
    hub = MetricsHub(None)
    hub.add("leash_steps_total")
    assert hub.url is None
    hub.close()


def test_steps_are_json_lines_also_after_a_write_that_was_cut_off(hub: MetricsHub, tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    hub.record_step(path, {"step": 1, "reward": float("nan"), "rewards": {"vader": float("inf"), "m": 0.5}})
    with path.open("a") as file:
        file.write('{"step": 2, "rew')
    hub.record_step(path, {"step": 2, "reward": 1.25})
    hub.record_step(path, {"step": 3, "reward": 1.5})
    first, second, third = path.read_text().splitlines()
    assert json.loads(first) == {"step": 1, "reward": None, "rewards": {"vader": None, "m": 0.5}}
    assert json.loads(second) == {"step": 2, "reward": 1.25}
    assert json.loads(third) == {"step": 3, "reward": 1.5}


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2"])
def test_the_endpoint_listens_where_it_is_told(host: str) -> None:
    hub = MetricsHub(0, host)
    try:
        assert hub.url is not None
        assert hub.url.startswith(f"http://{host}:")
        with urllib.request.urlopen(hub.url, timeout=10) as response:
            assert response.status == 200
    finally:
        hub.close()
