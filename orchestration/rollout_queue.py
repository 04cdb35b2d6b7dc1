"""The one buffer between actors and learner. It bounds both size and staleness."""

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable

from core.errors import WorkerError
from core.messages import RolloutGroup


class RolloutQueue:
    """Starts rollouts, and hands them over in the order in which they were started.

    A ticket stands for one group, from its start until the actors hold the weights trained on it. With
    `(max_lag + 1) * groups_per_step` tickets and strict order, the k-th group cannot start before version
    `k // groups_per_step - max_lag`, and is trained on at version `k // groups_per_step`: never more than
    `max_lag` behind. The price of strict order is that one slow group holds up the ones behind it.
    """

    def __init__(self, *, groups_per_step: int, max_lag: int) -> None:
        self._groups_per_step = groups_per_step
        self._tickets = asyncio.Semaphore((max_lag + 1) * groups_per_step)
        self._running: deque[asyncio.Task[RolloutGroup]] = deque()
        self._started = asyncio.Condition()
        self._num_unfinished = 0
        self._idle_since = time.perf_counter()
        self._idle_s = 0.0

    async def start(self, roll_out: Callable[[], Awaitable[RolloutGroup]]) -> None:
        """Wait for a ticket, then start one group in the background."""
        await self._tickets.acquire()
        async with self._started:
            self._running.append(asyncio.ensure_future(self._run(roll_out)))
            self._started.notify_all()

    async def take_step(self, *, deadline_s: float) -> list[RolloutGroup]:
        """The groups of one optimizer step, in the order of their start. Raises what a rollout raised."""
        try:
            async with asyncio.timeout(deadline_s):
                async with self._started:
                    await self._started.wait_for(lambda: len(self._running) >= self._groups_per_step)
                step = [self._running[index] for index in range(self._groups_per_step)]
                # Shielded, so that those who are late can still be counted when the time is up.
                groups = list(await asyncio.gather(*map(asyncio.shield, step)))
        except TimeoutError:
            finished = sum(task.done() for task in list(self._running)[: self._groups_per_step])
            raise WorkerError(
                f"rollouts: {self._groups_per_step - finished} of {self._groups_per_step} groups of the step did "
                f"not finish within {deadline_s:g} s"
            ) from None
        for _ in step:
            self._running.popleft()
        return groups

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

    async def _run(self, roll_out: Callable[[], Awaitable[RolloutGroup]]) -> RolloutGroup:
        if self._num_unfinished == 0:
            self._idle_s += time.perf_counter() - self._idle_since
        self._num_unfinished += 1
        try:
            return await roll_out()
        finally:
            self._num_unfinished -= 1
            self._idle_since = time.perf_counter()

    async def close(self) -> None:
        """Stop what is running and wait until it has stopped."""
        for task in self._running:
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)
        self._running.clear()
