"""The one buffer between actors and learner. It bounds both size and staleness, in every order."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING

from core.errors import WorkerError

if TYPE_CHECKING:  # a plan only asks how much is in flight, and NumPy would double its time
    from core.messages import RolloutGroup


class RolloutQueue:
    """Starts rollouts, and hands each over in one step: the oldest that are done, so that few wait for a slow one.

    A step passes over at most `max_overtaken` groups that are not done: 0 is strict start order. The k-th group is
    handed over for version `(k + reserve) // groups_per_step` at the latest, however slow it is: the step waits for
    it. A ticket stands for one group, from its start until the actors hold the weights trained on it. With
    `(max_lag + 1) * groups_per_step - reserve` tickets the k-th group cannot start before version
    `(k + reserve) // groups_per_step - max_lag`: never more than `max_lag` behind, and nothing is thrown away.
    The reserve is as many places as groups may come late by; they are taken from what is started ahead.
    """

    def __init__(self, *, groups_per_step: int, max_lag: int, max_overtaken: int = 0) -> None:
        self._groups_per_step = groups_per_step
        self._max_overtaken = max_overtaken
        self._reserve = reserve_of(groups_per_step, max_lag, max_overtaken)
        self._tickets = asyncio.Semaphore((max_lag + 1) * groups_per_step - self._reserve)
        self._running: dict[int, asyncio.Task[RolloutGroup]] = {}
        """By number."""
        self._changed = asyncio.Event()
        """A group was started, or is done."""
        self._num_unfinished = 0
        self._idle_since = time.perf_counter()
        self._idle_s = 0.0
        self.num_overtaken = 0
        """Groups that the last step passed over."""

    async def start(self, number: int, roll_out: Callable[[], "Awaitable[RolloutGroup]"]) -> None:
        """Wait for a ticket, then start the group with this number in the background. Numbers grow, but for the
        groups of steps that are taken `again`, which come first."""
        await self._tickets.acquire()
        task = asyncio.ensure_future(self._run(roll_out))
        self._running[number] = task
        task.add_done_callback(lambda task: self._changed.set())
        self._changed.set()

    async def take_step(
        self, step: int, *, deadline_s: float, again: Sequence[int] = ()
    ) -> "dict[int, RolloutGroup]":
        """The groups of this optimizer step (the first is 1) by number, in the order of their numbers; or those
        that it was begun with once before. Raises what any rollout raised."""
        try:
            async with asyncio.timeout(deadline_s):
                while not (chosen := self._choose(step, again)):
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            wanted = list(again) or sorted(self._running)[: self._groups_per_step]
            finished = sum(self._is_done(number) for number in wanted)
            raise WorkerError(
                f"rollouts: {self._groups_per_step - finished} of {self._groups_per_step} groups of the step did "
                f"not finish within {deadline_s:g} s"
            ) from None
        self.num_overtaken = sum(number < max(chosen) for number in self._running.keys() - set(chosen))
        return {number: self._running.pop(number).result() for number in chosen}

    def release_step(self) -> None:
        """Call once the actors hold the weights trained on the last `take_step`."""
        for _ in range(self._groups_per_step):
            self._tickets.release()

    @property
    def num_running(self) -> int:
        """Groups started and not yet taken."""
        return len(self._running)

    def take_idle_s(self) -> float:
        """Seconds since the last call in which nothing was being sampled: every ticket waited for new weights."""
        if self._num_unfinished == 0:
            self._idle_s += time.perf_counter() - self._idle_since
            self._idle_since = time.perf_counter()
        idle_s, self._idle_s = self._idle_s, 0.0
        return idle_s

    async def close(self) -> None:
        """Stop what is running and wait until it has stopped."""
        for task in self._running.values():
            task.cancel()
        await asyncio.gather(*self._running.values(), return_exceptions=True)
        self._running.clear()

    def _choose(self, step: int, again: Sequence[int]) -> list[int]:
        """The numbers of the step's groups, all done; none if it has to wait."""
        for task in self._running.values():
            if task.done():
                task.result()  # raises what it raised
        if again:
            return list(again) if all(map(self._is_done, again)) else []
        due = step * self._groups_per_step - self._reserve
        chosen: list[int] = []
        num_overtaken = 0
        for number in sorted(self._running):
            if self._is_done(number):
                chosen.append(number)
            elif number < due or num_overtaken == self._max_overtaken:
                return []
            else:
                num_overtaken += 1
            if len(chosen) == self._groups_per_step:
                return chosen
        return []

    def _is_done(self, number: int) -> bool:
        return number in self._running and self._running[number].done()

    async def _run(self, roll_out: Callable[[], "Awaitable[RolloutGroup]"]) -> "RolloutGroup":
        if self._num_unfinished == 0:
            self._idle_s += time.perf_counter() - self._idle_since
        self._num_unfinished += 1
        try:
            return await roll_out()
        finally:
            self._num_unfinished -= 1
            self._idle_since = time.perf_counter()


def reserve_of(groups_per_step: int, max_lag: int, max_overtaken: int) -> int:
    """Places that a group may come late by. At most half of what `max_lag` allows: the other half are the groups
    started ahead, without which there is nobody to overtake a slow one."""
    return min(max_overtaken, max_lag * groups_per_step // 2)
