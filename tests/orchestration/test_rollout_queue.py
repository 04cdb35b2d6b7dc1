"""The queue's promises under delays of which a few are a hundred times longer, on a clock without waiting."""

import asyncio
import random
from collections.abc import Awaitable, Callable

import pytest

from core.errors import WorkerError
from core.messages import RolloutGroup
from orchestration.rollout_queue import RolloutQueue
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


async def drive(
    max_lag: int, *, learn_s: float, seed: int, slow_fraction: float = 0.02
) -> tuple[list[list[str]], list[list[int]], float]:
    """Ids and lags of the groups of each step, and the seconds that it all took."""
    random_delays = random.Random(seed)
    queue = RolloutQueue(groups_per_step=GROUPS_PER_STEP, max_lag=max_lag)
    version = 0

    async def roll_out(number: int, delay_s: float) -> RolloutGroup:
        sampled_by = version
        await asyncio.sleep(delay_s)
        return group_of(number, sampled_by)

    async def produce() -> None:
        number = 0
        while True:
            delay_s = random_delays.uniform(0.5, 1.5)
            if random_delays.random() < slow_fraction:
                delay_s *= 100.0
            await queue.start(lambda number=number, delay_s=delay_s: roll_out(number, delay_s))  # type: ignore[misc]
            number += 1

    producer = asyncio.create_task(produce())
    ids, lags = [], []
    for _ in range(NUM_STEPS):
        groups = await queue.take_step(deadline_s=1e6)
        ids.append([group.group_id for group in groups])
        lags.append([version - group.policy_version for group in groups])
        await asyncio.sleep(learn_s)
        version += 1
        queue.release_step()
        assert queue.num_running <= (max_lag + 1) * GROUPS_PER_STEP
    producer.cancel()
    await queue.close()
    return ids, lags, asyncio.get_running_loop().time()


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("learn_s", [0.1, 1.0, 5.0])
@pytest.mark.parametrize("max_lag", [0, 1, 3])
def test_the_lag_is_bounded_and_the_order_strict(max_lag: int, learn_s: float, seed: int) -> None:
    ids, lags, _ = run_virtually(drive(max_lag, learn_s=learn_s, seed=seed))
    flat = [lag for step in lags for lag in step]
    assert all(0 <= lag <= max_lag for lag in flat)
    assert max(flat) == max_lag  # and it is made use of
    assert [name for step in ids for name in step] == [
        str(number) for number in range(NUM_STEPS * GROUPS_PER_STEP)
    ]


def test_lag_buys_time() -> None:
    """Rollouts of a step and learning take about a second each: one behind the other, or side by side."""
    durations = [run_virtually(drive(max_lag, learn_s=1.0, seed=0, slow_fraction=0))[2] for max_lag in (0, 1)]
    assert durations[1] < 0.8 * durations[0]


async def started(queue: RolloutQueue, *delays_s: float) -> None:
    for number, delay_s in enumerate(delays_s):
        await queue.start(after(delay_s, number))


def test_no_group_starts_without_a_ticket() -> None:
    async def fill() -> None:
        queue = RolloutQueue(groups_per_step=2, max_lag=1)
        await started(queue, 1.0, 1.0, 1.0, 1.0)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(100):
                await queue.start(after(1.0))
        await queue.take_step(deadline_s=10)
        with pytest.raises(TimeoutError):  # taken is not enough: the weights are not with the actors yet
            async with asyncio.timeout(100):
                await queue.start(after(1.0))
        queue.release_step()
        async with asyncio.timeout(1):
            await started(queue, 1.0, 1.0)

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
            await queue.take_step(deadline_s=60.0)
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
        await queue.start(after(500.0))
        await queue.start(fail)
        with pytest.raises(KeyError, match="lost"):
            await queue.take_step(deadline_s=1000.0)
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
        await queue.start(roll_out)
        await queue.start(roll_out)
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
        await queue.take_step(deadline_s=100)
        idle = [queue.take_idle_s()]
        await asyncio.sleep(2.0)  # learning, with every ticket taken
        idle.append(queue.take_idle_s())
        await asyncio.sleep(4.0)
        queue.release_step()
        await started(queue, 10.0)
        await asyncio.sleep(1.0)
        idle += [queue.take_idle_s(), queue.take_idle_s()]
        await queue.close()
        return idle

    assert run_virtually(drive()) == pytest.approx([3.0, 2.0, 4.0, 0.0])
