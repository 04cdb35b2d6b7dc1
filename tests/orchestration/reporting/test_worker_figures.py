"""What workers say between two steps, as figures of a step."""

from core.worker_report import WorkerReport
from orchestration.reporting.worker_figures import WorkerFigures

RUNNING, CACHE_MAX, CPU = (
    "leash_engine_running",
    "leash_engine_kv_cache_max_fraction",
    "leash_worker_cpu_seconds_total",
)


def said(running: float, cache_max: float, cpu_s: float) -> WorkerReport:
    return WorkerReport(gauges={RUNNING: running, CACHE_MAX: cache_max}, totals={CPU: cpu_s})


def test_gauges_are_means_or_the_largest_and_counters_the_growth() -> None:
    figures = WorkerFigures()
    figures.report("rollout-0", said(4.0, 0.5, 100.0))
    assert figures.take() == {
        "engine_running_rollout-0": 4.0,
        "kv_cache_max_rollout-0_fraction": 0.5,
        "cpu_rollout-0_s": 0.0,  # when the hundred were used is not known
    }
    figures.report("rollout-0", said(2.0, 0.75, 103.0))
    figures.report("rollout-0", said(8.0, 0.25, 104.0))
    assert figures.take() == {
        "engine_running_rollout-0": 5.0,
        "kv_cache_max_rollout-0_fraction": 0.75,
        "cpu_rollout-0_s": 4.0,
    }


def test_who_says_nothing_in_a_step_has_its_last_gauges_and_no_growth() -> None:
    figures = WorkerFigures()
    figures.report("rollout-0", said(2.0, 0.5, 1.0))
    figures.report("rollout-0", said(4.0, 0.25, 2.0))
    figures.take()
    expected = {"engine_running_rollout-0": 4.0, "kv_cache_max_rollout-0_fraction": 0.25}
    assert figures.take() == expected
    assert figures.take() == expected


def test_who_is_gone_is_in_no_figure_and_its_successor_counts_from_zero() -> None:
    figures = WorkerFigures()
    figures.report("rollout-0", said(2.0, 0.5, 50.0))
    figures.report("rollout-1", said(3.0, 0.5, 50.0))
    figures.take()
    figures.forget("rollout-0")
    assert figures.take() == {"engine_running_rollout-1": 3.0, "kv_cache_max_rollout-1_fraction": 0.5}
    figures.report("rollout-0", said(1.0, 0.5, 2.0))
    figures.report("rollout-0", said(1.0, 0.5, 5.0))
    assert figures.take()["cpu_rollout-0_s"] == 3.0


def test_what_is_counted_here_begins_at_zero() -> None:
    figures = WorkerFigures()
    figures.add("leash_worker_restarts_total", "rollout", 0)
    assert figures.take() == {"restarts_rollout": 0.0}
    figures.add("leash_worker_restarts_total", "rollout", 1)
    figures.follow("leash_retries_total", "rollout", 0)
    figures.follow("leash_retries_total", "rollout", 2)
    assert figures.take() == {"restarts_rollout": 1.0, "retries_rollout": 2.0}


def test_the_first_count_counts_of_who_is_known_to_begin_at_zero() -> None:
    figures = WorkerFigures()
    figures.follow("leash_retries_total", "rollout", 3, begins_at=0.0)
    assert figures.take() == {"retries_rollout": 3.0}
    figures.follow("leash_retries_total", "rollout", 4, begins_at=0.0)
    assert figures.take() == {"retries_rollout": 1.0}


def test_a_metric_that_is_in_no_record_is_left_out() -> None:
    figures = WorkerFigures()
    figures.add("leash_groups_discarded_total", "no spread", 1)
    assert figures.take() == {}
