"""The queue's promises under delays of which a few are a hundred times longer, on a clock without waiting."""

import asyncio
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from statistics import fmean

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.errors import WorkerError
from core.messages import RolloutGroup
from orchestration.loop.rollout_queue import RolloutQueue
from tests.fakes import make_completion, make_group, make_rollout, run_virtually

GROUPS_PER_STEP = 4
NUM_STEPS = 150


def group_of(number: int, version: int = 0) -> RolloutGroup:
    return make_group(str(number), [make_rollout(make_completion(5, versions=[version]))])


def after(delay_s: float, number: int = 0) -> Callable[[], Awaitable[RolloutGroup]]:
    async def roll_out() -> RolloutGroup:
        await asyncio.sleep(delay_s)
        return group_of(number)

    return roll_out


@dataclass
class Driven:
    """What a queue did over `NUM_STEPS` steps."""

    numbers: list[list[int]]
    """Of the groups of each step."""
    lags: list[list[int]]
    duration_s: float


async def drive(
    max_lag: int,
    *,
    learn_s: float = 1.0,
    seed: int = 0,
    slow_fraction: float = 0.02,
    times: float = 100.0,
    max_overtaken: int = 0,
) -> Driven:
    """Rollouts take half a second to one and a half, some of them so many times as long."""
    random_delays = random.Random(seed)
    queue = RolloutQueue(groups_per_step=GROUPS_PER_STEP, max_lag=max_lag, max_overtaken=max_overtaken)
    version = 0

    async def roll_out(number: int, delay_s: float) -> RolloutGroup:
        sampled_by = version
        await asyncio.sleep(delay_s)
        return group_of(number, sampled_by)

    async def produce() -> None:
        for number in range(NUM_STEPS * GROUPS_PER_STEP):
            delay_s = random_delays.uniform(0.5, 1.5)
            if random_delays.random() < slow_fraction:
                delay_s *= times
            await queue.start(number, lambda number=number, delay_s=delay_s: roll_out(number, delay_s))  # type: ignore[misc]

    producer = asyncio.create_task(produce())
    driven = Driven([], [], 0.0)
    for step in range(1, NUM_STEPS + 1):
        groups = await queue.take_step(step, deadline_s=1e6)
        assert [group.group_id for group in groups.values()] == [str(number) for number in groups]
        driven.numbers.append(list(groups))
        driven.lags.append([version - group.policy_version for group in groups.values()])
        await asyncio.sleep(learn_s)
        version += 1
        queue.release_step()
        assert queue.num_running <= (max_lag + 1) * GROUPS_PER_STEP
    await producer
    await queue.close()
    driven.duration_s = asyncio.get_running_loop().time()
    return driven


def most_overtaken(steps: list[list[int]]) -> int:
    """The most groups that a group of a step left behind that were started before it."""
    waiting = set(range(NUM_STEPS * GROUPS_PER_STEP))
    most = 0
    for step in steps:
        waiting -= set(step)
        most = max(most, sum(number < max(step) for number in waiting))
    return most


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("learn_s", [0.1, 1.0, 5.0])
@pytest.mark.parametrize("max_lag", [0, 1, 3])
def test_the_lag_is_bounded_and_the_order_strict(max_lag: int, learn_s: float, seed: int) -> None:
    driven = run_virtually(drive(max_lag, learn_s=learn_s, seed=seed))
    flat = [lag for step in driven.lags for lag in step]
    assert all(0 <= lag <= max_lag for lag in flat)
    assert max(flat) == max_lag  # and it is made use of
    assert [number for step in driven.numbers for number in step] == [*range(NUM_STEPS * GROUPS_PER_STEP)]


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("learn_s", [0.1, 5.0])
@pytest.mark.parametrize("max_overtaken", [1, 3, 1000])
@pytest.mark.parametrize("max_lag", [1, 2, 5])
def test_out_of_order_the_lag_is_bounded_too_and_every_group_is_in_one_step(
    max_lag: int, max_overtaken: int, learn_s: float, seed: int
) -> None:
    driven = run_virtually(drive(max_lag, learn_s=learn_s, seed=seed, max_overtaken=max_overtaken))
    flat = [lag for step in driven.lags for lag in step]
    assert all(0 <= lag <= max_lag for lag in flat)
    assert max(flat) == max_lag
    numbers = [number for step in driven.numbers for number in step]
    assert numbers != sorted(numbers)
    assert sorted(numbers) == [*range(NUM_STEPS * GROUPS_PER_STEP)]
    assert 1 <= most_overtaken(driven.numbers) <= max_overtaken


@settings(max_examples=60, deadline=None)
@given(
    delays_s=st.lists(st.sampled_from([0.0, 1.0, 2.0, 7.0, 50.0]), min_size=1, max_size=60),
    groups_per_step=st.integers(1, 5),
    max_lag=st.integers(0, 5),
    max_overtaken=st.integers(0, 30),
)
def test_whatever_the_delays_no_group_is_lost_late_or_old(
    delays_s: list[float], groups_per_step: int, max_lag: int, max_overtaken: int
) -> None:
    num_steps = len(delays_s) // groups_per_step

    async def scenario() -> None:
        queue = RolloutQueue(groups_per_step=groups_per_step, max_lag=max_lag, max_overtaken=max_overtaken)
        version = 0

        async def roll_out(number: int) -> RolloutGroup:
            sampled_by = version
            await asyncio.sleep(delays_s[number])
            return group_of(number, sampled_by)

        async def produce() -> None:
            for number in range(num_steps * groups_per_step):
                await queue.start(number, lambda number=number: roll_out(number))  # type: ignore[misc]

        producer = asyncio.create_task(produce())
        taken: list[int] = []
        for step in range(1, num_steps + 1):
            groups = await queue.take_step(step, deadline_s=1e6)
            assert all(0 <= version - group.policy_version <= max_lag for group in groups.values())
            taken += groups
            await asyncio.sleep(1.0)
            version += 1
            queue.release_step()
        await producer
        assert sorted(taken) == [*range(num_steps * groups_per_step)]
        if max_lag == 0 or max_overtaken == 0:
            assert taken == sorted(taken)

    run_virtually(scenario())


def test_at_the_same_mean_lag_overtaking_saves_time() -> None:
    """At the same bound it saves none: whoever is slow is waited for in both. But the others are fresher."""
    start_3 = run_virtually(drive(3, times=10.0))
    completion_3, completion_6 = (
        run_virtually(drive(lag, times=10.0, max_overtaken=10**6)) for lag in (3, 6)
    )
    means = [fmean(map(fmean, driven.lags)) for driven in (start_3, completion_3, completion_6)]
    assert means[1] < 0.7 * means[0]
    assert means[2] < 1.1 * means[0]
    assert completion_3.duration_s < 1.05 * start_3.duration_s
    assert completion_6.duration_s < 0.9 * start_3.duration_s


async def taken_at_lag_2(max_overtaken: int, *delays_s: float) -> list[list[int]]:
    """The first two steps of two groups each."""
    queue = RolloutQueue(groups_per_step=2, max_lag=2, max_overtaken=max_overtaken)
    await started(queue, *delays_s)
    taken = []
    for step in (1, 2):
        taken.append(list(await queue.take_step(step, deadline_s=1e6)))
        queue.release_step()
    await queue.close()
    return taken


def test_a_step_takes_the_oldest_that_are_done_and_waits_for_who_has_reached_the_bound() -> None:
    """If one may be overtaken, that is group 1 at first, which may come one place late and so in the second step;
    if two may be, groups 0 and 1."""
    assert run_virtually(taken_at_lag_2(0, 9.0, 1.0, 2.0, 3.0)) == [[0, 1], [2, 3]]
    assert run_virtually(taken_at_lag_2(1, 1.0, 9.0, 2.0, 3.0, 4.0)) == [[0, 2], [1, 3]]
    assert run_virtually(taken_at_lag_2(1, 9.0, 1.0, 2.0, 3.0, 4.0)) == [[0, 1], [2, 3]]
    assert run_virtually(taken_at_lag_2(2, 9.0, 9.0, 2.0, 3.0)) == [[2, 3], [0, 1]]
    assert run_virtually(taken_at_lag_2(2, 1.0, 3.0, 2.0, 1.0)) == [[0, 3], [1, 2]]


def test_a_step_that_is_redone_takes_the_same_groups_in_the_same_order() -> None:
    async def scenario() -> tuple[list[int], list[int]]:
        queue = RolloutQueue(groups_per_step=2, max_lag=1, max_overtaken=1)
        await queue.start(5, after(8.0, 5))
        await queue.start(2, after(0.0, 2))
        await queue.start(3, after(0.0, 3))
        first = list(await queue.take_step(2, deadline_s=10, again=(5, 2)))
        queue.release_step()
        await queue.start(4, after(1.0, 4))
        return first, list(await queue.take_step(3, deadline_s=10))

    assert run_virtually(scenario()) == ([5, 2], [3, 4])


def test_lag_buys_time() -> None:
    """Rollouts of a step and learning take about a second each: one behind the other, or side by side."""
    durations = [run_virtually(drive(max_lag, slow_fraction=0)).duration_s for max_lag in (0, 1)]
    assert durations[1] < 0.8 * durations[0]


async def started(queue: RolloutQueue, *delays_s: float, first: int = 0) -> None:
    for number, delay_s in enumerate(delays_s, start=first):
        await queue.start(number, after(delay_s, number))


def test_no_group_starts_without_a_ticket() -> None:
    async def fill() -> None:
        queue = RolloutQueue(groups_per_step=2, max_lag=1)
        await started(queue, 1.0, 1.0, 1.0, 1.0)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(100):
                await queue.start(4, after(1.0))
        await queue.take_step(1, deadline_s=10)
        with pytest.raises(TimeoutError):  # taken is not enough: the weights are not with the actors yet
            async with asyncio.timeout(100):
                await queue.start(4, after(1.0))
        queue.release_step()
        async with asyncio.timeout(1):
            await started(queue, 1.0, 1.0, first=4)

    run_virtually(fill())


@pytest.mark.parametrize(
    ("delays_s", "missing"),
    [((1.0, 500.0, 500.0, 1.0), 2), ((500.0, 1.0, 1.0, 1.0), 1), ((1.0, 1.0, 1.0), 1), ((), 4)],
)
def test_a_missed_deadline_says_how_many_did_not_finish(delays_s: tuple[float, ...], missing: int) -> None:
    async def miss() -> float:
        queue = RolloutQueue(groups_per_step=4, max_lag=1)
        await started(queue, *delays_s)
        with pytest.raises(WorkerError, match=f"{missing} of 4 groups .* within 60 s"):
            await queue.take_step(1, deadline_s=60.0)
        at_s = asyncio.get_running_loop().time()
        await queue.close()
        return at_s

    assert run_virtually(miss()) == pytest.approx(60.0)


def test_the_error_of_a_rollout_surfaces_at_once() -> None:
    async def fail() -> RolloutGroup:
        await asyncio.sleep(1.0)
        raise KeyError("lost")

    async def take() -> float:
        queue = RolloutQueue(groups_per_step=2, max_lag=0)
        await queue.start(0, after(500.0))
        await queue.start(1, fail)
        with pytest.raises(KeyError, match="lost"):
            await queue.take_step(1, deadline_s=1000.0)
        at_s = asyncio.get_running_loop().time()
        await queue.close()
        return at_s

    assert run_virtually(take()) == pytest.approx(1.0)


def test_close_cancels_what_runs_and_waits_for_its_end() -> None:
    cleaned_up: list[float] = []

    async def roll_out() -> RolloutGroup:
        try:
            await asyncio.sleep(1e6)
        finally:
            await asyncio.sleep(2.0)
            cleaned_up.append(asyncio.get_running_loop().time())
        raise AssertionError("never")

    async def close() -> None:
        queue = RolloutQueue(groups_per_step=2, max_lag=0)
        await queue.start(0, roll_out)
        await queue.start(1, roll_out)
        await asyncio.sleep(1.0)
        assert queue.num_running == 2
        await queue.close()
        assert queue.num_running == 0

    run_virtually(close())
    assert cleaned_up == pytest.approx([3.0, 3.0])


def test_idle_is_the_time_in_which_nothing_is_sampled(monkeypatch: pytest.MonkeyPatch) -> None:
    async def drive() -> list[float]:
        monkeypatch.setattr("time.perf_counter", asyncio.get_running_loop().time)
        queue = RolloutQueue(groups_per_step=2, max_lag=0)
        await asyncio.sleep(3.0)  # before anything has started
        await started(queue, 1.0, 5.0)
        await queue.take_step(1, deadline_s=100)
        idle = [queue.take_idle_s()]
        await asyncio.sleep(2.0)  # learning, with every ticket taken
        idle.append(queue.take_idle_s())
        await asyncio.sleep(4.0)
        queue.release_step()
        await started(queue, 10.0, first=2)
        await asyncio.sleep(1.0)
        idle += [queue.take_idle_s(), queue.take_idle_s()]
        await queue.close()
        return idle

    assert run_virtually(drive()) == pytest.approx([3.0, 2.0, 4.0, 0.0])
