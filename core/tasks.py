"""Several things at once, none of which is left running."""

import asyncio
from collections.abc import AsyncIterator, Coroutine, Iterable
from contextlib import asynccontextmanager
from typing import Any, TypeVar

T = TypeVar("T")


async def all_of(work: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """The results, in order. If one fails the others are cancelled and waited for, and its error is raised.

    `asyncio.gather` would leave them running, to fail once more at whatever has been closed by then.
    """
    async with first_error(), asyncio.TaskGroup() as tasks:
        running = [tasks.create_task(each) for each in work]
    return [task.result() for task in running]


@asynccontextmanager
async def first_error() -> AsyncIterator[None]:
    """Around a task group, which has cancelled the others by then: its first error, as it was raised."""
    try:
        yield
    except BaseExceptionGroup as errors:
        error = errors.exceptions[0]
        raise error from error.__cause__
