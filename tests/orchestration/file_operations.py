"""What a piece of code does to files, one operation after the other, each of which can be made to fail."""

import os
import sys
from collections.abc import Callable


class Killed(BaseException):
    """The process ends here. Nothing that catches errors sees it."""


class FileOperations:
    """Counts this process's operations on files while it is switched on, and lets one of them fail.

    An audit hook sees opening, renaming, removing and making folders, from all threads; fsync, which it does not
    see, is replaced. A hook cannot be taken out again: there is one for all tests.
    """

    EVENTS = frozenset({"open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.scandir"})

    def __init__(self) -> None:
        self.log: list[str] | None = None
        self.fail_at = -1
        self.error: BaseException = Killed()
        sys.addaudithook(self._audit)

    def record(
        self, action: Callable[[], object], *, fail_at: int = -1, error: BaseException | None = None
    ) -> list[str]:
        """What the action did, one line an operation, up to the one that failed."""
        self.log, self.fail_at, self.error = [], fail_at, error or Killed()
        try:
            action()
        except type(self.error):
            pass
        finally:
            log, self.log = self.log, None
        return log

    def fsync(self, descriptor: int) -> None:
        self._note(f"fsync {os.readlink(f'/proc/self/fd/{descriptor}')}")

    def _audit(self, event: str, arguments: tuple[object, ...]) -> None:
        if self.log is not None and event in self.EVENTS:
            self._note(f"{event} {arguments[0]}")

    def _note(self, line: str) -> None:
        if self.log is not None:
            self.log.append(line)
            if len(self.log) == self.fail_at + 1:
                raise self.error


OPERATIONS = FileOperations()
