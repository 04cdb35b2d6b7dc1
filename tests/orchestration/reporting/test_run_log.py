"""What becomes of what the loop and the workers report."""

import asyncio
import json
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import pytest

from core.messages import RolloutGroup
from core.worker_report import WorkerReport
from orchestration.alarm.monitor import Alarm, Monitor, Observation
from orchestration.ledger.audit import notes
from orchestration.ledger.ledger import Ledger
from orchestration.recipe.live_settings import EVENT, Change, as_note, journaled
from orchestration.reporting.metrics_hub import MetricsHub
from orchestration.reporting.run_log import RunLog
from orchestration.reporting.terminal import TerminalView
from orchestration.trackers.sink import TrackerSink
from tests.orchestration.loop.test_step_record import GROUPS
from tests.orchestration.reporting.test_metrics_hub import scrape

TIMING = {
    **{"started": 0.0, "rollout_s": 4.0, "wait_batch_s": 3.0, "learn_s": 2.0, "push_s": 1.0},
    **{"sampled_length": 2.5},
}


MEMORY = "leash_worker_memory_bytes"


class FakeView:
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)

    def step(self, record: dict[str, Any]) -> None: ...


class FakeMonitor:
    """Has seen something in the second step."""

    def __init__(self, samples: Path) -> None:
        self._samples = samples
        self.resumed: list[Any] = []
        self._num_steps = 0

    def step(self, groups: Sequence[RolloutGroup]) -> Observation:
        self._num_steps += 1
        assert (self._samples / f"step-{self._num_steps:06d}.jsonl").is_file(), (
            "the baseline is read from there"
        )
        alarm = Alarm(
            signal="length", value=9.0, baseline=3.0, deviation=8.0, sentence="Three times as long."
        )
        return Observation(
            record={"signal_length": 9.0},
            alarms=[alarm] * (self._num_steps == 2),
            is_in_doubt=self._num_steps == 1,
        )

    def resume(self, records: list[dict[str, Any]]) -> None:
        self.resumed = records


@pytest.fixture
def hub() -> Iterator[MetricsHub]:
    hub = MetricsHub(0)
    yield hub
    hub.close()


@pytest.fixture
def view() -> FakeView:
    return FakeView()


@pytest.fixture
def log(tmp_path: Path, hub: MetricsHub, view: FakeView) -> RunLog:
    trackers = TrackerSink({}, note=view.note, samples_per_step=0)
    return RunLog(tmp_path, hub, cast(TerminalView, view), trackers)


def report(memory: float) -> WorkerReport:
    return WorkerReport(gauges={"leash_worker_memory_bytes": memory}, totals={})


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def test_a_step_is_recorded_published_and_kept_with_its_samples(
    log: RunLog, hub: MetricsHub, tmp_path: Path
) -> None:
    log.worker_report("rollout-0", report(100.0))
    asyncio.run(log.step(4, GROUPS, {"kl_coef": 0.1, "logprob_gap_mean": 0.2}, TIMING))
    (record,) = lines(tmp_path / "metrics.jsonl")
    assert (record["step"], record["kl_coef"], record["score_mean"]) == (4, 0.1, 2.0)
    assert record["memory_rollout-0_bytes"] == 100.0
    assert (record["lag"], "logprob_gap_mean" in record) == (1, False), "not under the same weights"
    assert record["trained_length_ratio"] == pytest.approx(1.25 / 2.5)
    assert len(lines(tmp_path / "samples" / "step-000004.jsonl")) == 4
    served = scrape(hub)
    assert served["leash_kl_coef", ()] == 0.1
    assert served["leash_rollouts_total", ()] == 4
    assert served["leash_phase_seconds_sum", (("phase", "rollout"),)] == 3.0, "the wait alone"
    assert served["leash_rollout_lag_sum", ()] == 1  # of version 2 one, of version 3 three


def test_texts_of_a_dataset_have_no_lag(log: RunLog, hub: MetricsHub, tmp_path: Path) -> None:
    log.on_policy = False
    asyncio.run(log.step(4, GROUPS, {}, TIMING))
    assert "lag" not in lines(tmp_path / "metrics.jsonl")[0]
    assert scrape(hub).get(("leash_rollout_lag_count", ()), 0) == 0


def test_a_report_that_another_one_overtook_counts_nothing_twice(log: RunLog, hub: MetricsHub) -> None:
    def counted(cpu_s: float, **identity: Any) -> WorkerReport:
        memory = {"leash_worker_memory_bytes": cpu_s}
        return WorkerReport(gauges=memory, totals={"leash_worker_cpu_seconds_total": cpu_s}, **identity)

    first, older, newer = (counted(cpu_s) for cpu_s in (40.0, 41.0, 42.0))
    for each in (first, newer, older):
        log.worker_report("rollout-0", each)
    series = ("leash_worker_cpu_seconds_total", (("worker", "rollout-0"),))
    assert scrape(hub)[series] == 42.0
    log.worker_report("rollout-0", counted(3.0, process="its successor", number=0))
    assert scrape(hub)[series] == 45.0


def test_a_report_that_arrives_after_its_process_ended_counts_nothing(log: RunLog, hub: MetricsHub) -> None:
    def counted(cpu_s: float, process: str) -> WorkerReport:
        totals = {"leash_worker_cpu_seconds_total": cpu_s}
        return WorkerReport(gauges={"leash_worker_memory_bytes": cpu_s}, totals=totals, process=process)

    place = (("worker", "rollout-0"),)
    log.worker_report("rollout-0", counted(100.0, "first"))
    log.worker_event("rollout-0", "died: of old age")
    log.worker_report("rollout-0", counted(101.0, "first"))
    assert scrape(hub)["leash_worker_cpu_seconds_total", place] == 100.0
    assert ("leash_worker_memory_bytes", place) not in scrape(hub)
    log.worker_report("rollout-0", counted(3.0, "its successor"))
    log.worker_report("rollout-0", counted(102.0, "first"))
    assert scrape(hub)["leash_worker_cpu_seconds_total", place] == 103.0
    assert scrape(hub)["leash_worker_memory_bytes", place] == 3.0


def test_an_alarm_is_counted_told_and_kept_for_who_acts_on_it(
    log: RunLog, hub: MetricsHub, view: FakeView, tmp_path: Path
) -> None:
    log.monitor = cast(Monitor, FakeMonitor(tmp_path / "samples"))

    async def two_steps() -> None:
        await log.step(1, GROUPS, {}, TIMING)
        assert (log.alarms, log.is_in_doubt) == ([], True)
        await log.step(2, GROUPS, {}, TIMING)
        assert not log.is_in_doubt

    asyncio.run(two_steps())
    assert [alarm.signal for alarm in log.alarms] == ["length"]
    assert [record["signal_length"] for record in lines(tmp_path / "metrics.jsonl")] == [9.0, 9.0]
    assert scrape(hub)["leash_alarms_total", (("signal", "length"),)] == 1
    assert view.notes == ["Three times as long."]
    (event,) = lines(tmp_path / "events.jsonl")
    assert (event["kind"], event["step"], event["text"]) == ("alarm", 2, "Three times as long.")


def test_who_is_gone_uses_no_memory_and_its_death_is_told(
    log: RunLog, hub: MetricsHub, view: FakeView, tmp_path: Path
) -> None:
    log.all_reported({"rollout-0": report(100.0), "driver": report(50.0)})
    log.worker_event("rollout-0", "died: of old age")
    asyncio.run(log.step(1, GROUPS, {}, TIMING))
    (record,) = lines(tmp_path / "metrics.jsonl")
    assert "memory_rollout-0_bytes" not in record
    assert record["memory_driver_bytes"] == 50.0
    assert log.peak_memory == {"rollout-0": 100, "driver": 50, "total": 150}
    assert scrape(hub)["leash_worker_restarts_total", (("kind", "rollout"),)] == 1
    assert view.notes == ["rollout-0 died: of old age"]


def test_the_ranks_of_a_learner_that_died_are_gone_with_it(
    log: RunLog, hub: MetricsHub, tmp_path: Path
) -> None:
    names = ("learner-0", "learner-1", "rollout-1", "rollout-10")
    log.all_reported({name: WorkerReport(gauges={MEMORY: 100.0}, totals={}, process=name) for name in names})
    log.worker_event("learner", "died: rank 1 did not answer")
    log.worker_event("rollout-1", "died: of old age")
    late = WorkerReport(gauges={MEMORY: 100.0}, totals={}, process="learner-0")
    log.worker_report("learner-0", late)
    asyncio.run(log.step(1, GROUPS, {}, TIMING))
    (record,) = lines(tmp_path / "metrics.jsonl")
    assert [key for key in record if key.startswith("memory_")] == ["memory_rollout-10_bytes"]
    served = scrape(hub)
    assert [labels for name, labels in served if name == MEMORY] == [(("worker", "rollout-10"),)]
    assert served["leash_worker_restarts_total", (("kind", "learner"),)] == 1


def test_restarts_retries_and_the_checkpoint_are_in_the_record(
    log: RunLog, hub: MetricsHub, tmp_path: Path
) -> None:
    checkpoint = tmp_path / "step-3"
    checkpoint.mkdir()
    (checkpoint / "model").write_bytes(bytes(70))
    os.utime(checkpoint, (time.time() - 100, time.time() - 100))
    log.checkpoint(checkpoint)
    log._started_s -= 1000
    log.worker_event("rollout-0", "died: of old age")
    log.retries("rollout", 2)
    asyncio.run(log.step(1, GROUPS, {}, TIMING))
    (record,) = lines(tmp_path / "metrics.jsonl")
    assert (record["restarts_rollout"], record["retries_rollout"], record["checkpoint_bytes"]) == (1, 2, 70)
    assert 100 <= record["checkpoint_age_s"] < 160
    served = scrape(hub)
    assert served["leash_worker_restarts_total", (("kind", "rollout"),)] == 1, "not counted twice"
    assert served["leash_checkpoint_age_seconds", ()] == record["checkpoint_age_s"]


def test_the_checkpoint_that_a_run_was_resumed_from_counts_from_then_on(log: RunLog, tmp_path: Path) -> None:
    checkpoint = tmp_path / "step-3"
    checkpoint.mkdir()
    os.utime(checkpoint, (time.time() - 2 * 86400, time.time() - 2 * 86400))
    log.checkpoint(checkpoint)
    asyncio.run(log.step(4, GROUPS, {}, TIMING))
    assert 0 <= lines(tmp_path / "metrics.jsonl")[0]["checkpoint_age_s"] < 60


def test_what_is_quiet_is_for_the_record_alone(log: RunLog, view: FakeView, tmp_path: Path) -> None:
    log.event("checkpoint", "step 3 is committed", quiet=True)
    assert view.notes == []
    assert [event["text"] for event in lines(tmp_path / "events.jsonl")] == ["step 3 is committed"]
    assert list(log.events) == []


def test_a_resumed_run_goes_on_from_its_records(log: RunLog, tmp_path: Path) -> None:
    monitor = FakeMonitor(tmp_path / "samples")
    log.monitor = cast(Monitor, monitor)
    records = [{"step": 1, "seconds_since_start": 500.0}]
    log.resume(records)
    assert log.records == monitor.resumed == records


def test_the_clock_of_a_resumed_run_goes_on(log: RunLog) -> None:
    log.resume([{"step": 1, "seconds_since_start": 500.0}])
    asyncio.run(log.step(2, GROUPS, {}, TIMING))
    assert 500 < log.records[-1]["seconds_since_start"] < 560
    log.resume(log.records[:1])  # in the same process, as after the death of a learner: that time has passed
    asyncio.run(log.step(2, GROUPS, {}, TIMING))
    assert 500 < log.records[-1]["seconds_since_start"] < 560


def test_an_order_is_there_for_who_takes_over_although_the_driver_was_killed(
    log: RunLog, tmp_path: Path
) -> None:
    def opened() -> Ledger:
        return Ledger.open(tmp_path, committed_step=0, groups_per_step=4, journals_groups=True)

    change = Change(key="kl.kl_coef", value="0.05", from_step=3, by="ada")
    log.ledger = opened()
    log.order(EVENT, str(change), as_note(change))
    assert journaled(opened().notes(EVENT)) == [change]  # the first was not closed
    assert journaled(notes(tmp_path, EVENT)) == [change]
    assert lines(tmp_path / "events.jsonl")[0]["text"] == "kl.kl_coef = 0.05 from step 3 on, by ada"
