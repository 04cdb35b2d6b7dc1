"""Admissions and pushes keep out of each other's way."""

import asyncio

import pytest

from actors.admission import Admission
from tests.fakes import run_virtually


class Door:
    """Who came through, and when they had finished."""

    def __init__(self) -> None:
        self.admission = Admission()
        self.log: list[tuple[float, str]] = []

    async def admit(self, name: str, *, after_s: float, takes_s: float) -> None:
        await asyncio.sleep(after_s)
        async with self.admission.admitting():
            assert not self.admission.is_pushing
            await asyncio.sleep(takes_s)
        self.log.append((asyncio.get_running_loop().time(), name))

    async def push(self, name: str, *, after_s: float, takes_s: float) -> None:
        await asyncio.sleep(after_s)
        async with self.admission.pushing():
            assert self.admission.is_pushing
            await asyncio.sleep(takes_s)
        self.log.append((asyncio.get_running_loop().time(), name))


def test_many_are_admitted_at_a_time_and_a_push_goes_before_those_who_come_later() -> None:
    door = Door()

    async def scenario() -> None:
        await asyncio.gather(
            door.admit("first", after_s=0, takes_s=10),
            door.admit("second", after_s=1, takes_s=4),
            door.push("push", after_s=2, takes_s=3),
            door.admit("third", after_s=3, takes_s=5),
        )

    run_virtually(scenario())
    assert door.log == [(5.0, "second"), (10.0, "first"), (13.0, "push"), (18.0, "third")]


def test_pushes_follow_each_other() -> None:
    door = Door()

    async def scenario() -> None:
        await asyncio.gather(
            door.push("first", after_s=0, takes_s=3), door.push("second", after_s=1, takes_s=3)
        )

    run_virtually(scenario())
    assert door.log == [(3.0, "first"), (6.0, "second")]


@pytest.mark.parametrize("when_s", [1.0, 12.0])
def test_a_push_that_is_cancelled_holds_nobody_up(when_s: float) -> None:
    """While it waits for its turn, and in it."""
    door = Door()

    async def scenario() -> None:
        admitted = asyncio.create_task(door.admit("first", after_s=0, takes_s=10))
        push = asyncio.create_task(door.push("push", after_s=0.5, takes_s=100))
        await asyncio.sleep(when_s)
        push.cancel()
        await asyncio.gather(admitted, door.admit("second", after_s=0, takes_s=1))

    run_virtually(scenario())
    assert sorted(door.log) == sorted([(10.0, "first"), (when_s + 1, "second")])
