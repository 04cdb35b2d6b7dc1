"""The sink under trackers that are slow, fail, hang or do not open: the run never waits, and hears of it once."""

import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from orchestration.trackers.sink import TrackerSink
from orchestration.trackers.tracker import Table, Tracker


class FakeTracker:
    """Remembers what it was given; does `before` each call."""

    def __init__(self, before: Callable[[], None] = lambda: None) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self._before = before

    def step(self, step: int, figures: Mapping[str, float]) -> None:
        self._called("step", step, dict(figures))

    def samples(self, step: int, table: Table) -> None:
        self._called("samples", step, table.columns, table.rows)

    def event(self, step: int, kind: str, text: str) -> None:
        self._called("event", step, kind, text)

    def close(self, summary: Mapping[str, Any] | None) -> None:
        self._called("close", summary)

    def _called(self, *call: Any) -> None:
        self._before()
        self.calls.append(call)


def make_sink(
    notes: list[str], *, queue_size: int = 1000, samples: int = 0, **trackers: Tracker
) -> TrackerSink:
    openers = {name: (lambda tracker=tracker: tracker) for name, tracker in trackers.items()}
    return TrackerSink(openers, note=notes.append, samples_per_step=samples, queue_size=queue_size)


def rows(*scores: float) -> list[dict[str, Any]]:
    return [
        {"prompt": "p", "completion": str(s), "score": s, "rewards": {"a": s}, "kl_nats": 0.0} for s in scores
    ]


def test_every_tracker_gets_everything_in_order() -> None:
    notes: list[str] = []
    one, other = FakeTracker(), FakeTracker()
    sink = make_sink(notes, samples=2, one=one, other=other)
    sink.event("start", "begins")
    sink.step({"step": 7, "lag": 1}, rows(0.0, 1.0, 2.0, 3.0))
    sink.event("set", "kl_coef = 0.1")
    sink.close({"steps": 7})
    assert one.calls == [
        ("event", 0, "start", "begins"),
        ("step", 7, {"throughput/policy_version": 7.0, "throughput/lag": 1.0}),
        (
            "samples",
            7,
            ("prompt", "completion", "score", "reward/a", "kl_nats"),
            (("p", "0.0", 0.0, 0.0, 0.0), ("p", "2.0", 2.0, 2.0, 0.0)),
        ),
        ("event", 7, "set", "kl_coef = 0.1"),
        ("close", {"steps": 7}),
    ]
    assert other.calls == one.calls
    assert notes == []


def test_what_happens_before_a_resumed_run_takes_a_step_is_told_of_the_one_it_goes_on_from() -> None:
    one = FakeTracker()
    sink = make_sink([], one=one)
    sink.resume(40)
    sink.event("worker", "joins")
    sink.step({"step": 41}, [])
    sink.resume(20)
    sink.event("learner", "started anew")
    sink.close(None)
    assert [call[1] for call in one.calls if call[0] == "event"] == [40, 20]


def test_a_slow_tracker_holds_up_neither_the_run_nor_the_others() -> None:
    """It is stuck in its first call until the run is over. Three more wait; seven of eleven are left out."""
    notes: list[str] = []
    entered, released = threading.Event(), threading.Event()

    def wait() -> None:
        entered.set()
        assert released.wait(20)

    slow, fast = FakeTracker(wait), FakeTracker()
    sink = make_sink(notes, queue_size=3, slow=slow)
    other = make_sink(notes, fast=fast)
    for step in range(1, 12):
        sink.step({"step": step, "lag": 0}, [])
        assert entered.wait(20)
        other.step({"step": step, "lag": 0}, [])
    other.close({})
    assert len(fast.calls) == 12
    assert notes == ["slow: too slow, 3 entries wait already; the next ones are left out"]
    released.set()
    sink.close({})
    assert [call[1] for call in slow.calls[:-1]] == [1, 2, 3, 4]
    assert slow.calls[-1] == ("close", {})
    assert sink.lost == {"slow": 7}
    assert notes[1:] == ["slow: 7 entries are missing in it; metrics.jsonl has them all"]


def test_a_tracker_that_raises_is_named_once_and_gets_the_next_entries() -> None:
    notes: list[str] = []
    failing = [True, True, False, True, False]

    def fail() -> None:
        if failing.pop(0):
            raise ConnectionError("no route to host")

    tracker, well = FakeTracker(fail), FakeTracker()
    sink = make_sink(notes, server=tracker, files=well)
    for step in (1, 2, 3, 4):
        sink.step({"step": step, "lag": 0}, [])
    sink.close({})
    assert [call[:2] for call in tracker.calls] == [("step", 3), ("close", {})]
    assert len(well.calls) == 5
    assert sink.lost == {"server": 3, "files": 0}
    assert notes == [
        "server: failed (ConnectionError: no route to host); the run goes on",
        "server: 3 entries are missing in it; metrics.jsonl has them all",
    ]


def test_a_tracker_that_does_not_open_is_said_and_the_run_goes_on() -> None:
    def refuse() -> Tracker:
        raise PermissionError("bad key")

    notes: list[str] = []
    sink = TrackerSink({"server": refuse}, note=notes.append, samples_per_step=0)
    sink.step({"step": 1, "lag": 0}, [])
    sink.close({})
    assert sink.lost == {"server": 2}
    assert notes == [
        "server: not opened, so it gets nothing (PermissionError: bad key)",
        "server: 2 entries are missing in it; metrics.jsonl has them all",
    ]


def test_a_tracker_that_takes_long_to_open_is_named_before_it_has_given_up() -> None:
    """Libraries try a server that does not answer for minutes, in which nobody would know that figures wait."""
    notes: list[str] = []
    said, released = threading.Event(), threading.Event()

    def note(text: str) -> None:
        notes.append(text)
        said.set()

    def ask_the_server() -> Tracker:
        assert released.wait(20)
        return tracker

    tracker = FakeTracker()
    sink = TrackerSink({"server": ask_the_server}, note=note, samples_per_step=0, open_s=0.01)
    sink.step({"step": 1, "lag": 0}, [])
    assert said.wait(20)
    released.set()
    sink.close({})
    assert notes == ["server: not open after 0.01 s; is its server there? What it is to get waits"]
    assert [call[0] for call in tracker.calls] == ["step", "close"]


def test_a_tracker_that_opens_in_time_is_not_named() -> None:
    notes: list[str] = []
    sink = TrackerSink({"files": FakeTracker}, note=notes.append, samples_per_step=0, open_s=0.2)
    sink.close({})
    time.sleep(0.3)
    assert notes == []


def test_a_tracker_that_hangs_does_not_keep_the_run_from_ending() -> None:
    notes: list[str] = []
    released = threading.Event()

    def hang() -> None:
        released.wait(20)

    hanging, well = FakeTracker(hang), FakeTracker()
    sink = make_sink(notes, server=hanging, files=well)
    sink.step({"step": 1, "lag": 0}, [])
    sink.close({}, deadline_s=0.1)
    assert well.calls[-1] == ("close", {})
    assert notes == ["server: had not finished 0.1 s after the run; the rest is lost"]
    sink.close(None)
    assert len(notes) == 1
    released.set()


def test_a_tracker_that_never_opens_does_not_keep_the_run_from_ending_and_is_named_once() -> None:
    notes: list[str] = []
    released = threading.Event()

    def ask_the_server() -> Tracker:
        released.wait(20)
        return FakeTracker()

    sink = TrackerSink({"server": ask_the_server}, note=notes.append, samples_per_step=0, open_s=0.3)
    sink.close({}, deadline_s=0.6)
    assert notes == ["server: had not opened 0.6 s after the run; the rest is lost"]
    released.set()


def test_a_run_without_trackers_costs_nothing() -> None:
    sink = TrackerSink({}, note=lambda text: None, samples_per_step=8)
    sink.step({"step": 1}, [])
    sink.event("a", "b")
    sink.close(None)
    assert sink.lost == {}
