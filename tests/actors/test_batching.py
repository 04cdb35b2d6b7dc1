"""The dynamic batcher over a function that the test holds up and lets go."""

import asyncio
import threading
from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.batching import DynamicBatcher

PATIENCE_S = 20.0


class HeldFunction:
    """Doubles its items. The first call waits until it is let go."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.started = threading.Event()
        self.let_go = threading.Event()

    def __call__(self, items: Sequence[int]) -> list[int]:
        self.batches.append(list(items))
        self.started.set()
        assert self.let_go.wait(PATIENCE_S)
        if any(item < 0 for item in items):
            raise RuntimeError(f"cannot double {min(items)}")
        return [2 * item for item in items]


async def submit_behind_first(
    batcher: DynamicBatcher[int, int], function: HeldFunction, items: Sequence[int]
) -> list[int | BaseException]:
    """Results of 1, which starts at once, and of the items that gather while it runs."""
    first = asyncio.create_task(batcher.submit(1))
    assert await asyncio.to_thread(function.started.wait, PATIENCE_S)  # nobody else needs to come
    others = [asyncio.create_task(batcher.submit(item)) for item in items]
    await asyncio.sleep(0)
    function.let_go.set()
    async with asyncio.timeout(PATIENCE_S):
        return list(await asyncio.gather(first, *others, return_exceptions=True))


def test_an_idle_function_starts_at_once_and_the_rest_gathers_meanwhile() -> None:
    function = HeldFunction()
    batcher = DynamicBatcher(function, cost=lambda item: 1, budget=100)
    assert asyncio.run(submit_behind_first(batcher, function, [5, 3, 4])) == [2, 10, 6, 8]
    assert function.batches == [[1], [5, 3, 4]]


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 12), max_size=12), st.integers(1, 20))
def test_batches_are_full_within_the_budget_and_in_order(costs: list[int], budget: int) -> None:
    function = HeldFunction()
    batcher = DynamicBatcher(function, cost=lambda item: item, budget=budget)
    results = asyncio.run(submit_behind_first(batcher, function, costs))
    assert results == [2] + [2 * cost for cost in costs]
    later = function.batches[1:]
    assert [item for batch in later for item in batch] == costs
    for batch in later:
        assert len(batch) == 1 or sum(batch) <= budget
    for batch, following in pairwise(later):
        assert sum(batch) + following[0] > budget


def test_an_exception_reaches_the_callers_of_its_batch_and_nobody_else() -> None:
    function = HeldFunction()
    batcher = DynamicBatcher(function, cost=lambda item: 1, budget=2)
    results = asyncio.run(submit_behind_first(batcher, function, [5, -7, 3, 4]))
    assert function.batches == [[1], [5, -7], [3, 4]]
    assert [str(result) for result in results] == ["2", *["cannot double -7"] * 2, "6", "8"]


def test_an_idle_batcher_works_again_after_an_exception() -> None:
    function = HeldFunction()
    function.let_go.set()

    async def one_after_the_other() -> list[int]:
        batcher = DynamicBatcher(function, cost=lambda item: 1, budget=2)
        with pytest.raises(RuntimeError, match="cannot double -1"):
            await batcher.submit(-1)
        return [await batcher.submit(2), await batcher.submit(3)]

    assert asyncio.run(one_after_the_other()) == [4, 6]


@pytest.mark.parametrize("results", [[], [1], [1, 2, 3]], ids=["none", "too few", "too many"])
def test_a_wrong_number_of_results_is_an_error_and_no_endless_wait(results: list[int]) -> None:
    def wrong(items: Sequence[int]) -> list[int]:
        return results if 1 in items else [10 * item for item in items]

    async def submit_all() -> list[int | BaseException]:
        batcher = DynamicBatcher(wrong, cost=lambda item: 1, budget=2)
        calls = [asyncio.create_task(batcher.submit(item)) for item in (1, 2, 3)]
        async with asyncio.timeout(5):
            return list(await asyncio.gather(*calls, return_exceptions=True))

    first, second, third = asyncio.run(submit_all())
    assert str(first) == str(second) == f"{len(results)} results for 2 items"
    assert third == 30


def test_a_caller_who_left_does_not_disturb_the_others() -> None:
    function = HeldFunction()

    async def leave_early() -> list[int | BaseException]:
        batcher = DynamicBatcher(function, cost=lambda item: 1, budget=10)
        calls = [asyncio.create_task(batcher.submit(item)) for item in (1, 2, 3)]
        assert await asyncio.to_thread(function.started.wait, PATIENCE_S)
        calls[1].cancel()
        await asyncio.sleep(0)
        function.let_go.set()
        async with asyncio.timeout(PATIENCE_S):
            return list(await asyncio.gather(*calls, return_exceptions=True))

    first, left, last = asyncio.run(leave_early())
    assert (first, last) == (2, 6)
    assert isinstance(left, asyncio.CancelledError)


def test_what_nobody_waits_for_any_more_is_not_computed() -> None:
    function = HeldFunction()

    async def leave_early() -> None:
        batcher = DynamicBatcher(function, cost=lambda item: 1, budget=1)
        calls = [asyncio.create_task(batcher.submit(item)) for item in (1, 2, 3)]
        assert await asyncio.to_thread(function.started.wait, PATIENCE_S)
        calls[1].cancel()
        await asyncio.sleep(0)
        function.let_go.set()
        async with asyncio.timeout(PATIENCE_S):
            await asyncio.gather(*calls, return_exceptions=True)

    asyncio.run(leave_early())
    assert function.batches == [[1], [3]]
