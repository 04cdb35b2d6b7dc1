"""Work side by side: results in order, or the first error with nothing left running."""

import asyncio

import pytest

from core.tasks import all_of


def test_results_are_in_the_order_of_the_work_and_not_of_its_end() -> None:
    async def late(value: int) -> int:
        await asyncio.sleep(0.01 * (3 - value))
        return value

    assert asyncio.run(all_of(late(value) for value in range(3))) == [0, 1, 2]
    assert asyncio.run(all_of([])) == []


def test_when_one_fails_the_others_have_ended_before_its_error_is_raised() -> None:
    ended: list[str] = []

    async def slow() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(0.01)  # what it takes to let go
            ended.append("slow")

    async def broken() -> None:
        await asyncio.sleep(0)
        raise ValueError("no such table") from KeyError("table")

    async def main() -> None:
        with pytest.raises(ValueError, match="no such table") as raised:
            await all_of([slow(), broken(), slow()])
        assert isinstance(raised.value.__cause__, KeyError)
        assert ended == ["slow", "slow"]
        assert len(asyncio.all_tasks()) == 1

    asyncio.run(main())
