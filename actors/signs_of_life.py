"""Waiting for workers that may be silent: for work that keeps one from answering, such as a weight pull, while its
process is alive, and for what all say of themselves, not at all long."""

import asyncio
from collections.abc import Awaitable, Sequence
from typing import Any, TypeVar

from actors.config import FaultsConfig
from actors.slot import Slot, WorkerHandle
from core.worker_report import WorkerReport

T = TypeVar("T")

REPORT_S = 2.0
"""For a report that a step waits for: what a worker says later is heard with its next sign of life."""


async def while_alive(handle: WorkerHandle, work: Awaitable[T], faults: FaultsConfig) -> T:
    """The work's result. Raises what it raised, or `WorkerLost` once the process is dead or has been silent for as
    long as one that serves may be: a process that is stopped, or whose node is gone, is not waited for to the end
    of the work's own deadline."""
    working = asyncio.ensure_future(work)
    watching = asyncio.ensure_future(_watch(handle, faults))
    both: list[asyncio.Future[Any]] = [working, watching]
    try:
        await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            watching.result()
        return await working
    finally:
        for task in both:
            task.cancel()
        await asyncio.gather(*both, return_exceptions=True)


async def _watch(handle: WorkerHandle, faults: FaultsConfig) -> None:
    """Until a sign of life fails to come. A report, not a ping: pings wait for the work."""
    while True:
        await asyncio.sleep(faults.heartbeat_s)
        await handle.report(faults.patience_s)


async def prompt_reports(slots: Sequence[Slot[Any]], faults: FaultsConfig) -> dict[str, WorkerReport]:
    """What those who answer within `REPORT_S` say of themselves, by their names."""
    said = await asyncio.gather(*(_report(slot.handle, faults) for slot in slots), return_exceptions=True)
    return {slot.name: one for slot, one in zip(slots, said, strict=True) if isinstance(one, WorkerReport)}


async def _report(handle: WorkerHandle, faults: FaultsConfig) -> WorkerReport:
    async with asyncio.timeout(
        REPORT_S
    ):  # a handle's own deadline is followed by the question what it is doing
        return await handle.report(faults.silence_s)
