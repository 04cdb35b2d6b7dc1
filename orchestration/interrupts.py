"""Ctrl-C and SIGTERM: the first asks the run to end, the second ends it at once."""

import asyncio
import signal
from collections.abc import Callable
from types import TracebackType


class Interrupts:
    """Within the context the first signal calls `ask`; a second one cancels the task that entered.

    with Interrupts(trainer.stop): ...
    """

    def __init__(self, ask: Callable[[], None]) -> None:
        self._ask = ask
        self._asked = False
        self._task: asyncio.Task[object] | None = None

    def __enter__(self) -> None:
        self._task = asyncio.current_task()
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, self._handle)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().remove_signal_handler(number)

    def cancel(self) -> None:
        """End the run at once, as the second signal does."""
        assert self._task is not None
        self._task.cancel()

    def _handle(self) -> None:
        if self._asked:
            self.cancel()
            return
        self._asked = True
        self._ask()
