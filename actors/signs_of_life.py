"""Work that keeps a worker from answering, such as a weight pull: waited for while its process is alive."""

import asyncio
from collections.abc import Awaitable
from typing import Any, TypeVar

from actors.config import FaultsConfig
from actors.slot import WorkerHandle

T = TypeVar("T")


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
