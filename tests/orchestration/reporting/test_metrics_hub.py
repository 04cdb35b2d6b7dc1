"""The hub, asked over HTTP as Prometheus would."""

import urllib.request
from collections.abc import Iterator
from urllib.error import URLError
from urllib.parse import urlsplit
from urllib.request import urlopen

import pytest
from prometheus_client.parser import text_string_to_metric_families

from core.errors import UserError
from core.metrics.registry import METRICS
from core.worker_report import WorkerReport
from orchestration.reporting.metrics_hub import MetricsHub


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


def test_without_a_port_nothing_is_served_and_all_else_works() -> None:
    hub = MetricsHub(None)
    hub.add("leash_steps_total")
    assert hub.url is None
    hub.close()


def test_a_record_is_published_under_the_names_and_labels_that_its_keys_stand_for(hub: MetricsHub) -> None:
    hub.publish({"step": 2, "score_mean": 0.5, "clip_fraction_low": 0.25, "learn_s": 3.0, "entropy": None})
    served = scrape(hub)
    assert served["leash_policy_version", ()] == 2
    assert served["leash_score_mean", ()] == 0.5
    assert served["leash_clip_fraction", (("side", "low"),)] == 0.25
    assert not any(name == "leash_entropy" for name, _ in served)


def test_a_figure_that_a_step_does_not_have_is_not_that_of_an_earlier_one(hub: MetricsHub) -> None:
    """Engine and learner, compared in the first step alone, would differ by the same amount for ever."""
    hub.set("leash_worker_memory_bytes", 7.0, worker="rollout-0")
    at_first = {"logprob_gap_mean": 0.2, "signal_length": 24.0, "kv_cache_max_rollout-0_fraction": 0.5}
    hub.publish({"step": 1, "score_mean": 0.5, **at_first})
    before = scrape(hub)
    hub.publish({"step": 2, "score_mean": 0.25})
    now = scrape(hub)
    assert before.keys() - now.keys() == {
        ("leash_logprob_gap_mean", ()),
        ("leash_signal", (("signal", "length"),)),
    }
    assert now["leash_score_mean", ()] == 0.25
    hub.publish({"step": 3, "score_mean": 0.5, **at_first})
    assert scrape(hub).keys() == before.keys()


def worker_report(memory: float, cpu_s: float, engine_series: str = "") -> WorkerReport:
    return WorkerReport(
        gauges={"leash_worker_memory_bytes": memory},
        totals={"leash_worker_cpu_seconds_total": cpu_s},
        engine_series=engine_series,
    )


def test_a_worker_that_is_replaced_takes_its_gauges_along_and_its_counters_go_on(hub: MetricsHub) -> None:
    place = (("worker", "rollout-0"),)
    hub.worker("rollout-0", worker_report(100.0, 7.0))
    hub.worker("rollout-0", worker_report(90.0, 9.0))
    hub.worker("rollout-1", worker_report(50.0, 1.0))
    assert scrape(hub)["leash_worker_memory_bytes", place] == 90
    assert scrape(hub)["leash_worker_cpu_seconds_total", place] == 9
    hub.forget("rollout-0")
    assert ("leash_worker_memory_bytes", place) not in scrape(hub)
    assert scrape(hub)["leash_worker_memory_bytes", (("worker", "rollout-1"),)] == 50
    assert scrape(hub)["leash_worker_cpu_seconds_total", place] == 9
    hub.worker("rollout-0", worker_report(80.0, 8.5))  # another process, which may have counted as far
    assert scrape(hub)["leash_worker_cpu_seconds_total", place] == 17.5


def test_a_total_that_went_back_was_counted_from_zero_again(hub: MetricsHub) -> None:
    for total in (3, 5, 5, 2):
        hub.follow("leash_retries_total", total, kind="rollout")
    assert scrape(hub)["leash_retries_total", (("kind", "rollout"),)] == 7


def test_the_series_of_engines_are_told_apart_by_worker(hub: MetricsHub) -> None:
    text = """# HELP vllm:num_requests_running Number of requests.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0"} %d
# HELP vllm:prompt_tokens_total Prefill tokens.
# TYPE vllm:prompt_tokens_total counter
vllm:prompt_tokens_total{engine="0"} %d
"""
    hub.worker("rollout-0", worker_report(1.0, 1.0, text % (3, 10)))
    hub.worker("rollout-1", worker_report(1.0, 1.0, text % (4, 20)))
    served = scrape(hub)
    places = [(("engine", "0"), ("worker", f"rollout-{index}")) for index in (0, 1)]
    assert [served["vllm:num_requests_running", place] for place in places] == [3, 4]
    assert [served["vllm:prompt_tokens_total", place] for place in places] == [10, 20]
    hub.forget("rollout-1")
    assert ("vllm:num_requests_running", places[1]) not in scrape(hub)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2", "::1"])
def test_the_endpoint_listens_where_it_is_told(host: str) -> None:
    hub = MetricsHub(0, host)
    try:
        assert hub.url is not None
        assert urlsplit(hub.url).hostname == host
        with urllib.request.urlopen(hub.url, timeout=10) as response:
            assert response.status == 200
    finally:
        hub.close()
