"""Where the time of a run goes, on a clock that the test turns."""

import pytest

from orchestration.loop.phase_clock import PhaseClock


class FakeTime:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def time() -> FakeTime:
    return FakeTime()


def spend(clock: PhaseClock, time: FakeTime, *spans: tuple[str, float]) -> None:
    for phase, seconds in spans:
        clock.turn_to(phase)
        time.now_s += seconds


def test_phases_share_the_time_of_the_steps(time: FakeTime) -> None:
    clock = PhaseClock(time)
    spend(clock, time, ("sampling", 2.0), ("learning", 5.0), ("sampling", 1.0))
    clock.end_step()
    assert clock.shares() == {"learning": 5 / 8, "sampling": 3 / 8}
    spend(clock, time, ("sampling", 8.0))
    clock.end_step()
    assert list(clock.shares().items()) == [("sampling", 11 / 16), ("learning", 5 / 16)]
    assert clock.shares(1) == {"sampling": 1.0}
    assert clock.elapsed_s == 16.0


def test_starting_up_is_not_part_of_the_first_step(time: FakeTime) -> None:
    clock = PhaseClock(time)
    spend(clock, time, ("starting workers", 60.0), ("sampling", 3.0), ("learning", 1.0))
    clock.end_step(4.0)
    assert clock.shares() == {"sampling": 0.75, "learning": 0.25}
    assert clock.pace_s == 4.0


def test_the_pace_is_the_median_of_the_last_ten_steps(time: FakeTime) -> None:
    clock = PhaseClock(time)
    assert clock.pace_s is None
    for seconds in [1000.0, *[2.0] * 5, *[4.0] * 6]:
        spend(clock, time, ("sampling", seconds))
        clock.end_step()
    assert clock.pace_s == 4.0


def test_a_phase_goes_on_through_the_end_of_a_step(time: FakeTime) -> None:
    clock = PhaseClock(time)
    spend(clock, time, ("sampling", 2.0))
    clock.end_step()
    time.now_s += 3.0
    assert (clock.phase, clock.phase_s) == ("sampling", 3.0)
    clock.end_step()
    assert clock.shares(1) == {"sampling": 1.0}


def test_a_step_in_no_time_has_no_shares(time: FakeTime) -> None:
    clock = PhaseClock(time)
    clock.end_step()
    assert clock.shares() == {}
