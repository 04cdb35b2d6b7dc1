"""Workers of one kind that join, leave and die while the run goes on (their states: `actors/slot.py`).

Knows no Ray: it is given handles, which are Ray workers in production and plain objects in tests.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any, Generic, TypeVar

from actors.admission import Admission
from actors.config import FaultsConfig
from actors.signs_of_life import prompt_reports, while_alive
from actors.slot import UP, H, Slot, WorkerState
from core.errors import NoWorkerLeft, RetriesExhausted, UserError, WorkerError, WorkerLost
from core.worker_report import WorkerReport

T = TypeVar("T")

MAX_PAUSE_S = 30.0
"""Before a worker that failed several times in a row is started again."""


class Fleet(Generic[H]):
    """The workers of one kind.

    fleet = Fleet("reference", launch, faults=faults, start_s=300)
    await fleet.start(2)
    score = await fleet.call(lambda worker: worker.score(completion))   # on another worker if that one dies
    fleet.scale(3)
    """

    def __init__(
        self,
        kind: str,
        launch: Callable[[str], H],
        *,
        faults: FaultsConfig,
        start_s: float,
        on_event: Callable[[str, str], None] = lambda worker, event: None,
        on_report: Callable[[str, WorkerReport], None] = lambda worker, report: None,
    ) -> None:
        """`launch` begins a process under a name. `on_event` hears who comes, serves, dies and leaves, and
        `on_report` what each says with its signs of life."""
        self.kind = kind
        self.admit: Callable[[H], Awaitable[bool]] = _at_once
        """Makes a worker that is up fit to serve; False if that cannot be done yet."""
        self.admission = Admission()
        """Of workers; who changes what they are admitted with pushes."""
        self._launch = launch
        self.faults = faults
        self._start_s = start_s
        self._on_event = on_event
        self._on_report = on_report
        self.num_retries = 0
        """Times that work was given to another worker because one was lost on it."""
        self._slots: dict[str, Slot[H]] = {}
        self._supervisors: set[asyncio.Task[None]] = set()
        self._changed = asyncio.Event()
        self._broken: Exception | None = None

    async def start(self, size: int) -> None:
        """The first workers, up. Raises what the first to fail raised; who fails later is replaced."""
        slots = [self._add() for _ in range(size)]
        await asyncio.gather(*(slot.handle.ready(self._start_s) for slot in slots))
        for slot in slots:
            slot.enter(WorkerState.STALE)
            self._supervise(slot)

    def scale(self, size: int) -> None:
        """More workers or fewer: they join once they are admitted, and leave once they have finished."""
        staying = [slot for slot in self.slots if slot.leave_by is None]
        for _ in range(size - len(staying)):
            slot = self._add()
            slot.is_awaited = True
            self._on_event(slot.name, "joins")
            self._supervise(slot)
        for slot in staying[size:]:
            slot.leave_by = asyncio.get_running_loop().time() + self.faults.drain_s
            self._on_event(slot.name, "leaves")
            if slot.state is WorkerState.DEAD:
                self._on_event(slot.name, "left")
                self._tell()  # its supervisor, which would start it again
            elif slot.load:
                slot.enter(WorkerState.DRAINING)
            else:
                self._lose(slot, "left")

    @property
    def size(self) -> int:
        """Workers that are to be there, whatever their state."""
        return sum(slot.leave_by is None for slot in self.slots)

    @property
    def slots(self) -> list[Slot[H]]:
        return list(self._slots.values())

    @asynccontextmanager
    async def use(self, load: int = 1) -> AsyncIterator[H]:
        """The serving worker with the least to do, once there is one; it has `load` requests more meanwhile.

        A `WorkerLost` raised inside ends the worker, and it is replaced. Raises `NoWorkerLeft` if none serves.
        """
        slot = await self._least_busy()
        handle = slot.handle
        slot.load += load
        try:
            yield handle
        except WorkerLost as error:
            if slot.handle is handle:  # not its successor, which is innocent
                self._lose(slot, str(error))
            raise
        finally:
            if slot.handle is handle:
                slot.load -= load
                if slot.state is WorkerState.DRAINING and slot.load == 0:
                    self._lose(slot, "left")

    async def call(self, function: Callable[[H], Awaitable[T]]) -> T:
        """The function's result on some worker; on another if that one dies. Raises `RetriesExhausted`."""
        for _ in range(self.faults.max_retries + 1):
            try:
                async with self.use() as handle:
                    return await function(handle)
            except WorkerLost as error:
                lost = error
                self.num_retries += 1
        raise RetriesExhausted(f"{self.faults.max_retries + 1} workers were lost on it; the last: {lost}")

    async def refit(self, function: Callable[[H], Awaitable[T]]) -> list[T]:
        """The function's results on all that are up, who serve from then on; who fails is replaced.

        Call while `admission` is pushing. Raises what a living worker raised if nobody succeeded.
        """
        for slot in self.slots:
            slot.missed_refit |= slot.state is WorkerState.SUSPECT
        asked = [(slot, slot.handle) for slot in self.slots if slot.state in UP]
        results = await asyncio.gather(
            *(while_alive(handle, function(handle), self.faults) for _, handle in asked),
            return_exceptions=True,
        )
        done: list[T] = []
        refused: list[WorkerError] = []
        for (slot, handle), result in zip(asked, results, strict=True):
            is_same = slot.handle is handle  # who died meanwhile may have a successor, which was not asked
            if isinstance(result, WorkerError):
                refused += [] if isinstance(result, WorkerLost) else [result]
                if is_same:
                    self._lose(slot, str(result))
            elif isinstance(result, BaseException):
                raise result
            else:
                done.append(result)
                if is_same and slot.state is WorkerState.STALE:
                    self._enter(slot, WorkerState.SERVING)
        if refused and not done:
            raise refused[0]
        return done

    async def reports(self) -> dict[str, WorkerReport]:
        """What every process that answers at once says of itself, by its stable name."""
        return await prompt_reports([slot for slot in self.slots if slot.state in UP], self.faults)

    async def close(self) -> None:
        """End every worker."""
        for supervisor in self._supervisors:
            supervisor.cancel()
        await asyncio.gather(*self._supervisors, return_exceptions=True)
        for slot in self.slots:
            slot.handle.kill()

    def _add(self) -> Slot[H]:
        names = (f"{self.kind}-{index}" for index in range(len(self._slots) + 1))
        name = next(name for name in names if name not in self._slots)
        self._slots[name] = Slot(name, self._launch(name))
        return self._slots[name]

    def _supervise(self, slot: Slot[H]) -> None:
        task = asyncio.create_task(self._keep(slot))
        self._supervisors.add(task)
        task.add_done_callback(self._supervisors.discard)

    async def _keep(self, slot: Slot[H]) -> None:
        """One worker after another in the same slot, until it leaves or fails too often in a row."""
        failures = 0
        try:
            while True:
                await self._live(slot)
                failures = 1 if slot.has_served else failures + 1
                if failures <= self.faults.max_restarts:
                    await self._pause(slot, min(MAX_PAUSE_S, 2.0 ** (failures - 1) - 1))
                if slot.leave_by is not None or failures > self.faults.max_restarts:
                    break
                slot.renew(self._launch(slot.name))
        except Exception as error:  # a bug of ours: whoever needs a worker hears of it
            self._broken = error
        del self._slots[slot.name]
        if slot.leave_by is None:
            self._on_event(slot.name, f"given up after {failures} failures in a row")
            if not self._slots:
                self._broken = self._broken or NoWorkerLeft(
                    f"{slot.name} failed {failures} times in a row, the last time: {slot.reason}"
                )
        self._tell()

    async def _pause(self, slot: Slot[H], seconds: float) -> None:
        """So long, or until the worker is told to leave."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while slot.leave_by is None:
                    await self._changed.wait()

    async def _live(self, slot: Slot[H]) -> None:
        """One worker's life, from its start to its death."""
        try:
            if slot.state is WorkerState.STARTING:
                await slot.handle.ready(self._start_s)
                self._enter(slot, WorkerState.STALE)
            while not slot.lost.is_set():
                await self._try_to_admit(slot)
                await self._listen(slot)
        except (WorkerError, UserError) as error:
            self._lose(slot, str(error))

    async def _try_to_admit(self, slot: Slot[H]) -> None:
        async with self.admission.admitting():
            if slot.state is not WorkerState.STALE:
                return
            if await while_alive(slot.handle, self.admit(slot.handle), self.faults):
                slot.missed_refit = False
                self._enter(slot, WorkerState.SERVING)

    async def _listen(self, slot: Slot[H]) -> None:
        """Until the next sign of life. Raises `WorkerLost` once two in a row are missing."""
        try:
            async with asyncio.timeout(self.faults.heartbeat_s):  # wait_for may swallow a cancellation
                await slot.lost.wait()
            return
        except TimeoutError:
            pass
        try:
            report = await slot.handle.ping(self.faults.silence_s)
        except WorkerLost:
            if self.admission.is_pushing:  # which keeps it from answering, and has an eye on it
                return
            if slot.state is not WorkerState.SERVING:
                raise
            self._enter(slot, WorkerState.SUSPECT)
            report = await slot.handle.ping(self.faults.silence_s)
        if slot.state is not WorkerState.DEAD:
            self._on_report(slot.name, report)
        if slot.state is WorkerState.SUSPECT:
            self._enter(slot, WorkerState.STALE if slot.missed_refit else WorkerState.SERVING)
        if slot.leave_by is not None and slot.leave_by < asyncio.get_running_loop().time():
            self._lose(slot, f"had not finished {self.faults.drain_s:g} s after it was told to leave")

    def _enter(self, slot: Slot[H], state: WorkerState) -> None:
        """Called when a worker turns out to be alive or silent; it may have died meanwhile."""
        if slot.state is not WorkerState.DEAD:
            slot.enter(state)
            if state is WorkerState.SERVING and slot.is_awaited:
                slot.is_awaited = False
                self._on_event(slot.name, "serves")
            self._tell()

    def _lose(self, slot: Slot[H], reason: str) -> None:
        """The worker is dead, or will be in a moment: what it does from now on counts for nothing."""
        if slot.state is WorkerState.DEAD:
            return
        slot.handle.kill()
        slot.enter(WorkerState.DEAD)
        slot.reason = reason
        slot.lost.set()
        self._on_event(slot.name, "left" if slot.leave_by is not None else f"died: {reason}")

    async def _least_busy(self) -> Slot[H]:
        deadline = asyncio.get_running_loop().time() + self._start_s
        while True:
            if self._broken is not None:
                raise NoWorkerLeft(f"{self.kind}: no worker is left: {self._broken}") from self._broken
            serving = [slot for slot in self.slots if slot.state is WorkerState.SERVING]
            if serving:
                return min(serving, key=lambda slot: slot.load)
            try:
                async with asyncio.timeout_at(deadline):
                    await self._changed.wait()
            except TimeoutError:
                states = "; ".join(f"{one.name} is {one.state} {one.reason}".strip() for one in self.slots)
                raise NoWorkerLeft(f"{self.kind}: nobody served for {self._start_s:g} s: {states}") from None

    def _tell(self) -> None:
        """Wake who waits for a worker."""
        self._changed.set()
        self._changed = asyncio.Event()


async def _at_once(handle: Any) -> bool:
    return True
