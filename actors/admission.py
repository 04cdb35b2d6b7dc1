"""Who may be given weights when: workers that catch up, any number at a time, or a push to all, by itself.

A push changes what workers are admitted with, so it waits until nobody is being admitted, and goes before those who
come after it: however many workers join, a push waits for one admission's deadline at most.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager


class Admission:
    """Admissions side by side, pushes one by one."""

    def __init__(self) -> None:
        self._num_admitted = 0
        """Being admitted now."""
        self._num_pushes = 0
        """Under way, or waiting."""
        self.is_pushing = False
        self._changed = asyncio.Event()

    @asynccontextmanager
    async def admitting(self) -> AsyncIterator[None]:
        """Nothing is pushed meanwhile."""
        await self._until(lambda: self._num_pushes == 0)
        self._num_admitted += 1
        try:
            yield
        finally:
            self._num_admitted -= 1
            self._tell()

    @asynccontextmanager
    async def pushing(self) -> AsyncIterator[None]:
        """Nobody is admitted meanwhile."""
        self._num_pushes += 1
        try:
            await self._until(lambda: self._num_admitted == 0 and not self.is_pushing)
            self.is_pushing = True
            try:
                yield
            finally:
                self.is_pushing = False
        finally:
            self._num_pushes -= 1
            self._tell()

    async def _until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            await self._changed.wait()

    def _tell(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()
